"""Sentences that people come with, judged by today's model: no verdict is typed, each follows from numbers and a rule.

The sentences, their sources and their tests stand in `data/claims.yaml`; `claim_numbers` computes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from itertools import groupby

import msgspec
import yaml

from breakeven.answer.claim_cases import ClaimCase, numbers_of
from breakeven.answer.claim_numbers import QUANTITIES
from breakeven.errors import UserError
from breakeven.results.claims import (
    Claim,
    ClaimFinding,
    ClaimPart,
    ClaimRun,
    Claims,
    ClaimSource,
    ClaimVerdict,
    Judged,
)
from breakeven.results.comparison import NodeProfile, Pair
from breakeven.stats.estimate import Estimate, exactly
from breakeven.version import __version__

DATA = "data/claims.yaml"
AXES = {
    "batch": "{} streams",
    "context": "{} tokens of context",
    "utilisation": "{} used",
    "rate": "{} requests/s",
    "format": "{}",
    "skew": "routing skew {}",
    "machine": "{}",
}
"""What a part may be swept along, and how a place on it reads."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a part's numbers must be. `quantifier`: in `all` cases, in `some` case ("up to"), or `alike`: the sentence
    names one winner for all cases, so all numbers must lie on one side of `at_least`."""

    at_least: float | None = None
    at_most: float | None = None
    quantifier: str = "all"

    def judges(self, value: Estimate) -> Judged:
        """Of one number, with its whole interval; open where the sample was too small to give one."""
        if value.low is None or value.high is None:
            return "open"
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        if low <= value.least and value.most <= high:
            return "holds"
        return "fails" if value.most < low or value.least > high else "open"

    def words(self) -> str:
        ends = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        ends += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        if self.quantifier == "alike":
            return f"all above or all below {self.at_least:g}"
        return " and ".join(ends) + (" in some case" if self.quantifier == "some" else "")


class PartSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test of a sentence. `along`: one field of the cases, and the values it takes."""

    says: str
    quantity: str
    holds: Rule
    cases: list[ClaimCase]
    along: dict[str, list[float | str]] = {}


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measurement here. `measures`: decode (of `of` over `over`) or router (its share of `of`'s MoE blocks)."""

    of: str
    over: str | None = None
    measures: str
    part: int
    """Which part's rule judges it, counted from 0."""
    only_on: tuple[str, ...] = ()
    """Processors, as the system calls them, that the sentence is about; any where empty."""
    minutes: float
    memory_gb: float
    streams: tuple[int, ...] = (1, 4)


class ClaimSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sentence of the data file. `readings`: its parts are ways in which it may be meant, and any one will do."""

    name: str
    sentence: str
    source: ClaimSource
    parts: list[PartSpec]
    readings: bool = False
    note: str | None = None
    settle: str | None = None
    run: RunSpec | None = None


@lru_cache(maxsize=1)
def claim_specs() -> tuple[ClaimSpec, ...]:
    """Every sentence that is shipped, in the order of the page."""
    text = (resources.files("breakeven.answer") / DATA).read_text(encoding="utf-8")
    return tuple(msgspec.convert(yaml.safe_load(text), list[ClaimSpec]))


def claim_named(name: str) -> ClaimSpec:
    """Raises UserError naming the nearest ones."""
    for spec in claim_specs():
        if spec.name == name.casefold():
            return spec
    from difflib import get_close_matches

    names = [spec.name for spec in claim_specs()]
    near = get_close_matches(name.casefold(), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`breakeven claims` lists them"
    raise UserError(f"no claim is called {name!r}; {hint}")


def judge_claims(
    name: str | None = None,
    measured: Sequence[ClaimFinding] = (),
    on_claim: Callable[[str], None] = lambda name: None,
) -> Claims:
    """The claim called `name`, or all, judged now. `measured`: what a run here found of that one claim.

    Raises UserError for an unknown name.
    """
    found = []
    for spec in claim_specs() if name is None else (claim_named(name),):
        on_claim(spec.name)
        found.append(judge(spec, measured))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Claims(version=__version__, date=today, claims=found)


def judge(spec: ClaimSpec, measured: Sequence[ClaimFinding] = ()) -> Claim:
    """One sentence: every part tested, then what follows for the whole."""
    here = None if spec.run is None else spec.run.part
    parts = [judge_part(part, measured if index == here else ()) for index, part in enumerate(spec.parts)]
    verdict = whole_of([part.verdict for part in parts], readings=spec.readings)
    return Claim(
        name=spec.name,
        sentence=" ".join(spec.sentence.split()),
        source=spec.source,
        verdict=verdict,
        short="; ".join(_short(part) for part in parts),
        parts=parts,
        note=spec.note and " ".join(spec.note.split()),
        settle=spec.settle and " ".join(spec.settle.split()),
        run=None if spec.run is None else run_of(spec.name, spec.run),
    )


def whole_of(parts: Sequence[ClaimVerdict], *, readings: bool = False) -> ClaimVerdict:
    """A sentence is as true as its least true part; where parts are readings of it, it holds where one of them does."""
    order: tuple[ClaimVerdict, ...] = ("does not hold", "open", "holds where", "holds")
    if not readings or len(set(parts)) == 1:
        return next(verdict for verdict in order if verdict in parts)
    if "holds" in parts or "holds where" in parts:
        return "holds where"
    return "open"


def run_of(name: str, run: RunSpec) -> ClaimRun:
    """The measurement, for people."""
    what = f"decode speed of {run.of} over {run.over}" if run.over else f"the router's share of {run.of}'s MoE blocks"
    return ClaimRun(
        command=f"breakeven claims {name} --run",
        measures=what,
        minutes=run.minutes,
        memory_bytes=run.memory_gb * 1e9,
    )


def judge_part(part: PartSpec, measured: Sequence[ClaimFinding] = ()) -> ClaimPart:
    """Every case of a part at every place of its axis, computed and held against its rule."""
    quantity = QUANTITIES[part.quantity]
    axis = next(iter(part.along), None)
    findings, commands = [], []
    for case in part.cases:
        swept = axis is not None and not case.published
        along = [_at(case, axis, place) for place in part.along[axis]] if axis is not None and swept else [case]
        for at, value in zip(along, numbers_of(quantity, along), strict=True):
            findings.append(
                ClaimFinding(
                    case=case.label,
                    at=_place(at, axis) if swept and axis is not None else "",
                    value=None if isinstance(value, str) else value,
                    verdict="open" if isinstance(value, str) else part.holds.judges(value),
                    record=value if isinstance(value, str) else case.record,
                    url=case.url,
                )
            )
        if not case.published:
            commands += quantity.commands(along)
    findings += measured_by(part.holds, measured)
    return ClaimPart(
        says=part.says,
        quantity=quantity.words,
        unit=quantity.unit,
        rule=part.holds.words(),
        verdict=part_verdict(part.holds, findings),
        where=[] if part.holds.quantifier == "alike" else where_of(findings),
        alike=part.holds.quantifier == "alike",
        findings=findings,
        commands=list(dict.fromkeys(commands)),
    )


def measured_by(rule: Rule, found: Sequence[ClaimFinding]) -> list[ClaimFinding]:
    """What was measured here, under a part's rule."""
    return [
        msgspec.structs.replace(finding, verdict=rule.judges(finding.value))
        for finding in found
        if finding.value is not None
    ]


def _at(case: ClaimCase, axis: str, place: float | str) -> ClaimCase:
    # Streams and tokens are counted; YAML's 1 would otherwise come back as 1.0.
    whole = isinstance(place, float) and axis in ("batch", "context")
    return msgspec.structs.replace(case, **{axis: int(place) if whole else place})


def _place(case: ClaimCase, axis: str) -> str:
    value = getattr(case, axis)
    if axis == "batch" and value == 1:
        return "1 stream"
    return AXES[axis].format(
        f"{100 * value:.0f} %" if axis == "utilisation" else f"{value:,}" if value != str(value) else value
    )


def part_verdict(rule: Rule, findings: Sequence[ClaimFinding]) -> ClaimVerdict:
    """What the numbers of all cases say together.

    Some that surely hold and some that do not: "holds where". None that surely holds: it does not hold when at least
    one surely does not and no value, its interval aside, is where the sentence says; else it is open.
    """
    found = [finding.verdict for finding in findings]
    holds, fails = "holds" in found, "fails" in found
    if rule.quantifier == "alike":
        if holds and fails:
            return "does not hold"
        return "open" if "open" in found else "holds"
    if holds:
        return "holds where" if fails or "open" in found else "holds"
    values = [finding.value.value for finding in findings if finding.value is not None]
    near = any(rule.judges(exactly(value)) == "holds" for value in values)
    return "does not hold" if fails and not near else "open"


def where_of(findings: Sequence[ClaimFinding]) -> list[str]:
    """The cases in which a part holds, neighbours along its axis drawn together."""
    places = []
    for case, group in groupby(findings, lambda finding: finding.case):
        each = list(group)
        if all(finding.verdict == "holds" for finding in each):
            places.append(case)
            continue
        for holds, run in groupby(each, lambda finding: finding.verdict == "holds"):
            ends = [finding.at for finding in run]
            if holds:
                places.append(f"{case}, {_span(ends)}")
    return places


def _span(ends: Sequence[str]) -> str:
    """Neighbouring places as one: "1 to 8 streams"; those without a number, one after another."""
    if len(ends) == 1 or not ends[0][:1].isdigit():
        return " and ".join(ends)
    return f"{ends[0].split()[0]} to {ends[-1]}"


def _short(part: ClaimPart) -> str:
    """A part in a few words: where it holds, or how far its numbers reach."""
    if part.verdict == "holds where":
        return f"{part.says}: {'; '.join(part.where)}"
    values = [finding.value.value for finding in part.findings if finding.value is not None]
    if not values:
        return f"{part.says} not known"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    unit = "" if part.unit == "times" else f" {part.unit}"
    return f"{part.says} {low}{unit}" if low == high else f"{part.says} {low} to {high}{unit}"


def compared_findings(run: RunSpec, pairs: Sequence[Pair]) -> list[ClaimFinding]:
    """Decode speed of `run.of` over `run.over` at each number of streams, as a comparison here measured it."""
    found = []
    for pair in pairs:
        if pair.metric == "decode_tokens_per_s":
            ratio = pair.ratio if pair.a.startswith(run.of) else pair.ratio.inverse()
            at = "1 stream" if pair.streams == 1 else f"{pair.streams} streams"
            found.append(_measured(run, f"{run.of} over {run.over}, this machine", at, ratio))
    return found


def profiled_findings(run: RunSpec, profiles: Sequence[NodeProfile]) -> list[ClaimFinding]:
    """The router's share of MoE blocks, as a profile here measured it; unsure by what watching cost."""
    found = []
    for each in profiles:
        if (share := each.router_share_of_moe_block) is not None:
            watched = 1 + abs(each.observing_overhead)
            value = Estimate(share, share / watched, share * watched)
            found.append(_measured(run, f"router of {run.of}, this machine", each.phase, value))
    return found


def _measured(run: RunSpec, case: str, at: str, value: Estimate) -> ClaimFinding:
    here = msgspec.structs.replace(value, provenance="measured")
    return ClaimFinding(case=case, at=at, value=here, verdict="open", record="measured here")
