"""Property 7: everything has a limit, and what two servers could read differently is refused.

The edge alone, on both loops, and what its parser refuses: test_gateway_edge.py, test_gateway_edge_parse.py. The client
of backends alone: test_gateway_upstream.py. Here: a whole gateway, and that no backend is asked for what is refused.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import CHAT, Gateway, backend, gateway, read_all, statuses, until

from breakeven.gateway.keys import store
from breakeven.gateway.keys.entry import parse_limit

LIMITS = {
    "body": "64KiB",
    "headers": "8KiB",
    "json_depth": 16,
    "json_keys": 40,
    "connections": 40,
    "streams_per_key": 3,
    "read": "1.5s",
    "idle": "2s",
    "write": "1s",
    "response": "16MiB",
    "drain": "1s",
}


class World:
    def __init__(self, running: Gateway, server: ChaosServer, key: str, other: str) -> None:
        self.running, self.server, self.key, self.other = running, server, key, other

    def request(self, *lines: str, body: bytes = b'{"model": "b"}', path: str = CHAT) -> bytes:
        top = [f"POST {path} HTTP/1.1", "host: h", f"x-api-key: {self.key}", *lines]
        return ("\r\n".join(top) + "\r\n\r\n").encode() + body


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("limits")
    key, other = (store.create(directory / "keys.json", name) for name in ("anna", "bert"))
    with ChaosServer(huge_bytes=32 * 2**20) as server:
        hasty = {"connect": "5s", "first_byte": "2s", "idle": "0.3s", "total": "5s"}
        plan = {
            "keys": "keys.json",
            "limits": LIMITS,
            "backends": [backend("b", server.url), backend("hasty", server.url, timeouts=hasty)],
        }
        with gateway(directory, plan) as running:
            yield World(running, server, key, other)


@pytest.fixture(autouse=True)
def nothing_left(world: World) -> Iterator[None]:
    """After every test nothing is under way, whatever it did."""
    yield
    until(lambda: world.server.seen.under_way == 0, "the end of what was asked of the backend")
    until(lambda: all(one["in_flight"] == one["queued"] == 0 for one in world.running.state()["backends"]), "zero")


def refused_with(world: World, sent: bytes, status: int) -> None:
    before = world.server.seen.requests
    assert statuses(world.running.raw(sent)) == [status]
    assert world.server.seen.requests == before


def test_bodies(world: World) -> None:
    for size, status in ((64 * 1024 - 40, 200), (64 * 1024 + 1, 413)):
        body = json.dumps({"model": "b", "x": "y" * (size - 23)}).encode()
        assert world.running.ask(body, key=world.key)[0] == status, len(body)
    refused_with(world, world.request("content-length: 99999999999"), 413)
    refused_with(world, world.request("content-length: 99999999999999999999999999999"), 400)
    chunks = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    refused_with(world, world.request("transfer-encoding: chunked", body=chunks * 3), 413)


def test_heads(world: World) -> None:
    refused_with(world, world.request("x: " + "y" * 9000, "content-length: 0"), 431)
    refused_with(world, world.request(*[f"x-{k}: y" for k in range(500)], "content-length: 0"), 431)
    refused_with(world, b"POST /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: h\r\n\r\n", 431)


def test_depth(world: World) -> None:
    def nested(depth: int) -> bytes:
        return b'{"model": "b", "x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert world.running.ask(nested(16), key=world.key)[0] == 200
    before = world.server.seen.requests
    assert world.running.ask(nested(17), key=world.key)[0] == 400
    assert world.running.ask(b'{"model": "b", "x": ' + b"[" * 60_000, key=world.key)[0] == 400
    assert world.running.ask(b'{"x":' * 10_000, key=world.key)[0] == 400
    assert world.server.seen.requests == before


@pytest.mark.parametrize(
    "lines",
    [
        ["content-length: 14", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 14"],
        ["content-length: 14", "content-length: 15"],
        ["content-length: 14", "content-length: 14"],
        ["content-length: 14, 14"],
        ["content-length: +14"],
        ["content-length: 0x0e"],
        ["content-length: 1 4"],
        ["content-length: -1"],
        ["content-length : 14"],
        ["transfer-encoding: chunked, identity"],
        ["transfer-encoding: identity"],
        ["transfer-encoding: xchunked"],
        ["transfer-encoding: chunked", "transfer-encoding: chunked"],
        ["transfer-encoding:\x0bchunked"],
        ["x: 1\r\n content-length: 14"],
        ["host: second", "content-length: 14"],
        ["x: a\x00b", "content-length: 14"],
    ],
)
def test_what_two_servers_could_read_differently(world: World, lines: list[str]) -> None:
    """A second request is hidden behind the first; it must not come out."""
    hidden = world.request("content-length: 14", "connection: close")
    before = world.server.seen.requests
    found = statuses(world.running.raw(world.request(*lines, body=b'{"model": "b"}' + hidden)))
    assert found == [400], lines
    assert world.server.seen.requests == before


def test_headers_between_two_stay_between_them(world: World) -> None:
    sent = world.request(
        "content-length: 14", "connection: close, x-hop, content-type", "x-hop: 1", "te: trailers", "trailer: x",
        "keep-alive: timeout=9", "proxy-connection: keep-alive", "upgrade: h2c", "content-type: application/json",
    )  # fmt: skip
    assert statuses(world.running.raw(sent)) == [200]
    got = world.server.seen.headers[-1]
    assert not {"x-hop", "te", "trailer", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"} & set(got)
    for name in ("odd_headers", "trailers", "interim"):
        for stream in (False, True):
            body = json.dumps({"model": "b", "chaos": name, "stream": stream}).encode()
            answer = world.running.raw(world.request(f"content-length: {len(body)}", "connection: close", body=body))
            head = answer.partition(b"\r\n\r\n")[0].lower()
            assert statuses(answer) == [200]
            for line in (b"x-hop", b"keep-alive:", b"alt-svc", b"set-cookie", b"link:", b"trailer:"):
                assert line not in head
            assert b"x-leak" not in answer


def test_streams_a_key(world: World) -> None:
    """The fourth is refused, another key's is not, and a place comes back when one ends."""
    body = b'{"model": "b", "stream": true, "chaos": "stall_mid_body"}'
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(world.running.connect())) for _ in range(3)]
        for client in clients:
            client.sendall(world.request(f"content-length: {len(body)}", body=body))
            assert client.recv(12) == b"HTTP/1.1 200"
        status, headers, _ = world.running.ask({"model": "b"}, key=world.key)
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert world.running.ask({"model": "b"}, key=world.other)[0] == 200
        clients[0].close()
        until(lambda: world.running.ask({"model": "b"}, key=world.key)[0] == 200, "a free place")


