"""The HTTP client on real sockets, on both kinds of event loop: what is kept, stamped, cancelled and left behind."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import time
from operator import le
from pathlib import Path

import pytest
from gateway_upstream_fixtures import PATIENT
from golden_server import Script, golden_server
from wire_fixtures import DONE, backend_of, call_of, on_both_loops, pool_of, raw_server, send

from breakeven.engines.backend import Backend
from breakeven.errors import UserError
from breakeven.measure.events import RequestDone
from breakeven.measure.pool import Pool, Recording
from breakeven.wire.client import HttpClient
from breakeven.wire.connection import ClientConnection, Exchange
from breakeven.wire.message import LONG_NS, Headers, Trouble


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

                def left() -> tuple[int, int]:
                    kinds = [type(thing) for thing in gc.get_objects()]
                    held = sum(issubclass(kind, Exchange | Recording) for kind in kinds)
                    return held, sum(issubclass(kind, ClientConnection) for kind in kinds)

                most = 0, 1 if pid is None else 0
                # What the server closed goes when the loop has heard of it.
                end_s = time.monotonic() + 30
                while not all(map(le, left(), most)) and time.monotonic() < end_s:
                    await asyncio.sleep(0.02)
                held, connections = left()
            finally:
                gc.enable()
    assert held == most[0]
    assert connections <= most[1]


@on_both_loops
async def test_answers_that_keep_us_busy_let_others_go_first() -> None:
    loop = asyncio.get_running_loop()
    turn, turns, left = 0, list[int](), 3
    over: asyncio.Future[str] = loop.create_future()

    def count() -> None:
        nonlocal turn
        turn += 1
        if not over.done():
            loop.call_soon(count)

    class Slow:
        first = True

        def on_head(self, status: int, headers: Headers) -> None:
            pass

        def on_body(self, data: bytes) -> None:
            if not self.first:  # nobody knows yet what it will take
                turns.append(turn)
            self.first = False
            begun_ns = time.monotonic_ns()
            while time.monotonic_ns() - begun_ns <= LONG_NS:
                pass

        def on_end(self) -> None:
            nonlocal left
            left -= 1
            if not left:
                over.set_result("end")

        def on_trouble(self, trouble: Trouble, detail: str) -> None:
            over.set_result(f"{trouble}: {detail}")

    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (8 << 20) + b"x" * (8 << 20)
    async with raw_server(answer, answer, answer, then="wait") as url:
        client = HttpClient(url, timeouts=PATIENT)
        loop.call_soon(count)
        for _ in range(3):
            client.send("/", (), b"", Slow())
        assert await over == "end"
        await client.close()
    assert len(turns) > 30
    assert len(set(turns)) == len(turns)
