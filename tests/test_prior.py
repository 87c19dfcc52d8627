"""Data-sheet profiles: complete for every chip class, physical, and honest about what nobody measured."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.closed_form import steady_state, steady_tpot_s
from breakeven.errors import UserError
from breakeven.forecast.efficiencies import ENGINES, efficiencies, efficiency_of
from breakeven.forecast.model import step_model
from breakeven.forecast.profiles import NO_LLAMA_CPP, profile_of_chip
from breakeven.hardware.chips import Chip, backend_of, chip_named, chips
from breakeven.model.catalogue import lookup


@pytest.mark.parametrize("engine", ENGINES)
def test_every_catalogued_chip_has_a_physical_profile(engine: str) -> None:
    for chip in chips():
        if engine == "llama.cpp" and backend_of(chip) in NO_LLAMA_CPP:
            continue
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


def test_every_entry_counts_its_records_by_maker_and_number_type() -> None:
    for entry in efficiencies().entries:
        assert sum(entry.kernels.values()) == entry.points
        assert all(count <= entry.points for count in entry.types.values())
        assert bool(entry.types) == bool(entry.points)
        if entry.backend and entry.points:
            assert list(entry.kernels) == [entry.backend]


SMALL, LARGE = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64, 128, 300), (512, 1000, 2000)
NAMES = (
    "olmoe-1b-7b",
    "deepseek-v2-lite",
    "gemma-3-12b",
    "qwen3.5-35b-a3b",
    "gpt-oss-20b",
    "llama-3.1-8b",
    "qwen3-next-80b-a3b",
)


@given(
    chip=st.sampled_from([chip for chip in chips() if backend_of(chip) not in NO_LLAMA_CPP]),
    name=st.sampled_from(NAMES),
    run=st.sampled_from(
        [("llama.cpp", f) for f in ("Q4_K_M", "IQ2_XXS", "TQ1_0", "Q8_0", "MXFP4", "BF16")]
        + [("vllm", f) for f in ("BF16", "FP8", "INT4", "NVFP4")]
    ),
    context=st.sampled_from((1, 512, 32_768, 1_000_000)),
    devices=st.sampled_from((1, 2, 8)),
    faster=st.floats(1.01, 4.0),
)
def test_times_of_any_machine_are_physical(
    chip: Chip, name: str, run: tuple[str, str], context: int, devices: int, faster: float
) -> None:
    engine, format_name = run
    roomy = msgspec.structs.replace(chip, memory_bytes=2**50)  # what spills follows other rules
    model = step_model(lookup(name), profile_of_chip(roomy, engine, devices, format_name), format_name)
    batches = np.array([*SMALL, *LARGE], dtype=np.float64)
    step_s = model.step_s(batches, context)
    assert np.isfinite(step_s).all()
    assert (step_s > 0).all()
    assert (np.diff(step_s) >= -1e-9 * step_s[:-1]).all(), "more sequences take no less time"
    assert (batches / step_s <= batches / step_s[0] * (1 + 1e-9)).all(), "B sequences give at most B times one's tokens"
    assert (model.step_s(batches, context + 1000) >= step_s * (1 - 1e-9)).all()
    for phase in ("decode", "prefill"):
        fast, slow = model.low_high(phase)
        for at in (lambda m: m.step_s(batches, context), lambda m: m.prefill_s(batches)):
            assert (at(fast) <= at(model)).all()
            assert (at(model) <= at(slow)).all()
    quick = msgspec.structs.replace(
        roomy,
        bandwidth_bytes_per_s=chip.bandwidth_bytes_per_s * faster,
        peak_flops={kind: rate * faster for kind, rate in chip.peak_flops.items()},
    )
    quicker = step_model(lookup(name), profile_of_chip(quick, engine, devices, format_name), format_name)
    assert (quicker.step_s(batches, context) <= step_s * (1 + 1e-9)).all()
    assert (quicker.prefill_s(batches) <= model.prefill_s(batches) * (1 + 1e-9)).all()


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
