"""Property 2: every route by every wrong credential and every way to write its path is 401, 403 or 404.

The tables are made from the lists of routes that the code itself serves from. More on the admin listener:
test_gateway_admin.py. What the HTTP parser refuses before any route is looked at: test_gateway_edge_parse.py.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Iterator

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, statuses

from breakeven.gateway.keys import store
from breakeven.gateway.live.admin import ROUTES as ADMIN_ROUTES
from breakeven.gateway.plan.reach import ENDPOINTS

BODY = b'{"model": "b", "messages": []}'
ROUTES = [("POST", path) for path in ENDPOINTS] + [("GET", "/v1/models"), ("GET", "/v1/models/b")]
ADMIN_SECRET = "admin-secret-of-this-test"
OTHER_WAYS = {
    "doubled slash": lambda path: "/" + path,
    "doubled inside": lambda path: path.replace("/v1/", "/v1//"),
    "dot segment": lambda path: path.replace("/v1/", "/v1/./"),
    "dot dot": lambda path: "/health/.." + path,
    "dot dot behind": lambda path: path + "/../" + path.rpartition("/")[2],
    "encoded slash": lambda path: path.replace("/v1/", "/v1%2f"),
    "all slashes encoded": lambda path: "/" + path[1:].replace("/", "%2F"),
    "encoded letter": lambda path: path.replace("v", "%76", 1),
    "encoded dots": lambda path: "/x/%2e%2e" + path,
    "absolute twice": lambda path: "http://127.0.0.1/http://127.0.0.1" + path,
    "absolute of another kind": lambda path: "ftp://127.0.0.1" + path,
    "upper case": lambda path: path.upper(),
    "trailing slash": lambda path: path + "/",
    "encoded end": lambda path: path + "%00",
    "parameter": lambda path: path + ";x=/health",
    "backslash": lambda path: path.replace("/v1/", "/v1\\"),
    "below health": lambda path: "/health" + path,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, ChaosServer, dict[str, str]]]:
    """A gateway with keys, its backend, and secrets by name."""
    directory = tmp_path_factory.mktemp("routes")
    keys = directory / "keys.json"
    secrets = {
        "right": store.create(keys, "right"),
        "other models": store.create(keys, "narrow", models=("nothing-here",)),
        "revoked": store.create(keys, "revoked"),
        "expired": store.create(keys, "expired", expires=time.time() - 1.0),
        "admin": store.create(keys, "boss", admin=True),
    }
    store.revoke(keys, "revoked")
    with ChaosServer() as server:
        plan = {"backends": [backend("b", server.url)], "keys": "keys.json"}
        environ = {"BREAKEVEN_ADMIN_SECRET": ADMIN_SECRET}
        with gateway(directory, plan, environ=environ) as running:
            yield running, server, secrets


def wrong_credentials(secrets: dict[str, str]) -> dict[str, list[str]]:
    """Header lines that open nothing."""
    right = secrets["right"]
    return {
        "none": [],
        "wrong": ["authorization: Bearer bek-wrong"],
        "one letter off": [f"authorization: Bearer {right[:-1]}{'a' if right[-1] != 'a' else 'b'}"],
        "longer": [f"authorization: Bearer {right}x"],
        "empty": ["authorization: Bearer "],
        "no scheme": [f"authorization: {right}"],
        "basic": ["authorization: Basic " + base64.b64encode(f"right:{right}".encode()).decode()],
        "digest on disk": ["authorization: Bearer " + store.digest_of(right.encode()).hex()],
        "revoked": [f"authorization: Bearer {secrets['revoked']}"],
        "expired": [f"x-api-key: {secrets['expired']}"],
        "wrong before right": ["authorization: Bearer bek-wrong", f"x-api-key: {right}"],
        "cookie": [f"cookie: authorization=Bearer {right}; api_key={right}; breakeven_admin={right}"],
        "other headers": [f"proxy-authorization: Bearer {right}", f"x-goog-api-key: {right}", f"x-auth: {right}"],
        "wrong before right, as Azure sends it": ["x-api-key: bek-wrong", f"api-key: {right}"],
        "a scheme in Azure's": [f"api-key: Bearer {right}"],
        "admin secret": [f"authorization: Bearer {ADMIN_SECRET}"],
    }


def request(method: str, target: str, lines: list[str], host: str = "127.0.0.1") -> bytes:
    body = BODY if method == "POST" else b""
    top = [f"{method} {target} HTTP/1.1", f"host: {host}", "connection: close", f"content-length: {len(body)}", *lines]
    return ("\r\n".join(top) + "\r\n\r\n").encode() + body


def test_no_route_opens_to_a_wrong_credential(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    running, server, secrets = world
    before = server.seen.requests
    for method, path in ROUTES:
        for name, lines in wrong_credentials(secrets).items():
            for host in ("127.0.0.1", "evil.example", "localhost@evil.example"):
                for target in (path, f"{path}?api_key={secrets['right']}&key={secrets['right']}"):
                    found = statuses(running.raw(request(method, target, lines, host)))
                    expected = [400] if "@" in host else [401]
                    assert found == expected, (method, target, name, host)
    assert server.seen.requests == before


def test_no_other_spelling_reaches_a_route(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    """Whatever the credential: a spelling that some proxy before us lets through must not mean a route to us."""
    running, server, secrets = world
    before = server.seen.requests
    credentials = {"right": [f"authorization: Bearer {secrets['right']}"], "none": []}
    for method, path in ROUTES:
        for way, spell in OTHER_WAYS.items():
            for name, lines in credentials.items():
                target = spell(path)
                if target == path:
                    continue
                found = statuses(running.raw(request(method, target, lines)))
                assert found in ([404], [401]), (method, target, way, name)
                if name == "right":
                    assert found == [404], (method, target, way)
    assert server.seen.requests == before


def test_other_methods_are_refused_after_the_key(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    running, server, secrets = world
    before = server.seen.requests
    right = [f"authorization: Bearer {secrets['right']}"]
    for method, path in ROUTES:
        for other in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            if other == method or (method == "GET" and other == "HEAD"):
                continue
            assert statuses(running.raw(request(other, path, []))) == [401], (other, path)
            assert statuses(running.raw(request(other, path, right))) == [405], (other, path)
    assert server.seen.requests == before


def test_a_key_for_other_models_finds_none_of_these(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    running, server, secrets = world
    before = server.seen.requests
    for _, path in ROUTES:
        if path == "/v1/models":
            assert b'"data":[]' in running.ask(path=path, key=secrets["other models"])[2]
            continue
        body = BODY if path in ENDPOINTS else None
        refused = running.ask(body, path=path, key=secrets["other models"])
        other = BODY.replace(b'"b"', b'"c"') if body else None
        unknown = running.ask(other, path=path if body else "/v1/models/c", key=secrets["right"])
        assert refused[0] == unknown[0] == 404
        # Which models there are is not told by how the refusal is worded.
        assert refused[2].replace(b"'b'", b"'c'") == unknown[2]
    assert server.seen.requests == before


def test_the_right_key_opens_every_route(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    """Or the tests above would show nothing."""
    running, server, secrets = world
    before = server.seen.requests
    for method, path in ROUTES:
        for lines in (
            [f"authorization: Bearer {secrets['right']}"],
            [f"x-api-key: {secrets['right']}"],
            [f"api-key: {secrets['right']}"],
        ):
            assert statuses(running.raw(request(method, path, lines))) == [200], path
    assert server.seen.requests == before + 3 * len(ENDPOINTS)
    for path in ("/health", "/ready"):
        assert statuses(running.raw(request("GET", path, []))) == [200]


def test_an_absolute_target_is_its_path_at_its_own_host(
    world: tuple[Gateway, ChaosServer, dict[str, str]], open_gateway: tuple[Gateway, ChaosServer]
) -> None:
    """RFC 9112, 3.2.2: the target's host goes before `Host`, so that neither opens what the other would not."""
    running, server, secrets = world
    right = [f"authorization: Bearer {secrets['right']}"]
    for method, path in ROUTES:
        sent = [request(method, f"http://127.0.0.1{path}", lines) for lines in (right, [])]
        assert [statuses(running.raw(one)) for one in sent] == [[200], [401]], path
    before = server.seen.requests
    assert statuses(running.raw(request("POST", "http://a@127.0.0.1/v1/chat/completions", right))) == [400]
    assert statuses(running.raw(request("POST", "http:///v1/chat/completions", right))) in ([400], [404])
    assert server.seen.requests == before
    unasked, its_server = open_gateway
    before = its_server.seen.requests
    for method, path in ROUTES:
        assert statuses(unasked.raw(request(method, f"http://evil.example{path}", []))) == [403], path
        assert statuses(unasked.raw(request(method, f"HTTP://evil.example:80{path}", [], "localhost"))) == [403], path
    assert its_server.seen.requests == before
    assert statuses(unasked.raw(request("GET", "http://localhost:1/v1/models?x", [], "evil.example"))) == [200]


