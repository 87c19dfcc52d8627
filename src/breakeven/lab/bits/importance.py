"""How much each column of each weight matrix counts: mean squares of what it multiplies while a text runs through.

A quantizer rounds so that errors in columns with large inputs are small. Every expert has inputs of its own, from the
tokens routed to it; how many those were decides whether its numbers mean anything. Every third block of a text is
measured on, the rest is left for judging what was made: importance and test from the same words flatter the loss.

Shapes: E matrices in a stack (experts, heads; 1 for a plain matrix), C columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside import child as m
from breakeven.engines.inside.client import Inside, OnStep
from breakeven.engines.inside.columns import Weigh
from breakeven.errors import UserError
from breakeven.lab.corpus import Block, Document, blocks_of, by_slice, in_turn, slice_name
from breakeven.lab.facts import batch_that_fits, facts_of
from breakeven.results.lab import ExpertLayer, Experts

Floats = NDArray[np.float32]

MOST_TOKENS = 4096
FEWEST_TOKENS = 32
"""Below so many tokens an expert's mean squares are noise: of 32 normal inputs one is off by a quarter."""
_SEQUENCE, _SHORTEST = 512, 64
"""Tokens of a block that are run: fewer where there are many languages, so that all are reached."""
_BATCH = 128
"""Every token's logits stand in memory too, unread: the last layer would else leave tokens out."""
_MEASURED_EVERY = 3
_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(?:down|gate|up|gate_up)_exps\.weight")


@dataclass(frozen=True, slots=True)
class Importance:
    """Of each matrix that the text reached, by its tensor's name."""

    mean_squares: Mapping[str, Floats]
    """(E, C); zeros where no token was."""
    tokens: Mapping[str, NDArray[np.int64]]
    """(E,) tokens that each matrix of the stack saw."""
    text_tokens: int
    experts_per_token: int
    unread: tuple[str, ...] = ()
    """Languages, with their domain, that no token was left for."""

    def starved(self, tensor: str) -> list[int]:
        """The matrices of a stack that saw fewer than `FEWEST_TOKENS` tokens."""
        return [int(index) for index in np.flatnonzero(self.tokens[tensor] < FEWEST_TOKENS)]

    def caveats(self) -> list[str]:
        """What is to be said of it: the languages that it does not stand for."""
        if not self.unread:
            return []
        return [
            f"importance was not measured on {', '.join(self.unread)}: no token was left for them; allow more tokens "
            "or give fewer languages"
        ]

    def experts(self) -> Experts | None:
        """Tokens that each expert saw, layer by layer; None for a dense model."""
        seen: dict[int, NDArray[np.int64]] = {}
        for name, tokens_E in self.tokens.items():
            if (found := _EXPERTS.fullmatch(name)) is not None:
                seen[int(found[1])] = tokens_E
        if not seen:
            return None
        layers = [
            ExpertLayer(layer=layer, tokens=seen[layer].tolist(), dead=np.flatnonzero(seen[layer] == 0).tolist())
            for layer in sorted(seen)
        ]
        return Experts(layers=layers, n_experts_per_token=self.experts_per_token)


def apart(documents: Sequence[Document]) -> tuple[list[Block], list[Document]]:
    """Every third block of each language and domain to measure importance on, and documents of the others to judge."""
    measured: list[Block] = []
    others: list[Block] = []
    seen: Counter[tuple[str, str]] = Counter()
    for block in blocks_of(list(documents)):
        place = (block.language, block.domain)
        (others if seen[place] % _MEASURED_EVERY else measured).append(block)
        seen[place] += 1
    judged = [
        Document(language, domain, name, "".join(block.text for block in group))
        for (language, domain, name), group in groupby(others, key=lambda b: (b.language, b.domain, b.document))
    ]
    return measured, judged


def measure(
    model: Path,
    blocks: Sequence[Block],
    *,
    most_tokens: int = MOST_TOKENS,
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Importance:
    """Run blocks through a GGUF, every language and domain as often, until `most_tokens` tokens have run.

    So many of each block as lets all languages be reached, where that is `_SHORTEST` or more. Raises UserError for a
    text without tokens and for a model that does not fit, and as `Inside` does.
    """
    batch = batch_that_fits([facts_of(model)], _SEQUENCE, _BATCH, small=False)
    # In this machine's own memory, where the child reads what a matrix multiplies.
    with Inside(model, threads, gpu_layers=0, on_step=on_step) as inside:
        slices = by_slice(blocks)
        length = min(_SEQUENCE, max(_SHORTEST, most_tokens // max(1, len(slices))))
        length = min(length, inside.loaded.n_positions or length)
        sequences: list[list[int]] = []
        reached = set()
        left = most_tokens
        for block in [blocks[number] for number in in_turn(blocks)] if blocks else []:
            if left <= 0:
                break
            tokens = inside.tokenize(block.text)[: min(length, left)]
            if tokens:
                sequences.append(tokens)
                reached.add((block.language, block.domain))
                left -= len(tokens)
        if not sequences:
            raise UserError("the text has no tokens to measure importance on; give a longer one with --text")
        inside.ask(Weigh(sequences=sequences, batch=batch), m.Done)
        with np.load(inside.folder / "squares.npz") as squares, np.load(inside.folder / "tokens.npz") as tokens_of:
            tokens_by_name = {name: tokens_of[name] for name in tokens_of.files}
            means = {
                name: (squares[name] / np.maximum(tokens_by_name[name], 1)[:, None]).astype(np.float32)
                for name in squares.files
            }
        used = inside.loaded.n_experts_per_token
    unread = tuple(slice_name(*key) for key in slices if key not in reached)
    return Importance(means, tokens_by_name, most_tokens - left, used, unread)
