"""A backend whose answers are valid by the openai package's own types, as OpenAI's tests of that package want them.

Every answer is made from the type that the package parses it into, so no field of it is ours. It keeps what it was
asked, so that what reaches a backend directly and through the gateway can be compared.

    with typed_backend() as (url, asked): ...
"""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseCompletedEvent, ResponseCreatedEvent
from pydantic import BaseModel

DEPTH = 12
"""Types that hold themselves end here, at their first member that is no model."""


def example(kind: Any, depth: int = 0) -> Any:
    """A value that is valid as `kind`: the first member of unions and literals, one element in lists."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return example(members[0], depth)
    if origin is Literal:
        return members[0]
    if origin in (Union, UnionType):
        flat = [one for one in members if one is not NoneType]
        if depth > DEPTH and len(flat) < len(members):
            return None
        return example(flat[0], depth)
    if origin is list:
        return [] if depth > DEPTH else [example(members[0], depth + 1)]
    if origin is dict:
        return {}
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        fields = kind.model_fields
        return {
            field.alias or name: example(field.annotation, depth + 1)
            for name, field in fields.items()
            if field.is_required() or depth < 4
        }
    return {str: "string", int: 1, float: 0.5, bool: True}.get(kind, {})


def _finished(chunk: dict[str, Any]) -> dict[str, Any]:
    for choice in chunk["choices"]:
        choice["finish_reason"] = "stop"
    return chunk


def whole(path: str) -> dict[str, Any] | None:
    """The answer to what is not streamed; None for a path that is not here."""
    found: dict[str, Any] | None = None
    if path == "/v1/models":
        found = {"object": "list", "data": [example(Model)]}
    elif path.startswith("/v1/models/"):
        found = example(Model)
    elif kind := {
        "/v1/chat/completions": ChatCompletion,
        "/v1/completions": Completion,
        "/v1/embeddings": CreateEmbeddingResponse,
        "/v1/responses": Response,
    }.get(path):
        found = example(kind)
    return found


def events(path: str, asked: dict[str, Any]) -> list[bytes]:
    """The events of a stream, with their ends."""
    if path == "/v1/responses":
        kinds = (ResponseCreatedEvent, ResponseCompletedEvent)
        made = [example(kind) for kind in kinds]
        return [b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in made]
    kind = ChatCompletionChunk if "chat" in path else Completion
    chunks = [example(kind), _finished(example(kind))]
    for chunk in chunks:
        chunk.pop("usage", None)
    options = asked.get("stream_options") or {}
    if options.get("include_usage"):
        chunks.append({**example(kind), "choices": []})
    return [b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


class Asked(NamedTuple):
    """A request without what a gateway has to change; `model`: whether it named one."""

    path: str
    body: str
    model: bool


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[Asked]

    def do_GET(self) -> None:
        self._document(whole(self.path.partition("?")[0]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        path = self.path.partition("?")[0]
        asked = json.loads(body)
        # The two things a gateway has to change: the model's name, and whether usage is counted.
        kept = {name: value for name, value in asked.items() if name not in ("model", "stream_options")}
        self.asked.append(Asked(path, json.dumps(kept, sort_keys=True), "model" in asked))
        if asked.get("stream") and path != "/v1/embeddings":
            data = b"".join(events(path, asked))
            self._send(200, "text/event-stream; charset=utf-8", data)
        else:
            self._document(whole(path))

    def _document(self, found: dict[str, Any] | None) -> None:
        missing = {"error": {"message": "not here", "type": "mock", "param": None, "code": None}}
        self._send(200 if found else 404, "application/json", json.dumps(found or missing).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that leaves a stream is one of the tests."""


@contextlib.contextmanager
def typed_backend() -> Iterator[tuple[str, list[Asked]]]:
    """Its address, without /v1, and what it was asked: path and body, in order."""
    asked: list[Asked] = []
    handler = type("Handler", (_Handler,), {"asked": asked})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
