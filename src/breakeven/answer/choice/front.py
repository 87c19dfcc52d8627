"""The Pareto front of quality, speed and memory, the pick on it, and which few of the rest are worth a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from breakeven.answer.choice.search import Runnable
from breakeven.answer.choice.uses import Wish
from breakeven.answer.choice.worlds import DrawnWorlds, Floats
from breakeven.results.choose import ChoiceKinds, Role

MOST_ROWS = 7
EQUAL = 0.8
"""A pick that is better than another model in fewer worlds than this is not told apart from it."""
POINTS = 0.5
"""Formats of one model whose quality lies within so many points are as good; the smallest of them is taken."""
FASTER = 1.5
SMALLER = 0.6
"""How much a row must win in speed, or of the pick's memory take, to stand there for it."""
LEAST_WINS = 0.02
"""A model that is the best in fewer worlds has no row for that alone."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One option that is worth a row, and why."""

    option: int
    role: Role


@dataclass(frozen=True)
class ParetoFront:
    """What the draws say of the options that are allowed. `wins_M`: share of worlds that a model wins. `value_M`: its
    quality in the middle world, nothing in those where it does not keep the limits. `beats_M`: share of worlds in which
    the pick does better than that model. `pick`: -1 where nothing is allowed."""

    pick: int
    wins_M: Floats
    value_M: Floats
    beats_M: Floats
    on_O: NDArray[np.bool_]
    allowed_O: NDArray[np.bool_]
    undecided: float
    """Worlds in which nothing keeps the limits."""


def front_of(worlds: DrawnWorlds, memory_O: Floats, scores_WM: Floats, allowed_O: NDArray[np.bool_]) -> ParetoFront:
    """The front over allowed options. `scores_WM`: as `DrawnWorlds.scores_WM`."""
    n_models = len(worlds.models)
    some_W = np.isfinite(scores_WM).any(axis=1)
    best_W = scores_WM.argmax(axis=1)
    wins_M = np.bincount(best_W[some_W], minlength=n_models) / len(scores_WM)
    there_M = np.zeros(n_models, dtype=np.bool_)
    there_M[worlds.of_O[allowed_O]] = True
    on_O = _pareto(worlds, memory_O, allowed_O)
    if not there_M.any():
        return ParetoFront(-1, wins_M, wins_M, np.ones(n_models), on_O, allowed_O, float(1 - some_W.mean()))
    value_M = np.where(there_M, np.median(np.maximum(scores_WM, 0.0), axis=0), -np.inf)
    best = int(value_M.argmax())
    alike_M = there_M & (_beats(best, scores_WM) < EQUAL)
    # A guess from size wins many worlds by its wide band alone: of equals, one with scores comes first.
    pick = max(np.flatnonzero(alike_M), key=lambda m: (worlds.scored_M[m], value_M[m]))
    beats_M = _beats(int(pick), scores_WM)
    return ParetoFront(int(pick), wins_M, value_M, beats_M, on_O, allowed_O, float(1 - some_W.mean()))


SPEEDS = tuple(2.0 ** (i / 2) for i in range(19))
"""Least speeds at which the kinds are asked again, in tokens/s: 1 to 512."""


def kinds_of(
    front: ParetoFront, worlds: DrawnWorlds, moe_M: NDArray[np.bool_], wish: Wish, placed_O: NDArray[np.bool_]
) -> ChoiceKinds:
    """Which kind wins how many worlds, and at which least speed that turns. `placed_O`: options that may fit."""
    moe, dense = float(front.wins_M[moe_M].sum()), float(front.wins_M[~moe_M].sum())
    found: list[float] = []
    for speed in SPEEDS:
        scores_WM = worlds.scores_WM(replace(wish, min_speed=speed), placed_O)
        routed, plain = (scores_WM[:, some].max(axis=1, initial=-np.inf) for some in (moe_M, ~moe_M))
        more = int((routed > plain).sum()) - int((plain > routed).sum())
        if more and (more > 0) != (moe > dense):
            found.append(speed)
    nearest = min(found, key=lambda speed: abs(math.log(speed / wish.min_speed)), default=None)
    to: Literal["moe", "dense"] = "dense" if moe > dense else "moe"
    return ChoiceKinds(moe=moe, dense=dense, flips_at=nearest, flips_to=None if nearest is None else to)


