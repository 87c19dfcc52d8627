"""How an answer begins, which decides whether it is one; and what a client is told of backends that gave none.

A status of success says little: a stream may hold nothing but comments for a while, then an error. So the beginning of
a stream is held until it has said something (`wire.meaning`: content, an end, or an error), which costs a normal one no
time, since its first event that is passed on is the one that says something. Until then another backend can be asked.

An answer in one piece is held as long as it is short: an error is. A backend's key is kept out of what errors repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from breakeven.wire.meaning import ELSEWHERE, Kind, Standing, body_kind, error_text, event_kind, may_fail, standing
from breakeven.wire.message import Headers
from breakeven.wire.sse import SseCutter, fields_of, lone

MOST_HELD = 256 * 1024
"""Bytes of a stream that says nothing; what is longer goes through as it comes."""
SHORT_BYTES = 16 * 1024
"""An answer in one piece up to here is held until it is whole."""
_USUAL = (b'"choices":[{', b'"choices": [{')
"""Of nearly every answer in one piece; what has neither is looked at more closely."""
WRITES = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/rerank")
)
"""Endpoints of whose answers `wire.meaning` knows what they say; of others any is one that is no error."""
REFUSED = 400
_WRONG_KEY = re.compile(
    rb"(?:incorrect|invalid) (?:\w+ )?api[ _-]?key|api_key_invalid"
    rb"|api[ _-]?key (?:is )?(?:not valid|invalid|incorrect|expired)",
    re.IGNORECASE,
)
"""What servers say of a key that answer 400 where others answer 401 (xAI, Gemini)."""
_ERROR_FIRST = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"\[]')
_FILTERED = re.compile(rb'content_filter|"(?:finish|stop)_reason"\s*:\s*"(?:refusal|sensitive)"')
"""OpenAI's and Azure's word, Anthropic's, z.ai's."""
First = Literal["", "content", "declined", "error", "empty", "none"]
"""What an answer says first.

