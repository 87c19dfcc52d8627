"""Is a run worse than a saved one? Pure: two results, or better their two logs, in; a `Check` out.

Both runs are cut into blocks of time, and every metric becomes the log of a ratio of sums, with one value a block
(`stats.intervals`). Where the same requests were due in the same blocks, as when a saved schedule was played
again, the blocks are paired, so that what bursts of arrivals do to both runs cancels; otherwise the runs are taken as
independent. New over old is the difference of the logs with Student's (Welch's) t interval.

A metric is worse only when its interval lies wholly beyond the tolerance, at 99 % shared out over all metrics and
loads looked at (Bonferroni): of a hundred checks of an unchanged server one at most may cry wolf, not one metric in
twenty. The interval shown is the usual 95 % one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.measure.events import Event
from breakeven.measure.load.columns import LoadRun, collect
from breakeven.measure.load.part import Part, measured_part, meets, sums_by_block
from breakeven.measure.load.points import output_tokens, rate_spans, values_s
from breakeven.results.load import Check, CheckedMetric, LoadStudy
from breakeven.results.metrics import metric_of
from breakeven.results.point import of_load
from breakeven.stats import intervals
from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.percentiles import wilson
from breakeven.traffic.workload import Slo, Workload

CONFIDENCE = 0.99
"""Of the verdict, over everything compared."""
SHOWN = 0.95
TOLERANCE = 0.05
"""Two starts of one engine on one quiet machine differ by some percent that no interval within a run can see, and a
machine that runs tests is seldom quiet. A judgement: 5 % is above what was seen and below what anyone would mind."""
DELAYS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
TOKENS, GOODPUT, ERRORS = "output_tokens_per_s", "goodput_per_s", "error_share"
GOOD_WORDS = "requests served within the SLO"
"""Goodput as a check says it."""
_Column: TypeAlias = NDArray[np.float64]
_Blocks: TypeAlias = tuple[list[_Column], list[int]]
Key: TypeAlias = tuple[str, str]
"""(load, metric)."""


@dataclass(frozen=True, slots=True)
class Level:
    """One metric of one run: its log, the variance of that, and the degrees of freedom; None without an interval.

    `n`: blocks or requests it rests on. `blocks`: its values by block, one array a run, and how many requests were due
    in each block; None where it does not come from blocks.
    """

    log: float
    variance: float | None
    freedom: float | None
    n: int = 0
    blocks: _Blocks | None = None


def check(
    baseline: LoadStudy,
    new: LoadStudy,
    *,
    logs: tuple[Iterable[Event], Iterable[Event]] | None = None,
    tolerance: float = TOLERANCE,
    name: str = "",
) -> Check:
    """Compare `new` with `baseline`, one candidate each, load by load; from their two `logs` where given.

    `name` is what the baseline is called. Raises UserError when they have no load in common, or more candidates.
    """
    if tolerance < 0:
        raise UserError("--tolerance must not be negative; give a percentage such as 5%")
    for study, what in ((baseline, "the saved run"), (new, "the new run")):
        if len(study.models) != 1:
            raise UserError(f"{what} compares {len(study.models)} models; check takes runs of one, as `bench` saves")
    slo = baseline.slo
    if logs is None:
        same_slo = baseline.slo == new.slo
        old_levels, new_levels = (from_points(study, with_goodput=same_slo) for study in (baseline, new))
    else:
        old_levels, new_levels = (from_log(log, slo) for log in logs)
    loads = list(dict.fromkeys(load for load, _ in old_levels))
    there = {load for load, _ in new_levels}
    if not there.intersection(loads):
        raise UserError(
            f"the runs have no load in common: saved are {_listed(loads)}, new are {_listed(sorted(there))}; "
            "run bench again with the options of the saved run"
        )
    keys = [key for key in old_levels if key in new_levels and not _nothing_failed(key, old_levels, new_levels)]
    tested = [k for k in keys if old_levels[k].variance is not None and new_levels[k].variance is not None]
    error = (1 - CONFIDENCE) / max(1, len(tested))
    metrics = [_compared(key, old_levels[key], new_levels[key], error, tolerance) for key in keys]
    worse = [m for m in metrics if m.verdict == "worse"]
    return Check(
        baseline=name or baseline.command,
        worse=bool(worse),
        metrics=metrics,
        headline=_headline(metrics, len(tested), tolerance),
        caveats=_caveats(baseline, new, keys, tested, [load for load in loads if load not in there], logs is not None),
    )


def from_log(log: Iterable[Event], slo: Slo | None) -> dict[Key, Level]:
    """Every metric of every load in a log, from blocks of time."""
    by_load: dict[str, list[LoadRun]] = {}
    for run in collect(log):
        by_load.setdefault(_load_today(run.load, run.workload), []).append(run)
    found: dict[Key, Level] = {}
    for load, runs in by_load.items():
        parts = [part for part in map(measured_part, runs) if part.counted_N.any()]
        if not parts:
            continue
        for metric in DELAYS:
            if (level := _delay(metric, parts)) is not None:
                found[load, metric] = level
        if (level := _tokens(parts)) is not None:
            found[load, TOKENS] = level
        n = sum(int(part.counted_N.sum()) for part in parts)
        if slo is not None and (level := _goodput(parts, slo, n)) is not None:
            found[load, GOODPUT] = level
        failed = sum(int((part.counted_N & ~part.run.requests.answered).sum()) for part in parts)
        found[load, ERRORS] = _share(failed, n)
    return found


def _load_today(load: str, workload: Workload) -> str:
    """What a load is called now: earlier versions called a rate of conversations one of requests."""
    return load.replace(" req/s", f" {workload.rate_unit}")


def from_points(study: LoadStudy, *, with_goodput: bool) -> dict[Key, Level]:
    """The same from a result without its log. Rates have no interval there, goodput only that of its share."""
    found: dict[Key, Level] = {}
    for point in study.points:
        means, load = of_load(point).metrics, _load_today(point.load, study.workload)
        for metric in DELAYS:
            if metric in means and means[metric].value > 0:
                found[load, metric] = _of_estimate(means[metric])
        if point.output_tokens_per_s > 0:
            found[load, TOKENS] = Level(math.log(point.output_tokens_per_s), None, None)
        if with_goodput and point.good is not None and point.concurrency is None:
            found[load, GOODPUT] = _share(point.good.hits, point.good.n)
        elif with_goodput and point.goodput_per_s:
            found[load, GOODPUT] = Level(math.log(point.goodput_per_s), None, None)
        if point.requests:
            found[load, ERRORS] = _share(point.requests - point.answered, point.requests)
    return found


def _delay(metric: str, parts: Sequence[Part]) -> Level | None:
    def sums(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        requests = part.run.requests
        values = values_s(metric, requests)
        blocks = intervals.cut(int(np.count_nonzero(part.counted_N & np.isfinite(values))), len(parts))
        if metric != "itl_s":
            return sums_by_block(part, values, blocks)
        weights = np.where(np.isfinite(values), requests.gaps_N, np.nan)
        return sums_by_block(part, values * weights, blocks)[0], sums_by_block(part, weights, blocks)[0]

    return _of_blocks(parts, [sums(part) for part in parts])


def _tokens(parts: Sequence[Part]) -> Level | None:
    blocked = []
    for part, span, _ in rate_spans(list(parts)):
        edges = np.linspace(*span, _blocks(part, len(parts)) + 1)
        tokens = [output_tokens(part, (float(a), float(b))) for a, b in pairwise(edges)]
        blocked.append((np.array(tokens), np.diff(edges) / 1e9))
    return _of_blocks(parts, blocked)


def _goodput(parts: Sequence[Part], slo: Slo, n: int) -> Level | None:
    """Good requests over all requests where the schedule says how many come, over seconds in a closed loop."""
    blocked, hits, closed = [], 0, parts[0].run.workload.arrivals.is_closed
    for part in parts:
        blocks = _blocks(part, len(parts))
        good = meets(part.run.requests, slo)
        hits += int((good & part.counted_N).sum())
        good_B, all_B = sums_by_block(part, good.astype(np.float64), blocks)
        seconds_B = np.diff(part.edges_ns(blocks)) / 1e9
        blocked.append((good_B, seconds_B if closed else all_B))
    level = _of_blocks(parts, blocked)
    # With every request good no block differs from another, which does not mean that none ever would.
    return level if closed or (level is not None and level.variance) else _share(hits, n)


def _blocks(part: Part, runs: int) -> int:
    return intervals.cut(int(np.count_nonzero(part.counted_N)), runs)


def _of_blocks(parts: Sequence[Part], blocked: Sequence[tuple[_Column, _Column]]) -> Level | None:
    """The level of sum over / sum under, given by block, one pair of columns a run; None where it is not positive."""
    over_B, under_B = (np.concatenate(column) for column in zip(*blocked, strict=True))
    if over_B.sum() <= 0 or under_B.sum() <= 0:
        return None
    centre = math.log(over_B.sum() / under_B.sum())
    values_B = intervals.log_ratio_values(over_B, under_B)
    if values_B is None or len(values_B) < intervals.MIN_BLOCKS:
        return Level(centre, None, None, len(over_B))
    if len(values_B) != len(over_B):  # some block says nothing, so no block has a certain neighbour or partner
        return Level(centre, _variance([values_B]), len(values_B) - 1, len(values_B))
    sizes = [len(over) for over, _ in blocked]
    series = np.split(values_B, np.cumsum(sizes)[:-1])
    due: list[int] = []
    for part, blocks in zip(parts, sizes, strict=True):
        due += np.bincount(part.block_of_due(blocks)[part.counted_N], minlength=blocks).tolist()
    return Level(centre, _variance(series), len(values_B) - 1, len(values_B), (series, due))


def _variance(series: Sequence[_Column]) -> float:
    """Of the mean of all values; wider where neighbouring blocks move together."""
    values_B = np.concatenate(list(series))
    if len(series) > 1 or len(values_B) > intervals.MIN_BLOCKS:
        values_B = intervals.spread(values_B, intervals.correlation(list(series)))
    return float(values_B.var(ddof=1)) / len(values_B)


def _share(hits: int, n: int) -> Level:
    """Log of a share, half an event added so that none at all is still a number (Walter 1975).

    Near 1 that says nothing of how sure the share is; there the lower end of its Wilson interval does.
    """
    share = (hits + 0.5) / (n + 0.5)
    variance = 1 / (hits + 0.5) - 1 / (n + 0.5)
    if 2 * hits > n:
        variance = max(variance, (math.log(share / wilson(hits, n).low) / t_quantile(SHOWN, math.inf)) ** 2)
    return Level(math.log(share), variance, math.inf, n)


def _of_estimate(estimate: Estimate) -> Level:
    """Back from a 95 % interval of n values to the variance it came from."""
    centre = math.log(estimate.value)
    low, high, n = estimate.low, estimate.high, estimate.n or 0
    if low is None or high is None or low <= 0 or n < 2:
        return Level(centre, None, None, n)
    half = max(math.log(high) - centre, centre - math.log(low))
    return Level(centre, (half / t_quantile(SHOWN, n - 1)) ** 2, n - 1, n)


def _compared(key: Key, old: Level, new: Level, error: float, tolerance: float) -> CheckedMetric:
    load, metric = key
    difference, n = new.log - old.log, min(old.n, new.n)
    spread = _spread(old, new)
    if spread is None:
        estimate = measured(math.exp(difference), None, None, n)
        return CheckedMetric(metric=metric, load=load, new_over_old=estimate, verdict="same")
    deviation, freedom = spread
    shown, sure = (t_quantile(level, freedom) * deviation for level in (SHOWN, 1 - error))
    limit = math.log1p(tolerance)
    up, down = difference - sure > limit, difference + sure < -limit
    better, worse = (up, down) if metric_of(metric).more_is_better else (down, up)
    estimate = measured(math.exp(difference), math.exp(difference - shown), math.exp(difference + shown), n)
    verdict = "worse" if worse else "better" if better else "same"
    return CheckedMetric(metric=metric, load=load, new_over_old=estimate, verdict=verdict)


def _spread(old: Level, new: Level) -> tuple[float, float] | None:
    """Standard error of new - old, and its degrees of freedom; None where one of them has none."""
    if old.blocks is not None and new.blocks is not None and _cut_alike(old.blocks, new.blocks):
        pairs = [b - a for a, b in zip(old.blocks[0], new.blocks[0], strict=True)]
        return math.sqrt(_variance(pairs)), sum(map(len, pairs)) - 1
    if old.variance is None or new.variance is None or old.freedom is None or new.freedom is None:
        return None
    # Welch 1947, Satterthwaite 1946.
    below = old.variance**2 / old.freedom + new.variance**2 / new.freedom
    both = old.variance + new.variance
    return math.sqrt(both), both**2 / below if below > 0 else math.inf


def _cut_alike(old: _Blocks, new: _Blocks) -> bool:
    """True when as many requests were due in each block of both, as on one schedule."""
    return old[1] == new[1] and [len(run) for run in old[0]] == [len(run) for run in new[0]]


@functools.lru_cache(maxsize=256)
def t_quantile(level: float, freedom: float) -> float:
    """Half-width, in standard errors, of a two-sided interval at `level` by Student's t.

    With t = sqrt(freedom) tan(a) the density of a is proportional to cos(a)^(freedom - 1), which is summed up.
    """
    if freedom > 10_000:
        return NormalDist().inv_cdf((1 + level) / 2)
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(freedom) * math.tan(float(np.interp(level * area[-1], area, angle)))


def _nothing_failed(key: Key, old: Mapping[Key, Level], new: Mapping[Key, Level]) -> bool:
    """True for the share of failures where there were none in either run, which leaves nothing to compare."""
    return key[1] == ERRORS and all(math.exp(each[key].log) * (each[key].n + 0.5) < 1 for each in (old, new))


def _headline(metrics: Sequence[CheckedMetric], tested: int, tolerance: float) -> str:
    if not tested:
        return "Too few requests in one of the runs to say whether anything changed; give a longer --duration."
    by: Mapping[str, list[CheckedMetric]] = {
        v: [m for m in metrics if m.verdict == v] for v in ("worse", "better", "same")
    }
    if by["worse"]:
        return f"Worse than the saved run: {_told(by['worse'])}."
    if by["better"]:
        return f"Nothing got worse; better than the saved run: {_told(by['better'])}."
    return f"Nothing got worse: no difference beyond {tolerance:.0%} was found in {tested} comparisons."


def _words(metric: str) -> str:
    return GOOD_WORDS if metric == GOODPUT else metric_of(metric).words


def _told(metrics: Sequence[CheckedMetric]) -> str:
    shown = sorted(metrics, key=lambda m: -abs(math.log(m.new_over_old.value)))[:3]
    texts = [f"{_words(m.metric)} at {m.load} is {m.new_over_old.value:.2f} times the saved one" for m in shown]
    more = len(metrics) - len(shown)
    return "; ".join(texts) + (f"; and {more} more" if more else "")


def _caveats(
    old: LoadStudy, new: LoadStudy, keys: Sequence[Key], tested: Sequence[Key], missing: Sequence[str], logged: bool
) -> list[str]:
    found = [f"The new run has no load {load!r}; it was not compared." for load in missing]
    differs: list[tuple[str, Callable[[LoadStudy], object]]] = [
        ("machine", lambda study: (study.machine.cpu, study.machine.gpus)),
        ("model", lambda study: study.models[0].name),
        ("engine settings", lambda study: study.models[0].settings),
        ("traffic", lambda study: study.workload),
        ("service level", lambda study: study.slo),
        ("version of breakeven", lambda study: study.breakeven_version),
    ]
    for what, read in differs:
        if read(old) != read(new):
            found.append(f"The {what} of the two runs differs, so a difference need not be the server's.")
    for study, what in ((old, "saved"), (new, "new")):
        if study.stopped_because != "finished":
            found.append(f"The {what} run did not end by itself ({study.stopped_because}).")
    unsure = [f"{metric} at {load}" for load, metric in keys if (load, metric) not in tested]
    if unsure:
        found.append(f"No interval, so no verdict: {', '.join(unsure)}.")
    if not logged:
        found.append("Compared from the two results alone; with events.jsonl beside both, rates have intervals too.")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
