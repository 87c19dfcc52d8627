"""What an answer says, whatever API it came in: the one form between readers of a backend's and writers of a client's.

A whole answer is an `AnswerSaid`; of a stream each event gives `AnswerPart`s, and an `AnswerSaid` has what holds for
all of them. Readers know the backends' two forms (chat completions, Anthropic's messages); `table.StreamTurner` goes
through a stream with one of them. Counts are not read here: the gateway counts the same bytes as of any answer
(`serve.tap`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol
from zlib import crc32

import msgspec

from breakeven.wire.meaning import BROKEN_OFF, error_text
from breakeven.wire.sse import mended

Json = dict[str, Any]
"""An object of JSON, taken apart."""
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PartKind = Literal["thought", "text", "refusal", "call"]
_FINISHES = {
    "stop": "stop", "length": "length", "tool_calls": "calls", "function_call": "calls", "content_filter": "filter",
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "calls", "refusal": "filter",
    "model_context_window_exceeded": "length", "pause_turn": "stop", "model_length": "length", "sensitive": "filter",
}  # fmt: skip
"""Why an answer ends, in the words of both APIs, of Mistral and z.ai, and in ours."""
_CUTS = ("length", "filter")
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


class CannotTranslateError(Exception):
    """What one API says and the other has no words for; the text begins with its name."""


def shown(value: object) -> str:
    """A value behind its name, where it is a word: what else a client writes stands in no message and no log."""
    return f" {value!r}" if isinstance(value, str) and _WORD.fullmatch(value) else ""


class Counts(NamedTuple):
    """Tokens of one request, as its backend counted them, else as they were estimated.

    `cached`: of the prompt's, those that a cache had; `written`: those that were put into one; None: nobody told.
    `thoughts`: of the output's.
    """

    prompt: int
    cached: int | None
    output: int
    thoughts: int = 0
    written: int | None = None


class AnswerFacts(NamedTuple):
    """What an answer is made with beside what its backend says: an id, Unix time, a guess at the prompt's tokens."""

    ident: str
    unix_s: int
    prompt: int


class AnswerPart(msgspec.Struct, gc=False):
    """A piece of an answer. Of a call, `text` are the arguments, as JSON; `at` tells calls of one answer apart.

    `signature`: Gemini's of the thoughts before it, which must come back with it.
    """

    kind: PartKind
    text: str = ""
    id: str = ""
    name: str = ""
    at: int = 0
    signature: str = ""


class StreamedCall(msgspec.Struct):
    """The latest call on one index of a stream. `next`: the id, or "", of another one that may begin."""

    at: int
    id: str
    name: str
    pieces: list[str] = msgspec.field(default_factory=list)
    next: str | None = None


class AnswerSaid(msgspec.Struct):
    """One answer. `finish`: stop, length, calls or filter, empty while it goes on. `stop`: the sequence that did it.

    Of a stream only: `calls` by their index at the backend, and how many of them, or of blocks, have `begun`; `given`:
    what calls brought at their beginning, by block, until it is known whether that is all; `spoken`: deltas brought.
    """

    parts: list[AnswerPart] = msgspec.field(default_factory=list)
    finish: str = ""
    stop: str | None = None
    ident: str = ""
    model: str = ""
    created: int = 0
    calls: dict[int, StreamedCall] = msgspec.field(default_factory=dict)
    begun: int = 0
    given: dict[int, Any] = msgspec.field(default_factory=dict)
    spoken: bool = False


class Writer(Protocol):
    """An answer in a client's words. Made for one request."""

    def whole(self, said: AnswerSaid, counts: Counts) -> Json:
        """In one piece. Raises CannotTranslateError."""

    def begin(self, said: AnswerSaid) -> bytes:
        """The first events of a stream."""

    def part(self, part: AnswerPart) -> bytes:
        """The events of what comes next; empty where nothing can be said yet."""

    def end(self, said: AnswerSaid, counts: Counts) -> bytes:
        """The last events of a stream that ends as it should."""

    def fail(self, message: str) -> bytes:
        """The last event of one that does not."""

    def error(self, status: int, message: str) -> bytes:
        """A body that says so in place of an answer."""


class ToldError(CannotTranslateError):
    """The backend says that it failed."""


