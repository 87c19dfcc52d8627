"""What is an answer: the one table of what a status says, and of what an event of a stream is.

Failover, breakers, learning, metrics and the client that measures all judge by it. It knows the four endpoints that
write text (chat and plain completions, responses, messages) and what servers of their kind are known to send beside.

    standing(status)      who is to blame, and whether another backend is asked
    event_kind(data)      content, an error, or neither: what a stream has said so far
    body_kind(body)       the same of an answer in one piece

An answer is a status below 300 and content. A stream that brings none has failed, whatever its status; a first token is
an event of content, so no comment, ping, role or empty delta is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from breakeven.errors import printable
from breakeven.wire.sse import fields_of, lone, mended

Standing = Literal["answer", "client", "unable", "busy", "operator", "broken"]
"""What a status says of whom.

answer     all is well.
client     what the client asked for is wrong, and would be anywhere: it is its answer.
unable     this backend cannot do what was asked, another may. It says nothing of its health.
busy       it has no room: another is asked, it is left alone for as long as it wants.
operator   it takes not what we ourselves send: our key, our account, the model's name, the address. The client cannot
           mend that, and must not take it for a word about itself: it is told 502, and the reason.
broken     it failed.
"""
ELSEWHERE: frozenset[Standing] = frozenset({"unable", "busy", "operator", "broken"})
"""Another backend is asked, as long as the client has had no byte."""
AGAINST: frozenset[Standing] = frozenset({"operator", "broken"})
"""Counts as a failure in the backend's breaker, and teaches nothing about its speed."""

_NAMED = (404, 409, 410)
"""About something that lives at the backend and that the request names."""
STANDINGS: Mapping[int, Standing] = MappingProxyType(
    {
        **dict.fromkeys(range(100, 300), "answer"),
        **dict.fromkeys(range(300, 400), "operator"),  # an address that has moved
        **dict.fromkeys(range(400, 500), "client"),
        **dict.fromkeys((401, 402, 403, 407), "operator"),  # credentials and the account
        **dict.fromkeys((*_NAMED, 405, 421, 426, 464), "operator"),  # the model, path, host and HTTP are ours
        **dict.fromkeys((408, 425), "broken"),
        424: "broken",  # text-generation-inference: generating failed
        429: "busy",
        498: "busy",  # Groq: no capacity left in its flexible tier
        **dict.fromkeys((495, 496, 497), "operator"),  # nginx: our certificate, or no TLS where it wants it
        499: "broken",  # nginx beside it: it hung up on its own backend
        **dict.fromkeys(range(500, 600), "broken"),  # 520 to 530: a proxy's words for an origin that is gone or slow
        **dict.fromkeys((501, 505), "unable"),
    }
)


def standing(status: int, *, named: bool = False) -> Standing:
    """What `status` says, `broken` for a number that HTTP has not.

    `named`: the request names something that lives at the backend, a response by its id or a file, so that "not found"
    and "conflict" may be about that.
    """
    if named and status in _NAMED:
        return "client"
    return STANDINGS.get(status, "broken")


Kind = Literal["content", "error", "finish", "usage", "done", "ping", "empty", "unread"]
"""What one event is.

content    it brings output: text, reasoning, a tool call, a refusal, sound. The first one is the first token.
error      the backend says that it failed.
finish     why the answer ends, and nothing else. Content may have been before; where none was, nothing was said.
usage      counts alone.
done       `[DONE]`.
ping       a comment, `data: null`, a named ping: keeps the connection alive.
empty      an event of the protocol that says nothing yet: a role, an empty delta, a response that was created.
unread     no JSON, or none that an answer is made of. Something was said all the same: whoever passes it on takes it
           for content, whoever measures for a broken stream.

Counts may stand beside content, a finish or an empty delta: whoever wants them reads `usage` of every event.
"""
BEGINS: frozenset[Kind] = frozenset({"content", "unread"})
"""The answer has begun: no other backend can be asked any more, and a stream without one has failed."""

_PINGS = frozenset((b"", b"null", b"{}", b"ping", b"PING"))
_PING_NAMES = frozenset((b"ping", b"keepalive", b"keep-alive", b"heartbeat"))
_PING_TYPES = frozenset(name.decode() for name in _PING_NAMES)
_FAILED_TYPES = frozenset(("error", "response.failed", "response.error"))
_FINISH_TYPES = frozenset(("message_stop", "response.completed", "response.incomplete", "response.cancelled"))
_MUTE_KEYS = frozenset(("type", "index", "role", "status", "object", "annotations", "logprobs", "signature"))
"""Of parts of a content: what they hold is no output."""
_DEEPEST = 6  # an output has items, an item parts, a part text
BROKEN_OFF = ("error", "abort", "aborted", "network_error", "insufficient_system_resource")
"""Reasons to end that are failures: OpenRouter's and Mistral's, vLLM's and SGLang's, z.ai's, DeepSeek's."""
_FAILURES = tuple(b'"%b"' % word.encode() for word in BROKEN_OFF)


