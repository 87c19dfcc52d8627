"""Translation between the APIs: requests, answers and streams, field by field and by property.

Answers are checked against what the SDKs of OpenAI and Anthropic parse them into where these are installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.reach import LOCAL_ENDPOINTS
from breakeven.gateway.serve.ask import body_of
from breakeven.gateway.serve.speech import told_of
from breakeven.gateway.serve.tap import StreamTap, tap_for
from breakeven.gateway.translate.chat import ChatWriter, chat_to_messages
from breakeven.gateway.translate.messages_asked import messages_to_chat
from breakeven.gateway.translate.messages_told import MessageWriter
from breakeven.gateway.translate.responses_asked import responses_to_chat
from breakeven.gateway.translate.responses_told import ResponseWriter
from breakeven.gateway.translate.said import (
    CHAT,
    MESSAGES,
    READERS,
    RESPONSES,
    AnswerFacts,
    AnswerPart,
    AnswerSaid,
    CannotTranslateError,
    Counts,
    Json,
    StreamTurner,
    Writer,
)
from breakeven.gateway.translate.table import WRITERS, Turned, failed_stream, turned_tap, way_to, within_stream
from breakeven.wire.sse import event as event_bytes
from breakeven.wire.sse import events_of, split_events

FACTS = AnswerFacts("id1", 1_700_000_000, 11)
COUNTS = Counts(20, 4, 9)
PICTURE = "data:image/png;base64,AAAA"


def written(writer: Writer, said: AnswerSaid, counts: Counts = COUNTS) -> bytes:
    """An answer as a stream."""
    return b"".join([writer.begin(said), *map(writer.part, said.parts), writer.end(said, counts)])


def data_of(stream: bytes) -> list[Json]:
    """The objects of its events."""
    return [json.loads(data) for data in events_of(stream) if data != b"[DONE]"]


def read_again(endpoint: str, stream: bytes) -> AnswerSaid:
    """A stream as its own reader takes it, pieces of one kind joined."""
    said = AnswerSaid()
    for data in events_of(stream):
        if data != b"[DONE]":
            said.parts += READERS[endpoint].event(data, said)
    said.parts = joined(said.parts)
    return said


def joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Pieces of one block, or one call, as one part; calls by order instead of by number."""
    found: list[AnswerPart] = []
    for part in parts:
        last = found[-1] if found else None
        same = next((one for one in found if one.kind == part.kind == "call" and one.at == part.at), None)
        if same is None and last is not None and last.kind == part.kind != "call":
            same = last
        if same is None:
            found.append(AnswerPart(part.kind, part.text, part.id, part.name, part.at))
        else:
            same.text += part.text
    return found


def shapes(parts: list[AnswerPart]) -> list[tuple[str, str, str]]:
    return [(part.kind, part.text, part.name) for part in parts]


# What clients ask.


def test_messages_as_a_chat_completion() -> None:
    left: list[str] = []
    asked: Json = {
        "model": "m",
        "max_tokens": 64,
        "system": [
            {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "kind"},
        ],
        "temperature": 0.5,
        "top_k": 3,
        "stop_sequences": ["END"],
        "stream": True,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [
            {"name": "f", "description": "does f", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I call"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [
                    {"type": "text", "text": "done"},
                    {"type": "image", "source": {"type": "url", "url": "https://x.example/y.png"}},
                ]},
                {"type": "text", "text": "and?"},
            ]},
        ],
        "future": {"field": 1},
    }  # fmt: skip
    made = messages_to_chat(asked, left)
    assert made == {
        "future": {"field": 1},
        "max_tokens": 64,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["END"],
        "stream": True,
        "user": "u",
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "description": "does f"}}
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be\n\nkind"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PICTURE}},
            ]},
            {"role": "assistant", "content": "I call", "reasoning_content": "hm", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            ]},
            {"role": "tool", "tool_call_id": "t1", "content": "done"},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}},
                {"type": "text", "text": "and?"},
            ]},
        ],
    }  # fmt: skip
    assert left == ["thinking", "web_search_20250305"]


