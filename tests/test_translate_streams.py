"""Translation between the APIs, streams: they say what the whole answer says, wherever they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.serve.tap import StreamTap, WholeTap
from breakeven.gateway.translate.chat import ChatWriter
from breakeven.gateway.translate.messages_told import MessageWriter
from breakeven.gateway.translate.responses_told import ResponseWriter
from breakeven.gateway.translate.said import (
    CHAT,
    MESSAGES,
    READERS,
    RESPONSES,
    AnswerPart,
    AnswerSaid,
    Json,
)
from breakeven.gateway.translate.table import WRITERS, StreamTurner, Turned, failed_stream, turned_tap, within_stream
from breakeven.wire.sse import event as event_bytes
from breakeven.wire.sse import events_of, split_events
from tests.translate_fixtures import CALL, COUNTS, FACTS, arguments, data_of, joined, names, raw, texts, written


def read_again(endpoint: str, stream: bytes) -> AnswerSaid:
    """A stream as its own reader takes it, pieces of one kind joined."""
    said = AnswerSaid()
    for data in events_of(stream):
        if data != b"[DONE]":
            said.parts += READERS[endpoint].event(data, said)
    said.parts = joined(said.parts)
    return said


def shapes(parts: list[AnswerPart]) -> list[tuple[str, str, str]]:
    return [(part.kind, part.text, part.name) for part in parts]


def test_a_client_is_told_the_backends_own_count_and_not_that_of_its_pieces() -> None:
    asked: Json = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    pieces = [{"choices": [{"index": 0, "delta": {"content": letter}}]} for letter in "many letters"]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    for usage, told in (({"prompt_tokens": 7, "completion_tokens": 3}, 3), (None, len(pieces))):
        fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in asked.items()}
        turned = Turned("/v1/messages", "/v1/chat/completions", fields)
        tap = turned_tap(StreamTap("/v1/chat/completions", drop_usage=False), turned, "i", 5, 200)
        events = [*pieces, end, *([{"choices": [], "usage": usage}] if usage else [])]
        out = (
            tap.feed(b"".join(event_bytes(json.dumps(one).encode()) for one in events) + event_bytes(b"[DONE]"))
            + tap.rest()
        )
        last = next(one for one in data_of(out) if one["type"] == "message_delta")
        assert last["usage"]["output_tokens"] == told
        assert tap.output_tokens == len(pieces)  # what is charged


@pytest.mark.parametrize(
    ("choices", "thought", "text"),
    [
        (
            [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}, {"delta": {}, "message": {"content": "ab"}}],
            "",
            "ab",
        ),
        ([{"delta": {"content": "ab"}}, {"message": {"content": "ab"}, "finish_reason": "stop"}], "", "ab"),
        ([{"message": {"content": "a"}}, {"message": {"content": "b"}}], "", "ab"),
        ([{"delta": {"reasoning_text": "hm"}}, {"delta": {}, "message": {"content": "ab"}}], "hm", "ab"),
        ([{"delta": {"role": "assistant", "content": ""}}, {"delta": {}, "message": {"content": "ab"}}], "", "ab"),
    ],
)
def test_a_message_at_the_end_of_a_stream_repeats_nothing(choices: list[Json], thought: str, text: str) -> None:
    said = AnswerSaid()
    parts = [part for one in choices for part in READERS[CHAT].event(json.dumps({"choices": [one]}).encode(), said)]
    for kind, brought in (("thought", thought), ("text", text)):
        assert "".join(part.text for part in parts if part.kind == kind) == brought


@pytest.mark.parametrize(("told", "prompt"), [(7, 7), (0, 5), (None, 5)])
def test_a_prompt_that_was_counted_as_nothing_is_told_as_estimated(told: int | None, prompt: int) -> None:
    asked: Json = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    turned = Turned("/v1/messages", "/v1/chat/completions", raw(asked))
    tap = turned_tap(WholeTap("/v1/chat/completions"), turned, "i", 5, 200)
    usage = {"usage": {"prompt_tokens": told, "completion_tokens": 3}}
    answer = {"choices": [{"message": {"content": "a b c"}, "finish_reason": "stop"}], **usage}
    out = tap.feed(json.dumps(answer).encode()) + tap.rest()
    assert json.loads(out)["usage"]["input_tokens"] == prompt


@st.composite
def answers(draw: st.DrawFn) -> list[AnswerPart]:
    """Pieces of an answer in the order in which they come; calls' pieces may lie between each other's."""
    parts = [AnswerPart("thought", text) for text in draw(st.lists(texts, max_size=2))]
    parts += [AnswerPart("text", text) for text in draw(st.lists(texts, max_size=3))]
    pieces: list[list[AnswerPart]] = []
    for at in range(draw(st.integers(0, 3))):
        sent = msgspec.json.encode(draw(arguments)).decode()
        cut = draw(st.integers(0, len(sent)))
        name = draw(names)
        pieces.append([AnswerPart("call", sent[:cut], f"c{at}", name, at), AnswerPart("call", sent[cut:], at=at)])
    if draw(st.booleans()):
        pieces = [[found[0] for found in pieces], [found[1] for found in pieces]]
    return [*parts, *(part for found in pieces for part in found)]


@given(parts=answers())
def test_a_stream_says_what_the_whole_answer_says(parts: list[AnswerPart]) -> None:
    finish = "calls" if any(part.kind == "call" for part in parts) else "stop"
    whole = joined(parts)
    for endpoint in (MESSAGES, CHAT):
        stream = written(WRITERS[endpoint]({}, FACTS), AnswerSaid(list(parts), finish, ident="7"))
        again = read_again(endpoint, stream)
        assert shapes(again.parts) == shapes(whole), endpoint
        assert again.finish == finish
        body = json.dumps(WRITERS[endpoint]({}, FACTS).whole(AnswerSaid(whole, finish, ident="7"), COUNTS)).encode()
        read = READERS[endpoint].whole(body)
        assert shapes(read.parts) == shapes(whole)
    events = data_of(written(ResponseWriter({}, FACTS), AnswerSaid(list(parts), finish, ident="7")))
    last = events[-1]["response"]
    assert last == ResponseWriter({}, FACTS).whole(AnswerSaid(whole, finish, ident="7"), COUNTS)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    assert [done[at] for at in sorted(done)] == last["output"]


@given(parts=answers())
def test_blocks_of_a_message_follow_each_other(parts: list[AnswerPart]) -> None:
    """As Anthropic's clients need it: one block at a time, none opened twice, numbers without a hole."""
    events = data_of(written(MessageWriter({}, FACTS), AnswerSaid(list(parts), "stop")))
    assert [events[0]["type"], *(event["type"] for event in events[-2:])] == [
        "message_start", "message_delta", "message_stop",
    ]  # fmt: skip
    open_at, seen = None, 0
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert (open_at, event["index"]) == (None, seen)
            open_at, seen = seen, seen + 1
        else:
            assert event["index"] == open_at
            open_at = None if event["type"] == "content_block_stop" else open_at
    assert open_at is None


