"""What `breakeven keys` makes of the words it was given, and how a key is shown."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit, limit_text, parse_limit
from breakeven.traffic.words import parse_duration
from breakeven.traffic.workload import Slo, parse_slo, slo_text

MOST_S = 1_000_000 * 86_400.0
"""Of a key: what a date can still be told of."""


def limits_of(limits: Iterable[str], usd: Iterable[str]) -> tuple[KeyLimit, ...]:
    """Limits in words, and dollars as `5/day`. Raises UserError for what is neither."""
    dollars = []
    for text in usd:
        amount, slash, window = text.partition("/")
        if not slash:
            raise UserError(f"--usd {text!r} says no window; write --usd 5/day")
        dollars.append(parse_limit(f"{amount.strip()} usd/{window.strip()}"))
    return (*(parse_limit(text) for text in limits), *dollars)


def slo_of(text: str) -> Slo | None:
    """What a key is promised; None for nothing. Raises UserError for terms that routing knows nothing of."""
    if not text:
        return None
    slo = parse_slo(text)
    if slo.itl_s is not None or slo.e2e_s is not None:
        raise UserError(f"--slo {text!r}: the gateway routes by ttft and tpot; leave the other terms out")
    return slo


def expiry(text: str, now_s: float | None = None) -> float | None:
    """Unix time of `30d`, `12h`, `90min` from now or a date (its first moment, UTC); None for nothing."""
    if not text:
        return None
    now_s = time.time() if now_s is None else now_s
    if (lasts_s := _lasting(text.strip())) is not None:
        end_s = now_s + lasts_s
    else:
        try:
            day = datetime.date.fromisoformat(text.strip())
        except ValueError:
            raise UserError(f"--expires {text!r}: write 30d, 12h, 90min, or a date as 2027-01-31") from None
        end_s = datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
    if end_s <= now_s:
        raise UserError(f"--expires {text!r} is not in the future; write a later date or leave it out")
    return round(end_s, 3)


def _lasting(text: str) -> float | None:
    """Seconds in a duration, which of a key may be days; a plain number is a date, or nothing."""
    if not text[-1:].isalpha():
        return None
    try:
        seconds = 24 * parse_duration(f"{text[:-1]}h") if text.endswith("d") else parse_duration(text)
    except UserError:
        return None
    return seconds if seconds <= MOST_S else None


def row_of(entry: KeyEntry) -> dict[str, object]:
    """A key as JSON shows it; neither secret nor digest."""
    return {
        "name": entry.name,
        "id": entry.id,
        "state": state_of(entry),
        "models": list(entry.models),
        "admin": entry.admin,
        "limits": [limit_text(limit) for limit in entry.limits],
        "slo": None if entry.slo is None else slo_text(entry.slo),
        "priority": entry.priority,
        "created_s": entry.created_s,
        "expires_s": entry.expires_s,
        "revoked_s": entry.revoked_s,
    }


def state_of(entry: KeyEntry) -> str:
    """live, expired or revoked."""
    if entry.revoked_s is not None:
        return "revoked"
    return "live" if entry.live(time.time()) else "expired"


def table_of(entries: Sequence[KeyEntry]) -> str:
    """A line a key."""
    if not entries:
        return "no keys; make one with: breakeven keys create NAME"
    rows = [("name", "state", "made", "ends", "models", "limits")]
    for entry in entries:
        models = ",".join(entry.models) or "all"
        rows.append(
            (
                entry.name,
                state_of(entry) + (" admin" if entry.admin else ""),
                _day(entry.created_s),
                "-" if entry.expires_s is None else _day(entry.expires_s),
                models,
                "; ".join(limit_text(limit) for limit in entry.limits) or "none",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _day(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d")
