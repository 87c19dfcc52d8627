"""GGUF to a Hugging Face directory and back, without torch: the same numbers, keys kept, and what is refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge import tokenizers
from breakeven.lab.bridge.bridge import plan, rotated_order, to_directory, to_gguf
from breakeven.lab.bridge.configs import complete, whole
from breakeven.lab.bridge.families import BRIDGES, MISTRAL, of_config
from breakeven.lab.bridge.rotary import rotary_of_config, rotary_of_gguf
from breakeven.lab.bridge.weights import (
    BF16,
    F16,
    F32,
    Checkpoint,
    NewTensor,
    StoredRows,
    decode,
    gguf_rows,
    write_checkpoint,
)
from breakeven.lab.export import export
from breakeven.lab.facts import facts_of
from breakeven.lab.surgery.container import Bytes, OutTensor, open_gguf, rewrite
from breakeven.model.readers.weights import weight_files
from tests.bridge_fixtures import CONFIGS, write_byte_tokenizer
from tests.small_models import small


def directory_of(model_type: str, at: Path, seed: int = 0, dtype: Any = F32, **changes: Any) -> Path:
    """A directory of random weights in our own planning, which the tests with torch hold against transformers'."""
    at.mkdir()
    config = {"model_type": model_type, **CONFIGS[model_type], **changes}
    (at / "config.json").write_text(json.dumps(config))
    write_byte_tokenizer(at)
    bridge = of_config(config)
    rng = np.random.default_rng(seed)
    new = []
    for pair in plan(bridge, complete(config, bridge)):
        for name in pair.hub:
            values = rng.standard_normal(pair.shape).astype(np.float32) * 0.3
            data = dtype.encode(values, name)
            new.append(NewTensor(name, pair.shape, StoredRows(pair.shape, dtype.dtype, data)))
    write_checkpoint(at, new, dtype)
    return at


def same_weights(one: Path, other: Path) -> None:
    a, b = Checkpoint(one).tensors, Checkpoint(other).tensors
    assert a.keys() == b.keys()
    for name, rows in a.items():
        order = np.arange(rows.shape[0])
        assert rows.shape == b[name].shape
        assert np.array_equal(rows.take(order), b[name].take(order)), name


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_directory_comes_back_from_a_gguf_as_it_was(model_type: str, tmp_path: Path) -> None:
    source = directory_of(model_type, tmp_path / "source")
    there = to_gguf(source, tmp_path / "there.gguf")
    back = to_directory(tmp_path / "there.gguf", tmp_path / "back")
    assert (there.dtype, back.dtype, there.family) == ("F32", "F32", model_type)
    same_weights(source, tmp_path / "back")
    config, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "back", source))
    bridge = of_config(theirs)
    full, full_back = complete(theirs, bridge), complete(config, bridge)
    for key in [*bridge.sizes, "rms_norm_eps", "tie_word_embeddings", "head_dim", "attention_bias", "mlp_bias"]:
        assert full_back[key] == full[key], key
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == bridge.defaults["rope_theta"]
    assert config["architectures"] == [bridge.class_name]
    assert config["eos_token_id"] == 256
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"] == 256
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_half_precision_stays_what_it_is(tmp_path: Path) -> None:
    source = directory_of("mixtral", tmp_path / "source", dtype=BF16)
    assert to_gguf(source, tmp_path / "there.gguf").dtype == "BF16"
    kinds = {t.name.split(".")[-2]: t.kind.name for t in open_gguf(tmp_path / "there.gguf").tensors}
    assert (kinds["attn_q"], kinds["ffn_down_exps"], kinds["ffn_gate_inp"], kinds["attn_norm"]) == (
        "BF16",
        "BF16",
        "F32",
        "F32",
    )
    assert to_directory(tmp_path / "there.gguf", tmp_path / "back").dtype == "BF16"
    same_weights(source, tmp_path / "back")
    # Norms of full precision would be rounded, so the directory is F32.
    mixed = directory_of("llama", tmp_path / "mixed")
    to_gguf(mixed, tmp_path / "mixed.gguf", dtype="f16")
    assert to_directory(tmp_path / "mixed.gguf", tmp_path / "mixed-back").dtype == "F32"