class EventDelta(msgspec.Struct, gc=False):
    """What a choice brings, by all names that it goes by."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    refusal: Any = None
    function_call: Any = None
    audio: Any = None
    images: Any = None
    thinking: Any = None
    reasoning_details: Any = None
    reasoning_text: Any = None
    thinking_blocks: Any = None


class EventChoice(msgspec.Struct, gc=False):
    """One of the choices of an event."""

    delta: EventDelta | None = None
    text: Any = None
    finish_reason: Any = None
    message: EventDelta | None = None
    error: Any = None


class StreamEvent(msgspec.Struct, gc=False):
    """One event of any of the four endpoints, as far as it says what it is."""

    choices: list[EventChoice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    type: Any = None
    delta: Any = None
    content_block: Any = None
    item: Any = None
    text: Any = None
    arguments: Any = None
    message: Any = None
    detail: Any = None
    response: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct, gc=False):
    output: Any = None


_decode = msgspec.json.Decoder(StreamEvent).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def event_kind(data: bytes | None, name: bytes = b"") -> Kind:
    """What an event with these fields is (`sse.fields_of`). Never raises."""
    if name == b"error":
        return "error"
    if data is None or is_ping(data, name):
        return "ping"
    if data.strip() == b"[DONE]":
        return "done"
    try:
        return kind_of(_decode(data))
    except _UNREADABLE:
        pass
    try:
        return kind_of(_decode(mended(data)))
    except _UNREADABLE:
        return "error" if b'"error"' in data and _told_error(lone(data)) else "unread"


def raw_kind(raw: bytes) -> Kind:
    """What one whole event is, as `SseCutter` and `split_events` give it."""
    return event_kind(*fields_of(raw))


def is_ping(data: bytes, name: bytes = b"") -> bool:
    """Whether the event only keeps the connection alive."""
    return name in _PING_NAMES or (len(data) < 16 and data.strip() in _PINGS)


def kind_of(event: StreamEvent) -> Kind:
    """What a decoded event is."""
    if event.error:
        return "error"
    choices = event.choices
    if choices:
        finish: Any = None
        for choice in choices:
            if choice.error or (choice.finish_reason and choice.finish_reason in BROKEN_OFF):
                return "error"
            delta = choice.delta or choice.message
            if delta is None:
                if choice.text:
                    return "content"
            elif (type(delta.content) is str and delta.content) or _brings(delta):
                return "content"
            finish = choice.finish_reason or finish
        return "finish" if finish else "empty"
    if event.object == "error":
        return "error"
    if isinstance(event.type, str):
        return _typed_kind(event, event.type)
    if event.usage is not None:
        return "usage"
    return "error" if isinstance(event.message, str) or event.detail else "empty"


def _typed_kind(event: StreamEvent, kind: str) -> Kind:
    """An event of the responses or the messages."""
    if kind in _FAILED_TYPES:
        return "error"
    if kind in _PING_TYPES:
        return "ping"
    if kind in _FINISH_TYPES:
        return "content" if event.response and _answered(event.response) else "finish"
    if kind == "message_delta":
        return "finish" if isinstance(event.delta, dict) and event.delta.get("stop_reason") else "empty"
    if kind.startswith("content_block"):
        return "content" if says(event.delta) or says(event.content_block) else "empty"
    if kind.startswith("response."):
        if kind.endswith(".delta"):
            return "content" if says(event.delta) else "empty"
        if kind.endswith(".done"):
            return "content" if says(event.text) or says(event.arguments) or _item_says(event.item) else "empty"
        return "content" if _item_says(event.item) else "empty"
    return "usage" if event.usage is not None else "empty"


def _brings(delta: EventDelta) -> bool:
    """Whether there is output in it, under any name."""
    return bool(
        says(delta.content)
        or says(delta.reasoning_content)
        or says(delta.reasoning)
        or says(delta.tool_calls)
        or says(delta.refusal)
        or says(delta.function_call)
        or says(delta.audio)
        or says(delta.images)
        or says(delta.thinking)
        or says(delta.reasoning_details)
        or says(delta.reasoning_text)
        or says(delta.thinking_blocks)
    )


def says(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether there is output in a content: text that is not empty, a part or a call that has some."""
    if isinstance(value, str):
        return bool(value)
    if not value or depth == 0:
        return False
    if isinstance(value, list):
        return any(says(part, depth - 1) for part in value)
    if isinstance(value, dict):
        return any(says(part, depth - 1) for key, part in value.items() if key not in _MUTE_KEYS)
    return False


