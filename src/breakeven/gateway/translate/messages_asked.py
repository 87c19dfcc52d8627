"""What a client of Anthropic's messages asks, as a chat completion: Claude Code before a llama.cpp or vLLM.

Fields that only hint at how (thinking, effort, caching)
are left out, and named; what has no counterpart is refused by its name. docs/translation.md has the table of fields.
"""

from __future__ import annotations

import re
from typing import Any

from breakeven.gateway.translate.said import EXTRA, SIGNED, CannotTranslateError, Json, encode, shown

_SAME = ("temperature", "top_p", "top_k", "stream")
_HINTS = (
    "thinking",
    "context_management",
    "service_tier",
    "betas",
    "cache_control",
    "speed",
    "diagnostics",
    "user_profile_id",
    "workspace_id",
)
_REFUSED = ("mcp_servers", "container", "inference_geo")
_READ = frozenset(
    (
        *_SAME, *_HINTS, *_REFUSED, "model", "messages", "system", "max_tokens", "stop_sequences", "metadata", "tools",
        "tool_choice", "output_config", "output_format",
    )
)  # fmt: skip
_SEARCHES = ("web_search_", "web_fetch_")
"""Tools that the provider runs itself: offered, not demanded, so a backend without them does as one that needs none."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_BILLED = "x-anthropic-billing-header"
_BILLING = re.compile(rf"{_BILLED}:(?:[ \t]*[\w-]+=[^;\n]*(?:;|(?=\n|\Z)))*\s*")
"""What Claude Code is billed by stands before its system texts, as a header's pairs; `cch` of them is never the same.

https://github.com/ggml-org/llama.cpp/pull/21793
"""


def messages_to_chat(asked: Json, left: list[str]) -> Json:
    """The same as a request for a chat completion; `left` gets the names of what is left out.

    Raises CannotTranslateError.
    """
    for name in _REFUSED:
        if asked.get(name):
            raise CannotTranslateError(name)
    left.extend(name for name in _HINTS if asked.get(name))
    made: Json = {name: asked[name] for name in asked if name not in _READ}
    system = _system(_unbilled(asked.get("system"), left))
    made["messages"] = in_order([*system, *_turns(asked.get("messages"), left)])
    made |= {name: asked[name] for name in _SAME if asked.get(name) is not None}
    if asked.get("max_tokens") is not None:
        made["max_tokens"] = asked["max_tokens"]
    if asked.get("stop_sequences"):
        made["stop"] = asked["stop_sequences"]
    if isinstance(about := asked.get("metadata"), dict) and about.get("user_id"):
        made["user"] = about["user_id"]
    chosen = asked.get("tool_choice") or {}
    if tools := _tools(asked.get("tools"), chosen, left):
        made["tools"] = tools
        made |= _choice(chosen)
    elif isinstance(chosen, dict) and chosen.get("type") in ("any", "tool"):
        raise CannotTranslateError("tool_choice")
    if (form := _format(asked, left)) is not None:
        made["response_format"] = form
    return made


def _format(asked: Json, left: list[str]) -> Json | None:
    config = asked.get("output_config")
    config = config if isinstance(config, dict) else {}
    left.extend(f"output_config.{name}" for name in config if name != "format")
    form = config.get("format") or asked.get("output_format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise CannotTranslateError("output_config.format: of json_schema alone")
    schema = {"name": "answer", "schema": form.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _tools(tools: object, chosen: object, left: list[str]) -> list[Json]:
    found: list[Json] = []
    for at, tool in enumerate(as_list(tools or [], "tools")):
        given = as_object(tool, f"tools.{at}")
        kind = given.get("type") or "custom"
        if kind != "custom":
            named = isinstance(chosen, dict) and chosen.get("name") == given.get("name")
            if named or not str(kind).startswith(_SEARCHES):
                raise CannotTranslateError(f"tools.{at}.type{shown(kind)}")
            left.append(str(kind)[:60])
            continue
        function = {"name": given.get("name"), "parameters": given.get("input_schema") or {"type": "object"}}
        if given.get("description"):
            function["description"] = given["description"]
        if given.get("strict") is not None:
            function["strict"] = given["strict"]
        found.append({"type": "function", "function": function})
    return found


def _choice(chosen: object) -> Json:
    given = as_object(chosen, "tool_choice")
    made: Json = {}
    kind = given.get("type")
    if kind == "tool":
        made["tool_choice"] = {"type": "function", "function": {"name": given.get("name")}}
    elif kind is not None:
        if kind not in _CHOICES:
            raise CannotTranslateError(f"tool_choice.type{shown(kind)}")
        made["tool_choice"] = _CHOICES[kind]
    if given.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False
    return made


def _system(system: object) -> list[Json]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    texts = [_text(block, f"system.{at}") for at, block in enumerate(as_list(system, "system"))]
    return [{"role": "system", "content": "\n\n".join(texts)}]


def _unbilled(system: object, left: list[str]) -> object:
    """System texts without what changes with each request, and would spoil an engine's cache of all that follows it."""
    if isinstance(system, str):
        header = _BILLING.match(system)
        if header is None:
            return system
        left.append(_BILLED)
        return system[header.end() :]
    if not isinstance(system, list):
        return system
    kept: list[object] = []
    for block in system:
        if isinstance(block, dict) and isinstance(text := block.get("text"), str) and text.startswith(_BILLED):
            if not (rest := _unbilled(text, left)):
                continue
            block = {**block, "text": rest}
        kept.append(block)
    return kept


