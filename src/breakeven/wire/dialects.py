"""The dialects of OpenAI-like servers, as data (`dialects.json`): how one is asked, and what its `/metrics` calls what.

A new server is a new entry there; nothing in the code names one. Its fields are those of `Dialect`; under `metrics`
stand for each field of `EngineNumbers` the names it has had, newest first, and where that was read. People write the
same fields in a file of their own, or in a gateway's; what a server's refusals taught is added (`lessons`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from breakeven.errors import UserError, one_line
from breakeven.wire.lessons import Lesson, with_lessons
from breakeven.wire.target import NOT_SENT
from breakeven.wire.tls import TlsFiles


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One server's. What is not said of it is as with one that is not known.

    How it is reached and let in: `hosts`, names at which it is known to be (`*.` for any before); `key_header`,
    `key_form`: where its key stands, and in which words ($key); `headers`, `query`: sent with every request;
    `query_below`: parameters by a part of the path that wants them; `proxy`, `ca`, `certificate`, `certificate_key`,
    `socket`: as in `HttpClient` and `TlsFiles`.

    What a body holds: `body`, what becomes of a field: "drop", {"rename": NAME} or {"add": VALUE}; `fields`,
    `stream_options`: what whoever measures asks beside OpenAI's fields, so that each piece of a stream says how many
    tokens came so far: a chunk is not a token; values that begin with $ are filled in. `seeds`: False where a request
    with a seed is kept out of the batch. `bars_ends`: it knows no `ignore_eos`, but a bias against the tokens that end
    a text. `extra_fields`: False where it takes or keeps to OpenAI's fields alone, so that a text ends where the model
    ends it.

    What it has: `chat_only`: no plain completions. `lists`: False where its list of models is none of what can be
    asked; `listed_as`: what that list puts before their names. `token_ids`: it takes a prompt as a list of them.
    `tokenize`: what POST /tokenize is asked, None where there is none. `several_usages`: its streams tell them more
    than once. `keeps_connections`: False where it promises to keep a connection and closes it right after a stream.
    `signs_calls`: calls of tools come with a signature, and must go back with it.

    `owned_by`: what its list of models says. `like`: whose dialect it is but for what it says itself. `metrics_at`: the
    path of its metrics on its host; empty: `/metrics` below its address. `source`: where all this was read.
    """

    hosts: tuple[str, ...] = ()
    key_header: str = "authorization"
    key_form: str = ""
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    query_below: dict[str, dict[str, str]] = {}
    proxy: str = ""
    ca: str = ""
    certificate: str = ""
    certificate_key: str = ""
    socket: str = ""
    body: dict[str, Any] = {}
    chat_only: bool = False
    lists: bool = True
    listed_as: str = ""
    owned_by: str = ""
    token_ids: bool = False
    tokenize: dict[str, str | bool] | None = None
    fields: dict[str, str | bool] = {}
    stream_options: dict[str, bool] = {}
    several_usages: bool = False
    keeps_connections: bool = True
    signs_calls: bool = False
    seeds: bool = True
    bars_ends: bool = False
    extra_fields: bool = True
    like: str = ""
    metrics_at: str = ""
    metrics: dict[str, str | list[str]] = {}
    source: str = ""

    def tokenize_fields(self, model: str, text: str) -> dict[str, object] | None:
        """The body of POST /tokenize, None where it cannot be asked."""
        return None if self.tokenize is None else _filled(self.tokenize, {"$model": model, "$text": text})

    def key_line(self, key: str) -> tuple[str, str]:
        """The header that carries a key; its name is in lower case."""
        header = self.key_header.lower()
        form = self.key_form or (f"Bearer {_KEY}" if header == "authorization" else _KEY)
        return header, form.replace(_KEY, key)

    def query_at(self, path: str) -> dict[str, str]:
        """Parameters of every request below the base URL's `path`."""
        below = [asked for part, asked in self.query_below.items() if part in f"{path}/"]
        return {name: value for asked in (*below, self.query) for name, value in asked.items()}

    @property
    def tls_files(self) -> TlsFiles:
        """Whom to trust there, and what to show."""
        files = (self.ca, self.certificate, self.certificate_key)
        return TlsFiles(*(Path(file) if file else None for file in files))

    def taught(self, lessons: Iterable[Lesson]) -> Dialect:
        """The same, and what was learned of one server."""
        return msgspec.structs.replace(self, body=with_lessons(self.body, lessons))

    def acted(
        self, fields: dict[str, Any], *, chat: bool, made: Callable[[Any], Any] = lambda value: value
    ) -> dict[str, Any]:
        """A body as it is sent: `fields` with what `body` says; an added value goes through `made`.

        What the request holds itself stands before what would be added or renamed to it. Fields have other names in
        chat alone.
        """
        if not self.body:
            return fields
        found: dict[str, Any] = {}
        for name, value in fields.items():
            action = self.body.get(name)
            if action == "drop":
                continue
            other = action.get("rename") if isinstance(action, dict) and chat else None
            if other is None:
                found[name] = value
            elif other not in fields:
                found[other] = value
        for name, action in self.body.items():
            if isinstance(action, dict) and "add" in action and name not in found:
                found[name] = made(action["add"])
        return found

    def name_of(self, field: str, *, chat: bool) -> str | None:
        """What a field is called there; None: it is left out."""
        action = self.body.get(field)
        if action == "drop":
            return None
        return str(action["rename"]) if chat and isinstance(action, dict) and "rename" in action else field


