"""Property 5: fields and headers that name hosts, keys or URLs are inert: only `model` chooses where to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.reach import ENDPOINTS

NAMES = [
    "api_base", "base_url", "api_key", "api_type", "api_version", "organization", "url", "uri", "host", "hostname",
    "port", "scheme", "proxy", "endpoint", "endpoints", "target", "target_url", "destination", "redirect",
    "callback", "custom_host", "custom_llm_provider", "provider", "backend", "backends", "upstream",
    "served_model", "deployment_id", "extra_headers", "extra_body", "extra_query", "headers", "authorization",
    "x-api-key", "cookie", "webhook_url", "local", "command", "cmd", "args", "argv", "exec", "shell", "engine",
    "path", "file", "ca_file", "env", "policy", "route", "router", "fallbacks", "models", "mock_response",
    "metadata", "litellm_params", "config", "__class__", "__proto__", "constructor", "include", "$ref", "chaos_x",
    "Model", "MODEL", "model ", "mode",
]  # fmt: skip
HEADERS = [
    "host", "x-forwarded-host", "x-forwarded-server", "x-original-url", "x-rewrite-url", "x-host", "forwarded",
    "x-backend", "x-breakeven-backend", "x-breakeven-url", "x-portkey-config", "x-portkey-custom-host",
    "x-portkey-provider", "x-target-url", "helicone-target-url", "openai-base-url", "x-api-base", "x-upstream",
    "api-key", "openai-organization", "openai-project", "destination", "x-model", "x-breakeven-model",
    "x-http-method", "x-http-method-override", "x-http-host-override", "x-forwarded-proto", "x-forwarded-prefix",
    "via", "proxy",
]  # fmt: skip
VALUES = ["127.0.0.1", "localhost", "evil", "evil.example", "elsewhere"]


class World:
    """`chosen` is the backend that is asked for, `elsewhere` the one that a field might try to reach."""

    def __init__(self, running: Gateway, chosen: ChaosServer, elsewhere: ChaosServer) -> None:
        self.running, self.chosen, self.elsewhere = running, chosen, elsewhere


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ChaosServer() as chosen, ChaosServer() as elsewhere:
        plan = {
            "backends": [
                backend("chosen", chosen.url, served_model="served-name", api_key_env="THE_KEY"),
                backend("elsewhere", elsewhere.url),
            ],
            "policies": [{"model": "capped", "backends": ["chosen"], "max_usd": 0.01}],
        }
        environ = {"THE_KEY": "the-key-of-the-backend"}
        with gateway(tmp_path_factory.mktemp("destination"), plan, environ=environ) as running:
            yield World(running, chosen, elsewhere)


def addresses(world: World) -> list[str]:
    return [world.elsewhere.url, f"{world.elsewhere.url}/v1", f"127.0.0.1:{world.elsewhere.port}", *VALUES]


def check(world: World, body: bytes, headers: dict[str, str], path: str) -> dict[str, Any]:
    """Ask; exactly the chosen backend was asked, with our key and its own name for the model. Returns what it got."""
    asked, connected = world.chosen.seen.requests, world.elsewhere.seen.connections
    status, told, answer = world.running.ask(body, headers, path=path)
    assert status == 200, answer
    assert told["x-breakeven-backend"] == "chosen"
    assert world.chosen.seen.requests == asked + 1
    assert world.elsewhere.seen.connections == connected
    sent = world.chosen.seen.headers[-1]
    assert sent["host"] == f"127.0.0.1:{world.chosen.port}"
    assert sent["authorization"] == "Bearer the-key-of-the-backend"
    got: dict[str, Any] = json.loads(world.chosen.seen.bodies[-1])
    assert got["model"] == "served-name"
    return got


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_field_and_no_header_changes_where_it_goes(world: World, data: st.DataObject) -> None:
    address = st.sampled_from(addresses(world))
    value = st.recursive(
        address | st.text(max_size=20) | scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        max_leaves=6,
    )
    names = st.sampled_from(NAMES) | st.text(max_size=12)
    fields = data.draw(st.dictionaries(names, value, max_size=8))
    for ours in ("model", "stream", "chaos", "chaos_id", "stream_options", "max_tokens", "max_completion_tokens",
                 "max_output_tokens", "user", "prompt_cache_key"):  # fmt: skip
        fields.pop(ours, None)
    headers = data.draw(st.dictionaries(st.sampled_from(HEADERS), address, max_size=6))
    headers.pop("host", None)  # without keys a Host of elsewhere is refused: property 2
    path = data.draw(st.sampled_from(ENDPOINTS))
    body = json.dumps({"model": "chosen", "messages": [], **fields}).encode()
    got = check(world, body, headers, path)
    # And what it was sent is what the client sent: fields that mean nothing to us may mean something to it.
    assert got == {**json.loads(body), "model": "served-name"}


@pytest.mark.parametrize("name", NAMES)
def test_every_known_trick_alone(world: World, name: str) -> None:
    for value in (f"{world.elsewhere.url}/v1", {"url": world.elsewhere.url, "model": "elsewhere"}, ["elsewhere"]):
        check(world, json.dumps({"model": "chosen", "messages": [], name: value}).encode(), {}, ENDPOINTS[0])


@pytest.mark.parametrize("name", [name for name in HEADERS if name != "host"])
def test_every_known_header_alone(world: World, name: str) -> None:
    for value in (f"{world.elsewhere.url}/v1", f"127.0.0.1:{world.elsewhere.port}", "elsewhere", '{"url": "x"}'):
        check(world, b'{"model": "chosen", "messages": []}', {name: value}, ENDPOINTS[0])


@pytest.mark.parametrize(
    ("body", "to"),
    [
        (b'{"model": "elsewhere", "model": "chosen"}', "chosen"),
        (b'{"model": "chosen", "model": "elsewhere"}', "elsewhere"),
        (b'{"model": "elsewhere", "mod\\u0065l": "chosen"}', "chosen"),
        (b'{"mod\\u0065l": "chosen", "x": {"model": "elsewhere"}}', "chosen"),
        (b'{"\\u006dodel": "elsewhere", "model": "chosen", "x": [{"model": "elsewhere"}]}', "chosen"),
    ],
)
def test_who_is_asked_is_who_the_backend_is_told(world: World, body: bytes, to: str) -> None:
    """A field that stands twice could be read as one thing by us and as another by the backend."""
    server = world.chosen if to == "chosen" else world.elsewhere
    status, told, _ = world.running.ask(body)
    assert (status, told["x-breakeven-backend"]) == (200, to)
    sent = server.seen.bodies[-1]
    pairs = json.loads(sent, object_pairs_hook=lambda found: [name for name, _ in found])
    assert pairs.count("model") == 1
    assert json.loads(sent)["model"] == ("served-name" if to == "chosen" else "elsewhere")


@pytest.mark.parametrize(
    "model",
    ["http://127.0.0.1/v1", "chosen/../elsewhere", "elsewhere\u0000", "openai/chosen", " chosen", "chosen ", "Chosen",
     "", "\uff43hosen", "chosen\n", "*", "../../etc/passwd"],
)  # fmt: skip
def test_a_model_that_is_none_goes_nowhere(world: World, model: str) -> None:
    before = world.chosen.seen.connections, world.elsewhere.seen.connections, world.chosen.seen.requests
    assert world.running.ask({"model": model, "messages": []})[0] == 404
    assert before == (world.chosen.seen.connections, world.elsewhere.seen.connections, world.chosen.seen.requests)


@pytest.mark.parametrize("query", ["?model=elsewhere", "?api_base=http://evil.example", "?x=%0d%0ahost:%20evil"])
def test_a_query_changes_nothing_and_goes_no_further(world: World, query: str) -> None:
    check(world, b'{"model": "chosen"}', {}, ENDPOINTS[0] + query)
    assert set(world.chosen.seen.paths) <= set(ENDPOINTS)


@pytest.mark.parametrize(("header", "asked"), [("1000", 0.01), ("0.001", 0.001)])
def test_a_header_lowers_what_the_file_allows_and_never_raises_it(world: World, header: str, asked: float) -> None:
    told = world.running.ask({"model": "capped"}, {"x-breakeven-max-usd": header})[1]
    ident = told["x-breakeven-request-id"]
    until(lambda: any(record["id"] == ident for record in world.running.records()), "its record")
    assert next(record for record in world.running.records() if record["id"] == ident)["asked_usd"] == asked
