"""The form of a study file: its keys and what each may hold. docs/decide.md explains them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from breakeven.answer.study.values import (
    SLO_WORDS,
    Above0,
    ArrivalWords,
    AtLeast0,
    AtLeast1,
    Count,
    CountAbove0,
    Date,
    Flag,
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
)
from breakeven.answer.study.yaml_file import STRICT, complaint, read_mapping
from breakeven.errors import UserError

DOCS = "docs/decide.md lists the keys"


class _Part(BaseModel):
    model_config = STRICT


class LoadForm(_Part):
    """What comes in. Exactly one of `rate`, `users` and `trace` says how much; a trace may be scaled to a `rate`."""

    rate: Rate | None = None
    users: CountAbove0 | None = None
    requests_per_user: Rate | None = None
    trace: str | None = None
    speed: Above0 | None = None
    arrivals: ArrivalWords | None = None
    prompt: TokenLength | None = None
    output: TokenLength | None = None
    turns: CountAbove0 = 1
    think: Seconds = 0.0
    cached: Share = 0.0
    low: Rate | None = None
    high: Rate | None = None
    growth_per_year: Growth = 0.0
    requests: CountAbove0 | None = None

    @model_validator(mode="after")
    def _one_load(self) -> LoadForm:
        if self.users is not None and (self.rate is not None or self.trace is not None):
            raise ValueError("one kind of load: rate, users or trace (a trace may carry a rate to be scaled to)")
        if self.rate is None and self.users is None and self.trace is None:
            raise ValueError("a rate (2/s), users with requests_per_user (6/h), or a trace (a file)")
        if (self.users is None) != (self.requests_per_user is None):
            raise ValueError("users and requests_per_user together, such as 40 and 6/h")
        if self.speed is not None and (self.trace is None or self.rate is not None):
            raise ValueError("speed only beside a trace without a rate")
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


class SloForm(_Part):
    """What a request must keep, from its due time."""

    ttft: SecondsAbove0 | None = None
    tpot: SecondsAbove0 | None = None
    itl: SecondsAbove0 | None = None
    e2e: SecondsAbove0 | None = None
    share: Share = 0.99

    @model_validator(mode="after")
    def _some(self) -> SloForm:
        if self.ttft is self.tpot is self.itl is self.e2e is None:
            raise ValueError("at least one of ttft, tpot, itl and e2e, such as ttft: 2s")
        if self.share == 0:
            raise ValueError("a share above 0")
        return self


class OwnForm(_Part):
    """Bought hardware of one replica."""

    usd: Usd
    years: Above0
    usd_per_kwh: Usd
    idle: Power | None = None
    busy: Power | None = None
    overhead: AtLeast1 = 1.0
    upkeep_usd_per_year: Usd = 0.0


class RentedForm(_Part):
    """A machine by the hour, all its devices together."""

    usd_per_hour: Usd
    date: Date | None = None


class ApiForm(_Part):
    """A hosted model, dollars per million tokens."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    date: Date | None = None


class PriceForm(_Part):
    """Exactly one kind of price."""

    own: OwnForm | None = None
    rented: RentedForm | None = None
    api: ApiForm | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _one(self) -> PriceForm:
        if sum(kind is not None for kind in (self.own, self.rented, self.api)) != 1:
            raise ValueError("exactly one of own, rented and api")
        return self


class ApiSpeedForm(_Part):
    """How fast a hosted model answers, and who says so."""

    ttft: SecondsAbove0
    tokens_per_s: Above0
    source: str


class PolicyForm(_Part):
    """Limits of the engine's scheduler, where they differ from its defaults."""

    max_sequences: CountAbove0 | None = None
    max_step_tokens: CountAbove0 | None = None
    kv_tokens: CountAbove0 | None = None
    prefix_caching: Flag | None = None


class CandidateForm(_Part):
    """One thing that could serve the traffic."""

    name: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    model: str | None = None
    machine: str | None = None
    engine: Literal["llama.cpp", "vllm"] | None = None
    devices: CountAbove0 = 1
    format: str | None = None
    location: Literal["edge", "on-premise", "cloud"] | None = None
    price: PriceForm | None = None
    measured: str | None = None
    licence: str | None = None
    memory: Memory | None = None
    host_memory: Memory | None = None
    replicas: CountAbove0 | None = None
    policy: PolicyForm = PolicyForm()
    speed: ApiSpeedForm | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> CandidateForm:
        api = self.price is not None and self.price.api is not None
        if api and (self.machine is not None or self.measured is not None):
            raise ValueError("an API price alone, or a machine with a price of its own (rented or own)")
        if not api and self.machine is None and self.measured is None:
            raise ValueError("a machine (h100-sxm, this), a measured result, or price: api: for a hosted model")
        if not api and self.model is None and self.measured is None:
            raise ValueError("a model (a name from `breakeven models`, a .yaml or a .gguf)")
        if self.speed is not None and not api:
            raise ValueError("speed only for a hosted model; a machine's speed is predicted or measured")
        return self


class ConstraintsForm(_Part):
    """What a candidate must keep to be chosen."""

    memory: Memory | None = None
    on_premise: Flag = False
    offline: Flag = False
    power: Power | None = None
    licences: list[str] = []


class QualityForm(_Part):
    """Where quality comes from, and how much is enough."""

    source: Literal["own", "published", "size"] | None = None
    benchmark: str | None = None
    scores: dict[str, Share] = {}
    answer_tokens: dict[str, Above0] = {}
    floor: AtLeast0 | None = None


class PartForm(_Part):
    """A share of the requests that may be served apart."""

    name: str
    share: Share
    floor: AtLeast0 | None = None
    candidates: list[str] = []


class FineTuningForm(_Part):
    """How often the model is trained further, and how many adapters are served beside each other."""

    per_year: AtLeast0 = 0.0
    adapters: Count = 0


def _listed(value: object) -> object:
    if not isinstance(value, list) or not value:
        raise ValueError("a list with at least one candidate, each with a model and a machine or an API price")
    return value


class StudyForm(_Part):
    """A whole file."""

    name: str | None = None
    question: str | None = None
    load: LoadForm
    slo: Annotated[SloForm, SLO_WORDS]
    parts: list[PartForm] = []
    budget_usd_per_month: Usd | None = None
    constraints: ConstraintsForm = ConstraintsForm()
    quality: QualityForm = QualityForm()
    languages: list[Language] = []
    fine_tuning: FineTuningForm = FineTuningForm()
    contexts: list[CountAbove0] = []
    formats: list[str] = []
    candidates: Annotated[list[CandidateForm], BeforeValidator(_listed)]
    seed: Count = 0


def read_form(path: Path) -> StudyForm:
    """The checked contents of `path`; raises UserError naming file, key, what was found and what would be right."""
    found = read_mapping(
        path,
        too_large="give a study file, not a trace",
        give="give a study, or write one with breakeven decide --init",
        keys=f"keys such as `load:` and `candidates:`; {DOCS}",
    )
    return checked(str(path), found)


def checked(where: str, found: dict[Any, Any]) -> StudyForm:
    """`found` as a form; raises UserError that begins with `where`."""
    try:
        return StudyForm.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{where}: {complaint(error, StudyForm, DOCS, _MISSING)}") from error


_MISSING = {
    "load": "say what comes in, such as rate: 2/s with prompt: 512 and output: 128",
    "slo": "say what is fast enough, such as ttft: 2s and tpot: 100ms; for batch work e2e: 8h",
    "candidates": "list what could serve it, each with a model and a machine or an API price",
}
