"""A backend is described: the table of dialects, what people write of their own, and what refusals teach.

Each kind that is known by name is met by a scripted server that takes what it takes and refuses the rest.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cli_fixtures import run_here
from dialect_fixtures import KEY, KINDS, StrictServer, strict_server
from gateway_serve_fixtures import ask, question, serving
from golden_server import golden_server

import breakeven
from breakeven.engines.backend import Backend
from breakeven.engines.openai_url import connect, parse_url
from breakeven.errors import UserError
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.serve.speech import KNOWN_S, Speech, forget_former, recall, remembered
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.measure.bodies import prepare_bodies
from breakeven.measure.events import RequestDone
from breakeven.measure.pool import Call, Pool
from breakeven.measure.runner import CompletionRequest, run_block
from breakeven.measure.token_counts import asked_usage
from breakeven.traffic.draw import draw
from breakeven.traffic.workload import Arrivals, Length, Workload
from breakeven.wire.behaviours import whole
from breakeven.wire.dialects import Dialect, at_odds, described, dialect_at, dialects
from breakeven.wire.lessons import (
    LESSONS,
    Lesson,
    as_number,
    calls_unknown,
    from_number,
    lesson_of,
    may_repeat,
    refusal_text,
    with_lessons,
)
from breakeven.wire.target import endpoint_at, split_base

NAMES = (
    "openai", "azure", "mistral", "gemini", "anthropic", "z.ai", "perplexity", "openrouter",
    "ollama", "lm-studio", "vllm", "sglang", "llama.cpp", "tgi", "tensorrt-llm",
)  # fmt: skip
SENT = ("model", "messages", "stream", "stream_options", "seed", "max_tokens", "temperature", "user")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BREAKEVEN_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_holds_each_and_contradicts_itself_nowhere() -> None:
    assert set(NAMES) == set(KINDS) <= set(dialects())
    for name, dialect in dialects().items():
        assert at_odds(dialect) is None, name
        assert dialect.metrics.get("source"), name


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "openai"),
        ("mine.openai.azure.com", "azure"),
        ("openai.azure.com.evil.example", ""),
        ("generativelanguage.googleapis.com", "gemini"),
        ("api.mistral.ai.evil.example", ""),
        ("127.0.0.1", ""),
    ],
)
def test_a_host_says_what_is_spoken_there(host: str, name: str) -> None:
    assert dialect_at(host) == name


@pytest.mark.parametrize(
    ("base", "joined"),
    [
        ("https://h/v1", "/v1/chat/completions"),
        ("https://h/v1/", "/v1/chat/completions"),
        ("https://h/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("https://h/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("https://h", "/chat/completions"),
    ],
)
def test_base_urls_are_joined_as_openais_clients_join_them(base: str, joined: str) -> None:
    backend = parse_url(f"{base}#m")
    assert backend.target("/v1/chat/completions") == joined
    root, under = split_base(base)
    assert urlsplit(root + endpoint_at(under, "/v1/chat/completions")).path == joined


def test_a_deployments_path_gets_its_version_and_a_url_may_say_another() -> None:
    path = "https://x.openai.azure.com/openai/deployments/d"
    assert parse_url(f"{path}#m").target("/v1/chat/completions").endswith("?api-version=2024-10-21")
    other = parse_url(f"{path}?api-version=2025-01-01-preview#m")
    assert other.target("/v1/chat/completions").endswith("?api-version=2025-01-01-preview")
    assert parse_url("https://x.openai.azure.com/openai/v1#m").target("/v1/models") == "/openai/v1/models"


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"quey": {}}, "mine.yaml: quey: no such key, did you mean query?"),
        ({"like": "azur"}, "mine.yaml: like: found 'azur', it must be one of openai, azure"),
        ({"like": ["azure"]}, "mine.yaml: like: found ['azure'], it must be one of openai, azure"),
        ({"like": []}, "mine.yaml: like: found [], it must be one of openai, azure"),
        ({"like": {"like": "azure"}}, "mine.yaml: like: found {'like': 'azure'}, it must be one of openai"),
        ({"query": "x"}, "mine.yaml: query: it must give names with values"),
        ({"body": ["seed"]}, "mine.yaml: body: it must give fields, each drop"),
        ({"body": {"seed": "remove"}}, "mine.yaml: body.seed: found 'remove', it must be drop, {rename"),
        ({"body": {"seed": {"drop": True}}}, "mine.yaml: body.seed: found"),
        ({"body": {"seed": {"rename": "a", "add": 1}}}, "mine.yaml: body.seed: found"),
        ({"body": {"seed": {"rename": ["a"]}}}, "mine.yaml: body.seed: found"),
        ({"body": {"seed": {"rename": "seed"}}}, "mine.yaml: body.seed: found"),
        ({"body": {"stream": "drop"}}, "mine.yaml: body.stream: found drop of stream"),
        ({"body": {"a": {"rename": "b"}, "b": "drop"}}, "mine.yaml: body.a: renamed to b, of which body.b says"),
        ({"body": {"a": {"rename": "c"}, "b": {"rename": "c"}}}, "mine.yaml: body.b: renamed to c, as a is"),
        ({"like": "vllm", "body": {"stream_options": "drop"}}, "mine.yaml: body.stream_options: dropped, and"),
        ({"like": "llama.cpp", "body": {"cache_prompt": "drop"}}, "mine.yaml: body.cache_prompt: dropped, and"),
        ({"key_form": "Bearer"}, "mine.yaml: key_form: found 'Bearer' without $key"),
        ({"key_form": "Bearer $key\n"}, "mine.yaml: key_form: holds what no header can"),
        ({"key_form": "\u2192 $key"}, "mine.yaml: key_form: holds what no header can"),
        ({"key_header": "a b"}, "mine.yaml: key_header: found 'a b'"),
        ({"headers": {"authorization": "x"}}, "mine.yaml: headers.authorization: is where the key goes"),
        ({"headers": {"Content-Length": "1"}}, "mine.yaml: headers.Content-Length: is the connection's own"),
        ({"headers": {"x": "a\nb"}}, "mine.yaml: headers.x: holds what no header can"),
        ({"socket": "s", "proxy": "http://p:1"}, "mine.yaml: socket: and proxy lead to two places"),
        ({"proxy": "https://p:1"}, "mine.yaml: proxy: must be an HTTP proxy's URL"),
        ({"proxy": "p:1"}, "mine.yaml: proxy: must be an HTTP proxy's URL"),
        ({"proxy": "http://p:1/path"}, "mine.yaml: proxy: must be an HTTP proxy's URL"),
        ({"proxy": "http://p:1?a=b"}, "mine.yaml: proxy: must be an HTTP proxy's URL"),
        ({"proxy": "http://user:sk-secret@p:1"}, "mine.yaml: proxy: must be an HTTP proxy's URL without a user"),
        ({"proxy": "http://p:99999"}, "mine.yaml: proxy: must be an HTTP proxy's URL"),
        ({"certificate_key": "k"}, "mine.yaml: certificate_key: without its certificate"),
        ({"several_usages": "often"}, "mine.yaml: several_usages: Expected `bool`"),
    ],
)
def test_what_is_wrong_with_ones_own_is_one_line_with_file_and_key(found: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        described(found, "mine.yaml")
    assert "\n" not in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_ones_own_dialect_stands_in_a_file_named_behind_the_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("like: azure\nquery: {api-version: 2030-01-01}\nkey_header: x-corp\nbody: {user: {add: me}}\n")
    backend = parse_url(f"https://llm.example/openai/deployments/d#m@{file}")
    assert (backend.model, backend.settings["dialect"]) == ("m", "mine.yaml")
    assert backend.headers() == {"X-Corp": KEY}
    assert backend.target("/v1/chat/completions").endswith("?api-version=2030-01-01")
    assert backend.dialect.acted({"model": "m"}, chat=True) == {"model": "m", "user": "me"}


# --- fields ----------------------------------------------------------------------------------------------------------


def test_fields_are_dropped_renamed_and_added_and_what_a_request_says_itself_stands() -> None:
    dialect = Dialect(body={"a": "drop", "b": {"rename": "c"}, "d": {"add": 1}})
    assert dialect.acted({"a": 0, "b": 2, "e": 3}, chat=True) == {"c": 2, "e": 3, "d": 1}
    assert dialect.acted({"b": 2, "c": 5, "d": 7}, chat=True) == {"c": 5, "d": 7}
    assert dialect.acted({"b": 2}, chat=False) == {"b": 2, "d": 1}  # other names are chat's alone
    assert [dialect.name_of(name, chat=True) for name in "abz"] == [None, "c", "z"]


@pytest.mark.parametrize(
    ("status", "body", "field"),
    [
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "x"}]}, "seed"),
        (422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["stream_options"]}]}},
         "stream_options"),
        (400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}},
         "max_tokens"),
        (400, {"error": {"param": "user", "code": "unknown_parameter", "message": "no"}}, "user"),
        (400, [{"error": {"message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
        (400, {"error": {"message": "Additional properties are not allowed ('seed' was unexpected)"}}, "seed"),
        (400, {"error": {"message": "unrecognized argument: seed"}}, "seed"),
        (400, {"error": "Argument not supported on this model: seed"}, "seed"),
        # Amazon Bedrock
        (400, {"message": "Malformed input request: #: extraneous key [seed] is not permitted"}, "seed"),
        (400, {"error": {"message": "unrecognized: ['stream_options', 'seed']"}}, "seed"),
        (400, {"error": {"message": "it is unknown", "param": "stream_options", "code": 400}}, "stream_options"),
        # Of a field with parts the part is meant, but for what the field is for.
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options", "include_usage"]}]},
         "stream_options"),
        (422, {"object": "error", "message": json.dumps({"detail": [{"type": "extra_forbidden",
         "loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs are not permitted"}]})},
         "stream_options"),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options", "include_obfuscation"],
         "msg": "Extra inputs are not permitted", "input": True}]}, None),
        (422, {"object": "error", "message": json.dumps({"detail": [{"type": "extra_forbidden",
         "loc": ["body", "stream_options", "include_obfuscation"], "msg": "Extra inputs are not permitted"}]})}, None),
        (400, {"error": {"message": "Unknown parameter: 'stream_options.include_obfuscation'.",
         "param": "stream_options.include_obfuscation", "code": "unknown_parameter"}}, None),
        # Nothing is learned of values, of what is not sent, and under other statuses.
        (422, {"detail": [{"type": "int_parsing", "loc": ["body", "seed"], "msg": "must be an integer"}]}, None),
        (400, {"error": {"message": "seed must be a whole number"}}, None),
        (400, {"error": {"message": "max_tokens is too large: 10; this model supports at most 5"}}, None),
        (400, {"error": {"message": "Unknown model m"}}, None),
        (400, {"error": {"message": "unrecognized argument: top_k"}}, None),
        (400, {"error": {"message": "unsupported value for seed_of_all"}}, None),
        (500, {"error": {"message": "unrecognized argument: seed"}}, None),
        (400, "", None),
    ],
)  # fmt: skip
def test_what_a_refusal_teaches(status: int, body: object, field: str | None) -> None:
    lesson = lesson_of(status, json.dumps(body).encode(), SENT)
    assert (lesson and lesson.field) == field


PYDANTIC = [{"type": "extra_forbidden", "loc": ["body", "metadata"], "msg": "Extra inputs are not permitted",
             "input": {"user_id": "reasoning", "loc": ["reasoning"], "type": "extra_forbidden"}}]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        ({"message": "messages.1.assistant.reasoning: property 'messages.1.assistant.reasoning' is unsupported"}, True),
        ({"error": {"message": "'messages.1' : property 'reasoning' is unsupported", "code": 400}}, True),
        ({"error": {"message": "Please remove the `reasoning` of your input messages."}}, True),
        ({"detail": [{"type": "missing", "loc": ["body", "x"], "msg": "Field required"},
                     {"type": "extra_forbidden", "loc": ["body", "messages", 1, "reasoning"], "msg": "Extra"}]}, True),
        ({"message": json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["messages", "reasoning"]}]})}, True),
        ("[{'type': 'extra_forbidden', 'loc': ('messages', 1, 'reasoning'), 'msg': 'Extra', 'input': 'x'}]", True),
        ({"error": {"message": "Unexpected end of a call", "failed_generation": "my reasoning is ..."}}, False),
        ({"error": {"message": "the reasoning is longer than its budget"}}, False),
        ({"error": {"message": "Unsupported parameter: 'reasoning.effort'"}}, False),
        ({"error": {"message": "unknown field reasoning_content"}}, False),
        ({"detail": PYDANTIC}, False),
        ({"detail": PYDANTIC[:0], "body": {"reasoning": "unknown"}}, False),
        ({"message": str(PYDANTIC)}, False),
        ({"message": json.dumps(PYDANTIC)}, False),
        (str(PYDANTIC), False),
        ("", False),
    ],
)  # fmt: skip
def test_a_name_is_unknown_only_by_a_servers_own_words(body: object, unknown: bool) -> None:
    raw = body if isinstance(body, str) else json.dumps(body)
    assert calls_unknown(raw.encode(), "reasoning") == unknown


def test_a_client_that_gives_a_field_by_both_its_names_teaches_nothing() -> None:
    """Else the next client's one name would be made the other, which the server may not know."""
    both = ("model", "max_tokens", "max_completion_tokens")
    for words in (
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        "max_tokens and max_completion_tokens are mutually exclusive; both are not supported",
    ):
        assert lesson_of(400, json.dumps({"error": {"message": words}}).encode(), both) is None
    only = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    refusal = json.dumps({"error": {"message": only, "param": "max_tokens", "code": "unsupported_parameter"}}).encode()
    assert lesson_of(400, refusal, both) == Lesson("max_tokens", "max_completion_tokens")


