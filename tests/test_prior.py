"""Data-sheet profiles: complete for every chip class, physical, and honest about what nobody measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.closed_form import steady_state, steady_tpot_s
from breakeven.errors import UserError
from breakeven.forecast.model import step_model
from breakeven.forecast.profiles import ENGINES, efficiencies, efficiency_of, profile_of_chip
from breakeven.hardware.chips import chip_named, chips
from breakeven.model.catalogue import lookup


@pytest.mark.parametrize("engine", ENGINES)
def test_every_catalogued_chip_has_a_physical_profile(engine: str) -> None:
    for chip in chips():
        profile = profile_of_chip(chip, engine)
        assert profile.name == chip.slug
        assert 0 < profile.constants.weight_bytes_per_s < chip.bandwidth_bytes_per_s
        assert 0 < profile.constants.kv_bytes_per_s < chip.bandwidth_bytes_per_s
        assert profile.constants.prefill_flops_per_s > 0
        assert profile.constants.decode_flops_per_s > 0
        assert profile.memory_bytes is None or profile.memory_bytes <= (chip.memory_bytes or 0)
        assert {(e.phase, e.kind) for e in profile.errors} == {
            (phase, kind) for phase in ("decode", "prefill") for kind in ("dense", "moe")
        }


def test_what_nobody_measured_has_no_count_and_a_wider_interval() -> None:
    for entry in efficiencies().entries:
        for error in entry.errors:
            assert error.log_half_width > 0
            assert error.between_models <= error.log_half_width
            if not entry.points:
                assert error.n == 0
                assert error.coverage is None
    measured = efficiency_of("consumer", "llama.cpp", "cuda")
    unseen = efficiency_of("unified", "llama.cpp", "cuda")
    assert measured.points > 0
    assert unseen.points == 0
    on_card = [error for error in measured.errors if not error.spilled]
    for seen, other in zip(on_card, unseen.errors, strict=True):
        assert other.log_half_width > seen.log_half_width or seen.n == 0


def test_origin_says_how_the_constants_came_about() -> None:
    origin = profile_of_chip(chip_named("rtx-4090"), "llama.cpp").origin
    assert origin.how == "datasheet"
    assert origin.points == efficiency_of("consumer", "llama.cpp", "cuda").points
    assert any("data sheet" in source for source in origin.sources)


def test_fp8_draws_on_the_fp8_units_and_llama_cpp_does_not() -> None:
    chip = chip_named("h100-sxm")
    plain, eight = (profile_of_chip(chip, "vllm", 1, name).constants for name in ("bf16", "fp8"))
    assert eight.prefill_flops_per_s == pytest.approx(
        plain.prefill_flops_per_s * chip.peak_flops["fp8"] / chip.peak_flops["bf16"]
    )
    assert profile_of_chip(chip, "llama.cpp", 1, "Q8_0").constants == profile_of_chip(chip, "llama.cpp").constants


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="exllama"):
        profile_of_chip(chip_named("rtx-4090"), "exllama")
    with pytest.raises(UserError, match="at least 1"):
        profile_of_chip(chip_named("rtx-4090"), "vllm", 0)
    with pytest.raises(UserError):
        profile_of_chip(chip_named("rtx-4090"), "vllm", 1, "no-such-format")


def test_one_stream_alone_is_a_decode_step() -> None:
    model = step_model(lookup("llama-3.1-8b"), profile_of_chip(chip_named("h100-sxm"), "vllm"), "bf16")
    ttft, tpot = steady_tpot_s(model, 1, 512, 256)
    assert tpot == pytest.approx(float(model.step_s(1.0, 512 + 128)))
    assert ttft == pytest.approx(float(model.step_s(1.0, 512 + 128, 512, 256)))


@given(streams=st.integers(1, 200), prompt=st.integers(1, 16000), output=st.integers(8, 4000))
def test_other_peoples_prompts_only_ever_slow_a_stream(streams: int, prompt: int, output: int) -> None:
    model = step_model(lookup("llama-3.1-8b"), profile_of_chip(chip_named("h100-sxm"), "vllm"), "bf16")
    ttft, tpot = steady_tpot_s(model, streams, prompt, output)
    context = prompt + output / 2
    assert tpot >= float(model.step_s(1.0, context)) * (1 - 1e-9)
    assert math.isfinite(ttft)
    assert ttft > 0
    more = steady_tpot_s(model, 2 * streams, prompt, output)[1]
    # Where every step is full of prompts, more streams take tokens from them, and a step gets a little shorter.
    assert more >= tpot * 0.95


def test_many_loads_at_once_equal_each_alone() -> None:
    model = step_model(lookup("olmoe-1b-7b"), profile_of_chip(chip_named("h100-sxm"), "vllm"), "bf16")
    ttft, tpot = steady_state(model, [1, 8, 64], [512, 2048, 8192], [256, 128, 1024])
    for i, (n, prompt, output) in enumerate([(1, 512, 256), (8, 2048, 128), (64, 8192, 1024)]):
        assert (ttft[i], tpot[i]) == pytest.approx(steady_tpot_s(model, n, prompt, output))
