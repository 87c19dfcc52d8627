"""Decision log records made up for testing. Times, lengths and costs in them were never measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from breakeven.gateway.seen.record import DecisionRecord

START_S = 1_760_000_000.0


def record(at_s: float, **changes: Any) -> DecisionRecord:
    """An answered request `at_s` after the log begins."""
    fields: dict[str, Any] = {
        "id": f"r{at_s}",
        "time_s": START_S + at_s,
        "model": "chat",
        "endpoint": "/v1/chat/completions",
        "policy": "breakeven",
        "reason": "cheapest_that_fits",
        "backend": "a",
        "status": 200,
        "predicted_prompt_tokens": 90.0,
        "predicted_output_tokens": 70.0,
        "prompt_tokens": 100,
        "output_tokens": 50,
        "e2e_s": 1.0,
        "usd": 1e-4,
        "finish": "stop",
    }
    return DecisionRecord(**(fields | changes))


def traffic(count: int, rate_per_s: float, seed: int = 1, **changes: Any) -> list[DecisionRecord]:
    """Poisson arrivals with spread lengths."""
    dice, at_s, found = random.Random(seed), 0.0, []
    for _ in range(count):
        found.append(
            record(
                round(at_s, 6),
                prompt_tokens=1 + int(dice.lognormvariate(5.0, 0.5)),
                output_tokens=1 + int(dice.lognormvariate(4.0, 0.5)),
                **changes,
            )
        )
        at_s += dice.expovariate(rate_per_s)
    return found


def write_log(directory: Path, found: Sequence[DecisionRecord], worker: int = 0) -> Path:
    """`found` as one worker's file."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = b"".join(msgspec.json.encode(each) + b"\n" for each in found)
    (directory / f"decisions-{worker}-0.jsonl").write_bytes(lines)
    return directory
