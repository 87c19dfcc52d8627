"""The form of a gateway file: its keys and what each may hold. docs/gateway-yaml.md explains them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from breakeven.answer.study.form import ApiSpeedForm, PriceForm
from breakeven.answer.study.values import (
    SLO_WORDS,
    AtLeast0,
    Count,
    CountAbove0,
    Flag,
    Memory,
    Seconds,
    SecondsAbove0,
    Share,
    Usd,
)
from breakeven.answer.study.yaml_file import HIDDEN, STRICT
from breakeven.gateway.plan.model import ENDPOINTS, Endpoint

DOCS = "docs/gateway-yaml.md lists the keys"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")
"""Names travel in headers, log lines and metric labels."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def _name(value: object) -> object:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("a name of up to 100 letters, digits and . _ : / @ + - without spaces, such as qwen3-14b")
    return value


def _env(value: object) -> object:
    if not isinstance(value, str) or not ENV_NAME.fullmatch(value):
        # What stands here instead is most likely the key itself, which no message may repeat.
        raise PydanticCustomError(
            HIDDEN, "the name of an environment variable such as OPENROUTER_API_KEY, never the key itself"
        )
    return value


def _url(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a URL that ends in /v1, such as http://127.0.0.1:8080/v1")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise PydanticCustomError(HIDDEN, "a URL without a user or password; name the key's variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"[\s\x00-\x20]", value):
        raise ValueError("a URL that ends in /v1, such as http://127.0.0.1:8080/v1")
    if parts.query or parts.fragment:
        raise PydanticCustomError(HIDDEN, "a URL that ends in /v1, without what follows its path")
    if not parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"a URL that ends in /v1, as the client's base_url does; perhaps {value.rstrip('/')}/v1")
    return value.rstrip("/")


def _endpoint(value: object) -> object:
    if value not in ENDPOINTS:
        raise ValueError(f"one of {', '.join(get_args(Endpoint))}")
    return value


def _admin(value: object) -> object:
    return {"port": None} if value is False else value


def _backends(value: object) -> object:
    if not isinstance(value, list) or not value:
        raise ValueError("a list with at least one backend, each with a name and a url or a local model")
    return value


Name = Annotated[str, BeforeValidator(_name)]
EnvName = Annotated[str, BeforeValidator(_env)]
Url = Annotated[str, BeforeValidator(_url)]
EndpointName = Annotated[Endpoint, BeforeValidator(_endpoint)]
Port = Annotated[int, Field(ge=0, le=65535, strict=True)]
Confidence = Annotated[float, Field(gt=0.5, lt=1, strict=True)]


class _Part(BaseModel):
    model_config = STRICT


class LocalForm(_Part):
    """An engine that the gateway starts itself."""

    model: str
    engine: Literal["llama.cpp", "vllm"] = "llama.cpp"
    format: str | None = None
    context: CountAbove0 = 4096
    slots: CountAbove0 = 4
    threads: CountAbove0 | None = None
    pinned: Flag = False


class TimeoutsForm(_Part):
    """How long a backend may be silent."""

    connect: SecondsAbove0 = 5.0
    first_byte: SecondsAbove0 = 120.0
    idle: SecondsAbove0 = 60.0
    total: SecondsAbove0 = 900.0


class BackendForm(_Part):
    """One place that answers."""

    name: Name
    url: Url | None = None
    local: LocalForm | None = None
    served_model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    api_key_env: EnvName | None = None
    key_header: Literal["authorization", "x-api-key"] = "authorization"
    kind: Literal["dense", "moe", "unknown"] | None = None
    location: Literal["edge", "on-premise", "cloud"] | None = None
    model: str | None = None
    machine: str | None = None
    engine: Literal["llama.cpp", "vllm"] | None = None
    format: str | None = None
    devices: CountAbove0 = 1
    slots: CountAbove0 | None = None
    speed: ApiSpeedForm | None = None
    price: PriceForm | None = None
    quality: Share | None = None
    limit: CountAbove0 = 256
    context: CountAbove0 | None = None
    endpoints: Annotated[list[EndpointName], Field(min_length=1)] | None = None
    replica_of: Name | None = None
    poll: Flag | None = None
    allow_link_local: Flag = False
    ca_file: str | None = None
    timeouts: TimeoutsForm = TimeoutsForm()

    @model_validator(mode="after")
    def _one_place(self) -> BackendForm:
        if (self.url is None) == (self.local is None):
            raise ValueError("exactly one of url (a server that runs) and local (a model to start here)")
        doubled = [key for key in ("model", "engine", "format", "slots", "context") if getattr(self, key) is not None]
        if self.local is not None and doubled:
            raise ValueError(f"{doubled[0]} inside local, not beside it")
        if self.local is not None and self.api_key_env is not None:
            raise ValueError("api_key_env only beside a url; a local engine takes no key")
        api = self.price is not None and self.price.api is not None
        if api and (self.machine is not None or self.local is not None):
            raise ValueError(
                "price: api: only for a hosted model, or a machine with a price of its own (rented or own)"
            )
        if self.machine is not None and self.model is None and self.local is None:
            raise ValueError("model beside machine, such as model: qwen3-14b, so that its speed can be predicted")
        if self.machine is not None and self.speed is not None:
            raise ValueError("machine, from which speed is predicted, or speed, but not both")
        return self


