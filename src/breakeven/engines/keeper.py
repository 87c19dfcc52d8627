"""The parent's end of an engine's process: one keeper for every engine that Breakeven starts.

Spawn, health, the log's last words, death with the parent and the kill of everything that was started are the same for
all. An engine adds what only it knows: its command line, what its log means, and what it reports of itself. A program
that is not ours (vLLM, and whatever else is started by a command line) runs as a `family`; see `engines/family.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from breakeven.engines import family
from breakeven.engines.backend import Backend, MemoryUse, open_url, process_memory, tree_memory
from breakeven.errors import EngineError, UserError, expanded
from breakeven.hardware import system

READY_TIMEOUT_S = 1800.0
_HEALTH_TIMEOUT_S = 10.0
_FIRST_TOKEN_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0
SPIN: Mapping[str, str] = {"GOMP_SPINCOUNT": "10000"}
"""How long the threads of an engine spin while they wait for each other before they sleep: about 0.1 ms (GNU OpenMP
takes 100,000 for a millisecond). Its own default, 3 ms, costs up to nine tenths of the speed beside a busy process.
Sleeping at once (`OMP_WAIT_POLICY=passive`) pays for waking a thread at every node: on two cores small models decoded
at half their speed, and a MoE, which has more nodes, lost more than a dense model."""
_OWN_WORD = ("OMP_WAIT_POLICY", *SPIN)
TAIL_BYTES = 262_144
"""Of a log's end that last words are looked for in."""
_LINE_CHARACTERS = 300


