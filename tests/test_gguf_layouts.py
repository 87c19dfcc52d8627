"""Layouts from headers as llama.cpp's converters write them: every trait by the tensors and keys that announce it."""

from __future__ import annotations

import re

import pytest

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    Gating,
    Gqa,
    Indexer,
    KimiDelta,
    Layer,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mla,
    ModelSpec,
    MoeFfn,
    Mtp,
    NgramTable,
    Norms,
    OutputGate,
    PerLayerEmbedding,
    QkNorm,
    Rope,
    ShortConv,
    Streams,
)
from breakeven.model.arithmetic import attends, kv_bytes, mtp_params, state_bytes, total_params
from breakeven.model.readers.gguf import spec_from_gguf
from breakeven.model.tensors import TensorGroup, group_of

Shapes = dict[str, tuple[int, ...]]

H = 64
"""Width of all these models; shapes are (out, in), as numpy has them."""
NORMS: Shapes = {"attn_norm": (H,), "ffn_norm": (H,)}
AROUND: Shapes = {**NORMS, "post_attention_norm": (H,), "post_ffw_norm": (H,)}


def dense(width: int = 96) -> Shapes:
    return {"ffn_gate": (width, H), "ffn_up": (width, H), "ffn_down": (H, width)}


def gqa(heads: int = 4, kv: int = 2, size: int = 16, value: int | None = None) -> Shapes:
    value = value or size
    return {
        "attn_q": (heads * size, H),
        "attn_k": (kv * size, H),
        "attn_v": (kv * value, H),
        "attn_output": (H, heads * value),
    }


def moe(experts: int = 8, width: int = 32) -> Shapes:
    return {
        "ffn_gate_inp": (experts, H),
        "ffn_gate_exps": (experts, width, H),
        "ffn_up_exps": (experts, width, H),
        "ffn_down_exps": (experts, H, width),
    }


def without(block: Shapes, *stems: str) -> Shapes:
    return {stem: shape for stem, shape in block.items() if stem not in stems}


def read(
    architecture: str,
    blocks: list[Shapes],
    keys: dict[str, object] | None = None,
    beside: Shapes | None = None,
    *,
    assume: bool = False,
) -> ModelSpec:
    """The model of a header with these blocks; names without a dot get `.weight`."""

    def full(stem: str) -> str:
        return stem if "." in stem or stem in ("ssm_a", "ssm_d") else f"{stem}.weight"

    shapes = {"token_embd.weight": (100, H), "output_norm.weight": (H,)}
    shapes |= {full(stem): shape for stem, shape in (beside or {}).items()}
    for i, block in enumerate(blocks):
        shapes |= {f"blk.{i}.{full(stem)}": shape for stem, shape in block.items()}
    own = {"block_count": len(blocks), "context_length": 4096, "attention.head_count": 4, "attention.head_count_kv": 2}
    own |= keys or {}
    metadata: dict[str, object] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in own.items()}
    return spec_from_gguf(metadata, shapes, name="m", source="m.gguf", assume=assume)


def windows(spec: ModelSpec) -> list[int | None]:
    return [mixer.window for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)]


USED: dict[str, object] = {"expert_used_count": 2}


def test_every_name_of_llama_cpp_has_its_group() -> None:
    from gguf import constants

    others = {"MMPROJ", "T5", "T5ENCODER", "WAVTOKENIZER_DEC", "NEO_BERT"}
    names = {
        constants.TENSOR_NAMES[tensor].removeprefix("blk.{bid}.")
        for architecture, found in constants.MODEL_TENSORS.items()
        if architecture.name not in others
        for tensor in found
    }
    assert len(names) > 130
    assert [name for name in sorted(names) if group_of(f"{name}.weight") is None] == []
    expected = {
        "token_embd.weight": TensorGroup.EMBEDDING,
        "token_embd_norm.weight": TensorGroup.NORM,
        "per_layer_token_embd.weight": TensorGroup.TABLE,
        "rope_freqs.weight": TensorGroup.CONSTANT,
        "ffn_gate_tid2eid.weight": TensorGroup.CONSTANT,
        "ffn_gate_up_exps.weight": TensorGroup.ROUTED_EXPERTS,
        "ffn_down.7.weight": TensorGroup.ROUTED_EXPERTS,
        "ffn_down_chexps.weight": TensorGroup.ROUTED_EXPERTS,
        "ffn_gate_inp_shexp.weight": TensorGroup.SHARED_EXPERTS,
        "exp_probs_b.bias": TensorGroup.ROUTER,
        "ffn_latent_up.weight": TensorGroup.DENSE_FFN,
        "ffn_down.scale": TensorGroup.DENSE_FFN,
        "ssm_a": TensorGroup.ATTENTION,
        "ssm_dt.bias": TensorGroup.ATTENTION,
        "indexer.k_norm.bias": TensorGroup.NORM,
        "indexer_compressor_kv.weight": TensorGroup.ATTENTION,
        "ple_norm_key.weight": TensorGroup.NORM,
        "hc_attn_inject.weight": TensorGroup.STREAM,
        "nextn.shared_head_norm.weight": TensorGroup.MTP,
        "output.weight": TensorGroup.OUTPUT_HEAD,
    }
    assert {name: group_of(name) for name in expected} == expected
    assert [group_of(name) for name in ("unheard_of.weight", "ffn_weird.weight", "normal.weight")] == [None] * 3


