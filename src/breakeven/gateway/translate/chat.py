"""A client of chat completions before a backend that speaks Anthropic's messages alone: what is asked, what is told."""

from __future__ import annotations

from breakeven.gateway.translate.messages_asked import as_list, as_object
from breakeven.gateway.translate.said import (
    UNREADABLE,
    AnswerFacts,
    AnswerPart,
    AnswerSaid,
    CannotTranslateError,
    Counts,
    Json,
    decode,
    encode,
    shown,
)
from breakeven.wire.message import error_body
from breakeven.wire.sse import DONE, event

USUAL_MAX_TOKENS = 32_000
"""Anthropic's API wants a limit, chat's does not: what Claude Opus 4 writes at most, the least of those since 2025."""
SMALL_MAX_TOKENS = 4096
"""Where there is no room for as many."""
_THOUGHTS = ("reasoning_content", "reasoning")
"""Without their signature, which a chat has no place for, Anthropic's API refuses them."""
_SAME = ("top_p", "top_k", "stream")
_SEARCH = "web_search_options"
_HINTS = (
    "seed", "verbosity", "service_tier", "store", "metadata", "prompt_cache_key", "safety_identifier",
    "reasoning_effort", "prompt_cache_retention",
)  # fmt: skip
_REFUSED = (
    "logprobs", "top_logprobs", "logit_bias", "audio", "prediction", "functions", "function_call",
    "frequency_penalty", "presence_penalty",
)  # fmt: skip
_READ = frozenset(
    (
        *_SAME, *_HINTS, *_REFUSED, _SEARCH, "model", "messages", "max_tokens", "max_completion_tokens", "temperature",
        "stop", "n", "tools", "tool_choice", "parallel_tool_calls", "user", "response_format", "modalities",
        "stream_options",
    )
)  # fmt: skip
_CACHED = "cache_control"
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_ENDS = {"stop": "stop", "length": "length", "calls": "tool_calls", "filter": "content_filter"}


