"""A verdict and everything it rests on, as `breakeven decide --json` prints it; and one on logged traffic.

Both are public contracts: fields are only added. docs/decision-json.md describes those of a `Decision`,
docs/json-gateway.md those of a `LogDecision`, which sets a decision on real traffic beside the one made before it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.hardware.placement import Placed
from breakeven.model.quality.scores import QualityScore
from breakeven.results.cost import CostPoint, Pricing
from breakeven.stats.estimate import Estimate, Provenance
from breakeven.traffic.workload import Slo, Workload

DECISION_SCHEMA = "breakeven.decision/1"

Kind = Literal["dense", "moe", "unknown"]
Outcome = Literal["dense", "moe", "both", "api", "no_difference", "none"]


class LatencyPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One replica at one load. Intervals from the step model's error.

    A delay is None where there is none: answers of one token have no time a token, and where more requests are refused,
    being longer than its keys and values, than a percentile leaves out, that one is never.
    """

    rate_per_s: float
    ttft_p50_s: Estimate | None
    ttft_p99_s: Estimate | None
    tpot_p50_s: Estimate | None
    tpot_p99_s: Estimate | None
    e2e_p50_s: Estimate | None
    e2e_p99_s: Estimate | None
    good_share: Estimate
    """Share of requests that keep the SLO; `low` is the pessimistic end."""
    utilisation: float
    tokens_per_s: float


class ShareKept(msgspec.Struct, frozen=True, kw_only=True):
    """Share of the requests that keep the SLO when so many machines share the study's load."""

    machines: int | None
    """None: alone, each request on a machine that serves nothing else, which no number of machines can better."""
    share: Estimate
    worst: str | None = None
    """The term that those miss which miss any, in words; None where none does."""
    overloaded: bool = False
    """More comes than so many machines get through: `share` falls for as long as the load lasts, and is that of a run
    as long as the study's."""


class CandidateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of the study, ruled out or not."""

    name: str
    model: str
    kind: Kind
    machine: str
    engine: str
    format: str
    devices: int
    location: str
    """edge, on-premise or cloud."""
    provenance: Provenance
    capacity_per_s: Estimate | None
    """Highest rate one replica serves under the SLO; None for an API or one ruled out before."""
    saturation_tokens_per_s: float | None
    memory_bytes: float | None
    memory_available_bytes: float | None
    ruled_out: list[str]
    """Constraints it breaks, in words; empty when it may be chosen."""
    quality: QualityScore
    pricing: Pricing | None
    latency: list[LatencyPoint]
    cost: list[CostPoint]
    notes: list[str] = []
    kv: str | None = None
    """Type of keys and values; None where no step model says."""
    placement: str | None = None
    """Where its weights lie, in words; None where there is nothing to place, or it does not fit."""
    placed: Placed | None = None
    """What llama.cpp puts where, with the memory of each place; None: everything lies on one device."""
    shares: list[ShareKept] = []
    """With 1, 2 and 3 machines and alone; empty where no step model says."""
    borderline: str | None = None
    """In words, where the share with the machines priced here is below what is asked, and its interval is not."""
    barred_from: list[str] = []
    """Parts of the traffic that it may not serve, so not all of it alone; empty for one ruled out at every load."""


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """Loads over which one candidate is the best choice. `winner` None: no difference worth anyone's time."""

    low_per_s: float
    high_per_s: float | None
    winner: str | None
    runner_up: str | None
    margin: Estimate | None
    """Cost of the runner-up over the winner's."""
    certain: bool


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """Where the answer changes along one quantity, the others as in the study. `at` None: not in the range seen."""

    quantity: Literal["load", "context", "batch", "precision", "price", "power", "growth"]
    from_: str = msgspec.field(name="from")
    to: str | None
    at: Estimate | None
    at_label: str | None = None
    """For what has no number: a precision."""
    unit: str
    meaning: str
    utilisation: float | None = None
    """Along load: share of `to`'s saturation throughput in use there, or of `from`'s where `to` is an API."""


