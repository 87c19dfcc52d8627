"""Weight formats of GPU engines: sizes against published checkpoints, and what llama.cpp is not given."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    Gqa,
    Indexer,
    KimiDelta,
    Layer,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Mtp,
    NgramTable,
    OutputGate,
    PerLayerEmbedding,
    Quantization,
    ShortConv,
    Streams,
)
from breakeven.model.arithmetic import bytes_by_group, decode_bytes, file_bytes
from breakeven.model.catalogue import lookup, names
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.gpu import GPU_FORMATS, GpuType, gpu_format, gpu_tensor_bytes
from breakeven.model.formats.modules import module_names
from breakeven.model.formats.named import format_for, format_named, quantization_of, tensor_bytes, tensor_types
from breakeven.model.resolve import resolve_spec
from breakeven.model.tensors import Tensor, TensorGroup, tensors


@pytest.mark.parametrize(
    ("model", "chosen", "published_gb"),
    [
        # Sums of the safetensors files on the hub.
        ("gpt-oss-20b", "mxfp4_bf16", 13.76),
        ("gpt-oss-120b", "mxfp4_bf16", 65.25),
        ("llama-3.1-8b", "fp8", 9.08),  # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8
        ("llama-3.1-8b", "int4", 5.73),  # hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4
        ("llama-3.1-8b", "bf16", 16.06),
        ("kimi-k2", "int4", 594),  # moonshotai/Kimi-K2-Thinking, of the same shapes
        ("kimi-k2", "fp8_block", 1029),  # moonshotai/Kimi-K2-Instruct
        # A ladder of one model, zaydiscold/Qwen2.5-7B-Instruct-MLX-*, with some megabytes of tokenizer.
        ("qwen2.5-7b", "mlx8", 8.10),
        ("qwen2.5-7b", "mlx6", 6.20),
        ("qwen2.5-7b", "mlx4_g32", 4.77),
        ("qwen2.5-7b", "mlx4", 4.30),
        ("qwen2.5-7b", "mlx4_g128", 4.06),
        ("qwen2.5-7b", "mlx3", 3.34),
        ("qwen2.5-7b", "mlx2", 2.39),
    ],
)
def test_sizes_are_those_of_published_checkpoints(model: str, chosen: str, published_gb: float) -> None:
    assert file_bytes(lookup(model), chosen) / 1e9 == pytest.approx(published_gb, rel=0.01)


@pytest.mark.parametrize("chosen", sorted(GPU_FORMATS))
@pytest.mark.parametrize("model", ["llama-3.2-1b", "olmoe-1b-7b", "deepseek-v3", "qwen3.5-35b-a3b", "lfm2-8b-a1b"])
def test_only_linear_layers_are_quantized(model: str, chosen: str) -> None:
    spec = lookup(model)
    kinds = tensor_types(spec, chosen)
    assert kinds.keys() == {tensor.name for tensor in tensors(spec)}
    for tensor in tensors(spec):
        kept = tensor.group in (TensorGroup.EMBEDDING, TensorGroup.OUTPUT_HEAD, TensorGroup.ROUTER, TensorGroup.NORM)
        if kept or len(tensor.shape) == 1 or tensor.name.endswith(("bias", "conv1d.weight", "conv.weight")):
            assert kinds[tensor.name] == "BF16", tensor.name
    linear = next(t for t in tensors(spec) if t.name.endswith(("ffn_gate_exps.weight", "blk.5.ffn_gate.weight")))
    if linear.group is TensorGroup.ROUTED_EXPERTS or chosen != "MXFP4_BF16":
        assert kinds[linear.name] in (GPU_FORMATS[chosen].linear, GPU_FORMATS[chosen].latent_linear)


def test_latent_attention_keeps_its_bits_in_four_bit_formats() -> None:
    deepseek = lookup("deepseek-v3")
    wide, narrow = bytes_by_group(deepseek, "bf16"), bytes_by_group(deepseek, "nvfp4")
    assert narrow[TensorGroup.ATTENTION] == wide[TensorGroup.ATTENTION]
    assert narrow[TensorGroup.SHARED_EXPERTS] < wide[TensorGroup.SHARED_EXPERTS] / 3
    assert bytes_by_group(deepseek, "int4")[TensorGroup.SHARED_EXPERTS] == wide[TensorGroup.SHARED_EXPERTS]
    assert bytes_by_group(deepseek, "fp8")[TensorGroup.ATTENTION] < 0.51 * wide[TensorGroup.ATTENTION]


def test_experts_alone_are_quantized_in_mxfp4() -> None:
    spec = lookup("gpt-oss-20b")
    kinds = tensor_types(spec, "mxfp4_bf16")
    assert {kinds[t.name] for t in tensors(spec) if t.group is TensorGroup.ROUTED_EXPERTS and len(t.shape) == 3} == {
        "MXFP4"
    }
    assert {kinds[t.name] for t in tensors(spec) if t.group is not TensorGroup.ROUTED_EXPERTS} == {"BF16"}


def _type(name: str) -> GpuType:
    found = gpu_format(name)
    assert found is not None
    assert isinstance(found.linear, GpuType)
    return found.linear


@given(st.sampled_from(["FP8", "INT8", "INT4", "INT4_G32", "NVFP4"]), st.integers(1, 64), st.integers(1, 4096))
def test_bytes_of_a_matrix_hold_its_weights_and_scales(name: str, rows: int, row: int) -> None:
    size = gpu_tensor_bytes(Tensor("x.weight", (rows, row), TensorGroup.ATTENTION, 0), _type(name))
    bits = 8 if name in ("FP8", "INT8") else 4
    shared_by = {"INT4": 128, "INT4_G32": 32, "NVFP4": 16}.get(name, row)
    groups = -(-row // shared_by)
    weights = rows * row * bits / 8
    assert weights < size <= weights + 4 * rows * groups + 1


@given(st.sampled_from(names()), st.sampled_from(sorted(GPU_FORMATS)), st.integers(1, 64))
def test_a_format_of_fewer_bits_never_reads_more(model: str, chosen: str, batch: int) -> None:
    spec = lookup(model)
    assert file_bytes(spec, chosen) <= file_bytes(spec, "BF16")
    assert decode_bytes(spec, chosen, batch) <= decode_bytes(spec, "BF16", batch)


def test_names_are_found_in_any_case_and_common_spellings() -> None:
    assert format_named("fp8").name == "FP8"
    assert format_named("nvFP4").name == "NVFP4"
    assert format_named("fp16") is FORMATS["F16"]
    assert format_named("bf16") is FORMATS["BF16"]
    with pytest.raises(UserError, match=r"no weight format is called 'fp9'; try .*FP8"):
        format_named("fp9")


def test_mxfp4_is_what_the_engine_means_by_it() -> None:
    assert format_for("llama.cpp", "mxfp4") is FORMATS["MXFP4"]
    assert format_for("vllm", "mxfp4") is GPU_FORMATS["MXFP4_BF16"]
    assert format_for("vllm", "bf16") is FORMATS["BF16"]
    with pytest.raises(NotSupportedError, match=r"FP8 is a format of GPU engines.*Q8_0"):
        format_for("llama.cpp", "fp8")


@pytest.mark.parametrize("chosen", sorted(GPU_FORMATS))
def test_no_gguf_is_written_in_them(chosen: str, tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"llama\.cpp cannot read it"):
        synthesise(lookup("smollm2-135m"), chosen, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_published_checkpoint_of_deepseek_with_its_drafting_block() -> None:
    spec = lookup("deepseek-v3")
    whole = replace(
        spec,
        mtp=Mtp((spec.layers[-1],), embedding=True, head=True),
        quantization=quantization_of({"quantization_config": FP8}),
    )
    # deepseek-ai/DeepSeek-V3, the sum of its safetensors files.
    kinds = tensor_types(whole, "FP8_BLOCK")
    assert sum(tensor_bytes(t, kinds[t.name]) for t in tensors(whole)) / 1e9 == pytest.approx(688.6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("FP8", 8 + 32 / 4096),
        ("FP8_TENSOR", 8),
        ("FP8_BLOCK", 8 + 32 / (128 * 128)),
        ("MXFP8", 8.25),
        ("NVFP4", 4.5),
        ("MXFP4_LINEAR", 4.25),
        ("INT4", 4.125),
        ("INT4_G128", 4.125),
        ("INT4_G64", 4.25),
        ("INT4_G32", 4.5),
        ("INT8_G128", 8.125),
        ("AWQ", 4 + 20 / 128),
        ("AWQ_G32", 4 + 20 / 32),
        ("GPTQ", 4 + 20 / 128),
        ("GPTQ8_G128", 8 + 24 / 128),
        ("GPTQ3_ROW", 3 + 19 / 4096),
        ("NF4", 4.5),
        ("NF4_DQ", 4 + 8 / 64 + 32 / (64 * 256)),
        ("MLX3", 3.5),
        ("MLX4", 4.5),
        ("MLX4_G32", 5),
        ("MLX5", 5.5),
        ("MLX6_G32", 7),
        ("MLX8", 8.5),
        ("MLX_MXFP4", 4.25),
    ],
)
def test_bits_of_a_weight_hold_its_scales(name: str, bits: float) -> None:
    matrix = Tensor("x.weight", (4096, 4096), TensorGroup.ATTENTION, 0)
    assert 8 * gpu_tensor_bytes(matrix, _type(name)) / matrix.params == pytest.approx(bits, abs=3e-6)


def test_stacked_experts_have_scales_of_their_own() -> None:
    stack = Tensor("x.weight", (8, 130, 128), TensorGroup.ROUTED_EXPERTS, 0)
    assert gpu_tensor_bytes(stack, _type("FP8_TENSOR")) == 8 * 130 * 128 + 8 * 4
    assert gpu_tensor_bytes(stack, _type("FP8_BLOCK")) == 8 * 130 * 128 + 8 * 2 * 4


@pytest.mark.parametrize("name", ["MLX7", "MLX4_ROW", "AWQ8", "INT", "INT4_G0", "GPTQ4", "INT9_G128", "FP8_G128"])
def test_a_family_of_names_does_not_take_what_no_engine_has(name: str) -> None:
    with pytest.raises(UserError, match="no weight format is called"):
        format_named(name)


def test_mlx_quantizes_embeddings_and_the_head_and_leaves_rows_that_do_not_fit() -> None:
    kinds = tensor_types(lookup("qwen2.5-7b"), "MLX4")
    assert str(kinds["token_embd.weight"]) == str(kinds["output.weight"]) == "MLX4"
    odd = ModelSpec("o", "llama", 96, 320, 512, False, (Layer((Gqa(4, 2, 24),), DenseFfn(128)),), "test")
    kinds = tensor_types(odd, "MLX4")
    assert str(kinds["blk.0.attn_q.weight"]) == "BF16"
    assert str(kinds["blk.0.ffn_down.weight"]) == "MLX4"
    with pytest.raises(NotSupportedError, match=r"MLX4 is a format of MLX and llama\.cpp cannot read it"):
        format_for("llama.cpp", "mlx4")


_INDEXER = Indexer(8, 64, 512)
_EVERY_PART: tuple[Mixer, ...] = (
    Gqa(8, 4, 64, output_gate=OutputGate.FULL, sinks=True, indexer=_INDEXER),
    Gqa(8, 4, 64, output_gate=OutputGate.HEAD),
    Mla(8, 128, 64, 32, 64, q_lora_rank=256, indexer=_INDEXER),
    Mla(8, 128, 64, 32, 64),
    CompressedAttention(8, 64, 128, 2, 64, 128, ratio=4, indexer=_INDEXER),
    LinearAttention(4, 8, 64, 64),
    KimiDelta(8, 64, gate_rank=64),
    KimiDelta(8, 64),
    Lightning(8, 8, 64),
    Mamba2(8, 64, 128),
    Mamba1(512, 16, 32, dt_norms=True),
    ShortConv(),
)


def _every_part(**changes: Any) -> ModelSpec:
    ffns = (
        DenseFfn(1024, gated=False),
        MoeFfn(8, 2, 256, shared_width=256, shared_gate=True, latent_width=128, chunk_experts=2, chunk_width=64),
    )
    layers = tuple(Layer((mixer,), ffns[i % 2]) for i, mixer in enumerate(_EVERY_PART))
    spec = ModelSpec("every", "custom", 512, 1024, 4096, False, layers, "test")
    tables = {
        "ngrams": NgramTable(4096, 64, 256, (1,)),
        "streams": Streams(2),
        "mtp": Mtp((layers[0],)),
    }
    return replace(spec, **{**tables, **changes})


@pytest.mark.parametrize("chosen", ["FP8_BLOCK", "INT4_G32", "NVFP4", "AWQ", "NF4"])
def test_linear_matrices_of_every_part_are_quantized_and_nothing_else(chosen: str) -> None:
    spec = _every_part()
    kinds = {
        name: str(kind) for name, kind in tensor_types(replace(spec, quantization=Quantization(chosen)), chosen).items()
    }
    wide = {name for name, kind in kinds.items() if kind == "BF16"}
    stems = {name.removesuffix(".weight").split(".", 2)[-1] for name in wide if name.endswith("weight")}
    matrices = {stem for stem in stems if stem.startswith(("attn_", "ssm_", "ffn_", "indexer", "shortconv"))}
    norms = {stem for stem in matrices if "norm" in stem}
    assert matrices - norms == {
        *("attn_sinks", "attn_compressor_ape", "indexer_compressor_ape", "indexer.proj"),  # vectors, positions, gates
        *("ssm_conv1d", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "shortconv.conv", "ssm_ba", "ssm_beta"),
        *("ffn_gate_inp", "ffn_gate_inp_shexp"),
    }
    for table in ("token_embd", "output", "per_layer_token_embd"):
        assert kinds[f"{table}.weight"] == "BF16"
    assert kinds["blk.1.ple_key.weight"] != "BF16"
    drafting = len(spec.layers)
    assert kinds[f"blk.{drafting}.attn_q.weight"] != "BF16"
    assert kinds[f"blk.{drafting}.nextn.eh_proj.weight"] == "BF16"
    assert file_bytes(spec, chosen) < file_bytes(spec, "BF16")


def test_every_linear_matrix_has_a_name_that_configurations_use() -> None:
    families = {lookup(name).family: lookup(name) for name in names()}
    for spec in (_every_part(), *families.values()):
        kinds = tensor_types(spec, "FP8")
        for tensor in tensors(spec):
            if kinds[tensor.name] == "BF16":
                continue
            for module in module_names(spec, tensor):
                assert not any(stem in module for stem in ("attn_", "ssm_", "ffn_", "_exps", "shortconv")), module


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def _compressed(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        (FP8, "FP8_BLOCK"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "FP8_TENSOR"),
        ({"quant_method": "fbgemm_fp8"}, "FP8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "AWQ"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": False}, "INT4_G64"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}, "GPTQ4_G128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "GPTQ8_ROW"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "data_type": "int"}, "GPTQ4_G128"),
        (_compressed(num_bits=4, group_size=32, strategy="group", symmetric=True, type="int"), "INT4_G32"),
        (_compressed(num_bits=4, group_size=128, strategy="group", symmetric=True, type="int"), "INT4"),
        (_compressed(num_bits=4, group_size=128, strategy="group", symmetric=False, type="int"), "AWQ"),
        (_compressed(num_bits=4, strategy="channel", symmetric=True, type="int"), "INT4_ROW"),
        (_compressed(num_bits=8, strategy="channel", symmetric=True, type="int"), "INT8"),
        (_compressed(num_bits=8, strategy="channel", type="float"), "FP8"),
        (_compressed(num_bits=8, strategy="tensor", type="float"), "FP8_TENSOR"),
        (_compressed(num_bits=8, strategy="block", block_structure=[128, 128], type="float"), "FP8_BLOCK"),
        (_compressed(num_bits=4, group_size=16, strategy="tensor_group", type="float"), "NVFP4"),
        (_compressed(num_bits=4, group_size=32, strategy="group", type="float"), "MXFP4_LINEAR"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8_TENSOR"),
        ({"quant_algo": "W4A8_AWQ", "group_size": 128, "exclude_modules": ["lm_head"]}, "INT4"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4_BF16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "NF4"),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "NF4_DQ"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "INT8"),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}},
                "exclude": ["lm_head"],
            },
            "MXFP4_LINEAR",
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": [{"dtype": "fp8_e4m3"}, {"dtype": "int4", "qscheme": "per_channel"}]},
            },
            "INT4_ROW",
        ),
        ({"quant_method": "ptpc_fp8"}, "FP8"),
        ({"quant_method": "w8a8_int8"}, "INT8"),
        ({"quant_method": "modelopt_mxfp8", "quant_algo": "MXFP8"}, "MXFP8"),
        ({"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, "FP8_TENSOR"),
        ({"group_size": 64, "bits": 4}, "MLX4"),
        ({"group_size": 32, "bits": 6, "mode": "affine"}, "MLX6_G32"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MLX_MXFP4"),
    ],
)
def test_the_format_a_configuration_says(facts: dict[str, Any], chosen: str) -> None:
    inside = {"quantization_config": facts}
    nested = [{key: inside} for key in ("text_config", "llm_config", "language_config")]
    for config in (inside, *nested, {"thinker_config": {"text_config": inside}}):
        found = quantization_of(config)
        assert found is not None
        assert found.format_name == chosen
        assert file_bytes(replace(lookup("llama-3.2-1b"), quantization=found), chosen) > 0


def test_no_format_is_said() -> None:
    assert quantization_of({"model_type": "llama"}) is None
    assert quantization_of({"quantization_config": None}) is None
    assert quantization_of({"quantization_config": {"quant_method": "modelopt", "quant_algo": None}}) is None
    assert quantization_of({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False}}) is None
    cache = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8}}
    assert quantization_of({"quantization_config": cache}) is None


def test_contents_of_hf_quant_config() -> None:
    found = quantization_of(
        {
            "producer": {"name": "modelopt", "version": "0.29.0"},
            "quantization": {
                "quant_algo": "NVFP4",
                "kv_cache_quant_algo": "FP8",
                "group_size": 16,
                "exclude_modules": ["lm_head", "model.layers.0.self_attn*"],
            },
        }
    )
    assert found == Quantization("NVFP4", ("lm_head", "model.layers.0.self_attn*"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"quant_method": "aqlm"}, r"quantization method 'aqlm' is not known here \(known: .*awq.*\); .*--format"),
        ({"modules_to_not_convert": ["x"]}, r"does not say quant_method; add it"),
        ({"quant_method": "gptq"}, r"does not say bits; it must be a number of bits"),
        ({"quant_method": "gptq", "bits": "four"}, r"says 'four' for bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": "x"}, r"group_size in quantization_config is 'x'"),
        ({"quant_method": "awq", "bits": 7, "group_size": 128}, r"weights stored as 'GPTQ7_G128' are not known here"),
        ({"quant_method": "compressed-tensors"}, r"has no config_groups; add them"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            r"weights stored as 'sparse-24-bitmask' \(without their zeros\) are not known here",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"targets": ["LlamaMLP"], "weights": {"num_bits": 8, "type": "float"}}},
            },
            r"modules of class 'LlamaMLP', which is not known here",
        ),
        ({"quant_method": "modelopt"}, r"modelopt does not say quant_algo; add it"),
        ({"qformat_weight": "int3"}, r"qformat_weight 'int3' is not known here"),
        ({"quant_method": "modelopt", "quant_algo": "W2A2"}, r"quant_algo 'W2A2' is not known here"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, r"MIXED_PRECISION does not say which module"),
        (
            {"quant_method": "fp8", "ignored_layers": 3},
            r"ignored_layers in quantization_config must be a list of names",
        ),
        ({"group_size": 64, "bits": 7}, r"weights stored as 'MLX7' are not known here"),
        (["fp8"], r"quantization_config is \['fp8'\], it must be a mapping"),
    ],
)
def test_what_a_configuration_says_wrongly(facts: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        quantization_of({"quantization_config": facts})
    assert "\n" not in str(error.value)


def _types(name: str, facts: dict[str, Any]) -> dict[str, str]:
    found = quantization_of({"quantization_config": facts})
    assert found is not None
    types = tensor_types(replace(lookup(name), quantization=found), found.format_name)
    return {tensor: str(kind) for tensor, kind in types.items()}


def test_modules_with_a_format_of_their_own() -> None:
    head = _types("llama-3.1-8b", {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True})
    assert head["output.weight"] == "GPTQ4_G128"
    rounded = {"quant_method": "auto-round", "bits": 4, "group_size": 128}
    mixed = _types(
        "llama-3.1-8b", {**rounded, "extra_config": {".*self_attn.*": {"bits": 8}, r"layers\.1\.": {"bits": 16}}}
    )
    assert (mixed["blk.0.attn_q.weight"], mixed["blk.0.ffn_up.weight"]) == ("GPTQ8_G128", "GPTQ4_G128")
    assert mixed["blk.1.ffn_up.weight"] == "BF16"
    quark = {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}
    eight = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}
    named = _types("llama-3.1-8b", {**quark, "layer_quant_config": {"*self_attn*": eight, "*layers.3.mlp*": {}}})
    assert (named["blk.3.attn_q.weight"], named["blk.2.ffn_up.weight"]) == ("FP8_TENSOR", "MXFP4_LINEAR")
    assert named["blk.3.ffn_up.weight"] == "BF16"
    listed = {"model.layers.0.mlp.up_proj": {"quant_algo": "W4A16_AWQ", "group_size": 64}}
    algorithm = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    assert _types("llama-3.1-8b", algorithm)["blk.0.ffn_up.weight"] == "INT4_G64"


def test_a_format_that_lies_beside_the_configuration(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config |= {"num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 64, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": said}))
    for where in (tmp_path, tmp_path / "config.json"):
        assert resolve_spec(str(where)).quantization == Quantization("NVFP4", ("lm_head",))
    # The configuration's own word counts.
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    assert resolve_spec(str(tmp_path)).quantization == Quantization("FP8_TENSOR")


def test_a_directory_of_mistral(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 128}
    params |= {"vocab_size": 100, "norm_eps": 1e-5, "max_seq_len": 64, "quantization": {"qformat_weight": "fp8_e4m3"}}
    (tmp_path / "params.json").write_text(json.dumps(params))
    spec = resolve_spec(str(tmp_path))
    assert (spec.name, spec.quantization) == (tmp_path.name, Quantization("FP8_TENSOR"))


def _kept(spec: ModelSpec, *kept: str, chosen: str = "INT4_G32") -> set[str]:
    """Stems that the patterns keep in 16 bits and the format alone would not."""
    plain = tensor_types(replace(spec, quantization=Quantization(chosen)), chosen)
    left = tensor_types(replace(spec, quantization=Quantization(chosen, kept)), chosen)
    return {name for name in plain if plain[name] != left[name]}


def test_modules_that_a_configuration_names_keep_their_bits() -> None:
    spec = lookup("qwen3-30b-a3b")
    assert _kept(spec, "lm_head", "model.embed_tokens", "gate", "mlp.gate", "re:.*mlp.gate$") == set()
    assert _kept(spec, "model.layers.3.self_attn") == {f"blk.3.attn_{p}.weight" for p in ("q", "k", "v", "output")}
    assert _kept(spec, "model.layers.3.self_attn.o_proj") == {"blk.3.attn_output.weight"}
    assert _kept(spec, "model.language_model.layers.3.self_attn*") == _kept(spec, "layers.3.self_attn")
    assert len(_kept(spec, "re:.*self_attn.*")) == 4 * 48
    assert _kept(spec, r"re:.*\.layers\.(3|5)\.self_attn\.q_proj$") == {"blk.3.attn_q.weight", "blk.5.attn_q.weight"}
    assert _kept(spec, "model.layers.7.mlp.experts") == {f"blk.7.ffn_{p}_exps.weight" for p in ("gate", "up", "down")}
    assert _kept(spec, "model.layers.7.mlp.experts.*.down_proj") == {"blk.7.ffn_down_exps.weight"}
    assert len(_kept(spec, "model.layers.0.", "layers.47")) == 2 * 7
    assert len(_kept(spec, "*")) == 48 * 7
    assert _kept(spec, "vision_tower", "model.visual.blocks.3.attn.qkv", "mtp.layers.0*", "re:visual.*") == set()


def test_names_of_other_families() -> None:
    assert _kept(lookup("gpt-oss-20b"), "model.layers.*.self_attn", chosen="MXFP4_BF16") == set()
    deepseek = replace(lookup("deepseek-v3"), mtp=None)
    assert _kept(deepseek, "re:.*kv_a_proj_with_mqa$") == {f"blk.{i}.attn_kv_a_mqa.weight" for i in range(61)}
    assert {n.split(".")[2] for n in _kept(deepseek, "re:.*shared_experts.*")} == {
        "ffn_gate_shexp",
        "ffn_up_shexp",
        "ffn_down_shexp",
    }
    assert len(_kept(deepseek, "re:.*mlp\\.(gate|up|gate_up|down)_proj.*")) == 3 * 3  # its dense layers alone
    qwen = lookup("qwen3.5-35b-a3b")
    linear = {n.split(".", 2)[2] for n in _kept(qwen, "linear_attn")}
    assert linear == {"attn_qkv.weight", "attn_gate.weight", "ssm_out.weight"}
    assert _kept(lookup("mixtral-8x7b"), "model.layers.1.block_sparse_moe.experts.0.w2") == {
        "blk.1.ffn_down_exps.weight"
    }
    # Gemma 4's experts stand beside its `mlp`, which is dense (nvidia/Gemma-4-26B-A4B-NVFP4 leaves only that as it is).
    gemma = lookup("gemma-4-26b-a4b")
    assert _kept(gemma, "model.language_model.layers.0.mlp*") == {
        f"blk.0.ffn_{p}.weight" for p in ("gate", "up", "down")
    }
    assert {n.split(".")[2] for n in _kept(gemma, "model.language_model.layers.0.experts*")} == {
        n.split(".")[2] for n in _kept(gemma, "layers.0.moe.experts.0.gate_proj", "layers.0.experts.7", "*.experts.*")
    }
    assert _kept(gemma, "model.language_model.layers.0.experts*")
    # LongCat's layer is two of ours, the second one dense, and its experts are in its `mlp`.
    dense = replace(gemma.layers[1], ffn=deepseek.layers[0].ffn)
    assert _kept(replace(gemma, layers=(gemma.layers[0], dense)), "re:.*\\.0\\.mlp\\.experts\\..*")
    drafting = replace(deepseek, mtp=Mtp((deepseek.layers[-1],)))
    assert all(n.startswith("blk.61.") for n in _kept(drafting, "model.layers.61"))
    assert len(_kept(drafting, "model.layers.61")) == len(_kept(drafting, "mtp.*")) > 5


def test_a_published_checkpoint_keeps_what_it_says() -> None:
    spec = lookup("kimi-k2")
    found = quantization_of(
        {
            "quantization_config": {
                **_compressed(num_bits=4, group_size=32, strategy="group", symmetric=True, type="int"),
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"],
            }
        }
    )
    assert found is not None
    said = replace(spec, quantization=found)
    # moonshotai/Kimi-K2-Thinking; the same as what INT4 means for a model of latent attention.
    assert file_bytes(said, found.format_name) == file_bytes(spec, "INT4")
    # Asked what it would be in another format, what this checkpoint left out does not matter.
    assert file_bytes(said, "FP8") == file_bytes(spec, "FP8")


def test_experts_in_a_format_of_their_own() -> None:
    found = quantization_of({"quantization_config": FP8, "expert_dtype": "fp4"})
    assert found == Quantization("FP8_BLOCK", experts="MXFP4_LINEAR")
    kinds = tensor_types(replace(lookup("deepseek-v3"), quantization=found), "FP8_BLOCK")
    assert str(kinds["blk.5.ffn_up_exps.weight"]) == "MXFP4_LINEAR"
    assert str(kinds["blk.5.ffn_up_shexp.weight"]) == str(kinds["blk.5.attn_q_a.weight"]) == "FP8_BLOCK"
    with pytest.raises(UserError, match="expert_dtype 'int3' is not known here"):
        quantization_of({"quantization_config": FP8, "expert_dtype": "int3"})


def test_experts_alone_in_a_format_of_their_own() -> None:
    spec = lookup("qwen3-30b-a3b")
    for kind, format_name, stored in (("fp4", "MXFP4_BF16", "MXFP4"), ("nvfp4", "NVFP4", "NVFP4")):
        found = quantization_of({"expert_dtype": kind})
        assert found is not None
        assert found.format_name == format_name
        kinds = tensor_types(replace(spec, quantization=found), format_name)
        assert str(kinds["blk.5.ffn_up_exps.weight"]) == stored
        assert str(kinds["blk.5.attn_q.weight"]) == str(kinds["output.weight"]) == "BF16"
    assert quantization_of({"expert_dtype": "bfloat16"}) is None
    wide = quantization_of({"quantization_config": FP8, "expert_dtype": "bfloat16"})
    kinds = tensor_types(replace(spec, quantization=wide), "FP8_BLOCK")
    assert str(kinds["blk.5.ffn_up_exps.weight"]) == "BF16"
    assert str(kinds["blk.5.attn_q.weight"]) == "FP8_BLOCK"


def test_modules_in_several_formats() -> None:
    spec = lookup("qwen3.5-35b-a3b")
    layers = {
        **{f"model.language_model.layers.{i}.linear_attn.in_proj_qkv": {"quant_algo": "FP8"} for i in range(40)},
        **{f"model.language_model.layers.{i}.mlp.experts": {"quant_algo": "W4A16_NVFP4"} for i in range(40)},
        "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    }
    facts = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
        "ignore": ["mtp*"],
    }
    found = quantization_of({"quantization_config": facts})
    assert found is not None
    assert found.format_name == "NVFP4"
    kinds = {n: str(kind) for n, kind in tensor_types(replace(spec, quantization=found), "NVFP4").items()}
    assert kinds["blk.0.attn_qkv.weight"] == "FP8_TENSOR"
    assert kinds["blk.0.ffn_up_exps.weight"] == kinds["output.weight"] == "NVFP4"
    assert kinds["blk.0.ssm_out.weight"] == kinds["blk.3.attn_q.weight"] == "BF16"  # not listed
    assert kinds["blk.0.ssm_conv1d.weight"] == "BF16"


def test_changes_by_module_in_gptq_and_mlx() -> None:
    spec = lookup("qwen3-30b-a3b")
    gptq = quantization_of(
        {
            "quantization_config": {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": 128,
                "dynamic": {
                    r"-:.*self_attn\.k_proj$": {},
                    r"+:.*\.layers\.0\..*down_proj": {"bits": 8, "group_size": 64},
                },
            }
        }
    )
    assert gptq is not None
    kinds = {n: str(kind) for n, kind in tensor_types(replace(spec, quantization=gptq), "GPTQ4_G128").items()}
    assert kinds["blk.4.attn_k.weight"] == "BF16"
    assert kinds["blk.0.ffn_down_exps.weight"] == "GPTQ8_G64"
    assert kinds["blk.1.ffn_down_exps.weight"] == "GPTQ4_G128"
    part = quantization_of(
        {
            "quantization_config": {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": 128,
                "modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.experts.0.up_proj"]],
            }
        }
    )
    kinds = {n: str(kind) for n, kind in tensor_types(replace(spec, quantization=part), "GPTQ4_G128").items()}
    stored = {n.split(".", 2)[2] for n, kind in kinds.items() if kind != "BF16"}
    assert stored == {"attn_q.weight", "attn_k.weight", "ffn_up_exps.weight"}
    mlx = quantization_of(
        {
            "quantization": {
                "group_size": 64,
                "bits": 4,
                "model.layers.0.mlp.down_proj": False,
                "model.layers.1.self_attn.v_proj": {"group_size": 64, "bits": 6},
            }
        }
    )
    assert mlx == Quantization(
        "MLX4", ("model.layers.0.mlp.down_proj",), None, (("model.layers.1.self_attn.v_proj", "MLX6"),)
    )


def test_a_table_that_is_converted_is_counted_so() -> None:
    facts = {**FP8, "modules_to_not_convert": ["lm_head"], "modules_to_convert": ["ple.ple_embedding.ngram_embedding"]}
    found = quantization_of({"quantization_config": facts})
    kinds = tensor_types(_every_part(quantization=found), "FP8_BLOCK")
    assert str(kinds["per_layer_token_embd.weight"]) == "FP8_BLOCK"
    assert str(kinds["token_embd.weight"]) == "BF16"
    rows = _every_part(quantization=found, ngrams=None, per_layer_embedding=PerLayerEmbedding(64, 1024))
    assert str(tensor_types(rows, "FP8_BLOCK")["per_layer_token_embd.weight"]) == "BF16"


@pytest.mark.parametrize("pattern", ["re:(a+)+$", "re:.*.*.*.*.*x", "re:(", "re:" + "a|" * 2000])
def test_expressions_that_would_take_for_ever_are_refused(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=r"the expression .* in quantization_config"):
        _kept(lookup("deepseek-v3"), pattern)
    assert time.process_time() - started < 60, "tried out, it would take years"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
_WHOLE: tuple[dict[str, Any], ...] = (
    FP8,
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:x": {"bits": 8, "group_size": 32}}},
    {"quant_method": "awq", "bits": 4, "group_size": 128},
    {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": {"x": {"bits": 8}}},
    _compressed(num_bits=4, group_size=32, strategy="group", type="int"),
    {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"x": {"quant_algo": "FP8"}}},
    {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
    {"bits": 4, "group_size": 64, "model.x": {"bits": 6, "group_size": 32}},
)


def _spoiled(value: Any, draw: Any) -> Any:
    """The same facts with one of them, at any depth, replaced by anything."""
    if not isinstance(value, dict) or not value:
        return draw(_JSON)
    key = draw(st.sampled_from(sorted(value)))
    inside = value[key]
    changed = _spoiled(inside, draw) if isinstance(inside, dict) and draw(st.booleans()) else draw(_JSON)
    return {**value, key: changed}


@given(st.data())
def test_whatever_a_configuration_says_is_read_or_refused_in_a_sentence(data: Any) -> None:
    facts = _spoiled(data.draw(st.sampled_from(_WHOLE)), data.draw)
    said, found = "", None
    try:
        found = quantization_of({"quantization_config": facts})
    except UserError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 500
    assert found is None or gpu_format(found.format_name) is not None
