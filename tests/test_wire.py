"""The HTTP client on real sockets, on both kinds of event loop: what is kept, retried, stamped, and how things end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from golden_server import GoldenServer, Script, golden_server

from breakeven.engine.backend import Backend
from breakeven.errors import UserError
from breakeven.measure.events import RequestDone
from breakeven.measure.wire import Call, Pool, new_loop
from breakeven.measure.wire_connection import Connection
from breakeven.measure.wire_exchange import Exchange

DONE = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test on asyncio's own loop, then on the one that runs use."""

    def run(**fixtures: Any) -> None:
        for factory in (asyncio.new_event_loop, new_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_bounded(test(**fixtures)))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__dict__.update(test.__dict__)
    return run


async def _bounded(test: Awaitable[None]) -> None:
    async with asyncio.timeout(60):
        await test


def backend_of(url: str, pid: int | None = None, key: str | None = None) -> Backend:
    return Backend(url, "golden", key, {"engine": "unknown"}, pid, None)


def call_of(index: int = 0, **changes: Any) -> Call:
    fields: dict[str, Any] = {
        "block": "b",
        "index": index,
        "path": "/v1/completions",
        "prompt_tokens": 5,
        "max_tokens": 8,
        "due_ns": None,
    }
    fields |= changes
    stream = str(fields.get("stream", True)).lower()
    prompt = '"messages": []' if "chat" in fields["path"] else '"prompt": "a"'
    fields.setdefault("body", f'{{"max_tokens": {fields["max_tokens"]}, "stream": {stream}, {prompt}}}'.encode())
    return Call(**fields)


async def send(pool: Pool, call: Call) -> RequestDone:
    future: asyncio.Future[RequestDone] = asyncio.get_running_loop().create_future()
    pool.start(call, future.set_result)
    return await asyncio.wait_for(future, 30)


