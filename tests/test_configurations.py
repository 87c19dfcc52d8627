"""Configurations read by their keys: each trait on a small file, unknown keys named, and 130 current models counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    Gqa,
    KimiDelta,
    Layer,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.arithmetic import active_params, kv_bytes, mtp_params, total_params
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.resolve import resolve_spec

_PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "model_configs"
_TABLE: dict[str, list[int]] = json.loads(
    (Path(__file__).parent / "data" / "configurations.json").read_text(encoding="utf-8")
)
"""Total and active parameters, bytes of keys and values at 8,192 tokens, parameters of drafting blocks."""
_UNSAID = {"lfm2-24b-a2b": "layer_types"}
"""Copies that leave out what decides the layout: read only when the user says so."""
_OFF = {
    "apertus-70b": "two learned scalars a layer, which llama.cpp keeps in metadata",
    "apertus-8b": "two learned scalars a layer, which llama.cpp keeps in metadata",
    "falcon-h1-7b": "counted with a norm that the copy does not name",
    "gemma-3n-e2b": "layers that share keys and values keep their matrices in the released files",
    "gemma-3n-e4b": "layers that share keys and values keep their matrices in the released files",
    "mimo-v2.5-pro": "the class doubles the key-value heads of sliding layers, where the file gives them",
}
"""Counts that rightly differ from the class's, by under half a percent."""

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NEW: dict[str, Any] = {**PLAIN, "model_type": "appeared_last_month", "hidden_act": "silu"}


def read(base: dict[str, Any], **changes: Any) -> ModelSpec:
    return spec_from_config({**base, **changes}, "m", "m.json")


def mixers(spec: ModelSpec) -> list[Any]:
    return [layer.mixer for layer in spec.layers]


def kinds(spec: ModelSpec) -> str:
    """One letter a layer: s(liding), f(ull), l(inear), m(amba), c(onvolution), - (no mixer)."""
    letters = {LinearAttention: "l", KimiDelta: "l", Lightning: "l", Mamba1: "m", Mamba2: "m", ShortConv: "c"}
    return "".join(
        "-" if a is None else letters.get(type(a)) or ("s" if getattr(a, "window", None) else "f") for a in mixers(spec)
    )


def routes(spec: ModelSpec) -> str:
    """One letter a layer: E(xperts), D(ense), - (no feed-forward)."""
    return "".join(
        "E" if isinstance(layer.ffn, MoeFfn) else "D" if isinstance(layer.ffn, DenseFfn) else "-"
        for layer in spec.layers
    )


