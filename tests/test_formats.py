"""Weight formats against llama.cpp's own type tables, published files and a real GGUF."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from breakeven.errors import UserError
from breakeven.model.architecture import DenseFfn, Gqa, Layer, ModelSpec, MoeFfn
from breakeven.model.arithmetic import bytes_by_group, file_bytes
from breakeven.model.catalogue import lookup
from breakeven.model.formats.ggml import GgmlType, block_bytes, block_size
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.named import format_named, tensor_bytes, tensor_types
from breakeven.model.tensors import Tensor, TensorGroup, tensors

TABLES: dict[str, dict[str, dict[str, dict[str, str]]]] = json.loads(
    (Path(__file__).parent / "data" / "llama_cpp_types.json").read_text()
)["models"]


def _listed(table: dict[str, dict[str, str]]) -> dict[str, str]:
    """Tensor name to type, from `{type: {tensor: layers}}`."""
    found = {}
    for kind, by_tensor in table.items():
        for tensor, layers in by_tensor.items():
            for part in layers.split(","):
                first, _, last = part.partition("-")
                if not first:
                    found[tensor] = kind
                    continue
                for layer in range(int(first), int(last or first) + 1):
                    found[f"blk.{layer}.{tensor}"] = kind
    return found


def _cases() -> Iterator[Any]:
    for model, by_format in TABLES.items():
        for name in by_format:
            yield pytest.param(model, name, id=f"{model}-{name}")


def _always_f32(tensor: Tensor) -> bool:
    kept = ("ffn_gate_inp.weight", "ssm_conv1d.weight")
    return len(tensor.shape) == 1 or not tensor.name.endswith(".weight") or tensor.name.endswith(kept)


@pytest.mark.parametrize(("model", "name"), list(_cases()))
def test_types_are_those_of_llama_cpp(model: str, name: str) -> None:
    listed = _listed(TABLES[model][name])
    spec = lookup(model)
    if "output.weight" in listed:  # the tables read some tied models off files that store the head apart
        spec = replace(spec, tied_embeddings=False)
    everything = tensors(spec)
    # A type other than the default for a tensor that we do not have would hide a missing tensor.
    assert {tensor.name for tensor in everything} >= listed.keys()
    # llama.cpp's table takes MXFP4 as that format's default and lists all that is not a stack of experts.
    default = FORMATS[name].stacked or FORMATS[name].default
    expected = {t.name: GgmlType.F32 if _always_f32(t) else GgmlType(listed.get(t.name, default)) for t in everything}
    assert tensor_types(spec, name) == expected


def test_real_file_has_the_types_we_assign(smollm2_gguf: Path) -> None:
    reader = gguf.GGUFReader(smollm2_gguf)
    real = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert tensor_types(lookup("smollm2-135m"), "Q4_1") == real
    assert file_bytes(lookup("smollm2-135m"), "Q4_1") == sum(int(tensor.n_bytes) for tensor in reader.tensors)


# Header facts of published files, from llamafit 0.1.1 (PyPI): llama3.facts.json and gpt-oss.facts.json.
@pytest.mark.parametrize(
    ("model", "name", "total", "head", "embedding", "experts", "rest"),
    [
        ("llama-3.1-8b", "Q4_K_M", 4_912_898_304, 430_940_160, 295_501_824, 0, 4_186_456_320),
        ("gpt-oss-20b", "MXFP4", 12_096_558_336, 615_329_280, 615_329_280, 10_178_887_680, 687_012_096),
        ("gpt-oss-120b", "MXFP4", 63_374_323_968, 615_329_280, 615_329_280, 61_073_326_080, 1_070_339_328),
    ],
)
def test_bytes_of_published_files(
    model: str, name: str, total: int, head: int, embedding: int, experts: int, rest: int
) -> None:
    counted = bytes_by_group(lookup(model), name)
    assert file_bytes(lookup(model), name) == pytest.approx(total, rel=1e-4)
    assert counted.pop(TensorGroup.OUTPUT_HEAD) == head
    assert counted.pop(TensorGroup.EMBEDDING) == embedding
    assert counted.pop(TensorGroup.ROUTED_EXPERTS, 0) == experts
    assert sum(counted.values()) == pytest.approx(rest, rel=1e-4)


# Sizes in gigabytes that hub pages show for files people downloaded: mradermacher/Mixtral-8x7B-v0.1-GGUF,
# gobean/Mixtral-8x7B-Instruct-v0.1-GGUF (Q4_0, Q6_K) and bartowski/OLMoE-1B-7B-0924-Instruct-GGUF.
@pytest.mark.parametrize(
    ("model", "name", "gigabytes"),
    [
        ("mixtral-8x7b", "Q2_K", 17.3),
        ("mixtral-8x7b", "Q3_K_M", 22.5),
        ("mixtral-8x7b", "IQ4_XS", 25.4),
        ("mixtral-8x7b", "Q4_0", 26.4),
        ("mixtral-8x7b", "Q4_K_S", 26.7),
        ("mixtral-8x7b", "Q4_K_M", 28.4),
        ("mixtral-8x7b", "Q5_K_M", 33.2),
        ("mixtral-8x7b", "Q6_K", 38.4),
        ("olmoe-1b-7b", "Q2_K", 2.56),
        ("olmoe-1b-7b", "Q4_K_M", 4.21),
        ("olmoe-1b-7b", "Q5_K_S", 4.78),
        ("olmoe-1b-7b", "Q5_K_M", 4.93),
    ],
)
def test_sizes_of_downloaded_files(model: str, name: str, gigabytes: float) -> None:
    assert file_bytes(lookup(model), name) / 1e9 == pytest.approx(gigabytes, rel=3e-3)


def test_blocks_are_those_of_ggml() -> None:
    for kind in GgmlType:
        assert (block_size(kind), block_bytes(kind)) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def test_file_types_are_those_of_gguf() -> None:
    for chosen in FORMATS.values():
        suffix = "MXFP4_MOE" if chosen.name == "MXFP4" else chosen.name
        assert chosen.file_type == gguf.LlamaFileType[f"MOSTLY_{suffix}"]


def _eight_experts(layers: int = 32) -> ModelSpec:
    layer = Layer((Gqa(32, 8, 128),), MoeFfn(8, 2, 14336))
    return ModelSpec("m", "llama", 4096, 32000, 32768, False, (layer,) * layers, "test")


def test_models_of_eight_experts_keep_more_bits_in_attention() -> None:
    kinds = tensor_types(_eight_experts(), "Q4_K_M")
    assert kinds["blk.5.attn_v.weight"] == "Q8_0"
    assert kinds["blk.5.attn_k.weight"] == "Q8_0"
    assert kinds["blk.5.attn_output.weight"] == "Q5_K"
    assert kinds["blk.5.attn_q.weight"] == "Q4_K"
    assert kinds["blk.4.ffn_down_exps.weight"] == "Q4_K"
    assert kinds["blk.6.ffn_down_exps.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"


def _narrow(hidden: int) -> ModelSpec:
    layer = Layer((Gqa(4, 2, 16),), DenseFfn(96))
    return ModelSpec("n", "llama", hidden, 320, 512, False, (layer,) * 2, "test")


@pytest.mark.parametrize(
    ("hidden", "name", "kind", "head"),
    [
        (288, "Q4_K_M", "Q5_0", "Q8_0"),
        (288, "Q5_K_S", "Q5_1", "Q8_0"),
        (288, "Q6_K", "Q8_0", "Q8_0"),
        (288, "Q2_K", "Q4_0", "Q8_0"),
        (288, "IQ4_XS", "IQ4_NL", "Q8_0"),
        (288, "Q4_0", "Q4_0", "Q8_0"),
        (40, "Q4_0", "F16", "F16"),
        (40, "Q4_K_M", "F16", "F16"),
        (40, "BF16", "BF16", "BF16"),
    ],
)
def test_rows_that_are_not_whole_blocks_fall_back(hidden: int, name: str, kind: str, head: str) -> None:
    kinds = tensor_types(_narrow(hidden), name)
    assert kinds["blk.1.attn_q.weight"] == kind
    assert kinds["output.weight"] == head
    assert all(tensor_bytes(t, kinds[t.name]) > 0 for t in tensors(_narrow(hidden)))


def test_tied_embedding_is_stored_as_the_head() -> None:
    tied = replace(_narrow(512), tied_embeddings=True)
    assert tensor_types(tied, "Q4_0")["token_embd.weight"] == "Q6_K"
    assert tensor_types(_narrow(512), "Q4_0")["token_embd.weight"] == "Q4_0"


def test_rows_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="rows of 40 elements are not whole Q4_0 blocks of 32"):
        tensor_bytes(Tensor("x.weight", (8, 40), TensorGroup.ATTENTION, 0), GgmlType.Q4_0)


def test_every_format_stores_every_catalogued_model_of_two_kinds() -> None:
    for model in ("olmoe-1b-7b", "gemma-3-1b"):
        spec = lookup(model)
        sizes = {name: file_bytes(spec, name) for name in FORMATS}
        assert sizes["F16"] > sizes["Q8_0"] > sizes["Q6_K"] > sizes["Q4_K_M"] > sizes["Q4_K_S"] > sizes["Q2_K"]


def test_formats_are_found_in_any_case_and_near_names_are_offered() -> None:
    assert format_named("q4_k_m") is FORMATS["Q4_K_M"]
    with pytest.raises(UserError, match=r"no weight format is called 'Q4_KM'; try .*Q4_K_M"):
        format_named("Q4_KM")


def test_the_pages_tell_the_truth() -> None:
    for page in ("formats.md", "models.md"):
        found = doctest.testfile(str(Path(__file__).parent.parent / "docs" / page), module_relative=False)
        assert found.attempted > 2
        assert found.failed == 0


def test_the_page_lists_every_format() -> None:
    rows = [
        line.split("|")[1]
        for line in (Path(__file__).parent.parent / "docs" / "formats.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    listed = {name.strip() for row in rows for name in row.split(",")}
    assert FORMATS.keys() <= listed
