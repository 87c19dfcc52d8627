"""What people want a model for: lengths, least speeds and an area of quality each, and the limits that come on top.

Lengths and speeds are judgements near published traffic; every one can be given instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError
from breakeven.hardware.chips import size_of
from breakeven.model.quality.own import OwnScores, read_own


@dataclass(frozen=True, slots=True)
class Use:
    """A use. `prompt`: new tokens that are read before an answer; `context`: in use while it is written; `reserve`:
    what each user's cache is made for. `min_speed`: tokens/s of one user; `ttft_s`: seconds to the first token; None:
    nobody waits."""

    prompt: int
    output: int
    context: int
    reserve: int
    area: str
    min_speed: float
    ttft_s: float | None
    about: str


USES: dict[str, Use] = {
    "chat": Use(
        500, 250, 2000, 8192, "instruction", 8.0, 5.0,
        "a turn of a conversation of some ten, with its history still in the cache; people read 5 to 8 tokens/s",
    ),
    "code": Use(
        2000, 400, 4000, 16384, "code", 15.0, 10.0,
        "a question about a few files (Azure's coding trace of 2023: 2,048 prompt tokens on average)",
    ),
    "agent": Use(
        8000, 500, 12000, 32768, "tools", 15.0, 60.0,
        "one step of a tool loop; each reads its whole prompt again, since reuse of prefixes is not predicted yet",
    ),
    "rag": Use(
        4000, 300, 4300, 8192, "knowledge", 8.0, 10.0,
        "a question with some ten passages before it",
    ),
    "batch": Use(
        1000, 300, 1300, 4096, "knowledge", 1.0, None,
        "documents one after the other, for which nobody waits",
    ),
    "translate": Use(
        400, 500, 900, 4096, "language", 5.0, 10.0,
        "a page; quality is that of the languages asked for",
    ),
}  # fmt: skip
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0")
"""What `--licence permissive` stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceWords:
    """What is asked for, as people type it; None: as the use has it.

    `use`: a name of `USES`. `users`: at once. `min_speed`: tokens/s of each. `ttft`: seconds. `memory`: `12GB`, of all
    places together. `languages`, `licence`: parted by commas. `scores`: files of the user's own, before all published.
    `max_usd_per_month`: of the machine, rented. `offline_only`: nothing behind an API.
    """

    use: str = "chat"
    users: int = 1
    prompt: int | None = None
    output: int | None = None
    context: int | None = None
    min_speed: float | None = None
    ttft: float | None = None
    memory: str | None = None
    languages: str | None = None
    licence: str | None = None
    max_usd_per_month: float | None = None
    offline_only: bool = False
    scores: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The same in numbers. `given`: options that the user set."""

    use: str
    users: int
    prompt: int
    output: int
    context: int
    reserve: int
    area: str
    min_speed: float
    ttft_s: float | None
    memory_bytes: int | None
    languages: tuple[str, ...]
    licences: tuple[str, ...]
    max_usd_per_month: float | None
    offline_only: bool
    own: OwnScores | None
    about: str
    given: frozenset[str]


def wish_of(words: ChoiceWords) -> Wish:
    """What is asked for in numbers. Raises UserError that names the option, what was found and what is right."""
    name = words.use.strip().lower()
    if name not in USES:
        raise UserError(f"--use {words.use}: no such use; there are {', '.join(USES)}")
    use = USES[name]
    if words.users < 1:
        raise UserError(f"--users {words.users}: give at least 1")
    for option, number in (("prompt", words.prompt), ("output", words.output), ("context", words.context)):
        if number is not None and number < 1:
            raise UserError(f"--{option} {number}: give at least 1 token")
    for option, value in (
        ("min-speed", words.min_speed),
        ("ttft", words.ttft),
        ("max-usd-per-month", words.max_usd_per_month),
    ):
        if value is not None and not 0 < value < 1e9:
            raise UserError(f"--{option} {value:g}: give a number above 0 and below 1,000,000,000")
    languages = _codes(words.languages)
    if name == "translate" and not languages:
        raise UserError("--use translate: say between which languages, such as --languages hi,en")
    prompt, output = words.prompt or use.prompt, words.output or use.output
    least = prompt + output
    if words.context is not None and words.context < least:
        raise UserError(
            f"--context {words.context} is less than the {least:,} tokens of a prompt and its answer; give as many, or "
            "shorter ones with --prompt and --output"
        )
    reserve = words.context or max(use.reserve, least)
    return Wish(
        use=name,
        users=words.users,
        prompt=prompt,
        output=output,
        context=min(max(use.context, least), reserve),
        reserve=reserve,
        area=use.area,
        min_speed=words.min_speed or use.min_speed,
        ttft_s=words.ttft or use.ttft_s,
        memory_bytes=None if words.memory is None else _size(words.memory),
        languages=languages,
        licences=_licences(words.licence),
        max_usd_per_month=words.max_usd_per_month,
        offline_only=words.offline_only,
        own=read_own(*words.scores) if words.scores else None,
        about=use.about,
        given=frozenset(
            option
            for option, value in (
                ("--min-speed", words.min_speed),
                ("--ttft", words.ttft),
                ("--memory", words.memory),
                ("--licence", words.licence),
                ("--max-usd-per-month", words.max_usd_per_month),
                ("--context", words.context),
            )
            if value is not None
        ),
    )


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError:
        raise UserError(f"--memory {text}: give a size, such as 12GB") from None


def _codes(text: str | None) -> tuple[str, ...]:
    codes = tuple(dict.fromkeys(part.strip().lower() for part in (text or "").split(",") if part.strip()))
    for code in codes:
        if not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{2,8})*", code):
            raise UserError(f"--languages {text}: {code!r} is no language's code; give such as hi,ta,en")
    return codes


def _licences(text: str | None) -> tuple[str, ...]:
    names = [part.strip().lower() for part in (text or "").split(",") if part.strip()]
    return tuple(dict.fromkeys(each for name in names for each in (PERMISSIVE if name == "permissive" else (name,))))
