"""Translation between the APIs, answers: field by field, errors too.

They are checked against what the SDKs of OpenAI and Anthropic parse them into where these are installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from breakeven.gateway.serve.tap import tap_for
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
    CannotTranslateError,
    Counts,
    Json,
)
from breakeven.gateway.translate.table import Turned, turned_tap
from breakeven.wire.sse import event as event_bytes
from tests.translate_fixtures import CALL, COUNTS, FACTS, HI, data_of, joined, raw, written

COMPLETION: Json = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "created": 5,
    "model": "served",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "I call", "reasoning_content": "hm", "tool_calls": [CALL]},
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 9},
}


def test_a_completion_as_a_message() -> None:
    said = READERS[CHAT].whole(json.dumps(COMPLETION).encode())
    assert MessageWriter({}, FACTS).whole(said, COUNTS) == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "served",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "I call"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 16,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": 4,
            "output_tokens": 9,
        },
    }


@pytest.mark.parametrize(
    ("finish", "asked", "expected"),
    [
        ("stop", {}, ("end_turn", None)),
        ("length", {}, ("max_tokens", None)),
        ("content_filter", {}, ("refusal", None)),
        ("stop", {"stop_sequences": ["END"]}, ("stop_sequence", "END")),
        ("stop", {"stop_sequences": ["other"]}, ("end_turn", None)),
    ],
)
def test_why_it_ends(finish: str, asked: Json, expected: tuple[str, str | None]) -> None:
    choice = {"message": {"content": "x"}, "finish_reason": finish, "stop_reason": "END"}
    said = READERS[CHAT].whole(json.dumps({"choices": [choice]}).encode())
    told = MessageWriter(asked, FACTS).whole(said, COUNTS)
    assert (told["stop_reason"], told["stop_sequence"]) == expected


@pytest.mark.parametrize(
    ("finish", "message", "response"),
    [
        ("model_length", "max_tokens", "max_output_tokens"),  # Mistral
        ("sensitive", "refusal", "content_filter"),  # z.ai
        ("a reason of tomorrow", "end_turn", None),
    ],
)
def test_why_it_ends_in_other_servers_words(finish: str, message: str, response: str | None) -> None:
    choice = {"message": {"content": "x"}, "finish_reason": finish}
    said = READERS[CHAT].whole(json.dumps({"choices": [choice]}).encode())
    assert MessageWriter({}, FACTS).whole(said, COUNTS)["stop_reason"] == message
    why = ResponseWriter({}, FACTS).whole(said, COUNTS)["incomplete_details"]
    assert (why and why["reason"]) == response


def through(endpoint: str, way: str, answer: Json | list[Json], asked: Json | None = None) -> list[Json]:
    """An answer of a backend, whole or the events of a stream, as a client has it."""
    fields = {"model": "public", "max_tokens": 9, "messages": [HI], **(asked or {})}
    if endpoint == RESPONSES:
        fields = {"model": "public", "input": "hi", **(asked or {})}
    turned = Turned(endpoint, way, raw(fields))
    streams = isinstance(answer, list)
    tap = turned_tap(tap_for(way, b"identity", streams=streams, drop_usage=False), turned, "i", 5, 200)
    made = b"".join(event_bytes(json.dumps(one).encode()) for one in answer) if streams else json.dumps(answer).encode()
    out = tap.feed(made) + tap.rest()
    return data_of(out) if streams else [json.loads(out)]


@pytest.mark.parametrize("reason", ["abort", "network_error", "insufficient_system_resource", "error"])
def test_an_answer_that_its_backend_broke_off_is_no_whole_one(reason: str) -> None:
    half: Json = {"model": "m", "choices": [{"delta": {"content": "half"}, "finish_reason": None}]}
    events = [half, {"model": "m", "choices": [{"delta": {}, "finish_reason": reason}]}]
    for endpoint, last in ((MESSAGES, "error"), (RESPONSES, "response.failed")):
        assert through(endpoint, CHAT, events)[-1]["type"] == last
        whole = {"model": "m", "choices": [{"message": {"content": "half"}, "finish_reason": reason}]}
        (told,) = through(endpoint, CHAT, whole)
        assert told["error"]["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_what_a_backend_counts_reaches_the_client(streams: bool) -> None:
    """Thoughts and what was put into a cache are counts like others: 0 would be said of what nobody looked at."""
    usage = {
        "prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 7},
    }  # fmt: skip
    told: Json = {"model": "m", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    chat: Json | list[Json] = told
    if streams:
        chat = [
            {"model": "m", "choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]},
            {"model": "m", "choices": [], "usage": usage},
        ]
    message = next(one["usage"] for one in reversed(through(MESSAGES, CHAT, chat)) if one.get("usage"))
    assert message == {
        "input_tokens": 10, "cache_creation_input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 7},
    }  # fmt: skip
    last = through(RESPONSES, CHAT, chat)[-1]
    assert last.get("response", last)["usage"] == {
        "input_tokens": 20, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6},
        "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 29,
    }  # fmt: skip
    anthropics: Json | list[Json] = {
        "type": "message", "model": "m", "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn",
        "usage": message,
    }  # fmt: skip
    if streams:
        first = {**message, "output_tokens": 1}
        anthropics = [
            {"type": "message_start", "message": {"model": "m", "content": [], "usage": first}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": message},
            {"type": "message_stop"},
        ]
    asked = {"stream_options": {"include_usage": True}}
    assert through(CHAT, MESSAGES, anthropics, asked)[-1]["usage"] == usage


def test_thoughts_among_the_parts_of_a_content_are_thoughts() -> None:
    """Mistral's reasoning models have no other place for them."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
        {"type": "text", "text": "x"},
        {"type": "reference", "reference_ids": [1]},
        {"type": "text", "text": "y"},
    ]
    (told,) = through(MESSAGES, CHAT, {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    assert [(one["type"], one.get("thinking") or one.get("text")) for one in told["content"]] == [
        ("thinking", "hm"), ("text", "xy"),
    ]  # fmt: skip
    deltas = [{"choices": [{"delta": {"content": [part]}}]} for part in parts]
    events = through(MESSAGES, CHAT, [*deltas, {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}])
    said = [one["delta"] for one in events if one["type"] == "content_block_delta"]
    assert said == [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "text_delta", "text": "x"},
        {"type": "text_delta", "text": "y"},
    ]


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
def test_a_whole_answer_in_place_of_a_stream_is_told_as_one(endpoint: str) -> None:
    """As of servers that heed no `stream` beside tools: a client of events would read nothing at all."""
    calls = [{**CALL, "id": "a", "index": 0}, {**CALL, "id": "b", "index": 0}]
    message = {"content": "Hello", "reasoning_content": "hm", "tool_calls": calls}
    answer = {"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
    fields: Json = {"messages": [HI], "max_tokens": 9} if endpoint == MESSAGES else {"input": "hi"}
    turned = Turned(endpoint, CHAT, raw({"model": "public", "stream": True, **fields}))
    tap = turned_tap(tap_for(CHAT, b"identity", streams=False, drop_usage=False), turned, "i", 5, 200)
    told = data_of(tap.feed(json.dumps(answer).encode()) + tap.rest())
    if endpoint == MESSAGES:
        begun = [one["content_block"] for one in told if one["type"] == "content_block_start"]
        assert [(one["type"], one.get("id")) for one in begun] == [
            ("thinking", None), ("text", None), ("tool_use", "a"), ("tool_use", "b"),
        ]  # fmt: skip
        assert told[-1]["type"] == "message_stop"
    else:
        assert [one["type"] for one in told[-1]["response"]["output"]] == [
            "reasoning", "message", "function_call", "function_call",
        ]  # fmt: skip
        assert [one.get("arguments") for one in told[-1]["response"]["output"]][2:] == ['{"a":1}'] * 2


SIGNATURE = "CiQB+/xyz0123AbC4A=="


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("ident", ["call_1", ""])
@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
def test_a_calls_signature_comes_back_to_who_gave_it_and_to_nobody_else(
    endpoint: str, ident: str, streams: bool
) -> None:
    """Gemini refuses the turn after a call without it, and other APIs have no place for it."""
    calls: list[Json] = [
        {"index": 0, **CALL, "id": ident, "extra_content": {"google": {"thought_signature": SIGNATURE}}},
        {"index": 1, **CALL, "id": "call_2"},
    ]
    answer: Json | list[Json] = {
        "model": "m", "choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "stop"}],
    }  # fmt: skip
    if streams:
        deltas = [{"tool_calls": [call]} for call in calls]
        answer = [{"model": "m", "choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        answer.append({"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]})
    told = through(endpoint, CHAT, answer)
    if endpoint == MESSAGES:
        blocks = [one["content_block"] for one in told if one["type"] == "content_block_start"]
        ids = [one["id"] for one in (blocks if streams else told[0]["content"])]
        turns: Json = {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": one, "name": "f", "input": {"a": 1}} for one in ids],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": one, "content": "x"} for one in ids],
                },
            ]
        }
    else:
        ids = [one["call_id"] for one in (told[-1]["response"] if streams else told[0])["output"]]
        results = [{"type": "function_call_output", "call_id": one, "output": "x"} for one in ids]
        made = [{"type": "function_call", "call_id": one, "name": "f", "arguments": '{"a":1}'} for one in ids]
        turns = {"input": [*made, *results]}
    assert all(re.fullmatch("[A-Za-z0-9_-]+", one) for one in ids), "Anthropic's API takes no other"
    turned = Turned(endpoint, CHAT, raw({"model": "public", "max_tokens": 9, **turns}))
    for signs in (True, False):
        sent = json.loads(bytes(turned.fields(msgspec.Raw(b'"m"'), signs=signs)["messages"]))
        first, second = next(turn["tool_calls"] for turn in sent if turn.get("tool_calls"))
        results = [turn["tool_call_id"] for turn in sent if turn["role"] == "tool"]
        assert [first["id"], second["id"]] == results
        assert results[1] == "call_2"
        assert results[0].startswith("call_")
        assert "__thought__" not in json.dumps(sent)
        assert first.get("extra_content") == (calls[0]["extra_content"] if signs else None)
        assert "extra_content" not in second


