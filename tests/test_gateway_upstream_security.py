"""What never crosses: credentials, cookies, framing; and where a request never goes: elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_server import BEHAVIOURS, ChaosServer
from gateway_upstream_fixtures import (
    CHAT,
    HASTY,
    PATIENT,
    Memory,
    ask,
    body_of,
    on_both_loops,
    raw_server,
    until,
    upstream_of,
)
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.plan.model import Timeouts
from breakeven.version import __version__
from breakeven.wire.client import HttpClient
from breakeven.wire.target import (
    HOP_BY_HOP,
    NOT_PASSED_ON,
    NOT_SENT,
    ForbiddenAddressError,
    addresses_of,
    answer_headers,
    is_forbidden,
    request_lines,
)
from breakeven.wire.tls import TlsFiles

CANARY = b"canary-5f1c9e"
SECRET = ((b"authorization", b"Bearer " + CANARY),)


@on_both_loops
async def test_a_backend_gets_its_own_key_and_none_of_the_clients() -> None:
    """Property 3: a client's credentials and cookies; property 7: hop-by-hop headers, those named in Connection too."""
    client = [
        (b"host", b"evil.example"),
        (b"authorization", b"Bearer client-key"),
        (b"x-api-key", b"client-key"),
        (b"api-key", b"client-key"),
        (b"proxy-authorization", b"Basic client-key"),
        (b"cookie", b"session=client-key"),
        (b"content-length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"connection", b"keep-alive, X-Named , content-type"),
        (b"keep-alive", b"timeout=5"),
        (b"x-named", b"client-key"),
        (b"content-type", b"application/json"),
        (b"accept", b"text/event-stream"),
        (b"x-request-id", b"r1"),
    ]
    with ChaosServer() as server:
        async with upstream_of(server.url, secret=SECRET) as upstream:
            body = body_of()
            assert (await ask(upstream, body, headers=client)).ends == ["end"]
            assert server.seen.headers[-1] == {
                "host": f"127.0.0.1:{server.port}",
                "authorization": "Bearer " + CANARY.decode(),
                "user-agent": f"breakeven/{__version__}",
                "content-type": "application/json",
                "accept": "text/event-stream",
                "x-request-id": "r1",
                "content-length": str(len(body)),
            }
            assert server.seen.bodies[-1] == body


@pytest.mark.parametrize("agent", [b"", b"mine/1"])
@on_both_loops
async def test_each_request_names_one_agent(agent: bytes) -> None:
    """What guards a server (AWS WAF) refuses a completion that names none."""
    own = [(b"user-agent", agent)] if agent else []
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with raw_server(answer, answer, answer) as raw, upstream_of(raw.url, secret=own) as upstream:
        assert (await ask(upstream)).ends == ["end"]
        await upstream.get("/metrics")
        await upstream.get("/tokenize", body=b"{}")
        named = agent or b"breakeven/" + __version__.encode()
        for question in raw.questions:
            assert question.lower().count(b"user-agent:") == question.count(b"user-agent: %s\r\n" % named) == 1
        assert len(raw.questions) == 3


@on_both_loops
async def test_a_client_gets_no_header_that_was_for_us() -> None:
    with ChaosServer("odd_headers") as server:
        async with upstream_of(server.url) as upstream:
            memory = await ask(upstream)
            assert {name for name, _ in memory.headers} == {b"server", b"content-type", b"content-length", b"x-kept"}
            assert dict(memory.headers)[b"content-length"] == b"%d" % len(memory.body)


def _bytes(alphabet: str, most: int) -> st.SearchStrategy[bytes]:
    return st.text(alphabet, min_size=1, max_size=most).map(str.encode)


TOKENS = _bytes("abcxyz-1", 8)
NAMES = (
    st.sampled_from(
        sorted(NOT_SENT | NOT_PASSED_ON | {b"access-control-allow-origin", b"x-breakeven-usd", b"x-breakeven_usd"})
    )
    | TOKENS
)
HEADERS = st.lists(st.tuples(NAMES, _bytes("aZ0:,;=/", 20)), max_size=12)


@given(HEADERS, st.lists(TOKENS, max_size=4))
def test_what_is_stripped_and_nothing_else(headers: list[tuple[bytes, bytes]], named: list[bytes]) -> None:
    headers = [pair for pair in headers if pair[0] != b"connection"]
    headers += [(b"connection", b", ".join(named))] if named else []
    gone = set(named) - {b"content-length", b"content-type"}
    sent = b"".join(b"%s: %s\r\n" % pair for pair in headers if pair[0] not in NOT_SENT | gone)
    assert request_lines(headers) == sent
    passed_on = [pair for pair in headers if pair[0] not in NOT_PASSED_ON | gone]
    theirs = [
        pair for pair in passed_on if not pair[0].startswith((b"access-control-", b"x-breakeven-", b"x-breakeven_"))
    ]
    assert answer_headers(headers) == theirs
    assert HOP_BY_HOP <= NOT_SENT & NOT_PASSED_ON
    assert {b"www-authenticate", b"refresh", b"x-request-id", b"x-accel-redirect"} <= NOT_PASSED_ON


@pytest.mark.parametrize("bad", [b"a\r\nx-evil: 1", b"a\nb", b"a\rb", b"a\0b"])
@on_both_loops
async def test_a_header_with_a_line_break_is_never_sent(bad: bytes) -> None:
    with ChaosServer() as server:
        async with upstream_of(server.url) as upstream:
            for pair in ((b"x-a", bad), (bad, b"a")):
                memory = Memory()
                upstream.send(CHAT, [pair], body_of(), memory)
                assert memory.calls == []  # told later, never during the call
                await memory.done.wait()
                assert memory.ends == ["forbidden"]
            for path in ("/v1/x y", "/v1/x\r\nx-evil: 1", "v1/x", "http://evil.example/", "/v1/\u00e9"):
                assert (await ask(upstream, path=path)).ends == ["forbidden"]
            assert server.seen.requests == server.seen.connections == 0


@on_both_loops
async def test_a_redirect_is_not_followed() -> None:
    """Property 6; and its destination is told to nobody, as it may hold what the backend was sent."""
    with ChaosServer() as other, ChaosServer("redirect", location=f"{other.url}/{CANARY.decode()}") as server:
        async with upstream_of(server.url, secret=SECRET) as upstream:
            memory = await ask(upstream)
            assert (memory.ends, memory.status) == (["forbidden"], 0)
            assert "redirects are not followed" in memory.detail
            assert CANARY.decode() not in memory.detail
            assert other.seen.connections == 0


@on_both_loops
async def test_no_trouble_tells_the_key() -> None:
    """Property 3, seeded: whatever a backend does with what it was sent."""
    echo = b"Bearer " + CANARY
    async with (
        raw_server(echo + b"\r\n\r\n", b"HTTP/1.1 " + echo, b"HTTP/1.1 200 " + echo + b"\r\nbad header " + echo) as raw,
        upstream_of(raw.url, HASTY, secret=SECRET) as upstream,
    ):
        for _ in range(3):
            memory = await ask(upstream)
            assert memory.ends == ["garbage"] or memory.ends == ["timeout"]
            assert CANARY.decode() not in memory.detail
    with ChaosServer() as server:
        async with upstream_of(server.url, HASTY, secret=SECRET, response_bytes=10) as upstream:
            for name in BEHAVIOURS:
                memory = await ask(upstream, body_of(chaos=name))
                assert CANARY.decode() not in memory.detail
                assert CANARY not in repr(memory.headers).encode() + memory.body
                if name.startswith("die"):
                    await until(lambda: server.listening)
            assert all(CANARY.decode() in seen["authorization"] for seen in server.seen.headers)


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("febf::1", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("::ffff:100.100.100.200", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("100.100.100.201", False),
        ("fd00:ec2::253", False),
        ("fec0::1", False),
        ("8.8.8.8", False),
    ],
)
def test_forbidden_addresses(address: str, forbidden: bool) -> None:
    assert is_forbidden(address) is forbidden


@given(st.ip_addresses())
def test_an_address_is_forbidden_in_every_guise(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert is_forbidden(str(address)) is is_forbidden(address.exploded)
    if address.version == 4:
        for guise in ("::ffff:{}", "64:ff9b::{}"):
            assert is_forbidden(guise.format(address)) is is_forbidden(str(address))


class Names:
    """In place of the system's names. `answers`: what each look-up finds, the last one again and again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def look_up(self, host: str, port: int) -> list[str]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        await asyncio.sleep(0)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Names]:
    def place(*answers: list[str]) -> Names:
        told = Names(*answers)
        monkeypatch.setattr("breakeven.wire.target._look_up", told.look_up)
        return told

    return place


async def test_a_literal_and_a_number_are_checked_as_well() -> None:
    for host in ("169.254.169.254", "fe80::1", "2852039166", "0xa9fea9fe", "169.254.43518"):
        with pytest.raises(ForbiddenAddressError, match="allow_link_local"):
            await addresses_of(host, 80, allow_link_local=False)
        assert await addresses_of(host, 80, allow_link_local=True)
    assert await addresses_of("127.0.0.1", 80, allow_link_local=False) == ["127.0.0.1"]
    for host in ("a..b", "x" * 70):
        with pytest.raises(OSError):  # noqa: PT011 - what the system calls it differs
            await addresses_of(host, 80, allow_link_local=False)


@on_both_loops
async def test_metadata_addresses_are_never_asked(names: Callable[..., Names]) -> None:
    """Property 6, after the look-up too: nothing is opened."""
    names(["169.254.169.254", "fe80::1"])

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    for url in ("http://169.254.169.254", "http://[fd00:ec2::254]:80", "http://metadata.example"):
        async with upstream_of(url) as upstream:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("breakeven.wire.client.ClientConnection", connect)
                memory = await ask(upstream)
            assert memory.ends == ["forbidden"]
            assert "allow_link_local" in memory.detail


@on_both_loops
async def test_a_name_is_looked_up_once_and_pinned(names: Callable[..., Names]) -> None:
    """A name that changes its mind is not believed until a connection to the old address has failed."""
    with ChaosServer(first_s=0.005) as server:
        told = names(["169.254.169.254", "127.0.0.1"], ["169.254.169.254"])
        async with upstream_of(f"http://backend.example:{server.port}") as upstream:
            await asyncio.gather(*(ask(upstream) for _ in range(20)))
            for _ in range(3):
                server.drop_idle()
                assert (await ask(upstream)).ends == ["end"]
            assert (told.asked, upstream._addresses) == (1, ["127.0.0.1"])
            assert server.seen.headers[-1]["host"] == f"backend.example:{server.port}"
            server.down()
            assert (await ask(upstream)).ends == ["refused"]
            server.up()
            assert (await ask(upstream)).ends == ["forbidden"]
            assert told.asked == 2


@on_both_loops
async def test_a_second_address_is_tried_and_then_kept_first(names: Callable[..., Names]) -> None:
    with ChaosServer() as server:
        names(["127.0.0.2", "127.0.0.1"])  # the server listens on the second alone
        async with upstream_of(f"http://backend.example:{server.port}") as upstream:
            assert (await ask(upstream)).ends == ["end"]
            assert upstream._addresses == ["127.0.0.1", "127.0.0.2"]


@on_both_loops
async def test_a_name_without_an_address_is_asked_for_anew(names: Callable[..., Names]) -> None:
    with ChaosServer() as server:
        told = names([], ["127.0.0.1"])
        async with upstream_of(f"http://backend.example:{server.port}") as upstream:
            assert (await ask(upstream)).ends == ["unreachable"]
            assert (await ask(upstream)).ends == ["end"]
            assert told.asked == 2


@on_both_loops
async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChaosServer() as server, ChaosServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with upstream_of(server.url) as upstream:
            assert (await ask(upstream)).ends == ["end"]
        assert (server.seen.requests, proxy.seen.connections) == (1, 0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://127.0.0.1", "no address of a backend"),
        ("127.0.0.1:80", "no address of a backend"),
        ("http://", "no address of a backend"),
        ("http://127.0.0.1/?key=1", "no address of a backend"),
        ("http://127.0.0.1:99999", "cannot be read"),
        ("http://user:canary@127.0.0.1", "api_key_env"),
        ("http://127.0.0.1/a b", "percent-encoded"),
        ("http://127.0.0.1/\r\nx: y", "percent-encoded"),
    ],
)
def test_addresses_that_are_none(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        HttpClient(url, timeouts=PATIENT)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "key", [CANARY + b"\n", CANARY + b"\r\nx-evil: 1", CANARY + b"\x7f", "kanarie-\u00e9".encode()]
)
def test_a_key_that_no_header_can_hold(key: bytes) -> None:
    with pytest.raises(UserError, match="environment variable") as raised:
        HttpClient("http://127.0.0.1:1", timeouts=PATIENT, secret=[(b"authorization", b"Bearer " + key)])
    assert CANARY.decode() not in str(raised.value)
    assert CANARY.decode() not in str(raised.value.__cause__)


@on_both_loops
async def test_the_path_of_the_base_address_is_kept() -> None:
    async with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as raw:
        async with upstream_of(raw.url + "/api/openai/") as upstream:
            assert (await ask(upstream)).ends == ["end"]
        assert raw.questions[0].startswith(b"POST /api/openai/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for the name backend.example, signed by itself, and its key."""
    home = tmp_path_factory.mktemp("tls")
    named = ["-subj", "/CN=chaos", "-addext", "subjectAltName=DNS:backend.example"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *named]
    subprocess.run([*command, "-keyout", home / "key.pem", "-out", home / "cert.pem"], check=True, capture_output=True)
    return home / "cert.pem", home / "key.pem"


@on_both_loops
async def test_tls_is_verified_and_the_name_sent(certificate: tuple[Path, Path], names: Callable[..., Names]) -> None:
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(*certificate)
    asked: list[str | None] = []
    served.sni_callback = lambda _socket, name, _context: asked.append(name)
    names(["127.0.0.1"])
    with ChaosServer(tls=served) as server:
        url = f"https://backend.example:{server.port}"
        async with upstream_of(url, tls=TlsFiles(certificate[0]), secret=SECRET) as upstream:
            for index in range(3):
                memory = await ask(upstream, body_of(f"{index}", stream=True))
                assert (memory.ends, memory.body.count(b"%d " % index)) == (["end"], 8)
            assert (server.seen.connections, asked) == (1, ["backend.example"])
            assert (await ask(upstream, body_of(chaos="reset_mid_body"))).ends == ["cut"]
        untrusted = {"url": url}
        wrong_name = {"url": f"https://other.example:{server.port}", "tls": TlsFiles(certificate[0])}
        for settings in (untrusted, wrong_name):
            async with upstream_of(**settings, secret=SECRET) as upstream:  # type: ignore[arg-type]
                memory = await ask(upstream)
                assert memory.ends == ["unreachable"]
                assert "certificate" in memory.detail.lower()
        assert server.seen.requests == 4
    with ChaosServer() as plain:  # and nothing is sent in the clear to whoever speaks no TLS
        async with upstream_of(f"https://backend.example:{plain.port}", tls=TlsFiles(certificate[0])) as upstream:
            assert (await ask(upstream)).ends == ["unreachable"]
        assert plain.seen.requests == 0


def test_a_file_of_authorities_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for path in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        with pytest.raises(UserError, match=r"ca .* PEM"):
            HttpClient("https://127.0.0.1", timeouts=Timeouts(), tls=TlsFiles(path))
