"""Which estimator a comparison needs: all of them in a simulated world, with the rules of the real runner.

    python bench/noise_simulated.py [--runs 1000]    the table of docs/noise.md

A pair's log ratio is two blocks' noise, and what a neighbour's spells did to their times. `bench/noise.py` makes the
same comparisons on a real machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from noise import SPELL_S

from breakeven.measure.paired.pairs import LEAST_QUIET
from breakeven.measure.paired.plan import Enough, LoadSoFar, Plan, next_load
from breakeven.stats import robust
from breakeven.stats.intervals import MIN_PAIRS, T_975, T_995, student

FLOOR = 0.005
"""Allowed for two processes of one file, which are alike in this world: next to nothing, to judge estimators."""

Interval = tuple[float, float, float, bool]
"""Centre, below, above, and whether the 99 % interval excludes 0."""


@dataclass(frozen=True, slots=True)
class World:
    """`share` of the time a neighbour slows blocks by 30 to 70 %. `seen`: blocks it touches are flagged.

    `spread`: of one block, `tails` degrees of freedom of its Student's t (0: normal). `drift`: growth of both rates
    over the run. `follow`: correlation of neighbouring blocks. `uneven`: how much more the first candidate suffers.
    """

    share: float = 0.0
    seen: bool = True
    spread: float = 0.02
    tails: int = 0
    drift: float = 0.0
    follow: float = 0.0
    uneven: float = 1.0


WORLDS = {
    "normal, 2 %": World(),
    "normal, 5 %": World(spread=0.05),
    "normal, 0.5 %": World(spread=0.005),
    "heavy tails (t, 3)": World(tails=3),
    "neighbour 10 %": World(0.1),
    "neighbour 30 %": World(0.3),
    "neighbour 60 %": World(0.6),
    "neighbour 30 %, MoE suffers more": World(0.3, uneven=1.4),
    "unseen neighbour 10 %": World(0.1, seen=False),
    "unseen neighbour 30 %": World(0.3, seen=False),
    "drift of 20 %": World(drift=0.2),
    "neighbours correlate, 0.8": World(follow=0.8),
}


def mean_of(logs: np.ndarray) -> Interval:
    """The mean with Student's t, which is what was used before."""
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    half, mean = student(T_975, len(logs)) * error, float(logs.mean())
    return mean, half, half, abs(mean) > math.hypot(student(T_995, len(logs)) * error, FLOOR)


def trimmed_of(logs: np.ndarray) -> Interval:
    """The mean without the outer fifths with its winsorised variance alone."""
    cut = int(robust.TRIMMED * len(logs) + 1e-9) if len(logs) >= robust.TRIMMED_FROM else 0
    middle = float(np.sort(logs)[cut : len(logs) - cut].mean())
    half = robust._trimmed_error(logs, T_975)
    return middle, half, half, abs(middle) > math.hypot(robust._trimmed_error(logs, T_995), FLOOR)


