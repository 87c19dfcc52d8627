"""Ollama, through its HTTP API: a GGUF becomes a temporary model in the server that runs, and is removed again.

Requests, answers and parameters: docs/api.md, docs/modelfile.md and envconfig/config.go of ollama/ollama.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from breakeven.engines.backend import OLLAMA, Backend
from breakeven.engines.borrowed import LOAD_TIMEOUT_S, BorrowedEngine, RefusedError, refuse_placement
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import AUTO, HOST, MemoryAt, Placed, Placement

VARIABLE = "OLLAMA_HOST"
"""Ollama's own environment variable for where it listens."""
GPU = "GPU"
"""The one place that `/api/ps` knows beside the host."""
ALL_LAYERS = 999
"""More layers than any model has: Ollama's `num_gpu` counts them."""

LEAST_CONTEXT = 512
"""Below, the texts that find out how long a token is would not fit."""

_PORT = 11434
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_CHUNK = 4 << 20


def address_of(text: str | None) -> str:
    """The URL that `OLLAMA_HOST` means, as Ollama reads it: a host, a port, both, or a URL. Raises UserError."""
    given = (text or "").strip().strip("\"'")
    scheme, _, rest = given.rpartition("://")
    usual = {"http": 80, "https": 443}.get(scheme.lower(), _PORT)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port or usual
    except ValueError:
        raise UserError(f"{VARIABLE} is {given}; give a host and a port, such as 127.0.0.1:11434") from None
    if scheme.lower() not in ("", "http", "https"):
        raise UserError(f"{VARIABLE} is {given}; give a host and a port, such as 127.0.0.1:11434")
    # What a server listens on for everybody is no address to call.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme.lower() or 'http'}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def refuse(placement: Placement) -> None:
    """Raise UserError for any option of a placement but --gpu-layers."""
    instead = "it takes --gpu-layers alone; leave it out, or use llama.cpp"
    refuse_placement(placement, "Ollama", instead, taken=("--gpu-layers",))


class OllamaModel(BorrowedEngine):
    """Context manager: puts `gguf` into the Ollama that runs, loads it, gives its `Backend`, and removes it after.

    `context` is tokens a sequence (num_ctx). `tokenizer`: a file that counts its tokens. `slots`, the type of keys and
    values and whether prompts are kept are the server's own settings. `layers`: how many the model has, its head
    counted, where it is known.

    Raises UserError when no Ollama runs or it has no setting for `placement`, EngineError when it refuses the model.
    """

    title = "Ollama"
    how_to_start = f"start it (`ollama serve`, or the app), or name its address in {VARIABLE}"
    kept_by = "ollama"

    def __init__(
        self,
        gguf: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        name: str | None = None,
        tokenizer: Path | None = None,
        placement: Placement = AUTO,
        layers: int | None = None,
    ) -> None:
        super().__init__(address_of(os.environ.get(VARIABLE)), name or gguf.stem, log)
        self.gguf = gguf
        refuse(placement)
        self.placement, self.layers = placement, layers
        self._slots, self._tokenizer = slots, tokenizer
        self.parameters: dict[str, object] = {"num_ctx": max(context, LEAST_CONTEXT)}
        if placement.gpu_layers != "auto":
            self.parameters["num_gpu"] = ALL_LAYERS if placement.gpu_layers == "all" else placement.gpu_layers
        if threads is not None:
            self.parameters["num_thread"] = threads

    def _alive(self) -> None:
        self.ask("/api/version")

    def _bring_up(self) -> Backend:
        if not self.gguf.is_file():
            raise UserError(f"{self.gguf} does not exist or is not a file; give the path of a GGUF file")
        version = str(self.ask("/api/version").get("version", "unknown"))
        self.clean_up()
        digest = digest_of(self.gguf)
        self._push(digest)
        model = self.temporary_name()
        self.write_down({"model": model})
        # Ours is the whole prompt: no template around it.
        made = {"model": model, "files": {"model.gguf": digest}, "template": "{{ .Prompt }}", "stream": False}
        self.ask("/api/create", {**made, "parameters": self.parameters}, timeout_s=LOAD_TIMEOUT_S)
        began = time.monotonic()
        # Without a prompt it loads; it stays until it is told otherwise.
        asked = {"model": model, "stream": False, "keep_alive": -1}
        self.ask("/api/generate", asked, timeout_s=LOAD_TIMEOUT_S)
        load_s = time.monotonic() - began
        self._complete_one(self.address, model=model, prompt="a b c")
        settings = {
            "engine": OLLAMA,
            "build": f"ollama {version}",
            "served_model": model,
            "flags": " ".join(f"{key}={value}" for key, value in self.parameters.items()),
            "slots": f"the server's (OLLAMA_NUM_PARALLEL), {self._slots} wanted",
            "context_per_slot": str(self.parameters["num_ctx"]),
            **({"tokenizer": str(self._tokenizer)} if self._tokenizer else {}),
            "prompt_cache": "the server's, always on",
            "placement": self.placement.words(),
        }
        return Backend(self.address, self.name, None, settings, None, load_s, self._placed(model))

    def _push(self, digest: str) -> None:
        """Give it the file, unless it has it: its own blobs, and those of a run before, need no copy."""
        try:
            self.ask(f"/api/blobs/{digest}", method="HEAD")
            return
        except RefusedError as error:
            if error.status != 404:
                raise
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=LOAD_TIMEOUT_S)
        try:
            with self.gguf.open("rb") as file:
                headers = {"Content-Length": str(self.gguf.stat().st_size), "Content-Type": "application/octet-stream"}
                connection.request("POST", f"{parts.path}/api/blobs/{digest}", body=file, headers=headers)
            answer = connection.getresponse()
            text = answer.read()[:300].decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"Ollama did not take {self.gguf} ({error}); is its disk full?") from error
        finally:
            connection.close()
        if answer.status not in (200, 201):
            raise EngineError(f"Ollama did not take {self.gguf} (status {answer.status}: {text}); is its disk full?")

    def _take_out(self, facts: Mapping[str, str]) -> None:
        model = facts["model"]
        for path, body, method in (
            ("/api/generate", {"model": model, "keep_alive": 0, "stream": False}, "POST"),
            ("/api/delete", {"model": model, "name": model}, "DELETE"),
        ):
            try:
                self.ask(path, body, method=method)
            except RefusedError as error:
                if error.status != 404:
                    raise

    def _placed(self, model: str) -> Placed | None:
        """Where it lies, by what `/api/ps` says of it; None where it says nothing."""
        found = self.ask("/api/ps").get("models")
        names = (model, f"{model}:latest")
        mine: dict[str, Any] = next((row for row in found or [] if row.get("name") in names), {})
        size, on_gpu = mine.get("size"), mine.get("size_vram")
        if not isinstance(size, int) or not isinstance(on_gpu, int):
            return None
        layers: int | None = None
        if on_gpu == 0:
            layers = 0
        elif on_gpu >= size:
            layers = self.layers
        elif isinstance(self.placement.gpu_layers, int):
            layers = self.placement.gpu_layers
        return Placed(
            how="fitted" if self.placement.gpu_layers == "auto" else "asked",
            gpu_layers=layers,
            layers=self.layers,
            memory=[MemoryAt(place=GPU, held_bytes=on_gpu), MemoryAt(place=HOST, held_bytes=max(0, size - on_gpu))],
        )


def digest_of(path: Path) -> str:
    """Its SHA-256 as Ollama writes it; one of Ollama's own blobs is called by it."""
    if named := _BLOB.fullmatch(path.resolve().name):
        return f"sha256:{named[1]}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
