"""What a running study tells whoever watches it. Data only: how it looks is the page's affair."""

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
    left_out: int = 0
    """Pairs beside those that a neighbour on the machine disturbed."""


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
    share: float | None = None
    """How much of the phase is done, where it is known and not in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """One moment of a run under load, requests due so far. None: nothing to tell yet, or not told by this engine.

    Delays are in seconds, over the answered requests of the last half minute. `headroom` is the share of the client's
    own ceiling that is in use.
    """

    model: str
    load: str
    elapsed_s: float
    of_s: float | None
    offered_per_s: float | None
    achieved_per_s: float | None
    issued: int
    answered: int
    in_flight: int
    errors: dict[str, int]
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    lag_p99_s: float | None
    headroom: float | None
    engine_running: float | None
    engine_waiting: float | None
