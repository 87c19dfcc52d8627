"""Any OpenAI-compatible URL as a backend: `http(s)://host[:port]/v1#name`.

Base URLs are joined as OpenAI's clients join them, so that one without /v1 is as good. What is spoken there is known by
the host or by what the server says of itself, or is named: `#name@azure`, `#name@mine.yaml` (`wire.dialects`). What it
takes is asked by requests of one token, or of 16 where one is too few; a refusal of these that names a field teaches to
do without (`wire.lessons`).

The key comes from the environment (`BREAKEVEN_API_KEY`; at api.openai.com, and there alone, `OPENAI_API_KEY`) and from
nowhere else; a URL with a user or password in it is refused, because command lines and logs keep what they are given.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import urllib.error
from collections.abc import Iterable, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from breakeven.engines.backend import OPENAI_HOST, OPENAI_KEY, OWN_KEY, Backend, key_variable
from breakeven.errors import UserError, expanded, printable
from breakeven.wire.dialects import Dialect, completion_fields, described, dialect_at, dialects
from breakeven.wire.lessons import (
    LEAST_TOKENS,
    LESSONS,
    NO_ROOM,
    REFUSING,
    Lesson,
    lesson_of,
    refusal_text,
    wants_more,
)
from breakeven.wire.target import split_base

_TIMEOUT_S = 15.0
_PROBE_TIMEOUT_S = 120.0
_NAMES_SHOWN = 8
_ANSWER_BYTES = 8 << 20
_FORM = "give http(s)://host[:port]/v1#model-name"
_FILES = (".yaml", ".yml")
_SECRET = re.compile(r"(?i)(^|[-_])(key|apikey|token|secret|sig|signature|code|password|auth)$")
"""Names of parameters that hold a key, which a command line would keep."""
_NO_LIST = frozenset({400, 403, 404, 405, 501})
"""What servers without a list of models answer, and those that let a key complete and list nothing."""
_ELSEWHERE = frozenset({400, 404, 405, 422, 501})
"""A model that has chat alone answers so where plain completions are asked."""
_LATER = tuple(lesson for lesson in LESSONS if lesson.field in ("stream_options", "seed"))
"""What came to OpenAI's own fields after the others."""
CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


def is_url(text: str) -> bool:
    """True when `text` means a URL rather than a model's name or file."""
    return text.lower().startswith(("http://", "https://"))


def split_dialect(fragment: str) -> tuple[str, str]:
    """A model's name and the dialect behind its last @, empty where what stands there is none."""
    name, at, dialect = fragment.rpartition("@")
    return (name, dialect) if at and (dialect in dialects() or dialect.endswith(_FILES)) else (fragment, "")