def test_a_clients_own_field_is_left_out_only_where_its_answer_stays_what_it_asked_for() -> None:
    refusal = b'{"error": {"message": "unrecognized argument: temperature"}}'
    assert lesson_of(400, refusal, SENT) == Lesson("temperature", alters=True)
    assert lesson_of(400, refusal, SENT, clients=True) is None


def test_lessons_are_kept_as_bits_and_the_later_name_gives_way() -> None:
    assert from_number(as_number(LESSONS)) == LESSONS
    newer, older = Lesson("max_tokens", "max_completion_tokens"), Lesson("max_completion_tokens", "max_tokens")
    assert with_lessons(with_lessons({}, [newer]), [older]) == {"max_completion_tokens": {"rename": "max_tokens"}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no\\nway"}}', "no way"),
        (b'[{"error": {"message": "no way"}}]', "no way"),
        (json.dumps({"message": json.dumps([{"loc": ["body", "a"], "msg": "no way"}])}).encode(), "body.a: no way"),
        (json.dumps({"error": {"message": "no", "metadata": {"raw": json.dumps({"message": "way"})}}}).encode(),
         "no: way"),
        (b'{"error": {"message": "no", "metadata": {"raw": "way"}}}', "no: way"),
        (b'{"error": {"message": "no", "metadata": {"raw": null}}}', "no"),
        (b"<html>no way</html>", "<html>no way</html>"),
        (b"", ""),
    ],
)  # fmt: skip
def test_a_servers_own_words_are_one_line(body: bytes, text: str) -> None:
    assert refusal_text(body) == text


