"""How well a calibration predicts shapes it has not seen, on one machine: error by batch, coverage, which is faster.

    python bench/calibrated.py                      the steps kept in bench/data, measured on 2 cores on two days
    python bench/calibrated.py --measure DIR        probes and unseen models here, taking turns (30 minutes)

"machine" is the part of the median error that the measurements themselves are off by, from repeating them on several
visits; "model" is the rest. Steps that were measured on one visit (the older ones kept) do not tell.

Only the probes are fitted. The unseen models differ from them in width, depth, heads, head size, experts and number
types, and include published ones.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from breakeven.forecast.calibration.fit import errors_of, fit, leave_models_out, model_error, repeat_error
from breakeven.forecast.calibration.parameters import CPU_TILE, Observation, Phase, table
from breakeven.forecast.calibration.probes import SMALL, dense, loads_for, moe
from breakeven.forecast.terms import terms_of
from breakeven.measure.events import read_events
from breakeven.measure.progress import ProgressState
from breakeven.model.architecture import ModelSpec
from breakeven.model.resolve import resolve_spec
from breakeven.runs.calibrate import calibrate
from breakeven.runs.observed import observations_of
from breakeven.runs.probed import CalibrateOptions

KEPT = sorted((Path(__file__).parent / "data").glob("steps_2_cores*.json"))
UNSEEN: tuple[ModelSpec, ...] = (
    dense("d768x12", 768, 12, 3072, 12, 4, vocab=16384),
    dense("d1280x20", 1280, 20, 3584, 20, 5),
    dense("d2560x4", 2560, 4, 7168, 20, 4, 128),
    dense("d1024x18", 1024, 18, 4864, 14, 2, vocab=32768),
    dense("d1792x8", 1792, 8, 4864, 28, 7),
    moe("m768x12-e16k2", 768, 12, (16, 2, 1024), 12, 4),
    moe("m2048x4-e64k8", 2048, 4, (64, 8, 1024), 16, 16),
    moe("m1024x10-e128k8", 1024, 10, (128, 8, 256), 16, 2),
    moe("m1280x8-e32k8", 1280, 8, (32, 8, 512), 20, 4),
    moe("m1536x6-e8k1", 1536, 6, (8, 1, 2048), 12, 4),
)
PUBLISHED = ("smollm2-135m", "smollm2-360m", "qwen3-0.6b", "granite-3.1-1b-a400m", "llama-3.2-1b", "olmoe-1b-7b")
CLEAR = 0.05
"""Which of two is faster is asked where the true difference exceeds this."""


class Step(msgspec.Struct, frozen=True):
    """One step as kept."""

    model: str
    phase: Phase
    sequences: int
    tokens: float
    seconds: float
    n: int
    visits: tuple[float, ...] = ()


class Steps(msgspec.Struct, frozen=True):
    """A file of steps, and where they were measured."""

    what: str
    machine: str
    engine: str
    format: str
    date: str
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class Judged:
    """A step the fit had not seen: ln(predicted / measured), and the half width its interval had."""

    seen: Observation
    log_error: float
    half_width: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="DIR", help="measure here, and keep the log in DIR")
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds of measuring")
    asked = parser.parse_args()
    if asked.measure:
        report(judge(measured(asked.measure, asked.budget)))
        return
    specs = by_name()
    for file in KEPT:
        kept = msgspec.json.decode(file.read_bytes(), type=Steps)
        print(f"{kept.what}: {kept.machine}, {kept.engine}, {kept.format}, {kept.date}\n")
        found = [
            Observation(
                s.model,
                terms_of(specs[s.model], kept.format),
                s.phase,
                s.sequences,
                s.tokens,
                s.seconds,
                s.n,
                visits=s.visits,
            )
            for s in kept.steps
        ]
        report(judge(found))
        print()


def by_name() -> dict[str, ModelSpec]:
    """Probes, unseen shapes and published models."""
    return {spec.name: spec for spec in SMALL + UNSEEN} | {name: resolve_spec(name) for name in PUBLISHED}


def measured(directory: Path, budget_s: float) -> list[Observation]:
    """Probes and unseen models measured in one session, so that the machine's drift meets both alike."""
    specs = by_name()
    mixed = [s for pair in itertools.zip_longest(SMALL, UNSEEN + tuple(specs[n] for n in PUBLISHED)) for s in pair if s]
    options = CalibrateOptions(
        budget_s=budget_s, out=directory / "all.json", probes=tuple(mixed), loads=loads_for(gpu=False)
    )

    def say(state: ProgressState) -> None:
        print(f"{state.elapsed_s:6.0f} s  {state.phase} {state.subject}", flush=True)

    done = calibrate(options, say)
    return observations_of(
        read_events(done.log_path), {s.name: s for s in mixed}, done.profile.origin.format or "Q4_K_M"
    )