class TestPublished:
    """Every configuration of the data folder against counts made on the meta device, tensor by tensor."""

    @pytest.mark.skipif(not _PUBLISHED.is_dir(), reason="the published configurations are not beside the repository")
    @pytest.mark.parametrize("name", sorted(_TABLE))
    def test_every_count_is_that_of_the_class_to_the_parameter(self, name: str) -> None:
        config = json.loads((_PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
        about = config.pop("_about")
        count = about["count_check"]
        if name in _UNSAID:
            with pytest.raises(UserError, match=f"does not say {_UNSAID[name]}"):
                spec_from_config(config, name, f"{name}.json")
        spec = spec_from_config(config, name, f"{name}.json", assume=name in _UNSAID)
        assert [total_params(spec), active_params(spec), kv_bytes(spec, 8192), mtp_params(spec)] == _TABLE[name]
        if name in _UNSAID:
            assert spec.assumed == (_UNSAID[name],)
            return
        assert spec.assumed == ()
        # Classes keep the bias of a selection outside their parameters; the files have it.
        biases = sum(f.n_experts for x in spec.layers if isinstance(f := x.ffn, MoeFfn) and f.selection_bias)
        off = total_params(spec) - count["computed_total"]
        assert off in (0, biases) or (name in _OFF and abs(off) < 0.005 * count["computed_total"])
        if name not in _OFF and (active := count.get("computed_active_with_embedding")) is not None:
            embedding = 0 if spec.tied_embeddings else spec.vocab * spec.hidden
            assert active_params(spec) + embedding - active in (0, biases)

    @pytest.mark.skipif(not _PUBLISHED.is_dir(), reason="the published configurations are not beside the repository")
    def test_the_table_has_every_file(self) -> None:
        assert {path.stem for path in _PUBLISHED.glob("*.json")} == set(_TABLE)

    @pytest.mark.skipif(not _PUBLISHED.is_dir(), reason="the published configurations are not beside the repository")
    @pytest.mark.parametrize(
        ("name", "context", "gigabytes"),
        [
            # Four full layers keep 64 MiB per 4,096 tokens, twenty windows of 512 the rest; 18 layers share theirs.
            ("gemma-4-e4b", 131_072, 2.17),
            # 512 + 64 a token and layer, whatever num_key_value_heads says.
            ("deepseek-v3", 8192, 8192 * 61 * 576 * 2 / 1e9),
            # An index key of 128 beside it, but only in 21 of 78 layers.
            ("glm-5.2", 8192, 8192 * (78 * 576 + 21 * 128) * 2 / 1e9),
            # Windows of 128, one entry for 4 tokens with an index key, one for 128 tokens.
            ("deepseek-v4-flash", 8192, (43 * 128 * 512 + 21 * 2048 * 640 + 20 * 64 * 512) * 2 / 1e9),
            # Attention in 4 of 40 layers.
            ("granite-4.0-h-small", 8192, 8192 * 4 * 2 * 8 * 128 * 2 / 1e9),
        ],
    )
    def test_the_cache_is_what_the_layers_keep(self, name: str, context: int, gigabytes: float) -> None:
        config = json.loads((_PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
        assert kv_bytes(spec_from_config(config, name, "x"), context) / 1e9 == pytest.approx(gigabytes, rel=0.005)


class TestOrder:
    """Which layer is what, in every spelling."""

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"sliding_window_pattern": 2}, "sfsf"),
            ({"sliding_window_pattern": "LLLG"}, "sssf"),
            ({"hybrid_layer_pattern": [0, 1, 1, 0]}, "fssf"),
            ({"global_attn_every_n_layers": 3}, "ssfs"),
            ({"layer_types": ["sliding_attention", "full_attention"] * 2}, "sfsf"),
            ({"layer_types": ["sliding_attention"] * 4, "sliding_window": None}, "ffff"),
            ({"sliding_window_pattern": 2, "use_sliding_window": False}, "ffff"),
            ({}, "ssss"),
        ],
    )
    def test_windows(self, changes: dict[str, Any], expected: str) -> None:
        assert kinds(read(NEW, **{"sliding_window": 128, **changes})) == expected

    def test_a_class_decides_where_no_key_does(self) -> None:
        assert kinds(read({**PLAIN, "model_type": "cohere2", "sliding_window": 64}, num_hidden_layers=5)) == "sssfs"
        assert kinds(read({**PLAIN, "model_type": "exaone4"})) == "ffff"

    def test_layers_of_one_part(self) -> None:
        spec = read(
            {**PLAIN, **EXPERTS, "model_type": "nemotron_h", "mlp_hidden_act": "relu2"},
            num_hidden_layers=5,
            hybrid_override_pattern="ME*-M",
            mamba_num_heads=8,
            mamba_head_dim=16,
            ssm_state_size=32,
            n_groups=2,
            moe_shared_expert_intermediate_size=48,
            n_shared_experts=1,
            moe_latent_size=24,
            num_nextn_predict_layers=1,
            mtp_hybrid_override_pattern="*E",
        )
        assert kinds(spec) == "m-f-m"
        assert routes(spec) == "-E-D-"
        moe = spec.layers[1].ffn
        assert isinstance(moe, MoeFfn)
        assert (moe.gated, moe.latent_width, moe.shared_width) == (False, 24, 48)
        assert spec.layers[0].mixer == Mamba2(8, 16, 32, groups=2)
        assert spec.mtp is not None
        (block,) = spec.mtp.layers
        assert isinstance(block.mixer, Gqa)
        assert block.ffn == moe

    def test_a_list_of_parts_gives_the_number_of_layers(self) -> None:
        config = {**PLAIN, "model_type": "nemotron_h", "layers_block_type": ["mlp", "attention"]}
        del config["num_hidden_layers"]
        assert kinds(read(config)) == "-f"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"full_attn_idxs": [1, 3]}, "cfcf"),
            ({"attn_layer_period": 4, "attn_layer_offset": 2, "mamba_d_state": 16}, "mmfm"),
            ({"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}, "mfmm"),
        ],
    )
    def test_attention_here_and_there(self, changes: dict[str, Any], expected: str) -> None:
        assert kinds(read(NEW, **changes)) == expected

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"first_k_dense_replace": 1}, "DEEE"),
            ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, "DDED"),
            ({"moe_layer_freq": [0, 1, 0, 1]}, "DEDE"),
            ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, "DEEE"),
            ({"is_moe_layer": [False, True, True, True], "first_last_k_dense_replace": 1}, "DEEE"),
            ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, "DEDD"),
            ({"num_dense_layers": 3}, "DDDE"),
            ({"interleave_moe_layer_step": 2}, "DEDE"),
            ({"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1}, "DEED"),
            ({"expert_layer_period": 2, "expert_layer_offset": 1}, "DEDE"),
            ({"moe_layers_enum": "1,3"}, "DEDE"),
            ({"moe_layer_num_skipped": 2}, "DDEE"),
            ({"num_experts": 0}, "DDDD"),
            ({"num_experts": None}, "DDDD"),
        ],
    )
    def test_experts_here_and_there(self, changes: dict[str, Any], expected: str) -> None:
        assert routes(read({**NEW, **EXPERTS}, **changes)) == expected

    def test_layers_described_one_by_one(self) -> None:
        blocks = [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 6.0}},
            {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"ffn_mult": 3.0}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True, "ffn_mult": None}},
            {"attention": {"num_key_value_heads": 4}, "ffn": {"intermediate_size": 80}},
        ]
        config = {**PLAIN, "model_type": "nemotron-nas", "block_configs": blocks}
        for key in ("num_key_value_heads", "intermediate_size"):
            config[key] = None
        spec = read(config)
        assert kinds(spec) == "f-ff"
        assert [a.kv_heads for a in mixers(spec) if a is not None] == [2, 1, 4]
        assert [None if layer.ffn is None else layer.ffn.width for layer in spec.layers] == [256, 256, None, 80]  # type: ignore[union-attr]