def _turns(messages: object, left: list[str]) -> list[Json]:
    made: list[Json] = []
    for at, turn in enumerate(as_list(messages, "messages")):
        place = f"messages.{at}"
        given = as_object(turn, place)
        role, content = given.get("role"), given.get("content")
        if role not in ("user", "assistant", "system"):
            raise CannotTranslateError(f"{place}.role{shown(role)}")
        if role == "system":
            content = _unbilled(content, left)
        if isinstance(content, str):
            made.append({"role": role, "content": content})
            continue
        blocks = as_list(content, f"{place}.content")
        if role == "assistant":
            made.append(_said_before(blocks, place))
        else:
            made.extend(_asked_before(blocks, place, role))
            if any(isinstance(one, dict) and _is_cited(one.get("citations")) for one in blocks):
                left.append("citations")
    return made


def _is_cited(citations: object) -> bool:
    """Whether an answer is to say which parts of a document it is from."""
    return isinstance(citations, dict) and bool(citations.get("enabled"))


def _asked_before(blocks: list[object], place: str, role: str) -> list[Json]:
    """A user's turn: results of tools are messages of their own, and stand first, right behind the calls."""
    results: list[Json] = []
    parts: list[Json] = []
    for at, block in enumerate(blocks):
        where = f"{place}.content.{at}"
        given = as_object(block, where)
        if given.get("type") == "tool_result":
            said, pictures = _result(given.get("content"), where)
            results.append({"role": "tool", "tool_call_id": unsigned(given.get("tool_use_id"))[0], "content": said})
            parts.extend(pictures)
        else:
            parts.extend(_shown(given, where))
    if not parts:
        return results
    return [*results, {"role": role, "content": flat(parts)}]


def _result(content: object, place: str) -> tuple[str, list[Json]]:
    """A result's text, and its pictures, which a chat's tool has no place for: they follow as the user's."""
    if content is None or isinstance(content, str):
        return content or "", []
    parts = [
        part
        for at, block in enumerate(as_list(content, f"{place}.content"))
        for part in _shown(as_object(block, f"{place}.content.{at}"), f"{place}.content.{at}")
    ]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts), [part for part in parts if part["type"] != "text"]


def _shown(block: Json, place: str) -> list[Json]:
    """What a block shows, as parts of a chat message."""
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return [{"type": "text", "text": _text(block, place)}]
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": _address(source, f"{place}.source")}}]
    if kind == "document":
        given = as_object(source, f"{place}.source")
        if given.get("type") == "text":
            return [{"type": "text", "text": str(given.get("data") or "")}]
        if given.get("type") == "content":
            inner = given.get("content")
            if isinstance(inner, str):
                return [{"type": "text", "text": inner}]
            blocks = as_list(inner, f"{place}.source.content")
            return [part for one in blocks for part in _shown(as_object(one, place), f"{place}.source.content")]
        if given.get("type") == "base64":
            name = str(block.get("title") or "document.pdf")
            return [{"type": "file", "file": {"filename": name, "file_data": _address(given, f"{place}.source")}}]
        raise CannotTranslateError(f"{place}.source.type{shown(given.get('type'))}")
    raise CannotTranslateError(f"{place}.type{shown(kind)}")


def _address(source: object, place: str) -> str:
    given = as_object(source, place)
    if given.get("type") == "base64":
        return f"data:{given.get('media_type')};base64,{given.get('data')}"
    if given.get("type") == "url":
        return str(given.get("url"))
    raise CannotTranslateError(f"{place}.type{shown(given.get('type'))}")