def test_gemma4_has_other_heads_and_no_values_in_full_layers_and_shares_caches() -> None:
    norms: Shapes = {**AROUND, "attn_q_norm": (16,), "attn_k_norm": (16,), "layer_output_scale": (1,)}
    sliding = {**norms, **gqa(), **dense()}
    full = {**norms, **without(gqa(4, 1, 32), "attn_v"), **dense(), "attn_q_norm": (32,), "attn_k_norm": (32,)}
    sharing = without({**sliding, **dense(192)}, "attn_k", "attn_v", "attn_k_norm")
    per_layer: Shapes = {"inp_gate": (8, H), "proj": (H, 8), "post_norm": (H,)}
    spec = read(
        "gemma4",
        [{**block, **per_layer} for block in (sliding, full, sharing)],
        {
            "attention.head_count_kv": [2, 1, 2],
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.key_length_swa": 16,
            "attention.value_length_swa": 16,
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": [True, False, True],
            "attention.shared_kv_layers": 1,
            "embedding_length_per_layer_input": 8,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
            "final_logit_softcapping": 30.0,
        },
        {
            "per_layer_token_embd": (100, 24),
            "per_layer_model_proj": (24, H),
            "per_layer_proj_norm": (8,),
            "rope_freqs": (16,),
        },
    )
    slides = Gqa(4, 2, 16, window=512, qk_norm=QkNorm.HEAD)
    assert spec.layers == (
        Layer((slides,), DenseFfn(96), Norms.AROUND),
        Layer((Gqa(4, 1, 32, qk_norm=QkNorm.HEAD, keys_are_values=True),), DenseFfn(96), Norms.AROUND),
        Layer(
            (Gqa(4, 2, 16, window=512, qk_norm=QkNorm.HEAD, shares_kv=True, kv_matrices=False),),
            DenseFfn(192),
            Norms.AROUND,
        ),
    )
    assert spec.per_layer_embedding == PerLayerEmbedding(width=8, vocab=100)
    assert (spec.tied_embeddings, spec.logit_softcap, spec.rope.window_base) == (True, 30.0, 1e4)
    # The window of one layer and the whole context of another; the third keeps nothing.
    assert kv_bytes(spec, 4096) == 2 * (512 * 2 * 32 + 4096 * 2 * 32)


def test_one_number_for_all_layers_may_be_wrong_for_some() -> None:
    """Files that give `head_count_kv` once although full layers have fewer and wider heads."""
    block = {**AROUND, **dense()}
    spec = read(
        "gemma4",
        [{**block, **gqa()}, {**block, **gqa(4, 1, 32)}],
        {
            "attention.key_length": 32,
            "attention.key_length_swa": 16,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [1, 0],
        },
    )
    assert [layer.mixer for layer in spec.layers] == [Gqa(4, 2, 16, window=8), Gqa(4, 1, 32)]


def test_gemma4_31b_at_full_size() -> None:
    """10 layers of 60 see everything: 11.6 GB at 131,072 tokens, where a window passed over would make it 118 GB."""
    hidden, width = 5376, 21504
    layers: list[Shapes] = []
    for i in range(60):
        full = i % 6 == 5
        size, kv = (512, 4) if full else (256, 16)
        block: Shapes = dict.fromkeys(AROUND, (hidden,)) | {"attn_q_norm": (size,), "attn_k_norm": (size,)}
        block |= {"attn_q": (32 * size, hidden), "attn_k": (kv * size, hidden), "attn_output": (hidden, 32 * size)}
        block |= {"ffn_gate": (width, hidden), "ffn_up": (width, hidden), "ffn_down": (hidden, width)}
        layers.append(block if full else block | {"attn_v": (kv * size, hidden)})
    keys: dict[str, object] = {"attention.head_count": 32, "attention.sliding_window": 1024}
    keys |= {"attention.head_count_kv": [4 if i % 6 == 5 else 16 for i in range(60)]}
    keys |= {"attention.key_length": 512, "attention.value_length": 512, "context_length": 262144}
    keys |= {"attention.key_length_swa": 256, "attention.value_length_swa": 256}
    keys |= {"attention.sliding_window_pattern": [i % 6 != 5 for i in range(60)]}
    spec = read("gemma4", layers, keys, {"token_embd": (262144, hidden), "output_norm": (hidden,)})
    assert (windows(spec).count(None), windows(spec).count(1024)) == (10, 50)
    assert round(kv_bytes(spec, 131072) / 1e9, 1) == 11.6
    assert round(total_params(spec) / 1e9, 1) == 30.7


MLA_BLOCK: Shapes = {
    **NORMS,
    "attn_q_a": (24, H),
    "attn_q_a_norm": (24,),
    "attn_q_b": (4 * 20, 24),
    "attn_kv_a_mqa": (40, H),
    "attn_kv_a_norm": (32,),
    "attn_k_b": (4, 32, 12),
    "attn_v_b": (4, 16, 32),
    "attn_output": (H, 64),
}
INDEXER: Shapes = {
    "indexer.attn_q_b.weight": (3 * 16, 24),
    "indexer.attn_k.weight": (16, H),
    "indexer.k_norm.weight": (16,),
    "indexer.k_norm.bias": (16,),
    "indexer.proj.weight": (3, H),
}