def test_a_signature_that_no_id_can_hold_is_left_out() -> None:
    for odd in ("not base64!", "abc", 7, None):
        call = {**CALL, "extra_content": {"google": {"thought_signature": odd}}}
        choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        assert through(MESSAGES, CHAT, {"choices": [choice]})[0]["content"][0]["id"] == CALL["id"]


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
def test_a_stream_begins_with_the_name_of_who_answers(endpoint: str) -> None:
    """Azure's first event is about its filter alone, and names nobody; some servers never do."""
    filtered: Json = {"id": "", "model": "", "created": 0, "object": "", "choices": [], "prompt_filter_results": []}
    for name, expected in (("gpt", "gpt"), ("", "public")):
        text = {"id": "chatcmpl-7", "model": name, "choices": [{"delta": {"content": "x"}}]}
        end = {"id": "chatcmpl-7", "model": name, "choices": [{"delta": {}, "finish_reason": "stop"}]}
        first = through(endpoint, CHAT, [filtered, text, end])[0]
        begun = first["message"] if endpoint == MESSAGES else first["response"]
        assert begun["model"] == expected
        assert begun["id"].endswith("_7")
        whole = {"model": name, "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
        assert through(endpoint, CHAT, whole)[0]["model"] == expected


def test_a_call_that_the_limit_cut_is_none_and_one_that_is_no_json_is_no_answer() -> None:
    half = AnswerSaid([AnswerPart("text", "x"), AnswerPart("call", '{"a":', "c", "f")], "length")
    assert [block["type"] for block in MessageWriter({}, FACTS).whole(half, COUNTS)["content"]] == ["text"]
    with pytest.raises(CannotTranslateError, match="arguments are no JSON object"):
        MessageWriter({}, FACTS).whole(AnswerSaid([AnswerPart("call", "[1]", "c", "f")], "calls"), COUNTS)


def test_a_completion_as_a_response() -> None:
    said = READERS[CHAT].whole(json.dumps(COMPLETION).encode())
    told = ResponseWriter({"instructions": "Be kind", "temperature": 0.5}, FACTS).whole(said, COUNTS)
    assert (told["id"], told["status"], told["instructions"], told["temperature"]) == (
        "resp_7", "completed", "Be kind", 0.5,
    )  # fmt: skip
    assert [(item["type"], item["status"]) for item in told["output"]] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"),
    ]  # fmt: skip
    assert told["output"][1]["content"] == [
        {"type": "output_text", "text": "I call", "annotations": [], "logprobs": []}
    ]
    assert told["output"][2]["call_id"] == "c1"
    assert told["output"][2]["arguments"] == '{"a":1}'
    assert told["usage"]["total_tokens"] == 29
    assert told["store"] is False
    cut = ResponseWriter({}, FACTS).whole(AnswerSaid([AnswerPart("text", "x")], "length"), COUNTS)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_custom_tools_call_is_a_text_again() -> None:
    asked = {"tools": [{"type": "custom", "name": "patch"}]}
    call = AnswerPart("call", '{"input":"*** x"}', "c", "patch")
    item = ResponseWriter(asked, FACTS).whole(AnswerSaid([call], "calls"), COUNTS)["output"][0]
    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "c", "*** x")
    events = data_of(written(ResponseWriter(asked, FACTS), AnswerSaid([call], "calls")))
    done = next(event for event in events if event["type"] == "response.output_item.done")
    assert done["item"] == item
    assert [event["input"] for event in events if event["type"].endswith("input.done")] == ["*** x"]


