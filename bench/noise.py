"""What a comparison says while a neighbour takes cores at random moments, and what it should say.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import breakeven
from breakeven.results.comparison import Comparison
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for mode in ("aa", "ratio", "demo", "summary"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/noise"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--budget", type=float, help="seconds measured in each run")
    parser.add_argument("--shares", default="0.3", help="of all cores that the neighbour takes, comma-separated")
    asked = parser.parse_args()
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
        parser.error("give --aa, --ratio, --demo or --summary")
    for text in summary(read_lines(path)):
        print(text)


if __name__ == "__main__":
    main()
