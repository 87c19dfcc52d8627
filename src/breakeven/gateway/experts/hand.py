"""Requests whose experts are looked at, on their way from the worker that served them to the process that watches.

A worker decides by the request's id alone (`observed`), keeps what the backend says while it passes, and after its end
writes question and answer into a file that lies in memory and has no name, whose descriptor it sends through a line of
messages (`system.message_line`). It waits for nothing: where the line is full the request is skipped and counted, and
what was skipped is told with the next message. The file is gone once both sides have closed it, also where a message
is never read; so nothing that a client said stays anywhere.

    Looking    how one backend's requests are looked at, as a worker needs it
    Handing    the worker's end
    received   the other end
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from breakeven.gateway.experiment.answer import KEEP_BYTES
from breakeven.gateway.experiment.assign import place
from breakeven.gateway.plan.experts import seen_by
from breakeven.gateway.plan.model import BackendPlan
from breakeven.hardware.system import memory_file, memory_file_bytes, next_message, send_message

CHAT = "/v1/chat/completions"
OBSERVED = frozenset((CHAT, "/v1/completions"))
"""What a backend may be asked for of which the prompt can be read again, or whose answers hold the routing."""
MOST_ROUTING = 16 * 2**20
"""Bytes of an answer with its routing in it: 8.4 MB are 4,096 tokens of 48 layers and 8 experts, base64 of int32."""
BYTES_A_TOKEN = 512
"""Of an answer that is read again: an event of llama.cpp's streams has some 250 beside its token and model's name."""
MOST_ASKED = 2 * 2**20
"""Bytes of a question that is read again; far beyond what `tokens` lets be read."""
LINE_BYTES = 8 * 2**10
"""Of messages that nobody has read: some twenty, each with a file of at most `MOST_ROUTING` beside it."""
MOST_MESSAGE = 8 * 2**10
_TOLD_AT_ONCE = 8
"""Reasons that go with one message, each with names of at most 100 letters."""
FULL = "nobody took it in time"
LOST = "it could not be handed over"
PACKED = "its answer is packed"
CUT = "it did not end whole"
TOO_LARGE = "it is too large"
NOT_IN_STREAMS = "its engine returns no routing in streams"
OF_A_PART = "it asked for the routing of a part of it"
_LANGUAGE = re.compile(rb"[A-Za-z-]{2,12}")
_ASKS_FOR_IT: Mapping[str, Mapping[str, msgspec.Raw]] = {"sglang": {"return_routed_experts": msgspec.Raw(b"true")}}
"""Fields by which an engine is asked for the experts of one answer."""
_ASKS_FOR_A_PART = frozenset(("routed_experts_prompt_start", "routed_experts_start_len"))
"""Fields by which clients leave out the beginning: vLLM's and SGLang's. What is left is no whole request."""


class Looking(NamedTuple):
    """How a backend's requests are looked at. `share` of them; of each answer `keeps` bytes are kept.

    `adds`: fields that are sent with such a request beside the client's. `asked`: the question is needed as well; else
    the answer alone, and then all of it. `in_streams`: a stream has the routing in it.
    """

    share: float
    keeps: int
    adds: Mapping[str, msgspec.Raw]
    asked: bool
    in_streams: bool = True

    def in_vain(self, streams: bool, fields: Collection[str]) -> str:
        """Why nothing is to be kept of an answer to such a request, with these fields; empty: it may be looked at."""
        if self.asked:
            return ""
        if streams and not self.in_streams:
            return NOT_IN_STREAMS
        return "" if _ASKS_FOR_A_PART.isdisjoint(fields) else OF_A_PART


def looking_at(plan: BackendPlan) -> Looking | None:
    """What its file says of it; None: none of its requests is looked at."""
    experts = plan.experts
    if experts is None or experts.observe is None:
        return None
    engine = engine_behind(plan)
    again = seen_by(engine, experts) == "observed"
    keeps = min(MOST_ROUTING, max(KEEP_BYTES, BYTES_A_TOKEN * experts.tokens)) if again else MOST_ROUTING
    # As of vLLM 0.32, however it was started.
    return Looking(experts.observe, keeps, _ASKS_FOR_IT.get(engine, {}), again, in_streams=engine != "vllm")


def engine_behind(plan: BackendPlan) -> str:
    """Which engine answers there, as far as its file says; else empty."""
    return (plan.local.engine if plan.local is not None else plan.engine or plan.dialect) or ""


def observed(ident: str, share: float) -> bool:
    """Whether a request is among the `share` that is looked at: by its id alone, the same in every process."""
    return place("experts", ident) < share


def language_of(told: bytes) -> str:
    """The language that a client says its request is in, such as `de` or `pt-br`; empty for what is none."""
    return told.decode().lower() if _LANGUAGE.fullmatch(told) else ""


class Handed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message: one request, or only what was skipped. `missed`: backend, reason and count since the last message.

    Of the file that comes with it the first `asked_bytes` are the question as its backend was sent it, the rest is the
    answer as that came. `key`: the name of the client's key; `language`: as the client told it; empty: none.
    """

    backend: str = ""
    endpoint: str = ""
    key: str = ""
    language: str = ""
    asked_bytes: int = 0
    missed: list[tuple[str, str, int]] = []