def chunks(*deltas: Json, finish: str | None = "stop") -> Iterator[bytes]:
    """Events of a stream of chat completions."""
    for delta in ({"role": "assistant", "content": ""}, *deltas):
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield f"data: {json.dumps({'id': 'chatcmpl-7', 'model': 'served', 'choices': [choice]})}\n\n".encode()
    if finish is not None:
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': finish}]})}\n\n".encode()
        yield b'data: {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 9}}\n\n'
        yield b"data: [DONE]\n\n"


@settings(max_examples=60)
@given(cut=st.lists(st.integers(1, 40), max_size=30), endpoint=st.sampled_from([MESSAGES, RESPONSES]))
def test_where_a_stream_is_cut_changes_nothing(cut: list[int], endpoint: str) -> None:
    raw = b": wait\n\n" + b"".join(chunks({"content": "é"}, {"content": "b"}, {"tool_calls": [{**CALL, "index": 0}]}))

    def turned(pieces: list[bytes]) -> bytes:
        turner = StreamTurner(READERS[CHAT].event, WRITERS[endpoint]({}, FACTS))
        return b"".join([*map(turner.feed, pieces), turner.end(COUNTS)])

    pieces, left = [], raw
    for size in cut:
        pieces.append(left[:size])
        left = left[size:]
    assert turned([*pieces, left]) == turned([raw])


@settings(max_examples=60)
@given(
    raw=st.lists(st.binary(max_size=30) | st.sampled_from([b"data: ", b"\n\n", *chunks({"content": "a"})]), max_size=9)
)
def test_no_bytes_of_a_backend_break_it(raw: list[bytes]) -> None:
    for way, endpoint in ((CHAT, MESSAGES), (CHAT, RESPONSES), (MESSAGES, CHAT)):
        turner = StreamTurner(READERS[way].event, WRITERS[endpoint]({}, FACTS))
        out = b"".join([*map(turner.feed, raw), turner.end(COUNTS)])
        assert all(isinstance(event, dict) for event in data_of(out))
        if turner.error:
            assert b"error" in split_events(out)[-1]


def called(**fields: object) -> Json:
    """A delta with one call; `index` and `id` where they are given."""
    place = {name: fields.pop(name) for name in ("index", "id") if name in fields}
    return {"tool_calls": [{**place, "type": "function", "function": fields}]}


