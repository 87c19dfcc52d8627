"""Property 3: a client's credentials and cookies never reach a backend; a backend's key reaches nobody else.

Canary strings are put everywhere a secret can stand, and everything that comes out is searched for them. What the
client of backends sends by itself: test_gateway_upstream_security.py. Traces: test_gateway_seen.py.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
from chaos_server import BEHAVIOURS, ChaosServer
from gateway_property_fixtures import Gateway, backend, echo, gateway, until
from hypothesis import given
from hypothesis import strategies as st

from breakeven.gateway.keys import store
from breakeven.gateway.plan.reach import ENDPOINTS
from breakeven.gateway.serve.opening import Scrub, headers_without

BACKEND_KEY = "canary-of-the-backend-7f3a9c"
ECHOED_KEY = "canary-of-the-echo-51bb02"
COOKIE = "canary-of-the-cookie-9912ef"
ADMIN = "canary-of-the-admin-page-04aa"
OURS = {
    "cookie": f"session={COOKIE}; other={COOKIE}",
    "proxy-authorization": f"Basic {COOKIE}",
    "api-key": COOKIE,
    "x-goog-api-key": COOKIE,
    "x-amz-security-token": COOKIE,
    "x-forwarded-for": COOKIE,
    "forwarded": f"for={COOKIE}",
    "x-real-ip": COOKIE,
    "referer": f"http://127.0.0.1/{COOKIE}",
    "openai-organization": COOKIE,
    "x-breakeven-session": COOKIE,
    "x-anything": COOKIE,
    "user-agent": COOKIE,
}
FAULTS = [
    name for name in BEHAVIOURS if name not in ("stall", "stall_after_head", "stall_mid_body", "huge_body", "slow")
]


@dataclass
class World:
    running: Gateway
    server: ChaosServer
    key: str
    answers: list[bytes] = field(default_factory=list)

    def ask(self, model: str, path: str = ENDPOINTS[0], **fields: object) -> None:
        """One request with a canary wherever one fits; its answer is kept to be searched."""
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", **fields}
        for headers in ({"authorization": f"Bearer {self.key}"}, {"x-api-key": self.key}):
            try:
                status, told, answer = self.running.ask(body, {**OURS, **headers}, path=path)
                self.answers.append(str((status, told)).encode() + answer)
            except (OSError, HTTPException) as error:
                self.answers.append(str(error).encode())


def spellings(secret: str) -> list[bytes]:
    """A secret as it may have been written."""
    plain = secret.encode()
    return [plain, plain[4:-4], base64.b64encode(plain)[:-4], urllib.parse.quote(secret).encode(), plain.hex().encode()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Good, bad and treacherous backends that have been asked in every way, with a poll of each."""
    directory: Path = tmp_path_factory.mktemp("canaries")
    key = store.create(directory / "keys.json", "anna", models=())
    wait = {"timeouts": {"first_byte": "2s", "idle": "2s"}}
    environ = {"THE_KEY": BACKEND_KEY, "THE_ECHOED_KEY": ECHOED_KEY, "BREAKEVEN_ADMIN_SECRET": ADMIN}
    with (
        ChaosServer() as server,
        echo(400) as plainly,
        echo(401, pieces=True) as slowly,
        echo(503) as failing,
        echo(200) as told,
    ):
        plan = {
            "keys": "keys.json",
            "backends": [
                backend("good", server.url, api_key_env="THE_KEY", **wait),
                backend("echo", plainly, api_key_env="THE_ECHOED_KEY", **{**wait, "poll": True}),
                backend("pieces", slowly, api_key_env="THE_ECHOED_KEY", **wait),
                backend("failing", failing, api_key_env="THE_ECHOED_KEY", **wait),
                backend("told", told, api_key_env="THE_ECHOED_KEY", **wait),
                backend("away", "http://127.0.0.1:1", api_key_env="THE_KEY", **{**wait, "poll": True}),
            ],
            "policies": [
                {"model": "failover", "backends": ["failing", "away", "good"], "policy": "weighted", "explore": 0},
            ],
        }
        with gateway(directory, plan, environ=environ) as running:
            made = World(running, server, key)
            for path in ENDPOINTS:
                for stream in (False, True):
                    for model in ("good", "echo", "pieces", "told", "failing", "away", "failover"):
                        made.ask(model, path, stream=stream)
            for name in FAULTS:
                for stream in (False, True):
                    made.ask("good", chaos=name, stream=stream)
            until(lambda: len(running.records()) == len(made.answers), "the decision log")
            yield made


