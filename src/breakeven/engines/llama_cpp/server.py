"""A llama.cpp server as a resource: it is up inside the `with` block and gone after it, whatever happens."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import msgspec

from breakeven.engines.backend import LLAMA_CPP, Backend, MemoryUse, open_url, process_memory
from breakeven.engines.llama_cpp.settings import KvType, ServerReady, ServerSettings, available_threads
from breakeven.errors import EngineError, UserError

_POLL_S = 0.02
_HEALTH_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 2.0
_LOG_LINES = 6
_LOG_TAIL_BYTES = 16_384
_TIMESTAMP = re.compile(r"^\d+(\.\d+)+ [A-Z] ")


class LlamaCppServer:
    """Context manager: starts llama.cpp on one GGUF in a child process and gives its `Backend`.

    Enter it from a thread that outlives it (the main thread): on Linux the child is killed when the thread that
    started it ends. `wait_policy` "passive" lets idle engine threads sleep, which costs a few per cent on a quiet
    machine and saves the run on a shared one; None leaves the engine's default. `environment` is all that the child
    gets to see; None: what this process has.

    Raises UserError for settings that cannot be, EngineError (with the last log lines) when the model does not load.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        batch: int = 2048,
        flash_attention: bool | None = None,
        kv_type: KvType = "f16",
        gpu_layers: int = 0,
        repack: bool = True,
        wait_policy: Literal["active", "passive"] | None = None,
        name: str | None = None,
        prompt_cache: bool = False,
        embeddings: bool = False,
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = 1800.0,
    ) -> None:
        threads = available_threads() if threads is None else threads
        for what, number in {"threads": threads, "context": context, "slots": slots, "batch": batch}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        self.settings = ServerSettings(
            model=str(model),
            name=name or model.stem,
            threads=threads,
            context=context,
            slots=slots,
            batch=batch,
            flash_attention=flash_attention,
            kv_type=kv_type,
            gpu_layers=gpu_layers,
            repack=repack,
            prompt_cache=prompt_cache,
            embeddings=embeddings,
        )
        self.log = log
        self._wait_policy = wait_policy
        self._environment = environment
        self._ready_timeout_s = ready_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._url: str | None = None
        self._last_memory: MemoryUse | None = None

    def __enter__(self) -> Backend:
        if importlib.util.find_spec("xllamacpp") is None:
            raise UserError("the package xllamacpp (llama.cpp) is missing; install it with: pip install xllamacpp")
        model = Path(self.settings.model)
        if not model.is_file():
            raise UserError(f"{model} does not exist or is not a file; give the path of a GGUF file")
        started = time.monotonic()
        try:
            ready = self._spawn(started)
            self._wait_healthy(ready.url, started)
        except BaseException:
            self._stop()
            raise
        load_s = time.monotonic() - started
        self._url = ready.url
        assert self._child is not None
        settings = {
            "engine": LLAMA_CPP,
            "build": f"xllamacpp {ready.engine_version}",
            "ggml": f"{ready.ggml_version} ({ready.ggml_commit})",
            "kernels": ready.kernels,
            **self.settings.as_strings(),
            "wait_policy": self._wait_policy or "default",
        }
        return Backend(ready.url, self.settings.name, None, settings, self._child.pid, load_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def memory(self) -> MemoryUse | None:
        """Memory of the child now, or as it was when it was stopped; None before the start."""
        if self._child is not None:
            self._last_memory = process_memory(self._child.pid) or self._last_memory
        return self._last_memory

    def check_alive(self) -> None:
        """Raise EngineError, with the engine's last words, when the child has ended or no longer answers.

        Asks it (about a millisecond on loopback), because a connection breaks a moment before its process is gone.
        """
        self._raise_if_ended()
        if self._url is None:
            return
        try:
            with open_url(f"{self._url}/health", timeout_s=_HEALTH_TIMEOUT_S):
                return
        except (OSError, HTTPException, ValueError):
            self._await_end()
            self._raise_if_ended()
            raise EngineError(f"llama.cpp no longer answers for {self.settings.name}{self._last_words()}") from None

    def _raise_if_ended(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            name, how = self.settings.name, self._how_it_ended()
            raise EngineError(f"llama.cpp ended while running {name} ({how}){self._last_words()}")

    def _await_end(self) -> None:
        """Give a child that is ending the time to do so."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=_END_TIMEOUT_S)

    def _spawn(self, started: float) -> ServerReady:
        """Start the child and wait for its one message."""
        settings = msgspec.structs.replace(self.settings, parent_pid=os.getpid())
        environment = dict(os.environ if self._environment is None else self._environment)
        if self._wait_policy:
            environment["OMP_WAIT_POLICY"] = self._wait_policy.upper()
        read_fd, write_fd = os.pipe()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "breakeven.engines.llama_cpp.child", str(write_fd)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_fd,),
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for us to handle; we then stop the child
                )
        except OSError as error:
            os.close(read_fd)
            raise EngineError(f"llama.cpp could not be started: {error}") from error
        finally:
            os.close(write_fd)
        assert self._child.stdin is not None
        with os.fdopen(read_fd, "rb", buffering=0) as pipe:
            try:
                # Left open: its end tells the child that we are gone.
                self._child.stdin.write(msgspec.json.encode(settings) + b"\n")
                self._child.stdin.flush()
            except BrokenPipeError:
                raise self._load_error() from None
            message = self._read_all(pipe, started)
        try:
            return msgspec.json.decode(message, type=ServerReady)
        except msgspec.DecodeError:
            raise self._load_error() from None

    def _read_all(self, pipe: IO[bytes], started: float) -> bytes:
        message = b""
        while True:
            left = self._ready_timeout_s - (time.monotonic() - started)
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                waited = f"within {self._ready_timeout_s:.0f} s"
                raise EngineError(f"llama.cpp did not load {self.settings.model} {waited}{self._last_words()}")
            part = pipe.read(4096)
            if not part:
                return message
            message += part

    def _wait_healthy(self, url: str, started: float) -> None:
        while True:
            try:
                with open_url(f"{url}/health", timeout_s=_HEALTH_TIMEOUT_S):
                    return
            except (OSError, HTTPException, ValueError):
                self._raise_if_ended()
            if time.monotonic() - started > self._ready_timeout_s:
                raise EngineError(f"llama.cpp loaded the model but does not answer at {url}{self._last_words()}")
            time.sleep(_POLL_S)

    def _load_error(self) -> EngineError:
        self._await_end()
        code = self._child.returncode if self._child else None
        # An exit status only says that Python stopped on llama.cpp's refusal, which the log explains.
        how = f" ({self._how_it_ended()})" if code is not None and code < 0 else ""
        return EngineError(f"llama.cpp could not load {self.settings.model}{how}{self._last_words()}")

    def _how_it_ended(self) -> str:
        code = self._child.returncode if self._child else None
        if code is None or code >= 0:
            return f"exit status {code}"
        hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"killed by signal {-code}{hint}"

    def _last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""
        lines = log_tail(self.log)
        return f"; its log {self.log} ends: {' | '.join(lines)}" if lines else f"; its log {self.log} is empty"

    def _stop(self) -> None:
        child = self._child
        if child is None:
            return
        self.memory()
        # It holds nothing worth a slow goodbye.
        child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


def log_tail(log: Path, lines: int = _LOG_LINES) -> list[str]:
    """The last `lines` lines of an engine's log, those that llama.cpp marks as errors when there are any."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in found if " E " in line[:16] or line.startswith(("GGML_ASSERT", "terminate called"))]
    return [_TIMESTAMP.sub("", line) for line in (errors or found)[-lines:]]