# --- every kind, measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_each_kind_is_measured(name: str) -> None:
    with strict_server(name) as server:
        backend = connect(f"{server.base_url}#m@{name}")
        known = list(server.refused)
        done = await _asked(backend)
        (short,) = await run_block(
            backend,
            [CompletionRequest(block="b", stream=0, prompt="hi", prompt_tokens=1, max_tokens=3, seed=1, top_k=4)],
        )
    assert (done.error, done.detail, done.output_tokens) == (None, None, 4)
    assert (short.error, short.output_tokens) == (None, 3)
    assert server.refused == known  # all that it refuses was known, or learned before anything was measured
    assert known == (["max_tokens"] if name == "azure" else [])
    assert backend.settings.get("learned", "") == ("max_tokens as max_completion_tokens" if known else "")
    assert backend.settings["dialect"] == name


@pytest.mark.parametrize("name", ["mistral", "openai", "gemini"])
async def test_what_is_not_known_of_a_server_is_learned(name: str) -> None:
    with strict_server(name) as server:
        backend = connect(f"{server.base_url}#{server.kind.listed_as}m@tgi")
        done = await _asked(backend)
        refused = list(server.refused)
        again = await _asked(backend)
    assert (done.error, again.error) == (None, None)
    assert len(set(refused)) == len(refused) > 0, "a field was asked with again, or none"
    assert all(word in backend.settings["learned"] for word in refused)
    assert server.refused == refused


