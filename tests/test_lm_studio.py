"""LM Studio as an engine, against a scripted server with the shapes of its documentation: there is none here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from breakeven.engines.lm_studio import FOLDER, KEY, VARIABLE, LmStudioModel, models_folder
from breakeven.engines.source import parse_source
from breakeven.engines.start import start, weights_of
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import Placement


class ScriptedLmStudio:
    """Lists what lies in its folder, and loads it; `deaf`: it notices no new file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[str, dict[str, object]] = {}
        self.deaf = False
        self.token = ""
        self.refuses: dict[str, int] = {}
        studio = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle_one(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if studio.token and self.headers.get("Authorization") != f"Bearer {studio.token}":
                    return self.answer(401, {"error": {"message": "invalid token"}})
                return self.answer(*studio.respond(self.path, json.loads(raw or b"{}")))

            do_GET = do_POST = handle_one

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

    def keys(self) -> list[str]:
        files = [] if self.deaf else [path for path in self.folder.glob("*/*/*.gguf") if path.exists()]
        return ["gemma-3-270m-it-qat", *(path.parent.name for path in files)]

    def respond(self, path: str, asked: dict[str, str]) -> tuple[int, object]:
        if path in self.refuses:
            return self.refuses[path], {"error": {"message": "no memory for it"}}
        if path == "/api/v1/models":
            rows = [
                {"type": "llm", "key": key, "loaded_instances": [{"id": key}] if key in self.loaded else []}
                for key in self.keys()
            ]
            return 200, {"models": rows}
        if path == "/api/v1/models/load":
            if asked["model"] not in self.keys():
                return 404, {"error": {"message": "model not found"}}
            config = {"context_length": asked["context_length"], "offload_kv_cache_to_gpu": True}
            self.loaded[asked["model"]] = dict(config)
            loaded = {"type": "llm", "instance_id": asked["model"], "load_time_seconds": 1.5, "status": "loaded"}
            return 200, {**loaded, "load_config": config}
        if path == "/api/v1/models/unload":
            if self.loaded.pop(asked["instance_id"], None) is None:
                return 404, {"error": {"message": "not loaded"}}
            return 200, {"instance_id": asked["instance_id"]}
        assert path == "/v1/completions"
        return 200, {"choices": [{"text": " a"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedLmStudio]:
    folder = tmp_path / "models"
    folder.mkdir()
    server = ScriptedLmStudio(folder)
    monkeypatch.setenv(VARIABLE, server.address)
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(KEY, raising=False)
    yield server
    server.close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def model(gguf: Path, tmp_path: Path, notice_timeout_s: float = 60.0) -> LmStudioModel:
    return LmStudioModel(
        gguf, context=96, slots=2, log=tmp_path / "log", name="Tiny MoE", notice_timeout_s=notice_timeout_s
    )


def records(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("breakeven-tmp-*"))


def test_a_file_is_linked_run_and_taken_out(studio: ScriptedLmStudio, gguf: Path, tmp_path: Path) -> None:
    up = model(gguf, tmp_path)
    with up as backend:
        (link,) = studio.folder.glob("breakeven-tmp/breakeven-tmp-tiny-moe-*/*.gguf")
        assert link.samefile(gguf)
        assert studio.loaded == {link.parent.name: {"context_length": 512, "offload_kv_cache_to_gpu": True}}
        assert (backend.served_model, backend.load_s, backend.pid) == (link.parent.name, 1.5, None)
        assert backend.settings["offload_kv_cache_to_gpu"] == "True"
        assert backend.placed is None, "its API does not tell"
        assert len(records(tmp_path)) == 1
        up.check_alive()
    assert list(studio.folder.iterdir()) == []
    assert (studio.loaded, records(tmp_path), gguf.exists()) == ({}, [], True)


def test_it_is_taken_out_whatever_happens(studio: ScriptedLmStudio, gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), model(gguf, tmp_path):
        raise KeyboardInterrupt
    studio.refuses["/api/v1/models/load"] = 500
    with pytest.raises(EngineError, match="LM Studio refused /api/v1/models/load: no memory for it"):
        model(gguf, tmp_path).__enter__()
    assert list(studio.folder.iterdir()) == []
    assert (studio.loaded, records(tmp_path)) == ({}, [])


def test_a_file_goes_even_where_lm_studio_has_gone(studio: ScriptedLmStudio, gguf: Path, tmp_path: Path) -> None:
    up = model(gguf, tmp_path)
    with up:
        up.address = "http://127.0.0.1:9"
        with pytest.raises(EngineError, match="LM Studio no longer answers"):
            up.check_alive()
    assert (list(studio.folder.iterdir()), records(tmp_path)) == ([], [])


def test_what_a_killed_run_left_is_removed_at_the_next(studio: ScriptedLmStudio, gguf: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from breakeven.engines.lm_studio import LmStudioModel
        with LmStudioModel(Path({str(gguf)!r}), context=96, slots=1, log=Path({str(tmp_path / "log")!r})):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (left,) = studio.loaded
    with model(gguf, tmp_path):
        assert left not in studio.loaded
        assert not list(studio.folder.glob(f"*/{left}"))
    assert (studio.loaded, list(studio.folder.iterdir()), records(tmp_path)) == ({}, [], [])


def test_a_file_it_does_not_notice_is_taken_back(studio: ScriptedLmStudio, gguf: Path, tmp_path: Path) -> None:
    studio.deaf = True
    with pytest.raises(UserError, match=r"did not notice the file.*lms import"):
        model(gguf, tmp_path, notice_timeout_s=0.6).__enter__()
    assert (list(studio.folder.iterdir()), records(tmp_path)) == ([], [])


def test_a_token_where_it_wants_one(
    studio: ScriptedLmStudio, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.token = "secret"
    with pytest.raises(UserError, match=f"wants its API token; put it into {KEY}"):
        model(gguf, tmp_path).__enter__()
    monkeypatch.setenv(KEY, "secret")
    with model(gguf, tmp_path) as backend:
        assert backend.headers() == {"Authorization": "Bearer secret"}
        assert "secret" not in str(backend)
        assert all("secret" not in path.read_text() for path in records(tmp_path))


def test_without_one_or_with_an_old_one_it_says_what_to_do(
    studio: ScriptedLmStudio, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.refuses["/api/v1/models"] = 404
    with pytest.raises(UserError, match=r"has no /api/v1; update it"):
        model(gguf, tmp_path).__enter__()
    monkeypatch.setenv(VARIABLE, "http://studio.example:1234")
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(UserError, match=rf"would get the key in {KEY} in clear"):
        model(gguf, tmp_path)
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"LM Studio is not at http://127\.0\.0\.1:9 .*lms server start"):
        model(gguf, tmp_path).__enter__()
    with pytest.raises(UserError, match="--gpu-layers: LM Studio has no such setting"):
        LmStudioModel(gguf, context=1, slots=1, log=tmp_path / "log", placement=Placement(gpu_layers=3))


def test_where_its_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".lmstudio" / "models"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{moved}\n")
    assert models_folder() == moved / "models"
    (moved / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "big disk")}))
    assert models_folder() == tmp_path / "big disk"
    monkeypatch.setenv(FOLDER, os.fspath(tmp_path / "named"))
    assert models_folder() == tmp_path / "named"


def test_start_takes_it_by_name(studio: ScriptedLmStudio, tmp_path: Path, smollm2_gguf: Path) -> None:
    source = parse_source(str(smollm2_gguf))
    with ExitStack() as stack:
        path = weights_of(source, None, 0, None, engine="lmstudio")
        up = start(stack, source, path, context=64, slots=1, log=tmp_path / "log", threads=None, engine="lmstudio")
        up.alive()
        assert up.backend.engine == "lmstudio"
    assert studio.loaded == {}
