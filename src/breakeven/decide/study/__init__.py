"""Studies: what people write in YAML, checked, as `StudyPlan`."""

from breakeven.decide.study.model import (
    ApiSpeed,
    CandidatePlan,
    Constraints,
    PolicyPlan,
    QualityPlan,
    StudyPlan,
    TrafficPart,
)

__all__ = [
    "ApiSpeed",
    "CandidatePlan",
    "Constraints",
    "PolicyPlan",
    "QualityPlan",
    "StudyPlan",
    "TrafficPart",
]
