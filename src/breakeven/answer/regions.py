"""Loads over which one candidate is the best choice, how surely, and where one hands over to the next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from breakeven.answer.worlds import COST_TIE, SPEED_TIE, UNKNOWN_S, Floats, Indices, Worlds, ratios, span_of
from breakeven.results.decision import Region
from breakeven.results.point import nearest
from breakeven.stats.estimate import Estimate, bracketed

SURE = 0.9
"""A winner is certain where it wins in this share of the worlds."""
NEAR = 1.5
SLIVER = 1.15
"""A range of loads narrower than this ratio is not worth a line of its own."""
SAME_COST = 0.02
"""Costs closer than this, with answers as fast, are no difference worth anyone's time."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Handover:
    """From `low` on, `to` is the better choice instead of `from_`."""

    from_: str
    to: str
    rate_per_s: Estimate
    clipped: bool
    """An end of the band lies beyond the loads looked at."""


def best_of(winners_DR: Indices, contenders: int) -> tuple[Indices, Floats]:
    """Who wins most of the worlds at each load, (R), and every contender's share of the worlds, (C, R).

    -1 where nobody can serve: not as predicted, nor in half of the worlds. Worlds in which nobody can count for nobody,
    so that who only just keeps a promise does not lose to them.
    """
    share_CR = np.stack([(winners_DR == c).mean(axis=0) for c in range(contenders)])
    nobody_R = (winners_DR[0] < 0) & (share_CR.sum(axis=0) < 0.5)
    return np.where(nobody_R, -1, share_CR.argmax(axis=0)), share_CR


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A region with its first and last load, by index, and who wins most of its worlds, named or not."""

    start: int
    end: int
    best: str
    region: Region

    def is_sliver(self, here: int) -> bool:
        """Whether it is too narrow for a line of its own, and not that of the load `here`."""
        low, high = self.region.low_per_s, self.region.high_per_s
        return high is not None and high < SLIVER * low and not self.start <= here <= self.end

    def meets(self, after: _Stretch) -> bool:
        """Whether no load that nobody can serve lies between."""
        return self.end + 1 == after.start

    def up_to(self, last: _Stretch) -> _Stretch:
        """As wide as to the end of `last`."""
        wider = msgspec.structs.replace(self.region, high_per_s=last.region.high_per_s)
        return replace(self, end=last.end, region=wider)

    def down_to(self, first: _Stretch) -> _Stretch:
        """As wide as from the start of `first`."""
        wider = msgspec.structs.replace(self.region, low_per_s=first.region.low_per_s)
        return replace(self, start=first.start, region=wider)

    def holds(self, name: str) -> bool:
        """Whether `name` is as good a choice here as any."""
        return name == self.best or (self.region.winner is None and name == self.region.runner_up)


def regions_of(worlds: Worlds, rate_per_s: float | None = None) -> list[Region]:
    """Runs of loads with one winner, ascending. A load nobody can serve belongs to no region.

    `rate_per_s`: what holds there is told however narrow it is, as the verdict on that load says the same.
    """
    return [stretch.region for stretch in _stretches(worlds, rate_per_s)]


def _stretches(worlds: Worlds, rate_per_s: float | None) -> list[_Stretch]:
    """Regions, those merged that are one to a reader. Two meet halfway between the loads that were looked at."""
    best_R, share_CR = best_of(worlds.winners_DR, len(worlds.names))
    sure_R = _smooth(share_CR.max(axis=0), worlds.rates_R) >= SURE
    next_R = [_runner_up(worlds, best, at) if best >= 0 else (None, None) for at, best in enumerate(best_R.tolist())]
    same_R = [_no_difference(worlds, int(best_R[at]), *beside, at) for at, beside in enumerate(next_R)]
    found = []
    for start, end in _runs(4 * best_R + 2 * np.array(same_R) + sure_R):
        winner = int(best_R[start])
        if winner < 0:
            continue
        runner_up, margin = next_R[(start + end) // 2]
        last = end == len(best_R) - 1
        name = worlds.names[winner]
        region = Region(
            low_per_s=_begins(worlds.rates_R, start),
            high_per_s=None if last else _begins(worlds.rates_R, end + 1),
            winner=None if same_R[start] else name,
            runner_up=runner_up,
            margin=margin,
            certain=bool(sure_R[start]),
        )
        found.append(_Stretch(start, end, name, region))
    here = -1 if rate_per_s is None else nearest(worlds.rates_R, rate_per_s)
    return [_told(worlds, each) for each in _merged(_without_slivers(_merged(found, here), here), here)]


def _told(worlds: Worlds, stretch: _Stretch) -> _Stretch:
    """With the next best, and by how much, in its middle, which moves where others were merged into it."""
    if stretch.region.winner is None:
        return stretch
    runner_up, margin = _runner_up(worlds, worlds.names.index(stretch.best), (stretch.start + stretch.end) // 2)
    return replace(stretch, region=msgspec.structs.replace(stretch.region, runner_up=runner_up, margin=margin))


def _begins(rates_R: Floats, at: int) -> float:
    """Where that begins which is seen at the load `at` and not at the one before."""
    return float(rates_R[at] if at == 0 else np.sqrt(rates_R[at - 1] * rates_R[at]))


def _smooth(share_R: Floats, rates_R: Floats) -> Floats:
    """Means over loads within a factor of NEAR: every stair of one candidate is a moment of doubt, and no news."""
    near_RR = np.abs(np.log(rates_R[:, None] / rates_R[None, :])) <= np.log(NEAR)
    return np.asarray((near_RR * share_R).sum(axis=1) / near_RR.sum(axis=1))


def _merged(stretches: Sequence[_Stretch], here: int) -> list[_Stretch]:
    """Neighbours with one winner and one certainty are one region, and so is a sliver of another certainty."""
    found: list[_Stretch] = []
    for stretch in stretches:
        was = found[-1] if found else None
        alike = was is not None and was.meets(stretch) and was.region.winner == stretch.region.winner
        if was is not None and alike and (was.region.certain == stretch.region.certain or stretch.is_sliver(here)):
            found[-1] = was.up_to(stretch)
        else:
            found.append(stretch)
    return found


def _without_slivers(stretches: Sequence[_Stretch], here: int) -> list[_Stretch]:
    """A sliver of no difference is a neighbour's that is one of those, one of doubt the winner's on both sides."""
    found: list[_Stretch] = []
    runs = [list(run) for _, run in itertools.groupby(stretches, lambda each: each.region.winner)]
    for run, after in itertools.zip_longest(runs, runs[1:]):
        whole = run[0].up_to(run[-1])
        was = found[-1] if found and found[-1].meets(whole) else None
        then = after[0] if after is not None and whole.meets(after[0]) else None
        if whole.is_sliver(here):
            tie, doubt = whole.region.winner is None, not all(each.region.certain for each in run)
            inside = was is not None and then is not None and was.region.winner == then.region.winner is not None
            if was is not None and ((inside and doubt) or (tie and all(each.holds(was.best) for each in run))):
                found[-1] = was.up_to(whole)
                continue
            if then is not None and tie and all(each.holds(then.best) for each in run):
                after[0] = then.down_to(whole)
                continue
        found += run
    return found


def handovers_of(worlds: Worlds, rate_per_s: float | None = None) -> list[Handover]:
    """Every change of the choice from one region to another, with the band in which it lies.

    Where there is no difference between the choice so far and another, it stays the choice. `rate_per_s`: as
    `regions_of` takes it.
    """
    found: list[Handover] = []
    was: _Stretch | None = None
    start, choice = 0, ""
    for now in _stretches(worlds, rate_per_s):
        # Where nobody can serve, nobody takes over.
        apart = was is None or not was.meets(now)
        if not apart and not now.holds(choice):
            found.append(_handover(worlds, choice, now, start))
        if apart or not now.holds(choice):
            start, choice = now.start, now.best
        was = now
    return found


def _handover(worlds: Worlds, choice: str, now: _Stretch, start: int) -> Handover:
    """From `choice`, which was the best from the load `start` on, to who is best in `now`."""
    left, right = worlds.names.index(choice), worlds.names.index(now.best)
    here = slice(start, now.end + 1)
    winners_DR, rates_R = worlds.winners_DR[:, here], worlds.rates_R[here]
    span = span_of(_thresholds(winners_DR == left, winners_DR == right, rates_R))
    span = bracketed(now.region.low_per_s, span.least, span.most)
    # Through logarithms and back, an end of the loads is no longer itself to the last digit.
    low, high = float(worlds.rates_R[0]) * (1 + ROUNDING), float(worlds.rates_R[-1]) * (1 - ROUNDING)
    clipped = (start == 0 and span.least <= low) or (here.stop == len(worlds.rates_R) and span.most >= high)
    return Handover(choice, now.best, span, clipped)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the contenders stand at one load. `winner` None: nobody can serve it.

    `sure`: share of the worlds in which the winner wins; where the two are the `same`, either of them. `margin`: cost
    of the runner-up over the winner's, as predicted, with its band. `same`: they cost the same and answer as fast.
    `slower`: whether the runner-up answers slower as predicted, None where somebody's speed is not known.
    """

    winner: str | None
    sure: float
    runner_up: str | None = None
    margin: Estimate | None = None
    same: bool = False
    slower: bool | None = None


