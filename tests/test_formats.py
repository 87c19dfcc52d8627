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

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import (
    DenseFfn,
    FileTensors,
    Gqa,
    KimiDelta,
    Layer,
    Mamba2,
    Mla,
    ModelSpec,
    MoeFfn,
    Quantization,
    StoredTensor,
)
from breakeven.model.arithmetic import bytes_by_group, file_bytes
from breakeven.model.catalogue import lookup, names
from breakeven.model.formats.ggml import GgmlType, block_bytes, block_size
from breakeven.model.formats.gguf import FORMATS, types_in
from breakeven.model.formats.named import (
    KV_TYPES,
    OWN,
    default_format,
    format_for,
    format_named,
    gguf_types,
    kv_element_bytes,
    label,
    tensor_bytes,
    tensor_types,
)
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
        for name in by_format if model in names() else ():
            yield pytest.param(model, name, id=f"{model}-{name}")


def _always_f32(tensor: Tensor) -> bool:
    kept = ("ffn_gate_inp.weight", "ssm_conv1d.weight", "_norm.weight")
    return len(tensor.shape) == 1 or not tensor.name.endswith(".weight") or tensor.name.endswith(kept)


@pytest.mark.parametrize(("model", "name"), list(_cases()))
def test_types_are_those_of_llama_cpp(model: str, name: str) -> None:
    listed = _listed(TABLES[model][name])
    spec = replace(lookup(model), mtp=None)  # the tables' files have no blocks that draft
    if "output.weight" in listed:  # the tables read some tied models off files that store the head apart
        spec = replace(spec, tied_embeddings=False)
    everything = tensors(spec)
    # A type other than the default for a tensor that we do not have would hide a missing tensor.
    assert {tensor.name for tensor in everything} >= listed.keys()
    # llama.cpp's table takes MXFP4 as that format's default and lists all that is not a stack of experts.
    default = FORMATS[name].stacked or FORMATS[name].default
    expected = {t.name: GgmlType.F32 if _always_f32(t) else GgmlType(listed.get(t.name, default)) for t in everything}
    # The tables are of quantizing without an importance matrix, also in formats that cannot be made so.
    assert types_in(spec, replace(FORMATS[name], imatrix=False)) == expected
    if name != "IQ3_XXS":  # the only one of them that an importance matrix changes
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


def test_types_are_all_that_ggml_has() -> None:
    assert {kind.value for kind in GgmlType} == {kind.name for kind in gguf.GGML_QUANT_SIZES}


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


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("Q3_K_L", "Q3_K"),
        ("Q3_K_S", "Q5_K"),
        ("IQ3_M", "Q5_K"),
        ("IQ1_S", "Q5_K"),
        ("Q2_K_S", "Q2_K"),
        ("Q5_1", "Q5_1"),
    ],
)
def test_attention_outputs_of_eight_experts(name: str, out: str) -> None:
    kinds = tensor_types(_eight_experts(), name)
    assert kinds["blk.5.attn_output.weight"] == out
    assert kinds["blk.5.attn_k.weight"] == ("Q4_K" if name.startswith("IQ1") else "Q8_0")


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


def _read_from(*stored: StoredTensor, name: str = "UD-Q2_K_XL") -> ModelSpec:
    return replace(_narrow(512), stored=FileTensors(name, stored))


OWN_TENSORS = (
    StoredTensor("token_embd.weight", (320, 512), "Q4_K", 320 * 2 * 144),
    StoredTensor("rope_freqs.weight", (8,), "F32", 32),
    StoredTensor("output.weight", (320, 512), "Q6_K", 320 * 2 * 210),
    StoredTensor("blk.0.attn_qkv.weight", (128, 512), "IQ4_KS", 128 * 272),  # a type ggml does not have
    StoredTensor("blk.0.attn_norm.weight", (512,), "F32", 2048),
    StoredTensor("blk.0.ffn_down.weight", (512, 96), "Q8_0", 512 * 3 * 34),
    StoredTensor("blk.2.nextn.eh_proj.weight", (512, 1024), "BF16", 1 << 20),  # a block that drafts
)


def test_a_file_has_its_own_types_and_bytes() -> None:
    spec = _read_from(*OWN_TENSORS)
    kinds = tensor_types(spec, OWN)
    assert {name: str(kind) for name, kind in kinds.items()} == {t.name: t.type_name for t in OWN_TENSORS}
    assert [tensor_bytes(t, kinds[t.name]) for t in tensors(spec)] == [t.n_bytes for t in OWN_TENSORS]
    assert file_bytes(spec, OWN) == sum(t.n_bytes for t in OWN_TENSORS)
    by_group = bytes_by_group(spec, "FILE")
    assert by_group[TensorGroup.CONSTANT] == 32
    assert by_group[TensorGroup.MTP] == 1 << 20
    assert by_group[TensorGroup.ATTENTION] == 128 * 272


