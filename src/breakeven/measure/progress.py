"""What a running comparison tells whoever watches it. Data only: how it looks is the report's affair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RatioRow:
    """The ratio of one pair at one load so far. `low` and `high` are None while there are too few pairs."""

    streams: int
    ratio: float
    low: float | None
    high: float | None
    pairs: int
    label: str = ""
    """What is over what, such as "olmoe-1b-7b over llama-3.2-1b"; empty when there is only one pair."""


@dataclass(frozen=True, slots=True)
class ProgressState:
    """One moment of a run.

    `phase` is plain text: "writing weights", "loading", "measuring". Bytes are None where the phase has none to
    count; `budget_s` is None when only the precision asked for ends the run.
    """

    phase: str
    elapsed_s: float
    budget_s: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    rows: tuple[RatioRow, ...] = ()
    subject: str = ""
    """The model that the phase is about, if it is about one."""