def test_latent_attention_is_read_in_both_forms() -> None:
    keys: dict[str, object] = {"attention.head_count_kv": 1, "attention.kv_lora_rank": 32, **USED}
    routed = {**moe(), "exp_probs_b.bias": (8,), "ffn_down_shexp": (H, 48), "ffn_gate_shexp": (48, H)}
    routed["ffn_up_shexp"] = (48, H)
    new = read("deepseek2", [{**MLA_BLOCK, **dense()}, {**MLA_BLOCK, **routed}], {**keys, "expert_gating_func": 2})
    latent = Mla(4, 32, 12, 8, 16, 24)
    assert [layer.mixer for layer in new.layers] == [latent, latent]
    assert new.layers[1].ffn == MoeFfn(
        8, 2, 32, n_shared_experts=1, shared_width=48, selection_bias=True, gating=Gating.SIGMOID
    )
    assert kv_bytes(new, 1000) == 2 * 2 * 1000 * 40
    # Before the halves were split, llama.cpp kept whole keys and values.
    old = without(MLA_BLOCK, "attn_k_b", "attn_v_b", "attn_q_a", "attn_q_a_norm", "attn_q_b")
    spec = read("deepseek2", [{**old, "attn_kv_b": (4 * 28, 32), "attn_q": (80, H), **dense()}], keys)
    assert spec.layers[0].mixer == Mla(4, 32, 12, 8, 16, None, caches_latent=False)
    assert [cache.kv_heads for cache in attends(spec.layers[0])] == [4], "whole keys of every head"
    assert kv_bytes(spec, 1000) == 2 * 1000 * 4 * (20 + 16)


def test_an_indexer_may_be_shared_between_layers() -> None:
    keys: dict[str, object] = {
        "attention.indexer.head_count": 3,
        "attention.indexer.key_length": 16,
        "attention.indexer.top_k": 128,
        "attention.indexer.types": [1, 0],
    }
    spec = read("glm-dsa", [{**MLA_BLOCK, **dense(), **INDEXER}, {**MLA_BLOCK, **dense()}], keys)
    assert [layer.mixer.indexer for layer in spec.layers if isinstance(layer.mixer, Mla)] == [
        Indexer(3, 16, 128),
        Indexer(3, 16, 128, owns_weights=False),
    ]
    pooled = {**INDEXER, "indexer_compressor_gate": (16, H), "indexer_compressor_ape": (4, 16)}
    nope = MLA_BLOCK | {"attn_kv_a_mqa": (32, H), "attn_q_b": (4 * 12, 24)}
    spec = read("glm5next", [{**nope, **dense(), **pooled}], {**keys, "attention.indexer.kpool": 4})
    assert spec.layers[0].mixer == Mla(4, 32, 12, 0, 16, 24, indexer=Indexer(3, 16, 128, every=4, pools=True))


def test_fused_matrices_are_taken_apart() -> None:
    phi: Shapes = {**NORMS, "attn_qkv": (128, H), "attn_output": (H, 64), "ffn_up": (192, H), "ffn_down": (H, 96)}
    spec = read("phi3", [phi], {"attention.sliding_window": 262144}, {"rope_factors_long": (8,)})
    # llama.cpp runs Phi-3 with full attention whatever the file says.
    assert spec.layers == (Layer((Gqa(4, 2, 16),), DenseFfn(96)),)
    falcon: Shapes = {"attn_norm": (H,), "attn_norm.bias": (H,), "attn_qkv": (96, H), "attn_output": (H, 64)}
    falcon |= {"ffn_up": (256, H), "ffn_down": (H, 256)}
    spec = read("falcon", [falcon], {"attention.head_count_kv": 1})
    assert spec.layers == (Layer((Gqa(4, 1, 16),), DenseFfn(256, gated=False), Norms.PARALLEL),)
    assert spec.layer_norm


def test_gpt2_has_positions_and_biases() -> None:
    block: Shapes = {**NORMS, "attn_qkv": (192, H), "attn_output": (H, 64), "ffn_up": (256, H), "ffn_down": (H, 256)}
    sizes = {"attn_norm": H, "ffn_norm": H, "attn_qkv": 192, "attn_output": H, "ffn_up": 256, "ffn_down": H}
    spec = read(
        "gpt2",
        [block | {f"{stem}.bias": (size,) for stem, size in sizes.items()}],
        {"attention.head_count_kv": 4},
        {"position_embd": (1024, H), "output_norm.bias": (H,)},
    )
    mixer = Gqa(4, 4, 16, qkv_bias=True, output_bias=True)
    assert spec.layers == (Layer((mixer,), DenseFfn(256, bias=True, gated=False)),)


MAMBA2: Shapes = {
    "ssm_in": (2 * 64 + 2 * 16 + 4, H),
    "ssm_conv1d": (64 + 2 * 16, 4),
    "ssm_conv1d.bias": (96,),
    "ssm_dt.bias": (4,),
    "ssm_a": (4, 1),
    "ssm_d": (4, 1),
    "ssm_norm": (1, 64),
    "ssm_out": (H, 64),
}