def thinks(choices: list[EventChoice] | None) -> bool:
    """Whether choices bring thoughts in words. A summary of them, or what is encrypted, is no thought itself."""
    for choice in choices or ():
        if (delta := choice.delta or choice.message) is None:
            continue
        parts, mark = delta.reasoning_details, "text"  # OpenRouter says there what its `reasoning` is
        if not parts:
            if delta.reasoning_content or delta.reasoning or delta.thinking or delta.reasoning_text:
                return True
            parts, mark = delta.content, "thinking"
        if isinstance(parts, list) and any(isinstance(part, dict) and part.get(mark) for part in parts):
            return True
    return False


def _item_says(item: Any) -> bool:
    """Whether an item of a response has output; its id and its kind are none."""
    if not isinstance(item, dict):
        return False
    return any(says(item.get(key)) for key in ("content", "arguments", "name", "summary", "input", "code", "result"))


def _answered(response: msgspec.Raw) -> bool:
    """Whether a response that came whole, with its last event, has output."""
    try:
        output = _decode_response(response).output
    except _UNREADABLE:
        return False
    return isinstance(output, list) and any(map(_item_says, output))


_OWN_WORDS = (
    *(b'"choices"', b'"content"', b'"output"', b'"data"', b'"results"', b'"embeddings"', b'"text"'),
    *(b'"score"', b'"scores"', b'"embedding"'),  # text-embeddings-inference and llama.cpp answer with a bare list
)
_COMPLAINS = (b'"message"', b'"msg"', b'"detail"', b'"failed"')
"""Where one of them stands, an answer's own word may hold nothing: {"code": 500, "msg": "...", "data": null}."""
_NO_CHOICES = (b'"choices":[]', b'"choices": []', b'"choices":null', b'"choices": null')


class _Body(msgspec.Struct, gc=False):
    error: Any = None
    object: Any = None
    type: Any = None
    message: Any = None
    detail: Any = None
    choices: Any = None
    msg: Any = None
    status: Any = None
    content: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    results: msgspec.Raw = msgspec.Raw()
    embeddings: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()

    def holds_nothing(self) -> bool:
        """Whether none of an answer's own words stands at its top with something behind it, an empty list included."""
        own = (self.content, self.output, self.data, self.results, self.embeddings, self.text)
        return not self.choices and all(bytes(value) in (b"", b"null", b"{}") for value in own)


_decode_body = msgspec.json.Decoder(_Body).decode


def may_fail(body: bytes) -> bool:
    """Whether a word of a failure stands in an answer in one piece: quotes within a text are written otherwise."""
    return any(word in body for word in _FAILURES)


def body_kind(body: bytes) -> Literal["content", "error", "empty", "unread"]:
    """What an answer in one piece is, its status being below 300. Never raises.

    It is taken apart only where it `may_fail`, or no word that an answer is made of stands in it.
    """
    if not body.strip():
        return "empty"
    if any(word in body for word in _NO_CHOICES):
        return "error" if b'"error"' in body and _told_error(body) else "empty"
    own = any(word in body for word in _OWN_WORDS)
    if own and not may_fail(body) and not any(word in body for word in _COMPLAINS):
        return "content"
    told = _told_error(lone(body), alone=not own)
    if told is None:
        return "content" if own and not may_fail(body) else "unread"
    return "error" if told else "content" if own else "empty"


def _told_error(body: bytes, alone: bool = False) -> bool | None:
    """Whether a whole answer reports an error; None where it is no JSON object. `alone`: it has nothing else to say."""
    try:
        told = _decode_body(body)
    except _UNREADABLE:
        try:
            told = _decode_body(mended(body))
        except _UNREADABLE:
            return None
    if told.error or "error" in (told.object, told.type) or (told.object == "response" and told.status == "failed"):
        return True
    if isinstance(told.choices, list) and told.choices:
        return all(
            isinstance(one, dict) and (one.get("finish_reason") in BROKEN_OFF or bool(one.get("error")))
            for one in told.choices
        )
    said = isinstance(told.message, str) or isinstance(told.msg, str) or bool(told.detail)
    return said and (alone or told.holds_nothing())


def error_text(data: bytes, most: int = 200) -> str:
    """What an error event or body says in words, for a log: one line, printable, at most `most` characters."""
    try:
        told = _decode_body(lone(data))
    except _UNREADABLE:
        text = data.decode(errors="replace")
    else:
        found = told.error or told.message or told.msg or told.detail or told.type
        if not found and isinstance(told.choices, list):
            found = next((one["error"] for one in told.choices if isinstance(one, dict) and one.get("error")), "")
            found = found or ("broken off" if told.choices else "")
        while isinstance(found, dict):
            found = found.get("message") or found.get("error") or found.get("type") or str(found)
        text = str(found)
    return printable(" ".join(text[:most].split()))
