"""How one backend is asked, as one worker knows it: where, with which headers and fields, and what refusals taught.

A lesson (`wire.lessons`) is learned by one request, whose refusal named a field and which went well without it. All
workers know it at once, by a number in shared memory, for a day and over reloads; so long the next start knows it as
well, and `serve --check` tells it, from a small file in the cache. What translation found out (how much a model writes,
which thoughts it refuses) is kept so too, but for the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit
from zlib import crc32

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.plan.reach import ENDPOINTS
from breakeven.gateway.serve.ask import WANTS_USAGE, Asked, body_of, fields_for, form_for, raw
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import LESSONS_TAUGHT, MOST_WRITTEN, TAUGHT_BY, TAUGHT_S, UNTOLD
from breakeven.gateway.translate.chat import SMALL_MAX_TOKENS, USUAL_MAX_TOKENS
from breakeven.gateway.translate.table import THOUGHTS, Fields, Turned, told_of
from breakeven.hardware.system import cache_home
from breakeven.wire.dialects import Dialect
from breakeven.wire.lessons import (
    LESSONS,
    REFUSING,
    Lesson,
    as_number,
    calls_unknown,
    from_number,
    lesson_of,
    may_repeat,
)
from breakeven.wire.message import Headers
from breakeven.wire.target import endpoint_at, split_base

CHAT = "/v1/chat/completions"
KNOWN_S = 86_400.0
"""A server may have been replaced by one that takes more: after this a lesson is learned anew, by one request."""
_MOST_BYTES = 1 << 20
_TAUGHT = (LESSONS_TAUGHT, MOST_WRITTEN, UNTOLD)
_OF_SERVER = (*_TAUGHT, TAUGHT_S, TAUGHT_BY)
_READ = 1 << 16
"""Bytes of a refusal that are looked through for a limit."""
_TOO_MANY = re.compile(rb"max_tokens: (\d{1,9}) > (\d{1,9})")
"""Anthropic's words for a limit above what the model may write, which is the second number."""
_NO_SPACE = re.compile(rb"(\d{1,9})\s*\+\s*(\d{1,9})\s*>\s*(\d{1,9})")
"""And for a prompt and a limit that are more than its context, which is the third number."""
_ABOUT_LENGTH = re.compile(rb"max_tokens|context[ _](?:length|size|window|limit)", re.IGNORECASE)
"""Of others that refuse so much, whatever numbers they tell."""


class Sent(NamedTuple):
    """A request as it goes out. `left_out`: of the client's own fields, those that the backend does not take."""

    path: str
    headers: Headers
    body: bytes
    fields: Fields
    left_out: list[str]


