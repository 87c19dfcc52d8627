"""How many steps the step model predicts in a second on one core. The target is a million.

    python bench/step_speed.py [--steps 1000000] [--chunk 10000] [--repeat 5] [--json FILE]

Steps are drawn as a simulator asks for them: batches to 256, contexts to 32,768, a prompt's chunk in every fourth step.
Each model predicts all of them in chunks; the best of the repeats counts, as with any timing of pure arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from breakeven.forecast.constants import Constants, Error, Profile, ProfileOrigin
from breakeven.forecast.model import StepModel, step_model
from breakeven.model.catalogue import lookup
from breakeven.version import __version__

MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3")
TARGET = 1_000_000


def profile(devices: int) -> Profile:
    """Round figures: speed does not depend on them."""
    return Profile(
        name="bench",
        engine="vllm",
        devices=devices,
        constants=Constants(
            weight_bytes_per_s=2e12,
            kv_bytes_per_s=1.5e12,
            decode_flops_per_s=4e14,
            prefill_flops_per_s=4e14,
            overlap=0.9,
            step_s=1e-3,
            layer_s=2e-5,
            moe_layer_s=2e-5,
            sequence_s=1e-5,
            routing_alpha=0.95,
        ),
        errors=[
            Error(phase=p, kind=k, log_half_width=0.2, between_models=0.1, median=0.1, n=0)
            for p in ("decode", "prefill")
            for k in ("dense", "moe")
        ],
        ranges=[],
        origin=ProfileOrigin(how="probes", engine="vllm", engine_version=None, date="", version=__version__),
        memory_bytes=None,
    )


def steps_per_s(model: StepModel, steps: int, chunk: int, repeat: int) -> float:
    """Predictions a second of the best repeat."""
    rng = np.random.default_rng(0)
    batch, context = rng.integers(1, 257, steps).astype(float), rng.integers(1, 32_769, steps).astype(float)
    prompt = np.where(rng.random(steps) < 0.25, 2048.0, 0.0)
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        for i in range(0, steps, chunk):
            model.step_s(batch[i : i + chunk], context[i : i + chunk], prompt[i : i + chunk], 1024.0)
        best = min(best, time.perf_counter() - start)
    return steps / best


def main() -> None:
    """Print a line a model; exit status 1 when one misses the target."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=1_000_000)
    options.add_argument("--chunk", type=int, default=10_000)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    for devices in (1, 8):
        for name in MODELS:
            model = step_model(lookup(name), profile(devices), "BF16")
            found[f"{name} x{devices}"] = steps_per_s(model, given.steps, given.chunk, given.repeat)
            print(
                f"{name:<16} {devices} device{'s' if devices > 1 else ' '} {found[f'{name} x{devices}'] / 1e6:6.2f} M/s"
            )
    if given.json:
        given.json.write_text(json.dumps({"steps_per_s": found, "version": __version__}, indent=2) + "\n")
    raise SystemExit(0 if min(found.values()) >= TARGET else 1)


if __name__ == "__main__":
    main()
