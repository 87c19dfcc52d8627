"""What the answer to one request amounts to so far: pieces of output with their times, counts, and oddities.

Pure: bytes and times in, state out. Understands `/v1/completions` and `/v1/chat/completions`, as a stream and in one
piece. This is the hot path of the client: every event of every stream passes through `feed`. What an event is says
`meaning`, as for the gateway.
"""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import msgspec

from breakeven.wire.meaning import StreamEvent, body_kind, error_text, is_ping, kind_of, thinks
from breakeven.wire.sse import SseParser, data_of, mended

_MOST_TOKENS = 10**9
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=_MOST_TOKENS)]
_Told = Annotated[int, msgspec.Meta(le=_MOST_TOKENS)] | Annotated[float, msgspec.Meta(le=_MOST_TOKENS)] | None


class BrokenStreamError(Exception):
    """The answer cannot be used. `kind`: `broken_stream`; `refused`: the engine said so itself; `empty`: no output."""

    def __init__(self, text: str, kind: str = "broken_stream") -> None:
        super().__init__(text)
        self.kind = kind


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server says it counted, in tokens. `cached_tokens`: prompt tokens it did not have to process.

    `completion_tokens`: all that it wrote and charges; `thought_tokens`: those of them that it calls reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    thought_tokens: int | None = None


class ServerTimings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """llama.cpp's own account of one request: tokens processed (`_n`) and milliseconds (`_ms`) per phase.

    `predicted_ms` runs from the first token to the last, so it covers `predicted_n - 1` decode steps
    (llama.cpp, tools/server, server_slot_stats).
    """

    prompt_n: _Tokens
    prompt_ms: float
    predicted_n: _Tokens
    predicted_ms: float
    cache_n: _Tokens = 0


# gc=False: none of these can be part of a cycle, and the collector has less to look at.
class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Told = None
    completion_tokens: _Told = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    total_tokens: Any = None
    prompt_cache_hit_tokens: Any = None
    cached_tokens: Any = None

    def told(self) -> Usage | None:
        """What it says, None where it is no count of a completion."""
        prompt, output = _count(self.prompt_tokens), _count(self.completion_tokens)
        if prompt is None or output is None:
            return None
        parts, total = self.completion_tokens_details, _count(self.total_tokens)
        thoughts = _count(parts.get("reasoning_tokens")) if isinstance(parts, dict) else None
        details = self.prompt_tokens_details
        inner = details.get("cached_tokens") if isinstance(details, dict) else None
        others = (self.prompt_cache_hit_tokens, self.cached_tokens)  # DeepSeek's words, Moonshot's
        # xAI and Gemini count thoughts beside the rest of an answer: their total alone holds both.
        beside = max(0, total - prompt - output) if total and prompt else 0
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output + beside,
            cached_tokens=next((count for one in (inner, *others) if (count := _count(one)) is not None), None),
            thought_tokens=max(thoughts or 0, beside) if beside or thoughts is not None else None,
        )


class _Chunk(StreamEvent, gc=False):
    usage: _Usage | None = None
    timings: ServerTimings | None = None


_decode = msgspec.json.Decoder(_Chunk).decode
_TYPED: dict[str, Any] = {"usage": _Usage | None, "timings": ServerTimings | None}
"""Parts of an event that are left out where they have another form."""
_BRINGING = ("delta", "message")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NOTHING = "the answer ends without any output"
_SHOWN_BYTES = 80


def _decoded(data: bytes) -> _Chunk:
    """Read, as the grammar decodes what is no UTF-8. Raises as `_decode`."""
    try:
        return _decode(data)
    except _UNREADABLE:
        pass
    try:
        return _decode(mended(data))
    except _UNREADABLE:
        if (found := _loosely(data)) is None:
            raise
        return found


def _loosely(data: bytes) -> _Chunk | None:
    """An event some part of which has an odd form, without that part; None for what is no event of a completion.

    What cannot be read is not told, and so nobody counts it; what remains says what it says.
    """
    try:
        found = msgspec.json.decode(mended(data))
    except _UNREADABLE:
        return None
    if not isinstance(found, dict):
        return None
    choices = found.get("choices")
    if not isinstance(choices, list | None):
        return None
    kept = []
    for each in choices or ():
        parts = (
            {key: value for key, value in each.items() if key in _BRINGING} if isinstance(each, dict) else {"": each}
        )
        if any(value and not isinstance(value, dict) for value in parts.values()):
            return None  # what stands there may be output
        if isinstance(each, dict):
            kept.append({key: value for key, value in each.items() if key not in _BRINGING or value})
    made = {key: value for key, value in found.items() if key != "response"} | {"choices": kept}
    for key, kind in _TYPED.items():
        try:
            msgspec.convert(found.get(key), kind)
        except msgspec.ValidationError:
            made[key] = None
    try:
        return msgspec.convert(made, _Chunk)
    except msgspec.ValidationError:
        return None


