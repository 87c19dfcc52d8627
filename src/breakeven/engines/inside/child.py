"""The process that looks inside: reads requests on its standard input, answers on its standard output.

It is a process of its own because a library that is not the known one can crash it, and because llama.cpp prints.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside import messages as m
from breakeven.engines.inside.library import Context, Library, Model, library_path
from breakeven.engines.inside.observe import RoutingObserver, TimeObserver
from breakeven.errors import BreakevenError, NotSupportedError

_UNTIMED_STEPS = 2
_PASSES_FOR_COST = 3


class Worker:
    """One loaded model and the requests it answers."""

    def __init__(self, load: m.Load) -> None:
        self._library = Library(library_path())
        self._model = Model(self._library, Path(load.model), load.threads)
        self._folder = Path(load.folder)

    def loaded(self) -> m.Loaded:
        """What the file says of itself."""
        return m.Loaded(
            architecture=self._model.meta("general.architecture") or "unknown",
            n_vocab=self._model.n_vocab,
            n_experts=self._model.architecture_number("expert_count"),
            n_experts_per_token=self._model.architecture_number("expert_used_count"),
        )

    def answer(self, request: m.Request) -> m.Reply:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        match request:
            case m.Tokenize():
                return m.Tokens(ids=self._model.tokenize(request.text))
            case m.Trace():
                return self._trace(request)
            case m.Time():
                return self._time(request)
            case m.Rate():
                return self._rate(request)
            case m.Logits():
                return self._logits(request)
            case m.Greedy():
                return self._greedy(request)
            case m.Load():
                raise NotSupportedError("this process has its model already")

    def _trace(self, request: m.Trace) -> m.Routed:
        observer = RoutingObserver(self._library)
        longest = max(len(sequence) for sequence in request.sequences)
        context = Context(self._model, longest, request.batch, observer)
        plain = Context(self._model, longest, request.batch)
        overhead = self._trace_cost(context, plain, request.sequences[0][: request.batch])
        layers: list[int] = []
        for index, sequence in enumerate(request.sequences):
            observer.batches.clear()
            context.clear()
            for start in range(0, len(sequence), request.batch):
                # Outputs for every token: the last layer drops the tokens whose output nobody asked for.
                context.decode(sequence[start : start + request.batch], start, outputs=True)
            layers = sorted(observer.batches)
            if not layers:
                raise NotSupportedError("no node of this model's graph chooses experts, so there is nothing to trace")
            ids_LTK = np.stack([np.concatenate(observer.batches[layer]) for layer in layers])
            np.save(self._folder / f"ids-{index}.npy", ids_LTK)
        context.close()
        plain.close()
        return m.Routed(layers=layers, observing_overhead=overhead)

    def _trace_cost(self, observed: Context, plain: Context, tokens: list[int]) -> float:
        """Fastest of a few alternating passes over one batch, watched over unwatched, minus one."""
        seconds: dict[Context, list[float]] = {observed: [], plain: []}
        for _ in range(_PASSES_FOR_COST):
            for context in (plain, observed):
                context.clear()
                seconds[context].append(_timed(context, tokens, 0))
        return min(seconds[observed]) / min(seconds[plain]) - 1

    def _time(self, request: m.Time) -> m.Timed:
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
        return m.Timed(
            seconds={kind: statistics.median(each) / 1e9 for kind, each in spent.items()},
            observed_step_s=statistics.median(observed_s),
            plain_step_s=statistics.median(plain_s),
        )

    def _rate(self, request: m.Rate) -> m.Rated:
        context = Context(self._model, len(request.prompt) + len(request.tokens), len(request.prompt))
        context.decode(request.prompt, 0)
        start = len(request.prompt)
        steps_s = [_timed(context, [token], start + index) for index, token in enumerate(request.tokens)]
        context.close()
        return m.Rated(steps_s=steps_s)

    def _logits(self, request: m.Logits) -> m.Done:
        context = Context(self._model, len(request.tokens), len(request.tokens))
        context.decode(request.tokens, 0, outputs=True)
        logits_TV = np.stack([context.logits(index) for index in range(len(request.tokens))])
        context.close()
        np.save(self._folder / "logits.npy", logits_TV)
        return m.Done()

    def _greedy(self, request: m.Greedy) -> m.Tokens:
        context = Context(self._model, len(request.tokens) + request.n, len(request.tokens))
        context.decode(request.tokens, 0)
        ids = [int(context.logits(-1).argmax())]
        while len(ids) < request.n:
            context.decode(ids[-1:], len(request.tokens) + len(ids) - 1)
            ids.append(int(context.logits(-1).argmax()))
        context.close()
        return m.Tokens(ids=ids)


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


def main() -> None:
    """Serve requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _replies_only()
    worker: Worker | None = None
    for line in sys.stdin.buffer:
        reply: m.Reply
        try:
            request = msgspec.json.decode(line, type=m.Request)
            if isinstance(request, m.Load):
                die_with_parent(request.parent_pid)
                worker = Worker(request)
                reply = worker.loaded()
            elif worker is None:
                reply = m.Failed(text="no model is loaded", supported=True)
            else:
                reply = worker.answer(request)
        except BreakevenError as error:
            reply = m.Failed(text=str(error), supported=not isinstance(error, NotSupportedError))
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


if __name__ == "__main__":
    main()
