"""What a comparison says while a neighbour takes cores at random moments, and what it should say.

    python bench/noise.py --simulate [--runs 1000]    estimators in a simulated world: the table of docs/noise.md
    python bench/noise.py --aa --out DIR              a model against itself, quiet and with 30 % taken: false winners
    python bench/noise.py --ratio --out DIR           the small pair quiet, then with a neighbour: 20 runs of 60 s
    python bench/noise.py --demo --out DIR            the demo pair quiet and with 30 % taken, three times each
    python bench/noise.py --summary --out DIR         what the runs in DIR say, without running any

Every finished run is a line of DIR/runs.jsonl; a second call goes on where the first was stopped. `--shares 0.1,0.6`
asks for other neighbours than 0.3, `--budget 20` for shorter runs. Nothing else should run on the machine meanwhile.

The neighbour burns one core or more, drawn anew for each spell; spells and the rests between them are exponential, so
that over time it takes the share of all cores that was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import breakeven
from breakeven.measure.paired.pairs import LEAST_QUIET, PROCESS_FLOOR
from breakeven.measure.paired.plan import Enough, LoadSoFar, Plan, next_load
from breakeven.results.comparison import Comparison
from breakeven.stats import robust
from breakeven.stats.intervals import MIN_PAIRS, T_975, T_995, student
from breakeven.stats.percentiles import wilson

SMALL = ("granite-3.1-1b-a400m", "smollm2-360m")
DEMO = ("olmoe-1b-7b", "llama-3.2-1b")
THEMSELVES = ("smollm2-135m", "granite-3.1-1b-a400m")
"""Compared with themselves in turn: a dense model and a MoE."""
SPELL_S = 1.5
"""Mean length of a spell of the neighbour: about a block, so that it hits one of a pair as often as both."""
DECODE = "decode_tokens_per_s"
ASIDE_S = 12.0
"""Of a run's minute, for loading and leaving."""


def spells(share: float, cores: int, seed: int) -> Iterator[tuple[float, float, int]]:
    """(rest, length, cores) of one spell after another; over time `share` of all cores is taken."""
    rng = np.random.default_rng(seed)
    mean_cores = (cores + 1) / 2 / cores
    rest_s = SPELL_S * max(0.0, mean_cores / share - 1)
    while True:
        yield float(rng.exponential(rest_s)), float(rng.exponential(SPELL_S)), int(rng.integers(1, cores + 1))


def burn(core: int, share: float, cores: int, seed: int, start: float) -> None:
    """Be the neighbour's hand on one core: the same spells as every other, and busy in those that need this many."""
    at = start
    for rest, length, wanted in spells(share, cores, seed):
        at += rest
        time.sleep(max(0.0, at - time.monotonic()))
        at += length
        if wanted > core:
            while time.monotonic() < at:
                math.factorial(300)
        else:
            time.sleep(max(0.0, at - time.monotonic()))


