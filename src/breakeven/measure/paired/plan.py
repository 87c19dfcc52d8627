"""What to measure next, as a pure function of what has been measured: rounds of interleaved blocks.

A round is one block of each candidate at one load, back to back. Even rounds go forward, odd rounds backward
(A B, B A, ...), so slow drift hits both sides of a ratio alike. Loads take turns, so that a run stopped at any moment
has spread its time over all of them. A run ends by precision or by budget, never because a difference showed up:
stopping at the first interval that excludes 1 would find differences where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_ROUNDS = 3
"""Pairs below which there is no interval."""
SETTLED_ROUNDS = 4
"""Rounds before a very narrow interval is believed: three values agree by accident too often."""
SURE_ROUNDS = 6
"""Rounds before one that is just narrow enough is believed. A run that ends as soon as its interval is narrow picks the
moments when the values happen to agree: with four rounds its 95 % were 91 % in `bench/noise_simulated.py`."""
VERY_NARROW = 1 / 3
"""Of the precision asked."""
FURTHEST_AHEAD = 2
"""How many times the rounds of any other load the one with the widest interval may have."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The question: which loads, how long the requests, how precisely, and for how long at most."""

    streams: tuple[int, ...] = (1, 2, 4, 8)
    prompt_tokens: int = 128
    output_tokens: int = 64
    precision: float = 0.02
    """Relative half-width of the 95 % interval on every pair's decode ratio."""
    budget_s: float = 360.0
    """Time spent measuring; writing and loading weights are not in it."""
    seed: int = 0
    texts: tuple[str, ...] = ()
    """A person's own prompts, to make prompts of `prompt_tokens` of; empty: the built-in passages."""


@dataclass(frozen=True, slots=True)
class LoadSoFar:
    """How far one load is: rounds finished, the widest pair's relative half-width, seconds a round takes, if known."""

    streams: int
    rounds: int
    half_width: float
    """Of decode ratios, by which a run ends."""
    round_s: float | None
    widest: float = 0.0
    """Half-width of any ratio that is looked at, where wider: prefill's as well."""

    def known_to(self, precision: float) -> bool:
        """Whether it needs no more rounds."""
        if self.rounds < SURE_ROUNDS:
            return self.rounds >= SETTLED_ROUNDS and self.half_width <= VERY_NARROW * precision
        return self.half_width <= precision


@dataclass(frozen=True, slots=True)
class Enough:
    """The run is over. `because`: precision or budget."""

    because: str


def next_load(plan: Plan, loads: Sequence[LoadSoFar], elapsed_s: float) -> int | Enough:
    """The number of streams of the next round, or why there is none.

    Loads without an interval come first, cheapest first, for they may be all the budget buys; then whichever has the
    fewest rounds, until each has enough for its width to say something; then the one whose interval is widest, as long
    as no other falls behind. A load whose next round would pass the budget is left out, but the very first round always
    runs.
    """
    open_loads = [x for x in loads if not x.known_to(plan.precision)]
    if not open_loads:
        return Enough("precision")
    if not any(x.rounds for x in loads):
        return min(x.streams for x in open_loads)
    left = plan.budget_s - elapsed_s
    affordable = [x for x in open_loads if _expected_s(x, loads) <= left]
    if not affordable:
        return Enough("budget")
    unsettled = [x for x in affordable if x.rounds < MIN_ROUNDS]
    if unsettled:
        return min(unsettled, key=lambda x: x.streams).streams
    # Widths of few rounds are mostly chance: what they send the budget to would have its interval narrowed by chance.
    most = max(x.rounds for x in affordable)
    behind = [x for x in affordable if x.rounds < SURE_ROUNDS or FURTHEST_AHEAD * x.rounds < most]
    if behind:
        return min(behind, key=lambda x: (x.rounds, x.streams)).streams
    return max(affordable, key=lambda x: (max(x.half_width, x.widest), -x.rounds, -x.streams)).streams


def _expected_s(load: LoadSoFar, loads: Sequence[LoadSoFar]) -> float:
    """Seconds its next round will take: as its last one, else scaled from the nearest smaller load."""
    if load.round_s is not None:
        return load.round_s
    known = [x for x in loads if x.round_s is not None]
    nearest = max(known, key=lambda x: x.streams)
    return (nearest.round_s or 0.0) * load.streams / nearest.streams


MOST_ROUNDS_A_TURN = 8
"""Past these the spread between turns, each with its engines started afresh, outweighs that within one."""


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """What every candidate does between its load and its unload: loads by their streams, each this many rounds."""

    streams: tuple[int, ...]
    rounds: int


def next_turn(plan: Plan, loads: Sequence[LoadSoFar], elapsed_s: float) -> TurnPlan | Enough:
    """The next turn of candidates that do not fit side by side, or why there is none.

    `loads`: with turns in the place of rounds, and at least one with the seconds of a round, guessed before the first
    turn. As in `next_load` an end comes by precision or budget alone. As many turns as an interval needs always run,
    with the smallest load at least; a load is left out, the largest first, when such turns of it would pass the budget.
    A turn then has as many rounds as leave time for the turns still wanted: loading costs more than measuring.
    """
    open_loads = [x for x in loads if not x.known_to(plan.precision)]
    if not open_loads:
        return Enough("precision")
    done = max(x.rounds for x in loads)
    left = plan.budget_s - elapsed_s
    chosen: list[int] = []
    round_s = 0.0
    for load in sorted(open_loads, key=lambda x: x.streams):
        together_s = round_s + _expected_s(load, loads)
        # Engines that were loaded for fewer turns than an interval needs were loaded for nothing.
        if max(1, MIN_ROUNDS - load.rounds) * together_s <= left or (not chosen and done < MIN_ROUNDS):
            chosen.append(load.streams)
            round_s = together_s
    if not chosen:
        return Enough("budget")
    # Twice as many before anything was measured: a guess is a guess, and noise repeats blocks.
    wanted = max(1, SETTLED_ROUNDS - done) * (1 if done else 2)
    rounds = int(left / (wanted * round_s)) if round_s > 0 else MOST_ROUNDS_A_TURN
    return TurnPlan(tuple(chosen), min(MOST_ROUNDS_A_TURN, max(1, rounds)))


def order(round_number: int, n_candidates: int) -> list[int]:
    """Indices of the candidates in the order their blocks run in this round."""
    forward = list(range(n_candidates))
    return forward if round_number % 2 == 0 else forward[::-1]
