"""What the answer to one request amounts to so far: pieces of output with their times, counts, and oddities.

Pure: bytes and times in, state out. Understands `/v1/completions` and `/v1/chat/completions`, as a stream and in one
piece. This is the hot path of the client: every event of every stream passes through `feed`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from breakeven.wire.sse import SseParser


class BrokenStreamError(Exception):
    """The stream cannot be used; `kind` is `broken_stream`, or `refused` when the engine said so itself."""

    def __init__(self, text: str, kind: str = "broken_stream") -> None:
        super().__init__(text)
        self.kind = kind


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server says it counted, in tokens. `cached_tokens`: prompt tokens it did not have to process."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


class ServerTimings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """llama.cpp's own account of one request: tokens processed (`_n`) and milliseconds (`_ms`) per phase.

    `predicted_ms` runs from the first token to the last, so it covers `predicted_n - 1` decode steps
    (llama.cpp, tools/server, server_slot_stats).
    """

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    cache_n: int = 0


# gc=False: none of these can be part of a cycle, and the collector has less to look at.
class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: ServerTimings | None = None
    error: Any = None


class _Whole(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    timings: ServerTimings | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode


class Reply:
    """Accumulates one answer. A piece of output is an event that brings text or, where told, tokens."""

    __slots__ = (
        "_as_told",
        "_counts",
        "_finished",
        "_notes",
        "_parser",
        "_told",
        "_usage",
        "_usages",
        "chunk_ns",
        "counted",
        "done_ns",
        "timings",
    )

    def __init__(self) -> None:
        self.chunk_ns: list[int] = []
        self.timings: ServerTimings | None = None
        self.done_ns: int | None = None
        self.counted = True
        """False for an answer in one piece whose server told no numbers: nothing is known of its tokens then."""
        self._parser: SseParser | None = None
        """None for what is no stream."""
        self._counts: list[int] = []
        """Tokens so far, as told by the server after each piece; shorter than `chunk_ns` when it does not tell."""
        self._usage: _Usage | None = None
        self._told: _Usage | None = None
        self._as_told: Usage | None = None
        self._usages = 0
        self._finished = False
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
        for data in events:
            if self.done_ns is not None:
                self.note("output_after_done")
            elif data.strip() == b"[DONE]":
                self.done_ns = now_ns
            else:
                self._take(data, now_ns)
        return self.done_ns is not None

    def take_whole(self, body: bytes, now_ns: int) -> None:
        """Take an answer in one piece, complete at `now_ns`. Raises BrokenStreamError for what is no completion."""
        try:
            whole = _decode_whole(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BrokenStreamError(f"not a completion: {body[:80].decode(errors='replace')}") from error
        if whole.error is not None:
            raise BrokenStreamError(f"the engine reports: {_message(whole.error)}", kind="refused")
        if not whole.choices:
            raise BrokenStreamError(f"a completion without choices: {body[:80].decode(errors='replace')}")
        self._usage, self.timings = whole.usage, whole.timings
        self.counted = whole.usage is not None or whole.timings is not None
        self._finished = True
        self.done_ns = now_ns

    def end(self) -> None:
        """The connection closed without `[DONE]`. Raises BrokenStreamError unless the answer is whole all the same."""
        if self._parser is not None and self._parser.unfinished:
            raise BrokenStreamError("the stream ends inside an event")
        if not self._finished:
            what = "before the answer was finished" if self.chunk_ns else "without any output"
            raise BrokenStreamError(f"the stream ends {what}")
        self.note("no_done")

    def note(self, anomaly: str) -> None:
        """Record an oddity, once."""
        if anomaly not in self._notes:
            self._notes.append(anomaly)

    @property
    def usage(self) -> Usage | None:
        """What the server says it counted, as it said last."""
        told = self._usage
        if told is None:
            return None
        if self._told is told:
            return self._as_told
        details = told.prompt_tokens_details
        self._told = told
        self._as_told = Usage(
            prompt_tokens=told.prompt_tokens,
            completion_tokens=told.completion_tokens,
            cached_tokens=details.cached_tokens if details else None,
        )
        return self._as_told

    @property
    def output_tokens(self) -> int:
        """Tokens received: as the server counted them, else pieces of output (see the `no_usage` anomaly)."""
        if self._usage is not None and self._finished:
            return self._usage.completion_tokens
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
        usage = self.usage
        if self._finished and usage is None:
            notes.append("no_usage")
        if self._usages > 1 and not several_usages_expected:
            notes.append("several_usages")
        if self.output_tokens > asked_tokens:
            notes.append("more_than_asked")
        if (usage and usage.cached_tokens) or (self.timings and self.timings.cache_n):
            notes.append("prompt_cached")
        return notes

    def _take(self, data: bytes, now_ns: int) -> None:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BrokenStreamError(f"not a piece of a completion: {data[:80].decode(errors='replace')}") from error
        if chunk.error is not None:
            raise BrokenStreamError(f"the engine reports: {_message(chunk.error)}", kind="refused")
        told: int | None = None
        usage, timings = chunk.usage, chunk.timings
        if usage is not None:
            self._usages += 1
            self._usage = usage
            told = usage.completion_tokens
        if timings is not None:
            self.timings = timings
            told = timings.predicted_n
        has_text = False
        for choice in chunk.choices:
            delta = choice.delta
            if choice.text if delta is None else delta.content or delta.reasoning_content or delta.reasoning:
                has_text = True
            if choice.finish_reason:
                self._finished = True
        # Where the server counts aloud, a piece without text can be a token, and one with text can be several. A
        # count that only comes at the end is no such thing: it says nothing about the pieces before it.
        if told is not None and len(self._counts) == len(self.chunk_ns):
            if told > (self._counts[-1] if self._counts else 0):
                self.chunk_ns.append(now_ns)
                self._counts.append(told)
        elif has_text:
            self.chunk_ns.append(now_ns)


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
