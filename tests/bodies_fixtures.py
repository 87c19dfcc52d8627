"""Small servers that only count tokens, with a tokenizer of your choice."""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from breakeven.engines.backend import Backend

TEMPLATE_TOKENS, TURN_TOKENS = 13, 7
Split = Callable[[str], list[str]]


def in_words(text: str) -> list[str]:
    """A tokenizer whose pieces never reach across a space, as of most models."""
    return re.findall(r"\s?\w{1,5}|\s?[^\w\s]|\s", text)


def across_words(text: str) -> list[str]:
    """A tokenizer that counts by characters, so that nothing adds up."""
    return re.findall(r".{1,7}", text, flags=re.DOTALL)


class Server(ThreadingHTTPServer):
    """Takes many connections at once: the default of five waiting drops some, and each costs a second."""

    request_queue_size = 128


@contextmanager
def toy(
    split: Split = in_words, *, engine: str = "unknown", usage: bool = True, status: int = 200, **extra: str
) -> Iterator[tuple[Backend, list[dict[str, Any]]]]:
    """A server that only counts tokens, and the completions it was asked for."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                answer: dict[str, Any] = {"tokens": [zlib.crc32(p.encode()) % 50_000 for p in split(body["content"])]}
            else:
                asked.append(body)
                answer = {"usage": {"prompt_tokens": count(body, split)}} if usage else {}
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield (
            Backend(f"http://127.0.0.1:{server.server_port}", "toy", None, {"engine": engine, **extra}, None, None),
            asked,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def count(body: dict[str, Any], split: Split) -> int:
    """Prompt tokens of a request, with a chat template, or a beginning-of-text token, in front."""
    if "messages" in body:
        texts = [message["content"].strip() for message in body["messages"]]
        return TEMPLATE_TOKENS + (len(texts) - 1) // 2 * TURN_TOKENS + sum(len(split(text)) for text in texts)
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else 1 + len(split(prompt))
