"""What the scripted server does, by name: good answers of every shape, and every way to go wrong.

Pure functions from a question to the bytes of its answer, their times, and how the connection ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from breakeven.wire import sse
from breakeven.wire.completions import ScriptedRequest, document, events
from breakeven.wire.playing import Piece, Scene, Then


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(status: int, *lines: str) -> bytes:
    """The head of an answer."""
    return ("\r\n".join((f"HTTP/1.1 {status} Chaos", "server: chaos", *lines)) + "\r\n\r\n").encode()


def error(status: int, *lines: str) -> Scene:
    """A refusal in OpenAI's words."""
    body = json.dumps(
        {"error": {"message": f"scripted {status}", "type": "scripted", "param": None, "code": None}}
    ).encode()
    return whole(body, *lines, status=status)


def stream(question: ScriptedRequest, *lines: str, last: bytes = b"0\r\n\r\n", **left: Any) -> Scene:
    """An answer in events, as `events` makes them of `left`."""
    return played(question, events(question, **left), *lines, last=last)


def played(question: ScriptedRequest, made: list[bytes], *lines: str, last: bytes = b"0\r\n\r\n") -> Scene:
    """These events in the time of the question: the first after `first_s`, then every `chunk_s`, the end as `end_s`."""
    pieces: list[Piece] = [head(200, "content-type: text/event-stream", "transfer-encoding: chunked", *lines)]
    waits = [0.0, question.first_s] if question.head_first else [question.first_s, 0.0]
    outputs = len(question.tokens()) + question.role_first
    for number, event in enumerate(made):
        if question.newline != "\n":
            event = event.replace(b"\n", question.newline.encode())
        step = question.split_bytes or len(event)
        pieces += [chunk(event[start : start + step]) for start in range(0, len(event), step)]
        if number:
            ending = number >= outputs and question.end_s is not None
            waits.append((question.end_s or 0.0) if ending else question.chunk_s)
        waits += [0.0] * (len(pieces) - len(waits))
    pieces[-1] = bytes_of(pieces[-1]) + last
    return Scene(pieces, waits)


def bytes_of(piece: Piece) -> bytes:
    """A piece that is not made when it is written."""
    assert isinstance(piece, bytes)
    return piece


def whole(body: bytes, *lines: str, kind: str = "application/json", status: int = 200, wait_s: float = 0.0) -> Scene:
    """An answer in one piece."""
    return Scene([head(status, f"content-type: {kind}", f"content-length: {len(body)}", *lines) + body], [wait_s])


def ok(question: ScriptedRequest, *lines: str) -> Scene:
    """What was asked for."""
    if question.stream:
        return stream(question, *lines)
    return whole(document(question), *lines, wait_s=_whole_s(question))


def _whole_s(question: ScriptedRequest) -> float:
    return question.first_s + question.chunk_s * (question.chunks - (question.end_s == 0.0))


