"""What a backend's answers teach of lengths: how many bytes of a prompt are a token, and how long an answer is.

Both are guesses that order and reserve; neither refuses anybody by itself. Three things keep one key from spoiling them
for another:

- **What was not seen teaches nothing.** A prompt teaches bytes a token only where all of it was measured (`measured`):
  no stored conversation, no file, no picture, and no unknown field as long as a text.
- **A key has means of its own**, from its first answer on. Those of all keys together are for who was not seen yet.
- **A row of lessons by one key counts ever less** for those of all: the nth a nth of the first. Without keys there is
  nobody to protect, and each counts alike.

A mean stays within bounds whatever it is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from breakeven.gateway.keys.entry import NANO, KeyLimit
from breakeven.gateway.route.speed import USUAL_OUTPUT
from breakeven.gateway.shared.layout import BYTES_PER_TOKEN, MEAN_OUTPUT

USUAL_BYTES = 4.0
"""Of English text as JSON, until the backend's own counts say otherwise."""
LEAST_BYTES, MOST_BYTES = 1.0, 16.0
"""Bytes of a prompt's JSON that a token can be: digits and base64 have 1.5, spaces and repeated words 8 and more."""
LEAST_OUTPUT, MOST_OUTPUT = 1.0, 16_384.0
LEARNING = 0.05
"""Weight of one answer: the last twenty or so count."""
MOST_KEYS = 1024
"""Keys with means of their own, a backend; who was not heard of for longest goes first."""

_PROMPT = frozenset(("messages", "prompt", "input", "system", "instructions", "tools"))
"""What `serve.ask` measures."""
_SETTINGS = frozenset(
    (
        "model", "stream", "stream_options", "user", "stop", "stop_sequences", "tool_choice", "response_format", "text",
        "metadata", "logit_bias", "prompt_cache_key", "safety_identifier", "reasoning", "service_tier", "include",
    )
)  # fmt: skip
"""Fields that may be long and are no part of a prompt."""
_ELSEWHERE = frozenset(("previous_response_id", "conversation", "container", "documents", "files", "file_ids"))
"""Fields that bring more of a prompt from where it cannot be measured, however short they are."""
_SHORT_BYTES = 64
"""An unknown field up to here is a setting; a longer one may be text."""
_MARKS = (b'_id"', b'_url"', b'"input_audio"', b'"file_data"', b'"image"', b'"input_image"', b'"document"')
"""Of parts of a message that are no text."""


def measured(fields: Mapping[str, bytes | msgspec.Raw]) -> bool:
    """Whether the prompt of this body is all in what was measured, as far as can be told. Values are raw JSON."""
    for name, raw in fields.items():
        if name in _PROMPT:
            text = bytes(raw)
            if name == "prompt" and text[:1] == b"{":  # a stored one, by its id
                return False
            if b'"type"' in text and any(mark in text for mark in _MARKS):
                return False
        elif name in _ELSEWHERE:
            if bytes(raw) not in (b"null", b"[]"):
                return False
        elif name not in _SETTINGS and len(bytes(raw)) > _SHORT_BYTES:
            return False
    return True


class Lengths:
    """Of one backend, in one worker. `cells` and `at`: its row of `Known`, which all workers share."""

    __slots__ = ("_at", "_by_key", "_cells", "_rows")

    def __init__(self, cells: Any, at: int) -> None:
        self._cells, self._at = cells, at
        self._by_key: dict[str, dict[int, tuple[float, int]]] = {}
        """By key and column: its own mean, and of how many lessons."""
        self._rows: dict[int, tuple[str, int]] = {}
        """By column: who taught last, and how often in a row."""

    def bytes_per_token(self, key: str) -> float:
        """Of this key's prompts, else of all; of the backend's tokenizer."""
        own = self._by_key.get(key)
        if own is not None and (mean := own.get(BYTES_PER_TOKEN)) is not None:
            return mean[0]
        shared: float = self._cells[self._at + BYTES_PER_TOKEN]
        return shared or USUAL_BYTES

    def output_tokens(self, key: str) -> float:
        """Of this key's mean answer, else of all."""
        own = self._by_key.get(key)
        if own is not None and (mean := own.get(MEAN_OUTPUT)) is not None:
            return mean[0]
        shared: float = self._cells[self._at + MEAN_OUTPUT]
        return shared or USUAL_OUTPUT

    def learn_bytes(self, key: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """A prompt of so many bytes, all of it measured, had so many tokens."""
        if prompt_bytes > 0 and prompt_tokens > 0:
            ratio = prompt_bytes / prompt_tokens
            self._learn(key, BYTES_PER_TOKEN, min(max(ratio, LEAST_BYTES), MOST_BYTES))

    def learn_output(self, key: str, tokens: int) -> float:
        """A whole answer had so many tokens; returns the mean of all keys' answers."""
        return self._learn(key, MEAN_OUTPUT, min(max(float(tokens), LEAST_OUTPUT), MOST_OUTPUT))

    def _learn(self, key: str, column: int, value: float) -> float:
        cells, at = self._cells, self._at + column
        weight = LEARNING
        if key:
            own = self._by_key.pop(key, None) or {}
            if len(self._by_key) >= MOST_KEYS:
                del self._by_key[next(iter(self._by_key))]
            self._by_key[key] = own
            mean, count = own.get(column, (value, 0))
            count += 1
            own[column] = (mean + max(LEARNING, 1.0 / count) * (value - mean), count)
            last, row = self._rows.get(column, ("", 0))
            row = row + 1 if last == key else 1
            self._rows[column] = (key, row)
            weight /= row
        old = cells[at]
        # Of two workers at once the later one wins, which costs one lesson.
        new: float = value if old == 0.0 else old + weight * (value - old)
        cells[at] = new
        return new


def held(limits: Sequence[KeyLimit], least_tokens: float, tokens: float, usd: float) -> tuple[float, float]:
    """What to hold of a key's budget: the estimate, but never so much that the key could not ask at all.

    `least_tokens`: what the request takes whatever was learned. Where that alone is above a limit, the estimate
    stays, and the request is refused for what it asks; where only a mean says so, it waits for an empty window.
    """
    least_usd = usd * least_tokens / tokens if tokens > least_tokens else usd
    for limit in limits:
        if limit.what == "tokens" and least_tokens <= limit.amount < tokens:
            tokens = float(limit.amount)
        elif limit.what == "usd" and least_usd * NANO <= limit.amount < usd * NANO:
            usd = limit.amount / NANO
    return tokens, usd