_KEY = "$key"
_OWN = frozenset(("model", "stream", "messages", "prompt", "input", "n"))
"""Fields that make a request what it is."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ACTIONS = "drop, {rename: NAME} or {add: VALUE}"


def at_odds(dialect: Dialect) -> tuple[str, str] | None:
    """The first thing in a dialect that cannot be or contradicts another: its key, and words; None: nothing."""
    if not _TOKEN.fullmatch(dialect.key_header):
        return "key_header", f"found {dialect.key_header!r}, it must be a header's name such as api-key"
    if dialect.key_form and _KEY not in dialect.key_form:
        return "key_form", f"found {dialect.key_form!r} without {_KEY}, where the key goes, such as 'Bearer {_KEY}'"
    if not (dialect.key_form.isascii() and dialect.key_form.isprintable()):
        return "key_form", "holds what no header can; write it in plain letters, such as 'Bearer $key'"
    for name, value in dialect.headers.items():
        if not _TOKEN.fullmatch(name) or not (value.isascii() and value.isprintable()):
            return f"headers.{name}", "holds what no header can; give a name and a value of plain letters"
        if name.lower() == dialect.key_header.lower():
            return f"headers.{name}", "is where the key goes; leave it out, or give key_header another header"
        if name.lower().encode() in NOT_SENT:
            return f"headers.{name}", "is the connection's own, or a key's, and is not sent from here; leave it out"
    if dialect.proxy and not _is_proxy(dialect.proxy):
        # It is not repeated: a user with a password may stand in it.
        return "proxy", "must be an HTTP proxy's URL without a user or a path, such as http://proxy.example.org:3128"
    if dialect.proxy and dialect.socket:
        return "socket", "and proxy lead to two places; give one of them"
    if dialect.certificate_key and not dialect.certificate:
        return "certificate_key", "without its certificate; give both"
    return _body_at_odds(dialect)


def _is_proxy(text: str) -> bool:
    """Whether it is an address of a proxy and nothing else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    alone = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    written = text.isascii() and text.isprintable() and " " not in text
    return parts.scheme == "http" and bool(parts.hostname) and port != 0 and alone and written


def _body_at_odds(dialect: Dialect) -> tuple[str, str] | None:
    body, targets = dialect.body, dict[str, str]()
    for name, action in body.items():
        key = f"body.{name}"
        kind = next(iter(action)) if isinstance(action, dict) and len(action) == 1 else action
        other = str(action["rename"]) if kind == "rename" and isinstance(action, dict) else None
        if kind not in ("drop", "add", "rename") or (kind == "drop") == isinstance(action, dict):
            return key, f"found {one_line(str(action), 60)!r}, it must be {_ACTIONS}"
        if name in _OWN or other in _OWN:
            return key, f"found {kind} of {other if other in _OWN else name}, which every request says itself; leave it"
        if kind != "rename":
            continue
        if not other or not _TOKEN.fullmatch(other) or other == name:
            return key, f"found {{rename: {other}}}, it must give another name"
        if other in body:
            return key, f"renamed to {other}, of which body.{other} says something else; keep one of them"
        if other in targets:
            return key, f"renamed to {other}, as {targets[other]} is; keep one of them"
        targets[other] = name
    if dialect.stream_options and body.get("stream_options") == "drop":
        return "body.stream_options", "dropped, and stream_options asks for some; keep one of them"
    for name in dialect.fields:
        if body.get(name) == "drop":
            return f"body.{name}", f"dropped, and fields.{name} asks for it; keep one of them"
    return None


