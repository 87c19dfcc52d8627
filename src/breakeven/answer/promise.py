"""Whether a candidate keeps its promise at the study's load: with how many machines, only just, or never.

The promise is the share of requests that keep the service level. A share has an interval, so there are three answers:
it is kept by so many machines; it is *borderline*, where the share lies below what is asked and its interval does not;
or no number of machines keeps it, where even requests served alone stay below it at the upper end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from breakeven.forecast.fleet import FleetCapacity, carried
from breakeven.forecast.model import StepModel
from breakeven.forecast.pooled import fleet_capacity_of
from breakeven.forecast.serving import replica_of, saturation_per_s
from breakeven.forecast.shares import Miss, Shares, fewest_at, shares_at
from breakeven.forecast.simulator.policy import Policy
from breakeven.price.staircase import in_proportion
from breakeven.results.decision import ShareKept
from breakeven.stats.estimate import Estimate, bracketed, exactly
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload

FEW = (1, 2, 3)
"""Machines whose shares are told."""
MORE = (4, 8, 16)
"""Looked at where none of these do, and requests alone may."""
NOBODY = "cannot keep it with up to 16 machines, though alone it might: bursts are larger than that"
MANY = 3.0
"""Times the machines that are busy: from there on (and two more) their number is explained."""
NEAR = 2.0
"""Times the misses that are allowed: who misses more is far from the promise, however wide its interval; and so is who
keeps less than the share asked over this, as of a promise for half of all no number of misses is twice that."""
FAR = 2.0
"""A sure fleet of more than this many times the borderline one is another purchase, and no rounding up."""
SELDOM = 0.001
"""A share of the requests that is not worth a word."""
JUST = 1e-4
"""A fleet that does not carry a load is taken to carry this much less."""


@dataclass(frozen=True, slots=True)
class Promise:
    """At the study's load. `machines`: that the bill is for; None: no number keeps the promise.

    `edge`: the share that is borderline with so many, where it is. `never`: why none would do.
    """

    shares: tuple[ShareKept, ...]
    machines: int | None
    edge: ShareKept | None = None
    never: str | None = None
    only_just: bool = False
    """No fleet is sure to keep it: where steps are any slower, none does."""


def judged(shares: Sequence[ShareKept], fewest: int | None, asked: float) -> Promise:
    """The promise by its shares. `fewest`: machines that keep it by simulation, None where none do.

    `shares`: by machines, ascending, and alone (`machines` None) among them. Borderline are the fewest whose interval
    reaches `asked` while the value does not but is near it, if that is one machine, or a sure fleet is far larger or
    there is none. Who is overloaded keeps nothing, whatever a run as short as the study's says.
    """
    alone = next((each for each in shares if each.machines is None), None)
    if alone is not None and alone.share.most < asked:
        return Promise(tuple(shares), None, never=never_text(alone))
    few = [(each.machines, keeps(each, asked)) for each in shares if each.machines is not None]
    kept = next((n for n, kept_there in few if kept_there), None)
    if fewest is not None:
        # A fleet too large to be simulated is told by the curve; what was simulated here goes before it.
        fewest = kept if kept is not None else max(fewest, max((n for n, _ in few), default=0) + 1)
    for each in shares:
        if each.machines is None or each.overloaded:
            continue
        if each.share.value >= asked or (fewest is not None and each.machines >= fewest):
            break
        if each.share.most >= asked and _is_near(each.share.value, asked):
            if each.machines == 1 or fewest is None or fewest > FAR * each.machines:
                return Promise(tuple(shares), each.machines, each, only_just=fewest is None)
            break
    return Promise(tuple(shares), fewest)


def _is_near(share: float, asked: float) -> bool:
    return 1 - share <= NEAR * (1 - asked) and share >= asked / NEAR


def keeps(kept: ShareKept, asked: float) -> bool:
    """Whether the promise is kept, for as long as the load may last."""
    return kept.share.value >= asked and not kept.overloaded


def kept_by(shares: Shares) -> list[ShareKept]:
    """Shares by machines, ascending, and alone, as results hold them."""
    found = [
        ShareKept(machines=n, share=share.plain(), overloaded=shares.overloads(n)) for n, share in shares.by_replicas
    ]
    alone = shares.alone
    worst = [] if alone.refused < SELDOM else [refused_text(alone.refused)]
    worst += [] if alone.miss is None else [miss_text(alone.miss)]
    return [*found, ShareKept(machines=None, share=alone.share.plain(), worst=", ".join(worst) or None)]


def refused_text(share: float) -> str:
    """Who is refused by machines of any number."""
    return f"{_percent(share)} are longer than its context or the keys and values of one machine, and refused"


def miss_text(miss: Miss) -> str:
    """Who misses what: "long prompts take 9 s to the first token where 5 s is asked for"."""
    per = {"ttft": " to the first token", "tpot": " a token", "itl": " between two tokens", "e2e": ""}[miss.term]
    took, limit = time_text(miss.value_s), time_text(miss.limit_s)
    return f"{miss.who or 'requests'} take {took}{per} where {limit} is asked for"


def time_text(seconds: float) -> str:
    """A delay with two digits: "9.3 s", "120 ms"."""
    return (
        f"{seconds * 1000:.2g} ms"
        if seconds < 0.1
        else f"{seconds * 1000:.0f} ms"
        if seconds < 1
        else (f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s")
    )


def taken(fleet: FleetCapacity, machines: int, rate_per_s: float) -> FleetCapacity:
    """The fleet with a curve that says the same as the simulation at a rate: so many carry it, one less does not.

    Its ends stay: where step times are longer than predicted, it takes more.
    """
    if fleet.replicas(rate_per_s) == machines:
        return fleet
    sizes = sorted({*fleet.sizes_K, machines, *([machines - 1] if machines > 1 else [])})
    spans = []
    for size in sizes:
        value, low, high = (float(carried(fleet.sizes_K, *fleet.at(end), size)) for end in ("value", "least", "most"))
        if size < machines:
            value = min(value, size / (machines - 1) * rate_per_s * (1 - JUST))
        else:
            value = max(value, size / machines * rate_per_s)
            if size == machines > 1:
                value = min(value, size / (machines - 1) * rate_per_s)
        spans.append(bracketed(value, low, high))
    top = fleet.saturation_per_s
    if top is not None and top.value * machines < rate_per_s:
        top = bracketed(rate_per_s / machines, top.least, top.most)
    return FleetCapacity(tuple(sizes), tuple(spans), top)


def edge_text(edge: ShareKept, asked: float) -> str:
    """A borderline share in words."""
    few = "" if edge.machines == 1 else f" with {edge.machines} machines"
    return f"borderline, {band_text(edge.share)} of {_percent(asked)} asked{few}"


def many_text(promise: Promise, fleet: FleetCapacity, rate_per_s: float) -> str:
    """Why a load takes many more machines than its throughput alone would; empty where it does not."""
    top = fleet.saturation_per_s
    if top is None or not top.value > 0 or promise.machines is None or not promise.shares:
        return ""
    busy = rate_per_s / top.value
    if promise.machines <= MANY * busy + 2:
        return ""
    first = promise.shares[0]
    slow = fleet.replicas(rate_per_s, "least")
    band = ""
    if slow > 2 * promise.machines:
        most = f"{slow:.0f} machines" if math.isfinite(slow) else "more machines than there may be"
        band = f"; if its steps are as long as they may be, {most}"
    one = (
        "1 machine is overloaded"
        if first.overloaded
        else f"with 1 machine {band_text(first.share)} of them keep the service level"
    )
    return (
        f"takes {promise.machines} machines where throughput alone would take {math.ceil(busy)}: requests come in "
        f"bursts, and {one}{band}"
    )


SHORT = "too few requests to see a queue grow"
"""How the note begins that `short_text` makes."""


def short_text(requests: int, machines: int, told: float) -> str:
    """That a run of the study's own length ends before so few machines are seen to be too few."""
    more = f"{told:.0f}" if math.isfinite(told) else "more than there may be"
    return (
        f"{SHORT} (load.requests, {requests}): by what its machines carry this load takes {more}, not {machines}; "
        "leave it out"
    )


