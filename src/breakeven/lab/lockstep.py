"""Several models over the same tokens at once: how well each predicts them, and how far apart they are.

All are loaded in one child process (`lab/scoring.py`), which reads the logits of the whole vocabulary where the engine
left them: no server, no file of logits. This is the parent's end, and what both ends say to each other.

Legend: M models, P pairs, T tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.child import Doing, Done, Tokens, Unable
from breakeven.engines.inside.client import ChildProcess, OnStep, checked_gguf
from breakeven.errors import UserError
from breakeven.hardware.reader import available_threads

Floats = NDArray[np.float32]

BATCH = 256
"""Tokens of a batch. llama.cpp computes those of 64 and more alike; logits of a batch take V times 4 bytes a token."""
SMALL_BATCH = 7
"""Tokens of a batch that is computed as decoding is, whose rounding differs from that of a long prompt."""


class Scorer(Protocol):
    """One loaded model with room for one sequence, in the child process.

    llama.cpp's is `scoring.GgufScorer`; `torch_scorer.TorchScorer(path, threads, used)` is a Hugging Face directory's.
    """

    engine: str
    """Whose arithmetic it is: "llama.cpp" or "transformers"."""
    n_vocab: int
    n_positions: int
    """The longest sequence it was made for; 0 where nothing says."""

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; `special`: with what the tokenizer itself adds at its ends. Special tokens in it are text."""
        ...

    def piece(self, token: int) -> bytes:
        """What one token adds to a text, as UTF-8; nothing for a special token."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        ...

    def begin(self, positions: int) -> None:
        """Forget all; the next sequence has at most so many tokens."""
        ...

    def logits_TV(self, tokens: Sequence[int], position: int) -> Floats:
        """Logits after each of `tokens`, the first of which stands at `position`, those before being known.

        Float32, contiguous, valid until the next call on this object. At most `BATCH` tokens.
        """
        ...

    def beside(self, batch: int) -> Scorer | None:
        """The same weights with a memory of its own, for batches of `batch`; None where batches make no difference."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A model to load: a .gguf file or a Hugging Face directory. `used`: experts a token, None for its own number."""

    path: Path
    used: int | None = None


class ToLoad(msgspec.Struct, frozen=True):
    """One model of `LoadModels`. `kind`: "gguf" or "directory"."""

    path: str
    kind: str
    used: int | None


class LoadModels(msgspec.Struct, tag="load models", frozen=True, kw_only=True):
    """First message. Answered by `LoadedModels`."""

    models: list[ToLoad]
    threads: int
    batch: int
    exact: bool
    folder: str
    parent_pid: int


class TokenizeFor(msgspec.Struct, tag="tokenize for", frozen=True, kw_only=True):
    """A text to one model's tokens. Answered by `Tokenized`."""

    model: int
    text: str


class ScoreTokens(msgspec.Struct, tag="score", frozen=True, kw_only=True):
    """Score these tokens. Answered by `Timings`; arrays in scores.npz."""

    tokens: list[int]
    models: list[int]
    pairs: list[tuple[int, int]]
    small_tokens: int
    """So many of the first tokens are run in small batches too."""


class Generate(msgspec.Struct, tag="generate", frozen=True, kw_only=True):
    """The likeliest continuation until it ends, holds one of `stop` or has `n` tokens.

    Answered by `Tokens`, without the one that ends it.
    """

    model: int
    tokens: list[int]
    n: int
    stop: list[str] = []


