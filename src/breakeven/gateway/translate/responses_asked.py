"""What a client of OpenAI's responses asks, as a chat completion: Codex, or OpenAI's SDK, before a llama.cpp or vLLM.

What a server would have to remember (`previous_response_id`, `conversation`, stored prompts) is refused by its name,
and so are tools that it would have to run, but for searches that are only offered. docs/translation.md has the table.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import NamedTuple

from breakeven.gateway.translate.messages_asked import as_list, as_object, flat, in_order, unsigned
from breakeven.gateway.translate.said import CannotTranslateError, Json, encode, shown

_SAME = (
    "temperature", "top_p", "stream", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key",
    "service_tier", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_HINTS = ("truncation", "max_tool_calls", "metadata", "context_management", "prompt_cache_retention", "client_metadata")
_REFUSED = ("previous_response_id", "conversation", "background", "prompt")
_READ = frozenset(
    (
        *_SAME, *_HINTS, *_REFUSED, "model", "input", "instructions", "max_output_tokens", "tools", "tool_choice",
        "text", "reasoning", "store", "include", "stream_options", "top_logprobs",
    )
)  # fmt: skip
_SEARCHES = ("web_search", "web_search_preview")
_CUSTOM = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""Of a custom tool, whose input is a text and no JSON: a function with that text for its one argument."""
_ENCRYPTED = "reasoning.encrypted_content"
_SOURCES = "web_search_call.action.sources"
"""Of a search that is left out itself."""
_SEAL = "breakeven."


def responses_to_chat(asked: Json, left: list[str]) -> Json:
    """The same as a request for a chat completion; `left` gets the names of what is left out.

    Raises CannotTranslateError.
    """
    for name in _REFUSED:
        if asked.get(name):
            raise CannotTranslateError(name)
    if asked.get("top_logprobs"):
        raise CannotTranslateError("top_logprobs")
    for wanted in as_list(asked.get("include") or [], "include"):
        if wanted == _SOURCES:
            left.append(f"include.{_SOURCES}")
        elif wanted != _ENCRYPTED:
            raise CannotTranslateError(f"include{shown(wanted)}")  # logprobs, outputs of tools
    # "disabled" is what happens anyway, and nothing is stored: the answer says `"store": false`.
    left.extend(name for name in _HINTS if asked.get(name) not in (None, {}, "disabled"))
    made: Json = {name: asked[name] for name in asked if name not in _READ}
    made["messages"] = _messages(asked.get("instructions"), asked.get("input"))
    made |= {name: asked[name] for name in _SAME if asked.get(name) is not None}
    if asked.get("max_output_tokens") is not None:
        made["max_tokens"] = asked["max_output_tokens"]
    _think(asked.get("reasoning"), made, left)
    _form(asked.get("text"), made, left)
    _tools(asked, made, left)
    return made


class ResponseTool(NamedTuple):
    """A tool as a response calls it: its name within `namespace`, if it has one. `custom`: its input is a text."""

    namespace: str | None
    name: str
    custom: bool


def tools_by_name(asked: Json) -> dict[str, ResponseTool]:
    """Tools by the name that a chat calls them by."""
    found: dict[str, ResponseTool] = {}
    for namespace, tool in _spread(asked.get("tools")):
        name = str(tool.get("name"))
        found[_chat_name(namespace, name)] = ResponseTool(namespace, name, tool.get("type") == "custom")
    return found


def _spread(tools: object) -> Iterator[tuple[str | None, Json]]:
    """Every tool with its namespace; what is no tool is passed over."""
    for one in tools if isinstance(tools, list) else ():
        if isinstance(one, dict) and one.get("type") == "namespace":
            inner = one.get("tools")
            for tool in inner if isinstance(inner, list) else ():
                if isinstance(tool, dict):
                    yield str(one.get("name")), tool
        elif isinstance(one, dict):
            yield None, one


def _chat_name(namespace: object, name: object) -> str:
    """A chat's tools have no namespaces."""
    return f"{namespace}__{name}" if namespace else str(name)


def _think(reasoning: object, made: Json, left: list[str]) -> None:
    if not reasoning:
        return
    given = as_object(reasoning, "reasoning")
    if given.get("effort") is not None:
        made["reasoning_effort"] = given["effort"]
    left.extend(f"reasoning.{name}" for name in given if name != "effort" and given[name] is not None)


