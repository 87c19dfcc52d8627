"""A running gateway at one moment: what the live page shows and `/admin/state` answers. Fields are only added.

`snapshot` reads the cells of the shared block, adds up workers, and invents nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from breakeven.errors import one_line
from breakeven.gateway.experts.report import BackendExperts, ExpertsSeen, Source
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.seen.metrics import PartState, workers_of, worst_breaker
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.shared.block import SharedBlock, SharedGrid
from breakeven.gateway.shared.layout import (
    RATIO_BOUNDS,
    RATIO_BUCKETS,
    TIME_BOUNDS_S,
    TIME_BUCKETS,
    TPOT_HISTOGRAM,
    TPOT_RATIO_HISTOGRAM,
    TTFT_HISTOGRAM,
    TTFT_RATIO_HISTOGRAM,
    Count,
    Global,
    Known,
    Process,
    Rows,
    State,
    UnderWay,
    Used,
)
from breakeven.results.cost import Api
from breakeven.version import __version__

SNAPSHOT_SCHEMA = "breakeven.gateway/1"
BREAKERS = ("closed", "half_open", "open")
LONGEST_TEXT = 200
"""Of what a client may choose (a model's name, an error's text) as far as it is shown."""
LONGEST_FINISH = 40
"""Of what a backend may say in a reason."""


class ExpertsSummary(msgspec.Struct, kw_only=True):
    """What was seen of one backend's experts, in a line; all of it is at `/admin/experts`."""

    source: Source
    requests: int | None
    tokens: int
    imbalance: float
    entropy: float
    dead: int
    hot: int
    drift: float | None
    cpu_share: float | None
    """CPU time that looking took over the engine's own; None: not available."""


class BackendState(msgspec.Struct, kw_only=True):
    """One backend. Counts and sums since the gateway started; the page takes differences."""

    name: str
    kind: str
    place: str
    model: str | None
    state: str
    """ready, loading, unloaded, draining, failed, away."""
    breaker: str
    """closed, open, half_open: the worst of the workers."""
    limit: int
    in_flight: int
    queued: int
    engine_running: float | None
    engine_waiting: float | None
    kv_share: float | None
    requests: int
    ok: int
    errors: int
    cut: int
    cancelled: int
    retried: int
    hedged: int
    explored: int
    shed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    usd: float
    usd_elsewhere: float
    good: int
    judged: int
    """Requests that asked for a TTFT or TPOT; `good` of them got it."""
    ttft_buckets: list[int]
    """Counts below each of `Snapshot.time_bounds_s`, not cumulative; the last is what is above all."""
    tpot_buckets: list[int]
    ttft_ratio_buckets: list[int]
    """Of actual / predicted, below each of `Snapshot.ratio_bounds`."""
    tpot_ratio_buckets: list[int]
    ttft_factor: float
    tpot_factor: float
    expert_load: list[float] | None = None
    """Share of routed tokens by expert, where the backend reports it."""
    load_progress: float | None = None
    usd_per_hour: float | None = None
    experts: ExpertsSummary | None = None
    """None: nothing is seen of them."""


class KeyUsage(msgspec.Struct, kw_only=True):
    """One key. `model` usage is added up over keys."""

    name: str
    requests: int
    tokens: int
    usd: float


class ArmState(msgspec.Struct, kw_only=True):
    """One arm of an experiment."""

    name: str
    backend: str
    requests: int
    means: dict[str, float]
    """By metric: ttft, tpot, e2e (seconds), usd, output_tokens, errors, refusals (shares), distinct_answers (share)."""


class Difference(msgspec.Struct, kw_only=True):
    """Treatment against control in one metric. `ratio` of means, with an interval that holds at every look."""

    metric: str
    ratio: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


class ExperimentState(msgspec.Struct, kw_only=True):
    """An experiment so far. `state`: running, stopped, stepped_back, done. `share`: the treatment's now."""

    name: str
    kind: str
    model: str
    state: str
    share: float
    winner: str | None
    reason: str
    arms: list[ArmState]
    differences: list[Difference]


