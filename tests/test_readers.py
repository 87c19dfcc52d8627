"""Readers: real files, damaged files, and what a person is told about them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from families_fixtures import small_config, small_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts.registry import family_of
from breakeven.model.readers.gguf import read_gguf, spec_from_gguf
from breakeven.model.readers.gguf_header import read_header
from breakeven.model.readers.hf import read_hf, safetensors_rows
from breakeven.model.tensors import tensors


def _write_gguf(path: Path, spec: ModelSpec) -> None:
    """A whole GGUF file of a small spec, in F16, as another program writes it."""
    family = family_of(spec)
    writer = gguf.GGUFWriter(path, family.gguf_architecture)
    for key, value in family.gguf_metadata(spec).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            assert isinstance(value, list)
            writer.add_array(key, value)
    writer.add_token_list([f"t{i}" for i in range(spec.vocab)])
    for tensor in tensors(spec):
        writer.add_tensor(tensor.name, np.zeros(tensor.shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    _write_gguf(path, small_spec("deepseek-v3"))
    return path


@pytest.mark.parametrize("key", ["deepseek-v3", "gpt-oss", "lfm2moe", "granite", "gemma3"])
def test_a_written_file_reads_back_as_its_spec(key: str, tmp_path: Path) -> None:
    spec = small_spec(key)
    path = tmp_path / f"{key}.gguf"
    _write_gguf(path, spec)
    read = read_gguf(path)
    assert (read.name, read.source) == (key, str(path))
    assert read.layers == spec.layers
    assert read.scales == spec.scales
    assert read.norm_epsilon == spec.norm_epsilon


def test_the_header_agrees_with_another_reader(small_gguf: Path) -> None:
    ours = read_header(small_gguf)
    theirs = gguf.GGUFReader(small_gguf)
    assert [(t.name, t.type_name, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, t.n_bytes) for t in theirs.tensors
    ]
    assert [ours.data_offset_bytes + t.offset_bytes for t in ours.tensors] == [t.data_offset for t in theirs.tensors]
    for key, value in ours.metadata.items():
        assert value == theirs.fields[key].contents()
    # Lists of the tokenizer alone are stepped over, and where they lie is known all the same.
    own = {key for key in theirs.fields if not key.startswith("GGUF.")}
    lists = {key for key in own if theirs.fields[key].types[0] is gguf.GGUFValueType.ARRAY}
    assert own - ours.metadata.keys() == {key for key in lists if key.startswith("tokenizer.")} != set()
    assert ours.spans.keys() == own
    begin, end = ours.spans["tokenizer.ggml.tokens"]
    field = theirs.fields["tokenizer.ggml.tokens"]
    assert (begin, end - begin) == (field.offset, sum(int(part.nbytes) for part in field.parts))


def test_a_real_file_is_read(smollm2_gguf: Path) -> None:
    spec = read_gguf(smollm2_gguf)
    assert spec.family == "llama"
    assert (spec.hidden, spec.vocab, spec.context, len(spec.layers)) == (576, 49152, 8192, 30)
    assert (spec.rope.base, spec.norm_epsilon, spec.tied_embeddings) == (100000.0, 1e-5, True)
    assert sum(tensor.params for tensor in tensors(spec)) == 134_515_008


def test_what_is_not_gguf_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"GG", b"PK\x03\x04 a zip file", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a GGUF file"):
            read_header(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        read_header(tmp_path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(UserError, match="GGUF version 1"):
        read_header(path)


def test_a_file_cut_in_its_weights_says_how_long_it_should_be(small_gguf: Path, tmp_path: Path) -> None:
    whole = small_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-100])
    last = max(read_header(small_gguf).tensors, key=lambda t: t.offset_bytes)
    promised = read_header(small_gguf).data_offset_bytes + last.offset_bytes + (last.n_bytes or 0)
    with pytest.raises(UserError, match=f"promises {promised:,} bytes, file has {len(whole) - 100:,}"):
        read_header(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(share=st.floats(0, 0.999))
def test_truncation_anywhere_is_a_user_error(small_gguf: Path, tmp_path: Path, share: float) -> None:
    whole = small_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    # Squared, so that most cuts fall into the header at the front.
    path.write_bytes(whole[: int(len(whole) * share**2)])
    with pytest.raises(UserError):
        read_gguf(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_damage_in_the_header_is_read_or_a_user_error(small_gguf: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(small_gguf.read_bytes())
    end = read_header(small_gguf).data_offset_bytes
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole)
    try:
        spec = read_gguf(path)
    except UserError:
        return
    assert spec.layers


def test_an_unknown_architecture_of_known_parts_is_read_as_custom() -> None:
    spec = small_spec("llama")
    metadata = {key.replace("llama.", "newcomer."): value for key, value in family_of(spec).gguf_metadata(spec).items()}
    shapes = {tensor.name: tensor.shape for tensor in tensors(spec)}
    read = spec_from_gguf({"general.architecture": "newcomer", **metadata}, shapes, name="n", source="s")
    assert (read.family, read.layers) == ("custom", spec.layers)
    stranger = {**shapes, "blk.0.unheard_of.weight": (3, 3)}
    with pytest.raises(UserError, match=r"s: tensor blk\.0\.unheard_of\.weight is not known here .* --assume"):
        spec_from_gguf({"general.architecture": "newcomer", **metadata}, stranger, name="n", source="s")
    wide = {**shapes, "blk.1.attn_v_extra.weight": (64, 64)}
    with pytest.raises(UserError, match=r"block 1 has 16,384 weights in attention tensors, its layout has 12,288"):
        spec_from_gguf({"general.architecture": "newcomer", **metadata}, wide, name="n", source="s")


def _safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _model_directory(directory: Path, key: str = "qwen3") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**small_config(key), "torch_dtype": "bfloat16"}))
    return directory


def test_a_directory_and_a_file_give_the_same_model(tmp_path: Path) -> None:
    directory = _model_directory(tmp_path / "my-model")
    assert read_hf(str(directory)) == read_hf(str(directory / "config.json"))
    assert read_hf(str(directory)).name == "my-model"
    assert read_hf(str(directory)).layers == small_spec("qwen3").layers


def test_shapes_beside_a_configuration_are_its_published_total(tmp_path: Path) -> None:
    directory = _model_directory(tmp_path / "m")
    shapes = {tensor.name: tensor.shape for tensor in tensors(small_spec("qwen3"))}
    total = sum(tensor.params for tensor in tensors(small_spec("qwen3")))
    _safetensors(directory / "model.safetensors", {**shapes, "vision_tower.weight": (5000, 5000)})
    assert read_hf(str(directory)).published_total_params == total
    assert (
        sum(math.prod(shape) for _, _, shape in safetensors_rows(directory / "model.safetensors")) == total + 25_000_000
    )
    _safetensors(directory / "consolidated.safetensors", {f"again.{name}": shape for name, shape in shapes.items()})
    assert read_hf(str(directory)).published_total_params == total
    _safetensors(directory / "model.safetensors", shapes, dtype="U8")
    assert read_hf(str(directory)).published_total_params is None


def test_a_configuration_that_misses_its_weights_is_refused_with_both_numbers(tmp_path: Path) -> None:
    directory = _model_directory(tmp_path / "m")
    total = sum(tensor.params for tensor in tensors(small_spec("qwen3")))
    index = {"metadata": {"total_size": 2 * total * 2}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"counts {total:,} parameters, {2 * total:,} were published"):
        read_hf(str(directory))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total * 2}}))
    assert read_hf(str(directory)).published_total_params == total


def test_damaged_safetensors_are_user_errors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for content in (b"", b"1234567", bytes(8), struct.pack("<Q", 50) + b"{}", struct.pack("<Q", 4) + b"nope"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"safetensors|truncated"):
            list(safetensors_rows(path))


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither config\.json nor a \.gguf file"):
        read_hf(str(tmp_path))
    with pytest.raises(UserError, match="no such file or directory, and not a hub id"):
        read_hf("nonesuch")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_hf(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object"):
        read_hf(str(tmp_path))


def test_a_hub_id_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"org/absent: .*go online"):
        read_hf("org/absent")
