"""What the scheduler decides is carried out: real engines started, watched and stopped, a thread for each.

A thread, because starting blocks for as long as a model loads, and because on Linux an engine's process ends with the
thread that started it: whatever becomes of us, no engine is left behind. No shell is involved, and an engine gets to
see of our environment what it needs to run, and no key of anybody's (`scrubbed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psutil

from breakeven.engines.backend import open_url
from breakeven.engines.source import parse_source
from breakeven.engines.start import Running, kv_type, start, weights_of
from breakeven.errors import BreakevenError, EngineError
from breakeven.gateway.plan.model import BackendPlan
from breakeven.hardware.placement import AUTO

NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SHELL"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
        *("CUDA_HOME", "CUDA_PATH", "CC", "CXX"),
    }
)
PREFIXES = (
    *("LC_", "XDG_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "GGML_", "LLAMA_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "ONEAPI_", "ZE_", "VLLM_", "TORCH_", "TRITON_"),
    *("HF_HOME", "HF_HUB_", "HUGGINGFACE_HUB_", "TRANSFORMERS_"),
)
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH")
"""Words that no name handed down may hold, whatever it begins with."""


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables an engine is given: those named here, without any whose name speaks of a secret."""
    return {
        name: value
        for name, value in environment.items()
        if (name in NAMES or name.startswith(PREFIXES)) and not any(word in name.upper() for word in SECRET)
    }


ASKED_FOR_A_KEY = ("/v1/completions", "/completion", "/invocations")
"""Where engines generate: all of them, llama.cpp, and vLLM, which asks for its key below /v1 alone."""
ALIVE_S = 0.25
"""Between two looks at whether an engine's process is still there."""
HEALTH_S = 5.0
"""Between two questions for its health."""
DEAF = 3
"""Unanswered questions in a row after which an engine that is there counts as dead; a busy machine misses one."""
WRITING = 0.5
"""Share of the progress shown that writing synthetic weights takes, where they have to be written first."""


@dataclass(frozen=True, slots=True)
class EngineLoaded:
    """It answers on `port` of loopback, `load_s` seconds after its start, with `bytes` of memory (None: not told).

    `open_at`: a path at which it answers whoever does not know its key; empty: none. `pid`: of the process that was
    started, below which others may do the work. `weights`: the file that it reads; None: it reads a directory.
    """

    name: str
    port: int
    load_s: float
    bytes: int | None
    open_at: str = ""
    pid: int | None = None
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineMeasured:
    """It holds this much memory now."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """It did not load, or died; `reason` is one line."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class EngineUnloaded:
    """It has been stopped."""

    name: str


Event = EngineLoaded | EngineMeasured | EngineFailed | EngineUnloaded


class Effects(Protocol):
    """What the scheduler's decisions do to the world. Every call returns at once; events tell what came of it."""

    def load(self, backend: BackendPlan, threads: int) -> None:
        """Start this backend's engine; `EngineLoaded` or `EngineFailed` follows."""

    def unload(self, name: str) -> None:
        """Stop it; `EngineUnloaded` follows."""

    def progress(self, name: str) -> float | None:
        """Share of its weights written, 0 to 1; None when there is nothing to write."""

    async def close(self, timeout_s: float) -> None:
        """Stop all; no event follows."""


class _StoppedError(Exception):
    """The engine is not wanted any more."""


