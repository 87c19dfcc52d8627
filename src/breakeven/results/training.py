"""What a study of trainings says: models equal in one number, what each learned of the same text, and how surely.

`TrainStudy` is what `breakeven train` returns and leaves as OUT/result.json. A public contract (`docs/lab-json.md`):
fields are only ever added. None means not measured or not available, never zero. Losses are in nats a token.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.results.lab import LabCheck, ScoredLayer
from breakeven.stats.estimate import Estimate

TRAIN_SCHEMA = "breakeven.train/1"


class TriedRate(msgspec.Struct, frozen=True, kw_only=True):
    """A learning rate as it was tried in a short training."""

    rate: float
    loss: float | None
    """Of the text that chooses; None: the loss became no number."""


class TrainedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One training of one model. `loss` and `bits_per_byte` are of the text that judges."""

    arm: str
    seed: int
    rate: float
    steps: int
    tokens: int
    seconds: float
    loss: float
    bits_per_byte: float
    best_step: int
    """Of the checkpoint that was kept; 0: none was better than the beginning."""
    checks: list[list[float]]
    """Pairs of step and loss on the text that chooses."""
    losses: list[list[float]]
    """Pairs of step and the batch's loss, with what balances experts."""
    layers: list[ScoredLayer] = []
    """How the text that judges was routed; empty for a dense model."""


class MatchedArm(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a study, over all its trainings."""

    name: str
    kind: Literal["dense", "moe", "hybrid"]
    shape: str
    """In the words of a study file."""
    layers: int
    hidden: int
    width: int | None
    """Of dense feed-forwards; None where every layer routes."""
    experts: int
    used: int
    expert_width: int | None
    routed_layers: list[int]
    total_params: int
    active_params: int
    flops_per_token: float
    """Of training: forward and backward, attention and head counted."""
    off: float
    """Share by which what is matched misses the reference's."""
    copy_of: str | None
    """The arm before it that has the same shape; its learning rate holds here too."""
    rate: float
    rates: list[TriedRate]
    steps: int
    tokens: int
    flops: float
    """Of one training."""
    loss: Estimate
    bits_per_byte: Estimate
    tokens_per_s: Estimate | None
    """Of training on this machine."""
    difference: Estimate | None
    """Loss more than the reference's, paired by seed and piece of text; negative: better. None for the reference."""
    verdict: Literal["better", "worse", "no difference"] | None
    """None for the reference, and where there are too few trainings to tell."""
    by_language: dict[str, Estimate] = {}
    """`difference` on each language of the text."""
    speed_up: Estimate | None = None
    """Times the tokens that the reference would need for this arm's loss."""
    speed_up_on_clock: Estimate | None = None
    """The same in seconds on this machine: times how fast both train."""
    max_over_mean: Estimate | None = None
    """Tokens of a layer's busiest expert over the mean, the worst layer of each training."""
    dead_experts: int | None = None
    """Of all layers and trainings, that no token of the text reached."""
    path: str | None = None
    """Directory of the first seed's model; None: a control, which is not left."""
    gguf: str | None = None
    """The same for llama.cpp; None where no such file can hold it."""
    checks: list[LabCheck] = []
    """What had to hold before that file was left standing."""


class TrainStudy(msgspec.Struct, frozen=True, kw_only=True):
    """Models trained on the same tokens in the same order, equal in one number."""

    command: str
    name: str
    text: str
    match: Literal["active", "total", "flops", "seconds"]
    reference: str
    seeds: list[int]
    steps: int
    """Of the reference."""
    short_steps: int
    """Of the trainings that rates are tried in, and that say what more tokens are worth."""
    batch: int
    row_tokens: int
    vocabulary: int
    train_tokens: int
    """In the text; a training may read them more than once, or not all."""
    judged_bytes: int
    judged_blocks: int
    judged_tokens: int
    noise_floor: float | None
    """95 % of what two trainings of one shape differ by in loss when only their random numbers differ."""
    noise_freedom: int
    """Degrees of freedom behind it."""
    arms: list[MatchedArm]
    runs: list[TrainedRun]
    device: str
    seconds: float
    caveats: list[str] = []
    schema: str = TRAIN_SCHEMA
