"""`breakeven serve` as a whole: real processes, real sockets, backends that fail in every known way."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from chaos_server import BEHAVIOURS, ChaosServer, ScriptedRequest, document, events
from gateway_serve_fixtures import Gateway, Listener, Reply, ask, question, serving, wait

from breakeven.wire.behaviours import CONTENT, chunk, head, played, whole
from breakeven.wire.playing import Scene
from breakeven.wire.sse import DONE, event


def _refused(status: int, question: ScriptedRequest) -> Scene:
    body = b'{"error": {"message": "no: %d", "code": "invalid_api_key"}}' % status
    return whole(body, "www-authenticate: Bearer", "retry-after: 1.2", status=status)


COSTS = {"api": {"input": 1, "output": 1}}
BEFORE = [
    "reset_before_head", "close_before_head", "stall", "stall_after_head", "garbage", "endless_header", "huge_headers",
    "429", "500", "502", "503", "529", "redirect", "switching",
]  # fmt: skip
"""What a backend can do before the first byte of its answer's body."""
AFTER = ["reset_mid_body", "close_mid_body", "stall_mid_body", "truncate", "garbage_mid_body"]
_ERROR = b'{"error": {"message": "CUDA out of memory at 10.0.0.7", "code": 500}}'
_ROLE = event(b'{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}')
_STOP = event(b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}')
_NAMED = ("late", "spoofs", "fails-late", "declines", "mute", "busy", "half", "dies", "closes", "bare")
LATE_S = 0.4
_LIFE = chunk(b": PROCESSING\n\n")
_STREAMS = head(200, "content-type: text/event-stream", "transfer-encoding: chunked")
_SPOOFED = ("x-breakeven-backend: premium", "x-breakeven-usd: 0", "x-request-id: forged", "www-authenticate: Basic")
ODD: dict[str, Callable[[ScriptedRequest], Scene]] = {
    **{f"status-{status}": partial(_refused, status) for status in (401, 403, 404, 408, 522)},
    "error-first": lambda q: played(q, [b": hm\n\n", _ROLE, event(_ERROR), DONE]) if q.stream else whole(_ERROR),
    "says-nothing": lambda q: played(q, [b": hm\n\n", _ROLE, DONE]) if q.stream else whole(b""),
    "no-answer": lambda q: (
        played(q, [_ROLE, event(b'{"error": {"message": "out"}, "choices": {}}')])
        if q.stream
        else whole(b'{"ok": false}')
    ),
    "web-page": lambda q: whole(b"<html>Log in</html>", kind="text/html"),
}
"""What is no answer, though it comes with a status, a body, or both."""
ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]


