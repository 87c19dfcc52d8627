"""The fit of a calibration: known constants come back from noisy steps, and what the data do not tell is named."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import BreakevenError
from breakeven.forecast.calibration.fit import (
    LeftOut,
    errors_of,
    fit,
    half_width,
    leave_models_out,
    model_error,
    ranges_of,
    repeat_error,
)
from breakeven.forecast.calibration.parameters import (
    COSTS,
    Observation,
    Parameter,
    arguments,
    parameters,
    suggested,
    table,
    with_values,
)
from breakeven.forecast.calibration.probes import SETS, SMALL, dense, loads_for, moe, probes_for, slots_and_context
from breakeven.forecast.constants import Constants
from breakeven.forecast.terms import Terms, step_parts, step_s, terms_of
from breakeven.hardware.placement import MemoryAt, Placed
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import file_bytes
from breakeven.runs.observed import residency_as_placed

FORMAT = "Q4_K_M"
TRUTH = Constants(
    weight_bytes_per_s=2e10,
    kv_bytes_per_s=4e9,
    decode_flops_per_s=8e10,
    prefill_flops_per_s=1.2e11,
    overlap=0.6,
    step_s=2e-4,
    layer_s=6e-5,
    moe_layer_s=5e-5,
    expert_s=4e-6,
    sequence_s=3e-4,
    kv_row_s=6e-8,
    prefill_token_s=2e-5,
    element_s=2e-9,
    type_cost={"Q6_K": 0.7},
    type_compute={"Q6_K": 1.5},
    expert_compute=1.3,
    tile=4,
    tile_cost={"Q4_K": 0.5},
)
UNSEEN = (
    dense("unseen-d", 1280, 16, 3584, 20, 5),
    dense("unseen-d-wide", 2560, 4, 7168, 20, 4, 128, vocab=32768),
    moe("unseen-m", 1280, 8, (32, 8, 512), 20, 4),
    moe("unseen-m-few", 1536, 6, (8, 1, 2048), 12, 4),
)


def steps(specs: tuple[ModelSpec, ...], truth: Constants, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    """What probing `specs` on a machine of constants `truth` would give, with log-normal noise."""
    rng = np.random.default_rng(seed)
    found = []
    for spec in specs:
        terms = terms_of(spec, FORMAT)
        for load in loads_for(gpu=False):
            context = load.prompt_tokens + load.output_tokens / 2
            asked = [("decode", load.streams, context)] if load.output_tokens > 2 else []
            asked += [("prefill", 1, float(load.prompt_tokens))] if load.streams == 1 else []
            for phase, streams, tokens in asked:
                blank = Observation(spec.name, terms, phase, streams, tokens, 1.0)  # type: ignore[arg-type]
                seconds = float(step_s(terms, truth, *arguments(blank))) * math.exp(noise * rng.standard_normal())
                found.append(Observation(spec.name, terms, blank.phase, streams, tokens, seconds))
    return found


def errors(constants: Constants, found: list[Observation]) -> np.ndarray:
    """|predicted / measured - 1| of every step."""
    data = table(found)
    return np.abs(np.expm1(data.log_predicted(constants) - data.log_seconds))


def test_shapes_not_seen_are_predicted_from_noisy_probes() -> None:
    fitted = fit(steps(SMALL, TRUTH, noise=0.04), tile=4)
    off = errors(fitted.constants, steps(UNSEEN, TRUTH))
    assert np.median(off) < 0.03
    assert np.quantile(off, 0.9) < 0.10
    assert fitted.noise == pytest.approx(0.04, rel=0.5)


def test_rates_come_back() -> None:
    constants = fit(steps(SMALL, TRUTH, noise=0.02), tile=4).constants
    assert constants.prefill_flops_per_s == pytest.approx(TRUTH.prefill_flops_per_s, rel=0.15)
    assert constants.decode_flops_per_s == pytest.approx(TRUTH.decode_flops_per_s, rel=0.3)
    assert constants.weight_bytes_per_s == pytest.approx(TRUTH.weight_bytes_per_s, rel=0.3)
    assert constants.kv_bytes_per_s == pytest.approx(TRUTH.kv_bytes_per_s, rel=0.3)
    assert constants.type_compute["Q6_K"] == pytest.approx(1.5, rel=0.2)
    assert constants.tile_cost["Q4_K"] == pytest.approx(0.5, rel=0.2)


def test_types_that_are_not_repacked_have_tiles_of_their_own() -> None:
    """Q5_0, of widths that K-quants do not part: dear one by one, cheap in tiles, which bytes alone cannot explain."""
    truth = msgspec.structs.replace(
        TRUTH, type_compute={"Q6_K": 1.5, "Q5_0": 2.8}, tile_cost={"Q4_K": 0.7, "Q5_0": 0.45}
    )
    constants = fit(steps(SMALL, truth, noise=0.02), tile=4).constants
    assert constants.type_compute["Q5_0"] == pytest.approx(2.8, rel=0.25)
    assert constants.tile_cost["Q5_0"] == pytest.approx(0.45, rel=0.25)
    assert "Q6_K" not in constants.tile_cost  # nothing multiplies it in tiles
    narrow = (dense("unseen-narrow", 576, 20, 1536, 9, 3),)
    assert dict(terms_of(narrow[0], FORMAT).work).get("Q5_0", 0.0) > 0.3
    assert np.median(errors(constants, steps(narrow, truth))) < 0.05


def test_disturbed_blocks_do_not_bend_the_fit() -> None:
    found = steps(SMALL, TRUTH, noise=0.03)
    rng = np.random.default_rng(1)
    disturbed = [retimed(seen, seen.seconds * 3.0) if rng.random() < 0.08 else seen for seen in found]
    off = errors(fit(disturbed, tile=4).constants, steps(UNSEEN, TRUTH))
    assert np.median(off) < 0.05


def retimed(seen: Observation, seconds: float) -> Observation:
    """The same step with another time."""
    return Observation(seen.model, seen.terms, seen.phase, seen.sequences, seen.tokens, seconds, seen.n)


@settings(max_examples=5, deadline=None)
@given(
    bandwidth=st.floats(9.0, 12.0),
    kv=st.floats(-1.0, 0.0),
    compute=st.floats(0.3, 1.5),
    overlap=st.floats(0.1, 0.9),
    layer=st.floats(-6.0, -4.0),
    sequence=st.floats(-5.0, -3.0),
)
def test_any_machine_is_predicted_from_exact_probes(
    bandwidth: float, kv: float, compute: float, overlap: float, layer: float, sequence: float
) -> None:
    truth = Constants(
        weight_bytes_per_s=10**bandwidth,
        kv_bytes_per_s=10 ** (bandwidth + kv),
        decode_flops_per_s=10 ** (bandwidth + compute),
        prefill_flops_per_s=2 * 10 ** (bandwidth + compute),
        overlap=overlap,
        step_s=1e-4,
        layer_s=10**layer,
        sequence_s=10**sequence,
    )
    off = errors(fit(steps(SMALL, truth)).constants, steps(UNSEEN, truth))
    assert np.median(off) < 0.05


def test_a_batch_far_beyond_the_probes_is_not_predicted_absurdly_slow() -> None:
    """Decoding that memory limits at every batch probed hides its arithmetic; prompts show about what it is."""
    gpu = Constants(
        weight_bytes_per_s=1e11,
        kv_bytes_per_s=1e11,
        decode_flops_per_s=3e13,
        prefill_flops_per_s=4e13,
        overlap=0.95,
        step_s=1e-4,
        layer_s=1e-5,
        sequence_s=1e-6,
    )
    fitted = fit(steps(SMALL, gpu, noise=0.02)).constants
    terms = terms_of(UNSEEN[1], FORMAT)
    assert float(step_s(terms, fitted, 256.0, 64.0) / step_s(terms, gpu, 256.0, 64.0)) == pytest.approx(1.0, abs=0.5)


def test_what_the_data_cannot_tell_is_named_and_left_at_its_prior() -> None:
    short = [seen for seen in steps(SMALL, TRUTH, noise=0.02) if seen.phase == "decode" and seen.tokens < 50]
    bare = [Observation(s.model, s.terms, s.phase, s.sequences, 1.0, s.seconds, s.n) for s in short]
    fitted = fit(bare, tile=4)
    assert "kv_bytes_per_s" in fitted.at_prior
    assert fitted.constants.kv_bytes_per_s == pytest.approx(suggested(bare).kv_bytes_per_s)
    assert "routing_alpha" in fitted.at_prior
    assert "weight_bytes_per_s" not in fitted.at_prior


def test_dense_probes_alone_fit_nothing_of_experts() -> None:
    found = steps(tuple(s for s in SMALL if not s.is_moe), TRUTH)
    names = {p.name for p in parameters(found, suggested(found))}
    assert not names & {"moe_layer_s", "expert_s", "expert_compute"}


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(BreakevenError, match="--budget"):
        fit(steps(SMALL[:1], TRUTH))


@given(st.floats(1e-12, 1e12), st.sampled_from(sorted(COSTS)))
def test_a_parameter_keeps_within_its_bounds_and_comes_back(value: float, name: str) -> None:
    prior, low, high = COSTS[name]
    parameter = Parameter(name, prior, 1.0, low, high)
    back = parameter.from_scale(parameter.to_scale(value))
    assert low <= back <= high
    if low <= value <= high:
        assert back == pytest.approx(value)


def test_values_reach_fields_and_keys() -> None:
    chosen = [Parameter("step_s", 1e-4, 1, 0, 1), Parameter("type_cost", 1, 1, 0.1, 5, key="Q6_K")]
    constants = with_values(TRUTH, chosen, [5e-4, 2.0])
    assert (constants.step_s, constants.type_cost) == (5e-4, {"Q6_K": 2.0})


def test_a_model_left_out_has_no_part_in_its_prediction() -> None:
    found = steps(SMALL, TRUTH, noise=0.02)
    name = SMALL[2].name
    wrong = [retimed(s, s.seconds * 4.0) if s.model == name else s for s in found]
    fitted = fit(found, tile=4)
    clean = {id(x.seen): x for x in leave_models_out(found, fitted)}
    spoilt = leave_models_out(wrong, fitted)
    for before, after in zip(found, spoilt, strict=True):
        if before.model == name:
            assert after.log_error == pytest.approx(clean[id(before)].log_error - math.log(4.0), abs=1e-9)


def test_errors_are_of_what_was_left_out() -> None:
    found = steps(SMALL, TRUTH, noise=0.05)
    left_out = leave_models_out(found, fit(found, tile=4))
    by_name = {(e.phase, e.kind): e for e in errors_of(left_out)}
    assert len(by_name) == 4
    decode = by_name["decode", "dense"]
    assert decode.n == sum(not s.is_moe for s in SMALL)
    mine = [abs(x.log_error) for x in left_out if (x.seen.phase, x.seen.kind) == ("decode", "dense")]
    assert np.mean(np.array(mine) <= decode.log_half_width) >= 0.9
    assert decode.median == pytest.approx(float(np.median(np.abs(np.expm1([-e for e in mine])))), rel=0.2)


def test_a_kind_never_probed_gets_a_wider_interval() -> None:
    found = steps(tuple(s for s in SMALL if not s.is_moe), TRUTH, noise=0.05)
    by_name = {(e.phase, e.kind): e for e in errors_of(leave_models_out(found, fit(found, tile=4)))}
    assert by_name["decode", "moe"].n == 0
    assert by_name["decode", "moe"].log_half_width > by_name["decode", "dense"].log_half_width


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=200), st.integers(2, 20))
def test_the_half_width_holds_nine_of_ten(values: list[float], models: int) -> None:
    width = half_width(values, models)
    assert np.mean(np.abs(values) <= width) >= 0.9
    assert width <= max(abs(v) for v in values) * math.sqrt(1.5)


def test_ranges_span_the_probes() -> None:
    spans = {r.quantity: (r.low, r.high) for r in ranges_of(steps(SMALL, TRUTH))}
    assert spans["batch"] == (1.0, 8.0)
    assert spans["context"][1] == 522.0
    assert spans["active_params"][0] < 2e7 < 3e8 < spans["active_params"][1]


def test_left_out_rows_are_in_order() -> None:
    found = steps(SMALL[:4], TRUTH)
    left_out = leave_models_out(found, fit(found, tile=4))
    assert all(isinstance(x, LeftOut) for x in left_out)
    assert [x.seen for x in left_out] == found


def test_rows_of_the_cache_cost_what_heads_make_of_them() -> None:
    """Of two models with as many bytes of keys and values, the one with more heads reads more rows."""
    few, many = (
        terms_of(dense(f"h{heads}", 1024, 4, 2048, 16, heads, dim), FORMAT) for heads, dim in ((4, 128), (8, 64))
    )
    assert [group.rows for terms in (few, many) for group in terms.attention] == [4 * 4, 4 * 8]
    free = msgspec.structs.replace(TRUTH, kv_row_s=0.0)

    def cost_s(terms: Terms, sequences: int, context: float) -> float:
        return float(step_s(terms, TRUTH, sequences, context)) - float(step_s(terms, free, sequences, context))

    assert cost_s(few, 3, 500.0) == pytest.approx(6e-8 * 16 * 500 * 3)
    kv_s = [float(step_parts(few, constants, 3, 500.0).kv_s) for constants in (TRUTH, free)]
    assert kv_s[0] - kv_s[1] == pytest.approx(cost_s(few, 3, 500.0)), "it is told as time of keys and values"
    assert cost_s(many, 3, 500.0) == pytest.approx(2 * cost_s(few, 3, 500.0))
    assert fit(steps(SMALL, TRUTH, noise=0.02), tile=4).constants.kv_row_s == pytest.approx(6e-8, rel=0.3)
    # On a device nothing is known of rows: the constant is not there to be fitted.
    assert fit(steps(SMALL, msgspec.structs.replace(TRUTH, tile=1, tile_cost={}))).constants.kv_row_s == 0.0


def test_arithmetic_costs_are_neutral_by_default_and_count_where_given() -> None:
    terms = terms_of(UNSEEN[0], FORMAT)
    plain = Constants(
        weight_bytes_per_s=1e30, kv_bytes_per_s=1e30, decode_flops_per_s=1e9, prefill_flops_per_s=1e9, overlap=1.0
    )
    assert float(step_parts(terms, plain, 1.0, 0.0).compute_s) == pytest.approx(terms.token_flops / 1e9)
    doubled = msgspec.structs.replace(plain, type_compute={kind: 2.0 for kind, _ in terms.work})
    assert float(step_parts(terms, doubled, 1.0, 0.0).compute_s) == pytest.approx(2 * terms.token_flops / 1e9)
    tiled = msgspec.structs.replace(plain, tile=4, tile_cost={kind: 0.5 for kind, _ in terms.work})
    one, four, five = (float(step_parts(terms, tiled, b, 0.0).compute_s) for b in (1.0, 4.0, 5.0))
    assert four == pytest.approx(2 * one)
    assert five == pytest.approx(four + one)


def test_experts_are_not_tiled() -> None:
    terms = terms_of(UNSEEN[2], FORMAT)
    constants = Constants(
        weight_bytes_per_s=1e30,
        kv_bytes_per_s=1e30,
        decode_flops_per_s=1e9,
        prefill_flops_per_s=1e9,
        tile=4,
        tile_cost={kind: 0.5 for kind, _ in (*terms.work, *terms.expert_work)},
    )
    routed = sum(share for _, share in terms.expert_work)
    assert routed + sum(share for _, share in terms.work) == pytest.approx(1.0)
    four = float(step_parts(terms, constants, 4.0, 0.0).compute_s)
    assert four == pytest.approx(4 * terms.token_flops / 1e9 * (routed + 0.5 * (1 - routed)))


def test_probes_fit_the_memory_they_are_given() -> None:
    for gpu, name in ((False, "small"), (True, "large")):
        everything = SETS[name]
        assert probes_for("BF16", gpu=gpu, memory_bytes=1e15) == everything
        half = sorted(file_bytes(s, "BF16") for s in everything)[len(everything) // 2]
        chosen = probes_for("BF16", gpu=gpu, memory_bytes=3 * half)
        assert chosen
        assert max(file_bytes(s, "BF16") for s in chosen) <= half
        kinds = {s.is_moe for s in everything[:2]}
        assert kinds == {True, False}
    slots, context = slots_and_context(loads_for(gpu=False))
    assert slots == 8
    assert context == 768


HOST_TRUTH = msgspec.structs.replace(
    TRUTH,
    tile=1,
    tile_cost={},
    kv_row_s=0.0,
    host_bytes_per_s=6e9,
    host_flops_per_s=3e10,
    stream_bytes_per_s=2e9,
    handover_s=1e-4,
)
PLACED = tuple(spec for spec in SMALL if spec.is_moe)[:4] + tuple(spec for spec in SMALL if not spec.is_moe)[:3]


def placed_steps(specs: tuple[ModelSpec, ...], truth: Constants, noise: float = 0.0) -> list[Observation]:
    """The same with none, half and all experts of what routes in host memory, at loads on both sides of 32 tokens."""
    rng = np.random.default_rng(1)
    found = []
    for spec in specs:
        layers, terms = len(spec.layers), terms_of(spec, FORMAT)
        for away in (0, layers // 2, layers) if spec.is_moe else (0,):
            placed = Placed(how="asked", gpu_layers=layers + 1, layers=layers + 1, cpu_moe=away)
            where = residency_as_placed(placed, spec, FORMAT)
            assert where is not None
            for phase, streams, tokens in (
                *(("decode", n, 40.0) for n in (1, 2, 4, 8)),
                ("decode", 2, 520.0),
                *(("prefill", 1, n) for n in (24.0, 128.0, 512.0)),
            ):
                blank = Observation(spec.name, terms, phase, streams, tokens, 1.0, 1, where)  # type: ignore[arg-type]
                seconds = float(step_parts(terms, truth, *arguments(blank), where).total_s)
                seconds *= math.exp(noise * rng.standard_normal())
                found.append(Observation(spec.name, terms, blank.phase, streams, tokens, seconds, 1, where))
    return found


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.floats(2e9, 2e10), st.floats(5e8, 1e10), st.floats(2e-5, 5e-4))
def test_the_path_to_host_memory_comes_back(host: float, stream: float, handover: float) -> None:
    truth = msgspec.structs.replace(
        HOST_TRUTH, host_bytes_per_s=host, host_flops_per_s=5.0 * host, stream_bytes_per_s=stream, handover_s=handover
    )
    found = fit(placed_steps(PLACED, truth))
    constants = found.constants
    assert constants.stream_bytes_per_s == pytest.approx(stream, rel=0.05)
    assert constants.handover_s == pytest.approx(handover, rel=0.1)
    for name in ("host_bytes_per_s", "host_flops_per_s"):
        if name not in found.at_prior:  # of reading and multiplying the longer alone shows
            true = getattr(truth, name)
            assert abs(math.log(getattr(constants, name) / true)) < max(0.06, 2.0 * found.spread[name])
    unseen = placed_steps(UNSEEN, truth)
    assert float(np.median(errors(constants, unseen))) < 0.03


def test_an_unseen_model_is_predicted_wherever_its_experts_lie() -> None:
    seen = placed_steps(PLACED, HOST_TRUTH, noise=0.05)
    found = fit(seen)
    unseen = placed_steps(UNSEEN, HOST_TRUTH)
    off = errors(found.constants, unseen)
    assert float(np.median(off)) < 0.1
    decode = [x for x in unseen if x.phase == "decode" and x.model == "unseen-m" and x.sequences == 1]
    predicted = table(decode).log_predicted(found.constants)
    assert [int(i) for i in np.argsort(predicted)] == [int(i) for i in np.argsort([x.seconds for x in decode])]
    assert {"stream_bytes_per_s", "handover_s"} <= set(found.spread)
    told = errors_of(leave_models_out(seen, found))
    assert {(e.phase, e.kind, e.spilled) for e in told} == {
        (phase, kind, spilled)
        for phase in ("decode", "prefill")
        for kind in ("dense", "moe")
        for spilled in (False, True)
    }
    assert all(e.n == 4 for e in told if e.spilled and e.kind == "moe")
    assert all(e.n == 0 for e in told if e.spilled and e.kind == "dense")


def test_one_shape_is_fitted_with_what_it_can_tell() -> None:
    truth = msgspec.structs.replace(TRUTH, tile=1, tile_cost={}, step_s=0.0, layer_s=0.0, element_s=0.0, overlap=0.99)
    alone = steps(SMALL[:1], truth)
    found = fit(alone, few=True)
    assert {"layer_s", "step_s", "element_s", "overlap"} <= set(found.at_prior)
    assert float(np.median(np.abs(found.residuals))) < 0.05
    with pytest.raises(BreakevenError, match="too few"):
        fit(alone)
    with pytest.raises(BreakevenError, match="too few"):
        fit(alone[:2], few=True)


@pytest.mark.parametrize(
    ("placed", "whole"),
    [
        (None, True),
        (Placed(how="asked", gpu_layers=0, layers=9), True),
        (Placed(how="fitted", gpu_layers=9, layers=9), True),
        (Placed(how="asked", gpu_layers=9, layers=9, cpu_moe=3), False),
        (Placed(how="asked", gpu_layers=4, layers=9), False),
        (
            Placed(how="fitted", memory=[MemoryAt(place="GPU", held_bytes=99), MemoryAt(place="host", held_bytes=1)]),
            True,
        ),
        (
            Placed(how="fitted", memory=[MemoryAt(place="GPU", held_bytes=5), MemoryAt(place="host", held_bytes=5)]),
            None,
        ),
    ],
)
def test_where_a_probe_lay_is_as_its_engine_said(placed: Placed | None, whole: bool | None) -> None:
    spec = next(spec for spec in SMALL if spec.name == "probe-m1024x8-e32k4")
    where = residency_as_placed(placed, spec, FORMAT)
    assert (where.whole if where else None) == whole


def test_the_error_is_parted_into_the_machines_and_the_models() -> None:
    """Steps of 10 ms whose visits scatter by 8 %, predicted by a model that is 6 % off in its own way."""
    rng = np.random.default_rng(4)
    seen = []
    for i, x in enumerate(itertools.islice(itertools.cycle(steps(SMALL[:4], TRUTH)), 400)):
        visits = tuple(float(v) for v in 0.010 * np.exp(rng.normal(0, 0.08, 2 + i % 3)))
        seen.append(replace(x, seconds=float(np.exp(np.mean(np.log(visits)))), visits=visits))
    repeat = repeat_error(seen)
    assert repeat is not None
    # The mean of 2, 3 and 4 visits: 0.6745 x 0.08 x sqrt((1/2 + 1/3 + 1/4) / 3).
    assert repeat == pytest.approx(0.6745 * 0.08 * math.sqrt(13 / 36), rel=0.12)
    left = [LeftOut(x, math.log(0.010 / x.seconds) + float(rng.normal(0, 0.06))) for x in seen]
    errors = [e for e in errors_of(left) if e.n]
    for error in errors:
        assert error.repeat is not None
        assert error.of_model is not None
        assert error.median == pytest.approx(math.hypot(error.repeat, error.of_model), rel=1e-6)
        assert error.of_model == pytest.approx(0.6745 * 0.06, abs=0.015)


def test_what_was_measured_once_says_nothing_of_the_machine() -> None:
    once = steps(SMALL[:4], TRUTH)
    assert repeat_error(once) is None
    assert model_error(0.1, None) is None
    assert model_error(0.05, 0.08) == 0.0, "the machine's part may be all of it"
    assert all(error.repeat is None for error in errors_of([LeftOut(x, 0.05) for x in once]))
