"""Clients as they are: Azure's paths, packed bodies, browsers, forms, Claude Code and Codex before a chat server."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_property_fixtures import CHAT, Gateway, backend, gateway, refused, statuses, until

from breakeven.gateway.keys import store
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.route.replay import explain
from breakeven.gateway.seen.read_log import records
from breakeven.gateway.serve.ask import BadAskError, form_for, read_form
from breakeven.wire.behaviours import whole
from breakeven.wire.bounds import HeldBodies
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import CODINGS, Refused, Unpacker
from breakeven.wire.reader import Reader
from breakeven.wire.scripted import ScriptedServer, Step
from breakeven.wire.sse import event, events_of

BODY = b'{"model": "b", "messages": []}'
MESSAGES, RESPONSES, COUNT = "/v1/messages", "/v1/responses", "/v1/messages/count_tokens"
PAGE, OTHER = "https://chat.example.org", "https://evil.example"


def step(question: ScriptedRequest) -> Step:
    """A chat server that thinks, speaks, and calls a tool where it is given one; it refuses what is too long."""
    if not question.path.endswith("/chat/completions"):
        return None
    asked = question.fields
    if asked.get("max_tokens") == 77:
        return whole(b'{"error": {"message": "too long", "code": 400}}', status=400)
    if asked.get("max_tokens") == 78:
        return whole(b'{"error": {"message": "no memory"}}', status=500)
    if asked.get("max_tokens") == 79:
        return whole(b'{"choices": [{"text": "x"}]}')
    calls = (
        [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
        if asked.get("tools")
        else []
    )
    message: dict[str, Any] = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    finish = "tool_calls" if calls else "stop"
    usage = {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    top = {"id": "chatcmpl-7", "created": 5, "model": "served"}
    if not question.stream:
        choice = {
            "index": 0,
            "message": {**message, **({"tool_calls": calls} if calls else {})},
            "finish_reason": finish,
        }
        return whole(json.dumps({**top, "choices": [choice], "usage": usage}).encode())
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}]
    deltas += [{"content": "Hel"}, {"content": "lo"}]
    deltas += [{"tool_calls": [{**call, "index": at}]} for at, call in enumerate(calls)]
    events = [{**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**top, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if asked.get("stream_options", {}).get("include_usage"):
        events.append({**top, "choices": [], "usage": usage})
    made = b"".join(event(json.dumps(one).encode()) for one in events) + event(b"[DONE]")
    return whole(made, kind="text/event-stream")


World = tuple[Gateway, ScriptedServer, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A chat server, one with everything, and a key."""
    directory: Path = tmp_path_factory.mktemp("clients")
    secret = store.create(directory / "keys.json", "anna")
    with ScriptedServer(step) as chat, ScriptedServer("ok") as full:
        plan = {
            "keys": "keys.json",
            "cors": [PAGE, "app://obsidian.md"],
            "backends": [
                backend("chat", chat.url, endpoints=["/v1/chat/completions"], served_model="served"),
                backend("b", full.url),
                backend("claude", full.url, endpoints=["/v1/messages"]),
                backend("vectors", full.url, endpoints=["/v1/embeddings"]),
            ],
            "policies": [
                {"model": "vendor/chat-large:v2", "backends": ["b"]},
                {"model": "either", "backends": ["chat", "b"], "policy": "weighted", "weights": {"chat": 9, "b": 1}},
            ],
        }
        with gateway(directory, plan) as running:
            yield running, chat, secret


def ask(world: World, body: object, path: str = CHAT, **headers: str) -> tuple[int, dict[str, str], bytes]:
    running, _, secret = world
    return running.ask(body, {name.replace("_", "-"): value for name, value in headers.items()}, path=path, key=secret)


def record(world: World, told: dict[str, str]) -> dict[str, Any]:
    """The log's line of an answer."""
    ident = told["x-breakeven-request-id"]
    until(lambda: any(one["id"] == ident for one in world[0].records()), "its record")
    return next(one for one in world[0].records() if one["id"] == ident)


# Names and paths.


@pytest.mark.parametrize("name", ["vendor/chat-large:v2", "vendor%2Fchat-large:v2", "vendor%2fchat-large%3Av2"])
def test_a_models_name_is_found_encoded_or_not(world: World, name: str) -> None:
    status, _, answer = ask(world, None, f"/v1/models/{name}")
    assert (status, json.loads(answer)["id"]) == (200, "vendor/chat-large:v2")
    assert ask(world, None, f"/openai/models/{name}")[0] == 200
    assert ask(world, None, "/v1/models/vendor%252Fchat-large:v2")[0] == 404