class Speech:
    """Where and how a backend is asked. `slot` is its row in shared memory."""

    __slots__ = (
        "_block", "_dialect", "_headers", "_known", "_most", "_number", "_paths", "_plan", "_query", "_row", "_spoken",
        "_under", "_whose",
    )  # fmt: skip

    def __init__(self, plan: BackendPlan, slot: int, block: SharedBlock) -> None:
        """With what earlier starts learned."""
        self._plan = plan
        self._spoken = self._dialect = plan.spoken
        self._number = 0
        # Half of what it takes, so that there is room for the prompt.
        self._most = plan.max_output or min(USUAL_MAX_TOKENS, (plan.context or 2 * USUAL_MAX_TOKENS) // 2 or 1)
        # An agent of its own is the connection's affair (`lane.agent_of`).
        self._headers = [
            (name.lower().encode(), value.encode())
            for name, value in self._spoken.headers.items()
            if name.lower() != "user-agent"
        ]
        root, self._under = split_base(plan.url or "/v1")
        self._query = self._spoken.query_at(urlsplit(root).path)
        self._paths: dict[str, str] = {
            endpoint: endpoint_at(self._under, endpoint, self._query) for endpoint in ENDPOINTS
        }
        self._block, self._known = block, block.known.mine(0)
        self._row, self._whose = slot * block.known.columns, whose(plan)
        self._known[self._row + TAUGHT_BY] = self._known[self._row + TAUGHT_BY] or self._whose
        if plan.url is not None and not self._taught(LESSONS_TAUGHT) and (number := as_number(remembered(plan))):
            self._keep(LESSONS_TAUGHT, number, _memory(plan).at_s)

    @property
    def dialect(self) -> Dialect:
        """How it is asked, with all that was learned so far."""
        number = self._taught(LESSONS_TAUGHT)
        if number != self._number:
            self._number, self._dialect = number, self._spoken.taught(from_number(number))
        return self._dialect

    @property
    def most_output(self) -> int:
        """Tokens of a translated answer where its client names no limit and the backend wants one."""
        told = self._taught(MOST_WRITTEN)
        return min(told, self._most) if told else self._most

    @property
    def untold(self) -> frozenset[str]:
        """Names of earlier thoughts that it refuses."""
        bits = self._taught(UNTOLD)
        return frozenset(name for k, name in enumerate(THOUGHTS) if bits >> k & 1)

    def _taught(self, column: int) -> int:
        """What it taught within the last day; 0: nothing."""
        known, row = self._known, self._row
        value = int(known[row + column])
        if value and known[row + TAUGHT_BY] != self._whose:
            return 0
        if value and self._block.now_s() - known[row + TAUGHT_S] > KNOWN_S:
            for one in _TAUGHT:
                known[row + one] = 0.0
            return 0
        return value

    def _keep(self, column: int, value: int, at_s: float | None = None) -> None:
        # Of two workers at once the later one wins.
        if self._known[self._row + TAUGHT_BY] != self._whose:
            return
        for one in _TAUGHT:
            self._taught(one)  # what is a day old is not made new by this
        self._known[self._row + TAUGHT_S] = self._block.now_s() if at_s is None else at_s
        self._known[self._row + column] = value

    def sent(
        self, endpoint: str, headers: Headers, fields: Fields, own: Iterable[str] = (), more: Iterable[Lesson] = ()
    ) -> Sent:
        """A request for this backend: `fields` of its body, raw, of which `own` are the client's.

        `more`: lessons that are not known to hold yet.
        """
        left_out: list[str] = []
        if endpoint in WANTS_USAGE:
            dialect = self.dialect
            if more:
                dialect = dialect.taught(more)
            if dialect.body:
                fields = dialect.acted(fields, chat=endpoint == CHAT, made=raw)
                left_out = [name for name in own if dialect.body.get(name) == "drop"]
        return Sent(self._path(endpoint), self._with_own(headers), body_of(fields), fields, left_out)

    def sent_form(self, endpoint: str, headers: Headers, body: bytes) -> Sent:
        """A request with a form, whose body goes as it came but for the model's name."""
        return Sent(self._path(endpoint), self._with_own(headers), body, {}, [])

    def _path(self, endpoint: str) -> str:
        return self._paths.get(endpoint) or endpoint_at(self._under, endpoint, self._query)

    def _with_own(self, headers: Headers) -> Headers:
        if not self._headers:
            return headers
        # What a client says for itself, of the few headers that cross, goes before what is said for all.
        said = {name for name, _ in headers}
        return [*headers, *(pair for pair in self._headers if pair[0] not in said)]

    def learn(self, lessons: Iterable[Lesson]) -> None:
        """It answered without what it had refused: keep that."""
        number = self._taught(LESSONS_TAUGHT) | as_number(lessons)
        self._keep(LESSONS_TAUGHT, number)
        remember(self._plan, from_number(number))

    def writes_at_most(self, tokens: int) -> None:
        """It answered with this limit, after it had refused a higher one as more than its model writes."""
        self._keep(MOST_WRITTEN, min(tokens, self.most_output))

    def refuses(self, thoughts: frozenset[str]) -> None:
        """It answered without these."""
        self._keep(UNTOLD, sum(1 << THOUGHTS.index(name) for name in thoughts | self.untold))


class AskedFor(Protocol):
    """What a client asked for, and how. `query`: "" or with its "?"."""

    asked: Asked
    endpoint: str
    headers: Headers
    query: str


class Question:
    """One request to one backend, in its own words; asked once more where a refusal names a field it can do without.

    `turned`: in the words of another API, where the backend does not speak the client's.
    """

    __slots__ = (
        "_asked", "_doubted", "_fields", "_fits", "_headers", "_knew", "_left_out", "_lessons", "_lowered", "_model",
        "_most", "_query", "_speech", "_untold", "adds", "endpoint", "turned",
    )  # fmt: skip

    def __init__(self, speech: Speech, model: msgspec.Raw, wanted: AskedFor, way: str) -> None:
        """`model`: as the backend calls it. `way`: the API that it is asked in. Raises CannotTranslateError."""
        self._speech, self._model, self._asked = speech, model, wanted.asked
        self.turned = turned = wanted.asked.turn(wanted.endpoint, way)
        self.endpoint = wanted.endpoint if turned is None else turned.way
        self._headers = wanted.headers
        self._query = wanted.query if turned is None else ""
        self._fields: Fields = {}
        self._left_out: list[str] = []
        self._lessons: tuple[Lesson, ...] = ()
        self._most, self._untold = (0, frozenset[str]()) if turned is None else (speech.most_output, speech.untold)
        self._knew = self._untold
        self._lowered = self._doubted = False
        self._fits: int | None = None
        """Tokens of an answer for which there is room behind this prompt, where there are fewer."""
        self.adds: Mapping[str, msgspec.Raw] = {}
        """Fields of ours, which no client may be refused for."""

    def sent(self) -> Sent:
        """As it goes out now."""
        asked, endpoint = self._asked, self.endpoint
        if self.turned is not None:
            most, signs = self._fits or self._most, self._speech.dialect.signs_calls
            fields = self.turned.fields(self._model, most, self._untold, signs=signs)
            if self.adds:
                fields = {**fields, **self.adds}
            own = [name for name in asked.fields if name in fields]
            sent = self._speech.sent(endpoint, self._headers, fields, own, self._lessons)
            sent = sent._replace(headers=self.turned.headers(sent.headers))  # behind what the operator says
            if self.turned.thinks and len(self._untold) == len(THOUGHTS):
                sent.left_out.append(THOUGHTS[0])
        elif asked.form is not None:
            sent = self._speech.sent_form(endpoint, self._headers, form_for(asked.form, self._model))
        else:
            fields = fields_for(asked, self._model, tell_usage=asked.streams and endpoint in WANTS_USAGE)
            if self.adds:
                fields = {**fields, **self.adds}
            sent = self._speech.sent(endpoint, self._headers, fields, asked.fields, self._lessons)
        self._fields, self._left_out = sent.fields, sent.left_out
        if self._query:
            path = sent.path + (self._query if "?" not in sent.path else "&" + self._query[1:])
            return sent._replace(path=path)
        return sent

    def again(self, status: int, refusal: bytes) -> bool:
        """Whether a refusal names a field that its backend can be asked without, as the next `sent` is."""
        if status in REFUSING and self.turned is not None and self._says_less(self.turned, refusal):
            return True
        if self.endpoint not in WANTS_USAGE:
            return False
        if self.adds and status in (400, 422):
            self.adds = {}
            return True
        lesson = lesson_of(status, refusal, self._fields, clients=True)
        if lesson is None or lesson in self._lessons or (lesson.instead and self.endpoint != CHAT):
            return False
        self._lessons = (*self._lessons, lesson)
        self._doubted = self._doubted or may_repeat(body_of(self._fields))
        return True

    def _says_less(self, turned: Turned, refusal: bytes) -> bool:
        """Whether it refuses what the translation put in, of which there can be less."""
        if turned.unlimited and self._asks_for_less(refusal[:_READ]):
            return True
        if turned.thinks:
            for name in THOUGHTS:
                if name not in self._untold and calls_unknown(refusal, name):
                    self._untold |= {name}
                    return True
        return False

    def _asks_for_less(self, refusal: bytes) -> bool:
        """Whether it refuses our limit. What its model writes holds from now on, what has room for this prompt alone;
        each is asked once."""
        asked = self._most
        if self._fits is not None:
            return False
        told = _TOO_MANY.search(refusal)
        if told and not self._lowered and int(told[1]) == asked and 0 < int(told[2]) < asked:
            self._most, self._lowered = int(told[2]), True
            sent = body_of(self._fields)
            # Words of its client's, which it may only have repeated, limit nobody else.
            self._doubted = self._doubted or b"\\u" in sent or _TOO_MANY.search(sent) is not None
            return True
        told = _NO_SPACE.search(refusal)
        most = SMALL_MAX_TOKENS if _ABOUT_LENGTH.search(refusal) else 0
        if told and int(told[2]) == asked:
            most = int(told[3]) - int(told[1])
        if not 0 < most < asked:
            return False
        self._fits = most
        return True

    def body(self) -> bytes:
        """What was sent last, but for what only we asked for. Of a form: an empty object."""
        return body_of({name: value for name, value in self._fields.items() if name not in self.adds})

    def went_well(self) -> None:
        """It was answered: what its refusals taught is true."""
        if self._lessons and not self._doubted:
            self._speech.learn(self._lessons)
        if self._lowered and not self._doubted:
            self._speech.writes_at_most(self._most)
        if not self._lessons and (new := self._untold - self._knew):  # else that may have been all that was wrong
            self._speech.refuses(new)

    @property
    def translated_to(self) -> str:
        """The API its backend was asked in, where that is not the client's; else empty."""
        return "" if self.turned is None else self.endpoint

    def told(self) -> list[tuple[bytes, bytes]]:
        """What the client is told of it."""
        return told_of(self.turned, self._left_out)


class _Memory(msgspec.Struct):
    """What one server taught, in the words of its lessons, and when; Unix time."""

    lessons: list[str] = []
    at_s: float = 0.0

    def holds(self) -> bool:
        """Whether that was within the last day."""
        return 0 <= time.time() - self.at_s < KNOWN_S


def remembered(plan: BackendPlan) -> tuple[Lesson, ...]:
    """What a backend taught within the last day."""
    lessons = _memory(plan).lessons
    return tuple(lesson for lesson in LESSONS if str(lesson) in lessons)


def remember(plan: BackendPlan, lessons: Iterable[Lesson]) -> None:
    """Keep what a backend taught; where nothing can be written, the next start learns it again."""
    with contextlib.suppress(OSError, UserError):
        file = _file()
        found = {name: memory for name, memory in _memories().items() if memory.holds()}
        found[_name(plan)] = _Memory(list(map(str, lessons)), time.time())
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.encode(found))
        part.replace(file)