def with_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with how long threads spin, unless it has its own word on how they wait."""
    return {**({} if any(name in environment for name in _OWN_WORD) else SPIN), **environment}


def spin_said(environment: Mapping[str, str]) -> str:
    """How threads wait, as results tell it: "GOMP_SPINCOUNT=10000"."""
    return " ".join(f"{name}={environment[name]}" for name in _OWN_WORD if name in environment)


def threads_wait() -> str:
    """How threads of an engine that is started now wait: part of what a study is, since it decides comparisons."""
    return spin_said(with_spin(os.environ))


class KeptEngine(ABC):
    """An engine in a process of ours: up inside the `with` block and gone after it, whatever happens.

    A kind of engine gives `_bring_up`, which calls `_spawn` or `_spawn_family` and then `_wait_healthy`, and
    `last_words`. Enter it from a thread that outlives it (the main thread): on Linux the child is killed when the
    thread that started it ends.
    """

    title: ClassVar[str]
    """The engine's name in errors."""
    ours: ClassVar[bool] = True
    """False for a server that ran before us and runs on after us: its processes and their memory are not ours."""
    poll_s: ClassVar[float] = 0.1
    """How often a server that loads is asked whether it is there."""
    end_timeout_s: ClassVar[float] = 3.0
    """How long a server that has stopped answering may take to end, so that its end can be told."""

    def __init__(self, name: str, log: Path, ready_timeout_s: float) -> None:
        self.name, self.log = name, log
        self.key: str | None = None
        """Set before it is entered, whoever asks it must know this; how it is told stands with each kind of engine."""
        self._ready_timeout_s = ready_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._family = False
        self._pid: int | None = None
        self._url: str | None = None
        self._started_s = 0.0
        self._last_memory: MemoryUse | None = None

    @abstractmethod
    def _bring_up(self) -> Backend:
        """Start it and wait until it can be used. Raises UserError or EngineError; what was started is then ended."""

    @abstractmethod
    def last_words(self) -> str:
        """The last log lines that matter, as the tail of an error's one line."""

    def __enter__(self) -> Backend:
        try:
            backend = self._bring_up()
        except BaseException:
            self._stop()
            raise
        self._url = backend.url
        return backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stop()

    def memory(self) -> MemoryUse | None:
        """Memory of all of its processes together, now or as it was when they were stopped; None before the start."""
        if self._pid is not None:
            read = tree_memory if self._family else process_memory
            self._last_memory = read(self._pid) or self._last_memory
        return self._last_memory

    def check_alive(self) -> None:
        """Raise EngineError, with the engine's last words, when it has ended or no longer answers.

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
            raise EngineError(f"{self.title} no longer answers for {self.name}{self.last_words()}") from None

    def _spawn(self, module: str, hello: bytes, environment: Mapping[str, str]) -> bytes | None:
        """Start a child written here, hand it `hello`, and return the one message it writes before it serves.

        Empty when it ended without a word, None when `ready_timeout_s` passed. Its standard input stays open: the end
        of it tells the child that we are gone.
        """
        message = self._start([sys.executable, "-m", module], [], hello, environment)
        self._pid = self._child.pid if self._child else None
        return message

    def _spawn_family(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a program that may be a family of processes. Raises EngineError when there is no such program."""
        self._family = True
        # Isolated: what PYTHONPATH holds is for the program.
        told = self._start([sys.executable, "-I", family.__file__], command, b"", environment)
        if not told:
            raise EngineError(f"{self.title} could not be started with {command[0]}{self.last_words()}")
        self._pid = int(told)

    def _start(
        self, before: Sequence[str], after: Sequence[str], hello: bytes, environment: Mapping[str, str]
    ) -> bytes | None:
        """Run `before FD after` with output to the log; what it writes to FD until it closes that."""
        self._started_s = time.monotonic()
        read_fd, write_fd = os.pipe()
        word, passed = system.inherited(write_fd)
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            # Some engines log what they are asked: nobody else's business.
            with open(self.log, "wb", opener=private) as log:
                self._child = subprocess.Popen(
                    [*before, word, *after],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    **passed,  # in a session of its own: Ctrl-C is for us to handle; we then stop the child
                )
        except OSError as error:
            os.close(read_fd)
            raise EngineError(f"{self.title} could not be started: {error}") from error
        finally:
            os.close(write_fd)
        assert self._child.stdin is not None
        if hello:
            try:
                self._child.stdin.write(hello)
                self._child.stdin.flush()
            except OSError:  # it has ended; Windows calls it an invalid argument
                os.close(read_fd)
                return b""
        return system.read_to_end(read_fd, self._ready_timeout_s)

    def _wait_healthy(self, url: str, too_late: str) -> float:
        """Wait until it answers at `url`; seconds since it was started. Raises EngineError, `too_late` if it is."""
        while True:
            try:
                with open_url(f"{url}/health", timeout_s=_HEALTH_TIMEOUT_S):
                    return time.monotonic() - self._started_s
            except (OSError, HTTPException, ValueError):
                self._raise_if_ended()
            if time.monotonic() - self._started_s > self._ready_timeout_s:
                raise EngineError(f"{too_late}{self.last_words()}")
            time.sleep(self.poll_s)

    def _complete_one(
        self,
        url: str,
        *,
        model: str | None = None,
        prompt: str | Sequence[int] = (1, 2, 3),
        timeout_s: float = _FIRST_TOKEN_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Some failures, such as an instruction this processor lacks, show only when a token is computed.

        `model`: what the server calls it, where not by our name. Some load it first, within `timeout_s`.
        """
        asked = {"model": model or self.name, "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        body = json.dumps(asked).encode()
        sent = {"Content-Type": "application/json", **self._key_header(), **(headers or {})}
        request = urllib.request.Request(f"{url}/v1/completions", body, sent)
        try:
            with open_url(request, timeout_s=timeout_s) as response:
                response.read()
        except (OSError, HTTPException, ValueError) as error:
            self._await_end()
            self._raise_if_ended()
            raise EngineError(
                f"{self.title} loaded {self.name} but did not complete a token ({error}){self.last_words()}"
            ) from None

    def _key_header(self) -> dict[str, str]:
        """What every question to it carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def _raise_if_ended(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            how = self._how_it_ended()
            raise EngineError(f"{self.title} ended while running {self.name} ({how}){self.last_words()}")

    def _await_end(self) -> None:
        """Give a server that is ending the time to do so."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=self.end_timeout_s)

    def _signal(self) -> int | None:
        """The signal that ended it, None when none did. A family's head passes it on as a shell does."""
        code = self._child.returncode if self._child else None
        if code is None:
            return None
        if self._family:
            return code - 128 if code > 128 else None
        return -code if code < 0 else None

    def _how_it_ended(self) -> str:
        number = self._signal()
        if number is None:
            return f"exit status {self._child.returncode if self._child else None}"
        # Of a family the system may have killed any one; that its first was killed does not say why.
        memory = number == system.KILLED and not self._family
        return f"killed by signal {number}{', as the system does when memory runs out' if memory else ''}"

    def _stop(self) -> None:
        """End everything that was started. A family's head is let end the others; should it fail to, all are killed."""
        child = self._child
        if child is None:
            return
        self.memory()
        if not self._family:
            # It holds nothing worth a slow goodbye.
            child.kill()
            child.wait()
        if child.stdin:
            child.stdin.close()
        try:
            child.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            system.kill_session(child.pid)
            child.wait()


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, also where it was there before."""
    fd = os.open(path, flags, 0o600)
    if sys.platform != "win32":
        os.fchmod(fd, 0o600)
    return fd


def log_lines(log: Path, most_bytes: int) -> list[str]:
    """The lines in the last `most_bytes` of a log that say something, stripped; none when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def telling_words(
    log: Path, telling: re.Pattern[str], *, prefix: re.Pattern[str] | None = None, most: int = 4, latest: bool = False
) -> str:
    """The lines in a log's end that `telling` finds, else its last ones, as the tail of an error's one line.

    `prefix`: what each line begins with and nobody needs. `most` lines, the first that tell or the `latest`.
    """
    found = [
        line
        for line in (prefix.sub("", line).strip() if prefix else line for line in log_lines(log, TAIL_BYTES))
        if line
    ]
    if not found:
        return f"; its log {log} is empty"
    told = list(dict.fromkeys(line for line in found if telling.search(line)))
    lines = (told[-most:] if latest else told[:most]) or found[-most:]
    return f"; its log {log} says: {' | '.join(line[:_LINE_CHARACTERS] for line in lines)}"


def python_command(title: str, variable: str, module: Sequence[str], words: Sequence[str] = ()) -> list[str]:
    """The command line of an engine that is a Python package, `-m MODULE`, with an executable of its name.

    In this order: what the environment variable names, a Python interpreter or the executable; the package in this
    interpreter; the executable on the PATH. An executable gets `words`. Raises UserError when there is none.
    """
    package = module[-1].partition(".")[0]
    if named := os.environ.get(variable):
        found = shutil.which(str(expanded(named)))
        if found is None:
            raise UserError(f"{variable} is {named}, which is no executable; name a Python interpreter or {package}")
        return [found, *(module if Path(named).name.startswith("python") else words)]
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:  # a mere folder of that name has no origin
        return [sys.executable, *module]
    if executable := shutil.which(package):
        return [executable, *words]
    raise UserError(
        f"{title} is not here; install it into this environment (pip install {package}), put {package} on the PATH, "
        f"or name its Python interpreter in {variable}"
    )


def further_flags(variable: str) -> list[str]:
    """Flags that the user has in an environment variable. Raises UserError for what no shell would read."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise UserError(f"{variable} cannot be read ({error}); write it as on a command line") from None


def free_port() -> int:
    """A port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
