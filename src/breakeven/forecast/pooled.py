"""Fleets on one shared stream, simulated: what n replicas carry.

The stream is that of `forecast.serving`, its clock changed from load to load and from size to size (common random
numbers), and the balancer follows the gateway's rule (`forecast.balancing`). A larger fleet needs more requests to fill
it; where a trace or `MOST_REQUESTS` has too few of them, larger fleets are not simulated and the form of
`forecast.fleet` goes on from the largest that was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.fleet import SIZES, FleetCapacity
from breakeven.forecast.model import StepModel
from breakeven.forecast.serving import (
    END_PRECISION,
    MOST_REQUESTS,
    WARM_SHARE,
    TrialReplica,
    capacity_with_ends,
    highest_that_meets,
    replica_of,
    saturation_per_s,
    unit_requests,
    with_ends,
)
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import simulate
from breakeven.stats.estimate import Estimate, bracketed
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload

FLEET_PRECISION = 0.05
"""Between the highest rate seen to keep the level and the lowest seen to miss it; the answer lies between by shares."""
FLEET_TRIALS = 12
FAR = 1.3
"""Between a rate that is kept and one that is not, from which shares say nothing of what is between."""
FLEET_TIMES = 4.0
"""A run has this many times the requests that full replicas have in flight. Few are full within a level: of one, whose
requests are the cheapest, `TIMES_IN_FLIGHT`."""
FULL = 0.985
"""Of the saturation rate: a fleet that carries this much a replica cannot carry much more with another one."""
FLAT = 1.03
"""A fleet of twice the size that carries no more than this much more a replica: the form knows the rest as well."""
NEAR = 0.8
"""Of the saturation rate: from here one flat step is enough, below it takes two."""
STEEP = 1.25
"""Growth of what a replica carries from one size to its double, from which the size between them is simulated too."""
ENDS_AT = 4
"""Replicas of the largest fleet at which the ends of the interval are searched."""
LARGER = (24, 32, 48, 64)
"""Tried where no smaller fleet carries anything."""
APART_S = 1e6
"""Between requests that are served alone."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Stream:
    """The shared stream before fleets of any size: `one` replica and what draws more requests of the same kind."""

    one: TrialReplica
    workload: Workload
    trace: TraceRows | None
    each: float
    """Requests that fill one replica several times, whoever thinks about an answer there included."""

    def wanted(self, replicas: int) -> int:
        """Requests that fill so many."""
        return math.ceil(self.each * replicas)

    def fills(self, replicas: int) -> bool:
        """Whether there may be requests enough for so many."""
        return replicas == 1 or self.wanted(replicas) <= MOST_REQUESTS

    def before(self, replicas: int) -> TrialReplica:
        """So many replicas before the stream: the same requests, and those that come after them where it takes more."""
        requests, wanted = self.one.requests, min(MOST_REQUESTS, self.wanted(replicas))
        if replicas > 1 and wanted > len(requests):
            requests = unit_requests(self.workload, self.trace, wanted)
        return replace(self.one, requests=requests, replicas=replicas)


def stream_of(
    model: StepModel, policy: Policy, workload: Workload, trace: TraceRows | None, requests: int | None = None
) -> Stream | None:
    """The stream before replicas of `model`; None where no request fits beside it."""
    one = replica_of(model, policy, workload, trace, requests)
    if one is None:
        return None
    asked, policy = one.requests, one.policy
    mean = float(np.mean(asked.prompt_tokens_N + asked.output_tokens_N))
    in_flight = policy.max_sequences if policy.kv_tokens is None else min(policy.max_sequences, policy.kv_tokens / mean)
    times = FLEET_TIMES
    if asked.think_s_N is not None:
        # Conversations are in flight for as long as all of their turns take.
        in_flight += saturation_per_s(one) * float(np.mean(asked.think_s_N))
        times = max(times, len(asked) / int(np.sum(asked.heads)) / WARM_SHARE)
    return Stream(one, workload, trace, times * in_flight)


def alone_share(one: TrialReplica, slo: Slo) -> float:
    """The share of requests that keep the level when each is served by itself."""
    run, counted_N = alone_run(one)
    return run.good_share(slo, counted_N)


