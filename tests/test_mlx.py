"""MLX as an engine: a stand-in for `mlx_lm.server` everywhere, and the real one where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from breakeven.engines.backend import Backend
from breakeven.engines.mlx import server as mlx
from breakeven.engines.mlx.layout import ask_there
from breakeven.engines.mlx.server import VARIABLE, MlxServer, end_tokens, find_mlx, interpreter_of, provide
from breakeven.engines.source import Source, parse_source
from breakeven.engines.start import start, weights_of
from breakeven.engines.synthesis import directory
from breakeven.engines.synthesis.directory import StoredArray
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.hardware.placement import Placement
from breakeven.measure.token_counts import encoder
from breakeven.wire.dialects import completion_fields
from tests.vllm_fixtures import MOE, write_config

_FAKE = '''\
#!{python}
"""What `mlx_lm.server` looks like from outside. FAKE_MLX says how it fails."""
import argparse, json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--model")
known, flags = parser.parse_known_args()
print(json.dumps(flags), os.environ.get("HF_HUB_OFFLINE"), flush=True)


class Handler(BaseHTTPRequestHandler):
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({{"status": "ok"}}, 200 if self.path == "/health" else 404)

    def do_POST(self):
        if self.path != "/v1/completions":
            return self.answer("Not Found", 404)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if os.environ.get("FAKE_MLX") == "cannot load":
            print("2026-11-29 - ERROR - mlx_lm.server generation thread died: no such layer", flush=True)
            return self.answer({{"error": "generation thread died"}}, 404)
        if asked["model"] != "default_model" or not isinstance(asked["prompt"], str):
            return self.answer({{"error": "no such model"}}, 404)
        if os.environ.get("FAKE_MLX") == "dies later" and asked["max_tokens"] == 1:
            os._exit(3)
        self.answer({{"choices": [{{"text": "a", "finish_reason": "length"}}],
                      "usage": {{"prompt_tokens": 1, "completion_tokens": asked["max_tokens"]}}}})

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", known.port), Handler).serve_forever()
'''
ROWS = [StoredArray("model.embed_tokens.weight", (2048, 16), "U32")]


@pytest.fixture
def fake_mlx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    executable = tmp_path / "bin" / "mlx_lm.server"
    executable.parent.mkdir()
    executable.write_text(_FAKE.format(python=sys.executable))
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(VARIABLE, str(executable))
    monkeypatch.delenv(mlx.ARGUMENTS, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return executable


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mlx-lm would say, where it is not installed."""
    said = (ROWS, {"model_type": "qwen3_moe", "vocab_size": 2048, "quantization": {"bits": 4, "group_size": 64}})
    monkeypatch.setattr(directory, "mlx_parameters", lambda *_: said)


def real_directory(tmp_path: Path) -> Path:
    """As a published model is: weights, and three places that name tokens which end a text."""
    path = write_config(tmp_path / "real", {**MOE, "eos_token_id": 5})
    (path / "model.safetensors").touch()
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    (path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    (path / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 9, "content": "<end>"}, {"id": 4, "content": "<s>"}]}'
    )
    return path


@pytest.mark.usefixtures("told")
def test_a_candidate_is_written_started_and_gone_after(tmp_path: Path, fake_mlx: Path) -> None:
    source = parse_source(str(write_config(tmp_path / "tiny", MOE)))
    path = weights_of(source, None, 0, None, engine="mlx")
    assert path == weights_of(source, None, 0, None, engine="mlx")
    with ExitStack() as stack:
        log = tmp_path / "mlx.log"
        up = start(stack, source, path, context=64, slots=12, log=log, threads=3, engine="mlx")
        up.alive()
        backend = up.backend
        assert (backend.engine, backend.model, backend.served_model) == ("mlx", "tiny", "default_model")
        assert "--decode-concurrency 12 --prompt-concurrency 8 --prompt-cache-size 0" in backend.settings["flags"]
        assert "1" in log.read_text().splitlines()[0].split()[-1], "a hub is never asked"
        assert backend.settings["threads"] == "its own"
        assert backend.load_s is not None
        assert backend.memory() is not None
        assert not backend.takes_token_ids
        assert backend.end_tokens == (), "a synthetic model ends no text"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{backend.url}/health")


def test_a_real_directory_is_itself_and_its_ends_are_barred(tmp_path: Path, fake_mlx: Path) -> None:
    path = real_directory(tmp_path)
    assert provide(str(path), None, "MLX8") == path
    assert end_tokens(path) == [5, 7, 9]
    with MlxServer(path, context=64, slots=2, log=tmp_path / "log", prompt_cache=True) as backend:
        fields = completion_fields(backend, max_tokens=9, temperature=1.0, seed=3, top_k=20)
        assert fields["logit_bias"] == {"5": -1000.0, "7": -1000.0, "9": -1000.0}
        assert "ignore_eos" not in fields, "it knows no such field"
        assert "seed" not in fields, "a request with a seed is kept out of the batch"
        assert fields["top_k"] == 20
        free = completion_fields(backend, max_tokens=9, temperature=1.0, ignore_eos=False)
        assert "logit_bias" not in free
        assert "--prompt-cache-size 10" in backend.settings["flags"]