def test_bfloat16_rounds_to_even_and_keeps_what_is_no_number() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan, 3.4e38, 1e-40], np.float32)
    back = decode(BF16.encode(values, "x"), "BF16")
    assert back[:4].tolist() == [1.0, 1.0, 1.015625, -0.0]
    assert np.isinf(back[4])
    assert np.isnan(back[5])
    with pytest.raises(NotSupportedError, match="F16 cannot hold"):
        F16.encode(np.array([1e5], np.float32), "x")


def test_rows_of_heads_change_places_and_back() -> None:
    there, back = (rotated_order(48, 3, to_gguf=to) for to in (True, False))
    assert there is not None
    assert back is not None
    assert there[:4].tolist() == [0, 8, 1, 9]
    assert there[back].tolist() == list(range(48))


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3", "olmoe", "qwen3moe"])
def test_quantized_files_are_decoded(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against our writer of other models' shapes, whose keys are those of llama.cpp's converter."""
    # The tokenizer of synthetic files has a merge that makes no token, and is not carried.
    monkeypatch.setattr(tokenizers, "write_tokenizer", lambda gguf, directory: write_byte_tokenizer(directory) or [])
    path = synthesise(small(family, num_hidden_layers=2), "Q4_0", tmp_path / "m.gguf")
    done = to_directory(path, tmp_path / "hf")
    assert done.dtype == "F32"
    assert "Q4_0" in done.notes[0]
    to_gguf(tmp_path / "hf", tmp_path / "again.gguf")
    first, again = ({t.name: t for t in open_gguf(p).tensors} for p in (path, tmp_path / "again.gguf"))
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        rows, others = gguf_rows(tensor), gguf_rows(again[name])
        order = np.arange(rows.shape[0])
        assert np.array_equal(rows.take(order), others.take(order)), name


def test_only_a_few_megabytes_are_held(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 1, "head_dim": 64}
    source = directory_of("mixtral", tmp_path / "source", **sizes)
    held = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert held > 100e6
    tracemalloc.start()
    try:
        to_gguf(source, tmp_path / "there.gguf")
        to_directory(tmp_path / "there.gguf", tmp_path / "back")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


LINEAR_4 = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LINEAR_5E5 = {**LINEAR_4, "rope_theta": 5e5}
REFUSED = [
    ("llama", {"hidden_act": "gelu"}, "silu"),
    ("llama", {"sliding_window": 128}, "windows"),
    ("llama", {"shiny_new_mechanism": 3}, "shiny_new_mechanism"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("llama", {"quantization_config": {"bits": 4}}, "packed"),
    ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "make them equal"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LINEAR_4}, "different things"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": LINEAR_5E5}, "different things"),
    ("mixtral", {"num_experts": 8}, "num_local_experts is 4 and num_experts 8"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "beta_fast"),
    ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
    ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "stays a directory"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "stays a directory"),
    ("ernie4_5_moe", {"moe_layer_interval": 2}, "only before the first one, so this model stays a directory"),
    ("ernie4_5_moe", {"moe_layer_end_index": 1}, "stays a directory"),
    ("ernie4_5_moe", {"use_bias": True}, "use_bias"),
]


@pytest.mark.parametrize(("model_type", "change", "said"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(model_type: str, change: dict[str, Any], said: str) -> None:
    config = {"model_type": model_type, **CONFIGS[model_type], **change}
    bridge = of_config(config)
    with pytest.raises(UserError, match=said):
        rotary_of_config(complete(config, bridge), bridge.defaults["rope_theta"], stretched=bridge.stretched)


def test_another_family_and_a_new_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"gpt_oss.*these are: llama"):
        of_config({"model_type": "gpt_oss"})
    path = synthesise(small("granite", num_hidden_layers=1), "BF16", tmp_path / "m.gguf")
    with pytest.raises(NotSupportedError, match="'granite' is not carried"):
        to_directory(path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


SCALED = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "attention_factor": 1.25},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
]


@pytest.mark.parametrize("scaling", SCALED)
def test_rotary_scaling_comes_back(scaling: dict[str, Any]) -> None:
    config = {"max_position_embeddings": 1024, "rope_theta": 5e5, "rope_scaling": scaling}
    rotary = rotary_of_config(config, 1e4, stretched=True)
    written = rotary.written()
    assert written["rope_scaling"] == scaling
    assert written["rope_parameters"] == {**scaling, "rope_theta": 5e5}
    keys = {key: float(np.float32(v)) if isinstance(v, float) else v for key, v in rotary.gguf_keys().items()}
    back = rotary_of_gguf(keys, 1024, rotary.factors(32))
    assert back.kind == rotary.kind
    assert back.original == rotary.original
    assert (back.theta, back.factor, back.attention) == pytest.approx((rotary.theta, rotary.factor, rotary.attention))


def test_a_directory_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    source = directory_of("olmoe", tmp_path / "source")
    path = source / "model.safetensors"
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-100])
    with pytest.raises(UserError, match="damaged or cut off"):
        to_gguf(source, tmp_path / "out.gguf")
    length = struct.unpack("<Q", whole_file[:8])[0]
    renamed = whole_file[8 : 8 + length].replace(b"mlp.experts.3.up_proj", b"mlp.experts.9.up_proj", 1)
    path.write_bytes(whole_file[:8] + renamed + whole_file[8 + length :])
    with pytest.raises(UserError, match=r"experts\.3\.up_proj\.weight is missing"):
        to_gguf(source, tmp_path / "out.gguf")
    path.write_bytes(whole_file)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(NotSupportedError, match=r"layers\.1\..* is not known"):
        to_gguf(source, tmp_path / "out.gguf")
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(UserError, match=r"makes it \[128, 64\]"):
        to_gguf(source, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


def test_every_entry_has_a_toy_and_its_sizes() -> None:
    assert {bridge.model_type for bridge in BRIDGES} == CONFIGS.keys()
    for bridge in BRIDGES:
        config = complete({"model_type": bridge.model_type, **CONFIGS[bridge.model_type]}, bridge)
        assert all(whole(config, key) >= 0 for key in bridge.sizes)


SMALL = {key: value for key, value in CONFIGS["qwen3"].items() if "key_value" not in key and "position" not in key}
WINDOWS: list[tuple[str, dict[str, Any], bool]] = [
    ("mistral", {}, True),
    ("mistral", {"use_sliding_window": False}, True),  # its class has no such switch
    ("mistral", {"sliding_window": None}, False),
    ("mistral", {"max_position_embeddings": 4096}, False),
    ("qwen3", {"use_sliding_window": True}, True),
    ("qwen3", {"use_sliding_window": True, "sliding_window": None}, False),
    ("qwen3", {"sliding_window": 128}, False),
    ("mixtral", {}, False),
]


@pytest.mark.parametrize(("model_type", "change", "refused"), WINDOWS)
def test_a_window_that_its_class_fills_in_is_seen(model_type: str, change: dict[str, Any], refused: bool) -> None:
    config = {"model_type": model_type, **SMALL, **change}
    if refused:
        with pytest.raises(NotSupportedError, match="sliding_window 4096 is less than the context"):
            complete(config, of_config(config))
    else:
        assert complete(config, of_config(config))["num_key_value_heads"] == {"qwen3": 32}.get(model_type, 8)
        alone = {**config, "num_key_value_heads": None}
        assert complete(alone, of_config(alone))["num_key_value_heads"] == 4, "null: as many as of queries"


def test_a_context_that_is_left_out_is_that_of_its_class(tmp_path: Path) -> None:
    source = directory_of("mixtral", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["max_position_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    to_gguf(source, tmp_path / "there.gguf")
    assert open_gguf(tmp_path / "there.gguf").header.metadata["llama.context_length"] == 131072
    for bridge in (*BRIDGES, MISTRAL):
        config = {"model_type": bridge.model_type, **CONFIGS.get(bridge.model_type, SMALL), "sliding_window": None}
        config.pop("max_position_embeddings", None)
        full = complete(config, bridge)
        assert full["max_position_embeddings"] == bridge.defaults["max_position_embeddings"]
        rotary_of_config(full, bridge.defaults["rope_theta"], stretched=bridge.stretched)


def add_file(directory: Path, name: str, dtype: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """Another weight file of a directory."""
    apart = directory / "apart"
    apart.mkdir()
    new = [
        NewTensor(each, v.shape, StoredRows(v.shape, dtype.dtype, dtype.encode(v, each))) for each, v in tensors.items()
    ]
    write_checkpoint(apart, new, dtype)
    (apart / "model.safetensors").rename(directory / name)
    apart.rmdir()


def test_the_files_and_the_type_are_those_of_the_model(tmp_path: Path) -> None:
    """Half precision with routers in F32, in two files by an index, beside another form of the model."""
    source = directory_of("mixtral", tmp_path / "source", dtype=BF16)
    found = Checkpoint(source).tensors
    values = {name: rows.take(np.arange(rows.shape[0])).reshape(rows.shape) for name, rows in found.items()}
    (source / "model.safetensors").unlink()
    routers = {name: value for name, value in values.items() if ".gate." in name}
    add_file(source, "a.safetensors", BF16, {name: value for name, value in values.items() if name not in routers})
    add_file(source, "b.safetensors", F32, routers)
    assert to_gguf(source, tmp_path / "all.gguf").dtype == "BF16"
    add_file(source, "consolidated.safetensors", F32, {"layers.0.attention.wq.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(NotSupportedError, match=r"wq\.weight' is not known"):
        to_gguf(source, tmp_path / "there.gguf", assume=True)
    index = {"weight_map": {name: "b.safetensors" if name in routers else "a.safetensors" for name in values}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    to_gguf(source, tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "all.gguf").read_bytes()


def one(piece: Bytes) -> Iterator[Bytes]:
    """A tensor's bytes at once."""
    yield piece


def test_what_is_unknown_in_a_gguf_is_refused_whatever_is_assumed(tmp_path: Path) -> None:
    to_gguf(directory_of("qwen3", tmp_path / "source"), tmp_path / "there.gguf")
    file = open_gguf(tmp_path / "there.gguf")
    tensors = [OutTensor(t.name, t.dims, t.kind, t.data.size, partial(one, t.data)) for t in file.tensors]
    more = OutTensor("blk.0.new.weight", (4,), F32.kind, 16, partial(one, np.zeros(16, np.uint8)))
    rewrite(file, tmp_path / "more.gguf", {}, [*tensors, more])
    with pytest.raises(NotSupportedError, match=r"blk\.0\.new\.weight' is not known.*the model is not carried"):
        to_directory(tmp_path / "more.gguf", tmp_path / "hf", assume=True)
    with pytest.raises(UserError, match=r"ends in \.gguf"):
        export(tmp_path / "source", "gguf", tmp_path / "there", command="")


def test_tokens_that_end_an_answer_are_found_where_they_are_said(tmp_path: Path) -> None:
    source = directory_of("llama", tmp_path / "source", eos_token_id=[256, 257], bos_token_id=260)
    (source / "tokenizer_config.json").write_text("{}")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258, 259]}))
    done = to_gguf(source, tmp_path / "there.gguf")
    keys = open_gguf(tmp_path / "there.gguf").header.metadata
    ends = [keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")]
    assert ends == [260, 256, 257, 258]
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert "no key: 259" in done.notes[0]
    to_directory(tmp_path / "there.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {
        "bos_token_id": 260,
        "eos_token_id": [256, 257, 258],
    }


def test_weights_that_lie_there_twice_are_one_model(tmp_path: Path) -> None:
    source = directory_of("olmoe", tmp_path / "source")
    whole_file, index = source / "model.safetensors", source / "model.safetensors.index.json"
    names = list(Checkpoint(source).tensors)
    facts = facts_of(source)
    for beside in ("consolidated.safetensors", "adapter_model.safetensors"):
        (source / beside).write_bytes(whole_file.read_bytes())
    assert weight_files(source) == [whole_file]
    assert facts_of(source) == facts
    assert list(Checkpoint(source).tensors) == names
    shard = whole_file.rename(source / "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard.name)}))
    assert weight_files(source) == [shard]
    assert facts_of(source) == facts
    assert list(Checkpoint(source).tensors) == names
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, shard.name), "more": "gone.safetensors"}}))
    readers: tuple[Callable[[Path], object], ...] = (weight_files, Checkpoint)
    for read in readers:
        with pytest.raises(UserError, match="fetch the missing part"):
            read(source)
    index.write_text(json.dumps({"weight_map": {"a": "../source/model.safetensors"}}))
    with pytest.raises(UserError, match="is no file of this directory"):
        weight_files(source)
