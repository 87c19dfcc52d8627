"""SGLang as an engine, against a stand-in: it needs a GPU, and none of these tests has met the real one."""

from __future__ import annotations

import stat
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from breakeven.engines import openai_url
from breakeven.engines.sglang import ARGUMENTS, VARIABLE, SglangServer, find_sglang
from breakeven.engines.source import parse_source
from breakeven.engines.start import kv_type, start, weights_of
from breakeven.engines.vllm.directory import provide
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.gateway.swap.effects import answers_strangers
from breakeven.wire.dialects import completion_fields
from tests.vllm_fixtures import DENSE, write_config

_FAKE = '''\
#!{python}
"""What SGLang's server looks like from outside. FAKE_SGLANG says how it fails."""
import argparse, json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["serve"])
parser.add_argument("--model-path", required=True)
parser.add_argument("--served-model-name", required=True)
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--context-length", type=int)
parser.add_argument("--dtype")
parser.add_argument("--config")
known, flags = parser.parse_known_args()
if os.environ.get("FAKE_SGLANG") == "refuses":
    print("[2026-11-29 08:00:01 TP0] Scheduler hit an exception: Traceback (most recent call last):")
    print("[2026-11-29 08:00:01 TP0] RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.")
    print("[2026-11-29 08:00:02] Received sigquit from a child process.", flush=True)
    sys.exit(137)
key = json.load(open(known.config))["api-key"] if known.config else None
scheduler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


class Handler(BaseHTTPRequestHandler):
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stranger(self):
        return key is not None and self.path != "/health" and self.headers["Authorization"] != "Bearer " + key

    def do_GET(self):
        if self.stranger():
            return self.answer({{"error": "Unauthorized"}}, 401)
        info = {{"version": "0.5.9", "device": "cuda", "dtype": known.dtype, "mem_fraction_static": 0.85,
                "context_length": known.context_length, "max_total_num_tokens": 4096, "quantization": None}}
        models = {{"data": [{{"id": known.served_model_name, "owned_by": "sglang"}}]}}
        answers = {{"/health": "", "/v1/models": models, os.environ.get("FAKE_INFO", "/server_info"): info}}
        self.answer(answers.get(self.path), 200 if self.path in answers else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.stranger():
            return self.answer({{"error": "Unauthorized"}}, 401)
        if self.path == "/tokenize":
            return self.answer({{"count": 0, "max_model_len": 64, "tokens": list(asked["prompt"].encode())}})
        self.answer({{"choices": [{{"text": " a"}}], "usage": {{"completion_tokens": asked["max_tokens"]}}}})

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", known.port), Handler).serve_forever()
'''


@pytest.fixture
def fake_sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    executable = tmp_path / "bin" / "sglang"
    executable.parent.mkdir()
    executable.write_text(_FAKE.format(python=sys.executable))
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(VARIABLE, str(executable))
    monkeypatch.delenv(ARGUMENTS, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return executable


def test_a_candidate_runs_on_dummy_weights(tmp_path: Path, fake_sglang: Path) -> None:
    source = parse_source(str(write_config(tmp_path / "tiny", DENSE)))
    path = weights_of(source, None, 0, None, engine="sglang")
    kv = kv_type([source], "sglang", "fp8")
    with ExitStack() as stack:
        log = tmp_path / "log"
        up = start(stack, source, path, context=64, slots=3, log=log, threads=None, engine="sglang", kv=kv)
        up.alive()
        settings = up.backend.settings
        assert settings["build"] == "sglang 0.5.9"
        assert "--max-running-requests 3 --dtype bfloat16 --load-format dummy" in settings["flags"]
        assert "--disable-radix-cache --kv-cache-dtype fp8_e4m3" in settings["flags"]
        assert (settings["device"], settings["kv_cache_tokens"], settings["mem_fraction_static"]) == (
            "cuda",
            "4096",
            "0.85",
        )
        assert "quantization" not in settings, "what it does not say is left out"
        assert up.backend.takes_token_ids
        assert up.backend.tokenize("ab") == [97, 98]
        fields = completion_fields(up.backend, max_tokens=4, temperature=1.0)
        assert fields["ignore_eos"]
        assert fields["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        connected = openai_url.connect(f"{up.backend.url}/v1#{source.name}")
        assert connected.engine == "sglang"
        assert up.backend.memory() is not None


def test_real_weights_shared_prefixes_and_further_flags(
    tmp_path: Path, fake_sglang: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARGUMENTS, "--mem-fraction-static 0.7")
    monkeypatch.setenv("FAKE_INFO", "/get_server_info")
    given = write_config(tmp_path / "real", {**DENSE, "quantization_config": {"quant_method": "fp8"}})
    (given / "pytorch_model.bin").touch()
    path = weights_of(parse_source(str(given)), None, 0, None, engine="sglang")
    assert path == given, "a quantized directory goes to it as it is"
    assert path is not None
    with SglangServer(path, context=64, slots=2, log=tmp_path / "log", prefix_caching=True) as backend:
        assert "--disable-radix-cache" not in backend.settings["flags"]
        assert backend.settings["flags"].endswith("--mem-fraction-static 0.7")
        assert backend.settings["build"] == "sglang 0.5.9", "older versions say it elsewhere"


def test_it_asks_for_the_key_it_is_given_and_no_list_of_processes_shows_it(tmp_path: Path, fake_sglang: Path) -> None:
    engine = SglangServer(write_config(tmp_path / "tiny", DENSE), context=64, slots=2, log=tmp_path / "log")
    engine.key = "canary-of-its-own"
    with engine as backend:
        assert backend.settings["build"] == "sglang 0.5.9"
        assert answers_strangers(backend.url) == ""
        assert backend.pid is not None
        assert engine.key not in str([psutil.Process(backend.pid).cmdline(), backend])
        assert not [path for path in tmp_path.iterdir() if path.is_file() and engine.key in path.read_text()]


def test_a_refusal_tells_the_root_cause(tmp_path: Path, fake_sglang: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SGLANG", "refuses")
    given = write_config(tmp_path / "tiny", DENSE)
    with pytest.raises(EngineError, match=r"SGLang ended.*RuntimeError: Not enough memory.*--mem-fraction-static\.$"):
        SglangServer(given, context=64, slots=2, log=tmp_path / "log").__enter__()


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, sys.executable)
    assert find_sglang() == [sys.executable, "-m", "sglang.launch_server"]
    monkeypatch.setenv(VARIABLE, "/nowhere/sglang")
    with pytest.raises(UserError, match="which is no executable"):
        find_sglang()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install sglang"):
        find_sglang()


def test_what_it_is_not_given() -> None:
    with pytest.raises(NotSupportedError, match="nor does SGLang"):
        provide("some.gguf", None, "BF16")
    with pytest.raises(NotSupportedError, match=r"is a format of llama\.cpp"):
        weights_of(parse_source("olmoe-1b-7b"), "Q4_K_M", 0, None, engine="sglang")