def _memory(plan: BackendPlan) -> _Memory:
    found = _memories().get(_name(plan))
    return found if found is not None and found.holds() else _Memory()


def _memories() -> dict[str, _Memory]:
    try:
        with _file().open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_BYTES), type=dict[str, _Memory])
    except (OSError, UserError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _file() -> Path:
    return cache_home() / "breakeven" / "lessons.json"


def _name(plan: BackendPlan) -> str:
    return f"{plan.url} {plan.served_model or plan.name}"


def whose(plan: BackendPlan) -> int:
    """A number for the server that a backend is, and for what was said of how much it writes."""
    return crc32(repr((_name(plan), plan.local, plan.max_output)).encode()) or 1


def forget_former(plan: GatewayPlan, block: SharedBlock, rows: Mapping[str, int]) -> dict[int, list[float]]:
    """What was taught by servers that others take the places of, by their names, is not true of these.

    Returns it by row, for `recall` where the others do not come.
    """
    former: dict[int, list[float]] = {}
    for backend in plan.backends:
        row, server = rows[backend.name], whose(backend)
        if block.known.get(0, row, TAUGHT_BY) != server:
            former[row] = [block.known.get(0, row, column) for column in _OF_SERVER]
            recall({row: [*[0.0] * (len(_OF_SERVER) - 1), float(server)]}, block)
    return former


def recall(former: Mapping[int, list[float]], block: SharedBlock) -> None:
    """As it was before `forget_former`."""
    for row, values in former.items():
        for column, value in zip(_OF_SERVER, values, strict=True):
            block.known.put(0, row, column, value)