ONE, TWO = '{"x":1}', '{"x":2}'


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        (
            [called(index=0, id="a", name="f", arguments=ONE), called(index=0, id="b", name="g", arguments=""),
             called(index=0, arguments=TWO)],
            [("a", "f", ONE), ("b", "g", TWO)],
        ),
        (
            [called(id="a", name="f", arguments=ONE), called(id="b", name="f", arguments=TWO)],
            [("a", "f", ONE), ("b", "f", TWO)],
        ),
        (
            [called(index=0, id="a", name="f", arguments=""), called(index=0, id="", arguments=ONE),
             called(index=0, id="b", name="f", arguments=""), called(index=0, id="", arguments=TWO)],
            [("a", "f", ONE), ("b", "f", TWO)],
        ),
        (  # one index and no id at all
            [called(index=0, name="f", arguments=ONE), called(index=0, name="f", arguments=TWO)],
            [("", "f", ONE), ("", "f", TWO)],
        ),
        (  # the same id with each piece
            [called(index=0, id="a", name="f", arguments='{"x"'), called(index=0, id="a", name="f", arguments=":1}")],
            [("a", "f", ONE)],
        ),
        (  # another id with each piece, as of a vLLM that was told which tool to call
            [called(index=0, id="a", name="f", arguments='{"x"'), called(index=0, id="b", name="f", arguments=":1}"),
             called(index=0, id="c", name="f", arguments="")],
            [("a", "f", ONE)],
        ),
        (  # another tool, its arguments behind its name
            [called(index=0, name="f", arguments=ONE), called(index=0, name="g", arguments=""),
             called(index=0, arguments=TWO)],
            [("", "f", ONE), ("", "g", TWO)],
        ),
        (
            [called(index=0, name="f", arguments=ONE), called(index=0, name="f", arguments=""),
             called(index=0, arguments=TWO)],
            [("", "f", ONE), ("", "f", TWO)],
        ),
        (  # the same name with each piece
            [called(index=0, name="f", arguments='{"x"'), called(index=0, name="f", arguments=":1}"),
             called(index=0, name="f", arguments="")],
            [("", "f", ONE)],
        ),
        (
            [called(index=0, id="a", name="f", arguments='{"x"'), called(index=1, id="b", name="f", arguments='{"x"'),
             called(index=0, arguments=":1}"), called(index=1, arguments=":2}")],
            [("a", "f", ONE), ("b", "f", TWO)],
        ),
    ],
)  # fmt: skip
def test_calls_that_a_backend_does_not_number_are_told_apart(
    deltas: list[Json], calls: list[tuple[str, str, str]]
) -> None:
    raw_stream = b"".join(chunks(*deltas, finish="tool_calls"))
    said = read_again(CHAT, raw_stream)
    assert [(part.id, part.name, part.text) for part in said.parts] == calls
    turner = StreamTurner(READERS[CHAT].event, ResponseWriter({}, FACTS))
    output = data_of(turner.feed(raw_stream) + turner.end(COUNTS))[-1]["response"]["output"]
    assert [(item["name"], item["arguments"]) for item in output] == [call[1:] for call in calls]
    turner = StreamTurner(READERS[CHAT].event, MessageWriter({}, FACTS))
    again = read_again(MESSAGES, turner.feed(raw_stream) + turner.end(COUNTS))
    assert [(part.name, part.text) for part in again.parts] == [call[1:] for call in calls]


