"""What an experiment reads in an answer: its text, whether it is a refusal, whether it equals another's.

Is this answer a refusal? By what the backend says of it, else by how the text begins.

Phrases that models trained to decline begin with, in English. It errs both ways: a refusal in other words or another
language is missed, a story whose first sentence is "I'm sorry, but I can't" counts as one. Errors that both arms share
cancel when arms are compared, so only the difference is worth reading, never the share.

The text of an answer, for requests of an experiment only: is it a refusal, and is it the same as another?

While it passes, its bytes are kept up to a limit (`Kept`); after its end they are decoded once (`read`). Knows the
answers and the stream events of the four endpoints that generate text. An answer longer than the limit is judged by
what was kept: a refusal shows at the beginning, two answers that agree that far count as equal.
"""

from __future__ import annotations

from typing import Any

import msgspec

from breakeven.gateway.experiment.assign import answer_digest
from breakeven.wire.sse import events_of

FINISHES = frozenset({"content_filter", "refusal"})
"""OpenAI's and Anthropic's finish reasons of an answer that was declined."""
LOOK_AT = 160
"""Characters of the beginning that are looked at."""
OPENINGS = (
    "i'm sorry, but i can't",
    "i'm sorry, but i cannot",
    "i'm sorry, but i am not able",
    "i'm sorry, but i'm not able",
    "i'm sorry, but i'm unable",
    "i'm sorry, but i won't",
    "i'm sorry, i can't",
    "i'm sorry, i cannot",
    "i am sorry, but i can",
    "sorry, but i can't",
    "sorry, i can't",
    "i can't assist",
    "i can't help",
    "i can't provide",
    "i can't do that",
    "i can't comply",
    "i cannot assist",
    "i cannot help",
    "i cannot provide",
    "i cannot fulfill",
    "i cannot comply",
    "i can not assist",
    "i'm not able to help",
    "i'm not able to assist",
    "i'm not able to provide",
    "i'm unable to",
    "i am unable to",
    "i won't help",
    "i won't provide",
    "i must decline",
    "i have to decline",
    "i apologize, but i can",
    "i apologize, but i'm",
    "as an ai language model, i can't",
    "as an ai language model, i cannot",
    "as an ai, i can't",
    "as an ai, i cannot",
    "my apologies, but i can",
    "unfortunately, i can't",
    "unfortunately, i cannot",
)


def is_refusal(text: str, finish: str = "", refusal: str | None = None) -> bool:
    """Whether the answer declines. `finish`: its finish reason; `refusal`: OpenAI's field of the message."""
    if finish in FINISHES or refusal:
        return True
    start = text[:LOOK_AT].lstrip(" \t\r\n*_\"'#>").lower().replace("\u2019", "'")
    return start.startswith(OPENINGS)


KEEP_BYTES = 256 * 2**10
"""Of one answer: some 1,500 streamed tokens of chat."""


class SaidAnswer(msgspec.Struct, frozen=True):
    """What an answer said. `digest` is empty where no text was found (an embedding, an error, a tool call alone)."""

    text: str
    refusal: bool
    digest: str


class Kept:
    """The beginning of one answer's bytes. `observed`: whoever looks at experts wants them; `cut`: there was more."""

    __slots__ = ("_left", "cut", "observed", "pieces")

    def __init__(self, most: int = KEEP_BYTES, *, observed: bool = False) -> None:
        self._left, self.observed, self.cut = most, observed, False
        self.pieces: list[bytes] = []

    def add(self, data: bytes) -> None:
        """A piece, as it came from the backend."""
        if self._left > 0:
            self.pieces.append(data[: self._left])
        self.cut = self.cut or len(data) > self._left
        self._left = max(0, self._left - len(data))

    def answer(self) -> SaidAnswer:
        """What the kept bytes say, of which no more are read than are usually kept: equal answers stay equal."""
        return read(b"".join(self.pieces)[:KEEP_BYTES])


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    """What it thought, where its engine tells that apart."""


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Stop(msgspec.Struct):
    text: str | None = None
    stop_reason: str | None = None


class _Item(msgspec.Struct):
    content: list[_Part] | None = None


class _Event(msgspec.Struct):
    """Any of them: chat and completions have `choices`, messages `content`, responses `output`; events have `delta`."""

    choices: list[_Choice] | None = None
    content: list[_Part] | None = None
    output: list[_Item] | None = None
    delta: _Stop | str | None = None
    stop_reason: str | None = None
    type: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_TEXT_EVENTS = ("response.output_text.delta", "response.refusal.delta")


def read(raw: bytes, *, thoughts: bool = False) -> SaidAnswer:
    """The answer in `raw`: one JSON object, or server-sent events, the last of which may be cut short.

    Of several choices the first is taken; `thoughts`: with what it thought before. Never raises: what cannot be read
    has no text.
    """
    streamed = raw.lstrip()[:1] != b"{"
    pieces = events_of(raw) if streamed else [raw]
    texts: list[str] = []
    finish, refused = "", False
    for piece in pieces:
        try:
            event = _decode(piece)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        said, ended, declined = _said(event, thoughts)
        texts.append(said)
        finish = ended or finish
        refused = refused or declined
    text = "".join(texts)
    return SaidAnswer(text, is_refusal(text, finish) or refused, answer_digest(text) if text else "")


def _said(event: _Event, thoughts: bool) -> tuple[str, str, bool]:
    """Text, finish reason, and whether the API itself says that it declined."""
    texts: list[str] = []
    finish, declined = event.stop_reason or "", False
    for choice in event.choices or ():
        if choice.index:
            continue
        finish = choice.finish_reason or finish
        texts.append(choice.text or "")
        for message in (choice.message, choice.delta):
            if message is not None:
                if thoughts:
                    texts.append(thought if isinstance(thought := message.reasoning_content, str) else "")
                content = message.content
                texts.append(content if isinstance(content, str) else _text(content))
                texts.append(message.refusal or "")
                declined = declined or bool(message.refusal)
    texts.append(_text(event.content))
    for item in event.output or ():
        texts.append(_text(item.content))
        declined = declined or any(part.refusal for part in item.content or ())
    if isinstance(event.delta, str):
        if event.type in _TEXT_EVENTS:
            texts.append(event.delta)
            declined = declined or event.type == _TEXT_EVENTS[1]
    elif event.delta is not None:
        texts.append(event.delta.text or "")
        finish = event.delta.stop_reason or finish
    return "".join(texts), finish, declined


def _text(parts: list[_Part] | None) -> str:
    return "".join((part.text or "") + (part.refusal or "") for part in parts or ())
