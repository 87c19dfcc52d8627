"""Refusing a description whose weights do not add up to what was published."""

from __future__ import annotations

from breakeven.errors import UserError
from breakeven.spec.model import ModelSpec
from breakeven.spec.tensors import tensors

TOLERANCE = 0.03
"""Published totals are rounded ("7B", "8.3B"), and some leave out norms and biases."""


def check_count(spec: ModelSpec, published_total_params: int | None) -> None:
    """Raise UserError with both numbers when the spec's weights miss the published total by over 3 %; None: unknown."""
    if published_total_params is None:
        return
    counted = sum(tensor.params for tensor in tensors(spec))
    off = counted / published_total_params - 1
    if abs(off) > TOLERANCE:
        raise UserError(
            f"{spec.source}: {spec.name} counts {counted:,} parameters, {published_total_params:,} were published "
            f"({off:+.1%}, {TOLERANCE:.0%} allowed): the description is wrong or incomplete; correct it, "
            "or describe the model by hand as docs/models-yaml.md shows"
        )
