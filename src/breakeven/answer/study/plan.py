"""A decision as it is asked for: candidates, traffic, service level, constraints and quality. `read_study` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from breakeven.results.cost import Api, Pricing
from breakeven.traffic.workload import Slo, Workload

Location = Literal["edge", "on-premise", "cloud"]
QualitySource = Literal["own", "published", "size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPlan:
    """What the user sets of the engine's scheduler; None: its default. Names as in `predict.simulate.Policy`."""

    max_sequences: int | None = None
    max_step_tokens: int | None = None
    prefix_caching: bool | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSpeed:
    """How fast a hosted model answers, as its provider or somebody's measurement says; `source` says who."""

    ttft_s: float
    tokens_per_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePlan:
    """One thing that could serve the traffic: a model on a machine, a saved measurement, or an API.

    `model` is what `resolve_spec` takes (None: an API whose model nobody knows). `machine` is a chip's slug, a profile
    or chip file as an absolute path, or "this"; None for an API and where `measured` names the machine. `engine` None:
    the one usual on that machine. `format` None: as published. `measured`: a saved result of `breakeven bench`,
    `load` or `compare`. `memory_bytes`: of one device, where it differs from the data sheet.
    """

    name: str
    model: str | None = None
    machine: str | None = None
    engine: str | None = None
    devices: int = 1
    format: str | None = None
    location: Location = "on-premise"
    pricing: Pricing | None = None
    measured: Path | None = None
    licence: str | None = None
    memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    max_replicas: int | None = None
    """Machines of this kind there are; None: as many as the load needs."""
    policy: PolicyPlan = field(default_factory=PolicyPlan)
    api_speed: ApiSpeed | None = None
    price_source: str | None = None
    """Where the price comes from, for the table of assumptions."""

    @property
    def is_api(self) -> bool:
        """Paid by the token, so it neither saturates nor idles."""
        return isinstance(self.pricing, Api)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a candidate must keep to be chosen. None, False or empty: not asked for."""

    memory_bytes: int | None = None
    """On one replica: weights, keys and values, and buffers."""
    on_premise: bool = False
    """Data must not leave: edge and on-premise only."""
    offline: bool = False
    """Must work without a network: no API, nothing in a cloud."""
    power_w: float | None = None
    """Of one replica when busy."""
    licences: tuple[str, ...] = ()
    """The only ones allowed, as in `spec/data/licences.json`; case does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPlan:
    """Where quality comes from and how much is enough. `source` None: the best that covers every candidate.

    `scores`: share of tasks solved (0 to 1) by candidate name, the user's own evaluation. `answer_tokens`: mean length
    of an answer by candidate name, where the models differ. `floor`: a candidate below it is ruled out.
    """

    source: QualitySource | None = None
    benchmark: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    answer_tokens: Mapping[str, float] = field(default_factory=dict)
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPart:
    """A share of the requests that may be served apart from the rest. `floor`: the quality this part needs."""

    name: str
    share: float
    floor: float | None = None
    candidates: tuple[str, ...] = ()
    """The only ones that may serve it; empty: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Everything one verdict is asked about. Paths are absolute; money is US dollars.

    `load_per_s` is the mean arrival rate now, that of the trace where there is one. `workload.arrivals` is how the
    requests come at that rate. `growth_per_year` 0.5: half as much again after a year. `low_per_s` to `high_per_s`:
    the loads over which flips are looked for.
    """

    name: str
    question: str
    path: Path
    candidates: tuple[CandidatePlan, ...]
    workload: Workload
    trace: Path | None
    load_per_s: float
    slo: Slo
    good_share: float
    low_per_s: float
    high_per_s: float
    parts: tuple[TrafficPart, ...] = ()
    cached_share: float = 0.0
    """Share of prompt tokens that an API bills as cached."""
    budget_usd_per_month: float | None = None
    constraints: Constraints = field(default_factory=Constraints)
    quality: QualityPlan = field(default_factory=QualityPlan)
    languages: tuple[str, ...] = ()
    fine_tunes_per_year: float = 0.0
    adapters: int = 0
    """Adapters (LoRA) served beside each other on one model."""
    growth_per_year: float = 0.0
    contexts: tuple[int, ...] = ()
    """Context lengths of the map; empty: chosen around the workload's."""
    formats: tuple[str, ...] = ()
    """Weight formats of the map; empty: those usual on the candidates' machines."""
    seed: int = 0