def alone_run(one: TrialReplica) -> tuple[Simulation, Bools]:
    """The requests far apart, conversations turn by turn; and which of them count: those that do in the stream."""
    asked = one.requests
    heads_N = asked.heads
    arrival_s_N = np.full(len(asked), np.nan)
    arrival_s_N[heads_N] = APART_S * np.argsort(np.argsort(asked.arrival_s_N[heads_N], kind="stable"), kind="stable")
    run = simulate(replace(asked, arrival_s_N=arrival_s_N), one.model, one.policy)
    heads_s = asked.arrival_s_N[heads_N]
    late = heads_s >= heads_s.min() + WARM_SHARE * (heads_s.max() - heads_s.min())
    # Turns follow their first one.
    return run, late[np.cumsum(heads_N) - 1]


def fleet_capacity_of(
    model: StepModel,
    policy: Policy,
    workload: Workload,
    slo: Slo,
    good_share: float,
    trace: TraceRows | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    requests: int | None = None,
) -> FleetCapacity | None:
    """Highest mean rates at which `good_share` of the requests keep `slo`, by size of the fleet; None: nothing fits.

    Of one replica it is `capacity_of`, to the last bit. Larger ones are simulated until another replica brings no more
    than its own. All 0 where even requests served alone do not keep the level. The ends of larger fleets are simulated
    at the largest of them, and lie between as the form of `forecast.fleet` has it.
    """
    stream = stream_of(model, policy, workload, trace, requests)
    if stream is None:
        return None
    ends = with_ends(stream.one)
    first = capacity_with_ends(stream.one, slo, good_share, ends)
    tops = [top for _, top in ends]
    top = bracketed(*tops)
    found = {1: first.value / tops[0]} if tops[0] > 0 else {}
    unlimited = all(term is None for term in msgspec.structs.astuple(slo))
    if not found or unlimited or first.value >= FULL * tops[0]:
        return FleetCapacity((1,), (first,), top)
    if first.value <= 0 and alone_share(stream.one, slo) < good_share:
        return FleetCapacity((1,), (first,), top)
    found |= _pooled(stream, tops[0], slo, good_share, found[1], sizes)
    spans = _with_ends(stream, ends, first, found, slo, good_share)
    return FleetCapacity(tuple(sorted(found)), tuple(spans), top)


def _pooled(
    stream: Stream, top: float, slo: Slo, good_share: float, first: float, sizes: Sequence[int]
) -> dict[int, float]:
    """What larger fleets carry of n times the saturation of one, by n; `first`: what one does."""
    found, flat = {1: first}, 0
    for n in (*sizes, *LARGER):
        last = max(found)
        if not stream.fills(n) or (n > max(sizes) and found[last] > 0):
            break
        if n < 2 * last and (found[last] > 0 or n not in sizes):
            continue
        found[n] = _share_of_saturation(stream.before(n), top, slo, good_share, found[last], _next(found, n))
        flat = flat + 1 if found[last] > 0 and found[n] < FLAT * found[last] else 0
        # Far below saturation one flat step may be luck.
        if found[n] >= FULL or flat > (found[n] < NEAR):
            break
    # Where the form between two sizes spans much, the one between them too.
    for n in sizes:
        under, upper = max(k for k in found if k <= n), min((k for k in found if k >= n), default=0)
        if upper > n and found[under] > 0 and found[upper] > STEEP * found[under]:
            guess = _between(found[under], found[upper], (n**-0.5 - under**-0.5) / (upper**-0.5 - under**-0.5))
            found[n] = _share_of_saturation(
                stream.before(n), top, slo, good_share, found[under], guess, most=found[upper]
            )
    return dict(sorted(found.items()))


def _between(low: float, high: float, way: float) -> float:
    return low + way * (high - low)