def test_another_format_of_a_file_is_what_its_tensors_would_be() -> None:
    kinds = tensor_types(_read_from(*OWN_TENSORS), "Q4_K_S")
    assert kinds["blk.0.attn_qkv.weight"] == "Q5_K"  # the fused projection counts as values
    assert kinds["blk.2.nextn.eh_proj.weight"] == "Q4_K"
    assert kinds["rope_freqs.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "Q5_0"  # rows of 96


def test_bytes_that_a_known_type_does_not_explain_are_the_files() -> None:
    odd = StoredTensor("output.weight", (320, 500), "Q4_K", 99_999)
    spec = _read_from(odd)
    assert file_bytes(spec, OWN) == 99_999
    assert str(tensor_types(spec, OWN)["output.weight"]) == "Q4_K"


def test_only_a_file_has_types_of_its_own() -> None:
    with pytest.raises(UserError, match=r"n was not read from a weight file.*name a format, such as Q4_K_M"):
        tensor_types(_narrow(512), OWN)
    with pytest.raises(NotSupportedError, match=r"no tensor of type IQ4_KS can be written"):
        gguf_types(_read_from(*OWN_TENSORS), OWN)
    with pytest.raises(NotSupportedError, match=r"vllm does not run a GGUF file.*BF16"):
        format_for("vllm", "file")
    assert format_for("llama.cpp", "file").name == OWN


def test_every_real_file_counts_to_its_own_bytes(smollm2_gguf: Path) -> None:
    reader = gguf.GGUFReader(smollm2_gguf)
    stored = tuple(
        StoredTensor(t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.n_bytes))
        for t in reader.tensors
    )
    spec = replace(lookup("smollm2-135m"), stored=FileTensors("Q4_1", stored))
    assert file_bytes(spec, OWN) == sum(t.n_bytes for t in stored)
    assert tensor_types(spec, "Q4_1") == tensor_types(spec, OWN)


@pytest.mark.parametrize(
    ("spec", "engine", "chosen"),
    [
        (_read_from(*OWN_TENSORS), "llama.cpp", "file"),
        (_read_from(*OWN_TENSORS), "vllm", "file"),
        (replace(_narrow(512), quantization=Quantization("AWQ")), "vllm", "AWQ"),
        (replace(_narrow(512), quantization=Quantization("MXFP4_BF16")), "llama.cpp", "MXFP4"),
        (replace(_narrow(512), quantization=Quantization("FP8_BLOCK")), "llama.cpp", "Q4_K_M"),
        (replace(_narrow(512), quantization=Quantization("AWQ"), name="Qwen/Qwen3-32B-AWQ"), "llama.cpp", "AWQ"),
        (replace(_narrow(512), quantization=Quantization("AWQ"), source=__file__), "llama.cpp", "AWQ"),
        (lookup("gpt-oss-120b"), "llama.cpp", "MXFP4"),
        (lookup("gpt-oss-20b"), "vllm", "MXFP4"),
        (lookup("llama-3.1-8b"), "llama.cpp", "Q4_K_M"),
        (lookup("llama-3.1-8b"), "vllm", "BF16"),
        (lookup("deepseek-v3"), "vllm", "FP8_BLOCK"),
        (lookup("deepseek-v3"), "llama.cpp", "Q4_K_M"),
        (replace(lookup("deepseek-v3"), quantization=None), "vllm", "FP8_BLOCK"),
        (replace(lookup("deepseek-v3"), quantization=None, name="unsloth/DeepSeek-V3-bf16"), "vllm", "BF16"),
        (replace(lookup("llama-3.1-8b"), name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), "vllm", "BF16"),
    ],
)
def test_format_where_nobody_says(spec: ModelSpec, engine: str, chosen: str) -> None:
    assert default_format(spec, engine) == chosen


def test_a_file_is_called_what_it_calls_itself() -> None:
    assert label(_read_from(*OWN_TENSORS), OWN) == "UD-Q2_K_XL"
    assert label(_narrow(512), "q4_k_m") == "Q4_K_M"


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("f32", 4.0), ("f16", 2.0), ("bf16", 2.0), ("Q8_0", 34 / 32), ("q5_1", 0.75), ("q4_0", 18 / 32), ("fp8", 1.0)],
)
def test_bytes_of_a_cached_element(name: str, nbytes: float) -> None:
    assert kv_element_bytes(name) == nbytes


def test_types_of_a_cache_are_named_where_one_is_unknown() -> None:
    with pytest.raises(UserError, match=r"no type of key-value cache is called 'q3_k'; choose one of f32, f16.*fp8"):
        kv_element_bytes("q3_k")
    assert all(kv_element_bytes(name) > 0 for name in KV_TYPES)


@pytest.mark.parametrize(
    ("mixer", "kind"),
    [
        (Gqa(32, 8, 128), "Q4_K"),
        (Gqa(8, 8, 128), "Q3_K"),
        (Mamba2(8, 64, 128), "Q3_K"),  # its file says 0 key heads for the first layer
        (KimiDelta(8, 128), "Q3_K"),
        (Mla(32, 512, 128, 64, 128), "Q4_K"),
    ],
)
def test_heads_to_a_key_are_those_of_the_first_layer(mixer: Any, kind: str) -> None:
    after = Layer((Gqa(32, 8, 128),), DenseFfn(1024))
    layers = (Layer((mixer,), DenseFfn(1024)), after)
    spec = ModelSpec("h", "custom", 4096, 32000, 32768, False, layers, "test")
    assert tensor_types(spec, "Q2_K")["blk.1.attn_v.weight"] == kind