def test_azures_paths_are_no_way_around(
    world: tuple[Gateway, ChaosServer, dict[str, str]], open_gateway: tuple[Gateway, ChaosServer]
) -> None:
    running, server, secrets = world
    right = [f"api-key: {secrets['right']}"]
    version = "?api-version=2024-10-21"
    before = server.seen.requests
    for path in ENDPOINTS:
        rest = path.removeprefix("/v1/")
        for target in (f"/openai/deployments/b/{rest}", f"/openai/v1/{rest}", f"/openai/{rest}"):
            found = [statuses(running.raw(request("POST", target + version, lines))) for lines in (right, [])]
            assert found == [[200], [401]], target
            assert statuses(open_gateway[0].raw(request("POST", target, [], "evil.example"))) == [403], target
    assert server.seen.requests == before + 3 * len(ENDPOINTS)
    for target in (
        "/openai/deployments/b", "/openai/deployments//chat/completions", "/openai/deployments/b/../chat/completions",
        "/openai/deployments/%62%00/chat/completions", "/openai//chat/completions", "/openai/v1/v1/chat/completions",
        "/openai/deployments/b%2Fchat/completions", "/OPENAI/v1/chat/completions",
    ):  # fmt: skip
        assert statuses(running.raw(request("POST", target, right))) == [404], target
    assert server.seen.requests == before + 3 * len(ENDPOINTS)


