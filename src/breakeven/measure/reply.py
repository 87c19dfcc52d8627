"""What one streamed completion amounts to so far: pieces of output with their times, counts, and oddities.

Pure: bytes and times in, state out. Understands the streams of `/v1/completions` and `/v1/chat/completions`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from breakeven.measure.events import ServerTimings, Usage
from breakeven.measure.sse import SseParser


class BrokenStreamError(Exception):
    """The stream cannot be used; `kind` is `broken_stream`, or `refused` when the engine said so itself."""

    def __init__(self, text: str, kind: str = "broken_stream") -> None:
        super().__init__(text)
        self.kind = kind


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: ServerTimings | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class Reply:
    """Accumulates one stream. A piece of output is an event that brings text or, where told, tokens."""

    def __init__(self) -> None:
        self.chunk_ns: list[int] = []
        self.usage: Usage | None = None
        self.timings: ServerTimings | None = None
        self.done_ns: int | None = None
        self._parser = SseParser()
        self._counts: list[int] = []
        """Tokens so far, as told by the server after each piece; shorter than `chunk_ns` when it does not tell."""
        self._usages = 0
        self._finished = False
        self._notes: list[str] = []

    def feed(self, piece: bytes, now_ns: int) -> bool:
        """Take bytes that arrived at `now_ns`; True when the stream has announced its end.

        Raises BrokenStreamError for what is not an event of a completion.
        """
        try:
            events = self._parser.feed(piece)
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

    def end(self) -> None:
        """The connection closed without `[DONE]`. Raises BrokenStreamError unless the answer is whole all the same."""
        if self._parser.unfinished:
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
    def output_tokens(self) -> int:
        """Tokens received: as the server counted them, else pieces of output (see the `no_usage` anomaly)."""
        if self.usage is not None and self._finished:
            return self.usage.completion_tokens
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
        if self._finished and self.usage is None:
            notes.append("no_usage")
        if self._usages > 1 and not several_usages_expected:
            notes.append("several_usages")
        if self.output_tokens > asked_tokens:
            notes.append("more_than_asked")
        if (self.usage and self.usage.cached_tokens) or (self.timings and self.timings.cache_n):
            notes.append("prompt_cached")
        return notes

    def _take(self, data: bytes, now_ns: int) -> None:
        try:
            chunk = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BrokenStreamError(f"not a piece of a completion: {data[:80].decode(errors='replace')}") from error
        if chunk.error is not None:
            raise BrokenStreamError(f"the engine reports: {_message(chunk.error)}", kind="refused")
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            self._usages += 1
            self.usage = Usage(
                prompt_tokens=chunk.usage.prompt_tokens,
                completion_tokens=chunk.usage.completion_tokens,
                cached_tokens=details.cached_tokens if details else None,
            )
        told: int | None = None
        if chunk.timings is not None:
            self.timings = chunk.timings
            told = chunk.timings.predicted_n
        elif chunk.usage is not None:
            told = chunk.usage.completion_tokens
        if any(choice.finish_reason for choice in chunk.choices):
            self._finished = True
        has_text = any(_text(choice) for choice in chunk.choices)
        # Where the server counts aloud, a piece without text can be a token, and one with text can be several. A
        # count that only comes at the end is no such thing: it says nothing about the pieces before it.
        if told is not None and len(self._counts) == len(self.chunk_ns):
            if told > (self._counts[-1] if self._counts else 0):
                self.chunk_ns.append(now_ns)
                self._counts.append(told)
        elif has_text:
            self.chunk_ns.append(now_ns)


def _text(choice: _Choice) -> str | None:
    delta = choice.delta
    if delta is None:
        return choice.text
    return delta.content or delta.reasoning_content or delta.reasoning


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