def read_chat(body: bytes) -> AnswerSaid:
    """A chat completion. Raises CannotTranslateError for what is none."""
    answer, said = _object(body), AnswerSaid()
    _facts(answer, said)
    choice = _first(answer.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CannotTranslateError("choices of the backend's answer: no message in the first one")
    said.parts = [_signed(part) for part in _parts(message)]
    _finish(choice, said)
    said.finish = said.finish or "stop"
    return said


def chat_event(data: bytes, said: AnswerSaid) -> list[AnswerPart]:
    """What an event of a stream of chat completions brings."""
    event = _event(data)
    _facts(event, said)
    choice = _first(event.get("choices"))
    # It may come as messages, which repeat what came before where deltas came.
    delta = choice.get("delta") or (None if said.spoken else choice.get("message"))
    parts = _parts(delta) if isinstance(delta, dict) else []
    said.spoken = said.spoken or (bool(choice.get("delta")) and any(part.kind != "thought" for part in parts))
    for part in parts:
        if part.kind == "call":
            _tell_apart(part, said)
            _signed(part)
    _finish(choice, said)
    return parts


def read_message(body: bytes) -> AnswerSaid:
    """One of Anthropic's messages. Raises CannotTranslateError for what is none."""
    answer, said = _object(body), AnswerSaid()
    content = answer.get("content")
    if not isinstance(content, list):
        raise CannotTranslateError("content of the backend's answer: none")
    _facts(answer, said)
    said.parts = [part for at, block in enumerate(content) if (part := _block(block, at, whole=True)) is not None]
    _stopped(answer, said)
    if said.finish in _CUTS and said.parts and (last := said.parts[-1]).kind == "call" and last.text == "{}":
        last.text = ""  # as of a stream
    said.finish = said.finish or "stop"
    return said


def message_event(data: bytes, said: AnswerSaid) -> list[AnswerPart]:
    """What an event of a stream of messages brings."""
    event = _event(data)
    kind, at = event.get("type"), event.get("index")
    at = at if isinstance(at, int) else 0
    if kind == "message_start" and isinstance(message := event.get("message"), dict):
        _facts(message, said)
    elif kind == "content_block_start":
        block = event.get("content_block")
        part = _block(block, at, whole=False)
        said.begun = max(said.begun, at + 1)
        if part is not None and part.kind == "call" and isinstance(block, dict):
            said.given[at] = block.get("input") or {}
        return [] if part is None or (part.kind != "call" and not part.text) else [part]
    elif kind == "content_block_delta" and isinstance(delta := event.get("delta"), dict):
        for name, brings in (("text", "text"), ("thinking", "thought"), ("partial_json", "call")):
            if isinstance(text := delta.get(name), str) and text:
                if brings == "call":
                    said.given.pop(at, None)
                return [AnswerPart(brings, text, at=at)]  # type: ignore[arg-type]  # three of the four kinds
    elif kind == "message_delta" and isinstance(delta := event.get("delta"), dict):
        _stopped(delta, said)
        return _given(said) if said.finish else []
    return []


def _given(said: AnswerSaid) -> list[AnswerPart]:
    """Arguments of which no piece came: of a tool that takes nothing, or of a server (Kimi's) that says all of them at
    the beginning. Where an answer was cut, none in its last block may be what was cut off."""
    given, said.given = said.given, {}
    cut = said.begun - 1 if said.finish in _CUTS else -1
    return [AnswerPart("call", encode(found).decode(), at=at) for at, found in given.items() if found or at != cut]


class Reads(NamedTuple):
    """How a backend's answers are read: in one piece, and an event of a stream."""

    whole: Callable[[bytes], AnswerSaid]
    event: Callable[[bytes, AnswerSaid], list[AnswerPart]]


READERS: dict[str, Reads] = {CHAT: Reads(read_chat, chat_event), MESSAGES: Reads(read_message, message_event)}


# What both readers have in common.


def _object(body: bytes) -> Json:
    try:
        found = decode(mended(body))
    except UNREADABLE:
        found = None
    if not isinstance(found, dict):
        raise CannotTranslateError("the backend's answer: no JSON object")
    return found


def _event(data: bytes) -> Json:
    found: Any = decode(mended(data))
    if not isinstance(found, dict):
        raise ValueError("no object")
    if found.get("error") or found.get("type") == "error" or found.get("object") == "error":
        raise ToldError(error_text(data))
    return found


def _facts(answer: Json, said: AnswerSaid) -> None:
    ident, model, created = answer.get("id"), answer.get("model"), answer.get("created")
    if isinstance(ident, str):
        said.ident = ident.removeprefix("chatcmpl-").removeprefix("msg_") or said.ident
    if isinstance(model, str):
        said.model = model or said.model
    if isinstance(created, int):
        said.created = created or said.created


def _first(choices: Any) -> Json:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _finish(choice: Json, said: AnswerSaid) -> None:
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if isinstance(reason, str) and reason:
        if reason in BROKEN_OFF:
            raise ToldError(f"the backend broke the answer off{shown(reason)}")
        said.finish = _FINISHES.get(reason, "stop")
    if isinstance(stop, str):  # vLLM tells the sequence
        said.stop = stop


def _stopped(answer: Json, said: AnswerSaid) -> None:
    reason, stop = answer.get("stop_reason"), answer.get("stop_sequence")
    if isinstance(reason, str) and reason:
        said.finish = _FINISHES.get(reason, "stop")
    if isinstance(stop, str):
        said.stop = stop


def _parts(message: Json) -> list[AnswerPart]:
    """What a message or a delta of chat brings, reasoning first."""
    found: list[AnswerPart] = []
    thought = next(filter(None, map(message.get, ("reasoning_content", "reasoning", "thinking", "reasoning_text"))), "")
    if isinstance(thought, str) and thought:
        found.append(AnswerPart("thought", thought))
    content = message.get("content")
    for part in _pieces(content) if isinstance(content, list) else ():
        if found and found[-1].kind == part.kind:
            found[-1].text += part.text
        else:
            found.append(part)
    if isinstance(content, str) and content:
        found.append(AnswerPart("text", content))
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        found.append(AnswerPart("refusal", refusal))
    calls = message.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            at = call.get("index")
            given = function.get("arguments")
            text = given if isinstance(given, str) else "" if given is None else encode(given).decode()
            at = at if isinstance(at, int) else place
            ident, name = str(call.get("id") or ""), str(function.get("name") or "")
            found.append(AnswerPart("call", text, ident, name, at, _signature(call)))
    return found


SIGNED = "__thought__"
"""Between a call's id and its signature, which has no place of its own in other APIs: ids come back as they were.

LiteLLM writes it so too (litellm_core_utils/prompt_templates/factory.py).
"""
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_TO_ID = str.maketrans("+/", "-_")
"""Ids of Anthropic's calls have no other signs."""
EXTRA = "extra_content"


def _signature(call: Json) -> str:
    """Google's page on OpenAI's API: it stands in `extra_content.google.thought_signature` of a call."""
    extra = call.get(EXTRA)
    google = extra.get("google") if isinstance(extra, dict) else None
    found = google.get("thought_signature") if isinstance(google, dict) else None
    return found if isinstance(found, str) and len(found) % 4 == 0 and _BASE64.fullmatch(found) else ""


def _signed(part: AnswerPart) -> AnswerPart:
    """With its signature in its id."""
    if part.signature:
        ident = part.id or f"call_{crc32(part.signature.encode()):08x}"
        part.id = f"{ident}{SIGNED}{part.signature.rstrip('=').translate(_TO_ID)}"
    return part


def _pieces(content: list[Any]) -> Iterator[AnswerPart]:
    """A content in parts: Mistral's thoughts stand among its texts."""
    for one in content:
        if not isinstance(one, dict):
            continue
        thought = one.get("thinking")
        if isinstance(thought, list):
            thought = "".join(str(each.get("text") or "") for each in thought if isinstance(each, dict))
        if isinstance(thought, str) and thought:
            yield AnswerPart("thought", thought)
        if isinstance(text := one.get("text"), str) and text:
            yield AnswerPart("text", text)


def _tell_apart(part: AnswerPart, said: AnswerSaid) -> None:
    """Number a piece of a call anew: some servers give all that are made at once one index, or none.

    Another call begins under a new id with another name, or with the same one where the arguments so far are whole. An
    id alone says little: vLLM has made one up for each piece (https://github.com/vllm-project/vllm/pull/23522).
    """
    call = said.calls.get(part.at)
    begins = call is None
    if call is not None and part.name and (part.id != call.id if part.id else not call.id):
        whole = _is_whole(call.pieces)
        other = bool(call.name) and part.name != call.name
        begins = (other and (bool(part.id) or whole)) or (whole and bool(part.text.strip()))
        if whole and not begins:
            call.next = part.id  # another one, if arguments follow
    elif call is not None and call.next is not None and part.text.strip():
        part.id, part.name, begins = call.next, call.name, True
    if call is None or begins:
        call = said.calls[part.at] = StreamedCall(said.begun, part.id, part.name)
        said.begun += 1
    call.id, call.name = call.id or part.id, call.name or part.name
    if part.text:
        call.pieces.append(part.text)
    part.at = call.at


def _is_whole(pieces: list[str]) -> bool:
    """Whether arguments are an object that has ended."""
    if not pieces or not pieces[-1].rstrip().endswith("}"):
        return False
    try:
        return isinstance(decode("".join(pieces)), dict)
    except UNREADABLE:
        return False


def _block(block: Any, at: int, *, whole: bool) -> AnswerPart | None:
    """A block of a message. Its beginning, in a stream, holds nothing yet."""
    if not isinstance(block, dict):
        return None
    kind = block.get("type")
    if kind == "text":
        return AnswerPart("text", str(block.get("text") or ""), at=at)
    if kind == "thinking":
        return AnswerPart("thought", str(block.get("thinking") or ""), at=at)
    if kind == "tool_use":
        given = encode(block.get("input") or {}).decode() if whole else ""
        return AnswerPart("call", given, str(block.get("id") or ""), str(block.get("name") or ""), at)
    return None
