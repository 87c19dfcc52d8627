"""Tables of left-out errors by engine, whose kernels ran, kind of model and phase, and of MoE over dense in batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.published.fitting import backend
from bench.published.records import Observation
from breakeven.forecast.efficiencies import Entry

Floats = NDArray[np.float64]
LEAST = 5
"""Records from which a class is held to the targets."""
TITLES = {"cuda": "CUDA", "metal": "Metal", "amd": "ROCm, Vulkan", "intel": "SYCL, Vulkan", "cpu": "CPU", "": ""}


def engine_of(o: Observation) -> str:
    """vLLM, llama.cpp (Ollama with it) or MLX, whose times are fitted and not predicted."""
    return "vLLM" if o.family == "serving" else "MLX" if "mlx" in o.engine.lower() else "llama.cpp"


def phase_of(o: Observation) -> str:
    """prefill, decode of one stream, or decode of several."""
    alone = o.concurrency <= 1 and o.rate is None
    return "prefill" if o.phase == "prefill" else "decode, one stream" if alone else "decode, several"


def half_width(o: Observation, made: Sequence[Entry]) -> float:
    """Of the band that a prediction of this observation carries."""
    mine = [e for e in made if e.chip_class == o.chip.chip_class and e.engine == ENGINES[o.family]]
    entry = next((e for e in mine if e.backend == backend(o)), mine[0])
    return next(e.log_half_width for e in entry.errors if (e.phase, e.kind) == (o.phase, o.kind) and not e.spilled)


ENGINES = {"local": "llama.cpp", "serving": "vllm"}


def class_table(observations: Sequence[Observation], errors: Floats, made: Sequence[Entry]) -> str:
    """Median error, bias and coverage by class, the machine left out; in Markdown."""
    cells: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, o in enumerate(observations):
        cells[phase_of(o), engine_of(o), TITLES[backend(o)], o.kind].append(i)
    lines = ["| phase | engine | kernels | kind | records | machines | median error | bias | inside the 90 % band |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for (phase, engine, kernels, kind), rows in sorted(cells.items()):
        e, some = errors[rows], [observations[i] for i in rows]
        inside = np.mean([abs(x) <= half_width(o, made) for x, o in zip(e, some, strict=True)])
        cell = [phase, engine, kernels, "MoE" if kind == "moe" else "dense", str(len(rows))]
        cell += [str(len({o.chip.slug for o in some})), f"{np.median(np.abs(np.expm1(e))):.0%}"]
        cell += [f"{np.expm1(np.median(e)):+.0%}", f"{inside:.0%}" if len(rows) >= LEAST else "few"]
        lines.append("| " + " | ".join(cell) + " |")
    return "\n".join(lines) + "\n"


def ratio_table(observations: Sequence[Observation], errors: Floats) -> str:
    """MoE over dense speed at one batch on one machine that was left out: predicted and published; in Markdown."""
    lines = [
        "| machine | MoE | dense | sequences | published ratio | predicted | off |",
        "|---|---|---|---|---|---|---|",
    ]
    several = [
        (i, o)
        for i, o in enumerate(observations)
        if o.family == "local" and o.phase == "decode" and not o.wall and o.year >= RATIO_SINCE
    ]
    for i, moe in several:
        for j, dense in several:
            same = (moe.chip.slug, moe.concurrency, moe.format) == (dense.chip.slug, dense.concurrency, dense.format)
            if same and moe.kind == "moe" and dense.kind == "dense" and " " in moe.source and " " in dense.source:
                told = dense.seconds / moe.seconds
                off = float(np.exp(errors[j] - errors[i]))
                names = [o.model_group.rpartition("/")[2] for o in (moe, dense)]
                lines.append(
                    f"| {moe.chip.slug} | {names[0]} | {names[1]} | {moe.concurrency:.0f} | {told:.2f} | "
                    f"{told * off:.2f} | {off - 1:+.0%} |"
                )
    return "\n".join(lines) + "\n"


RATIO_SINCE = 2024
