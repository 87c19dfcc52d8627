"""Prompts: distinct, realistic text of an exact length, the same for every candidate.

Experts are chosen by the text, so streams that repeat one prompt flatter a Mixture-of-Experts model; every prompt here
is a different shuffle of prose, mail, code and data in ten languages, with a salt in front that defeats prefix caches.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
    text = resources.files("breakeven.measure.prompts").joinpath("data/passages.txt").read_text("utf-8")
    tagged = (line.split("\t", 1) for line in text.splitlines())
    return tuple(
        passage.replace("\\n", "\n").replace("\\t", "\t")
        for language, passage in tagged
        if not languages or language in languages
    )


def rng(seed: int, *name: object) -> np.random.Generator:
    """The random stream called `name`, derived from one seed."""
    return np.random.default_rng([seed, zlib.crc32(":".join(map(str, name)).encode())])


def prompt_text(seed: int, name: str, n_chars: int) -> str:
    """At least `n_chars` characters of text belonging to `name`; other names give other text."""
    draw = rng(seed, "prompt", name)
    parts = [f"{int(draw.integers(1 << 32)):08x} "]
    length = 0
    while length < n_chars:
        for index in draw.permutation(len(passages())):
            parts.append(passages()[index])
            length += len(parts[-1]) + 1
            if length >= n_chars:
                break
    return parts[0] + "\n".join(parts[1:])


def cut(token_ids: Sequence[int], n_tokens: int) -> list[int]:
    """The first `n_tokens`. Raises ValueError when there are too few: ask for more text."""
    if len(token_ids) < n_tokens:
        raise ValueError(f"{len(token_ids)} tokens of text for a prompt of {n_tokens}")
    return list(token_ids[:n_tokens])
