"""A study: the keys of its file, what each may hold and its default, and what follows from them. `read_study` makes it.

The records are the file: a field is a key (`values.key_of`), its type says what may stand there, its default what holds
where it is not given. Fields marked FACT are no keys; `load.py` works them out. docs/decide.md explains the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from breakeven.answer.study.price import PLACED, PRICE, ApiSpeed, EngineName, Location
from breakeven.answer.study.values import (
    FACT,
    LIST,
    OPEN,
    PLACE,
    SLO_WORDS,
    Above0,
    ArrivalWords,
    AtLeast0,
    Count,
    CountAbove0,
    Day,
    FilePart,
    Flag,
    Floor,
    Growth,
    Language,
    Memory,
    Power,
    Rate,
    Seconds,
    SecondsAbove0,
    Share,
    TokenLength,
    Usd,
    read_by,
    text,
)
from breakeven.hardware.placement import Placement
from breakeven.model.quality.scores import QualityScore
from breakeven.results.cost import Api, Pricing
from breakeven.traffic.workload import Slo, Workload

QualitySource = Literal["own", "published", "size"]
QUESTION = "Which of these should serve this traffic?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming(FilePart):
    """What comes in. Exactly one of `rate`, `users`, `day` and `trace` says how much; a trace may be scaled to a rate.

    `day`: the mean load of every hour, or a file of them.
    """

    rate: Rate | None = None
    day: Day | None = None
    users: CountAbove0 | None = None
    requests_per_user: Rate | None = None
    trace: str | None = None
    trace_format: str | None = None
    speed: Above0 | None = None
    arrivals: ArrivalWords | None = None
    prompt: TokenLength | None = None
    output: TokenLength | None = None
    turns: CountAbove0 = 1
    think_s: Seconds = 0.0
    cached: Share = 0.0
    """Share of prompt tokens that an API bills as cached."""
    low: Rate | None = None
    high: Rate | None = None
    growth_per_year: Growth = 0.0
    """0.5: half as much again after a year."""
    requests: CountAbove0 | None = None

    def as_typed(self) -> Self:
        asked = [name for name in ("rate", "users", "day", "trace") if getattr(self, name) is not None]
        if len(asked) > 1 and asked != ["rate", "trace"]:
            raise ValueError("one kind of load: rate, users, day or trace (a trace may carry a rate to be scaled to)")
        if not asked:
            raise ValueError("a rate (2/s), users with requests_per_user (6/h), a day (24 loads) or a trace (a file)")
        if (self.users is None) != (self.requests_per_user is None):
            raise ValueError("users and requests_per_user together, such as 40 and 6/h")
        if self.speed is not None and (self.trace is None or self.rate is not None):
            raise ValueError("speed only beside a trace without a rate")
        if self.trace_format is not None and self.trace is None:
            raise ValueError("trace_format only beside a trace")
        if self.trace is not None and self.arrivals is not None:
            raise ValueError("arrivals or a trace, which brings its own, but not both")
        if self.trace is not None and self.turns > 1:
            raise ValueError("turns or a trace, which brings its own conversations, but not both")
        if self.trace is None and (self.prompt is None or self.output is None):
            missing = "prompt" if self.prompt is None else "output"
            raise ValueError(f"{missing}: tokens such as 512, or lognormal:1155,900[16-8192]; only a trace brings them")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low below high")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel(FilePart):
    """What a request must keep, from its due time, and the `share` of requests that must."""

    ttft_s: SecondsAbove0 | None = None
    tpot_s: SecondsAbove0 | None = None
    itl_s: SecondsAbove0 | None = None
    e2e_s: SecondsAbove0 | None = None
    share: Share = 0.99

    def as_typed(self) -> Self:
        if self.ttft_s is self.tpot_s is self.itl_s is self.e2e_s is None:
            raise ValueError("at least one of ttft, tpot, itl and e2e, such as ttft: 2s")
        if self.share == 0:
            raise ValueError("a share above 0")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits(FilePart):
    """What the user sets of the engine's scheduler; None: its default. Names as in `forecast.simulator.Policy`."""

    max_sequences: CountAbove0 | None = None
    max_step_tokens: CountAbove0 | None = None
    kv_tokens: CountAbove0 | None = None
    prefix_caching: Flag | None = None