def test_everything_was_asked(world: World) -> None:
    """Or the tests below would show nothing."""
    assert world.server.seen.requests > 2 * len(FAULTS)
    assert any(b"you sent" in answer for answer in world.answers)
    assert all(headers.get("authorization") == f"Bearer {BACKEND_KEY}" for headers in world.server.seen.headers)
    said = b"".join(world.answers)
    assert b"*" * len(ECHOED_KEY) in said, "what the backend repeated is shown, but for its key"


def test_no_backend_sees_a_clients_secret(world: World) -> None:
    for headers in world.server.seen.headers:
        written = json.dumps(headers).encode()
        for secret in (world.key, COOKIE, ADMIN):
            assert not any(spelling in written for spelling in spellings(secret)), headers
        named = {"host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent"}
        assert set(headers) <= named
        assert headers["accept-encoding"] == "identity", "ours, whatever the client takes"
    # The backends that repeat what they were sent would have told it to the client as well.
    for answer in world.answers:
        assert not any(spelling in answer for secret in (world.key, COOKIE) for spelling in spellings(secret))


def test_no_key_of_a_backend_comes_out_anywhere(world: World) -> None:
    running = world.running
    keyed = {"authorization": f"Bearer {ADMIN}"}
    places = {
        "answers": b"".join(world.answers),
        "decision log": running.log,
        "standard error": running.complaints.encode(),
        "standard output": "\n".join(running.said).encode(),
        "models": running.ask(path="/v1/models", key=world.key)[2],
        **{page: running.admin(page, keyed)[2] for page in ("/", "/admin/state", "/admin/experiments", "/metrics")},
        **{str(path.name): path.read_bytes() for path in running.directory.rglob("*") if path.is_file()},
        **{
            f"arguments of {pid}": " ".join(psutil.Process(pid).cmdline()).encode()
            for pid in {running.process.pid, *running.workers()}
        },
    }
    assert len(places["decision log"]) > 10_000
    assert len(places["/metrics"]) > 1000
    assert b"backends" in places["/admin/state"]
    for place, said in places.items():
        for secret in (BACKEND_KEY, ECHOED_KEY, world.key, COOKIE, ADMIN):
            for spelling in spellings(secret):
                assert spelling not in said, (place, secret)


def test_an_answer_brings_no_cookie_and_nothing_between_gateway_and_backend(world: World) -> None:
    def asked() -> tuple[int, dict[str, str], bytes]:
        return world.running.ask({"model": "good", "chaos": "odd_headers"}, key=world.key)

    until(lambda: asked()[0] == 200, "the backend, which has had a hard time")
    headers = asked()[1]
    assert headers["x-kept"] == "yes"
    hidden = {"set-cookie", "server", "alt-svc", "x-hop", "keep-alive", "access-control-allow-origin"}
    assert not hidden & set(headers)


@given(st.text("ab", min_size=1, max_size=4), st.lists(st.text("abx", max_size=6), max_size=6))
def test_a_key_is_found_however_it_is_cut(key: str, pieces: list[str]) -> None:
    scrub = Scrub(key.encode())
    said = b"".join([*(scrub.feed(piece.encode()) for piece in pieces), scrub.rest()])
    assert key.encode() not in said
    assert len(said) == len("".join(pieces)), "what is announced as so many bytes stays so many"
    assert said.replace(b"*", b"") == b"" or all(
        a in (b"*"[0], b) for a, b in zip(said, "".join(pieces).encode(), strict=True)
    )


def test_headers_that_hold_the_key_are_left_out() -> None:
    assert headers_without(b"k1", [(b"a", b"x k1"), (b"b", b"k2")]) == [(b"b", b"k2")]
