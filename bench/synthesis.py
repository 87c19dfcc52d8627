"""How fast and in how much memory synthetic weights are written, against a plain sequential write of the same bytes.

    python bench/synthesis.py [MODEL] [--format Q4_K_M] [--runs 3]

Both go to the same directory in turn: plain, synthetic, synthetic, plain, ...
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SYNTH = """
import resource, sys, time
from pathlib import Path
from breakeven.engines.synthesis.write import synthesise
from breakeven.model.catalogue import lookup
spec = lookup(sys.argv[1])
began = time.perf_counter()
synthesise(spec, sys.argv[2], Path(sys.argv[3]))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def plain_write(path: Path, size: int) -> float:
    """Seconds to write `size` bytes in pieces of 4 MiB."""
    piece = os.urandom(4 << 20)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for done in range(0, size, len(piece)):
            file.write(piece[: size - done])
    return time.perf_counter() - began


def synthetic_write(model: str, format_name: str, path: Path) -> tuple[float, int]:
    """Seconds, and peak resident bytes of the process."""
    run = subprocess.run(
        [sys.executable, "-c", SYNTH, model, format_name, str(path)], capture_output=True, text=True, check=True
    )
    seconds, kilobytes = run.stdout.split()
    return float(seconds), int(kilobytes) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="olmoe-1b-7b")
    parser.add_argument("--format", default="Q4_K_M")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    shares, peak = [], 0
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path = Path(directory) / "m.gguf"
        _, peak = synthetic_write(asked.model, asked.format, path)
        size = path.stat().st_size
        path.unlink()
        os.sync()
        for run in range(asked.runs):
            times = {}
            for kind in ("plain", "synthetic") if run % 2 == 0 else ("synthetic", "plain"):
                if kind == "plain":
                    times[kind] = plain_write(path, size)
                else:
                    times[kind], used = synthetic_write(asked.model, asked.format, path)
                    peak = max(peak, used)
                os.sync()
                path.unlink()
            shares.append(times["plain"] / times["synthetic"])
            print(f"{size / 1e9:.2f} GB: plain {size / times['plain'] / 1e6:.0f} MB/s, "
                  f"synthetic {size / times['synthetic'] / 1e6:.0f} MB/s, {shares[-1]:.0%} of plain")  # fmt: skip
    print(f"median {statistics.median(shares):.0%} of a plain write, peak memory {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
