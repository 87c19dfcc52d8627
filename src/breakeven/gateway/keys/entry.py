"""What a key is and may spend, how limits are written (`1000 requests/min`, `2M tokens/day`), whose key a request has.

Unknown, revoked, expired and malformed ones are answered alike, by the same steps.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Literal

from breakeven.errors import UserError
from breakeven.traffic.workload import Slo

What = Literal["requests", "tokens", "usd"]
NANO = 1_000_000_000
MOST_LIMITS = 8
"""Of one key: as many as `Shape.windows` sets aside."""
SHORTEST_S, LONGEST_S = 1.0, 366 * 86400.0
MOST_AMOUNT = 10**15
"""Of requests or tokens; a million dollars in billionths. Far from the ends of 64 bits, sums included."""

_WHAT: dict[str, What] = {
    "requests": "requests", "request": "requests", "req": "requests",
    "tokens": "tokens", "token": "tokens", "tok": "tokens",
    "usd": "usd", "dollars": "usd", "dollar": "usd",
}  # fmt: skip
_UNIT_S = {
    "s": 1.0, "sec": 1.0, "second": 1.0,
    "min": 60.0, "minute": 60.0,
    "h": 3600.0, "hour": 3600.0,
    "d": 86400.0, "day": 86400.0,
    "week": 604800.0, "month": 30 * 86400.0,
}  # fmt: skip
_WRITTEN = (("day", 86400.0), ("hour", 3600.0), ("min", 60.0), ("sec", 1.0))
_TIMES = {"": 1, "k": 10**3, "m": 10**6}
_LIMIT = re.compile(r"\$?\s*([0-9]+(?:\.[0-9]+)?)\s*([kM]?)\s*([a-z]+)\s*/\s*([0-9]+)?\s*([a-z]+?)s?", re.ASCII)
_BEARER = b"bearer "
_LONGEST = 256
_NOBODY = bytes(32)


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """At most `amount` of `what` in any `window_s` seconds. `amount` is whole; dollars are in billionths.

    `window_s` is a whole number of seconds. `stamp` marks the cells that count it, so that no other key's or limit's
    counts are taken for it.
    """

    what: What
    amount: int
    window_s: float
    stamp: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A key as the gateway knows it. `digest`: SHA-256 of the secret, which is nowhere kept. Times are Unix seconds.

    `models`: public names it may ask for; empty: all. `admin`: may also read the admin pages. `slo`: what it is
    promised instead of the policy's. `priority`: higher goes first, below 0 is shed first.
    """

    name: str
    id: str
    digest: bytes
    models: tuple[str, ...] = ()
    admin: bool = False
    limits: tuple[KeyLimit, ...] = ()
    slo: Slo | None = None
    priority: int = 0
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None

    def may(self, model: str) -> bool:
        """Whether it may ask for this public model."""
        return not self.models or model in self.models

    def live(self, unix_s: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_s is None and (self.expires_s is None or unix_s < self.expires_s)


def parse_limit(text: str) -> KeyLimit:
    """`1000 requests/min`, `200k tokens/10min`, `5 usd/day`, `$5 usd/month` (30 days). Raises UserError for others."""
    match = _LIMIT.fullmatch(text.strip())
    what = _WHAT.get(match[3]) if match else None
    unit_s = _UNIT_S.get(match[5]) if match else None
    if match is None or what is None or unit_s is None:
        raise UserError(
            f"{text!r} is no limit; write '1000 requests/min', '200k tokens/hour', '5 usd/day' "
            "(sec, min, hour, day, week, month; also '100 requests/10min')"
        )
    amount = round(float(match[1]) * _TIMES[match[2].lower()] * (NANO if what == "usd" else 1))
    window_s = float(match[4] or 1) * unit_s
    if not 1 <= amount <= MOST_AMOUNT:
        raise UserError(
            f"limit {text!r}: the amount must be above 0 and at most {MOST_AMOUNT:.0e}, or a million dollars"
        )
    if not SHORTEST_S <= window_s <= LONGEST_S:
        raise UserError(f"limit {text!r}: the window must be between one second and 366 days")
    return KeyLimit(what, amount, window_s)


def limit_text(limit: KeyLimit) -> str:
    """As `parse_limit` reads it, exactly."""
    if limit.what == "usd":
        amount = f"{limit.amount // NANO}.{limit.amount % NANO:09d}".rstrip("0").rstrip(".")
    else:
        amount = str(limit.amount)
    unit, unit_s = next(one for one in _WRITTEN if limit.window_s % one[1] == 0 or one[0] == "sec")
    count = int(limit.window_s / unit_s)
    return f"{amount} {limit.what}/{'' if count == 1 else count}{unit}"


def stamped(limit: KeyLimit, key_id: str) -> KeyLimit:
    """The limit with the mark of this key, what it limits and its window; never 0, which marks unused cells."""
    digest = blake2b(f"{key_id}\0{limit.what}\0{limit.window_s!r}".encode(), digest_size=8).digest()
    stamp = int.from_bytes(digest, "big") >> 1
    return KeyLimit(limit.what, limit.amount, limit.window_s, stamp or 1)


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
        self.drop(digest for digest in list(self._by_digest) if digest not in stay)

    def drop(self, digests: Iterable[bytes]) -> None:
        """Forget these keys."""
        for digest in digests:
            self._by_digest.pop(digest, None)

    def __len__(self) -> int:
        return len(self._by_digest)
