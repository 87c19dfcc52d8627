"""How results stand in a terminal or a pipe, and a comparison there: the verdict first, then what it rests on.

No boxes and no markup: lines read the same in a log, and a name such as "[red]" stays what it is. Columns come in
groups, cut into as many tables as the width needs. What a verb says comes in parts, and the first screen holds those
that matter most: `print_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from breakeven.errors import printable
from breakeven.pages.words import (
    NOT_AVAILABLE,
    RATIO_PLACES,
    bytes_text,
    caveats_of,
    describe,
    grouped,
    interval,
    left_out_text,
    noise_text,
    seconds_text,
    streams_text,
    value,
    winner_text,
    with_interval,
)
from breakeven.results.comparison import ComparedPoint, Comparison, Pair
from breakeven.results.metrics import METRICS, metric_of
from breakeven.stats.estimate import Estimate

Say = Callable[..., None]


SCREEN_LINES = 45
"""Of the first screen, at most; parts of rank 0 are never left out for it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Lines that belong together. Rank 0 always stands on the first screen; of the others the highest goes first.

    `name`: what is left out without it, in the line that says so.
    """

    draw: Callable[[Say], None]
    rank: int = 0
    name: str = ""


def print_parts(
    parts: Sequence[Passage], console: Console, *, full: bool, page: Path | None = None, most: int = SCREEN_LINES
) -> None:
    """Print `parts` in their order: all of them with `full`, else as many as `most` lines hold; then the page."""
    drawn = [(part, _drawn(part.draw, console)) for part in parts]
    left_out: list[str] = []

    def end(say: Say) -> None:
        if left_out:
            say()
            # Of a list that is left out wholly, the rest of it needs no word.
            wholly = tuple(f"more of {name!r}" for name in left_out)
            named = [name for name in left_out if not name.endswith(wholly)]
            say(f"With --full also: {', '.join(named)}.", "dim")
        if page is not None:
            say(f"Page: {page}")

    while not full and sum(len(lines) for _, lines in drawn) + len(_drawn(end, console)) > most:
        at = max(range(len(drawn)), key=lambda k: (drawn[k][0].rank, k))
        if drawn[at][0].rank == 0:
            break
        part, lines = drawn.pop(at)
        if lines and part.name and part.name not in left_out:
            left_out.insert(0, part.name)
    shown = [line for _, lines in drawn for line in lines]
    first = next((k for k, line in enumerate(shown) if line.plain), 0)
    for line in [*shown[first:], *_drawn(end, console)]:
        console.print(line, soft_wrap=True)


def _drawn(draw: Callable[[Say], None], console: Console) -> list[Text]:
    lines: list[Text] = []

    def say(text: str = "", style: str = "", indent: int = 0) -> None:
        lines.extend(_wrap(console, text, style, indent))

    draw(say)
    return lines


def listed_parts(title: str, lines: Sequence[str], *, most: int, rank: int = 0, rest: int = 5) -> list[Passage]:
    """A list under its title in two parts: the first `most` lines of one rank, the others of the rank `rest`."""
    more = lines[most:]

    def draw_more(say: Say) -> None:
        for line in more:
            say(f"- {line}", indent=2)

    first = Passage(lambda say: listed(title, list(lines[:most]), say), rank, title.lower())
    return [first, Passage(draw_more, rest, f"{len(more)} more of {title.lower()!r}")] if more else [first]


def print_comparison(result: Comparison, console: Console, report_path: Path | None, *, full: bool = False) -> None:
    """Print `result`: verdict, table, ratios, reasons, memory, what would change it, caveats, noise, page.

    Readable from 60 columns on; colour only where `console` is a terminal.
    """

    def answer(say: Say) -> None:
        say(result.verdict.headline, "bold")
        for caveat in caveats_of(result):
            say(caveat, "yellow")

    def noise(say: Say) -> None:
        say()
        say(f"Noise: {noise_text(result.noise)}.", "dim")
        for text in left_out_text(result.pairs):
            say(f"- {text}", "dim", 2)
        say(f"Measured for {seconds_text(result.measured_s)}; {stopped_text(result)}.", "dim")

    def noise_reasons(say: Say) -> None:
        for reason in result.noise.reasons:
            say(f"- {reason}", "dim", 2)

    parts = [
        Passage(answer),
        Passage(lambda say: _points(result, say), 1, "every load"),
        *_ratios(result),
        *listed_parts("Why", result.verdict.reasons, most=3, rank=2, rest=7),
        *listed_parts("Memory", result.verdict.memory or _memory(result), most=4, rank=3, rest=6),
        *listed_parts("What would change it", result.verdict.would_change, most=2, rank=4, rest=8),
        Passage(noise),
        Passage(noise_reasons, 5, "what was noisy"),
    ]
    print_parts(parts, console, full=full, page=report_path)


def stopped_text(result: Comparison) -> str:
    """Why measuring ended, as a clause."""
    asked = f"{result.precision * 100:g} %"
    return {
        "precision": f"stopped at the precision asked ({asked})",
        "budget": f"stopped at the budget, before the precision asked ({asked}) was sure",
        "interrupted": "interrupted: what was finished by then is shown",
    }.get(result.stopped_because, f"stopped: {result.stopped_because}")


def say_on(console: Console) -> Say:
    """A function of text, style and indent that prints on `console` as `wrapped` does."""

    def say(text: str = "", style: str = "", indent: int = 0) -> None:
        wrapped(console, text, style, indent)

    return say


def wrapped(console: Console, text: str, style: str, indent: int) -> None:
    """Print by words within the console's width; continuation lines stand under the first one's text."""
    for line in _wrap(console, text, style, indent):
        console.print(line, soft_wrap=True)


def _wrap(console: Console, text: str, style: str, indent: int) -> list[Text]:
    text = printable(text)
    hang = indent + (2 if text.startswith("- ") else 0)
    room = max(20, console.width - hang)
    body = text[2:] if text.startswith("- ") else text
    found = []
    for position, line in enumerate(Text(body, style=style).wrap(console, room) if body else [Text("")]):
        line.rstrip()
        lead = " " * indent + "- " if position == 0 and hang > indent else " " * hang
        found.append(Text(lead, style=style) + line)
    return found


def _points(result: Comparison, say: Say) -> None:
    lengths = {(point.prompt_tokens, point.output_tokens) for point in result.points}
    known = {model.name: describe(model) for model in result.models}
    energy = any(point.joules_per_token for point in result.points)
    for name, group in grouped(result.points, lambda point: point.model).items():
        say()
        say(f"{name} ({known[name]})" if name in known else name, "bold")
        head = ["streams", "decode tok/s", "prefill", "TTFT"] + (["J/token"] if energy else [])
        rows = [_point_row(point, energy, len(lengths) > 1) for point in group]
        for line in columns([head, *rows]):
            say(line, indent=2)
    if len(lengths) == 1:
        ((prompt, output),) = lengths
        say(f"{prompt} prompt and {output} output tokens; brackets hold 95 % intervals.", "dim")


def _point_row(point: ComparedPoint, energy: bool, say_lengths: bool) -> list[str]:
    streams = f"{point.streams}"
    if say_lengths:
        streams += f" ({point.prompt_tokens}+{point.output_tokens})"
    row = [
        streams,
        with_interval(point.decode_tokens_per_s) if point.decode_tokens_per_s else NOT_AVAILABLE,
        _short(point.prefill_tokens_per_s),
        _short(point.ttft_s, METRICS["ttft_s"].scale, " ms"),
    ]
    return [*row, _short(point.joules_per_token)] if energy else row


def _short(estimate: Estimate | None, scale: float = 1.0, unit: str = "") -> str:
    return NOT_AVAILABLE if estimate is None else value(estimate, scale) + unit


def _ratios(result: Comparison) -> list[Passage]:
    """A table for every two models and metric; prefill and a fourth pair where there is room."""

    def table(key: str, a: str, b: str, group: Sequence[Pair], say: Say) -> None:
        metric = metric_of(key)
        say()
        say(f"{metric.title}: {a} over {b} ({metric.direction})", "bold")
        ratio_table([(streams_text(pair.streams), pair.ratio, winner_text(pair)) for pair in group], "winner", say)

    def others(say: Say) -> None:
        say(f"Ratios of {' and '.join(left_out)} are in the page and in result.json.", "dim")

    shown = _headline_pairs(result)
    parts: list[Passage] = []
    for (key, a, b), group in grouped(shown, lambda pair: (pair.metric, pair.a, pair.b)).items():
        title = metric_of(key).title
        rank = 0 if len(parts) < MOST_PAIRS and (title == _HEADLINE_TITLES[0] or not parts) else 3
        parts.append(Passage(partial(table, key, a, b, group), rank, f"ratios of {title}"))
    metrics = {pair.metric for pair in shown}
    left_out = sorted(
        {metric_of(pair.metric).title for pair in result.pairs if pair.metric not in metrics}, reverse=True
    )
    return [*parts, Passage(others, 6)] if left_out else parts


def ratio_table(rows: Sequence[tuple[str, Estimate, str]], last: str, say: Say) -> None:
    """Ratios with their intervals; what each is of stands before it, and under `last` what it means."""
    cells = [
        [of, value(ratio, places=RATIO_PLACES), interval(ratio, places=RATIO_PLACES) or "no interval", meaning]
        for of, ratio, meaning in rows
    ]
    for line in columns([["", "ratio", "95 % interval", last], *cells], text_columns=(3,)):
        say(line, indent=2)


_HEADLINE_TITLES = ("Decode", "Prefill")
MOST_PAIRS = 3
"""Of models whose ratios stand on the first screen."""


def _headline_pairs(result: Comparison) -> list[Pair]:
    """The ratios a terminal has room for; all of them when neither rate was compared."""
    headline = [pair for pair in result.pairs if metric_of(pair.metric).title in _HEADLINE_TITLES]
    return headline or result.pairs


def columns(rows: Sequence[Sequence[str]], text_columns: Iterable[int] = ()) -> list[str]:
    """Pad cells into columns two spaces apart; numbers to the right, `text_columns` and the first to the left."""
    left = {0, *text_columns}
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _memory(result: Comparison) -> list[str]:
    return [
        f"{model.name}: file {bytes_text(model.file_bytes)}, peak resident {bytes_text(model.peak_rss_bytes)}"
        for model in result.models
    ]


def listed(title: str, lines: list[str], say: Say) -> None:
    """`lines` as a list under its title; nothing where there are none."""
    if not lines:
        return
    say()
    say(title, "bold")
    for line in lines:
        say(f"- {line}", indent=2)


LONGEST_NAME = 24


def packed(first: list[str], groups: list[list[list[str]]], width: int) -> list[list[str]]:
    """Tables of lines, each with the column `first` and as many groups as `width` holds, whole where they fit.

    A group is a list of columns, a column a head and its cells; every column is as long as `first`.
    """
    tables: list[list[list[str]]] = []
    fitting = [part for group in groups for part in ([group] if _wide([first, *group]) <= width else _apart(group))]
    for group in fitting:
        if tables and _wide([first, *tables[-1], *group]) <= width:
            tables[-1] += group
        else:
            tables.append(list(group))
    return [columns(list(zip(first, *table, strict=True))) for table in tables]


def say_tables(tables: Sequence[Sequence[str]], say: Say) -> None:
    """Tables of lines, indented, an empty line between them."""
    for position, lines in enumerate(tables):
        if position:
            say()
        for line in lines:
            say(line, indent=2)


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` with its middle left out where it would take the room of the numbers."""
    if len(name) <= longest:
        return name
    half = (longest - 2) // 2
    return f"{name[:half]}..{name[-half:]}"


def _apart(group: list[list[str]]) -> list[list[list[str]]]:
    """Each column of a group on its own, headed by what the first of them is about."""
    title = group[0][0].rpartition(" p")[0]
    heads = [f"{title} {column[0]}" if column[0].startswith("p") and title else column[0] for column in group]
    return [[[head, *column[1:]]] for head, column in zip(heads, group, strict=True)]


def _wide(table: list[list[str]]) -> int:
    return sum(max(len(cell) for cell in column) for column in table) + 2 * (len(table) - 1)
