"""What share of the requests fleets keep within the level at a load, alone too, and how many a load needs.

A share is a number with an error. It holds the step model's two ends, and the luck of the stream, taken from blocks of
time, because requests that are near in time share a queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.model import StepModel
from breakeven.forecast.pooled import Bools, alone_run, alone_share, stream_of
from breakeven.forecast.serving import TrialReplica, has_enough_to_fill, prefill_share, saturation_per_s
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.results import Simulation
from breakeven.stats.estimate import Estimate, bracketed
from breakeven.stats.intervals import BLOCKS, ratio_estimate
from breakeven.stats.percentiles import wilson
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload

FEWEST_TRIALS = 16
SIMULATED = 64
"""The largest fleet that is simulated at a load."""
LONG = 1.5
"""Times the median of all: what misses is said to be long."""


@dataclass(frozen=True, slots=True)
class Miss:
    """What keeps requests from the level even alone. `term` of the SLO that most of them miss, its limit, and the
    median of those who do; `who` they are, "long prompts", "long answers" or "" where it is not their length.
    """

    term: str
    limit_s: float
    value_s: float
    who: str
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Alone:
    """An endless fleet: every request served by itself. `miss` None: all keep the level. `luck` as in `Shares`."""

    share: Estimate
    luck: Estimate
    miss: Miss | None
    refused: float = 0.0
    """Share of the requests that are longer than a context, or than the keys and values of one replica."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Of requests that keep the level at `rate_per_s`, by replicas that share them, and alone.

    `luck`: the same with the luck of the stream alone in the interval, as if the step model were right.
    `saturation_per_s`: what one replica gets through at most; None where there are too few requests to tell.
    """

    rate_per_s: float
    saturation_per_s: float | None
    by_replicas: tuple[tuple[int, Estimate], ...]
    luck: tuple[tuple[int, Estimate], ...]
    alone: Alone

    def overloads(self, replicas: int) -> bool:
        """Whether the queue of so many grows as long as the load lasts, so that their share is of the run's length."""
        return _overloads(self.rate_per_s, replicas, self.saturation_per_s)


@dataclass(frozen=True, slots=True)
class Fewest:
    """The fewest replicas that keep the level at a load, None where no number does.

    `share` is theirs, and `below` that of one fewer. Both are None, and `simulated` False, where the fleet is too large
    to be simulated and the curve alone says how many.
    """

    replicas: int | None
    share: Estimate | None
    below: Estimate | None
    simulated: bool


def shares_at(
    model: StepModel,
    policy: Policy,
    workload: Workload,
    slo: Slo,
    good_share: float,
    rate_per_s: float,
    trace: TraceRows | None = None,
    sizes: Sequence[int] = (1, 2, 3),
    *,
    requests: int | None = None,
) -> Shares | None:
    """What fleets of `sizes` keep at a load, and requests served alone; None where nothing fits.

    An interval holds the step model's two ends and the luck of the stream: shares by block of time, since requests near
    in time share a queue. `good_share` is not looked at: shares are the same whatever was promised.
    """
    stream = stream_of(model, policy, workload, trace, requests)
    if stream is None:
        return None
    found: dict[int, tuple[Estimate, Estimate]] = {}
    whole = None
    for n in sizes:
        found[n] = whole or _share(stream.before(n), slo, rate_per_s)
        share, luck = found[n]
        # Where all is kept with the slowest steps too, more replicas have nothing to better.
        whole = found[n] if share.value == 1.0 and share.least == luck.least else None
    return Shares(
        rate_per_s,
        _saturation(stream.one),
        tuple((n, share) for n, (share, _) in found.items()),
        tuple((n, luck) for n, (_, luck) in found.items()),
        alone(stream.one, slo) if whole is None else Alone(*whole, None),
    )