def _beats(model: int, scores_WM: Floats) -> Floats:
    """Share of worlds in which a model does better than each; worlds in which both do alike count half."""
    own = scores_WM[:, [model]]
    return np.asarray(((own > scores_WM) + 0.5 * (own == scores_WM)).mean(axis=0))


def _pareto(worlds: DrawnWorlds, memory_O: Floats, allowed_O: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Options that no other allowed one equals or betters in all of quality, speed and memory."""
    on = np.zeros(len(allowed_O), dtype=np.bool_)
    order = np.flatnonzero(allowed_O)
    order = order[np.lexsort((memory_O[order], -worlds.speed_O[order], -worlds.quality_O[order]))]
    speed, memory = np.empty(0), np.empty(0)
    for o in order:
        # All before it are at least as able.
        if not np.any((speed >= worlds.speed_O[o]) & (memory <= memory_O[o])):
            on[o] = True
            speed, memory = np.append(speed, worlds.speed_O[o]), np.append(memory, memory_O[o])
    return on


def format_of(model: int, worlds: DrawnWorlds, memory_O: Floats, allowed_O: NDArray[np.bool_]) -> int:
    """Of a model's allowed options the smallest that is as good as its best."""
    own = np.flatnonzero(allowed_O & (worlds.of_O == model))
    good = own[worlds.quality_O[own] >= worlds.quality_O[own].max() - POINTS]
    return int(min(good, key=lambda o: (memory_O[o], -worlds.quality_O[o])))


def standings(front: ParetoFront, worlds: DrawnWorlds, options: tuple[Runnable, ...], memory_O: Floats) -> list[Seat]:
    """The pick first, then what is equal to it, the best of the other kind, the faster, the smaller, the next."""
    pick = format_of(front.pick, worlds, memory_O, front.allowed_O)
    chosen = [Seat(pick, "pick")]
    shown = {front.pick}

    def add(role: Role, option: int | None, most: int = MOST_ROWS) -> None:
        if option is not None and len(chosen) < most and int(worlds.of_O[option]) not in shown:
            chosen.append(Seat(option, role))
            shown.add(int(worlds.of_O[option]))

    def ablest(some_O: NDArray[np.bool_]) -> int | None:
        own = np.flatnonzero(some_O)
        return int(own[worlds.quality_O[own].argmax()]) if len(own) else None

    there = {int(m) for m in worlds.of_O[front.allowed_O]}
    by_value = sorted(there - shown, key=lambda m: -front.value_M[m])
    equal = [m for m in by_value if front.beats_M[m] < EQUAL]
    for model in equal[:2]:
        add("equal", format_of(model, worlds, memory_O, front.allowed_O))
    moe_O = np.array([option.shape.moe for option in options])
    if not any(moe_O[each.option] != moe_O[pick] for each in chosen):
        add("other kind", ablest(front.on_O & (moe_O != moe_O[pick])))
    add("faster", ablest(front.on_O & (worlds.speed_O >= FASTER * worlds.speed_O[pick])))
    add("smaller", ablest(front.on_O & (memory_O <= SMALLER * memory_O[pick])))
    for model in by_value:
        if front.wins_M[model] >= LEAST_WINS:
            add("next", format_of(model, worlds, memory_O, front.allowed_O))
    return chosen


def equals_of(front: ParetoFront, worlds: DrawnWorlds) -> list[str]:
    """Models that cannot be told from the pick, the ablest first."""
    there = sorted({int(m) for m in worlds.of_O[front.allowed_O]} - {front.pick})
    found = [m for m in there if front.beats_M[m] < EQUAL]
    return [worlds.models[m] for m in sorted(found, key=lambda m: -front.value_M[m])]