def test_azures_deployment_is_the_model(world: World) -> None:
    running, _, secret = world
    for name in ("b", "vendor%2Fchat-large%3Av2"):
        path = f"/openai/deployments/{name}/chat/completions?api-version=2024-10-21"
        for body in (b'{"messages": []}', b'{"model": "nobody", "messages": []}'):
            status, told, _ = running.ask(body, {"api-key": secret}, path=path)
            assert (status, told["x-breakeven-backend"]) == (200, "b")
    large = json.dumps({"messages": [{"role": "user", "content": "x" * 100_000}]}).encode()
    assert running.ask(large, {"api-key": secret}, path="/openai/deployments/b/chat/completions")[0] == 200
    assert running.ask(large[:-1], {"api-key": secret}, path="/openai/deployments/b/chat/completions")[0] == 400


# Packed bodies.


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_packed_body_is_unpacked(world: World, coding: str, pack: Any) -> None:
    large = json.dumps({"model": "b", "messages": [], "x": "y" * 200_000, "chaos_id": coding}).encode()
    for body in (BODY, large):
        assert ask(world, pack(body), content_encoding=coding)[0] == 200
    assert ask(world, BODY, content_encoding="identity")[0] == 200
    assert ask(world, b"", content_encoding=coding)[0] == 400


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("br", BODY, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY, mtime=0), mtime=0), 415),
        ("gzip", BODY, 400),
        ("gzip", gzip.compress(BODY, mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b" " * 40_000_000, mtime=0), 413),
        ("gzip", gzip.compress(BODY, mtime=0) * 100, 400),
    ],
)
def test_what_cannot_be_unpacked_is_refused(world: World, coding: str, body: bytes, status: int) -> None:
    found, _, answer = ask(world, body, content_encoding=coding)
    assert found == status, answer
    assert json.loads(answer)["error"]["code"] in ("content_encoding", "body_too_large")


def test_an_unknown_coding_is_named_with_those_that_are_read(world: World) -> None:
    said = json.loads(ask(world, BODY, content_encoding="br")[2])["error"]["message"]
    assert "'br'" in said
    assert "gzip" in said


def test_what_a_body_holds_is_what_counts() -> None:
    """Not what came: a packed body takes as much of what all bodies may hold as it would unpacked."""
    held = HeldBodies(10**9)
    reader = Reader(Limits(), "peer", held, lambda _: True)
    packed = gzip.compress(bytes(range(256)) * 4096)
    head = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    for at in range(0, len(packed), 7):
        reader.feed((head if not at else b"") + packed[at : at + 7])
    request = reader.ahead[0][0]
    assert reader.failure is None
    assert request.body == bytes(range(256)) * 4096
    assert held.held == 2**20
    assert request.header(b"content-encoding") is None


def test_a_body_that_grows_a_thousandfold_is_none() -> None:
    packed = gzip.compress(b" " * 20_000_000, mtime=0)
    unpacker = Unpacker(b"gzip", 32 * 2**20)
    with pytest.raises(Refused, match="64 times its bytes"):
        unpacker.feed(packed)
    with pytest.raises(Refused, match="more than the 1000 bytes"):
        Unpacker(b"gzip", 1000).feed(gzip.compress(b"x" * 1001, mtime=0))
    assert Unpacker(b"gzip", 1000).feed(gzip.compress(b"x" * 1000, mtime=0)) == b"x" * 1000


def test_zstd_where_this_python_has_it() -> None:
    if b"zstd" not in CODINGS:
        with pytest.raises(Refused, match="'zstd' is not read here") as refusal:
            Unpacker(b"zstd", 1000)
        assert refusal.value.status == 415
        return
    from compression import zstd  # type: ignore[import-not-found]

    assert Unpacker(b"zstd", 1000).feed(zstd.compress(BODY)) == BODY


# Browsers.


