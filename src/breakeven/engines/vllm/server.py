"""Where vLLM is: the command that runs it, from what the user named or what the environment has.

What vLLM's log says: the lines that explain an end, and the settings it reports.

A vLLM server as a resource: it is up inside the `with` block and all its processes are gone after it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Literal

from breakeven.engines.backend import VLLM, Backend, MemoryUse, open_url, tree_memory
from breakeven.engines.vllm import keeper
from breakeven.errors import EngineError, UserError

VARIABLE = "BREAKEVEN_VLLM"
"""Environment variable that may name a Python interpreter that has vLLM, or a `vllm` executable."""

_MODULE = ("-m", "vllm.entrypoints.cli.main")


def find_vllm() -> list[str]:
    """The command line that stands for `vllm`.

    In this order: what BREAKEVEN_VLLM names, the module `vllm` of this interpreter, the executable `vllm` on the
    PATH. Raises UserError when there is none.
    """
    if named := os.environ.get(VARIABLE):
        found = shutil.which(str(Path(named).expanduser()))
        if found is None:
            raise UserError(f"{VARIABLE} is {named}, which is no executable; name a Python interpreter or a vllm")
        return [found, *_MODULE] if Path(named).name.startswith("python") else [found]
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin is not None:  # a mere folder called vllm has no origin
        return [sys.executable, *_MODULE]
    if executable := shutil.which("vllm"):
        return [executable]
    raise UserError(
        "vLLM is not here; install it into this environment (pip install vllm), put vllm on the PATH, "
        f"or name its Python interpreter in {VARIABLE}"
    )


_LINES = 4
_TAIL_BYTES = 262_144
_LINE_CHARACTERS = 300
_PREFIX = re.compile(r"^(\(\w[\w-]* pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d [\d:]+ )?(\[[\w.]+:\d+\] ?)?\s*")
_TELLING = re.compile(r"^(Fatal Python error|Value error,|(\w+\.)*\w*(Error|Exception): |error: |vllm: error)")
_NEXT_STEP = {
    "Illegal instruction": "this build uses instructions this processor does not run; "
    "give other settings in BREAKEVEN_VLLM_ARGS, such as --dtype float32",
    "No package metadata was found for vllm": "the build has no package metadata under the name vllm; "
    "install one that has",
    "Failed to infer device type": "the build finds no device it is made for; install a build for this machine",
}
"""What to do about errors whose own text does not tell."""

_REPORTED = {
    "device": re.compile(r"\bdevice_config=(\w+)"),
    "dtype": re.compile(r"\bdtype=(?:torch\.)?(\w+)"),
    "max_model_len": re.compile(r"\bmax_seq_len=(\d+)"),
    "prompt_cache": re.compile(r"\benable_prefix_caching=(\w+)"),
    "quantization": re.compile(r"\bquantization=(\w+)"),
    "enforce_eager": re.compile(r"\benforce_eager=(\w+)"),
}
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def last_words(log: Path) -> str:
    """The last log lines that matter, as the tail of an error's one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    found = [line for line in (_PREFIX.sub("", line).strip() for line in text.splitlines()) if line]
    if not found:
        return f"; its log {log} is empty"
    telling = [line[:_LINE_CHARACTERS] for line in found if _TELLING.match(line)]
    lines = list(dict.fromkeys(telling))[:_LINES] or [line[:_LINE_CHARACTERS] for line in found[-_LINES:]]
    advice = next((f"; {advice}" for words, advice in _NEXT_STEP.items() if words in text), "")
    return f"; its log {log} says: {' | '.join(lines)}{advice}"


def reported(log: Path) -> dict[str, str]:
    """Settings as the engine core reports them in its first line, and how many tokens its KV cache holds.

    A setting that the version does not report is left out.
    """
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return {}
    line = next((line for line in text.splitlines() if "Initializing a V1 LLM engine" in line), "")
    words = {"True": "on", "False": "off"}
    matches = {name: pattern.search(line) for name, pattern in _REPORTED.items()}
    found = {name: words.get(match[1], match[1]) for name, match in matches.items() if match}
    if tokens := _KV_TOKENS.search(text):
        found["kv_cache_tokens"] = tokens[1].replace(",", "")
    return found