def test_the_admin_listener_by_the_same_table(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    running, _, secrets = world
    wrong = {
        **{name: lines for name, lines in wrong_credentials(secrets).items() if name != "admin secret"},
        "a client's key": [f"authorization: Bearer {secrets['right']}"],
    }
    closed = [path for path in ADMIN_ROUTES if path not in ("/health", "/login")]
    guesses = itertools.count()
    for path in closed:
        for name, lines in wrong.items():
            for host in ("127.0.0.1", "evil.example"):
                # From another address after three, because whoever guesses on is answered later and later.
                source = 2 + next(guesses) // 3 % 250
                answer = running.raw(request("GET", path, lines, host), running.admin_port, source=source)
                assert statuses(answer) == [401], (path, name, host)
                assert b"breakeven.gateway/1" not in answer
        for way, spell in OTHER_WAYS.items():
            target = spell(path) if "/v1/" in path else {"doubled slash": "/" + path}.get(way, "ftp://127.0.0.1" + path)
            sent = request("GET", target, [f"authorization: Bearer {ADMIN_SECRET}"])
            assert statuses(running.raw(sent, running.admin_port)) == [404], (target, way)
    for key in (ADMIN_SECRET, secrets["admin"]):
        for path in closed:
            sent = request("GET", path, [f"authorization: Bearer {key}"])
            assert statuses(running.raw(sent, running.admin_port)) == [200], path


def test_the_listeners_have_none_of_each_others_routes(world: tuple[Gateway, ChaosServer, dict[str, str]]) -> None:
    running, server, secrets = world
    before = server.seen.requests
    for path in ADMIN_ROUTES:
        if path != "/health":
            for key in (ADMIN_SECRET, secrets["admin"], secrets["right"]):
                sent = request("GET", path, [f"authorization: Bearer {key}"])
                assert statuses(running.raw(sent)) in ([404], [401]), path
    for method, path in ROUTES:
        sent = request(method, path, [f"authorization: Bearer {ADMIN_SECRET}"])
        assert statuses(running.raw(sent, running.admin_port)) == [404], path
    assert server.seen.requests == before


@pytest.fixture(scope="module")
def open_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, ChaosServer]]:
    """A gateway that asks for no key."""
    directory = tmp_path_factory.mktemp("open")
    with ChaosServer() as server:
        plan = {"backends": [backend("b", server.url)], "origins": ["vscode-webview://ABC"]}
        with gateway(directory, plan) as running:
            yield running, server


@pytest.mark.parametrize(
    "lines",
    [
        ["host: evil.example"],
        ["host: 127.0.0.1.evil.example"],
        ["host: localhost.evil.example:8000"],
        ["host: 192.168.0.1"],
        ["host: 0.0.0.0"],
        ["host:"],
        ["host: 127.0.0.1", "origin: http://evil.example"],
        ["host: 127.0.0.1", "origin: https://127.0.0.1.evil.example"],
        ["host: 127.0.0.1", "origin: null"],
        ["host: 127.0.0.1", "origin: HTTP://EVIL.EXAMPLE"],
        ["host: 127.0.0.1", "origin: file://"],
        ["host: 127.0.0.1", "origin: ftp://127.0.0.1"],
        ["host: 127.0.0.1", "origin: chrome-extension://abc"],
    ],
)
def test_without_keys_no_page_of_the_web_gets_through(
    open_gateway: tuple[Gateway, ChaosServer], lines: list[str]
) -> None:
    """A name that was pointed at this machine (DNS rebinding), or a form that needs no answer."""
    running, server = open_gateway
    before = server.seen.requests
    for method, path in ROUTES:
        body = BODY if method == "POST" else b""
        top = [f"{method} {path} HTTP/1.1", "connection: close", "content-type: text/plain", *lines]
        sent = ("\r\n".join([*top, f"content-length: {len(body)}"]) + "\r\n\r\n").encode() + body
        assert statuses(running.raw(sent)) == [403], path
    assert server.seen.requests == before


@pytest.mark.parametrize(
    "lines",
    [
        ["host: localhost:1234"],
        ["host: LOCALHOST"],
        ["host: [::1]:8000"],
        ["host: 127.9.9.9"],
        ["host: 127.0.0.1", "origin: http://localhost:3000"],
        ["host: 127.0.0.1", "origin: vscode-webview://abc"],
    ],
)
def test_without_keys_this_machine_gets_through(open_gateway: tuple[Gateway, ChaosServer], lines: list[str]) -> None:
    running, _ = open_gateway
    sent = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "connection: close", *lines, "content-length: 30"])
    assert statuses(running.raw(sent.encode() + b"\r\n\r\n" + BODY)) == [200]