def test_a_call_without_arguments_is_json_for_a_client_of_responses() -> None:
    for text, finish, arguments in (("", "calls", "{}"), ("", "length", ""), ('{"a"', "length", '{"a"')):
        said = AnswerSaid([AnswerPart("call", text, "c", "f")], finish)
        item = ResponseWriter({}, FACTS).whole(said, COUNTS)["output"][0]
        assert item["arguments"] == arguments, "what the limit has cut is not made up"
        events = data_of(written(ResponseWriter({}, FACTS), said))
        assert events[-1]["response"]["output"] == [item]
        done = [event["arguments"] for event in events if event["type"] == "response.function_call_arguments.done"]
        deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
        assert done == ["".join(deltas)] == [arguments]


def test_an_error_keeps_its_code_where_both_apis_have_one_and_its_words_everywhere() -> None:
    words = "This model's maximum context length is 4096 tokens. " * 8
    named = {"type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"}
    error = {"message": words.strip(), **named}
    body = json.dumps({"error": error}).encode()
    told = {}
    for endpoint, asked in ((RESPONSES, {"input": "hi"}), (MESSAGES, {"max_tokens": 1, "messages": [HI]})):
        turned = Turned(endpoint, CHAT, raw({"model": "m", **asked}))
        tap = turned_tap(tap_for(CHAT, b"identity", streams=False, drop_usage=False), turned, "i", 5, 400)
        told[endpoint] = json.loads(tap.feed(body) + tap.rest())
    assert told[RESPONSES] == {"error": error}
    assert told[MESSAGES]["error"] == {"type": "invalid_request_error", "message": words.strip()}