ARGUMENTS = "BREAKEVEN_VLLM_ARGS"
"""Environment variable with further flags for `vllm serve`; the last of a repeated flag counts."""

_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 15.0
_FIRST_TOKEN_TIMEOUT_S = 300.0


class VllmServer:
    """Context manager: starts `vllm serve` on one model directory and gives its `Backend`.

    `context` is tokens a sequence (--max-model-len), `slots` sequences at once (--max-num-seqs). `load_format` "dummy"
    needs no weights in `model`. `prefix_caching` keeps the keys and values of earlier prompts; off, every request
    starts cold. `kv_cache_gib` is the size of the cache of a CPU build, which takes VLLM_CPU_KVCACHE_SPACE first.
    `threads`: OpenMP threads of a CPU build; None leaves vLLM's own binding, which keeps one core for the API server.
    `arguments` come after ours and those in BREAKEVEN_VLLM_ARGS after all. `environment` replaces what this process
    would hand down.

    Enter it from a thread that outlives it (the main thread): on Linux vLLM is ended when the thread that started it
    ends. Raises UserError for settings that cannot be or no vLLM, EngineError (with the log's last words that matter)
    when it does not start or cannot complete one token.
    """

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        threads: int | None = None,
        dtype: str = "auto",
        load_format: Literal["auto", "dummy"] = "auto",
        prefix_caching: bool = False,
        kv_cache_gib: int = 1,
        wait_policy: Literal["active", "passive"] | None = None,
        name: str | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = 1800.0,
    ) -> None:
        for what, number in {"context": context, "slots": slots, "kv_cache_gib": kv_cache_gib}.items():
            if number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; give 1 or more")
        self.model = model
        self.name = name or model.name
        self.log = log
        caching = "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching"
        self.flags: list[str] = [
            *("--max-model-len", str(context), "--max-num-seqs", str(slots), "--dtype", dtype),
            *("--load-format", load_format, caching, "--disable-uvicorn-access-log"),
            *arguments,
        ]
        self.environment = {"PYTHONFAULTHANDLER": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gib))
        if threads is not None:
            self.environment |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if wait_policy:
            # The two OpenMP runtimes vLLM may run on ask for different names.
            self.environment |= {"OMP_WAIT_POLICY": wait_policy.upper()}
            self.environment |= {"KMP_BLOCKTIME": "0" if wait_policy == "passive" else "infinite"}
        self._inherited = environment
        self._slots, self._context = slots, context
        self._ready_timeout_s = ready_timeout_s
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._url: str | None = None
        self._last_memory: MemoryUse | None = None

    def __enter__(self) -> Backend:
        if not self.model.exists():
            raise UserError(f"{self.model} does not exist; give the directory of a Hugging Face model")
        command = find_vllm()
        flags = [*self.flags, *_further_flags()]
        started = time.monotonic()
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        try:
            self._spawn(command, ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.name, *flags])
            self._wait_healthy(url, started)
            load_s = time.monotonic() - started
            self._complete_one(url)
        except BaseException:
            self._stop()
            raise
        self._url = url
        return Backend(url, self.name, None, self._settings(url, command, flags), self._pid, load_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def memory(self) -> MemoryUse | None:
        """Memory of all of vLLM's processes together, now or as it was when they were stopped; None before."""
        if self._pid is not None:
            self._last_memory = tree_memory(self._pid) or self._last_memory
        return self._last_memory

    def check_alive(self) -> None:
        """Raise EngineError, with vLLM's last words, when it has ended or no longer answers."""
        self._raise_if_ended()
        if self._url is None:
            return
        try:
            with open_url(f"{self._url}/health", timeout_s=_HEALTH_TIMEOUT_S):
                return
        except (OSError, HTTPException, ValueError):
            self._await_end()
            self._raise_if_ended()
            raise EngineError(f"vLLM no longer answers for {self.name}{last_words(self.log)}") from None

    def _settings(self, url: str, command: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
        """What repeats the run. Dtype, device and length are as vLLM reports them, not as they were asked for."""
        return {
            "engine": VLLM,
            "build": f"vllm {_version(url)}",
            "command": " ".join([Path(command[0]).name, *command[1:], "serve"]),
            "flags": shlex.join(flags),
            "environment": " ".join(f"{key}={value}" for key, value in sorted(self.environment.items())),
            "served_model": self.name,
            "slots": str(self._slots),
            "context_per_slot": str(self._context),
            **reported(self.log),
        }

    def _spawn(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        read_fd, write_fd = os.pipe()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                self._keeper = subprocess.Popen(
                    # Isolated: what PYTHONPATH holds is for vLLM.
                    [
                        *(sys.executable, "-I", keeper.__file__, str(write_fd)),
                        *(*command, "serve", str(self.model), *arguments),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_fd,),
                    env={**(os.environ if self._inherited is None else self._inherited), **self.environment},
                    start_new_session=True,  # Ctrl-C is for us to handle; we then stop vLLM
                )
        except OSError as error:
            os.close(read_fd)
            raise EngineError(f"vLLM could not be started: {error}") from error
        finally:
            os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            ready = select.select([pipe], [], [], self._ready_timeout_s)[0]
            told = pipe.read() if ready else ""
        if not told:
            raise EngineError(f"vLLM could not be started with {command[0]}{last_words(self.log)}")
        self._pid = int(told)

    def _wait_healthy(self, url: str, started: float) -> None:
        while True:
            try:
                with open_url(f"{url}/health", timeout_s=_HEALTH_TIMEOUT_S):
                    return
            except (OSError, HTTPException, ValueError):
                self._raise_if_ended()
            if time.monotonic() - started > self._ready_timeout_s:
                waited = f"within {self._ready_timeout_s:.0f} s"
                raise EngineError(f"vLLM did not load {self.model} {waited}{last_words(self.log)}")
            time.sleep(_POLL_S)

    def _complete_one(self, url: str) -> None:
        """Some failures, such as an instruction this processor lacks, show only when a token is computed."""
        body = json.dumps({"model": self.name, "prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": True}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        try:
            with open_url(request, timeout_s=_FIRST_TOKEN_TIMEOUT_S) as response:
                response.read()
        except (OSError, HTTPException, ValueError) as error:
            self._await_end()
            self._raise_if_ended()
            raise EngineError(
                f"vLLM loaded {self.name} but did not complete a token ({error}){last_words(self.log)}"
            ) from None

    def _raise_if_ended(self) -> None:
        if self._keeper is not None and self._keeper.poll() is not None:
            code = self._keeper.returncode
            how = f"killed by signal {code - 128}" if code > 128 else f"exit status {code}"
            raise EngineError(f"vLLM ended while running {self.name} ({how}){last_words(self.log)}")

    def _await_end(self) -> None:
        """Give a server that is ending the time to do so."""
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(timeout=_END_TIMEOUT_S)

    def _stop(self) -> None:
        """Let the keeper end everything; should it fail to, end its process group."""
        if self._keeper is None:
            return
        self.memory()
        if self._keeper.stdin:
            self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._keeper.pid, signal.SIGKILL)
            self._keeper.wait()


def _further_flags() -> list[str]:
    text = os.environ.get(ARGUMENTS, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{ARGUMENTS} cannot be read ({error}); write it as on a command line") from None


def _free_port() -> int:
    """A port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _version(url: str) -> str:
    try:
        with open_url(f"{url}/version", timeout_s=_HEALTH_TIMEOUT_S) as response:
            version = json.load(response).get("version")
    except (OSError, HTTPException, ValueError, AttributeError):
        return "unknown"
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]+", version) else "unknown"
