"""Look inside a GGUF: where a step's time goes, how fast a bare decode loop runs, which experts a text reaches.

The model runs in a child process of its own (`inside/child.py`); this is the parent's end of it, and what is asked.

Legend: L layers that route, T tokens, K experts a token.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside import child as m
from breakeven.engines.inside.observe import COMBINATION, EXPERTS, KINDS, ROUTER
from breakeven.engines.inside.summary import Traced
from breakeven.engines.keeper import log_lines, with_spin
from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.hardware.reader import available_threads
from breakeven.results.comparison import NodeProfile, NodeTime

_R = TypeVar("_R", bound=msgspec.Struct)
ALL_LAYERS = -1
"""On the GPU, where the build has one."""
_LAST_LINES = 5
_LOG_TAIL_BYTES = 65_536
_CLOSE_TIMEOUT_S = 10.0
_GGUF_MAGIC = b"GGUF"

OnStep = Callable[[str, float], None]
"""What is under way, such as "loading", and how much of it is done: a share. Told once a second."""


class TooLongError(EngineError):
    """Looking inside took longer than it may."""


class ChildProcess:
    """A process of ours that answers requests. A context manager; the child also ends when this process does.

    Use it in the thread that made it, or one that outlives it: the kernel ties the child to that thread.
    """

    def __init__(
        self,
        module: str,
        subject: str,
        replies: Any,
        environment: Mapping[str, str] | None = None,
        *,
        limit_s: float | None = None,
        on_step: OnStep = lambda what, share: None,
    ) -> None:
        """Start `module`, which works on `subject` and whose replies are of the type `replies`.

        `environment` is added to this process's. `limit_s`: the child is ended after so long, which raises
        TooLongError.
        """
        self._subject, self._replies = subject, replies
        self._limit_s, self._on_step, self._late = limit_s, on_step, False
        self._scratch = tempfile.TemporaryDirectory(prefix="breakeven-inside-")
        self.folder = Path(self._scratch.name)
        self._log = (self.folder / "stderr").open("wb")
        environment = with_spin({**os.environ, **(environment or {})})
        self._child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._clock: threading.Timer | None = None
        if limit_s is not None:
            self._clock = threading.Timer(limit_s, self._end_late)
            self._clock.daemon = True
            self._clock.start()

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

    def ask(self, request: msgspec.Struct, expected: type[_R]) -> _R:
        """One request, one reply of the type expected. Raises NotSupportedError or EngineError."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(msgspec.json.encode(request) + b"\n")
            self._child.stdin.flush()
        reply: msgspec.Struct = m.Doing(what="", share=0.0)
        while isinstance(reply, m.Doing):
            line = self._child.stdout.readline()
            if not line and self._late:
                raise TooLongError(f"looking inside {self._subject} took longer than {self._limit_s:.0f} s")
            if not line:
                raise EngineError(self._obituary())
            reply = msgspec.json.decode(line, type=self._replies)
            if isinstance(reply, m.Doing):
                self._on_step(reply.what, reply.share)
        if isinstance(reply, m.Unable):
            if not reply.supported:
                raise NotSupportedError(reply.text)
            raise EngineError("; ".join([reply.text, *self._last_lines()]))
        if not isinstance(reply, expected):
            said = f"{type(reply).__name__} to {type(request).__name__}"
            raise EngineError(f"the process for {self._subject} answered {said}")
        return reply

    def _end_late(self) -> None:
        self._late = True
        self._child.kill()

    def close(self) -> None:
        """End the child and remove its files. Safe to call twice."""
        if self._clock is not None:
            self._clock.cancel()
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
        return log_lines(self.folder / "stderr", _LOG_TAIL_BYTES)[-_LAST_LINES:]

    def _obituary(self) -> str:
        status = self._child.wait(_CLOSE_TIMEOUT_S)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = "; ".join(self._last_lines()) or "it printed nothing"
        return f"the process for {self._subject} {how}: {said}"