def spoken(given: Json, *pieces: str, calls: int = 1, stop: str = "tool_use") -> bytes:
    """One of Anthropic's messages as a stream: calls that begin with `given`."""
    block = {"type": "tool_use", "id": "t", "name": "f", "input": given}
    events: list[Json] = [{"type": "message_start", "message": {"id": "msg_7", "model": "served", "content": []}}]
    for at in range(calls):
        events += [
            {"type": "content_block_start", "index": at, "content_block": block},
            *(
                {
                    "type": "content_block_delta",
                    "index": at,
                    "delta": {"type": "input_json_delta", "partial_json": piece},
                }
                for piece in pieces
            ),
            {"type": "content_block_stop", "index": at},
        ]
    events += [
        {"type": "message_delta", "delta": {"stop_reason": stop}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return b"".join(event_bytes(json.dumps(one).encode(), one["type"].encode()) for one in events)


@pytest.mark.parametrize(
    ("begins", "pieces", "given"),
    [
        ({}, [""], {}),  # a tool that takes nothing
        ({"path": "/x"}, [], {"path": "/x"}),  # Kimi
        ({}, ['{"path"', ':"/x"}'], {"path": "/x"}),
        ({"path": "/x"}, ['{"path":"/x"}'], {"path": "/x"}),  # twice
    ],
)
def test_a_call_of_anthropics_has_its_arguments_whenever_they_come(
    begins: Json, pieces: list[str], given: Json
) -> None:
    arguments = msgspec.json.encode(given).decode()
    content = [{"type": "tool_use", "id": "t", "name": "f", "input": given}]
    whole = READERS[MESSAGES].whole(
        json.dumps({"id": "msg_7", "model": "served", "content": content, "stop_reason": "tool_use"}).encode()
    )
    told = {}
    for endpoint in (CHAT, RESPONSES):
        turner = StreamTurner(READERS[MESSAGES].event, WRITERS[endpoint]({}, FACTS))
        told[endpoint] = data_of(turner.feed(spoken(begins, *pieces)) + turner.end(COUNTS))
    calls = [call for event in told[CHAT] for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == arguments
    message = ChatWriter({}, FACTS).whole(whole, COUNTS)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}
    last = told[RESPONSES][-1]["response"]
    assert last == ResponseWriter({}, FACTS).whole(whole, COUNTS)
    assert last["output"][0]["arguments"] == arguments
    deltas = [event["delta"] for event in told[RESPONSES] if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == arguments


@pytest.mark.parametrize(
    ("given", "stop", "arguments"),
    [
        ({}, "max_tokens", ["{}", ""]),  # the last one may have lost them
        ({}, "refusal", ["{}", ""]),
        ({"x": 1}, "max_tokens", [ONE, ONE]),
        ({}, "tool_use", ["{}", "{}"]),
    ],
)
def test_arguments_that_the_limit_cut_off_are_not_made_up(given: Json, stop: str, arguments: list[str]) -> None:
    said = read_again(MESSAGES, spoken(given, calls=2, stop=stop))
    assert [part.text for part in said.parts] == arguments
    block = {"type": "tool_use", "id": "t", "name": "f", "input": given}
    whole = {"id": "msg_7", "model": "served", "content": [block, block], "stop_reason": stop}
    assert [part.text for part in READERS[MESSAGES].whole(json.dumps(whole).encode()).parts] == arguments


def test_an_error_before_a_streams_first_event_is_one_that_clients_read() -> None:
    body = b'{"error": {"message": "no memory", "code": "oom"}}'
    assert failed_stream(CHAT, "i", "no memory", body) == b"data: " + body + b"\n\n"
    assert failed_stream("/v1/completions", "i", "no memory", body) == b"data: " + body + b"\n\n"
    told = {"type": "error", "error": {"type": "api_error", "message": "no memory"}}
    failed = failed_stream(MESSAGES, "i", "no memory", body)
    assert failed == event_bytes(msgspec.json.encode(told), b"error") == within_stream(MESSAGES, "i", 500, body)
    events = data_of(within_stream(RESPONSES, "i", 200, body))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert [event["sequence_number"] for event in events] == [0, 1, 2]
    assert events[-1]["response"]["error"]["message"] == "no memory"
    assert within_stream(MESSAGES, "i", 200, b'{\n"content": []}') == b'data: { "content": []}\n\n'
    events_of_its_own = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert within_stream(MESSAGES, "i", 200, events_of_its_own) == events_of_its_own


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES, CHAT])
def test_an_error_within_a_stream_ends_it_in_the_clients_words(endpoint: str) -> None:
    way = MESSAGES if endpoint == CHAT else CHAT
    turner = StreamTurner(READERS[way].event, WRITERS[endpoint]({}, FACTS))
    out = turner.feed(b'event: error\ndata: {"type": "error", "error": {"message": "no memory"}}\n\n')
    assert turner.error == "no memory"
    assert turner.feed(b"".join(chunks({"content": "x"}))) == turner.end(COUNTS) == b""
    last = data_of(out)[-1]
    error = last["response"]["error"] if endpoint == RESPONSES else last["error"]
    assert error["message"] == "no memory"


def test_a_stream_without_a_reason_for_its_end_gets_none() -> None:
    turner = StreamTurner(READERS[CHAT].event, MessageWriter({}, FACTS))
    out = turner.feed(b"".join(chunks({"content": "x"}, finish=None))) + turner.end(COUNTS)
    assert [event["type"] for event in data_of(out)] == ["message_start", "content_block_start", "content_block_delta"]
    turner = StreamTurner(READERS[CHAT].event, MessageWriter({}, FACTS))
    out = turner.feed(b"".join([*chunks({"content": "x"}, finish=None), b"data: [DONE]"])) + turner.end(COUNTS)
    assert data_of(out)[-1]["type"] == "message_stop"


@pytest.mark.parametrize("asked", [True, False])
def test_a_chat_client_hears_the_usage_it_asked_for(asked: bool) -> None:
    writer = ChatWriter({"stream_options": {"include_usage": asked}}, FACTS)
    last = data_of(written(writer, AnswerSaid([AnswerPart("text", "x")], "stop")))[-1]
    assert (last.get("usage") is not None) is asked
