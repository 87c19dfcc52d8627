"""The shared block as a Prometheus page. Every name and label: docs/metrics-gateway.md.

Labels come from the operator's own files (backends, keys, public models, experiments) and from fixed lists, never from
a request, so their number is bounded by what is configured. Keys are bounded besides: those with the most requests are
named, the rest are one line, "other"; of experts no label names one, and layers are named up to a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from breakeven.gateway.experts.report import BackendExperts, ExpertsSeen
from breakeven.gateway.plan.model import GatewayPlan
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
    Treatment,
    UnderWay,
    Used,
)

if TYPE_CHECKING:
    from prometheus_client import Metric

PREFIX = "breakeven_gateway_"
MOST_KEYS = 200
"""Keys with a line of their own. Prometheus' own advice is to keep a label below a few hundred values."""
MOST_LAYERS = 128
"""Layers with lines of their own; a backend with more has none but those of the whole."""
MOST_REASONS = 16
OTHER = "other"
TPOT_BOUNDS_S = tuple(bound / 10 for bound in TIME_BOUNDS_S)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

OUTCOMES = {
    "ok": Count.OK,
    "client_error": Count.CLIENT_ERRORS,
    "server_error": Count.SERVER_ERRORS,
    "trouble": Count.TROUBLES,
    "cut": Count.CUT,
    "cancelled": Count.CANCELLED,
    "shed": Count.SHED,
}
COUNTERS = {
    "requests": (Count.REQUESTS, "Requests sent to a backend, hedges and second attempts included."),
    "retries": (Count.RETRIED, "Requests that failed here before the first byte and were sent to another backend."),
    "hedges": (Count.HEDGED, "Requests asked a second time because this backend was silent for too long."),
    "hedges_won": (Count.HEDGE_WON, "Second asks that answered first."),
    "explored": (Count.EXPLORED, "Requests sent here to learn how the backend does."),
    "breaker_opened": (Count.BREAKER_OPENED, "Times that the breaker opened."),
    "unfinished_streams": (Count.NO_FINISH, "Streams that ended without a finish reason."),
    "slo_judged": (Count.JUDGED, "Requests that asked for a TTFT or TPOT."),
    "slo_good": (Count.GOOD, "Of these, requests that got what they asked for."),
}
TOKENS = {"input": Count.PROMPT_TOKENS, "cached_input": Count.CACHED_TOKENS, "output": Count.OUTPUT_TOKENS}
LOADS = {
    "in_flight": (UnderWay.IN_FLIGHT, "Requests that the backend works on for this gateway."),
    "decoding": (UnderWay.DECODING, "Of these, requests whose first byte has come."),
    "queued": (UnderWay.QUEUED, "Requests that wait at the gateway for a place at the backend."),
    "waiting_for_load": (UnderWay.WANTED, "Requests that wait for this local engine to be loaded."),
}
POLLED = {
    "engine_running": (Known.RUNNING, "Requests the engine says it works on, other people's included."),
    "engine_waiting": (Known.WAITING, "Requests the engine says are in its line."),
    "engine_kv_cache_share": (Known.KV_SHARE, "Share of the engine's memory for keys and values that is in use."),
}
SEEN: dict[str, tuple[str, Callable[[BackendExperts], float | None]]] = {
    "imbalance": ("Busiest expert over the mean, of the worst layer; 1 is even.", lambda seen: seen.imbalance),
    "entropy": ("Entropy of the load over that of an even one, mean over layers.", lambda seen: seen.entropy),
    "dead": ("Experts that nothing reached where an even load would have.", lambda seen: seen.dead),
    "hot": ("Experts above twice the mean by more than chance.", lambda seen: seen.hot),
    "drift": ("Share of choices by which the last day differs from the week before.", lambda seen: seen.drift),
    "drift_by_chance": ("What the drift of unchanged traffic would be.", lambda seen: seen.drift_by_chance),
}
"""Of one backend's experts, once something is seen of them."""
SEEN_SUMS: dict[str, tuple[str, Callable[[BackendExperts], float | None]]] = {
    "observed_requests": ("Requests whose routing was seen.", lambda seen: seen.requests),
    "observed_tokens": ("Tokens whose routing was seen.", lambda seen: seen.tokens),
    "cpu_seconds": ("CPU time that looking took.", lambda seen: seen.cpu_s),
    "engine_cpu_seconds": ("CPU time that the engine took meanwhile.", lambda seen: seen.engine_cpu_s),
}


