"""How much faster one model is than another on one machine: surer than either speed, because the machine cancels."""

from __future__ import annotations

import math

from breakeven.predict.model import StepModel
from breakeven.predict.routing import routing_known, skewed
from breakeven.spec.prediction import Span


def speed_ratio(of: StepModel, over: StepModel, batch: float, context: float) -> Span:
    """Decode speed of `of` over that of `over`, both at this batch and context; above 1 `of` is faster.

    Each model's error beyond what it shares with others on its machine (`Error.between_models`) is independent of the
    other's, so squares add. Where the routing of one is not known and the profile comes from probes, that model may
    be as fast as uneven routing makes it.
    """
    value = float(over.step_s(batch, context) / of.step_s(batch, context))
    width = math.hypot(of.error("decode").between_models, over.error("decode").between_models)
    fast, fast_over = _fastest(of, batch, context), _fastest(over, batch, context)
    return Span(value=value, low=value * math.exp(-width) * fast_over, high=value * math.exp(width) / fast)


def _fastest(model: StepModel, batch: float, context: float) -> float:
    """Step time under uneven routing over that under even routing; 1 where routing is known or in the errors."""
    if model.profile.origin.how != "probes" or routing_known(model.terms):
        return 1.0
    uneven = StepModel(
        model.spec, skewed(model.terms), model.profile, model.devices, 1.0, model.expert_parallel, model.residency
    )
    return float(uneven.step_s(batch, context) * model.scale / model.step_s(batch, context))
