"""A backend that has chat completions alone and uses its tools, for clients of other APIs before it.

It answers with what it was told: every message, picture and result of a tool, so that what a translation loses on the
way is seen in the answer. Offered tools it calls them, with an argument of the name that the tool's schema gives it, in
pieces cut as llama.cpp cuts them. Runs with the project's own Python: its address on the first line, until standard
input closes.

    python judges/chat_server.py
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from breakeven.wire.behaviours import error, whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer
from breakeven.wire.sse import event

ARGUMENT = 'Zürich "8001"\n\\ 🦊'
"""Quotes, a line's end, a backslash and more than one byte a letter, within JSON within JSON."""
USE = re.compile(r"use (?P<name>\w+) (?P<arguments>{.*})")
"""A question that names a tool and what to call it with, as the programs are asked."""
MOST_SAID = 4000
"""Characters of an answer that repeats everything; of a program's, which says more, it repeats the last message."""
USAGE = {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30, "prompt_tokens_details": {"cached_tokens": 4}}
TOO_LONG = {"code": 400, "message": "the request exceeds the available context size, try increasing it"}


def told(message: dict[str, Any]) -> str:
    """What a message says, in one line."""
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    said = [_part(part) for part in parts]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = json.dumps(json.loads(function["arguments"]), sort_keys=True)
        said.append(f"calls {function['name']} as {call['id']} with {arguments}")
    role = "system" if message["role"] == "developer" else message["role"]
    of = f" of {message['tool_call_id']}" if message.get("tool_call_id") else ""
    return f"{role}{of}: {' '.join(filter(None, said))}"


def _part(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return str(part["text"])
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    return f"[{kind.removeprefix('data:')} of {len(base64.b64decode(data))} bytes]"


def filled(schema: dict[str, Any]) -> str:
    """JSON of a schema's first property."""
    return json.dumps({next(iter(schema.get("properties") or {"nothing": 0})): ARGUMENT}, ensure_ascii=False)


def last_of(asked: dict[str, Any]) -> str:
    """The last message that is none of the system's."""
    return told(next(one for one in reversed(asked["messages"]) if one["role"] not in ("system", "developer")))


def message_of(asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The answer and why it ends."""
    last = last_of(asked)
    everything = " | ".join(map(told, asked["messages"]))
    of_program = len(everything) >= MOST_SAID
    message: dict[str, Any] = {"role": "assistant", "content": last if of_program else everything}
    if (named := USE.search(last)) is not None:
        function = {"name": named["name"], "arguments": named["arguments"]}
        call = {"id": "call9", "type": "function", "function": function}
        return {**message, "content": None, "tool_calls": [call]}, "tool_calls"
    if of_program:
        return message, "stop"
    if "think" in last:
        message["reasoning_content"] = "Hm. Näher."
    if "limit" in last:
        return message, "length"
    form = asked.get("response_format") or {}
    if form.get("type") == "json_schema":
        return {**message, "content": filled(form["json_schema"]["schema"])}, "stop"
    tools = asked.get("tools") if asked.get("tool_choice") != "none" else None
    if not tools or last.startswith("tool"):
        return message, "stop"
    functions = [tool["function"] for tool in tools[: 2 if "both" in last else 1]]
    calls = [
        {"id": f"call{at}", "type": "function", "function": {"name": f["name"], "arguments": filled(f["parameters"])}}
        for at, f in enumerate(functions)
    ]
    return {**message, "content": None, "tool_calls": calls}, "tool_calls"


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The message in pieces: its role, thoughts and text by three letters, a call's name and then its arguments."""
    yield {"role": "assistant", "content": None}
    for name in ("reasoning_content", "content"):
        text = message.get(name) or ""
        yield from ({name: text[at : at + 3]} for at in range(0, len(text), 3))
    for index, call in enumerate(message.get("tool_calls") or ()):
        text = call["function"]["arguments"]
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": text[:1]}}]}
        for at in range(1, len(text), 4):
            yield {"tool_calls": [{"index": index, "function": {"arguments": text[at : at + 4]}}]}


def step(question: ScriptedRequest) -> Scene:
    """One answer."""
    if question.path != "/v1/chat/completions":
        return error(404)
    asked = question.fields
    if last_of(asked).endswith("this is too long"):
        return whole(json.dumps({"error": {**TOO_LONG, "type": "exceed_context_size_error"}}).encode(), status=400)
    message, why = message_of(asked)
    top = {"id": f"chatcmpl-{question.id}", "created": 1, "model": question.model}
    if not question.stream:
        choice = {"index": 0, "message": message, "finish_reason": why}
        return whole(json.dumps({**top, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode())
    top["object"] = "chat.completion.chunk"
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas(message)]
    choices.append({"index": 0, "delta": {}, "finish_reason": why})
    events = [{**top, "choices": [choice]} for choice in choices]
    if question.usage:
        events.append({**top, "choices": [], "usage": USAGE})
    made = b"".join(event(json.dumps(one, ensure_ascii=False).encode()) for one in events) + event(b"[DONE]")
    return whole(made, kind="text/event-stream")


def main() -> None:
    """Serve until standard input closes."""
    with ScriptedServer(step, models=("chat",)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