def test_layers_of_one_part_and_of_two_mixers() -> None:
    attn: Shapes = {"attn_norm": (H,)}
    experts = {**attn, **without(moe(8, 32), "ffn_gate_exps"), "exp_probs_b.bias": (8,)}
    experts |= {"ffn_up_exps": (8, 32, 24), "ffn_down_exps": (8, 24, 32)}
    experts |= {"ffn_latent_down": (24, H), "ffn_latent_up": (H, 24), "ffn_up_shexp": (48, H)}
    experts |= {"ffn_down_shexp": (H, 48)}
    spec = read(
        "nemotron_h_moe",
        [{**attn, **MAMBA2}, experts, {**attn, **gqa()}, {**attn, "ffn_up": (80, H), "ffn_down": (H, 80)}],
        {
            "ssm.state_size": 16,
            "ssm.group_count": 1,
            "attention.head_count_kv": [0, 0, 2, 0],
            "feed_forward_length": [0, 32, 0, 80],
            "moe_latent_size": 24,
            "expert_gating_func": 2,
            **USED,
        },
    )
    mamba = Mamba2(heads=4, head_dim=16, state=16)
    assert spec.layers == (
        Layer((mamba,)),
        Layer(
            (),
            MoeFfn(
                8,
                2,
                32,
                n_shared_experts=1,
                shared_width=48,
                selection_bias=True,
                gating=Gating.SIGMOID,
                gated=False,
                latent_width=24,
            ),
        ),
        Layer((Gqa(4, 2, 16),)),
        Layer((), DenseFfn(80, gated=False)),
    )
    assert kv_bytes(spec, 100) == 2 * 100 * 2 * 32
    assert state_bytes(spec) == 4 * (64 * 16 + 96 * 3)
    both = read("falcon-h1", [{**NORMS, **gqa(), **without(MAMBA2, "ssm_norm"), **dense()}], {"ssm.state_size": 16})
    assert both.layers == (Layer((Gqa(4, 2, 16), Mamba2(4, 16, 16, norm=False)), DenseFfn(96)),)


def test_mamba1_beside_attention() -> None:
    mamba: Shapes = {"ssm_in": (256, H), "ssm_conv1d": (128, 4), "ssm_conv1d.bias": (128,), "ssm_x": (8 + 32, 128)}
    mamba |= {"ssm_dt": (128, 8), "ssm_dt.bias": (128,), "ssm_a": (128, 16), "ssm_d": (128,), "ssm_out": (H, 128)}
    mamba |= {"ssm_dt_norm": (8,), "ssm_b_norm": (16,), "ssm_c_norm": (16,)}
    spec = read("jamba", [{**NORMS, **mamba, **dense()}, {**NORMS, **gqa(), **moe()}], {"ssm.state_size": 16, **USED})
    assert [layer.mixer for layer in spec.layers] == [Mamba1(128, 16, 8, dt_norms=True), Gqa(4, 2, 16)]


