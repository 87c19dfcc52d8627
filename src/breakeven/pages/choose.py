"""A choice in a terminal: the pick first, the front beside it, why each stands there, and what to run next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from breakeven.pages.load_words import ended
from breakeven.pages.terminal import (
    LONGEST_NAME,
    Passage,
    Say,
    listed_parts,
    packed,
    print_parts,
    say_tables,
    shortened,
)
from breakeven.pages.words import bytes_text, number, seconds_text
from breakeven.results.choose import ChoiceExplained, ChoiceRow, ModelChoice
from breakeven.stats.estimate import Estimate

KINDS = {"moe": "MoE", "dense": "dense"}


def print_choice(choice: ModelChoice, console: Console, page: Path | None, *, full: bool = False) -> None:
    """Print `choice`; readable from 60 columns on, colour only where `console` is a terminal."""
    parts = [
        Passage(lambda say: say(choice.sentence, "bold")),
        Passage(lambda say: _explained(choice.explained, say)),
        *listed_parts("Why", [ended(text) for text in choice.because], most=3, rank=1),
        *_table(choice, console.width),
        *_reasons(choice),
        Passage(lambda say: _commands(choice, say)),
        *listed_parts("Hosted, nothing to run here", hosted_lines(choice), most=2, rank=2),
        *listed_parts("Limits", limit_lines(choice), most=2, rank=4, rest=6),
        *listed_parts("Not in the answer", passed_lines(choice), most=4, rank=3),
        *(Passage(partial(_about, row), 8, "each row") for row in choice.rows),
        Passage(lambda say: _foot(choice, say), 2, "notes"),
    ]
    print_parts(parts, console, full=full, page=page)


def _explained(explained: ChoiceExplained | None, say: Say) -> None:
    if explained is None:
        return
    say()
    of = explained.model if explained.format == "any" else f"{explained.model} in {explained.format}"
    say(f"{of} is the pick." if explained.picked else f"Why not {of}:", "bold")
    for reason in [] if explained.picked else explained.reasons:
        say(f"- {ended(reason)}", indent=2)


def _table(choice: ModelChoice, width: int) -> list[Passage]:
    """The rows' numbers: the columns that stand beside the names always, others and the words on them by room."""
    if not choice.rows:
        return []
    use = choice.use
    users = "one user" if use.users == 1 else f"{use.users} users"
    columns = [["kind"], ["quality"], ["tok/s"], ["memory"], ["best in"]]
    for row in choice.rows:
        for column, cell in zip(columns, cells(row), strict=True):
            column.append(cell)
    # A name has what the numbers leave, and its format stays readable.
    longest = max(LONGEST_NAME, width - 4 - sum(max(map(len, column)) + 2 for column in columns))
    first = ["", *(f"{shortened(row.model, longest - len(row.format) - 1)}:{row.format}" for row in choice.rows)]
    tables = packed(first, [[column] for column in columns], width - 2)

    def begins(say: Say) -> None:
        say()
        say(f"{use.name} for {users} on {choice.machine} with {choice.engine}, predicted:", "bold")
        say_tables(tables[:1], say)

    def goes_on(lines: Sequence[str], say: Say) -> None:
        say()
        say_tables([lines], say)

    def words(say: Say) -> None:
        say(
            "Quality: share of tasks of which the middle model solves half, the format's loss taken off. Best in: "
            f"share of {choice.worlds} drawn worlds in which the model wins. Brackets hold 95 %.",
            "dim",
            2,
        )
        if not all(row.on_front for row in choice.rows):
            say("*: not on the front in the middle of its band; within it, it may be.", "dim", 2)

    return [
        Passage(begins),
        *(Passage(partial(goes_on, lines), 1, "more columns") for lines in tables[1:]),
        Passage(words, 2, "what the columns are"),
    ]


def cells(row: ChoiceRow) -> tuple[str, ...]:
    """A row's numbers as a table shows them."""
    return (
        KINDS[row.kind] + ("" if row.on_front else "*"),
        span(row.quality, 0),
        span(row.tokens_per_s),
        bytes_text(row.memory_bytes),
        f"{row.wins:.0%}",
    )


def span(estimate: Estimate, decimals: int | None = None) -> str:
    """A value with its band, each end in as many digits as it deserves."""
    ends = (number(each, decimals) for each in (estimate.least, estimate.most))
    return f"{number(estimate.value, decimals)} ({'-'.join(ends)})"


