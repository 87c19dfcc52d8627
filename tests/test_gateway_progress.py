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
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


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
    behaviour: str,
    path: str = CHAT,
    *,
    stream: bool = True,
    comes: bool = True,
    fails: bool = False,
    wait_s: float = 20.0,
) -> tuple[Client, SharedBlock]:
    """One request for a model that is being loaded, and that then answers with `behaviour`, or never comes.

    `fails`: it is said that it will not come.
    """
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
        words = {"input": "Hello"} if path == RESPONSES else {}
        body = json.dumps({**BODY, **words, "stream": stream}).encode()
        headers = ((b"host", b"127.0.0.1"), (b"content-type", b"application/json"))
        Front(desk).handle(Request("POST", path, "", headers, body, "127.0.0.1", 1), client)  # type: ignore[arg-type]
        assert block.load.total(0, UnderWay.WANTED) == 1
        if comes:
            if stream:
                while not client.said:
                    await asyncio.sleep(0.005)
            block.known.put(0, 0, Known.PORT, float(urlsplit(server.url).port or 0))
            block.known.put(0, 0, Known.STATE, State.FAILED if fails else State.READY)
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


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        (MESSAGES, ["error"]),
        (RESPONSES, ["response.created", "response.in_progress", "response.failed"]),
    ],
)
async def test_such_an_error_is_one_that_the_clients_sdk_reads(path: str, names: list[str], fails: bool) -> None:
    """They pass over an event without a name, and a response that ends before it was made is an error of their own."""
    client, _ = await asked("400", path, fails=fails)
    events = [event for event in client.said.decode().split("\n\n") if event and not event.startswith(":")]
    assert client.status == 200
    assert [event.split("\n")[0] for event in events] == [f"event: {name}" for name in names]
    data = [json.loads(event.partition("\ndata: ")[2]) for event in events]
    assert [one["type"] for one in data] == names
    error = (data[-1] if path == MESSAGES else data[-1]["response"])["error"]
    assert ("no backend has a place" if fails else "scripted 400") in error["message"]


async def test_an_answer_in_one_piece_waits_in_silence() -> None:
    client, _ = await asked("ok", stream=False)
    assert client.status == 200
    assert json.loads(client.said)["object"] == "chat.completion"


async def test_an_engine_that_does_not_come_in_time_is_told() -> None:
    client, block = await asked("ok", stream=False, comes=False, wait_s=0.05)
    assert client.status == 503
    assert block.load.total(0, UnderWay.WANTED) == 0