def fewest_at(
    model: StepModel,
    policy: Policy,
    workload: Workload,
    slo: Slo,
    good_share: float,
    trace: TraceRows | None,
    rate_per_s: float,
    curve: FleetCapacity,
    *,
    requests: int | None = None,
) -> Fewest:
    """The n whose fleet keeps the level at a load while n - 1 do not, simulated at that load from `curve`'s n on."""
    stream = stream_of(model, policy, workload, trace, requests)
    told = curve.replicas(rate_per_s)
    if stream is None or not math.isfinite(told):
        return Fewest(None, None, None, simulated=False)
    n = round(told)
    if n > SIMULATED or not stream.fills(n):
        return Fewest(n, None, None, simulated=False)
    # A short run may end before the queue of an overloaded fleet is long.
    top = _saturation(stream.one)
    known = {k: False for k in range(n) if k == 0 or _overloads(rate_per_s, k, top)}

    def keeps(k: int) -> bool:
        if k not in known:
            known[k] = stream.before(k).good_share(rate_per_s, slo) >= good_share
        return known[k]

    # From the curve's number outwards in growing strides, then halves.
    low, high, stride = 0, None, max(1, n // 8)
    for _ in range(FEWEST_TRIALS):
        if keeps(n):
            high = n
        else:
            low = n
        if high is not None and high - low == 1:
            break
        if high is None:
            n, stride = n + stride, 2 * stride
            if n > SIMULATED or not stream.fills(n):
                return Fewest(n, None, None, simulated=False)
        elif low == 0:
            n, stride = max(1, n - stride), 2 * stride
        else:
            n = (low + high) // 2
    n = n if high is None else high
    share, _ = _share(stream.before(n), slo, rate_per_s)
    below = _share(stream.before(n - 1), slo, rate_per_s)[0] if n > 1 else None
    return Fewest(n, share, below, simulated=True)


def _saturation(one: TrialReplica) -> float | None:
    """What it gets through at most; None where its requests do not tell."""
    return (saturation_per_s(one) or None) if has_enough_to_fill(one) else None


def _overloads(rate_per_s: float, replicas: int, top_per_s: float | None) -> bool:
    return top_per_s is not None and rate_per_s > replicas * top_per_s


def alone(one: TrialReplica, slo: Slo) -> Alone:
    """`one` replica's requests, each served by itself."""
    run, counted_N = alone_run(one)
    fast, slow = one.model.ends(prefill_share(one, 0.0, run))
    shares = [alone_share(replace(one, model=end), slo) for end in (slow, fast)]
    refused = float(run.refused_N[counted_N].mean())
    return Alone(*_combined(run, slo, counted_N, shares), _miss(run, slo, counted_N), refused)


def _share(fleet: TrialReplica, slo: Slo, rate_per_s: float) -> tuple[Estimate, Estimate]:
    """The share that a fleet keeps at a load, and the same with the luck of the stream alone."""
    run = fleet.run(rate_per_s)
    fast, slow = fleet.model.ends(prefill_share(fleet, rate_per_s, run))
    ends = [replace(fleet, model=end).good_share(rate_per_s, slo) for end in (slow, fast)]
    return _combined(run, slo, fleet.counted(run), ends)


def _combined(run: Simulation, slo: Slo, counted_N: Bools, ends: Sequence[float]) -> tuple[Estimate, Estimate]:
    """A share with what the step model's `ends` and the luck of the stream leave open, as independent errors."""
    good_N = run.good(slo)[counted_N]
    value = float(np.mean(good_N))
    low, high = sampled(good_N, run.arrival_s_N[counted_N])
    slow, fast = ends
    luck = bracketed(value, max(0.0, low), min(1.0, high))
    below = math.hypot(value - luck.least, max(value - slow, 0.0))
    above = math.hypot(luck.most - value, max(fast - value, 0.0))
    return Estimate(value, max(0.0, value - below), min(1.0, value + above)), luck


def sampled(good_N: Bools, arrival_s_N: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a share from blocks of equal time; never narrower than that of independent requests."""
    n, hits = len(good_N), int(np.sum(good_N))
    least = wilson(hits, n)
    first_s, last_s = float(arrival_s_N.min()), float(arrival_s_N.max())
    width_s = (last_s - first_s) / BLOCKS
    if width_s <= 0:
        return least.low, least.high
    at_N = np.minimum((arrival_s_N - first_s) / width_s, BLOCKS - 1).astype(np.int64)
    good_B = np.bincount(at_N, weights=good_N, minlength=BLOCKS).astype(np.float64)
    total_B = np.bincount(at_N, minlength=BLOCKS).astype(np.float64)
    found = ratio_estimate([good_B], [total_B])
    if found is None or found.low is None or found.high is None:
        return least.low, least.high
    return min(found.low, least.low), max(found.high, least.high)


def _miss(run: Simulation, slo: Slo, counted_N: Bools) -> Miss | None:
    """The term that most of those who miss the level miss, and who they are."""
    bad_N = counted_N & ~run.good(slo)
    terms = {
        "ttft": (slo.ttft_s, run.ttft_s),
        "tpot": (slo.tpot_s, run.tpot_s),
        "itl": (slo.itl_s, run.gap_s_N),
        "e2e": (slo.e2e_s, run.e2e_s),
    }
    over = {}
    for name, (limit_s, values_s_N) in terms.items():
        if limit_s is not None:
            over[name] = bad_N & run.served & (np.nan_to_num(values_s_N, nan=-np.inf) > limit_s)
    if not any(np.any(who_N) for who_N in over.values()):
        return None
    term = max(over, key=lambda name: int(np.sum(over[name])))
    limit, values_N = terms[term]
    assert limit is not None
    prompt_N, output_N = run.requests.prompt_tokens_N, run.requests.output_tokens_N
    prompt, output = (float(np.median(tokens_N[over[term]])) for tokens_N in (prompt_N, output_N))
    longer = {
        "long prompts": prompt / float(np.median(prompt_N[counted_N])),
        "long answers": output / float(np.median(output_N[counted_N])),
    }
    who = max(longer, key=longer.__getitem__)
    return Miss(term, limit, float(np.median(values_N[over[term]])), who if longer[who] >= LONG else "", prompt, output)
