"""The process that looks inside: reads requests on its standard input, answers on its standard output.

It is a process of its own because a library that is not the known one can crash it, and because llama.cpp prints.
Parent and child say one JSON line a message; arrays travel as .npy files in `folder`.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.columns import Weigh, weigh
from breakeven.engines.inside.library import Context, Library, Model, library_path
from breakeven.engines.inside.observe import RoutingObserver, TimeObserver
from breakeven.errors import BreakevenError, NotSupportedError, UserError

_UNTIMED_STEPS = 2
_PASSES_FOR_COST = 3
_SAY_EVERY_S = 1.0


class LoadFile(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """First message: which file, how many threads, where arrays go, whose death to follow; drafting blocks too?

    `gpu_layers`: -1 for all, where this build has a GPU. `vocab_only`: no weights, only `Tokenize` and `Vocabulary`.
    """

    model: str
    threads: int
    folder: str
    parent_pid: int
    mtp: bool = False
    gpu_layers: int = -1
    vocab_only: bool = False


class Tokenize(msgspec.Struct, tag="tokenize", frozen=True, kw_only=True):
    """A text to tokens; special tokens written in it are read as such if asked. Answered by `Tokens`."""

    text: str
    parse_special: bool = False


class Vocabulary(msgspec.Struct, tag="vocabulary", frozen=True, kw_only=True):
    """What llama.cpp takes each token for. Answered by `Attributes`."""


class Trace(msgspec.Struct, tag="trace", frozen=True, kw_only=True):
    """Route these sequences. Answered by `Routed`; ids in ids-<n>.npy."""

    sequences: list[list[int]]
    batch: int


class Time(msgspec.Struct, tag="time", frozen=True, kw_only=True):
    """Time by kind over `steps` steps. Answered by `Timed`."""

    phase: str
    tokens: list[int]
    steps: int


class Rate(msgspec.Struct, tag="rate", frozen=True, kw_only=True):
    """Decode `tokens` one by one after `prompt`. Answered by `Rated`."""

    prompt: list[int]
    tokens: list[int]


class Logits(msgspec.Struct, tag="logits", frozen=True, kw_only=True):
    """Logits after every token, in logits.npy; `exact` as of `Context`. Answered by `Done`."""

    tokens: list[int]
    exact: bool = False


class Greedy(msgspec.Struct, tag="greedy", frozen=True, kw_only=True):
    """The likeliest continuation. Answered by `Tokens`."""

    tokens: list[int]
    n: int


Request = LoadFile | Tokenize | Vocabulary | Trace | Weigh | Time | Rate | Logits | Greedy


class Done(msgspec.Struct, tag="done", frozen=True, kw_only=True):
    """Nothing to tell."""


class LoadedFile(msgspec.Struct, tag="loaded", frozen=True, kw_only=True):
    """What the file says of itself. n_experts is 0 for a dense model, n_positions where its context is not known."""

    architecture: str
    n_vocab: int
    n_experts: int
    n_experts_per_token: int
    n_positions: int = 0


class Tokens(msgspec.Struct, tag="tokens", frozen=True, kw_only=True):
    """Token ids."""

    ids: list[int]


class Attributes(msgspec.Struct, tag="attributes", frozen=True, kw_only=True):
    """`llama_token_attr` of each token, and the tokens put before and behind every text, if any."""

    of: list[int]
    first: int | None
    last: int | None


class Routed(msgspec.Struct, tag="routed", frozen=True, kw_only=True):
    """Which layers route, and what watching them cost: 0.05 is 5 %."""

    layers: list[int]
    observing_overhead: float


class Timed(msgspec.Struct, tag="timed", frozen=True, kw_only=True):
    """Median seconds a step by kind, and medians of whole steps watched and unwatched."""

    seconds: dict[str, float]
    observed_step_s: float
    plain_step_s: float


class Rated(msgspec.Struct, tag="rated", frozen=True, kw_only=True):
    """Seconds of each single-token step, in order."""

    steps_s: list[float]


class Unable(msgspec.Struct, tag="failed", frozen=True, kw_only=True):
    """`supported` false: this build or model cannot do it. Otherwise it went wrong."""

    text: str
    supported: bool


class Doing(msgspec.Struct, tag="doing", frozen=True, kw_only=True):
    """Said now and then before the reply: what is under way, and how much of it is done."""

    what: str
    share: float


Reply = Done | LoadedFile | Tokens | Attributes | Routed | Timed | Rated | Unable | Doing
Say = Callable[[str, float], None]


class Worker:
    """One loaded model and the requests it answers."""

    def __init__(self, load: LoadFile, say: Say) -> None:
        self._library = Library(library_path())
        self._model = Model(
            self._library,
            Path(load.model),
            load.threads,
            mtp=load.mtp,
            gpu_layers=load.gpu_layers,
            vocab_only=load.vocab_only,
            on_share=lambda share: say("loading", share),
        )
        self._folder = Path(load.folder)
        self._say = say

    def loaded(self) -> LoadedFile:
        """What the file says of itself."""
        return LoadedFile(
            architecture=self._model.meta("general.architecture") or "unknown",
            n_vocab=self._model.n_vocab,
            n_experts=self._model.architecture_number("expert_count"),
            n_experts_per_token=self._model.architecture_number("expert_used_count"),
            n_positions=self._model.n_positions,
        )

    def answer(self, request: Request) -> Reply:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        match request:
            case Tokenize():
                return Tokens(ids=self._model.tokenize(request.text, parse_special=request.parse_special))
            case Vocabulary():
                first, last = self._model.added()
                return Attributes(of=self._model.attributes(), first=first, last=last)
            case Trace():
                return self._trace(request)
            case Weigh():
                weigh(self._model, request, self._folder, self._say)
                return Done()
            case Time():
                return self._time(request)
            case Rate():
                return self._rate(request)
            case Logits():
                return self._logits(request)
            case Greedy():
                return self._greedy(request)
            case LoadFile():
                raise NotSupportedError("this process has its model already")

    def _trace(self, request: Trace) -> Routed:
        observer = RoutingObserver(self._library)
        longest = max(len(sequence) for sequence in request.sequences)
        context = Context(self._model, longest, request.batch, observer)
        plain = Context(self._model, longest, request.batch)
        overhead = self._trace_cost(context, plain, request.sequences[0][: request.batch], observer)
        layers: list[int] = []
        done, whole = 0, sum(len(sequence) for sequence in request.sequences)
        for index, sequence in enumerate(request.sequences):
            observer.batches.clear()
            context.clear()
            for start in range(0, len(sequence), request.batch):
                observer.begin_batch()
                # Outputs for every token: the last layer drops the tokens whose output nobody asked for.
                context.decode(sequence[start : start + request.batch], start, outputs=True)
                done += len(sequence[start : start + request.batch])
                self._say("routing", done / whole)
            layers = sorted(observer.batches)
            if not layers:
                raise NotSupportedError("no node of this model's graph chooses experts, so there is nothing to trace")
            ids_LTK = np.stack([np.concatenate(observer.batches[layer]) for layer in layers])
            np.save(self._folder / f"ids-{index}.npy", ids_LTK)
        context.close()
        plain.close()
        return Routed(layers=layers, observing_overhead=overhead)

    def _trace_cost(self, observed: Context, plain: Context, tokens: list[int], observer: RoutingObserver) -> float:
        """Fastest of a few alternating passes over one batch, watched over unwatched, minus one."""
        seconds: dict[Context, list[float]] = {observed: [], plain: []}
        for _ in range(_PASSES_FOR_COST):
            for context in (plain, observed):
                observer.begin_batch()
                context.clear()
                seconds[context].append(_timed(context, tokens, 0))
        return min(seconds[observed]) / min(seconds[plain]) - 1

    def _time(self, request: Time) -> Timed:
        observer = TimeObserver(self._library)
        decode = request.phase == "decode"
        n_prompt = len(request.tokens) - (request.steps + _UNTIMED_STEPS if decode else 0)
        observed = Context(self._model, len(request.tokens), max(n_prompt, 1), observer)
        plain = Context(self._model, len(request.tokens), max(n_prompt, 1))
        if decode:
            for context in (plain, observed):
                context.decode(request.tokens[:n_prompt], 0)
        spent: dict[str, list[int]] = {}
        observed_s: list[float] = []
        plain_s: list[float] = []
        for step in range(request.steps + _UNTIMED_STEPS):
            self._say(request.phase, step / (request.steps + _UNTIMED_STEPS))
            at = n_prompt + step if decode else 0
            tokens = request.tokens[at : at + 1] if decode else request.tokens
            # Alternating which goes first: the second finds the caches warmer.
            for context in (plain, observed) if step % 2 else (observed, plain):
                if not decode:
                    context.clear()
                if context is observed:
                    observer.begin_step(learn=step == 0)
                seconds = _timed(context, tokens, at)
                if step < _UNTIMED_STEPS:
                    continue
                (observed_s if context is observed else plain_s).append(seconds)
                if context is observed:
                    if not observer.complete():
                        raise NotSupportedError("the compute graph changes from step to step; it cannot be profiled")
                    for kind, nanoseconds in observer.spent_ns.items():
                        spent.setdefault(kind, []).append(nanoseconds)
        observed.close()
        plain.close()
        return Timed(
            seconds={kind: statistics.median(each) / 1e9 for kind, each in spent.items()},
            observed_step_s=statistics.median(observed_s),
            plain_step_s=statistics.median(plain_s),
        )

    def _rate(self, request: Rate) -> Rated:
        context = Context(self._model, len(request.prompt) + len(request.tokens), len(request.prompt))
        context.decode(request.prompt, 0)
        start = len(request.prompt)
        steps_s = [_timed(context, [token], start + index) for index, token in enumerate(request.tokens)]
        context.close()
        return Rated(steps_s=steps_s)

    def _logits(self, request: Logits) -> Done:
        context = Context(self._model, len(request.tokens), len(request.tokens), exact=request.exact)
        context.decode(request.tokens, 0, outputs=True)
        logits_TV = np.stack([context.logits(index) for index in range(len(request.tokens))])
        context.close()
        np.save(self._folder / "logits.npy", logits_TV)
        return Done()

    def _greedy(self, request: Greedy) -> Tokens:
        context = Context(self._model, len(request.tokens) + request.n, len(request.tokens))
        context.decode(request.tokens, 0)
        ids = [int(context.logits(-1).argmax())]
        while len(ids) < request.n:
            context.decode(ids[-1:], len(request.tokens) + len(ids) - 1)
            ids.append(int(context.logits(-1).argmax()))
        context.close()
        return Tokens(ids=ids)


def _timed(context: Context, tokens: list[int], position: int) -> float:
    """Seconds one batch takes."""
    started_ns = time.perf_counter_ns()
    context.decode(tokens, position)
    return (time.perf_counter_ns() - started_ns) / 1e9


def _replies_only() -> BinaryIO:
    """Standard output for replies alone: whatever the library prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