async def _asked(backend: Backend) -> RequestDone:
    """The first request of a schedule."""
    workload = Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=50.0),
        prompt=Length(kind="fixed", mean=9.0),
        output=Length(kind="fixed", mean=4.0),
        requests=1,
    )
    bodies = prepare_bodies(backend, draw(workload))
    pool = Pool(backend)
    found: list[RequestDone] = []
    ended = asyncio.Event()

    def finish(done: RequestDone) -> None:
        found.append(done)
        ended.set()

    call = Call(block="b", index=0, path=bodies.path, body=bodies.body(0), prompt_tokens=9, max_tokens=4, due_ns=None)
    try:
        pool.start(call, finish)
        await ended.wait()
    finally:
        await pool.close()
    return found[0]


TOO_FEW = {
    "error": {
        "message": "Provider returned error",
        "code": 400,
        "metadata": {
            "raw": json.dumps({"error": {"message": "Invalid 'max_output_tokens': integer below minimum value. "
                                         "Expected a value >= 16, but got 1 instead."}}),
            "provider_name": "OpenAI",
        },
    }
}  # fmt: skip


def test_a_server_that_gives_no_fewer_than_16_tokens_is_connected_to() -> None:
    with strict_server("openrouter") as server:
        refusal = whole(json.dumps(TOO_FEW).encode(), status=400)
        server.script = lambda asked: refusal if asked.fields["max_tokens"] < 16 else "ok"
        backend = connect(f"{server.base_url}#m@openrouter")
        prompt: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}]}
        counted = asked_usage(backend, "/v1/chat/completions", prompt)
        asked = [json.loads(body)["max_tokens"] for body in server.seen.bodies]
        server.script = lambda asked: refusal
        with pytest.raises(UserError, match="returned error: Invalid 'max_output_tokens': integer below minimum"):
            connect(f"{server.base_url}#m@openrouter")
    assert (asked, counted) == ([1, 16, 1, 16], 7)
    assert "learned" not in backend.settings