def _odd(question: ScriptedRequest) -> Scene:
    if question.model == "late":
        scene = played(question, [b": PROCESSING\n\n", b": PROCESSING\n\n", _ROLE, *events(question)])
        # What comes behind the tokens comes so late that no delay of the last of them hides it.
        return Scene(scene.pieces, [*scene.waits_s[:-3], *[LATE_S] * 3])
    if question.model == "fails-late":
        return CONTENT["engine_error"](question)
    if question.model == "half":
        return played(question, [*events(question)[:1], b'data: {"choices": [{"te'])
    if question.model in ("dies", "closes"):
        # Without a length or chunks an answer ends where its connection does: within it, or behind its end.
        made = b"".join(events(question)[: 3 if question.model == "dies" else None])
        if not question.stream:
            made = document(question)[: -9 if question.model == "dies" else None]
        kind = "text/event-stream" if question.stream else "application/json"
        return Scene([head(200, f"content-type: {kind}", "connection: close") + made], then="close")
    if question.model == "bare":
        return Scene([head(200, "connection: close") + document(question)], then="close")
    if question.model == "busy":
        return _refused(429, question)
    if question.model == "declines":
        return played(question, [_ROLE, event(b'{"error": {"message": "too long", "code": 400}}')])
    if question.model == "mute":
        return played(
            question, [_ROLE, event(b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'), DONE]
        )
    if question.model == "drips":
        return Scene([head(503, "transfer-encoding: chunked"), *[chunk(b" ")] * 600], [0.1] * 601)
    if question.model == "silent":
        return Scene([_STREAMS, *[_LIFE] * 40], [0.1] * 41)
    if question.model == "spoofs":
        return whole(document(question), *_SPOOFED)
    return ODD[question.model](question)


@dataclass
class House:
    """A gateway with two workers, a backend that answers, and one that does what its model's name says."""

    gateway: Gateway
    good: ChaosServer
    bad: ChaosServer


def _by_model(question: ScriptedRequest) -> str:
    return question.model if question.model in BEHAVIOURS else "ok"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The one gateway that most tests here ask."""
    directory = tmp_path_factory.mktemp("serve")
    with (
        ChaosServer("ok") as good,
        ChaosServer(_by_model, chunk_s=0.005) as bad,
        ChaosServer("die", die_s=60) as dies,
        ChaosServer(_odd, chunk_s=0.05) as odd,
    ):
        backends: list[dict[str, Any]] = [
            {"name": "good", "url": f"{good.url}/v1", "price": COSTS, "endpoints": ENDPOINTS, "served_model": "real"},
            {"name": "twin", "url": f"{good.url}/v1", "price": {"api": {"input": 9, "output": 9}}, "kind": "moe"},
        ]
        quick = {"timeouts": {"first_byte": "400ms", "idle": "400ms"}, "poll": False}
        # What is to break off after its first byte must not be given up before it by a busy machine.
        patient = {"timeouts": {"first_byte": "20s", "idle": "400ms"}, "poll": False}
        calm = {"timeouts": {"first_byte": "20s", "idle": "20s"}, "poll": False}
        faulty = ((bad, BEFORE, quick), (bad, AFTER, patient), (dies, ["die"], quick), (odd, list(ODD), calm))
        backends += [
            {
                "name": f"bad-{fault}-{stream}",
                "url": f"{server.url}/v1",
                "served_model": fault,
                "endpoints": ENDPOINTS,
                **times,
            }
            for server, faults, times in faulty
            for fault in faults
            for stream in (False, True)
        ]
        backends += [{"name": name, "url": f"{odd.url}/v1", "poll": False} for name in _NAMED]
        backends.append({"name": "bad-silent-True", "url": f"{odd.url}/v1", "served_model": "silent", **quick})
        backends.append({"name": "drips", "url": f"{odd.url}/v1", **quick})
        nobody = f"http://127.0.0.1:{_closed_port()}/v1"
        backends += [{"name": f"bad-nobody-{stream}", "url": nobody, **quick} for stream in (False, True)]
        policies: list[dict[str, Any]] = [
            {"model": f"try-{one['name'][4:]}", "backends": [one["name"], "good"], "policy": "cheapest", "explore": 0}
            for one in backends[2:]
            if one["name"].startswith("bad-")
        ]
        policies += [
            {"model": "pair", "backends": ["good", "twin"], "explore": 0, "slo": {"ttft": "10s"}},
            {"model": "even", "backends": ["good", "twin"], "policy": "weighted", "explore": 0},
            {"model": "hopeless", "backends": ["bad-500-True", "bad-nobody-True"], "policy": "cheapest", "attempts": 2},
        ]
        limits = {"body": "64KiB", "json_depth": 16}
        plan = {"backends": backends, "policies": policies, "workers": 2, "limits": limits}
        with serving(directory, plan) as gateway:
            yield House(gateway, good, bad)


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# What it serves.


def test_two_workers_and_one_that_watches(house: House) -> None:
    wait(lambda: len(house.gateway.workers()) == 2, "not every worker accepts")
    wait(lambda: len(house.gateway.watcher()) == 1, "nobody watches")
    assert house.gateway.state()["workers"] == 2


def test_models_are_the_public_names_and_then_the_backends(house: House) -> None:
    listing = ask(house.gateway.url, None, "/v1/models").json
    names = [one["id"] for one in listing["data"]]
    assert names[-1] == "bad-nobody-True"
    assert {"pair", "even", "hopeless", "good", "twin"} < set(names)
    assert len(names) == len(set(names))
    assert ask(house.gateway.url, None, "/v1/models/pair").json["id"] == "pair"
    assert ask(house.gateway.url, None, "/health").status == 200
    assert ask(house.gateway.url, None, "/ready").json == {"ready": True}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_answer_is_the_backends_byte_by_byte(house: House, path: str, stream: bool) -> None:
    if stream and path.endswith("embeddings"):
        return
    body = question(
        "same", "pair", stream=stream, input="hello", prompt="hello", stream_options={"include_usage": True}
    )
    through = ask(house.gateway.url, body, path)
    direct = ask(house.good.url, {**body, "model": "real"}, path)
    assert (through.status, through.body, through.whole) == (200, direct.body, True)
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert through.headers.get("content-length") == direct.headers.get("content-length")
    record = house.gateway.record(through.id)
    assert (record.backend, record.endpoint, record.status) == ("good", path, 200)
    assert record.prompt_tokens == 7
    assert record.output_tokens == (None if path.endswith("embeddings") else 8)


def test_fields_that_we_do_not_know_reach_the_backend_as_they_were(house: House) -> None:
    text = (
        '{"tools": [{"type":"function","function":{"name":"f","parameters":{"type":"object","x":1.50,"y":1e3}}}],\n'
        ' "model" : "pair","response_format":{"type":"json_schema","json_schema":{"strict":true}}, "logprobs":true,'
        '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],'
        ' "new_field":{"deep":[1,null,"\\u00e9\\ud83d\\ude00"]},"seed":12345678901234567890,"chaos_id":"fields"}'
    )
    assert ask(house.gateway.url, text.encode()).status == 200
    sent = _body_of(house.good, "fields")
    # Values keep their bytes: 1.50 is no 1.5, and a whole number beyond 64 bits is no float.
    for part in ('"x":1.50,"y":1e3', '"\\u00e9\\ud83d\\ude00"', "12345678901234567890", "data:image/png;base64,AAAA"):
        assert part.encode() in sent
    assert json.loads(sent) == {**json.loads(text), "model": "real"}


def test_a_backends_own_name_reaches_it_alone(house: House) -> None:
    answer = ask(house.gateway.url, question("own", "twin"))
    assert (answer.status, answer.backend, answer.headers["x-breakeven-reason"]) == (200, "twin", "named")
    assert answer.json["model"] == "twin"


def test_headers_of_an_answer_tell_the_decision(house: House) -> None:
    answer = ask(house.gateway.url, question("told", "pair"))
    assert answer.backend == "good"
    assert answer.headers["x-breakeven-alternative"] == "twin"
    assert float(answer.headers["x-breakeven-ttft-ms"]) > 0
    assert float(answer.headers["x-breakeven-usd"]) > 0
    record = house.gateway.record(answer.id)
    assert record.reason == answer.headers["x-breakeven-reason"]
    assert [score.backend for score in record.scores] == ["good", "twin"]


def test_a_requests_own_service_level_goes_before_the_policys(house: House) -> None:
    asked = {"x-breakeven-ttft-ms": "1234", "x-breakeven-tpot-ms": "55.5", "x-breakeven-max-usd": "0.5"}
    record = house.gateway.record(ask(house.gateway.url, question("slo", "pair"), headers=asked).id)
    assert (record.asked_ttft_s, record.asked_tpot_s, record.asked_usd) == (1.234, 0.0555, 0.5)
    plain = house.gateway.record(ask(house.gateway.url, question("slo2", "pair")).id)
    assert (plain.asked_ttft_s, plain.asked_tpot_s, plain.asked_usd) == (10.0, None, None)
    assert ask(house.gateway.url, question("slo3", "pair"), headers={"x-breakeven-ttft-ms": "soon"}).status == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_is_asked_for_and_dropped_only_where_the_client_did_not_ask(house: House, path: str) -> None:
    ident = f"usage{path.count('/')}"
    silent = ask(house.gateway.url, question(ident, "pair", stream=True, prompt="x"), path)
    direct = ask(house.good.url, question(ident, "real", stream=True, prompt="x"), path)
    assert silent.body == direct.body
    assert b'"usage"' not in silent.body
    record = house.gateway.record(silent.id)
    assert (record.prompt_tokens, record.output_tokens, record.finish) == (7, 8, "stop")
    options = {"include_usage": True}
    asked = ask(house.gateway.url, question(ident, "pair", stream=True, prompt="x", stream_options=options), path)
    assert asked.body.count(b'"usage"') == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"model": "nobody"}'),
        (400, b'{"messages": []}'),
        (400, b'{"model": 5}'),
        (400, b"[1, 2]"),
        (400, b"no json"),
        (400, b'{"model": "pair", "x": ' + b"[" * 40 + b"]" * 40 + b"}"),
        (413, b'{"model": "pair", "x": "' + b"x" * 70_000 + b'"}'),
    ],
)
def test_what_is_wrong_is_told_and_reaches_nobody(house: House, status: int, body: bytes) -> None:
    before = house.good.seen.requests
    answer = ask(house.gateway.url, body)
    assert answer.status == status
    error = answer.json["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert house.good.seen.requests == before


def test_a_backends_400_is_the_clients_answer(house: House) -> None:
    answer = ask(house.gateway.url, question("four", "pair", chaos="400"))
    assert (answer.status, answer.backend) == (400, "good")
    assert answer.json["error"]["message"] == "scripted 400"
    assert len(house.gateway.record(answer.id).attempts) == 1


# Failing over.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [*BEFORE, "die", "nobody", *ODD])
def test_another_backend_answers_what_failed_before_its_first_byte(house: House, fault: str, stream: bool) -> None:
    ident = f"before-{fault}-{stream}"
    answer = ask(house.gateway.url, question(ident, f"try-{fault}-{stream}", stream=stream))
    direct = ask(house.good.url, question(ident, "real", stream=stream))
    assert (answer.status, answer.backend, answer.body, answer.whole) == (200, "good", direct.body, True)
    assert house.good.seen.ids[ident] == 2  # through and direct
    record = house.gateway.record(answer.id)
    assert [one.backend for one in record.attempts] == [f"bad-{fault}-{stream}", "good"]
    assert [one.outcome == "answered" for one in record.attempts] == [False, True]
    assert not record.error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", AFTER)
def test_half_an_answer_is_cut_and_never_begun_again(house: House, fault: str, stream: bool) -> None:
    if fault == "garbage_mid_body" and not stream:
        return  # it comes together with the first byte, and nothing of either has gone to the client
    ident = f"after-{fault}-{stream}"
    answer = ask(house.gateway.url, question(ident, f"try-{fault}-{stream}", stream=stream))
    if not stream:
        # Of a short answer in one piece nothing goes to the client before its end.
        assert (answer.status, answer.backend, answer.whole) == (200, "good", True)
        return
    assert not answer.whole
    assert answer.status == 200
    assert answer.backend == f"bad-{fault}-{stream}"
    assert house.good.seen.ids[ident] == 0
    assert house.bad.seen.ids[ident] == 1
    record = house.gateway.record(answer.id)
    assert [one.backend for one in record.attempts] == [f"bad-{fault}-{stream}"]
    assert record.error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ODD)
def test_what_is_no_answer_is_the_operators_trouble(house: House, fault: str, stream: bool) -> None:
    name = f"bad-{fault}-{stream}"
    before = house.gateway.backend(name)["errors"]
    answer = ask(house.gateway.url, question("alone", name, stream=stream))
    assert answer.status == 502
    message = answer.json["error"]["message"]
    assert f"no backend could answer ({name}: " in message
    assert "www-authenticate" not in answer.headers
    if fault.startswith("status-"):
        assert f"status {fault[-3:]}" in message
        assert answer.headers["retry-after"] == "2"
    record = house.gateway.record(answer.id)
    assert (record.status, record.backend, record.ttft_s) == (502, "", None)
    assert record.attempts[0].outcome not in ("answered", "")
    assert house.gateway.backend(name)["errors"] == before + 1


def test_a_busy_backend_s_time_is_told_in_whole_seconds(house: House) -> None:
    answer = ask(house.gateway.url, question("busy", "busy"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")


def test_signs_of_life_are_no_first_token(house: House) -> None:
    answer = ask(house.gateway.url, question("late", "late", stream=True))
    assert answer.body.startswith(b": PROCESSING\n\n: PROCESSING\n\n")
    record = house.gateway.record(answer.id)
    # Two comments and two roles come before it, each a twentieth of a second after the other.
    assert record.ttft_s is not None
    assert record.ttft_s > 0.15
    # Its finish, its counts and its end, three more of these, are no tokens either.
    assert record.tpot_s is not None
    assert record.ttft_s + record.tpot_s * 7 < (record.e2e_s or 0.0) - LATE_S


def test_signs_of_life_do_not_hold_a_request_for_ever(house: House) -> None:
    answer = ask(house.gateway.url, question("silent", "try-silent-True", stream=True))
    assert (answer.status, answer.backend) == (200, "good")
    assert [one.outcome for one in house.gateway.record(answer.id).attempts] == ["timeout", "answered"]


def test_why_a_backend_failed_is_not_waited_for_for_ever(house: House) -> None:
    answer = ask(house.gateway.url, question("drips", "drips", stream=True))
    assert (answer.status, b"drips: status 503" in answer.body) == (502, True)
    assert house.gateway.record(answer.id).e2e_s < 40.0, "the backend drips for a minute"


def test_an_error_in_the_middle_of_a_stream_is_no_success(house: House) -> None:
    before = house.gateway.backend("fails-late")["errors"]
    answer = ask(house.gateway.url, question("late", "fails-late", stream=True))
    assert b"out of memory" in answer.body
    record = house.gateway.record(answer.id)
    assert (record.attempts[0].outcome, record.error) == ("error", "error: out of memory")
    assert house.gateway.backend("fails-late")["errors"] == before + 1


def test_a_stream_that_ends_within_an_event_is_cut_for_its_client_too(house: House) -> None:
    answer = ask(house.gateway.url, question("half", "half", stream=True))
    assert (answer.status, answer.whole) == (200, False)
    assert house.gateway.record(answer.id).attempts[0].outcome == "cut"


def test_a_stream_that_ends_with_its_connection_must_say_that_it_ends(house: House) -> None:
    """Else a backend that dies looks like one that is done, to its client and to its breaker."""
    before = house.gateway.backend("dies")["errors"]
    answer = ask(house.gateway.url, question("dies", "dies", stream=True))
    assert (answer.status, answer.whole, b"[DONE]" in answer.body) == (200, False, False)
    record = house.gateway.record(answer.id)
    assert (record.attempts[0].outcome, record.error) == ("cut", "cut: the answer ends without saying so")
    assert house.gateway.backend("dies")["errors"] == before + 1
    answer = ask(house.gateway.url, question("closes", "closes", stream=True))
    assert (answer.status, answer.whole, answer.body.endswith(DONE)) == (200, True, True)
    assert house.gateway.record(answer.id).attempts[0].outcome == "answered"
    # A document has its own end: half of one under a length of ours would look whole.
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(house.gateway.url, question("dies", "dies"))
    answer = ask(house.gateway.url, question("closes", "closes"))
    assert (answer.status, answer.json["object"]) == (200, "chat.completion")
    # In the place of a stream too, from a server that does not say what it sends.
    answer = ask(house.gateway.url, question("bare", "bare", stream=True))
    assert (answer.status, answer.whole, answer.json["object"]) == (200, True, "chat.completion")
    assert house.gateway.record(answer.id).attempts[0].outcome == "answered"


def test_an_error_that_is_the_clients_own_goes_to_it_and_counts_against_nobody(house: House) -> None:
    before = house.gateway.backend("declines")["errors"]
    answer = ask(house.gateway.url, question("declined", "declines", stream=True))
    assert (answer.status, answer.whole) == (200, True)
    assert b"too long" in answer.body
    record = house.gateway.record(answer.id)
    assert (record.attempts[0].outcome, record.ttft_s) == ("declined", None)
    assert house.gateway.backend("declines")["errors"] == before


def test_an_answer_without_content_is_no_success(house: House) -> None:
    answer = ask(house.gateway.url, question("mute", "mute", stream=True))
    assert (answer.status, answer.whole, answer.body.endswith(DONE)) == (200, True, True)
    record = house.gateway.record(answer.id)
    assert (record.attempts[0].outcome, record.ttft_s, record.tpot_s) == ("empty", None, None)
    assert record.error == "an answer that says nothing"


def test_what_the_client_named_may_be_missing_by_its_own_fault(house: House) -> None:
    body = question("named", "try-status-404-False", previous_response_id="resp_1", input="go on")
    answer = ask(house.gateway.url, body, "/v1/responses")
    assert (answer.status, answer.json["error"]["message"]) == (404, "no: 404")


def test_a_backend_cannot_speak_for_the_gateway(house: House) -> None:
    answer = ask(house.gateway.url, question("spoofs", "spoofs"))
    assert (answer.status, answer.backend) == (200, "spoofs")
    assert answer.headers["x-request-id"] == answer.headers["x-breakeven-request-id"] != "forged"
    assert not {"www-authenticate"} & set(answer.headers)


def test_when_nobody_can_answer_the_client_is_told(house: House) -> None:
    answer = ask(house.gateway.url, question("hopeless", "hopeless"))
    assert answer.status == 502
    record = house.gateway.record(answer.id)
    assert {one.backend for one in record.attempts} == {"bad-500-True", "bad-nobody-True"}
    assert "127.0.0.1" not in answer.body.decode()


# Clients that leave.


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_cancels_the_backend(house: House, reset: bool) -> None:
    ident = f"leaves-{reset}"
    cancelled = house.good.seen.cancelled
    slow = question(ident, "pair", stream=True, chaos="slow", max_tokens=20_000)
    client = Listener(house.gateway.url, slow)
    client.until(ident.encode())
    client.leave(reset=reset)
    # The whole answer would take the backend far longer than anybody waits here.
    wait(lambda: house.good.seen.cancelled == cancelled + 1, "the backend goes on")
    wait(house.gateway.idle, "something is still counted")
    wait(lambda: [one.status for one in house.gateway.logged() if one.status == 499], "it is in no log")
    assert house.good.seen.ids[ident] == 1


def test_a_client_that_leaves_before_the_first_byte_asks_nobody_else(house: House) -> None:
    cancelled = house.good.seen.cancelled
    client = Listener(house.gateway.url, question("early", "pair", chaos="stall"))
    wait(lambda: house.good.seen.ids["early"], "it was never asked")
    client.leave()
    wait(lambda: house.good.seen.cancelled == cancelled + 1, "the backend goes on")
    wait(house.gateway.idle, "something is still counted")
    assert house.good.seen.ids["early"] == 1


# What is counted and logged, after all of the above.


def test_each_request_has_one_record_and_nothing_stays_counted(house: House) -> None:
    wait(house.gateway.idle, "something is still counted")
    state = house.gateway.state()
    asked = sum(one["requests"] for one in state["backends"])
    wait(lambda: sum(len(record.attempts) for record in house.gateway.logged()) >= asked, "a record is missing")
    records = house.gateway.logged()
    assert sum(len(record.attempts) for record in records) == asked
    assert len({record.id for record in records}) == len(records)
    assert state["log_dropped"] == 0
    assert {name for one in house.good.seen.headers for name in one} <= {
        "host", "content-length", "content-type", "accept", "accept-encoding", "connection", "user-agent"
    } | {"x-breakeven-request-id"}  # fmt: skip


def test_both_workers_serve(house: House) -> None:
    wait(
        lambda: _many(house.gateway, 20) and len({r.id.split("-")[0] for r in house.gateway.logged()}) == 2, "one only"
    )


def _many(gateway: Gateway, count: int) -> list[Reply]:
    return [ask(gateway.url, question(f"many{k}", "even")) for k in range(count)]


def _body_of(server: ChaosServer, ident: str) -> bytes:
    return next(body for body in reversed(server.seen.bodies) if ident.encode() in body)
