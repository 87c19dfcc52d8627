"""Judged sentences as people read them: the list, one with its numbers, and the page of all (`docs/claims.md`)."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.pages.terminal import Say
from breakeven.pages.words import bytes_text, grouped, number
from breakeven.results.claims import Claim, ClaimFinding, ClaimPart, Claims, ClaimSource
from breakeven.stats.estimate import Estimate

JUDGED = {"holds": "holds", "fails": "no", "open": "open"}
"""A finding's verdict in a table's column."""
SIDES = {"holds": "at or above", "fails": "below", "open": "open"}
"""And where one winner for all cases is tested."""
NAME_WIDTH = 22

HEAD = """# Claims

Sentences that people come with, each with its source, a test, and the verdict that follows from today's numbers.
`breakeven claims` lists them, `breakeven claims NAME` shows one with its numbers, and measures it here with `--run`
where it can be measured here. This page is what `breakeven claims --markdown` prints; a test holds it against the
code.

Numbers of {date}, breakeven {version}.

## How a verdict comes about
No verdict is typed in. A sentence has one or more parts; a part has numbers and a rule, such as "at least 10". A
number *holds* when its whole interval is where the rule says, it says *no* when all of the interval is elsewhere, and
is *open* otherwise.

| verdict of a part | when |
|---|---|
| holds | every number holds |
| holds where | some hold, some do not: where they do is listed |
| does not hold | none holds, at least one says no, and no number, its interval aside, is where the rule says |
| open | anything else |

A sentence is as true as its least true part; where its parts are readings of it, it holds where one of them does. A
rule "all above or all below 1" tests whether one winner can be named for all cases.

Predicted numbers are those of the [step model](predict.md) and the [simulator](simulate.md), from data sheets and
published measurements; their intervals are those of predictions left out of the fit ([accuracy](accuracy.md)).
Published numbers stand as their source gives them, with 10 % either way where it gives no interval. Sources without
an address are as heard: who said it first was not found. "A over B" is A divided by B.

## All of them
"""


def print_claims(result: Claims, say: Say, width: int) -> None:
    """Every sentence in two lines: its name and words, then its verdict and what is behind it."""
    for claim in result.claims:
        say(_cut(f"{claim.name:<{NAME_WIDTH}}{claim.sentence}", width), "bold")
        say(_cut(f"  {claim.verdict}: {claim.short}", width))
    say(_cut(f"Numbers of {result.date}. `breakeven claims NAME` shows one with its evidence.", width), "dim")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 3)].rstrip()}..."


def print_claim(claim: Claim, say: Say, *, full: bool = False) -> None:
    """One sentence with its numbers; with `full` also records and the commands that print the numbers."""
    say(claim.sentence, "bold")
    say(f"{claim.verdict.capitalize()}: {_dotted(claim.short)}", "bold")
    say(f"Source: {_source(claim.source)}", "dim")
    if claim.note:
        say(claim.note, "dim")
    for part in claim.parts:
        say()
        say(f"{part.says} ({part.quantity}), {part.rule}: {part.verdict}", "bold")
        for case, findings in grouped(part.findings, lambda finding: finding.case).items():
            _findings(case, findings, part, say)
        for line in _behind(part) if full else []:
            say(line, "dim", 2)
    say()
    if claim.settle:
        say(f"What would settle it: {_dotted(claim.settle)}")
    if claim.run:
        about = f"about {claim.run.minutes:g} minutes and {bytes_text(claim.run.memory_bytes)} of memory"
        say(f"Measured here, {claim.run.measures} takes {about}: {claim.run.command}")


def _findings(case: str, findings: Sequence[ClaimFinding], part: ClaimPart, say: Say) -> None:
    told = [f"{f.at}{', ' if f.at else ''}{_told(f, part)}" for f in findings]
    say(f"- {case}{'; ' if len(told) == 1 else ': '}{'; '.join(told)}", "", 2)


def _told(finding: ClaimFinding, part: ClaimPart) -> str:
    if finding.value is None:
        return f"not known ({finding.record})"
    how = "" if finding.value.provenance == "predicted" else f" ({finding.value.provenance})"
    return f"{_number(finding.value, part.unit)}: {_judged(finding, part)}{how}"


def _judged(finding: ClaimFinding, part: ClaimPart) -> str:
    return (SIDES if part.alike else JUDGED)[finding.verdict]


def _behind(part: ClaimPart) -> list[str]:
    records = [f"{f.case}: {f.record}" + (f" ({f.url})" if f.url else "") for f in part.findings if f.record]
    return [*dict.fromkeys(records), *part.commands]


def _number(value: Estimate, unit: str = "times") -> str:
    shown = number(value.value)
    if value.least != value.value or value.most != value.value:
        shown = f"{shown} ({number(value.least)} to {number(value.most)})"
    return shown if unit == "times" else f"{shown} {unit}"


def _source(source: ClaimSource) -> str:
    told = ", ".join(text for text in (source.title, source.date, source.url) if text)
    return f"{told}. There: {_dotted(source.says)}" if source.says else f"{told}."


def _dotted(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def markdown(result: Claims) -> str:
    """`docs/claims.md`, whole."""
    lines = [HEAD.format(date=result.date, version=result.version).rstrip("\n")]
    lines += ["| claim | sentence | verdict |", "|---|---|---|"]
    lines += [f"| [{c.name}](#{c.name}) | {_cell(c.sentence)} | {c.verdict} |" for c in result.claims]
    for claim in result.claims:
        lines += ["", *_section(claim)]
    return "\n".join(lines) + "\n"


def _section(claim: Claim) -> list[str]:
    link = f"[{claim.source.title}]({claim.source.url})" if claim.source.url else claim.source.title
    dated = f"{link}, {claim.source.date}" if claim.source.date else link
    says = f". There: {_dotted(claim.source.says)}" if claim.source.says else "."
    lines = [f"## {claim.name}", f"*{claim.sentence}*", "", f"**{claim.verdict.capitalize()}**: {_dotted(claim.short)}"]
    lines += ["", f"Source: {dated}{says}"]
    if claim.note:
        lines += ["", claim.note]
    for part in claim.parts:
        lines += ["", f"**{part.says}**: {part.quantity}, {part.rule}; {part.verdict}.", ""]
        lines += [
            f"| case | at | {'number' if part.unit == 'times' else part.unit} | verdict | from |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(finding, part) for finding in part.findings]
        if part.commands:
            lines += ["", *(f"    {command}" for command in part.commands)]
    if claim.settle:
        lines += ["", f"What would settle it: {_dotted(claim.settle)}"]
    if claim.run:
        about = f"about {claim.run.minutes:g} minutes and {bytes_text(claim.run.memory_bytes)} of memory"
        lines += ["", f"Here: `{claim.run.command}` measures {claim.run.measures} ({about})."]
    return lines


def _row(finding: ClaimFinding, part: ClaimPart) -> str:
    provenance = "" if finding.value is None else finding.value.provenance
    told = finding.record or provenance
    told = f"[{_cell(told)}]({finding.url})" if finding.url else _cell(told)
    shown = "not known" if finding.value is None else _number(finding.value)
    return f"| {_cell(finding.case)} | {finding.at} | {shown} | {_judged(finding, part)} | {told} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