def test_a_page_that_is_named_may_ask_and_read(world: World) -> None:
    running, _, secret = world
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for page in (PAGE, "app://obsidian.md", PAGE.upper()):
        status, told, answer = running.ask(None, {"origin": page, **wanted}, path=CHAT, method="OPTIONS")
        assert (status, answer) == (204, b"")
        assert told["access-control-allow-origin"] == page
        assert told["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in told["access-control-allow-methods"]
        assert told["vary"] == "origin"
    for body, path, expected in (
        (BODY, CHAT, 200),
        (None, "/v1/models", 200),
        (b"{}", CHAT, 400),
        (BODY, "/v1/no", 404),
    ):
        status, told, _ = running.ask(body, {"origin": PAGE}, path=path, key=secret)
        assert (status, told["access-control-allow-origin"]) == (expected, PAGE)
        assert "x-request-id" in told["access-control-expose-headers"]
    stream = running.ask(b'{"model": "b", "stream": true}', {"origin": PAGE}, path=CHAT, key=secret)
    assert stream[1]["access-control-allow-origin"] == PAGE
    assert running.ask(BODY, {"origin": PAGE}, path=CHAT)[0] == 401, "a page needs its key all the same"
    private = {"origin": PAGE, **wanted, "access-control-request-private-network": "true"}
    told = running.ask(None, private, path=CHAT, method="OPTIONS")[1]
    assert told["access-control-allow-private-network"] == "true"


def test_a_page_may_read_what_the_edge_refuses(world: World) -> None:
    running, _, _ = world
    for page, told in ((PAGE, True), (OTHER, False)):
        lines = f"host: 127.0.0.1:{running.port}\r\norigin: {page}\r\ncontent-length: {10**12}\r\n\r\n"
        answer = running.raw(f"POST {CHAT} HTTP/1.1\r\n{lines}".encode()).lower()
        assert b" 413 " in answer.partition(b"\r\n")[0]
        assert (f"access-control-allow-origin: {page}\r\n".encode() in answer) is told


def test_no_other_page_may(world: World) -> None:
    running, _, secret = world
    for page in (OTHER, "null", f"{PAGE}.evil.example", f"{PAGE}:444", "http://chat.example.org"):
        asked = {"origin": page, "access-control-request-method": "POST"}
        status, told, _ = running.ask(None, asked, path=CHAT, method="OPTIONS")
        assert status == 401
        assert not [name for name in told if name.startswith("access-control")]
        told = running.ask(BODY, {"origin": page}, path=CHAT, key=secret)[1]
        assert not [name for name in told if name.startswith("access-control")]


def test_nobody_may_where_none_is_named_and_a_page_of_ours_without_keys(tmp_path: Path) -> None:
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    with ScriptedServer("ok") as server:
        with gateway(tmp_path / "none", {"backends": [backend("b", server.url)]}) as running:
            assert running.ask(None, asked, path=CHAT, method="OPTIONS")[0] == 405
        plan = {"backends": [backend("b", server.url)], "cors": ["http://localhost:3000", PAGE]}
        with gateway(tmp_path / "some", plan) as running:
            assert running.ask(None, asked, path=CHAT, method="OPTIONS")[0] == 204
            assert running.ask(BODY, {"origin": PAGE}, path=CHAT)[0] == 200
            assert running.ask(BODY, {"origin": OTHER}, path=CHAT)[0] == 403
            assert running.ask(BODY, {"origin": PAGE, "host": "evil.example"}, path=CHAT)[0] == 403
        told = refused(tmp_path / "all", {"backends": [backend("b", server.url)], "cors": ["*"]})
    assert "cors: found '*' and no keys" in told


def test_every_page_may_where_keys_are_asked_and_the_file_says_so(tmp_path: Path) -> None:
    secret = store.create(tmp_path / "keys.json", "anna")
    with ScriptedServer("ok") as server:
        plan = {"backends": [backend("b", server.url)], "cors": ["*"], "keys": "keys.json"}
        with gateway(tmp_path, plan) as running:
            told = running.ask(BODY, {"origin": OTHER}, path=CHAT, key=secret)[1]
    assert told["access-control-allow-origin"] == OTHER


# Endpoints that are passed on.


def test_counting_tokens_reaches_whoever_has_messages_and_costs_nothing(world: World) -> None:
    status, told, answer = ask(
        world, {"model": "claude", "messages": [{"role": "user", "content": "hi"}]}, COUNT + "?beta=true"
    )
    assert (status, answer, told["x-breakeven-backend"]) == (200, b'{"input_tokens":7}', "claude")
    line = record(world, told)
    assert not line.get("charged_prompt_tokens")
    assert not line.get("prompt_tokens")
    status, _, answer = ask(world, {"model": "chat", "messages": []}, COUNT)
    assert (status, json.loads(answer)["error"]["code"]) == (404, "endpoint_not_served")


def test_the_query_of_anthropics_clients_reaches_the_backend_and_no_other(tmp_path: Path) -> None:
    asked: list[str] = []

    def page(request: Any) -> Any:
        asked.append(f"{request.path}?{request.query}")
        return whole(b'{"content": [{"type": "text", "text": "x"}]}')

    with (
        ScriptedServer("ok", pages={MESSAGES: page}) as server,
        gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running,
    ):
        for query in ("?beta=true", "?beta=true&api_key=secret", "?api_key=secret", ""):
            assert running.ask(BODY, path=MESSAGES + query)[0] == 200
    assert asked == [f"{MESSAGES}?beta=true"] * 2 + [f"{MESSAGES}?"] * 2


def form(boundary: bytes, *parts: tuple[bytes, bytes]) -> bytes:
    made = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, value) for head, value in parts)
    return made + b"--%b--\r\n" % boundary


