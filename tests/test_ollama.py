"""Ollama as an engine, against a scripted server with the shapes of its docs/api.md: there is no Ollama here."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from breakeven.engines.backend import Backend
from breakeven.engines.kinds import ENGINES
from breakeven.engines.ollama import OllamaModel, address_of, digest_of
from breakeven.engines.source import Source, parse_source
from breakeven.engines.start import format_of, start, weights_of
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import HOST, MemoryAt, Placed, Placement
from breakeven.measure.token_counts import encoder
from breakeven.wire.dialects import completion_fields
from tests.vllm_fixtures import DENSE, write_config


class ScriptedOllama:
    """What it holds, what it was asked, and what it says of a loaded model: `gpu_share` of it on the GPU."""

    def __init__(self) -> None:
        self.blobs: set[str] = set()
        self.models: dict[str, dict[str, Any]] = {}
        self.loaded: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.gpu_share = 1.0
        self.refuses: dict[str, tuple[int, str]] = {}
        ollama = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, value: object, status: int = 200) -> None:
                body = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_one(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                ollama.asked.append((self.command, self.path))
                status, value = ollama.respond(self.command, self.path, raw)
                self.answer(value, status)

            do_GET = do_POST = do_HEAD = do_DELETE = handle_one

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def respond(self, method: str, path: str, raw: bytes) -> tuple[int, object]:
        if path in self.refuses:
            status, said = self.refuses[path]
            return status, {"error": said}
        if path.startswith("/api/blobs/"):
            digest = path.rpartition("/")[2]
            if method == "HEAD":
                return (200, None) if digest in self.blobs else (404, None)
            if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
                return 400, {"error": "digest mismatch"}
            self.blobs.add(digest)
            return 201, None
        if path == "/api/version":
            return 200, {"version": "0.12.3"}
        if path == "/api/ps":
            rows = [
                {"name": f"{name}:latest", "size": 1000, "size_vram": int(1000 * self.gpu_share)}
                for name in self.loaded
            ]
            return 200, {"models": rows}
        asked = json.loads(raw)
        if path == "/api/create":
            if not set(asked["files"].values()) <= self.blobs:
                return 400, {"error": "no such blob"}
            self.models[asked["model"]] = asked
            return 200, {"status": "success"}
        if asked["model"] not in self.models:
            return 404, {"error": f"model '{asked['model']}' not found"}
        if path == "/api/generate":
            (self.loaded.discard if asked["keep_alive"] == 0 else self.loaded.add)(asked["model"])
            return 200, {"done": True, "done_reason": "load"}
        if path == "/api/delete" and method == "DELETE":
            del self.models[asked["model"]]
            return 200, None
        assert path == "/v1/completions"
        return 200, {"choices": [{"text": " a"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedOllama]:
    server = ScriptedOllama()
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def model(gguf: Path, tmp_path: Path, **settings: Any) -> OllamaModel:
    return OllamaModel(gguf, context=96, slots=2, log=tmp_path / "log", name="Tiny MoE", **settings)


def records(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("breakeven-tmp-*.json"))


def test_a_file_is_put_in_run_and_taken_out(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    ollama.gpu_share = 0.75
    up = model(gguf, tmp_path, placement=Placement(gpu_layers=20), threads=4, layers=25)
    with up as backend:
        (name,) = ollama.models
        assert name.startswith("breakeven-tmp-tiny-moe-")
        assert ollama.models[name]["parameters"] == {"num_ctx": 512, "num_gpu": 20, "num_thread": 4}
        assert ollama.models[name]["template"] == "{{ .Prompt }}"
        assert (backend.url, backend.served_model, backend.pid) == (ollama.address, name, None)
        assert backend.settings["build"] == "ollama 0.12.3"
        assert backend.placed == Placed(
            how="asked",
            gpu_layers=20,
            layers=25,
            memory=[MemoryAt(place="GPU", held_bytes=750), MemoryAt(place=HOST, held_bytes=250)],
        )
        assert len(records(tmp_path)) == 1
        up.check_alive()
        fields = completion_fields(backend, max_tokens=3, temperature=1.0)
        assert fields["model"] == name
        assert "ignore_eos" not in fields, "it passes over such a field, and a short answer is then no error"
    assert (ollama.models, ollama.loaded, records(tmp_path)) == ({}, set(), [])
    with model(gguf, tmp_path):
        pass
    pushed = [path for method, path in ollama.asked if method == "POST" and path.startswith("/api/blobs/")]
    assert len(pushed) == 1, "what it has already is not sent again"


@pytest.mark.parametrize(
    ("share", "gpu_layers", "layers", "said"),
    [
        (1.0, "all", 25, "25/25 layers on the GPU"),
        (0.0, "auto", 0, "on the CPU"),
        (0.25, "auto", None, "25% of its memory on the GPU"),
    ],
)
def test_what_it_says_of_its_memory_is_the_placement(
    ollama: ScriptedOllama, gguf: Path, tmp_path: Path, share: float, gpu_layers: Any, layers: int | None, said: str
) -> None:
    ollama.gpu_share = share
    with model(gguf, tmp_path, placement=Placement(gpu_layers=gpu_layers), layers=25) as backend:
        assert backend.placed is not None
        assert (backend.placed.gpu_layers, backend.placed.words()) == (layers, said)
        (made,) = ollama.models.values()
        assert made["parameters"].get("num_gpu") == {"all": 999, "auto": None}[gpu_layers]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_it_is_taken_out_whatever_happens(
    ollama: ScriptedOllama, gguf: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), model(gguf, tmp_path):
        raise error("stop")
    assert (ollama.models, records(tmp_path)) == ({}, [])


def test_a_model_that_does_not_load_is_taken_out(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    ollama.refuses["/v1/completions"] = (500, "llama runner process has terminated")
    with pytest.raises(EngineError, match="Ollama loaded Tiny MoE but did not complete a token"):
        model(gguf, tmp_path).__enter__()
    assert (ollama.models, records(tmp_path)) == ({}, [])
    ollama.refuses = {"/api/create": (400, "unknown architecture")}
    with pytest.raises(EngineError, match="Ollama refused /api/create: unknown architecture"):
        model(gguf, tmp_path).__enter__()
    assert records(tmp_path) == []


def test_what_a_killed_run_left_is_removed_at_the_next(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from breakeven.engines.ollama import OllamaModel
        with OllamaModel(Path({str(gguf)!r}), context=96, slots=1, log=Path({str(tmp_path / "log")!r})):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (left,) = ollama.models
    assert len(records(tmp_path)) == 1
    ollama.models["llama3:8b"] = {}
    with model(gguf, tmp_path):
        assert left not in ollama.models
        assert len(ollama.models) == 2
        with model(gguf, tmp_path):
            assert len(ollama.models) == 3, "what another run that lives has put in stays"
    assert set(ollama.models) == {"llama3:8b"}, "and so does everything that is not ours"
    assert records(tmp_path) == []


def test_what_could_not_be_taken_out_is_at_the_next(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    with model(gguf, tmp_path):
        ollama.refuses["/api/delete"] = (500, "busy")
    (record,) = records(tmp_path)
    ollama.refuses = {}
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "pid": 2**30}))  # as if that run had ended
    ollama.refuses["/api/delete"] = (500, "busy still")
    with model(gguf, tmp_path):
        assert len(ollama.models) == 2, "it is no reason not to run"
        ollama.refuses = {}
    with model(gguf, tmp_path):
        assert len(ollama.models) == 1
    assert (ollama.models, records(tmp_path)) == ({}, [])


def test_without_an_ollama_it_says_what_to_do(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"Ollama is not at http://127\.0\.0\.1:9 .*start it \(`ollama serve`"):
        model(gguf, tmp_path).__enter__()


def test_one_that_goes_away_is_told(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    up = model(gguf, tmp_path)
    with up:
        up.address = "http://127.0.0.1:9"
        with pytest.raises(EngineError, match="Ollama no longer answers for Tiny MoE"):
            up.check_alive()


def test_settings_it_has_not_are_refused(ollama: ScriptedOllama, gguf: Path, tmp_path: Path) -> None:
    for placement, option in ((Placement(cpu_moe=3), "--cpu-moe"), (Placement(devices=("CUDA0",)), "--device")):
        with pytest.raises(UserError, match=rf"{option}: Ollama has no such setting; it takes --gpu-layers alone"):
            model(gguf, tmp_path, placement=placement)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("https://ollama.lan/base/", "https://ollama.lan:443/base"),
        ("[::1]:5", "http://[::1]:5"),
        (":7", "http://127.0.0.1:7"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(text: str | None, address: str) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["ftp://box", "box:many"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a host and a port"):
        address_of(text)


def test_a_blob_of_its_own_is_not_read_again(tmp_path: Path) -> None:
    name = "ab" * 32
    (tmp_path / f"sha256-{name}").touch()
    assert digest_of(tmp_path / f"sha256-{name}") == f"sha256:{name}"


def test_start_takes_it_by_name(ollama: ScriptedOllama, tmp_path: Path, smollm2_gguf: Path) -> None:
    source = parse_source(str(smollm2_gguf))
    with ExitStack() as stack:
        path = weights_of(source, None, 0, None, engine="ollama")
        assert path == smollm2_gguf
        up = start(stack, source, path, context=64, slots=1, log=tmp_path / "log", threads=None, engine="ollama")
        up.alive()
        backend: Backend = up.backend
        assert backend.engine == "ollama"
        assert backend.placed is not None
        assert backend.placed.layers == len(source.spec.layers) + 1 if source.spec else False
    assert ollama.models == {}


def test_tokens_of_a_synthetic_file_are_counted_for_it(ollama: ScriptedOllama, tmp_path: Path) -> None:
    source = parse_source(str(write_config(tmp_path / "tiny", DENSE)))
    with ExitStack() as stack:
        path = weights_of(source, "Q8_0", 0, None, engine="ollama")
        up = start(stack, source, path, context=64, slots=1, log=tmp_path / "log", threads=None, engine="ollama")
        again = start(stack, source, path, context=64, slots=1, log=tmp_path / "log", threads=None, engine="ollama")
        assert up.backend.settings["tokenizer"] == again.backend.settings["tokenizer"]
        assert len(ollama.models) == 2
        pytest.importorskip("tokenizers")
        encode = encoder(up.backend, None)
        assert encode is not None
        assert encode("é") == [195, 169]


@pytest.mark.parametrize("engine", ["ollama", "lmstudio"])
def test_flags_for_a_server_that_runs_already_are_refused(gguf: Path, tmp_path: Path, engine: str) -> None:
    with ExitStack() as stack, pytest.raises(UserError, match=r"--mlock: .* runs already and takes no flags"):
        start(
            stack,
            Source("m", "m", None, path=gguf),
            gguf,
            context=64,
            slots=1,
            log=tmp_path / "log",
            threads=None,
            engine=engine,
            arguments=("--mlock",),
        )


def test_a_model_published_for_gpus_gets_a_format_that_it_reads() -> None:
    assert format_of(parse_source("gpt-oss-20b"), None, ENGINES["ollama"]) == format_of(
        parse_source("gpt-oss-20b"), None, ENGINES["llama.cpp"]
    )
