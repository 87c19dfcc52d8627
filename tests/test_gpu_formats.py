"""Weight formats of GPU engines: sizes against published checkpoints, and what llama.cpp is not given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.arithmetic import bytes_by_group, decode_bytes, file_bytes
from breakeven.model.catalogue import lookup, names
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.gpu import GPU_FORMATS, GpuType, gpu_format, gpu_tensor_bytes
from breakeven.model.formats.named import format_for, format_named, tensor_types
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
