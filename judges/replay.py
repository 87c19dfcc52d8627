"""One thousand varied requests, each sent to a backend directly and through the gateway: the answers must be equal.

Equal means status, content type, and every byte of the body, for streams also the order and the ends of the events;
aside from ids and times, which differ between any two answers. Temperature is 0 and seeds are fixed. Requests go one
after another, so that no batch changes an engine's arithmetic. What is not byte-equal
is told apart by why (`likeness`).

    python judges/replay.py DIRECT_URL THROUGH_URL MODEL [--public NAME] [--requests 1000]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from found import Found

SEED = 20261122
WORDS = ["river", "stone", "because", "seven", "Breakeven", "naïve", "Straße", "東京", "число", "🙂", "\t", '"quoted"']
WORDS += ["back\\slash", "{brace}", "null", "the", "a", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was"]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"name": "colour", "schema": {"type": "object", "properties": {"name": {"enum": ["red", "blue"]}}}}
ASIDE = (
    (re.compile(rb'"(id|request_id|item_id|response_id|previous_response_id)"( ?): ?"[^"]*"'), rb'"\1":"*"'),
    (re.compile(rb'"(created|created_at|completed_at)"( ?): ?[0-9.]+'), rb'"\1":0'),
    (re.compile(rb'"timings" ?: ?\{[^{}]*\}'), b'"timings":{}'),
)
"""What may differ between two answers to one question."""
MOVED = (
    (re.compile(rb', ?"(timings" ?: ?\{\}|system_fingerprint" ?: ?"[^"]*")'), b""),
    (re.compile(rb"<dict of \d+ items>"), b"<dict>"),
)
"""What an engine moves from the last piece of a stream to the event with the usage, once that is asked for; and how
many fields vLLM says a refused request had."""
PIECES = ("content", "text", "delta", "reasoning_content", "arguments", "logprobs", "token_ids")
"""Fields that hold a part of an answer: vLLM puts tokens that are ready at once into one event."""
SAME, TOLD_LESS, CUT_ELSEWHERE, DIFFERS = "ok", "ok, told less", "ok, cut elsewhere", "differs"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `kind` says what is special about it."""

    path: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, ids and times replaced. `cut`: the connection ended before the answer did."""

    status: int
    content_type: str
    body: bytes
    cut: bool

    @property
    def events(self) -> int:
        """Events of a stream; 0 for a document."""
        return self.body.count(b"\n\n") if self.content_type.startswith("text/event-stream") else 0


def requests(count: int, model: str, paths: tuple[str, ...]) -> Iterator[Ask]:
    """Always the same ones for a count: nine in ten valid, of every kind in turn."""
    dice = random.Random(SEED)
    for number in range(count):
        path = dice.choice(paths)
        body = _body(dice, path, model)
        kind = _change(dice, path, body)
        if kind == "not JSON":
            data = json.dumps(body).encode()[: dice.randrange(1, 40)]
        elif number % 3 == 0:
            data = json.dumps(body, ensure_ascii=False, indent=dice.choice((None, 1, 4))).encode()
        else:
            data = json.dumps(body, separators=(",", ":")).encode()
        yield Ask(path, kind, data)


def _text(dice: random.Random, most: int = 30) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))


def _body(dice: random.Random, path: str, model: str) -> dict[str, Any]:
    """A plain request of this endpoint; the place of `model` among the fields varies."""
    body: dict[str, Any] = {"temperature": 0, "seed": dice.randrange(1000)}
    tokens = dice.randint(1, 8)
    if path.endswith("/chat/completions"):
        messages = [{"role": "user", "content": _text(dice)}]
        if dice.random() < 0.4:
            messages.insert(0, {"role": "system", "content": _text(dice, 8)})
        if dice.random() < 0.3:
            messages += [{"role": "assistant", "content": _text(dice, 8)}, {"role": "user", "content": _text(dice)}]
        body |= {"messages": messages, dice.choice(("max_tokens", "max_completion_tokens")): tokens}
    elif path.endswith("/completions"):
        body |= {"prompt": _text(dice), "max_tokens": tokens}
    elif path.endswith("/embeddings"):
        return {"model": model, "input": dice.choice((_text(dice), [_text(dice), _text(dice)]))}
    elif path.endswith("/responses"):
        body |= {"input": _text(dice), "max_output_tokens": tokens}
    else:
        body |= {"messages": [{"role": "user", "content": _text(dice)}], "max_tokens": tokens}
    items = list(body.items())
    items.insert(dice.randint(0, len(items)), ("model", model))
    body = dict(items)
    if dice.random() < 0.5:
        body["stream"] = True
        if path.endswith("completions") and dice.random() < 0.4:
            body["stream_options"] = {"include_usage": dice.random() < 0.7}
    return body


def _change(dice: random.Random, path: str, body: dict[str, Any]) -> str:
    """Make one thing special about the request, and name it."""
    chat, text = path.endswith("/chat/completions"), path.endswith("/completions")
    kinds = ["plain", "plain", "unknown fields", "user and metadata", "wrong type", "not JSON", "nothing to answer"]
    if text:
        kinds += ["logprobs", "stop", "penalties", "logit bias", "several answers", "too long", "null fields"]
    if chat:
        kinds += ["tools", "schema", "parts of a message", "tool's answer"]
    kind = dice.choice(kinds)
    if kind in ("wrong type", "not JSON", "nothing to answer") and dice.random() < 0.4:
        kind = "plain"
    many: dict[str, dict[str, Any]] = {
        "unknown fields": {"x_unknown": {"deep": [1, None, "é"]}, "url": "http://127.0.0.1:1/", "api_base": "x"},
        "user and metadata": {"user": "someone", "metadata": {"key": "value"}, "store": False},
        "wrong type": {"temperature": "hot"},
        "logprobs": {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2},
        "stop": {"stop": ["e", "zz"]},
        "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.25},
        "logit bias": {"logit_bias": {"5": -100, "7": 2}},
        "several answers": {"n": 2},
        "null fields": {"stop": None, "user": None, "stream_options": None},
        "tools": {"tools": [TOOL], "tool_choice": dice.choice(("auto", "none", "required"))},
        "schema": {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    }
    body |= many.get(kind, {})
    if kind == "nothing to answer":
        for name in ("messages", "prompt", "input"):
            body.pop(name, None)
    elif kind == "too long":
        long = _text(dice, 8) * 1500
        body |= {"messages": [{"role": "user", "content": long}]} if chat else {"prompt": long}
    elif kind == "parts of a message":
        body["messages"][-1]["content"] = [{"type": "text", "text": _text(dice)} for _ in range(2)]
    elif kind == "tool's answer":
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
        body["messages"] += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        body["tools"] = [TOOL]
    return kind


class Place:
    """A server that is asked over one kept connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)

    def ask(self, path: str, body: bytes) -> Answer:
        """Send, and read to the end. Raises OSError when there is no answer at all."""
        headers = {"content-type": "application/json", "authorization": "Bearer none"}
        try:
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A kept connection that the server closed meanwhile.
            self.connection.close()
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
        cut = False
        try:
            data = response.read()
        except http.client.IncompleteRead as error:
            data, cut = error.partial, True
            self.connection.close()
        for pattern, instead in ASIDE:
            data = pattern.sub(instead, data)
        return Answer(response.status, response.getheader("content-type", ""), data, cut)


