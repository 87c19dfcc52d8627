"""The step model's answer to published observations, many at once.

Observations of one model, format, chip, number of devices and engine share a step model; each such group is predicted
with a handful of array operations, so that a fit of a few hundred evaluations takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.closed_form import steady_state, tpot_at_s
from bench.published.records import Observation
from breakeven.forecast.efficiencies import Entry
from breakeven.forecast.model import StepModel
from breakeven.forecast.profiles import profile_with
from breakeven.forecast.terms import Terms, terms_of
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import format_named

Floats = NDArray[np.float64]
EntryFor = Callable[[Observation], Entry]

RATE_ROUNDS = 8


def groups_of(observations: Sequence[Observation]) -> list[list[int]]:
    """Indices of observations that share a step model."""
    found: dict[tuple[object, ...], list[int]] = {}
    for i, o in enumerate(observations):
        key = (id(o.spec), o.format, o.chip.slug, o.devices, o.experts_apart, o.engine, o.family, o.phase,
               o.step_tokens, o.year, o.decoding is None, o.batched)  # fmt: skip
        found.setdefault(key, []).append(i)
    return list(found.values())


def model_of(o: Observation, entry: Entry) -> StepModel:
    """The step model of an observation, all weights on the device."""
    profile = profile_with(o.chip, entry, o.devices, o.format, "", [])
    terms = _terms(id(o.spec), o)
    return StepModel(o.spec, terms, profile, o.devices, expert_parallel=o.experts_apart)


def _terms(spec_id: int, o: Observation) -> Terms:
    """`terms_of`, without hashing a whole architecture each time: observations live as long as the fit."""
    key = (spec_id, o.format)
    if key not in _TERMS or _TERMS[key][0] is not o.spec:
        _TERMS[key] = (o.spec, terms_of(o.spec, format_named(o.format).name))
    return _TERMS[key][1]


_TERMS: dict[tuple[int, str], tuple[ModelSpec, Terms]] = {}


def on_device(o: Observation, entry: Entry) -> bool:
    """Whether we think that the model fits the device: what does not is another question than the chip's speed."""
    return model_of(o, entry).fits(max(o.concurrency, 1.0) if o.family == "local" else 1.0, o.prompt + o.output)


def predict(
    observations: Sequence[Observation], entry_for: EntryFor, groups: Sequence[Sequence[int]] | None = None
) -> Floats:
    """Predicted seconds of every observation."""
    result = np.zeros(len(observations))
    for indices in groups_of(observations) if groups is None else groups:
        some = [observations[i] for i in indices]
        result[list(indices)] = _group(some, model_of(some[0], entry_for(some[0])))
    return result


def _group(some: Sequence[Observation], model: StepModel) -> Floats:
    prompt, output, streams = (
        np.array([getattr(o, name) for o in some], dtype=np.float64) for name in ("prompt", "output", "concurrency")
    )
    if some[0].phase == "prefill":
        return model.prefill_s(prompt, some[0].step_tokens)
    if some[0].family == "local":
        step = model.step_s(streams, prompt + output / 2.0)
        wall = np.array([o.wall for o in some])
        # While a request answers, as many prompts as there are streams are read, alone.
        return step + wall * streams * model.prefill_s(prompt) / output if wall.any() else step
    rate = np.array([o.rate or 0.0 for o in some])
    if rate.any():
        streams = np.ones_like(rate)
        for _ in range(RATE_ROUNDS):  # Little's law: requests in the system are arrivals times time spent in it
            ttft, tpot = steady_state(model, streams, prompt, output)
            streams = 0.5 * streams + 0.5 * np.maximum(rate * (ttft + output * tpot), 1.0)
    decoding = np.array([o.decoding or 0.0 for o in some])
    if decoding.all():
        return tpot_at_s(model, decoding, prompt, output)
    return steady_state(model, streams, prompt, output)[1]