class _Keeper(threading.Thread):
    """Starts one engine, watches it, and stops it."""

    def __init__(
        self, backend: BackendPlan, threads: int, log: Path, tell: Callable[[Event], None], key: str | None
    ) -> None:
        # A daemon: should an engine hang while it loads, it must not keep this process from ending, which ends it.
        super().__init__(name=f"engine {backend.name}", daemon=True)
        self.backend, self.threads, self.log, self.tell, self.key = backend, threads, log, tell, key
        self.stop = threading.Event()
        self.written: float | None = None

    def run(self) -> None:
        """From start to stop; exactly one `EngineFailed` or `EngineUnloaded` comes last."""
        name = self.backend.name
        try:
            with ExitStack() as stack:
                self._watch(self._start(stack))
        except _StoppedError:
            pass
        except (BreakevenError, OSError) as error:
            if not self.stop.is_set():
                self.tell(EngineFailed(name, str(error)))
                return
        except Exception as error:
            self.tell(EngineFailed(name, f"{type(error).__name__}: {error}"))
            raise
        self.tell(EngineUnloaded(name))

    def _start(self, stack: ExitStack) -> Running:
        plan = self.backend.local
        assert plan is not None
        source = parse_source(plan.model)
        path = weights_of(source, plan.format, 0, self._written, engine=plan.engine)
        self.written = None
        self._check_wanted()
        running = start(
            stack,
            replace(source, name=self.backend.served_model or self.backend.name),
            path,
            context=plan.context,
            slots=plan.slots,
            log=self.log,
            threads=self.threads,
            engine=plan.engine,
            share_prefixes=True,
            embeddings="/v1/embeddings" in self.backend.endpoints,
            kv=kv_type([source], plan.engine, plan.kv),
            environment=scrubbed(os.environ),
            placement=plan.placement or AUTO,
            arguments=plan.arguments,
            key=self.key,
        )
        self._check_wanted()
        port = urlsplit(running.backend.url).port
        if port is None:
            raise EngineError(f"{self.backend.name} says it listens at {running.backend.url}, which has no port")
        open_at = answers_strangers(running.backend.url)
        backend = running.backend
        self.tell(
            EngineLoaded(
                self.backend.name, port, backend.load_s or 0.0, _held(running), open_at, backend.pid, running.path
            )
        )
        return running

    def _watch(self, running: Running) -> None:
        """Until it is told to stop. Raises EngineError when the engine dies."""
        deaf, asked_s = 0, time.monotonic()
        while not self.stop.wait(ALIVE_S):
            if not _lives(running):
                running.alive()  # says how it ended
                raise EngineError(f"{self.backend.name} ended")
            if time.monotonic() - asked_s < HEALTH_S:
                continue
            try:
                running.alive()
                deaf = 0
            except EngineError:
                deaf += 1
                if deaf >= DEAF:
                    raise
            asked_s = time.monotonic()
            if (held := _held(running)) is not None:
                self.tell(EngineMeasured(self.backend.name, held))

    def _written(self, done: int, total: int) -> None:
        self._check_wanted()
        self.written = done / total if total else None

    def _check_wanted(self) -> None:
        if self.stop.is_set():
            raise _StoppedError


class Engines:
    """`Effects` on real engines. Made and called on the loop; `on_event` is called there too.

    `logs`: the directory of the engines' own output, a file a backend. `key_of`: by a backend's name, the key that its
    engine asks for.
    """

    def __init__(
        self, logs: Path, on_event: Callable[[Event], None], key_of: Callable[[str], str | None] = lambda _: None
    ) -> None:
        self._logs, self._on_event, self._key_of = logs, on_event, key_of
        self._loop = asyncio.get_running_loop()
        self._keepers: dict[str, _Keeper] = {}
        self._closed = False

    def load(self, backend: BackendPlan, threads: int) -> None:
        """Start this backend's engine; `EngineLoaded` or `EngineFailed` follows."""
        log = self._logs / f"{_file_name(backend.name)}.log"
        keeper = _Keeper(backend, threads, log, self._tell, self._key_of(backend.name))
        self._keepers[backend.name] = keeper
        try:
            keeper.start()
        except RuntimeError as error:  # no room for another thread: this engine fails, the others go on
            self._loop.call_soon(self._hear, EngineFailed(backend.name, str(error)))

    def unload(self, name: str) -> None:
        """Stop it; `EngineUnloaded` follows."""
        self._keepers[name].stop.set()

    def progress(self, name: str) -> float | None:
        """Share of its weights written, 0 to 1; None when there is nothing to write."""
        keeper = self._keepers.get(name)
        return keeper.written if keeper else None

    async def close(self, timeout_s: float = 20.0) -> None:
        """Stop all; no event follows. Those that do not stop in time end with this process."""
        self._closed = True
        keepers = [keeper for keeper in self._keepers.values() if keeper.is_alive()]
        for keeper in keepers:
            keeper.stop.set()
        ends_s = time.monotonic() + timeout_s
        for keeper in keepers:
            await asyncio.to_thread(keeper.join, max(0.0, ends_s - time.monotonic()))

    def _tell(self, event: Event) -> None:
        """From an engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, event)

    def _hear(self, event: Event) -> None:
        if not self._closed:
            self._on_event(event)


def answers_strangers(url: str) -> str:
    """The first path at which a server here asks for no key; empty: there is none. What it is sent asks for nothing."""
    for path in ASKED_FOR_A_KEY:
        request = urllib.request.Request(f"{url}{path}", b"{}", {"Content-Type": "application/json"})
        try:
            with open_url(request, timeout_s=HEALTH_S):
                return path
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in (401, 403, 404, 405):
                    return path
        except (OSError, HTTPException):
            continue
    return ""


def _lives(running: Running) -> bool:
    """Its process is there, and is no zombie."""
    try:
        return running.backend.pid is not None and psutil.Process(running.backend.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _held(running: Running) -> int | None:
    """Bytes that the system cannot take back from it. The mapped weight file it can, and gets them when it must."""
    memory = running.backend.memory()
    return memory.anonymous_bytes if memory else None


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip(".") or "engine"
