"""How often a comparison of a model with itself names a winner, and how far two processes of one file differ.

python bench/same_model.py [MODEL] [--runs 40] [--budget 10]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import breakeven
from breakeven.stats.intervals import relative_half_width


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--budget", type=float, default=9.0)
    parser.add_argument("--format", default="Q4_K_M")
    asked = parser.parse_args()
    wrong, logs, widths = 0, [], []
    for run in range(asked.runs):
        with tempfile.TemporaryDirectory() as directory:
            result = breakeven.compare(
                [asked.model, asked.model],
                format=asked.format,
                streams=(1,),
                prompt_tokens=32,
                output_tokens=48,
                precision=0.001,
                budget_s=asked.budget,
                out=Path(directory) / "out",
                look_inside=False,
            )
        pair = next(p for p in result.pairs if p.metric == "decode_tokens_per_s")
        wrong += result.verdict.winner is not None
        logs.append(math.log(pair.ratio.value))
        widths.append(relative_half_width(pair.ratio))
        print(f"{run + 1:3} ratio {pair.ratio.value:.4f} +-{widths[-1]:.2%} ({pair.ratio.n} pairs, "
              f"{result.noise.flagged} flagged) winner {result.verdict.winner}", flush=True)  # fmt: skip
    print(f"{wrong} of {asked.runs} named a winner; median half-width {statistics.median(widths):.2%}; "
          f"spread of the ratio between runs {statistics.stdev(logs):.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