def never_text(alone: ShareKept) -> str:
    """Why no number of machines keeps the promise."""
    worst = f", {alone.worst}" if alone.worst else ""
    return f"cannot keep it with any number of machines: {_percent(alone.share.value)} even alone{worst}"


def nobody_text(alone: ShareKept, asked: float) -> str:
    """Why none of the fleets that were looked at keeps the promise, where requests alone may: by luck, or surely."""
    if alone.share.value >= asked:
        return NOBODY
    worst = f", {alone.worst}" if alone.worst else ""
    return (
        f"as predicted cannot keep it with any number of machines: {band_text(alone.share)} even alone{worst}; "
        "a measurement may say otherwise"
    )


def band_text(share: Estimate) -> str:
    """ "89.9 % (85 to 94)"."""
    low, high = (_percent(end).removesuffix(" %") for end in (share.least, share.most))
    return _percent(share.value) + ("" if low == high else f" ({low} to {high})")


def _percent(share: float) -> str:
    """To a tenth, rounded down: what misses 90 % by a hair must not read as 90 %."""
    percent = math.floor(share * 1000 + 1e-9) / 10
    return f"{percent:.0f} %" if percent == round(percent) else f"{percent:.1f} %"


DOUBLES = (1, 2, 4, 8)
"""Fleets that are simulated for the curve; near the study's load every size is, for the promise."""
ROOM = 1.2
"""Of the machines that the largest load keeps busy: fleets up to so many times that are simulated."""