class SloForm(_Part):
    """What the router promises of each request."""

    ttft: SecondsAbove0 | None = None
    tpot: SecondsAbove0 | None = None


class HedgeForm(_Part):
    """A second try while the first is silent."""

    share: Share = 0.03
    backends: list[Name] = []


class PolicyForm(_Part):
    """A public model name and how its requests are spread."""

    model: Name
    backends: Annotated[list[Name], Field(min_length=1)] | None = None
    policy: str = "breakeven"
    slo: Annotated[SloForm, SLO_WORDS] = SloForm()
    max_usd: Usd | None = None
    quality_floor: Share | None = None
    weights: dict[str, AtLeast0] = {}
    first: Name | None = None
    longest_tokens: CountAbove0 | None = None
    explore: Share = 0.01
    shed: Flag = False
    queue: Seconds = 30.0
    queue_size: Count = 1000
    attempts: CountAbove0 = 3
    hedge: HedgeForm | None = None


class ExperimentForm(_Part):
    """Traffic of one public model split between two backends, or copied to a second one."""

    name: Name
    kind: Literal["ab", "shadow", "canary"]
    model: Name
    control: Name
    treatment: Name
    share: Share = 0.5
    sticky_by: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")] = "user"
    metric: Literal["ttft", "tpot", "e2e", "usd", "output_tokens", "errors", "refusals"] = "e2e"
    confidence: Confidence = 0.95
    least: CountAbove0 = 100
    most: CountAbove0 = 100_000
    steps: Annotated[list[Share], Field(min_length=1)] = [0.01, 0.05, 0.25, 1.0]
    hold: CountAbove0 = 200
    tolerance: AtLeast0 = 0.1
    repeats: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0


class AdminForm(_Part):
    """Where the live page and the metrics are. `admin: false`: nowhere."""

    host: str = "127.0.0.1"
    port: Port | None = 8001
    secret_env: EnvName = "BREAKEVEN_ADMIN_SECRET"


class LimitsForm(_Part):
    """What clients may do."""

    body: Memory = 32 * 2**20
    headers: Memory = 64 * 2**10
    json_depth: CountAbove0 = 64
    connections: CountAbove0 = 4096
    streams_per_key: CountAbove0 = 256
    read: SecondsAbove0 = 30.0
    idle: SecondsAbove0 = 75.0
    write: SecondsAbove0 = 60.0
    response: Memory = 256 * 2**20
    drain: Seconds = 30.0


class LogForm(_Part):
    """The decision log."""

    directory: str | None = None
    rotate: Memory = 64 * 2**20
    keep: CountAbove0 = 10
    prompts: Flag = False


class RedisForm(_Part):
    """Counters shared between machines."""

    url_env: EnvName = "BREAKEVEN_REDIS_URL"
    prefix: Annotated[str, Field(max_length=100)] = "breakeven:"
    timeout: SecondsAbove0 = 0.05


class GatewayForm(_Part):
    """A whole file."""

    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Annotated[int, Field(ge=1, le=256, strict=True)] = 1
    admin: Annotated[AdminForm, BeforeValidator(_admin)] = AdminForm()
    keys: str | None = None
    backends: Annotated[list[BackendForm], BeforeValidator(_backends)]
    policies: list[PolicyForm] = []
    experiments: list[ExperimentForm] = []
    limits: LimitsForm = LimitsForm()
    log: LogForm = LogForm()
    redis: RedisForm | None = None
    otel: Flag = False
    memory: Memory | None = None
    minimum_dwell: Seconds = 20.0
    maximum_wait: SecondsAbove0 = 60.0


MISSING = {
    "backends": "list who answers, each with a name and a url or a local model",
    "name": "give it a name, by which requests, logs and policies call it",
    "model": "say which model",
    "control": "say which backend most traffic goes to now",
    "treatment": "say which backend is tried",
    "kind": "say what it does: ab, shadow or canary",
}