def test_delta_nets_in_all_their_spellings() -> None:
    after: Shapes = {"attn_norm": (H,), "post_attention_norm": (H,)}
    delta: Shapes = {**after, **dense(), "attn_qkv": (2 * 32 + 64, H), "attn_gate": (64, H), "ssm_conv1d": (128, 4)}
    delta |= {"ssm_dt.bias": (4,), "ssm_a": (4,), "ssm_norm": (16,), "ssm_out": (H, 64)}
    twice = gqa(4, 2, 16) | {"attn_q": (128, H), "attn_q_norm": (16,), "attn_k_norm": (16,)}
    keys: dict[str, object] = {"ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4}
    keys |= {"ssm.inner_size": 64, "ssm.conv_kernel": 4, "full_attention_interval": 2, "attention.key_length": 16}
    linear = LinearAttention(key_heads=2, value_heads=4, key_dim=16, value_dim=16)
    for architecture, block in (
        ("qwen3next", {**delta, "ssm_ba": (8, H)}),
        ("qwen35", {**delta, "ssm_alpha": (4, H), "ssm_beta": (4, H)}),
        # The first files of Qwen3-Next had queries, keys, values and gate in one matrix.
        ("qwen3next", without(delta, "attn_qkv", "attn_gate") | {"ssm_in": (192, H), "ssm_ba": (8, H)}),
    ):
        spec = read(architecture, [block, {**after, **twice, **dense()}], keys)
        assert [layer.mixer for layer in spec.layers] == [
            linear,
            Gqa(4, 2, 16, qk_norm=QkNorm.HEAD, output_gate=OutputGate.TWIN),
        ]
        assert {layer.norms for layer in spec.layers} == {Norms.BEFORE}
        assert state_bytes(spec) == 4 * (4 * 16 * 16 + 128 * 3)


def test_kimi_delta_attention_beside_latent_attention() -> None:
    kda: Shapes = {**NORMS, **dense(), "attn_q": (64, H), "attn_k": (64, H), "attn_v": (64, H), "attn_output": (H, 64)}
    kda |= {f"ssm_conv1d_{part}": (1, 64, 1, 4) for part in "qkv"}
    kda |= {"ssm_f_a": (16, H), "ssm_f_b": (64, 16), "ssm_g_a": (16, H), "ssm_g_b": (64, 16), "ssm_beta": (4, H)}
    kda |= {"ssm_dt.bias": (64,), "ssm_a": (4, 1), "ssm_norm": (16,)}
    full = without(kda, "ssm_f_b", "ssm_g_b") | {"ssm_f_a": (64, H), "ssm_g_a": (64, H)}
    keys: dict[str, object] = {"attention.head_count_kv": [0]}
    assert read("bailingmoe3", [full], keys).layers[0].mixer == KimiDelta(4, 16, 4, gate_rank=None)
    spec = read("kimi-linear", [kda, {**MLA_BLOCK, **dense()}], {"attention.head_count_kv": [0, 1], "kda.head_dim": 16})
    assert [layer.mixer for layer in spec.layers] == [KimiDelta(4, 16, 4, gate_rank=16), Mla(4, 32, 12, 8, 16, 24)]


def test_other_mixers() -> None:
    conv: Shapes = {**NORMS, **dense(), "shortconv.conv.weight": (H, 3), "shortconv.in_proj.weight": (3 * H, H)}
    conv["shortconv.out_proj.weight"] = (H, H)
    spec = read("lfm2", [conv], {"attention.head_count_kv": [0], "shortconv.l_cache": 3})
    assert spec.layers[0].mixer == ShortConv(3)
    fixed: Shapes = {**NORMS, **dense(), "attn_qkv": (192, H), "attn_gate": (64, H), "attn_sub_norm": (64,)}
    fixed["attn_output"] = (H, 64)
    second = without(fixed, "attn_sub_norm") | {"attn_norm_2": (64,)}
    assert read("minimax-01", [second], {"attention.head_count_kv": 4}).layers[0].mixer == Lightning(4, 4, 16)
    spec = read("minimax-01", [fixed], {"attention.head_count_kv": 4})
    assert spec.layers[0].mixer == Lightning(4, 4, 16)


def test_window_layers_with_other_heads_sinks_and_narrow_values() -> None:
    full, sliding = gqa(4, 1, 24, 16), {**gqa(4, 2, 24, 16), "attn_sinks": (4,)}
    spec = read(
        "mimo2",
        [{**NORMS, **full, **dense()}, {**NORMS, **sliding, **moe()}],
        {
            "attention.head_count_kv": [1, 2],
            "attention.key_length": 24,
            "attention.value_length": 16,
            "attention.sliding_window": 128,
            "attention.sliding_window_pattern": [0, 1],
            **USED,
        },
    )
    assert [layer.mixer for layer in spec.layers] == [
        Gqa(4, 1, 24, value_head_dim=16),
        Gqa(4, 2, 24, window=128, sinks=True, value_head_dim=16),
    ]


def test_gates_of_a_number_a_head_and_of_full_width() -> None:
    for width, gate in ((4, OutputGate.HEAD), (64, OutputGate.FULL)):
        spec = read("step35", [{**NORMS, **gqa(), **dense(), "attn_gate": (width, H)}])
        assert spec.layers[0].mixer == Gqa(4, 2, 16, output_gate=gate)


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("gemma2", {}, [4096, None] * 4),
        ("gemma3", {"attention.sliding_window": 9}, [9, 9, 9, 9, 9, None, 9, 9]),
        ("gemma3n", {"attention.sliding_window": 9}, [9, 9, 9, 9, None, 9, 9, 9]),
        ("cohere2", {"attention.sliding_window": 9}, [9, 9, 9, None] * 2),
        ("olmo2", {"attention.sliding_window": 9}, [9, 9, 9, None] * 2),
        ("olmo2", {}, [None] * 8),
        ("gpt-oss", {"attention.sliding_window": 9}, [9, None] * 4),
        ("llama4", {}, [8192, 8192, 8192, None] * 2),
        ("smallthinker", {"attention.sliding_window": 9}, [None, 9, 9, 9] * 2),
        ("smallthinker", {}, [None] * 8),
        ("cohere2moe", {"attention.sliding_window": 9}, [None, 9, 9, 9] * 2),
        ("laguna", {"attention.sliding_window": 9}, [None, 9, 9, 9] * 2),
        ("mellum", {"attention.sliding_window": 9}, [9, 9, 9, None] * 2),
        ("lfm2", {"attention.sliding_window": 9}, [9] * 8),
        ("exaone4", {"attention.sliding_window": 9}, [None] * 8),
        ("afmoe", {"attention.sliding_window": 9, "attention.sliding_window_pattern": 2}, [9, None] * 4),
        ("newcomer", {"attention.sliding_window": 9, "attention.sliding_window_pattern": 4}, [9, 9, 9, None] * 2),
        ("newcomer", {"attention.sliding_window": 9, "attention.sliding_window_pattern": 1}, [None] * 8),
        ("newcomer", {"attention.sliding_window": 9, "attention.sliding_window_pattern": 0}, [9] * 8),
        ("newcomer", {"attention.sliding_window": 9, "attention.sliding_window_pattern": [True, False]}, [9, None] * 4),
        ("qwen3", {"attention.sliding_window": 9}, [None] * 8),
        ("newcomer", {"attention.sliding_window": 0}, [None] * 8),
    ],
)
def test_which_layers_slide(architecture: str, keys: dict[str, object], expected: list[int | None]) -> None:
    assert windows(read(architecture, [{**NORMS, **gqa(), **dense()}] * 8, keys)) == expected


