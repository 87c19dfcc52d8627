"""The fit behind data-sheet profiles: it finds constants again, and what is left out is really out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.baselines import BASELINES, occupancy
from bench.published.fitting import Fit, fitted, problem
from bench.published.judged import judged
from bench.published.leaving_out import by_machine, by_model, left_out
from bench.published.predicting import predict
from bench.published.records import Observation
from breakeven.forecast.profiles import profile_of_chip, profile_with
from breakeven.forecast.terms import step_s, terms_of
from breakeven.hardware.chips import chip_named
from breakeven.model.catalogue import lookup

MODELS = ("llama-3.2-1b", "llama-3.1-8b", "qwen3-4b", "olmoe-1b-7b", "qwen3-30b-a3b")
CHIPS = ("rtx-4090", "rtx-3090", "rtx-3060")


def published(fit: Fit, wrong: dict[str, float] | None = None) -> list[Observation]:
    """What `fit` would have published of all models on all chips; a model in `wrong` is off by that factor."""
    made = [
        Observation(
            source="synthetic", family="local", engine="llama.cpp", old=False, spec=lookup(model), format=name,
            chip=chip_named(chip), devices=1, experts_apart=False, concurrency=1.0, rate=None, prompt=512.0,
            output=128.0, phase="decode", seconds=1.0,
        )
        for model in MODELS for chip in CHIPS for name in ("Q4_K_M", "Q8_0")
    ]  # fmt: skip
    times = fit.predict(made)
    factors = [(wrong or {}).get(o.spec.name, 1.0) for o in made]
    return [replace(o, seconds=float(t * f)) for o, t, f in zip(made, times, factors, strict=True)]


def truth() -> Fit:
    fit = Fit("local", ["consumer"], judged("llama.cpp"), ["cuda"])
    moved = {("weight_share", ""): 0.3, ("layer_s", ""): 0.4, ("moe_layer_s", "consumer"): -0.3}
    fit.theta = np.array([moved.get(slot, 0.0) for slot in fit.slots])
    return fit


def test_the_fit_finds_the_speeds_again() -> None:
    observations = published(truth())
    found = fitted(problem(observations), judged("llama.cpp"))
    assert found.predict(observations) == pytest.approx([o.seconds for o in observations], rel=0.02)
    ours, true = (fit.values("consumer", kernels="cuda")["weight_share"] for fit in (found, truth()))
    assert ours == pytest.approx(true, rel=0.05)


def test_a_model_that_is_left_out_does_not_help_itself() -> None:
    name = lookup("llama-3.1-8b").name
    observations = published(truth(), wrong={name: 1.6})
    asked = problem(observations)
    fit = fitted(asked, judged("llama.cpp"))
    by_model_errors, by_machine_errors = left_out(asked, fit, by_model, by_machine)
    its = np.array([o.spec.name == name for o in observations])
    inside = np.log(fit.predict(observations)) - asked.truth
    assert np.median(np.abs(by_model_errors[its])) > np.median(np.abs(inside[its]))
    assert np.median(np.abs(by_model_errors[its])) == pytest.approx(np.log(1.6), abs=0.12)
    # With every model seen on the other chips, a chip left out is no surprise in this made-up world.
    assert np.median(np.abs(by_machine_errors[~its])) < 0.1


def test_predictions_of_the_fit_are_those_of_the_profile() -> None:
    chip, spec = chip_named("rtx-4090"), lookup("qwen3-30b-a3b")
    one = [o for o in published(truth()) if o.spec == spec and o.chip == chip and o.format == "Q4_K_M"]
    entry = truth().entry("consumer", kernels="cuda")
    constants = profile_with(chip, entry, 1, "Q4_K_M", "", []).constants
    direct = step_s(terms_of(spec, "Q4_K_M"), constants, 1.0, 512.0 + 64.0)
    assert predict(one, lambda o: entry) == pytest.approx(float(direct))


def test_baselines_change_what_is_read_and_nothing_else() -> None:
    moe, dense = terms_of(lookup("olmoe-1b-7b"), "Q4_K_M"), terms_of(lookup("llama-3.2-1b"), "Q4_K_M")
    constants = profile_of_chip(chip_named("rtx-4090"), "llama.cpp").constants
    ours = {b: float(step_s(moe, constants, b, 512)) for b in (1, 8, 64)}
    as_dense = float(step_s(dense, constants, 8, 512))
    for name, found in BASELINES.items():
        with occupancy(found):
            assert float(step_s(dense, constants, 8, 512)) == as_dense
            theirs = {b: float(step_s(moe, constants, b, 512)) for b in (1, 8, 64)}
        if name == "total only":
            assert theirs[1] > ours[1]
        else:
            assert theirs[1] == pytest.approx(ours[1])
        assert theirs[8] != pytest.approx(ours[8], rel=1e-3)
    assert {b: float(step_s(moe, constants, b, 512)) for b in (1, 8, 64)} == ours
