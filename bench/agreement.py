"""One stream's decode rate three ways on one file: ours, llama.cpp's own timing of the same requests, a bare loop.

python bench/agreement.py [MODEL] [--format Q4_K_M] [--runs 6]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from breakeven.engines import cache
from breakeven.engines.inside.client import bare_decode_rate
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.measure.paired.blocks import block_metrics
from breakeven.measure.runner import CompletionRequest, run_block
from breakeven.model.catalogue import lookup

PROMPT, OUTPUT = 64, 64
SPIN = {"GOMP_SPINCOUNT": "300000"}
"""How long threads spin in a server of default settings, so that only the loop differs."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="llama-3.2-1b")
    parser.add_argument("--format", default="Q4_K_M")
    parser.add_argument("--runs", type=int, default=6)
    asked = parser.parse_args()
    path = cache.provide(lookup(asked.model), asked.format)
    ours, theirs = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        LlamaCppServer(path, context=256, slots=1, log=Path(directory) / "log") as backend,
    ):
        for run in range(asked.runs + 1):
            request = CompletionRequest(
                block=str(run),
                stream=0,
                prompt=list(range(run, run + PROMPT)),
                prompt_tokens=PROMPT,
                max_tokens=OUTPUT,
                temperature=1.0,
                top_k=40,
                seed=run,
            )
            metrics = block_metrics(asyncio.run(run_block(backend, [request])))
            if run:  # the first warms up
                ours.append(metrics.decode_tokens_per_s or 0.0)
                theirs.append(metrics.server_decode_tokens_per_s or 0.0)
    bare = [
        bare_decode_rate(path, prompt_tokens=PROMPT, output_tokens=OUTPUT, environment=SPIN) for _ in range(asked.runs)
    ]
    off = [a / b - 1 for a, b in zip(ours, theirs, strict=True)]
    print(f"ours {statistics.median(ours):.2f} tok/s, llama.cpp's own timing {statistics.median(theirs):.2f} tok/s")
    print(f"difference per request: worst {max(map(abs, off)):.2%}, mean {statistics.fmean(off):+.2%}")
    print(f"bare llama_decode loop {statistics.median(bare):.2f} tok/s: ours is "
          f"{1 - statistics.median(ours) / statistics.median(bare):.1%} slower (sampling, HTTP)")  # fmt: skip


if __name__ == "__main__":
    main()