@pytest.mark.parametrize("name", ["m:nitro", "m-latest"])
def test_a_host_is_asked_for_what_its_list_does_not_hold(name: str) -> None:
    with strict_server("openrouter") as server:
        backend = connect(f"{server.base_url}#{name}@openrouter")
        server.script = lambda asked: whole(b'{"error": {"message": "not a valid model ID"}}', status=400)
        with pytest.raises(UserError, match=f"lists no model {name} and refuses it: not a valid model ID; it has m$"):
            connect(f"{server.base_url}#{name}@openrouter")
    assert backend.served_model == name


def test_a_part_of_stream_options_that_is_refused_costs_that_part_alone() -> None:
    loc = ["body", "stream_options", "continuous_usage_stats"]
    part = {"type": "extra_forbidden", "loc": loc, "msg": "Extra inputs are not permitted"}
    refusal = whole(json.dumps({"detail": [part]}).encode(), status=422)
    with golden_server(owned_by="vllm") as server:
        server.script = lambda asked: refusal if "continuous_usage_stats" in str(asked.fields) else "ok"
        backend = connect(f"{server.url}/v1#golden")
    assert (backend.engine, backend.takes_extra_fields) == ("vllm", True)
    assert backend.dialect.name_of("stream_options", chat=False) == "stream_options"
    assert backend.settings["learned"] == "no stream_options.continuous_usage_stats"


def test_a_proxy_for_a_url_without_tls_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("proxy: http://proxy.example:3128\n")
    with pytest.raises(UserError, match=r"mine\.yaml: proxy: opens a way to https:// alone"):
        parse_url(f"http://model.example/v1#m@{file}")
    assert parse_url(f"https://model.example/v1#m@{file}").dialect.proxy == "http://proxy.example:3128"


