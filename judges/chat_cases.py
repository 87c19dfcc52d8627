"""The questions that clients ask a server of chat alone, each in the words of the three APIs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # a pixel
SCHEMA: Body = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (("weather", "What the weather is like"), ("clock", "What the time is"))
CALLS = [
    {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": '{"city": "Zürich"}'}}
    for at, (name, _) in enumerate(TOOLS)
]
RESULTS = [{"role": "tool", "tool_call_id": call["id"], "content": f"result {call['id']}"} for call in CALLS]


@dataclass(frozen=True, slots=True)
class Case:
    """A chat's messages; `tools`: whether it offers them; `schema`: whether the answer has to follow one."""

    messages: list[Body]
    tools: bool = False
    schema: bool = False


def _user(content: str | list[Body]) -> Body:
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [SYSTEM, _user("Say a word about the sea."), {"role": "assistant", "content": "Blue."}, _user("Another one.")]
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
PLAIN = {"text": Case([SYSTEM, _user("Say a word about the sea.")]), "turns": Case(TURNS)}
"""Those that any model can answer."""
CASES = PLAIN | {
    "picture": Case([_user([{"type": "text", "text": "What is it?"}, IMAGE])]),
    "thinking": Case([_user("think of the sea")]),
    "limit": Case([_user("to the limit")]),
    "too long": Case([_user("this is too long")]),
    "JSON": Case([_user("a city, please")], schema=True),
    "one call": Case([SYSTEM, _user("the weather?")], tools=True),
    "two calls": Case([_user("both, please")], tools=True),
    "a result": Case(
        [_user("go"), {"role": "assistant", "content": None, "tool_calls": CALLS[:1]}, *RESULTS[:1]], True
    ),
    "two results": Case([_user("go"), {"role": "assistant", "content": None, "tool_calls": CALLS}, *RESULTS], True),
}


def chat(case: Case, model: str, most: int) -> Body:
    """As a chat completion."""
    body: Body = {"model": model, "messages": case.messages, "temperature": 0, "max_tokens": most}
    if case.tools:
        body["tools"] = [{"type": "function", "function": function} for function in _functions()]
    if case.schema:
        form = {"name": "city", "schema": SCHEMA, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _functions() -> list[Body]:
    return [{"name": name, "description": told, "parameters": SCHEMA} for name, told in TOOLS]


def messages(case: Case, model: str, most: int) -> Body:
    """As one of Anthropic's messages."""
    body: Body = {"model": model, "max_tokens": most, "temperature": 0}
    turns: list[Body] = []
    for one in case.messages:
        if one["role"] == "system":
            body["system"] = one["content"]
        elif one["role"] == "tool":
            block = {"type": "tool_result", "tool_use_id": one["tool_call_id"], "content": one["content"]}
            if turns[-1]["role"] == "user":
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        elif one.get("tool_calls"):
            turns.append({"role": "assistant", "content": [_use(call) for call in one["tool_calls"]]})
        elif isinstance(one["content"], list):
            source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
            turns.append({"role": "user", "content": [one["content"][0], {"type": "image", "source": source}]})
        else:
            turns.append(one)
    body["messages"] = turns
    if case.tools:
        body["tools"] = [{"name": name, "description": told, "input_schema": SCHEMA} for name, told in TOOLS]
    if case.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return body


def _use(call: Body) -> Body:
    function = call["function"]
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": json.loads(function["arguments"])}


def responses(case: Case, model: str, most: int) -> Body:
    """As one of OpenAI's responses."""
    body: Body = {"model": model, "temperature": 0, "max_output_tokens": most, "store": False}
    items: list[Body] = []
    for one in case.messages:
        if one["role"] == "system":
            body["instructions"] = one["content"]
        elif one["role"] == "tool":
            output = {"call_id": one["tool_call_id"], "output": one["content"]}
            items.append({"type": "function_call_output", **output})
        elif one.get("tool_calls"):
            items += [
                {"type": "function_call", "call_id": call["id"], **call["function"]} for call in one["tool_calls"]
            ]
        elif isinstance(one["content"], list):
            image = {"type": "input_image", "image_url": IMAGE["image_url"]["url"], "detail": "auto"}  # type: ignore[index]
            items.append(
                {"role": "user", "content": [{"type": "input_text", "text": one["content"][0]["text"]}, image]}
            )
        else:
            items.append(one)
    body["input"] = items
    if case.tools:
        body["tools"] = [{"type": "function", "strict": False, **function} for function in _functions()]
    if case.schema:
        form = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}
        body["text"] = {"format": form}
    return body


APIS = {"chat": chat, "messages": messages, "responses": responses}