def test_responses_as_a_chat_completion() -> None:
    left: list[str] = []
    asked: Json = {
        "model": "m",
        "instructions": "Be kind",
        "max_output_tokens": 64,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
        "tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
            {"type": "custom", "name": "patch", "description": "patches",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "input": [
            {"role": "developer", "content": "and short"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
            ]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I call"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "*** x"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_text", "text": "done"}, {"type": "input_image", "image_url": PICTURE},
            ]},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"},
            {"role": "user", "content": "and?"},
        ],
    }  # fmt: skip
    made = responses_to_chat(asked, left)
    assert made["messages"] == [
        {"role": "system", "content": "Be kind\n\nand short"},
        {"role": "user", "content": [
            {"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PICTURE}},
        ]},
        {"role": "assistant", "content": "I call", "reasoning_content": "hm", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "patch", "arguments": '{"input":"*** x"}'}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "tool", "tool_call_id": "c2", "content": "ok"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    assert made["max_tokens"] == 64
    assert made["reasoning_effort"] == "low"
    assert made["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {}, "strict": True},
    }
    function, custom = made["tools"]
    assert function["function"] == {"name": "f", "parameters": {"type": "object"}, "strict": False}
    assert custom["function"]["parameters"]["required"] == ["input"]
    assert "start: x" in custom["function"]["description"]
    assert left == ["reasoning.summary", "text.verbosity", "web_search"]
    assert "store" not in made


MESSAGE: Json = {"max_tokens": 1, "messages": []}
REFUSED: list[tuple[Callable[[Json, list[str]], Json], Json, str]] = [
    (messages_to_chat, {**MESSAGE, "mcp_servers": [{}]}, "mcp_servers"),
    (messages_to_chat, {**MESSAGE, "container": "c"}, "container"),
    (messages_to_chat, {**MESSAGE, "tools": [{"type": "bash_20250124", "name": "bash"}]},
     "tools.0.type 'bash_20250124'"),
    (messages_to_chat, {**MESSAGE, "tools": [{"type": "web_search_1", "name": "w"}],
                        "tool_choice": {"type": "tool", "name": "w"}}, "tools.0.type"),
    (messages_to_chat, {**MESSAGE, "tools": [{"type": "web_search_1", "name": "w"}],
                        "tool_choice": {"type": "any"}}, "tool_choice"),
    (responses_to_chat, {"input": "x", "tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    (messages_to_chat, {**MESSAGE, "output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    (messages_to_chat, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
     "messages.0.content.0.source.type 'file'"),
    (messages_to_chat, {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
     "messages.0.content.0.type 'server_tool_use'"),
    (messages_to_chat, {"messages": "hi"}, "messages: no list"),
    (messages_to_chat, {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role 'robot'"),
    (responses_to_chat, {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
    (responses_to_chat, {"input": "x", "conversation": "c"}, "conversation"),
    (responses_to_chat, {"input": "x", "background": True}, "background"),
    (responses_to_chat, {"prompt": {"id": "p"}}, "prompt"),
    (responses_to_chat, {"input": "x", "tools": [{"type": "file_search"}]}, "tools.0.type 'file_search'"),
    (responses_to_chat, {"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice.type 'web_search'"),
    (responses_to_chat, {"input": "x", "include": ["message.output_text.logprobs"]}, "include"),
    (responses_to_chat, {"input": [{"type": "item_reference", "id": "i"}]}, "input.0.type 'item_reference'"),
    (responses_to_chat, {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
     "input.0.content.0.type 'input_image' by an id"),
    (chat_to_messages, {"messages": [], "n": 2}, "n above 1"),
    (chat_to_messages, {"messages": [], "logprobs": True}, "logprobs"),
    (chat_to_messages, {"messages": [], "temperature": 1.5}, "temperature above 1"),
    (chat_to_messages, {"messages": [], "response_format": {"type": "json_object"}}, "response_format.type"),
    (chat_to_messages, {"messages": [{"role": "function", "content": "x"}]}, "messages.0.role 'function'"),
]  # fmt: skip


@pytest.mark.parametrize(("asks", "asked", "named"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(
    asks: Callable[[Json, list[str]], Json], asked: Json, named: str
) -> None:
    with pytest.raises(CannotTranslateError) as refused:
        asks(asked, [])
    assert str(refused.value).startswith(named)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "auto", "text", "function", "user", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "role", "content", "text", "source", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
FIELDS = [
    "messages", "input", "system", "instructions", "tools", "tool_choice", "thinking", "metadata", "output_config",
    "reasoning", "text", "include", "stream", "stop", "stop_sequences", "response_format", "temperature", "n", "user",
]  # fmt: skip


@settings(max_examples=200)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=5))
def test_any_request_is_translated_or_refused(fields: Json) -> None:
    for endpoint, way in ((MESSAGES, CHAT), (RESPONSES, CHAT), (CHAT, MESSAGES), (RESPONSES, MESSAGES)):
        try:
            turned = Turned(endpoint, way, raw({"model": "m", **fields}))
        except CannotTranslateError:
            continue
        assert json.loads(body_of(turned.fields(msgspec.Raw(b'"s"'))))["model"] == "s"
        assert all(32 <= byte < 127 for _, value in told_of(turned, []) for byte in value)


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
names = st.text("abcxyz_", min_size=1, max_size=6)
arguments = st.dictionaries(names, st.integers(-9, 9) | texts, max_size=3)


def test_developers_texts_of_several_parts_become_one_system_message() -> None:
    parts = [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]
    given = [
        {"role": "developer", "content": "zero"},
        {"role": "developer", "content": parts},
        {"role": "user", "content": "go"},
    ]
    for asked in ({"input": given}, {"instructions": "zero", "input": given[1:]}):
        made = responses_to_chat(asked, [])["messages"]
        assert made == [{"role": "system", "content": "zero\n\none\n\ntwo"}, {"role": "user", "content": "go"}]
    assert responses_to_chat({"input": given[1:]}, [])["messages"][0] == {"role": "system", "content": "one\n\ntwo"}


NOW = "<system-reminder>\nnow\n</system-reminder>"
CALLS = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
]}  # fmt: skip
USE: Json = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]}
RESULT: Json = {"type": "tool_result", "tool_use_id": "t1", "content": "done"}
HI, YES = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
LATER = {"role": "system", "content": "now"}
PICTURED: Json = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("turns", "behind"),
    [
        ([HI, LATER], [{"role": "user", "content": f"hi\n\n{NOW}"}]),
        (
            [HI, USE, LATER, {"role": "user", "content": [RESULT]}],
            [HI, CALLS, {"role": "tool", "tool_call_id": "t1", "content": f"done\n\n{NOW}"}],
        ),
        (
            [HI, USE, {"role": "user", "content": [RESULT]}, {"role": "system", "content": [
                {"type": "text", "text": "now"},
            ]}, YES],
            [HI, CALLS, {"role": "tool", "tool_call_id": "t1", "content": f"done\n\n{NOW}"}, YES],
        ),
        (
            [HI, USE, LATER, {"role": "user", "content": [RESULT, {"type": "text", "text": "and?"}]}],
            [HI, CALLS, {"role": "tool", "tool_call_id": "t1", "content": f"done\n\n{NOW}"},
             {"role": "user", "content": "and?"}],
        ),
        ([HI, YES, LATER, {"role": "user", "content": "go"}], [HI, YES, {"role": "user", "content": f"{NOW}\n\ngo"}]),
        ([HI, YES, LATER], [HI, YES, {"role": "user", "content": NOW}]),
        (
            [{"role": "user", "content": [PICTURED]}, LATER],
            [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": NOW},
            ]}],
        ),
        (
            [HI, YES, LATER, {"role": "user", "content": [{"type": "text", "text": "go"}, PICTURED]}],
            [HI, YES, {"role": "user", "content": [
                {"type": "text", "text": f"{NOW}\n\ngo"}, {"type": "image_url", "image_url": {"url": PICTURE}},
            ]}],
        ),
        ([HI, LATER, LATER], [{"role": "user", "content": f"hi\n\n{NOW}\n\n{NOW}"}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("system", [None, "Be kind"])
def test_a_system_text_behind_the_beginning_goes_into_the_message_beside_it(
    turns: list[Json], behind: list[Json], system: str | None
) -> None:
    """Many templates take one at the beginning alone; llama.cpp answers 500 for such a request."""
    asked = {"max_tokens": 1, "messages": turns, **({"system": system} if system else {})}
    first = [{"role": "system", "content": system}] if system else []
    assert messages_to_chat(asked, [])["messages"] == first + behind


def test_system_texts_at_the_beginning_stay_one_message_there() -> None:
    asked = {"system": "Be kind", "messages": [LATER, HI]}
    assert messages_to_chat(asked, [])["messages"] == [{"role": "system", "content": "Be kind\n\nnow"}, HI]


def test_a_prompt_goes_on_as_it_began_when_the_next_turn_comes() -> None:
    before = messages_to_chat({"messages": [HI, LATER]}, [])["messages"]
    after = messages_to_chat({"messages": [HI, LATER, YES, {"role": "user", "content": "go"}]}, [])["messages"]
    assert after[: len(before)] == before


def test_a_developers_text_behind_the_beginning_goes_into_the_message_beside_it() -> None:
    given = [
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "now"},
        {"type": "function_call", "call_id": "t1", "name": "f", "arguments": "{}"},
        {"role": "developer", "content": "now"},
        {"type": "function_call_output", "call_id": "t1", "output": "done"},
    ]
    assert responses_to_chat({"input": given}, [])["messages"] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": f"hi\n\n{NOW}"},
        CALLS,
        {"role": "tool", "tool_call_id": "t1", "content": f"done\n\n{NOW}"},
    ]


BILLED = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch="


def test_what_claude_code_is_billed_by_is_no_part_of_the_prompt() -> None:
    """Part of it is never the same, and no engine's cache would hold from one request to the next."""
    chats = []
    for number in ("a5145", "0f3c2"):
        left: list[str] = []
        system = [{"type": "text", "text": f"{BILLED}{number};"}, {"type": "text", "text": "You are Claude Code."}]
        later = {"role": "system", "content": f"{BILLED}{number};"}
        chats.append(messages_to_chat({"max_tokens": 1, "system": system, "messages": [HI, later]}, left))
        assert left == ["x-anthropic-billing-header"] * 2
    assert chats[0] == chats[1]
    assert chats[0]["messages"] == [{"role": "system", "content": "You are Claude Code."}, HI]


@pytest.mark.parametrize(
    ("system", "kept"),
    [
        (f"{BILLED}a5145;You are Claude Code; be=kind.", "You are Claude Code; be=kind."),
        (f"{BILLED}a5145\nYou are Claude Code.", "You are Claude Code."),
        ("Of x-anthropic-billing-header: a=b; say nothing.", "Of x-anthropic-billing-header: a=b; say nothing."),
    ],
)
def test_a_system_text_behind_that_stays(system: str, kept: str) -> None:
    chat = messages_to_chat({"max_tokens": 1, "system": system, "messages": [HI]}, [])
    assert chat["messages"][0] == {"role": "system", "content": kept}


def test_sources_of_a_search_that_is_left_out_are_left_out_with_it() -> None:
    left: list[str] = []
    asked = {"input": "hi", "tools": [{"type": "web_search"}], "include": ["web_search_call.action.sources"]}
    assert responses_to_chat(asked, left)["messages"] == [HI]
    assert left == ["include.web_search_call.action.sources", "web_search"]


def test_where_a_prompt_is_to_be_kept_reaches_anthropics_api() -> None:
    kept = {"cache_control": {"type": "ephemeral"}}
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked = {
        "max_tokens": 1,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind", **kept}]},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": PICTURE}, **kept},
                {**pdf, **kept},
            ]},
        ],
        "tools": [{**tool, **kept}, {**tool, "function": {**tool["function"], **kept}}, tool],
    }  # fmt: skip
    made = chat_to_messages(asked, [])
    assert made["system"] == [{"type": "text", "text": "Be kind", **kept}]
    (turn,) = made["messages"]
    assert ["cache_control" in block for block in turn["content"]] == [False, True, True]
    assert ["cache_control" in one for one in made["tools"]] == [True, True, False]
    assert turn["content"][2]["cache_control"] == made["tools"][1]["cache_control"] == {"type": "ephemeral"}


def test_an_empty_text_is_no_block_of_a_message() -> None:
    """Anthropic's API refuses one."""
    empty = {"type": "text", "text": ""}
    turns = [
        {"role": "system", "content": [empty]},
        {"role": "user", "content": [empty, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [empty]},
        {"role": "user", "content": ""},
        {**CALLS, "content": [empty]},
        {"role": "tool", "tool_call_id": "t1", "content": "done"},
    ]
    made = chat_to_messages({"messages": turns}, [])
    assert "system" not in made
    assert made["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "done"}]},
        ]},
    ]  # fmt: skip


