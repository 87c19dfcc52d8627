"""Files as people have them: split, renamed, of another kind, hundreds of gigabytes long, or no model at all."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from families_fixtures import small_spec

from breakeven.engines.source import parse_source
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import FileTensors, ModelSpec
from breakeven.model.arithmetic import kv_bytes, params_by_group, total_params
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import gguf_types, tensor_bytes
from breakeven.model.layouts.registry import family_of
from breakeven.model.readers.gguf import read_gguf
from breakeven.model.readers.gguf_header import TYPES, read_header
from breakeven.model.resolve import resolve_spec, weight_file
from breakeven.model.tensors import Tensor, tensors
from tests.pace_fixtures import paced

_CODES = {name: code for code, (name, _, _) in TYPES.items()}


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            packed = [_value(each) for each in value]
            return (
                struct.pack("<I", 9) + packed[0][:4] + struct.pack("<Q", len(value)) + b"".join(p[4:] for p in packed)
            )
    raise AssertionError(value)


def write_sparse(path: Path, keys: Mapping[str, object], rows: list[tuple[Tensor, str]], extra: bytes = b"") -> int:
    """A GGUF of these tensors, its weights a hole in the file; `extra`: one more key, encoded. Returns its bytes."""
    head, offset = [], 0
    for tensor, kind in rows:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        head.append(_text(tensor.name) + dims + struct.pack("<IQ", _CODES[kind], offset))
        _, elements, size = TYPES[_CODES[kind]]
        length = int(np.prod(tensor.shape, dtype=object)) // elements * size
        offset += -(-length // 32) * 32
    entries = b"".join(_text(key) + _value(value) for key, value in keys.items()) + extra
    counts = struct.pack("<IQQ", 3, len(rows), len(keys) + bool(extra))
    begin = b"GGUF" + counts + entries + b"".join(head)
    total = -(-len(begin) // 32) * 32 + offset
    path.write_bytes(begin)
    os.truncate(path, total)
    return total


def keys_of(spec: ModelSpec) -> dict[str, object]:
    family = family_of(spec)
    return {"general.architecture": family.gguf_architecture, **family.gguf_metadata(spec)}


def rows_of(spec: ModelSpec, format_name: str) -> list[tuple[Tensor, str]]:
    types = gguf_types(spec, format_name)
    return [(tensor, types[tensor.name].value) for tensor in tensors(spec)]


def write_split(directory: Path, spec: ModelSpec, count: int, format_name: str = "Q8_0") -> list[Path]:
    """`spec` in parts, as `llama-gguf-split` makes them: keys in the first, tensors in turn."""
    rows = rows_of(spec, format_name)
    paths = [directory / f"big-{format_name}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, path in enumerate(paths):
        split: dict[str, object] = {"split.no": i, "split.count": count, "split.tensors.count": len(rows)}
        share = rows[len(rows) * i // count : len(rows) * (i + 1) // count]
        write_sparse(path, {**(keys_of(spec) if i == 0 else {}), **split}, share)
    return paths


def _plain(path: Path, spec: ModelSpec | None = None) -> Path:
    spec = spec or small_spec("qwen3moe")
    write_sparse(path, keys_of(spec), rows_of(spec, "F16"))
    return path


def test_types_are_ggmls() -> None:
    theirs = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert theirs.items() <= TYPES.items()


def test_a_file_keeps_its_own_tensors(tmp_path: Path) -> None:
    spec = small_spec("qwen3moe")
    path = tmp_path / "m-Q8_0.gguf"
    write_sparse(path, keys_of(spec), rows_of(spec, "Q8_0"))
    read = read_gguf(path)
    assert isinstance(read.stored, FileTensors)
    assert read.stored.label == "Q8_0"
    types = gguf_types(spec, "Q8_0")
    assert [(t.name, t.shape, t.type_name, t.n_bytes) for t in read.stored.tensors] == [
        (t.name, t.shape, types[t.name], tensor_bytes(t, types[t.name])) for t in tensors(spec)
    ]
    assert (total_params(read), params_by_group(read)) == (total_params(spec), params_by_group(spec))
    assert read.layers == spec.layers


def test_bytes_of_an_unknown_type_are_what_lies_between_offsets(tmp_path: Path) -> None:
    path = _plain(tmp_path / "m.gguf")
    plain = {t.name: t.n_bytes for t in (read_gguf(path).stored or FileTensors("", ())).tensors}
    # One type of a fork: codes beyond ggml's own.
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert data[at] == _CODES["F16"]
    data[at] = 137
    path.write_bytes(data)
    stored = read_gguf(path).stored
    assert stored is not None
    strange = next(t for t in stored.tensors if t.name == "blk.0.attn_q.weight")
    assert (strange.type_name, strange.n_bytes) == ("type 137", plain["blk.0.attn_q.weight"])


@pytest.mark.parametrize(
    ("name", "file_type", "label"),
    [
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", 15, "UD-Q4_K_XL"),
        ("m.IQ2_XXS.gguf", 15, "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", 7, "MXFP4"),
        ("Llama-3.2-1B-Instruct-Q4_0.gguf", None, "Q4_0"),
        ("m-bf16.gguf", None, "BF16"),
        ("Qwen2.5-7B.gguf", 15, "Q4_K_M"),
        ("Qwen2.5-7B.gguf", 1024 + 19, "IQ2_XXS"),
        ("plainQ4_0.gguf", None, "F16"),
        ("sha256-abc", 12, "Q3_K_M"),
    ],
)
def test_a_mixture_is_called_what_the_file_calls_it(
    name: str, file_type: int | None, label: str, tmp_path: Path
) -> None:
    spec = small_spec("llama")
    said = {} if file_type is None else {"general.file_type": file_type}
    write_sparse(tmp_path / name, {**keys_of(spec), **said}, rows_of(spec, "F16"))
    stored = resolve_spec(str(tmp_path / name)).stored
    assert stored is not None
    assert stored.label == label


def test_a_split_file_is_read_from_any_part(tmp_path: Path) -> None:
    spec = small_spec("deepseek-v3")
    paths = write_split(tmp_path, spec, 3)
    for path in paths:
        read = resolve_spec(str(path))
        assert (read.name, read.layers, total_params(read)) == ("big-Q8_0", spec.layers, total_params(spec))
        assert read.stored is not None
        assert [t.name for t in read.stored.tensors] == [t.name for t in tensors(spec)]
        source = parse_source(str(path))
        assert (source.path, source.name) == (paths[0], "big-Q8_0")


def test_a_suffix_counts_in_any_case(tmp_path: Path) -> None:
    spec = small_spec("deepseek-v3")
    for path in write_split(tmp_path, spec, 2):
        path.rename(path.with_suffix(".GGUF"))
    for name in ("", "big-Q8_0-00002-of-00002.GGUF"):
        assert resolve_spec(str(tmp_path / name)).name == "big-Q8_0"
    with pytest.raises(UserError, match=r"no such file\); give the path of a .gguf file"):
        resolve_spec(str(tmp_path / "x.GGUF"))


@pytest.mark.parametrize("text", ["a\0b.gguf", "a" * 5000, "b" * 300 + ".yaml", "~nobody-has-this-name/m.gguf"])
def test_what_can_be_no_path_is_refused(text: str) -> None:
    for name in (text, f"{text}:Q4_K_M"):
        with pytest.raises(UserError) as error:
            resolve_spec(name)
        assert len(str(error.value)) < 300


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    spec = small_spec("qwen3moe")
    paths = write_split(tmp_path, spec, 3)
    whole = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(UserError, match=r"one of 3 parts, but big-Q8_0-00002-of-00003\.gguf is missing; fetch it"):
        resolve_spec(str(paths[2]))
    paths[2].unlink()
    with pytest.raises(UserError, match=r"big-Q8_0-00002-of-00003\.gguf and 1 more is missing"):
        resolve_spec(str(paths[0]))
    paths[1].write_bytes(whole)
    paths[2].write_bytes(whole)
    with pytest.raises(UserError, match=r"00003-of-00003\.gguf: is not part 3 of 3"):
        resolve_spec(str(paths[0]))
    paths[0].unlink()
    with pytest.raises(UserError, match=r"00001-of-00003\.gguf is missing"):
        resolve_spec(str(paths[1]))
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(whole)
    with pytest.raises(
        UserError, match=r"part 2 of 3 of a split file; give all parts names such as model-00001-of-00003"
    ):
        resolve_spec(str(renamed))


def test_a_part_cut_short_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path, small_spec("qwen3moe"), 2)
    os.truncate(paths[1], paths[1].stat().st_size - 4096)
    with pytest.raises(UserError, match=r"00002-of-00002\.gguf: truncated"):
        resolve_spec(str(paths[0]))


@pytest.mark.parametrize("name", ["sha256-0123456789abcdef", "model.bin", "model", "model.yaml.old", "config.json.gz"])
def test_a_gguf_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    path = _plain(tmp_path / name)
    assert resolve_spec(str(path)).layers == small_spec("qwen3moe").layers
    assert parse_source(str(path)).path == path


def test_a_blob_is_called_by_the_name_inside(tmp_path: Path) -> None:
    spec = small_spec("qwen3")
    write_sparse(tmp_path / "sha256-00ff", {**keys_of(spec), "general.name": "Qwen3 8B"}, rows_of(spec, "F16"))
    assert resolve_spec(str(tmp_path / "sha256-00ff")).name == "Qwen3 8B"


def test_a_path_that_exists_is_not_a_catalogue_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "olmoe-1b-7b").write_bytes(b"something else")
    with pytest.raises(UserError, match="olmoe-1b-7b: not a model: it begins with b'some'"):
        resolve_spec("olmoe-1b-7b")
    _plain(tmp_path / "olmoe-1b-7b")
    assert len(resolve_spec("olmoe-1b-7b").layers) == 4


def test_an_ollama_manifest_leads_to_its_weights(tmp_path: Path) -> None:
    blobs, manifests = tmp_path / "models" / "blobs", tmp_path / "models" / "manifests" / "r" / "library" / "m"
    blobs.mkdir(parents=True), manifests.mkdir(parents=True)
    blob = _plain(blobs / "sha256-0a0b")
    manifest = manifests / "latest"
    kinds = {"application/vnd.ollama.image.license": "sha256:ff", "application/vnd.ollama.image.model": "sha256:0a0b"}
    layers = [{"mediaType": kind, "digest": digest} for kind, digest in kinds.items()]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    assert weight_file(str(manifest)) == blob
    assert resolve_spec(str(manifest)).layers == small_spec("qwen3moe").layers
    blob.unlink()
    with pytest.raises(UserError, match=r"weights \(sha256-0a0b\.\.\.\) are not in the store"):
        resolve_spec(str(manifest))


def test_what_may_not_be_read_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, there = _plain(tmp_path / "m.gguf"), Path.open

    def refused(self: Path, *args: object, **words: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return there(self, *args, **words)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"m\.gguf: cannot be read \(Permission denied\)"):
        resolve_spec(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("m.gguf", "m.yaml", "m"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="a pipe or a device, from which no model is read"):
            resolve_spec(str(tmp_path / name))


def test_a_path_longer_than_the_system_takes_is_no_model() -> None:
    with pytest.raises(UserError, match="is no name or path of a model"):
        resolve_spec("é/" * 1900)


def test_a_directory_with_one_model_means_that_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither config\.json nor a \.gguf file"):
        resolve_spec(str(tmp_path))
    paths = write_split(tmp_path, small_spec("qwen3moe"), 2)
    write_sparse(tmp_path / "mmproj-F16.gguf", {"general.architecture": "clip"}, [])
    assert resolve_spec(str(tmp_path)).name == "big-Q8_0"
    assert parse_source(str(tmp_path)).path == paths[0]
    _plain(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"holds 2 models \(big-Q8_0-00001-of-00002\.gguf, other\.gguf\); give one"):
        resolve_spec(str(tmp_path))


def test_a_directory_is_searched_as_downloads_fill_it(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "Q8_0"
    other = tmp_path / "snapshots" / "def" / "Q8_0"
    for each in (blobs, folder, other):
        each.mkdir(parents=True)
    _plain(blobs / "0c1d")
    (folder / "tiny-Q8_0.gguf").symlink_to("../../../blobs/0c1d")
    for given in (folder, folder.parent, folder.parents[1], tmp_path):
        assert parse_source(str(given)).path == folder / "tiny-Q8_0.gguf"
    # The same blob in a second revision is the same model; a projector of any name is none.
    (other / "tiny-Q8_0.gguf").symlink_to("../../../blobs/0c1d")
    write_sparse(folder / "sees-F16.gguf", {"general.architecture": "clip"}, [])
    assert resolve_spec(str(tmp_path)).name == "tiny-Q8_0"
    # Repositories keep the projector and the importance matrix above the folders of formats.
    for name, keys in {"mmproj-F16": {"general.architecture": "clip"}, "imatrix": {"general.type": "imatrix"}}.items():
        write_sparse(folder.parent / f"{name}.gguf", keys, [])
    assert parse_source(str(folder.parent)).path == folder / "tiny-Q8_0.gguf"
    _plain(other / "another.gguf")
    with pytest.raises(UserError, match=r"\(snapshots/def/Q8_0/another.gguf, snapshots/abc/Q8_0/tiny-Q8_0.gguf\)"):
        resolve_spec(str(tmp_path))
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "x.gguf").symlink_to("x.gguf")
    with pytest.raises(UserError):
        resolve_spec(str(tmp_path / "loop"))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"general.architecture": "clip", "general.type": "mmproj"},
            "a vision or audio projector .* give the language",
        ),
        ({"general.architecture": "llama", "general.type": "adapter"}, "a LoRA adapter, not a model"),
        ({"general.architecture": "llama", "adapter.type": "lora"}, "a LoRA adapter, not a model"),
        ({"general.type": "imatrix", "imatrix.chunk_count": 4}, "an importance matrix for quantizing"),
        ({"general.architecture": "controlvector"}, "a control vector"),
        ({"general.architecture": "nomic-bert-moe"}, r"an embedding model \(nomic-bert-moe\), which writes no text"),
        ({"general.architecture": "jina-bert-v2"}, "an embedding model"),
        ({"general.architecture": "bert"}, "an embedding model"),
        ({"general.architecture": "t5"}, "an encoder-decoder model"),
        ({"general.architecture": "flux"}, "makes images or video"),
        ({"general.architecture": "whisper"}, "turns speech into text"),
        ({"general.architecture": "wavtokenizer-dec"}, "speech synthesiser"),
        ({"general.architecture": "eagle3"}, "draft head"),
        ({"general.architecture": "gemma4-assistant"}, "draft head"),
        ({"general.architecture": "gemma-embedding2"}, "an embedding model"),
        ({"general.architecture": "qwen3tts"}, "speech synthesiser"),
        ({"general.architecture": "dream"}, "it writes by diffusion, .* give the language model's file"),
        ({"general.architecture": "llada-moe"}, "it writes by diffusion"),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, "a vocabulary and no weights"),
        ({"general.architecture": "gizmo"}, "no table of tokens .* 'gizmo', so it is no language model"),
        ({}, "does not say general.architecture"),
    ],
)
def test_other_kinds_of_gguf_are_told_apart(keys: dict[str, object], told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_sparse(path, keys, [])
    with pytest.raises(UserError, match=told):
        resolve_spec(str(path))


def test_layers_of_a_language_model_do_not_make_one(tmp_path: Path) -> None:
    spec = small_spec("llama")
    for architecture in ("llada", "rnd1", "gemma4-assistant"):
        keys = {key.replace("llama.", f"{architecture}."): value for key, value in keys_of(spec).items()}
        write_sparse(tmp_path / "m.gguf", {**keys, "general.architecture": architecture}, rows_of(spec, "F16"))
        with pytest.raises(UserError, match=r"give the language model's file"):
            resolve_spec(str(tmp_path / "m.gguf"), assume=True)


def test_a_decoder_named_like_an_encoder_is_read(tmp_path: Path) -> None:
    spec = small_spec("llama")
    keys = {key.replace("llama.", "albertson."): value for key, value in keys_of(spec).items()}
    write_sparse(tmp_path / "m.gguf", {**keys, "general.architecture": "albertson"}, rows_of(spec, "F16"))
    assert resolve_spec(str(tmp_path / "m.gguf")).layers == spec.layers


@pytest.mark.parametrize("name", ["m.gguf", "m.bin", "m"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty; fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a git-lfs pointer, not the file itself",
        ),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not a model"),
        (struct.pack("<Q", 12) + b'{"a": {}}   ', "a safetensors file, which holds weights and no layout"),
        (b"PK\x03\x04" + bytes(60), "a PyTorch checkpoint or an archive"),
        (b"\x80\x02}q\x00" + bytes(60), "a PyTorch checkpoint or an archive"),
        (b"tjgg" + bytes(60), "a file of llama.cpp's form before GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; this reads 2 and 3: get a newer file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "this file is big-endian; get the little-endian one"),
        (b"hello, world", "not a model: it begins with b'hell'"),
    ],
)
def test_what_is_no_model_is_told_in_a_sentence(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (resolve_spec, parse_source):
        with pytest.raises(UserError, match=told) as found:
            read(str(path))
        assert str(found.value).startswith(str(path))
        assert "\n" not in str(found.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file\); give the path of a \.gguf file"):
        parse_source(str(tmp_path / "absent.gguf"))


def test_vllm_gets_no_blob(tmp_path: Path) -> None:
    from breakeven.engines.vllm.directory import provide

    with pytest.raises(NotSupportedError, match="vLLM gets no GGUF"):
        provide(str(_plain(tmp_path / "sha256-00")), None, "BF16")


def _words(count: int) -> bytes:
    """A tokenizer's list of so many words, as one key of a header."""
    words = b"".join(struct.pack("<Q", 7) + b"%07d" % i for i in range(count))
    return _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count) + words