def parse_url(text: str) -> Backend:
    """The backend that `text` names, without asking it anything. Raises UserError saying what is wrong with it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the URL is not valid ({error}); {_FORM}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"the URL contains a user or password; put a key into {OWN_KEY} and leave it out")
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise UserError(f"{text} is not a URL; {_FORM}")
    if not ((place := parts.netloc + parts.path).isascii() and place.isprintable() and " " not in place):
        raise UserError(f"{text} holds letters that no request can; write them percent-encoded, a host's as xn--")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if (secret := next(filter(_SECRET.search, query), None)) is not None:
        raise UserError(f"{parts.scheme}://{host} has {secret} in its query part; put a key into {OWN_KEY}; {_FORM}")
    fragment, named = split_dialect(parts.fragment)
    name = unquote(fragment)
    if not name:
        raise UserError(f"{text} names no model; add #model-name")
    spoken, settings = _dialect(named, host.rstrip("."))
    if spoken is not None or query:
        spoken = spoken or Dialect()
        spoken = msgspec.structs.replace(spoken, query={**spoken.query, **query})
        if spoken.socket and parts.scheme.lower() == "https":
            raise UserError(f"{named}: socket: leads to a server on this machine; give it with an http:// URL")
        if spoken.proxy and parts.scheme.lower() == "http":
            raise UserError(f"{named}: proxy: opens a way to https:// alone; give an https:// URL, or leave proxy out")
    path, under = split_base(parts.path)
    place = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme.lower()}://{place}{f':{port}' if port else ''}{path}"
    variable = key_variable(address, here=spoken is not None and bool(spoken.socket))
    return Backend(address, name, variable, settings, None, None, under=under, spoken=spoken)


def _dialect(named: str, host: str) -> tuple[Dialect | None, dict[str, str]]:
    """What is spoken there as far as it is known before the server is asked, and how settings call it."""
    if named.endswith(_FILES):
        from breakeven.model.readers.bounded import bounded_yaml  # YAML takes its time to import

        path = expanded(named)
        try:
            found = bounded_yaml(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give the file of a dialect") from None
        except ValueError as error:
            raise UserError(f"{path}: not YAML ({error})") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: holds no keys; docs/engines.md#dialects lists them")
        dialect = described(found, str(path))
        return _placed(dialect, path.parent), {"engine": _engine(dialect.like), "dialect": Path(named).name}
    known = named or dialect_at(host)
    if not known:
        return None, {"engine": "unknown"}
    return dialects()[known], {"engine": _engine(known), "dialect": known}


def _placed(dialect: Dialect, directory: Path) -> Dialect:
    """With its files where they are: they are named from its own."""
    names = ("ca", "certificate", "certificate_key", "socket")
    found = {name: str(directory / expanded(value)) for name in names if (value := getattr(dialect, name))}
    return msgspec.structs.replace(dialect, **found)


def _engine(dialect: str) -> str:
    """The engine that speaks it; what is hosted does not tell which one it has."""
    found = dialects().get(dialect)
    return "unknown" if found is None or found.hosts else found.like or dialect


def connect(text: str, *, chat: bool = False) -> Backend:
    """The backend that `text` names, after it has answered: it is there, lets us in, has the model, and completes.

    Requests of one token find out what it accepts. `chat`: it is asked for chat alone, so nothing else is tried. Raises
    UserError otherwise.
    """
    backend = parse_url(text)
    entry, others = _listed(backend)
    if backend.engine == "unknown" and "dialect" not in backend.settings:
        owner = str(entry.get("owned_by", "")).lower()
        engine = next((name for name, dialect in dialects().items() if owner and dialect.owned_by == owner), "unknown")
        spoken = backend.spoken
        if spoken is not None and engine != "unknown":  # a query beside what the engine is known to take
            spoken = msgspec.structs.replace(dialects()[engine], query=spoken.query)
        backend = replace(backend, settings={**backend.settings, "engine": engine}, spoken=spoken)
    settings = {**backend.settings, "url": f"{backend.url}{backend.under}", "served_model": backend.model}
    try:
        return _probed(replace(backend, settings=settings), chat)
    except _RefusedError as error:
        if not others or error.status not in _ELSEWHERE:
            raise
        told = f": {error.said}" if error.said else ""
        raise UserError(f"{backend.url} lists no model {backend.model} and refuses it{told}; {others}") from None


def _listed(backend: Backend) -> tuple[dict[str, Any], str]:
    """What the server's list says of the model, nothing where it has no list; and what it offers in its place.

    Hosts list no variant (OpenRouter's `:nitro`), no alias (Anthropic's without a date) and not every page, and refuse
    a name that they do not know: they are asked. Others may answer with whatever they have, under any name, so there
    the list decides. Raises UserError then.
    """
    dialect = backend.dialect
    if not dialect.lists:
        return {}, ""
    try:
        listing = _ask(backend, MODELS, None, _TIMEOUT_S)
    except _RefusedError as error:
        if error.status in _NO_LIST:
            return {}, ""
        raise
    models = [entry for entry in _list(listing, "data") if isinstance(entry, dict) and entry.get("id")]
    # Ollama takes a name without its tag for the latest one.
    names = (backend.model, dialect.listed_as + backend.model, f"{backend.model}:latest")
    for entry in models:
        if any(name in (entry["id"], *_list(entry, "aliases")) for name in names):
            return entry, ""
    if not models:
        return {}, ""
    others = _offer(backend.model, models)
    if dialect.hosts or (dialect.like and dialects()[dialect.like].hosts):
        return {}, others
    raise UserError(f"{backend.url} has no model {backend.model}; {others}")


def _probed(backend: Backend, chats: bool) -> Backend:
    """With what one-token requests reveal: no plain completions, fields that are refused. Raises UserError."""
    first: _RefusedError | None = None
    if not (chats or backend.dialect.chat_only):
        try:
            return _taught(backend, COMPLETIONS, {"prompt": "Hello"})
        except _RefusedError as error:
            if error.status not in _ELSEWHERE:
                raise
            first = error
    chat = replace(backend, settings={**backend.settings, "route": "chat"})
    try:
        return _taught(chat, CHAT, {"messages": [{"role": "user", "content": "Hello"}]})
    except _RefusedError as error:
        # A server that has no chat at all was asked in vain: what it said of completions is the reason.
        if first is not None and error.status in (404, 405) and first.status not in (404, 405):
            raise first from None
        raise


def _taught(backend: Backend, path: str, prompt: dict[str, Any]) -> Backend:
    """Asked as a run would ask, again without each field that a refusal names. Raises UserError for what it refuses."""
    taken: set[Lesson] = set()
    streams, most = True, 1
    while True:
        asked = completion_fields(
            backend, max_tokens=most, temperature=1.0, top_k=40, seed=1, stream=streams, chat=path == CHAT
        )
        fields = {**asked, **prompt}
        try:
            _ask(backend, path, fields, _PROBE_TIMEOUT_S)
        except _RefusedError as error:
            if NO_ROOM in error.said:
                return backend
            lesson = lesson_of(error.status, error.body, fields)
            if most < LEAST_TOKENS and wants_more(error.status, error.said):
                most = LEAST_TOKENS
            elif lesson is not None and lesson not in taken:
                taken.add(lesson)
                backend = _without(backend, [lesson])
            elif error.status not in REFUSING:
                raise
            elif parts := [name for name in backend.dialect.stream_options if name in error.said]:
                backend = _without_parts(backend, parts)
            elif backend.takes_extra_fields:
                # It says nothing that is understood; what OpenAI has not is the likeliest reason.
                backend = replace(backend, settings={**backend.settings, "extra_fields": "refused"})
            elif left := [each for each in _LATER if each.field in fields]:
                backend = _without(backend, left)
            elif streams:
                streams = False  # a run that streams will be told why it cannot
            else:
                raise
        else:
            return backend


def _without(backend: Backend, lessons: Sequence[Lesson]) -> Backend:
    """With what was learned, for its settings as well."""
    settings = _learned(backend, map(str, lessons))
    if any(lesson.field == "ignore_eos" for lesson in lessons):  # who refuses it takes none of its kind
        settings["extra_fields"] = "refused"
    spoken = backend.dialect.taught(lessons)
    dropped = {name for name, action in spoken.body.items() if action == "drop"}
    fields = {name: value for name, value in spoken.fields.items() if name not in dropped}
    return replace(backend, settings=settings, spoken=msgspec.structs.replace(spoken, fields=fields))


def _without_parts(backend: Backend, parts: Sequence[str]) -> Backend:
    """Without these parts of `stream_options`, whose others are taken."""
    dialect = backend.dialect
    left = {name: value for name, value in dialect.stream_options.items() if name not in parts}
    settings = _learned(backend, [f"no stream_options.{name}" for name in parts])
    return replace(backend, settings=settings, spoken=msgspec.structs.replace(dialect, stream_options=left))


def _learned(backend: Backend, words: Iterable[str]) -> dict[str, str]:
    """Its settings, which say what was learned."""
    before = backend.settings.get("learned", "")
    return {**backend.settings, "learned": ", ".join([*filter(None, [before]), *words])}


class _RefusedError(UserError):
    """The server answered with an HTTP error; `said`: its own words."""

    def __init__(self, text: str, status: int, body: bytes, said: str) -> None:
        super().__init__(text)
        self.status, self.body, self.said = status, body, said


def _ask(backend: Backend, path: str, fields: dict[str, Any] | None, timeout_s: float) -> Any:
    """The JSON answer to one request, None for a stream. Raises UserError for no answer, a refusal, or another page."""
    where = f"{backend.url}{backend.under}{path.removeprefix('/v1')}"
    try:
        with backend.ask(path, fields, timeout_s=timeout_s) as response:
            body = response.read(_ANSWER_BYTES)
        # What a stream says is the run's to judge; that it is one is enough here.
        return None if fields is not None and _is_stream(body) else json.loads(body)
    except urllib.error.HTTPError as error:
        body = _read(error)
        said = refusal_text(body).replace(backend.key or "\0", "***")
        raise _RefusedError(_refusal(backend, where, error.code, said), error.code, body, said) from None
    except ValueError:
        raise UserError(f"{where} does not answer with JSON; is this an OpenAI-compatible server?") from None
    except (OSError, HTTPException) as error:
        reason, spoken = getattr(error, "reason", None) or error, backend.dialect
        way = f" through {spoken.socket or spoken.proxy}" if spoken.socket or spoken.proxy else ""
        raise UserError(
            f"{where} cannot be reached{way} ({reason}); check the address and that the server runs"
        ) from None


def _is_stream(body: bytes) -> bool:
    lines = body.removeprefix(b"\xef\xbb\xbf").splitlines()
    return any(line.startswith((b"data:", b"event:", b":")) for line in lines[:100])


def _read(error: urllib.error.HTTPError) -> bytes:
    try:
        with error:
            return error.read(_ANSWER_BYTES)
    except (OSError, HTTPException):
        return b""


def _refusal(backend: Backend, where: str, status: int, said: str) -> str:
    told = f": {said}" if said else ""
    if status in (401, 403):
        if backend.api_key_env is None:
            only = f" ({OPENAI_KEY} goes to {OPENAI_HOST} alone)" if os.environ.get(OPENAI_KEY) else ""
            return f"{where} wants a key ({status}){told}; put it into the environment variable {OWN_KEY}{only}"
        return f"{where} does not accept the key in {backend.api_key_env} ({status}){told}; put a valid one there"
    if status == 404:
        base = "the part before /v1" if backend.under else "the URL, which ends in /v1 at most servers,"
        return f"{where} does not exist (404){told}; check {base} and the model name {backend.model}"
    return f"{where} answers with status {status}{told}; check that this server completes with model {backend.model}"


def _offer(name: str, models: list[dict[str, Any]]) -> str:
    ids = [printable(str(entry["id"])) for entry in models]
    near = difflib.get_close_matches(name, ids, n=_NAMES_SHOWN, cutoff=0.4) or ids[:_NAMES_SHOWN]
    rest = len(ids) - len(near)
    return f"it has {', '.join(near)}{f' and {rest} more' if rest else ''}"


def _list(container: Any, key: str) -> list[Any]:
    value = container.get(key) if isinstance(container, dict) else None
    return value if isinstance(value, list) else []