class PartState(msgspec.Struct, kw_only=True):
    """One part of the watching process. `state`: running, or waiting for another try, `next_try_s` from now."""

    name: str
    state: str
    restarts: int
    trouble: str
    """What went wrong last; empty once it has run well for a while."""
    next_try_s: float | None = None


def render(
    block: SharedBlock,
    plan: GatewayPlan,
    rows: Rows,
    parts: Sequence[PartState] = (),
    experts: ExpertsSeen | None = None,
) -> bytes:
    """The page in Prometheus' text format. Costs some milliseconds; never called by a worker that serves.

    `parts`: those of the watching process. `experts`: what was seen of them.
    """
    # Imported here: it takes a while, and only the process that is asked for metrics needs it.
    from prometheus_client import generate_latest

    return generate_latest(_Collector(block, plan, rows, parts, experts))


class _Collector:
    """What `generate_latest` asks for: everything anew each time."""

    def __init__(
        self,
        block: SharedBlock,
        plan: GatewayPlan,
        rows: Rows,
        parts: Sequence[PartState],
        experts: ExpertsSeen | None,
    ) -> None:
        self.block, self.plan, self.rows, self.parts = block, plan, rows, parts
        named = {backend.name for backend in plan.backends}
        self.experts = [] if experts is None else [each for each in experts.backends if each.backend in named]

    def collect(self) -> Iterator[Metric]:
        yield from self._backends()
        yield from self._usage("key", self.block.key_usage, self.rows.keys)
        yield from self._usage("model", self.block.model_usage, self.rows.models)
        yield from self._experts()
        yield from self._whole()

    def _backends(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(name: str, text: str, *labels: str) -> Any:
            return CounterMetricFamily(PREFIX + name, text, labels=["backend", *labels])

        def gauge(name: str, text: str, *labels: str) -> Any:
            return GaugeMetricFamily(PREFIX + name, text, labels=["backend", *labels])

        def histogram(name: str, text: str) -> Any:
            return HistogramMetricFamily(PREFIX + name, text, labels=["backend"])

        info = gauge("backend_info", "1 for every backend that is configured.", "kind", "place", "model")
        counted = {name: counter(name, text) for name, (_, text) in COUNTERS.items()}
        loads = {name: gauge(name, text) for name, (_, text) in LOADS.items()}
        polled = {name: gauge(name, text) for name, (_, text) in POLLED.items()}
        outcomes = counter("outcomes", "How requests ended.", "outcome")
        tokens = counter("tokens", "Tokens read and written; cached_input is part of input.", "type")
        usd = counter("usd", "Dollars, as docs/policies says they are counted.")
        elsewhere = counter("usd_elsewhere", "What the same requests would have cost at the other architecture.")
        limit = gauge("limit", "Requests in flight at once that are allowed.")
        breaker = gauge("breaker", "The worst of the workers' breakers: 0 closed, 1 half open, 2 open.")
        up = gauge("up", "1: the backend answers; 0: it does not; -1: nobody has asked.")
        polled_at = gauge("engine_polled_monotonic_seconds", "When its own numbers were last read; 0: never.")
        state = gauge("engine_state", "1 for the state a local engine is in.", "state")
        progress = gauge("load_progress", "Share of a local engine's loading that is done.")
        load_s = gauge("load_seconds", "Seconds until a local engine would be ready, were it asked for now.")
        factors = {
            "ttft": gauge("ttft_factor", "Learned correction of predicted TTFT."),
            "tpot": gauge("tpot_factor", "Learned correction of predicted TPOT."),
        }
        ttft = histogram("ttft_seconds", "Time to the first token, from the request's arrival.")
        tpot = histogram("tpot_seconds", "Time a token after the first.")
        ttft_ratio = histogram("ttft_actual_over_predicted", "Actual over predicted TTFT; 1 is right.")
        tpot_ratio = histogram("tpot_actual_over_predicted", "Actual over predicted TPOT; 1 is right.")

        for backend in self.plan.backends:
            row, name = self.rows.backends[backend.name], [backend.name]
            total = self.block.count.totals(row)
            info.add_metric([*name, backend.kind, backend.place, backend.model or ""], 1)
            for each, (column, _) in COUNTERS.items():
                counted[each].add_metric(name, total[column])
            for outcome, column in OUTCOMES.items():
                outcomes.add_metric([*name, outcome], total[column])
            for each, column in TOKENS.items():
                tokens.add_metric([*name, each], total[column])
            usd.add_metric(name, total[Count.NANO_USD] / 1e9)
            elsewhere.add_metric(name, total[Count.NANO_USD_ELSEWHERE] / 1e9)
            for each, (place, _) in LOADS.items():
                loads[each].add_metric(name, self.block.load.total(row, place))
            limit.add_metric(name, backend.limit)
            breaker.add_metric(name, worst_breaker(self.block, row))
            known = self.block.known
            up.add_metric(name, known.get(0, row, Known.UP))
            if known.get(0, row, Known.POLLED_S):
                polled_at.add_metric(name, known.get(0, row, Known.POLLED_S))
                for each, (what, _) in POLLED.items():
                    # Below 0: the engine does not tell.
                    if (value := known.get(0, row, what)) >= 0.0:
                        polled[each].add_metric(name, value)
            if backend.local is not None:
                now = known.get(0, row, Known.STATE)
                for one in State:
                    state.add_metric([*name, one.name.lower()], float(now == one))
                progress.add_metric(name, known.get(0, row, Known.PROGRESS))
                load_s.add_metric(name, known.get(0, row, Known.LOAD_S))
            factors["ttft"].add_metric(name, math.exp(known.get(0, row, Known.TTFT_LOG)))
            factors["tpot"].add_metric(name, math.exp(known.get(0, row, Known.TPOT_LOG)))
            times = total[TTFT_HISTOGRAM : TTFT_HISTOGRAM + TIME_BUCKETS]
            ttft.add_metric(name, cumulative(times, TIME_BOUNDS_S), total[Count.TTFT_NS] / 1e9)
            times = total[TPOT_HISTOGRAM : TPOT_HISTOGRAM + TIME_BUCKETS]
            tpot.add_metric(name, cumulative(times, TPOT_BOUNDS_S), total[Count.TPOT_NS] / 1e9)
            for family, at in ((ttft_ratio, TTFT_RATIO_HISTOGRAM), (tpot_ratio, TPOT_RATIO_HISTOGRAM)):
                buckets = cumulative(total[at : at + RATIO_BUCKETS], RATIO_BOUNDS)
                # No sum of ratios is kept: their mean says nothing, their buckets do.
                family.add_metric(name, buckets, None)
                family.add_sample(family.name + "_count", {"backend": backend.name}, buckets[-1][1])
        yield from (info, *counted.values(), outcomes, tokens, usd, elsewhere, *loads.values(), limit, breaker, up)
        yield from (polled_at, *polled.values(), state, progress, load_s, *factors.values())
        yield from (ttft, tpot, ttft_ratio, tpot_ratio)

    def _usage(self, what: str, grid: SharedGrid, rows: Any) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = [what]
        requests = CounterMetricFamily(f"{PREFIX}{what}_requests", f"Requests by {what}.", labels=labels)
        tokens = CounterMetricFamily(f"{PREFIX}{what}_tokens", f"Tokens by {what}.", labels=[*labels, "type"])
        usd = CounterMetricFamily(f"{PREFIX}{what}_usd", f"Dollars by {what}.", labels=labels)
        refused = CounterMetricFamily(f"{PREFIX}{what}_refused", f"Requests refused by {what}.", labels=labels)
        streams = GaugeMetricFamily(f"{PREFIX}{what}_in_flight", f"Requests under way by {what}.", labels=labels)
        for name, total in bounded({name: grid.totals(row) for name, row in rows.items()}):
            requests.add_metric([name], total[Used.REQUESTS])
            tokens.add_metric([name, "input"], total[Used.PROMPT_TOKENS])
            tokens.add_metric([name, "output"], total[Used.OUTPUT_TOKENS])
            usd.add_metric([name], total[Used.NANO_USD] / 1e9)
            refused.add_metric([name], total[Used.REFUSED])
            streams.add_metric([name], total[Used.STREAMS])
        yield from (requests, tokens, usd, refused, streams)

    def _experts(self) -> Iterator[Metric]:
        """What is not known of a backend has no line."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, (text, value_of) in SEEN.items():
            gauge = GaugeMetricFamily(PREFIX + "experts_" + name, text, labels=["backend"])
            for seen in self.experts:
                if seen.layers and (value := value_of(seen)) is not None:
                    gauge.add_metric([seen.backend], value)
            yield gauge
        for name, (text, value_of) in SEEN_SUMS.items():
            counter = CounterMetricFamily(PREFIX + "experts_" + name, text, labels=["backend"])
            for seen in self.experts:
                if (value := value_of(seen)) is not None:
                    counter.add_metric([seen.backend], value)
            yield counter
        labels = ["backend", "layer"]
        imbalance = GaugeMetricFamily(PREFIX + "experts_layer_imbalance", "Busiest over the mean.", labels=labels)
        entropy = GaugeMetricFamily(PREFIX + "experts_layer_entropy", "Over that of an even load.", labels=labels)
        skipped = CounterMetricFamily(
            PREFIX + "experts_skipped", "Requests that were to be looked at and were not.", labels=["backend", "reason"]
        )
        alarm = GaugeMetricFamily(
            PREFIX + "experts_alarm", "1: a bound of the gateway file is passed.", labels=["backend", "what"]
        )
        for seen in self.experts:
            for layer in seen.layers if len(seen.layers) <= MOST_LAYERS else ():
                imbalance.add_metric([seen.backend, str(layer.layer)], layer.imbalance)
                entropy.add_metric([seen.backend, str(layer.layer)], layer.entropy)
            for reason, number in _most(seen.skipped):
                skipped.add_metric([seen.backend, reason], number)
            for what, passed in sorted(seen.watched.items()):
                alarm.add_metric([seen.backend, what], float(passed))
        yield from (imbalance, entropy, skipped, alarm)

    def _whole(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        shares = GaugeMetricFamily(
            PREFIX + "experiment_share", "The treatment's share of requests now.", labels=["experiment"]
        )
        for name, row in self.rows.experiments.items():
            shares.add_metric([name], self.block.share.get(0, row, Treatment.SHARE))
        yield shares
        whole, worker = self.block.everywhere, self.block.worker
        up = GaugeMetricFamily(PREFIX + "part_up", "1: this part of the watching process runs.", labels=["part"])
        restarts = CounterMetricFamily(PREFIX + "part_restarts", "Times it was started again.", labels=["part"])
        for part in self.parts:
            up.add_metric([part.name], float(part.state == "running"))
            restarts.add_metric([part.name], part.restarts)
        replaced = CounterMetricFamily(PREFIX + "processes_replaced", "Processes started anew.", labels=["why"])
        hung = whole.get(0, 0, Global.HUNG)
        replaced.add_metric(["ended"], whole.get(0, 0, Global.REPLACED) - hung)
        replaced.add_metric(["hung"], hung)
        yield from (up, restarts, replaced)
        yield CounterMetricFamily(
            PREFIX + "log_dropped", "Lines of the decision log that were not written.", worker.total(0, Process.DROPPED)
        )
        for name, text, value in (
            ("workers", "Worker processes.", workers_of(self.block)),
            ("connections", "Connections of clients.", worker.total(0, Process.CONNECTIONS)),
            ("requests_under_way", "Requests of clients under way.", worker.total(0, Process.UNDER_WAY)),
            ("processes_missing", "Processes that could not be started yet.", whole.get(0, 0, Global.MISSING)),
            ("generation", "Raised by every reload.", whole.get(0, 0, Global.GENERATION)),
            ("draining", "1 while the gateway ends.", whole.get(0, 0, Global.DRAINING)),
            ("start_time_seconds", "Unix time of the start.", whole.get(0, 0, Global.STARTED_S)),
            ("key_file_unusable", "1 while the file of keys cannot be used.", whole.get(0, 0, Global.KEYS_UNUSABLE)),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value)


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """By number, most first; what is past `MOST_REASONS` is summed up in one line."""
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ranked[MOST_REASONS:])
    return [*ranked[:MOST_REASONS], *([(OTHER, rest)] if rest else [])]


def workers_of(block: SharedBlock) -> int:
    """Worker processes that have said who they are."""
    return sum(1 for worker in range(1, block.shape.workers) if block.worker.get(worker, 0, Process.PID))


def worst_breaker(block: SharedBlock, row: int) -> int:
    """0 closed, 1 half open, 2 open: the highest of the workers'."""
    return int(max(block.load.get(worker, row, UnderWay.BREAKER) for worker in range(block.shape.workers)))


def cumulative(counts: Sequence[float], bounds: Sequence[float]) -> list[tuple[str, float]]:
    """Prometheus' buckets: what is at most each bound, the last without one."""
    return list(zip([*(f"{bound:g}" for bound in bounds), "+Inf"], accumulate(counts), strict=True))


def bounded(totals: dict[str, list[float]]) -> list[tuple[str, list[float]]]:
    """By requests, most first; what is past `MOST_KEYS` is summed up in one line."""
    ranked = sorted(totals.items(), key=lambda item: (-item[1][Used.REQUESTS], item[0]))
    head, rest = ranked[:MOST_KEYS], ranked[MOST_KEYS:]
    if rest:
        head.append((OTHER, [sum(column) for column in zip(*(total for _, total in rest), strict=True)]))
    return head