def _reasons(choice: ModelChoice) -> list[Passage]:
    """Why each row stands there; that of the pick always, the others' from the last on where there is no room."""

    def reason(row: ChoiceRow, say: Say) -> None:
        if row is choice.rows[0]:
            say()
        gives = f" Gives up {', '.join(row.gives_up)}." if row.gives_up else ""
        say(f"- {row.model}: {ended(row.why)}{gives} {bytes_text(row.download_bytes)} to download.", indent=2)

    rest = "what each row gives up"
    return [Passage(partial(reason, row), min(position, 1), rest) for position, row in enumerate(choice.rows)]


def _commands(choice: ModelChoice, say: Say) -> None:
    if choice.measure is not None:
        say()
        say("Measure the two best here, before any download:", "bold")
        say(choice.measure, indent=2)
    if choice.rows:
        first = choice.rows[0]
        say()
        say(f"Start {first.model} ({bytes_text(first.download_bytes)} to download):", "bold")
        for command in first.start[:1]:
            say(command.line, indent=2)
            if command.note:
                say(command.note, "dim", 2)
    if choice.hosted:
        row = choice.hosted[0]
        surely = "" if row.better is None else f" does better in {row.better:.0%} of worlds,"
        say()
        say(
            f"Hosted, {row.model} at {row.host}{surely} {number(row.usd_per_1000_requests)} dollars per 1,000 requests."
        )


def hosted_lines(choice: ModelChoice) -> list[str]:
    """Each hosted model: how able, against the pick, what it costs, and from which load the machine is cheaper."""
    found = []
    for row in choice.hosted:
        parts = [f"{row.model} at {row.host}: quality {span(row.quality, 0)}"]
        if row.better is not None:
            parts.append(f"better than the pick in {row.better:.0%} of worlds")
        parts.append(f"{number(row.usd_per_1000_requests)} dollars per 1,000 requests (prices of {choice.hosted_date})")
        if row.requests_for_rent is not None:
            parts.append(f"as dear as renting this machine from {row.requests_for_rent:,.0f} requests a month")
        if row.requests_in_limit is not None:
            parts.append(f"{row.requests_in_limit:,.0f} requests a month within the limit")
        found.append("; ".join(parts))
    return found


def limit_lines(choice: ModelChoice) -> list[str]:
    """Each limit, who set it, and what it rules out."""
    return [
        f"{limit.option}: {limit.asked}{'' if limit.given else ' (by use or machine)'}; rules out {limit.ruled_out} "
        f"model{'' if limit.ruled_out == 1 else 's'}"
        for limit in choice.limits
    ]


def passed_lines(choice: ModelChoice) -> list[str]:
    """Who is passed over, and why."""
    return [f"{each.reason}: {each.models}, such as {', '.join(each.nearest)}" for each in choice.passed_over]


def _about(row: ChoiceRow, say: Say) -> None:
    """What stands behind a row."""
    say()
    say(f"{row.model}:{row.format}, keys and values in {row.kv}; {row.licence or 'licence not known'}", indent=2)
    for text in about(row):
        say(ended(text), indent=4)


def about(row: ChoiceRow) -> list[str]:
    """What stands behind a row, in lines."""
    kl, top1 = row.loss_kl, row.loss_top1
    lines = [
        f"quality: {row.quality_note}",
        f"its format costs a KL of {number(kl.value)} ({number(kl.least)} to {number(kl.most)}) nats a token, "
        f"{top1.value:.1%} of tokens stay the likeliest: {row.loss_basis}",
    ]
    if row.placement:
        lines.append(f"where it lies: {row.placement}")
    lines.append(f"first token after {seconds_text(row.ttft_s.value)}")
    if row.answer_tokens is not None and row.answer_s is not None:
        lines.append(
            f"an answer takes {span(row.answer_tokens)} tokens, {seconds_text(row.answer_s.value)} "
            f"({seconds_text(row.answer_s.least)} to {seconds_text(row.answer_s.most)})"
        )
    return [*lines, *row.notes, *(f"{command.engine}: {command.line}" for command in row.start)]


def _foot(choice: ModelChoice, say: Say) -> None:
    say()
    use = choice.use
    say(
        f"{use.prompt:,} tokens read, {use.output:,} written, caches for {use.reserve:,}: {use.about}. "
        f"{choice.considered:,} combinations of {choice.models} models, formats, caches and placements were weighed. "
        f"{choice.profile}.",
        "dim",
    )
    for note in choice.notes:
        say(f"- {ended(note)}", "dim")
