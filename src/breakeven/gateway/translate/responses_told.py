"""An answer as one of OpenAI's responses, whole or as the events of a stream."""

from __future__ import annotations

from breakeven.gateway.translate.responses_asked import ResponseTool, sealed, seals, tools_by_name
from breakeven.gateway.translate.said import (
    UNREADABLE,
    AnswerFacts,
    AnswerPart,
    AnswerSaid,
    Counts,
    Json,
    decode,
    encode,
)
from breakeven.wire.message import error_body
from breakeven.wire.sse import event

_WHY = {"length": "max_output_tokens", "filter": "content_filter"}
_ECHOED: Json = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "reasoning": None,
    "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": None,
    "truncation": "disabled", "user": None,
}  # fmt: skip
"""What a response repeats of its request, and what stands there where that did not say."""
_NAMES = {"thought": "reasoning_text", "text": "output_text", "refusal": "refusal"}
_IDS = {"thought": "rs", "text": "msg", "refusal": "msg", "call": "fc"}


class _Item:
    """One item of the output while it grows, by `pieces` of its text. `shown`: its beginning was told.

    `seals`: thoughts are told a second time as what their client returns.
    """

    __slots__ = ("at", "done", "id", "part", "pieces", "seals", "shown", "tool")

    def __init__(self, part: AnswerPart, at: int, ident: str, tool: ResponseTool | None, *, seals: bool) -> None:
        self.part, self.at, self.tool = AnswerPart(part.kind, "", part.id, part.name, part.at), at, tool
        self.seals = seals
        self.id = f"{'ctc' if self.custom else _IDS[part.kind]}_{ident}_{at}"
        self.pieces: list[str] = []
        self.shown = self.done = False

    @property
    def custom(self) -> bool:
        """Whether it is a call whose input is a text."""
        return self.tool is not None and self.tool.custom

    @property
    def name(self) -> str:
        """Of the tool that it calls, as the client has it."""
        return self.part.name if self.tool is None else self.tool.name

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    def content(self) -> Json:
        """Its only part, of what is no call."""
        kind, text = self.part.kind, self.text
        if kind == "text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {"type": _NAMES[kind], "refusal" if kind == "refusal" else "text": text}

    def item(self, status: str) -> Json:
        """As a response has it."""
        part = self.part
        if part.kind == "call":
            call = {"id": self.id, "call_id": part.id or f"call_{self.id}", "name": self.name, "status": status}
            if self.tool is not None and self.tool.namespace:
                call["namespace"] = self.tool.namespace
            if self.custom:
                return {"type": "custom_tool_call", **call, "input": custom_input(self.text)}
            # Of a tool that takes nothing a model may write nothing; a client reads JSON.
            nothing = "{}" if status == "completed" else ""
            return {"type": "function_call", **call, "arguments": self.text or nothing}
        content = [self.content()] if self.pieces else []
        if part.kind == "thought":
            thought: Json = {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status}
            if self.seals and status != "in_progress" and (text := self.text):
                thought["encrypted_content"] = sealed(text)
            return thought
        return {"type": "message", "id": self.id, "role": "assistant", "status": status, "content": content}