"" nothing yet. content: output. declined: an error that is the client's own affair. error: one that is about its
backend. empty: it ends properly without content. none: nothing at all.
"""


class Opening:
    """The beginning of one answer. `status`, `stands`, `message`: of the error that it is."""

    __slots__ = (
        "_any", "_coded", "_cutter", "_fields", "_form", "_idle", "_length", "_parts", "_secret", "_size", "_whole",
        "message", "stands", "status",
    )  # fmt: skip

    def __init__(
        self,
        fields: Mapping[str, bytes | msgspec.Raw],
        *,
        streams: bool,
        coded: bool = False,
        length: int = -1,
        secret: bytes = b"",
        anything: bool = False,
        whole: bool = False,
        form: bool = False,
    ) -> None:
        """`fields` of its request, raw. `coded`: it is compressed, so that any byte is content.

        `length`: of a body in one piece, as far as its head says. `secret`: kept out of messages. `anything`: whatever
        it says is an answer but an error: sound, a picture, a count. `whole`: one in one piece is held to its end.
        `form`: its request was one, which `fields` do not hold.
        """
        self._fields, self._length, self._coded, self._secret = fields, length, coded, secret
        self._any, self._whole, self._form = anything, whole, form
        self._cutter = SseCutter(MOST_HELD) if streams else None
        self._parts: list[bytes] = []
        self._size = 0
        self._idle = b""
        """The last event that said nothing: some backends repeat one by the thousand."""
        self.status, self.message = 0, ""
        self.stands: Standing = "answer"

    def feed(self, data: bytes) -> First:
        """One more piece."""
        self._parts.append(data)
        self._size += len(data)
        cutter = self._cutter
        if self._coded:
            return "content"
        if cutter is None:
            # One write for an answer that came at once, when its end is known to be good.
            at_once = len(self._parts) == 1 and self._size == self._length
            if self._size <= SHORT_BYTES or at_once or self._whole:
                return ""
            self._whole = self._is_error()
            return "" if self._whole else "none" if self._is_page() else "content"
        for raw in cutter.feed(data):
            if raw == self._idle or raw.isspace():
                continue
            if first := self._event(*fields_of(raw)):
                return first
            self._idle = raw
        return "content" if self._size > MOST_HELD else ""

    def end(self, status: int = 200, headers: Headers = ()) -> First:
        """Nothing follows. `status`: of the answer; `headers`: of its request. Never empty.

        What refuses is the client's, whatever it says, but for a 400 that is about the gateway's own key: it amounts to
        401, and its words, which may hold a part of the key, go no further.
        """
        if status >= 300:
            if status != REFUSED or not self._refuses_key(headers):
                return "content"
            self.status, self.stands = 401, "operator"
            self.message = f"status {status}, about the gateway's own key"
            return "error"
        if self._cutter is not None:
            # Some servers leave the last empty line out.
            if first := self._event(*fields_of(self._cutter.rest() + b"\n\n")):
                return first
        elif self._size > SHORT_BYTES and not self._whole and not self._is_error():
            return "none" if self._is_page() else "content"
        body = b"".join(self._parts)
        # A document in place of a stream is an answer all the same, where no type said that it would be one.
        if self._cutter is not None and not body.lstrip().startswith(b"{"):
            return "none"
        if (_USUAL[0] in body or _USUAL[1] in body) and not may_fail(body):
            return "content"
        kind = body_kind(body)
        if kind == "error":
            return self._error(body)
        return "content" if kind == "content" or (self._any and body.strip()) else "none"

    def _is_error(self) -> bool:
        """Whether a long document begins as an error does that repeats what was sent."""
        return _ERROR_FIRST.match(self.held[:SHORT_BYTES]) is not None

    def _is_page(self) -> bool:
        """Whether a long document is a web page, though no type says so: of text that is asked for, none begins so."""
        return not self._any and self.held[:SHORT_BYTES].lstrip().startswith(b"<")

    def _refuses_key(self, headers: Headers) -> bool:
        """Whether all that came says that a key is wrong, in words that its client did not send to be repeated."""
        if self._form or not _WRONG_KEY.search(self.held):
            return False  # a form's names and files may have these words: it is not looked through
        try:
            # Without escapes, as they would be repeated.
            sent = [msgspec.json.encode(msgspec.json.decode(value)) for value in self._fields.values()]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        sent += [name.encode(errors="replace") for name in self._fields] + [value for _, value in headers]
        return not any(map(_WRONG_KEY.search, sent))

    @property
    def held(self) -> bytes:
        """All that came so far and is held."""
        return b"".join(self._parts)

    def data(self) -> bytes:
        """All that came, which is held no more."""
        parts, self._parts = self._parts, []
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return without(self._secret, data) if self.status else data

    def _event(self, data: bytes | None, name: bytes) -> First:
        kind: Kind = event_kind(data, name)
        if kind in ("content", "unread"):
            return "content"
        if kind == "error":
            return self._error(data or b"")
        if self._any and kind not in ("ping", "done"):
            return "content"
        if kind == "finish":
            # A filter's word is an answer, and would be given anywhere.
            return "declined" if data and _FILTERED.search(data) else "empty"
        # A comment, a ping, a role, an empty delta and counts say nothing yet.
        return "none" if kind == "done" else ""

    def _error(self, data: bytes) -> First:
        self.status, self.message = error_status(data), error_text(without(self._secret, data))
        self.stands = standing(self.status, named=names_something(self._fields))
        return "error" if self.stands in ELSEWHERE else "declined"


def without(secret: bytes, data: bytes) -> bytes:
    """The same without a backend's key."""
    return data.replace(secret, b"*" * len(secret)) if secret else data


class Scrub:
    """Bytes of one answer through; the key becomes as many stars, wherever the answer is cut into pieces."""

    __slots__ = ("_held", "_key", "_stars")

    def __init__(self, key: bytes) -> None:
        """`key` is not empty."""
        self._key, self._stars, self._held = key, b"*" * len(key), b""

    def feed(self, data: bytes) -> bytes:
        """What may go on; the beginning of a key that may follow is held."""
        data = (self._held + data).replace(self._key, self._stars)
        most = min(len(self._key) - 1, len(data))
        hold = next((size for size in range(most, 0, -1) if self._key.startswith(data[-size:])), 0)
        self._held = data[len(data) - hold :]
        return data[: len(data) - hold]

    def rest(self) -> bytes:
        """What was held, when nothing follows."""
        held, self._held = self._held, b""
        return held