class Inside(ChildProcess):
    """A GGUF loaded in a child process."""

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        mtp: bool = False,
        gpu_layers: int = ALL_LAYERS,
        vocab_only: bool = False,
        limit_s: float | None = None,
        on_step: OnStep = lambda what, share: None,
    ) -> None:
        """Start the child and load `model`, with drafting blocks if asked; `vocab_only`: it can only tokenize.

        `vocab_only`: without weights, so that it can only tokenize. `environment`, `limit_s`: as of any child.
        Raises UserError for a file that is not GGUF, NotSupportedError for a
        library whose layout is not the known one, EngineError with the child's last lines when it dies, and
        TooLongError.
        """
        self.model = checked_gguf(model)
        super().__init__(
            "breakeven.engines.inside.child", model.name, m.Reply, environment, limit_s=limit_s, on_step=on_step
        )
        try:
            self.loaded = self.ask(
                m.LoadFile(
                    model=str(self.model),
                    threads=threads or available_threads(),
                    folder=str(self.folder),
                    parent_pid=os.getpid(),
                    mtp=mtp,
                    gpu_layers=gpu_layers,
                    vocab_only=vocab_only,
                ),
                m.LoadedFile,
            )
        except BaseException:
            self.close()
            raise

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text in the model's own vocabulary; special tokens in it are their letters unless asked."""
        return self.ask(m.Tokenize(text=text, parse_special=parse_special), m.Tokens).ids

    def logits(self, tokens: Sequence[int], *, exact: bool = False) -> NDArray[np.float32]:
        """Logits (tokens, vocabulary) after each token, all computed in one batch; `exact`: attention in F32."""
        self.ask(m.Logits(tokens=list(tokens), exact=exact), m.Done)
        logits: NDArray[np.float32] = np.load(self.folder / "logits.npy")
        return logits

    def greedy(self, tokens: Sequence[int], n: int) -> list[int]:
        """The `n` tokens that follow when the likeliest is taken each time."""
        return self.ask(m.Greedy(tokens=list(tokens), n=n), m.Tokens).ids


def checked_gguf(model: Path) -> Path:
    """The path, if a GGUF file is there."""
    try:
        with model.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise UserError(f"{model}: cannot be read ({error.strerror}); give the path of a .gguf file") from None
    if magic != _GGUF_MAGIC:
        raise UserError(f"{model} is not a GGUF file (it begins with {magic!r}); give the path of a .gguf file")
    return model


Phase = Literal["decode", "prefill"]

# Decode needs many short steps for a steady median; one prefill step is long and steady.
DECODE_STEPS = 32
PREFILL_STEPS = 4
_UNTIMED_STEPS = 2


def profile(
    model: Path,
    *,
    phase: Phase = "decode",
    prompt_tokens: int = 128,
    steps: int | None = None,
    threads: int | None = None,
    name: str | None = None,
    seed: int = 0,
    gpu_layers: int = ALL_LAYERS,
    limit_s: float | None = None,
    on_step: OnStep = lambda what, share: None,
) -> NodeProfile:
    """Median time of each kind of node in one step, of one stream decoding or of a prompt being read.

    The tokens are drawn evenly from the vocabulary: speed does not depend on what they say, and distinct ones reach
    as many experts as a text can. `limit_s`, `on_step`: as for `Inside`. Raises UserError for numbers below 1.
    """
    steps = (DECODE_STEPS if phase == "decode" else PREFILL_STEPS) if steps is None else steps
    if prompt_tokens < 1 or steps < 1:
        raise UserError(f"a profile needs at least 1 prompt token and 1 step, not {prompt_tokens} and {steps}")
    with Inside(model, threads, gpu_layers=gpu_layers, limit_s=limit_s, on_step=on_step) as inside:
        n = prompt_tokens + (steps + _UNTIMED_STEPS if phase == "decode" else 0)
        tokens = random_tokens(inside.loaded.n_vocab, n, seed)
        timed = inside.ask(m.Time(phase=phase, tokens=tokens, steps=steps), m.Timed)
    return NodeProfile(
        model=name or model.stem,
        phase=phase,
        tokens=1 if phase == "decode" else prompt_tokens,
        nodes=[NodeTime(kind, timed.seconds[kind]) for kind in KINDS if kind in timed.seconds],
        router_share_of_moe_block=router_share(timed.seconds),
        observing_overhead=timed.observed_step_s / timed.plain_step_s - 1,
    )


