"""TLS on the way in and on the way out: whole gateways, real handshakes, certificates that change while it runs."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chaos_server import ChaosServer
from gateway_edge_fixtures import Loop, both_loops, echo, on, replies
from gateway_serve_fixtures import CHAT, Gateway, question, serving, wait, write_plan
from gateway_upstream_fixtures import ask, body_of, on_both_loops, raw_server, upstream_of
from tls_fixtures import LONG_AGO, Authority, needs_openssl, proxy, shown_by

from breakeven.errors import UserError
from breakeven.gateway.keys.store import create
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.model import Limits
from breakeven.wire.listen import open_sockets
from breakeven.wire.message import Request, Responder
from breakeven.wire.server import HttpServer
from breakeven.wire.tls import TlsFiles, client_tls, server_tls, what_to_do, why_not_now

pytestmark = needs_openssl
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> TlsFiles:
    """A certificate for this machine."""
    return TlsFiles(None, *authority.sign("here"))


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    """A client that trusts the authority and nobody else."""
    return ssl.create_default_context(cafile=authority.ca)


@pytest.fixture(scope="module")
def backend() -> Iterator[ChaosServer]:
    with ChaosServer("ok", chunk_s=0.01) as server:
        yield server


class Serving:
    """An edge with TLS on a loop of the test's."""

    def __init__(self, files: TlsFiles, handler: Any = echo, **limits: Any) -> None:
        self.server = HttpServer(handler, Limits(**limits))
        self.files, self.port = files, 0

    async def __aenter__(self) -> Serving:
        sockets = open_sockets("127.0.0.1", 0, 1)
        self.port = sockets[0].getsockname()[1]
        await self.server.start(sockets, server_tls(self.files))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.drain(0.0)
        assert (self.server.connections, self.server.under_way) == (0, 0)


@both_loops
def test_it_is_the_same_server_behind_tls(loop: Loop, files: TlsFiles, trusting: ssl.SSLContext) -> None:
    """Requests in a row, a large body there and back, the answer's end, and no byte lost at any of them."""
    large = bytes(range(256)) * 8192
    head = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n"

    async def work() -> None:
        async with Serving(files) as edge:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", edge.port, ssl=trusting, server_hostname="localhost", limit=4 * len(large)
            )
            told = writer.get_extra_info("ssl_object")
            assert told.version() in ("TLSv1.2", "TLSv1.3")
            assert told.selected_alpn_protocol() is None
            writer.write((head % 2 + b"\r\nhi") * 3 + head % len(large) + b"connection: close\r\n\r\n" + large)
            got = await reader.read()
            writer.close()
        assert [reply.body for reply in replies(got)] == [b"POST /x  hi"] * 3 + [b"POST /x  " + large]

    on(loop, work)


@both_loops
def test_a_client_that_does_not_shake_hands_is_one_of_those_that_are_silent(loop: Loop, files: TlsFiles) -> None:
    async def work() -> None:
        async with Serving(files, idle_s=0.3) as edge:
            silent = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(2)]
            silent[0][1].write(b"\x16\x03\x01\x02\x00\x01")  # half a hello
            for quiet, _ in silent:
                assert await quiet.read() == b""  # closed for its silence, with no word before its handshake

    on(loop, work)


@both_loops
def test_whoever_speaks_no_tls_is_told_so(loop: Loop, files: TlsFiles) -> None:
    async def work() -> None:
        async with Serving(files) as edge:
            for said, heard in ((b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"https://"), (b"\x00" * 99, b"")):
                reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
                writer.write(said)
                assert heard in await reader.read()
                writer.close()
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            old.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", edge.port, ssl=old)

    on(loop, work)