def judge(found: Sequence[Observation]) -> list[Judged]:
    """Fit the probes, predict everything else."""
    probes = [seen for seen in found if seen.model.startswith("probe-")]
    rest = [seen for seen in found if not seen.model.startswith("probe-")]
    fitted = fit(probes, CPU_TILE)
    widths = {(e.phase, e.kind): e.log_half_width for e in errors_of(leave_models_out(probes, fitted))}
    data = table(rest)
    errors = data.log_predicted(fitted.constants) - data.log_seconds
    print(f"{len(probes)} steps of probes fitted, noise {fitted.noise:.1%}; at prior: {', '.join(fitted.at_prior)}\n")
    return [Judged(s, float(e), widths[s.phase, s.kind]) for s, e in zip(rest, errors, strict=True)]


def report(judged: Sequence[Judged]) -> None:
    """Print the tables."""
    print(f"{'unseen':<26}{'models':>7}{'steps':>7}{'median':>9}{'machine':>9}{'model':>8}{'90 %':>8}{'covered':>9}")
    for phase in ("decode", "prefill"):
        for kind in ("dense", "moe"):
            _row(f"{phase}, {kind}", [j for j in judged if (j.seen.phase, j.seen.kind) == (phase, kind)])
    for sequences in sorted({j.seen.sequences for j in judged}):
        mine = [j for j in judged if j.seen.phase == "decode" and j.seen.sequences == sequences]
        _row(f"decode, B={sequences}", mine)
    _row("decode, all", [j for j in judged if j.seen.phase == "decode"])
    right, asked = pairs([j for j in judged if j.seen.phase == "decode"])
    print(f"\nWhich of two unseen models decodes faster, true difference above {CLEAR:.0%}: {right} of {asked} right")


def pairs(judged: Sequence[Judged]) -> tuple[int, int]:
    """Pairs of models at one load whose order was right, of those whose true difference is clear."""
    right = asked = 0
    for a, b in itertools.combinations(judged, 2):
        if (a.seen.sequences, a.seen.tokens) != (b.seen.sequences, b.seen.tokens):
            continue
        true = math.log(a.seen.seconds / b.seen.seconds)
        if abs(true) > math.log1p(CLEAR):
            asked += 1
            right += (true + a.log_error - b.log_error > 0) == (true > 0)
    return right, asked


def _row(name: str, judged: Sequence[Judged]) -> None:
    if judged:
        off = np.abs(np.expm1([j.log_error for j in judged]))
        covered = np.mean([abs(j.log_error) <= j.half_width for j in judged])
        models = len({j.seen.model for j in judged})
        median, repeat = float(np.median(off)), repeat_error([j.seen for j in judged])
        machine, model = ("-" if x is None else f"{x:.1%}" for x in (repeat, model_error(median, repeat)))
        row = f"{models:>7}{len(judged):>7}{median:>9.1%}{machine:>9}{model:>8}"
        print(f"{name:<26}{row}{np.quantile(off, 0.9):>8.1%}{covered:>9.0%}")


if __name__ == "__main__":
    main()