def _with_ends(
    stream: Stream,
    ends: Sequence[tuple[TrialReplica, float]],
    first: Estimate,
    found: dict[int, float],
    slo: Slo,
    good_share: float,
) -> list[Estimate]:
    """Capacities by size with their intervals: `found` of saturation, and the ends found at the largest fleet."""
    largest = max(found)
    if largest == 1:
        return [first]
    outer: list[tuple[float, float, float]] = []
    for (end, top), at_1 in zip(ends[1:], (first.least, first.most), strict=True):
        x_1 = at_1 / top if top > 0 else 0.0
        x_k = 0.0
        for k in dict.fromkeys((max(n for n in found if n <= ENDS_AT), largest)):
            if k > 1 and x_k <= 0:
                fleet = replace(stream.before(k), model=end.model)
                guess = min(1.0, x_1 * found[k] / found[1]) if found[1] > 0 and x_1 > 0 else found[k]
                x_k = _share_of_saturation(fleet, top, slo, good_share, x_1, guess, END_PRECISION)
                gain = max(0.0, x_k - x_1) / (1.0 - k**-0.5)
        outer.append((top, x_1, gain))
    spans = [first]
    for n in sorted(found)[1:]:
        # Between the sizes, and beyond, as a - b / sqrt(n).
        low, high = (n * top * min(1.0, x_1 + gain * (1.0 - n**-0.5)) for top, x_1, gain in outer)
        spans.append(bracketed(n * found[n] * ends[0][1], low, high))
    return spans


def _next(found: dict[int, float], n: int) -> float | None:
    """What n replicas may carry, of their saturation, by what the two sizes before show; None where nothing does."""
    *_, last = found
    if found[last] <= 0:
        return None
    if len(found) < 2 or found[list(found)[-2]] <= 0:
        # Half of the way that the square root would go, were saturation all that stood in the way.
        return 1.0 - (1.0 - found[last]) * (0.5 + 0.5 * math.sqrt(last / n))
    before = list(found)[-2]
    # c / n = a - b / sqrt(n), from the two sizes before.
    far, near, here = (1 / math.sqrt(k) for k in (before, last, n))
    gain = max(0.0, (found[last] - found[before]) / (far - near))
    return min(1.0, found[last] + gain * (near - here))


def _share_of_saturation(
    fleet: TrialReplica,
    saturated_per_s: float,
    slo: Slo,
    good_share: float,
    least: float,
    guess: float | None,
    precision: float = FLEET_PRECISION,
    most: float = 1.0,
) -> float:
    """What a fleet carries, of n times the saturation of one; `least` and `most`: what smaller and larger ones do."""
    highest = saturated_per_s * fleet.replicas
    if highest <= 0:
        return 0.0
    if guess is None or least <= 0:
        near = guess * highest if guess else None
        return (
            highest_that_meets(lambda r: fleet.good_share(r, slo, good_share) >= good_share, highest, precision, near)
            / highest
        )
    return climb(lambda x: fleet.good_share(x * highest, slo, good_share) - good_share, least, most, guess, precision)


def climb(over: Callable[[float], float], least: float, most: float, guess: float, precision: float) -> float:
    """The x up to `most` where `over`, which falls, turns negative; `least`, above 0, is taken to be below it.

    Starts at `guess`, goes on in growing strides until it has both signs, and then by the values between them.
    """
    low, high, below, above = least, most, math.nan, math.nan
    x, stride = min(max(guess, least * (1 + precision)), most), 1 + precision
    for _ in range(FLEET_TRIALS):
        value = over(x)
        if value >= 0:
            low, below = x, value
        else:
            high, above = x, value
        if x <= least or (high / low <= 1 + precision and not math.isnan(below)):
            break
        if math.isnan(below):
            # Down in growing strides, or, where `least` says little, through the middle.
            x, stride = max(high / stride, low, math.sqrt(low * high) if high > FAR * low else 0.0), stride**2
        elif math.isnan(above):
            x, stride = min(low * stride, math.sqrt(low * most)), stride**2
        elif high > FAR * low:
            x = math.sqrt(low * high)
        else:
            # Not nearer to either side than a quarter: a step in the shares would be closed in on forever.
            share = min(max(below / (below - above), 0.25), 0.75)
            x = low + share * (high - low)
    if math.isnan(below):
        return low
    if math.isnan(above):
        return math.sqrt(low * high)
    return low + below / (below - above) * (high - low)
