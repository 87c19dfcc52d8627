"""The parent's end of the process that looks inside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engine.inside import messages as m
from breakeven.errors import EngineError, NotSupportedError, UserError

_R = TypeVar("_R", bound=m.Reply)
_LAST_LINES = 5
_CLOSE_TIMEOUT_S = 10.0
_GGUF_MAGIC = b"GGUF"

WAIT_SETTINGS: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""How idle OpenMP threads wait, unless the environment says otherwise: spin some microseconds, then sleep.

Without a spin every node pays for waking a thread, which made the small nodes of SmolLM2-135M four times slower; with
GNU OpenMP's own default, one busy neighbour on two cores cost nine tenths of the speed.
"""


def default_threads() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Inside:
    """A GGUF loaded in a child process. A context manager; the child also ends when this process does.

    Use it in the thread that made it, or one that outlives it: the kernel ties the child to that thread.
    """

    def __init__(self, model: Path, threads: int | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Start the child and load `model`; `environment` is added to this process's own.

        Raises UserError for a file that is not GGUF, NotSupportedError for a library whose layout is not the known
        one, EngineError with the child's last lines when it dies.
        """
        self.model = _checked(model)
        self._scratch = tempfile.TemporaryDirectory(prefix="breakeven-inside-")
        self.folder = Path(self._scratch.name)
        self._log = (self.folder / "stderr").open("wb")
        environment = {**WAIT_SETTINGS, **os.environ, **(environment or {})}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "breakeven.engine.inside.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        try:
            self.loaded = self.ask(
                m.Load(
                    model=str(self.model),
                    threads=threads or default_threads(),
                    folder=str(self.folder),
                    parent_pid=os.getpid(),
                ),
                m.Loaded,
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def ask(self, request: m.Request, expected: type[_R]) -> _R:
        """One request, one reply of the type expected. Raises NotSupportedError or EngineError."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(msgspec.json.encode(request) + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise EngineError(self._obituary())
        reply = msgspec.json.decode(line, type=m.Reply)
        if isinstance(reply, m.Failed):
            if not reply.supported:
                raise NotSupportedError(reply.text)
            raise EngineError("; ".join([reply.text, *self._last_lines()]))
        if not isinstance(reply, expected):
            raise EngineError(f"llama.cpp's process answered {type(reply).__name__} to {type(request).__name__}")
        return reply

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in the model's own vocabulary."""
        return self.ask(m.Tokenize(text=text), m.Tokens).ids

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (tokens, vocabulary) after each token, all computed in one batch."""
        self.ask(m.Logits(tokens=list(tokens)), m.Done)
        logits: NDArray[np.float32] = np.load(self.folder / "logits.npy")
        return logits

    def greedy(self, tokens: Sequence[int], n: int) -> list[int]:
        """The `n` tokens that follow when the likeliest is taken each time."""
        return self.ask(m.Greedy(tokens=list(tokens), n=n), m.Tokens).ids

    def close(self) -> None:
        """End the child and remove its files. Safe to call twice."""
        if self._child.stdin is not None and not self._child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
            # Nothing it holds is worth waiting for, and freeing gigabytes takes time.
            self._child.kill()
            self._child.wait(_CLOSE_TIMEOUT_S)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._log.close()
        self._scratch.cleanup()

    def _last_lines(self) -> list[str]:
        text = (self.folder / "stderr").read_text(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]

    def _obituary(self) -> str:
        status = self._child.wait(_CLOSE_TIMEOUT_S)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = "; ".join(self._last_lines()) or "it printed nothing"
        return f"llama.cpp's process {how} while looking inside {self.model.name}: {said}"


def _checked(model: Path) -> Path:
    """The path, if a GGUF file is there."""
    try:
        with model.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise UserError(f"{model}: cannot be read ({error.strerror}); give the path of a .gguf file") from None
    if magic != _GGUF_MAGIC:
        raise UserError(f"{model} is not a GGUF file (it begins with {magic!r}); give the path of a .gguf file")
    return model
