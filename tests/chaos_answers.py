"""What the chaos server answers: pure functions from a question to bytes, and how the connection ends.

Every piece of every answer holds the question's id, so that an answer to one question inside another's is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Then = Literal["keep", "close", "reset", "hang", "die"]
"""After the last piece: wait for the next question, close, send RST, say nothing more, or take the server down."""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct):
    """What the server reads of a question. `chaos` and `chaos_id` are ours, other fields are ignored."""

    model: str = "mock"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    chaos: str = ""
    chaos_id: str = ""


@dataclass(slots=True)
class Question:
    """`chunks`: pieces of output. `first_s`, `chunk_s`: before the first and between two of them."""

    path: str
    id: str
    model: str = "mock"
    stream: bool = False
    usage: bool = False
    chunks: int = 8
    first_s: float = 0.0
    chunk_s: float = 0.0
    slow_s: float = 0.002
    retry_after_s: int = 1
    huge_bytes: int = 8 * 2**20
    location: str = "http://127.0.0.1:1/v1/chat/completions"
    prompt_tokens: int = 7


@dataclass(slots=True)
class Answer:
    """Pieces with the seconds to wait before each, and what happens to the connection then."""

    pieces: list[bytes]
    waits_s: list[float] = field(default_factory=list)
    then: Then = "keep"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(status: int, *lines: str) -> bytes:
    return ("\r\n".join((f"HTTP/1.1 {status} Chaos", "server: chaos", *lines)) + "\r\n\r\n").encode()


def usage_of(question: Question) -> dict[str, int]:
    output = question.chunks
    return {
        "prompt_tokens": question.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": question.prompt_tokens + output,
    }


def events(question: Question, *, finish: bool = True, done: bool = True, usage: bool = True) -> list[bytes]:
    """The events of a stream, one piece of output each."""
    if question.path.endswith("/messages"):
        return _messages_events(question)
    if question.path.endswith("/responses"):
        return _responses_events(question)
    chat = "chat" in question.path
    common = {
        "id": f"chaos-{question.id}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": question.model,
    }

    def event(output: dict[str, object], reason: str | None = None) -> bytes:
        choice: dict[str, object] = {"index": 0, "finish_reason": reason}
        choice |= {"delta": output} if chat else {"text": output.get("content", "")}
        return b"data: " + msgspec.json.encode({**common, "choices": [choice]}) + b"\n\n"

    piece = event({"content": f"{question.id} "})
    found = [event({"role": "assistant", "content": ""})] if chat else []
    found += [piece] * question.chunks
    if finish:
        found.append(event({}, "stop"))
    if usage and question.usage:
        last = {**common, "choices": [], "usage": usage_of(question)}
        found.append(b"data: " + msgspec.json.encode(last) + b"\n\n")
    if done:
        found.append(b"data: [DONE]\n\n")
    return found


def _event(name: str, data: dict[str, object]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **data}))


def _messages_events(question: Question) -> list[bytes]:
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


def _responses_events(question: Question) -> list[bytes]:
    response = {"id": f"chaos-{question.id}", "object": "response", "status": "completed", "model": question.model}
    usage = {"input_tokens": question.prompt_tokens, "output_tokens": question.chunks}
    delta = _event("response.output_text.delta", {"delta": f"{question.id} "})
    return [
        _event("response.created", {"response": {**response, "status": "in_progress"}}),
        *[delta] * question.chunks,
        _event("response.completed", {"response": {**response, "usage": usage}}),
    ]


def document(question: Question) -> bytes:
    """A whole answer."""
    text = f"{question.id} " * question.chunks
    common = {"id": f"chaos-{question.id}", "created": 1, "model": question.model}
    tokens = {"input_tokens": question.prompt_tokens, "output_tokens": question.chunks}
    if question.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        usage = {"prompt_tokens": question.prompt_tokens, "total_tokens": question.prompt_tokens}
        return msgspec.json.encode({**common, "object": "list", "data": data, "usage": usage})
    if question.path.endswith("/messages"):
        content = [{"type": "text", "text": text}]
        found = {**common, "type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
        return msgspec.json.encode({**found, "usage": tokens})
    if question.path.endswith("/responses"):
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}]
        found = {**common, "object": "response", "status": "completed", "output": output, "usage": tokens}
        return msgspec.json.encode(found)
    if "chat" in question.path:
        choice: dict[str, object] = {"message": {"role": "assistant", "content": text}}
        kind = "chat.completion"
    else:
        choice, kind = {"text": text}, "text_completion"
    choices = [{"index": 0, "finish_reason": "stop", **choice}]
    return msgspec.json.encode({**common, "object": kind, "choices": choices, "usage": usage_of(question)})


def error(status: int, *lines: str) -> Answer:
    body = json.dumps({"error": {"message": f"chaos {status}", "type": "chaos", "param": None, "code": None}}).encode()
    return Answer([head(status, "content-type: application/json", f"content-length: {len(body)}", *lines) + body])


def stream(question: Question, *lines: str, last: bytes = b"0\r\n\r\n", **left: bool) -> Answer:
    pieces = [head(200, "content-type: text/event-stream", "transfer-encoding: chunked", *lines)]
    pieces += [chunk(event) for event in events(question, **left)]
    waits = [question.first_s, 0.0] + [question.chunk_s] * (len(pieces) - 2)
    pieces[-1] += last
    return Answer(pieces, waits)


def ok(question: Question, *lines: str) -> Answer:
    if question.stream:
        return stream(question, *lines)
    body = document(question)
    top = head(200, "content-type: application/json", f"content-length: {len(body)}", *lines)
    return Answer([top + body], [question.first_s + question.chunk_s * question.chunks])


def _half(question: Question, then: Then, extra: bytes = b"") -> Answer:
    """A part of the answer: after the head and some of the body."""
    whole = ok(question)
    if len(whole.pieces) > 1:
        keep = max(2, len(whole.pieces) // 2)
        return Answer([*whole.pieces[:keep], extra], [*whole.waits_s[:keep], 0.0], then)
    top, _, body = whole.pieces[0].partition(b"\r\n\r\n")
    return Answer([top + b"\r\n\r\n" + body[: len(body) // 2]], whole.waits_s, then)


def _slow(question: Question) -> Answer:
    data = b"".join(ok(question).pieces)
    step = max(1, len(data) // 200)
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    return Answer(pieces, [question.slow_s] * len(pieces))


def _huge_body(question: Question) -> Answer:
    block = chunk(b"x" * 65536)
    count = question.huge_bytes // 65536
    return Answer([head(200, "transfer-encoding: chunked"), *[block] * count, b"0\r\n\r\n"])


def _garbage_mid(question: Question) -> Answer:
    if question.stream:
        return _half(question, "hang", b"zz not a chunk\r\n")
    return Answer([head(200, "transfer-encoding: chunked") + chunk(b'{"id": "') + b"zz not a chunk\r\n"], then="hang")


def _no_length(question: Question) -> Answer:
    body = b"".join(events(question)) if question.stream else document(question)
    kind = "text/event-stream" if question.stream else "application/json"
    return Answer([head(200, f"content-type: {kind}", "connection: close") + body], then="close")


def _after(answer: Answer, then: Then, extra: bytes = b"") -> Answer:
    answer.pieces[-1] += extra
    answer.then = then
    return answer


def _interim(question: Question) -> Answer:
    answer = ok(question)
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    return Answer([early, *answer.pieces], [0.0, *answer.waits_s])


def _truncated(question: Question) -> Answer:
    """Everything but its end: the last chunk of a stream, the last byte of a document."""
    if question.stream:
        return _after(stream(question, last=b""), "close")
    whole = ok(question)
    return Answer([whole.pieces[0][:-1]], whole.waits_s, "close")


ODD_HEADERS = (
    "connection: x-hop, keep-alive",
    "x-hop: 1",
    "keep-alive: timeout=5",
    "set-cookie: a=b",
    "alt-svc: h3=:443",
    "access-control-allow-origin: *",
    "x-kept: yes",
)

BEHAVIOURS: dict[str, Callable[[Question], Answer]] = {
    "ok": ok,
    "reset_before_head": lambda q: Answer([], then="reset"),
    "close_before_head": lambda q: Answer([], then="close"),
    "reset_mid_body": lambda q: _half(q, "reset"),
    "close_mid_body": lambda q: _half(q, "close"),
    "stall": lambda q: Answer([], then="hang"),
    "stall_after_head": lambda q: Answer([head(200, "transfer-encoding: chunked")], then="hang"),
    "stall_mid_body": lambda q: _half(q, "hang"),
    "truncate": _truncated,
    "garbage": lambda q: Answer([b"\x16\x03\x01 this is no HTTP\r\n\r\n"], then="hang"),
    "garbage_mid_body": _garbage_mid,
    "429": lambda q: error(429, f"retry-after: {q.retry_after_s}"),
    "400": lambda q: error(400),
    "500": lambda q: error(500),
    "502": lambda q: error(502),
    "503": lambda q: error(503),
    "529": lambda q: error(529),
    "slow": _slow,
    "huge_body": _huge_body,
    "huge_headers": lambda q: ok(q, *[f"x-{i}: {'y' * 1000}" for i in range(80)]),
    "endless_header": lambda q: Answer([b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 65536] * 4], then="hang"),
    "die": lambda q: Answer([], then="die"),
    "die_mid_body": lambda q: _half(q, "die"),
    "no_usage": lambda q: stream(q, usage=False) if q.stream else ok(q),
    "no_finish": lambda q: stream(q, finish=False) if q.stream else ok(q),
    "no_done": lambda q: stream(q, done=False) if q.stream else ok(q),
    "closes_after": lambda q: _after(ok(q), "close"),
    "no_length": _no_length,
    "redirect": lambda q: Answer([head(307, f"location: {q.location}", "content-length: 0")]),
    "interim": _interim,
    "trailers": lambda q: stream(q, last=b"0\r\nx-leak: 1\r\n\r\n"),
    "second_answer": lambda q: _after(ok(q), "keep", b"".join(ok(q).pieces)),
    "odd_headers": lambda q: ok(q, *ODD_HEADERS),
    "switching": lambda q: Answer([head(101, "upgrade: x", "connection: upgrade")], then="hang"),
}