def texts(found: object) -> dict[str, str]:
    """Names and values of a mapping in YAML, which reads some words as numbers and truths. Raises ValueError."""
    if not isinstance(found, Mapping):
        raise ValueError("names with values, such as {api-version: 2024-10-21}")
    made: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise ValueError(f"names with values, such as {{api-version: 2024-10-21}}; {name} has none")
        made[name] = str(value)
    return made


@cache
def _raw() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = msgspec.json.decode(
        resources.files("breakeven.wire").joinpath("dialects.json").read_bytes()
    )
    return found


@cache
def dialects() -> dict[str, Dialect]:
    """By engine or server."""
    return {name: msgspec.convert(_completed(found), Dialect) for name, found in _raw().items()}


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    """With what it leaves to the dialect that it is like."""
    base = _raw().get(found.get("like", ""), {})
    merged = {key: {**base.get(key, {}), **found.get(key, {})} for key in ("headers", "query", "body")}
    return {**base, "hosts": (), **found, **merged}


def described(found: Mapping[Any, Any], where: str) -> Dialect:
    """A dialect as somebody wrote it in the file `where`. Raises UserError, one line with file and key."""
    keys = Dialect.__struct_fields__
    for key in found:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            raise UserError(f"{where}: {key}: no such key{f', did you mean {near[0]}?' if near else ''}; {_DOCS}")
    like = found.get("like", "")
    if not isinstance(like, str) or (like and like not in _raw()):
        raise UserError(f"{where}: like: found {one_line(repr(like), 60)}, it must be one of {', '.join(_raw())}")
    typed = dict(found)
    for key in ("headers", "query"):
        try:
            typed[key] = texts(found.get(key, {}))
        except ValueError as error:
            raise UserError(f"{where}: {key}: it must give {error}") from None
    if not isinstance(found.get("body", {}), Mapping):
        raise UserError(f"{where}: body: it must give fields, each {_ACTIONS}")
    try:
        dialect = msgspec.convert(_completed(typed), Dialect)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at ")
        raise UserError(f"{where}: {at.strip('`').removeprefix('$.') or 'it'}: {what}; {_DOCS}") from None
    if (wrong := at_odds(dialect)) is not None:
        raise UserError(f"{where}: {wrong[0]}: {wrong[1]}")
    return dialect


_DOCS = "docs/engines.md#dialects lists the keys"


def dialect_at(host: str) -> str:
    """The name of the dialect that is known to be spoken at a host; empty: none is."""
    for name, dialect in dialects().items():
        for known in dialect.hosts:
            if host == known or (known.startswith("*.") and host.endswith(known[1:])):
                return name
    return ""


class Speaker(Protocol):
    """What a backend says of itself that matters for a request."""

    @property
    def dialect(self) -> Dialect: ...

    @property
    def served_model(self) -> str: ...

    @property
    def takes_extra_fields(self) -> bool: ...

    @property
    def end_tokens(self) -> tuple[int, ...]: ...


def dialect_of(engine: str) -> Dialect:
    """An engine's dialect; that of an unknown one speaks OpenAI's alone."""
    return dialects().get(engine) or _PLAIN


_PLAIN = Dialect()
_BARRED = -1000.0
"""A bias that no logit makes up for."""


def _filled(fields: dict[str, str | bool], values: dict[str, object]) -> dict[str, object]:
    return {name: values.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def completion_fields(
    backend: Speaker,
    *,
    max_tokens: int,
    temperature: float,
    stream: bool = True,
    ignore_eos: bool = True,
    top_k: int | None = None,
    seed: int | None = None,
    cache_prompt: bool = False,
    chat: bool = False,
) -> dict[str, Any]:
    """Everything but `prompt` or `messages`, as `backend` understands it.

    `cache_prompt` lets llama.cpp reuse the prefix of an earlier prompt; other engines decide that when they start.
    Fields beyond OpenAI's are left out where the backend refuses them. `chat`: it goes to chat completions,
    where some fields have other names.
    """
    fields: dict[str, Any] = {
        "model": backend.served_model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": stream,
    }
    dialect = backend.dialect
    if seed is not None and dialect.seeds:
        fields["seed"] = seed
    if backend.takes_extra_fields:
        if ignore_eos and not dialect.bars_ends:
            fields["ignore_eos"] = True
        elif ignore_eos and backend.end_tokens:
            fields["logit_bias"] = {str(token): _BARRED for token in backend.end_tokens}
        if top_k is not None:
            fields["top_k"] = top_k
    fields |= _filled(dialect.fields, {"$cache_prompt": cache_prompt})
    if stream:
        fields["stream_options"] = {"include_usage": True, **dialect.stream_options}
    return dialect.acted(fields, chat=chat)
