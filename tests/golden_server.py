"""The scripted server as truth to test the client on: every delay and every fault of each request is written down.

It waits exactly as told before the first piece and between pieces, and remembers when it wrote each of them on the
same monotonic clock the client uses. Requests that do not ask for a stream get the same answer in one piece, after the
same time. It can die and come back at its port, and stand still as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import Request
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import Page, ScriptedServer, Step

FAULTS = {
    "garbage": "bad_event",
    "half_event": "half_event",
    "no_usage": "uncounted",
    "two_usages": "counted_twice",
    "no_newline": "unended",
    "output_after_done": "late_output",
    "no_done": "no_done",
    "reset": "close_mid_body",
    "stall": "stall_mid_body",
    "slow_headers": "stall",
    "slow_loris": "drip",
    "hang_up": "close_before_head",
    "no_close": "stays_open",
    "short": "short",
    "engine_error": "engine_error",
    "error_first": "error_first",
    "pings_first": "pings_first",
    "mixed_ends": "mixed_ends",
    "null_choices": "null_choices",
    "no_output": "no_output",
    "answers_whole": "answers_whole",
    "status_401": "401",
    "status_404": "404",
    "status_429": "429",
    "status_500": "500",
}
"""Each by the name of the behaviour that it is."""


@dataclass
class Script:
    """How one request is answered. `tokens_per_piece` cycles; `count_aloud` sends a running count as llama.cpp does."""

    ttft_s: float = 0.0
    itl_s: float = 0.0
    fault: str | None = None
    tokens_per_piece: tuple[int, ...] = (1,)
    count_aloud: bool = False
    newline: str = "\n"
    split_bytes: int = 0
    """Write the stream in pieces of this many bytes (0: one write an event)."""
    cached_tokens: int = 0
    retry_after: str | None = None
    """`Retry-After` header of a scripted status."""

    def step(self) -> dict[str, Any]:
        """The same in the scripted server's words."""
        return {
            "do": FAULTS[self.fault] if self.fault else "ok",
            "first_s": self.ttft_s,
            "chunk_s": self.itl_s,
            "end_s": 0.0,
            "head_first": True,
            "usage_always": True,
            "chunk_tokens": self.tokens_per_piece,
            "counts": self.count_aloud,
            "newline": self.newline,
            "split_bytes": self.split_bytes,
            "cached_tokens": self.cached_tokens,
            "retry_after": self.retry_after,
        }


class GoldenServer(ScriptedServer):
    """`scripts` by order of arrival; the last one repeats."""

    model = "golden"

    def __init__(
        self,
        scripts: Sequence[Script],
        *,
        owned_by: str = "golden",
        key: str | None = None,
        refuse_extra_fields: bool = False,
        chat_only: bool = False,
        metrics_text: str | None = None,
    ) -> None:
        missing = whole(b"", status=404)
        pages: dict[str, Page] = {"/tokenize": _tokenize, "/metrics": missing}
        if chat_only:
            pages["/v1/completions"] = missing
        if metrics_text is not None:
            pages["/metrics"] = whole(metrics_text.encode(), kind="text/plain")
        super().__init__(self._step, models=["golden", "other"], owned_by=owned_by, key=key, pages=pages)
        self.scripts, self.refuse_extra_fields = list(scripts), refuse_extra_fields
        self.start, self.die, self.pause = self.up, self.down, self.stand_still

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked."""
        return [json.loads(body) for body in self.seen.bodies]

    @property
    def received_ns(self) -> list[int]:
        """When each request came."""
        return list(self.seen.received_ns)

    @property
    def wrote_ns(self) -> list[list[int]]:
        """When each event, or the answer in one piece, was written: one list a request."""
        return [times[1:] if len(times) > 1 else times for times in self.seen.wrote_ns]

    @property
    def connections(self) -> list[str]:
        """Where each request came from; a kept connection keeps its port."""
        return list(self.seen.peers)

    def _step(self, question: ScriptedRequest) -> Step:
        if self.refuse_extra_fields and "ignore_eos" in question.fields:
            return whole(b'{"error": {"message": "unrecognized argument: ignore_eos"}}', status=400)
        return self.scripts[min(question.number, len(self.scripts)) - 1].step()


def _tokenize(request: Request) -> Scene:
    """A token a word, in llama.cpp's dialect ("content") or vLLM's ("prompt")."""
    body = json.loads(request.body)
    words = str(body.get("content", body.get("prompt", ""))).split()
    tokens = [sum(word.encode()) for word in words]
    return whole(json.dumps({"tokens": tokens, "count": len(tokens)}).encode())


@contextmanager
def golden_server(*scripts: Script, **settings: Any) -> Iterator[GoldenServer]:
    """Serve the scripts on a free loopback port, from a thread with an event loop of its own."""
    with GoldenServer(list(scripts) or [Script()], **settings) as server:
        yield server