def test_connections(world: World) -> None:
    """Idle ones make room, those at work do not; one address leaves half to others. On the admin page as well."""
    with contextlib.ExitStack() as stack:
        for port in (world.running.port, world.running.admin_port):
            for _ in range(100):
                stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port))))
        assert world.running.ask({"model": "b"}, key=world.key)[0] == 200
        assert world.running.admin("/metrics")[0] == 200
    sent = world.request("content-length: 14", body=b'{"mod')

    def refused() -> bool:
        with contextlib.ExitStack() as stack:
            for _ in range(LIMITS["connections"] // 2):  # type: ignore[operator]
                stack.enter_context(contextlib.closing(world.running.connect())).sendall(sent)
            here = _first_line(world)
            there = _first_line(world, "127.0.0.2")
        return here.startswith(b"HTTP/1.1 503") and there.startswith(b"HTTP/1.1 200")

    until(refused, "a refusal")
    until(lambda: world.running.ask({"model": "b"}, key=world.key)[0] == 200, "a free connection")


def test_whoever_has_no_key_makes_nobody_keep_a_body(world: World) -> None:
    """The head is answered; what comes behind it is neither waited for nor kept."""
    before = world.server.seen.requests
    for line in ("content-length: 60000", "transfer-encoding: chunked", "expect: 100-continue\r\ncontent-length: 9"):
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{line}\r\n\r\n".encode()
        with contextlib.closing(world.running.connect()) as client:
            client.sendall(head)
            assert client.recv(12) == b"HTTP/1.1 401"
    for path, method, status in (("/v1/other", "POST", 404), (CHAT, "PUT", 405), ("/health", "POST", 405)):
        head = f"{method} {path} HTTP/1.1\r\nhost: h\r\nx-api-key: {world.key}\r\ncontent-length: 60000\r\n\r\n"
        with contextlib.closing(world.running.connect()) as client:
            client.sendall(head.encode())
            assert client.recv(12) == b"HTTP/1.1 %d" % status
    assert world.server.seen.requests == before


def test_keys_of_a_body(world: World) -> None:
    body = {"model": "b", **{f"k{n}": n for n in range(30)}}
    assert world.running.ask(body, key=world.key)[0] == 200
    body |= {f"m{n}": n for n in range(10)}
    status, _, answer = world.running.ask(body, key=world.key)
    assert (status, json.loads(answer)["error"]["code"]) == (400, "too_many_keys")


def _first_line(world: World, address: str = "127.0.0.1") -> bytes:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", world.running.port), timeout=10, source_address=(address, 0)) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        return read_all(client)
    return b""


def test_a_slow_client_gets_408(world: World) -> None:
    before = world.server.seen.requests
    for sent in (b"POST /v1/", world.request("content-length: 14", body=b'{"mod')):
        with contextlib.closing(world.running.connect()) as client:
            client.sendall(sent)
            assert statuses(read_all(client)) == [408]
    assert world.server.seen.requests == before


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_takes_nothing_is_dropped_and_its_backend_let_go(world: World, stream: str) -> None:
    """What it does not take is not collected here either: the backend is read no faster than the client."""
    body = b'{"model": "b", "chaos": "huge_body", "stream": %s}' % stream.encode()
    before = len(world.running.records())
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.closing(client):
        client.connect(("127.0.0.1", world.running.port))
        client.sendall(world.request(f"content-length: {len(body)}", body=body))
        until(lambda: any(one["status"] == 499 for one in world.running.records()[before:]), "the end of it")


@pytest.mark.parametrize(("fault", "stream", "status"), [("stall", False, 504), ("stall", True, 504)])
def test_a_silent_backend_is_given_up(world: World, fault: str, stream: bool, status: int) -> None:
    asked = {"model": "hasty", "chaos": fault, "stream": stream}
    assert world.running.ask(asked, key=world.key)[0] == status


def test_a_backend_that_stops_in_the_middle_is_seen_as_cut(world: World) -> None:
    body = b'{"model": "hasty", "chaos": "stall_mid_body", "stream": true}'
    answer = world.running.raw(world.request(f"content-length: {len(body)}", body=body))
    assert statuses(answer) == [200]
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in answer


def test_an_answer_without_end_is_cut(world: World) -> None:
    body = b'{"model": "b", "chaos": "huge_body"}'
    answer = world.running.raw(world.request(f"content-length: {len(body)}", body=body))
    assert 15 * 2**20 < len(answer) < 17 * 2**20
    assert not answer.endswith(b"0\r\n\r\n")


def test_a_head_without_end_is_refused(world: World) -> None:
    for fault in ("endless_header", "huge_headers"):
        status = world.running.ask({"model": "hasty", "chaos": fault}, key=world.key)[0]
        assert status in (200, 502, 504), fault


ODD = (10**30, 2**63, 2**62, 10**9, -5, -(10**30), 0)


def test_numbers_of_a_backend_are_no_more_believed_than_they_can_be(tmp_path: Path) -> None:
    """Its counts of tokens and its page: a broken one must not stop the gateway, give credit, or keep a place."""
    key = store.create(
        tmp_path / "keys.json", "anna", limits=(parse_limit("1000 usd/day"), parse_limit("1M tokens/day"))
    )
    api = {"api": {"input": 1, "cached_input": 0.1, "output": 2, "date": "2026"}}
    step_model = {"model": "qwen3-14b", "machine": "h100-sxm", "price": {"rented": {"usd_per_hour": 2}}}
    with ChaosServer() as server:
        entries = [
            backend("api", server.url, price=api),
            backend("own", server.url, **step_model),
            backend("polled", server.url, **{**step_model, "poll": True}),
        ]
        policies = [{"model": name, "policy": name} for name in ("fastest", "cheapest", "spill", "weighted")]
        plan = {"keys": "keys.json", "backends": entries, "policies": policies, "limits": {"streams_per_key": 2}}
        with gateway(tmp_path, plan) as running:
            count = 0
            for odd in ODD:
                server.settings["prompt_tokens"] = odd
                for model in ("api", "own"):
                    for stream in (False, True):
                        assert running.ask({"model": model, "stream": stream, "max_tokens": 2}, key=key)[0] == 200
                        count += 1
            until(lambda: len(running.records()) == count, "a record of each")
            told = next(one for one in running.state()["keys"] if one["name"] == "anna")
            assert told["requests"] == count
            assert told["tokens"] >= 2 * count, "what it says it took less than nothing for is not given back"
            assert told["usd"] > 0
            server.settings["prompt_tokens"] = 7
            for page in ("1e308", "-1e308"):
                server._metrics = lambda page=page: (  # type: ignore[method-assign]
                    f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {page}\n"
                    f"# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred {page}\n"
                )
                polls = server.seen.polls
                until(lambda polls=polls: server.seen.polls >= polls + 2, "two polls")
                for model in ("fastest", "cheapest", "spill", "weighted", "polled"):
                    assert running.ask({"model": model, "max_tokens": 2}, key=key)[0] == 200, (page, model)
                assert running.admin()[0] == running.admin("/metrics")[0] == 200
            assert "Traceback" not in running.complaints