_decode = msgspec.msgpack.Decoder(Handed).decode


class Handing:
    """A worker's end. It never waits, and whatever goes wrong is a request that is not looked at, and counted."""

    def __init__(self, to: socket.socket) -> None:
        """`to`: the sending end of a line, of which it takes no possession."""
        self._to = to
        self._missed: dict[tuple[str, str], int] = {}

    def miss(self, backend: str, reason: str) -> None:
        """A request that was to be looked at and is not."""
        self._missed[backend, reason] = self._missed.get((backend, reason), 0) + 1

    def give(self, note: Handed, asked: bytes, answer: Iterable[bytes]) -> bool:
        """Hand one request over; False where that failed, which is counted."""
        missed = self._some()
        said = msgspec.structs.replace(note, asked_bytes=len(asked), missed=missed)
        try:
            file = memory_file("breakeven-experts", (asked, *answer))
            try:
                send_message(self._to, msgspec.msgpack.encode(said), file)
            finally:
                # What is on its way has a descriptor of its own.
                os.close(file)
        except BlockingIOError:
            self.miss(note.backend, FULL)
            return False
        except OSError:
            self.miss(note.backend, LOST)
            return False
        self._told(missed)
        return True

    def tell(self) -> None:
        """What was skipped since, where there is room for it; else with the next message."""
        if not self._missed:
            return
        missed = self._some()
        try:
            send_message(self._to, msgspec.msgpack.encode(Handed(missed=missed)), None)
        except OSError:
            return
        self._told(missed)

    def _some(self) -> list[tuple[str, str, int]]:
        found = [(backend, reason, count) for (backend, reason), count in self._missed.items()]
        return found[:_TOLD_AT_ONCE]

    def _told(self, missed: list[tuple[str, str, int]]) -> None:
        for backend, reason, count in missed:
            left = self._missed.pop((backend, reason)) - count
            if left:
                self._missed[backend, reason] = left


def received(one: socket.socket) -> tuple[Handed, int | None] | None:
    """The next message and its file, which is the caller's to close (`contents` does); None: there is none now.

    Raises OSError.
    """
    try:
        said, file = next_message(one, MOST_MESSAGE)
    except BlockingIOError:
        return None
    try:
        return _decode(said), file
    except msgspec.MsgspecError:
        if file is not None:
            os.close(file)
        return Handed(), None


def contents(note: Handed, file: int) -> tuple[bytes, bytes]:
    """Question and answer out of a file, which is closed. Raises OSError."""
    try:
        data = memory_file_bytes(file)
    finally:
        os.close(file)
    return data[: note.asked_bytes], data[note.asked_bytes :]


def drop(one: socket.socket) -> None:
    """Let go of every message that is there, and of the files that came with them."""
    with contextlib.suppress(OSError):
        while (found := received(one)) is not None:
            if found[1] is not None:
                os.close(found[1])