def test_exaone4_slides_only_at_full_depth() -> None:
    block = {**gqa(), **dense(), "post_attention_norm": (H,), "post_ffw_norm": (H,)}
    spec = read("exaone4", [block] * 64, {"attention.sliding_window": 4096})
    assert windows(spec) == [4096, 4096, 4096, None] * 16
    assert spec.layers[0].norms is Norms.AFTER


def test_norms_are_where_the_tensors_are() -> None:
    block = {**gqa(), **dense()}
    for norms, expected in (
        ({"attn_norm": (H,)}, Norms.PARALLEL),
        ({"attn_norm": (H,), "attn_output_norm": (H,)}, Norms.BEFORE),
        ({"attn_norm": (H,), "attn_output_norm": (H,), "ffn_norm": (H,), "layer_output_norm": (H,)}, Norms.AROUND),
        ({"post_attention_norm": (H,), "post_ffw_norm": (H,)}, Norms.AFTER),
        (AROUND, Norms.AROUND),
    ):
        assert read("newcomer", [{**norms, **block}]).layers[0].norms is expected


def test_experts_in_older_and_rarer_forms() -> None:
    old: Shapes = {**NORMS, **gqa(), "ffn_gate_inp": (4, H)}
    for e in range(4):
        old |= {f"ffn_gate.{e}.weight": (32, H), f"ffn_up.{e}.weight": (32, H), f"ffn_down.{e}.weight": (H, 32)}
    assert read("llama", [old], USED).layers[0].ffn == MoeFfn(4, 2, 32)
    fused = without({**NORMS, **gqa(), **moe()}, "ffn_gate_exps", "ffn_up_exps") | {"ffn_gate_up_exps": (8, 64, H)}
    assert read("qwen3moe", [fused], USED).layers[0].ffn == MoeFfn(8, 2, 32)
    grove = {**NORMS, **gqa(), **moe(), "ffn_gate_chexps": (4, 16, H), "ffn_up_chexps": (4, 16, H)}
    grove["ffn_down_chexps"] = (4, H, 16)
    assert read("grovemoe", [grove], USED).layers[0].ffn == MoeFfn(8, 2, 32, chunk_experts=4, chunk_width=16)
    arctic = {**NORMS, **gqa(), **moe(), **dense(48), "ffn_norm_exps": (H,)}
    assert read("arctic", [arctic], USED).layers[0].ffn == MoeFfn(8, 2, 32, dense_width=48)
    longcat = {**NORMS, **gqa(), **moe(), "ffn_gate_inp": (12, H)}
    assert read("longcat", [longcat], USED).layers[0].ffn == MoeFfn(8, 2, 32, zero_experts=4)
    biased = {**NORMS, **gqa(), **moe(), "ffn_gate_inp.bias": (8,), "attn_sinks": (4,)}
    biased |= {"ffn_gate_exps.bias": (8, 32), "ffn_up_exps.bias": (8, 32), "ffn_down_exps.bias": (8, H)}
    expected = MoeFfn(8, 2, 32, router_bias=True, expert_bias=True, gating=Gating.SOFTMAX_AFTER_TOP_K)
    assert read("gpt-oss", [biased], USED).layers[0].ffn == expected


def test_layers_that_differ_one_by_one() -> None:
    """Nemotron's pruned Llamas: any heads, any width, no attention or no feed-forward at all."""
    spec = read(
        "deci",
        [{**NORMS, **gqa(4, 1), **dense(48)}, {"ffn_norm": (H,), **dense(160)}, {**NORMS, **gqa(4, 4), **dense(96)}],
        {"attention.head_count": [4, 0, 4], "attention.head_count_kv": [1, 0, 4], "feed_forward_length": [48, 160, 96]},
    )
    assert spec.layers == (
        Layer((Gqa(4, 1, 16),), DenseFfn(48)),
        Layer((), DenseFfn(160)),
        Layer((Gqa(4, 4, 16),), DenseFfn(96)),
    )


