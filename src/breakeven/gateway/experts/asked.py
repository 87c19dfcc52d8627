"""What is seen of experts, asked of a running gateway's admin page.

The secret is read from the environment and goes to no other machine in clear; a redirect is not followed.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

import msgspec

from breakeven.engines.backend import check_in_clear, open_url
from breakeven.errors import UserError, one_line
from breakeven.gateway.experts.report import EXPERTS_SCHEMA, ExpertsSeen
from breakeven.gateway.plan.reach import value_of
from breakeven.version import __version__

PATH = "/admin/experts"
PATIENCE_S = 10.0
MOST_BYTES = 64 * 2**20
"""Of an answer: 61 layers of 256 experts are 0.6 MB a backend."""
A_URL = "give the address of the gateway's admin page, such as http://127.0.0.1:8001"


class NoAnswerError(UserError):
    """Nobody answers there now; a gateway that is started again will."""


def seen_at(url: str, key_env: str, backend: str | None = None) -> ExpertsSeen:
    """What the gateway whose admin page is at `url` has seen of its experts; of `backend` alone where one is named.

    `key_env`: the variable with the admin secret or an admin key; where it is not set none is sent. Raises
    NoAnswerError where nobody answers, UserError for an address, a secret or a gateway that cannot be used.
    """
    base = _base(url)
    headers = {"User-Agent": f"breakeven/{__version__}", "Accept": "application/json"}
    if secret := value_of(key_env):
        if not secret.isascii() or not secret.isprintable():
            raise UserError(f"the secret in {key_env} holds a character that no header carries; set it anew")
        check_in_clear(base, key_env)
        headers["Authorization"] = f"Bearer {secret}"
    try:
        with open_url(urllib.request.Request(base + PATH, headers=headers), timeout_s=PATIENCE_S) as answer:
            body = answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(base, error.code, key_env if secret else None, key_env) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = one_line(str(getattr(error, "reason", None) or error) or type(error).__name__, 200)
        raise NoAnswerError(
            f"{base} cannot be reached ({reason}); check the address and that the gateway runs"
        ) from None
    return _of(backend, _read(base, body), base)


def _base(url: str) -> str:
    """The address below which the admin pages are."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UserError(f"{one_line(url, 200)!r} is no address; {A_URL}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError("an address holds no secret; put it into a variable and name that with --key-env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"[\s\x00-\x20]", url):
        raise UserError(f"{one_line(url, 200)!r} is no address; {A_URL}")
    if parts.query or parts.fragment:
        raise UserError(f"{one_line(url, 200)!r}: leave out what follows the path; {A_URL}")
    return url.rstrip("/").removesuffix(PATH).removesuffix("/admin/state").rstrip("/")


def _refused(base: str, status: int, sent: str | None, key_env: str) -> UserError:
    """What to do about a status of 300 or more. `sent`: the variable whose secret was sent."""
    if status == 401 and sent is None:
        return UserError(f"{base} wants its admin secret; put it into {key_env}, or name its variable with --key-env")
    if status == 401:
        return UserError(f"{base} refuses the secret in {sent}; put the gateway's admin secret there, or an admin key")
    if status == 403:
        return UserError(
            f"{base} has no admin secret, so it answers its own machine alone, as 127.0.0.1 or localhost; set one "
            "there, or ask through an SSH tunnel"
        )
    if status == 429:
        return UserError(f"{base} has had too many wrong secrets from here; wait a minute, then give the right one")
    if status == 404:
        return UserError(
            f"{base}{PATH} does not exist: either this is not the admin page (its port is 8001 unless the gateway's "
            "file says otherwise), or the gateway is older than this command and must be updated"
        )
    return UserError(f"{base}{PATH} answers with status {status}; {A_URL}")


def _read(base: str, body: bytes) -> ExpertsSeen:
    try:
        schema = msgspec.json.decode(body, type=_Named).schema
        if schema == EXPERTS_SCHEMA:
            return msgspec.json.decode(body, type=ExpertsSeen)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UserError(f"{base}{PATH} is not what a Breakeven gateway says; {A_URL}") from None
    raise UserError(f"{base}{PATH} speaks {one_line(schema, 60)!r}, not {EXPERTS_SCHEMA}; use its version of breakeven")


class _Named(msgspec.Struct):
    schema: str


def _of(backend: str | None, seen: ExpertsSeen, base: str) -> ExpertsSeen:
    if backend is None:
        return seen
    names = sorted({*(each.backend for each in seen.backends), *seen.asked})
    if names and backend not in names:
        raise UserError(f"no experts of {backend!r} are seen at {base}; there are {', '.join(map(one_line, names))}")
    return msgspec.structs.replace(
        seen,
        backends=[each for each in seen.backends if each.backend == backend],
        asked=[name for name in seen.asked if name == backend],
    )
