"""A server that answers every completion at once, to find out how much the client itself can carry.

`python -m breakeven.wire.instant` prints its port and serves on loopback until its standard input
ends, so that it never outlives whoever started it. All that it sends is made
beforehand. Streams are served in turns, one event each and each its own write, as an engine's batch
does it. A client that is slower than the server then finds several events in one read, which is cheaper for it than
life: a request with `"paced": true` gets its events PACE_S apart, so that each comes in a read of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from breakeven.errors import BreakevenError
from breakeven.wire.answer import HttpAnswer
from breakeven.wire.listen import open_sockets
from breakeven.wire.loop import new_loop, run_async
from breakeven.wire.message import Request
from breakeven.wire.server import HttpServer

ANSWER_BYTES = 2_000
"""Length of the body of an answer in one piece."""
PROMPT_TOKENS = 16
PACE_S = 0.005
"""Between two events of a paced stream."""
_START_TIMEOUT_S = 30.0
_EVENT = (
    '{"id":"cmpl-7f9c0a4be21d","object":"text_completion","created":1760000000,"model":"instant",'
    '"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":%s}]%s}'
)
_MAX_TOKENS = re.compile(rb'"max_tokens": *(\d+)')
_STREAM = re.compile(rb'"stream": *true')
_PACED = re.compile(rb'"paced": *true')
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: str) -> bytes:
    return f"{len(data) + 8:x}\r\ndata: {data}\n\n\r\n".encode()


_PIECE = _chunk(_EVENT % ("null", ""))


@cache
def _ending(tokens: int) -> bytes:
    usage = f',"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{tokens},"total_tokens":{tokens}}}'
    return _chunk(_EVENT % ('"length"', usage)) + _chunk("[DONE]") + b"0\r\n\r\n"


@cache
def _whole(tokens: int) -> bytes:
    body = (
        '{"choices":[{"index":0,"text":"%s","finish_reason":"length"}],'
        f'"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{tokens}}}}}'
    )
    body %= "x" * (ANSWER_BYTES - len(body) + 2)
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class _Turns:
    """Streams under way: each gets one event a turn, and turns follow each other after `gap_s` seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gap_s: float) -> None:
        self._loop, self._gap_s = loop, gap_s
        self._left: dict[HttpAnswer, int] = {}
        self._endings: dict[HttpAnswer, bytes] = {}

    def add(self, answer: HttpAnswer, tokens: int) -> None:
        if not self._left:
            self._plan()
        self._left[answer] = tokens
        self._endings[answer] = _ending(tokens)
        answer.on_gone = lambda: self._drop(answer)
        answer.raw(_STREAM_HEAD)

    def _drop(self, answer: HttpAnswer) -> None:
        self._left.pop(answer, None)
        self._endings.pop(answer, None)

    def _turn(self) -> None:
        left = self._left
        for answer, tokens in list(left.items()):
            if answer.paused:  # its buffers are full: the client is behind
                continue
            # The last token comes with the end of the stream.
            if tokens > 1:
                left[answer] = tokens - 1
                answer.raw(_PIECE)
            else:
                del left[answer]
                answer.raw(self._endings.pop(answer))
                answer.finish()
        if left:
            self._plan()

    def _plan(self) -> None:
        if self._gap_s:
            self._loop.call_later(self._gap_s, self._turn)
        else:
            self._loop.call_soon(self._turn)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    flood, paced = _Turns(loop, 0.0), _Turns(loop, PACE_S)

    def answer(request: Request, answer: HttpAnswer) -> None:
        body = request.body
        asked = _MAX_TOKENS.search(body)
        tokens = int(asked[1]) if asked else 1
        if _STREAM.search(body):
            (paced if _PACED.search(body) else flood).add(answer, tokens)
        else:
            answer.raw(_whole(tokens))
            answer.finish()

    server = HttpServer(answer)
    sockets = open_sockets("127.0.0.1", 0, 1)
    await server.start(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


@contextmanager
def instant_server() -> Iterator[str]:
    """Run the server in a process of its own; gives its URL. Raises BreakevenError when it does not start."""
    command = [sys.executable, "-m", "breakeven.wire.instant"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            giving_up = threading.Timer(_START_TIMEOUT_S, process.kill)
            giving_up.start()
            line = process.stdout.readline()
            giving_up.cancel()
            if not line.strip().isdigit():
                raise BreakevenError("the built-in server of the client's self-test did not start; run it again")
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            process.kill()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_async(_serve, new_loop)