@pytest.mark.usefixtures("told")
def test_a_synthetic_directory_has_no_end_and_counts_its_own_tokens(tmp_path: Path, fake_mlx: Path) -> None:
    path = weights_of(parse_source(str(write_config(tmp_path / "tiny", MOE))), "MLX4", 0, None, engine="mlx")
    assert path is not None
    assert json.loads((path / "config.json").read_text())["eos_token_id"] == []
    assert "eos_token" not in json.loads((path / "tokenizer_config.json").read_text())
    pytest.importorskip("tokenizers")
    encode = encoder(
        Backend("http://127.0.0.1:9", "m", None, {"tokenizer": str(path / "tokenizer.json")}, 1, 1.0), None
    )
    assert encode is not None
    assert encode("ab") == [97, 98]


def test_what_cannot_be_loaded_says_why(tmp_path: Path, fake_mlx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MLX", "cannot load")
    with pytest.raises(EngineError, match=r"did not complete a token.*generation thread died: no such layer"):
        MlxServer(real_directory(tmp_path), context=64, slots=2, log=tmp_path / "log").__enter__()


def test_a_death_in_mid_run_is_noticed(tmp_path: Path, fake_mlx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MLX", "dies later")
    up = MlxServer(real_directory(tmp_path), context=64, slots=2, log=tmp_path / "log", name="tiny")
    with up as backend:
        body = json.dumps({"model": "default_model", "prompt": "a", "max_tokens": 1}).encode()
        with pytest.raises(OSError, match="Remote end closed"):
            urllib.request.urlopen(urllib.request.Request(f"{backend.url}/v1/completions", body))
        with pytest.raises(EngineError, match=r"ended while running tiny \(exit status 3\)"):
            up.check_alive()


def test_further_flags_come_last_and_must_be_readable(
    tmp_path: Path, fake_mlx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mlx.ARGUMENTS, "--prefill-step-size 512")
    with MlxServer(
        real_directory(tmp_path), context=64, slots=2, log=tmp_path / "log", arguments=["--kv-bits", "8"]
    ) as b:
        assert b.settings["flags"].endswith("--kv-bits 8 --prefill-step-size 512")
    monkeypatch.setenv(mlx.ARGUMENTS, "--name 'half")
    with pytest.raises(UserError, match="BREAKEVEN_MLX_ARGS cannot be read"):
        MlxServer(tmp_path / "real", context=64, slots=2, log=tmp_path / "log").__enter__()


def test_where_it_is(tmp_path: Path, fake_mlx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_mlx() == str(fake_mlx)
    assert interpreter_of(str(fake_mlx)) == sys.executable
    long = tmp_path / "long"
    long.write_text("#!/bin/sh\n'''exec' /a/very/long/bin/python3.11 \"$0\" \"$@\"\n' '''\n")
    assert interpreter_of(str(long)) == "/a/very/long/bin/python3.11"
    assert interpreter_of("/nowhere") is None
    monkeypatch.setenv(VARIABLE, "/nowhere/mlx")
    with pytest.raises(UserError, match="which is no executable"):
        find_mlx()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    if not os.access(Path(sys.executable).with_name("mlx_lm.server"), os.X_OK):
        with pytest.raises(UserError, match="pip install mlx-lm"):
            find_mlx()


def test_what_mlx_is_not_given(tmp_path: Path, fake_mlx: Path) -> None:
    with pytest.raises(NotSupportedError, match="MLX gets no GGUF"):
        provide("some.gguf", None, "MLX4")
    source = parse_source(str(write_config(tmp_path / "tiny", MOE)))
    # The stand-in's interpreter is this one.
    if "missing" not in ask_there({"config": {}, "bits": None, "dtype": "float16", "group": 0}, sys.executable):
        pytest.skip("mlx-lm is installed here")
    with pytest.raises(NotSupportedError, match="mlx-lm is not installed"):
        weights_of(source, "MLX4", 0, None, engine="mlx")
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.mark.parametrize("engine", ["mlx", "sglang", "vllm"])
def test_a_placement_is_not_passed_over(tmp_path: Path, engine: str) -> None:
    with ExitStack() as stack, pytest.raises(UserError, match=r"--cpu-moe: .* has no such setting"):
        start(
            stack,
            Source("m", "m", None),
            real_directory(tmp_path),
            context=8,
            slots=1,
            log=tmp_path / "log",
            threads=None,
            engine=engine,
            placement=Placement(cpu_moe=3),
        )


@pytest.fixture
def real_mlx() -> str:
    named = os.environ.get(VARIABLE) or str(Path(sys.executable).with_name("mlx_lm.server"))
    found = shutil.which(named) or shutil.which("mlx_lm.server")
    if found is None:
        pytest.skip(f"mlx-lm is not installed; name its server in {VARIABLE}")
    return found


def test_the_real_server_runs_a_synthetic_model_for_as_long_as_asked(
    tmp_path: Path, real_mlx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = parse_source(str(write_config(tmp_path / "tiny", MOE)))
    path = weights_of(source, "MLX4", 0, None, engine="mlx")
    with ExitStack() as stack:
        backend = start(
            stack, source, path, context=64, slots=2, log=tmp_path / "log", threads=None, engine="mlx"
        ).backend
        assert "mlx-lm" in backend.settings["build"]
        fields = completion_fields(backend, max_tokens=48, temperature=1.0, stream=False, seed=1)
        body = json.dumps({**fields, "prompt": "Grüße"}).encode()
        for _ in range(2):
            request = urllib.request.Request(f"{backend.url}/v1/completions", body)
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            assert answer["usage"]["completion_tokens"] == 48
            assert answer["usage"]["prompt_tokens"] == len("Grüße".encode())
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "every request starts cold"
