"""A client that waits for an engine of the gateway's own: what it hears meanwhile, and what comes after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

import pytest
from chaos_server import ChaosServer

from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.serve import waiting
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.serve.front import Front
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Known, Rows, State, UnderWay
from breakeven.wire.message import Headers, Request

BODY = {"model": "local", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


class Client:
    """A `Responder` that keeps what it is told."""

    def __init__(self) -> None:
        self.gone = self.paused = False
        self.on_gone = self.on_pause = self.on_resume = None
        self.also: Headers = ()
        self.status = 0
        self.said = b""
        self.ended = asyncio.Event()

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        assert not self.status
        self.status, self.said = status, body
        self.ended.set()

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        assert not self.status
        self.status = status

    def write(self, data: bytes) -> None:
        self.said += data

    def finish(self) -> None:
        self.ended.set()

    def abort(self) -> None:
        self.ended.set()


@pytest.fixture(autouse=True)
def _told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TELL_S", 0.0)


async def asked(
    behaviour: str, *, stream: bool = True, comes: bool = True, wait_s: float = 20.0
) -> tuple[Client, SharedBlock]:
    """One request for a model that is being loaded, and that then answers with `behaviour`, or never comes."""
    plan = GatewayPlan(
        path=None,
        backends=(BackendPlan(name="local", local=LocalPlan(model="tiny")),),
        policies=(PolicyPlan(model="chat", backends=("local",)),),
        maximum_wait_s=wait_s,
    )
    block = SharedBlock(Shape(workers=2, backends=1, keys=1, models=2, experiments=1))
    rows = Rows({"local": 0}, {"": 0}, {"chat": 0, "local": 1}, {})
    block.known.put(0, 0, Known.STATE, State.LOADING)
    block.known.put(0, 0, Known.LOAD_S, 1.0)
    block.known.put(0, 0, Known.PROGRESS, 0.4)
    with ChaosServer(behaviour) as server:
        desk = Desk(plan, {"local": Observed()}, rows, block, 1, None, None)
        client = Client()
        body = json.dumps({**BODY, "stream": stream}).encode()
        headers = ((b"host", b"127.0.0.1"), (b"content-type", b"application/json"))
        Front(desk).handle(Request("POST", "/v1/chat/completions", "", headers, body, "127.0.0.1", 1), client)  # type: ignore[arg-type]
        assert block.load.total(0, UnderWay.WANTED) == 1
        if comes:
            if stream:
                while not client.said:
                    await asyncio.sleep(0.005)
            block.known.put(0, 0, Known.PORT, float(urlsplit(server.url).port or 0))
            block.known.put(0, 0, Known.STATE, State.READY)
        await asyncio.wait_for(client.ended.wait(), 20.0)
        for lane in desk.lanes:
            if lane.upstream is not None:
                await lane.upstream.close()
    return client, block


async def test_a_stream_hears_how_far_loading_is_and_then_its_answer() -> None:
    client, block = await asked("ok")
    assert client.status == 200
    assert client.said.startswith(b": loading local, 40 %\n\n")
    assert b"data: [DONE]" in client.said
    assert block.load.total(0, UnderWay.WANTED) == block.load.total(0, UnderWay.IN_FLIGHT) == 0


async def test_an_error_after_the_promise_is_an_event_of_the_stream() -> None:
    client, _ = await asked("400")
    events = [event for event in client.said.split(b"\n\n") if event and not event.startswith(b":")]
    assert client.status == 200
    assert all(event.startswith(b"data: ") for event in events)
    assert "error" in json.loads(events[0].removeprefix(b"data: "))


async def test_an_answer_in_one_piece_waits_in_silence() -> None:
    client, _ = await asked("ok", stream=False)
    assert client.status == 200
    assert json.loads(client.said)["object"] == "chat.completion"


async def test_an_engine_that_does_not_come_in_time_is_told() -> None:
    client, block = await asked("ok", stream=False, comes=False, wait_s=0.05)
    assert client.status == 503
    assert block.load.total(0, UnderWay.WANTED) == 0