def test_compressed_attention_and_hyper_connections() -> None:
    attention: Shapes = {**NORMS, **moe(), "attn_q_a": (24, H), "attn_q_a_norm": (24,), "attn_q_b": (4 * 32, 24)}
    attention |= {"attn_kv": (32, H), "attn_kv_a_norm": (32,), "attn_output_a": (2 * 12, 64), "attn_output_b": (H, 24)}
    attention |= {"attn_sinks": (4,), "exp_probs_b.bias": (8,)}
    for part in ("attn", "ffn"):
        attention |= {f"hc_{part}_fn": (24, 4 * H), f"hc_{part}_base": (24,), f"hc_{part}_scale": (3,)}

    def compressor(stem: str, ratio: int, width: int) -> Shapes:
        return {
            f"{stem}_kv": (width, H),
            f"{stem}_gate": (width, H),
            f"{stem}_ape": (ratio, width),
            f"{stem}_norm": (width // 2 if ratio == 4 else width,),
        }

    sparse: Shapes = {"indexer.attn_q_b.weight": (3 * 16, 24), "indexer.proj.weight": (3, H)}
    sparse |= compressor("attn_compressor", 4, 64) | compressor("indexer_compressor", 4, 32)
    spec = read(
        "deepseek4",
        [
            {**attention, "ffn_gate_tid2eid": (100, 2)},
            {**attention, **sparse},
            {**attention, **compressor("attn_compressor", 128, 32)},
        ],
        {
            "attention.head_count_kv": 1,
            "attention.sliding_window": 128,
            "attention.compress_ratios": [0, 4, 128],
            "attention.output_group_count": 2,
            "attention.output_lora_rank": 12,
            "attention.indexer.head_count": 3,
            "attention.indexer.key_length": 16,
            "attention.indexer.top_k": 512,
            "hyper_connection.count": 4,
            "hash_layer_count": 1,
            "expert_gating_func": 4,
            **USED,
        },
        {"output_hc_fn": (4, 4 * H), "output_hc_base": (4,), "output_hc_scale": (1,)},
    )
    near = CompressedAttention(4, 32, 24, 2, 12, 128)
    assert [layer.mixer for layer in spec.layers] == [
        near,
        CompressedAttention(4, 32, 24, 2, 12, 128, ratio=4, indexer=Indexer(3, 16, 512, every=4)),
        CompressedAttention(4, 32, 24, 2, 12, 128, ratio=128),
    ]
    assert spec.streams == Streams(4)
    assert {layer.ffn.gating for layer in spec.layers if isinstance(layer.ffn, MoeFfn)} == {Gating.SQRT_SOFTPLUS}


def test_streams_may_be_joined_without_weights() -> None:
    block = {**NORMS, **gqa(), **dense(), "hc_attn_fn": (24, 4 * H), "hc_attn_base": (24,), "hc_attn_scale": (3,)}
    assert read("glm5next", [block]).streams == Streams(4, joins=False)


def test_names_may_end_without_a_suffix() -> None:
    block = without({**NORMS, **gqa(), **moe()}, "ffn_norm")
    shapes = {f"blk.0.{stem}.weight": shape for stem, shape in block.items()}
    shapes |= {"token_embd.weight": (100, H), "blk.0.ffn_norm": (H,), "blk.0.exp_probs_b": (8,)}
    keys = {"block_count": 1, "context_length": 9, "attention.head_count": 4, "attention.head_count_kv": 2, **USED}
    metadata = {"general.architecture": "a", **{f"a.{key}": value for key, value in keys.items()}}
    (layer,) = spec_from_gguf(metadata, shapes, name="m", source="m.gguf").layers
    assert (layer.norms, layer.ffn) == (Norms.BEFORE, MoeFfn(8, 2, 32, selection_bias=True))


def test_gemma3n_shares_the_caches_of_its_first_twenty_layers() -> None:
    block = {**AROUND, **gqa(), **dense()}
    spec = read("gemma3n", [block] * 22, {"attention.sliding_window": 64})
    shares = [mixer.shares_kv for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)]
    assert shares == [False] * 20 + [True] * 2


def test_tables_and_streams_beside_the_blocks() -> None:
    gemma3n = {**AROUND, **gqa(), **dense(), "attn_q_norm": (16,), "attn_k_norm": (16,), "laurel_l": (8, H)}
    gemma3n |= {"laurel_r": (H, 8), "laurel_post_norm": (H,), "altup_correct_coef": (4, 4), "altup_router": (4, H)}
    gemma3n |= {"altup_predict_coef": (16, 4), "altup_correct_scale": (H,), "altup_router_norm": (H,)}
    gemma3n |= {"inp_gate": (8, H), "proj": (H, 8), "post_norm": (H,)}
    spec = read(
        "gemma3n",
        [gemma3n] * 2,
        {"attention.sliding_window": 64, "attention.shared_kv_layers": 1, "altup.num_inputs": 4},
        {
            "altup_proj": (3, H, H),
            "altup_unembd_proj": (3, H, H),
            "per_layer_token_embd": (90, 16),
            "per_layer_model_proj": (16, H),
            "per_layer_proj_norm": (8,),
        },
    )
    assert spec.streams == Streams(4, altup=True, laurel_rank=8)
    assert spec.per_layer_embedding == PerLayerEmbedding(8, 90)
    # The last layer reads another's cache although its matrices are there.
    assert [mixer.shares_kv for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)] == [
        False,
        True,
    ]
    assert all(mixer.kv_matrices for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa))

    block = {**gqa(), **moe(), "attn_q": (128, H), "attn_q_norm": (16,), "attn_k_norm": (16,)}
    for part in ("attn", "ffn"):
        block |= {f"hc_{part}_norm": (4 * H,), f"hc_{part}_down": (12, 4 * H), f"hc_{part}_up": (4 * H, 12)}
        block[f"hc_{part}_inject"] = (4, 4 * H)
    block |= {"indexer.q_proj.weight": (48, H), "indexer.k_proj.weight": (16, H)}
    block |= {"indexer.q_norm.weight": (16,), "indexer.k_norm.weight": (16,)}
    reads: Shapes = {"ple_key": (4 * H, 40), "ple_value": (H, 40), "ple_conv1d": (4 * H, 4)}
    reads |= {f"ple_norm_{part}": (4 * H,) for part in ("key", "query", "conv")}
    spec = read(
        "qwen4exp",
        [block, {**block, **reads}],
        {
            "attention.key_length": 16,
            "attention.indexer.head_count": 3,
            "attention.indexer.key_length": 16,
            "attention.indexer.top_k": 512,
            "attention.indexer.block_size": 4,
            "ple.layers": [1],
            **USED,
        },
        {"per_layer_token_embd": (5000, 5), "output_hc_norm": (4 * H,), "output_hc_down": (12, 4 * H)},
    )
    assert spec.ngrams == NgramTable(rows=5000, width=5, joined=40, layers=(1,), kernel=4)
    assert (spec.streams, spec.per_layer_embedding) == (Streams(4, low_rank=12), None)
    indexer = Indexer(3, 16, 512, every=4, weighs=False)
    twin = Gqa(4, 2, 16, qk_norm=QkNorm.HEAD, output_gate=OutputGate.TWIN, indexer=indexer)
    assert [layer.mixer for layer in spec.layers] == [twin, twin]


