"""The HTTP client against servers that misbehave: how each request ends, and which one is sent twice."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from golden_server import Script, golden_server
from wire_fixtures import DONE, answer_to, call_of, on_both_loops, pool_of, raw_server, send

from breakeven.measure.events import RequestDone


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("garbage", "broken_stream"),
        ("engine_error", "refused"),
        ("error_first", "refused"),
        ("no_output", "empty"),
        ("reset", "reset"),
        ("stall", "timeout"),
        ("short", "short"),
    ],
)
@on_both_loops
async def test_faults_of_an_answer_in_one_piece(fault: str, error: str) -> None:
    with golden_server(Script(fault=fault)) as server:
        async with pool_of(server, stall_timeout_s=0.3 if error == "timeout" else 20.0) as pool:
            done = await send(pool, call_of(stream=False, ignore_eos=True))
    assert done.error == error
    assert done.detail


@on_both_loops
async def test_an_answer_in_one_piece_without_counts_is_not_called_short() -> None:
    with golden_server(Script(fault="no_usage")) as server:
        async with pool_of(server) as pool:
            done = await send(pool, call_of(stream=False, ignore_eos=True))
    assert (done.error, done.anomalies, done.output_tokens) == (None, ["no_usage"], 0)


@on_both_loops
async def test_a_kept_connection_that_the_server_closed_is_replaced_once() -> None:
    with golden_server(Script(), Script(fault="hang_up"), Script()) as server:
        async with pool_of(server) as pool:
            first = await send(pool, call_of(0))
            second = await send(pool, call_of(1))
        a, b, c = server.connections
    assert (first.error, first.anomalies) == (None, [])
    assert (second.error, second.anomalies, second.output_tokens) == (None, ["reconnected"], 8)
    assert a == b != c


@on_both_loops
async def test_nothing_else_is_sent_twice() -> None:
    with golden_server(Script(fault="hang_up")) as server:
        async with pool_of(server) as pool:
            assert (await send(pool, call_of(0))).error == "reset", "the connection was new"
        assert len(server.bodies) == 1
    with golden_server(Script(), Script(fault="hang_up")) as server:
        async with pool_of(server) as pool:
            await send(pool, call_of(0))
            done = await send(pool, call_of(1))
            assert (done.error, done.anomalies) == ("reset", ["reconnected"])
        assert len(server.bodies) == 3
    with golden_server(Script(), Script(fault="reset")) as server:
        async with pool_of(server) as pool:
            await send(pool, call_of(0))
            done = await send(pool, call_of(1))
            assert (done.error, done.anomalies) == ("reset", [])
        assert len(server.bodies) == 2


@on_both_loops
async def test_a_server_that_dies_and_comes_back() -> None:
    with golden_server(Script(itl_s=0.02)) as server:
        async with pool_of(server) as pool:
            heard = asyncio.Event()
            ends: asyncio.Queue[RequestDone] = asyncio.Queue()
            pool.start(call_of(0, max_tokens=1000), ends.put_nowait, heard.set)
            await asyncio.wait_for(heard.wait(), 20)
            await asyncio.to_thread(server.die)
            broken = await asyncio.wait_for(ends.get(), 20)
            away = await send(pool, call_of(1))
            await asyncio.to_thread(server.start)
            back = await send(pool, call_of(2))
    assert (broken.error, away.error, back.error) == ("reset", "unreachable", None)
    assert 0 < len(broken.chunk_ns) < 1000
    assert (back.output_tokens, back.anomalies) == (8, [])
    assert away.sent_ns == away.issued_ns


@on_both_loops
async def test_a_server_that_stands_still_shows_in_the_gaps() -> None:
    with golden_server(Script(itl_s=0.01)) as server:
        async with pool_of(server) as pool:
            ends: asyncio.Queue[RequestDone] = asyncio.Queue()
            for i in range(5):
                pool.start(call_of(i, max_tokens=100), ends.put_nowait, None if i else lambda: server.pause(1.5))
            done = [await asyncio.wait_for(ends.get(), 20) for _ in range(5)]
    for request in done:
        assert request.error is None
        gaps = [b - a for a, b in zip(request.chunk_ns, request.chunk_ns[1:], strict=False)]
        # Less what the client was late itself to see the piece before it.
        assert max([*gaps, request.chunk_ns[0] - request.sent_ns]) >= 0.7e9


@on_both_loops
async def test_a_drip_without_an_event_is_ended_by_the_total_timeout() -> None:
    with golden_server(Script(fault="slow_loris")) as server:
        async with pool_of(server, stall_timeout_s=1.2, total_timeout_s=2.0) as pool:
            done = await send(pool, call_of())
    assert done.error == "timeout"
    assert "not finished within 2 s" in (done.detail or "")
    assert len(done.chunk_ns) == 4, "what came before is kept"


@on_both_loops
async def test_a_timeout_of_one_call_is_its_own() -> None:
    with golden_server(Script(fault="slow_headers"), Script(ttft_s=0.6)) as server:
        async with pool_of(server) as pool:
            slow = asyncio.ensure_future(send(pool, call_of(0, stall_timeout_s=0.2)))
            while not server.bodies:  # scripts go by order of arrival
                await asyncio.sleep(0.005)
            late, fine = await asyncio.gather(slow, send(pool, call_of(1)))
    assert (late.error, fine.error) == ("timeout", None)
    assert late.headers_ns is None


@on_both_loops
async def test_a_stream_that_stays_open_after_its_end_counts_all_the_same() -> None:
    with golden_server(Script(fault="no_close")) as server:
        async with pool_of(server) as pool:
            done = await send(pool, call_of())
    assert (done.error, done.anomalies, done.output_tokens) == (None, ["no_close_after_done"], 8)
    assert done.last_ns is not None
    assert done.last_ns <= done.done_ns < time.monotonic_ns() - 0.9e9, "over when it said so"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("soon", None), ("-1", None), ("nan", None), (None, None)],
)
@on_both_loops
async def test_retry_after_is_written_down(asked: str | None, seconds: float | None) -> None:
    with golden_server(Script(fault="status_429", retry_after=asked)) as server:
        async with pool_of(server) as pool:
            done = await send(pool, call_of())
        assert len(server.bodies) == 1
    assert (done.error, done.retry_after_s) == ("http_429", seconds)


@on_both_loops
async def test_retry_after_as_a_date_counts_from_the_answers_own() -> None:
    answer = (
        b"HTTP/1.1 503 Busy\r\nDate: Wed, 21 Oct 2015 07:28:00 GMT\r\nRetry-After: Wed, 21 Oct 2015 07:28:30 GMT\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    done = await answer_to(answer)
    assert (done.error, done.retry_after_s) == ("http_503", 30.0)


@on_both_loops
async def test_a_redirect_is_not_followed() -> None:
    done = await answer_to(b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    assert done.error == "http_307"


@pytest.mark.parametrize(
    ("answer", "error", "anomalies"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + DONE, None, ["no_usage"]),
        (b"HTTP/1.0 200 OK\r\n\r\n" + DONE.removesuffix(b"data: [DONE]\n\n"), None, ["no_done", "no_usage"]),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + DONE, None, ["no_usage"]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + DONE, None, ["no_close_after_done", "no_usage"]),
        (b"HTTP/1.1 200 OK\r\n\r\n" + DONE[:30], "broken_stream", []),
        (b"HTTP/1.1 200 OK\r\n\r\n", "broken_stream", []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + DONE[:30], "reset", []),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broken_stream", []),
        (b"HTTP/1.1 200 OK\r\nContent-", "reset", []),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broken_stream", []),
        (b"\x16\x03\x01\x02\x00\x01", "broken_stream", []),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "broken_stream", []),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "http_204", []),
        (b"", "reset", []),
    ],
)
@on_both_loops
async def test_unusual_answers(answer: bytes, error: str | None, anomalies: list[str]) -> None:
    done = await answer_to(answer)
    assert (done.error, done.anomalies) == (error, anomalies)
    assert done.error is None or done.detail is not None


@on_both_loops
async def test_what_a_server_says_reaches_no_terminal_as_it_is() -> None:
    said = b"\x1b[2J\x1b]0;title\x07 no\r\nroom \xe2\x80\xaetxt"
    stream = b"HTTP/1.1 200 OK\r\n\r\nevent: error\r\ndata: " + said.replace(b"\r\n", b" ") + b"\r\n\r\n"
    for answer in (b"HTTP/1.1 500 Oops\r\n\r\n" + said, stream):
        done = await answer_to(answer)
        assert done.error in ("http_500", "refused")
        assert "no room" in (done.detail or "")
        assert (done.detail or "").isprintable()


@on_both_loops
async def test_an_endless_refusal_is_cut_short() -> None:
    answer = b"HTTP/1.1 500 Oops\r\n\r\n" + b"it went wrong " * 10_000
    done = await answer_to(answer, then="wait", stall_timeout_s=20.0)
    assert done.error == "http_500"
    assert (done.detail or "").startswith("it went wrong")
    assert len(done.detail or "") <= 300


@on_both_loops
async def test_a_refusal_that_breaks_off_is_still_a_refusal() -> None:
    done = await answer_to(b"HTTP/1.1 500 Oops\r\nContent-Length: 99\r\n\r\nout of memory", then="abort")
    assert (done.error, done.detail) == ("http_500", "out of memory")


@on_both_loops
async def test_two_answers_to_one_question_spoil_the_connection() -> None:
    body = b'{"choices":[{"text":"a"}],"usage":{"prompt_tokens":5,"completion_tokens":8}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with raw_server(answer * 2, answer, then="wait") as url, pool_of(url) as pool:
        first = await send(pool, call_of(0, stream=False))
        second = await send(pool, call_of(1, stream=False))
    assert (first.error, second.error) == (None, None)
    assert second.anomalies == [], "it went out on a connection of its own"


@on_both_loops
async def test_a_call_with_a_limit_of_its_own_does_not_loosen_the_pools() -> None:
    with golden_server(Script(fault="stall")) as server:
        async with pool_of(server, total_timeout_s=0.3) as pool:
            looked: list[float] = []
            watch = pool.client.watch

            def noted(timeout_s: float) -> None:
                looked.append(timeout_s)
                watch(timeout_s)

            pool.client.watch = noted  # type: ignore[method-assign]
            done = await send(pool, call_of(stall_timeout_s=100.0))
    assert done.error == "timeout"
    assert "not finished within 0.3 s" in (done.detail or "")
    assert min(looked) == 0.3, "the pool's own limit says how often is looked"


def stream_of(pieces: int, usage: bytes) -> bytes:
    """An answer of so many pieces, and what its server counts."""
    piece = b'data: {"choices":[{"text":"a"}]}\n\n'
    last = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\n'
    told = b'data: {"choices":[],"usage":{"prompt_tokens":5,%s}}\n\ndata: [DONE]\n\n' % usage
    return b"HTTP/1.1 200 OK\r\n\r\n" + piece * (pieces - 1) + last + told


@on_both_loops
async def test_hidden_thoughts_are_of_the_tokens_asked_for_and_not_of_those_that_came() -> None:
    hidden = b'"completion_tokens":8,"completion_tokens_details":{"reasoning_tokens":6}'
    done = await answer_to(stream_of(2, hidden), ignore_eos=True)
    assert (done.error, done.output_tokens, done.anomalies) == (None, 2, ["hidden_thoughts"])
    assert done.usage is not None
    assert (done.usage.completion_tokens, done.usage.thought_tokens) == (8, 6)
    done = await answer_to(stream_of(2, hidden.replace(b"8", b"7", 1)), ignore_eos=True)
    assert (done.error, done.detail) == ("short", "7 tokens came of 8 asked for")


@on_both_loops
async def test_a_cached_prompt_is_noted_in_whatever_words_it_is_told() -> None:
    """Else a bench of a cache looks like one of a model."""
    for told in (b'"prompt_tokens_details":{"cached_tokens":4}', b'"prompt_cache_hit_tokens":4', b'"cached_tokens":4'):
        done = await answer_to(stream_of(2, b'"completion_tokens":2,' + told))
        assert done.usage is not None
        assert (done.usage.cached_tokens, done.anomalies) == (4, ["prompt_cached"]), told
    for told in (b'"prompt_tokens_details":null', b'"prompt_tokens_details":{"cached_tokens":"many"}'):
        done = await answer_to(stream_of(2, b'"completion_tokens":2,' + told))
        assert done.usage is not None
        assert (done.usage.cached_tokens, done.anomalies) == (None, []), told


@on_both_loops
async def test_an_answer_that_its_server_broke_off_is_none() -> None:
    for reason in (b"abort", b"network_error", b"insufficient_system_resource"):
        answer = stream_of(3, b'"completion_tokens":3').replace(b'"stop"', b'"%s"' % reason)
        done = await answer_to(answer)
        assert (done.error, done.detail) == ("refused", "the engine reports: broken off"), reason


@on_both_loops
async def test_a_server_that_counts_nothing_is_measured_by_its_pieces() -> None:
    done = await answer_to(stream_of(8, b'"completion_tokens":0'), ignore_eos=True)
    assert (done.error, done.output_tokens, done.anomalies) == (None, 8, ["no_usage"])
    assert done.usage is not None
    assert done.usage.prompt_tokens == done.prompt_tokens == 5, "what it says of the prompt stays"


@on_both_loops
async def test_a_stream_that_nobody_counted_is_not_called_short() -> None:
    # Four pieces may well be eight tokens: nothing says so.
    done = await answer_to(stream_of(4, b'"completion_tokens":0'), ignore_eos=True)
    assert (done.error, done.output_tokens, done.anomalies) == (None, 4, ["no_usage"])
    done = await answer_to(stream_of(4, b'"completion_tokens":7'), ignore_eos=True)
    assert (done.error, done.detail) == ("short", "7 tokens came of 8 asked for")


@on_both_loops
async def test_a_prompt_counted_as_nothing_was_not_counted() -> None:
    raw = stream_of(8, b'"completion_tokens":8').replace(b'"prompt_tokens":5', b'"prompt_tokens":0')
    done = await answer_to(raw, prompt_tokens=40)
    assert (done.error, done.prompt_tokens, done.output_tokens) == (None, 40, 8)


@on_both_loops
async def test_counts_beyond_all_reason_are_none_and_the_log_is_read_again() -> None:
    aloud = b'"timings":{"prompt_n":5,"prompt_ms":1.0,"predicted_n":5000000000,"predicted_ms":1.0}'
    for told in (aloud, b'"usage":{"prompt_tokens":5,"completion_tokens":5000000000}'):
        last = b'data: {"choices":[{"text":"a","finish_reason":"stop"}],%s}\n\ndata: [DONE]\n\n' % told
        done = await answer_to(b"HTTP/1.1 200 OK\r\n\r\n" + last)
        assert (done.error, done.output_tokens, done.anomalies) == (None, 1, ["odd_event", "no_usage"])
        assert msgspec.json.decode(msgspec.json.encode(done), type=RequestDone) == done


@on_both_loops
async def test_words_in_the_place_of_a_stream_are_passed_on() -> None:
    done = await answer_to(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nyour quota is spent")
    assert (done.error, done.detail) == ("broken_stream", "the stream ends inside an event: your quota is spent")
