"""Requests whose experts are looked at: what the file says, which they are, and how workers hand them over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_experts_fixtures import CHAT, COUNTED, Line, document, line, own_cache
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.experiment.answer import KEEP_BYTES, Kept, read
from breakeven.gateway.experts import hand
from breakeven.gateway.experts.hand import (
    BYTES_A_TOKEN,
    CUT,
    FULL,
    LINE_BYTES,
    LOST,
    MOST_ROUTING,
    NOT_IN_STREAMS,
    OF_A_PART,
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
from breakeven.gateway.plan.experts import ExpertsPlan
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.plan.write import write_gateway
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Rows
from breakeven.hardware.system import memory_file, message_line, send_message
from breakeven.wire.message import Request
from tests.test_gateway_charge import Backend, Client

__all__ = ["line", "own_cache"]
pytestmark = [COUNTED, pytest.mark.usefixtures("own_cache")]


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
        (
            {"url": VLLM["url"], "dialect": "lmstudio", "experts": {"observe": "1%"}},
            "",
            "lmstudio, which tells nothing",
        ),
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


def test_a_model_whose_router_may_choose_no_expert_is_refused(tmp_path: Path) -> None:
    text = "hidden: 64\nvocab: 320\ncontext: 512\nn_layers: 1\nheads: 4\nffn_width: 96\n"
    text += "n_experts: 8\nn_experts_per_token: 2\nexpert_width: 8\n"
    asked: dict[str, object] = {**VLLM, "model": "free.yaml", "experts": {"observe": "1%"}}
    (tmp_path / "free.yaml").write_text(text, encoding="utf-8")
    assert in_a_file(tmp_path, **asked).experts is not None
    (tmp_path / "free.yaml").write_text(f"{text}zero_experts: 4\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"backends\.0\.experts: .*free\.yaml, whose router may choose nothing"):
        in_a_file(tmp_path, **asked)


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


@pytest.mark.parametrize("streams", [False, True])
def test_a_document_without_its_end_is_no_answer_to_be_read_again(line: Line, streams: bool) -> None:
    def scenario(world: World) -> None:
        lane = world.desk.lanes[0]
        experts = ExpertsPlan(observe=1.0, tokens=1)
        lane.looking = looking_at(
            replace(lane.plan, url=None, engine=None, local=LocalPlan(model="x.gguf"), experts=experts)
        )
        world.ask(stream=streams)
        sink = world.backend.asked[-1].sink
        sink.on_head(200, [(b"content-type", b"text/event-stream" if streams else b"application/json")])
        event = b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"x" * 2**10)
        sink.on_body(event * 2**9 + b"data: [DONE]\n\n" if streams else document("x" * 2 * KEEP_BYTES))
        sink.on_end()
        if streams:
            assert len(only(line[2])[2]) == KEEP_BYTES
        else:
            assert missed(world, line[2]) == [("b", TOO_LARGE, 1)]

    played(line, scenario)


def missed(world: World, receiving: socket.socket) -> list[tuple[str, str, int]]:
    assert world.desk.handing is not None
    world.desk.handing.tell()
    got = received(receiving)
    assert got is None or got[1] is None
    return [] if got is None else got[0].missed


def test_what_did_not_end_whole_or_cannot_be_read_is_counted(line: Line) -> None:
    def scenario(world: World) -> None:
        client = world.ask(stream=True)
        sink = world.backend.asked[-1].sink
        sink.on_head(200, [(b"content-type", b"text/event-stream")])
        sink.on_body(b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n')
        client.leave()
        assert missed(world, line[2]) == [("b", CUT, 1)]
        world.ask()
        world.answer(document(), 200, (b"content-encoding", b"br"))
        assert missed(world, line[2]) == [("b", PACKED, 1)]
        world.ask()
        world.answer(document("x" * MOST_ROUTING))
        assert missed(world, line[2]) == [("b", TOO_LARGE, 1)]
        world.ask()
        world.answer(b'{"error": {"message": "no"}}', 400)
        world.ask("/v1/embeddings", input="x")
        assert missed(world, line[2]) == [], "what generates nothing routes nothing"

    played(line, scenario, endpoints=(CHAT, "/v1/embeddings"))


STREAM = b'data: {"choices": [{"delta": {"content": "Yes."}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("engine", "fields", "why"),
    [
        ("vllm", {"stream": True}, NOT_IN_STREAMS),
        ("vllm", {"routed_experts_prompt_start": 3}, OF_A_PART),
        ("sglang", {"routed_experts_start_len": 3}, OF_A_PART),
        ("sglang", {"stream": True}, ""),
    ],
)
def test_of_an_answer_that_cannot_tell_its_routing_nothing_is_kept(
    line: Line, engine: str, fields: dict[str, Any], why: str
) -> None:
    def scenario(world: World) -> None:
        client = world.ask(**fields)
        leg: Any = world.backend.asked[-1].sink
        streams = "stream" in fields
        leg.on_head(200, [(b"content-type", b"text/event-stream" if streams else b"application/json")])
        leg.on_body(STREAM if streams else document())
        leg.on_end()
        assert client.status == 200
        if why:
            assert leg.kept.pieces == []
            assert "return_routed_experts" not in world.backend.asked[-1].body
            assert missed(world, line[2]) == [("b", why, 1)]
        else:
            assert only(line[2])[2] == STREAM

    played(line, scenario, engine=engine)


def test_of_an_answer_that_is_read_again_as_much_is_kept_as_is_read() -> None:
    def kept(tokens: int) -> int:
        experts = ExpertsPlan(observe=1.0, tokens=tokens)
        looking = looking_at(BackendPlan(name="b", local=LocalPlan(model="x.gguf"), experts=experts))
        assert looking is not None
        return looking.keeps

    assert [kept(tokens) for tokens in (1, 4096, 65_536)] == [KEEP_BYTES, 4096 * BYTES_A_TOKEN, MOST_ROUTING]


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
