"""Fuzz of a whole gateway over its sockets: bytes, bodies, streams, and every operation of its OpenAPI description.

Whatever comes in, each request has one well-formed answer or a closed connection, and the processes that began go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from chaos_server import ChaosServer
from gateway_edge_fixtures import replies
from gateway_property_fixtures import CHAT, JSON_TYPE, Gateway, backend, gateway, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.reach import ENDPOINTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "openapi.yaml"
PATHS = (*ENDPOINTS, "/v1/models", "/v1/models/b", "/health", "/ready", "/", "*", "/v1/models/é", "http://x/v1/models")
MODELS = ("b", "breakeven", "gone", "")
TIMES = int(os.environ.get("BREAKEVEN_FUZZ", "1"))
"""How many times as many examples: 50 takes minutes."""
slow = settings(max_examples=100 * TIMES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


class World:
    def __init__(self, running: Gateway, server: ChaosServer) -> None:
        self.running, self.server = running, server
        self.began = running.workers()
        self.most_bytes = 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("fuzz")
    with ChaosServer(chunks=3, huge_bytes=2**20) as server:
        wait = {"connect": "20s", "first_byte": "20s", "idle": "20s", "total": "60s"}
        plan = {
            "limits": {
                "read": "5s",
                "idle": "5s",
                "body": "256KiB",
                "bodies": "1MiB",
                "connections": 40,
                "response": "4MiB",
            },
            "backends": [
                backend("b", server.url, timeouts=wait),
                backend("again", server.url, timeouts=wait),
                backend("gone", "http://127.0.0.1:1"),
            ],
            "policies": [{"model": "breakeven", "backends": ["b", "again"], "hedge": {"share": "10%"}}],
        }
        with gateway(directory, plan) as running:
            yield World(running, server)


@pytest.fixture(autouse=True)
def it_lives(world: World) -> Iterator[None]:
    """After each test: the same processes, nothing under way, no traceback, and it still answers."""
    yield
    assert world.running.ask(path="/health")[0] == 200
    until(lambda: all(one["in_flight"] == one["queued"] == 0 for one in world.running.state()["backends"]), "zero")
    assert world.running.workers() == world.began
    assert "Traceback" not in world.running.complaints
    assert "could not be handled" not in world.running.complaints


def check(data: bytes, most: int) -> None:
    """What the gateway sent is HTTP as a client's parser reads it: at most so many answers, all but the last whole."""
    found = replies(data)
    assert len(found) <= most
    assert all(reply.whole for reply in found[:-1])
    for reply in found:
        assert 200 <= reply.status <= 599
        if reply.status >= 400 and reply.body and reply.headers.get(b"content-type") == b"application/json":
            assert set(json.loads(reply.body)) == {"error"}