class TextOf(msgspec.Struct, tag="text of", frozen=True, kw_only=True):
    """What tokens say. Answered by `SaidText`."""

    model: int
    ids: list[int]


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What one loaded model says of itself."""

    engine: str
    n_vocab: int
    n_positions: int


class LoadedModels(msgspec.Struct, tag="loaded models", frozen=True):
    """In the order asked for."""

    models: list[LoadedModel]


class Tokenized(msgspec.Struct, tag="tokenized", frozen=True, kw_only=True):
    """A text's tokens. The first `lead` were added before it; its own first token stands for `first_bytes` bytes.

    All of them spell `spelled_bytes` of it: fewer than it has where a tokenizer has no token for a letter.
    """

    ids: list[int]
    lead: int
    first_bytes: int
    spelled_bytes: int


class Timings(msgspec.Struct, tag="timings", frozen=True):
    """Seconds that each model computed, without the arithmetic on its logits."""

    seconds: list[float]


class SaidText(msgspec.Struct, tag="told", frozen=True):
    """A text."""

    text: str


LockstepRequest = LoadModels | TokenizeFor | ScoreTokens | Generate | TextOf
_Reply = LoadedModels | Tokenized | Timings | Tokens | SaidText | Done | Unable | Doing


@dataclass(frozen=True, slots=True)
class Scores:
    """What models say of a sequence of T tokens: entry t is about token t + 1, which tokens 0 to t come before.

    Rows of `nats`, `likeliest` and `floor` are models in the order asked for; rows of `kl` and `agree` pairs.
    """

    nats: Floats
    """(M, T-1): minus the log of the probability of the token that came."""
    likeliest: NDArray[np.int32]
    """(M, T-1): the id found likeliest."""
    kl: Floats
    """(P, T-1): KL(first || second) in nats."""
    agree: NDArray[np.bool_]
    """(P, T-1): whether both find the same token likeliest."""
    floor: Floats | None
    """(M, T-1): KL of a model to itself, this batch against batches of `SMALL_BATCH`; NaN where it was not run so, or
    batches make no difference. None: not asked for."""
    seconds: tuple[float, ...]
    """(M): what each computed for."""


class Lockstep(ChildProcess):
    """Models of one machine over the same tokens. A context manager; use it in the thread that made it."""

    def __init__(
        self,
        models: Sequence[Scored],
        threads: int | None = None,
        on_step: OnStep = lambda what, share: None,
        *,
        batch: int = BATCH,
        exact: bool = False,
    ) -> None:
        """Load all. `exact`: llama.cpp computes attention in single precision, slower.

        Raises UserError for what is no model, NotSupportedError for what cannot be scored here, EngineError when
        loading fails.
        """
        to_load = [ToLoad(str(model.path), kind_of_model(model.path), model.used) for model in models]
        names = ", ".join(model.path.name for model in models)
        super().__init__("breakeven.lab.scoring", names, _Reply, on_step=on_step)
        try:
            self.loaded = self.ask(
                LoadModels(
                    models=to_load,
                    threads=threads or available_threads(),
                    batch=batch,
                    exact=exact,
                    folder=str(self.folder),
                    parent_pid=os.getpid(),
                ),
                LoadedModels,
            ).models
        except BaseException:
            self.close()
            raise

    def tokenize(self, model: int, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts before it, and nothing behind it."""
        return self.tokens_of(model, text).ids

    def tokens_of(self, model: int, text: str) -> Tokenized:
        """The same, saying how many tokens were put before the text and how many bytes its first one stands for."""
        return self.ask(TokenizeFor(model=model, text=text), Tokenized)

    def text_of(self, model: int, ids: Sequence[int]) -> str:
        """What token ids say."""
        return self.ask(TextOf(model=model, ids=list(ids)), SaidText).text

    def generate(self, model: int, tokens: Sequence[int], n: int, stop: Sequence[str] = ()) -> list[int]:
        """The likeliest continuation of `tokens`: at most `n` ids, without the one that ends the answer, and none after
        those in which one of `stop` stands."""
        return self.ask(Generate(model=model, tokens=list(tokens), n=n, stop=list(stop)), Tokens).ids

    def score(
        self,
        tokens: Sequence[int],
        pairs: Sequence[tuple[int, int]] = (),
        small_batches: bool = False,
        *,
        only: Sequence[int] | None = None,
        small_tokens: int | None = None,
    ) -> Scores:
        """Run `tokens` (two or more) through the models `only` (None: all), and compare `pairs` (source, model) of
        them, numbered as they were loaded. `small_batches`: each also with itself in small batches, of the first
        `small_tokens` (None: all)."""
        models = list(range(len(self.loaded))) if only is None else list(only)
        if len(tokens) < 2 or {each for pair in pairs for each in pair} - set(models):
            raise ValueError("two tokens at least, and pairs of models that run")
        few = len(tokens) if small_tokens is None else small_tokens
        asked = ScoreTokens(
            tokens=list(tokens), models=models, pairs=list(pairs), small_tokens=few if small_batches else 0
        )
        timings = self.ask(asked, Timings)
        with np.load(self.folder / "scores.npz") as arrays:
            floor = arrays["floor"] if small_batches else None
            return Scores(
                arrays["nats"], arrays["likeliest"], arrays["kl"], arrays["agree"], floor, tuple(timings.seconds)
            )

    def score_all(
        self,
        tokens: Sequence[int],
        pairs: Sequence[tuple[int, int]] = (),
        small_batches: bool = False,
        *,
        lead: int = 0,
        only: Sequence[int] | None = None,
        small_tokens: int | None = None,
    ) -> Scores:
        """`score`; what is longer than a model was made for in windows that overlap by half.

        Each window begins with the first `lead` tokens, which no text is without where the tokenizer adds them.
        """
        chosen = self.loaded if only is None else [self.loaded[i] for i in only]
        limit = min([each.n_positions for each in chosen if each.n_positions > 1], default=len(tokens))
        if len(tokens) <= limit:
            return self.score(tokens, pairs, small_batches, only=only, small_tokens=small_tokens)
        room = max(2, limit - lead)
        first = self.score(tokens[:limit], pairs, small_batches, only=only, small_tokens=small_tokens)
        parts, end = [first], limit
        while end < len(tokens):
            begin, known = end - room // 2, end - 1
            end = min(begin + room, len(tokens))
            part = self.score([*tokens[:lead], *tokens[begin:end]], pairs, only=only)
            new = slice(known - begin + lead, None)
            nats, likeliest, kl = part.nats[:, new], part.likeliest[:, new], part.kl[:, new]
            parts.append(Scores(nats, likeliest, kl, part.agree[:, new], None, part.seconds))
        return Scores(
            np.concatenate([part.nats for part in parts], axis=1),
            np.concatenate([part.likeliest for part in parts], axis=1),
            np.concatenate([part.kl for part in parts], axis=1),
            np.concatenate([part.agree for part in parts], axis=1),
            first.floor,
            tuple(sum(each) for each in zip(*(part.seconds for part in parts), strict=True)),
        )


def extra_space(spelled: bytes, text: str) -> int:
    """1 where what tokens spell begins with a space more than the text, as SentencePiece puts there; else 0."""
    own = len(text) - len(text.lstrip(" "))
    return int(len(spelled) - len(spelled.lstrip(b" ")) > own)


def kind_of_model(path: Path) -> str:
    """ "gguf" or "directory". Raises UserError for anything else."""
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{path}: no config.json in this directory; give a .gguf file or a Hugging Face directory of weights"
            )
        return "directory"
    checked_gguf(path)
    return "gguf"
