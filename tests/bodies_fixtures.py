"""Small servers that only count tokens, with a tokenizer of your choice."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from breakeven.engines.backend import Backend
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import Request
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer, Step

TEMPLATE_TOKENS, TURN_TOKENS = 13, 7
Split = Callable[[str], list[str]]


def in_words(text: str) -> list[str]:
    """A tokenizer whose pieces never reach across a space, as of most models."""
    return re.findall(r"\s?\w{1,5}|\s?[^\w\s]|\s", text)


def across_words(text: str) -> list[str]:
    """A tokenizer that counts by characters, so that nothing adds up."""
    return re.findall(r".{1,7}", text, flags=re.DOTALL)


@contextmanager
def toy(
    split: Split = in_words, *, engine: str = "unknown", usage: bool = True, status: int = 200, **extra: str
) -> Iterator[tuple[Backend, list[dict[str, Any]]]]:
    """A server that only counts tokens, and the completions it was asked for."""
    asked: list[dict[str, Any]] = []

    def tokenize(request: Request) -> Scene:
        pieces = split(json.loads(request.body)["content"])
        return _document({"tokens": [zlib.crc32(piece.encode()) % 50_000 for piece in pieces]}, status)

    def step(question: ScriptedRequest) -> Step:
        asked.append(question.fields)
        return _document({"usage": {"prompt_tokens": count(question.fields, split)}} if usage else {}, status)

    with ScriptedServer(step, pages={"/tokenize": tokenize}) as server:
        yield Backend(server.url, "toy", None, {"engine": engine, **extra}, None, None), asked


def _document(value: object, status: int) -> Scene:
    return whole(json.dumps(value).encode(), status=status)


def count(body: dict[str, Any], split: Split) -> int:
    """Prompt tokens of a request, with a chat template, or a beginning-of-text token, in front."""
    if "messages" in body:
        texts = [message["content"].strip() for message in body["messages"]]
        return TEMPLATE_TOKENS + (len(texts) - 1) // 2 * TURN_TOKENS + sum(len(split(text)) for text in texts)
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else 1 + len(split(prompt))
