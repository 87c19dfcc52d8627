"""How requests are looked at: the part of the watching process, and whole gateways before real and played engines."""

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
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from experts_seen_fixtures import backend_seen
from gateway_experts_fixtures import CHAT, COUNTED, TEXT, Line, document, line, own_cache
from gateway_serve_fixtures import Gateway, ask, question, serving, wait
from gateway_swap_fixtures import described

from breakeven.engines.inside.routed import ReadRouting, RoutingReader
from breakeven.engines.source import parse_source
from breakeven.engines.start import weights_of
from breakeven.errors import EngineError
from breakeven.gateway.experiment.answer import read
from breakeven.gateway.experts import look, watch
from breakeven.gateway.experts.hand import FULL, NOT_IN_STREAMS, Handed, Handing
from breakeven.gateway.experts.kept import path_of, read_kept
from breakeven.gateway.experts.look import EngineTime
from breakeven.gateway.experts.watch import LINE_FULL, MOST_WAITING, ExpertsWatch
from breakeven.gateway.plan.experts import ExpertsPlan, shape_of
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan
from breakeven.gateway.swap.effects import EngineLoaded
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import Request
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer

LAYERS, EXPERTS, USED = 4, 8, 2
__all__ = ["line", "own_cache"]
pytestmark = [COUNTED, pytest.mark.usefixtures("own_cache")]

# The part of the watching process.


class Reader:
    """A second process that is none. `texts`: what it read."""

    load_cpu_s = 0.5

    def __init__(self, weights: Path, tokens: int) -> None:
        self.weights, self.tokens = weights, tokens
        self.texts: list[str] = []
        self.begun = 0
        self.closed = False
        self.cpu_s = 0.0
        self.wrong: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, text: str) -> ReadRouting:
        self.begun += 1
        self.go_on.wait(30)
        if self.closed:
            raise EngineError("it was ended while it read a text")
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
        for _ in range(12_000):
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


