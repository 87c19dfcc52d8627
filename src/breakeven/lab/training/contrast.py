"""How surely one model learned more than another: losses by arm, seed and piece of text, and what chance makes of them.

Seeds are paired (same rows in the same order), so what a seed does to all arms alike is taken off first; what is left
over is noise, pooled over the arms (a two-way layout, Fisher 1935). The text that judges is a sample too, so its spread
is added in quadrature. A winner is named only at 99 %, as everywhere here; the interval that is shown is of 95 %.

Shapes: A arms, S seeds, B blocks of text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from breakeven.lab.corpus import Block
from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.intervals import (
    AT_99,
    MIN_PAIRS,
    T_975,
    T_995,
    mean_interval,
    quotient_estimate,
    student,
)

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference"]
_LEAST_FREEDOM = 2


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """Standard deviation of a training's loss by random numbers alone, and the degrees of freedom behind it."""

    deviation: float
    freedom: int

    @property
    def known(self) -> bool:
        """Whether there were trainings enough to tell."""
        return self.freedom >= _LEAST_FREEDOM

    @property
    def floor(self) -> float | None:
        """95 % of what two trainings of one shape differ by."""
        return student(T_975, self.freedom + 1) * math.sqrt(2) * self.deviation if self.known else None


@dataclass(frozen=True, slots=True)
class Contrast:
    """Loss of one arm more than the reference's, and what that says."""

    difference: Estimate
    verdict: Verdict | None


def seed_noise(losses_AS: Floats) -> SeedNoise:
    """What is left of losses when every arm's mean and every seed's mean are taken off."""
    arms, seeds = losses_AS.shape
    freedom = (arms - 1) * (seeds - 1)
    if freedom < 1:
        return SeedNoise(0.0, 0)
    left = losses_AS - losses_AS.mean(axis=1, keepdims=True) - losses_AS.mean(axis=0) + losses_AS.mean()
    return SeedNoise(math.sqrt(float((left**2).sum()) / freedom), freedom)


def contrast(
    nats_SB: Floats, reference_SB: Floats, tokens_B: Floats, blocks: Sequence[Block], noise: SeedNoise
) -> Contrast:
    """What an arm's loss differs by from the reference's, over seeds and over `blocks` of text."""
    seeds = len(nats_SB)
    over_B = (nats_SB - reference_SB).mean(axis=0)
    by_text = quotient_estimate(*runs_of(over_B, tokens_B, blocks))
    value = float(over_B.sum() / tokens_B.sum())
    if not noise.known or by_text.low is None or by_text.high is None:
        return Contrast(measured(value, None, None, seeds), None)
    half_text = (by_text.high - by_text.low) / 2
    error = noise.deviation * math.sqrt(2 / seeds)
    half = math.hypot(student(T_975, noise.freedom + 1) * error, half_text)
    sure = math.hypot(student(T_995, noise.freedom + 1) * error, AT_99 * half_text)
    verdict: Verdict = "no difference" if abs(value) <= sure else "better" if value < 0 else "worse"
    return Contrast(measured(value, value - half, value + half, seeds), verdict)


def runs_of(over_B: Floats, under_B: Floats, blocks: Sequence[Block]) -> tuple[list[Floats], list[Floats]]:
    """Values of blocks as runs, a document a run: neighbours in one may move together."""
    runs: dict[tuple[str, str, str], list[int]] = {}
    for number, block in enumerate(blocks):
        runs.setdefault((block.language, block.domain, block.document), []).append(number)
    return [over_B[run] for run in runs.values()], [under_B[run] for run in runs.values()]


def mean_of_seeds(values_S: Floats) -> Estimate:
    """A mean over seeds, with its interval where there are enough of them."""
    if len(values_S) < MIN_PAIRS:
        return measured(float(values_S.mean()), None, None, len(values_S))
    return measured(*mean_interval(values_S.tolist()), len(values_S))


def speed_up(
    losses_S: Floats, reference_S: Floats, short_S: Floats, steps: float, clock_S: Floats | None = None
) -> Estimate | None:
    """Times the tokens that the reference would need to reach an arm's loss.

    The reference's loss falls in a straight line over the logarithm of its tokens: `short_S` is its loss after a share
    `1 / steps` of them, each training with a schedule of its own. `clock_S`: times as fast the arm trains, seed by
    seed; then it is seconds that are compared. None where the reference learned nothing from more tokens.
    """
    slopes_S = (short_S - reference_S) / math.log(steps)
    if slopes_S.mean() <= 0:
        return None
    gains_S = reference_S - losses_S
    found = math.exp(_bounded(float(gains_S.sum() / slopes_S.sum())))
    clock = 1.0 if clock_S is None else float(np.exp(np.log(clock_S).mean()))
    if len(gains_S) < MIN_PAIRS or (slopes_S <= 0).any():
        return measured(found * clock, None, None, len(gains_S))
    quotient = quotient_estimate([gains_S], [slopes_S])
    assert quotient.low is not None
    assert quotient.high is not None
    halves = [quotient.value - quotient.low, quotient.high - quotient.value]
    if clock_S is not None:
        centre, low, high = mean_interval(np.log(clock_S).tolist())
        halves = [math.hypot(halves[0], centre - low), math.hypot(halves[1], high - centre)]
    centre = quotient.value + math.log(clock)
    low, high = (math.exp(_bounded(each)) for each in (centre - halves[0], centre + halves[1]))
    return measured(math.exp(_bounded(centre)), low, high, len(gains_S))


def _bounded(log: float) -> float:
    """Beyond a thousand times nothing is known, and no number grows past what a file can hold."""
    return min(max(log, -math.log(1000)), math.log(1000))
