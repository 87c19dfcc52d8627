"""What a refusal teaches: which field of a body a server does not know, and what to do without it.

A server of OpenAI's kind may refuse a request (400, 422) for one field that it does not know, and says which. Such a
request is asked once more without that field, or with it under its other name; where that goes well, the server has
taught a `Lesson`, which is kept for it. A value that a server does not take teaches nothing: it is a mistake of whoever
sent it; and nothing but what stands in `LESSONS` is ever left out.

    lesson_of(status, body, sent)   what this refusal teaches, None: nothing
    wants_more(status, said)        whether it refuses so short an answer
    calls_unknown(body, name)       whether its own words call a name unknown
    with_lessons(actions, lessons)  what becomes of fields then, in the words of `dialects.Dialect.body`

Forms that are read: pydantic's `extra_forbidden` (vLLM, Mistral, which writes it as text within text), OpenAI's and
Azure's `unsupported_parameter`, Google's "Unknown name ...: Cannot find field", and plain sentences.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from breakeven.errors import printable

Action = str | dict[str, Any]
"""What becomes of a field: "drop", {"rename": NAME} or {"add": VALUE}."""
REFUSING = frozenset({400, 422})
"""Statuses that may be about a field."""
NO_ROOM = "output limit was reached"
"""OpenAI's reasoning models refuse so what is cut within their thoughts: they complete all the same."""
LEAST_TOKENS = 16
"""OpenAI's responses give no fewer, and whoever makes them of a chat (OpenRouter) refuses an answer of one token."""


class Lesson(NamedTuple):
    """`field` is not taken: it is left out, or goes by the name `instead`.

    `alters`: another answer may come of it, so that only who measures does without it, and says so; for a client's
    request its own field is left to its own server's word.
    """

    field: str
    instead: str = ""
    alters: bool = False

    def __str__(self) -> str:
        return f"{self.field} as {self.instead}" if self.instead else f"no {self.field}"


LESSONS: tuple[Lesson, ...] = (
    Lesson("stream_options"),
    Lesson("ignore_eos"),
    Lesson("seed"),
    Lesson("max_tokens", "max_completion_tokens"),
    Lesson("max_completion_tokens", "max_tokens"),
    Lesson("user"),
    Lesson("store"),
    Lesson("metadata"),
    Lesson("prompt_cache_key"),
    Lesson("safety_identifier"),
    Lesson("service_tier"),
    Lesson("top_k", alters=True),
    Lesson("temperature", alters=True),
    Lesson("logit_bias", alters=True),
    Lesson("timings_per_token", alters=True),
    Lesson("cache_prompt", alters=True),
)
"""All that can be learned, each a bit where a backend's lessons are one number: new ones go to the end."""
_HOLDERS = ("stream_options", "metadata")
_PART = r"(?!(?:\.|\\*['\"]\s*,\s*\\*['\"])(?!include_usage\b)\w+\b(?!\\*['\"]\s*:))"
"""Behind a field that has parts: none of these, as `stream_options.include_obfuscation` or a list of names tells one.
Who does not know a part knows the field, but for `include_usage`, which it is for.
"""
_FIELDS = {
    lesson.field: re.compile(rf"(?<![\w.]){lesson.field}(?!\w){_PART if lesson.field in _HOLDERS else ''}")
    for lesson in LESSONS
}
"""Nothing else that was sent is looked for: its names are a client's, and may be a thousand long ones."""
_MOST_WORDS = 64

_UNKNOWN = re.compile(
    r"extra_forbidden|extra (?:inputs?|fields?|parameters?)|extraneous key"
    r"|unrecogni[sz]ed|unsupported(?![_ ]value)|unknown|unexpected"
    r"|(?:is|are|argument) not supported|does(?: not|n't) support|no longer supported|cannot find field"
    r"|use '?\w+'? instead",
    re.IGNORECASE,
)
_TOGETHER = re.compile(r"at the same time|\bboth\b|mutually exclusive", re.IGNORECASE)
"""Of two names of one field, which a client gave at once: neither is unknown."""
_NOT_TAKEN = re.compile(rf"{_UNKNOWN.pattern}|remove|not (?:allowed|permitted)", re.IGNORECASE)
"""DeepSeek (before V3.2) asks to remove thoughts. Of fields, which have everyday names, these say too little."""
_REPEATED = ("input", "body", "failed_generation")
"""Parts of a refusal that are its client's own words (pydantic, FastAPI) or its model's (Groq)."""
_REPEATS = re.compile(rf"['\"](?:{'|'.join(_REPEATED)})\\*['\"]\s*:")
"""The same within a text, as vLLM tells what pydantic said."""
_NEAR = 80
"""Letters between what a sentence says of a field and its name."""
_READ = 8192
"""Bytes of a refusal that are read."""
_DEEPEST = 6
_CODES = frozenset(("unsupported_parameter", "unknown_parameter", "unrecognized_parameter", "extra_forbidden"))


