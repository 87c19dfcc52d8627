"""What parent and child say to each other: one JSON line a message. Arrays travel as .npy files in `folder`."""

from __future__ import annotations

import msgspec


class Load(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """First message: which file, how many threads, where arrays go, and whose death to follow."""

    model: str
    threads: int
    folder: str
    parent_pid: int


class Tokenize(msgspec.Struct, tag="tokenize", frozen=True, kw_only=True):
    """A text to tokens. Answered by `Tokens`."""

    text: str


class Trace(msgspec.Struct, tag="trace", frozen=True, kw_only=True):
    """Route these sequences. Answered by `Routed`; ids in ids-<n>.npy."""

    sequences: list[list[int]]
    batch: int


class Time(msgspec.Struct, tag="time", frozen=True, kw_only=True):
    """Time by kind over `steps` steps. Answered by `Timed`."""

    phase: str
    tokens: list[int]
    steps: int


class Rate(msgspec.Struct, tag="rate", frozen=True, kw_only=True):
    """Decode `tokens` one by one after `prompt`. Answered by `Rated`."""

    prompt: list[int]
    tokens: list[int]


class Logits(msgspec.Struct, tag="logits", frozen=True, kw_only=True):
    """Logits after every token, in logits.npy. Answered by `Done`."""

    tokens: list[int]


class Greedy(msgspec.Struct, tag="greedy", frozen=True, kw_only=True):
    """The likeliest continuation. Answered by `Tokens`."""

    tokens: list[int]
    n: int


Request = Load | Tokenize | Trace | Time | Rate | Logits | Greedy


class Done(msgspec.Struct, tag="done", frozen=True, kw_only=True):
    """Nothing to tell."""


class Loaded(msgspec.Struct, tag="loaded", frozen=True, kw_only=True):
    """What the file says of itself. n_experts is 0 for a dense model."""

    architecture: str
    n_vocab: int
    n_experts: int
    n_experts_per_token: int


class Tokens(msgspec.Struct, tag="tokens", frozen=True, kw_only=True):
    """Token ids."""

    ids: list[int]


class Routed(msgspec.Struct, tag="routed", frozen=True, kw_only=True):
    """Which layers route, and what watching them cost: 0.05 is 5 %."""

    layers: list[int]
    observing_overhead: float


class Timed(msgspec.Struct, tag="timed", frozen=True, kw_only=True):
    """Median seconds a step by kind, and medians of whole steps watched and unwatched."""

    seconds: dict[str, float]
    observed_step_s: float
    plain_step_s: float


class Rated(msgspec.Struct, tag="rated", frozen=True, kw_only=True):
    """Seconds of each single-token step, in order."""

    steps_s: list[float]


class Failed(msgspec.Struct, tag="failed", frozen=True, kw_only=True):
    """`supported` false: this build or model cannot do it. Otherwise it went wrong."""

    text: str
    supported: bool


Reply = Done | Loaded | Tokens | Routed | Timed | Rated | Failed