class TestParts:
    """What parts are made of."""

    def test_heads_by_layer_and_by_kind(self) -> None:
        spec = read(NEW, num_attention_heads_per_layer=[4, 6, 4, 6], use_head_wise_attn_gate=True)
        assert [a.heads for a in mixers(spec)] == [4, 6, 4, 6]
        assert {a.output_gate for a in mixers(spec)} == {OutputGate.HEAD}
        spec = read(
            {**PLAIN, "model_type": "mimo_v2"},
            sliding_window=128,
            hybrid_layer_pattern=[0, 1, 1, 0],
            v_head_dim=8,
            swa_num_attention_heads=8,
            swa_num_key_value_heads=4,
            swa_head_dim=24,
            swa_v_head_dim=12,
        )
        full, near = mixers(spec)[0], mixers(spec)[1]
        assert (full.heads, full.kv_heads, full.head_dim, full.value_dim, full.sinks) == (4, 2, 16, 8, False)
        assert (near.heads, near.kv_heads, near.head_dim, near.value_dim, near.sinks) == (8, 4, 24, 12, True)

    def test_gemma_4_shares_keys_and_values_and_has_a_table_a_layer(self) -> None:
        spec = read(
            {**PLAIN, "model_type": "gemma4_text", "sliding_window": 32, "tie_word_embeddings": True},
            layer_types=["sliding_attention", "full_attention"] * 2,
            global_head_dim=32,
            num_kv_shared_layers=2,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=300,
            attention_k_eq_v=True,
        )
        assert [a.head_dim for a in mixers(spec)] == [16, 32, 16, 32]
        assert [a.shares_kv for a in mixers(spec)] == [False, False, True, True]
        assert [a.keys_are_values for a in mixers(spec)] == [False, True, False, True]
        assert [layer.ffn.width for layer in spec.layers] == [96, 96, 192, 192]  # type: ignore[union-attr]
        assert spec.per_layer_embedding is not None
        assert (spec.per_layer_embedding.width, spec.per_layer_embedding.vocab) == (8, 300)
        assert kv_bytes(spec, 100) == 2 * (32 * 2 * 2 * 16 + 100 * 2 * 2 * 32)

    def test_latent_attention_with_an_indexer_that_layers_share(self) -> None:
        spec = read(
            NEW,
            kv_lora_rank=32,
            q_lora_rank=None,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            index_topk=64,
            index_n_heads=2,
            index_head_dim=16,
            indexer_types=["full", "shared", "full", "shared"],
        )
        assert all(isinstance(a, Mla) for a in mixers(spec))
        assert [a.indexer.owns_weights for a in mixers(spec)] == [True, False, True, False]
        assert kv_bytes(spec, 10) == 2 * 10 * (4 * 40 + 2 * 16)

    def test_attention_that_compresses_what_is_far(self) -> None:
        spec = read(
            {**PLAIN, **EXPERTS, "model_type": "deepseek_v4"},
            compress_ratios=[0, 4, 128, 4, 0],
            q_lora_rank=32,
            o_groups=2,
            o_lora_rank=8,
            num_key_value_heads=1,
            sliding_window=16,
            index_topk=8,
            index_n_heads=2,
            index_head_dim=16,
            hc_mult=4,
            num_hash_layers=1,
            num_nextn_predict_layers=1,
        )
        found = mixers(spec)
        assert all(isinstance(a, CompressedAttention) for a in found)
        assert [a.ratio for a in found] == [0, 4, 128, 4]
        assert [a.indexer is not None for a in found] == [False, True, False, True]
        assert [layer.ffn.selection_bias for layer in spec.layers] == [False, True, True, True]  # type: ignore[union-attr]
        assert spec.streams is not None
        assert spec.streams.count == 4

    def test_linear_layers_are_what_their_keys_say(self) -> None:
        gated = {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 16,
            "full_attention_interval": 2,
        }
        assert kinds(read(NEW, **gated)) == "lflf"
        assert mixers(read(NEW, **gated))[0] == LinearAttention(2, 4, 8, 16)
        kimi = {"kda_layers": [1, 3, 4], "full_attn_layers": [2], "num_heads": 4, "head_dim": 8}
        spec = read(NEW, linear_attn_config={**kimi, "short_conv_kernel_size": 4})
        assert kinds(spec) == "lfll"
        assert mixers(spec)[0] == KimiDelta(4, 8, gate_rank=8)
        spec = read({**PLAIN, "model_type": "minimax_text_01"}, attn_type_list=[0, 0, 0, 1])
        assert kinds(spec) == "lllf"
        assert mixers(spec)[0] == Lightning(4, 4, 16)

    def test_attention_and_mamba_side_by_side(self) -> None:
        spec = read(
            {**PLAIN, "model_type": "falcon_h1"},
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=16,
            mamba_expand=2,
            mamba_use_mlp=True,
        )
        assert all([type(mixer) for mixer in layer.mixers] == [Gqa, Mamba2] for layer in spec.layers)
        assert spec.layers[0].mixers[1].inner == 32  # type: ignore[union-attr]

    def test_norms_gates_and_biases_from_keys(self) -> None:
        spec = read(NEW, use_sandwich_norm=True, use_qk_norm=True, attention_bias=True, attention_out_bias=False)
        layer = spec.layers[0]
        assert isinstance(a := layer.mixer, Gqa)
        assert (layer.norms, a.qk_norm, a.qkv_bias, a.output_bias) == (Norms.AROUND, QkNorm.HEAD, True, False)
        assert read(NEW, use_parallel_block=True).layers[0].norms is Norms.PARALLEL

    def test_a_width_is_adjusted_as_lfm2_does(self) -> None:
        config = {**PLAIN, "model_type": "lfm2", "layer_types": ["conv"] * 3 + ["full_attention"]}
        spec = read(config, block_auto_adjust_ff_dim=True, block_ff_dim=12288, block_multiple_of=256)
        assert spec.layers[0].ffn == DenseFfn(8192)

    def test_hashed_tables_have_prime_heads(self) -> None:
        spec = read(
            {**NEW, **EXPERTS},
            ngram_size=3,
            heads_per_ngram=2,
            ngram_vocab_size_base=100,
            ple_embed_dim=64,
            ple_layer_ids=[2],
            make_ngram_vocab_size_divisible_by=8,
        )
        table = spec.ngrams
        assert table is not None
        # 101 + 103 + 107 + 109 rows, padded to eights.
        assert (table.rows, table.width, table.layers) == (424, 16, (1,))

    def test_two_layers_in_one(self) -> None:
        spec = read(
            {**PLAIN, **EXPERTS, "model_type": "longcat_flash", "ffn_hidden_size": 96, "num_layers": 2},
            num_hidden_layers=None,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            zero_expert_num=4,
        )
        assert routes(spec) == "EDED"
        assert spec.layers[0].ffn.dense_width == 96  # type: ignore[union-attr]

    def test_mistral_own_spelling(self) -> None:
        spec = read(
            {
                "dim": 64,
                "n_layers": 2,
                "n_heads": 4,
                "n_kv_heads": 2,
                "head_dim": 16,
                "hidden_dim": 96,
                "vocab_size": 320,
                "max_seq_len": 2048,
                "tied_embeddings": True,
                "norm_eps": 1e-5,
                "moe": {
                    "num_experts": 4,
                    "num_experts_per_tok": 1,
                    "expert_hidden_dim": 32,
                    "first_k_dense_replace": 1,
                },
                "vision_encoder": {"hidden_size": 8},
            }
        )
        assert routes(spec) == "DE"
        assert spec.tied_embeddings

    def test_the_language_model_is_found_inside_two_shells(self) -> None:
        config = {"model_type": "any_omni", "thinker_config": {"text_config": {**PLAIN, "model_type": "qwen3"}}}
        assert read(config).layers == read(PLAIN, model_type="qwen3").layers

    def test_what_stands_outside_it_is_of_towers(self) -> None:
        outside = {
            "model_type": "granite_speech",
            "window_size": 15,
            "sliding_window": 7,
            "num_nextn_predict_layers": 2,
        }
        inner = {**PLAIN, "model_type": "granite", "max_position_embeddings": None}
        spec = read({**outside, "text_config": inner}, max_position_embeddings=4096)
        assert kinds(spec) == "ffff"
        assert (spec.mtp, spec.context) == (None, 4096)
        # A part that does not say how many layers it has is no whole description, and what is outside belongs to it.
        assert kinds(read(PLAIN, text_config={"model_type": "mistral", "sliding_window": 15})) == "ssss"


