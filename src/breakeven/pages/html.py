"""The page: one file that needs no network, no script and no second file, for screen, phone and paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from breakeven.pages import words
from breakeven.pages.figures import figure as svg
from breakeven.pages.figures.comparison import figures_of
from breakeven.pages.figures.figure import Figure, Missing
from breakeven.pages.terminal import stopped_text
from breakeven.results.comparison import Comparison, Pair
from breakeven.results.load import LoadDifference
from breakeven.results.store import write_whole
from breakeven.stats.estimate import Estimate

if TYPE_CHECKING:
    from jinja2 import Environment

P = TypeVar("P", Pair, LoadDifference)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure ready for the page. `narrow` is empty where the wide drawing serves phones too."""

    title: str
    caption: str
    wide: str
    narrow: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in a table: the value, and its interval beneath it."""

    value: str
    interval: str


def write_report(result: Comparison, path: Path) -> Path:
    """Write the page of `result` to `path`. Raises `UserError` when it cannot be written."""
    return write_whole(path, render_report(result).encode())


def render_report(result: Comparison) -> str:
    """The page of `result` as HTML. Every text that came from outside is escaped."""
    figures = figures_of(result)
    return (
        environment_of_pages()
        .get_template("report.html.jinja")
        .render(
            result=result,
            caveats=words.caveats_of(result),
            stopped=stopped_text(result),
            lengths=sorted({(point.prompt_tokens, point.output_tokens) for point in result.points}),
            points=[
                point for group in words.grouped(result.points, lambda each: each.model).values() for point in group
            ],
            pairs=by_models(result.pairs, words.METRICS),
            ratio_places=words.RATIO_PLACES,
            energy=any(point.joules_per_token for point in result.points),
            metrics=list(words.METRICS.values()),
            ratios=drawn(figures.ratios),
            load=drawn([*figures.decode, *figures.prefill]),
            time=drawn(figures.time),
            memory=drawn(figures.memory),
            routing=drawn(figures.routing),
        )
    )


def environment_of_pages() -> Environment:
    """Jinja with the filters that every page uses. Escapes all text; an unknown name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("breakeven.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=words.bytes_text,
        count=words.count_text,
        seconds=words.seconds_text,
        percent=words.percent_text,
        streams=words.streams_text,
        known=lambda found: words.NOT_AVAILABLE if found is None or found == "" else found,
    )
    environment.globals.update(
        kind=words.kind_text, winner=words.winner_text, metric=words.metric_of, cell=cell, roles=svg.ROLES
    )
    return environment


def drawn(figures: list[Figure | Missing]) -> list[Drawn | Missing]:
    """`figures` ready for a page: our own SVG, whose text Vega has escaped, is all markup that enters as it is."""
    from markupsafe import Markup

    return [
        figure
        if isinstance(figure, Missing)
        else Drawn(
            title=figure.title,
            caption=figure.caption,
            wide=Markup(svg.inline(svg.draw(figure.wide), figure.alt)),
            narrow=Markup(svg.inline(svg.draw(figure.narrow), figure.alt)) if figure.narrow else "",
        )
        for figure in figures
    ]


def by_models(pairs: Sequence[P], known: Iterable[str]) -> dict[tuple[str, str], list[P]]:
    """Ratios under the two models they compare, in the study's order; by metric in the order of those `known`."""
    order = {key: index for index, key in enumerate(known)}
    # Sorting is stable, so a metric's loads stay as the study lists them.
    by_metric = sorted(pairs, key=lambda pair: order.get(pair.metric, len(order)))
    found = words.grouped(by_metric, lambda pair: (pair.a, pair.b))
    return {names: found[names] for names in dict.fromkeys((pair.a, pair.b) for pair in pairs)}


def cell(estimate: Estimate | None, scale: float = 1.0, places: int | None = None) -> Cell:
    """`estimate` as a table shows it."""
    if estimate is None:
        return Cell(words.NOT_AVAILABLE, "")
    interval = words.interval(estimate, scale, places)
    return Cell(words.value(estimate, scale, places), "no interval" if interval is None else interval.replace("-", "–"))