class Snapshot(msgspec.Struct, kw_only=True):
    """Everything at once."""

    schema: str = SNAPSHOT_SCHEMA
    version: str
    time_s: float
    uptime_s: float
    workers: int
    draining: bool
    generation: int
    """Raised by every reload."""
    backends: list[BackendState]
    policies: list[dict[str, object]]
    """`model`, `policy`, `backends`, `ttft_s`, `tpot_s` of each public model."""
    keys: list[KeyUsage]
    models: list[KeyUsage]
    experiments: list[ExperimentState]
    recent: list[DecisionRecord]
    time_bounds_s: list[float]
    ratio_bounds: list[float]
    log_dropped: int
    warnings: list[str]
    parts: list[PartState] = []
    """Of the process that watches."""
    replaced: int = 0
    """Processes that ended unasked or hung, and were replaced; `hung`: those of them whose heart stood still."""
    hung: int = 0
    missing: int = 0
    """Processes that ought to run and could not be started yet."""


def snapshot(
    plan: GatewayPlan,
    block: SharedBlock,
    rows: Rows,
    *,
    recent: Iterable[DecisionRecord] = (),
    experiments: Sequence[ExperimentState] = (),
    expert_load: Mapping[str, Sequence[float]] | None = None,
    experts: ExpertsSeen | None = None,
    warnings: Sequence[str] = (),
    parts: Sequence[PartState] = (),
    now_s: float | None = None,
) -> Snapshot:
    """The gateway at `now_s` (Unix time; None: now). `recent`: newest first; their bodies are left out.

    `expert_load`: by backend, tokens routed to each expert in any unit; it is shown as shares.
    `experts`: the report of which a line a backend is shown.
    """
    now_s = time.time() if now_s is None else now_s
    started_s = block.everywhere.get(0, 0, Global.STARTED_S)
    loads = expert_load or {}
    seen = {each.backend: each for each in experts.backends} if experts is not None else {}
    missing = int(block.everywhere.get(0, 0, Global.MISSING))
    lacks = (
        [f"{missing} of the gateway's processes could not be started; it is tried again by itself"] if missing else []
    )
    return Snapshot(
        version=__version__,
        time_s=now_s,
        uptime_s=max(0.0, now_s - started_s) if started_s else 0.0,
        workers=workers_of(block),
        draining=bool(block.everywhere.get(0, 0, Global.DRAINING)),
        generation=int(block.everywhere.get(0, 0, Global.GENERATION)),
        backends=[
            _backend(each, block, rows.backends[each.name], _shares(loads.get(each.name)), seen.get(each.name))
            for each in plan.backends
        ],
        policies=[
            {
                "model": each.model,
                "policy": each.policy,
                "backends": list(each.backends),
                "ttft_s": each.slo.ttft_s,
                "tpot_s": each.slo.tpot_s,
            }
            for each in plan.policies
        ],
        keys=_usage(block.key_usage, rows.keys),
        models=_usage(block.model_usage, rows.models),
        experiments=list(experiments),
        recent=[_without_bodies(record) for record in recent],
        time_bounds_s=list(TIME_BOUNDS_S),
        ratio_bounds=list(RATIO_BOUNDS),
        log_dropped=int(block.worker.total(0, Process.DROPPED)),
        warnings=[*lacks, *warnings],
        parts=list(parts),
        replaced=int(block.everywhere.get(0, 0, Global.REPLACED)),
        hung=int(block.everywhere.get(0, 0, Global.HUNG)),
        missing=missing,
    )


def state_of(backend: BackendPlan, block: SharedBlock, row: int) -> str:
    """ready, loading, unloaded, draining, failed, away. Behind a URL: away when it was asked and did not answer."""
    if backend.local is not None:
        return State(int(block.known.get(0, row, Known.STATE))).name.lower()
    return "away" if block.known.get(0, row, Known.UP) == 0 and backend.poll else "ready"


def standing_usd_per_hour(backend: BackendPlan) -> float | None:
    """What the machine costs an hour whether used or not; None for an API, and where no price is known.

    Purchase over life and upkeep and the power of a machine that idles, or the rent; of all its devices together.
    """
    from breakeven.price.pricing import machine_usd_per_hour, power_of

    price = backend.price
    if price is None or isinstance(price, Api):
        return None
    return machine_usd_per_hour(price, power_of(price))