def test_drafting_blocks_are_counted_apart() -> None:
    block = {"attn_norm": (H,), "post_attention_norm": (H,), **gqa(), **moe(), "attn_q.bias": (64,)}
    block |= {"attn_k.bias": (32,), "attn_v.bias": (32,)}
    drafts: Shapes = {**block, "nextn.eh_proj.weight": (H, 2 * H), "nextn.embed_tokens.weight": (100, H)}
    drafts |= {f"nextn.{stem}.weight": (H,) for stem in ("enorm", "hnorm", "shared_head_norm")}
    drafts["nextn.shared_head_head.weight"] = (100, H)
    keys: dict[str, object] = {"nextn_predict_layers": 1, **USED}
    spec = read("glm4moe", [block, block, drafts], keys, {"output": (100, H)})
    assert len(spec.layers) == 2
    assert spec.mtp == Mtp((spec.layers[1],), embedding=True, head=True)
    plain = read("glm4moe", [block, block], USED, {"output": (100, H)})
    assert total_params(spec) == total_params(plain)
    inside = 2 * H * H + 3 * H + 2 * 100 * H
    assert mtp_params(spec) == inside + sum(_size(shape) for shape in block.values())
    # Announced, and left out of the file.
    gone = read("glm4moe", [block, block], {**keys, "block_count": 3}, {"output": (100, H)})
    assert (gone.layers, gone.mtp) == (plain.layers, None)
    with pytest.raises(UserError, match="no blocks but those that draft"):
        read("glm4moe", [drafts], keys)


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def test_rope_scaling_is_kept() -> None:
    keys: dict[str, object] = {"rope.freq_base": 5e5, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    keys |= {"rope.scaling.original_context_length": 32768, "rope.dimension_count": 8}
    block = {**NORMS, **gqa(), **dense()}
    assert read("qwen3", [block], keys).rope == Rope(5e5, 8, None, "yarn", 4.0, 32768)
    assert read("qwen3", [block], {"rope.scaling.type": "none", "rope.dimension_count": 16}).rope == Rope()


@pytest.mark.parametrize(
    ("changed", "keys", "told"),
    [
        ({"time_mix_key": (H, H)}, {}, "RWKV's time mixing (block 0) cannot be described here"),
        ({"gizmo": (8, 8)}, {}, "tensor blk.0.gizmo.weight is not known here"),
        ({"attn_k": (40, H)}, {}, "block 0 has queries of 64 and keys of 40 for 4 and 2 heads"),
        ({"attn_gizmo": (H, H)}, {}, "block 0 has 16,384 weights in attention tensors, its layout has 12,288"),
        ({}, {"attention.sliding_window": 128}, "which layers use newcomer.attention.sliding_window is not known"),
        ({}, {"attention.cache_stride": 4}, "key newcomer.attention.cache_stride is not known here"),
        ({}, {"layer_repeats": [1, 2]}, "key newcomer.layer_repeats is not known here"),
        ({}, {"block_count": 2}, "block 1 of 2 has no tensors; the file is incomplete"),
        ({}, {"block_count": 0}, "tensors of block 0, but 0 blocks are announced"),
        ({"ffn_gate_inp": (8, H), "ffn_down_exps": (8, H, 8)}, {"expert_used_count": 9}, "block 0 uses 9 of 8 experts"),
        ({}, {"attention.head_count": 0}, "block 0 has 0 heads"),
    ],
)
def test_what_is_not_understood_is_named(changed: Shapes, keys: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        read("newcomer", [{**NORMS, **gqa(), **dense(), **changed}], keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"attention.clamp_kqv": 8.0},
        {"attention.value_scale": 0.7},
        {"attention.use_gizmo": True},
        {"swiglu_clamp_exp": [7.0, 7.0]},
        {"expert_shared_count": 0},
        {"gizmo_count": 3},
        {"tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_keys_that_change_no_shape_and_no_cache_are_passed_over(keys: dict[str, object]) -> None:
    assert read("newcomer", [{**NORMS, **gqa(), **dense()}], keys).assumed == ()


def test_assume_reads_on_and_says_what_it_passed_over() -> None:
    block = {**NORMS, **gqa(), **dense(), "gizmo": (8, 8)}
    spec = read("newcomer", [block], {"attention.sliding_window": 128}, assume=True)
    assert spec.assumed == (
        "tensor blk.0.gizmo.weight",
        "which layers use newcomer.attention.sliding_window",
    )
    assert windows(spec) == [None]