def router_share(seconds: Mapping[str, float]) -> float | None:
    """The router's part of the MoE block's time; None for a dense model.

    router / (router + expert products + combination), shared experts counted with the expert products: the quantity
    of section 5.6 of arXiv 2606.21428.
    """
    block = sum(seconds.get(kind, 0.0) for kind in (ROUTER, EXPERTS, COMBINATION))
    return seconds.get(ROUTER, 0.0) / block if block else None


def bare_decode_rate(
    model: Path,
    *,
    prompt_tokens: int = 128,
    output_tokens: int = 64,
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
    seed: int = 0,
) -> float:
    """Tokens per second of a loop that only calls `llama_decode`: no sampling, no server, one stream.

    `environment` is added to the child's, to run it with the same OpenMP settings as what it is compared with.
    """
    if prompt_tokens < 1 or output_tokens < 1:
        raise UserError(f"a rate needs at least 1 prompt and 1 output token, not {prompt_tokens} and {output_tokens}")
    with Inside(model, threads, environment) as inside:
        tokens = random_tokens(inside.loaded.n_vocab, prompt_tokens + output_tokens, seed)
        rated = inside.ask(m.Rate(prompt=tokens[:prompt_tokens], tokens=tokens[prompt_tokens:]), m.Rated)
    return len(rated.steps_s) / sum(rated.steps_s)


def random_tokens(n_vocab: int, n: int, seed: int) -> list[int]:
    """`n` token ids drawn evenly, the same for the same seed."""
    rng = random.Random(f"profile-tokens-{seed}")
    return [rng.randrange(n_vocab) for _ in range(n)]


MAX_TOKENS = 2048
_BATCH = 64


def _parts(text: str | Sequence[int] | Sequence[str]) -> list[str | list[int]]:
    """The sequences of one label."""
    if isinstance(text, str):
        return [text]
    ids = [part for part in text if not isinstance(part, str)]
    return [ids] if ids else [part for part in text if isinstance(part, str)]


def trace(
    model: Path,
    texts: Mapping[str, str | Sequence[int] | Sequence[str]],
    *,
    threads: int | None = None,
    max_tokens: int = MAX_TOKENS,
    name: str | None = None,
    gpu_layers: int = ALL_LAYERS,
    limit_s: float | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Traced:
    """Run each text through a GGUF and keep the experts every layer chose for every token.

    texts: label to text, to token ids, or to several texts. Each text runs as its own sequence; those of one label are
    cut at `max_tokens` in all, and told together.
    `limit_s`, `on_step`: as for `Inside`. Raises NotSupportedError for a dense model, UserError for an empty text.
    """
    if not texts:
        raise UserError("no text to trace: give at least one with --text FILE")
    with Inside(model, threads, gpu_layers=gpu_layers, limit_s=limit_s, on_step=on_step) as inside:
        loaded = inside.loaded
        if loaded.n_experts == 0:
            raise NotSupportedError(
                f"{model.name} is a dense model ({loaded.architecture}, no experts), so nothing is routed; "
                "`breakeven profile` shows where its time goes"
            )
        sequences: list[list[int]] = []
        truncated: list[str] = []
        of_label: dict[str, list[int]] = {}
        for label, text in texts.items():
            mine = of_label[label] = []
            left = max_tokens
            for part in _parts(text):
                tokens = inside.tokenize(part) if isinstance(part, str) else list(part)
                if len(tokens) > left and label not in truncated:
                    truncated.append(label)
                if tokens and left:
                    mine.append(len(sequences))
                    sequences.append(tokens[:left])
                    left -= len(sequences[-1])
                elif tokens:
                    break
            if not mine:
                raise UserError(f"{label}: the text has no tokens")
        routed = inside.ask(m.Trace(sequences=sequences, batch=_BATCH), m.Routed)
        ids = {
            label: np.concatenate([np.load(inside.folder / f"ids-{index}.npy") for index in mine], axis=1)
            for label, mine in of_label.items()
        }
    return Traced(
        model=name or model.stem,
        layers=tuple(routed.layers),
        n_experts=loaded.n_experts,
        n_experts_per_token=next(iter(ids.values())).shape[2],
        ids=ids,
        truncated=tuple(truncated),
        observing_overhead=routed.observing_overhead,
    )
