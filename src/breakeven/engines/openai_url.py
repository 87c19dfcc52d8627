"""Any OpenAI-compatible URL as a backend: `http(s)://host[:port]/v1#name`.

The key comes from the environment (`BREAKEVEN_API_KEY`; at api.openai.com, and there alone, `OPENAI_API_KEY`) and from
nowhere else; a URL with a user or password in it is refused, because command lines and logs keep what they are given.
"""

from __future__ import annotations

import difflib
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from breakeven.engines.backend import OPENAI_HOST, OPENAI_KEY, OWN_KEY, Backend, key_variable, open_url
from breakeven.errors import UserError, printable
from breakeven.wire.dialects import dialects

_TIMEOUT_S = 15.0
_PROBE_TIMEOUT_S = 120.0
_NAMES_SHOWN = 8


def is_url(text: str) -> bool:
    """True when `text` means a URL rather than a model's name or file."""
    return text.lower().startswith(("http://", "https://"))


def parse_url(text: str) -> Backend:
    """The backend that `text` names, without asking it anything. Raises UserError saying what is wrong with it."""
    form = "give http(s)://host[:port]/v1#model-name"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the URL is not valid ({error}); {form}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"the URL contains a user or password; put a key into {OWN_KEY} and leave it out")
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise UserError(f"{text} is not a URL; {form}")
    if parts.query:
        raise UserError(f"{parts.scheme}://{host} has a query part, which no request can carry; {form}")
    path = parts.path.rstrip("/")
    if not path.endswith("/v1"):
        raise UserError(f"{text} does not end in /v1; {form}")
    name = unquote(parts.fragment)
    if not name:
        raise UserError(f"{text} names no model; add #model-name")
    place = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme.lower()}://{place}{f':{port}' if port else ''}{path.removesuffix('/v1')}"
    return Backend(address, name, key_variable(address), {"engine": "unknown"}, None, None)


def connect(text: str) -> Backend:
    """The backend that `text` names, after it has answered: it is there, lets us in, has the model, and completes.

    Requests of one token find out what it accepts. Raises UserError otherwise.
    """
    backend = parse_url(text)
    listing = _ask(backend, "/v1/models", None, _TIMEOUT_S)
    models = [entry for entry in _list(listing, "data") if isinstance(entry, dict) and entry.get("id")]
    found = next((entry for entry in models if backend.model in (entry["id"], *_list(entry, "aliases"))), None)
    if models and found is None:
        raise UserError(f"{backend.url} has no model {backend.model}; {_offer(backend.model, models)}")
    owner = str((found or {}).get("owned_by", "")).lower()
    engine = next((name for name, dialect in dialects().items() if owner and dialect.owned_by == owner), "unknown")
    settings = {"engine": engine, "url": f"{backend.url}/v1", "served_model": backend.model, **_probe(backend)}
    return Backend(backend.url, backend.model, backend.api_key_env, settings, None, None)


def _probe(backend: Backend) -> dict[str, str]:
    """Settings that one-token requests reveal: no `/v1/completions`, no fields beyond OpenAI's. Raises UserError."""
    body: dict[str, Any] = {"model": backend.model, "max_tokens": 1}
    routes: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "Hello"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    }
    found: dict[str, str] = {}
    for path, prompt in routes.items():
        try:
            try:
                _ask(backend, path, {**body, **prompt, "ignore_eos": True}, _PROBE_TIMEOUT_S)
            except _RefusedError as error:
                if error.status not in (400, 422):
                    raise
                _ask(backend, path, {**body, **prompt}, _PROBE_TIMEOUT_S)
                found["extra_fields"] = "refused"
        except _RefusedError as error:
            if error.status not in (404, 405) or "route" in found:
                raise
            found["route"] = "chat"
        else:
            break
    return found


class _RefusedError(UserError):
    """The server answered with an HTTP error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _ask(backend: Backend, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
    """The JSON answer to one request. Raises UserError for no answer, a refusal, or something else than JSON."""
    where = f"{backend.url}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        where, data=data, headers={"Content-Type": "application/json", **backend.headers()}
    )
    try:
        with open_url(request, timeout_s=timeout_s) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        error.close()
        raise _RefusedError(_refusal(backend, where, error.code), error.code) from None
    except ValueError:
        raise UserError(f"{where} does not answer with JSON; is this an OpenAI-compatible server?") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{where} cannot be reached ({reason}); check the address and that the server runs") from None


def _refusal(backend: Backend, where: str, status: int) -> str:
    if status in (401, 403):
        if backend.api_key_env is None:
            only = f" ({OPENAI_KEY} goes to {OPENAI_HOST} alone)" if os.environ.get(OPENAI_KEY) else ""
            return f"{where} wants a key ({status}); put it into the environment variable {OWN_KEY}{only}"
        return f"{where} does not accept the key in {backend.api_key_env} ({status}); put a valid one there"
    if status == 404:
        return f"{where} does not exist (404); check the part before /v1 and the model name {backend.model}"
    return f"{where} answers with status {status}; check that this server completes with model {backend.model}"


def _offer(name: str, models: list[dict[str, Any]]) -> str:
    ids = [printable(str(entry["id"])) for entry in models]
    near = difflib.get_close_matches(name, ids, n=_NAMES_SHOWN, cutoff=0.4) or ids[:_NAMES_SHOWN]
    rest = len(ids) - len(near)
    return f"it has {', '.join(near)}{f' and {rest} more' if rest else ''}"


def _list(container: Any, key: str) -> list[Any]:
    value = container.get(key) if isinstance(container, dict) else None
    return value if isinstance(value, list) else []
