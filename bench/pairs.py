"""Three comparisons whose answer is known, or known to nobody yet, each as `breakeven compare` makes it.

    python bench/pairs.py SMOLLM2.gguf [--budget 60]

1. Real weights against synthetic ones of the same shape and format: must run at the same speed.
2. and 3. A dense model against itself split into 8 experts that are all used: the same function, so the ratio is what
   MoE dispatch costs. For SmolLM2-135M (real weights) and for a synthetic Llama-3.2-1B in Q4_0.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import breakeven
from breakeven.engines import cache
from breakeven.lab.surgery.experts import split
from breakeven.model.catalogue import lookup
from breakeven.results.comparison import Comparison


def compare(models: list[Path], budget_s: float, directory: Path) -> Comparison:
    return breakeven.compare(
        [str(path) for path in models],
        streams=(1,),
        prompt_tokens=64,
        output_tokens=48,
        precision=0.005,
        budget_s=budget_s,
        out=directory / models[1].stem,
        look_inside=False,
    )


def show(title: str, result: Comparison) -> None:
    print(f"\n{title}\n  {result.verdict.headline}")
    for pair in result.pairs:
        r = pair.ratio
        print(f"  {pair.metric:22} {pair.a} over {pair.b}: {r.value:.3f} ({r.low:.3f} to {r.high:.3f}), {r.n} pairs, "
              f"winner {pair.winner}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("smollm2", type=Path)
    parser.add_argument("--budget", type=float, default=60.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        directory = Path(name)
        synthetic = cache.provide(lookup("smollm2-135m"), "Q4_1")
        show("real against synthetic weights", compare([asked.smollm2, synthetic], asked.budget, directory))
        for dense in (asked.smollm2, cache.provide(lookup("llama-3.2-1b"), "Q4_0")):
            moe = directory / f"{dense.stem}-split8.gguf"
            split(dense, moe, 8, 8)
            show(f"dense against 8 of 8 experts: {dense.stem}", compare([moe, dense], asked.budget, directory))
            moe.unlink()


if __name__ == "__main__":
    main()
