"""The process that runs several models over the same tokens and compares their predictions. Child process only.

Logits are read where the engine left them. One pass over a row finds its largest value, the sum of exponentials and
what the next token cost; a pair costs a subtraction and a product more: with d = source's minus model's logits and p
the source's probabilities, KL(p || q) = sum p d - (log sum exp of source - log sum exp of model), whose terms are small
where the models are close, so that single precision is enough to see 1e-7.

Legend: M models, P pairs, T tokens, R rows of a piece, V vocabulary.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, Done, Say, Tokens, serve
from breakeven.engines.inside.library import Context, Library, Model, library_path
from breakeven.errors import BreakevenError, EngineError, NotSupportedError
from breakeven.lab.facts import is_onnx
from breakeven.lab.lockstep import (
    SMALL_BATCH,
    Floats,
    Generate,
    LoadedModel,
    LoadedModels,
    LoadModels,
    LockstepRequest,
    SaidText,
    Scorer,
    ScoreTokens,
    TextOf,
    Timings,
    Tokenized,
    TokenizeFor,
    ToLoad,
    extra_space,
)

_LEAST_POSITIONS = 512
_ROWS_BYTES = 1 << 20
"""Of one model's logits that are worked on at once: what stays in a core's own cache."""


class GgufScorer:
    """A GGUF in llama.cpp."""

    engine = "llama.cpp"

    def __init__(self, model: Model, batch: int, exact: bool = False) -> None:
        self._model, self._batch, self._exact = model, batch, exact
        self.n_vocab, self.n_positions = model.n_vocab, model.n_positions
        self._context: Context | None = None
        self._room = 0

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """As `Scorer` says."""
        return self._model.tokenize(text, special=special)

    def piece(self, token: int) -> bytes:
        """As `Scorer` says."""
        return self._model.piece(token)

    def ends(self, token: int) -> bool:
        """As `Scorer` says."""
        return self._model.ends(token)

    def begin(self, positions: int) -> None:
        """As `Scorer` says. A context is kept while it is large enough."""
        if self._context is not None and positions > self._room:
            self._context.close()
            self._context = None
        if self._context is None:
            self._room = max(_LEAST_POSITIONS, 1 << (positions - 1).bit_length())
            self._context = Context(self._model, self._room, self._batch, exact=self._exact)
        self._context.clear()

    def logits_TV(self, tokens: Sequence[int], position: int) -> Floats:
        """As `Scorer` says."""
        assert self._context is not None, "begin comes first"
        self._context.decode(tokens, position, outputs=True)
        return self._context.logits_in_place(len(tokens))

    def beside(self, batch: int) -> GgufScorer:
        """As `Scorer` says."""
        return GgufScorer(self._model, batch, self._exact)

    def close(self) -> None:
        """As `Scorer` says."""
        if self._context is not None:
            self._context.close()
        self._model.close()


def _gguf_scorer(library: Library, asked: ToLoad, load: LoadModels, say: Say) -> GgufScorer:
    path = Path(asked.path)
    numbers: dict[str, int] = {}
    if asked.used is not None:
        from breakeven.model.readers.gguf_header import read_header

        numbers[f"{read_header(path).architecture}.expert_used_count"] = asked.used
    model = Model(
        library, path, load.threads, numbers=numbers, on_share=lambda share: say(f"loading {path.name}", share)
    )
    return GgufScorer(model, load.batch, load.exact)


def _directory_scorer(asked: ToLoad, threads: int) -> Scorer:
    try:
        if is_onnx(Path(asked.path)):
            if asked.used is not None:
                raise NotSupportedError(f"{Path(asked.path).name} is an ONNX graph, which fixes its experts a token")
            graph: Any = importlib.import_module("breakeven.lab.graph.onnx_scorer").OnnxScorer
            of_graph: Scorer = graph(Path(asked.path), threads)
            return of_graph
        made: Any = importlib.import_module("breakeven.lab.torch_scorer").TorchScorer
        scorer: Scorer = made(Path(asked.path), threads, asked.used)
    except ModuleNotFoundError as error:
        raise NotSupportedError(
            f"{Path(asked.path).name} is a Hugging Face directory, and {error.name} is not installed: "
            "install the extra `lab` (how: docs/lab.md), or give a .gguf file"
        ) from None
    return scorer


@dataclass(frozen=True, slots=True)
class Apart:
    """Arrays of M models and P pairs over T tokens, filled piece by piece."""

    pairs: Sequence[tuple[int, int]]
    nats_MT: Floats
    likeliest_MT: NDArray[np.int32]
    kl_PT: Floats

    @staticmethod
    def empty(models: int, pairs: Sequence[tuple[int, int]], tokens: int) -> Apart:
        """Room for so many tokens."""
        shape = (models, tokens)
        kl = np.zeros((len(pairs), tokens), np.float32)
        return Apart(pairs, np.zeros(shape, np.float32), np.zeros(shape, np.int32), kl)

    def rows(self, logits: Sequence[Floats], targets: NDArray[np.int64], start: int, begin: int, end: int) -> None:
        """Rows `begin` to `end` of a batch that starts at token `start`."""
        sources = {source for source, _ in self.pairs}
        here = slice(start + begin, start + end)
        every = np.arange(end - begin)
        log_sums: list[NDArray[np.float64]] = []
        shares: dict[int, Floats] = {}
        for index, logits_TV in enumerate(logits):
            x_RV = logits_TV[begin:end]
            best_R = x_RV.argmax(axis=1)
            top_R = x_RV[every, best_R]
            e_RV = x_RV - top_R[:, None]
            np.exp(e_RV, out=e_RV)
            sum_R = e_RV.sum(axis=1)
            log_sum_R = top_R + np.log(sum_R.astype(np.float64))
            log_sums.append(log_sum_R)
            self.nats_MT[index, here] = log_sum_R - x_RV[every, targets[begin:end]]
            self.likeliest_MT[index, here] = best_R
            if index in sources:
                e_RV /= sum_R[:, None]
                shares[index] = e_RV
        for index, (source, model) in enumerate(self.pairs):
            d_RV = logits[source][begin:end] - logits[model][begin:end]
            mean_R = np.einsum("rv,rv->r", shares[source], d_RV)
            self.kl_PT[index, here] = mean_R - (log_sums[source] - log_sums[model])


def tokenized(scorer: Scorer, text: str) -> Tokenized:
    """A text's tokens in a model's vocabulary, and how much of it they spell."""
    plain, whole = scorer.tokenize(text, special=False), scorer.tokenize(text)
    room = len(whole) - len(plain)
    lead = next((i for i in range(room + 1) if whole[i : i + len(plain)] == plain), 0)
    pieces = [scorer.piece(token) for token in plain]
    spelled = b"".join(pieces)
    extra = extra_space(spelled, text)
    first = max(0, len(pieces[0]) - extra) if pieces else 0
    return Tokenized(ids=whole[: lead + len(plain)], lead=lead, first_bytes=first, spelled_bytes=len(spelled) - extra)


class LockstepWorker:
    """The loaded models and the requests they answer."""

    def __init__(self, load: LoadModels, say: Say) -> None:
        self._folder, self._batch, self._threads = Path(load.folder), load.batch, load.threads
        self._pool = ThreadPoolExecutor(load.threads)
        self._small: dict[int, Scorer | None] = {}
        library = Library(library_path()) if any(each.kind == "gguf" for each in load.models) else None
        self._scorers: list[Scorer] = []
        for each in load.models:
            if each.kind == "gguf":
                assert library is not None
                self._scorers.append(_gguf_scorer(library, each, load, say))
            else:
                say(f"loading {Path(each.path).name}", 0.0)
                self._scorers.append(_directory_scorer(each, load.threads))

    def loaded(self) -> LoadedModels:
        """What each model says of itself."""
        return LoadedModels(
            [LoadedModel(engine=s.engine, n_vocab=s.n_vocab, n_positions=s.n_positions) for s in self._scorers]
        )

    def answer(self, request: LockstepRequest) -> Tokenized | Timings | Tokens | SaidText | Done:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        match request:
            case TokenizeFor():
                return tokenized(self._scorers[request.model], request.text)
            case ScoreTokens():
                return self._score(request)
            case Generate():
                return self._generate(self._scorers[request.model], request)
            case TextOf():
                pieces = map(self._scorers[request.model].piece, request.ids)
                return SaidText(b"".join(pieces).decode(errors="replace"))
            case LoadModels():
                raise NotSupportedError("this process has its models already")

    def _score(self, request: ScoreTokens) -> Timings:
        scorers = [self._scorers[index] for index in request.models]
        at = {model: row for row, model in enumerate(request.models)}
        pairs = [(at[source], at[model]) for source, model in request.pairs]
        read, targets = request.tokens[:-1], np.asarray(request.tokens[1:], np.int64)
        found = Apart.empty(len(scorers), pairs, len(read))
        floor_MT = np.full((len(scorers), len(read)), np.nan, np.float32)
        few = request.small_tokens
        small = [self._beside(index) if few else None for index in request.models]
        for scorer in [*scorers, *(each for each in small if each is not None)]:
            scorer.begin(len(read))
        seconds = [0.0] * len(scorers)
        for start in range(0, len(read), self._batch):
            tokens = read[start : start + self._batch]
            logits: list[Floats] = []
            for row, scorer in enumerate(scorers):
                began = time.perf_counter()
                logits.append(scorer.logits_TV(tokens, start))
                seconds[row] += time.perf_counter() - began
            self._compare(found, logits, targets[start : start + len(tokens)], start)
            for row, slow in enumerate(small):
                if slow is not None and start < few:
                    self._to_itself(slow, tokens[: few - start], start, logits[row], floor_MT[row])
        if not (np.isfinite(found.nats_MT).all() and np.isfinite(found.kl_PT).all()):
            bad = int(np.argmin(np.isfinite(found.nats_MT).all(axis=1)))
            raise EngineError(f"model {request.models[bad] + 1} predicts what is no number; its weights are damaged")
        agree_PT = np.zeros(found.kl_PT.shape, np.bool_)
        for index, (source, model) in enumerate(pairs):
            agree_PT[index] = found.likeliest_MT[source] == found.likeliest_MT[model]
        try:
            np.savez(
                self._folder / "scores.npz",
                nats=found.nats_MT,
                likeliest=found.likeliest_MT,
                kl=found.kl_PT,
                agree=agree_PT,
                floor=floor_MT,
            )
        except OSError as error:
            raise EngineError(f"{self._folder.parent}: cannot be written ({error.strerror}); make room there") from None
        return Timings(seconds)

    def _compare(self, found: Apart, logits: Sequence[Floats], targets: NDArray[np.int64], start: int) -> None:
        step = max(1, _ROWS_BYTES // logits[0][0].nbytes)
        pieces = [(begin, min(begin + step, len(targets))) for begin in range(0, len(targets), step)]
        list(self._pool.map(lambda piece: found.rows(logits, targets, start, *piece), pieces))

    def _beside(self, model: int) -> Scorer | None:
        if model not in self._small:
            self._small[model] = self._scorers[model].beside(SMALL_BATCH)
        return self._small[model]

    def _to_itself(self, slow: Scorer, tokens: Sequence[int], start: int, logits: Floats, floor_T: Floats) -> None:
        """KL of one batch's logits to those of small batches, into `floor_T`."""
        for begin in range(0, len(tokens), SMALL_BATCH):
            few = tokens[begin : begin + SMALL_BATCH]
            again = slow.logits_TV(few, start + begin)
            both = Apart.empty(2, [(0, 1)], len(few))
            both.rows([logits[begin : begin + len(few)], again], np.zeros(len(few), np.int64), 0, 0, len(few))
            floor_T[start + begin : start + begin + len(few)] = both.kl_PT[0]

    def _generate(self, scorer: Scorer, request: Generate) -> Tokens:
        scorer.begin(len(request.tokens) + request.n)
        position, ids, said = 0, list[int](), b""
        stops = [each.encode() for each in request.stop]
        tokens = request.tokens
        while len(ids) < request.n:
            for start in range(0, len(tokens), self._batch):
                piece = tokens[start : start + self._batch]
                last_V = scorer.logits_TV(piece, position)[-1]
                position += len(piece)
            best = int(last_V.argmax())
            if scorer.ends(best):
                break
            ids.append(best)
            said += scorer.piece(best)
            if any(each in said for each in stops):
                break
            tokens = [best]
        return Tokens(ids=ids)


def _begin(request: LockstepRequest, say: Say) -> tuple[LoadedModels, Answer]:
    if not isinstance(request, LoadModels):
        raise BreakevenError("no model is loaded")
    die_with_parent(request.parent_pid)
    worker = LockstepWorker(request, say)
    return worker.loaded(), worker.answer


if __name__ == "__main__":
    serve(LockstepRequest, _begin)
