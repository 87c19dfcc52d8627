"""An answer as one of Anthropic's messages, whole or as the events of a stream."""

from __future__ import annotations

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
)
from breakeven.wire.sse import event

_ENDS = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use", "filter": "refusal"}
_TEXTS = {"thought": ("thinking", "thinking_delta"), "text": ("text", "text_delta"), "refusal": ("text", "text_delta")}
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip


class MessageWriter:
    """An answer as one of Anthropic's messages. Its blocks follow each other, and none is opened twice.

    So while a call is under way what comes of others is kept until the end.
    """

    def __init__(self, asked: Json, facts: AnswerFacts) -> None:
        self._facts, self._asked_for = facts, str(asked.get("model") or "")
        stops = asked.get("stop_sequences")
        self._stops = stops if isinstance(stops, list) else []
        self._at = -1
        self._open: AnswerPart | None = None
        self._later: list[AnswerPart] = []
        self._calls = self._refused = False

    def whole(self, said: AnswerSaid, counts: Counts) -> Json:
        """In one piece. A call that the length limit cut within its arguments is none."""
        content = []
        for part in said.parts:
            if part.kind == "call":
                try:
                    given = decode(part.text or "{}")
                except UNREADABLE:
                    if said.finish == "length":
                        continue
                    given = None
                if not isinstance(given, dict):
                    raise CannotTranslateError(f"the backend's call of {part.name!r}: its arguments are no JSON object")
                content.append({**self._block(part), "input": given})
            else:
                content.append({**self._block(part), _TEXTS[part.kind][0]: part.text})
        return {**self._message(said, content, usage_of(counts)), **self._ending(said)}

    def begin(self, said: AnswerSaid) -> bytes:
        """The prompt is told as it was estimated; the last event has the count."""
        usage = {"input_tokens": self._facts.prompt, "output_tokens": 0}
        message = self._message(said, [], usage)
        return _event("message_start", {"message": {**message, "stop_reason": None, "stop_sequence": None}})

    def part(self, part: AnswerPart) -> bytes:
        """What comes next of a block, the end of the one before it too."""
        now = self._open
        if now is not None and now.kind == part.kind and (part.kind != "call" or now.at == part.at):
            return self._delta(part)
        waits = any(held.kind == part.kind == "call" and held.at == part.at for held in self._later)
        if waits or (now is not None and now.kind == "call") or (part.kind == "call" and not part.name):
            self._hold(part)
            return b""
        return self._close() + self._start(part)

    def end(self, said: AnswerSaid, counts: Counts) -> bytes:
        """What was kept, then why it ends."""
        out = [self._close()]
        for part in self._later:
            out += [self._start(part), self._close()]
        ending = self._ending(said)
        out.append(_event("message_delta", {"delta": ending, "usage": usage_of(counts)}))
        out.append(_event("message_stop", {}))
        return b"".join(out)

    def fail(self, message: str) -> bytes:
        """As Anthropic tells it within a stream."""
        return _event("error", {"error": {"type": "api_error", "message": message}})

    def error(self, status: int, message: str) -> bytes:
        """As Anthropic tells it."""
        kind = _KINDS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        return encode({"type": "error", "error": {"type": kind, "message": message}})

    def _message(self, said: AnswerSaid, content: list[Json], usage: Json) -> Json:
        ident = f"msg_{said.ident or self._facts.ident}"
        top = {"id": ident, "type": "message", "role": "assistant", "model": said.model or self._asked_for}
        return {**top, "content": content, "usage": usage}

    def _ending(self, said: AnswerSaid) -> Json:
        reason = _ENDS.get(said.finish, "end_turn")
        if said.finish == "stop" and (self._calls or any(part.kind == "call" for part in said.parts)):
            reason = "tool_use"
        if self._refused or any(part.kind == "refusal" for part in said.parts):
            reason = "refusal"
        stopped = said.stop if said.finish == "stop" and said.stop in self._stops else None
        return {"stop_reason": "stop_sequence" if stopped is not None else reason, "stop_sequence": stopped}

    def _block(self, part: AnswerPart) -> Json:
        if part.kind == "call":
            ident = part.id or f"toolu_{self._facts.ident}_{part.at}"
            return {"type": "tool_use", "id": ident, "name": part.name, "input": {}}
        name, _ = _TEXTS[part.kind]
        return {"type": name, name: "", **({"signature": ""} if name == "thinking" else {})}

    def _start(self, part: AnswerPart) -> bytes:
        self._at += 1
        self._open = part
        self._calls = self._calls or part.kind == "call"
        self._refused = self._refused or part.kind == "refusal"
        begun = _event("content_block_start", {"index": self._at, "content_block": self._block(part)})
        return begun + self._delta(part)

    def _delta(self, part: AnswerPart) -> bytes:
        if not part.text:
            return b""
        name, kind = ("partial_json", "input_json_delta") if part.kind == "call" else _TEXTS[part.kind]
        return _event("content_block_delta", {"index": self._at, "delta": {"type": kind, name: part.text}})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", {"index": self._at})

    def _hold(self, part: AnswerPart) -> None:
        for held in self._later:
            if held.kind == part.kind == "call" and held.at == part.at:
                held.text, held.id, held.name = held.text + part.text, held.id or part.id, held.name or part.name
                return
        if self._later and self._later[-1].kind == part.kind != "call":
            self._later[-1].text += part.text
        else:
            self._later.append(AnswerPart(part.kind, part.text, part.id, part.name, part.at))


def usage_of(counts: Counts) -> Json:
    """Anthropic counts what a cache had beside the rest; null: the backend does not tell."""
    usage: Json = {
        "input_tokens": max(0, counts.prompt - (counts.cached or 0) - (counts.written or 0)),
        "cache_creation_input_tokens": counts.written,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.output,
    }
    if counts.thoughts:
        usage["output_tokens_details"] = {"thinking_tokens": counts.thoughts}
    return usage


def _event(name: str, data: Json) -> bytes:
    return event(encode({"type": name, **data}), name.encode())
