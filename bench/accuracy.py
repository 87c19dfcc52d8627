"""How far data-sheet predictions are from public measurements that the fit has not seen, and how far simpler ideas are.

python bench/accuracy.py --data DIR [--family serving|local] [--out FILE]

Prints the tables of docs/accuracy.md: median |predicted / published - 1| by class of machine and kind of model, each
model or each machine left out in turn. The baselines change what a step is thought to read, nothing else, and are
fitted anew with the same constants.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.baselines import BASELINES, occupancy
from bench.fit_prior import ENGINE, usable
from bench.published.fitting import Fit, fitted, problem
from bench.published.judged import judged
from bench.published.leaving_out import by_machine, by_model, left_out
from bench.published.records import Observation, read
from bench.published.spilled import inside, machine_of, spilled
from breakeven.forecast.efficiencies import efficiencies

Floats = NDArray[np.float64]
OURS = "this model"
TITLES = {
    "serving": "Served by vLLM: time between tokens",
    "local": "Under llama.cpp, Ollama or MLX: one stream, and several",
}


def median(errors: Floats) -> str:
    """Median |predicted / published - 1| in percent."""
    if not len(errors):
        return ""
    found = float(np.median(np.abs(np.expm1(errors))))
    return f"{100 * found:.0f} %" if np.isfinite(found) else "not defined"


def rows_of(observations: Sequence[Observation]) -> list[tuple[str, str, str, list[int]]]:
    """(phase, class, kind, indices) of every row of a table; the rows over all classes first."""
    found = []
    for phase in ("decode", "prefill"):
        for kind in ("dense", "moe"):
            mine = [i for i, o in enumerate(observations) if o.phase == phase and o.kind == kind]
            classes = sorted({observations[i].chip.chip_class for i in mine})
            if mine:
                found.append((phase, "all", kind, mine))
            for c in classes if len(classes) > 1 else []:
                found.append((phase, c, kind, [i for i in mine if observations[i].chip.chip_class == c]))
    return found


def table(data: Path, family: str) -> str:
    """The table of one family, in Markdown."""
    observations, base = usable(data, family), judged(ENGINE[family])
    asked = problem(observations)
    whole: Fit | None = None
    columns: dict[str, list[Floats]] = {}
    for name in [OURS, *BASELINES]:
        with np.errstate(invalid="ignore"), nullcontext() if name == OURS else occupancy(BASELINES[name]):
            fit = fitted(asked, base, start=whole) if whole is None else fitted(asked, base, start=whole, rounds=4)
            columns[name] = left_out(asked, fit, by_model, by_machine)
        whole = whole or fit
    head = ["phase", "machines", "kind", "records", "models", "chips", "model left out", "machine left out"]
    head += [f"{name}: model / machine" for name in BASELINES]
    lines = [f"### {TITLES[family]}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for phase, chip_class, kind, rows in rows_of(observations):
        some = [observations[i] for i in rows]
        cells = [phase, chip_class, "MoE" if kind == "moe" else "dense", str(len(rows))]
        cells += [str(len({o.model_group for o in some})), str(len({o.chip.slug for o in some}))]
        cells += [median(errors[rows]) for errors in columns[OURS]]
        for name in BASELINES:
            same = kind == "dense"
            cells.append("as ours" if same else " / ".join(median(errors[rows]) for errors in columns[name]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spilled_table(data: Path) -> str:
    """Models in part in host memory: errors by machine, each left out of the fit of host memory's constants."""
    found = spilled(data, [e for e in efficiencies().entries if e.engine == ENGINE["local"]])
    lines = ["### In part in host memory", ""]
    lines += ["| phase | machine | models | records | median error, machine left out | predicted over measured speed |"]
    lines += ["|---|---|---|---|---|---|"]
    names = [machine_of(r) for r in found.records]
    for phase in ("decode", "prefill"):
        every = [i for i, r in enumerate(found.records) if r.phase == phase]
        named = {name: [i for i in every if names[i] == name] for name in dict.fromkeys(names[i] for i in every)}
        for name, rows in {"all": every, **named}.items():
            models = list(dict.fromkeys(found.records[i].spec.name.rpartition("/")[2] for i in rows))
            ratio = float(np.exp(-np.median(found.errors[rows])))
            told = ", ".join(models) if name != "all" else str(len(models))
            lines.append(f"| {phase} | {name} | {told} | {len(rows)} | {median(found.errors[rows])} | {ratio:.2f} |")
        lines.append(f"| {phase} | inside an interval set without the machine | | | {inside(found, every):.0%} | |")
    constants = ", ".join(f"{name} {value:.3g}" for name, value in found.constants.items())
    return "\n".join([*lines, "", f"Fitted to all: {constants}."]) + "\n"


def left_aside(data: Path) -> str:
    """What was not used, by reason."""
    lines = ["### Records not used", ""]
    merged: dict[str, int] = {}
    for reason, count in read(data)[1].items():
        reason = reason.split(":")[0]
        merged[reason] = merged.get(reason, 0) + count
    return "\n".join([*lines, *(f"- {n} {why}" for why, n in sorted(merged.items(), key=lambda x: -x[1]))]) + "\n"


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--family", choices=list(TITLES), action="append")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    parts = [table(given.data, family) for family in given.family or TITLES]
    parts += [spilled_table(given.data), left_aside(given.data)]
    text = "\n".join(parts)
    if given.out:
        given.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
