"""The step model: what must hold for any model, load and constants, and values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.forecast.constants import Constants
from breakeven.forecast.model import StepModel, shard, step_model
from breakeven.forecast.residency import ON_DEVICE
from breakeven.forecast.routing import MOST_LEVELS, read_routing, routing_known, skewed, with_frequencies
from breakeven.forecast.terms import ExpertGroup, Terms, occupancies, residency, step_parts, terms_of
from breakeven.model.architecture import MoeFfn
from breakeven.model.arithmetic import Phase as ArithmeticPhase
from breakeven.model.arithmetic import decode_bytes, flops_per_token, kv_bytes, occupancy_of
from breakeven.model.catalogue import lookup
from tests.predict_fixtures import CONSTANTS, profile

MODELS = ("llama-3.2-1b", "olmoe-1b-7b", "gpt-oss-20b", "deepseek-v2-lite", "lfm2-8b-a1b", "qwen3-next-80b-a3b")
models = st.sampled_from(MODELS)
formats = st.sampled_from(["BF16", "Q4_K_M", "MXFP4"])
batches = st.integers(1, 512)
contexts = st.integers(1, 100_000)
rates = st.floats(1e9, 1e16)
costs = st.floats(0, 1e-2)
constants = st.builds(
    Constants,
    weight_bytes_per_s=st.floats(1e8, 1e13),
    kv_bytes_per_s=st.floats(1e8, 1e13),
    decode_flops_per_s=rates,
    prefill_flops_per_s=rates,
    overlap=st.floats(0, 1),
    step_s=costs,
    layer_s=costs,
    moe_layer_s=costs,
    expert_s=costs,
    sequence_s=costs,
    prefill_token_s=costs,
    routing_alpha=st.floats(0.5, 1),
)


def terms(name: str, format_name: str = "Q4_K_M") -> Terms:
    return terms_of(lookup(name), format_name)


@given(models, formats, batches)
def test_weight_bytes_are_those_of_the_arithmetic(name: str, format_name: str, batch: int) -> None:
    parts = step_parts(terms(name, format_name), CONSTANTS, batch, 100)
    assert float(parts.weight_bytes) == pytest.approx(decode_bytes(lookup(name), format_name, batch))


@given(models, batches, contexts)
def test_cache_bytes_and_operations_are_those_of_the_arithmetic(name: str, batch: int, context: int) -> None:
    spec, found = lookup(name), terms(name)
    parts = step_parts(found, CONSTANTS, batch, context)
    assert float(parts.kv_bytes) == pytest.approx(batch * (kv_bytes(spec, context) + found.state_bytes))
    flops = batch * flops_per_token(spec, context, ArithmeticPhase.DECODE)
    assert float(parts.compute_s) * CONSTANTS.decode_flops_per_s == pytest.approx(flops)


def test_logits_are_moved_for_every_decoding_sequence_and_no_prompt() -> None:
    found, moving = terms("llama-3.2-1b"), msgspec.structs.replace(CONSTANTS, logit_bytes=10.0)
    for prompt in (0, 512):
        extra = step_parts(found, moving, 8, 100, prompt).total_s - step_parts(found, CONSTANTS, 8, 100, prompt).total_s
        assert float(extra) == pytest.approx(8 * 10.0 * lookup("llama-3.2-1b").vocab / CONSTANTS.kv_bytes_per_s)


def test_steps_too_large_for_a_captured_graph_take_as_long_as_launching_them() -> None:
    found = terms("olmoe-1b-7b", "BF16")
    launched = msgspec.structs.replace(CONSTANTS, launch_layer_s=3e-4, launch_moe_layer_s=2e-4, graph_tokens=512)
    least = 3e-4 * found.layers + 2e-4 * found.moe_layers
    for d, p in ((0, 512), (100, 412), (512, 0)):
        one, other = (step_parts(found, each, d, 100, p, 256).total_s for each in (launched, CONSTANTS))
        assert one == other
    fast = msgspec.structs.replace(
        launched, weight_bytes_per_s=1e15, kv_bytes_per_s=1e15, decode_flops_per_s=1e18, prefill_flops_per_s=1e18
    )
    for d, p in ((1, 512), (513, 0)):
        assert float(step_parts(found, fast, d, 100, p, 256).total_s) == pytest.approx(least)
    slow = msgspec.structs.replace(launched, prefill_flops_per_s=1e12)
    plain = msgspec.structs.replace(slow, launch_layer_s=0.0, launch_moe_layer_s=0.0)
    assert step_parts(found, slow, 1, 100, 8192, 4096).total_s == step_parts(found, plain, 1, 100, 8192, 4096).total_s


def test_layers_that_are_a_mixer_or_a_feed_forward_count_half() -> None:
    assert len(lookup("nemotron-3-nano-30b-a3b").layers) == 52
    assert terms("nemotron-3-nano-30b-a3b", "BF16").layers == 26
    assert terms("llama-3.2-1b").layers == len(lookup("llama-3.2-1b").layers)


@given(models, constants, batches, contexts, st.integers(0, 8192), st.integers(1, 64))
def test_more_work_never_takes_less_time(
    name: str, given_constants: Constants, batch: int, context: int, prompt: int, more: int
) -> None:
    found = terms(name)

    def seconds(b: int, c: int, p: int) -> float:
        return float(step_parts(found, given_constants, b, c, p, p / 2).total_s)

    least = seconds(batch, context, prompt) * (1 - 1e-9)
    assert least > 0
    assert seconds(batch + more, context, prompt) >= least
    assert seconds(batch, context + more, prompt) >= least
    assert seconds(batch, context, prompt + more) >= least


@given(models, constants, batches)
def test_a_format_with_more_bytes_takes_no_less_time(name: str, given_constants: Constants, batch: int) -> None:
    small, large = (step_parts(terms(name, f), given_constants, batch, 512) for f in ("Q4_K_M", "BF16"))
    assert small.total_s <= large.total_s * (1 + 1e-9)


@given(models, constants, batches, contexts)
def test_time_lies_between_the_longest_part_and_the_sum(
    name: str, given_constants: Constants, batch: int, context: int
) -> None:
    parts = step_parts(terms(name), given_constants, batch, context)
    memory = parts.weights_s + parts.kv_s
    assert parts.total_s >= np.maximum(memory, parts.compute_s) * (1 - 1e-9)
    assert parts.total_s <= (memory + parts.compute_s + parts.overhead_s) * (1 + 1e-9)


def test_a_step_by_hand() -> None:
    spec = lookup("llama-3.2-1b")
    own = Constants(
        weight_bytes_per_s=1e9, kv_bytes_per_s=1e8, decode_flops_per_s=1e15, prefill_flops_per_s=1e9, step_s=0.5
    )
    found = float(step_parts(terms_of(spec, "BF16"), own, 2, 1000).total_s)
    by_hand = decode_bytes(spec, "BF16", 2) / 1e9 + 2 * kv_bytes(spec, 1000) / 1e8 + 0.5
    assert found == pytest.approx(by_hand)


def test_arrays_give_what_numbers_give() -> None:
    model = step_model(lookup("olmoe-1b-7b"), profile(), "Q4_K_M")
    batch, context, prompt = np.array([1, 4, 9]), np.array([[10.0], [900.0]]), np.array([0, 512, 7])
    together = model.step_s(batch, context, prompt, 100.0)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert together[i, j] == pytest.approx(float(model.step_s(batch[j], context[i, 0], prompt[j], 100.0)))


@given(models, st.integers(0, 1000), st.floats(0.5, 1))
def test_occupancy_has_its_bounds(name: str, tokens: int, alpha: float) -> None:
    found = terms(name)
    for group, share in zip(found.experts, occupancies(found, tokens, alpha), strict=True):
        assert 0 <= share <= min(1, tokens * group.per_token / group.n_experts) + 1e-9


# --- routing ---------------------------------------------------------------------------------------------------------


def rows(name: str, share: float | None = None) -> list[list[float]]:
    """Even routing, or random routing with its mean."""
    rng = np.random.default_rng(1)
    found = []
    for layer in lookup(name).layers:
        if isinstance(layer.ffn, MoeFfn):
            mean = layer.ffn.n_experts_per_token / layer.ffn.n_experts
            spread = rng.dirichlet(np.full(layer.ffn.n_experts, share)) if share else None
            row = [mean] * layer.ffn.n_experts if spread is None else list(spread * layer.ffn.n_experts_per_token)
            found.append([min(float(p), 1.0) for p in row])
    return found


def test_even_measured_routing_is_uniform_routing() -> None:
    found = terms("olmoe-1b-7b")
    measured = with_frequencies(found, lookup("olmoe-1b-7b"), rows("olmoe-1b-7b"))
    assert routing_known(measured)
    assert not routing_known(found)
    tokens = np.arange(1, 200)
    assert occupancies(measured, tokens)[0] == pytest.approx(occupancies(found, tokens)[0])


@pytest.mark.parametrize("tokens", [1, 2, 8, 40, 300])
@pytest.mark.parametrize("share", [0.3, 2.0])
def test_measured_routing_keeps_its_occupancy(tokens: int, share: float) -> None:
    given_rows = rows("olmoe-1b-7b", share)
    measured = with_frequencies(terms("olmoe-1b-7b"), lookup("olmoe-1b-7b"), given_rows)
    assert len(measured.experts[0].frequencies or ()) <= MOST_LEVELS
    exact = np.mean([occupancy_of(row, tokens) for row in given_rows])
    assert occupancies(measured, tokens)[0] == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("bad", [[], [[0.1] * 64] * 15, [[0.1] * 63] * 16, [[1.5] * 64] * 16])
def test_routing_of_another_model_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(UserError, match="route"):
        with_frequencies(terms("olmoe-1b-7b"), lookup("olmoe-1b-7b"), bad)


def test_a_layer_of_which_nothing_was_seen_is_no_routing() -> None:
    found = rows("olmoe-1b-7b")
    found[3] = [0.0] * 64
    with pytest.raises(UserError, match=r"of routed layer 3 of .* nothing was seen"):
        with_frequencies(terms("olmoe-1b-7b"), lookup("olmoe-1b-7b"), found)


def test_routing_without_frequencies_by_token_is_refused_in_words(tmp_path: Path) -> None:
    kept = tmp_path / "experts-moe.json"  # of a backend that counts choices and not tokens
    kept.write_text(json.dumps({"layers": [{"layer": layer, "frequencies": []} for layer in range(16)]}))
    with pytest.raises(UserError, match="no frequencies by token are known"):
        with_frequencies(terms("olmoe-1b-7b"), lookup("olmoe-1b-7b"), read_routing(kept))


@given(st.integers(2, 512), st.integers(1, 8), st.floats(0, 3), st.integers(1, 300))
def test_skewed_routing_touches_no_more(n: int, k: int, exponent: float, tokens: int) -> None:
    group = ExpertGroup(n, min(k, n), 1, (("F16", 1.0),))
    even = terms("olmoe-1b-7b")
    one = Terms(**{**{f: getattr(even, f) for f in Terms.__slots__}, "experts": (group,)})
    uneven = skewed(one, exponent)
    assert np.mean(uneven.experts[0].frequencies or ()) == pytest.approx(group.per_token / n)
    assert occupancies(uneven, tokens)[0] <= occupancies(one, tokens)[0] + 1e-9
    assert occupancies(uneven, 1)[0] == pytest.approx(group.per_token / n)


def test_unknown_routing_widens_the_fast_end_alone() -> None:
    model = step_model(lookup("olmoe-1b-7b"), profile(), "Q4_K_M")
    traced = step_model(lookup("olmoe-1b-7b"), profile(), "Q4_K_M", frequencies=rows("olmoe-1b-7b"))
    for batch, wider in ((1, False), (8, True)):
        (fast, slow), (known_fast, known_slow) = (m.low_high() for m in (model, traced))
        assert bool(fast.step_s(batch, 1) < known_fast.step_s(batch, 1) * 0.999) is wider
        assert slow.step_s(batch, 1) == pytest.approx(known_slow.step_s(batch, 1))


def with_errors(decode: float, prefill: float) -> StepModel:
    kept = profile(engine="vllm")
    widths = {"decode": decode, "prefill": prefill}
    errors = [msgspec.structs.replace(e, log_half_width=widths[e.phase]) for e in kept.errors]
    return StepModel(lookup("llama-3.2-1b"), terms("llama-3.2-1b"), msgspec.structs.replace(kept, errors=errors))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_ends_of_mixed_work_add_what_prompts_are_off_beyond_decoding(share: float) -> None:
    model = with_errors(0.02, 0.06)
    decode, prompt = (8, 500), (0, 0, 512, 256)
    # As many of both steps as make prompts this share of the time.
    n, m = (1 - share) / float(model.step_s(*decode)), share / float(model.step_s(*prompt))
    times = [n * float(one.step_s(*decode)) + m * float(one.step_s(*prompt)) for one in model.ends(share)]
    assert times[1] == pytest.approx(np.exp(np.hypot(0.02, share * np.sqrt(0.06**2 - 0.02**2))), rel=2e-3)
    assert times[0] == pytest.approx(1 / times[1], rel=2e-3)


def test_ends_without_prompts_are_those_of_decoding() -> None:
    model = with_errors(0.2, 0.9)
    for share, one in ((0.0, model), (0.6, with_errors(0.4, 0.3))):
        for ours, known in zip(one.ends(share), one.low_high("decode"), strict=True):
            assert float(ours.step_s(8, 500, 99, 50)) == pytest.approx(float(known.step_s(8, 500, 99, 50)))
    assert with_errors(0.0, 0.0).ends(0.5)[1] == with_errors(0.0, 0.0)


def test_a_prompt_in_a_step_is_off_by_its_own_error() -> None:
    model = with_errors(0.1, 0.5)
    plain = float(model.step_s(8, 500))
    added = float(model.step_s(8, 500, 512, 256)) - plain
    slow = model.ends(1.0)[1]
    assert float(slow.step_s(0, 0, 512, 256)) == pytest.approx(float(model.step_s(0, 0, 512, 256)) * np.exp(0.5))
    common = float(slow.step_s(8, 500)) / plain
    assert common == pytest.approx(np.exp(0.1**2 / 0.5))
    assert float(slow.step_s(8, 500, 512, 256)) == pytest.approx(plain * common + added * np.exp(0.5))


# --- several devices -------------------------------------------------------------------------------------------------


@given(models, batches, contexts)
def test_one_device_is_no_parallelism(name: str, batch: int, context: int) -> None:
    found = terms(name)
    assert shard(found, 1, "none") is found
    model = StepModel(lookup(name), found, profile(engine="vllm"))
    assert float(model.step_s(batch, context)) == float(step_parts(found, CONSTANTS, batch, context).total_s)
    assert not model.parts(batch, context).link_s.any()


@given(models, st.sampled_from([2, 4, 8]), st.booleans(), batches, st.integers(1, 64))
def test_devices_share_the_bytes_and_pay_for_the_link(
    name: str, devices: int, experts: bool, batch: int, more: int
) -> None:
    one = StepModel(lookup(name), terms(name), profile(engine="vllm"))
    several = StepModel(lookup(name), terms(name), profile(engine="vllm"), devices, expert_parallel=experts)
    alone, shared = one.parts(batch, 500), several.parts(batch, 500)
    assert float(shared.weight_bytes) == pytest.approx(float(alone.weight_bytes))
    assert float(shared.kv_bytes) >= float(alone.kv_bytes) * (1 - 1e-9)
    assert float(shared.weights_s) == pytest.approx(float(alone.weights_s) / devices)
    assert float(shared.link_s) > 0
    assert several.step_s(batch + more, 500) >= several.step_s(batch, 500) * (1 - 1e-9)


def test_a_latent_cache_is_copied_to_every_device() -> None:
    latent, heads = (
        [StepModel(lookup(name), terms(name), profile(engine="vllm"), n).parts(1, 4000).kv_bytes for n in (1, 8)]
        for name in ("deepseek-v2-lite", "olmoe-1b-7b")
    )
    assert latent[1] == pytest.approx(8 * latent[0])
    assert heads[1] == pytest.approx(heads[0])


def test_llama_cpp_on_two_devices_gains_memory_but_no_speed() -> None:
    one, two = (step_model(lookup("olmoe-1b-7b"), profile(), "BF16", n) for n in (1, 2))
    assert two.step_s(1, 10) >= one.step_s(1, 10)
    assert (two.usable_bytes() or 0) == 2 * (one.usable_bytes() or 0)


# --- memory and residency --------------------------------------------------------------------------------------------


@given(models, st.floats(0, 1.2), st.floats(0, 1.2) | st.none())
def test_what_leaves_is_what_does_not_fit(name: str, room: float, host: float | None) -> None:
    found = terms(name)
    where = residency(found, room * found.total_bytes, None if host is None else host * found.total_bytes)
    shares = (where.fixed_host, where.fixed_disk, where.experts_host, where.experts_disk)
    assert all(0 <= share <= 1 + 1e-9 for share in shares)
    assert where.away_bytes == pytest.approx(max(0.0, 1 - room) * found.total_bytes, abs=1)
    if where.fixed_host + where.fixed_disk > 0 and found.moe:
        assert where.experts_host + where.experts_disk == pytest.approx(1)
    if host is None:
        assert where.fixed_disk == where.experts_disk == 0


@given(models, st.floats(0, 1), st.floats(0.01, 1), batches)
def test_less_room_never_makes_a_step_faster(name: str, room: float, less: float, batch: int) -> None:
    found = terms(name)
    slower = Constants(
        weight_bytes_per_s=50e9,
        kv_bytes_per_s=40e9,
        decode_flops_per_s=1e15,
        prefill_flops_per_s=1e15,
        host_bytes_per_s=20e9,
        disk_bytes_per_s=1e9,
    )

    def seconds(share: float) -> float:
        where = residency(found, share * found.total_bytes, 0.3 * found.total_bytes)
        return float(step_parts(found, slower, batch, 100, where=where).total_s)

    assert seconds(room * less) >= seconds(room) * (1 - 1e-9)


def test_a_model_larger_than_memory_is_read_from_disk() -> None:
    spec = lookup("qwen3-30b-a3b")
    fitting = step_model(spec, profile(memory_bytes=40 * 10**9), "Q4_K_M")
    too_large = step_model(spec, profile(memory_bytes=16 * 10**9), "Q4_K_M")
    assert fitting.residency == ON_DEVICE
    assert fitting.fits(1, 512)
    assert not too_large.fits(1, 512)
    parts = too_large.parts(1, 512)
    assert parts.disk_s > 0
    assert parts.host_s == 0
    assert too_large.step_s(1, 512) > 3 * fitting.step_s(1, 512)


def test_vllm_keeps_everything_on_the_device() -> None:
    model = step_model(lookup("qwen3-30b-a3b"), profile(engine="vllm"), "BF16")
    assert model.residency == ON_DEVICE
    assert not model.fits(1, 512)
    assert model.kv_tokens() == 0


@settings(max_examples=30)
@given(models, st.floats(1, 500), st.sampled_from(["vllm", "llama.cpp"]), st.sampled_from([1, 4]))
def test_tokens_that_fit_do_fit(name: str, gigabytes: float, engine: str, devices: int) -> None:
    made = profile(engine=engine, memory_bytes=int(gigabytes * 1e9))
    model = StepModel(lookup(name), terms(name, "BF16"), made, devices)
    tokens = model.kv_tokens()
    assert tokens is not None
    assert tokens >= 0
    if tokens:
        # llama.cpp gives caches in cells of 256 tokens.
        per_token = (model.memory(1, 512).kv - model.memory(1, 256).kv) / 256
        assert model.memory_bytes(0, 0) + tokens * per_token <= (model.usable_bytes() or 0) * (1 + 1e-9)
    assert model.kv_tokens(100_000) >= tokens


def test_memory_is_unknown_where_the_profile_does_not_say() -> None:
    model = step_model(lookup("olmoe-1b-7b"), profile(memory_bytes=None), "BF16")
    assert model.kv_tokens() is None
    assert model.fits(1000, 100_000)


def test_a_long_prompt_is_read_in_the_engines_steps() -> None:
    model = step_model(lookup("llama-3.2-1b"), profile(), "BF16")
    assert model.prefill_s(512) == pytest.approx(model.step_s(0, 0, 512, 256.5))
    assert model.prefill_s(1024) == pytest.approx(2 * model.step_s(0, 0, 512, 512.5))


def test_number_types_cost_arithmetic() -> None:
    found = terms("olmoe-1b-7b")
    plain = step_parts(found, CONSTANTS, 8, 1).compute_s
    assert sum(share for _, share in (*found.work, *found.expert_work)) == pytest.approx(1)
    kinds = {kind for kind, _ in (*found.work, *found.expert_work)}
    twice = msgspec.structs.replace(CONSTANTS, type_compute=dict.fromkeys(kinds, 2.0))
    attention = step_parts(found, twice, 8, 1).compute_s - plain
    assert attention == pytest.approx(8 * found.token_flops / CONSTANTS.decode_flops_per_s)
    routed = sum(share for _, share in found.expert_work)
    slow = msgspec.structs.replace(CONSTANTS, expert_compute=3.0)
    more = step_parts(found, slow, 8, 1).compute_s - plain
    assert more == pytest.approx(8 * 2 * routed * found.token_flops / CONSTANTS.decode_flops_per_s)


def test_sequences_left_over_from_a_tile_cost_as_single_ones() -> None:
    found = terms("llama-3.2-1b")
    kinds = {kind for kind, _ in found.work}
    tiled = msgspec.structs.replace(CONSTANTS, tile=4, tile_cost=dict.fromkeys(kinds, 0.5))
    times = [float(step_parts(found, tiled, n, 0).compute_s) for n in (1, 3, 4, 5, 8)]
    assert np.array(times) / times[0] == pytest.approx([1, 3, 2, 3, 4])


def test_sequences_beyond_the_vector_kernels_go_in_tiles() -> None:
    found = terms("llama-3.2-1b")
    rows = msgspec.structs.replace(CONSTANTS, vector_rows=8, prefill_flops_per_s=10 * CONSTANTS.decode_flops_per_s)
    eight, sixteen = (float(step_parts(found, rows, n, 0).compute_s) for n in (8, 16))
    all_vectors = float(step_parts(found, CONSTANTS, 16, 0).compute_s)
    assert eight == pytest.approx(all_vectors / 2)
    assert sixteen - eight == pytest.approx((all_vectors - eight) / 10)


def test_experts_multiply_whole_tiles_however_few_their_tokens_are() -> None:
    found = terms("olmoe-1b-7b")
    own = msgspec.structs.replace(CONSTANTS, vector_rows=8)
    tiled = msgspec.structs.replace(own, expert_tile=32.0)
    few, many = (step_parts(found, tiled, n, 1).compute_s / step_parts(found, own, n, 1).compute_s for n in (16, 4096))
    assert few > 2
    assert many == pytest.approx(1, rel=0.01)
    assert step_parts(found, tiled, 8, 1).compute_s == pytest.approx(step_parts(found, own, 8, 1).compute_s)


def test_delta_nets_and_latents_cost_more_than_plain_attention() -> None:
    slow = msgspec.structs.replace(CONSTANTS, mixer_layer_s=1e-4)
    for name, layers in (("llama-3.2-1b", 0), ("deepseek-v2-lite", 27), ("qwen3.5-35b-a3b", 30)):
        more = step_parts(terms(name), slow, 1, 1).overhead_s - step_parts(terms(name), CONSTANTS, 1, 1).overhead_s
        assert more == pytest.approx(layers * 1e-4), name