def headers_without(key: bytes, headers: Headers) -> Headers:
    """All headers but those that hold the key."""
    return [pair for pair in headers if key not in pair[1]]


class _Error(msgspec.Struct):
    error: Any = None
    response: Any = None
    choices: Any = None
    code: Any = None
    status: Any = None
    type: Any = None


_ERROR = msgspec.json.Decoder(_Error)
_STATUSES: dict[str, int] = {
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "insufficient_quota": 402,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Types and codes of errors, as OpenAI, Anthropic and vLLM call them, and the status that each would have come with."""
BUSY, BROKEN = 429, 500


def error_status(data: bytes) -> int:
    """The status that an error told under a status of success amounts to; 500 where it does not say."""
    try:
        told = _ERROR.decode(lone(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BROKEN
    error = told.error
    if error is None and isinstance(told.response, dict):
        error = told.response.get("error")
    if error is None and isinstance(told.choices, list):
        error = next((one["error"] for one in told.choices if isinstance(one, dict) and one.get("error")), None)
    named: list[Any] = [told.code, told.status, told.type]
    if isinstance(error, dict):
        named = [error.get("code"), error.get("status"), error.get("type"), *named]
    for name in named:
        if isinstance(name, str):
            if (status := _STATUSES.get(name.lower())) is not None:
                return status
            name = int(name) if name.isascii() and name.isdecimal() and len(name) == 3 else 0
        if isinstance(name, int) and 400 <= name <= 599:
            return name
    return BROKEN


_NAMING = ("previous_response_id", "conversation", "container")
_NAMES_WITHIN = (b'"file_id"', b'"file_ids"', b'"vector_store_ids"', b'"item_reference"', b'"prompt_id"', b'"pmpt_')


def names_something(fields: Mapping[str, bytes | msgspec.Raw]) -> bool:
    """Whether a body names something that lives at a backend: a response, a conversation, a file. Values are raw JSON.

    "Not found" and "conflict" may be about that then, and are its client's own affair.
    """
    if any(name in fields and bytes(fields[name]) != b"null" for name in _NAMING):
        return True
    looked = (bytes(fields[name]) for name in ("input", "messages", "prompt", "tools") if name in fields)
    return any(mark in raw for raw in looked for mark in _NAMES_WITHIN)


EMPTY, DECLINED = "empty", "declined"
"""Outcomes of answers without content: there is none, or it is an error that is the client's own affair."""
MOST_TOLD = 600
"""Characters of what went wrong that a client is told."""
_ABOUT = {
    401: "it does not take the gateway's own key",
    402: "the gateway's account there wants to be paid",
    403: "it does not let the gateway in",
    404: "it does not know what the gateway asks for",
    407: "a proxy before it does not let the gateway in",
}
_TROUBLES = {
    "refused": "nobody listens",
    "reset": "closed before its answer",
    "cut": "closed within its answer",
    "timeout": "silent for too long",
    "garbage": "no answer that can be read",
    "too_large": "larger than the gateway passes on",
    "forbidden": "an address that may not be asked",
    EMPTY: "an answer that says nothing",
}


def status_told(status: int, message: str = "") -> str:
    """A backend's status in words for a client, who is not to take it for its own. `message`: the backend's words,
    which are not passed on where they are about the gateway's own key: they may hold a part of it."""
    if words := _ABOUT.get(status, ""):
        return f"status {status}, {words}"
    return f"status {status}: {message}" if message else f"status {status}"


def trouble_told(trouble: str) -> str:
    """A trouble in words for a client: without addresses, which details hold."""
    return _TROUBLES.get(trouble, trouble)


def trouble_is_broken(trouble: str) -> bool:
    """Whether this trouble counts as a failure of the backend. An answer above our own limit does not."""
    return trouble != "too_large"


def refusal(last: str, told: str) -> tuple[int, str, str]:
    """Status, message and code for a client whom nobody answers. `last`: the outcome of whom was asked last."""
    told = told[:MOST_TOLD]
    if last == f"error_{BUSY}":
        return BUSY, f"every backend is busy ({told})", "rate_limit_exceeded"
    if last == "timeout":
        return 504, f"the backend did not answer in time ({told})", "upstream_timeout"
    return 502, f"no backend could answer ({told})", "upstream_failed"
