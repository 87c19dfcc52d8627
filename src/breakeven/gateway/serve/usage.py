"""What an answer says of its own size: the backend's counts, and the text itself where it does not count.

Counts stand in an object `usage` of a document or an event, or one level down in its `response` or `message`. They are
taken as they are written: a field that is no number was not told. `UsageScan` finds them in what is too long to hold.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from breakeven.wire.meaning import EventChoice, StreamEvent, thinks
from breakeven.wire.sse import mended

MOST_TOKENS = 10**8
"""Counts beyond, or below 0, are no counts: budgets are computed with them."""
BYTES_PER_TOKEN = 2
"""Of text that nobody counted. English has four or five, but a key must not be charged less than it got."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
ENDS = (
    *("message_stop", "response.completed", "response.incomplete", "response.failed", "response.cancelled"),
    *("transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed"),
)
"""Types of events by which a stream says that it ends as it should."""
_DEEPEST = 8
_MUTE = frozenset(
    (
        "type", "index", "role", "status", "object", "id", "call_id", "item_id", "annotations", "logprobs", "signature",
        "finish_reason", "stop_reason", "encrypted_content", "data", "b64_json", "url", "image_url", "usage",
    )
)  # fmt: skip
"""Of parts of an answer: what they hold is no text."""
_HOLDERS = (b"response", b"message")
_LONGEST_NAME = 16
_LONGEST_REASON = 40
_MOST_GRABBED = 16 * 1024
"""Of one `usage`."""
_decode = msgspec.json.Decoder().decode


class Counted(msgspec.Struct):
    """Tokens as the backend counted them; None: it did not say. Cached ones are part of the prompt's, as are those
    `written_tokens` that it put into its cache.

    `thoughts`: of the output, what it calls reasoning; `thinks_aloud`: the answer began with some, in words.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    written_tokens: int | None = None
    output_tokens: int | None = None
    thoughts: int = 0
    thinks_aloud: bool = False

    def add(self, usage: Any) -> bool:
        """Take in a `usage`; whether it tells of output. Of several the greatest counts: some servers count aloud."""
        if not isinstance(usage, dict):
            return False
        prompt, output = _number(usage.get("prompt_tokens")), _number(usage.get("completion_tokens"))
        total = _number(usage.get("total_tokens"))
        thoughts = thoughts_of(usage) or 0
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        read = _number(usage.get("cache_read_input_tokens"))
        written = _number(usage.get("cache_creation_input_tokens"))
        cached = cached_of(usage)
        cached = read if cached is None else cached
        if prompt is None and (prompt := _number(usage.get("input_tokens"))) is not None:
            # Anthropic counts what was read from a cache, or written to it, beside the rest.
            prompt += (read or 0) + (written or 0)
        if written is None and isinstance(details, dict):
            written = _number(details.get("cache_write_tokens"))
        if output is None:
            output = _number(usage.get("output_tokens"))
        if prompt and output is not None and total is not None and (beside := total - prompt - output) > 0:
            # xAI and Gemini count thoughts beside the rest of an answer: their total alone holds both.
            output, thoughts = output + beside, max(thoughts, beside)
        self.thoughts = max(self.thoughts, thoughts)
        if prompt is not None:
            self.prompt_tokens = _more(self.prompt_tokens, prompt)
        if cached is not None:
            self.cached_tokens = _more(self.cached_tokens, cached)
        if written is not None:
            self.written_tokens = _more(self.written_tokens, written)
        if output is not None:
            self.output_tokens = _more(self.output_tokens, output)
        return bool(output)


def _number(value: Any) -> int | None:
    """A count of tokens, None for what is none."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def thoughts_of(usage: dict[str, Any]) -> int | None:
    """Tokens of an answer that a `usage` calls reasoning: OpenAI's words, Anthropic's, SGLang's."""
    parts = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    if not isinstance(parts, dict):
        parts = {}
    told = (parts.get("reasoning_tokens"), parts.get("thinking_tokens"), usage.get("reasoning_tokens"))
    return next((number for value in told if (number := _number(value)) is not None), None)


