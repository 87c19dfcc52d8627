"""Watch a model's experts while it reads a text: how each is used, what each gives, what is lost without it.

A GGUF runs in llama.cpp's child process, a Hugging Face directory in one of transformers (`torch_watch.py`); both
answer the same questions.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from breakeven.engines.inside.child import LoadedFile, LoadFile, Tokenize, Tokens
from breakeven.engines.inside.client import ALL_LAYERS, ChildProcess, checked_gguf
from breakeven.engines.inside.tally import TALLY, ExpertsWatched, LeaveExpert, Nats, WatchExperts, WatchReply
from breakeven.errors import NotSupportedError, UserError
from breakeven.hardware.reader import available_threads
from breakeven.lab.bridge.directory_words import tokenizer_of
from breakeven.lab.corpus import BLOCK_BYTES
from breakeven.lab.facts import batch_that_fits, facts_of, sha256_of
from breakeven.lab.usage.scores import (
    FINDINGS_SHOWN,
    WatchedExperts,
    findings_of,
    layers_of,
    lost,
    reap,
    texts_of,
)
from breakeven.results.lab import ExpertLayer, Experts, ExpertScores, Origin, WithoutExpert

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from breakeven.lab.corpus import Block, Document

OnStep = Callable[[str, float], None]

_LLAMA_CPP, _TRANSFORMERS = "breakeven.engines.inside.worth", "breakeven.lab.usage.torch_watch"
DEFAULT_BUDGET_S = 120.0
"""For switching experts off one at a time."""
LEAST_PIECES = 6
"""Pieces of text a language on which an expert is switched off: as few as still give an interval worth having."""
PIECE_BYTES = (128, 512)
"""Their length: the least, and the most, from where there are rather more of them."""
_NEVER = "never chosen: its score is minus infinity before the best are taken, and the next best takes its place"
_SILENT = "its output is zero: every expert runs at equal weights, and the others keep theirs, as after `experts prune`"


def load(
    model: Path,
    text: Path,
    *,
    command: str,
    encoding: str | None = None,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> ExpertScores:
    """How a text loads a model's experts, by layer and language: shares, dead experts, pairs.

    `text`: a file, or a directory of one folder a language. Raises UserError for text that cannot be read or is too
    short, NotSupportedError for a dense model.
    """
    return _told(model, text, command, encoding, threads, on_step, weigh=False, budget_s=0.0)


def score(
    model: Path,
    text: Path,
    *,
    command: str,
    encoding: str | None = None,
    threads: int | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    on_step: OnStep = lambda what, share: None,
) -> ExpertScores:
    """The same, with what each expert gives (REAP), and what is lost without it for as many as `budget_s` allows.

    Raises what `load` does.
    """
    return _told(model, text, command, encoding, threads, on_step, weigh=True, budget_s=budget_s)


def _told(
    model: Path,
    text: Path,
    command: str,
    encoding: str | None,
    threads: int | None,
    on_step: OnStep,
    *,
    weigh: bool,
    budget_s: float,
) -> ExpertScores:
    from breakeven.lab.corpus import beside_languages, blocks_of, check_enough, read_documents

    began = time.monotonic()
    blocks = blocks_of(read_documents(text, encoding))
    check_enough(blocks)
    with Watched(model, threads, on_step) as watched:
        loaded = watched.loaded
        if loaded.n_experts == 0:
            raise NotSupportedError(
                f"{model.name} is a dense model ({loaded.architecture}, no experts); `breakeven experts split` makes "
                "experts of one"
            )
        blocks, cut = _fitting(watched, blocks)
        started = time.monotonic()
        seen = watched.watch([(block.language, block.text) for block in blocks], weigh=weigh)
        trials = _Trials(watched, seen, blocks, sum(seen.tokens_S) / (time.monotonic() - started), budget_s)
        if weigh:
            trials.run(on_step)
    layers = layers_of(seen, trials.without)
    findings = findings_of(seen, layers)
    tried = sum(len(each) for each in trials.without.values())
    return ExpertScores(
        command=command,
        model=Origin(path=str(model), sha256=sha256_of(model)),
        format="hf" if model.is_dir() else "gguf",
        architecture=loaded.architecture,
        text=str(text),
        languages=texts_of(seen, [block.n_bytes for block in blocks]),
        n_experts=seen.n_experts,
        n_experts_per_token=seen.n_experts_per_token,
        layers=layers,
        findings=findings[:FINDINGS_SHOWN],
        tried=tried,
        switched_off=trials.how if tried else None,
        observing_overhead=seen.observing_overhead,
        seconds=time.monotonic() - began,
        caveats=[
            *trials.caveats,
            *cut,
            *_caveats(seen, len(findings), weigh=weigh),
            *(f"Not read, because it lies beside the folders of languages: {name}." for name in beside_languages(text)),
        ],
    )


def loads_of(
    model: Path,
    documents: Sequence[Document],
    *,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Experts:
    """How a few blocks of each language load a model's experts: what a proof shows beside its source's.

    Raises what `load` does, but for text that is short.
    """
    from breakeven.lab.corpus import blocks_of

    blocks = blocks_of(documents)
    texts = []
    for language in dict.fromkeys(block.language for block in blocks):
        own = [block.text for block in blocks if block.language == language]
        texts += [(language, own[at]) for at in _spread(len(own), LEAST_PIECES)]
    with Watched(model, threads, on_step) as watched:
        seen = watched.watch([(language, watched.fitting(text)) for language, text in texts], weigh=False)
    layers = [
        ExpertLayer(layer=each.layer, tokens=each.tokens, dead=each.dead, by_language=each.by_language)
        for each in layers_of(seen, {})
    ]
    return Experts(layers=layers, n_experts_per_token=seen.n_experts_per_token)


def _fitting(watched: Watched, blocks: Sequence[Block]) -> tuple[list[Block], list[str]]:
    """The blocks, each cut to what the model's context holds, and what to say of that."""
    fitting = [replace(block, text=watched.fitting(block.text)) for block in blocks]
    cut = sum(new.text != old.text for new, old in zip(fitting, blocks, strict=True))
    if not cut:
        return fitting, []
    return fitting, [
        f"{cut} of {len(blocks)} blocks are longer than the model's context of {watched.loaded.n_positions} tokens; "
        "only the beginning of each was read."
    ]


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, evenly from the first to the last."""
    return [int(at) for at in np.linspace(0, count - 1, min(count, most)).round()]


class Watched(ChildProcess):
    """A model in a child process that watches its experts: in llama.cpp a file, in transformers a directory."""

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        on_step: OnStep = lambda what, share: None,
        *,
        gpu_layers: int = ALL_LAYERS,
    ) -> None:
        """Load `model`. Raises UserError for what is neither, and what `ChildProcess` raises."""
        self.most_scored: int | None = None
        """Tokens whose logits fit into memory at once, where a sequence's are all computed together."""
        if not model.is_dir():
            checked_gguf(model)
        elif not (model / "config.json").is_file():
            raise UserError(f"{model} has no config.json; give a .gguf file or a Hugging Face model's directory")
        elif missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
            raise NotSupportedError(
                f"{model.name} is a Hugging Face directory, and {missing[0]} is not installed: "
                "install the extra `lab` (how: docs/lab.md), or give a .gguf file"
            )
        else:
            # A file is mapped and may be larger than memory; a directory's weights are all read, in 32 bits.
            # Watching needs no logits; switching experts off reads those of a piece at once.
            self.most_scored = batch_that_fits([facts_of(model)], BLOCK_BYTES, PIECE_BYTES[1], small=False)
        self._model = model
        self._tokenizer: Tokenizer | None = None
        super().__init__(_TRANSFORMERS if model.is_dir() else _LLAMA_CPP, model.name, WatchReply, on_step=on_step)
        try:
            self.loaded = self.ask(
                LoadFile(
                    model=str(model),
                    threads=threads or available_threads(),
                    folder=str(self.folder),
                    parent_pid=os.getpid(),
                    gpu_layers=gpu_layers,
                ),
                LoadedFile,
            )
        except BaseException:
            self.close()
            raise

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text in the model's own vocabulary. Raises UserError for a directory without tokenizer."""
        if not self._model.is_dir():
            return self.ask(Tokenize(text=text), Tokens).ids
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._model)
        ids = self._tokenizer.encode(text).ids
        if not ids:
            raise UserError(f"{self._model}: its tokenizer.json makes no tokens of the text; give the whole directory")
        return list(ids)

    def fitting(self, text: str, most: int | None = None) -> str:
        """As much of a text's beginning as the model's context holds, in `most` tokens."""
        limits = [each for each in (self.loaded.n_positions, most) if each]
        while limits and len(text) > 1 and (count := len(self.tokenize(text))) > min(limits):
            text = text[: max(1, min(len(text) - 1, len(text) * min(limits) // count))]
        return text

    def watch(self, texts: Sequence[tuple[str, str]], *, weigh: bool) -> WatchedExperts:
        """Run texts, each with its language, each its own sequence, and count what the experts do."""
        languages = tuple(dict.fromkeys(language for language, _ in texts))
        groups = [languages.index(language) for language, _ in texts]
        sequences = [self.tokenize(text) for _, text in texts]
        said = self.ask(WatchExperts(sequences=sequences, groups=groups, weigh=weigh), ExpertsWatched)
        with np.load(self.folder / TALLY) as arrays:
            return WatchedExperts(
                layers=tuple(said.layers),
                n_experts=self.loaded.n_experts,
                n_experts_per_token=said.n_experts_per_token,
                equal_gates=bool(said.equal_gates),
                languages=languages,
                groups_S=tuple(groups),
                choices_SLE=arrays["choices"],
                given_SLE=arrays["given"] if weigh else None,
                together=arrays["together"],
                expected=arrays["expected"],
                squares=arrays["squares"],
                tokens_S=tuple(len(tokens) for tokens in sequences),
                observing_overhead=said.observing_overhead,
            )

    def nats_without(
        self, sequences: Sequence[Sequence[int]], layer: int, expert: int | None, *, silent: bool = False
    ) -> list[float]:
        """Loss of each sequence with one expert never chosen, or `silent`: giving nothing. None: with all of them."""
        tokens = [list(each) for each in sequences]
        return self.ask(LeaveExpert(sequences=tokens, layer=layer, expert=expert, silent=silent), Nats).nats


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of text that experts are switched off on."""

    language: str
    bytes: int
    tokens: tuple[int, ...]


class _Trials:
    """Experts switched off one at a time, the least scored of each layer first, until the budget is spent.

    As `experts prune` does: the router chooses among the others. Only where every expert always runs at equal weights
    do the others keep theirs, for there `prune` makes up for the weights that grow.
    """

    def __init__(
        self, watched: Watched, seen: WatchedExperts, blocks: Sequence[Block], tokens_per_s: float, budget_s: float
    ) -> None:
        self._watched, self._seen, self._blocks = watched, seen, blocks
        self._rate, self._budget_s = tokens_per_s, budget_s
        self._silent = seen.equal_gates and seen.n_experts_per_token == seen.n_experts
        self.how = _SILENT if self._silent else _NEVER
        self.without: dict[int, list[WithoutExpert]] = {}
        self.caveats: list[str] = []

    def run(self, on_step: OnStep) -> None:
        """Try as many as the budget allows, and at least one."""
        seen = self._seen
        many = len(seen.layers) * seen.n_experts
        if self._budget_s <= 0:
            self.caveats.append("No expert was switched off: a score tells what it gives, not what is lost without it.")
            return
        pieces = self._pieces(many)
        sequences = [list(piece.tokens) for piece in pieces]
        began = time.monotonic()
        whole = self._watched.nats_without(sequences, 0, None)
        each_s = time.monotonic() - began
        tried = 0
        for layer, expert in self._order():
            spent = time.monotonic() - began
            # One is always tried: only then is it known how long it takes.
            if tried and spent + each_s > self._budget_s:
                break
            on_step("switching experts off", min(1.0, max(spent / self._budget_s, tried / many)))
            left = self._watched.nats_without(sequences, layer, expert, silent=self._silent)
            tried += 1
            each_s = (time.monotonic() - began) / (tried + 1)
            self.without.setdefault(layer, []).append(self._lost(expert, pieces, whole, left))
        tokens = sum(len(piece.tokens) for piece in pieces)
        if tried < many:
            self.caveats.append(
                f"{tried} of {many} experts were switched off in {self._budget_s:.0f} s, on {tokens} tokens each, the "
                "least scored of each layer first; the others were not tried: a longer --budget tries more."
            )

    def _order(self) -> list[tuple[int, int]]:
        """(layer, expert): every layer's least scored, then its next; those that no token chose are left out."""
        score_LE = reap(self._seen, np.arange(len(self._seen.groups_S)))[0]
        rank_LE = np.argsort(np.nan_to_num(score_LE, nan=np.inf), axis=1)
        return [
            (self._seen.layers[row], int(expert))
            for rank in range(self._seen.n_experts)
            for row, expert in enumerate(rank_LE[:, rank])
            if not np.isnan(score_LE[row, expert])
        ]

    def _pieces(self, many: int) -> list[_Piece]:
        """The beginnings of blocks spread over each language, so much that every expert can be tried in the budget."""
        bytes_per_s = self._rate * sum(block.n_bytes for block in self._blocks) / sum(self._seen.tokens_S)
        affordable = bytes_per_s * self._budget_s / (many + 1) / len(self._seen.languages)
        size = int(min(max(affordable / LEAST_PIECES, PIECE_BYTES[0]), PIECE_BYTES[1]))
        pieces = []
        for language in self._seen.languages:
            own = [block for block in self._blocks if block.language == language]
            for at in _spread(len(own), max(LEAST_PIECES, int(affordable / size))):
                text = own[at].text.encode()[:size].decode(errors="ignore")
                text = self._watched.fitting(text, self._watched.most_scored)
                pieces.append(_Piece(language, len(text.encode()), tuple(self._watched.tokenize(text))))
        return pieces

    def _lost(
        self, expert: int, pieces: Sequence[_Piece], whole: Sequence[float], left: Sequence[float]
    ) -> WithoutExpert:
        nats, bits = {}, {}
        for language in self._seen.languages:
            rows = [at for at, piece in enumerate(pieces) if piece.language == language]
            delta = [left[at] - whole[at] for at in rows]
            nats[language] = lost(delta, [len(pieces[at].tokens) - 1 for at in rows])
            bits[language] = lost([each / np.log(2) for each in delta], [pieces[at].bytes for at in rows])
        return WithoutExpert(expert=expert, nats_per_token=nats, bits_per_byte=bits)


def _caveats(seen: WatchedExperts, findings: int, *, weigh: bool) -> list[str]:
    """What a reader could take for more than it is."""
    told = []
    tokens, k, n = sum(seen.tokens_S), seen.n_experts_per_token, seen.n_experts
    dead = int((seen.choices_SLE.sum(axis=0) == 0).sum())
    if dead:
        told.append(f"{dead} experts were not reached by these {tokens} tokens; another text may reach them.")
    if k == n:
        told.append(
            f"All {n} experts run for every token, so their loads are equal by construction; only "
            + ("what they give differs." if weigh else "`breakeven experts score` tells them apart.")
        )
    if seen.together.shape[0] < len(seen.languages):
        told.append("Pairs were counted for all languages together: by language they would not fit in memory.")
    if findings > FINDINGS_SHOWN:
        told.append(f"The {FINDINGS_SHOWN} most striking of {findings} experts are named.")
    return told
