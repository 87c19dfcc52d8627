"""All figures of a comparison, for the page and as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from breakeven.report import svg
from breakeven.report.figure import Figure, Missing
from breakeven.report.figures_load import throughput
from breakeven.report.figures_model import memory, node_times, routing_maps
from breakeven.report.figures_ratio import forests
from breakeven.report.json_file import write_whole
from breakeven.spec.study import Comparison


@dataclass(frozen=True, slots=True)
class Figures:
    """Every figure, or the sentence that says why there is none."""

    ratios: list[Figure | Missing]
    decode: list[Figure | Missing]
    prefill: list[Figure | Missing]
    time: list[Figure | Missing]
    memory: list[Figure | Missing]
    routing: list[Figure | Missing]

    @property
    def all(self) -> list[Figure | Missing]:
        """In reading order."""
        return [*self.ratios, *self.decode, *self.prefill, *self.time, *self.memory, *self.routing]


def figures_of(result: Comparison) -> Figures:
    """Build every figure of `result`. Draws nothing yet."""
    return Figures(
        ratios=forests(result),
        decode=throughput(result, "decode_tokens_per_s"),
        prefill=throughput(result, "prefill_tokens_per_s"),
        time=[node_times(result)],
        memory=[memory(result)],
        routing=routing_maps(result),
    )


def export_charts(result: Comparison, directory: Path) -> list[Path]:
    """Write each chart as an SVG with fixed colours on white paper; return the files written.

    A chart whose data the study lacks is left out. Raises `UserError` when `directory` cannot be written.
    """
    written = []
    for figure in figures_of(result).all:
        if isinstance(figure, Figure):
            drawn = svg.standalone(svg.draw(figure.wide), figure.alt)
            written.append(write_whole(directory / f"{figure.name}.svg", drawn.encode()))
    return written
