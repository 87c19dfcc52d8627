"""Synthetic models as Hugging Face directories: what MLX and vLLM are given."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import breakeven
from breakeven.cli.main import dispatch
from breakeven.engines.synthesis import directory
from breakeven.engines.synthesis.directory import StoredArray
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.arithmetic import total_params
from breakeven.model.catalogue import lookup
from breakeven.model.readers.hf import safetensors_rows

ROWS = [
    StoredArray("model.embed_tokens.weight", (400, 64), "U32"),
    StoredArray("model.embed_tokens.scales", (400, 8), "BF16"),
    StoredArray("model.embed_tokens.biases", (400, 8), "BF16"),
    StoredArray("model.layers.0.input_layernorm.weight", (512,), "BF16"),
    StoredArray("model.layers.0.mlp.down_proj.weight", (512, 3_000), "F16"),
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mlx-lm would say, where it is not installed."""
    said = (ROWS, {"model_type": "qwen3", "vocab_size": 400, "quantization": {"bits": 4, "group_size": 64}})
    monkeypatch.setattr(directory, "mlx_parameters", lambda *_: said)


@pytest.mark.usefixtures("told")
def test_an_mlx_directory_holds_every_parameter_and_the_same_bytes_again(tmp_path: Path) -> None:
    spec = lookup("qwen3-0.6b")
    one, two = tmp_path / "one", tmp_path / "two"
    size = directory.synthesise_mlx({}, spec, "MLX4", one)
    directory.synthesise_mlx({}, spec, "MLX4", two)
    file = one / "model-00001-of-00001.safetensors"
    assert {(name, dtype, shape) for name, dtype, shape in safetensors_rows(file)} == {
        (row.name, row.dtype, row.shape) for row in ROWS
    }
    assert size == sum(row.n_bytes for row in ROWS)
    assert file.read_bytes() == (two / file.name).read_bytes()
    index = json.loads((one / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {row.name for row in ROWS}
    assert json.loads((one / "config.json").read_text())["quantization"]["bits"] == 4
    assert (one / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("told")
def test_files_are_parted_where_they_grow_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "SHARD_BYTES", 120_000)
    directory.synthesise_mlx({}, lookup("qwen3-0.6b"), "MLX4", tmp_path / "m")
    assert len(list((tmp_path / "m").glob("model-*-of-00002.safetensors"))) == 2


def test_a_vllm_directory_is_the_published_configuration_without_weights(tmp_path: Path) -> None:
    done = breakeven.synth("qwen3.5-27b", tmp_path / "m", engine="vllm")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert done.size_bytes == 0
    assert "quantization_config" not in config
    assert not list((tmp_path / "m").glob("*.safetensors"))
    again = breakeven.models(str(tmp_path / "m"))
    assert again.summary.total_params == total_params(lookup("qwen3.5-27b"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "tgi"], "choose llama.cpp, mlx or vllm"),
        (["--engine", "vllm", "--format", "Q4_K_M"], "with vllm choose BF16 or F16"),
        (["--engine", "mlx", "--routing", "zipf:1"], "are for llama.cpp's files"),
    ],
)
def test_what_cannot_be_written_is_said(arguments: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, NotSupportedError), match=says):
        dispatch(["synth", "qwen3-0.6b", "--out", str(tmp_path / "m"), *arguments])
    assert not (tmp_path / "m").exists()


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UserError, match="is there already"):
        breakeven.synth("qwen3-0.6b", tmp_path, engine="vllm")
    assert (tmp_path / "mine").read_text() == "kept"


def test_mlx_loads_what_is_written(tmp_path: Path) -> None:
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    breakeven.synth("qwen3.5-0.8b:MLX4", tmp_path / "m", engine="mlx")
    model, _ = utils.load_model(tmp_path / "m", lazy=True)
    trees = pytest.importorskip("mlx.utils")
    assert math.isclose(utils.get_total_parameters(model), total_params(lookup("qwen3.5-0.8b")), rel_tol=1e-3), (
        trees.tree_flatten(model.parameters())[:3]
    )
