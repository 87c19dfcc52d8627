"""Studies: what people write in YAML, checked, as `StudyPlan`."""
