"""What engines say of themselves is read whatever its labels, and an engine that says nothing disturbs nobody."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.engines.backend import Backend
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.measure.player.watch import FAILURES, EngineWatch
from breakeven.wire.metrics import FIELDS, EngineNumbers, engine_numbers, metric_names, parse_metrics

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="x"} 2.0
vllm:num_requests_waiting{engine="0"} 7 1395066363000
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:num_preemptions_total{engine="0"} 1.0
vllm:num_preemptions_created{engine="0"} 1.7e9
vllm:prefix_cache_hits_total{engine="0"} 1e3
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 4
"""
SGLANG = 'sglang:num_running_reqs{tp_rank="0"} 4\nsglang:num_queue_reqs 1\nsglang:token_usage 0.28\n'
LLAMA_CPP = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\nllamacpp:prompt_tokens_cached_total 0\n"


def test_each_engine_in_its_own_words() -> None:
    assert engine_numbers(VLLM) == EngineNumbers(
        running=5, waiting=7, kv_share=0.375, preemptions=1, cached_prompt_tokens=1000
    )
    assert engine_numbers(SGLANG) == EngineNumbers(running=4, waiting=1, kv_share=0.28)
    assert engine_numbers(LLAMA_CPP) == EngineNumbers(running=2, waiting=5, cached_prompt_tokens=0)
    assert engine_numbers("vllm:gpu_cache_usage_perc 0.1") == EngineNumbers(kv_share=0.1)
    trtllm = (
        'trtllm_num_requests_running{model_name="m"} 3\ntrtllm_num_requests_waiting 2\ntrtllm_kv_cache_utilization 0.4'
    )
    assert engine_numbers(trtllm) == EngineNumbers(running=3, waiting=2, kv_share=0.4)
    assert engine_numbers('ovms_current_graphs{name="m"} 6\novms_streams 1') == EngineNumbers(running=6)
    assert engine_numbers("python_gc_objects_collected_total 3\n<html>") is None


def test_no_name_belongs_to_two_fields() -> None:
    names = [name for fields in metric_names().values() for field in FIELDS for name in fields[field]]
    assert len(names) == len(set(names)) > 10


@given(st.text())
def test_any_text_is_read_without_complaint(text: str) -> None:
    assert all(math.isfinite(value) for values in parse_metrics(text).values() for value in values)


label = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])).map(
    lambda text: text.replace("\\", "\\\\").replace('"', '\\"')
)


@given(st.dictionaries(label, st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_samples_are_found_whatever_their_labels_say(values: dict[str, float]) -> None:
    page = "".join(f'm{{l="{name}",k="}}"}} {value!r}\n' for name, value in values.items())
    assert parse_metrics(page) == {"m": list(values.values())}


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy is no engine that hangs."""
    monkeypatch.setattr("breakeven.measure.player.watch.TIMEOUT_S", 60.0)


@asynccontextmanager
async def serving(*pieces: bytes, hold: bool = False) -> AsyncIterator[tuple[Backend, list[bytes]]]:
    """A server that answers every connection with `pieces`, and the requests it got."""
    got: list[bytes] = []
    release = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            got.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if hold:
                await release.wait()
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Backend(f"http://127.0.0.1:{port}/base", "m", "D_KEY", {}, None, None), got
    finally:
        release.set()
        server.close()


async def test_a_page_with_a_length_in_chunks_or_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D_KEY", "secret")
    page = SGLANG.encode()
    middle = len(page) // 2
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (page[:middle], page[middle:], b""))
    for pieces in (
        [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page), page[:5], page[5:]],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked],
        [b"HTTP/1.0 200 OK\r\n\r\n", page],
    ):
        async with serving(*pieces) as (backend, got):
            watch = EngineWatch(backend)
            sample = await watch.sample("block 1")
            await watch.close()
            assert sample is not None
            assert (sample.block, sample.running, sample.waiting, sample.kv_share) == ("block 1", 4, 1, 0.28)
            assert sample.preemptions is None
            assert got[0].startswith(b"GET /base/metrics HTTP/1.1\r\n")
            assert b"Authorization: Bearer secret\r\n" in got[0]
            assert await watch.sample("block 1") is None
            assert len(got) == 1


@pytest.mark.parametrize(
    "page",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno metrics here",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
async def test_an_engine_without_metrics_is_soon_left_alone(page: bytes) -> None:
    async with serving(page) as (backend, got):
        watch = EngineWatch(backend)
        assert [await watch.sample("b") for _ in range(FAILURES + 2)] == [None] * (FAILURES + 2)
        assert len(got) == FAILURES


async def test_an_engine_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakeven.measure.player.watch.TIMEOUT_S", 0.3)
    async with serving(b"HTTP/1.1 200 OK\r\n", hold=True) as (backend, _):
        assert await EngineWatch(backend).sample("b") is None


async def test_an_engine_that_once_told_is_asked_again_when_it_is_back() -> None:
    answers = [SGLANG.encode(), *[b""] * (FAILURES + 1), SGLANG.encode()]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if page := answers.pop(0):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + page)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        watch = EngineWatch(Backend(f"http://127.0.0.1:{port}", "m", None, {}, None, None))
        told = [await watch.sample("b") is not None for _ in range(FAILURES + 3)]
    assert told == [True, *[False] * (FAILURES + 1), True]


async def test_nobody_there_at_all() -> None:
    watch = EngineWatch(Backend("http://127.0.0.1:9", "m", None, {}, None, None))
    assert await watch.sample("b") is None


async def test_a_real_llama_cpp_tells_what_it_does(smollm2_gguf: Path, tmp_path: Path) -> None:
    with LlamaCppServer(smollm2_gguf, context=128, slots=1, threads=1, log=tmp_path / "log") as backend:
        sample = await EngineWatch(backend).sample("b")
    assert sample is not None
    assert (sample.running, sample.waiting, sample.cached_prompt_tokens) == (0, 0, 0)


async def test_an_engine_that_tells_elsewhere_is_asked_there() -> None:
    page = b"trtllm_num_requests_running 3\n"
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page), page) as (backend, got):
        sample = await EngineWatch(replace(backend, settings={"engine": "tensorrt-llm"})).sample("b")
    assert got[0].startswith(b"GET /prometheus/metrics HTTP/1.1\r\n")
    assert sample is not None
    assert sample.running == 3
