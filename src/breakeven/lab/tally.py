"""Blocks of text as models scored them, and what that says of a language: sums by block, paired, with intervals.

Every figure is a ratio of sums over blocks (bits over bytes, nats over tokens), its interval from the jackknife over
blocks (`stats.intervals`): neighbours within a document that move together count as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.lab.corpus import ALL, LEAST_BLOCKS, Block, by_slice, slice_name
from breakeven.lab.lockstep import Floats
from breakeven.results.lab import Slice
from breakeven.stats.estimate import Estimate
from breakeven.stats.intervals import quotient_estimate, ratio_estimate
from breakeven.stats.percentiles import percentile_of_blocks
from breakeven.stats.robust import level

LEAST_SPELLED = 0.98
"""Share of a block's bytes that a tokenizer must spell: bits of a part, over all its bytes, would look like fewer."""
MOST_LEFT_OUT = 0.1
"""Share of a language and domain that may be left out before all of it is."""


@dataclass(frozen=True, slots=True)
class BlockScore:
    """One model on one block. `n_bytes` of the text its `tokens` stand for: all but the first token's.

    `kl_T` and `agreed` (tokens after which both find the same likeliest) are None for a model compared with nothing.
    """

    bits: float
    n_bytes: int
    tokens: int
    seconds: float
    kl_T: Floats | None = None
    agreed: int | None = None


@dataclass(slots=True)
class Tally:
    """What one model scored, by number of the block. `source` is whom it is compared with."""

    blocks: Sequence[Block]
    source: Tally | None = None
    scores: dict[int, BlockScore] = field(default_factory=dict)
    floors: dict[int, Floats] = field(default_factory=dict)
    """KL to itself of some tokens of some blocks."""

    def slice_of(self, language: str, domain: str) -> Slice | None:
        """The figures of a language and domain; None where nothing of it was scored."""
        numbers = [
            number
            for number, block in enumerate(self.blocks)
            if (block.language, block.domain) == (language, domain) and number in self.scores
        ]
        if not numbers:
            return None
        source = None if self.source is None else self.source.bits_per_byte(numbers)
        return Slice(
            language=language,
            domain=domain,
            bytes=sum(self.scores[number].n_bytes for number in numbers),
            documents=len({self.blocks[number].document for number in numbers}),
            blocks=len(numbers),
            tokens=sum(self.scores[number].tokens for number in numbers),
            bits_per_byte=self.bits_per_byte(numbers),
            source_bits_per_byte=source,
            difference=self.difference(numbers),
            kl=self.kl(numbers),
            kl_p99=self._kl_p99(numbers),
            kl_floor=self.floor(numbers),
            top1=self.top1(numbers),
        )

    def bits_per_byte(self, numbers: Iterable[int] | None = None) -> Estimate:
        """Over these blocks; None: over all that were scored."""
        return self._quotient(numbers, lambda score: score.bits, lambda score: score.n_bytes)

    def difference(self, numbers: Iterable[int] | None = None) -> Estimate | None:
        """Bits per byte more than the source's on the same blocks."""
        if self.source is None:
            return None
        theirs, chosen = self.source.scores, self._numbers(numbers)
        # Tokenizers may differ in how many bytes the first token takes, which is not scored.
        shares = {number: self.scores[number].n_bytes / theirs[number].n_bytes for number in chosen}
        over = {number: self.scores[number].bits - shares[number] * theirs[number].bits for number in chosen}
        return self._estimate(chosen, over, {number: self.scores[number].n_bytes for number in chosen})

    def kl(self, numbers: Iterable[int] | None = None) -> Estimate | None:
        """Mean KL(source || model) of a token."""
        if self.source is None or not self._whole(numbers):
            return None
        return self._quotient(
            numbers, lambda score: 0.0 if score.kl_T is None else float(score.kl_T.sum(dtype=float)), _tokens
        )

    def top1(self, numbers: Iterable[int] | None = None) -> Estimate | None:
        """Share of tokens after which both find the same token likeliest."""
        if self.source is None or not self._whole(numbers):
            return None
        found = self._quotient(numbers, lambda score: score.agreed or 0, _tokens)
        if found.low is None or found.high is None:
            return found
        return msgspec.structs.replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def floor(self, numbers: Iterable[int] | None = None) -> Estimate | None:
        """Mean KL of a token to the same model in small batches; None where it was not measured."""
        chosen = [number for number in self._numbers(numbers) if number in self.floors]
        if not chosen:
            return None
        over = {number: float(self.floors[number].sum(dtype=float)) for number in chosen}
        return self._estimate(chosen, over, {number: len(self.floors[number]) for number in chosen})

    def tokens_per_s(self) -> Estimate | None:
        """Tokens scored a second, block by block."""
        return level([score.tokens / score.seconds for score in self.scores.values() if score.seconds > 0])

    def _kl_p99(self, numbers: Sequence[int]) -> Estimate | None:
        found = [kl_T for number in numbers if (kl_T := self.scores[number].kl_T) is not None]
        return percentile_of_blocks(found, 99.0) if found else None

    def _whole(self, numbers: Iterable[int] | None) -> bool:
        """Whether whole distributions were compared: of a model behind a URL only what came is known."""
        return all(self.scores[number].kl_T is not None for number in self._numbers(numbers))

    def _numbers(self, numbers: Iterable[int] | None) -> list[int]:
        return sorted(self.scores if numbers is None else numbers)

    def _quotient(
        self,
        numbers: Iterable[int] | None,
        over: Callable[[BlockScore], float],
        under: Callable[[BlockScore], float],
    ) -> Estimate:
        chosen = self._numbers(numbers)
        scores = {number: self.scores[number] for number in chosen}
        return self._estimate(
            chosen,
            {number: over(score) for number, score in scores.items()},
            {number: under(score) for number, score in scores.items()},
        )

    def _estimate(
        self, numbers: Sequence[int], over: dict[int, float], under: dict[int, int] | dict[int, float]
    ) -> Estimate:
        """Sum of `over` to sum of `under`, a document a run of neighbouring blocks."""
        runs: dict[tuple[str, str, str], list[int]] = {}
        for number in numbers:
            block = self.blocks[number]
            runs.setdefault((block.language, block.domain, block.document), []).append(number)
        overs = [np.array([over[number] for number in run], np.float64) for run in runs.values()]
        unders = [np.array([under[number] for number in run], np.float64) for run in runs.values()]
        # A log cannot leave the side of zero that all its blocks are on; a difference or a KL of nothing needs to.
        if all((values > 0).all() for values in overs) and (found := ratio_estimate(overs, unders)) is not None:
            return found
        return quotient_estimate(overs, unders)


