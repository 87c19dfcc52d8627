"""A gateway as the operator describes it. `read_gateway` makes it from a file; nothing in it changes while it runs.

Names only: a key's value is read from the environment where it is used, and kept in no plan, log or message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from breakeven.answer.study.plan import ApiSpeed, Location
from breakeven.results.cost import Pricing
from breakeven.results.decision import Kind
from breakeven.traffic.workload import Slo

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
ENDPOINTS: tuple[Endpoint, ...] = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
)
USUAL_ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/completions")
LOCAL_ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""What llama.cpp's server answers for any model; embeddings need a model made for them."""
ExperimentKind = Literal["ab", "shadow", "canary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """An engine that the gateway starts itself and may stop again when others need its memory.

    `model` is what `breakeven compare` takes: a catalogue name, a .gguf file, a config. `pinned`: never unloaded.
    """

    model: str
    engine: str = "llama.cpp"
    format: str | None = None
    context: int = 4096
    slots: int = 4
    threads: int | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `first_byte_s` from sending to the first byte of the answer's body; `idle_s` between two bytes."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan:
    """One place that answers. Either `url` (ends in /v1) or `local`.

    `served_model`: what the backend calls its model; None: `name`. `api_key_env`: the variable that holds its key.
    `model`, `machine`, `engine`, `format`, `devices` name the step model that predicts it (as `breakeven predict`
    takes them); `machine` None: no step model, latency is learned from `speed` and from what is observed.
    `quality`: the user's own score, 0 to 1. `limit`: requests in flight at once. `replica_of`: backends that share a
    value serve the same model on the same kind of machine, and are balanced among each other.
    """

    name: str
    url: str | None = None
    local: LocalPlan | None = None
    served_model: str | None = None
    api_key_env: str | None = None
    key_header: Literal["authorization", "x-api-key"] = "authorization"
    """How the key is sent: `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's API wants it."""
    kind: Kind = "unknown"
    place: Location = "on-premise"
    model: str | None = None
    machine: str | None = None
    engine: str | None = None
    format: str | None = None
    devices: int = 1
    slots: int | None = None
    """Sequences the engine runs at once, beyond which requests wait inside it; None: the engine's usual number."""
    speed: ApiSpeed | None = None
    price: Pricing | None = None
    quality: float | None = None
    limit: int = 256
    context: int | None = None
    """Tokens of prompt and answer together that it takes; None: not known, everything is sent."""
    endpoints: tuple[Endpoint, ...] = USUAL_ENDPOINTS
    replica_of: str | None = None
    poll: bool = True
    """Whether its `/metrics` is asked; hosted APIs have none."""
    allow_link_local: bool = False
    """Only then may its name resolve to a link-local or metadata address."""
    ca_file: Path | None = None
    timeouts: Timeouts = Timeouts()

    @property
    def is_api(self) -> bool:
        """Paid by the token."""
        return self.price is not None and type(self.price).__name__ == "Api"


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePlan:
    """Ask a second backend when the first is silent for longer than its predicted p95 TTFT.

    `share`: at most this part of requests is asked twice. `backends`: whom to ask; empty: any other of the policy's,
    another architecture first.
    """

    share: float = 0.03
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPlan:
    """A public model name and how its requests are spread. `policy` is a name in `gateway.route.policies.POLICIES`.

    `slo`: TTFT and TPOT asked for unless a key or a request asks otherwise. `quality_floor`: backends with a lower
    score, or none, are left out. `weights`: for `weighted`, share by backend. `first`: for `spill` and `edge-first`,
    the backend that is filled first. `longest_tokens`: for `edge-first`, longer requests go elsewhere. `explore`: share
    of requests sent to a backend other than the best one so that its estimate heals. `shed`: refuse (429) what would
    miss its SLO everywhere, instead of serving it late. `queue_s`: longest wait for a free place.
    """

    model: str
    backends: tuple[str, ...]
    policy: str = "breakeven"
    slo: Slo = field(default_factory=Slo)
    max_usd: float | None = None
    quality_floor: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    first: str | None = None
    longest_tokens: int | None = None
    explore: float = 0.01
    shed: bool = False
    queue_s: float = 30.0
    queue_size: int = 1000
    attempts: int = 3
    """Backends tried before the first byte, the first included."""
    hedge: HedgePlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """Traffic of one public model split between two backends (ab, canary) or copied to a second one (shadow).

    `control` and `treatment` are backends of that model. `share`: of requests that go to (shadow: are copied to) the
    treatment. `sticky_by`: a request header, "user" (the body's field) or "key": equal values go to one arm.
    `metric`: what the sequential test stops on. `confidence` of a stop. `steps`: a canary's shares, raised one by one
    each time `hold` requests went well; back to 0 when it is worse by more than `tolerance`. `repeats`: of every
    thousand requests, how many are asked that many times over to see how answers vary (never shown to the client).
    """

    name: str
    kind: ExperimentKind
    model: str
    control: str
    treatment: str
    share: float = 0.5
    sticky_by: str = "user"
    metric: Literal["ttft", "tpot", "e2e", "usd", "output_tokens", "errors", "refusals"] = "e2e"
    confidence: float = 0.95
    least: int = 100
    most: int = 100_000
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    hold: int = 200
    tolerance: float = 0.1
    repeats: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the edge allows. Bytes, seconds, counts."""

    body_bytes: int = 32 * 2**20
    header_bytes: int = 64 * 2**10
    json_depth: int = 64
    connections: int = 4096
    streams_per_key: int = 256
    read_s: float = 30.0
    """For a whole request to arrive, from its first byte."""
    idle_s: float = 75.0
    """For the next request on a kept connection."""
    write_s: float = 60.0
    """A client that takes no byte for this long is dropped."""
    response_bytes: int = 256 * 2**20
    drain_s: float = 30.0
    """After SIGTERM, for requests under way to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Counters shared between machines. The address comes from `url_env`, an environment variable."""

    url_env: str = "BREAKEVEN_REDIS_URL"
    prefix: str = "breakeven:"
    timeout_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlan:
    """The decision log: JSON lines in `directory`, one series of files a worker. `prompts`: store bodies too."""

    directory: Path | None = None
    rotate_bytes: int = 64 * 2**20
    keep: int = 10
    prompts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """Everything `breakeven serve` needs. Paths are absolute. `keys`: the file of digests; None: no key is asked.

    `admin_port` None: no admin listener. `admin_secret_env`: the variable that holds its secret; without one it
    answers on loopback only. `memory_bytes`: what local engines may use together; None: what the machine has free.
    """

    path: Path | None
    backends: tuple[BackendPlan, ...]
    policies: tuple[PolicyPlan, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    admin_host: str = "127.0.0.1"
    admin_port: int | None = 8001
    admin_secret_env: str = "BREAKEVEN_ADMIN_SECRET"
    keys: Path | None = None
    experiments: tuple[ExperimentPlan, ...] = ()
    limits: Limits = Limits()
    log: LogPlan = LogPlan()
    redis: Redis | None = None
    otel: bool = False
    memory_bytes: int | None = None
    minimum_dwell_s: float = 20.0
    """A local engine that was loaded stays at least this long."""
    maximum_wait_s: float = 60.0
    """A request waits at most this long for an engine to be loaded."""

    def backend(self, name: str) -> BackendPlan:
        """The backend of this name; KeyError when there is none."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(name)