@contextlib.contextmanager
def neighbour(share: float, seed: int) -> Iterator[None]:
    """Somebody else on this machine, for as long as this lasts."""
    cores = os.cpu_count() or 1
    start = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    hands = [spawn.Process(target=burn, args=(i, share, cores, seed, start), daemon=True) for i in range(cores)]
    for hand in hands if share > 0 else []:
        hand.start()
    try:
        yield
    finally:
        for hand in hands if share > 0 else []:
            hand.kill()
            hand.join()


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison to make; `name` is its key in the file."""

    mode: str
    models: tuple[str, str]
    share: float
    number: int
    budget_s: float

    @property
    def name(self) -> str:
        return f"{self.mode}/{self.models[0]}/{self.models[1]}/{self.share:g}/{self.budget_s:g}/{self.number}"


def made(run: Run) -> dict[str, Any]:
    """Make the comparison beside its neighbour; what it said, as one line of the file."""
    streams = (1,) if run.mode == "aa" else (1, 4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, neighbour(run.share, run.number):
        result = breakeven.compare(
            list(run.models),
            streams=streams,
            prompt_tokens=32,
            output_tokens=32,
            precision=0.02,
            budget_s=run.budget_s,
            seed=run.number,
            out=Path(directory) / "out",
            look_inside=False,
        )
    return {"name": run.name, **_told(run, result), "wall_s": round(time.monotonic() - began, 1)}


def _told(run: Run, result: Comparison) -> dict[str, Any]:
    pairs = [p for p in result.pairs if p.metric == DECODE]
    return {
        "mode": run.mode,
        "models": list(run.models),
        "share": run.share,
        "winner": result.verdict.winner,
        "winners": [p.winner for p in pairs],
        "stopped": result.stopped_because,
        "measured_s": round(result.measured_s, 1),
        "flagged": result.noise.flagged,
        "blocks": result.noise.blocks,
        "loads": {
            str(p.streams): [p.ratio.value, p.ratio.low, p.ratio.high, p.ratio.n, p.left_out, p.disturbed]
            for p in pairs
        },
    }


def asked_runs(asked: argparse.Namespace) -> list[Run]:
    """All runs of what was asked for, the kinds of neighbour taking turns."""
    shares = [float(share) for share in asked.shares.split(",")]
    if asked.aa:
        n, budget = asked.runs or 40, asked.budget or 60.0 - ASIDE_S
        kinds = [0.0, *(s for s in shares if s)]
        return [Run("aa", (THEMSELVES[i % 2],) * 2, share, i, budget) for i in range(n) for share in kinds]
    if asked.ratio:
        n, budget = asked.runs or 20, asked.budget or 60.0
        quiet = [Run("ratio", SMALL, 0.0, i, budget) for i in range(min(5, n))]
        return [*quiet, *(Run("ratio", SMALL, share, i, budget) for i in range(n) for share in shares if share)]
    n, budget = asked.runs or 3, asked.budget or 175.0
    return [Run("demo", DEMO, share, i, budget) for i in range(n) for share in [0.0, *(s for s in shares if s)]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a line that a kill cut short is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def summary(lines: Sequence[dict[str, Any]]) -> list[str]:
    """False winners by neighbour; and how far ratios beside a neighbour are from the quiet ones, by load."""
    said = []
    for share in sorted({line["share"] for line in lines if line["mode"] == "aa"}):
        mine = [line for line in lines if line["mode"] == "aa" and line["share"] == share]
        wrong = sum(any(line["winners"]) for line in mine)
        told = wilson(wrong, len(mine))
        longest = max(line["wall_s"] for line in mine)
        band = f"{told.low:.0%} to {told.high:.0%}"
        who = f"A/A, neighbour {share:.0%}"
        said.append(f"{who}: {wrong} of {len(mine)} named a winner ({band}); the longest took {longest:.0f} s")
    for mode in ("ratio", "demo"):
        runs = [line for line in lines if line["mode"] == mode]
        for load in sorted({load for line in runs for load in line["loads"]}, key=int):
            at = [(line["share"], line["loads"][load]) for line in runs if load in line["loads"]]
            quiet = [told[0] for share, told in at if share == 0]
            if not quiet:
                continue
            truth = statistics.median(quiet)
            said.append(f"{mode}, {load} streams, quiet: {truth:.3f} (runs from {min(quiet):.3f} to {max(quiet):.3f})")
            for share in sorted({share for share, _ in at if share}):
                mine = [told for each, told in at if each == share]
                near = sum(abs(told[0] / truth - 1) <= 0.05 for told in mine)
                held = sum(told[1] is not None and told[1] <= truth <= told[2] for told in mine)
                wide = statistics.median((t[2] - t[1]) / 2 / t[0] if t[1] is not None else math.inf for t in mine)
                pairs, left, kept = (statistics.mean(t[i] for t in mine) for i in (3, 4, 5))
                said.append(
                    f"{mode}, {load} streams, neighbour {share:.0%}: {near} of {len(mine)} within 5 %, the interval "
                    f"holds the quiet ratio in {held}; median half-width {wide:.1%}; {pairs:.0f} pairs, {left:.0f} "
                    f"left out, {kept:.0f} disturbed"
                )
    return said


# The simulated world: a pair's log ratio is two blocks' noise, and what a neighbour's spells did to their times.

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
    return mean, half, half, abs(mean) > math.hypot(student(T_995, len(logs)) * error, PROCESS_FLOOR)


def trimmed_of(logs: np.ndarray) -> Interval:
    """The mean without the outer fifths with its winsorised variance alone."""
    cut = int(robust.TRIMMED * len(logs) + 1e-9) if len(logs) >= robust.TRIMMED_FROM else 0
    middle = float(np.sort(logs)[cut : len(logs) - cut].mean())
    half = robust._trimmed_error(logs, T_975)
    return middle, half, half, abs(middle) > math.hypot(robust._trimmed_error(logs, T_995), PROCESS_FLOOR)


def ranked_of(logs: np.ndarray) -> Interval:
    """Hodges-Lehmann with the signed-rank interval alone, and Student's t for values too few to have one."""
    walsh = robust._walsh(logs)
    middle, ends = float(np.median(walsh)), []
    for table, tail in ((T_975, 0.025), (T_995, 0.005)):
        rank = robust.least_rank(len(logs), tail)
        half = student(table, len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        ends.append((middle - walsh[rank - 1], walsh[-rank] - middle) if rank else (half, half))
    (below, above), sure = ends
    return middle, float(below), float(above), abs(middle) > math.hypot(sure[middle < 0], PROCESS_FLOOR)


def chosen_of(logs: np.ndarray) -> Interval:
    """What `stats.robust` does."""
    middle, below, above = robust._about(logs, T_975, 0.025)
    return middle, below, above, robust.differs(np.exp(logs).tolist(), PROCESS_FLOOR)


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
            below, above = math.hypot(below, PROCESS_FLOOR), math.hypot(above, PROCESS_FLOOR)
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


def simulate(runs: int) -> None:
    print(f"| world | {' | '.join(ESTIMATORS)} |\n|---|{'---|' * len(ESTIMATORS)}")
    for label, world in WORLDS.items():
        print(f"| {label} | {' | '.join(tabled(world, runs))} |", flush=True)
    for n in (3, 4, 5, 6, 8, 12, 20, 40):
        print(f"| {n} pairs, normal | {' | '.join(tabled(World(), runs, n))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for mode in ("simulate", "aa", "ratio", "demo", "summary"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/noise"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--budget", type=float, help="seconds measured in each run")
    parser.add_argument("--shares", default="0.3", help="of all cores that the neighbour takes, comma-separated")
    asked = parser.parse_args()
    if asked.simulate:
        simulate(asked.runs or 1000)
        return
    path = asked.out / "runs.jsonl"
    if asked.aa or asked.ratio or asked.demo:
        asked.out.mkdir(parents=True, exist_ok=True)
        done = {line["name"] for line in read_lines(path)}
        for run in asked_runs(asked):
            if run.name not in done:
                line = made(run)
                with path.open("a") as file:
                    # A line that a kill cut short stays alone.
                    cut = path.stat().st_size and not path.read_bytes().endswith(b"\n")
                    file.write(("\n" if cut else "") + json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    elif not asked.summary:
        parser.error("give --simulate, --aa, --ratio, --demo or --summary")
    for text in summary(read_lines(path)):
        print(text)


if __name__ == "__main__":
    main()
