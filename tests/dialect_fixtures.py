"""A scripted server of each kind that is known by name, which takes what that kind takes and refuses the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import msgspec

from breakeven.wire.answer import HttpAnswer
from breakeven.wire.behaviours import whole
from breakeven.wire.message import Request
from breakeven.wire.scripted import ScriptedServer

KEY = "sk-canary-of-the-dialects"
Words = Callable[[str], tuple[int, object]]
"""A refusal of one field: status and body."""


def _openai(name: str) -> tuple[int, object]:
    if name == "max_tokens":
        said = f"Unsupported parameter: '{name}' is not supported with this model. Use 'max_completion_tokens' instead."
        return 400, {"error": {"message": said, "param": name, "code": "unsupported_parameter"}}
    said = f"Unrecognized request argument supplied: {name}"
    return 400, {"error": {"message": said, "type": "invalid_request_error", "param": None, "code": None}}


def _pydantic(name: str) -> list[dict[str, object]]:
    return [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1}]


def _mistral(name: str) -> tuple[int, object]:
    return 422, {"object": "error", "message": json.dumps({"detail": _pydantic(name)}), "type": "x", "param": None}


def _fastapi(name: str) -> tuple[int, object]:
    return 422, {"detail": _pydantic(name)}


def _google(name: str) -> tuple[int, object]:
    said = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return 400, [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}]


def _azure_completions() -> tuple[int, object]:
    return 400, {"error": {"code": "OperationNotSupported", "message": "The completion operation does not work here"}}


@dataclass(frozen=True)
class Kind:
    """What one kind of server has and takes. `refuses`: fields that it does not know, in `words`."""

    base: str = "/v1"
    key_header: str = "authorization"
    key_form: str = "Bearer {}"
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    words: Words = _openai
    lists: bool = True
    listed_as: str = ""
    completions: bool = True
    owned_by: str = "somebody"
    script: str = "ok"


KINDS: dict[str, Kind] = {
    "openai": Kind(refuses=("max_tokens", "ignore_eos", "top_k"), completions=False, owned_by="system"),
    "azure": Kind(
        base="/openai/deployments/m",
        key_header="api-key",
        key_form="{}",
        query={"api-version": "2024-10-21"},
        refuses=("max_tokens", "ignore_eos", "top_k"),
        lists=False,
        completions=False,
    ),
    "mistral": Kind(
        refuses=("stream_options", "seed", "ignore_eos", "top_k", "max_completion_tokens", "user"),
        words=_mistral,
        completions=False,
        owned_by="mistralai",
    ),
    "gemini": Kind(
        base="/v1beta/openai",
        refuses=("seed", "ignore_eos", "top_k"),
        words=_google,
        listed_as="models/",
        completions=False,
    ),
    "anthropic": Kind(
        key_header="x-api-key", key_form="{}", headers={"anthropic-version": "2023-06-01"}, completions=False
    ),
    "z.ai": Kind(base="/api/paas/v4", lists=False, completions=False),
    "perplexity": Kind(base="", lists=False, completions=False, script="counted_twice"),
    "openrouter": Kind(base="/api/v1", completions=False, script="pings_first"),
    "ollama": Kind(owned_by="library"),
    "lm-studio": Kind(owned_by="organization_owner"),
    "vllm": Kind(owned_by="vllm", refuses=("cache_prompt", "timings_per_token"), words=_fastapi),
    "sglang": Kind(owned_by="sglang"),
    "llama.cpp": Kind(owned_by="llamacpp"),
    "tgi": Kind(owned_by="m"),
    "tensorrt-llm": Kind(owned_by="tensorrt_llm", refuses=("cache_prompt", "timings_per_token"), words=_fastapi),
}


class StrictServer(ScriptedServer):
    """A server of one kind. `refused`: fields that it was asked with and refused, in order."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind.script, models=[f"{kind.listed_as}m"], owned_by=kind.owned_by)
        self.kind = kind
        self.refused: list[str] = []

    @property
    def base_url(self) -> str:
        """As a client is given it."""
        return f"{self.url}{self.kind.base}"

    def handle(self, request: Request, answer: HttpAnswer) -> None:
        """Refused, or answered as the scripted server does at its own paths."""
        kind = self.kind
        if request.path.startswith(f"{kind.base}/") and not request.path.endswith(("/metrics", "/tokenize", "/health")):
            refusal = self._refusal(request)
            if refusal is not None:
                self._give(answer, whole(json.dumps(refusal[1]).encode(), status=refusal[0]))
                return
            request.path = f"/v1{request.path.removeprefix(kind.base)}"
        elif request.path.startswith("/v1/"):
            self._give(answer, whole(b'{"error": {"message": "no such path"}}', status=404))
            return
        super().handle(request, answer)

    def _refusal(self, request: Request) -> tuple[int, object] | None:
        kind = self.kind
        if (request.header(kind.key_header.encode()) or b"").decode() != kind.key_form.format(KEY):
            return 401, {"error": {"message": f"no key in {kind.key_header}"}}
        if any((request.header(name.encode()) or b"").decode() != value for name, value in kind.headers.items()):
            return 400, {"error": {"message": f"it must send {kind.headers}"}}
        if {name: values[0] for name, values in parse_qs(request.query).items()} != kind.query:
            return 404, {"error": {"message": f"it must ask with {kind.query}"}}
        if request.path.endswith("/models"):
            return None if kind.lists else (404, {"error": {"message": "no list here"}})
        if not request.path.endswith("/chat/completions") and not kind.completions:
            return _azure_completions()
        fields = msgspec.json.decode(request.body)
        for name in kind.refuses:
            if name in fields:
                self.refused.append(name)
                return kind.words(name)
        return None


@contextmanager
def strict_server(name: str) -> Iterator[StrictServer]:
    """A server of this kind, on a free loopback port."""
    with StrictServer(KINDS[name]) as server:
        yield server
