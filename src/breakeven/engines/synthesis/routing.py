"""Routers that send tokens to experts with the frequencies asked for.

A router row is one of an orthonormal set, so that logits of random hidden states are independent normals of equal
spread: that is uniform routing. Skew is a bias on top. No common architecture has a router bias, so it is carried by
the hidden state's first element, which the writer keeps at the same value for every token (see `write`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from breakeven.errors import UserError

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

LOGIT_STD = 1.5
"""Spread of router logits: sharp enough that bfloat16 rounding in an engine changes no choice of experts."""
HOTTEST = 0.98
"""No expert is asked to take a larger share of tokens: a bias for certainty would be infinite."""


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """How often experts are used: `zipf` is the exponent s of frequency ~ rank**-s, 0 for uniform."""

    zipf: float = 0.0

    def __str__(self) -> str:
        return f"zipf:{self.zipf:g}" if self.zipf else "uniform"

    def frequencies(self, n_experts: int, n_experts_per_token: int) -> Doubles:
        """Share of tokens each expert takes, most used first; sums to `n_experts_per_token`, none above `HOTTEST`."""
        weights = np.arange(1, n_experts + 1, dtype=np.float64) ** -self.zipf
        shares = np.zeros(n_experts)
        left = float(n_experts_per_token)
        for i in range(n_experts):
            shares[i] = min(HOTTEST, left * weights[i] / weights[i:].sum())
            left -= shares[i]
        if left > 1e-9:  # k close to E: the cap cannot hold everywhere, so share the rest
            shares += left / n_experts
        return shares


def parse_routing(text: str) -> ExpertUse:
    """Read `uniform` or `zipf:S`. Raises UserError for anything else."""
    if text == "uniform":
        return ExpertUse()
    match = re.fullmatch(r"zipf:(\d+(?:\.\d+)?)", text)
    if not match or not 0 < float(match[1]) <= 4:
        raise UserError(
            f"routing {text!r} is not known: use uniform, or zipf:S with S between 0 and 4, such as zipf:1.2"
        )
    return ExpertUse(float(match[1]))


def biases_for(frequencies: Doubles, k: int, rng: np.random.Generator) -> Doubles:
    """Biases, in units of the logits' spread, under which top-k of independent normals picks with `frequencies`.

    Robbins-Monro on a fixed sample of logits; the remaining error is checked by tracing, not assumed.
    """
    n_experts = len(frequencies)
    if k >= n_experts or np.allclose(frequencies, frequencies[0]):
        return np.zeros(n_experts)
    noise = rng.standard_normal((6000, n_experts))
    biases = np.log(np.maximum(frequencies, 1e-6)) * 0.5
    for step in range(300):
        logits = noise + biases
        threshold = np.partition(logits, n_experts - k, axis=1)[:, n_experts - k, None]
        seen = (logits >= threshold).mean(axis=0)
        biases += (np.log(np.maximum(frequencies, 1e-4)) - np.log(np.maximum(seen, 1e-4))) * (0.5 / (1 + step / 60))
    centred: Doubles = biases - biases.mean()
    return centred


def router_rows(n_experts: int, hidden: int, biases: Doubles, first_element: float, rng: np.random.Generator) -> Floats:
    """Router weights (n_experts, hidden).

    `first_element` is what the normalised hidden state holds in its first place for every token (0: no bias possible);
    `biases` are dealt to experts in random order, so that the hot expert differs from layer to layer.
    """
    others = rng.standard_normal((hidden - 1, min(n_experts, hidden - 2)))
    others -= others.mean(axis=0)  # blind to the mean of a row of blocks, which is not quite zero
    basis, _ = np.linalg.qr(others)
    rows = np.zeros((n_experts, hidden))
    repeats = -(-n_experts // basis.shape[1])
    rows[:, 1:] = np.tile(basis.T, (repeats, 1))[:n_experts]
    if repeats > 1:  # more experts than dimensions: independent directions, orthogonal only on average
        rows[:, 1:] = rng.standard_normal((n_experts, hidden - 1))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= LOGIT_STD
    if first_element:
        rows[:, 0] = rng.permutation(biases) * LOGIT_STD / first_element
    return rows.astype(np.float32)