def test_a_server_that_is_not_behind_its_socket_is_told_with_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("socket: away.sock\n")
    with pytest.raises(UserError, match=r"cannot be reached through .*away\.sock \("):
        connect(f"http://127.0.0.1:1/v1#m@{file}")


def test_an_agent_of_ones_own_goes_in_the_place_of_ours() -> None:
    spoken = Dialect(headers={"user-agent": "mine/1", "x-team": "a"})
    backend = Backend("http://127.0.0.1:1", "m", None, {}, None, None, spoken=spoken)
    call = Call(block="b", index=0, path="/v1/completions", body=b"", prompt_tokens=1, max_tokens=1, due_ns=None)
    for mine, agent in ((backend, b"mine/1"), (replace(backend, spoken=None), b"breakeven/")):
        head = Pool(mine)._head(call).lower()
        assert head.count(b"user-agent: ") == head.count(b"user-agent: " + agent) == 1


def test_a_wrong_key_and_its_header_are_told_in_the_servers_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKEVEN_API_KEY", "sk-other")
    with strict_server("anthropic") as server, pytest.raises(UserError, match="no key in x-api-key") as caught:
        connect(f"{server.base_url}#m@anthropic")
    assert "sk-other" not in str(caught.value)


def test_a_server_behind_a_socket_is_measured(tmp_path: Path) -> None:
    at = tmp_path / "s.sock"
    with strict_server("tgi") as server, _Bridge(at, server.port):
        file = tmp_path / "mine.yaml"
        file.write_text(f"like: tgi\nsocket: {at.name}\n")
        study = breakeven.bench(
            f"http://model.example/v1#m@{file}",
            breakeven.Traffic(concurrency="1", requests=2, warm_up="0s", prompt="9", output="4"),
            options=breakeven.LoadOptions(out=tmp_path / "out", processes=1),
        )
    assert study.points[0].answered == 2
    assert study.models[0].settings["dialect"] == "mine.yaml"