START_S = 300.0
"""To boot a machine and load a model, where nobody says: a judgement, told with the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling(FilePart):
    """How machines follow a day's load. `least`: as many run at any hour; `start_s`: until one answers."""

    least: Count = 1
    start_s: Seconds = START_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePlan(FilePart):
    """One thing that could serve the traffic: a model on a machine, a saved measurement, or an API.

    `model` is what `resolve_spec` takes (None: an API whose model nobody knows). `machine` is a chip's slug, a profile
    or chip file as an absolute path, or "this"; None for an API and where `measured` names the machine. `engine` None:
    the one usual on that machine. `format` None: a file's own, else as published, else as the engine usually has it.
    `kv`: type of keys and values (None: 16 bits). `placement`: where its weights are to lie. `measured`: a saved result
    of `breakeven bench`, `load` or `compare`. `memory_bytes`: of one device, where it differs from the data sheet.
    """

    name: Annotated[str, text(1, 80), OPEN] = ""
    model: str | None = None
    machine: str | None = None
    engine: EngineName | None = None
    devices: CountAbove0 = 1
    format: str | None = None
    kv: str | None = None
    placement: Annotated[Placement, PLACED] | None = None
    location: Annotated[Location, OPEN] = "on-premise"
    pricing: Annotated[Pricing, PRICE] | None = field(default=None, metadata={"alias": "price"})
    measured: Annotated[Path, PLACE] | None = None
    licence: str | None = None
    memory_bytes: Memory | None = None
    host_memory_bytes: Memory | None = None
    max_replicas: CountAbove0 | None = field(default=None, metadata={"alias": "replicas"})
    """Machines of this kind there are; None: as many as the load needs."""
    scale: Scaling | None = None
    """None: rented machines follow the load as `Scaling` says, bought ones run all day."""
    policy: SchedulerLimits = field(default_factory=SchedulerLimits)
    api_speed: ApiSpeed | None = field(default=None, metadata={"alias": "speed"})
    price_source: str | None = field(default=None, metadata=FACT)
    """Where the price comes from, for the table of assumptions."""

    @property
    def is_api(self) -> bool:
        """Paid by the token, so it neither saturates nor idles."""
        return isinstance(self.pricing, Api)

    def as_typed(self) -> Self:
        if self.is_api and (self.machine is not None or self.measured is not None):
            raise ValueError("an API price alone, or a machine with a price of its own (rented or own)")
        if not self.is_api and self.machine is None and self.measured is None:
            raise ValueError("a machine (h100-sxm, this), a measured result, or price: api: for a hosted model")
        if not self.is_api and self.model is None and self.measured is None:
            raise ValueError("a model (a name from `breakeven models`, a .yaml or a .gguf)")
        if self.api_speed is not None and not self.is_api:
            raise ValueError("speed only for a hosted model; a machine's speed is predicted or measured")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints(FilePart):
    """What a candidate must keep to be chosen. None, False or empty: not asked for."""

    memory_bytes: Memory | None = None
    """On one replica: weights, keys and values, and buffers."""
    on_premise: Flag = False
    """Data must not leave: edge and on-premise only."""
    offline: Flag = False
    """Must work without a network: no API, nothing in a cloud."""
    power_w: Power | None = None
    """Of one replica when busy."""
    licences: Annotated[tuple[str, ...], LIST] = ()
    """The only ones allowed, as in `model/data/models.json`; case does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPlan(FilePart):
    """Where quality comes from and how much is enough. `source` None: the best that covers every candidate.

    `scores`: share of tasks solved (0 to 1) by candidate name, the user's own evaluation. `evaluation`: a file of
    `breakeven evaluate` that says as much. `answer_tokens`: mean length of an answer by candidate name, where the
    models differ. `floor`: a candidate below it is ruled out. `max_loss`: so is one that loses more bits per byte.
    """

    source: QualitySource | None = None
    benchmark: str | None = None
    scores: dict[str, Share] = field(default_factory=dict)
    evaluation: Annotated[Path, PLACE] | None = None
    answer_tokens: dict[str, Above0] = field(default_factory=dict)
    floor: Floor | None = None
    max_loss: Share | None = None
    told: Mapping[str, QualityScore] | None = field(default=None, metadata=FACT)
    """What the evaluation says of each candidate; None without one."""

    def as_typed(self) -> Self:
        if self.evaluation is not None and self.scores:
            raise ValueError("scores, or an evaluation, which brings its own, but not both")
        if self.evaluation is not None and (self.source not in (None, "own") or self.benchmark is not None):
            raise ValueError("an evaluation alone, without another source or benchmark: sources are never mixed")
        if self.max_loss is not None and self.evaluation is None:
            raise ValueError("max_loss beside an evaluation alone: `breakeven evaluate --text` measures what is lost")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPart(FilePart):
    """A share of the requests that may be served apart from the rest. `floor`: the quality this part needs."""

    name: str
    share: Share
    floor: Floor | None = None
    candidates: Annotated[tuple[str, ...], LIST] = ()
    """The only ones that may serve it; empty: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning(FilePart):
    """How often the model is trained further, and how many adapters (LoRA) are served beside each other."""

    per_year: AtLeast0 = 0.0
    adapters: Count = 0