def _form(text: object, made: Json, left: list[str]) -> None:
    if not text:
        return
    given = as_object(text, "text")
    if given.get("verbosity") is not None:
        left.append("text.verbosity")
    form = as_object(given.get("format") or {"type": "text"}, "text.format")
    kind = form.get("type")
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        made["response_format"] = {"type": kind, kind: schema}
    elif kind == "json_object":
        made["response_format"] = {"type": kind}
    elif kind != "text":
        raise CannotTranslateError(f"text.format.type{shown(kind)}")


def _tools(asked: Json, made: Json, left: list[str]) -> None:
    chosen = asked.get("tool_choice")
    allowed: frozenset[str] | None = None
    if isinstance(chosen, dict):
        kind = chosen.get("type")
        if kind == "allowed_tools":
            tools = as_list(chosen.get("tools") or [], "tool_choice.tools")
            allowed = frozenset(str(as_object(one, "tool_choice.tools").get("name")) for one in tools)
            chosen = chosen.get("mode") or "auto"
        elif kind in ("function", "custom"):
            chosen = {"type": "function", "function": {"name": chosen.get("name")}}
        else:
            raise CannotTranslateError(f"tool_choice.type{shown(kind)}")
    found: list[Json] = []
    for at, tool in enumerate(as_list(asked.get("tools") or [], "tools")):
        given = as_object(tool, f"tools.{at}")
        kind = given.get("type")
        if kind in _SEARCHES:
            left.append(str(kind))
        elif kind == "namespace":
            if given.get("description"):
                left.append("namespace.description")
            for within, one in enumerate(as_list(given.get("tools") or [], f"tools.{at}.tools")):
                found += _offered(one, f"tools.{at}.tools.{within}", given.get("name"), allowed)
        else:
            found += _offered(given, f"tools.{at}", None, allowed)
    names = [one["function"]["name"] for one in found]
    if twice := next((name for name in names if "__" in str(name) and names.count(name) > 1), None):
        raise CannotTranslateError(f"two tools of the name{shown(twice)}")
    if found:
        made["tools"] = found
        if chosen is not None:
            made["tool_choice"] = chosen
    else:
        if chosen == "required" or isinstance(chosen, dict):
            raise CannotTranslateError("tool_choice")
        made.pop("parallel_tool_calls", None)


def _offered(tool: object, place: str, namespace: object, allowed: frozenset[str] | None) -> list[Json]:
    """A tool as a chat has it; none where it is not `allowed`."""
    given = as_object(tool, place)
    kind = given.get("type")
    if kind not in ("function", "custom"):
        raise CannotTranslateError(f"{place}.type{shown(kind)}")
    if allowed is not None and given.get("name") not in allowed:
        return []
    function = _function(given)
    if namespace:
        function["name"] = _chat_name(namespace, given.get("name"))
    return [{"type": "function", "function": function}]


def _function(tool: Json) -> Json:
    if tool.get("type") == "function":
        names = ("name", "description", "parameters", "strict")
        return {name: tool[name] for name in names if tool.get(name) is not None}
    told = str(tool.get("description") or "")
    form = tool.get("format")
    if isinstance(form, dict) and form.get("definition"):
        told += f"\nThe input follows this {form.get('syntax') or ''} grammar:\n{form['definition']}"
    return {"name": tool.get("name"), "description": told, "parameters": _CUSTOM}


def _messages(instructions: object, given: object) -> list[Json]:
    made: list[Json] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise CannotTranslateError("instructions: no text")
        made.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        made.append({"role": "user", "content": given})
        return made
    pictures: list[Json] = []
    for at, one in enumerate(as_list(given or [], "input")):
        item = as_object(one, f"input.{at}")
        if item.get("type") in ("function_call_output", "custom_tool_call_output"):
            made.append(_result(item, f"input.{at}", pictures))
            continue
        pictures = _show(pictures, made)
        _item(item, f"input.{at}", made)
    _show(pictures, made)
    for turn in made:
        if turn["content"] is None and not turn.get("tool_calls"):
            turn["content"] = ""
    return in_order(made)


def _show(pictures: list[Json], made: list[Json]) -> list[Json]:
    """Pictures of results, which a chat's tool has no place for, follow as the user's; returns those that are left."""
    if pictures:
        made.append({"role": "user", "content": pictures})
    return []


