"""The file of keys: JSON with digests only, mode 0600, replaced whole under a lock. `create` shows a secret, once.

A secret has 256 random bits, so a plain SHA-256 cannot be guessed back and needs no salt or slow hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import MOST_LIMITS, KeyEntry, KeyLimit, Keys, limit_text, parse_limit, stamped
from breakeven.hardware.system import lock, regular
from breakeven.traffic.workload import Slo

SCHEMA = "breakeven.key_file/1"
PREFIX = "bek-"
SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MOST_BYTES = 64 * 2**20
"""Of the file: a hundred thousand keys, and no more than can be read beside requests."""


class _Key(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    id: str
    digest: str
    created_s: float
    models: list[str] = []
    admin: bool = False
    limits: list[str] = []
    slo: Slo | None = None
    priority: int = 0
    expires_s: float | None = None
    revoked_s: float | None = None


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    schema: str
    keys: list[_Key]


def create(
    path: Path,
    name: str,
    *,
    models: Sequence[str] = (),
    admin: bool = False,
    limits: Sequence[KeyLimit] = (),
    slo: Slo | None = None,
    priority: int = 0,
    expires: float | None = None,
) -> str:
    """Add a key to the file, which is made if absent, and return its secret. `expires`: Unix seconds.

    Raises UserError for a name that is taken or badly written, or a file that cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a key; use up to 64 letters, digits, dots, dashes and underscores")
    if len(limits) > MOST_LIMITS:
        raise UserError(f"key {name}: {len(limits)} limits are given and a key can have {MOST_LIMITS}; leave some out")
    kinds = [(limit.what, limit.window_s) for limit in limits]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"key {name}: two limits are for the same thing and window; keep the lower one")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key = _Key(
        name=name,
        id=secrets.token_hex(8),
        digest=f"sha256:{digest_of(secret.encode()).hex()}",
        created_s=round(time.time(), 3),
        models=list(models),
        admin=admin,
        limits=[limit_text(limit) for limit in limits],
        slo=slo,
        priority=priority,
        expires_s=expires,
    )
    with _locked(path):
        file = _read(path) if path.exists() else _File(schema=SCHEMA, keys=[])
        if any(old.name == name for old in file.keys):
            raise UserError(
                f"{path}: a key is named {name} already (revoked ones keep their name); choose another name"
            )
        file.keys.append(key)
        _write(path, file)
    return secret


def revoke(path: Path, name: str) -> None:
    """Mark a key as revoked, for good. Raises UserError when there is none of this name."""
    with _locked(path):
        file = _read(path)
        for key in file.keys:
            if key.name == name:
                if key.revoked_s is None:
                    key.revoked_s = round(time.time(), 3)
                    _write(path, file)
                return
    names = ", ".join(key.name for key in file.keys) or "none"
    raise UserError(f"{path}: there is no key named {name}; it has {names}")


def listing(path: Path) -> tuple[KeyEntry, ...]:
    """Every key of the file, revoked and expired ones too. Raises UserError, naming the key and the field."""
    return _entries(path, _read(path))


