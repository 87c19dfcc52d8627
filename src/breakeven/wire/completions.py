"""What a server of OpenAI's kind says when all is well: the events of a stream and the documents of each endpoint.

Every event and document holds the question's id, so that an answer to one question inside another's is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from breakeven.wire import sse

ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
    *("/v1/messages/count_tokens", "/v1/rerank", "/v1/audio/transcriptions", "/v1/audio/translations"),
    *("/v1/audio/speech", "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
)
"""Where it answers as a model does; of what is no text it says a text all the same."""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct):
    """What the server reads of a question; `chaos`, a behaviour, and `chaos_id` are ours, other fields are ignored."""

    model: str = "mock"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    chaos: str = ""
    chaos_id: str = ""


@dataclass(slots=True)
class ScriptedRequest:
    """What was asked, and the settings that it is answered by.

    `chunks`: pieces of output; `chunk_tokens`: tokens of each in turn, when a piece is not a token. `first_s`,
    `chunk_s`: before the first piece and between two; `end_s`: between what comes after the last (None: `chunk_s`).
    `head_first`: the head goes out at once, not with the first piece. `counts`: a running count, as llama.cpp tells.
    `usage`: the question asks for usage; `usage_always`: it is told anyhow. `newline` ends lines of events;
    `split_bytes` cuts each event into writes of so many.
    """

    path: str
    id: str
    model: str = "mock"
    stream: bool = False
    usage: bool = False
    body: bytes = b""
    number: int = 0
    chunks: int = 8
    chunk_tokens: tuple[int, ...] = (1,)
    first_s: float = 0.0
    chunk_s: float = 0.0
    end_s: float | None = None
    head_first: bool = False
    counts: bool = False
    usage_always: bool = False
    newline: str = "\n"
    split_bytes: int = 0
    slow_s: float = 0.002
    retry_after: str | None = "1"
    huge_bytes: int = 8 * 2**20
    location: str = "http://127.0.0.1:1/v1/chat/completions"
    prompt_tokens: int = 7
    cached_tokens: int | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The body, decoded."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def asks_chat(self) -> bool:
        """Whether it is for chat completions."""
        return "chat" in self.path

    @property
    def role_first(self) -> bool:
        """Whether a stream begins with an event that tells the role alone."""
        return self.asks_chat and not self.head_first

    def tokens(self) -> list[int]:
        """Tokens of each piece of output."""
        left = self.chunks
        found: list[int] = []
        while left > 0:
            found.append(min(left, self.chunk_tokens[len(found) % len(self.chunk_tokens)]))
            left -= found[-1]
        return found


def usage_of(question: ScriptedRequest) -> dict[str, Any]:
    output = question.chunks
    usage: dict[str, Any] = {
        "prompt_tokens": question.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": question.prompt_tokens + output,
    }
    if question.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": question.cached_tokens}
    return usage


def _timings(question: ScriptedRequest, predicted: int) -> dict[str, float]:
    """The count of llama.cpp."""
    ms = 10.0 * max(predicted - 1, 0)
    return {"prompt_n": question.prompt_tokens, "prompt_ms": 1.0, "predicted_n": predicted, "predicted_ms": ms}


def events(
    question: ScriptedRequest, *, finish: bool = True, done: bool = True, usage: int = 1, half: bytes | None = None
) -> list[bytes]:
    """The events of a stream. `usage`: how often it is told. `half`: what comes in between, half way."""
    if question.path.endswith("/messages"):
        return _messages_events(question)
    if question.path.endswith("/responses"):
        return _responses_events(question)
    chat = question.asks_chat
    common = {
        "id": f"chaos-{question.id}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": question.model,
    }

    def made(output: dict[str, object], reason: str | None = None, count: int = 0) -> bytes:
        choice: dict[str, object] = {"index": 0, "finish_reason": reason}
        choice |= {"delta": output} if chat else {"text": output.get("content", "")}
        told = {"timings": _timings(question, count)} if question.counts else {}
        return sse.event(msgspec.json.encode({**common, "choices": [choice], **told}))

    found = [made({"role": "assistant", "content": ""})] if question.role_first else []
    if question.chunk_tokens == (1,) and not question.counts:
        found += [made({"content": f"{question.id} "})] * question.chunks
    else:
        sent = 0
        for tokens in question.tokens():
            sent += tokens
            found.append(made({"content": f"{question.id} " * tokens}, count=sent))
    if half is not None:
        found.insert(len(found) - (len(question.tokens()) + 1) // 2, half)
    if finish:
        found.append(made({}, "stop", question.chunks))
    if question.usage or question.usage_always:
        last: dict[str, object] = {**common, "choices": [], "usage": usage_of(question)}
        found += [sse.event(msgspec.json.encode(last))] * usage
    if done:
        found.append(sse.DONE)
    return found


def _event(name: str, data: dict[str, object]) -> bytes:
    return sse.event(msgspec.json.encode({"type": name, **data}), name.encode())


def _messages_events(question: ScriptedRequest) -> list[bytes]:
    delta = _event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": f"{question.id} "}})
    usage = {"input_tokens": question.prompt_tokens, "output_tokens": question.chunks}
    message = {"id": f"chaos-{question.id}", "type": "message", "role": "assistant", "content": [], "usage": usage}
    return [
        _event("message_start", {"message": message}),
        _event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        *[delta] * question.chunks,
        _event("content_block_stop", {"index": 0}),
        _event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": usage}),
        _event("message_stop", {}),
    ]


def _responses_events(question: ScriptedRequest) -> list[bytes]:
    response = {"id": f"chaos-{question.id}", "object": "response", "status": "completed", "model": question.model}
    usage = {"input_tokens": question.prompt_tokens, "output_tokens": question.chunks}
    delta = _event("response.output_text.delta", {"delta": f"{question.id} "})
    return [
        _event("response.created", {"response": {**response, "status": "in_progress"}}),
        *[delta] * question.chunks,
        _event("response.completed", {"response": {**response, "usage": usage}}),
    ]


def document(question: ScriptedRequest, usage: bool = True) -> bytes:
    """A whole answer."""
    text = f"{question.id} " * question.chunks
    common: dict[str, object] = {"id": f"chaos-{question.id}", "created": 1, "model": question.model}
    tokens = {"input_tokens": question.prompt_tokens, "output_tokens": question.chunks}
    if question.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        tokens = {"prompt_tokens": question.prompt_tokens, "total_tokens": question.prompt_tokens}
        return msgspec.json.encode({**common, "object": "list", "data": data, "usage": tokens})
    if question.path.endswith("/count_tokens"):
        return msgspec.json.encode({"input_tokens": question.prompt_tokens})
    if question.path.endswith("/messages"):
        content = [{"type": "text", "text": text}]
        found = {**common, "type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
        return msgspec.json.encode({**found, "usage": tokens})
    if question.path.endswith("/responses"):
        said = [{"type": "output_text", "text": text, "annotations": []}]
        output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": said}]
        found = {**common, "object": "response", "status": "completed", "output": output, "usage": tokens}
        return msgspec.json.encode(found)
    if "chat" in question.path:
        choice: dict[str, object] = {"message": {"role": "assistant", "content": text}}
        kind = "chat.completion"
    else:
        choice, kind = {"text": text}, "text_completion"
    choices = [{"index": 0, "finish_reason": "stop", **choice}]
    told: dict[str, object] = {"usage": usage_of(question)} if usage else {}
    if question.counts:
        told["timings"] = _timings(question, question.chunks)
    return msgspec.json.encode({**common, "object": kind, "choices": choices, **told})
