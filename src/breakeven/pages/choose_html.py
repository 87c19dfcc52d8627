"""The page of a choice: the pick, the front with its bands, every row, and what was passed over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from breakeven.pages.choose import KINDS, about, hosted_lines, limit_lines, passed_lines, span
from breakeven.pages.figures.axes import TICK_FORMAT, scale_of
from breakeven.pages.figures.figure import NARROW, WIDE, Cast, Figure, Missing, data_of, slack, styled
from breakeven.pages.html import Cell, cell, drawn, environment_of_pages
from breakeven.pages.load_words import ended
from breakeven.pages.words import bytes_text, seconds_text
from breakeven.results.choose import ChoiceRow, ModelChoice
from breakeven.results.store import RESULT, write, write_whole

if TYPE_CHECKING:
    from breakeven.pages.figures.figure import Drawing

PAGE = "report.html"
TITLE = "Quality against speed"
HEIGHT, LABEL = 320, 8


def save_choice(choice: ModelChoice, directory: Path) -> Path:
    """Write `result.json` and `report.html` into `directory`, which is returned. Raises UserError where it cannot."""
    write(choice, directory / RESULT)
    write_whole(directory / PAGE, render_choice(choice).encode())
    return directory


def render_choice(choice: ModelChoice) -> str:
    """The page of `choice` as HTML. Every text that came from outside is escaped."""
    environment = environment_of_pages()
    environment.filters.update(sentence=ended)
    return environment.get_template("choose.html.jinja").render(
        result=choice,
        figures=drawn([front_chart(choice)]) if choice.rows else [],
        kinds=KINDS,
        points=lambda row: cell(row.quality.plain(), places=0) if row.quality.low is not None else Cell("–", ""),
        speed=lambda row: _cell(row.tokens_per_s.value, span(row.tokens_per_s)),
        first=lambda row: Cell(
            seconds_text(row.ttft_s.value), f"{seconds_text(row.ttft_s.least)} to {seconds_text(row.ttft_s.most)}"
        ),
        about=about,
        hosted=hosted_lines(choice),
        limits=limit_lines(choice),
        passed=passed_lines(choice),
        size=bytes_text,
    )


def _cell(value: float, text: str) -> Cell:
    head, _, ends = text.partition(" (")
    return Cell(head, ends.rstrip(")").replace("-", "–"))


def front_chart(choice: ModelChoice) -> Figure | Missing:
    """Every row by speed and quality, with both bands."""
    rows = [_point(row) for row in choice.rows]
    if not rows:
        return Missing(TITLE, "Nothing keeps the limits, so there is no front to draw.")
    told = "; ".join(
        f"{row.model} in {row.format} ({KINDS[row.kind]}): quality {span(row.quality, 0)}, {span(row.tokens_per_s)} "
        f"tokens/s, {bytes_text(row.memory_bytes)}"
        for row in choice.rows
    )
    return Figure(
        name="front",
        title=TITLE,
        alt=f"{TITLE}. {told}.",
        caption="Tokens/s of one user across, quality in points up, with 95 % bands. A colour for each kind.",
        wide=_chart(rows, narrow=False),
        narrow=_chart(rows, narrow=True),
    )


def _point(row: ChoiceRow) -> dict[str, Any]:
    return {
        "model": f"{row.model}:{row.format}",
        "kind": KINDS[row.kind],
        "speed": row.tokens_per_s.value,
        "slow": row.tokens_per_s.least,
        "fast": row.tokens_per_s.most,
        "quality": row.quality.value,
        "low": row.quality.least,
        "high": row.quality.most,
    }


class _Kind:
    def __init__(self, name: str) -> None:
        self.name = name


def _chart(rows: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    kinds = sorted({str(row["kind"]) for row in rows}, reverse=True)
    cast = Cast([_Kind(kind) for kind in kinds])
    across = scale_of([float(row[key]) for row in rows for key in ("speed", "slow", "fast")], from_zero=False)
    up = scale_of([float(row[key]) for row in rows for key in ("quality", "low", "high")], from_zero=False)
    width = (NARROW if narrow else WIDE) - 70
    x_axis = alt.Axis(title="tokens/s", values=across.ticks(width, 48), format=TICK_FORMAT, domain=False, ticks=False)
    y_axis = alt.Axis(title="quality", domain=False, ticks=False)
    base = alt.Chart(data_of(rows))
    x = alt.X("speed:Q", scale=across.scale(), axis=x_axis)
    y = alt.Y("quality:Q", scale=up.scale(), axis=y_axis)
    colour = alt.Color("kind:N", scale=cast.colours(kinds), legend=alt.Legend(title=None, orient="top"))
    shape = alt.Shape("kind:N", scale=cast.marks(kinds), legend=alt.Legend(title=None, orient="top"))
    layers = [
        base.mark_rule(opacity=0.45).encode(x=alt.X("slow:Q", scale=across.scale()), x2="fast:Q", y=y, color=colour),
        base.mark_rule(opacity=0.45).encode(y=alt.Y("low:Q", scale=up.scale()), y2="high:Q", x=x, color=colour),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour, shape=shape),
        base.mark_text(align="left", dx=LABEL, dy=-LABEL).encode(x=x, y=y, text="model:N"),
    ]
    chart: Drawing = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(chart, narrow, slack((str(row["model"]) for row in rows), narrow))
