"""What a key is charged, whatever becomes of a request: never less than it got, and the backend's count when it comes.

A whole desk with backends that are played: no socket, no clock that anybody waits for.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.keys.entry import KeyEntry, parse_limit, stamped
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, HedgePlan, PolicyPlan
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Rows, UnderWay, Used
from breakeven.results.cost import Api
from breakeven.wire.message import Headers, Request, Sink
from breakeven.wire.sse import events_of

CHAT = "/v1/chat/completions"
PROMPT = "word " * 400
BACKENDS = ("a", "b", "c")
USD_IN, USD_OUT = 1e-6, 1e-3
DAY = "1000000000 tokens/hour", "1000000 usd/day"


class Client:
    """A `Responder` that keeps what it is told."""

    def __init__(self) -> None:
        self.gone = self.paused = False
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self.status = 0
        self.headers: Headers = ()
        self.also: Headers = ()
        self.said = b""
        self.over = False

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers, self.said, self.over = status, headers, body, True

    def start(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def write(self, data: bytes) -> None:
        self.said += data

    def finish(self) -> None:
        self.over = True

    def abort(self) -> None:
        self.over = True

    def leave(self) -> None:
        self.gone = self.over = True
        assert self.on_gone is not None
        self.on_gone()


class Asked:
    """An exchange of a played backend: a `Sink` that somebody else fills."""

    def __init__(self, sink: Sink, body: bytes) -> None:
        self.sink, self.body = sink, json.loads(body)
        self.sent_ns, self.over, self.waiting_body, self.by_close = 1, False, True, False

    def cancel(self) -> None:
        self.over = True

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Backend:
    """Takes what it is asked and does nothing by itself."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def send(self, path: str, headers: Headers, body: bytes, sink: Sink) -> Asked:
        self.asked.append(Asked(sink, body))
        return self.asked[-1]


class World:
    """One worker with three backends, of which each request asks the first, then the next."""

    def __init__(self, *limits: str, hedge: bool = False) -> None:
        price = Api(usd_per_mtok_input=USD_IN * 1e6, usd_per_mtok_output=USD_OUT * 1e6)
        plan = GatewayPlan(
            path=None,
            backends=tuple(
                BackendPlan(name=name, url="http://127.0.0.1:1/v1", price=price, poll=False) for name in BACKENDS
            ),
            policies=(
                PolicyPlan(
                    model="m", backends=BACKENDS, policy="cheapest", explore=0.0, attempts=3,
                    hedge=HedgePlan(share=1.0) if hedge else None,
                ),
            ),
        )  # fmt: skip
        models = {name: k for k, name in enumerate(("m", *BACKENDS))}
        rows = Rows({name: k for k, name in enumerate(BACKENDS)}, {"anna": 0, "": 1}, models, {})
        self.block = SharedBlock(Shape(workers=2, backends=3, keys=2, models=4, experiments=1))
        own = tuple(stamped(parse_limit(text), "anna") for text in limits or DAY)
        entry = KeyEntry(name="anna", id="anna", digest=b"", limits=own)
        self.desk = Desk(plan, {name: Observed() for name in BACKENDS}, rows, self.block, 1, (entry,), self)  # type: ignore[arg-type]
        self.backends = {lane.name: Backend() for lane in self.desk.lanes}
        for lane in self.desk.lanes:
            lane.upstream = self.backends[lane.name]  # type: ignore[assignment]
        self.records: list[DecisionRecord] = []

    def add(self, record: DecisionRecord) -> None:
        """The decision log."""
        self.records.append(record)

    def ask(self, path: str = CHAT, **fields: Any) -> Client:
        client = Client()
        body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], **fields}
        headers = [(b"content-type", b"application/json")]
        request = Request("POST", path, "", headers, json.dumps(body).encode(), "here", 1)
        self.desk.ask(request, client, self.desk.clients["anna"], path)
        return client

    @property
    def asked(self) -> list[Asked]:
        """Everything that backends were asked and that is under way."""
        return [one for backend in self.backends.values() for one in backend.asked if not one.over]

    @property
    def sent(self) -> int:
        """How often a prompt was sent."""
        return sum(len(backend.asked) for backend in self.backends.values())

    @property
    def charged(self) -> tuple[int, int, float]:
        """Tokens of prompts and of answers, and dollars, as the key's counters have them."""
        used = [self.block.key_usage.total(0, column) for column in (Used.PROMPT_TOKENS, Used.OUTPUT_TOKENS)]
        return used[0], used[1], self.block.key_usage.total(0, Used.NANO_USD) / 1e9

    def spent(self, what: int) -> int:
        """What the limit holds."""
        limits = self.desk.clients["anna"].entry.limits  # type: ignore[union-attr]
        return self.desk.windows._counted(0, limits, 0.0)[what].row.total


def run(world: Callable[[], None]) -> None:
    """On a loop, as a worker is."""

    async def main() -> None:
        world()

    asyncio.run(main())


ESTIMATED = len(json.dumps([{"role": "user", "content": PROMPT}])) // 4
"""Tokens of the prompt, at the usual four bytes each."""
WORDS = st.text("abcdefghijklmnopqrstuvwxyzäöü語", min_size=1, max_size=9).map(lambda word: word + " ")
BREAKS = ("\n", "\r\n", "\r")


@dataclass
class Script:
    """An answer, and how it ends: after which of its pieces, and how."""

    words: list[list[str]]
    """By event."""
    usage: str
    breaks: list[str]
    coding: str
    cuts: list[int]
    ending: str
    pings: bool = False
    padded: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.words))

    def events(self) -> bytes:
        """The whole stream."""
        told = {"prompt_tokens": 321, "completion_tokens": self.tokens}
        found = [": hello", self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})]
        so_far = 0
        for k, words in enumerate(self.words):
            so_far += len(words)
            more: dict[str, Any] = {}
            if self.usage == "aloud":
                more["usage"] = {**told, "completion_tokens": so_far}
            elif self.usage == "null":
                more["usage"] = None
            if self.padded:
                more["obfuscation"] = "x" * (k * 7 % 16)
            choice = {"index": 0, "delta": {"content": "".join(words)}, "finish_reason": None}
            found.append(self._event({"id": "c", "choices": [choice], **more}))
            if self.pings:
                found.append(": ping" if k % 2 else "data: null")
        found.append(self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if self.usage in ("told", "aloud", "null"):
            found.append(self._event({"choices": None if self.usage == "null" else [], "usage": told}))
        elif self.usage == "zero":
            found.append(self._event({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}))
        elif self.usage == "pretty":
            lines = json.dumps({"choices": [], "usage": told}, indent=2).split("\n")
            found.append("\n".join(f"data: {line}" for line in lines))
        found.append("data: [DONE]")
        text, at = "", 0
        for event in found:
            for line in [*event.split("\n"), ""]:
                end = self.breaks[at % len(self.breaks)]
                # LF after CR would be the other half of one line's end.
                text += line + ("\r" if end == "\n" and not line and text.endswith("\r") else end)
                at += 1
        return text.encode()

    def _event(self, data: dict[str, Any]) -> str:
        return "data: " + json.dumps(data, ensure_ascii=False)

    def pieces(self) -> list[bytes]:
        """As they come from the backend."""
        raw = packed(self.events(), self.coding)
        at = sorted({cut % (len(raw) + 1) for cut in self.cuts})
        return [raw[a:b] for a, b in zip([0, *at], [*at, len(raw)], strict=True) if a < b]


def packed(data: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.compress(data)
    if coding == "deflate":
        return zlib.compress(data)
    if coding == "br":  # nobody here can read it
        return bytes(byte ^ 0x5A for byte in zlib.compress(data))
    return data


def unpacked(data: bytes, coding: str) -> bytes:
    if coding == "br":
        data, coding = bytes(byte ^ 0x5A for byte in data), "deflate"
    return zlib.decompressobj(47).decompress(data) if coding else data


def words_in(said: bytes) -> int:
    """Tokens that a client can find in what it got: each is a word."""
    found = 0
    for data in events_of(said):
        try:
            event = json.loads(data)
        except ValueError:
            continue
        for choice in (event or {}).get("choices") or ():
            found += len(choice["delta"].get("content", "").split())
    return found


SCRIPTS = st.builds(
    Script,
    words=st.lists(st.lists(WORDS, min_size=1, max_size=1), max_size=90)
    | st.lists(st.lists(WORDS, min_size=1, max_size=30), max_size=12),
    usage=st.sampled_from(["told", "none", "null", "aloud", "zero", "pretty"]),
    breaks=st.lists(st.sampled_from(BREAKS), min_size=1, max_size=3) | st.just(["\n"]),
    coding=st.sampled_from(["", "", "", "gzip", "deflate", "br"]),
    cuts=st.lists(st.integers(0, 20_000), max_size=8) | st.lists(st.integers(0, 20_000), min_size=60, max_size=90),
    ending=st.sampled_from(["whole", "whole", "leave", "cut", "timeout", "too_large", "error"]),
    pings=st.booleans(),
    padded=st.booleans(),
)
LOST = ("timeout", "reset", "500", "503", "refused_status")


@settings(max_examples=100, deadline=None)
@given(
    script=SCRIPTS,
    lost=st.lists(st.sampled_from(LOST), max_size=2),
    after=st.integers(0, 100),
    wants=st.booleans(),
)
def test_never_less_than_was_delivered(script: Script, lost: list[str], after: int, wants: bool) -> None:
    """Backends that fail first, then an answer of any kind and any ending."""

    def play() -> None:
        world = World()
        options = {"stream_options": {"include_usage": True}} if wants else {}
        client = world.ask(stream=True, **options)
        refused = 0
        for how in lost:
            (one,) = world.asked
            if how.isdigit():
                one.sink.on_head(int(how), [(b"content-type", b"application/json")])
                one.over = True
            elif how == "refused_status":
                one.sink.on_head(429, [(b"content-type", b"application/json")])
                one.over = True
                refused += 1
            else:
                one.over = True
                one.sink.on_trouble(how, "played")  # type: ignore[arg-type]
        (one,) = world.asked
        assert one.body["stream_options"]["include_usage"] is True
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        one.sink.on_head(200, [*kind, (b"content-encoding", script.coding.encode())] if script.coding else kind)
        pieces = script.pieces()
        if script.ending != "whole":
            pieces = pieces[: after % (len(pieces) + 1)]
        for piece in pieces:
            if not one.over:
                one.sink.on_body(piece)
        if script.ending == "leave":
            client.leave()
        elif not one.over:
            if script.ending == "error":
                failed = b'\n\ndata: {"error": {"message": "out of memory", "code": 500}}\n\n'
                one.sink.on_body(b"" if script.coding else failed)
            one.over = True
            if script.ending in ("whole", "error"):
                one.sink.on_end()
            else:
                one.sink.on_trouble(script.ending, "played")  # type: ignore[arg-type]
        while world.asked:  # an answer that said nothing is asked for again elsewhere
            (rest,) = world.asked
            rest.over = True
            rest.sink.on_trouble("reset", "played")
        assert client.over
        delivered = words_in(unpacked(client.said, script.coding)) if client.status == 200 else 0
        prompt, output, usd = world.charged
        sent = world.sent
        assert output >= delivered
        told = (
            script.ending == "whole" and script.usage in ("told", "aloud", "null", "pretty") and script.coding != "br"
        )
        if told and script.tokens:
            assert output == script.tokens
            assert prompt >= 321 + (sent - refused - 1) * ESTIMATED
        elif sent - refused:
            assert prompt >= (sent - refused - 1) * ESTIMATED + min(ESTIMATED, 321)
        assert usd == pytest.approx(prompt * USD_IN + output * USD_OUT, abs=1e-8)
        assert world.spent(0) == prompt + output, "the limit holds what the counters say"
        assert world.spent(1) == pytest.approx(usd * 1e9, abs=10)
        assert_nothing_left(world)

    run(play)


def assert_nothing_left(world: World) -> None:
    assert len(world.records) == 1
    assert world.block.key_usage.total(0, Used.STREAMS) == 0
    for slot in range(3):
        for column in (UnderWay.IN_FLIGHT, UnderWay.AHEAD_TOKENS, UnderWay.CONTEXT_TOKENS, UnderWay.DECODING):
            assert world.block.load.total(slot, column) == 0


def end(world: World, headers: Headers = ((b"content-type", b"application/json"),), *body: bytes) -> None:
    (one,) = world.asked
    one.sink.on_head(200, headers)
    for piece in body:
        one.sink.on_body(piece)
    one.over = True
    one.sink.on_end()


def test_what_was_sent_costs_its_prompt_though_nothing_came_back() -> None:
    """A client that leaves, a first byte that is late at every backend, and what was refused or never sent."""

    def play() -> None:
        world = World()
        world.ask(stream=True).leave()
        assert world.charged[0] >= ESTIMATED
        assert world.charged[1] == 0
        assert world.charged[2] >= ESTIMATED * USD_IN
        late = World()
        client = late.ask()
        for _ in BACKENDS:
            (one,) = late.asked
            one.over = True
            one.sink.on_trouble("timeout", "played")
        assert client.status == 504
        assert late.charged[0] >= 3 * ESTIMATED
        assert (late.records[0].charged_prompt_tokens, late.records[0].prompt_tokens) == (late.charged[0], None)
        for status in (400, 422):
            refused = World()
            refused.ask()
            (one,) = refused.asked
            one.sink.on_head(status, [(b"content-type", b"application/json")])
            one.sink.on_body(b'{"error": {"message": "no"}}')
            one.over = True
            one.sink.on_end()
            assert refused.charged == (0, 0, 0.0)
        unsent = World()
        client = unsent.ask()
        unsent.asked[0].sent_ns = 0
        client.leave()
        assert unsent.charged == (0, 0, 0.0)

    run(play)


@pytest.mark.parametrize("how", ["leave", "cut", "timeout"])
def test_the_beginning_of_an_answer_is_charged_though_nobody_got_it(how: str) -> None:
    """Short answers in one piece are held until they are whole."""

    def play() -> None:
        world = World()
        client = world.ask()
        (one,) = world.asked
        one.sink.on_head(200, [(b"content-type", b"application/json"), (b"content-length", b"9000")])
        one.sink.on_body(b'{"choices": [{"message": {"content": "' + b"word " * 1000)
        if how == "leave":
            client.leave()
        else:
            one.over = True
            one.sink.on_trouble(how, "played")  # type: ignore[arg-type]
            end(world, ((b"content-type", b"application/json"),), json.dumps({**WHOLE, "usage": COUNTS}).encode())
            assert client.status == 200
        assert b"word" not in client.said
        assert world.charged[1] >= 1000
        assert_nothing_left(world)

    run(play)


def test_what_a_backend_has_written_unseen_is_estimated() -> None:
    def play() -> None:
        for seconds, fields, least, most in ((0, {}, 0, 0), (3600, {"max_tokens": 700, "n": 2}, 1400, 1400)):
            world = World()
            client = world.ask(**fields)
            world.asked[0].sink.start_ns -= seconds * 10**9  # type: ignore[attr-defined]
            client.leave()
            assert least <= world.charged[1] <= most

    run(play)


def test_what_a_key_has_taught_does_not_make_its_next_prompt_cheaper() -> None:
    def play() -> None:
        world = World()
        for _ in range(20):
            world.ask()
            told = {**COUNTS, "prompt_tokens": ESTIMATED // 4}
            end(world, ((b"content-type", b"application/json"),), json.dumps({**WHOLE, "usage": told}).encode())
        before = world.charged[0]
        world.ask().leave()
        assert world.charged[0] - before >= ESTIMATED

    run(play)


def test_an_answer_without_content_costs_what_its_backend_counts() -> None:
    """`choices: null` beside a usage, at backend after backend."""

    def play() -> None:
        world = World()
        client = world.ask()
        while world.asked:
            body = json.dumps({"choices": None, "usage": COUNTS}).encode()
            end(world, ((b"content-type", b"application/json"),), body)
        assert client.over
        assert world.charged[:2] == (12 * world.sent, 3 * world.sent)

    run(play)


def test_a_hedge_costs_both_prompts() -> None:
    def play() -> None:
        world = World(hedge=True)
        client = world.ask(stream=True)
        (first,) = world.asked
        course = first.sink._course  # type: ignore[attr-defined]
        course.hedge_due()
        second = next(one for one in world.asked if one is not first)
        second.sink.on_head(200, [(b"content-type", b"text/event-stream")])
        told = {"prompt_tokens": 321, "completion_tokens": 1}
        for data in ({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}, {"usage": told}):
            second.sink.on_body(b"data: " + json.dumps(data).encode() + b"\n\n")
        second.over = True
        second.sink.on_end()
        assert client.over
        assert world.charged[0] >= 321 + ESTIMATED
        assert world.charged[1] == 1

    run(play)


WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two three"}, "finish_reason": "stop"}]
}
COUNTS = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


@pytest.mark.parametrize(
    ("path", "answer", "prompt", "output"),
    [
        (CHAT, {**WHOLE, "usage": COUNTS}, 12, 3),
        (CHAT, {**WHOLE, "usage": {**COUNTS, "completion_tokens": 3.0, "prompt_tokens_details": []}}, 12, 3),
        (CHAT, {**WHOLE, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}, None, 7),
        (CHAT, {**WHOLE, "usage": None}, None, 7),
        (CHAT, {**WHOLE, "usage": {"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428}}, 10120,
         4308),
        (CHAT, {**WHOLE, "usage": {"prompt_tokens": 3379, "completion_tokens": 12, "total_tokens": 3459}}, 3379, 80),
        (CHAT, WHOLE, None, 7),
        (CHAT, {"choices": "one two three", "usage": COUNTS}, 12, 3),
        ("/v1/messages", {"content": [{"type": "text", "text": "one two three"}], "usage": {"input_tokens": 2,
         "cache_read_input_tokens": 8, "cache_creation_input_tokens": 2, "output_tokens": 3}}, 12, 3),
        ("/v1/responses", {"output": [{"content": [{"type": "output_text", "text": "one two three"}]}]}, None, 7),
        ("/v1/responses", {"status": "queued", "background": True, "output": [], "usage": None}, None, 200),
        ("/v1/embeddings", {"data": [{"embedding": [0.25] * 999}], "usage": {"prompt_tokens": 12}}, 12, 0),
        ("/v1/embeddings", {"data": [{"embedding": [0.25] * 999}]}, None, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("coding", ["", "gzip"])
def test_a_whole_answer(
    path: str, answer: dict[str, Any], prompt: int | None, output: int, stream: bool, coding: str
) -> None:
    """As JSON, whatever was asked for; a count that is none is not told."""

    def play() -> None:
        world = World()
        for lane in world.desk.lanes:
            lane.view.endpoints = frozenset()
        client = world.ask(path, stream=stream)
        headers = [(b"content-type", b"application/json"), (b"content-encoding", coding.encode())]
        body = packed(json.dumps(answer, indent=1).encode(), coding)
        end(world, headers if coding else headers[:1], body[:20], body[20:])
        assert json.loads(unpacked(client.said, coding)) == answer
        assert world.charged[1] == output
        assert world.charged[0] == prompt if prompt is not None else world.charged[0] >= ESTIMATED

    run(play)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("usage", "logged"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None)),
        ({"prompt_tokens": 12, "completion_tokens": 0}, (12, None)),
        (COUNTS, (12, 3)),
    ],
)
def test_a_count_of_nothing_beside_an_answer_is_logged_as_none(
    stream: bool, usage: dict[str, int], logged: tuple[int | None, int | None]
) -> None:
    """Else recorded traffic is played with prompts and answers of one token."""

    def play() -> None:
        world = World()
        world.ask(stream=stream)
        choice = {"index": 0, "finish_reason": "stop", ("delta" if stream else "message"): {"content": "a b c"}}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        kind = b"text/event-stream" if stream else b"application/json"
        end(world, [(b"content-type", kind)], b"data: " + body + b"\n\ndata: [DONE]\n\n" if stream else body)
        (record,) = world.records
        assert (record.prompt_tokens, record.output_tokens) == logged
        assert (record.charged_prompt_tokens is None) == (logged[0] is not None)
        assert (record.charged_output_tokens is None) == (logged[1] is not None)

    run(play)


def test_an_empty_content_encoding_is_none() -> None:
    """An error is read as one, and the next backend asked."""

    def play() -> None:
        world = World()
        world.ask()
        headers = [(b"content-type", b"application/json"), (b"content-encoding", b"")]
        end(world, headers, b'{"error": {"code": 503, "message": "busy", "type": "server_error"}}')
        assert world.sent == 2
        assert not world.records

    run(play)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("told", [True, False])
def test_an_answer_too_long_to_hold(stream: bool, told: bool) -> None:
    """Its usage is read as it passes; without one its bytes are charged."""
    text = 'so "it" goes \\ \u00e9 ' * 100_000
    choice = {"index": 0, "finish_reason": "stop", ("delta" if stream else "message"): {"content": text}}
    answer = json.dumps({"choices": [choice], **({"usage": COUNTS} if told else {})}).encode()
    body = b"data: " + answer + b"\r\n\r\ndata: [DONE]\n\n" if stream else answer

    def play() -> None:
        world = World()
        client = world.ask(stream=stream)
        pieces = [body[at : at + 64_001] for at in range(0, len(body), 64_001)]
        end(world, [(b"content-type", b"text/event-stream" if stream else b"application/json")], *pieces)
        assert client.said == body
        # An event that says three tokens is believed: it is one event.
        assert world.charged[1] == 3 if told else world.charged[1] >= len(text) // 5
        assert world.charged[0] == 12 if told else world.charged[0] >= ESTIMATED

    run(play)


@pytest.mark.parametrize("how", [1, 0, "true", "yes", [], {}, 1.0])
def test_a_stream_that_is_neither_true_nor_false_is_refused(how: object) -> None:
    def play() -> None:
        world = World()
        client = world.ask(stream=how)
        assert client.status == 400
        assert "stream must be true or false" in json.loads(client.said)["error"]["message"]
        assert world.sent == 0
        assert world.charged == (0, 0, 0.0)

    run(play)


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({"max_tokens": 900}, 900),
        ({"max_completion_tokens": 10, "max_tokens": 900}, 900),
        ({"max_tokens": "900"}, 900),
        ({"max_tokens": 300, "n": 3}, 900),
        ({"max_tokens": 300, "best_of": 3, "n": 2}, 900),
        ({"n": 4}, 800),
        ({"max_tokens": 300, "prompt": ["a", "b", "c"]}, 900),
        ({"max_tokens": 900, "prompt": [1, 2, 3]}, 900),
    ],
)
def test_as_much_is_held_as_the_answer_may_take(fields: dict[str, Any], held: int) -> None:
    """Beside one that is under way, nothing else fits; of dollars neither."""

    def play() -> None:
        prompt = ESTIMATED + 30
        for limit in (f"{2 * prompt + 2 * held - 100} tokens/hour", f"{(2 * held - 100) * USD_OUT:.4f} usd/hour"):
            world = World(limit)
            first = world.ask(**fields)
            assert not first.over
            second = world.ask(**fields)
            assert second.status == 429
            end(world, ((b"content-type", b"application/json"),), json.dumps({**WHOLE, "usage": COUNTS}).encode())
            assert first.status == 200
            assert not world.ask(**fields).over, "what was held and not taken is free again"

    run(play)


def events(*found: Sequence[Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(data).encode()) for name, data in found)


def test_counts_that_come_before_the_end_are_a_beginning() -> None:
    """The messages tell one token at their start; who leaves before their end had more."""
    start = ("message_start", {"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 1}}})
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "some words "}}
    deltas = [("content_block_delta", delta)] * 200
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 450}}

    def play() -> None:
        for more, least, most in (((), 400, 1400), ((("message_delta", last),), 450, 450)):
            world = World()
            for lane in world.desk.lanes:
                lane.view.endpoints = frozenset()
            client = world.ask("/v1/messages", stream=True)
            (one,) = world.asked
            one.sink.on_head(200, [(b"content-type", b"text/event-stream")])
            for event in (start, *deltas, *more):
                one.sink.on_body(events(event))
            client.leave()
            assert world.charged[0] == 40
            assert least <= world.charged[1] <= most

    run(play)


WRONG_KEYS = [
    {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: sk***gA. See console.x.ai."},
    [{"error": {"code": 400, "message": "API key not valid: sk***gA", "details": [{"reason": "API_KEY_INVALID"}]}}],
]


@pytest.mark.parametrize("said", WRONG_KEYS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_key_of_ours_that_is_told_with_400_is_no_clients_affair(said: object, stream: bool) -> None:
    words = json.dumps(said).encode()

    def play() -> None:
        world = World()
        client = world.ask(stream=stream)
        for _ in BACKENDS:
            assert not client.over, "somebody else is asked"
            end_with(world, 400, words)
        assert (client.status, world.sent) == (502, len(BACKENDS))
        assert b"it does not take the gateway's own key" in client.said
        for told in (client.said, world.records[0].error.encode()):
            assert b"sk***gA" not in told
        assert world.charged == (0, 0, 0.0)
        assert_nothing_left(world)

    run(play)


@pytest.mark.parametrize(
    "fields",
    [{"user": "an incorrect API key provided"}, {"metadata": {"api key invalid": ""}}, {"API key not valid": 1}],
)
def test_whoever_sends_such_words_to_be_repeated_closes_no_backend(fields: dict[str, Any]) -> None:
    words = json.dumps(WRONG_KEYS[0]).encode()

    def play() -> None:
        world = World()
        client = world.ask(**fields)
        end_with(world, 400, words)
        assert (client.status, client.said, world.sent) == (400, words, 1)
        assert_nothing_left(world)

    run(play)


def end_with(world: World, status: int, body: bytes) -> None:
    """The backend that is asked refuses."""
    (one,) = world.asked
    one.sink.on_head(status, [(b"content-type", b"application/json")])
    one.sink.on_body(body)
    one.over = True
    one.sink.on_end()