def standing_at(worlds: Worlds, rate_per_s: float) -> Standing:
    """Who wins at the load nearest to `rate_per_s`, and by how much."""
    at = nearest(worlds.rates_R, rate_per_s)
    index, sure = winner_at(worlds, rate_per_s)
    if index < 0:
        return Standing(None, sure)
    name, margin = _runner_up(worlds, index, at)
    same = _no_difference(worlds, index, name, margin, at)
    if same and name is not None:
        sure += float((worlds.winners_DR[:, at] == worlds.names.index(name)).mean())
    if name is not None and margin is not None:
        value_D = ratios(*(worlds.usd_per_hour_CDR[i, :1, at] for i in (worlds.names.index(name), index)))
        if len(value_D):
            margin = bracketed(float(value_D[0]), margin.least, margin.most)
    mine, other = (float(worlds.e2e_s_CDR[i, 0, at]) for i in (index, worlds.names.index(name or worlds.names[index])))
    slower = bool(other > mine) if np.isfinite(mine) and np.isfinite(other) else None
    return Standing(worlds.names[index], sure, name, margin, same, slower)


def winner_at(worlds: Worlds, rate_per_s: float) -> tuple[int, float]:
    """Index of the winner at the load nearest to `rate_per_s` (-1: nobody) and the share of worlds it wins in."""
    at = nearest(worlds.rates_R, rate_per_s)
    best_R, share_CR = best_of(worlds.winners_DR[:, at : at + 1], len(worlds.names))
    best = int(best_R[0])
    return best, float(share_CR[best, 0] if best >= 0 else 1.0 - share_CR.sum())