def test_a_request_that_would_pass_the_share_if_it_cost_what_others_did_is_not_begun(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.readers[0].cpu_s = 1e3
        w.give(chat())
        await w.counted(2, {})
        # Half of the engine's time is for looking: 1000 s are spent, and one more takes 500 s by what is known.
        w.part._looks["b"].engine.seconds = 2.9e3
        w.give(chat())
        await w.counted(2, {look.TO_KEEP_ITS_SHARE: 1})
        w.part._looks["b"].engine.seconds = 3.1e3
        w.give(chat())
        await w.counted(3, {look.TO_KEEP_ITS_SHARE: 1})

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


def test_an_engine_that_goes_during_a_look_has_its_memory_at_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK_S", 0.01)

    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        (reader,) = w.readers
        reader.go_on.clear()
        w.give(chat())
        await w.until(lambda: reader.begun == 2)
        w.now_s += look.IDLE_S + 1
        await asyncio.sleep(0.1)
        assert not reader.closed, "it is read with, however long that takes"
        w.engine = None
        await w.counted(1, {look.GONE: 1})
        assert reader.closed
        assert w.part.troubles() == []

    asyncio.run(watched(line, scenario))


def test_what_nobody_foresaw_costs_one_request(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.readers[0].wrong = RuntimeError("nobody foresaw it")
        w.give(chat())
        await w.counted(1, {look.UNREADABLE: 1})
        assert w.readers[0].closed, "who knows in which state it is"
        assert "RuntimeError" in w.part.troubles()[0]
        assert "foresaw" not in w.part.troubles()[0], "it may hold words of the request"
        w.now_s += look.RETRY_S + 1
        w.give(chat())
        await w.counted(2, {look.UNREADABLE: 1})
        assert w.part.troubles() == []

    asyncio.run(watched(line, scenario))
    assert capsys.readouterr().err.count("RuntimeError") == 1


def test_an_alarm_is_said_when_it_begins_also_beside_another(
    line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(w: Watching) -> None:
        busy, moved = "layer 1's expert 2 takes 5 times the mean", "30.0% of choices go elsewhere"

        def said(*alarms: str) -> str:
            watched = {"imbalance": busy in alarms, "drift": moved in alarms}
            found = msgspec.structs.replace(backend_seen("b", 2, 4, 2), alarms=list(alarms), watched=watched)
            monkeypatch.setattr(w.part, "report", lambda _: [found])
            w.part._tell()
            return capsys.readouterr().err

        assert busy in said(busy)
        assert said(busy) == ""
        assert moved in said(busy, moved)
        assert said(busy, moved) == said(busy) == ""
        assert moved in said(busy, moved)

    asyncio.run(watched(line, scenario))


def test_what_is_seen_is_saved_while_it_goes_on(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SAVE_S", 0.01)

    async def scenario(w: Watching) -> None:
        one = w.part._looks["b"]

        def saved(requests: int) -> bool:
            kept = read_kept(one.path)
            return kept is not None and kept.requests == requests

        for k in range(1, 4):
            w.give(chat())
            await w.until(partial(saved, k))
        w.handing.miss("b", FULL)
        w.handing.tell()
        await w.until(lambda: w.seen.skipped == {FULL: 1})
        await asyncio.sleep(0.1)
        kept = read_kept(one.path)
        assert kept is not None
        assert kept.skipped == {}, "packing for what was skipped would take of the share"

    asyncio.run(watched(line, scenario))
    kept = read_kept(path_of("b"))
    assert kept is not None
    assert kept.skipped == {FULL: 1}, "the end saves all"


def test_two_gateways_that_keep_one_file_are_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    plan = BackendPlan(name="far", url="http://127.0.0.1:1/v1", model="olmoe-1b-7b")
    one, other = (
        look.BackendLook(plan, ExpertsPlan(observe=1.0), Reader, lambda: 0.0)  # type: ignore[arg-type]
        for _ in range(2)
    )

    def told(each: look.BackendLook) -> bool:
        each.seen.add([0], [[3, 1]], tokens=2, at_s=1e9)
        each.save(each.copied())
        found = each.report(1e9)
        assert found is not None
        return any("Another gateway writes experts-far.json" in text for text in found.caveats)

    assert [told(one), told(one)] == [False, False], "it is its own"
    assert told(other)
    assert told(one)
    assert told(one)
    assert capsys.readouterr().err.count("Another gateway writes") == 2
    one.path.unlink()
    again = look.BackendLook(plan, ExpertsPlan(observe=1.0), Reader, lambda: 0.0)  # type: ignore[arg-type]
    assert not told(again)


def test_what_waits_at_the_end_is_counted(line: Line) -> None:
    async def scenario(w: Watching) -> None:
        w.give(chat())
        await w.counted(1, {})
        w.readers[0].go_on.clear()
        for _ in range(3):
            w.give(chat())
        await w.until(lambda: len(w.part._line) == 2 and w.readers[0].begun == 2)

    asyncio.run(watched(line, scenario))
    kept = read_kept(path_of("b"))
    assert kept is not None
    assert (kept.requests, kept.skipped) == (1, {look.GONE: 3})


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


@pytest.mark.parametrize(
    ("engine", "answer", "reason", "what_to_do"),
    [
        ("vllm", document(), look.NOT_RETURNED, "--enable-return-routed-experts"),
        ("vllm", b'data: {"choices": [{"delta": {"content": "Yes."}}]}\n\ndata: [DONE]\n\n', NOT_IN_STREAMS, ""),
        ("sglang", b'data: {"choices": [{"delta": {"content": "Yes."}}]}\n\n', look.NOT_RETURNED, "--enable-return"),
    ],
)
def test_an_answer_without_routing_says_what_to_do_where_something_can_be_done(
    engine: str, answer: bytes, reason: str, what_to_do: str
) -> None:
    plan = BackendPlan(name="far", url="http://127.0.0.1:1/v1", engine=engine)
    one = look.BackendLook(plan, ExpertsPlan(observe=1.0), Reader, lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(look.SkippedError, match=re.escape(reason)):
        one.looked_at(Handed(backend="far", endpoint=CHAT), b"", answer, None, "")
    assert what_to_do in one.trouble
    assert bool(one.trouble) is bool(what_to_do)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("qwen3-30b-a3b", True),
        ("Qwen/Qwen3-30B-A3B", True),
        ("Qwen/Qwen3-30B-A3B:Q4_K_M", True),
        ("nobody/knows-it", False),
        (None, False),
    ],
)
def test_a_model_of_the_catalogue_is_known_by_its_hub_id_without_a_network(model: str | None, told: bool) -> None:
    assert shape_of(model) == ((tuple(range(48)), 8, 128, 48) if told else (None, None, None, None))


def test_of_a_model_with_dense_layers_all_are_counted() -> None:
    shape = shape_of("deepseek-ai/DeepSeek-V3")
    assert (shape.layers, shape.all_layers) == (tuple(range(3, 61)), 61)


@pytest.mark.parametrize("model", [None, "olmoe-1b-7b"])
def test_how_many_experts_there_are_is_told_or_said_not_to_be(line: Line, model: str | None) -> None:
    plan = BackendPlan(name="far", url="http://127.0.0.1:1/v1", model=model, experts=ExpertsPlan())
    part = ExpertsWatch(GatewayPlan(path=None, backends=(plan,)), line[2])
    part.counted("far", [0], np.array([[3, 1]]), 4)
    (found,) = part.report(time.time())
    assert found.n_experts == (2 if model is None else 64)
    assert len(found.layers[0].shares) == found.n_experts
    assert any("name the backend's `model:`" in text for text in found.caveats) is (model is None)


def test_no_more_of_a_returned_routing_is_counted_than_is_asked_for() -> None:
    plan = BackendPlan(name="far", url="http://127.0.0.1:1/v1", engine="vllm")
    one = look.BackendLook(plan, ExpertsPlan(observe=1.0, tokens=7), Reader, lambda: 0.0)  # type: ignore[arg-type]
    body = json.dumps({"choices": [{"index": 0, "routed_experts": routing(10)}]}).encode()
    assert one.looked_at(Handed(backend="far", endpoint=CHAT), b"", body, None, "").tokens == 7


def test_the_routing_of_no_token_is_no_trouble() -> None:
    plan = BackendPlan(name="far", url="http://127.0.0.1:1/v1", engine="vllm")
    one = look.BackendLook(plan, ExpertsPlan(observe=1.0), Reader, lambda: 0.0)  # type: ignore[arg-type]
    answer = json.dumps({"choices": [{"message": {"content": ""}, "routed_experts": routing(0)}]}).encode()
    with pytest.raises(look.SkippedError, match=re.escape(look.NO_TOKEN)):
        one.looked_at(Handed(backend="far", endpoint=CHAT), b"", answer, None, "")
    assert one.trouble == ""


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
    links = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(one.readlink()))
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
