"""A backend whose answers are valid by the openai package's own types, as OpenAI's tests of that package want them.

Every answer is made from the type that the package parses it into, so no field of it is ours. The project's scripted
server gives them, from the project's own environment. It keeps what it was asked, so that what reaches a backend
directly and through the gateway can be compared.

    with typed_backend() as (url, asked): ...
"""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseCompletedEvent, ResponseCreatedEvent
from places import BIN
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


def answers() -> dict[str, dict[str, Any]]:
    """What each path answers, as `breakeven.wire.scripted` takes it: documents, and data of the events of streams."""
    model = example(Model)
    kinds = {
        "/v1/chat/completions": (ChatCompletion, ChatCompletionChunk),
        "/v1/completions": (Completion, Completion),
    }
    found: dict[str, dict[str, Any]] = {
        "/v1/models": {"whole": {"object": "list", "data": [model]}},
        "/v1/models/*": {"whole": model},
        "/v1/embeddings": {"whole": example(CreateEmbeddingResponse)},
        "/v1/responses": {
            "whole": example(Response),
            "events": [json.dumps(example(kind)) for kind in (ResponseCreatedEvent, ResponseCompletedEvent)],
        },
    }
    for path, (kind, piece) in kinds.items():
        chunks = [example(piece), _finished(example(piece))]
        for chunk in chunks:
            chunk.pop("usage", None)
        found[path] = {
            "whole": example(kind),
            "events": [*map(json.dumps, chunks), "[DONE]"],
            "usage": json.dumps({**example(piece), "choices": []}),
        }
    return found


class Asked(NamedTuple):
    """A request without what a gateway has to change; `model`: whether it named one."""

    path: str
    body: str
    model: bool


def _asked(path: str, body: str) -> Asked:
    asked = json.loads(body)
    # The two things a gateway has to change: the model's name, and whether usage is counted.
    kept = {name: value for name, value in asked.items() if name not in ("model", "stream_options")}
    return Asked(path, json.dumps(kept, sort_keys=True), "model" in asked)


@contextlib.contextmanager
def typed_backend() -> Iterator[tuple[str, Callable[[], list[Asked]]]]:
    """Its address, without /v1, and what tells what it was asked since it was told last: path and body, in order."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "answers.json"
        file.write_text(json.dumps(answers()))
        command = [str(BIN / "python"), "-m", "breakeven.wire.scripted", "--answers", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                url = process.stdout.readline().strip()

                def asked() -> list[Asked]:
                    with urllib.request.urlopen(f"{url}/scripted/asked", timeout=60) as answer:
                        return [_asked(path, body) for path, body in json.load(answer)]

                yield url, asked
            finally:
                process.terminate()