class ResponseWriter:
    """An answer as a response. Its items grow side by side, so that each piece goes out as it comes."""

    def __init__(self, asked: Json, facts: AnswerFacts) -> None:
        self._asked, self._facts = asked, facts
        self._tools = tools_by_name(asked)
        self._seals = seals(asked)
        self._items: list[_Item] = []
        self._ident = facts.ident
        self._said = AnswerSaid()
        self._number = -1

    def whole(self, said: AnswerSaid, counts: Counts) -> Json:
        """In one piece."""
        self._name(said)
        for part in said.parts:
            self._added(part).pieces = [part.text]
        return self._response(said, counts)

    def begin(self, said: AnswerSaid) -> bytes:
        """That it was made, and is under way."""
        self._name(said)
        response = {**self._frame(said, "in_progress"), "output": [], "usage": None}
        return b"".join(
            self._event(name, {"response": response}) for name in ("response.created", "response.in_progress")
        )

    def part(self, part: AnswerPart) -> bytes:
        """What comes next of an item; a text's end is told when something else begins, a call's at the end of all."""
        item = self._of(part)
        out = []
        for other in self._items:
            if other is not item and other.part.kind != "call" and not other.done:
                out.append(self._end_item(other, "completed"))
        if not item.shown and (part.kind != "call" or item.part.name):
            out.append(self._show(item))
            before = item.text
        else:
            before = ""
        item.pieces.append(part.text)
        if item.shown and not item.custom and (delta := before + part.text):
            out.append(self._delta(item, delta))
        return b"".join(out)

    def end(self, said: AnswerSaid, counts: Counts) -> bytes:
        """The ends of what is open, then of the response."""
        named = self._named()
        out = []
        for item in self._items:
            if item.shown and not item.done:
                cut = said.finish in _WHY and item is named[-1]
                out.append(self._end_item(item, "incomplete" if cut else "completed"))
        response = self._response(said, counts)
        out.append(self._event(f"response.{response['status']}", {"response": response}))
        return b"".join(out)

    def fail(self, message: str) -> bytes:
        """As OpenAI tells it within a stream."""
        response = self._frame(self._said, "failed")
        response |= {"error": {"code": "server_error", "message": message}, "usage": None}
        response["output"] = [item.item("incomplete") for item in self._items if item.shown]
        return self._event("response.failed", {"response": response})

    def error(self, status: int, message: str) -> bytes:
        """As OpenAI tells it."""
        return error_body(status, message)

    def _name(self, said: AnswerSaid) -> None:
        self._said = said
        self._ident = said.ident or self._facts.ident

    def _tool(self, part: AnswerPart) -> ResponseTool | None:
        return self._tools.get(part.name) if part.kind == "call" else None

    def _of(self, part: AnswerPart) -> _Item:
        """The item that a part belongs to."""
        for item in reversed(self._items):
            same = item.part
            if same.kind == part.kind and not item.done and (part.kind != "call" or same.at == part.at):
                same.id, same.name = same.id or part.id, same.name or part.name
                return item
            if part.kind != "call" and same.kind != "call":
                break
        return self._added(part)

    def _added(self, part: AnswerPart) -> _Item:
        item = _Item(part, len(self._items), self._ident, self._tool(part), seals=self._seals)
        self._items.append(item)
        return item

    def _show(self, item: _Item) -> bytes:
        item.shown = True
        item.tool = self._tool(item.part)
        held, item.pieces = item.pieces, []
        place = {"output_index": item.at, "item_id": item.id, "content_index": 0}
        out = self._event("response.output_item.added", {"output_index": item.at, "item": item.item("in_progress")})
        if item.part.kind != "call":
            out += self._event("response.content_part.added", {**place, "part": item.content()})
        item.pieces = held
        return out

    def _delta(self, item: _Item, delta: str) -> bytes:
        place = {"output_index": item.at, "item_id": item.id}
        if item.part.kind == "call":
            return self._event("response.function_call_arguments.delta", {**place, "delta": delta})
        more: Json = {"logprobs": []} if item.part.kind == "text" else {}
        name = f"response.{_NAMES[item.part.kind]}.delta"
        return self._event(name, {**place, "content_index": 0, "delta": delta, **more})

    def _end_item(self, item: _Item, status: str) -> bytes:
        item.done = True
        part, text = item.part, item.text
        place: Json = {"output_index": item.at, "item_id": item.id}
        out = []
        if part.kind != "call":
            place["content_index"] = 0
            said: Json = {"refusal": text} if part.kind == "refusal" else {"text": text}
            if part.kind == "text":
                said["logprobs"] = []
            out.append(self._event(f"response.{_NAMES[part.kind]}.done", {**place, **said}))
            out.append(self._event("response.content_part.done", {**place, "part": item.content()}))
        elif item.custom:
            given = custom_input(text)
            out.append(self._event("response.custom_tool_call_input.delta", {**place, "delta": given}))
            out.append(self._event("response.custom_tool_call_input.done", {**place, "input": given}))
        else:
            arguments = item.item(status)["arguments"]
            if arguments != text:
                out.append(self._delta(item, arguments))
            told = {**place, "name": item.name, "arguments": arguments}
            out.append(self._event("response.function_call_arguments.done", told))
        done = {"output_index": item.at, "item": item.item(status)}
        out.append(self._event("response.output_item.done", done))
        return b"".join(out)

    def _frame(self, said: AnswerSaid, status: str) -> Json:
        """A response without its output."""
        echoed = {name: self._asked[name] if self._asked.get(name) is not None else _ECHOED[name] for name in _ECHOED}
        return {
            "id": f"resp_{self._ident}",
            "object": "response",
            "created_at": said.created or self._facts.unix_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": said.model or str(self._asked.get("model") or ""),
            "previous_response_id": None,
            "store": False,
            **echoed,
        }

    def _named(self) -> list[_Item]:
        """Items that are some: a call whose name never came is none."""
        return [item for item in self._items if item.part.kind != "call" or item.part.name]

    def _response(self, said: AnswerSaid, counts: Counts) -> Json:
        why = _WHY.get(said.finish)
        response = self._frame(said, "incomplete" if why else "completed")
        if why:
            response["incomplete_details"] = {"reason": why}
        named = self._named()
        last = named[-1] if named else None
        response["output"] = [item.item("incomplete" if why and item is last else "completed") for item in named]
        response["usage"] = {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached or 0, "cache_write_tokens": counts.written or 0},
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": counts.thoughts},
            "total_tokens": counts.prompt + counts.output,
        }
        return response

    def _event(self, name: str, data: Json) -> bytes:
        self._number += 1
        return event(encode({"type": name, "sequence_number": self._number, **data}), name.encode())


def custom_input(arguments: str) -> str:
    """The text of a custom tool's call, which went out as a function's one argument."""
    try:
        given = decode(arguments)
    except UNREADABLE:
        return arguments
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments
