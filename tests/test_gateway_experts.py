"""Requests whose experts are looked at: from the file to the admin page, with real engines and played ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from gateway_serve_fixtures import Gateway, ask, question, serving, wait
from gateway_swap_fixtures import described
from hypothesis import given
from hypothesis import strategies as st

from breakeven.engines.inside.routed import ReadRouting, RoutingReader
from breakeven.engines.source import parse_source
from breakeven.engines.start import weights_of
from breakeven.errors import EngineError, UserError
from breakeven.gateway.experiment.answer import KEEP_BYTES, Kept, read
from breakeven.gateway.experts import hand, look
from breakeven.gateway.experts.hand import (
    CUT,
    FULL,
    LINE_BYTES,
    LOST,
    MOST_ROUTING,
    PACKED,
    TOO_LARGE,
    Handed,
    Handing,
    contents,
    drop,
    language_of,
    looking_at,
    observed,
    received,
)
from breakeven.gateway.experts.look import EngineTime
from breakeven.gateway.experts.watch import LINE_FULL, MOST_WAITING, ExpertsWatch
from breakeven.gateway.plan.experts import ExpertsPlan
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.plan.write import write_gateway
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Rows
from breakeven.gateway.swap.effects import EngineLoaded
from breakeven.hardware.system import memory_file, message_line, send_message
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import Request
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer
from tests.test_gateway_charge import Backend, Client

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LAYERS, EXPERTS, USED = 4, 8, 2
FILES = Path("/proc/self/fd")
pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="descriptors are counted as Linux lists them")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen is kept there: each test begins with nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# The file.


def in_a_file(tmp_path: Path, **backend: object) -> BackendPlan:
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps({"backends": [{"name": "b", **backend}]}), encoding="utf-8")
    return read_gateway(path, {}).backends[0]


VLLM = {"url": "http://10.0.0.1:8000/v1", "engine": "vllm"}


def test_what_is_looked_at_is_read_and_written(tmp_path: Path) -> None:
    asked = {"observe": "1%", "imbalance": 4, "drift": "20%", "tokens": 512}
    found = in_a_file(tmp_path, **VLLM, experts=asked)
    assert found.experts == ExpertsPlan(observe=0.01, imbalance=4.0, drift=0.2, tokens=512)
    plan = read_gateway(tmp_path / "gateway.yaml", {})
    assert read_gateway(write_gateway(plan, tmp_path / "again.yaml"), {}).backends == plan.backends
    assert in_a_file(tmp_path, **VLLM, experts={"imbalance": 2}).experts == ExpertsPlan(imbalance=2.0)
    assert in_a_file(tmp_path, **VLLM).experts is None
    assert in_a_file(tmp_path, url=VLLM["url"], dialect="sglang", experts={"observe": 1}).experts is not None


@pytest.mark.parametrize(
    ("backend", "key", "says"),
    [
        ({**VLLM, "experts": {"observe": 0}}, "observe", "above 0"),
        ({**VLLM, "experts": {"observe": "150%"}}, "observe", "a share such as"),
        ({**VLLM, "experts": {"observe": "often"}}, "observe", "a share such as"),
        ({**VLLM, "experts": {"obsreve": "1%"}}, "obsreve", "observe"),
        ({**VLLM, "experts": {"observe": "1%", "imbalance": 0.5}}, "imbalance", "greater than 1"),
        ({**VLLM, "experts": {"observe": "1%", "drift": 2}}, "drift", "a share such as"),
        ({**VLLM, "experts": {"observe": "1%", "tokens": 0}}, "tokens", "1"),
        ({**VLLM, "experts": "1%"}, "", "a mapping with keys such as observe"),
        ({**VLLM, "price": {"api": {"input": 1, "output": 1}}, "experts": {"observe": "1%"}}, "", "an API's price"),
        ({**VLLM, "engine": "mlx", "experts": {"observe": "1%"}}, "", "mlx, which tells nothing"),
        ({**VLLM, "engine": "ollama", "experts": {"observe": "1%"}}, "", "ollama, which tells nothing"),
        ({**VLLM, "model": "qwen3-14b", "experts": {"observe": "1%"}}, "", r"dense model \(qwen3-14b\)"),
        ({"local": {"model": "qwen3-0.6b"}, "experts": {"observe": "1%"}}, "", r"dense model \(qwen3-0.6b\)"),
        ({**VLLM, "kind": "dense", "experts": {"observe": "1%"}}, "", "dense model"),
        ({"url": VLLM["url"], "experts": {"observe": "1%"}}, "observe", "engine: vllm or sglang"),
        ({**VLLM, "engine": "llama.cpp", "experts": {"observe": "1%"}}, "observe", "whose weights are not known"),
        ({"local": {"model": "olmoe-1b-7b"}, "experts": {"imbalance": 4}}, "observe", "counts nothing by expert"),
        ({**VLLM, "poll": False, "experts": {"imbalance": 4}}, "observe", "nothing would be seen"),
        ({**VLLM, "endpoints": ["/v1/embeddings"], "experts": {"observe": "1%"}}, "observe", "can be looked at"),
        (
            {"local": {"model": "olmoe-1b-7b", "engine": "vllm"}, "experts": {"observe": "1%"}},
            "observe",
            r"add arguments: \[--enable-return-routed-experts\]",
        ),
    ],
)
def test_what_cannot_be_seen_is_refused_in_one_line(
    tmp_path: Path, backend: dict[str, object], key: str, says: str
) -> None:
    place = f"backends.0.experts{'.' if key else ''}{key}"
    with pytest.raises(UserError, match=f"{re.escape(place)}: .*{says}") as error:
        in_a_file(tmp_path, **backend)
    assert str(error.value).startswith(f"{tmp_path / 'gateway.yaml'}: ")
    assert "\n" not in str(error.value)


# Which requests.


def test_a_share_of_requests_is_looked_at_by_their_ids_alone() -> None:
    idents = [f"a1b2c3d4e51-{k:x}" for k in range(20_000)]
    few, more = ({ident for ident in idents if observed(ident, share)} for share in (0.01, 0.1))
    assert few == {ident for ident in idents if observed(ident, 0.01)}
    assert few < more, "who is looked at stays so when the share grows"
    assert all(observed(ident, 1.0) for ident in idents)
    for found, share in ((few, 0.01), (more, 0.1)):
        assert abs(len(found) - share * len(idents)) < 4 * (share * (1 - share) * len(idents)) ** 0.5


@given(st.binary(max_size=20))
def test_a_language_is_letters_or_nothing(told: bytes) -> None:
    assert re.fullmatch("|[a-z-]{2,12}", language_of(told))


def test_languages() -> None:
    given = (b"de", b"PT-br", b"d", b"german-in-austria", b"d e", b"de\n", "fré".encode())
    assert [language_of(told) for told in given] == ["de", "pt-br", "", "", "", "", ""]


# From process to process.


def files() -> int:
    """Descriptors that this process has open."""
    return len(list(FILES.iterdir()))


@pytest.fixture
def line() -> Iterator[tuple[Handing, socket.socket, socket.socket]]:
    """The worker's end, its socket, and the other end; afterwards no descriptor may be left."""
    before = files()
    sending, receiving = message_line(LINE_BYTES)
    yield Handing(sending), sending, receiving
    sending.close()
    receiving.close()
    assert files() == before


Line = tuple[Handing, socket.socket, socket.socket]


def test_question_and_answer_come_over_whole(line: Line) -> None:
    handing, _, receiving = line
    note = Handed(backend="b", endpoint=CHAT, key="anna", language="de")
    large = os.urandom(3_000_000)
    assert handing.give(note, b"asked", [b"first ", b"second"])
    assert handing.give(note, large, [b"", large])
    got = received(receiving)
    assert got is not None
    assert got[0] == msgspec.structs.replace(note, asked_bytes=5)
    assert got[1] is not None
    assert not os.get_inheritable(got[1])
    assert contents(got[0], got[1]) == (b"asked", b"first second")
    got = received(receiving)
    assert got is not None
    assert got[1] is not None
    assert contents(got[0], got[1]) == (large, large)
    assert received(receiving) is None


def test_a_full_line_is_not_waited_for_and_what_is_skipped_is_told(line: Line) -> None:
    handing, _, receiving = line
    tried = given = 0
    while given == tried:
        tried += 1
        given += handing.give(Handed(backend="b"), b"", [b"x"])
        assert tried < 1000, "a line without an end"
    handing.give(Handed(backend="other"), b"", [b"x"])
    handing.tell()
    assert 4 <= given <= 200
    for _ in range(given):
        got = received(receiving)
        assert got is not None
        assert got[0].missed == []
        assert got[1] is not None
        os.close(got[1])
    assert received(receiving) is None
    handing.tell()
    handing.tell()
    got = received(receiving)
    assert got == (Handed(missed=[("b", FULL, 1), ("other", FULL, 1)]), None)
    assert received(receiving) is None, "told once"


def test_what_is_skipped_goes_with_the_next_request(line: Line) -> None:
    handing, _, receiving = line
    for k in range(12):
        handing.miss(f"backend {k % 10}", CUT)
    for _ in range(3):
        assert handing.give(Handed(backend="b"), b"", [])
    told: dict[str, int] = {}
    while (got := received(receiving)) is not None:
        assert got[1] is not None
        os.close(got[1])
        told.update({backend: told.get(backend, 0) + count for backend, _, count in got[0].missed})
    assert told == {f"backend {k}": 1 + (k < 2) for k in range(10)}


def test_a_receiver_that_is_gone_costs_a_count_and_nothing_else(line: Line) -> None:
    handing, _, receiving = line
    receiving.close()
    assert not handing.give(Handed(backend="b"), b"asked", [b"answer"])
    handing.tell()
    assert handing._missed == {("b", LOST): 1}


def test_a_message_that_is_too_long_costs_a_count(line: Line) -> None:
    handing, _, receiving = line
    assert not handing.give(Handed(backend="b", key="k" * 100_000), b"asked", [b"answer"])
    assert handing.give(Handed(backend="b"), b"", [])
    got = received(receiving)
    assert got is not None
    assert got[0].missed == [("b", LOST, 1)]
    drop(receiving)
    assert got[1] is not None
    os.close(got[1])


def test_no_file_for_it_costs_a_count(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(hand, "memory_file", full)
    handing = line[0]
    assert not handing.give(Handed(backend="b"), b"asked", [])
    assert handing._missed == {("b", LOST): 1}


def test_files_on_their_way_go_with_the_line() -> None:
    """A pipe in place of a file tells when nobody has its other end any more."""
    for close in (lambda sending, receiving: drop(receiving), lambda sending, receiving: None):
        sending, receiving = message_line(LINE_BYTES)
        reading, writing = os.pipe()
        send_message(sending, msgspec.msgpack.encode(Handed(backend="b")), writing)
        os.close(writing)
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        close(sending, receiving)
        sending.close()
        receiving.close()
        assert os.read(reading, 1) == b"", "a descriptor is left"
        os.close(reading)


def test_what_is_no_message_is_passed_over(line: Line) -> None:
    _, sending, receiving = line
    file = memory_file("x", [b"y"])
    send_message(sending, b"\xff no message", file)
    os.close(file)
    assert received(receiving) == (Handed(), None)


def test_more_is_kept_for_who_looks_than_experiments_read() -> None:
    usual, looked = Kept(), Kept(MOST_ROUTING, observed=True)
    said = json.dumps({"choices": [{"message": {"content": "x" * (KEEP_BYTES + 10)}}]}).encode()
    for kept in (usual, looked):
        kept.add(said[:100])
        kept.add(said[100:])
    assert (usual.cut, looked.cut) == (True, False)
    assert usual.answer() == looked.answer(), "equal answers are equal whoever looks at them"
    assert b"".join(looked.pieces) == said
    exact = Kept(4)
    exact.add(b"four")
    assert not exact.cut
    exact.add(b"!")
    assert exact.cut


def test_thoughts_are_read_where_they_are_asked_for() -> None:
    told = {"choices": [{"message": {"content": "so", "reasoning_content": "hm, "}}]}
    assert [read(json.dumps(told).encode(), thoughts=wanted).text for wanted in (False, True)] == ["so", "hm, so"]
    odd = {"choices": [{"message": {"content": "so", "reasoning_content": ["?"]}}]}
    assert read(json.dumps(odd).encode(), thoughts=True).text == "so"


# A worker.


class World:
    """One desk with one played backend, all of whose requests are looked at."""

    def __init__(self, to: socket.socket, **backend: Any) -> None:
        usual = {"name": "b", "url": "http://127.0.0.1:1/v1", "engine": "vllm", "experts": ExpertsPlan(observe=1.0)}
        plan = GatewayPlan(
            path=None,
            backends=(BackendPlan(**{**usual, **backend}),),
            policies=(PolicyPlan(model="m", backends=("b",)),),
        )
        rows = Rows({"b": 0}, {"": 0}, {"m": 0, "b": 1}, {})
        block = SharedBlock(Shape(workers=2, backends=1, keys=1, models=2, experiments=1))
        self.desk = Desk(plan, {"b": Observed()}, rows, block, 1, None, None, Handing(to))
        self.backend = Backend()
        for lane in self.desk.lanes:
            lane.upstream = self.backend  # type: ignore[assignment]

    def ask(self, path: str = CHAT, headers: tuple[tuple[bytes, bytes], ...] = (), **fields: Any) -> Client:
        client = Client()
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}], **fields}
        request = Request("POST", path, "", list(headers), json.dumps(body).encode(), "here", 1)
        self.desk.ask(request, client, self.desk.anyone, path)
        return client

    def answer(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        sink = self.backend.asked[-1].sink
        sink.on_head(status, [(b"content-type", b"application/json"), *headers])
        sink.on_body(body)
        sink.on_end()


def document(content: str = "Yes.", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}).encode()


def played(line: Line, scenario: Callable[[World], None], **backend: Any) -> None:
    """On a loop, as a worker is."""

    async def main() -> None:
        scenario(World(line[1], **backend))

    asyncio.run(main())


def only(receiving: socket.socket) -> tuple[Handed, bytes, bytes]:
    """The one request that is there."""
    got = received(receiving)
    assert got is not None
    assert got[1] is not None
    note = got[0]
    assert received(receiving) is None
    return note, *contents(note, got[1])


def test_an_answer_is_handed_over_as_it_came(line: Line) -> None:
    said = document(prompt_routed_experts=[[[0, 1]]])

    def scenario(world: World) -> None:
        client = world.ask(headers=((b"x-breakeven-language", b"DE"),))
        world.answer(said)
        assert (client.status, client.said) == (200, said)
        note, asked, answer = only(line[2])
        assert (note.backend, note.endpoint, note.key, note.language) == ("b", CHAT, "", "de")
        assert (asked, answer) == (b"", said), "whoever returns its routing needs no question"
        world.ask(headers=((b"x-breakeven-language", b"\xff"),))
        world.answer(said)
        assert only(line[2])[0].language == ""

    played(line, scenario)


def test_of_an_engine_of_ours_the_question_goes_along_as_it_was_asked_of_it(line: Line) -> None:
    def scenario(world: World) -> None:
        lane = world.desk.lanes[0]
        looking = looking_at(replace(lane.plan, url=None, engine=None, local=LocalPlan(model="x.gguf")))
        assert looking is not None
        lane.looking = looking
        world.ask("/v1/messages", max_tokens=9)
        world.answer(document())
        note, asked, answer = only(line[2])
        assert note.endpoint == CHAT, "messages are asked as a chat"
        assert json.loads(asked) == world.backend.asked[-1].body
        assert json.loads(asked)["messages"] == [{"role": "user", "content": "Hello?"}]
        assert answer == document()

    played(line, scenario)


def test_what_did_not_end_whole_or_cannot_be_read_is_counted(line: Line) -> None:
    def missed(world: World) -> list[tuple[str, str, int]]:
        assert world.desk.handing is not None
        world.desk.handing.tell()
        got = received(line[2])
        assert got is None or got[1] is None
        return [] if got is None else got[0].missed

    def scenario(world: World) -> None:
        client = world.ask(stream=True)
        sink = world.backend.asked[-1].sink
        sink.on_head(200, [(b"content-type", b"text/event-stream")])
        sink.on_body(b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n')
        client.leave()
        assert missed(world) == [("b", CUT, 1)]
        world.ask()
        world.answer(document(), 200, (b"content-encoding", b"br"))
        assert missed(world) == [("b", PACKED, 1)]
        world.ask()
        world.answer(document("x" * MOST_ROUTING))
        assert missed(world) == [("b", TOO_LARGE, 1)]
        world.ask()
        world.answer(b'{"error": {"message": "no"}}', 400)
        world.ask("/v1/embeddings", input="x")
        assert missed(world) == [], "what generates nothing routes nothing"

    played(line, scenario, endpoints=(CHAT, "/v1/embeddings"))


def test_sglang_is_asked_for_it_and_never_refuses_a_client_for_that(line: Line) -> None:
    def scenario(world: World) -> None:
        client = world.ask()
        assert world.backend.asked[-1].body["return_routed_experts"] is True
        world.answer(b'{"error": {"message": "the server is not configured to return routed experts"}}', 400)
        assert len(world.backend.asked) == 2
        assert "return_routed_experts" not in world.backend.asked[-1].body
        world.answer(document())
        assert (client.status, client.said) == (200, document())
        assert only(line[2])[2] == document()
        client = world.ask()
        for _ in range(2):
            world.answer(b'{"error": {"message": "your own mistake"}}', 400)
        assert client.status == 400

    played(line, scenario, engine="sglang")


def test_whoever_is_not_looked_at_is_asked_as_ever(line: Line) -> None:
    def scenario(world: World) -> None:
        world.ask()
        assert "return_routed_experts" not in world.backend.asked[-1].body
        world.answer(document())
        assert received(line[2]) is None

    played(line, scenario, engine="sglang", experts=None)
    played(line, scenario, engine="sglang", experts=ExpertsPlan(imbalance=4.0))


# The part of the watching process.


class Reader:
    """A second process that is none. `texts`: what it read."""

    load_cpu_s = 0.5

    def __init__(self, weights: Path, tokens: int) -> None:
        self.weights, self.tokens = weights, tokens
        self.texts: list[str] = []
        self.closed = False
        self.cpu_s = 0.0
        self.wrong: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, text: str) -> ReadRouting:
        self.go_on.wait(30)
        if self.wrong is not None:
            raise self.wrong
        self.texts.append(text)
        choices = np.zeros((LAYERS, EXPERTS), np.int64)
        choices[:, :USED] = len(text)
        return ReadRouting(tuple(range(LAYERS)), choices, len(text), len(text), self.cpu_s)

    def close(self) -> None:
        self.closed = True
        self.go_on.set()


class Watching:
    """A part that looks at one local backend, with an engine that is played and a clock that is told."""

    def __init__(self, port: int, to: socket.socket, receiving: socket.socket, **experts: Any) -> None:
        self.now_s = 100.0
        self.readers: list[Reader] = []
        self.handing = Handing(to)
        self.engine: EngineLoaded | None = EngineLoaded(
            "b", port, 1.0, None, pid=os.getpid(), weights=Path("weights.gguf")
        )
        asked = ExpertsPlan(**{"observe": 1.0, **experts})
        local = BackendPlan(name="b", local=LocalPlan(model="olmoe-1b-7b"), model="olmoe-1b-7b", experts=asked)
        self.part = ExpertsWatch(
            GatewayPlan(path=None, backends=(local,)),
            receiving,
            engine_of=lambda name: self.engine if name == "b" else None,
            key_of=lambda name: f"key of {name}",
            new_reader=self.reader,  # type: ignore[arg-type]
            clock=lambda: self.now_s,
        )
        # What this process took by now depends on the tests before; the engine that is played has worked for long.
        self.part._looks["b"].engine.seconds = 1e6

    def reader(self, weights: Path, tokens: int) -> Reader:
        self.readers.append(Reader(weights, tokens))
        return self.readers[-1]

    def give(self, asked: object, answer: bytes = b"", endpoint: str = CHAT, **more: str) -> None:
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        assert self.handing.give(Handed(backend="b", endpoint=endpoint, **more), body, [answer or document(" Yes.")])

    @property
    def seen(self) -> Any:
        return self.part._looks["b"].seen.report(1e9)

    async def until(self, done: Callable[[], object]) -> None:
        for _ in range(2000):
            if done():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"it did not come; {self.seen}, {self.part.troubles()}")

    async def counted(self, requests: int, skipped: dict[str, int]) -> None:
        def there() -> bool:
            seen = self.seen
            return seen is not None and (seen.requests or 0) == requests and seen.skipped == skipped

        await self.until(there)


def templates(request: Request) -> Scene:
    """An engine's own template; of what says so it fails."""
    body = json.loads(request.body)
    if not isinstance(body, dict):
        return whole(b"{}", status=400)
    if body.get("fails"):
        return whole(b'{"error": "no"}', status=500)
    if body.get("odd"):
        return whole(b'{"text": "no prompt"}')
    key = dict(request.headers).get(b"authorization", b"").decode()
    return whole(json.dumps({"prompt": f"[{key}] {body['messages'][0]['content']}:"}).encode())


async def watched(line: Line, scenario: Callable[[Watching], Any], **experts: Any) -> None:
    with ScriptedServer("ok", pages={"/apply-template": templates}) as server:
        w = Watching(server.port, line[1], line[2], **experts)
        task = asyncio.create_task(w.part.run())
        try:
            await scenario(w)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert all(reader.closed for reader in w.readers)


def chat(content: str = "Hello?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


def test_a_chat_is_read_in_its_engines_template_with_its_answer(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat(), key="anna", language="de")
        w.give({"model": "m", "prompt": "Once"}, b'{"choices": [{"text": " upon a time"}]}', TEXT)
        w.give({"model": "m", "prompt": ["Twice"]}, b'{"choices": [{"text": " more"}]}', TEXT)
        await w.counted(3, {})
        (reader,) = w.readers
        assert (reader.weights, reader.tokens) == (Path("weights.gguf"), 64)
        assert reader.texts == ["[Bearer key of b] Hello?: Yes.", "Once upon a time", "Twice more"]
        seen = w.part.report(1e9)[0]
        assert seen.tokens == sum(map(len, reader.texts))
        assert "anna" in [each.name for each in seen.keys]
        assert "de" in [each.name for each in seen.languages]
        assert any("Loading its weights" in text for text in seen.caveats)

    asyncio.run(watched(line, scenario, tokens=64))


def test_what_cannot_be_read_is_skipped_by_reason_and_the_rest_goes_on(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        for asked in (chat(fails=True), chat(odd=True), b"[]"):
            w.give(asked)
        w.give(chat(content=[{"type": "image_url", "image_url": {"url": "data:"}}]))  # type: ignore[arg-type]
        for prompt in ([1, 2, 3], ["a", "b"], None):
            w.give({"prompt": prompt}, endpoint=TEXT)
        w.give(chat())
        await w.counted(1, {look.NOT_RENDERED: 3, look.HAS_PICTURES: 1, look.NOT_TEXT: 3})
        w.engine = None
        w.give(chat())
        await w.until(lambda: w.seen.skipped.get(look.GONE) == 1)
        w.handing.miss("b", FULL)
        w.handing.miss("somebody else", FULL)
        w.handing.tell()
        await w.until(lambda: w.seen.skipped.get(FULL) == 1)

    asyncio.run(watched(line, scenario))


def test_a_long_line_is_bounded_and_told(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.until(lambda: w.readers and w.readers[0].texts)
        w.readers[0].go_on.clear()
        for _ in range(MOST_WAITING + 11):
            w.give(chat())
            w.part.take()
            await asyncio.sleep(0)
        await w.until(lambda: w.seen.skipped.get(LINE_FULL, 0) >= 10)
        w.readers[0].go_on.set()
        await w.until(lambda: w.seen.requests + w.seen.skipped[LINE_FULL] == MOST_WAITING + 12)
        assert MOST_WAITING + 1 <= w.seen.requests <= MOST_WAITING + 2

    asyncio.run(watched(line, scenario))


def test_looking_keeps_to_its_share_of_the_cpu(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.readers[0].cpu_s = 1e6
        w.give(chat())
        await w.counted(2, {})
        for _ in range(2):
            w.give(chat())
        await w.counted(2, {look.TO_KEEP_ITS_SHARE: 2})
        seen = w.part.report(2e9)[0]
        assert seen.cpu_s is not None
        assert seen.cpu_s >= 1e6
        w.part._looks["b"].engine.seconds = 1e9
        w.give(chat())
        await w.counted(3, {look.TO_KEEP_ITS_SHARE: 2})
        w.part._looks["b"].engine.seconds = None
        w.give(chat())
        await w.counted(4, {look.TO_KEEP_ITS_SHARE: 2})

    asyncio.run(watched(line, scenario))


def test_weights_are_let_go_of_with_their_engine_and_when_nobody_needs_them(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.now_s += look.IDLE_S - 1
        w.part._tend()
        assert not w.readers[0].closed
        w.now_s += 10
        w.part._tend()
        assert w.readers[0].closed
        w.give(chat())
        await w.counted(2, {})
        assert len(w.readers) == 2
        engine, w.engine = w.engine, None
        w.now_s += 10
        w.part._tend()
        assert w.readers[1].closed
        assert engine is not None
        w.engine = replace(engine, weights=Path("other.gguf"))
        w.give(chat())
        await w.counted(3, {})
        assert w.readers[2].weights == Path("other.gguf")

    asyncio.run(watched(line, scenario))


def test_weights_that_cannot_be_looked_at_are_said_and_tried_again_later(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.readers[0].wrong = EngineError("it was killed by signal 9")
        w.give(chat())
        await w.counted(1, {look.UNREADABLE: 1})
        assert w.readers[0].closed
        assert "killed by signal 9" in w.part.troubles()[0]
        w.give(chat())
        await w.counted(1, {look.UNREADABLE: 2})
        assert len(w.readers) == 1
        w.now_s += look.RETRY_S + 1
        w.give(chat())
        await w.counted(2, {look.UNREADABLE: 2})
        assert w.part.troubles() == []

    asyncio.run(watched(line, scenario))


def test_a_reload_goes_on_with_its_sums_and_new_bounds(line: Line) -> None:
    async def first(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        assert w.part.alarms() == []

    async def second(w: Watching) -> None:
        w.give(chat())
        await w.until(lambda: w.seen is not None and w.seen.requests == 2)

    asyncio.run(watched(line, first))
    asyncio.run(watched(line, second, imbalance=1.5))


def test_a_reader_that_comes_up_after_the_end_is_let_go_of(line: Line) -> None:
    made = threading.Event()

    async def scenario(w: Watching) -> None:
        reader = w.reader

        def slow(weights: Path, tokens: int) -> Reader:
            made.wait(30)
            return reader(weights, tokens)

        w.part._looks["b"]._new_reader = slow  # type: ignore[assignment]
        w.give(chat())
        await w.until(lambda: not w.part._line and w.part._thread._work_queue.empty())
        await asyncio.sleep(0.05)

    async def main() -> None:
        with ScriptedServer("ok", pages={"/apply-template": templates}) as server:
            w = Watching(server.port, line[1], line[2])
            task = asyncio.create_task(w.part.run())
            await scenario(w)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            made.set()
            await w.until(lambda: w.readers and w.readers[0].closed)

    asyncio.run(main())


def test_an_engines_time_is_that_of_its_family_and_goes_on_with_the_next_engine() -> None:
    now = [0.0]
    counted = EngineTime(lambda: now[0])
    counted.look(os.getpid())
    before = counted.seconds
    assert before is not None
    until = sum(psutil.Process().cpu_times()[:2]) + 0.2
    while sum(psutil.Process().cpu_times()[:2]) < until:
        pass
    counted.look(os.getpid())
    assert counted.seconds is not None
    assert counted.seconds - before >= 0.19
    so_far = counted.seconds
    counted.tend(None)
    counted.look(2**22 + 1)
    assert counted.seconds == so_far, "one that is gone took nothing more"


# The whole gateway.


def seen_of(gateway: Gateway) -> dict[str, Any]:
    """What `/admin/experts` says of the one backend; empty: nothing yet."""
    found = ask(gateway.admin, None, "/admin/experts").json["backends"]
    return found[0] if found else {}


def test_a_real_engines_requests_are_read_as_they_are(tmp_path: Path) -> None:
    """llama.cpp on a toy MoE: what the page says is what a reader says of the same texts."""
    model = described(tmp_path, "qwen3moe")
    local = {"model": str(model), "context": 512, "slots": 2, "threads": 1, "pinned": True}
    plan = {"backends": [{"name": "toy", "local": local, "experts": {"observe": "100%"}}]}
    with serving(tmp_path / "gateway", plan) as gateway:
        texts = []
        for stream in (False, True):
            body: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "Which way?"}]}
            body |= {"stream": stream, "temperature": 0, "max_tokens": 24}
            reply = ask(gateway.url, body, headers={"x-breakeven-language": "en"})
            assert reply.status == 200, reply.body
            texts.append("user: Which way?\nassistant: " + read(reply.body).text)
        reply = ask(gateway.url, {"model": "toy", "prompt": "Once upon", "max_tokens": 24, "temperature": 0}, TEXT)
        texts.append("Once upon" + read(reply.body).text)

        def all_looked_at() -> bool:
            seen = seen_of(gateway)
            return seen.get("requests", 0) + sum(seen.get("skipped", {}).values()) == len(texts)

        wait(all_looked_at, "not every request was looked at")
        seen = seen_of(gateway)
        state = gateway.state()
        assert gateway.backend("toy")["experts"]["tokens"] == seen["tokens"]
        page = ask(gateway.admin, None, "/metrics").body.decode()
    assert seen["skipped"] == {}, state["warnings"]
    assert f'breakeven_gateway_experts_observed_requests_total{{backend="toy"}} {float(len(texts))}' in page
    weights = weights_of(parse_source(str(model)), None, 0, None)
    assert weights is not None
    with RoutingReader(weights) as reader:
        readings = [reader.read(text) for text in texts]
    choices = sum(reading.choices_LE for reading in readings)
    tokens = sum(reading.tokens for reading in readings)
    assert (seen["source"], seen["tokens"], seen["n_experts"]) == ("observed", tokens, EXPERTS)
    assert [layer["layer"] for layer in seen["layers"]] == list(readings[0].layers)
    found = np.array([layer["frequencies"] for layer in seen["layers"]])
    np.testing.assert_allclose(found, choices / tokens, rtol=1e-6)
    assert "en" in [each["name"] for each in seen["languages"]]


def routing(tokens: int) -> str:
    """As vLLM packs it: the same two experts for every token, in base64 of an .npy."""
    ids = np.tile(np.array([3, 5], np.int16), (tokens, LAYERS, 1))
    out = io.BytesIO()
    np.save(out, ids)
    return base64.b64encode(out.getvalue()).decode()


def returns(question: ScriptedRequest) -> Scene:
    body = {
        "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop", "routed_experts": routing(10)}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 4},
    }
    return whole(json.dumps(body).encode())


@contextlib.contextmanager
def returning(tmp_path: Path, observe: str = "100%", **more: Any) -> Iterator[Gateway]:
    with ScriptedServer(returns) as server:
        backend = {"name": "far", "url": f"{server.url}/v1", "engine": "vllm", "poll": False}
        backend["experts"] = {"observe": observe, "imbalance": 2}
        with serving(tmp_path, {"backends": [backend], "workers": 2, **more}) as gateway:
            yield gateway


def test_routing_that_an_engine_returns_is_summed_and_alarms(tmp_path: Path) -> None:
    with returning(tmp_path) as gateway:
        for k in range(6):
            assert ask(gateway.url, question(f"q{k}", "far")).status == 200
        wait(lambda: seen_of(gateway).get("requests") == 6, "not every answer was looked at")
        seen = seen_of(gateway)
        assert (seen["source"], seen["tokens"]) == ("returned", 60)
        for layer in seen["layers"]:
            assert [layer["frequencies"][3], layer["frequencies"][5]] == [1.0, 1.0]
            assert sum(layer["shares"]) == pytest.approx(1.0)


def test_another_watching_process_goes_on_where_the_first_was_killed(tmp_path: Path) -> None:
    with returning(tmp_path) as gateway:
        assert ask(gateway.url, question("first", "far")).status == 200
        wait(lambda: seen_of(gateway).get("requests") == 1, "it was not looked at")
        (pid,) = gateway.watcher()
        os.kill(pid, signal.SIGSTOP)
        for k in range(3):
            assert ask(gateway.url, question(f"q{k}", "far")).status == 200
        os.kill(pid, signal.SIGKILL)
        wait(lambda: gateway.watcher() not in ([], [pid]), "no other watching process came")
        wait(lambda: seen_of(gateway).get("requests", 0) >= 3, "what waited for it is lost")


def test_the_end_saves_what_was_seen(tmp_path: Path) -> None:
    with returning(tmp_path) as gateway:
        assert ask(gateway.url, question("first", "far")).status == 200
        wait(lambda: seen_of(gateway).get("requests") == 1, "it was not looked at")
        gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0
    with returning(tmp_path) as gateway:
        wait(lambda: seen_of(gateway).get("requests") == 1, "it was forgotten")


def test_a_reload_may_begin_and_end_it(tmp_path: Path) -> None:
    with ScriptedServer(returns) as server:
        plain = {"name": "far", "url": f"{server.url}/v1", "engine": "vllm", "poll": False}
        looked = {**plain, "experts": {"observe": "100%"}}

        def reload(backend: dict[str, Any], times: int) -> None:
            path = gateway.directory / "gateway.yaml"
            path.write_text(json.dumps({**common, "backends": [backend]}))
            gateway.signal(signal.SIGHUP)
            gateway.wait_said("reloaded: generation", times)

        common = {"port": 0, "admin": {"port": 0}, "log": {"directory": "log"}}
        with serving(tmp_path, {"backends": [plain]}) as gateway:
            assert ask(gateway.url, question("no", "far")).status == 200
            assert seen_of(gateway) == {}
            reload(looked, 1)

            def looked_at() -> bool:
                # The worker before may take one more.
                assert ask(gateway.url, question("yes", "far")).status == 200
                return seen_of(gateway).get("requests", 0) > 0

            wait(looked_at, "it was not looked at")
            reload(plain, 2)
            wait(lambda: seen_of(gateway) == {}, "it is still shown")
            assert ask(gateway.url, question("no", "far")).status == 200
            reload(looked, 3)
            wait(lambda: seen_of(gateway).get("requests", 0) > 0, "its sums are gone")


def _unix_sockets(pid: int) -> int:
    inodes = set()
    for text in Path("/proc/net/unix").read_text().splitlines()[1:]:
        inodes.add(text.split()[6])
    links = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:[") and link[8:-1] in inodes for link in links)


def test_workers_have_a_socket_more_and_never_numpy(tmp_path: Path) -> None:
    """What looks is the watching process; a plan without `observe` costs its workers nothing."""
    found = {}
    for observe in (False, True):
        with ScriptedServer(returns) as server:
            backend = {"name": "far", "url": f"{server.url}/v1", "engine": "vllm", "poll": False}
            if observe:
                backend["experts"] = {"observe": "100%"}
            with serving(tmp_path / str(observe), {"backends": [backend]}) as gateway:
                wait(lambda: len(gateway.workers()) == 1, "no worker accepts")
                assert ask(gateway.url, question("one", "far")).status == 200
                (worker,) = gateway.workers()
                assert "numpy" not in Path(f"/proc/{worker}/maps").read_text()
                found[observe] = _unix_sockets(worker)
    assert found[True] == found[False] + 1
