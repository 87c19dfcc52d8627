"""All figures of a decision, in reading order."""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.report.figure import Figure, Missing
from breakeven.report.figures_cost import cost_curve
from breakeven.report.figures_fit import memory_bars
from breakeven.report.figures_latency import latency_curves
from breakeven.report.figures_map import decision_maps, region_strip
from breakeven.spec.decision import Decision


@dataclass(frozen=True, slots=True)
class DecisionFigures:
    """Every figure, or the sentence that says why there is none."""

    regions: list[Figure | Missing]
    cost: list[Figure | Missing]
    latency: list[Figure | Missing]
    maps: list[Figure | Missing]
    memory: list[Figure | Missing]

    @property
    def all(self) -> list[Figure | Missing]:
        """In reading order."""
        return [*self.regions, *self.cost, *self.latency, *self.maps, *self.memory]


def figures_of_decision(decision: Decision) -> DecisionFigures:
    """Build every figure of `decision`. Draws nothing yet."""
    return DecisionFigures(
        regions=[region_strip(decision)],
        cost=[cost_curve(decision)],
        latency=latency_curves(decision),
        maps=decision_maps(decision),
        memory=[memory_bars(decision)],
    )
