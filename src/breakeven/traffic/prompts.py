"""Prompts: distinct, realistic text of an exact length, the same for every candidate.

Experts are chosen by the text, so streams that repeat one prompt flatter a Mixture-of-Experts model; every prompt here
is a different shuffle of prose, mail, code and data in ten languages, with a salt in front that defeats prefix caches.

Exact lengths are cut from a corpus whose tokens were counted before: a chain of pieces, each led by one separator byte,
",123" where a backend takes token ids, " word", already escaped for JSON, where it takes text. A stretch of pieces
without its first separator is then ready to be sent.
"""

from __future__ import annotations

import math
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from breakeven.errors import UserError

LANGUAGES = ("en", "de", "fr", "es", "it", "ja", "zh", "ru", "ar", "hi", "code")
"""What the built-in passages are written in; "code" is source text and markup."""


@cache
def passages(languages: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The built-in passages, written for this purpose; those in `languages` only, where given.

    Raises UserError for a language there is none in.
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown:
        raise UserError(f"no built-in text in {', '.join(unknown)}; there is {', '.join(LANGUAGES)}")
    text = resources.files("breakeven.traffic").joinpath("data/passages.txt").read_text("utf-8")
    tagged = (line.split("\t", 1) for line in text.splitlines())
    return tuple(
        passage.replace("\\n", "\n").replace("\\t", "\t")
        for language, passage in tagged
        if not languages or language in languages
    )


def rng(seed: int, *name: object) -> np.random.Generator:
    """The random stream called `name`, derived from one seed."""
    return np.random.default_rng([seed, zlib.crc32(":".join(map(str, name)).encode())])


def prompt_text(seed: int, name: str, n_chars: int, texts: Sequence[str] = ()) -> str:
    """At least `n_chars` characters of text belonging to `name`; other names give other text.

    `texts`: what to make it of instead of the built-in passages.
    """
    pool = texts or passages()
    draw = rng(seed, "prompt", name)
    parts = [f"{int(draw.integers(1 << 32)):08x} "]
    length = 0
    while length < n_chars:
        for index in draw.permutation(len(pool)):
            parts.append(pool[index])
            length += len(parts[-1]) + 1
            if length >= n_chars:
                break
    return parts[0] + "\n".join(parts[1:])


def cut(token_ids: Sequence[int], n_tokens: int) -> list[int]:
    """The first `n_tokens`. Raises ValueError when there are too few: ask for more text."""
    if len(token_ids) < n_tokens:
        raise ValueError(f"{len(token_ids)} tokens of text for a prompt of {n_tokens}")
    return list(token_ids[:n_tokens])


_MASK = (1 << 64) - 1
_SALT_BITS = 40
"""Salts differ for this many binary digits' worth of requests: a million million."""
_PRIME = 2_654_435_761


def mix(key: int, seed: int = 0) -> int:
    """64 well-mixed bits of a number (SplitMix64: Steele, Lea and Flood 2014), the same on every machine."""
    z = (key * 0x9E3779B97F4A7C15 + seed) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def bare(pieces: bytes) -> bytes:
    """Pieces without the separator in front of the first, which those of a tokenizer of single bytes do not have."""
    return pieces[1:] if pieces[:1] in (b" ", b",") else pieces


@dataclass(frozen=True, slots=True)
class Corpus:
    """`P` pieces: piece p is `blob[starts[p]:starts[p + 1]]` and ends at token `before[p + 1]` (None: one token each).

    `singles` are pieces of exactly one token, wherever they stand, the beginning of a text included.
    """

    blob: bytes
    starts: array[int]
    before: array[int] | None
    singles: tuple[bytes, ...]
    salt_tokens: int

    def salt(self, number: int, n: int, shift: int) -> bytes:
        """At most `n` tokens that no other `number` has in their place, as long as `n` >= `salt_tokens`.

        The number times a prime, modulo the count of salts, is a permutation; its digits, lowest first, are written in
        `singles`, so that neighbours differ in their very first token.
        """
        base = len(self.singles)
        rest = (number * _PRIME + shift) % base**self.salt_tokens
        digits = []
        for _ in range(min(n, self.salt_tokens)):
            rest, digit = divmod(rest, base)
            digits.append(self.singles[digit])
        return b"".join(digits)

    def fill(self, key: int, n: int) -> bytes:
        """Exactly `n` tokens of running text from a place that `key` decides; none for `n` below 1.

        Of one key, the words of a shorter text begin a longer one.
        """
        if n < 1:
            return b""
        place = key % (len(self.starts) - 1)
        if self.before is None:
            return self._pieces(place, n)
        parts = []
        left = n
        while left > 0:
            reach = self.before[place] + left
            end = bisect_right(self.before, reach) - 1
            parts.append(self.blob[self.starts[place] : self.starts[end]])
            left = reach - self.before[end]
            if end < len(self.starts) - 1:
                break
            place = 0
        parts += [self.singles[(key + j) % len(self.singles)] for j in range(left)]
        return b"".join(parts)

    def _pieces(self, place: int, n: int) -> bytes:
        last = len(self.starts) - 1
        if place + n <= last:
            return self.blob[self.starts[place] : self.starts[place + n]]
        whole, rest = divmod(n - (last - place), last)
        return self.blob[self.starts[place] :] + self.blob * whole + self.blob[: self.starts[rest]]


def make_corpus(pieces: Sequence[bytes], tokens: Sequence[int] | None, singles: Sequence[bytes]) -> Corpus:
    """A corpus of `pieces` with `tokens` each (None: one each). `singles` needs two pieces or more."""
    if len(singles) < 2 or not pieces:
        raise ValueError("a corpus needs pieces, and two or more of one token")
    starts = array("q", [0])
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    before = None
    if tokens is not None:
        before = array("q", [0])
        for count in tokens:
            before.append(before[-1] + count)
    return Corpus(
        blob=b"".join(pieces),
        starts=starts,
        before=before,
        singles=tuple(singles),
        salt_tokens=math.ceil(_SALT_BITS / math.log2(len(singles))),
    )