THOUGHT: Json = {"role": "assistant", "content": [
    {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yes"},
]}  # fmt: skip
REASONED = [
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": "yes"},
]


@pytest.mark.parametrize(
    ("endpoint", "asked"), [(MESSAGES, {"max_tokens": 1, "messages": [THOUGHT]}), (RESPONSES, {"input": REASONED})]
)
def test_earlier_thoughts_go_to_a_chat_by_both_names(endpoint: str, asked: Json) -> None:
    """vLLM reads `reasoning` alone, llama.cpp `reasoning_content` alone."""
    turned = Turned(endpoint, CHAT, raw({"model": "m", **asked}))

    def told(*untold: str) -> Json:
        return json.loads(body_of(turned.fields(msgspec.Raw(b'"s"'), untold=untold)))["messages"][-1]

    assert told() == {"role": "assistant", "content": "yes", "reasoning_content": "hm", "reasoning": "hm"}
    assert told("reasoning_content") == {"role": "assistant", "content": "yes", "reasoning": "hm"}
    assert told("reasoning_content", "reasoning") == {"role": "assistant", "content": "yes"}
    assert turned.thinks


def test_thoughts_come_back_from_a_client_that_returns_what_it_cannot_read_alone() -> None:
    """Codex: of a reasoning item's content it keeps none, its `encrypted_content` it returns."""
    said = AnswerSaid([AnswerPart("thought", "hm"), AnswerPart("text", "yes")], "stop")
    for asked in ({"store": False}, {"include": ["reasoning.encrypted_content"]}):
        thought, text = ResponseWriter(asked, FACTS).whole(said, COUNTS)["output"]
        assert thought["encrypted_content"] == "breakeven.aG0="
        events = data_of(written(ResponseWriter(asked, FACTS), said))
        assert events[-1]["response"]["output"] == [thought, text]
        added, *_ = (event["item"] for event in events if event["type"] == "response.output_item.added")
        assert "encrypted_content" not in added
        kept = {name: thought[name] for name in ("type", "summary", "encrypted_content")}
        again = responses_to_chat({"input": [kept, text]}, [])["messages"]
        assert again == [{"role": "assistant", "content": "yes", "reasoning_content": "hm"}]
        for other in ("gAAAAABo", "breakeven.%", "breakeven.gA==", None, 3):
            foreign = responses_to_chat({"input": [{**kept, "encrypted_content": other}, text]}, [])["messages"]
            assert foreign == [{"role": "assistant", "content": "yes"}]
    assert "encrypted_content" not in ResponseWriter({}, FACTS).whole(said, COUNTS)["output"][0]


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


def test_tools_of_a_namespace_keep_it() -> None:
    agents = [
        {"type": "function", "name": "spawn", "parameters": {"type": "object"}},
        {"type": "custom", "name": "say"},
    ]
    asked: Json = {
        "tools": [
            {"type": "function", "name": "spawn", "parameters": {"type": "object"}},
            {"type": "namespace", "name": "agents", "description": "of agents", "tools": agents},
        ],
        "input": [
            {"type": "function_call", "call_id": "c1", "namespace": "agents", "name": "spawn", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        ],
    }
    left: list[str] = []
    made = responses_to_chat(asked, left)
    assert [tool["function"]["name"] for tool in made["tools"]] == ["spawn", "agents__spawn", "agents__say"]
    assert made["messages"][0]["tool_calls"][0]["function"]["name"] == "agents__spawn"
    assert left == ["namespace.description"]
    texts = {"spawn": '{"a":1}', "agents__spawn": '{"b":2}', "agents__say": '{"input":"x"}'}
    calls = [AnswerPart("call", text, f"c{at}", name, at) for at, (name, text) in enumerate(texts.items())]
    items = ResponseWriter(asked, FACTS).whole(AnswerSaid(calls, "calls"), COUNTS)["output"]
    assert [(item["type"], item.get("namespace"), item["name"]) for item in items] == [
        ("function_call", None, "spawn"),
        ("function_call", "agents", "spawn"),
        ("custom_tool_call", "agents", "say"),
    ]
    events = data_of(written(ResponseWriter(asked, FACTS), AnswerSaid(calls, "calls")))
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == items
    twice = {"tools": [*asked["tools"], {"type": "function", "name": "agents__spawn"}], "input": []}
    with pytest.raises(CannotTranslateError, match="two tools"):
        responses_to_chat(twice, [])


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Chats in which calls are answered by their tools, and whose turns alternate."""
    turns: list[Json] = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        parts = [{"type": "text", "text": draw(texts)}, {"type": "image_url", "image_url": {"url": PICTURE}}]
        turns.append({"role": "user", "content": draw(texts) if draw(st.booleans()) else parts})
        turn: Json = {"role": "assistant", "content": draw(texts)}
        calls = []
        for sent in draw(st.lists(arguments, max_size=2)):
            number += 1
            function = {"name": draw(names), "arguments": msgspec.json.encode(sent).decode()}
            calls.append({"id": f"c{number}", "type": "function", "function": function})
        turns.append({**turn, "tool_calls": calls} if calls else turn)
        turns += [{"role": "tool", "tool_call_id": call["id"], "content": draw(texts)} for call in calls]
    return turns


@given(messages=conversations(), tools=st.lists(names, max_size=2, unique=True), most=st.integers(1, 99))
def test_a_chat_comes_back_from_messages(messages: list[Json], tools: list[str], most: int) -> None:
    asked: Json = {"messages": messages, "max_tokens": most, "stop": ["a", "b"], "user": "u", "stream": True}
    if tools:
        asked["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in tools
        ]
        asked["tool_choice"] = "required"
    left: list[str] = []
    assert messages_to_chat(chat_to_messages(asked, left), left) == asked
    assert left == []


@given(messages=conversations())
def test_what_a_response_says_of_a_turn_is_that_turn_again(messages: list[Json]) -> None:
    """The output of a response, put into the next request's input, is the assistant's turn it was made of."""
    for turn in messages:
        if turn["role"] != "assistant":
            continue
        parts = [AnswerPart("text", turn["content"])]
        for at, call in enumerate(turn.get("tool_calls", [])):
            parts.append(AnswerPart("call", call["function"]["arguments"], call["id"], call["function"]["name"], at))
        output = ResponseWriter({}, FACTS).whole(AnswerSaid(parts, "stop"), COUNTS)["output"]
        assert responses_to_chat({"input": output}, [])["messages"] == [turn]
        content = MessageWriter({}, FACTS).whole(AnswerSaid(parts, "stop"), COUNTS)["content"]
        again = messages_to_chat({"messages": [{"role": "assistant", "content": content}]}, [])
        assert again["messages"] == [turn]


# What backends answer.

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
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


# Ways.


def test_whom_a_backend_is_asked_as() -> None:
    assert way_to(MESSAGES, {CHAT, MESSAGES}) == MESSAGES
    assert way_to(MESSAGES, {CHAT}) == way_to(RESPONSES, {CHAT, MESSAGES}) == CHAT
    assert way_to(RESPONSES, {MESSAGES}) == way_to(CHAT, {MESSAGES, RESPONSES}) == MESSAGES
    assert way_to(CHAT, {RESPONSES}) is way_to("/v1/embeddings", {CHAT}) is None
    # llama.cpp's own messages and responses lose more than its chat does in their words.
    assert way_to(MESSAGES, LOCAL_ENDPOINTS) == way_to(RESPONSES, LOCAL_ENDPOINTS) == CHAT
    assert "/v1/messages/count_tokens" in LOCAL_ENDPOINTS


def raw(fields: Json) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}


def test_a_response_by_way_of_messages() -> None:
    turned = Turned(
        RESPONSES, MESSAGES, raw({"model": "m", "input": "hi", "stream": True, "reasoning": {"effort": "low"}})
    )
    assert json.loads(body_of(turned.fields(msgspec.Raw(b'"claude"')))) == {
        "model": "claude",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 32_000,
        "stream": True,
    }
    assert json.loads(body_of(turned.fields(msgspec.Raw(b'"claude"'), 1000)))["max_tokens"] == 1000
    assert turned.left == ("reasoning_effort",)
    assert turned.headers([]) == [(b"anthropic-version", b"2023-06-01")]
    assert turned.headers([(b"anthropic-version", b"x")]) == [(b"anthropic-version", b"x")]
    assert told_of(turned, [])[0] == (b"x-breakeven-translated", b"/v1/messages")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_a_server_of_messages_would_refuse_are_named(name: str) -> None:
    """They bear no signature there."""
    turns = [{"role": "assistant", "content": "yes", name: thought} for thought in ("hm", "", None)]
    left: list[str] = []
    assert chat_to_messages({"messages": turns[1:]}, left)["messages"]
    assert left == []
    assert "hm" not in json.dumps(chat_to_messages({"messages": turns}, left))
    assert left == [name]
    codex = Turned(RESPONSES, MESSAGES, raw({"model": "m", "input": REASONED}))
    assert codex.left == ("reasoning_content",)


def test_a_stream_is_asked_for_its_usage() -> None:
    turned = Turned(MESSAGES, CHAT, raw({"model": "m", "max_tokens": 1, "messages": [], "stream": True}))
    assert json.loads(body_of(turned.fields(msgspec.Raw(b'"s"'))))["stream_options"] == {"include_usage": True}
    assert turned.headers([]) == []


@pytest.mark.parametrize("asked", [True, False])
def test_a_chat_client_hears_the_usage_it_asked_for(asked: bool) -> None:
    writer = ChatWriter({"stream_options": {"include_usage": asked}}, FACTS)
    last = data_of(written(writer, AnswerSaid([AnswerPart("text", "x")], "stop")))[-1]
    assert (last.get("usage") is not None) is asked


# The SDKs' own types.


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


def strict(value: Any, adapter: Any) -> None:
    adapter.validate_json(json.dumps(value), strict=True)


def test_anthropics_own_types_take_our_messages() -> None:
    types = pytest.importorskip("anthropic.types", reason="anthropic is not installed")
    from pydantic import TypeAdapter

    events, whole = TypeAdapter(types.RawMessageStreamEvent), TypeAdapter(types.Message)
    for parts, finish in every_answer():
        for event in data_of(written(MessageWriter({}, FACTS), AnswerSaid(parts, finish))):
            strict(event, events)
        strict(MessageWriter({}, FACTS).whole(AnswerSaid(joined(parts), finish), COUNTS), whole)


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
        strict(ResponseWriter(asked, FACTS).whole(AnswerSaid(joined(parts), finish), COUNTS), whole)
        for event in data_of(written(ChatWriter({}, FACTS), AnswerSaid(parts, finish))):
            strict(event, chunk)
        strict(ChatWriter({}, FACTS).whole(AnswerSaid(joined(parts), finish), COUNTS), completion)


def test_what_is_too_deep_to_be_written_is_refused_before_it_is_sent() -> None:
    def deep(depth: int) -> dict[str, msgspec.Raw]:
        call = {
            "id": "c",
            "type": "function",
            "function": {"name": "f", "arguments": '{"a":' * depth + "1" + "}" * depth},
        }
        return raw({"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]})

    kept = 0
    for depth in range(100, 1100, 25):
        try:
            turned = Turned(CHAT, MESSAGES, deep(depth))
        except CannotTranslateError:
            continue
        assert body_of(turned.fields(msgspec.Raw(b'"s"')))
        kept += 1
    assert 0 < kept < 40