class TestNewest:
    """Classes of the second half of 2026, whose counts were held against transformers 5.24 on the meta device."""

    def test_gates_and_norms_that_no_key_tells(self) -> None:
        changes = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 64}
        spec = read(PLAIN, model_type="beam", mlp_layer_types=["dense"] + ["sparse"] * 3, **EXPERTS, **changes)
        assert spec.assumed == ()
        assert {(a.output_gate, a.qk_norm) for a in mixers(spec)} == {(OutputGate.FULL, QkNorm.HEAD)}
        assert {layer.norms for layer in spec.layers} == {Norms.AROUND}
        assert routes(spec) == "DEEE"

    def test_experts_on_a_narrower_state(self) -> None:
        spec = read(PLAIN, model_type="muse_spark_text", moe_hidden_size=32, **EXPERTS)
        assert [layer.ffn.latent_width for layer in spec.layers if isinstance(layer.ffn, MoeFfn)] == [32] * 4
        with pytest.raises(UserError, match="`moe_hidden_size` is not known"):
            read(NEW, moe_hidden_size=32, **EXPERTS)

    def test_layers_that_cache_their_own_and_layers_that_do_not(self) -> None:
        latent = {
            **{"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
            **{"index_topk": 64, "index_n_heads": 2, "index_head_dim": 16, "layer_types": ["indexed_attention"] * 4},
        }
        spec = read(PLAIN, model_type="mistral_large4_text", kv_source_layers=[0, 1, 2, 3], **latent, **EXPERTS)
        assert [a.q_lora_rank for a in mixers(spec)] == [None] * 4
        assert all(a.indexer is not None for a in mixers(spec))
        with pytest.raises(UserError, match="`kv_source_layers` is not known"):
            read(PLAIN, model_type="mistral_large4_text", kv_source_layers=[0, 0, 2, 2], **latent, **EXPERTS)

    def test_small_parts_that_are_left_out_are_named(self) -> None:
        inner = {
            **{key: value for key, value in PLAIN.items() if key not in ("model_type", "max_position_embeddings")},
            **{"model_max_length": 4096, "local_layer_ids": [0, 1, 3], "sliding_window_size": 64, "d_rel": 4},
            **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "rel_extent": 8},
            **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2, "dense_mlp_idx": 1},
            **{"dense_intermediate_size": 192, "use_sconv": True, "sconv_kernel_size": 4, "unpadded_vocab_size": 300},
        }
        spec = read({"model_type": "inkling_mm_model", "text_config": inner})
        assert spec.assumed == ("d_rel",)
        assert (kinds(spec), routes(spec)) == ("ssfs", "DEEE")
        assert [a.kv_heads for a in mixers(spec)] == [4, 4, 2, 4]
        assert [layer.ffn.width for layer in spec.layers if isinstance(layer.ffn, DenseFfn)] == [192]
        assert {(f.expert_width, f.shared_width) for layer in spec.layers if isinstance(f := layer.ffn, MoeFfn)} == {
            (96, 192)
        }
        listed = {**inner, "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding"]}
        assert read({"model_type": "inkling_mm_model", "text_config": listed}).layers == spec.layers

    @pytest.mark.parametrize(("model_type", "words", "block"), [
        ("step3p7", None, DenseFfn), ("step3p7", ["sparse", "sparse"], MoeFfn),
        ("mimo_v2", None, DenseFfn), ("glm4_moe", None, MoeFfn), ("glm4_moe", ["dense", "dense"], DenseFfn),
    ])  # fmt: skip
    def test_drafting_blocks_route_or_not(self, model_type: str, words: list[str] | None, block: type[object]) -> None:
        said = {} if words is None else {"mtp_mlp_layer_types": words}
        spec = read(
            PLAIN, model_type=model_type, sliding_window=64, num_nextn_predict_layers=2, first_k_dense_replace=1,
            **EXPERTS, **said,
        )  # fmt: skip
        assert spec.mtp is not None
        assert [type(each.ffn) for each in spec.mtp.layers] == [block, block]

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            (
                {"architectures": ["LlamaForSequenceClassification"]},
                "architecture 'LlamaForSequenceClassification' says",
            ),
            (
                {"architectures": ["EuroBertForMaskedLM"], "model_type": "eurobert"},
                "writes none; give a language model",
            ),
            ({"architectures": ["LlamaBidirectionalModel"]}, "embeds or sorts texts"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention says that it embeds"),
            ({"model_type": "gemma4_assistant", "text_config": PLAIN}, "it drafts for another model"),
            ({"architectures": ["LlamaForCausalLMEagle"], "num_hidden_layers": 1}, "is a draft head for speculative"),
            ({"architectures": ["Eagle3LlamaForCausalLM"], "draft_vocab_size": 32}, "give the model it drafts for"),
        ],
    )
    def test_what_writes_no_text_is_no_language_model(self, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(UserError, match=told):
            spec_from_config({**PLAIN, **changes}, "m", "m.json", assume=True)

    @pytest.mark.parametrize("seen", ["vision", False, None])
    def test_pictures_alone_may_be_seen_from_both_sides(self, seen: object) -> None:
        named = {"architectures": ["Eagle2_5_VLForConditionalGeneration"], "use_bidirectional_attention": seen}
        assert spec_from_config({**PLAIN, **named}, "m", "m.json").assumed == ()

    @pytest.mark.parametrize("model_type", ["diffusion_gemma", "llada", "sdar_moe"])
    def test_what_writes_many_tokens_at_once_is_refused(self, model_type: str) -> None:
        with pytest.raises(UserError, match=f"model_type '{model_type}' is not read: it writes by diffusion"):
            read(PLAIN, model_type=model_type)


class TestUnknownKeys:
    """What nobody used is named, when it could change a tensor."""

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("extra_adapter_dim", 64),
            ("num_memory_layers", 2),
            ("attention_sublayers", [1, 0, 1, 0]),
            ("use_second_stream", True),
            ("mixer_pattern", "AABB"),
            ("widening", {"width": 128}),
            ("ffn_expansion", 2.5),
            ("lookback", 4096),
        ],
    )
    def test_a_key_that_could_change_the_layout_is_refused_and_assumed_on_request(self, key: str, value: Any) -> None:
        with pytest.raises(UserError, match=rf"m\.json: m: key `{key}` is not known and could .*`--assume` reads on"):
            read(PLAIN, **{key: value})
        spec = spec_from_config({**PLAIN, key: value}, "m", "m.json", assume=True)
        assert spec.layers == read(PLAIN).layers
        assert spec.assumed == (key,)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("extra_adapter_dim", None),
            ("use_second_stream", False),
            ("num_memory_layers", 0),
            ("router_aux_loss_coef", 0.001),
            ("bos_token_id", 151643),
            ("torch_dtype", "bfloat16"),
            ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}),
            ("vision_config", {"hidden_size": 1152, "depth": 27}),
            ("use_cache", True),
            ("transformers_version", "5.1.0"),
            ("attention_dropout", 0.0),
            ("id2label", {"0": "LABEL_0"}),
        ],
    )
    def test_a_harmless_key_is_not(self, key: str, value: Any) -> None:
        assert read(PLAIN, **{key: value}) == read(PLAIN)

    def test_keys_of_parts_that_no_layer_has_are_harmless(self) -> None:
        config = {**PLAIN, "model_type": "granitemoehybrid", "layer_types": ["attention"] * 4}
        spec = read(config, mamba_n_heads=128, mamba_d_state=256, num_local_experts=0, shared_intermediate_size=48)
        assert kinds(spec) == "ffff"
        assert spec.layers[0].ffn == DenseFfn(48)

    def test_keys_of_parts_that_no_key_places_are_not(self) -> None:
        with pytest.raises(UserError, match="`mamba_d_state`"):
            read(NEW, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16)

    def test_a_class_that_is_not_known_is_read_and_says_so(self) -> None:
        spec = read(NEW)
        assert spec.assumed == ("model_type",)
        assert total_params(spec) == total_params(read(PLAIN))

    @pytest.mark.parametrize("fact", ["tie_word_embeddings", "vocab_size", "intermediate_size", "num_attention_heads"])
    def test_what_such_a_class_leaves_unsaid_is_named(self, fact: str) -> None:
        config = {key: value for key, value in NEW.items() if key != fact}
        with pytest.raises(UserError, match=rf"'appeared_last_month' is not known.*do not say.*{fact}"):
            read(config)

    def test_an_activation_that_tells_no_gate_is_refused(self) -> None:
        with pytest.raises(UserError, match="'gelu' does not tell whether feed-forwards have a gate matrix"):
            read(NEW, hidden_act="gelu")

    def test_a_word_that_is_not_known_is_named(self) -> None:
        with pytest.raises(UserError, match="layer_types names a kind of layer, 'retention', that is not known"):
            read(NEW, layer_types=["retention"] * 4)

    @pytest.mark.parametrize(
        ("changes", "missing"),
        [
            ({"num_expert": 64}, "num_experts"),
            ({"moe_experts": 64, "moe_intermediate_size": 32}, "num_experts"),
            ({"moe_config": {"expert_total": 64}}, "num_experts"),
            ({"enable_moe_block": True}, "num_experts"),
            ({"layer_types": ["sliding_attention", "full_attention"] * 2}, "sliding_window"),
            ({"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}, "kv_lora_rank"),
        ],
    )
    def test_a_part_that_is_announced_and_not_told_is_missing(self, changes: dict[str, Any], missing: str) -> None:
        with pytest.raises(UserError, match=f"does not say {missing}"):
            read(PLAIN, **changes)

    def test_a_part_that_is_said_to_be_absent_is_absent(self) -> None:
        assert not read(PLAIN, num_experts=None, top_k_experts=8).is_moe
        assert not read(PLAIN, num_local_experts=0, expert_intermediate_size=64).is_moe
        listed = ["sliding_attention", "full_attention"] * 2
        for changes in ({"sliding_window": None}, {"use_sliding_window": False}):
            spec = read(PLAIN, layer_types=listed, **changes)
            assert all(isinstance(x.mixer, Gqa) and x.mixer.window is None for x in spec.layers)

    @pytest.mark.parametrize(
        "changes",
        [
            {"engram": {"heads": 8, "rows": 10**6}},
            {"engram_table_rows": 10**6},
            {"ngram_vocab_size_ratio": 78},
            {"rope_head_dim": 64},
            {"causal_conv_kernel": 4},
            {"language_adapter_dim": 64},
            {"kv_cache_heads": 2},
            {"initial_scale_rank": 8},
        ],
    )
    def test_a_size_is_one_whatever_it_is_called(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=f"`{next(iter(changes))}` is not known"):
            read(PLAIN, **changes)

    def test_heads_are_shared_evenly(self) -> None:
        for kv_heads in (3, 8):
            with pytest.raises(UserError, match=f"layer 0 has 4 heads for {kv_heads} key-value heads"):
                read(PLAIN, num_key_value_heads=kv_heads)

    def test_no_window_may_be_written_as_a_number(self) -> None:
        for window in (0, -1):
            spec = read(PLAIN, sliding_window=window)
            assert all(isinstance(x.mixer, Gqa) and x.mixer.window is None for x in spec.layers)

    def test_one_of_a_key_that_is_not_known_counts(self) -> None:
        with pytest.raises(UserError, match="`first_dense_replace` is not known"):
            read(PLAIN, first_dense_replace=1)

    def test_layers_without_attention_leave_its_keys_idle(self) -> None:
        mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "layer_types": ["mamba"] * 4}
        spec = read(PLAIN, **mamba, attention_bias=True, kv_lora_rank=16, qk_nope_head_dim=16)
        assert all(isinstance(layer.mixer, Mamba2) for layer in spec.layers)
        indices = read(PLAIN, model_type="bamba", attn_layer_indices=None, **(mamba | {"layer_types": None}))
        assert all(isinstance(layer.mixer, Mamba2) for layer in indices.layers)

    def test_the_width_of_a_model_of_mixers_alone_is_theirs(self) -> None:
        base = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "state_size": 16}
        wide = spec_from_config({**base, "intermediate_size": 192}, "m", "m.json")
        assert [layer.mixer.inner for layer in wide.layers if isinstance(layer.mixer, Mamba1)] == [192] * 2

    def test_an_encoder_is_told_apart(self) -> None:
        with pytest.raises(UserError, match="has an encoder beside its decoder"):
            read(NEW, is_encoder_decoder=True)

    def test_a_file_is_read_on_through_the_front_door(self, tmp_path: Path) -> None:
        file = tmp_path / "x.json"
        file.write_text(json.dumps({**PLAIN, "foo_dim": 8}))
        with pytest.raises(UserError, match="`foo_dim`"):
            resolve_spec(str(file))
        assert resolve_spec(str(file), assume=True).assumed == ("foo_dim",)


class TestBadInput:
    """One line for what is wrong, quickly."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, it must be at most 512"),
            ({"layer_types": ["full_attention"] * 3}, "layer_types names 3 layers, num_hidden_layers says 4"),
            ({"num_key_value_heads": [1, 2]}, "num_key_value_heads names 2 layers"),
            ({"intermediate_size": [96, 96, "x", 96]}, "whole numbers"),
            ({"hidden_act": "silu", "layer_types": "full"}, "must be a list"),
            ({"rope_theta": "high"}, "rope_theta is 'high', it must be a number"),
        ],
    )
    def test_what_is_wrong_is_said(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            read(PLAIN, **changes)

    def test_a_long_value_is_cut(self) -> None:
        with pytest.raises(UserError) as caught:
            read(PLAIN, hidden_size="9" * 10_000)
        assert len(str(caught.value)) < 300


def test_a_layer_without_a_part_has_none() -> None:
    assert Layer((), None).mixer is None
