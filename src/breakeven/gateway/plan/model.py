"""A gateway as the operator describes it: the keys of its file, what each may hold and its default.

The records are the file: a field is a key (`values.key_of`), its type says what may stand there, its default what holds
where it is not given. `read_gateway` makes them from a file and completes them; nothing in them changes while it runs.
Names only: a key's value is read from the environment where it is used, and kept in no plan, log or message.
docs/gateway-yaml.md explains the keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from breakeven.answer.study.price import PLACED, PRICE, ApiSpeed, EngineName, Location
from breakeven.answer.study.values import (
    FACT,
    LIST,
    OPEN,
    PLACE,
    SLO_WORDS,
    AtLeast0,
    Count,
    CountAbove0,
    FilePart,
    Flag,
    Memory,
    Seconds,
    SecondsAbove0,
    Share,
    Usd,
    listed,
    number,
    read_as,
    read_by,
    text,
    whole,
)
from breakeven.gateway.plan.experts import ExpertsPlan
from breakeven.gateway.plan.limits import Limits, OriginName, PageOrigin
from breakeven.gateway.plan.reach import (
    USUAL_ENDPOINTS,
    Certificate,
    DialectName,
    EndpointName,
    EnvName,
    Proxy,
    Url,
    Words,
    as_certificate,
    spoken,
)
from breakeven.hardware.placement import Placement
from breakeven.results.cost import Api, Pricing
from breakeven.results.decision import Kind
from breakeven.traffic.workload import Slo
from breakeven.wire.dialects import Dialect, dialect_at
from breakeven.wire.tls import TlsFiles

ExperimentKind = Literal["ab", "shadow", "canary"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")
"""Names travel in headers, log lines and metric labels."""


def _name(value: object) -> object:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("a name of up to 100 letters, digits and . _ : / @ + - without spaces, such as qwen3-14b")
    return value


def _admin(value: object) -> object:
    return {"port": None} if value is False else value


def _backends(value: object) -> object:
    if not isinstance(value, list) or not value:
        raise ValueError("a list with at least one backend, each with a name and a url or a local model")
    return value


Name = Annotated[str, read_by(_name)]
Port = Annotated[int, whole(0, 65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan(FilePart):
    """An engine that the gateway starts itself and may stop again when others need its memory.

    `model` is what `breakeven compare` takes: a catalogue name, a .gguf file, a config. `pinned`: never unloaded. `kv`:
    type of keys and values, None: 16 bits. `placement`: where weights are to lie; `arguments`: the engine's own flags.
    """

    model: str
    engine: EngineName = "llama.cpp"
    format: str | None = None
    kv: str | None = None
    placement: Annotated[Placement, PLACED] | None = None
    arguments: Annotated[tuple[str, ...], LIST] = ()
    context: CountAbove0 = 4096
    slots: CountAbove0 = 4
    threads: CountAbove0 | None = None
    pinned: Flag = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts(FilePart):
    """Seconds. `first_byte_s` from sending to the first byte of the answer's body; `idle_s` between two bytes."""

    connect_s: SecondsAbove0 = 5.0
    first_byte_s: SecondsAbove0 = 120.0
    idle_s: SecondsAbove0 = 60.0
    total_s: SecondsAbove0 = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan(FilePart):
    """One place that answers. Either `url` (as clients are given one) or `local`.

    `served_model`: what the backend calls its model; None: `name`. `api_key_env`: the variable that holds its key.
    `model`, `machine`, `engine`, `format`, `kv`, `devices` name the step model that predicts it (as `breakeven predict`
    takes them); `machine` None: no step model, latency is learned from `speed` and from what is observed.
    `quality`: the user's own score, 0 to 1. `limit`: requests in flight at once. `replica_of`: backends that share a
    value serve the same model on the same kind of machine, and are balanced among each other.
    """

    name: Name
    url: Url | None = None
    local: LocalPlan | None = None
    served_model: Annotated[str, text(1, 300)] | None = None
    api_key_env: EnvName | None = None
    key_header: Annotated[str, text(1, 100)] | None = None
    """How the key is sent: `authorization: Bearer KEY`, or KEY in any other; None: as its dialect has it."""
    dialect: DialectName | None = None
    """What it takes (`wire/dialects.json`); None: what is known of its host, else of its engine."""
    query: Words = field(default_factory=dict)
    headers: Words = field(default_factory=dict)
    """Sent with every request, beside the dialect's."""
    body: dict[str, Any] = field(default_factory=dict)
    """What becomes of a body's fields, beside the dialect's: drop, {rename: NAME} or {add: VALUE}."""
    kind: Annotated[Kind, OPEN] = "unknown"
    place: Annotated[Location, OPEN] = field(default="on-premise", metadata={"alias": "location"})
    model: str | None = None
    machine: str | None = None
    engine: EngineName | None = None
    format: str | None = None
    kv: str | None = None
    devices: CountAbove0 = 1
    slots: CountAbove0 | None = None
    """Sequences the engine runs at once, beyond which requests wait inside it; None: the engine's usual number."""
    speed: ApiSpeed | None = None
    price: Annotated[Pricing, PRICE] | None = None
    quality: Share | None = None
    limit: CountAbove0 = 256
    context: CountAbove0 | None = None
    """Tokens of prompt and answer together that it takes; None: not known, everything is sent."""
    max_output: CountAbove0 | None = None
    """Tokens of an answer whose request names no limit, of which Anthropic's API wants one; None: as usual there."""
    endpoints: Annotated[tuple[EndpointName, ...], listed(1), OPEN] = USUAL_ENDPOINTS
    replica_of: Name | None = None
    poll: Annotated[Flag, OPEN] = True
    """Whether its `/metrics` is asked; hosted APIs have none."""
    allow_link_local: Flag = False
    """Only then may its name resolve to a link-local or metadata address."""
    ca: Annotated[Path, PLACE] | None = None
    ca_file: Annotated[Path, PLACE] | None = None  # its older name; in a plan that was read it is `ca`
    client_certificate: Annotated[Certificate, read_by(as_certificate)] | None = None
    proxy: Proxy | None = None
    socket: Annotated[Path, PLACE] | None = None
    """A unix socket to go through instead of its address."""
    key_over_http: Flag = False
    """Only then may its key go to another machine without TLS."""
    timeouts: Timeouts = Timeouts()
    experts: ExpertsPlan | None = None
    """What is looked at of its experts while it serves; None: nothing."""

    @property
    def tls_files(self) -> TlsFiles:
        """Whom to trust there, and what to show."""
        shown = self.client_certificate
        return TlsFiles(self.ca or self.ca_file, *(() if shown is None else (shown.certificate, shown.key)))

    @property
    def dialect_name(self) -> str:
        """The dialect that it names, else that of its host or its engine; empty: none is known."""
        return self.dialect or dialect_at(urlsplit(self.url or "").hostname or "") or self.engine or ""

    @property
    def spoken(self) -> Dialect:
        """How it is asked."""
        return spoken(self.dialect_name, self.key_header, self.headers, self.query, self.body)

    @property
    def is_api(self) -> bool:
        """Paid by the token."""
        return isinstance(self.price, Api)

    @property
    def serves(self) -> frozenset[str]:
        """What it may be asked for: its endpoints, and what comes with them."""
        # Whoever answers messages counts them too, or says that it does not.
        counts = {"/v1/messages/count_tokens"} if "/v1/messages" in self.endpoints else set()
        return frozenset({*self.endpoints, *counts})

    def as_typed(self) -> Self:
        if (self.url is None) == (self.local is None):
            raise ValueError("exactly one of url (a server that runs) and local (a model to start here)")
        inside = ("model", "engine", "format", "kv", "slots", "context")
        doubled = [key for key in inside if getattr(self, key) is not None]
        if self.local is not None and doubled:
            raise ValueError(f"{doubled[0]} inside local, not beside it")
        asked = [key for key in ("dialect", "query", "headers", "body", "socket") if getattr(self, key)]
        if self.local is not None and asked:
            raise ValueError(f"{asked[0]} only beside a url; a local engine is asked as it is known")
        if self.local is not None and self.api_key_env is not None:
            raise ValueError("api_key_env only beside a url; a local engine takes no key")
        if self.ca is not None and self.ca_file is not None:
            raise ValueError("ca alone; ca_file is its older name")
        if self.is_api and (self.machine is not None or self.local is not None):
            raise ValueError(
                "price: api: only for a hosted model, or a machine with a price of its own (rented or own)"
            )
        if self.machine is not None and self.model is None and self.local is None:
            raise ValueError("model beside machine, such as model: qwen3-14b, so that its speed can be predicted")
        if self.machine is not None and self.speed is not None:
            raise ValueError("machine, from which speed is predicted, or speed, but not both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PromisedSlo(FilePart):
    """What the router can promise of a request; a study's `itl` and `e2e` have no counterpart."""

    ttft_s: SecondsAbove0 | None = None
    tpot_s: SecondsAbove0 | None = None


PROMISED = read_as(PromisedSlo, lambda asked: Slo(ttft_s=asked.ttft_s, tpot_s=asked.tpot_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePlan(FilePart):
    """Ask a second backend when the first is silent for longer than its predicted p95 TTFT.

    `share`: at most this part of requests is asked twice. `backends`: whom to ask; empty: any other of the policy's,
    another architecture first.
    """

    share: Share = 0.03
    backends: Annotated[tuple[Name, ...], LIST] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPlan(FilePart):
    """A public model name and how its requests are spread. `policy` is a name in `gateway.route.policies.POLICIES`.

    `slo`: TTFT and TPOT asked for unless a key or a request asks otherwise. `quality_floor`: backends with a lower
    score, or none, are left out. `weights`: for `weighted`, share by backend. `first`: for `spill` and `edge-first`,
    the backend that is filled first. `longest_tokens`: for `edge-first`, longer requests go elsewhere. `explore`: share
    of requests sent to a backend other than the best one so that its estimate heals. `shed`: refuse (429) what would
    miss its SLO everywhere, instead of serving it late. `queue_s`: longest wait for a free place.
    """

    model: Name
    backends: Annotated[tuple[Name, ...], listed(1), OPEN] = ()
    policy: str = "breakeven"
    slo: Annotated[Slo, PROMISED, SLO_WORDS] = field(default_factory=Slo)
    max_usd: Usd | None = None
    quality_floor: Share | None = None
    weights: dict[str, AtLeast0] = field(default_factory=dict)
    first: Name | None = None
    longest_tokens: CountAbove0 | None = None
    explore: Share = 0.01
    shed: Flag = False
    queue_s: Seconds = 30.0
    queue_size: Count = 1000
    attempts: CountAbove0 = 3
    """Backends tried before the first byte, the first included."""
    hedge: HedgePlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan(FilePart):
    """Traffic of one public model split between two backends (ab, canary) or copied to a second one (shadow).

    `control` and `treatment` are backends of that model. `share`: of requests that go to (shadow: are copied to) the
    treatment. `sticky_by`: a request header, "user" (the body's field) or "key": equal values go to one arm.
    `metric`: what the sequential test stops on. `confidence` of a stop. `steps`: a canary's shares, raised one by one
    each time `hold` requests went well; back to 0 when it is worse by more than `tolerance`. `repeats`: of every
    thousand requests, how many are asked that many times over to see how answers vary (never shown to the client).
    """

    name: Name
    kind: ExperimentKind
    model: Name
    control: Name
    treatment: Name
    share: Share = 0.5
    sticky_by: Annotated[str, text(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")] = "user"
    metric: Literal["ttft", "tpot", "e2e", "usd", "output_tokens", "errors", "refusals"] = "e2e"
    confidence: Annotated[float, number(gt=0.5, lt=1)] = 0.95
    least: CountAbove0 = 100
    most: CountAbove0 = 100_000
    steps: Annotated[tuple[Share, ...], listed(1)] = (0.01, 0.05, 0.25, 1.0)
    hold: CountAbove0 = 200
    tolerance: AtLeast0 = 0.1
    repeats: Annotated[int, whole(0, 1000)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis(FilePart):
    """Counters shared between machines. The address comes from `url_env`, an environment variable."""

    url_env: EnvName = "BREAKEVEN_REDIS_URL"
    prefix: Annotated[str, text(most=100)] = "breakeven:"
    timeout_s: SecondsAbove0 = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlan(FilePart):
    """The decision log: JSON lines in `directory`, one series of files a worker. `prompts`: store bodies too."""

    directory: Annotated[Path, PLACE] | None = None
    rotate_bytes: Memory = 64 * 2**20
    keep: CountAbove0 = 10
    prompts: Flag = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminPlan(FilePart):
    """Where the live page and the metrics are. `admin: false`: nowhere, which is `port` None.

    `secret_env`: the variable that holds its secret; without one it answers on loopback only.
    """

    host: str = "127.0.0.1"
    port: Port | None = 8001
    secret_env: EnvName = "BREAKEVEN_ADMIN_SECRET"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan(FilePart):
    """Everything `breakeven serve` needs. Paths are absolute. `keys`: the file of digests; None: no key is asked.

    `budgets`: where spending is saved; None: beside `keys`. `tls`: what clients are shown; None: they come without TLS.
    `memory_bytes`: what local engines may use together; None: what the machine has free.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Annotated[int, whole(1, 256)] = 1
    admin: Annotated[AdminPlan, read_by(_admin)] = AdminPlan()
    keys: Annotated[Path, PLACE] | None = None
    budgets: Annotated[Path, PLACE] | None = None
    tls: Annotated[Certificate, read_by(as_certificate)] | None = None
    backends: Annotated[tuple[BackendPlan, ...], LIST, read_by(_backends)]
    policies: Annotated[tuple[PolicyPlan, ...], LIST] = ()
    experiments: Annotated[tuple[ExperimentPlan, ...], LIST] = ()
    limits: Limits = field(default_factory=Limits)
    origins: Annotated[tuple[OriginName, ...], LIST] = ()
    """Beside this machine's own pages, whose requests are taken where no key is asked."""
    cors: Annotated[tuple[PageOrigin, ...], LIST] = ()
    """Whose pages a browser lets read the answers (CORS)."""
    log: LogPlan = LogPlan()
    redis: Redis | None = None
    otel: Flag = False
    memory_bytes: Memory | None = None
    minimum_dwell_s: Seconds = 20.0
    """A local engine that was loaded stays at least this long."""
    maximum_wait_s: SecondsAbove0 = 60.0
    """A request waits at most this long for an engine to be loaded."""
    path: Path | None = field(metadata=FACT)

    @property
    def tls_files(self) -> TlsFiles | None:
        """What clients are shown; None: they come without TLS."""
        return None if self.tls is None else TlsFiles(None, self.tls.certificate, self.tls.key)

    @property
    def admin_host(self) -> str:
        """Where the live page listens."""
        return self.admin.host

    @property
    def admin_port(self) -> int | None:
        """Its port; None: nowhere."""
        return self.admin.port

    @property
    def admin_secret_env(self) -> str:
        """The variable that holds its secret."""
        return self.admin.secret_env

    def backend(self, name: str) -> BackendPlan:
        """The backend of this name; KeyError when there is none."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise KeyError(name)
