"""A calibration's event log as step times: a pure function, so that a profile can be fitted again from its log."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from breakeven.measure import events
from breakeven.measure.paired.metrics import block_metrics
from breakeven.measure.probe import step_s
from breakeven.predict.calibration.observe import Observation, Phase
from breakeven.predict.terms import terms_of
from breakeven.spec.model import ModelSpec

LEAST_STEPS = 4
"""Output tokens of a block whose decode steps count."""

_Key = tuple[str, Phase, int, int, int]


def finished(log: Sequence[events.Event]) -> list[tuple[events.BlockStarted, events.BlockDone]]:
    """Blocks that count, in the order they ended."""
    started = {e.block: e for e in log if isinstance(e, events.BlockStarted)}
    return [(started[e.block], e) for e in log if isinstance(e, events.BlockDone) and e.ok and e.block in started]


def observations_of(log: Sequence[events.Event], specs: Mapping[str, ModelSpec], format_name: str) -> list[Observation]:
    """Every load of every probe as one decode step and, for single streams, one prompt; medians over rounds.

    Flagged blocks count only where a load has no other. A decode step's context is its prompt and half its output.
    """
    requests: dict[str, list[events.RequestDone]] = {}
    for event in log:
        if isinstance(event, events.RequestDone):
            requests.setdefault(event.block, []).append(event)
    times: dict[_Key, list[tuple[bool, float]]] = {}
    for start, done in finished(log):
        mine = requests.get(start.block, [])
        if start.model not in specs or not mine:
            continue
        prompt = round(statistics.fmean(request.prompt_tokens for request in mine))
        load = (start.streams, prompt, start.output_tokens)
        seconds = step_s(mine) if start.output_tokens >= LEAST_STEPS else None
        if seconds:
            times.setdefault((start.model, "decode", *load), []).append((bool(done.flagged), seconds))
        ttft_s = block_metrics(mine).service_ttft_s if start.streams == 1 else None
        if ttft_s:
            times.setdefault((start.model, "prefill", *load), []).append((bool(done.flagged), ttft_s))
    found = []
    for (model, phase, streams, prompt, output), values in times.items():
        quiet = [seconds for flagged, seconds in values if not flagged] or [seconds for _, seconds in values]
        tokens = prompt + output / 2 if phase == "decode" else float(prompt)
        terms = terms_of(specs[model], format_name)
        found.append(Observation(model, terms, phase, streams, tokens, statistics.median(quiet), len(quiet)))
    return found


def busy_watts(log: Sequence[events.Event]) -> float | None:
    """Mean power over the blocks; None without an energy counter."""
    spent = [(done.joules, (done.at_ns - start.at_ns) / 1e9) for start, done in finished(log) if done.joules]
    seconds = sum(s for _, s in spent)
    return sum(j for j, _ in spent) / seconds if seconds > 0 else None