@both_loops
def test_what_is_no_tls_after_a_question_ends_the_connection_and_nothing_else(
    loop: Loop, files: TlsFiles, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with Serving(files) as edge:
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting.wrap_bio(heard, said, server_hostname="localhost")
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(said.read())
                    heard.write(await reader.read(65536))
            client.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            writer.write(said.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
            heard.write(await reader.read())
            writer.close()
            with pytest.raises(ssl.SSLError):  # its alert, and no answer
                client.read()
        assert not caplog.records

    on(loop, work)


@both_loops
def test_a_client_that_leaves_is_heard_of_and_one_that_is_slow_is_waited_for(
    loop: Loop, files: TlsFiles, trusting: ssl.SSLContext
) -> None:
    async def work() -> None:
        gone, held = asyncio.Event(), asyncio.Event()

        def handler(request: Request, responder: Responder) -> None:
            responder.start(200, ())
            responder.on_gone, responder.on_pause = gone.set, held.set
            responder.write(b"first")
            if request.path == "/much":
                responder.write(b"x" * (8 << 20))

        async with Serving(files, handler) as edge:
            for path, event in (("/leave", None), ("/much", held)):
                gone.clear()
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", edge.port, ssl=trusting, server_hostname="localhost", limit=1024
                )
                writer.write(b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode())
                await reader.readuntil(b"first")
                if event is not None:
                    await event.wait()
                writer.close()
                await gone.wait()

    on(loop, work)


def test_what_cannot_be_shown_is_told_with_its_reason(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("good")
    _, other = authority.sign("other")
    (tmp_path / "none.pem").write_text("nothing")
    os.mkfifo(tmp_path / "pipe")
    locked = tmp_path / "locked.key"
    words = ["openssl", "ec", "-in", key, "-out", locked, "-aes256", "-passout", "pass:secret"]
    subprocess.run(words, check=True, capture_output=True)
    for shown, why in (
        ((certificate, other), "another certificate's"),
        ((tmp_path / "none.pem", key), "PEM"),
        ((certificate, None), "PEM"),
        ((certificate, tmp_path / "pipe"), "is no file"),
        ((certificate, tmp_path / "gone"), "is no file"),
        ((certificate, locked), "has a password"),
    ):
        with pytest.raises(UserError, match=why) as raised:
            server_tls(TlsFiles(None, *shown))
        assert "\n" not in str(raised.value)
    assert why_not_now(server_tls(TlsFiles(None, certificate, key))) == ""
    assert why_not_now(server_tls(TlsFiles(None, *authority.sign("past", dates=LONG_AGO)))) == "its time is over"
    at = [datetime.now(UTC) + timedelta(days=days) for days in (-1, 5.5)]
    soon = authority.sign("soon", dates=(f"{at[0]:%Y%m%d%H%M%SZ}", f"{at[1]:%Y%m%d%H%M%SZ}"))
    assert "ends in 5 days; renew it" in what_to_do(server_tls(TlsFiles(None, *soon)), time.time())
    assert what_to_do(server_tls(TlsFiles(None, certificate, key)), time.time()) == ""
    future = ("20400101000000Z", "20410101000000Z")
    assert "not come" in why_not_now(server_tls(TlsFiles(None, *authority.sign("future", dates=future))))


# A whole gateway.


class Client:
    """Asks a gateway by TLS, on one connection that is kept."""

    def __init__(self, gateway: Gateway, trusting: ssl.SSLContext, timeout_s: float = 20.0) -> None:
        self._connection = http.client.HTTPSConnection("localhost", gateway.port, timeout=timeout_s, context=trusting)

    def begin(self, ident: str, **fields: Any) -> http.client.HTTPResponse:
        self._connection.request(
            "POST", CHAT, json.dumps(question(ident, "one", **fields)), {"content-type": "application/json"}
        )
        return self._connection.getresponse()

    @property
    def socket(self) -> object:
        """Its connection."""
        return self._connection.sock

    def ask(self, ident: str) -> int:
        answer = self.begin(ident)
        assert ident.encode() in answer.read()
        return answer.status


def install(pair: tuple[Path, Path], directory: Path) -> None:
    """Where the file says that the certificate is, another one."""
    for source, name in zip(pair, ("tls.pem", "tls.key"), strict=True):
        partial = directory / f".{name}"
        shutil.copy(source, partial)
        partial.replace(directory / name)


def plan_of(backend: ChaosServer) -> dict[str, Any]:
    return {
        "tls": {"certificate": "tls.pem", "key": "tls.key"},
        "backends": [{"name": "one", "url": f"{backend.url}/v1"}],
    }


def test_a_certificate_changes_while_answers_go_on_and_a_broken_one_does_not(
    authority: Authority, trusting: ssl.SSLContext, backend: ChaosServer, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    dates = (f"{now - timedelta(days=1):%Y%m%d%H%M%SZ}", f"{now + timedelta(hours=9):%Y%m%d%H%M%SZ}")
    install(authority.sign("first", dates=dates), tmp_path)
    second = authority.sign("second")
    with serving(tmp_path, plan_of(backend)) as gateway:
        assert gateway.url.startswith("https://")
        wait(lambda: any("ends in 8 h" in each for each in gateway.state()["warnings"]), "nobody warns")
        assert shown_by(gateway.port, authority.ca) == "first"
        idle = Client(gateway, trusting)
        assert idle.ask("before") == 200
        kept = idle.socket
        stream = Client(gateway, trusting).begin("through", stream=True, max_tokens=150)
        assert b"through" in stream.readline()

        def reload(said: str) -> None:
            before = gateway.said.count(said)
            gateway.signal(signal.SIGHUP)
            gateway.wait_said(said, before + 1)

        install(second, tmp_path)
        workers = gateway.workers()
        reload("reloaded: certificates alone, generation 0 goes on")
        wait(lambda: shown_by(gateway.port, authority.ca) == "second", "the new one is not shown")
        assert gateway.workers() == workers
        wait(lambda: not any("ends in" in each for each in gateway.state()["warnings"]), "it warns of the old one")
        assert (idle.ask("later"), idle.socket) == (200, kept)
        expired = authority.sign("expired", dates=LONG_AGO)
        for broken, why in (
            ((second[0], authority.sign("third")[1]), "another certificate's"),
            (expired, "its time is over"),
        ):
            install(broken, tmp_path)
            reload("not reloaded, everything goes on as it was")
            assert why in gateway.said.splitlines()[-1]
            assert shown_by(gateway.port, authority.ca) == "second"
        rest = stream.read()
        assert (rest.count(b'"through "'), rest.rstrip().endswith(b"[DONE]")) == (150, True)
        (tmp_path / "tls.key").unlink()
        # Not even a worker that takes another's place looks at the files again.
        (worker,) = gateway.workers()
        os.kill(worker, signal.SIGKILL)
        wait(lambda: gateway.workers() not in ([], [worker]), "it was not replaced")
        assert shown_by(gateway.port, authority.ca) == "second"
        assert Client(gateway, trusting).ask("after") == 200
        install(second, tmp_path)
        write_plan(gateway.directory / "gateway.yaml", {**plan_of(backend), "limits": {"drain": "3s"}})
        reload("reloaded: generation 1")
        assert shown_by(gateway.port, authority.ca) == "second"
        write_plan(gateway.directory / "gateway.yaml", {"backends": plan_of(backend)["backends"]})
        reload("tls: missing, but clients speak it now; restart to run without it")
        assert "Traceback" not in gateway.said


def test_what_a_file_says_of_tls_is_checked(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("file")

    def read(**backend: Any) -> Any:
        served = {"name": "x", "url": "https://far.example/v1", **backend}
        plan = {"tls": str(certificate), "backends": [served]}
        return read_gateway(write_plan(tmp_path / "gateway.yaml", plan), {"K": "secret"})

    plan = read(ca=str(authority.ca), client_certificate={"certificate": str(certificate), "key": str(key)})
    assert plan.tls_files == TlsFiles(None, certificate, None)
    assert plan.backends[0].tls_files == TlsFiles(authority.ca, certificate, key)
    assert read(ca_file=str(authority.ca)).backends[0].tls_files.ca == authority.ca
    assert read(url="http://10.0.0.1/v1", api_key_env="K", key_over_http=True).backends[0].key_over_http
    assert read(url="http://localhost:1/v1", api_key_env="K").backends[0].api_key_env == "K"
    for wrong, why in (
        ({"ca": "none.pem"}, r"backends\.0\.ca: .*does not exist"),
        ({"client_certificate": "none.pem"}, r"backends\.0\.client_certificate\.certificate: .*does not exist"),
        ({"client_certificate": {"key": str(key)}}, r"backends\.0\.client_certificate\.certificate: missing"),
        ({"proxy": "socks5://p:1"}, r"backends\.0\.proxy: .*URL of an HTTP proxy"),
        ({"proxy": "http://u:secret@p:1"}, r"backends\.0\.proxy: .*without a user or password"),
        ({"proxy": "http://169.254.169.254:80"}, r"backends\.0\.proxy: .*allow_link_local"),
        ({"proxy": "http://p:1", "url": "http://h/v1"}, r"backends\.0\.proxy: only for a url .* https://"),
        ({"url": "http://10.0.0.1/v1", "api_key_env": "K"}, r"backends\.0\.url: .*in clear.*key_over_http"),
        ({"ca": str(authority.ca), "ca_file": str(authority.ca)}, r"ca alone"),
    ):
        with pytest.raises(UserError, match=why) as raised:
            read(**wrong)
        assert "secret" not in str(raised.value)


# On the way out.


@on_both_loops
async def test_a_backend_that_asks_for_a_certificate_gets_it(authority: Authority) -> None:
    served = server_tls(TlsFiles(None, *authority.sign("far")))
    served.verify_mode = ssl.CERT_REQUIRED
    served.load_verify_locations(authority.ca)
    client = authority.sign("client")
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    async with raw_server(answer, answer, tls=served) as far:
        async with upstream_of(far.url, tls=TlsFiles(authority.ca, *client)) as upstream:
            assert (await ask(upstream)).ends == ["end"]
        async with upstream_of(far.url, tls=TlsFiles(authority.ca)) as upstream:
            assert (await ask(upstream)).ends != ["end"]
            upstream.renew(client_tls(TlsFiles(authority.ca, *client)))
            assert (await ask(upstream)).ends == ["end"]


@on_both_loops
async def test_a_proxy_opens_the_way_and_sees_nothing(authority: Authority) -> None:
    served = server_tls(TlsFiles(None, *authority.sign("api", names="DNS:api.example")))
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    secret = [(b"authorization", b"Bearer canary-41")]
    async with raw_server(*[answer] * 3, tls=served) as far, proxy(int(far.url.rpartition(":")[2])) as between:
        settings: dict[str, Any] = {"proxy": f"http://127.0.0.1:{between.port}", "secret": secret}
        url = "https://api.example:8443"
        async with upstream_of(url, tls=TlsFiles(authority.ca), **settings) as upstream:
            assert [(await ask(upstream, body_of("words"))).ends for _ in range(3)] == [["end"]] * 3
        assert between.asked == [b"CONNECT api.example:8443 HTTP/1.1\r\nhost: api.example:8443\r\n\r\n"]
        assert len(far.questions) == 3
        assert b"canary" not in between.passed
        assert b"words" not in between.passed
        for name, ca in (("https://other.example:8443", authority.ca), (url, None)):
            async with upstream_of(name, tls=TlsFiles(ca), **settings) as upstream:
                memory = await ask(upstream)
                assert (memory.ends, "certificate" in memory.detail.lower()) == (["unreachable"], True)
    for said in (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 O"):
        async with proxy(1, said) as between:
            settings["proxy"] = f"http://127.0.0.1:{between.port}"
            async with upstream_of(url, tls=TlsFiles(authority.ca), **settings) as upstream:
                memory = await ask(upstream)
                assert (memory.ends, "the proxy" in memory.detail) == (["unreachable"], True)
    async with upstream_of(url, tls=TlsFiles(authority.ca), **settings) as upstream:
        assert (await ask(upstream)).ends == ["refused"]


# A proxy in front.


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not here (apt install haproxy)")
def test_haproxy_in_front_ends_tls_passes_streams_and_takes_the_next_gateway(
    authority: Authority, trusting: ssl.SSLContext, backend: ChaosServer, tmp_path: Path
) -> None:
    """The example of the documentation, with this test's ports and certificate."""
    certificate, key = authority.sign("front")
    both = tmp_path / "front.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    secret = create(tmp_path / "keys.json", "anna")
    plan = {"backends": [{"name": "one", "url": f"{backend.url}/v1"}], "keys": str(tmp_path / "keys.json")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(tmp_path / "one", plan) as one, serving(tmp_path / "two", plan) as two:
        text = (ROOT / "docs" / "haproxy.cfg").read_text()
        for place, ours in (
            ("0.0.0.0:443", f"127.0.0.1:{port}"),
            ("CERTIFICATE.pem", str(both)),
            ("GATEWAY_ONE", f"127.0.0.1:{one.port}"),
            ("GATEWAY_TWO", f"127.0.0.1:{two.port}"),
            ("maxconn 4000", "maxconn 100"),
        ):
            assert text.count(place) == 1
            text = text.replace(place, ours)
        (tmp_path / "haproxy.cfg").write_text(text)
        words = ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]
        with (tmp_path / "front.log").open("w") as log:
            front = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            wait(lambda: front.poll() is not None or _listens(port), "HAProxy does not listen")
            assert front.poll() is None, (tmp_path / "front.log").read_text()
            headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}

            def begin(ident: str, **fields: Any) -> http.client.HTTPResponse:
                connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=trusting)
                connection.request("POST", CHAT, json.dumps(question(ident, "one", **fields)), headers)
                return connection.getresponse()

            wait(lambda: begin("ready").status == 200, "no answer through HAProxy")
            stream = begin("slow", stream=True, max_tokens=50)
            asked_s = time.monotonic()
            first = stream.readline()
            first_s = time.monotonic() - asked_s
            # The first gateway is told to end: what it has under way ends, and what comes next goes to the second.
            one.signal(signal.SIGTERM)
            rest = first + stream.read()
            whole_s = time.monotonic() - asked_s
            assert rest.count(b'"slow "') == 50
            assert first_s < whole_s / 2  # events came as they were sent
            wait(lambda: begin("next").status == 200, "the second gateway is not asked")
            wait(lambda: any(record.status == 200 for record in two.logged()), "the second gateway answered nothing")
            headers["authorization"] = "Bearer nobody"
            assert begin("stranger").status == 401
        finally:
            front.terminate()
            front.wait(10)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