@asynccontextmanager
async def pool_of(server: GoldenServer | str, pid: int | None = None, **settings: Any) -> AsyncIterator[Pool]:
    pool = Pool(backend_of(server if isinstance(server, str) else server.url, pid), **settings)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def raw_server(*answers: bytes, then: str = "close", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that sends exactly these bytes, one answer a request, and then closes, aborts or waits."""
    left = list(answers)
    loop = asyncio.get_running_loop()

    class Raw(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if left:
                self.transport.write(left.pop(0))
            if not left and then == "close":
                self.transport.close()
            elif not left and then == "abort":
                loop.call_later(0.05, self.transport.abort)

    server = await loop.create_server(Raw, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def answer_to(answer: bytes, *, then: str = "close", **changes: Any) -> RequestDone:
    async with raw_server(answer, then=then) as url, pool_of(url) as pool:
        return await send(pool, call_of(**changes))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("count_aloud", [False, True])
@on_both_loops
async def test_an_answer_in_one_piece(path: str, count_aloud: bool) -> None:
    with golden_server(Script(ttft_s=0.02, itl_s=0.005, count_aloud=count_aloud)) as server:
        async with pool_of(server) as pool:
            done = await send(pool, call_of(path=path, stream=False, ignore_eos=True))
        wrote = server.wrote_ns[0][0]
    assert (done.error, done.anomalies, done.output_tokens, done.prompt_tokens) == (None, [], 8, 7)
    assert (done.first_ns, done.last_ns, done.chunk_ns, done.chunk_tokens) == (None, None, [], None)
    assert done.headers_ns is not None
    assert done.sent_ns <= wrote <= done.done_ns
    assert done.done_ns - done.sent_ns >= 0.02e9 + 7 * 0.005e9
    assert done.headers_ns <= done.done_ns
    assert (done.server_timings is not None) == count_aloud


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("garbage", "broken_stream"),
        ("engine_error", "refused"),
        ("reset", "reset"),
        ("stall", "timeout"),
        ("short", "short"),
    ],
)
@on_both_loops
async def test_faults_of_an_answer_in_one_piece(fault: str, error: str) -> None:
    with golden_server(Script(fault=fault)) as server:
        async with pool_of(server, stall_timeout_s=0.3) as pool:
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
async def test_what_was_asked_is_written_down() -> None:
    with golden_server() as server:
        async with pool_of(server) as pool:
            due = time.monotonic_ns() - 1_000_000
            done = await send(pool, call_of(7, due_ns=due, warm=True, session=3, turn=2, worker=1))
    assert (done.block, done.stream, done.model) == ("b", 7, "golden")
    assert (done.asked_prompt_tokens, done.asked_output_tokens, done.prompt_tokens) == (5, 8, 7)
    assert (done.warm, done.session, done.turn, done.worker) == (True, 3, 2, 1)
    assert done.due_ns == due
    assert done.issued_ns is not None
    assert done.headers_ns is not None
    assert done.first_ns is not None
    assert due < done.issued_ns <= done.sent_ns <= done.headers_ns <= done.first_ns <= done.done_ns


@on_both_loops
async def test_on_first_comes_once_and_before_the_end() -> None:
    happened: list[str] = []
    with golden_server(Script(itl_s=0.01)) as server:
        async with pool_of(server) as pool:
            over = asyncio.Event()

            def on_done(done: RequestDone) -> None:
                happened.append(f"done {len(done.chunk_ns)}")
                over.set()

            pool.start(call_of(), on_done, lambda: happened.append("first"))
            await asyncio.wait_for(over.wait(), 20)
    assert happened == ["first", "done 8"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("pid", "engine", "connections"), [(None, "vllm", 1), (None, "unknown", 1), (1, "vllm", 4), (None, "llama.cpp", 4)]
)
@on_both_loops
async def test_connections_are_kept_unless_the_engine_is_ours_or_closes_them(
    stream: bool, pid: int | None, engine: str, connections: int
) -> None:
    with golden_server() as server:
        pool = Pool(Backend(server.url, "golden", None, {"engine": engine}, pid, None))
        for i in range(4):
            assert (await send(pool, call_of(i, stream=stream))).error is None
        await pool.close()
    assert len(set(server.connections)) == connections


@on_both_loops
async def test_a_request_may_be_started_when_another_ends() -> None:
    ended: list[int] = []
    with golden_server() as server:
        async with pool_of(server) as pool:
            over = asyncio.Event()

            def again(done: RequestDone) -> None:
                assert done.error is None
                ended.append(done.stream)
                if len(ended) < 20:
                    pool.start(call_of(len(ended)), again)
                else:
                    over.set()

            pool.start(call_of(0), again)
            await asyncio.wait_for(over.wait(), 20)
        assert len(set(server.connections)) == 1
    assert ended == list(range(20))


@on_both_loops
async def test_two_hundred_streams_at_once() -> None:
    with golden_server(Script(ttft_s=0.3, itl_s=0.01)) as server:
        async with pool_of(server) as pool:
            done = await asyncio.gather(*[send(pool, call_of(i)) for i in range(200)])
        assert len(set(server.connections)) == 200
    assert {(d.error, d.output_tokens, len(d.chunk_ns)) for d in done} == {(None, 8, 8)}
    assert [d.stream for d in done] == list(range(200))


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
                pool.start(call_of(i, max_tokens=20), ends.put_nowait, None if i else lambda: server.pause(0.4))
            done = [await asyncio.wait_for(ends.get(), 20) for _ in range(5)]
    for request in done:
        assert request.error is None
        gaps = [b - a for a, b in zip(request.chunk_ns, request.chunk_ns[1:], strict=False)]
        assert max([*gaps, request.chunk_ns[0] - request.sent_ns]) >= 0.35e9


@on_both_loops
async def test_a_drip_without_an_event_is_ended_by_the_total_timeout() -> None:
    with golden_server(Script(fault="slow_loris")) as server:
        async with pool_of(server, stall_timeout_s=0.5, total_timeout_s=1.5) as pool:
            done = await send(pool, call_of())
    assert done.error == "timeout"
    assert "not finished within 1.5 s" in (done.detail or "")
    assert len(done.chunk_ns) == 4, "what came before is kept"


@on_both_loops
async def test_a_timeout_of_one_call_is_its_own() -> None:
    with golden_server(Script(fault="slow_headers"), Script(ttft_s=0.6)) as server:
        async with pool_of(server) as pool:
            late, fine = await asyncio.gather(send(pool, call_of(0, stall_timeout_s=0.2)), send(pool, call_of(1)))
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
async def test_cancelling() -> None:
    ended: list[RequestDone] = []
    with golden_server(Script(), Script(fault="stall"), Script(fault="stall"), Script()) as server:
        async with pool_of(server) as pool:
            await send(pool, call_of(0))
            heard = asyncio.Event()
            waiting = [pool.start(call_of(1), ended.append, heard.set), pool.start(call_of(2), ended.append)]
            await asyncio.wait_for(heard.wait(), 20)
            for exchange in waiting:
                exchange.cancel()
                exchange.cancel()
            assert [done.error for done in ended] == ["cancelled", "cancelled"]
            while len(server.bodies) < 3:  # it may have been cancelled before it was sent
                assert (await send(pool, call_of(3, stall_timeout_s=0.2))).error in (None, "timeout")
            assert (await send(pool, call_of(4))).error is None
    assert 1 <= len(ended[0].chunk_ns) <= 4
    assert len(ended) == 2


@on_both_loops
async def test_closing_the_pool_ends_everything_under_way() -> None:
    ended: list[RequestDone] = []
    with golden_server(Script(fault="stall")) as server:
        async with pool_of(server) as pool:
            for i in range(5):
                pool.start(call_of(i), ended.append)
            while len(server.bodies) < 5:
                await asyncio.sleep(0.01)
            pool.start(call_of(5), ended.append)  # has no connection yet
    assert [done.error for done in ended] == ["cancelled"] * 6
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others


@on_both_loops
async def test_a_name_is_looked_up() -> None:
    with golden_server() as server:
        async with pool_of(server.url.replace("127.0.0.1", "localhost")) as pool:
            done = await asyncio.gather(*[send(pool, call_of(i)) for i in range(3)])
    assert [d.error for d in done] == [None] * 3
    async with pool_of("http://no-such-host.invalid:1") as pool:
        lost = await asyncio.gather(*[send(pool, call_of(i)) for i in range(3)])
    assert [d.error for d in lost] == ["unreachable"] * 3
    assert "no-such-host.invalid" in (lost[0].detail or "")


def test_a_key_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-a\nHost: elsewhere", "sk-schlüssel"):
        monkeypatch.setenv("BREAKEVEN_API_KEY", key)
        with pytest.raises(UserError, match="key in BREAKEVEN_API_KEY") as caught:
            Pool(backend_of("http://127.0.0.1:1", key="BREAKEVEN_API_KEY"))
        assert key not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    home = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=golden", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", home / "key.pem", "-out", home / "cert.pem"], check=True, capture_output=True)
    return home / "cert.pem", home / "key.pem"


@pytest.mark.parametrize("trusted", [True, False])
@on_both_loops
async def test_tls(certificate: tuple[Path, Path], trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(*certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(DONE), DONE)
    async with raw_server(answer, answer, tls=served) as url, pool_of(url) as pool:
        done = [await send(pool, call_of(i)) for i in range(2)]
    if trusted:
        assert [d.error for d in done] == [None, None]
    else:
        assert [d.error for d in done] == ["unreachable"] * 2
        assert "certificate" in (done[0].detail or "").lower()


@pytest.mark.parametrize("pid", [None, 1])
@on_both_loops
async def test_nothing_is_left_behind_while_the_collector_rests(pid: int | None) -> None:
    scripts = [Script(), Script(fault="garbage"), Script(fault="reset"), Script(fault="status_500")]
    with golden_server(*scripts * 5, Script()) as server:
        async with pool_of(server, pid) as pool:
            gc.collect()
            gc.disable()
            try:
                for i in range(40):
                    await send(pool, call_of(i, stream=i % 3 > 0))
                await asyncio.sleep(0.05)
                left = [thing for thing in gc.get_objects() if isinstance(thing, Exchange | Connection)]
            finally:
                gc.enable()
    assert len([thing for thing in left if isinstance(thing, Exchange)]) == 0
    assert len([thing for thing in left if isinstance(thing, Connection)]) <= (1 if pid is None else 0)
