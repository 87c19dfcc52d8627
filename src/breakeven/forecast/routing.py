"""How tokens spread over experts: measured frequencies, and the uneven routing a band reaches down to.

Uniform routing touches the most experts a step can be expected to touch; any skew touches fewer, because
1 - (1 - p)^n is concave in p. So uniform routing is the slow end, and a skewed one the fast end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.forecast.terms import ExpertGroup, Terms
from breakeven.model.architecture import ModelSpec, MoeFfn

Routing = Sequence[Sequence[float]]
"""For each layer that routes, in order: the share of tokens that use each expert."""
MIN_TOKENS = 10_000
"""Tokens whose routing was seen from which it is believed. Of fewer, chance makes an even routing look uneven, so that
too few experts seem to be touched: by B p exp(-B p) / 2N of all experts, with B sequences, N tokens and each expert
taken by a share p. At the worst B that is 0.3 / (p N) of those touched: 0.1 % for 8 of 256 experts. Tokens of a request
choose alike; were 20 of them worth one, 2 %, within the error of any step model."""
KEPT = "breakeven.experts-kept/"
"""How the schema of what a gateway keeps begins."""
MOST_LEVELS = 32
"""Probabilities kept of a group's experts: more cost time and change an occupancy by less than a thousandth."""
SKEW = 0.5
"""Exponent of the power law over experts at the uneven end of the band. A judgement: the busiest of 64 experts then
takes 4.4 times the mean. Training without a balancing loss leaves it at 1.5-1.7 times over a mixture of texts (Wang et
al., arXiv 2408.15664, table 2: MaxVio 0.5-0.7); texts of one domain lie above."""


def with_frequencies(terms: Terms, spec: ModelSpec, frequencies: Routing) -> Terms:
    """`terms` under measured routing. Raises UserError when it does not match the model."""
    routing = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    if len(frequencies) != len(routing):
        raise UserError(
            f"routing of {len(frequencies)} layers was given, but {len(routing)} layers of {spec.name} route; "
            "trace the same model"
        )
    rows: dict[tuple[int, int, int], list[Sequence[float]]] = {}
    for index, (ffn, row) in enumerate(zip(routing, frequencies, strict=True)):
        if len(row) == 0:
            raise UserError(
                f"of routed layer {index} of {spec.name} no frequencies by token are known, so this routing cannot be "
                "used; give what `breakeven trace --json` prints"
            )
        if len(row) != ffn.n_experts or min(row) < 0 or max(row) > 1:
            raise UserError(
                f"routed layer {index} of {spec.name} has {ffn.n_experts} experts, each used by a share of tokens from "
                f"0 to 1; found {len(row)} numbers from {min(row)} to {max(row)}"
            )
        if max(row) <= 0:
            raise UserError(
                f"of routed layer {index} of {spec.name} nothing was seen, so this routing cannot be used; give one of "
                "more tokens, or leave it out, which takes it as even"
            )
        rows.setdefault((ffn.n_experts, ffn.n_experts_per_token, ffn.expert_width), []).append(row)
    # Groups of terms stand in the order in which their layers first appear: see `terms_of`.
    groups = [
        replace(group, frequencies=_levels(np.concatenate([np.sort(row) for row in found])))
        for group, found in zip(terms.experts, rows.values(), strict=True)
    ]
    return replace(terms, experts=tuple(groups))


class _Layer(msgspec.Struct):
    frequencies: list[float]


class _Trace(msgspec.Struct):
    """The part of `breakeven trace --json`, and of what a gateway keeps, that matters here."""

    layers: list[_Layer]
    schema: str = ""
    tokens: Any = None


def read_routing(path: Path) -> Routing:
    """Routing from what `breakeven trace --json` printed, or a gateway kept.

    Raises UserError when the file is something else, and for a gateway's of fewer than `MIN_TOKENS` tokens: whoever
    traces a text chose its length, and a gateway's file grows with every request.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Trace)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give what `breakeven trace --json` prints"
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}; give what `breakeven trace --json` prints") from error
    tokens = found.tokens if isinstance(found.tokens, int) else 0
    if found.schema.startswith(KEPT) and tokens < MIN_TOKENS and any(layer.frequencies for layer in found.layers):
        raise UserError(
            f"{path}: it is of {tokens:,} tokens that a gateway saw, and of fewer than {MIN_TOKENS:,} chance makes an "
            "even routing look uneven; let the gateway see more, or leave it out, which takes routing as even"
        )
    return [layer.frequencies for layer in found.layers]


def skewed(terms: Terms, exponent: float = SKEW) -> Terms:
    """`terms` with a power law over the experts of every group whose routing is not known."""
    groups = [
        g if g.frequencies is not None else replace(g, frequencies=_power_law(g, exponent)) for g in terms.experts
    ]
    return replace(terms, experts=tuple(groups))


def routing_known(terms: Terms) -> bool:
    """Whether every routed layer's frequencies were measured; true of dense models."""
    return all(group.frequencies is not None for group in terms.experts)


def _power_law(group: ExpertGroup, exponent: float) -> tuple[float, ...]:
    return _power_law_of(group.n_experts, group.per_token, exponent)


@lru_cache(maxsize=64)
def _power_law_of(n_experts: int, per_token: int, exponent: float) -> tuple[float, ...]:
    """Shares proportional to rank^-exponent that sum to `per_token`, none above 1."""
    weights = np.arange(1, n_experts + 1, dtype=np.float64) ** -exponent
    shares = np.zeros(n_experts)
    full = 0  # experts that every token uses: what they cannot take goes to the others
    while True:
        shares[full:] = weights[full:] / weights[full:].sum() * (per_token - full)
        over = int((shares[full:] > 1.0).sum())
        if not over:
            return _levels(shares)
        shares[full : full + over] = 1.0
        full += over


def _levels(shares: NDArray[np.float64]) -> tuple[float, ...]:
    """At most `MOST_LEVELS` means of equally many shares each."""
    n = max(count for count in range(1, min(MOST_LEVELS, len(shares)) + 1) if len(shares) % count == 0)
    return tuple(float(x) for x in np.sort(shares).reshape(n, -1).mean(axis=1))