def _entries(path: Path, file: _File) -> tuple[KeyEntry, ...]:
    entries = tuple(_entry(path, key) for key in file.keys)
    for what, values in (("name", [e.name for e in entries]), ("id", [e.id for e in entries])):
        twice = next((value for value, times in Counter(values).items() if times > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two keys have the {what} {twice}; take one of them out")
    return entries


def load(path: Path) -> tuple[KeyEntry, ...]:
    """The keys that are not revoked, for a gateway that starts or reloads. Raises UserError as `listing` does."""
    return tuple(entry for entry in listing(path) if entry.revoked_s is None)


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written, replaced, or given another owner or mode; (0, 0, 0): it is not there."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_ctime_ns, found.st_size)


def digest_of(secret: bytes) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret).digest()


def _entry(path: Path, key: _Key) -> KeyEntry:
    where = f"{path}: key {key.name}"
    if not _NAME.fullmatch(key.name):
        raise UserError(f"{path}: {key.name!r} is no name for a key; use letters, digits, dots, dashes, underscores")
    digest = _DIGEST.fullmatch(key.digest)
    if digest is None:
        raise UserError(f"{where}: digest is not 'sha256:' and 64 hexadecimal digits; make the key anew")
    if len(key.limits) > MOST_LIMITS:
        raise UserError(f"{where}: it has {len(key.limits)} limits and a key can have {MOST_LIMITS}; take some out")
    try:
        limits = tuple(stamped(parse_limit(text), key.id) for text in key.limits)
    except UserError as error:
        raise UserError(f"{where}: limits: {error}") from None
    if len({limit.stamp for limit in limits}) < len(limits):
        raise UserError(f"{where}: two limits are for the same thing and window; keep the lower one")
    return KeyEntry(
        name=key.name,
        id=key.id,
        digest=bytes.fromhex(digest[1]),
        models=tuple(key.models),
        admin=key.admin,
        limits=limits,
        slo=key.slo,
        priority=key.priority,
        created_s=key.created_s,
        expires_s=key.expires_s,
        revoked_s=key.revoked_s,
    )


def _read(path: Path) -> _File:
    data, mode = _content(path)
    _only_ours(path, mode)
    return _parsed(path, data)


def _content(path: Path) -> tuple[bytes, int]:
    """What is in the file, and its mode."""
    try:
        # Whatever lies there, opening it does not wait: requests do.
        with open(path, "rb", opener=regular) as opened:
            found = os.fstat(opened.fileno())
            if found.st_size > MOST_BYTES:
                raise UserError(f"{path} has {found.st_size} bytes and at most {MOST_BYTES} are read; split it")
            return opened.read(), found.st_mode
    except FileNotFoundError:
        raise UserError(f"{path} is not there; make it with: breakeven keys create NAME --file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must belong to who runs the gateway") from None


def _only_ours(path: Path, mode: int) -> None:
    if mode & _OTHERS_WRITE:
        raise UserError(f"{path} can be written by other users, who could add keys; run: chmod 600 {path}")


def _parsed(path: Path, data: bytes) -> _File:
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no file of keys: {error}; correct or restore it") from None
    if file.schema != SCHEMA:
        raise UserError(f"{path}: schema is {file.schema!r} and this version reads {SCHEMA!r}")
    return file


def _write(path: Path, file: _File) -> None:
    data = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
    replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole file of mode 0600 in place of another, so that a reader or a crash never meets half of one.

    Raises UserError when it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose a directory that you may write") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The lock is a file beside, since the file itself is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose a directory that you may write") from None
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def follow(
    keys: Keys, path: Path, seen: tuple[int, int, int], say: Callable[[str], None] | None = None
) -> tuple[int, int, int]:
    """Drop what was revoked in the file since `seen` (a `file_stamp`) and return its stamp now.

    Called every second or so. A file that cannot be used adds nothing, and still revokes what it says is revoked.
    `say` hears what is wrong with it, or an empty text, each time that it changed.
    """
    now = file_stamp(path)
    if now == seen:
        return seen
    wrong = ""
    try:
        data, mode = _content(path)
        try:
            keys.only(_entries(path, _parsed(path, data)))
        except UserError:
            keys.drop(_revoked(data))
            raise
        # Whoever else may write there could add keys; that they can take some away is no reason to keep those.
        _only_ours(path, mode)
    except UserError as error:
        wrong = str(error)
    if say is not None:
        say(wrong)
    return now


def _revoked(data: bytes) -> list[bytes]:
    """Digests of keys that a file marks as revoked, whatever else is wrong with it."""
    found: list[bytes] = []
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
        file: Any = msgspec.json.decode(data)
        for key in file.get("keys") or ():
            digest = _DIGEST.fullmatch(str(key.get("digest"))) if isinstance(key, dict) else None
            if digest is not None and key.get("revoked_s") is not None:
                found.append(bytes.fromhex(digest[1]))
    return found