FULL_SIZE = (
    ("gpt-oss-120b", "MXFP4"),
    ("qwen3-30b-a3b", "Q4_K_M"),
    ("qwen3-32b", "IQ4_XS"),
    ("gemma-3-1b", "Q4_0"),
    ("gemma-2-27b", "Q6_K"),
    ("deepseek-v3", "Q2_K"),
    ("kimi-k2", "IQ2_XXS"),
    ("llama-3.1-70b", "Q5_K_M"),
    ("llama-4-maverick-17b-128e", "Q3_K_M"),
    ("mixtral-8x22b", "Q8_0"),
    ("olmoe-1b-7b", "BF16"),
    ("phi-3.5-moe", "Q4_K_S"),
)


@pytest.mark.parametrize(("name", "format_name"), FULL_SIZE)
def test_bytes_of_a_full_size_header_are_the_tensor_list(name: str, format_name: str, tmp_path: Path) -> None:
    """No weights: a file that is a header and a hole."""
    spec = lookup(name)
    rows = rows_of(spec, format_name)
    path = tmp_path / f"{name}-{format_name}.gguf"
    try:
        write_sparse(path, keys_of(spec), rows)
    except OSError as error:
        pytest.skip(f"no sparse files of this size here: {error}")
    read = resolve_spec(str(path))
    assert read.stored is not None
    assert read.layers == spec.layers
    expected: dict[str, int] = {}
    for tensor, kind in rows:
        _, elements, size = TYPES[_CODES[kind]]
        held = int(np.prod(tensor.shape, dtype=object)) // elements * size
        expected[tensor.group] = expected.get(tensor.group, 0) + held
    found: dict[str, int] = {}
    for own, row in zip(tensors(read), read.stored.tensors, strict=True):
        assert (own.name, own.shape) == (row.name, row.shape)
        found[own.group] = found.get(own.group, 0) + row.n_bytes
    assert found == expected
    assert kv_bytes(read, 32768) == kv_bytes(spec, 32768)