def _item(item: Json, place: str, made: list[Json]) -> None:
    """One item of the input, as a message of its own or in the assistant's last one."""
    kind = item.get("type") or "message"
    if kind == "message":
        role = item.get("role")
        if role == "assistant":
            _add_text(_open_turn(made), _shown(item.get("content"), f"{place}.content"))
        elif role in ("user", "system", "developer"):
            parts = _shown(item.get("content"), f"{place}.content")
            made.append({"role": "user" if role == "user" else "system", "content": flat(parts)})
        else:
            raise CannotTranslateError(f"{place}.role{shown(role)}")
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments") if kind == "function_call" else encode({"input": item.get("input")}).decode()
        name = _chat_name(item["namespace"], item.get("name")) if item.get("namespace") else item.get("name")
        function = {"name": name, "arguments": arguments or "{}"}
        turn = _open_turn(made)
        ident, more = unsigned(item.get("call_id"))
        turn.setdefault("tool_calls", []).append({"id": ident, "type": "function", "function": function, **more})
    elif kind == "reasoning":
        # A summary is none; what a client keeps without its texts (Codex) comes back sealed.
        thoughts = as_list(item.get("content") or [], f"{place}.content")
        texts = [str(one.get("text") or "") for one in thoughts if isinstance(one, dict)]
        if not any(texts):
            texts = [unsealed(item.get("encrypted_content"))]
        if any(texts):
            turn = _open_turn(made)
            before = turn.get("reasoning_content")
            turn["reasoning_content"] = "\n".join([*([before] if before else []), *texts])
    else:
        raise CannotTranslateError(f"{place}.type{shown(kind)}")


def seals(asked: Json) -> bool:
    """Whether thoughts go out sealed as well: Codex keeps the history, and returns of it what it cannot read alone."""
    include = asked.get("include")
    return asked.get("store") is False or (isinstance(include, list) and _ENCRYPTED in include)


def sealed(text: str) -> str:
    """Thoughts as an `encrypted_content` that is none: no secret is made of what its client may read beside it."""
    return _SEAL + b64encode(text.encode()).decode()


def unsealed(given: object) -> str:
    """The thoughts in what `sealed` made; empty for what others encrypted, which can be read by its maker alone."""
    if not isinstance(given, str) or not given.startswith(_SEAL):
        return ""
    try:
        return b64decode(given.removeprefix(_SEAL), validate=True).decode()
    except ValueError:
        return ""


def _open_turn(made: list[Json]) -> Json:
    """The assistant's message that goes on here."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": None})
    return made[-1]


def _add_text(turn: Json, parts: list[Json]) -> None:
    before = turn["content"]
    held = [] if before is None else [{"type": "text", "text": before}] if isinstance(before, str) else before
    turn["content"] = flat([*held, *parts]) if held or parts else ""


def _result(item: Json, place: str, pictures: list[Json]) -> Json:
    """A result of a tool; `pictures` gets those in it."""
    output = item.get("output")
    if not isinstance(output, str):
        parts = _shown(output or [], f"{place}.output")
        pictures.extend(part for part in parts if part["type"] != "text")
        output = "\n".join(str(part["text"]) for part in parts if part["type"] == "text")
    return {"role": "tool", "tool_call_id": unsigned(item.get("call_id"))[0], "content": output}


def _shown(content: object, place: str) -> list[Json]:
    """What a content shows, as parts of a chat message."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    made: list[Json] = []
    for at, part in enumerate(as_list(content or [], place)):
        given = as_object(part, f"{place}.{at}")
        kind = given.get("type")
        if kind in ("input_text", "output_text", "text"):
            made.append({"type": "text", "text": str(given.get("text") or "")})
        elif kind == "refusal":
            made.append({"type": "text", "text": str(given.get("refusal") or "")})
        elif kind == "input_image" and given.get("image_url"):
            address = {"url": given["image_url"]}
            if given.get("detail") not in (None, "auto"):
                address["detail"] = given["detail"]
            made.append({"type": "image_url", "image_url": address})
        elif kind == "input_file" and given.get("file_data"):
            names = ("filename", "file_data")
            made.append({"type": "file", "file": {name: given[name] for name in names if given.get(name)}})
        elif kind == "input_audio":
            made.append({"type": "input_audio", "input_audio": given.get("input_audio")})
        else:
            raise CannotTranslateError(
                f"{place}.{at}.type{shown(kind)}" + (" by an id" if given.get("file_id") else "")
            )
    return made
