"""Families: configurations in, specs out, metadata that gives the same spec back, and errors that name the fact."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from families_fixtures import SMALL, small_config, small_spec

from breakeven.errors import UserError
from breakeven.model.architecture import DenseFfn, Gating, Gqa, LinearAttention, MoeFfn, OutputGate, ShortConv
from breakeven.model.arithmetic import check_count
from breakeven.model.catalogue import entries, spec_from_facts
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.layouts.registry import FAMILIES, family_of, why_not_written
from breakeven.model.readers.gguf import spec_from_gguf
from breakeven.model.tensors import tensors

_FACTS = {entry.name: entry.facts for entry in entries()}


@pytest.mark.parametrize("key", sorted(SMALL))
def test_metadata_and_tensors_give_the_spec_back(key: str) -> None:
    spec = small_spec(key)
    family = family_of(spec)
    metadata = {"general.architecture": family.gguf_architecture, **family.gguf_metadata(spec)}
    shapes = {tensor.name: tensor.shape for tensor in tensors(spec)}
    assert spec_from_gguf(metadata, shapes, name=key, source="test") == spec
    assert why_not_written(spec) is None


@pytest.mark.parametrize("key", sorted(SMALL))
def test_metadata_is_plain_and_under_the_architecture(key: str) -> None:
    spec = small_spec(key)
    family = family_of(spec)
    for name, value in family.gguf_metadata(spec).items():
        assert name.startswith(f"{family.gguf_architecture}.")
        assert isinstance(value, str | bool | int | float | list)


@pytest.mark.parametrize("name", sorted(_FACTS))
def test_every_catalogued_family_that_can_be_written_round_trips_at_full_size(name: str) -> None:
    spec = spec_from_facts(_FACTS[name])
    family = family_of(spec)
    reason = why_not_written(spec)
    if family.gguf_architecture is None:
        assert reason is not None
        return
    assert reason is None
    if spec.family in ("deepseek32", "glm-dsa"):
        return  # their scorer is read back where files are read by their tensors
    metadata = {"general.architecture": family.gguf_architecture, **family.gguf_metadata(spec)}
    back = spec_from_gguf(metadata, {t.name: t.shape for t in tensors(spec)}, name=spec.name, source=spec.source)
    assert back.layers == spec.layers


def test_registry_is_keyed_by_name() -> None:
    assert all(name == family.name for name, family in FAMILIES.items())


@pytest.mark.parametrize(
    ("key", "fact"),
    [
        ("qwen3", "head_dim"),
        ("llama", "hidden_size"),
        ("llama", "intermediate_size"),
        ("llama", "max_position_embeddings"),
        ("olmoe", "num_experts_per_tok"),
        ("gemma2", "sliding_window"),
        ("deepseek-v3", "qk_rope_head_dim"),
        ("lfm2moe", "layer_types"),
    ],
)
def test_a_missing_fact_is_named(key: str, fact: str) -> None:
    config = {k: v for k, v in small_config(key).items() if k != fact}
    with pytest.raises(UserError, match=rf"cfg: m .*{fact}.*models-yaml\.md"):
        spec_from_config(config, "m", "cfg")


@pytest.mark.parametrize("wrong", ["64", 0, -1, 1.5, True, [64]])
def test_a_malformed_fact_is_shown(wrong: object) -> None:
    with pytest.raises(UserError, match=r"hidden_size is .* must be a positive whole number"):
        spec_from_config({**small_config("llama"), "hidden_size": wrong}, "m", "cfg")


def test_an_unknown_family_is_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'mamba9' is not known here.*models-yaml\.md"):
        spec_from_config({"model_type": "mamba9"}, "m", "cfg")
    with pytest.raises(UserError, match="does not say model_type"):
        spec_from_config({"hidden_size": 64}, "m", "cfg")


def test_more_experts_used_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="9 experts a token out of 8"):
        spec_from_config({**small_config("olmoe"), "num_experts_per_tok": 9}, "m", "cfg")


def test_the_text_half_of_a_multimodal_configuration_is_read() -> None:
    config = {"model_type": "gemma3", "vision_config": {}, "text_config": small_config("gemma3")}
    assert spec_from_config(config, "m", "cfg").layers == small_spec("gemma3").layers


def test_llama4_widths_are_not_mixed_up() -> None:
    dense, routed = (small_spec("llama4").layers[i].ffn for i in (0, 1))
    assert dense == DenseFfn(width=128)
    assert isinstance(routed, MoeFfn)
    assert (routed.expert_width, routed.shared_width) == (96, 96)
    every = spec_from_config({**small_config("llama4"), "interleave_moe_layer_step": 1}, "m", "cfg")
    assert all(isinstance(layer.ffn, MoeFfn) for layer in every.layers)


def test_qwen35_attends_in_every_fourth_layer_with_a_doubled_query() -> None:
    layers = spec_from_facts(_FACTS["qwen3.5-27b"]).layers
    attends = [i for i, layer in enumerate(layers) if isinstance(layer.mixer, Gqa)]
    assert attends == list(range(3, 64, 4))
    assert all(isinstance(layers[i].mixer, LinearAttention) for i in range(64) if i not in attends)
    attention = layers[3].mixer
    assert isinstance(attention, Gqa)
    assert attention.output_gate is OutputGate.TWIN


def test_gemma4_runs_a_dense_feed_forward_beside_its_experts() -> None:
    layers = spec_from_facts(_FACTS["gemma-4-26b-a4b"]).layers
    assert {layer.ffn.dense_width for layer in layers if isinstance(layer.ffn, MoeFfn)} == {2112}
    heads = [(a.head_dim, a.window) for a in (layer.mixer for layer in layers) if isinstance(a, Gqa)]
    assert heads.count((512, None)) == 5
    assert heads.count((256, 1024)) == 25


def test_gemma_slides_in_all_but_the_last_layer_of_a_period() -> None:
    windows = [layer.mixer.window for layer in small_spec("gemma3").layers if isinstance(layer.mixer, Gqa)]
    assert windows == [512, 512, 512, 512, 512, None, 512]
    windows = [layer.mixer.window for layer in small_spec("gemma2").layers if isinstance(layer.mixer, Gqa)]
    assert windows == [512, None, 512, None]


def test_deepseek_v3_chooses_by_sigmoid_with_a_bias_and_v2_by_softmax() -> None:
    v3, v2 = (small_spec(key).layers[1].ffn for key in ("deepseek-v3", "deepseek-v2-lite"))
    assert isinstance(v3, MoeFfn)
    assert isinstance(v2, MoeFfn)
    assert (v3.gating, v3.selection_bias, v3.weights_scale) == (Gating.SIGMOID, True, 2.5)
    assert (v2.gating, v2.selection_bias) == (Gating.SOFTMAX, False)


def test_lfm2_layers_follow_layer_types() -> None:
    kinds = [type(layer.mixer) for layer in small_spec("lfm2moe").layers]
    assert kinds == [ShortConv, ShortConv, Gqa, ShortConv]


def test_the_guard_gives_both_numbers() -> None:
    spec = small_spec("llama")
    counted = sum(tensor.params for tensor in tensors(spec))
    check_count(spec, None)
    check_count(spec, counted)
    check_count(spec, round(counted / 1.029))
    with pytest.raises(UserError, match=rf"counts {counted:,} parameters, {counted * 2:,} were published \(-50\.0%"):
        check_count(spec, counted * 2)
    with pytest.raises(UserError, match="published"):
        check_count(spec, round(counted / 1.031))


def test_the_guard_refuses_a_class_default_in_place_of_the_released_width() -> None:
    # OLMoE's configuration class says 2048, the released model 1024.
    facts = _FACTS["olmoe-1b-7b"]
    spec = spec_from_facts(msgspec.structs.replace(facts, config={**facts.config, "intermediate_size": 2048}))
    with pytest.raises(UserError, match="6,919,161,856 were published"):
        check_count(spec, spec.published_total_params)


def test_a_spec_of_no_family_is_refused() -> None:
    with pytest.raises(UserError, match="no family 'nonesuch'"):
        tensors(replace(small_spec("llama"), family="nonesuch"))