def supported(url: str, model: str) -> tuple[str, ...]:
    """The endpoints that a backend has: those that answer a plain request."""
    dice, place = random.Random(0), Place(url)
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
    statuses = {path: place.ask(path, json.dumps(_body(dice, path, model)).encode()).status for path in paths}
    return tuple(path for path, status in statuses.items() if status == 200)


def replay(direct_url: str, through_url: str, model: str, public: str, count: int, paths: tuple[str, ...]) -> Replayed:
    """Send them all. `model` is the backend's own name; every second request asks the gateway for `public` instead."""
    direct, through = Place(direct_url), Place(through_url)
    done = Replayed([], Counter(), Counter(), {}, {}, 0)
    for number, ask in enumerate(requests(count, model, paths)):
        body = ask.body
        if number % 2:
            body = body.replace(b'"%s"' % model.encode(), b'"%s"' % public.encode(), 1)
        ours, theirs = direct.ask(ask.path, ask.body), through.ask(ask.path, body)
        case = f"{number} {ask.path} {ask.kind}"
        done.kinds[f"{ask.path} {ask.kind}"] += 1
        done.statuses[ours.status] += 1
        done.events += ours.events
        if ask.kind == "not JSON":
            # A body that cannot be read names no model: the gateway refuses it itself, in its own words.
            ours, theirs = (replace(answer, content_type="", body=b"") for answer in (ours, theirs))
        elif ask.kind == "several answers":
            # Which of two answers goes on first is the engine's mood; within each of them order counts.
            ours, theirs = (replace(answer, body=_by_choice(answer.body)) for answer in (ours, theirs))
        done.direct[case] = SAME
        done.through[case] = likeness(ours, theirs)
        if done.through[case] == DIFFERS:
            done.differences.append((ask, ours, theirs))
    return done


