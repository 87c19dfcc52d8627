"""Translation between the APIs, requests: field by field, there and back as properties, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.reach import LOCAL_ENDPOINTS
from breakeven.gateway.serve.ask import body_of
from breakeven.gateway.translate.chat import chat_to_messages
from breakeven.gateway.translate.messages_asked import messages_to_chat
from breakeven.gateway.translate.messages_told import MessageWriter
from breakeven.gateway.translate.responses_asked import responses_to_chat
from breakeven.gateway.translate.responses_told import ResponseWriter
from breakeven.gateway.translate.said import (
    CHAT,
    MESSAGES,
    RESPONSES,
    AnswerPart,
    AnswerSaid,
    CannotTranslateError,
    Json,
)
from breakeven.gateway.translate.table import Turned, told_of, way_to
from tests.translate_fixtures import COUNTS, FACTS, HI, YES, arguments, data_of, names, raw, texts, written

PICTURE = "data:image/png;base64,AAAA"


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
    (chat_to_messages, {"messages": [], "web_search_options": {}}, "web_search_options"),
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


@pytest.mark.parametrize(
    ("mode", "names", "left", "choice"),
    [
        ("auto", ["f"], ["f"], {"type": "auto"}),
        ("required", ["g", "f"], ["f", "g"], {"type": "any"}),
        ("auto", ["h"], None, None),
        ("required", ["h"], "tool_choice", None),
    ],
)
def test_tools_that_a_chat_may_not_call_are_not_offered(
    mode: str, names: list[str], left: list[str] | str | None, choice: Json | None
) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg"]
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": name}} for name in names]}
    asked = {"messages": [], "tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    if isinstance(left, str):
        with pytest.raises(CannotTranslateError, match=left):
            chat_to_messages(asked, [])
        return
    made = chat_to_messages(asked, [])
    assert made.get("tool_choice") == choice
    assert [tool["name"] for tool in made.get("tools", [])] == (left or [])


def test_citations_that_nobody_will_make_are_named() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Grass is green."}
    for citations, named in (({"enabled": True}, ["citations"]), ({"enabled": False}, []), (None, [])):
        left: list[str] = []
        block = {"type": "document", "source": source, "citations": citations}
        made = messages_to_chat({"messages": [{"role": "user", "content": [block, block]}]}, left)
        assert sorted(set(left)) == named
        assert made["messages"][0]["content"][0]["text"] == "Grass is green."


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


def test_whom_a_backend_is_asked_as() -> None:
    assert way_to(MESSAGES, {CHAT, MESSAGES}) == MESSAGES
    assert way_to(MESSAGES, {CHAT}) == way_to(RESPONSES, {CHAT, MESSAGES}) == CHAT
    assert way_to(RESPONSES, {MESSAGES}) == way_to(CHAT, {MESSAGES, RESPONSES}) == MESSAGES
    assert way_to(CHAT, {RESPONSES}) is way_to("/v1/embeddings", {CHAT}) is None
    # llama.cpp's own messages and responses lose more than its chat does in their words.
    assert way_to(MESSAGES, LOCAL_ENDPOINTS) == way_to(RESPONSES, LOCAL_ENDPOINTS) == CHAT
    assert "/v1/messages/count_tokens" in LOCAL_ENDPOINTS


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