def _shown(data: bytes) -> str:
    return data[:_SHOWN_BYTES].decode(errors="replace")


def _refuse_rest(rest: bytes) -> NoReturn:
    """What no empty line ended: a whole answer in the place of a stream, or half an event."""
    if rest.lstrip()[:1] != b"{":
        raise BrokenStreamError(f"the stream ends inside an event: {_shown(rest)}")
    if body_kind(rest) == "error":
        raise BrokenStreamError(f"the engine reports: {error_text(rest)}", kind="refused")
    raise BrokenStreamError("an answer in one piece came where a stream was asked for")


def _count(told: Any) -> int | None:
    """A number of tokens; what is none was not told."""
    return int(told) if type(told) in (int, float) and 0 <= told <= _MOST_TOKENS else None


class Reply:
    """Accumulates one answer. A piece of output is an event that brings text or, where told, tokens."""

    __slots__ = (
        "_as_told",
        "_believed",
        "_counts",
        "_finish_ns",
        "_finished",
        "_notes",
        "_parser",
        "_said",
        "_thought",
        "_told",
        "_usage",
        "_usages",
        "chunk_ns",
        "counted",
        "done_ns",
        "timings",
    )

    def __init__(self, *, counts_believed: bool = False) -> None:
        """Nothing came yet. `counts_believed`: tokens without any text are output too: a known engine counts them."""
        self._believed = counts_believed
        self._finish_ns = 0
        self.chunk_ns: list[int] = []
        self.timings: ServerTimings | None = None
        self.done_ns: int | None = None
        self.counted = True
        """False for a whole answer whose server told no numbers: how many tokens it has is not known then."""
        self._parser: SseParser | None = None
        """None for what is no stream."""
        self._counts: list[int] = []
        """Tokens so far, as told by the server after each piece; shorter than `chunk_ns` when it does not tell."""
        self._usage: _Usage | None = None
        self._told: _Usage | None = None
        self._as_told: Usage | None = None
        self._usages = 0
        self._finished = False
        self._said = self._thought = False
        """There was content; and it began with thoughts, which are what they are counted as then."""
        self._notes: list[str] = []

    def feed(self, piece: bytes, now_ns: int) -> bool:
        """Take bytes of a stream that arrived at `now_ns`; True when it has announced its end.

        Raises BrokenStreamError for what is not an event of a completion.
        """
        parser = self._parser
        if parser is None:
            parser = self._parser = SseParser()
        try:
            events = parser.feed(piece)
        except ValueError as error:
            raise BrokenStreamError(str(error)) from error
        names = parser.names
        for k, data in enumerate(events):
            if self.done_ns is not None:
                if not is_ping(data):
                    self.note("output_after_done")
            elif len(data) < 16 and data.strip() == b"[DONE]":
                self.done_ns = now_ns
            else:
                self._take(data, now_ns, names[k] if names else b"")
        return self.done_ns is not None

    def take_whole(self, body: bytes, now_ns: int) -> None:
        """Take an answer in one piece, complete at `now_ns`. Raises BrokenStreamError for what is no completion."""
        try:
            whole = _decoded(body)
        except _UNREADABLE as error:
            raise BrokenStreamError(f"not a completion: {_shown(body)}") from error
        kind = kind_of(whole)
        if kind == "error":
            raise BrokenStreamError(f"the engine reports: {error_text(body)}", kind="refused")
        if not whole.choices:
            raise BrokenStreamError(f"a completion without choices: {_shown(body)}")
        self._usage, self.timings = whole.usage, whole.timings
        self._said, self._thought = kind == "content", thinks(whole.choices)
        self.counted = self.counts_output or self.timings is not None
        self._finished = True
        self.done_ns = now_ns
        if kind != "content" and not self.output_tokens:
            raise BrokenStreamError(_NOTHING, kind="empty")

    def end(self) -> None:
        """The body is complete. Raises BrokenStreamError unless the answer is whole, and has output."""
        if self.done_ns is None:
            parser = self._parser
            rest = data_of(parser.held) if parser is not None else None
            if rest is not None and rest.strip() == b"[DONE]":
                self.note("no_blank_line_after_done")
            elif parser is not None and parser.unfinished:
                _refuse_rest(parser.held)
            elif self._finished:
                self.note("no_done")
            else:
                what = "before the answer was finished" if self.chunk_ns else "without any output"
                raise BrokenStreamError(f"the stream ends {what}")
        if not self.chunk_ns:
            if not (self._believed and self._finished and self.output_tokens):
                raise BrokenStreamError(_NOTHING, kind="empty")
            self.chunk_ns.append(self._finish_ns)
        self.counted = self.counts_output or self.timings is not None or bool(self._counts)

    def note(self, anomaly: str) -> None:
        """Record an oddity, once."""
        if anomaly not in self._notes:
            self._notes.append(anomaly)

    @property
    def usage(self) -> Usage | None:
        """What the server says it counted, as it said last; of its output only where it `counts_output`."""
        told = self._usage
        if told is None:
            return None
        if self._told is not told:
            self._told, self._as_told = told, told.told()
        found = self._as_told
        if found is not None and not (found.prompt_tokens or found.completion_tokens) and (self._said or self.chunk_ns):
            return None  # a proxy's noughts: nothing was counted, of the prompt neither
        return found

    @property
    def counts_output(self) -> bool:
        """Whether the server says how many tokens it wrote: a count of nothing beside output is none."""
        usage = self.usage
        return usage is not None and bool(usage.completion_tokens or not (self._said or self.chunk_ns))

    @property
    def hidden_tokens(self) -> int:
        """Thoughts that the server counts and never sent: no part of any speed, and charged all the same.

        Each piece that came is one token at least, so that thoughts which came as text are not called hidden.
        """
        usage = self.usage
        if usage is None or not usage.thought_tokens or self._thought or not self._finished:
            return 0
        return min(usage.thought_tokens, max(0, usage.completion_tokens - len(self.chunk_ns)))

    @property
    def output_tokens(self) -> int:
        """Tokens received: as the server counted them, without those that never came (the `hidden_thoughts` anomaly),
        else pieces of output (`no_usage`)."""
        if self._finished and (usage := self.usage) is not None and self.counts_output:
            return usage.completion_tokens - self.hidden_tokens
        if self.timings is not None and self._finished:
            return self.timings.predicted_n
        return self._counts[-1] if self._counts else len(self.chunk_ns)

    def tokens_by_chunk(self) -> list[int] | None:
        """Tokens each piece of output carried, None when the server did not tell."""
        if not self._counts or len(self._counts) != len(self.chunk_ns):
            return None
        return [now - before for before, now in zip([0, *self._counts], self._counts, strict=False)]

    def anomalies(self, asked_tokens: int, *, several_usages_expected: bool) -> list[str]:
        """Oddities of a stream that could be used all the same."""
        notes = list(self._notes)
        if self._finished and not self.counts_output:
            notes.append("no_usage")
        if self._usages > 1 and not several_usages_expected:
            notes.append("several_usages")
        if hidden := self.hidden_tokens:
            notes.append("hidden_thoughts")
        if self.output_tokens + hidden > asked_tokens:
            notes.append("more_than_asked")
        if ((usage := self.usage) and usage.cached_tokens) or (self.timings and self.timings.cache_n):
            notes.append("prompt_cached")
        return notes

    def _take(self, data: bytes, now_ns: int, name: bytes) -> None:
        if name == b"error":
            raise BrokenStreamError(f"the engine reports: {error_text(data)}", kind="refused")
        try:
            chunk = _decode(data)
        except _UNREADABLE as error:
            if is_ping(data, name):
                self.note("empty_event")
                return
            try:
                chunk = _decode(mended(data))
                self.note("odd_event" if data.decode(errors="ignore").encode() == data else "bad_utf8")
            except _UNREADABLE:
                if (loose := _loosely(data)) is None:
                    raise BrokenStreamError(f"not a piece of a completion: {_shown(data)}") from error
                chunk = loose
                self.note("odd_event")
        kind = kind_of(chunk)
        if kind == "content" and not self._said:
            self._said, self._thought = True, thinks(chunk.choices)
        if kind == "error":
            raise BrokenStreamError(f"the engine reports: {error_text(data)}", kind="refused")
        last = False
        choices = chunk.choices
        if choices:
            for choice in choices:
                if choice.finish_reason:
                    self._finished = last = True
                    self._finish_ns = now_ns
        usage, timings = chunk.usage, chunk.timings
        if usage is None and timings is None:
            if kind == "content":
                self.chunk_ns.append(now_ns)
            return
        told: float | None = None
        if usage is not None:
            before = self._usage
            if before is not None and usage.prompt_tokens is None:  # told in parts
                usage.prompt_tokens = before.prompt_tokens
            if usage.completion_tokens is not None:
                self._usages += 1
                self._usage = usage
                told = usage.completion_tokens
            elif before is None and usage.prompt_tokens is not None:
                self._usage = usage
        if timings is not None:
            self.timings = timings
            told = timings.predicted_n
        if not choices:
            return
        # Where the server counts aloud, a piece without text can be a token, and one with text can be several. A
        # count that only comes at the end or after it, or is 0 beside text, says nothing about the pieces.
        counts, begun = self._counts, self.chunk_ns
        aloud = not self._finished or self._believed or timings is not None or (last and bool(counts))
        if told is not None and len(counts) == len(begun) and (aloud or kind == "content"):
            if told > (counts[-1] if counts else 0):
                begun.append(now_ns)
                counts.append(int(told))
            elif kind == "content" and not counts:
                begun.append(now_ns)
        elif kind == "content":
            begun.append(now_ns)