def _half(question: ScriptedRequest, then: Then, extra: bytes = b"") -> Scene:
    """A part of the answer: after the head and some of the body."""
    good = ok(question)
    if len(good.pieces) > 1:
        keep = max(2, len(good.pieces) // 2)
        if question.path.endswith("completions") and not question.split_bytes:
            keep = max(2, 1 + question.role_first + len(question.tokens()) // 2)
        return Scene([*good.pieces[:keep], extra], [*good.waits_s[:keep], 0.0], then)
    top, _, body = bytes_of(good.pieces[0]).partition(b"\r\n\r\n")
    return Scene([top + b"\r\n\r\n" + body[: len(body) // 2]], good.waits_s, then)


def _slow(question: ScriptedRequest) -> Scene:
    data = b"".join(map(bytes_of, ok(question).pieces))
    step = max(1, len(data) // 200)
    pieces: list[Piece] = [data[start : start + step] for start in range(0, len(data), step)]
    return Scene(pieces, [question.slow_s] * len(pieces))


def _huge_body(question: ScriptedRequest) -> Scene:
    block = chunk(b"x" * 65536)
    count = question.huge_bytes // 65536
    return Scene([head(200, "transfer-encoding: chunked"), *[block] * count, b"0\r\n\r\n"])


def _garbage_mid(question: ScriptedRequest) -> Scene:
    if question.stream:
        return _half(question, "hang", b"zz not a chunk\r\n")
    return Scene([head(200, "transfer-encoding: chunked") + chunk(b'{"id": "') + b"zz not a chunk\r\n"], then="hang")


def _no_length(question: ScriptedRequest) -> Scene:
    body = b"".join(events(question)) if question.stream else document(question)
    kind = "text/event-stream" if question.stream else "application/json"
    return Scene([head(200, f"content-type: {kind}", "connection: close") + body], then="close")


def _after(answer: Scene, then: Then, extra: bytes = b"") -> Scene:
    answer.pieces[-1] = bytes_of(answer.pieces[-1]) + extra
    answer.then = then
    return answer


def _interim(question: ScriptedRequest) -> Scene:
    answer = ok(question)
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    return Scene([early, *answer.pieces], [0.0, *answer.waits_s])


def _truncated(question: ScriptedRequest) -> Scene:
    """Everything but its end: the last chunk of a stream, the last byte of a document."""
    if question.stream:
        return _after(stream(question, last=b""), "close")
    good = ok(question)
    return Scene([bytes_of(good.pieces[0])[:-1]], good.waits_s, "close")


def _uncounted(question: ScriptedRequest) -> Scene:
    """Nothing is told of tokens."""
    if question.stream:
        return stream(question, usage=0)
    return whole(document(question, usage=False), wait_s=_whole_s(question))


def _bad_event(question: ScriptedRequest) -> Scene:
    if question.stream:
        return stream(question, half=sse.event(b'{"choices": [oops'))
    return whole(b"<html>oops</html>", wait_s=_whole_s(question))


def _engine_error(question: ScriptedRequest) -> Scene:
    told = b'{"error": {"message": "out of memory", "code": 500}}'
    return stream(question, half=sse.event(told)) if question.stream else whole(told, wait_s=_whole_s(question))


def _half_event(question: ScriptedRequest) -> Scene:
    return _half(question, "keep", chunk(b'data: {"choices": [{"te') + b"0\r\n\r\n")


def _unended(question: ScriptedRequest) -> Scene:
    """No event ends."""
    return played(question, [event.rstrip(b"\n") for event in events(question)])


def _drip(question: ScriptedRequest) -> Scene:
    """Half of the answer, then byte by byte something that is never a whole event."""
    scene = _half(question, "hang")
    drops = [chunk(b"data:x"[k % 6 :][:1]) for k in range(150)]
    return Scene([*scene.pieces, *drops], [*scene.waits_s, *[0.02] * len(drops)], "hang")


def _late_output(question: ScriptedRequest) -> Scene:
    scene = stream(question, last=b"")
    late = chunk(sse.event(b'{"choices": [{"text": "late"}]}')) + b"0\r\n\r\n"
    return Scene([*scene.pieces, late], [*scene.waits_s, 0.01])


def _short(question: ScriptedRequest) -> Scene:
    question.chunks //= 2
    return ok(question)


def _error_first(question: ScriptedRequest) -> Scene:
    """Status 200, and then nothing but an error, in the words of the endpoint."""
    if not question.stream:
        return whole(b'{"error": {"message": "out of memory", "code": 500}}', wait_s=_whole_s(question))
    told = b'{"type": "error", "error": {"type": "overloaded_error", "message": "out of memory"}}'
    return played(question, [sse.event(told, b"error" if question.path.endswith("/messages") else b""), sse.DONE])


def _pings_first(question: ScriptedRequest) -> Scene:
    """What keeps a connection alive, `slow_s` apart, then the answer."""
    answer = ok(question)
    if not question.stream:
        return answer
    pings = [b": working on it\r\n\r\n", b"data: null\n\n", b"event: ping\rdata: {}\r\r", b"data\n\n"]
    first, *rest = answer.pieces
    waits = [answer.waits_s[0], *[question.slow_s] * len(pings), *answer.waits_s[1:]]
    return Scene([first, *map(chunk, pings), *rest], waits)


def _mixed_ends(question: ScriptedRequest) -> Scene:
    """A byte order mark, and each event with other ends of lines than the one before."""
    if not question.stream:
        return ok(question)
    ends = (b"\n", b"\r\n", b"\r")
    made = [event.replace(b"\n", ends[number % 3]) for number, event in enumerate(events(question))]
    return played(question, [sse.BOM + made[0], *made[1:]])


def _null_choices(question: ScriptedRequest) -> Scene:
    """Counts come beside `choices: null`."""
    made = [event.replace(b'"choices":[],', b'"choices":null,') for event in events(question)]
    return played(question, made) if question.stream else ok(question)


def _no_output(question: ScriptedRequest) -> Scene:
    """All of an answer but the answer."""
    question.chunks = 0
    return ok(question)


def _unframed_end(question: ScriptedRequest) -> Scene:
    """All of the stream but the end of its framing: it stays open."""
    return _after(stream(question, last=b""), "hang")


ODD_HEADERS = (
    "connection: x-hop, keep-alive",
    "x-hop: 1",
    "keep-alive: timeout=5",
    "set-cookie: a=b",
    "alt-svc: h3=:443",
    "access-control-allow-origin: *",
    "x-kept: yes",
)

TRANSPORT: dict[str, Callable[[ScriptedRequest], Scene]] = {
    "ok": ok,
    "reset_before_head": lambda q: Scene([], then="reset"),
    "close_before_head": lambda q: Scene([], then="close"),
    "reset_mid_body": lambda q: _half(q, "reset"),
    "close_mid_body": lambda q: _half(q, "close"),
    "stall": lambda q: Scene([], then="hang"),
    "stall_after_head": lambda q: Scene([head(200, "transfer-encoding: chunked")], then="hang"),
    "stall_mid_body": lambda q: _half(q, "hang"),
    "truncate": _truncated,
    "garbage": lambda q: Scene([b"\x16\x03\x01 this is no HTTP\r\n\r\n"], then="hang"),
    "garbage_mid_body": _garbage_mid,
    "429": lambda q: error(429, *([] if q.retry_after is None else [f"retry-after: {q.retry_after}"])),
    "400": lambda q: error(400),
    "500": lambda q: error(500),
    "502": lambda q: error(502),
    "503": lambda q: error(503),
    "529": lambda q: error(529),
    "slow": _slow,
    "huge_body": _huge_body,
    "huge_headers": lambda q: ok(q, *[f"x-{i}: {'y' * 1000}" for i in range(80)]),
    "endless_header": lambda q: Scene([b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 65536] * 4], then="hang"),
    "die": lambda q: Scene([], then="die"),
    "die_mid_body": lambda q: _half(q, "die"),
    "no_usage": lambda q: stream(q, usage=0) if q.stream else ok(q),
    "no_finish": lambda q: stream(q, finish=False) if q.stream else ok(q),
    "no_done": lambda q: stream(q, done=False) if q.stream else ok(q),
    "closes_after": lambda q: _after(ok(q), "close"),
    "no_length": _no_length,
    "redirect": lambda q: Scene([head(307, f"location: {q.location}", "content-length: 0")]),
    "interim": _interim,
    "trailers": lambda q: stream(q, last=b"0\r\nx-leak: 1\r\n\r\n"),
    "second_answer": lambda q: _after(ok(q), "keep", b"".join(map(bytes_of, ok(q).pieces))),
    "odd_headers": lambda q: ok(q, *ODD_HEADERS),
    "switching": lambda q: Scene([head(101, "upgrade: x", "connection: upgrade")], then="hang"),
}
"""What is odd in how the answer comes, or nothing."""
CONTENT: dict[str, Callable[[ScriptedRequest], Scene]] = {
    "401": lambda q: error(401),
    "404": lambda q: error(404),
    "uncounted": _uncounted,
    "counted_twice": lambda q: stream(q, usage=2) if q.stream else ok(q),
    "short": _short,
    "bad_event": _bad_event,
    "half_event": _half_event,
    "unended": _unended,
    "engine_error": _engine_error,
    "drip": _drip,
    "late_output": _late_output,
    "stays_open": _unframed_end,
    "error_first": _error_first,
    "pings_first": _pings_first,
    "mixed_ends": _mixed_ends,
    "null_choices": _null_choices,
    "no_output": _no_output,
    "answers_whole": lambda q: whole(document(q), wait_s=_whole_s(q)),
}
"""What is odd in what it says."""
BEHAVIOURS = TRANSPORT | CONTENT


def answers_of(file: Path) -> tuple[Callable[[ScriptedRequest], Scene], dict[str, Scene]]:
    """A script and pages from a JSON file: by path, `whole`, a document, and `events`, data of a stream's in order.

    `usage`: data of one more event before the last, where the question asks for it.
    """
    told: dict[str, dict[str, Any]] = json.loads(file.read_text())

    def step(question: ScriptedRequest) -> Scene:
        found = told.get(question.path)
        if found is None:
            return error(404)
        if not question.stream or "events" not in found:
            return whole(json.dumps(found["whole"]).encode())
        events = list(found["events"])
        if question.usage and "usage" in found:
            events.insert(-1, found["usage"])
        names = [json.loads(data).get("type", "") if data.startswith("{") else "" for data in events]
        body = b"".join(sse.event(data.encode(), name.encode()) for data, name in zip(events, names, strict=True))
        return whole(body, kind="text/event-stream; charset=utf-8")

    pages = {path: whole(json.dumps(page["whole"]).encode()) for path, page in told.items()}
    return step, {path: page for path, page in pages.items() if path.startswith("/v1/models")}
