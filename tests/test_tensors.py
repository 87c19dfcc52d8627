"""Names, shapes and counts of tensors, against a real file, released totals and llama.cpp's own layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from families_fixtures import COUNTED_B, EXACT, SMALL, small_spec

from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import entries, spec_from_facts
from breakeven.model.readers.gguf import read_gguf
from breakeven.model.readers.gguf_header import read_header
from breakeven.model.tensors import Tensor, TensorGroup, tensors

_FACTS = {entry.name: entry.facts for entry in entries()}


def _total(spec: ModelSpec) -> int:
    return sum(tensor.params for tensor in tensors(replace(spec, mtp=None)))


def _by_name(spec: ModelSpec) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors(spec)}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_released_model_counts_to_the_last_weight(name: str) -> None:
    assert _total(spec_from_facts(_FACTS[name])) == EXACT[name]


@pytest.mark.parametrize("name", sorted(COUNTED_B))
def test_counts_agree_with_the_published_table(name: str) -> None:
    # The table leaves out norms, biases and the small parts of linear attention, and rounds to 0.001 billion.
    assert _total(spec_from_facts(_FACTS[name])) / 1e9 == pytest.approx(COUNTED_B[name], rel=0.005)


def test_a_real_file_has_exactly_these_tensors(smollm2_gguf: Path) -> None:
    real = {tensor.name: tensor.shape for tensor in read_header(smollm2_gguf).tensors}
    ours = {tensor.name: tensor.shape for tensor in tensors(read_gguf(smollm2_gguf))}
    assert ours == real
    assert len(real) == 272


@pytest.mark.parametrize("key", sorted(SMALL))
def test_names_are_unique_and_tied_models_have_no_head(key: str) -> None:
    spec = small_spec(key)
    found = tensors(spec)
    assert len({tensor.name for tensor in found}) == len(found)
    assert any(tensor.name == "output.weight" for tensor in found) != spec.tied_embeddings
    assert [t.layer for t in found if t.layer is not None] == sorted(t.layer for t in found if t.layer is not None)


def test_latent_attention_keeps_its_two_halves_apart() -> None:
    found = _by_name(small_spec("deepseek-v3"))
    assert found["blk.1.attn_k_b.weight"].shape == (4, 32, 24)
    assert found["blk.1.attn_v_b.weight"].shape == (4, 20, 32)
    assert found["blk.1.attn_kv_a_mqa.weight"].shape == (32 + 16, 64)
    assert found["blk.1.attn_q_b.weight"].shape == (4 * (24 + 16), 48)
    assert "blk.1.attn_q.weight" not in found
    assert found["blk.0.ffn_down.weight"].shape == (64, 96)
    assert found["blk.1.ffn_down_shexp.weight"].shape == (64, 2 * 32)
    assert found["blk.1.exp_probs_b.bias"].group is TensorGroup.ROUTER
    assert "blk.0.ffn_gate_inp.weight" not in found
    assert "blk.1.attn_q.weight" in _by_name(small_spec("deepseek-v2-lite"))


def test_gpt_oss_renames_its_second_norm_and_has_biases_and_sinks() -> None:
    found = _by_name(small_spec("gpt-oss"))
    assert "blk.0.ffn_norm.weight" not in found
    assert found["blk.0.post_attention_norm.weight"].shape == (64,)
    assert found["blk.0.attn_sinks.weight"].shape == (4,)
    assert found["blk.0.ffn_down_exps.bias"].shape == (8, 64)
    assert found["blk.0.ffn_gate_inp.bias"].shape == (8,)


def test_interleaved_layers_alternate_between_dense_and_experts() -> None:
    found = _by_name(small_spec("llama4"))
    assert found["blk.0.ffn_up.weight"].shape == (128, 64)
    assert found["blk.1.ffn_up_exps.weight"].shape == (8, 96, 64)
    assert found["blk.1.ffn_up_shexp.weight"].group is TensorGroup.SHARED_EXPERTS
    assert "blk.1.ffn_up.weight" not in found


def test_convolution_layers_have_no_attention() -> None:
    found = _by_name(small_spec("lfm2moe"))
    assert found["blk.0.shortconv.in_proj.weight"].shape == (192, 64)
    assert "blk.0.attn_q.weight" not in found
    assert found["blk.2.attn_q_norm.weight"].shape == (16,)
    assert found["token_embd_norm.weight"].group is TensorGroup.NORM
    assert "output_norm.weight" not in found