class _Sayer:
    """Says what is under way, each thing once a second at most: what is done sooner needs no words."""

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._said_at = time.monotonic()

    def __call__(self, what: str, share: float) -> None:
        if time.monotonic() - self._said_at >= _SAY_EVERY_S:
            self._said_at = time.monotonic()
            write(self._replies, Doing(what=what, share=share))


def write(replies: BinaryIO, reply: msgspec.Struct) -> None:
    """One message to the parent."""
    replies.write(msgspec.json.encode(reply) + b"\n")
    replies.flush()


Answer = Callable[[Any], msgspec.Struct]


def serve(requests: Any, begin: Callable[[Any, Say], tuple[msgspec.Struct, Answer]]) -> None:
    """Serve requests of the type `requests` until standard input ends.

    `begin` takes the first one, which loads, and gives its reply and what answers the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _replies_only()
    say = _Sayer(replies)
    answer: Answer | None = None
    for line in sys.stdin.buffer:
        reply: msgspec.Struct
        try:
            request = msgspec.json.decode(line, type=requests)
            if answer is None:
                reply, answer = begin(request, say)
            else:
                reply = answer(request)
        except BreakevenError as error:
            reply = Unable(text=str(error), supported=not isinstance(error, UserError))
        write(replies, reply)


def _begin(request: Request, say: Say) -> tuple[Reply, Answer]:
    if not isinstance(request, LoadFile):
        raise BreakevenError("no model is loaded")
    die_with_parent(request.parent_pid)
    worker = Worker(request, say)
    return worker.loaded(), worker.answer


def main() -> None:
    """The look inside one model."""
    serve(Request, _begin)


if __name__ == "__main__":
    main()