def cached_of(usage: dict[str, Any]) -> int | None:
    """Tokens of a prompt that a `usage` says a cache had: OpenAI's words, DeepSeek's, Moonshot's."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    inner = details.get("cached_tokens") if isinstance(details, dict) else None
    told = (inner, usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens"))
    return next((number for value in told if (number := _number(value)) is not None), None)


def _more(old: int | None, new: int | None) -> int | None:
    return old if new is None else new if old is None or new > old else old


def tokens_of(text_bytes: int) -> int:
    """What so much text is taken for where nobody counted it."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def is_document(body: bytes) -> bool:
    """Whether it is JSON to its end, with Python's NaN too, or with what is no UTF-8."""
    try:
        json.loads(mended(body))
    except (ValueError, RecursionError):
        return False
    return True


def text_bytes(value: Any, depth: int = _DEEPEST) -> int:
    """Bytes of all text in a part of an answer, whatever it is called: content, reasoning, arguments of a call."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if not value or depth == 0:
        return 0
    if isinstance(value, list):
        return sum([text_bytes(part, depth - 1) for part in value])
    if isinstance(value, dict):
        return sum([text_bytes(part, depth - 1) for key, part in value.items() if key not in _MUTE])
    return 0


def choice_bytes(choice: EventChoice, *, whole: bool) -> int:
    """Bytes of text that a choice of an event brings, below 0 where it brings nothing.

    `whole`: it may come as a message, which otherwise repeats what came before.
    """
    size = text_bytes(choice.text) if choice.text else 0
    silent = not size
    for delta in (choice.delta, choice.message if whole else None):
        if delta is None:
            continue
        # Reasoning goes by several names, and some servers send it under two at once.
        thought = delta.reasoning_content or delta.reasoning or delta.thinking or delta.reasoning_details
        thought = thought or delta.reasoning_text or delta.thinking_blocks
        said = text_bytes(delta.content) + (text_bytes(thought) if thought else 0)
        if more := [part for part in (delta.tool_calls, delta.refusal, delta.function_call, delta.audio) if part]:
            said += text_bytes(more)
        size += said
        silent = silent and not (said or delta.audio or delta.images)
        if said:
            break
    return -1 if silent else size


def event_bytes(event: StreamEvent) -> int:
    """Bytes of text in an event of the responses or the messages."""
    said = text_bytes([event.delta, event.content_block, event.item, event.text, event.arguments])
    return said or parts_bytes(_within(event).output)


def parts_bytes(*parts: msgspec.Raw) -> int:
    """Bytes of text in parts of an answer that are not taken apart yet."""
    size = 0
    for part in parts:
        try:
            size += text_bytes(_decode(part)) if len(bytes(part)) else 0
        except UNREADABLE:
            size += len(bytes(part))
    return size


def usage_of(event: StreamEvent) -> Any:
    """What an event says of usage: itself, or its response, or the message that it begins."""
    if event.usage is not None:
        return event.usage
    if isinstance(event.message, dict):
        return event.message.get("usage")
    return _within(event).usage if event.response else None


def finish_of(event: StreamEvent) -> str:
    """Why an event says that its stream ends, empty where it does not."""
    for choice in event.choices or ():
        if choice.finish_reason:
            return str(choice.finish_reason)[:_LONGEST_REASON]
    if isinstance(event.delta, dict) and (reason := event.delta.get("stop_reason")):
        return str(reason)[:_LONGEST_REASON]
    return event.type if event.type in ENDS else ""


def thinks_aloud(event: StreamEvent) -> bool:
    """Whether an event brings thoughts in words."""
    delta = event.delta
    spoken = "reasoning_text" in str(event.type) or (isinstance(delta, dict) and bool(delta.get("thinking")))
    return spoken or thinks(event.choices)


class _Holder(msgspec.Struct):
    usage: Any = None
    output: msgspec.Raw = msgspec.Raw()


class _Ending(msgspec.Struct):
    finish_reason: Any = None


class WholeBody(_Holder):
    """An answer in one piece, of any endpoint."""

    choices: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()
    stop_reason: Any = None
    status: Any = None

    @property
    def finish(self) -> str:
        """Why it ended, as far as it says."""
        try:
            endings = _decode_endings(self.choices) if self.choices else []
        except UNREADABLE:
            endings = []
        reason = endings[0].finish_reason if endings else self.stop_reason or self.status
        return str(reason)[:_LONGEST_REASON] if reason else ""


_decode_holder = msgspec.json.Decoder(_Holder).decode
_decode_endings = msgspec.json.Decoder(list[_Ending]).decode


def _within(event: StreamEvent) -> _Holder:
    """The response that an event holds."""
    try:
        return _decode_holder(event.response) if event.response else _Holder()
    except UNREADABLE:
        return _Holder()


class UsageScan:
    """Feed the bytes of one JSON document, cut anywhere; what it says of usage is in `counted`. Holds a few bytes.

    `told`: it says how long the answer is.
    Only quotes, brackets and what stands between two quotes are looked at, so that a text of megabytes costs little.
    Within an event of several lines, the `data:` at their beginnings has none of these.
    """

    __slots__ = ("_after_name", "_depth", "_escaped", "_grabbed", "_holder", "_in_text", "_name", "_to", "told")

    def __init__(self, counted: Counted) -> None:
        self._to = counted
        self.told = False
        self._depth = 0
        self._in_text = self._escaped = self._after_name = False
        self._name = self._holder = b""
        self._grabbed: bytes | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        at = 0
        while at < len(data):
            if self._grabbed is not None:
                data, at = self._grab(data[at:]), 0
            elif self._in_text:
                at = self._text(data, at)
            else:
                at = self._between(data, at)

    def _text(self, data: bytes, at: int) -> int:
        """Within a string: on to its end."""
        start = at
        while (quote := data.find(b'"', at)) >= 0:
            before = quote
            while before > start and data[before - 1] == 92:
                before -= 1
            escaped = (quote - before) % 2 == 1
            if before == start and self._escaped:
                escaped = not escaped
            if not escaped:
                self._name += data[start : min(quote, start + _LONGEST_NAME)]
                self._in_text = self._escaped = False
                self._after_name = True
                return quote + 1
            at = quote + 1
        end = len(data)
        before = end
        while before > start and data[before - 1] == 92:
            before -= 1
        odd = (end - before) % 2 == 1
        self._escaped = (not odd if self._escaped else odd) if before == start else odd
        if len(self._name) <= _LONGEST_NAME:
            self._name += data[start : start + _LONGEST_NAME]
        return end

    def _between(self, data: bytes, at: int) -> int:
        """Outside of strings: on to the next one, or to a value that is wanted."""
        quote = data.find(b'"', at)
        part = data[at:quote] if quote >= 0 else data[at:]
        if self._after_name and (rest := part.lstrip()):
            self._after_name = False
            if rest[:1] == b":":
                if self._depth == 1:
                    self._holder = self._name
                if self._name == b"usage" and (self._depth == 1 or (self._depth == 2 and self._holder in _HOLDERS)):
                    self._grabbed = b""
                    return at + len(part) - len(rest) + 1
        self._depth += part.count(b"{") + part.count(b"[") - part.count(b"}") - part.count(b"]")
        if quote < 0:
            return len(data)
        self._after_name, self._in_text, self._name = False, True, b""
        return quote + 1

    def _grab(self, data: bytes) -> bytes:
        """The value of a `usage`; returns what is to be read after it."""
        assert self._grabbed is not None
        grabbed = (self._grabbed + data).lstrip()
        self._grabbed = grabbed
        if not grabbed:
            return b""
        if grabbed[:1] == b"{":
            end = grabbed.find(b"}")
            while 0 <= end < _MOST_GRABBED:
                try:
                    usage = _decode(grabbed[: end + 1].replace(b"\ndata:", b"\n").replace(b"\rdata:", b"\r"))
                except UNREADABLE:
                    end = grabbed.find(b"}", end + 1)
                    continue
                self.told = self._to.add(usage) or self.told
                self._grabbed = None
                return grabbed[end + 1 :]
            if len(grabbed) < _MOST_GRABBED:
                return b""
        self._grabbed = None
        return grabbed