def every_answer() -> Iterator[tuple[list[AnswerPart], str]]:
    call = [
        AnswerPart("call", '{"a"', "c0", "f", 0),
        AnswerPart("call", ":1}", at=0),
        AnswerPart("call", "{}", "c1", "patch", 1),
    ]
    yield [AnswerPart("text", "x")], "stop"
    yield [AnswerPart("thought", "hm"), AnswerPart("text", "x"), AnswerPart("text", "y")], "length"
    yield [AnswerPart("thought", "hm"), *call], "calls"
    yield [AnswerPart("refusal", "no")], "filter"


TOLD_ALL = Counts(20, 4, 9, thoughts=7, written=6)


def strict(value: Any, adapter: Any) -> None:
    adapter.validate_json(json.dumps(value), strict=True)


def test_anthropics_own_types_take_our_messages() -> None:
    types = pytest.importorskip("anthropic.types", reason="anthropic is not installed")
    from pydantic import TypeAdapter

    events, whole = TypeAdapter(types.RawMessageStreamEvent), TypeAdapter(types.Message)
    for parts, finish in every_answer():
        for event in data_of(written(MessageWriter({}, FACTS), AnswerSaid(parts, finish))):
            strict(event, events)
        for counts in (COUNTS, TOLD_ALL):
            strict(MessageWriter({}, FACTS).whole(AnswerSaid(joined(parts), finish), counts), whole)
        strict(data_of(MessageWriter({}, FACTS).end(AnswerSaid(finish=finish), TOLD_ALL))[0], events)


def test_openais_own_types_take_our_responses_and_completions() -> None:
    responses = pytest.importorskip("openai.types.responses", reason="openai is not installed")
    chat = pytest.importorskip("openai.types.chat", reason="openai is not installed")
    from pydantic import TypeAdapter

    events, whole = TypeAdapter(responses.ResponseStreamEvent), TypeAdapter(responses.Response)
    chunk, completion = TypeAdapter(chat.ChatCompletionChunk), TypeAdapter(chat.ChatCompletion)
    asked = {"tools": [{"type": "custom", "name": "patch"}]}
    for parts, finish in every_answer():
        for event in data_of(written(ResponseWriter(asked, FACTS), AnswerSaid(parts, finish))):
            strict(event, events)
        strict(ResponseWriter(asked, FACTS).whole(AnswerSaid(joined(parts), finish), TOLD_ALL), whole)
        strict(ChatWriter({}, FACTS).whole(AnswerSaid(joined(parts), finish), TOLD_ALL), completion)
        strict(ResponseWriter(asked, FACTS).whole(AnswerSaid(joined(parts), finish), COUNTS), whole)
        for event in data_of(written(ChatWriter({}, FACTS), AnswerSaid(parts, finish))):
            strict(event, chunk)
        strict(ChatWriter({}, FACTS).whole(AnswerSaid(joined(parts), finish), COUNTS), completion)
