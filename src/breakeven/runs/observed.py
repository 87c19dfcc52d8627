"""What a calibration's log tells: every load as one step with where its weights lay, and what it cannot tell.

Pure functions over events, so that a profile can be fitted again from its log.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache

from breakeven.forecast.calibration.parameters import Observation, Phase
from breakeven.forecast.calibration.probes import cycle_of
from breakeven.forecast.placing import DeviceRoom, place
from breakeven.forecast.residency import ON_DEVICE, Residency, residency_of
from breakeven.forecast.terms import terms_of
from breakeven.hardware.placement import HOST, Placed, Placement
from breakeven.measure import events
from breakeven.measure.events import BackendReady, Event
from breakeven.measure.paired.blocks import block_metrics
from breakeven.measure.probe import step_s
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import kv_element_bytes
from breakeven.stats.robust import centre

LEAST_STEPS = 4
"""Output tokens of a block whose decode steps count."""
WHOLE_SHARE = 0.95
"""Of a server that tells no layers but bytes: with so much of them in one place the model counts as lying there."""
CONTEXT_TOKENS = 512
"""What places are counted for; weights, which are all that is asked of it, do not depend on it."""
LARGE_BYTES = 1e15
"""More than any model: where it lay is known, not asked."""
FEW_SHAPES = 3
"""From so many models the costs of a step, a layer and an expert come apart."""

_Key = tuple[str, Phase, int, int, int]


def finished(log: Sequence[Event]) -> list[tuple[events.BlockStarted, events.BlockDone]]:
    """Blocks that count, in the order they ended."""
    started = {e.block: e for e in log if isinstance(e, events.BlockStarted)}
    return [(started[e.block], e) for e in log if isinstance(e, events.BlockDone) and e.ok and e.block in started]


def observations_of(
    log: Sequence[Event], specs: Mapping[str, ModelSpec], formats: str | Mapping[str, str], kv: str = "f16"
) -> list[Observation]:
    """Every load of every probe as one decode step and, for single streams, one prompt, over all rounds.

    `specs`, `formats`: by the name that the log calls a probe; probes of one model that lie elsewhere have one spec.
    `kv`: the type their keys and values had.
    Flagged blocks count only where a load has no other. A decode step's context is its prompt and half its output. A
    probe of which only a part lay on a device, nobody knows which, is left out.
    """
    requests: dict[str, list[events.RequestDone]] = {}
    for event in log:
        if isinstance(event, events.BlockStarted):
            requests[event.block] = []  # one that failed is run again under its name
        elif isinstance(event, events.RequestDone):
            requests.setdefault(event.block, []).append(event)
    lay = {e.model: e.placed for e in log if isinstance(e, BackendReady)}
    times: dict[_Key, list[tuple[bool, int, float]]] = {}
    for begun, done in finished(log):
        mine = requests.get(begun.block, [])
        if begun.model not in specs or not mine:
            continue
        prompt = round(statistics.fmean(request.prompt_tokens for request in mine))
        load = (begun.streams, prompt, begun.output_tokens)
        seconds = step_s(mine) if begun.output_tokens >= LEAST_STEPS else None
        if seconds:
            times.setdefault((begun.model, "decode", *load), []).append((bool(done.flagged), begun.round, seconds))
        ttft_s = block_metrics(mine).service_ttft_s if begun.streams == 1 else None
        if ttft_s:
            times.setdefault((begun.model, "prefill", *load), []).append((bool(done.flagged), begun.round, ttft_s))
    found = []
    for (name, phase, streams, prompt, output), values in times.items():
        spec, format_name = specs[name], formats if isinstance(formats, str) else formats[name]
        where = residency_as_placed(lay.get(name), spec, format_name)
        if where is None:
            continue
        quiet = [value for value in values if not value[0]] or values
        by_visit: dict[int, list[float]] = {}
        for _, number, seconds in quiet:
            by_visit.setdefault(cycle_of(number), []).append(seconds)
        tokens = prompt + output / 2 if phase == "decode" else float(prompt)
        typical = _typical([seconds for _, _, seconds in quiet])
        visits = tuple(map(_typical, by_visit.values()))
        terms = terms_of(spec, format_name, kv_element_bytes(kv))
        found.append(Observation(spec.name, terms, phase, streams, tokens, typical, len(quiet), where, visits))
    return found


def _typical(seconds: Sequence[float]) -> float:
    """Times of one load as one, on the scale of logarithms, where a disturbed block counts for little."""
    return math.exp(centre([math.log(value) for value in seconds]))


def residency_as_placed(placed: Placed | None, spec: ModelSpec, format_name: str) -> Residency | None:
    """Where a model lay, from what its engine said; all in one place where it said nothing. None: it cannot be told."""
    if placed is None or placed.gpu_layers == 0:
        return ON_DEVICE
    if placed.gpu_layers is not None:
        return _residency(spec, format_name, placed.gpu_layers, placed.cpu_moe or 0)
    share = device_share(placed)
    return ON_DEVICE if share is None or not 1 - WHOLE_SHARE < share < WHOLE_SHARE else None


@lru_cache(maxsize=128)
def _residency(spec: ModelSpec, format_name: str, gpu_layers: int, cpu_moe: int) -> Residency:
    asked = Placement(gpu_layers=gpu_layers, cpu_moe=cpu_moe)
    large = [DeviceRoom("device", LARGE_BYTES)]
    return residency_of(place(spec, format_name, large, context=CONTEXT_TOKENS, placement=asked), spec, None)


def device_share(placed: Placed) -> float | None:
    """Share of a model's memory that is on devices; None: the engine does not say."""
    held = {at.place: at.held_bytes or at.weights_bytes or 0 for at in placed.memory}
    return sum(n for at, n in held.items() if at != HOST) / sum(held.values()) if sum(held.values()) else None


def on_a_device(log: Sequence[Event]) -> bool:
    """Whether anything of any probe lay on a GPU."""
    lay = [e.placed for e in log if isinstance(e, BackendReady) and e.placed is not None]
    return any(placed.gpu_layers or (placed.gpu_layers is None and device_share(placed)) for placed in lay)


def busy_watts(log: Sequence[Event]) -> float | None:
    """Mean power over the blocks; None without an energy counter."""
    spent = [(done.joules, (done.at_ns - start.at_ns) / 1e9) for start, done in finished(log) if done.joules]
    seconds = sum(s for _, s in spent)
    return sum(j for j, _ in spent) / seconds if seconds > 0 else None


def cannot_tell(seen: Sequence[Observation], *, served: bool) -> list[str]:
    """What these steps say nothing of, a phrase each. `served`: on servers that run elsewhere."""
    kinds, models = {each.kind for each in seen}, {each.model for each in seen}
    found = []
    if len(models) < FEW_SHAPES:
        parted = "a step, a layer and an expert" if len(models) == 1 else "a layer and an expert"
        shapes = "one shape" if len(models) == 1 else "two shapes"
        found.append(f"what {parted} cost apart from the bytes they read ({shapes} cannot part them)")
    if "moe" not in kinds:
        found.append("how experts run, because no model that was measured routes")
    if "dense" not in kinds:
        found.append("how dense models run, because every model that was measured routes")
    if all(each.where.whole for each in seen):
        found.append("how fast weights in host memory are read")
    if not any(each.phase == "prefill" for each in seen):
        found.append("how fast prompts are read")
    if max((each.sequences for each in seen if each.phase == "decode"), default=1) == 1:
        found.append("what several sequences at once cost, because the server took one at a time")
    if served:
        found.append("how much memory the machine has, and where in it the models lie (taken as all in one place)")
    return found