def chat_to_messages(asked: Json, left: list[str]) -> Json:
    """The same as a request for one of Anthropic's messages; `left` gets the names of what is left out.

    Without `max_tokens` where it names no limit: which one is put in is the backend's affair (`table.Turned.fields`).
    Raises CannotTranslateError.
    """
    for name in _REFUSED:
        if asked.get(name):
            raise CannotTranslateError(name)
    if asked.get("n") not in (None, 1):
        raise CannotTranslateError("n above 1")
    if asked.get("modalities") not in (None, ["text"]):
        raise CannotTranslateError("modalities")
    if asked.get(_SEARCH) is not None:  # an empty object asks for a search as well
        raise CannotTranslateError(_SEARCH)
    left.extend(name for name in _HINTS if asked.get(name) is not None)
    made: Json = {name: asked[name] for name in asked if name not in _READ}
    system, made["messages"] = _turns(asked.get("messages"))
    left.extend(name for name in _THOUGHTS if any(turn.get(name) for turn in asked["messages"]))
    if system:
        made["system"] = system
    made |= {name: asked[name] for name in _SAME if asked.get(name) is not None}
    most = asked.get("max_completion_tokens")
    most = asked.get("max_tokens") if most is None else most
    if most is not None:
        made["max_tokens"] = most
    warm = asked.get("temperature")
    if warm is not None:
        if isinstance(warm, int | float) and warm > 1:
            raise CannotTranslateError("temperature above 1")
        made["temperature"] = warm
    if (stop := asked.get("stop")) is not None:
        made["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if asked.get("user"):
        made["metadata"] = {"user_id": asked["user"]}
    _tools(asked, made)
    _form(asked.get("response_format"), made)
    return made


def _form(form: object, made: Json) -> None:
    if form is None:
        return
    given = as_object(form, "response_format")
    if given.get("type") == "json_schema":
        schema = as_object(given.get("json_schema"), "response_format.json_schema").get("schema")
        made["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    elif given.get("type") != "text":
        raise CannotTranslateError(f"response_format.type{shown(given.get('type'))}")


def _tools(asked: Json, made: Json) -> None:
    found: list[Json] = []
    for at, tool in enumerate(as_list(asked.get("tools") or [], "tools")):
        given = as_object(tool, f"tools.{at}")
        if given.get("type") != "function":
            raise CannotTranslateError(f"tools.{at}.type{shown(given.get('type'))}")
        function = as_object(given.get("function"), f"tools.{at}.function")
        one: Json = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
        one |= {name: function[name] for name in ("description", "strict") if function.get(name) is not None}
        found.append(one | _kept(given if given.get(_CACHED) else function))
    chosen = asked.get("tool_choice")
    if isinstance(chosen, dict) and chosen.get("type") == "allowed_tools":
        found, chosen = _allowed(found, as_object(chosen.get("allowed_tools"), "tool_choice.allowed_tools"))
    if not found:
        return
    made["tools"] = found
    choice: Json = {}
    if isinstance(chosen, str) and chosen in _CHOICES:
        choice = {"type": _CHOICES[chosen]}
    elif isinstance(chosen, dict) and chosen.get("type") == "function":
        choice = {"type": "tool", "name": as_object(chosen.get("function"), "tool_choice.function").get("name")}
    elif chosen is not None:
        raise CannotTranslateError("tool_choice")
    if asked.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    if choice:
        made["tool_choice"] = choice


def _allowed(tools: list[Json], chosen: Json) -> tuple[list[Json], object]:
    """Those that may be called, and whether one must be: another API has no word for tools that may not."""
    place = "tool_choice.allowed_tools.tools"
    named = [as_object(one, place) for one in as_list(chosen.get("tools"), place)]
    names = {str(as_object(one.get("function"), place).get("name")) for one in named}
    left = [tool for tool in tools if tool["name"] in names]
    if not left and chosen.get("mode") == "required":
        raise CannotTranslateError("tool_choice")
    return left, chosen.get("mode") or "auto"


def _turns(messages: object) -> tuple[list[Json], list[Json]]:
    """System texts, which stand apart there wherever they stood, and the other messages."""
    system: list[Json] = []
    made: list[Json] = []
    for at, one in enumerate(as_list(messages, "messages")):
        place = f"messages.{at}"
        given = as_object(one, place)
        role, content = given.get("role"), given.get("content")
        if role in ("system", "developer"):
            system.extend(_shown(content, f"{place}.content"))
        elif role == "user":
            if blocks := _shown(content, f"{place}.content"):
                made.append({"role": "user", "content": blocks})
        elif role == "assistant":
            blocks = [*_shown(content or "", f"{place}.content"), *_calls(given.get("tool_calls") or [], place)]
            if isinstance(refusal := given.get("refusal"), str) and refusal:
                blocks.append({"type": "text", "text": refusal})
            if blocks:
                made.append({"role": "assistant", "content": blocks})
        elif role == "tool":
            result = {"type": "tool_result", "tool_use_id": given.get("tool_call_id")}
            block = {**result, "content": _shown(content or "", f"{place}.content")}
            if made and made[-1]["role"] == "user" and made[-1]["content"][-1]["type"] == "tool_result":
                made[-1]["content"].append(block)
            else:
                made.append({"role": "user", "content": [block]})
        else:
            raise CannotTranslateError(f"{place}.role{shown(role)}")
    return system, made


def _calls(calls: object, place: str) -> list[Json]:
    made: list[Json] = []
    for at, one in enumerate(as_list(calls, f"{place}.tool_calls")):
        where = f"{place}.tool_calls.{at}"
        given = as_object(one, where)
        function = as_object(given.get("function"), f"{where}.function")
        try:
            arguments = decode(str(function.get("arguments") or "{}"))
        except UNREADABLE:
            arguments = None
        block = {"type": "tool_use", "id": given.get("id"), "name": function.get("name")}
        made.append({**block, "input": as_object(arguments, f"{where}.function.arguments")})
    return made


def _shown(content: object, place: str) -> list[Json]:
    """What a content shows, as blocks; an empty text, which Anthropic's API refuses, is none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    made: list[Json] = []
    for at, part in enumerate(as_list(content, place)):
        given = as_object(part, f"{place}.{at}")
        kind = given.get("type")
        if kind == "text":
            if given.get("text") != "":
                made.append({"type": "text", "text": given.get("text"), **_kept(given)})
        elif kind == "image_url":
            address = as_object(given.get("image_url"), f"{place}.{at}.image_url").get("url")
            made.append({"type": "image", "source": _source(address, f"{place}.{at}.image_url.url"), **_kept(given)})
        elif kind == "file" and isinstance(file := given.get("file"), dict) and file.get("file_data"):
            source = _source(file["file_data"], f"{place}.{at}.file.file_data")
            title = {"title": file["filename"]} if file.get("filename") else {}
            made.append({"type": "document", "source": source, **title, **_kept(given)})
        else:
            raise CannotTranslateError(f"{place}.{at}.type{shown(kind)}")
    return made


def _kept(given: Json) -> Json:
    """Where Anthropic's API is to keep a prompt: clients that know it (LiteLLM, OpenRouter's) say so in chats too."""
    return {_CACHED: given[_CACHED]} if given.get(_CACHED) else {}


def _source(address: object, place: str) -> Json:
    if not isinstance(address, str):
        raise CannotTranslateError(f"{place}: no address")
    if not address.startswith("data:"):
        return {"type": "url", "url": address}
    kind, mark, data = address[5:].partition(";base64,")
    if not mark:
        raise CannotTranslateError(f"{place}: no base64")
    return {"type": "base64", "media_type": kind, "data": data}


class ChatWriter:
    """An answer as a chat completion."""

    def __init__(self, asked: Json, facts: AnswerFacts) -> None:
        self._facts, self._asked_for = facts, str(asked.get("model") or "")
        options = asked.get("stream_options")
        self._tells_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._top: Json = {}
        self._calls: list[int] = []

    def whole(self, said: AnswerSaid, counts: Counts) -> Json:
        """In one piece."""
        texts = {kind: "".join(part.text for part in said.parts if part.kind == kind) for kind in _FIELDS}
        message: Json = {"role": "assistant", "content": texts["text"] or None, "refusal": texts["refusal"] or None}
        if texts["thought"]:
            message["reasoning_content"] = texts["thought"]
        if calls := [_call(part) for part in said.parts if part.kind == "call"]:
            message["tool_calls"] = calls
        elif not texts["refusal"]:
            message["content"] = texts["text"]
        choice = {"index": 0, "message": message, "finish_reason": _ENDS[said.finish], "logprobs": None}
        top = self._named(said, "chat.completion")
        return {**top, "choices": [choice], "usage": _usage(counts)}

    def begin(self, said: AnswerSaid) -> bytes:
        """Whose turn it is."""
        self._top = self._named(said, "chat.completion.chunk")
        return self._chunk({"role": "assistant", "content": ""})

    def part(self, part: AnswerPart) -> bytes:
        """What comes next."""
        if part.kind != "call":
            return self._chunk({_FIELDS[part.kind]: part.text})
        function: Json = {"arguments": part.text}
        call: Json = {}
        if part.at not in self._calls:
            self._calls.append(part.at)
            call = {"id": part.id, "type": "function"}
            function = {"name": part.name, **function}
        return self._chunk({"tool_calls": [{"index": self._calls.index(part.at), **call, "function": function}]})

    def end(self, said: AnswerSaid, counts: Counts) -> bytes:
        """Why it ends; the counts where they were asked for."""
        last = self._chunk({}, _ENDS[said.finish])
        if self._tells_usage:
            last += event(encode({**self._top, "choices": [], "usage": _usage(counts)}))
        return last + DONE

    def fail(self, message: str) -> bytes:
        """As OpenAI tells it within a stream."""
        return event(error_body(500, message))

    def error(self, status: int, message: str) -> bytes:
        """As OpenAI tells it."""
        return error_body(status, message)

    def _named(self, said: AnswerSaid, kind: str) -> Json:
        ident, created = said.ident or self._facts.ident, said.created or self._facts.unix_s
        model = said.model or self._asked_for
        return {"id": f"chatcmpl-{ident}", "object": kind, "created": created, "model": model}

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return event(encode({**self._top, "choices": [choice]}))


_FIELDS = {"thought": "reasoning_content", "text": "content", "refusal": "refusal"}


def _call(part: AnswerPart) -> Json:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.text}}


def _usage(counts: Counts) -> Json:
    usage: Json = {"prompt_tokens": counts.prompt, "completion_tokens": counts.output}
    usage["total_tokens"] = counts.prompt + counts.output
    kept = {"cached_tokens": counts.cached, "cache_write_tokens": counts.written}
    if told := {name: count for name, count in kept.items() if count is not None}:
        usage["prompt_tokens_details"] = told
    if counts.thoughts:
        usage["completion_tokens_details"] = {"reasoning_tokens": counts.thoughts}
    return usage