def likeness(ours: Answer, theirs: Answer) -> str:
    """How two answers compare.

    `TOLD_LESS`: the client did not ask for the usage, the gateway did, and took that event out of the stream; what the
    engine says there besides (llama.cpp its timings, vLLM its fingerprint) is gone. `CUT_ELSEWHERE`: the same text in
    the same kinds of events, but the engine put other tokens together, as any two answers of vLLM differ.
    """
    if ours == theirs:
        return SAME
    if (ours.status, ours.content_type, ours.cut) != (theirs.status, theirs.content_type, theirs.cut):
        return DIFFERS
    bodies = [ours.body, theirs.body]
    for pattern, instead in MOVED:
        bodies = [pattern.sub(instead, body) for body in bodies]
    if bodies[0] == bodies[1]:
        return TOLD_LESS
    if ours.events and _joined(bodies[0]) == _joined(bodies[1]):
        return CUT_ELSEWHERE
    return DIFFERS


def _joined(body: bytes) -> tuple[list[str], dict[tuple[str, ...], str]]:
    """A stream without its cuts: the events that do more than go on with a text, and each text as a whole."""
    events: list[str] = []
    texts: dict[tuple[str, ...], str] = {}
    pieces: list[str] = []

    def rest_of(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {name: rest_of(one, (*path, name)) for name, one in value.items() if name != "sequence_number"}
        in_pieces = bool({*PIECES} & {*path})
        if isinstance(value, list) and not ("logprobs" in path or "token_ids" in path):
            return [rest_of(one, (*path, str(one.get("index", 0)) if isinstance(one, dict) else "")) for one in value]
        if isinstance(value, list):
            texts[path] = texts.get(path, "") + "".join(json.dumps(one) for one in value)
        elif isinstance(value, str) and in_pieces and path[-1] not in ("type", "role", "stop_reason", "id", "item_id"):
            texts[path] = texts.get(path, "") + value
            pieces.append(value)
        else:
            return value
        return None

    for event in body.split(b"\n\n"):
        data = event[event.find(b"data:") + 5 :]
        try:
            value = json.loads(data)
        except ValueError:
            events.append(event.decode(errors="replace"))
            continue
        pieces.clear()
        rest = json.dumps(rest_of(value, (str(value.get("type", "")),)), sort_keys=True)
        ends = re.search(rb'"(finish_reason|stop_reason)" ?: ?"', data) is not None
        # A piece may be empty: half of a character is none yet.
        goes_on = pieces and '"role"' not in rest and str(value.get("type", "delta")).endswith("delta")
        if ends or not goes_on:
            events.append(rest)
    return sorted(events) if b'"index":1' in body else events, texts


def _by_choice(body: bytes) -> bytes:
    """The events of a stream with those of each of several answers together, in their order."""

    def choice(event: bytes) -> int:
        found = re.search(rb'"index" ?: ?(\d+)', event)
        return int(found[1]) if found else 1_000_000

    return b"\n\n".join(sorted(body.split(b"\n\n"), key=choice))


@dataclass(slots=True)
class Replayed:
    """What came of it: every pair of answers that differs, and how many requests of each kind and status there were."""

    differences: list[tuple[Ask, Answer, Answer]]
    kinds: Counter[str]
    statuses: Counter[int]
    direct: dict[str, str]
    through: dict[str, str]
    events: int

    def found(self, behind: str) -> Found:
        """The row for the table."""
        likenesses = Counter(self.through.values())
        remarks = [f"; {likenesses[one]} {one.removeprefix('ok, ')}" for one in (TOLD_LESS, CUT_ELSEWHERE)]
        judge = f"replay of {len(self.direct)} requests"
        return Found(judge, behind, self.direct, self.through, remark="".join(remarks))


def told(ask: Ask, ours: Answer, theirs: Answer) -> str:
    """A difference in words: the request, and both answers from where they part."""
    pairs = enumerate(zip(ours.body, theirs.body, strict=False))
    part = next((at for at, (one, other) in pairs if one != other), min(len(ours.body), len(theirs.body)))
    lines = [f"{ask.path} ({ask.kind}): {ask.body[:600]!r}"]
    for side, answer in (("direct", ours), ("through", theirs)):
        about = f"{answer.status} {answer.content_type}{' cut' if answer.cut else ''}"
        lines.append(f"  {side:8}{about} ...{answer.body[max(0, part - 200) : part + 300]!r}")
    return "\n".join(lines)


def main() -> None:
    """Replay against two running servers; exit status 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direct")
    parser.add_argument("through")
    parser.add_argument("model")
    parser.add_argument("--public", help="a public name that reaches the same backend; by default MODEL")
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    paths = supported(given.direct, given.model)
    done = replay(given.direct, given.through, given.model, given.public or given.model, given.requests, paths)
    for difference in done.differences[:10]:
        print(told(*difference))
    print(f"{given.requests} requests, {len(paths)} endpoints, {done.events} events, statuses {dict(done.statuses)}")
    print(f"{len(done.differences)} differ")
    raise SystemExit(bool(done.differences))


if __name__ == "__main__":
    main()
