"""Text to train on: which blocks train, which choose the best checkpoint, which judge; and rows of tokens, in order.

What judges is never seen in training nor used to choose, or a model would be praised for what it learned by heart.

Legend: N rows, T tokens a row, B rows a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.lab.corpus import LEAST_BLOCKS, Block, Document, by_slice, slice_name

Ids = NDArray[np.int32]

_JUDGE_BLOCKS = 12
"""Of each language and domain, at most; an interval needs `LEAST_BLOCKS`."""
_CHOOSE_BLOCKS = 6
_APART_SHARE = 0.3
"""Of a slice's blocks, at most, that do not train."""
LEAST_TRAINING = 10
"""Blocks of a language and domain: fewer are learned by heart before anything else is."""


@dataclass(frozen=True, slots=True)
class Split:
    """A text's blocks by what they are for."""

    train: list[Block]
    choose: list[Block]
    judge: list[Block]
    repeated: int = 0
    """Blocks left out, because they stand a second time in what is kept apart."""

    def notes(self) -> list[str]:
        """What must stand beside figures."""
        said = f"{self.repeated} pieces of the text are repeated in what judges or chooses, so they trained nothing."
        return [said] if self.repeated else []

    def judged(self) -> list[Document]:
        """What judges, as documents that `prove` and `evaluate` take; each block is one, and stays one block."""
        return [
            Document(block.language, block.domain, f"{block.document}#{number}", block.text)
            for number, block in enumerate(self.judge)
        ]


def split(blocks: Sequence[Block]) -> Split:
    """Every slice in three: stretches for choosing and judging lie evenly over it, the rest trains.

    The same for the same text, whatever the seed. Raises UserError for a slice too short for all three.
    """
    found = Split([], [], [])
    for (language, domain), held in by_slice(blocks).items():
        judge = min(_JUDGE_BLOCKS, max(LEAST_BLOCKS, int(len(held) * _APART_SHARE * 2 / 3)))
        choose = min(_CHOOSE_BLOCKS, max(2, int(len(held) * _APART_SHARE / 3)))
        if len(held) < judge + choose + LEAST_TRAINING:
            size = sum(block.n_bytes for block in held)
            least = round(size / len(held) * (LEAST_BLOCKS + 2 + LEAST_TRAINING))
            raise UserError(
                f"the text of {slice_name(language, domain)} has {size:,} bytes, too few to train on and to judge by; "
                f"give at least {least:,} bytes of each language"
            )
        every = len(held) / (judge + choose)
        apart = [int((turn + 0.5) * every) for turn in range(judge + choose)]
        # Those that choose lie among those that judge, evenly.
        chooses = {apart[int((turn + 0.5) * len(apart) / choose)] for turn in range(choose)}
        judges = set(apart) - chooses
        for number, block in enumerate(held):
            into = found.choose if number in chooses else found.judge if number in judges else found.train
            into.append(block)
    return apart_from_each_other([found])[0]


def apart_from_each_other(splits: Sequence[Split]) -> list[Split]:
    """The same, where nothing trains or chooses that stands a second time in what any of them keeps to judge.

    Copies of a file, or a text within the text beside it, would else be judged by what was learned by heart. Raises
    UserError where too little is left.
    """
    judged = {_said(block) for each in splits for block in each.judge}
    kept = judged | {_said(block) for each in splits for block in each.choose}
    found = []
    for each in splits:
        train = [block for block in each.train if _said(block) not in kept]
        choose = [block for block in each.choose if _said(block) not in judged]
        trains, chooses = by_slice(train), by_slice(choose)
        for (language, domain), held in by_slice(each.train).items():
            left = trains.get((language, domain), [])
            if len(left) < LEAST_TRAINING or (language, domain) not in chooses:
                raise UserError(
                    f"the text of {slice_name(language, domain)} repeats itself: of {len(held)} pieces to train on "
                    f"{len(left)} are not also kept to choose or judge by: too few; leave copies out, or give more text"
                )
        repeated = each.repeated + len(each.train) - len(train) + len(each.choose) - len(choose)
        found.append(Split(train, choose, each.judge, repeated))
    return found


def _said(block: Block) -> str:
    return " ".join(block.text.split())


def rows_of(blocks: Sequence[Block], encode: Callable[[str], Sequence[int]], tokens: int, end: int | None) -> Ids:
    """Rows (N, `tokens`) of a text's tokens, documents one after the other with `end` between; the remainder is cut.

    Raises UserError for a text of fewer tokens than a row.
    """
    ids: list[int] = []
    document: tuple[str, str, str] | None = None
    for block in blocks:
        here = (block.language, block.domain, block.document)
        if document is not None and here != document and end is not None:
            ids.append(end)
        document = here
        ids += encode(block.text)
    count = len(ids) // tokens
    if not count:
        raise UserError(f"the text has {len(ids):,} tokens, fewer than one row of {tokens}; give more text")
    return np.array(ids[: count * tokens], np.int32).reshape(count, tokens)


@dataclass(frozen=True, slots=True)
class Batches:
    """Which rows each step reads: a function of seed and step alone, so a run that goes on reads what it would have."""

    n_rows: int
    batch: int
    seed: int

    def rows(self, step: int) -> NDArray[np.int64]:
        """Numbers (B) of the rows of a step. Every row is read once before any is read again."""
        at = step * self.batch
        numbers: list[int] = []
        while len(numbers) < self.batch:
            epoch, begin = divmod(at + len(numbers), self.n_rows)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)
            numbers += order[begin : begin + self.batch - len(numbers)].tolist()
        return np.array(numbers, np.int64)