def _tokens(score: BlockScore) -> float:
    return score.tokens


def bits(nats_T: NDArray[np.floating]) -> float:
    """What tokens cost together, in bits."""
    return float(nats_T.sum(dtype=np.float64)) / math.log(2)


def unread(blocks: Sequence[Block], read: Sequence[int]) -> list[str]:
    """What the budget left unread."""
    if len(read) == len(blocks):
        return []
    seen = by_slice(blocks[number] for number in read)
    whole = sum(block.n_bytes for block in blocks)
    share = sum(blocks[number].n_bytes for number in read) / whole
    said = [f"The budget ended when {share:.0%} of the text was read, evenly spread; a longer --budget reads more."]
    missing = [slice_name(*key) for key in by_slice(blocks) if key not in seen]
    if missing:
        said.append(f"Nothing was read of {', '.join(missing)}.")
    return said


def left_out(tallies: Sequence[Tally], read: Sequence[int], unspelled: Mapping[int, tuple[str, float]]) -> list[str]:
    """Take out languages and domains that a tokenizer cannot spell, for all models alike, and say it.

    Raises UserError where nothing is left.
    """
    blocks, said = tallies[0].blocks, list[str]()
    for key in by_slice(blocks[number] for number in unspelled):
        own = [number for number in read if (blocks[number].language, blocks[number].domain) == key]
        lost = [number for number in own if number in unspelled]
        name, least = min((unspelled[number] for number in lost), key=lambda each: each[1])
        share = sum(blocks[number].n_bytes for number in lost) / sum(blocks[number].n_bytes for number in own)
        kept = len(own) - len(lost)
        what = "The text" if key[0] == ALL else f"The text of {slice_name(*key)}"
        why = f"{name}'s tokenizer has no tokens for it ({least:.0%} of a block spelled)"
        if share <= MOST_LEFT_OUT and kept >= min(len(own), LEAST_BLOCKS):
            said.append(f"{what}: {share:.1%} was left out for all models: {why}.")
            continue
        said.append(f"{what} was left out for all models: {why}.")
        for tally in tallies:
            for number in own:
                tally.scores.pop(number, None)
                tally.floors.pop(number, None)
    if said and not tallies[0].scores:
        raise UserError(f"{said[0]} No other text is left; give text that its tokenizer spells")
    return said