def _said_before(blocks: list[object], place: str) -> Json:
    """An assistant's turn."""
    texts: list[Json] = []
    calls: list[Json] = []
    thoughts: list[str] = []
    for at, block in enumerate(blocks):
        where = f"{place}.content.{at}"
        given = as_object(block, where)
        kind = given.get("type")
        if kind == "text":
            texts.append({"type": "text", "text": _text(given, where)})
        elif kind == "thinking":
            thoughts.append(str(given.get("thinking") or ""))
        elif kind == "tool_use":
            arguments = encode(given.get("input") or {}).decode()
            function = {"name": given.get("name"), "arguments": arguments}
            ident, more = unsigned(given.get("id"))
            calls.append({"id": ident, "type": "function", "function": function, **more})
        elif kind != "redacted_thinking":  # which nobody but its maker can read
            raise CannotTranslateError(f"{where}.type{shown(kind)}")
    made: Json = {"role": "assistant", "content": flat(texts) if texts else None}
    if any(thoughts):
        # As those servers call it that let their models read their own reasoning again.
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    if not texts and not calls:
        made["content"] = ""
    return made


_FROM_ID = str.maketrans("-_", "+/")


def unsigned(ident: object) -> tuple[object, Json]:
    """A call's id as its backend gave it, and what else of the call goes back there."""
    if not isinstance(ident, str) or SIGNED not in ident:
        return ident, {}
    bare, _, rest = ident.partition(SIGNED)
    signature = rest.translate(_FROM_ID)
    signature += "=" * (-len(signature) % 4)
    return bare, {EXTRA: {"google": {"thought_signature": signature}}}


def in_order(turns: list[Json]) -> list[Json]:
    """A chat's system texts where all templates take them: in one message, at the beginning.

    What comes later goes into the message beside it, so that the prompt begins as it did a turn ago and an engine's
    cache of it holds: never between calls and their results, and never as a turn behind results, at which templates
    forget what was thought before. vLLM does the same: vllm/entrypoints/anthropic/inline_system.py.
    """
    at, first = 0, list[str]()
    while at < len(turns) and (text := _system_text(turns[at])) is not None:
        first.append(text)
        at += 1
    made: list[Json] = [{"role": "system", "content": "\n\n".join(filter(None, first))}] if any(first) else []
    held = ""
    for turn in turns[at:]:
        text = _system_text(turn)
        if text is None:
            if held and turn["role"] in ("user", "tool"):
                turn = {**turn, "content": _beside(turn["content"], held, behind=turn["role"] == "tool")}
            elif held:
                made.append({"role": "user", "content": held})
            held = ""
            made.append(turn)
        elif text:
            # In the words in which Claude Code wrapped such texts while they stood within the user's.
            held = _beside(held, f"<system-reminder>\n{text}\n</system-reminder>")
            if made and made[-1]["role"] in ("user", "tool"):
                made[-1] = {**made[-1], "content": _beside(made[-1]["content"], held)}
                held = ""
    return [*made, {"role": "user", "content": held}] if held else made


def _system_text(turn: Json) -> str | None:
    """Of a turn that is nothing but system text."""
    if turn["role"] != "system":
        return None
    content = turn["content"]
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content if part["type"] == "text"]
    return "\n\n".join(texts) if len(texts) == len(content) else None


def _beside(content: Any, text: str, *, behind: bool = True) -> Any:
    """A content, text or parts, with a text; in one with the text that it meets, as some templates join parts bare."""
    if isinstance(content, list) and content:
        at = len(content) - 1 if behind else 0
        if content[at]["type"] == "text":
            whole = {**content[at], "text": _beside(content[at]["text"], text, behind=behind)}
            return [*content[:at], whole, *content[at + 1 :]]
        part = {"type": "text", "text": text}
        return [*content, part] if behind else [part, *content]
    if not content:
        return text
    return f"{content}\n\n{text}" if behind else f"{text}\n\n{content}"


def flat(parts: list[Json]) -> str | list[Json]:
    """One text as a text, which every server reads; else the parts."""
    return str(parts[0]["text"]) if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _text(block: object, place: str) -> str:
    given = as_object(block, place)
    if given.get("type") != "text" or not isinstance(text := given.get("text"), str):
        raise CannotTranslateError(f"{place}: no text")
    return text


def as_list(value: object, place: str) -> list[object]:
    """`value`, a list. Raises CannotTranslateError."""
    if not isinstance(value, list):
        raise CannotTranslateError(f"{place}: no list")
    return value


def as_object(value: object, place: str) -> Json:
    """`value`, an object. Raises CannotTranslateError."""
    if not isinstance(value, dict):
        raise CannotTranslateError(f"{place}: no object")
    return value
