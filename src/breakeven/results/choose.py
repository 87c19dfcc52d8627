"""The model chosen for a machine and a use: what `breakeven choose` returns and prints as JSON.

Public contract: fields are only added.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.stats.estimate import Estimate

CHOOSE_SCHEMA = "breakeven.choose/1"

QualityBasis = Literal["own", "scores", "size"]
Role = Literal["pick", "equal", "other kind", "faster", "smaller", "next"]


class ChoiceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the model. `areas`: what quality is the mean of, languages included.

    `prompt`: new tokens of a prompt, `context`: tokens in use while it answers, `reserve`: those its cache is made for.
    """

    name: str
    users: int
    prompt: int
    output: int
    context: int
    reserve: int
    areas: list[str]
    unknown_languages: list[str]
    """Asked for, and no model's score in them is known: they count for nothing here."""
    about: str
    """Where the lengths and speeds come from, and what is not in them."""


class ChoiceLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: its option, what was asked in words, whether the use set it or the user, and what it ruled out."""

    option: str
    asked: str
    given: bool
    ruled_out: int
    """Models of which no format keeps it, whatever else they keep."""


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a model. `note`: what to put in where a part of it is yours, such as the file's name."""

    engine: str
    line: str
    note: str | None = None


class ChoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one format, as it would run.

    `quality` in points of 0 to 100: the share it would solve of tasks of which the middle one of all scored models
    solves half, the loss of its format taken off. `wins`: share of the drawn worlds in which this model, in any format,
    is the best that keeps the limits. `role`: why it is shown.
    """

    model: str
    hub_id: str
    kind: Literal["dense", "moe"]
    format: str
    kv: str
    role: Role
    on_front: bool
    """Nothing else is better in one of quality, speed and memory and no worse in the others, middle by middle."""
    wins: float
    quality: Estimate
    quality_basis: QualityBasis
    quality_note: str
    loss_kl: Estimate
    """What the format costs, in nats a token against 16 bits."""
    loss_top1: Estimate
    """Share of tokens for which it still thinks the same likeliest."""
    loss_basis: str
    tokens_per_s: Estimate
    """Of one user."""
    ttft_s: Estimate
    memory_bytes: float
    """Weights, caches of all users and buffers, in all places together."""
    host_bytes: float
    """Of that, beside the devices."""
    placement: str | None
    download_bytes: int
    answer_tokens: Estimate | None
    """Tokens an answer takes, thinking included; None: neither its own were published nor those of three models that
    answer so."""
    answer_s: Estimate | None
    """Reading the prompt and writing such an answer."""
    licence: str | None
    why: str
    gives_up: list[str]
    """Against the pick; of the pick against what is better in something."""
    start: list[CommandLine]
    notes: list[str]


class HostedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model behind somebody's API, at the least price that is on the list.

    `name`: the model's name there. `quality` as in `ChoiceRow`, of 16 bits: which bits a host serves is not known.
    `better`: share of the drawn worlds in which it does better than the pick; None: there is no pick, or it is the
    pick itself. Dollars are for prompts and answers as long as the use has them, nothing remembered.
    """

    model: str
    hub_id: str
    host: str
    name: str
    kind: Literal["dense", "moe"]
    quality: Estimate
    better: float | None
    usd_per_1000_requests: float
    usd_per_mtok_in: float
    usd_per_mtok_out: float
    usd_per_mtok_cached: float | None
    """Of prompt tokens that the host remembers; None: no such price."""
    requests_for_rent: float | None
    """A month, that cost as much as renting this machine; None: its rent is not known."""
    requests_in_limit: float | None
    """A month, that the limit on dollars pays for; None: there is none."""
    context: int | None
    """Tokens that the host takes; None: not said."""
    licence: str | None
    notes: list[str]


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """Models that are not in the answer for one reason. `nearest`: the ablest of them, each with its number."""

    reason: str
    models: int
    nearest: list[str]


class ChoiceKinds(msgspec.Struct, frozen=True, kw_only=True):
    """Mixture-of-Experts or dense: shares of worlds in which the best that keeps the limits is of that kind.

    They sum to less than 1 where in some worlds nothing keeps the limits. `flips_at`: the nearest least speed, in
    tokens/s, at which the other kind wins more worlds, all else as asked; None: at none from 1 to 512.
    """

    moe: float
    dense: float
    flips_at: float | None
    flips_to: Literal["moe", "dense"] | None


class ChoiceExplained(msgspec.Struct, frozen=True, kw_only=True):
    """Why one model and format is not the pick, or that it is."""

    model: str
    format: str
    picked: bool
    reasons: list[str]
    row: ChoiceRow | None
    """None: it does not keep the limits, or does not fit."""


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven choose --json`.

    `verdict`: `pick`: the first row is better than each other model in most worlds; `equal`: it and those in `equals`
    cannot be told apart by what is known; `none`: nothing keeps the limits.
    """

    schema: str = CHOOSE_SCHEMA
    version: str
    machine: str
    engine: str
    devices: int
    use: ChoiceUse
    limits: list[ChoiceLimit]
    verdict: Literal["pick", "equal", "none"]
    sentence: str
    because: list[str]
    kinds: ChoiceKinds | None
    """None: nothing keeps the limits."""
    equals: list[str]
    """Models equal to the pick on what is known, the ablest first."""
    rows: list[ChoiceRow]
    measure: str | None
    """The command that measures the two best here, before anything is downloaded; None: there are no two, or no one
    command does."""
    passed_over: list[PassedOver]
    explained: ChoiceExplained | None
    models: int
    """In the catalogue."""
    considered: int
    """Models times formats, types of keys and values and placements that were weighed."""
    worlds: int
    seed: int
    profile: str
    """How the machine's constants came about, in words."""
    notes: list[str]
    hosted: list[HostedRow] = []
    """Models behind APIs that are abler than the pick in most worlds, the cheapest first; none with `offline_only`."""
    hosted_date: str | None = None
    """Of the list of prices; None: nothing hosted is shown."""