class _Bridge:
    """A unix socket before a port: bytes to and fro."""

    def __init__(self, at: Path, port: int) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(at))
        self._listening.listen()
        self._port = port

    def __enter__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            other = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((one, other), (other, one)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()


# --- a run of which every request failed -----------------------------------------------------------------------------


def test_a_bench_of_which_every_request_failed_names_the_first_refusal(tmp_path: Path) -> None:
    with golden_server() as server:
        server.script = lambda asked: "500" if asked.fields["max_tokens"] > 1 else "ok"
        done = run_here(
            *("bench", f"{server.url}/v1#golden", "--concurrency", "1", "--requests", "2", "--warm-up", "0s"),
            *("--prompt", "9", "--output", "4", "--quiet", "--processes", "1", "--out", "out"),
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert "golden: every request failed; the first one: http_500, " in done.stderr
    assert "scripted 500" in done.stderr


def test_a_comparison_under_load_of_which_every_request_failed_exits_alike(tmp_path: Path) -> None:
    with golden_server() as one, golden_server() as other:
        for server in (one, other):
            server.script = lambda asked: "500" if asked.fields["max_tokens"] > 1 else "ok"
        done = run_here(
            *("compare", f"{one.url}/v1#golden", f"{other.url}/v1#golden", "--rate", "10", "--arrivals", "constant"),
            *("--duration", "1s", "--warm-up", "0s", "--rounds", "1", "--prompt", "9", "--output", "4"),
            *("--quiet", "--out", "out"),
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert "every request failed; the first one: http_500, " in done.stderr
    assert "No request was answered by any candidate." in (tmp_path / "out/result.json").read_text()


# --- every kind, served ----------------------------------------------------------------------------------------------


def _backend(name: str, server: StrictServer, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": server.base_url,
        "served_model": "m",
        "api_key_env": "KEY_OF_ALL",
        "dialect": name,
        "poll": False,
        **more,
    }


def test_each_kind_is_served_and_what_was_learned_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_ALL", KEY)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(strict_server(name)) for name in NAMES}
        plan = {"backends": [_backend(name, server) for name, server in servers.items()]}
        # What is not known of one beforehand is learned.
        plan["backends"] += [_backend("strange", servers["mistral"], dialect="tgi")]
        stack.enter_context(_Bridge(tmp_path / "s", servers["tgi"].port))
        plan["backends"] += [_backend("near", servers["tgi"], url="http://model.example/v1", socket="s", dialect="tgi")]
        names = [*NAMES, "strange", "near"]
        with serving(tmp_path, plan) as gateway:
            for name in names:
                for stream in (True, False):
                    told = ask(gateway.url, question("i", name, stream=stream, max_tokens=4, seed=1))
                    assert told.status == 200, f"{name}: {told.body!r}"
            left = ask(gateway.url, question("i", "strange", stream=True, seed=1, user="me"))
            assert left.headers["x-breakeven-left-out"] == "seed, user"
            assert "x-breakeven-left-out" not in ask(gateway.url, question("i", "vllm", seed=1)).headers
            before = list(servers["mistral"].refused)
            assert ask(gateway.url, question("i", "strange", stream=True, seed=1, user="me")).status == 200
            assert servers["mistral"].refused == before
        assert before == ["stream_options", "seed", "user"]
        assert servers["azure"].refused == ["max_tokens"]
        command = [sys.executable, "-m", "breakeven.cli", "serve", str(tmp_path / "gateway.yaml"), "--check"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "strange: POST " in said
    assert f"near: POST http://model.example/v1/chat/completions, through {tmp_path / 's'}, as tgi" in said
    assert "learned: no stream_options, learned: no seed, learned: no user" in said
    where = r"/deployments/m/chat/completions\?api-version=2024-10-21"
    assert re.search(rf"azure: POST \S+{where}, as azure, KEY_OF_ALL in api-key", said)
    assert KEY not in said


def test_a_refusal_of_a_value_reaches_the_client_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_ALL", KEY)
    refusal = b'{"error": {"message": "seed must be a whole number"}}'
    with strict_server("tgi") as server:
        server.script = lambda asked: whole(refusal, status=400)
        with serving(tmp_path, {"backends": [_backend("tgi", server)]}) as gateway:
            told = ask(gateway.url, question("i", "tgi", seed="many"))
        asked = server.seen.requests
    assert (told.status, told.body, asked) == (400, refusal, 1)


def test_nothing_is_kept_of_a_refusal_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_ALL", KEY)
    refusal = b'{"error": {"message": "unrecognized argument: seed"}}'
    with strict_server("tgi") as server:
        server.script = lambda asked: whole(refusal, status=400)
        with serving(tmp_path, {"backends": [_backend("tgi", server)]}) as gateway:
            told = ask(gateway.url, question("i", "tgi", seed=1))
        asked = [json.loads(body).get("seed") for body in server.seen.bodies]
        plan = BackendPlan(name="tgi", url=server.base_url, served_model="m")
    assert (told.status, told.body, asked) == (400, refusal, [1, None])
    assert remembered(plan) == ()


def test_a_server_that_takes_anothers_name_at_a_reload_has_taught_nothing() -> None:
    block = SharedBlock(Shape(workers=2, backends=2, keys=1, models=1, experiments=1))
    one = BackendPlan(name="one", url="http://127.0.0.1:1/v1")
    two = BackendPlan(name="two", url="http://127.0.0.1:2/v1")
    for slot, plan in enumerate((one, two)):
        Speech(plan, slot, block).learn([Lesson("seed")])
    assert remembered(one) == (Lesson("seed"),)
    moved = replace(two, url="http://127.0.0.1:3/v1")
    former = Speech(two, 1, block)
    forget_former(GatewayPlan(path=None, backends=(one, moved)), block, {"one": 0, "two": 1})
    former.learn([Lesson("user")])  # of a worker that still drains
    assert [Speech(plan, slot, block).dialect.body for slot, plan in enumerate((one, moved))] == [{"seed": "drop"}, {}]


def test_what_a_server_taught_holds_for_a_day_and_over_reloads_that_leave_it_as_it_is() -> None:
    block = SharedBlock(Shape(workers=3, backends=1, keys=1, models=1, experiments=1))
    plan = BackendPlan(name="one", url="http://127.0.0.1:1/v1")

    def reload(new: BackendPlan) -> tuple[dict[str, Any], int, frozenset[str]]:
        """What a new worker knows of it."""
        forget_former(GatewayPlan(path=None, backends=(new,)), block, {"one": 0})
        speech = Speech(new, 0, block)
        return dict(speech.dialect.body), speech.most_output, speech.untold

    def teach() -> None:
        speech = Speech(plan, 0, block)
        speech.learn([Lesson("seed")])
        speech.writes_at_most(8192)
        speech.refuses(frozenset({"reasoning"}))

    teach()
    all_of_it = ({"seed": "drop"}, 8192, frozenset({"reasoning"}))
    assert reload(replace(plan, limit=7)) == all_of_it, "another limit is no other server"
    assert reload(replace(plan, max_output=20_000)) == ({"seed": "drop"}, 20_000, frozenset()), "this is to be tried"
    assert reload(replace(plan, url="http://127.0.0.1:2/v1")) == ({}, 32_000, frozenset())
    reload(plan)
    teach()
    now_s = block.now_s() + KNOWN_S + 60
    block.now_s = lambda: now_s  # type: ignore[method-assign]
    speech = Speech(plan, 0, block)
    assert (speech.dialect.body, speech.most_output, speech.untold) == ({}, 32_000, frozenset()), "that was yesterday"


def test_a_reload_that_fails_leaves_what_was_taught_as_it_was() -> None:
    block = SharedBlock(Shape(workers=3, backends=2, keys=1, models=1, experiments=1))
    plan = BackendPlan(name="one", url="http://127.0.0.1:1/v1")
    speech = Speech(plan, 0, block)
    speech.learn([Lesson("seed")])
    speech.writes_at_most(8192)
    speech.refuses(frozenset({"reasoning"}))
    known = list(block.known.mine(0))
    new = replace(plan, max_output=20_000)
    came = GatewayPlan(path=None, backends=(new, replace(plan, name="two")))
    former = forget_former(came, block, {"one": 0, "two": 1})
    assert speech.untold == frozenset(), "it is not asked as those say that were to come"
    Speech(new, 0, block).writes_at_most(100)
    recall(former, block)
    assert list(block.known.mine(0)) == known
    assert (speech.dialect.body, speech.most_output, speech.untold) == (
        {"seed": "drop"}, 8192, frozenset({"reasoning"}),
    )  # fmt: skip


def test_what_one_thing_teaches_makes_nothing_old_new() -> None:
    plan = BackendPlan(name="one", url="http://127.0.0.1:1/v1", served_model="m")
    block = SharedBlock(Shape(workers=3, backends=1, keys=1, models=1, experiments=1))
    Speech(plan, 0, block).refuses(frozenset({"reasoning"}))
    now_s = block.now_s() + KNOWN_S + 60
    block.now_s = lambda: now_s  # type: ignore[method-assign]
    speech = Speech(plan, 0, block)
    speech.writes_at_most(8192)
    assert (speech.most_output, speech.untold) == (8192, frozenset())


def test_a_server_without_streams_is_connected_to() -> None:
    with golden_server() as server:
        refusal = whole(b'{"error": {"message": "this one does not stream"}}', status=400)
        server.script = lambda asked: refusal if asked.stream else "ok"
        backend = connect(f"{server.url}/v1#golden")
    assert backend.engine == "unknown"


def test_a_refusal_that_repeats_what_was_sent_teaches_nobody_else() -> None:
    assert may_repeat(b'{"seed": "unknown seed"}')
    assert may_repeat(b'{"seed": "\\u0075nknown seed"}')
    assert may_repeat(b" " * (1 << 17))
    assert not may_repeat(b'{"seed": 7, "stream": true}')


def test_a_refusal_as_deep_or_as_wide_as_a_client_makes_it_is_read() -> None:
    deep = json.dumps({"detail": [{"input": "[" * 2000, "msg": "unknown field"}]}).encode()
    assert lesson_of(422, deep, ["seed"]) is None
    wide = [f"field{number}" + "x" * 30_000 for number in range(1000)]
    assert lesson_of(422, b'{"detail": "unknown field seed"}', [*wide, "seed"]) is not None