class MapCell(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a map. `ratio`: best dense cost over best MoE cost (above 1: MoE cheaper); None: one is missing."""

    x: float
    y: float | str
    winner: str | None
    kind: Kind | None
    ratio: float | None
    certain: bool


class DecisionMap(msgspec.Struct, frozen=True, kw_only=True):
    """Who wins over two quantities; `y` is context in tokens or a weight format."""

    x: str
    y: str
    cells: list[MapCell]


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What evidence supports and arithmetic cannot settle."""

    topic: str
    text: str
    source: str


class NextMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """What would narrow the answer most: a command, and how much of the band it would remove."""

    command: str
    why: str
    band_before: float
    """high / low of the break-even or capacity now."""
    band_after: float
    """The same if that measurement had the error of a calibrated machine."""


class Assumption(msgspec.Struct, frozen=True, kw_only=True):
    """A number the answer rests on, and where it comes from."""

    what: str
    value: str
    source: str


ABOVE = "what is above"
"""Traffic of the last of two shares by amount: the first is filled, and this one takes the rest."""


class TrafficShare(msgspec.Struct, frozen=True, kw_only=True):
    """Which traffic goes to whom when the answer is both."""

    candidate: str
    traffic: str
    share: float
    usd_per_hour: Estimate | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer in one sentence, and why."""

    outcome: Outcome
    winner: str | None
    sentence: str
    because: list[str]
    shares: list[TrafficShare] = []


class DayBill(msgspec.Struct, frozen=True, kw_only=True):
    """What one candidate costs over the hours of a day or a week, its machines following the load where they can."""

    candidate: str
    usd_per_day: Estimate
    machines: list[int]
    """Running in each hour; 0 of an API."""
    utilisation: float | None
    """Share of the saturation throughput of all machines running, over all hours; None for an API."""
    off_peak_hours: int | None
    """Hours in which less than 30 % of it is in use; None for an API."""
    starts: int
    """Machines started over all hours, each paid for while it starts."""
    used: list[float] = []
    """Share of the saturation throughput of those that run in use in each hour, 0 where none runs; empty for an API."""


class DayHour(msgspec.Struct, frozen=True, kw_only=True):
    """Who is cheapest in one hour, of those that may stand aside in others: rented, by the token, or there already."""

    cheapest: str | None = None
    """None: nothing is asked in it, or none of them carries it."""
    usd: float | None = None
    """Dollars of it, as predicted; starts, and what is paid for in any case, left out."""
    machines: int | None = None
    """0 of an API."""
    used: float | None = None
    """Share of their saturation throughput in use; None for an API."""


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """A day's or a week's load, hour by hour, and its bills, the smallest first."""

    hours_per_s: list[float]
    bills: list[DayBill]
    by_hour: list[str] = []
    """Who serves each hour, where changing over beats any single candidate; among those rented or there already."""
    by_hour_usd_per_day: Estimate | None = None
    single_over_by_hour: Estimate | None = None
    """Bill of the best single candidate over that of changing over."""
    hours: list[DayHour] = []
    """Each hour on its own, in the order of `hours_per_s`."""
    sentences: list[str] = []


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven decide --json`."""

    schema: str = DECISION_SCHEMA
    version: str
    name: str
    question: str
    verdict: Verdict
    load_per_s: float
    """The study's load now."""
    workload: Workload
    slo: Slo
    good_share: float
    """Share of requests that must keep the SLO."""
    candidates: list[CandidateResult]
    regions: list[Region]
    flips: list[Flip]
    maps: list[DecisionMap]
    advice: list[Advice]
    next_measurements: list[NextMeasurement]
    assumptions: list[Assumption]
    seed: int
    day: Day | None = None
    """None: the study has one load, not one an hour."""


DECIDE_LOG_SCHEMA = "breakeven.decide_log/1"


class LoggedFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The whole traffic served by one candidate alone, sized for the logged load. None: not known."""

    candidate: str
    replicas: Estimate | None
    usd_per_hour: Estimate | None
    usd: Estimate | None
    """Over the logged period."""
    ruled_out: list[str]


class LoggedTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the log holds."""

    directories: list[str]
    requests: int
    left_out: int
    """Records that are no traffic: refused, shadows, repeats, embeddings."""
    estimated: int
    """Requests whose lengths are the router's estimate, as their backend told none or they did not end well."""
    first_s: float
    span_s: float
    rate_per_s: float
    usd: float
    """What it cost, as the gateway counted it."""
    cached_share: float | None
    by_backend: dict[str, int]
    trace: str
    """The file of arrivals and lengths, which `breakeven bench --trace` and `simulate` replay."""


class LogDecision(msgspec.Struct, frozen=True, kw_only=True):
    """`stands`: the same outcome, by the same candidates; None where there was no verdict before."""

    schema: str = DECIDE_LOG_SCHEMA
    version: str
    traffic: LoggedTraffic
    before: Verdict | None
    before_load_per_s: float | None
    before_from: str | None
    """The saved decision it was read from; None: the study was decided again as it stands."""
    stands: bool | None
    sentence: str
    fleets: list[LoggedFleet]
    left_out_backends: list[str]
    decision: Decision