def test_a_file_of_400_gb_is_read_in_a_moment(tmp_path: Path) -> None:
    """Eight parts of a model with 16,000 tensors and a vocabulary of 250,000 words; headers alone are real."""
    spec = lookup("kimi-k2")
    rows = rows_of(spec, "Q2_K")
    count, parts = 8, []
    padding = [
        (Tensor(f"blk.{i % 60}.attn_extra_{i}.bias", (16,), t.group, None), "F32") for i, (t, _) in enumerate(rows * 20)
    ]
    rows += padding[: 16000 - len(rows)]
    try:
        for i in range(count):
            split: dict[str, object] = {"split.no": i, "split.count": count, "split.tensors.count": len(rows)}
            parts.append(tmp_path / f"k-Q2_K-{i + 1:05d}-of-{count:05d}.gguf")
            share = rows[len(rows) * i // count : len(rows) * (i + 1) // count]
            keys = keys_of(spec) if i == 0 else {}
            write_sparse(parts[-1], {**keys, **split}, share, _words(250_000) if i == 0 else b"")
    except OSError as error:
        pytest.skip(f"no sparse files of this size here: {error}")
    assert sum(path.stat().st_size for path in parts) > 350e9
    # A process that is forked from a large one begins with that one's peak, so the reader asks for its own.
    code = (
        "import pathlib, sys, time; from breakeven.model.resolve import resolve_spec as r; r(sys.argv[1]);"
        "own = pathlib.Path('/proc/self/status');"
        "print(time.process_time(), next((x.split()[1] for x in own.read_text().splitlines() if 'VmHWM' in x), 0)"
        " if own.exists() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(parts[3])], capture_output=True, text=True, check=True)
    seconds, peak_kib = (float(x) for x in done.stdout.split())
    # The processor's time, so that a busy machine does not count; about one second here, imports included.
    assert seconds < paced(5.0)
    assert peak_kib * 1024 < 200e6
    assert len(read_header(parts[0]).tensors) == 2000