def sizes_for(most_per_s: float, saturation_per_s: float) -> tuple[int, ...]:
    """Fleets worth simulating for loads up to `most_per_s`; beyond the largest its form goes on."""
    busy = ROOM * most_per_s / saturation_per_s if saturation_per_s > 0 else 1.0
    last = next((i for i, size in enumerate(DOUBLES) if size >= busy), len(DOUBLES) - 1)
    return DOUBLES[: max(last, 1) + 1]


@dataclass(frozen=True, slots=True)
class WhatIsAsked:
    """What is asked of a candidate, whichever its step model: traffic, service level, the load and the largest one."""

    policy: Policy
    workload: Workload
    slo: Slo
    good_share: float
    trace: TraceRows | None
    load_per_s: float
    most_per_s: float
    requests: int | None

    def fleet(self, model: StepModel) -> FleetCapacity:
        """What its fleets carry; nothing where no request fits."""
        one = replica_of(model, self.policy, self.workload, self.trace, self.requests)
        if one is None:
            return in_proportion(exactly(0.0))
        found = fleet_capacity_of(
            model,
            self.policy,
            self.workload,
            self.slo,
            self.good_share,
            self.trace,
            sizes=sizes_for(self.most_per_s, saturation_per_s(one)),
            requests=self.requests,
        )
        return in_proportion(exactly(0.0)) if found is None else found

    def shares(self, model: StepModel, machines: Sequence[int]) -> list[ShareKept]:
        """What so many machines keep at the load, and requests served alone; empty where nothing fits."""
        slo, asked = self.slo, self.good_share
        load, trace = self.load_per_s, self.trace
        found = shares_at(model, self.policy, self.workload, slo, asked, load, trace, machines, requests=self.requests)
        return [] if found is None else kept_by(found)

    def promise(self, model: StepModel, fleet: FleetCapacity) -> Promise:
        """How the promise is kept at the load."""
        shares = self.shares(model, FEW)
        kept = [each.machines for each in shares if each.machines and keeps(each, self.good_share)]
        fewest = min(kept) if kept else self._fewest(model, fleet)
        found = judged(shares, fewest, self.good_share)
        if found.machines is not None or found.never is not None or not shares:
            return found
        # Alone it may be kept, and not by a few: by more, perhaps.
        more = [each for each in self.shares(model, MORE) if each.machines is not None]
        larger = judged([*shares[:-1], *more, shares[-1]], None, self.good_share)
        nobody = nobody_text(shares[-1], asked=self.good_share) if larger.machines is None else None
        return replace(larger, shares=found.shares, never=larger.never or nobody)

    def _fewest(self, model: StepModel, fleet: FleetCapacity) -> int | None:
        return fewest_at(
            model,
            self.policy,
            self.workload,
            self.slo,
            self.good_share,
            self.trace,
            self.load_per_s,
            fleet,
            requests=self.requests,
        ).replicas