def _thresholds(left_DR: Floats, right_DR: Floats, rates_R: Floats) -> Floats:
    """In each draw the load that best parts `left`'s wins, below, from `right`'s, above.

    Staircases let two candidates take turns around their crossing; one threshold that errs least is what a reader
    means by it. Ties go to the middle.
    """
    ones = np.ones((left_DR.shape[0], 1))
    below = np.cumsum(np.hstack([0 * ones, left_DR]), axis=1)
    above = np.cumsum(np.hstack([right_DR, 0 * ones])[:, ::-1], axis=1)[:, ::-1]
    score = below + above
    best = score >= score.max(axis=1, keepdims=True)
    position = (best.argmax(axis=1) + score.shape[1] - 1 - best[:, ::-1].argmax(axis=1)) / 2
    steps = np.arange(len(rates_R))
    # Position i lies between loads i - 1 and i.
    return np.asarray(np.exp(np.interp(position - 0.5, steps, np.log(rates_R))))


def _runner_up(worlds: Worlds, winner: int, at: int) -> tuple[str | None, Estimate | None]:
    """The next best at one load, and its cost over the winner's: the medians of all worlds.

    One world alone may stand on the edge of a stair there, and say twice or half. Of those that cost the same it is the
    one that answers fastest, as of winners; else the order of the study's candidates would tell.
    """
    costs = np.median(worlds.usd_per_hour_CDR[:, :, at], axis=1)
    costs[winner] = np.inf
    if not np.isfinite(costs.min()):
        return None, None
    speeds = np.nan_to_num(worlds.e2e_s_CDR[:, 0, at], nan=UNKNOWN_S)
    other = int(np.where(costs <= costs.min() * (1.0 + COST_TIE), speeds, np.inf).argmin())
    ratio_D = ratios(worlds.usd_per_hour_CDR[other, :, at], worlds.usd_per_hour_CDR[winner, :, at])
    if not len(ratio_D):
        return worlds.names[other], None
    low, middle, high = np.quantile(ratio_D, [0.025, 0.5, 0.975]).tolist()
    return worlds.names[other], Estimate(value=middle, low=low, high=high)


def _no_difference(worlds: Worlds, winner: int, runner_up: str | None, margin: Estimate | None, at: int) -> bool:
    """Same bill and same speed in the predicted world."""
    if runner_up is None or margin is None or abs(margin.value - 1.0) > max(SAME_COST, COST_TIE):
        return False
    speeds = worlds.e2e_s_CDR[:, 0, at]
    mine, other = speeds[winner], speeds[worlds.names.index(runner_up)]
    return bool(np.isfinite(mine) and np.isfinite(other) and abs(np.log(other / mine)) < SPEED_TIE)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *edges.tolist()]
    return list(zip(starts, [*(e - 1 for e in edges.tolist()), len(values) - 1], strict=True))
