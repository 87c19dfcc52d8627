"""The client against a server whose delays and faults are known."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from golden_server import GoldenServer, Script, golden_server
from hypothesis import given
from hypothesis import strategies as st

from breakeven.engines.backend import Backend
from breakeven.measure.events import RequestDone
from breakeven.measure.paired.blocks import block_metrics
from breakeven.measure.player.clocks import quiet_gc
from breakeven.measure.runner import ERROR_KINDS, CompletionRequest, run_block
from breakeven.wire.sse import SseParser

MS = 1_000_000


def backend_of(server: GoldenServer, engine: str = "unknown", key: str | None = None) -> Backend:
    return Backend(server.url, server.model, key, {"engine": engine}, None, None)


def request_of(stream: int = 0, **changes: Any) -> CompletionRequest:
    fields: dict[str, Any] = {
        "block": "b1",
        "stream": stream,
        "prompt": f"prompt {stream}",
        "prompt_tokens": 2,
        "max_tokens": 8,
        "stall_timeout_s": 20.0,
    }
    return CompletionRequest(**{**fields, **changes})


async def one(script: Script, **changes: Any) -> RequestDone:
    with golden_server(script) as server:
        (done,) = await run_block(backend_of(server), [request_of(**changes)])
    return done


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("newline", "split_bytes"), [("\n", 0), ("\r\n", 0), ("\n", 3), ("\r\n", 1), ("\r", 2)])
async def test_a_whole_stream_is_read_however_it_is_cut(chat: bool, newline: str, split_bytes: int) -> None:
    done = await one(Script(newline=newline, split_bytes=split_bytes), chat=chat)
    assert (done.error, done.anomalies, done.output_tokens, done.prompt_tokens) == (None, [], 8, 7)
    assert len(done.chunk_ns) == 8
    assert done.chunk_tokens is None


async def test_times_are_in_order_and_never_before_the_script() -> None:
    script = Script(ttft_s=0.05, itl_s=0.02)
    with golden_server(script) as server:
        (done,) = await run_block(backend_of(server), [request_of()])
        wrote = server.wrote_ns[0]
        received = server.received_ns[0]
    assert done.headers_ns is not None
    assert done.sent_ns <= received <= wrote[0]
    assert done.chunk_ns == sorted(done.chunk_ns)
    # Each piece arrives after it was written; and, on loopback, before the one two later is.
    assert all(write <= arrive for write, arrive in zip(wrote, done.chunk_ns, strict=False))
    assert done.sent_ns <= done.headers_ns <= done.chunk_ns[0]
    assert done.chunk_ns[-1] <= done.done_ns
    assert done.chunk_ns[0] - done.sent_ns >= 50 * MS
    assert done.chunk_ns[-1] - wrote[0] >= 7 * 20 * MS
    metrics = block_metrics([done])
    assert metrics.service_ttft_s is not None
    assert metrics.service_ttft_s >= 0.05
    assert metrics.itl_s is not None
    # Only the delay of the first piece itself can make the gaps look short.
    late_s = (done.chunk_ns[0] - wrote[0]) / 1e9
    assert metrics.itl_s * 7 >= 7 * 0.02 - late_s


async def test_streams_of_a_block_are_under_way_together() -> None:
    with golden_server(Script(ttft_s=1.5)) as server:
        done = await run_block(backend_of(server), [request_of(i) for i in range(8)])
        received, wrote = server.received_ns, server.wrote_ns
    assert [d.stream for d in done] == list(range(8))
    assert max(received) < min(times[0] for times in wrote)
    assert {d.error for d in done} == {None}


async def test_a_chunk_is_not_a_token() -> None:
    done = await one(Script(tokens_per_piece=(1, 3, 2), count_aloud=True))
    assert done.chunk_tokens == [1, 3, 2, 1, 1]
    assert done.output_tokens == 8
    assert done.server_timings is not None
    assert done.server_timings.predicted_n == 8
    untold = await one(Script(tokens_per_piece=(1, 3, 2)))
    assert untold.chunk_tokens is None
    assert (len(untold.chunk_ns), untold.output_tokens) == (5, 8)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("garbage", "broken_stream"),
        ("half_event", "broken_stream"),
        ("no_newline", "broken_stream"),
        ("engine_error", "refused"),
        ("error_first", "refused"),
        ("no_output", "empty"),
        ("answers_whole", "broken_stream"),
        ("reset", "reset"),
        ("stall", "timeout"),
        ("slow_headers", "timeout"),
        ("short", "short"),
        ("status_401", "http_401"),
        ("status_404", "http_404"),
        ("status_429", "http_429"),
        ("status_500", "http_500"),
    ],
)
async def test_each_fault_has_its_kind(fault: str, error: str) -> None:
    done = await one(Script(fault=fault), stall_timeout_s=1.0 if error == "timeout" else 20.0)
    assert done.error == error
    assert done.error in ERROR_KINDS or done.error.startswith("http_")
    assert done.detail
    assert done.done_ns >= done.sent_ns
    if error.startswith("http_"):
        assert "scripted" in done.detail
    if fault in ("garbage", "reset", "stall", "engine_error"):
        assert 0 < len(done.chunk_ns) < 8, "what came before the fault is kept"


@pytest.mark.parametrize(
    ("fault", "anomaly"),
    [
        ("no_usage", "no_usage"),
        ("two_usages", "several_usages"),
        ("no_done", "no_done"),
        ("output_after_done", "output_after_done"),
        ("pings_first", "empty_event"),
    ],
)
async def test_each_oddity_is_noted_and_the_answer_kept(fault: str, anomaly: str) -> None:
    done = await one(Script(fault=fault))
    assert done.error is None
    assert done.anomalies == [anomaly]
    assert done.output_tokens == 8
    assert len(done.chunk_ns) == 8


@pytest.mark.parametrize("fault", ["mixed_ends", "null_choices", "pings_first"])
async def test_the_first_token_is_the_first_output_however_the_stream_is_spelt(fault: str) -> None:
    with golden_server(Script(fault=fault, itl_s=0.02)) as server:
        (done,) = await run_block(backend_of(server), [request_of()])
        wrote_ns = server.wrote_ns[0][4 if fault == "pings_first" else 0]
    assert (done.error, done.output_tokens, len(done.chunk_ns)) == (None, 8, 8)
    assert done.usage is not None
    assert done.first_ns is not None
    metrics = block_metrics([done])
    assert metrics.itl_s is not None
    # Only a delay of the first piece can make the gaps look short.
    assert metrics.itl_s * 7 >= 7 * 0.02 - (done.first_ns - wrote_ns) / 1e9, "no piece waited for the last one"
    if fault == "pings_first":
        assert done.first_ns - done.sent_ns >= 4 * 2 * MS


async def test_a_cached_prompt_is_noted() -> None:
    done = await one(Script(cached_tokens=5))
    assert done.anomalies == ["prompt_cached"]


async def test_a_short_answer_is_fine_when_the_model_may_stop() -> None:
    done = await one(Script(fault="short"), ignore_eos=False)
    assert (done.error, done.output_tokens) == (None, 4)


async def test_one_bad_stream_leaves_the_others_alone() -> None:
    with golden_server(Script(), Script(fault="reset"), Script(fault="status_500"), Script()) as server:
        done = await run_block(backend_of(server), [request_of(i) for i in range(4)])
    assert sorted(d.error or "" for d in done) == ["", "", "http_500", "reset"]


async def test_nobody_there() -> None:
    with golden_server() as server:
        backend = backend_of(server)
    (done,) = await run_block(backend, [request_of()])
    assert done.error == "unreachable"


async def test_total_timeout() -> None:
    done = await one(Script(itl_s=0.2), max_tokens=1000, total_timeout_s=0.5)
    assert done.error == "timeout"


async def test_cancelled_requests_are_reported_and_the_cancellation_goes_on() -> None:
    reported: list[RequestDone] = []
    with golden_server(Script(fault="stall")) as server:
        block = asyncio.create_task(
            run_block(backend_of(server), [request_of(i) for i in range(3)], on_done=reported.append)
        )
        while len(server.bodies) < 3:
            await asyncio.sleep(0.01)
        block.cancel()
        with pytest.raises(asyncio.CancelledError):
            await block
    assert [d.error for d in reported] == ["cancelled"] * 3


async def test_the_body_speaks_the_engines_dialect() -> None:
    with golden_server() as server:
        for engine in ("unknown", "llama.cpp", "vllm"):
            await run_block(backend_of(server, engine), [request_of(seed=3, top_k=1)])
        ids = request_of(prompt=[1, 2, 3])
        await run_block(backend_of(server, "llama.cpp"), [ids])
        with pytest.raises(ValueError, match="takes text"):
            await run_block(backend_of(server), [ids])
    plain, llama, vllm, with_ids = server.bodies
    assert plain == {
        "model": "golden",
        "prompt": "prompt 0",
        "max_tokens": 8,
        "temperature": 0.0,
        "seed": 3,
        "top_k": 1,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert llama["timings_per_token"] is True
    assert llama["cache_prompt"] is False
    assert vllm["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert with_ids["prompt"] == [1, 2, 3]


async def test_a_server_that_takes_only_openai_fields_gets_only_those() -> None:
    with golden_server(refuse_extra_fields=True) as server:
        strict = Backend(server.url, "golden", None, {"engine": "unknown", "extra_fields": "refused"}, None, None)
        (done,) = await run_block(strict, [request_of(top_k=1)])
    assert done.error is None
    assert not {"ignore_eos", "top_k"} & set(server.bodies[0])


async def test_the_key_is_sent_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKEVEN_API_KEY", "sk-very-secret")
    with golden_server(key="sk-very-secret") as server:
        backend = backend_of(server, key="BREAKEVEN_API_KEY")
        (good,) = await run_block(backend, [request_of()])
        server.key = "another"
        (bad,) = await run_block(backend, [request_of()])
    assert good.error is None
    assert bad.error == "http_401"
    assert "***" in (bad.detail or "")
    assert "secret" not in repr((backend, good, bad))


def test_quiet_gc_restores_what_it_found() -> None:
    assert gc.isenabled()
    with quiet_gc():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    gc.disable()
    try:
        with quiet_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


_payload = st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"])).map(str.encode)


@given(st.lists(_payload, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_the_parser_gives_the_same_events_however_the_bytes_are_cut(
    payloads: list[bytes], newline: bytes, data: st.DataObject
) -> None:
    stream = b"".join(b": note" + newline + b"data: " + payload + newline * 2 for payload in payloads)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)))
    parser = SseParser()
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += parser.feed(stream[start:end])
    assert events == payloads
    assert not parser.unfinished


def test_the_parser_gives_up_on_an_endless_event() -> None:
    parser = SseParser(1 << 20)
    for _ in range((1 << 20) // 65_536):
        parser.feed(b"x" * 65_536)
    with pytest.raises(ValueError, match="no end of event"):
        parser.feed(b"x")