def ranked_of(logs: np.ndarray) -> Interval:
    """Hodges-Lehmann with the signed-rank interval alone, and Student's t for values too few to have one."""
    walsh = robust._walsh(logs)
    middle, ends = float(np.median(walsh)), []
    for table, tail in ((T_975, 0.025), (T_995, 0.005)):
        rank = robust.least_rank(len(logs), tail)
        half = student(table, len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        ends.append((middle - walsh[rank - 1], walsh[-rank] - middle) if rank else (half, half))
    (below, above), sure = ends
    return middle, float(below), float(above), abs(middle) > math.hypot(sure[middle < 0], FLOOR)


def chosen_of(logs: np.ndarray) -> Interval:
    """What `stats.robust` does."""
    middle, below, above = robust._about(logs, T_975, 0.025)
    return middle, below, above, robust.differs(np.exp(logs).tolist(), FLOOR)


ESTIMATORS: dict[str, Callable[[np.ndarray], Interval]] = {
    "mean, all pairs": mean_of,
    "mean": mean_of,
    "trimmed": trimmed_of,
    "HL, ranks": ranked_of,
    "HL, wider of both": chosen_of,
}


@dataclass(slots=True)
class Clock:
    """One simulated machine."""

    world: World
    rng: np.random.Generator
    spells: list[tuple[float, float, float]]
    now_s: float = 0.0
    last: float = 0.0

    def block(self, seconds: float, suffers: float) -> tuple[float, bool]:
        """Log rate of a block of so many quiet seconds, and whether it was flagged."""
        start, left, touched = self.now_s, seconds, 0.0
        for begin, end, depth in self.spells:
            if end <= self.now_s:
                continue
            alone = min(left, max(0.0, begin - self.now_s))
            self.now_s, left = self.now_s + alone, left - alone
            if left <= 0:
                break
            speed = 1 - min(0.9, depth * suffers)
            beside = min(left / speed, end - self.now_s)
            self.now_s, left, touched = self.now_s + beside, left - beside * speed, touched + beside
            if left <= 0:
                break
        self.now_s += left
        took, w = self.now_s - start, self.world
        fresh = self.rng.standard_t(w.tails) if w.tails else self.rng.normal()
        self.last = w.follow * self.last + math.sqrt(1 - w.follow**2) * fresh
        noise = w.spread * self.last + w.drift * start / 60
        return math.log(seconds / took) + noise, w.seen and touched / took > 0.05


def clock(world: World, seed: int) -> Clock:
    rng = np.random.default_rng(seed)
    found, at = [], 0.0
    while world.share and at < 900:
        at += rng.exponential(SPELL_S * (1 / world.share - 1))
        end = at + rng.exponential(SPELL_S)
        found.append((at, end, rng.uniform(0.3, 0.7)))
        at = end
    return Clock(world, rng, found)


def simulated(world: World, name: str, seed: int, fixed: int | None) -> list[tuple[Interval, int]]:
    """A study of two loads, as the runner makes it: 60 s, blocks run again while flagged, ended by `next_load`.

    `fixed`: so many rounds of each load instead. Each load's interval, and its rounds.
    """
    machine, plan = clock(world, seed), Plan(streams=(1, 4), budget_s=60.0)
    lengths, rounds = {1: 0.5, 4: 1.5}, dict.fromkeys(plan.streams, 0)
    logs: dict[int, list[tuple[float, bool]]] = {1: [], 4: []}
    state = {n: LoadSoFar(n, 0, math.inf, None) for n in plan.streams}
    found: dict[int, Interval] = {}
    while True:
        if fixed is None:
            choice = next_load(plan, list(state.values()), machine.now_s)
        else:
            choice = next((n for n in plan.streams if rounds[n] < fixed), Enough("budget"))
        if isinstance(choice, Enough):
            return [(found[n], rounds[n]) for n in plan.streams if n in found]
        start, values, noisy = machine.now_s, [0.0, 0.0], False
        for who in (0, 1) if rounds[choice] % 2 == 0 else (1, 0):
            for _ in range(3):
                values[who], flagged = machine.block(lengths[choice], world.uneven if who == 0 else 1.0)
                if not flagged:
                    break
            noisy |= flagged
        rounds[choice] += 1
        logs[choice].append((values[0] - values[1], noisy))
        quiet = [value for value, loud in logs[choice] if not loud]
        enough = len(quiet) >= LEAST_QUIET and name != "mean, all pairs"
        entering = np.array(quiet if enough else [value for value, _ in logs[choice]])
        width = math.inf
        if len(entering) >= MIN_PAIRS:
            middle, below, above, winner = ESTIMATORS[name](entering)
            below, above = math.hypot(below, FLOOR), math.hypot(above, FLOOR)
            found[choice] = middle, below, above, winner
            width = (math.exp(above) - math.exp(-below)) / 2
        state[choice] = LoadSoFar(choice, rounds[choice], width, machine.now_s - start)


def tabled(world: World, runs: int, fixed: int | None = None) -> list[str]:
    """Cells of one world: false winners of studies, coverage, median half-width, share further than 5 % off."""
    cells = []
    for name in ESTIMATORS:
        studies = [simulated(world, name, seed, fixed) for seed in range(runs)]
        loads = [interval for study in studies for interval, _ in study]
        wrong = sum(any(interval[3] for interval, _ in study) for study in studies) / len(studies)
        covered = sum(-above <= middle <= below for middle, below, above, _ in loads) / len(loads)
        wide = statistics.median((below + above) / 2 for _, below, above, _ in loads)
        far = sum(abs(middle) > 0.05 for middle, *_ in loads) / len(loads)
        cells.append(f"{100 * wrong:.1f} / {100 * covered:.1f} / {100 * wide:.1f} / {100 * far:.0f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="studies in each world")
    runs = parser.parse_args().runs
    print(f"| world | {' | '.join(ESTIMATORS)} |\n|---|{'---|' * len(ESTIMATORS)}")
    for label, world in WORLDS.items():
        print(f"| {label} | {' | '.join(tabled(world, runs))} |", flush=True)
    for n in (3, 4, 5, 6, 8, 12, 20, 40):
        print(f"| {n} pairs, normal | {' | '.join(tabled(World(), runs, n))} |", flush=True)


if __name__ == "__main__":
    main()