tokens = st.sampled_from(
    ["content-length", "transfer-encoding", "connection", "host", "expect", "upgrade", "authorization", "content-type",
     "x-breakeven-ttft-ms", "x-breakeven-tpot-ms", "x-breakeven-max-usd", "x-breakeven-session", "x", "te", ":path"]
)  # fmt: skip
values = st.one_of(
    st.sampled_from(
        ["0", "5", "-1", "1e9", "nan", "inf", "chunked", "close", "keep-alive", "100-continue", "h2c", "\x00"]
    ),
    st.integers(-(2**70), 2**70).map(str),
    st.text(st.characters(codec="latin-1"), max_size=20),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Something near a request, with one of everything that makes requests go wrong."""
    method = draw(st.sampled_from(["GET", "POST", "DELETE", "PUT", "OPTIONS", "CONNECT", "PRI", "", "get", "P\x00ST"]))
    path = draw(st.sampled_from(PATHS) | st.text(st.characters(codec="latin-1"), max_size=10))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0", "2.0", "0.9", "9", ""]))
    body = draw(st.binary(max_size=60) | st.sampled_from([b'{"model": "b"}', b'{"model": "b", "stream": true}']))
    lines = [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(tokens, values), max_size=4))]
    if draw(st.booleans()):
        lines.append("host: localhost")
    if draw(st.booleans()):
        lines.append(f"content-length: {len(body)}")
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"]))
    return (end.join([f"{method} {path} HTTP/{version}", *lines]) + end + end).encode("latin-1", "replace") + body


@slow
@given(
    sent=st.lists(requests() | st.binary(max_size=40), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 200), max_size=3),
)
def test_any_bytes_on_a_connection(world: World, sent: list[bytes], cuts: list[int]) -> None:
    last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    whole = b"".join(sent) + last
    with world.running.connect() as client:
        start = 0
        try:
            for cut in [*sorted(cuts), len(whole)]:
                client.sendall(whole[start:cut])
                start = max(start, cut)
        except OSError:
            return  # it refused, and closed: what it said is lost with the rest
        got = b""
        client.settimeout(0.1)  # where the end was taken for a part of a body, more is waited for
        try:
            while piece := client.recv(65536):
                got += piece
        except TimeoutError:
            pass
        except ConnectionError:
            return
    check(got, whole.count(b"HTTP/") + 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {"model": st.sampled_from(MODELS) | json_values},
    optional={
        name: st.sampled_from([True, False, None, 0, -1, 2**70, "", "true", [], {"include_usage": True}]) | json_values
        for name in ("stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "user",
                     "prompt_cache_key", "messages", "prompt", "input", "system", "instructions", "tools", "n")
    },
)  # fmt: skip


@slow
@given(body=fields, path=st.sampled_from(ENDPOINTS), ttft=values, tpot=values)
def test_any_fields_in_a_body(world: World, body: dict[str, object], path: str, ttft: str, tpot: str) -> None:
    headers = {"x-breakeven-ttft-ms": ttft, "x-breakeven-tpot-ms": tpot}
    headers = {name: value for name, value in headers.items() if value.isprintable() and value.strip() == value}
    status, told, answer = world.running.ask(body, headers, path=path)
    assert status in (200, 400, 404, 429, 502, 503), answer
    if status != 200:
        assert set(json.loads(answer)) == {"error"}
    else:
        assert told["x-breakeven-backend"] in ("b", "again")


@slow
@given(body=st.binary(max_size=80) | st.text(max_size=40).map(lambda text: b'{"model": "b", "x": ' + text.encode()))
def test_any_bytes_as_a_body(world: World, body: bytes) -> None:
    status, _, answer = world.running.ask(body)
    assert status in (200, 400, 404)
    if status != 200:
        assert set(json.loads(answer)) == {"error"}


@settings(slow, max_examples=40 * TIMES)
@given(
    faults=st.lists(
        st.sampled_from(["ok", "garbage", "garbage_mid_body", "truncate", "reset_mid_body", "second_answer",
                         "no_length", "interim", "trailers", "odd_headers", "endless_header", "huge_headers", "429",
                         "500", "400", "no_finish", "no_done", "redirect", "switching", "close_before_head",
                         "closes_after"]),
        min_size=1, max_size=3,
    ),
    stream=st.booleans(),
    model=st.sampled_from(["b", "breakeven"]),
    path=st.sampled_from(ENDPOINTS[:2]),
)  # fmt: skip
def test_any_answer_of_a_backend(world: World, faults: list[str], stream: bool, model: str, path: str) -> None:
    """Pipelined, so that a piece of one answer that went astray would be read as another."""
    sent = b""
    for k, fault in enumerate(faults):
        body = json.dumps({"model": model, "stream": stream, "chaos": fault, "chaos_id": f"id{k}z"}).encode()
        top = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        sent += (top + ("connection: close\r\n" if k + 1 == len(faults) else "") + "\r\n").encode() + body
    got = world.running.raw(sent)
    check(got, len(faults))
    for k, reply in enumerate(replies(got)):
        assert not any(f"id{other}z".encode() in reply.body for other in range(len(faults)) if other != k)


def head(path: str, *lines: str, host: str = "localhost") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"host: {host}", *lines, "", ""]).encode()


LARGE = b'{"model": "b", "x": "' + b"y" * 150_000 + b'"}'
CROWD = {
    "nothing": b"",
    "half a head": head(CHAT)[:-9],
    "a body for nobody": head("/v1/none", "content-length: 250000") + b"x" * 200_000,
    "a body from a stranger": head(CHAT, "content-length: 9", host="evil.example") + b"x" * 5,
    "an invitation refused": head(CHAT, "expect: 100-continue", "content-length: 250000", host="evil.example"),
    "an invitation": head(CHAT, "expect: 100-continue", f"content-length: {len(LARGE)}"),
    "half a large body": head(CHAT, f"content-length: {len(LARGE)}") + LARGE[:-9],
    "a large body": head(CHAT, f"content-length: {len(LARGE)}") + LARGE,
    "many keys": head(CHAT, "content-length: 200000") + b'{"model":"b"' + b',"a":0' * 31_250 + b"}" + b" " * 487,
    "many values": head(CHAT, "content-length: 250000") + b'{"x":[' + b"[]," * 80_000 + b"0]}" + b" " * 9991,
    "crumbs": head(CHAT, "transfer-encoding: chunked") + b"1;x=" + b"y" * 50 + b"\r\nx\r\n",
    "an endless extension": head(CHAT, "transfer-encoding: chunked") + b"1;x=" + b"y" * 100_000,
    "an endless trailer": head(CHAT, "transfer-encoding: chunked") + b"1\r\n{\r\n0\r\nx: " + b"y" * 100_000,
    "upgrades": b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 300,
    "pipelined": b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 300,
    "line ends": b"\r\n" * 2000,
}


@settings(slow, max_examples=15 * TIMES)
@given(
    crowd=st.lists(
        st.tuples(
            st.sampled_from(sorted(CROWD)), st.integers(2, 4), st.sampled_from(["stay", "close", "end", "read", "cut"])
        ),
        min_size=1,
        max_size=60,
    )
)
def test_a_crowd_that_wants_everything(world: World, crowd: list[tuple[str, int, str]]) -> None:
    """Whatever others hold, ask and leave behind, somebody from elsewhere is served, and memory stays where it was."""
    port = world.running.port
    with contextlib.ExitStack() as stack:
        for what, address, then in crowd:
            client = socket.create_connection(("127.0.0.1", port), 10, (f"127.0.0.{address}", 0))
            stack.enter_context(client)
            client.settimeout(0.02)
            with contextlib.suppress(OSError):
                client.sendall(CROWD[what][: len(CROWD[what]) // 2] if then == "cut" else CROWD[what])
                if then == "end":
                    client.shutdown(socket.SHUT_WR)
                elif then == "read":
                    check(client.recv(1 << 20).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"), 400)
            if then == "close":
                client.close()
        assert world.running.ask({"model": "b"})[0] == 200
    held = sum(psutil.Process(pid).memory_info().rss for pid in world.running.workers())
    world.most_bytes = world.most_bytes or held + 64 * 2**20
    assert held < world.most_bytes


def test_every_operation_of_the_description(world: World) -> None:
    """Schemathesis makes requests from docs/openapi.yaml, right and wrong ones, and holds the answers against it."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_dict(yaml.safe_load(PAGE.read_text(encoding="utf-8")))
    url = f"http://127.0.0.1:{world.running.port}"
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=8 * TIMES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def holds(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and "model" in case.body and len(str(case.body["model"])) % 2:
                case.body["model"] = "b"
            response = case.call(base_url=url, headers=JSON_TYPE if case.body else None, timeout=20)
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    schemathesis.specs.openapi.checks.status_code_conformance,
                    schemathesis.specs.openapi.checks.content_type_conformance,
                    schemathesis.specs.openapi.checks.response_schema_conformance,
                ],
            )

        holds()
        tried.add(operation.label)
    assert len(tried) == len(ENDPOINTS) + 4


def test_a_million_brackets_and_a_thousand_headers(world: World) -> None:
    assert world.running.ask(b'{"model": "b", "x": ' + b"[" * 200_000)[0] == 400
    assert world.running.ask(b"[" * 200_000)[0] == 400
    assert world.running.ask(LARGE)[0] == 200
    assert world.running.ask(LARGE[:-1])[0] == world.running.ask(LARGE.replace(b"model", b"modal"))[0] == 400
    status, _, answer = world.running.ask(LARGE.replace(b'"b"', b'"none"'))
    assert (status, json.loads(answer)["error"]["code"]) == (404, "model_not_found")
    assert world.running.ask(b'{"a":' * 40_000, path=CHAT)[0] == 400
    assert world.running.ask(b'{"model": "' + b"\\u0000" * 1000 + b'"}')[0] == 404
    assert world.running.ask(b'{"model": "b", "max_tokens": ' + b"9" * 5000 + b"}")[0] in (200, 400)