def _backend(
    backend: BackendPlan, block: SharedBlock, row: int, expert_load: list[float] | None, experts: BackendExperts | None
) -> BackendState:
    total = [int(value) for value in block.count.totals(row)]
    polled = bool(block.known.get(0, row, Known.POLLED_S))
    state = state_of(backend, block, row)

    def known(column: Known) -> float | None:
        return block.known.get(0, row, column) if polled else None

    return BackendState(
        name=backend.name,
        kind=backend.kind,
        place=backend.place,
        model=backend.model or (backend.local.model if backend.local is not None else backend.served_model),
        state=state,
        breaker=BREAKERS[worst_breaker(block, row)],
        limit=backend.limit,
        in_flight=int(block.load.total(row, UnderWay.IN_FLIGHT)),
        queued=int(block.load.total(row, UnderWay.QUEUED)) + int(block.load.total(row, UnderWay.WANTED)),
        engine_running=known(Known.RUNNING),
        engine_waiting=known(Known.WAITING),
        kv_share=share if (share := known(Known.KV_SHARE)) is not None and share >= 0.0 else None,
        requests=total[Count.REQUESTS],
        ok=total[Count.OK],
        errors=total[Count.SERVER_ERRORS] + total[Count.TROUBLES],
        cut=total[Count.CUT],
        cancelled=total[Count.CANCELLED],
        retried=total[Count.RETRIED],
        hedged=total[Count.HEDGED],
        explored=total[Count.EXPLORED],
        shed=total[Count.SHED],
        prompt_tokens=total[Count.PROMPT_TOKENS],
        cached_tokens=total[Count.CACHED_TOKENS],
        output_tokens=total[Count.OUTPUT_TOKENS],
        usd=total[Count.NANO_USD] / 1e9,
        usd_elsewhere=total[Count.NANO_USD_ELSEWHERE] / 1e9,
        good=total[Count.GOOD],
        judged=total[Count.JUDGED],
        ttft_buckets=total[TTFT_HISTOGRAM : TTFT_HISTOGRAM + TIME_BUCKETS],
        tpot_buckets=total[TPOT_HISTOGRAM : TPOT_HISTOGRAM + TIME_BUCKETS],
        ttft_ratio_buckets=total[TTFT_RATIO_HISTOGRAM : TTFT_RATIO_HISTOGRAM + RATIO_BUCKETS],
        tpot_ratio_buckets=total[TPOT_RATIO_HISTOGRAM : TPOT_RATIO_HISTOGRAM + RATIO_BUCKETS],
        ttft_factor=math.exp(block.known.get(0, row, Known.TTFT_LOG)),
        tpot_factor=math.exp(block.known.get(0, row, Known.TPOT_LOG)),
        expert_load=expert_load,
        load_progress=block.known.get(0, row, Known.PROGRESS) if state == "loading" else None,
        usd_per_hour=standing_usd_per_hour(backend),
        experts=_summary(experts),
    )


def _summary(seen: BackendExperts | None) -> ExpertsSummary | None:
    """None where nothing is seen, also where requests were only skipped."""
    if seen is None or not seen.layers:
        return None
    return ExpertsSummary(
        source=seen.source,
        requests=seen.requests,
        tokens=seen.tokens,
        imbalance=seen.imbalance,
        entropy=seen.entropy,
        dead=seen.dead,
        hot=seen.hot,
        drift=seen.drift,
        cpu_share=seen.cpu_share,
    )


def _usage(grid: SharedGrid, rows: Mapping[str, int]) -> list[KeyUsage]:
    """By requests, most first."""
    found = []
    for name, row in rows.items():
        total = grid.totals(row)
        tokens = int(total[Used.PROMPT_TOKENS] + total[Used.OUTPUT_TOKENS])
        found.append(
            KeyUsage(name=name, requests=int(total[Used.REQUESTS]), tokens=tokens, usd=total[Used.NANO_USD] / 1e9)
        )
    return sorted(found, key=lambda usage: (-usage.requests, usage.name))


def _shares(load: Sequence[float] | None) -> list[float] | None:
    """Of one; None where nothing was routed, or nobody says."""
    total = sum(load) if load else 0.0
    return [value / total for value in load] if load and total > 0 else None


def _without_bodies(record: DecisionRecord) -> DecisionRecord:
    """Prompts and answers stay in the log, even where the operator stores them; a client's own words are cut short."""
    return msgspec.structs.replace(
        record,
        request_body="",
        response_body="",
        model=one_line(record.model, LONGEST_TEXT),
        error=one_line(record.error, LONGEST_TEXT),
        finish=one_line(record.finish, LONGEST_FINISH),
    )
