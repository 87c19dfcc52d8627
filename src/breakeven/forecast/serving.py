"""What one replica carries: the highest rate that keeps the service level, and how long requests take at any rate.

The requests are drawn once, brought to a mean rate of one a second, and only their clock is changed from load to load
(common random numbers): a difference between two loads, two models or two ends of an interval is never one of luck.
The capacity is found by bisection over simulations; it cannot be above what the replica does in a closed loop that
always has another request for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.model import StepModel
from breakeven.forecast.simulator.policy import Fleet, Policy
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import Run, simulate
from breakeven.forecast.simulator.state import Requests, requests_of_schedule
from breakeven.results.decision import LatencyPoint
from breakeven.stats.estimate import Estimate, around, bracketed, exactly
from breakeven.traffic.draw import draw
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Slo, Workload

PRECISION = 0.03
"""A capacity is found to within this share: less than any step model knows."""
LEAST_REQUESTS, LEAST_TRACED, MOST_REQUESTS = 1200, 3000, 8000
"""Drawn from distributions, and taken from a trace, whose bursts must be in them; the most that is worth its time."""
TIMES_IN_FLIGHT = 6
"""A run has this many times the requests that are in flight when the replica is full, or it would never fill."""
WARM_SHARE = 1 / 3
"""Of a run, before anything counts: the replica starts empty."""
END_PRECISION = 0.1
"""The ends of an interval, which are tens of per cent away, need no more."""
MOST_TRIALS = 24
LOWEST = 1e-3
"""Of the saturation rate: who keeps the level only below it does not keep it."""
FEWER = 0.7
"""Of the streams, from one look at what conversations reach to the next."""
USUAL_LOAD = 0.7
"""Of the saturation rate: where it is asked what prompts weigh."""
HOPELESS = 1e-6
"""Of the saturation rate: requests so far apart are served alone."""


@dataclass(frozen=True, slots=True)
class TrialReplica:
    """A replica and the traffic it is asked to carry: `requests`, at a mean rate of one a second until told.

    `replicas` of them share it behind one balancer, which follows the gateway's rule.
    """

    model: StepModel
    policy: Policy
    requests: Requests
    replicas: int = 1

    def begun(self, rate_per_s: float) -> Run:
        """The same requests at another mean rate, not served yet."""
        requests = replace(self.requests, arrival_s_N=self.requests.arrival_s_N / rate_per_s)
        return Run(requests, self.model, self.policy, Fleet(replicas=self.replicas, balancing="gateway"))

    def run(self, rate_per_s: float) -> Simulation:
        """The same requests at another mean rate."""
        return self.begun(rate_per_s).result()

    def counted(self, run: Simulation) -> NDArray[np.bool_]:
        """Requests that arrive when the replica is warm and others still come."""
        heads_s = run.arrival_s_N[run.requests.heads]
        first_s, last_s = float(heads_s[0]), float(heads_s[-1])
        with np.errstate(invalid="ignore"):
            return (run.arrival_s_N >= first_s + WARM_SHARE * (last_s - first_s)) & (run.arrival_s_N <= last_s)

    def good_share(self, rate_per_s: float, slo: Slo, enough: float = 0.0) -> float:
        """Share of requests that keep `slo` at a rate.

        Once it is certain to be below `enough` the run ends: what comes back then is below it, and only about right.
        """
        run = self.begun(rate_per_s)
        if enough <= 0 or run.requests.depends:
            whole = run.result()
            return whole.good_share(slo, self.counted(whole))
        arrival_s_N = run.requests.arrival_s_N
        counted_N = arrival_s_N >= arrival_s_N[0] + WARM_SHARE * (arrival_s_N[-1] - arrival_s_N[0])
        most = (1.0 - enough) * int(np.sum(counted_N))
        told: list[float] = []

        def certain(run: Run) -> bool:
            late = int(np.sum(run.late(slo) & counted_N))
            if late <= most + 1.0:
                return False
            came = int(np.sum(counted_N & (arrival_s_N <= run.arrival_s[run.reached])))
            told.append(min(1.0 - late / max(came, late), enough - 1e-9))
            return True

        run.play(to_end=True, stop=certain)
        if told:
            return told[0]
        whole = run.outcome()
        return whole.good_share(slo, self.counted(whole))


def replica_of(
    model: StepModel, policy: Policy, workload: Workload, trace: TraceRows | None = None, requests: int | None = None
) -> TrialReplica | None:
    """A replica of `model` before `workload`, its arrivals at one a second; None where no request fits beside it.

    `requests`: how many are drawn; None: as many as fill it several times. A trace that has fewer gives what it has.
    """
    least = LEAST_REQUESTS if trace is None else LEAST_TRACED
    few = unit_requests(workload, trace, least if requests is None else requests)
    mean = float(np.mean(few.prompt_tokens_N + few.output_tokens_N))
    kv_tokens = model.kv_tokens(mean) if policy.kv_tokens is None else policy.kv_tokens
    if kv_tokens is not None and kv_tokens < mean:
        return None
    policy = replace(policy, kv_tokens=kv_tokens)
    in_flight = policy.max_sequences if kv_tokens is None else min(policy.max_sequences, kv_tokens / mean)
    wanted = min(MOST_REQUESTS, round(TIMES_IN_FLIGHT * in_flight))
    if requests is None and wanted > len(few):
        few = unit_requests(workload, trace, wanted)
    return TrialReplica(model, policy, few)


def traced_text(trace: TraceRows | None, requests: int | None = None) -> str:
    """Of which part of a long trace capacities are, in words; empty where all of it is simulated.

    `requests`: as `replica_of` takes it.
    """
    least = LEAST_TRACED if requests is None else requests
    if trace is None or len(trace) <= least:
        return ""
    more = f" (up to {MOST_REQUESTS:,} where a replica holds many at once)" if requests is None else ""
    where = "where later hours are more bursty or have longer requests, give a trace that begins there"
    return f"its first {least:,} of {len(trace):,} requests{more}, brought to each load; {where}"


def saturation_per_s(replica: TrialReplica) -> float:
    """Requests a second of a replica that always has another one waiting; in conversations, without any thinking.

    Of conversations with many turns, and of short traces, there may be too few to fill it: see `has_enough_to_fill`.
    Where prompts are kept for the next turn, too many at once push each other's out and are read again and again: what
    counts is the most that it gets through with however many.
    """
    asked, streams = replica.requests, max(1, min(_filling(replica), _steady(replica)))
    found = _looped_per_s(replica, streams)
    keeps = replica.policy.prefix_caching and (asked.after_N is not None or len(asked.prefix) > 0)
    while keeps and streams > 1:
        streams = int(streams * FEWER)
        fewer = _looped_per_s(replica, streams)
        if fewer <= found:
            break
        found = fewer
    return found


def _looped_per_s(replica: TrialReplica, streams: int) -> float:
    """Requests a second with so many streams, each with another request as soon as it is answered."""
    asked = replica.requests
    n = len(asked)
    loop = replace(
        asked,
        arrival_s_N=np.full(n, np.nan),
        think_s_N=None if asked.think_s_N is None else np.zeros(n),
        streams=streams,
    )
    run = simulate(loop, replica.model, replica.policy)
    ends_s = np.sort(run.end_s_N[run.served])
    if len(ends_s) < 2:
        return 0.0
    first_s, last_s = float(ends_s[len(ends_s) // 3]), float(np.nanmax(run.arrival_s_N))
    if last_s <= first_s:
        first_s, last_s = 0.0, float(ends_s[-1])
    # After the first moment, up to the last: answers that end together must not be counted at both.
    return float(np.sum((ends_s > first_s) & (ends_s <= last_s))) / (last_s - first_s)


def has_enough_to_fill(replica: TrialReplica) -> bool:
    """Whether `saturation_per_s` is that of a full replica; else it is less than it can do."""
    return _steady(replica) >= _filling(replica)


def _filling(replica: TrialReplica) -> int:
    """Streams that keep it full: one more than it holds."""
    asked = replica.requests
    mean = float(np.mean(asked.prompt_tokens_N + asked.output_tokens_N))
    most = replica.policy.max_sequences + 1
    kv_tokens = replica.policy.kv_tokens
    return most if kv_tokens is None else min(most, math.ceil(kv_tokens / mean) + 1)


def _steady(replica: TrialReplica) -> int:
    """Streams that its requests feed for long enough: a third of all leaves a steady part to look at."""
    return int(np.sum(replica.requests.heads)) // 3


def capacity_of(
    model: StepModel,
    policy: Policy,
    workload: Workload,
    slo: Slo,
    good_share: float,
    trace: TraceRows | None = None,
    *,
    precision: float = PRECISION,
    requests: int | None = None,
) -> Estimate:
    """Highest mean rate in requests/s at which `good_share` of the requests keep `slo`, on one replica.

    The interval's ends are those of the step model (`StepModel.ends`). Without terms in `slo` it is the saturation
    rate; 0 where even requests served alone do not keep it, or nothing fits. Turns of a conversation count one by one.
    """
    middle = replica_of(model, policy, workload, trace, requests)
    if middle is None:
        return exactly(0.0)
    return capacity_with_ends(middle, slo, good_share, with_ends(middle), precision)


def with_ends(middle: TrialReplica) -> tuple[tuple[TrialReplica, float], ...]:
    """(replica, saturation rate) as the step model is, with its slow and with its fast end.

    The ends are those of this traffic: decoding and prompts are off by their own errors, as much as each weighs in it.
    """
    highest = saturation_per_s(middle)
    fast, slow = middle.model.ends(prefill_share(middle, USUAL_LOAD * highest) if highest > 0 else 0.0)
    found = [(middle, highest)]
    for end in (slow, fast):
        replica = replace(middle, model=end)
        # Steps that are all longer by one factor are the same run in slow motion.
        even = end.terms == middle.model.terms and end.prompt_scale == middle.model.prompt_scale
        alike = even and not middle.policy.front_s
        found.append((replica, highest * (middle.model.scale / end.scale) if alike else saturation_per_s(replica)))
    return tuple(found)


def capacity_with_ends(
    middle: TrialReplica,
    slo: Slo,
    good_share: float,
    ends: Sequence[tuple[TrialReplica, float]],
    precision: float = PRECISION,
) -> Estimate:
    """`capacity_of` for a replica whose `with_ends` are known."""
    (_, highest), *outer = ends
    value = capacity_per_s(middle, slo, good_share, precision=precision, highest=highest)
    found = [
        capacity_per_s(
            end,
            slo,
            good_share,
            precision=max(precision, END_PRECISION),
            guess=value * (top / highest) if value > 0 else None,
            highest=top,
        )
        for end, top in outer
    ]
    return bracketed(value, *found)


def capacity_per_s(
    replica: TrialReplica,
    slo: Slo,
    good_share: float,
    *,
    precision: float = PRECISION,
    guess: float | None = None,
    highest: float | None = None,
) -> float:
    """`capacity_of` for one step model, without its interval. `guess`: where to look first; `highest`: saturation."""
    if highest is None:
        highest = saturation_per_s(replica)
    if highest <= 0 or all(term is None for term in msgspec.structs.astuple(slo)):
        return highest

    def meets(rate: float) -> bool:
        return replica.good_share(rate, slo, good_share) >= good_share

    return highest_that_meets(meets, highest, precision, guess)


def highest_that_meets(
    meets: Callable[[float], bool], highest: float, precision: float, guess: float | None = None
) -> float:
    """The rate up to `highest` below which `meets` holds, within `precision`; 0 below `LOWEST` of it."""
    low, high, growth = 0.0, highest, 1.15
    rate = min(0.7 * highest if guess is None else guess, highest / (1 + precision))
    for trial in range(MOST_TRIALS):
        if meets(rate):
            low = rate
        else:
            high = rate
        if low == 0.0:
            # After three failures it is time to ask whether there is any hope.
            if high < LOWEST * highest or (trial == 2 and not meets(HOPELESS * highest)):
                return 0.0
            rate = high / 2
        elif high / low <= 1 + precision:
            break
        elif guess is not None and high == highest:
            # The guess was good: the answer is near it, not in the middle of everything.
            rate, growth = min(growth * low, math.sqrt(low * high)), growth**2
        else:
            rate = math.sqrt(low * high)
    return math.sqrt(low * high)


def prefill_share(replica: TrialReplica, rate_per_s: float, run: Simulation | None = None) -> float:
    """Share of a replica's busy time that prompts take at a rate: what steps last longer for having one in them.

    `run`: the simulation at that rate, where it is known.
    """
    run = replica.run(rate_per_s) if run is None else run
    steps = run.steps
    mixed_M = steps.prompt_tokens_M > 0
    requests = replica.requests
    context = float(np.mean(requests.prompt_tokens_N)) + float(np.mean(requests.output_tokens_N)) / 2
    decoding_M = steps.decoding_M[mixed_M]
    plain_s_M = np.where(decoding_M > 0, replica.model.step_s(np.maximum(decoding_M, 1), context), 0.0)
    extra_s_M = np.maximum(steps.step_s_M[mixed_M] - plain_s_M, 0.0) * steps.steps_M[mixed_M]
    busy_s = float(np.sum(steps.step_s_M * steps.steps_M))
    return float(np.sum(extra_s_M)) / busy_s if busy_s > 0 else 0.0


def mean_batch(replica: TrialReplica, rate_per_s: float) -> float:
    """Sequences that decode together, on average over the steps in which any does."""
    steps = replica.run(rate_per_s).steps
    decode_M = np.where(steps.decoding_M > 0, steps.steps_M, 0)
    return float(np.sum(steps.decoding_M * decode_M)) / float(max(1, np.sum(decode_M)))


def latency_points(
    model: StepModel,
    policy: Policy,
    workload: Workload,
    slo: Slo,
    rates: Sequence[float],
    trace: TraceRows | None = None,
    *,
    requests: int | None = None,
) -> list[LatencyPoint]:
    """How one replica answers at each of `rates` in requests/s; empty where nothing fits.

    Intervals are those of the step model: the slow end of a delay is simulated with slow steps.
    """
    middle = replica_of(model, policy, workload, trace, requests)
    if middle is None:
        return []
    found = []
    for rate in rates:
        run = middle.run(rate)
        ends = [replace(middle, model=end) for end in model.ends(prefill_share(middle, rate, run))]
        found.append(_latency(rate, [(middle, run), *((end, end.run(rate)) for end in ends)], slo))
    return found


def _latency(rate: float, runs: Sequence[tuple[TrialReplica, Simulation]], slo: Slo) -> LatencyPoint:
    """`runs`: with the step model as it is, its fast and its slow end."""
    counted = [replica.counted(run) for replica, run in runs]
    spans = {
        f"{metric}_p{p}_s": _known(
            [float(run.percentiles(metric, p, c)) for (_, run), c in zip(runs, counted, strict=True)]
        )
        for metric in ("ttft", "tpot", "e2e")
        for p in (50, 99)
    }
    shares = [run.good_share(slo, c) for (_, run), c in zip(runs, counted, strict=True)]
    run = runs[0][1]
    return LatencyPoint(
        rate_per_s=rate,
        **spans,
        good_share=around(shares),
        utilisation=run.utilisation,
        tokens_per_s=rate * float(np.mean(run.requests.output_tokens_N)),
    )


def _known(value_and_ends: Sequence[float]) -> Estimate | None:
    """`around` them; None where there is no such delay, or it never ends."""
    return around(value_and_ends) if all(map(math.isfinite, value_and_ends)) else None


def unit_requests(workload: Workload, trace: TraceRows | None, n: int) -> Requests:
    """About `n` requests of `workload`, their arrivals stretched to one a second on average."""
    arrivals = workload.arrivals
    if arrivals.is_closed:
        # A capacity is a rate, and a closed loop has none of its own.
        arrivals = Arrivals(process="poisson", rate_per_s=1.0)
    asked = msgspec.structs.replace(workload, arrivals=arrivals, requests=n, duration_s=None, warm_up_s=0.0)
    requests = requests_of_schedule(draw(asked, trace))
    heads_s = requests.arrival_s_N[requests.heads]
    span_s = float(heads_s[-1] - heads_s[0])
    # The last arrival stands for a gap too: n arrivals take n mean gaps.
    span_s *= len(heads_s) / max(1, len(heads_s) - 1)
    arrival_s_N = (requests.arrival_s_N - heads_s[0]) * (len(requests) / span_s if span_s > 0 else 1.0)
    return replace(requests, arrival_s_N=arrival_s_N)
