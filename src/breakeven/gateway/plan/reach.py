"""How servers and clients are reached, as the gateway's file says it: addresses, names of variables, certificates.

Nothing here is a secret. Where one was typed instead of its variable's name, the message does not repeat it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn, get_args
from urllib.parse import SplitResult, urlsplit

import msgspec

from breakeven.answer.study.values import HIDDEN, PLACE, FilePart, read_by
from breakeven.hardware.system import regular
from breakeven.wire.dialects import Dialect, dialect_of, dialects, texts
from breakeven.wire.lessons import Action

Endpoint = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
USUAL_ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/completions")
LOCAL_ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/completions", "/v1/messages/count_tokens")
"""What llama.cpp's server is asked for any model; embeddings need a model made for them.

Its own messages and responses lose more than our translation into its chat does (tools/server/server-chat.cpp): system
texts behind the beginning fail in many templates, schemas, documents and custom tools are dropped or refused, thoughts
that Codex returns are refused. It counts the tokens of messages itself, which no chat does.
"""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
A_URL = "a server's base URL, such as http://127.0.0.1:8080/v1"
A_PROXY = "the URL of an HTTP proxy, such as http://proxy.example.org:3128"
CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""The variable by which systemd, and our manifests, tell where files with secrets are."""
MOST_SECRET = 64 * 2**10


def value_of(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """What the variable `name` holds, else what the file of its name in the directory of credentials does; else "".

    Read anew each time, so that a reload takes what was put there since. A line break at the end is not part of it.
    """
    value = environ.get(name, "")
    directory = "" if value else environ.get(CREDENTIALS, "")
    if not directory:
        return value
    try:
        with open(Path(directory) / name, encoding="utf-8", opener=regular) as file:
            return file.read(MOST_SECRET).rstrip("\r\n")
    except (OSError, ValueError):
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(FilePart):
    """What one side of TLS shows the other: PEM files. `key` None: the private key stands in the same file."""

    certificate: Annotated[Path, PLACE]
    key: Annotated[Path, PLACE] | None = None


def as_certificate(value: object) -> object:
    """A path alone is that of a file with both."""
    return {"certificate": value} if isinstance(value, str) else value


def _hidden(right: str) -> NoReturn:
    """Refuse what may be a secret, which no message may repeat."""
    from pydantic_core import PydanticCustomError

    raise PydanticCustomError(HIDDEN, right)


def _env(value: object) -> object:
    if not isinstance(value, str) or not ENV_NAME.fullmatch(value):
        # What stands here instead is most likely the key itself.
        _hidden("the name of an environment variable such as OPENROUTER_API_KEY, never the key itself")
    return value


def _parts(value: object, right: str) -> tuple[str, SplitResult]:
    """An address of a server, taken apart; raises ValueError saying what is `right`."""
    if not isinstance(value, str):
        raise ValueError(right)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        _hidden("a URL without a user or password; name the key's variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"[\s\x00-\x20]", value):
        raise ValueError(right)
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{right}, other letters percent-encoded, those of a host as xn--")
    return value, parts


_ENDPOINTS = ("/chat/completions", "/completions", "/responses", "/messages", "/embeddings")
"""What is put behind a base URL for each request: one that has it already would be asked at an address that is none."""


def _url(value: object) -> object:
    text, parts = _parts(value, A_URL)
    if parts.query or parts.fragment:
        _hidden("a URL without what follows its path; parameters go into query, a key into its variable")
    text = text.rstrip("/")
    if text.endswith(_ENDPOINTS):
        raise ValueError(f"{A_URL}, without the endpoint that is asked there")
    return text


def _proxy(value: object) -> object:
    text, parts = _parts(value, A_PROXY)
    if parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(A_PROXY)
    return text.rstrip("/")


def _dialect(value: object) -> object:
    if not isinstance(value, str) or value not in dialects():
        raise ValueError(f"one of {', '.join(dialects())}")
    return value


EnvName = Annotated[str, read_by(_env)]
Url = Annotated[str, read_by(_url)]
Proxy = Annotated[str, read_by(_proxy)]
DialectName = Annotated[str, read_by(_dialect)]
Words = Annotated[dict[str, str], read_by(texts)]


def spoken(
    name: str, key_header: str | None, headers: Mapping[str, str], query: Mapping[str, str], body: Mapping[str, Action]
) -> Dialect:
    """A dialect by its name, and what stands beside a backend's url; without what only whoever measures asks for."""
    known = dialect_of(name)
    return msgspec.structs.replace(
        known,
        key_header=key_header or known.key_header,
        key_form="" if key_header else known.key_form,
        headers={**known.headers, **headers},
        query={**known.query, **query},
        body={**known.body, **body},
        fields={},
        stream_options={},
    )


def _endpoint(value: object) -> object:
    if value not in ENDPOINTS:
        raise ValueError(f"one of {', '.join(get_args(Endpoint))}")
    return value


EndpointName = Annotated[Endpoint, read_by(_endpoint)]