SOUND = (
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav',
    b"RIFF\r\n--\x00\xff",
)
MODEL = (b'content-disposition: form-data; name="model"', b"speech")
LISTED = b'content-disposition: form-data; name="%b"'
KIND = b"multipart/form-data; boundary=xyz"


def test_what_was_read_as_json_goes_on_as_json(tmp_path: Path) -> None:
    """`curl -d` calls every body a form, and some clients do not say what theirs is; vLLM refuses both."""
    unnamed = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    kinds = ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8")
    with ScriptedServer("ok") as server, gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running:
        for kind in kinds:
            assert running.ask(BODY, {"content-type": kind})[0] == 200
        assert statuses(running.raw(unnamed % (CHAT.encode(), len(BODY)) + BODY)) == [200]
        assert [headers["content-type"] for headers in server.seen.headers] == ["application/json"] * 4


def test_a_form_goes_on_with_another_model_and_no_other_change(tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []

    def page(request: Any) -> Any:
        got.append((request.header(b"content-type").decode(), request.body))
        return whole(b'{"text": "hi"}')

    path = "/v1/audio/transcriptions"
    sent = form(b"xyz", SOUND, (MODEL[0], b"b"), (b'Content-Disposition: form-data; name="language"', b"fr"))
    headers = {"content-type": KIND.decode()}
    with (
        ScriptedServer("ok", pages={path: page}) as server,
        gateway(tmp_path, {"backends": [backend("b", server.url, served_model="whisper-1")]}) as running,
    ):
        assert running.ask(sent, headers, path=path)[2] == b'{"text": "hi"}'
        for body in (sent, form(b"xyz", SOUND)):
            assert running.ask(body, headers, path="/openai/deployments/b/audio/transcriptions")[0] == 200
        assert running.ask(form(b"xyz", SOUND), headers, path=path)[0] == 400
        assert running.ask(sent, headers, path=CHAT)[0] == 400, "where no form belongs"
        until(lambda: len(running.records()) == 3, "the log")
        assert running.records()[0]["charged_output_tokens"] == 1
    kept = sent.replace(b"\r\n\r\nb\r\n", b"\r\n\r\nwhisper-1\r\n")
    assert got[:2] == [(KIND.decode(), kept)] * 2
    assert got[2][1].endswith(form(b"xyz", SOUND))
    assert read_form(got[2][1], KIND).model == "whisper-1"
    assert len(got) == 3


def test_words_in_a_forms_file_name_do_not_count_against_a_backend(tmp_path: Path) -> None:
    """A server repeats them; of a request without a form they would be looked for in what its client sent."""
    path, words = "/v1/audio/transcriptions", b'{"error": {"message": "cannot read incorrect API key.wav"}}'
    sent = form(b"xyz", (SOUND[0].replace(b"a.wav", b"incorrect API key.wav"), SOUND[1]), (MODEL[0], b"b"))
    with (
        ScriptedServer("ok", pages={path: lambda _: whole(words, status=400)}) as server,
        gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running,
    ):
        status, _, said = running.ask(sent, {"content-type": KIND.decode()}, path=path)
        assert (status, said) == (400, words)


def test_a_form_is_read_once_and_only_one_way() -> None:
    sent = form(b"xyz", SOUND, MODEL, (b'Content-Disposition: form-data; name="stream"', b"true"))
    asked = read_form(sent, KIND)
    assert (asked.model, asked.streams) == ("speech", True)
    whisper = msgspec.Raw(b'"whisper"')
    assert asked.form is not None
    assert form_for(asked.form, whisper) == sent.replace(b"\r\n\r\nspeech\r\n", b"\r\n\r\nwhisper\r\n")
    added = read_form(form(b"xyz", SOUND), KIND, "named")
    assert added.form is not None
    assert read_form(form_for(added.form, whisper), KIND).model == "whisper"
    assert read_form(b"preamble\r\n" + sent + b"epilogue", KIND).model == "speech"
    word, segment = ((LISTED % b"timestamp_granularities[]", kind) for kind in (b"word", b"segment"))
    assert read_form(form(b"xyz", SOUND, MODEL, word, segment), KIND).model == "speech", "a list of two"
    for wrong in (
        form(b"xyz", MODEL, MODEL),
        form(b"xyz", MODEL, (LISTED % b"language", b"fr"), (LISTED % b"language", b"de")),
        form(b"xyz", MODEL, (b'Content-Disposition: form-data; name="model"; filename="x"', b"y")),
        form(b"xyz", MODEL, (b"Content-Disposition: form-data; name*=utf-8''mod%65l", b"y")),
        form(b"xyz", SOUND),
        form(b"abc", MODEL),
        sent[:-6],
        form(b"xyz", MODEL, (b"Content-Type: text/plain", b"no name")),
        form(b"xyz", *[SOUND] * 70, MODEL),
        b"",
    ):
        with pytest.raises(BadAskError):
            read_form(wrong, KIND)
    for two_ways in (
        form(b"xyz", MODEL, (b'Content-Disposition: form-data; name="x"; name="model"', b"other")),
        form(
            b"xyz",
            MODEL,
            (b'Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"', b"y"),
        ),
        form(b"xyz", MODEL, (b"Content-Disposition: form-data; name*=undefined''x", b"y")),
    ):
        with pytest.raises(Refused):
            read_form(two_ways, KIND)
    with pytest.raises(Refused, match="boundary more than once"):
        read_form(sent, KIND + b"; boundary=B")
    with pytest.raises(BadAskError, match="boundary"):
        read_form(sent, b"multipart/form-data")


def test_sound_and_plain_text_are_answers_and_errors_are_not(tmp_path: Path) -> None:
    said = {"sound": (b"\x00\x01", "audio/mpeg"), "text": (b"1\n00:00 --> 00:01\nHi\n", "text/plain")}
    pages = {"sound": "/v1/audio/speech", "text": "/v1/audio/transcriptions"}
    for name, (body, kind) in said.items():
        with (
            ScriptedServer("ok", pages={pages[name]: whole(body, kind=kind)}) as server,
            gateway(tmp_path / name, {"backends": [backend("b", server.url)]}) as running,
        ):
            for more in ({}, {"stream": True}):  # which some servers take no notice of
                status, told, answer = running.ask({"model": "b", "input": "hi", **more}, path=pages[name])
                assert (status, answer, told["content-type"]) == (200, body, kind)
    error = whole(b'{"error": {"message": "no voice", "code": 500}}')
    with (
        ScriptedServer("ok", pages={"/v1/audio/speech": error}) as server,
        gateway(tmp_path / "error", {"backends": [backend("b", server.url)]}) as running,
    ):
        assert running.ask({"model": "b", "input": "hi"}, path="/v1/audio/speech")[0] == 502


# Claude Code and Codex before a chat server.

ASKED = {"model": "chat", "max_tokens": 32, "messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"name": "f", "input_schema": {"type": "object"}}]


def test_a_message_of_a_chat_server(world: World) -> None:
    thinking = {"type": "adaptive"}
    status, told, answer = ask(world, {**ASKED, "system": "Be kind", "tools": TOOLS, "thinking": thinking}, MESSAGES)
    found = json.loads(answer)
    assert status == 200, answer
    assert (found["type"], found["id"], found["stop_reason"]) == ("message", "msg_7", "tool_use")
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use"]
    assert found["usage"] == {
        "input_tokens": 16, "cache_creation_input_tokens": None, "cache_read_input_tokens": 4, "output_tokens": 9,
    }  # fmt: skip
    assert (told["x-breakeven-translated"], told["x-breakeven-left-out"]) == (CHAT, "thinking")
    sent = json.loads(world[1].seen.bodies[-1])
    assert (sent["model"], sent["messages"][0]) == ("served", {"role": "system", "content": "Be kind"})
    line = record(world, told)
    assert (line["endpoint"], line["prompt_tokens"], line["cached_tokens"], line["output_tokens"]) == (
        MESSAGES,
        20,
        4,
        9,
    )
    assert (line["finish"], line["translated_to"]) == ("tool_calls", CHAT)
    ident = told["x-breakeven-request-id"]
    until(lambda: any(one.id == ident for one in records(world[0].directory / "log")), "its record")
    assert f"translated to {CHAT}" in explain(
        next(one for one in records(world[0].directory / "log") if one.id == ident)
    )


def test_a_stream_of_messages_of_a_chat_server(world: World) -> None:
    status, told, answer = ask(world, {**ASKED, "stream": True}, MESSAGES)
    events = [json.loads(data) for data in events_of(answer)]
    assert (status, told["content-type"]) == (200, "text/event-stream")
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["usage"]["output_tokens"] == 9
    line = record(world, told)
    assert (line["prompt_tokens"], line["output_tokens"], line["finish"], line["stream"]) == (20, 9, "stop", True)
    assert line["ttft_s"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_of_a_chat_server(world: World, stream: bool) -> None:
    asked = {"model": "chat", "input": "hi", "instructions": "Be kind", "stream": stream}
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    status, told, answer = ask(world, {**asked, "tools": tools}, RESPONSES)
    assert status == 200, answer
    found = [json.loads(data) for data in events_of(answer)][-1]["response"] if stream else json.loads(answer)
    assert (found["status"], found["instructions"], found["usage"]["total_tokens"]) == ("completed", "Be kind", 29)
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call"]
    assert found["output"][1]["content"][0]["text"] == "Hello"
    line = record(world, told)
    assert (line["endpoint"], line["prompt_tokens"], line["output_tokens"]) == (RESPONSES, 20, 9)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_a_server_of_messages(world: World, stream: bool) -> None:
    asked = {"model": "claude", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 8}
    status, told, answer = ask(world, {**asked, "stream_options": {"include_usage": True}} if stream else asked)
    assert (status, told["x-breakeven-translated"]) == (200, MESSAGES)
    if stream:
        events = [json.loads(data) for data in events_of(answer) if data != b"[DONE]"]
        assert (
            "".join(one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]).count(" ") == 8
        )
        usage = events[-1]["usage"]
    else:
        found = json.loads(answer)
        assert found["choices"][0]["finish_reason"] == "stop"
        usage = found["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 8)
    assert record(world, told)["output_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_a_backend_come_in_the_clients_words(world: World, stream: bool) -> None:
    status, _, answer = ask(world, {**ASKED, "max_tokens": 77, "stream": stream}, MESSAGES)
    assert status == 400
    assert json.loads(answer) == {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}}
    assert ask(world, {**ASKED, "max_tokens": 78, "stream": stream}, MESSAGES)[0] == 502
    asked = {"model": "chat", "input": "hi", "max_output_tokens": 77, "stream": stream}
    status, _, answer = ask(world, asked, RESPONSES)
    assert (status, json.loads(answer)) == (400, {"error": {"message": "too long", "code": 400}})


def test_an_answer_that_cannot_be_translated_is_none(world: World) -> None:
    for stream in (False, True):
        status, told, answer = ask(world, {**ASKED, "max_tokens": 79, "stream": stream}, MESSAGES)
        assert (status, told["content-type"]) == (502, "application/json")
        assert json.loads(answer)["type"] == "error"
        assert record(world, told)["error"].startswith("error: the answer cannot be translated")


def test_what_a_chat_server_has_no_words_for_goes_to_one_that_speaks_responses(world: World) -> None:
    asked = {"model": "either", "input": "hi", "previous_response_id": "r"}
    status, told, _ = ask(world, asked, RESPONSES)
    assert (status, told["x-breakeven-backend"]) == (200, "b")
    assert "x-breakeven-translated" not in told
    status, _, answer = ask(world, {**asked, "model": "chat"}, RESPONSES)
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (400, "cannot_translate")
    assert "previous_response_id" in error["message"]
    status, _, answer = ask(world, {**asked, "model": "vectors"}, RESPONSES)
    assert (status, json.loads(answer)["error"]["code"]) == (404, "endpoint_not_served")


def test_a_failing_backend_is_left_for_one_of_another_api(tmp_path: Path) -> None:
    with ScriptedServer("500") as broken, ScriptedServer(step) as chat:
        plan = {
            "backends": [
                backend("native", broken.url, endpoints=[MESSAGES]),
                backend("chat", chat.url, endpoints=["/v1/chat/completions"]),
            ],
            "policies": [
                {
                    "model": "m",
                    "backends": ["native", "chat"],
                    "policy": "weighted",
                    "weights": {"native": 99, "chat": 1},
                    "explore": 0,
                }
            ],
        }
        with gateway(tmp_path, plan) as running:
            for stream in (False, True):
                status, told, answer = running.ask({**ASKED, "model": "m", "stream": stream}, path=MESSAGES)
                assert (status, told["x-breakeven-backend"]) == (200, "chat")
                assert b'"stop_reason":"end_turn"' in answer


def test_a_copy_goes_to_a_backend_of_another_api_where_that_has_words_for_it(tmp_path: Path) -> None:
    with ScriptedServer("ok") as native, ScriptedServer(step) as chat:
        plan = {
            "backends": [
                backend("native", native.url, endpoints=[MESSAGES]),
                backend("chat", chat.url, endpoints=["/v1/chat/completions"]),
            ],
            "policies": [{"model": "m", "backends": ["native"]}],
            "experiments": [
                {"name": "x", "kind": "shadow", "model": "m", "control": "native", "treatment": "chat", "share": 1.0}
            ],
        }
        with gateway(tmp_path, plan) as running:

            def copied(**more: object) -> int:
                status, told, _ = running.ask({**ASKED, "model": "m", **more}, path=MESSAGES)
                assert (status, told["x-breakeven-backend"]) == (200, "native")
                return chat.seen.requests

            until(lambda: copied() > 0, "a copy")  # an experiment begins a moment after its gateway
            copied(mcp_servers=[{"name": "s"}])
            until(lambda: copied() > 1, "another")
            assert set(chat.seen.paths) == {"/v1/chat/completions"}


def test_a_chat_without_a_limit_has_as_many_tokens_as_a_server_of_messages_gives(tmp_path: Path) -> None:
    """Anthropic's API wants a limit, and refuses one that its model cannot keep."""

    def limited(question: ScriptedRequest) -> Step:
        asked = question.fields["max_tokens"]
        if asked <= 8192:
            return None
        said = f"max_tokens: {asked} > 8192, which is the maximum allowed number of output tokens for small-1"
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
        return whole(json.dumps(error).encode(), status=400)

    with ScriptedServer(limited) as server:
        names = {"usual": {}, "told": {"max_output": 1000}, "short": {"context": 4000}}
        plan = {
            "backends": [backend(name, server.url, endpoints=[MESSAGES], **more) for name, more in names.items()],
        }
        with gateway(tmp_path, plan) as running:

            def limits(name: str, **more: int) -> list[int]:
                """That it was asked with, one after another."""
                before = len(server.seen.bodies)
                assert running.ask({"model": name, "messages": ASKED["messages"], **more})[0] == 200
                return [json.loads(body)["max_tokens"] for body in list(server.seen.bodies)[before:]]

            assert limits("usual") == [32_000, 8192]
            assert limits("usual") == [8192], "it was found out"
            assert limits("usual", max_tokens=5) == [5]
            assert limits("told") == [1000]
            assert limits("short") == [2000], "half of what it takes"
            asked = {"model": "usual", "messages": ASKED["messages"], "max_tokens": 9000}
            assert running.ask(asked)[0] == 400, "a client's own limit is its own affair"
            plan["backends"][0]["limit"] = 7
            assert "reloaded: generation 1" in running.reload(plan)
            assert limits("usual") == [8192], "nothing was said of another server"
            plan["backends"][0]["max_output"] = 20_000
            running.reload(plan)
            until(lambda: limits("usual") == [20_000, 8192], "a trial of what is said anew")  # old workers still drain


def test_a_limit_in_a_clients_own_words_limits_nobody_else(tmp_path: Path) -> None:
    """A server that repeats what it refuses: here its prompt, which says what such a server would say of its model."""
    words = "max_tokens: 32000 > 3"

    def echoing(question: ScriptedRequest) -> Step:
        if question.fields["max_tokens"] == 32_000 and words in str(question.fields["messages"]):
            told = {"detail": [{"msg": "no room for this", "input": question.fields["messages"]}]}
            return whole(json.dumps(told).encode(), status=422)
        return None

    with ScriptedServer(echoing) as server:
        plan = {"backends": [backend("b", server.url, endpoints=[MESSAGES])]}
        with gateway(tmp_path, plan) as running:
            for text in (words, "hi"):
                assert running.ask({"model": "b", "messages": [{"role": "user", "content": text}]})[0] == 200
            assert [json.loads(body)["max_tokens"] for body in server.seen.bodies] == [32_000, 3, 32_000]


def test_a_limit_of_ours_that_leaves_no_room_for_a_prompt_is_lowered_for_that_prompt(tmp_path: Path) -> None:
    room = {
        "claude": (
            200_000,
            "input length and `max_tokens` exceed context limit: {prompt} + {asked} > {limit}, decrease",
        ),
        "vllm": (
            16_384,
            "This model's maximum context length is {limit} tokens. However, you requested {asked} output",
        ),
        "full": (100, "input length and `max_tokens` exceed context limit: {prompt} + {asked} > {limit}, decrease"),
        "other": (16_384, "no such tool"),
    }

    def limited(question: ScriptedRequest) -> Step:
        asked, prompt = question.fields["max_tokens"], int(question.fields["messages"][0]["content"][0]["text"])
        limit, words = room[question.model]
        if prompt + asked <= limit:
            return None
        said = words.format(prompt=prompt, asked=asked, limit=limit)
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
        return whole(json.dumps(error).encode(), status=400)

    with ScriptedServer(limited) as server:
        plan = {"backends": [backend(name, server.url, endpoints=[MESSAGES]) for name in room]}
        with gateway(tmp_path, plan) as running:

            def limits(name: str, prompt: int) -> tuple[int, list[int]]:
                """Status of an answer to a prompt, and the limits that its backend was asked with."""
                before = len(server.seen.bodies)
                asked = {"model": name, "messages": [{"role": "user", "content": str(prompt)}]}
                status = running.ask(asked)[0]
                return status, [json.loads(body)["max_tokens"] for body in list(server.seen.bodies)[before:]]

            assert limits("claude", 180_000) == (200, [32_000, 20_000])
            assert limits("claude", 10) == (200, [32_000]), "of another prompt it says nothing"
            assert limits("vllm", 12_000) == (200, [32_000, 4096])
            assert limits("vllm", 13_000) == (400, [32_000, 4096]), "once for each request"
            assert limits("full", 180_000) == (400, [32_000]), "there is no room at all"
            assert limits("other", 10) == (400, [32_000])


def thinks(question: ScriptedRequest) -> bool:
    """Whether earlier thoughts stand in what it is asked."""
    return any("reasoning_content" in turn for turn in question.fields["messages"])


def test_what_a_refusal_only_repeats_teaches_nothing_of_thoughts(tmp_path: Path) -> None:
    echoed = "reasoning_content reasoning"
    failing = iter([True, False])

    def failed(question: ScriptedRequest) -> Step:
        """As Groq, where a model's call of a tool is none, which may go well another time."""
        if not thinks(question) or not next(failing):
            return None
        error = {
            "message": "Unexpected words in a call",
            "code": "tool_use_failed",
            "failed_generation": f"my {echoed}",
        }
        return whole(json.dumps({"error": error}).encode(), status=400)

    def strict(question: ScriptedRequest) -> Step:
        """It refuses a field of the client's and repeats it; the second time with words of its own."""
        if "user" not in question.fields:
            return None
        said = [{"type": "extra_forbidden", "loc": ["body", "user"], "msg": "Extra inputs are not permitted"}]
        told: dict[str, Any] = {"detail": [{**said[0], "input": question.fields["user"]}]}
        if question.model == "both" and thinks(question):
            told = {"detail": "unknown field reasoning_content, unknown field user"}
        return whole(json.dumps(told).encode(), status=422)

    thought = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yes"}]
    turns = [*ASKED["messages"], {"role": "assistant", "content": thought}, {"role": "user", "content": "go"}]
    with ScriptedServer(failed) as groq, ScriptedServer(strict) as server:
        plan = {
            "backends": [
                backend("groq", groq.url, endpoints=["/v1/chat/completions"]),
                backend("strict", server.url, endpoints=["/v1/chat/completions"]),
                backend("both", server.url, endpoints=["/v1/chat/completions"]),
            ]
        }
        with gateway(tmp_path, plan) as running:

            def told(name: str, at: ScriptedServer, **more: Any) -> tuple[int, list[bool]]:
                """Status of an answer, and whether thoughts stood in what its backend was asked, each time."""
                before = len(at.seen.bodies)
                status = running.ask({"model": name, "max_tokens": 8, "messages": turns, **more}, path=MESSAGES)[0]
                sent = [json.loads(body)["messages"][1] for body in list(at.seen.bodies)[before:]]
                return status, ["reasoning_content" in turn for turn in sent]

            assert told("groq", groq) == (400, [True])
            assert told("groq", groq) == (200, [True])
            repeated = {"metadata": {"user_id": echoed}}
            assert told("strict", server, **repeated) == (200, [True, True])
            assert told("strict", server) == (200, [True])
            assert told("both", server, **repeated) == (200, [True, False, False])
            assert told("both", server) == (200, [True]), "it was the other field"


def test_a_chat_that_refuses_earlier_thoughts_is_asked_without(tmp_path: Path) -> None:
    """As Cerebras, Groq and Mistral refuse what they have not heard of."""

    def strict(question: ScriptedRequest) -> Step:
        for name in ("reasoning_content", "reasoning"):
            if (name == "reasoning_content" or question.model == "stricter") and any(
                name in turn for turn in question.fields["messages"]
            ):
                said = f"messages.1.assistant.{name}: property 'messages.1.assistant.{name}' is unsupported"
                return whole(json.dumps({"message": said, "code": "wrong_api_format"}).encode(), status=400)
        return None

    thought = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yes"}]
    turns = [*ASKED["messages"], {"role": "assistant", "content": thought}, {"role": "user", "content": "go"}]
    with ScriptedServer(strict) as server:
        names = ("strict", "stricter")
        plan = {"backends": [backend(name, server.url, endpoints=["/v1/chat/completions"]) for name in names]}
        with gateway(tmp_path, plan) as running:

            def asked(name: str) -> tuple[list[set[str]], str]:
                """By which names it was told, one request after another, and what the client hears of that."""
                before = len(server.seen.bodies)
                status, told, answer = running.ask({"model": name, "max_tokens": 8, "messages": turns}, path=MESSAGES)
                assert status == 200, answer
                sent = [json.loads(body)["messages"][1] for body in list(server.seen.bodies)[before:]]
                return [set(turn) - {"role", "content"} for turn in sent], told.get("x-breakeven-left-out", "")

            both = {"reasoning_content", "reasoning"}
            assert asked("strict") == ([both, {"reasoning"}], "")
            assert asked("strict") == ([{"reasoning"}], "")
            assert asked("stricter") == ([both, {"reasoning"}, set()], "reasoning_content")
            assert asked("stricter") == ([set()], "reasoning_content")
            running.reload({**plan, "limits": {"idle": "80s"}})
            assert asked("strict") == ([{"reasoning"}], "")
            assert asked("stricter") == ([set()], "reasoning_content")
