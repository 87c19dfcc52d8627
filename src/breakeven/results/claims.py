"""Sentences that people come with, judged: what `breakeven.claims` returns and `breakeven claims --json` prints.

A public contract (`docs/json.md`): fields are only ever added.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.stats.estimate import Estimate

CLAIMS_SCHEMA = "breakeven.claims/1"

Judged = Literal["holds", "fails", "open"]
"""Of one number: its whole interval is where the sentence says, all of it is elsewhere, or it reaches across."""
ClaimVerdict = Literal["holds", "holds where", "does not hold", "open"]


class ClaimSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sentence was read. Without an address it is as heard: whoever said it first was not found."""

    title: str
    url: str | None = None
    date: str | None = None
    says: str | None = None
    """What stands there, where that is not quite the sentence."""


class ClaimFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One number that a sentence is judged by."""

    case: str
    """Which models on which machine."""
    at: str
    """Where along the part's axis, in words; empty without one."""
    value: Estimate | None
    """Its provenance says whether it was predicted, published or measured here. None: nothing is known of the case."""
    verdict: Judged
    record: str | None = None
    """Of a published number: what was measured, and by whom. Of a case nothing is known of: why."""
    url: str | None = None


class ClaimPart(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a sentence says, tested by one quantity."""

    says: str
    quantity: str
    """What the numbers are, in words."""
    unit: str
    rule: str
    """What they must be for the part to hold."""
    verdict: ClaimVerdict
    where: list[str]
    """Where it holds, when it does not hold everywhere."""
    findings: list[ClaimFinding]
    commands: list[str]
    """Commands that print the predicted numbers."""
    alike: bool = False
    """One winner for all cases is tested: of a number `holds` means at or above the line, `fails` below it."""


class ClaimRun(msgspec.Struct, frozen=True, kw_only=True):
    """How a sentence can be measured on the machine at hand."""

    command: str
    measures: str
    minutes: float
    """About, on two cores."""
    memory_bytes: float


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence, its source, its verdict and what that rests on."""

    name: str
    sentence: str
    source: ClaimSource
    verdict: ClaimVerdict
    short: str
    """The numbers or the place behind the verdict, in one line."""
    parts: list[ClaimPart]
    note: str | None = None
    """How the sentence was read, where it can be read in more than one way."""
    settle: str | None = None
    """What would settle it."""
    run: ClaimRun | None = None


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven claims --json`."""

    schema: str = CLAIMS_SCHEMA
    version: str
    date: str
    """ISO 8601: the day on which the numbers were computed."""
    claims: list[Claim]