def lesson_of(status: int, body: bytes, sent: Collection[str], *, clients: bool = False) -> Lesson | None:
    """What the refusal of a request with the fields `sent` teaches; None: nothing that is known what to do about.

    `clients`: the fields are a client's, whose answer must stay what it asked for.
    """
    if status not in REFUSING:
        return None
    text = body[:_READ].decode(errors="replace")
    try:
        told = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = None
    named = [*_named(told), *_said(text, sent)]
    for name in named:
        for lesson in LESSONS:
            if lesson.field == name and name in sent and not (clients and lesson.alters):
                return None if lesson.instead in sent and _TOGETHER.search(text) else lesson
    return None


_TEACHES = 1 << 16
"""Bytes of a request that may teach; what is longer is not looked through."""


def may_repeat(body: bytes) -> bool:
    """Whether a request itself has words of a refusal, which its server may only have repeated: it teaches nobody."""
    if len(body) > _TEACHES or b"\\u" in body:
        return True
    return _UNKNOWN.search(body.decode(errors="replace")) is not None


def _named(told: Any, depth: int = _DEEPEST) -> Iterator[str]:
    """Fields that the parts of a refusal name."""
    if depth == 0:
        return
    if isinstance(told, str) and told[:1] in "[{" and told:
        # Mistral: what its own server said, as text.
        try:
            told = msgspec.json.decode(told)
        except (msgspec.MsgspecError, RecursionError):
            return
    if isinstance(told, list):
        for each in told:
            yield from _named(each, depth - 1)
    elif isinstance(told, dict):
        where, about = told.get("loc"), told.get("param")
        if told.get("type") == "extra_forbidden" and isinstance(where, list) and where:
            yield str(where[-1])
        if isinstance(about, str) and (told.get("code") in _CODES or told.get("type") in _CODES):
            yield about
        for name, value in told.items():
            if name not in _REPEATED:
                yield from _named(value, depth - 1)


def calls_unknown(body: bytes, name: str) -> bool:
    """Whether a refusal calls `name` unknown, in its server's own words: not in what it repeats."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = None
    if name in _named(told):
        return True
    said = _REPEATS.split(_words(told) or body[:_READ].decode(errors="replace"), maxsplit=1)[0][:_READ]
    named = re.compile(rf"\b{re.escape(name)}\b(?!\.\w)")
    return any(
        named.search(said[max(0, word.start() - _NEAR) : word.end() + _NEAR])
        for word in islice(_NOT_TAKEN.finditer(said), _MOST_WORDS)
    )


def _said(text: str, sent: Collection[str]) -> list[str]:
    """Fields that its sentences call unknown, the nearest to such a word first."""
    found: list[tuple[int, str]] = []
    fields = [(name, field) for name, field in _FIELDS.items() if name in sent]
    for word in islice(_UNKNOWN.finditer(text), _MOST_WORDS):
        start = max(0, word.start() - _NEAR)
        around = text[start : word.end() + _NEAR]
        for name, field in fields:
            for place in field.finditer(around):
                at = start + place.start()
                found.append((min(abs(at - word.end()), abs(word.start() - at - len(name))), name))
    return [name for _, name in sorted(found)]


def with_lessons(actions: Mapping[str, Action], lessons: Iterable[Lesson]) -> dict[str, Action]:
    """Actions on a body's fields (`dialects.Dialect.body`) with what was learned, which goes before it."""
    made = dict(actions)
    for lesson in lessons:
        # Who wants the older name back does not get the newer one made of it again.
        made.pop(lesson.instead, None)
        made[lesson.field] = {"rename": lesson.instead} if lesson.instead else "drop"
    return made


def as_number(lessons: Iterable[Lesson]) -> int:
    """A bit for each."""
    return sum(1 << LESSONS.index(lesson) for lesson in set(lessons))


def from_number(number: int) -> tuple[Lesson, ...]:
    """Those whose bits are set."""
    return tuple(lesson for k, lesson in enumerate(LESSONS) if number >> k & 1)


_TOO_FEW = re.compile(r"tokens\b.{0,80}?(?:below (?:the )?minimum|at least|>=|greater than)", re.IGNORECASE | re.DOTALL)


def wants_more(status: int, said: str) -> bool:
    """Whether a refusal, in its own words, is of an answer as short as was asked for."""
    return status in REFUSING and _TOO_FEW.search(said) is not None


def refusal_text(body: bytes) -> str:
    """A refusal in the server's own words, one line; its parts where it has no words of its own."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = None
    words = _words(told) or body[:_READ].decode(errors="replace")
    return printable(" ".join(words.split()))[:_SHOWN]


_SHOWN = 300


def _words(told: Any, depth: int = _DEEPEST) -> str:
    if depth == 0 or not told:
        return ""
    if isinstance(told, list):
        return _words(told[0], depth - 1)
    if isinstance(told, dict):
        message = next((told[key] for key in ("error", "message", "detail", "msg") if told.get(key)), None)
        found = _words(message, depth - 1)
        beyond = told.get("metadata")
        if found and isinstance(beyond, dict) and (inner := _words(beyond.get("raw"), depth - 1)):
            found = f"{found}: {inner}"  # OpenRouter: what the provider behind it said
        where = told.get("loc")
        return f"{'.'.join(map(str, where))}: {found}" if found and isinstance(where, list) else found
    if isinstance(told, str):
        if told[:1] in "[{":
            try:
                return _words(msgspec.json.decode(told), depth - 1) or told
            except (msgspec.MsgspecError, RecursionError):
                return told
        return told
    return ""
