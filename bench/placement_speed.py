"""How well a calibration predicts unseen models with none, half and all of their experts in host memory.

    python bench/placement_speed.py OUT [--budget 120] [--small] [--again] [-- --rpc HOST:PORT]

Takes the llama-server that BREAKEVEN_LLAMA_SERVER names. Probes are measured and fitted, then other models are measured
in the same places and predicted; nothing of them is in the fit. Every step is the median over as many rounds as the
budget allows. Writes OUT/table.md, for docs/accuracy.md; `--again` reads the logs in OUT instead of measuring. Flags
behind `--` go to llama-server.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from breakeven.forecast.calibration.fit import Fitted, fit
from breakeven.forecast.calibration.parameters import Observation, table
from breakeven.forecast.calibration.probes import ProbeLoad, dense, moe
from breakeven.hardware.placement import placement_of
from breakeven.measure.events import read_events
from breakeven.model.architecture import ModelSpec
from breakeven.runs.calibrate import calibrate
from breakeven.runs.observed import finished, observations_of
from breakeven.runs.probed import CalibrateOptions, probes_placed

FORMAT = "Q4_0"
VOCAB = 1024
PROBES = (
    dense("placed-d512x6", 512, 6, 1536, 8, 2),
    moe("placed-m512x4-e8k2", 512, 4, (8, 2, 512), 8, 2),
    dense("placed-d256x12", 256, 12, 1024, 4, 2),
    moe("placed-m512x8-e16k4", 512, 8, (16, 4, 256), 8, 2),
    moe("placed-m768x4-e8k4", 768, 4, (8, 4, 512), 12, 4),
)
UNSEEN = (
    moe("unseen-m512x6-e16k2", 512, 6, (16, 2, 512), 8, 4),
    moe("unseen-m768x6-e8k2", 768, 6, (8, 2, 768), 12, 4),
    moe("unseen-m512x5-e8k3", 512, 5, (8, 3, 1024), 8, 2),
)
LOADS = (ProbeLoad(1, 24, 16), ProbeLoad(2, 24, 16), ProbeLoad(4, 24, 16), ProbeLoad(1, 128, 12))
SMALL_PROBES = (
    dense("placed-d256x4", 256, 4, 768, 4, 2, vocab=VOCAB),
    moe("placed-m256x4-e8k2", 256, 4, (8, 2, 256), 4, 2, vocab=VOCAB),
    dense("placed-d256x8", 256, 8, 512, 4, 2, vocab=VOCAB),
    moe("placed-m256x6-e8k4", 256, 6, (8, 4, 128), 4, 2, vocab=VOCAB),
)
SMALL_UNSEEN = (
    moe("unseen-m256x5-e16k3", 256, 5, (16, 3, 192), 4, 4, vocab=VOCAB),
    moe("unseen-m320x4-e8k2", 320, 4, (8, 2, 320), 5, 1, vocab=VOCAB),
)
"""For software Vulkan, which reads some ten megabytes a second and compiles half a minute for every new batch."""
SMALL_LOADS = (ProbeLoad(1, 8, 14), ProbeLoad(2, 8, 14))
CLEAR = 1.05
"""Places whose steps differ by less are in no order that a measurement could tell."""


def measured(
    out: Path,
    specs: Sequence[ModelSpec],
    loads: Sequence[ProbeLoad],
    budget_s: float,
    flags: Sequence[str],
    threads: int,
    *,
    again: bool,
) -> tuple[list[Observation], int, int]:
    """Steps of `specs` in every place, how many rounds each was measured, and how many blocks were disturbed."""
    log = out.with_name(f"{out.stem}-calibration") / "events.jsonl"
    if not again:
        asked = CalibrateOptions(
            engine="llama-server",
            format_name=FORMAT,
            budget_s=budget_s,
            out=out,
            resume=log.is_file(),
            threads=threads,
            probes=tuple(specs),
            loads=tuple(loads),
            gpu_layers="all",
            engine_flags=tuple(flags),
        )
        calibrate(asked, lambda state: print(f"\r{state.subject} {state.phase}        ", end="", file=sys.stderr))
    events = read_events(log)
    subjects = probes_placed(specs, FORMAT, placement_of("all"), beside_a_device=True)
    found = observations_of(events, {s.name: s.spec for s in subjects}, FORMAT)
    blocks = finished(events)
    return found, max(seen.n for seen in found), sum(bool(done.flagged) for _, done in blocks)


def lines(fitted: Fitted, unseen: Sequence[Observation]) -> list[str]:
    """The table and its sums."""
    data = table(unseen)
    errors = data.log_predicted(fitted.constants) - data.log_seconds
    rows = ["| model | experts in host memory | load | measured | predicted | error |", "|---|---|---|---|---|---|"]
    for seen, error in zip(unseen, errors, strict=True):
        load = f"{seen.phase}, {seen.sequences} x {seen.tokens:.0f}"
        took = f"{1e3 * seen.seconds:.3g} ms | {1e3 * seen.seconds * np.exp(error):.3g} ms | {np.expm1(error):+.0%}"
        rows.append(f"| {seen.model} | {seen.where.experts_host:.0%} | {load} | {took} |")
    for phase in ("decode", "prefill"):
        off = [abs(float(np.expm1(e))) for seen, e in zip(unseen, errors, strict=True) if seen.phase == phase]
        right, clear = _order([(s, float(e)) for s, e in zip(unseen, errors, strict=True) if s.phase == phase])
        rows.append("")
        rows.append(
            f"{phase}: median error {statistics.median(off):.1%}, nine in ten below {np.quantile(off, 0.9):.1%};"
            f" order of places right in {right} of {clear} pairs that differ by more than {CLEAR - 1:.0%}"
        )
    return rows


def _order(steps: Sequence[tuple[Observation, float]]) -> tuple[int, int]:
    """Pairs of places of one model and load whose order is predicted right, and how many are clear."""
    right = clear = 0
    for (a, a_off), (b, b_off) in itertools.combinations(steps, 2):
        same = (a.model, a.sequences, a.tokens) == (b.model, b.sequences, b.tokens)
        if not same or max(a.seconds, b.seconds) < CLEAR * min(a.seconds, b.seconds):
            continue
        clear += 1
        right += (a.seconds < b.seconds) == (a.seconds * np.exp(a_off) < b.seconds * np.exp(b_off))
    return right, clear


def main() -> None:
    """Measure, fit, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of probes, and of unseen models")
    parser.add_argument("--again", action="store_true", help="read the logs in OUT")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU beside the device; 1 where others use it")
    parser.add_argument("--small", action="store_true", help="models that software Vulkan runs in time")
    given, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    given.out.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    few = given.small
    probes, others, loads = (SMALL_PROBES, SMALL_UNSEEN, SMALL_LOADS) if few else (PROBES, UNSEEN, LOADS)
    plan = (loads, given.budget, flags, given.threads)
    seen, rounds, noisy = measured(given.out / "probes.json", probes, *plan, again=given.again)
    unseen, more, noisy_too = measured(given.out / "unseen.json", others, *plan, again=given.again)
    fitted = fit(seen)
    told = [
        f"{len(seen)} steps of {len(probes)} probes ({rounds} rounds), {len(unseen)} of {len(others)} unseen models"
        f" ({more} rounds), {FORMAT}; {noisy + noisy_too} blocks disturbed; load average {before:.1f} before,"
        f" {os.getloadavg()[0]:.1f} after.",
        "",
        *lines(fitted, unseen),
        "",
        "Fitted, with the factor that each may be off: "
        + ", ".join(f"{name} x/{np.exp(sd):.2f}" for name, sd in fitted.spread.items()),
    ]
    (given.out / "table.md").write_text("\n".join(told) + "\n")
    print("\n".join(told))


if __name__ == "__main__":
    main()
