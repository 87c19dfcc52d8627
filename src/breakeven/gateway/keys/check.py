"""Whose key a request carries. Unknown, revoked, expired and malformed ones are answered alike, by the same steps."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyEntry
from breakeven.gateway.keys.store import file_stamp, load

_BEARER = b"bearer "
_LONGEST = 256
_NOBODY = bytes(32)


class Keys:
    """The keys of one worker. Its entries change only by going."""

    __slots__ = ("_by_digest",)

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        """Revoked entries are left out."""
        self._by_digest = {entry.digest: entry for entry in entries if entry.revoked_s is None}

    def find(
        self, authorization: bytes | None, api_key: bytes | None = None, unix_s: float | None = None
    ) -> KeyEntry | None:
        """The key of `Authorization: Bearer ...` or, without that header, of `x-api-key`; None: no valid one.

        The secret's digest is looked up and compared in constant time. A digest that misses tells nothing of those
        that are there: nobody can choose a secret by the beginning of its SHA-256.
        """
        if authorization is not None:
            secret = authorization[7:] if authorization[:7].lower() == _BEARER else b""
        else:
            secret = api_key or b""
        if len(secret) > _LONGEST:
            secret = b""
        digest = sha256(secret.strip()).digest()
        entry = self._by_digest.get(digest)
        same = hmac.compare_digest(digest, _NOBODY if entry is None else entry.digest)
        if entry is None or not same or not secret:
            return None
        return entry if entry.live(time.time() if unix_s is None else unix_s) else None

    def only(self, entries: Iterable[KeyEntry]) -> None:
        """Drop every key that is not among `entries` any more, for a file that changed; none is added."""
        stay = {entry.digest for entry in entries if entry.revoked_s is None}
        self._by_digest = {digest: entry for digest, entry in self._by_digest.items() if digest in stay}

    def __len__(self) -> int:
        return len(self._by_digest)


def follow(keys: Keys, path: Path, seen: tuple[int, int, int]) -> tuple[int, int, int]:
    """Drop what was revoked in the file since `seen` (a `file_stamp`) and return its stamp now.

    Called every second or so. A file that is gone or wrong changes nothing: the next reload says what is wrong with it.
    """
    now = file_stamp(path)
    if now != seen:
        with suppress(UserError):
            keys.only(load(path))
    return now