def _listed(value: object) -> object:
    if not isinstance(value, list) or not value:
        raise ValueError("a list with at least one candidate, each with a model and a machine or an API price")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan(FilePart):
    """Everything one verdict is asked about. Paths are absolute; money is US dollars.

    `load_per_s` is the mean arrival rate now, that of the trace where there is one, of a day that of its busiest hour.
    `workload.arrivals` is how the
    requests come at that rate. `low_per_s` to `high_per_s`: the loads over which flips are looked for.
    """

    name: Annotated[str, OPEN] = ""
    question: Annotated[str, OPEN] = QUESTION
    load: Incoming
    service: Annotated[ServiceLevel, SLO_WORDS] = field(metadata={"alias": "slo"})
    parts: Annotated[tuple[TrafficPart, ...], LIST] = ()
    budget_usd_per_month: Usd | None = None
    constraints: Constraints = field(default_factory=Constraints)
    quality: QualityPlan = field(default_factory=QualityPlan)
    languages: Annotated[tuple[Language, ...], LIST] = ()
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    contexts: Annotated[tuple[CountAbove0, ...], LIST] = ()
    """Context lengths of the map; empty: chosen around the workload's."""
    formats: Annotated[tuple[str, ...], LIST] = ()
    """Weight formats of the map; empty: those usual on the candidates' machines."""
    candidates: Annotated[tuple[CandidatePlan, ...], LIST, read_by(_listed)]
    seed: Count = 0
    path: Path = field(metadata=FACT)
    workload: Workload = field(metadata=FACT)
    trace: Path | None = field(metadata=FACT)
    load_per_s: float = field(metadata=FACT)
    low_per_s: float = field(metadata=FACT)
    high_per_s: float = field(metadata=FACT)
    hours_per_s: tuple[float, ...] = field(default=(), metadata=FACT)
    """The load of every hour of a day or a week; empty where the study has one load."""

    @property
    def slo(self) -> Slo:
        """What a request must keep to be good."""
        asked = self.service
        return Slo(ttft_s=asked.ttft_s, tpot_s=asked.tpot_s, itl_s=asked.itl_s, e2e_s=asked.e2e_s)

    @property
    def good_share(self) -> float:
        """Share of requests that must be good."""
        return self.service.share

    @property
    def cached_share(self) -> float:
        """Share of prompt tokens that an API bills as cached."""
        return self.load.cached

    @property
    def growth_per_year(self) -> float:
        """How the load grows."""
        return self.load.growth_per_year

    @property
    def fine_tunes_per_year(self) -> float:
        """How often the model is trained further."""
        return self.fine_tuning.per_year

    @property
    def adapters(self) -> int:
        """Adapters served beside each other on one model."""
        return self.fine_tuning.adapters
