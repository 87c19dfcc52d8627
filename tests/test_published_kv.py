"""A checkpoint's own type of keys and values: read, predicted, shown, and what engines are started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from breakeven.engines.kinds import ENGINES, Serving
from breakeven.engines.source import parse_source
from breakeven.engines.start import kv_type
from breakeven.engines.vllm.server import VllmServer
from breakeven.errors import UserError
from breakeven.forecast.predict import predict
from breakeven.model.readers.yaml_write import to_yaml
from breakeven.model.resolve import resolve_spec
from breakeven.pages.predicted import print_prediction
from tests.cli_fixtures import run_here


def kept_in_8_bits(tmp_path: Path, **facts: object) -> Path:
    """The configuration of a small dense model, with what a checkpoint says of its format."""
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        **facts,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


SCHEME = {"dynamic": False, "num_bits": 8, "type": "float"}
FP8_WEIGHTS = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "targets": ["Linear"]}


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": FP8_WEIGHTS}, "kv_cache_scheme": SCHEME},
        {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": SCHEME},
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": SCHEME},
        {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
        {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
    ],
)
def test_a_checkpoint_says_how_keys_and_values_are_kept(tmp_path: Path, said: dict[str, object]) -> None:
    path = str(kept_in_8_bits(tmp_path, quantization_config=said))
    assert resolve_spec(path).kv_cache == "fp8"
    usual = predict([path], ["h100-sxm"], contexts=(32768,)).points[0]
    wide = predict([path], ["h100-sxm"], contexts=(32768,), kv="bf16").points[0]
    assert (usual.kv, wide.kv) == ("fp8", "bf16")
    assert wide.memory["kv"] == pytest.approx(2 * usual.memory["kv"])
    assert any("as its checkpoint asks" in note for note in usual.notes)
    # In another format it is another checkpoint, and llama.cpp's files ask for nothing.
    assert predict([path], ["h100-sxm"], format_name="INT4").points[0].kv == "f16"
    assert predict([path], ["rtx-4090"], format_name="Q4_K_M", engine="llama.cpp").points[0].kv == "f16"


def test_keys_and_values_of_what_lies_beside_a_configuration(tmp_path: Path) -> None:
    kept_in_8_bits(tmp_path)
    said = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": said}))
    assert resolve_spec(str(tmp_path)).kv_cache == "fp8"
    done = run_here("models", str(tmp_path))
    assert "asks for fp8 keys and values" in " ".join(done.stdout.split())
    shown = json.loads(run_here("models", str(tmp_path), "--json").stdout)
    assert shown["model"]["summary"]["native_kv"] == "fp8"
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(resolve_spec(str(tmp_path))))
    assert resolve_spec(str(again)).kv_cache == "fp8"


def test_a_type_that_is_not_known_is_said(tmp_path: Path) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}
    (point,) = predict([str(kept_in_8_bits(tmp_path, quantization_config=said))], ["b200"]).points
    assert point.kv == "f16"
    assert any("asks for nvfp4 keys and values" in note for note in point.notes)
    bad = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": 8}
    with pytest.raises(UserError, match="kv_cache_scheme is 8"):
        resolve_spec(str(kept_in_8_bits(tmp_path, quantization_config=bad)))


def test_types_that_differ_stand_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    path = str(kept_in_8_bits(tmp_path, quantization_config=said))
    print_prediction(predict(["llama-3.2-3b", path], ["h100-sxm"]), Console(width=200))
    printed = capsys.readouterr().out
    assert "KV type" in printed
    assert "keys and values" not in printed.splitlines()[0]


def test_a_directory_that_asks_for_it_is_started_so(tmp_path: Path) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    kept_in_8_bits(tmp_path, quantization_config=said)
    bare = parse_source(str(tmp_path))
    assert kv_type([bare], "vllm", None) == "f16"  # its weights are made here, as its engine reads them
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert kv_type([bare], "vllm", None) == "fp8"
    assert kv_type([bare], "vllm", "bf16") == "bf16"
    serving = Serving(context=64, slots=1, log=tmp_path / "log", threads=None, share_prefixes=False, kv="f16")
    server = ENGINES["vllm"].server(bare, tmp_path, serving)
    assert isinstance(server, VllmServer)
    # Asked for 16 bits it must be told so: unasked it does as the checkpoint says.
    assert server.flags[server.flags.index("--kv-cache-dtype") + 1] == "bfloat16"
