"""One model in one format on one machine: the step model with everything filled in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from breakeven.predict.step import Floats, Parts, step_parts
from breakeven.predict.terms import Terms, terms_of
from breakeven.spec.formats import format_named
from breakeven.spec.model import ModelSpec
from breakeven.spec.profile import Error, Profile


@dataclass(frozen=True, slots=True)
class StepModel:
    """Step times of `terms` under `profile`. `scale` multiplies every time: the ends of an interval are models too."""

    spec: ModelSpec
    terms: Terms
    profile: Profile
    devices: int = 1
    scale: float = 1.0

    def parts(
        self,
        decoding: ArrayLike,
        decode_context: ArrayLike,
        prefill_tokens: ArrayLike = 0.0,
        prefill_context: ArrayLike = 0.0,
    ) -> Parts:
        """See `breakeven.predict.step.step_parts`; arguments broadcast, `scale` is not applied to the parts."""
        return step_parts(self.terms, self.profile.constants, decoding, decode_context, prefill_tokens, prefill_context)

    def step_s(
        self,
        decoding: ArrayLike,
        decode_context: ArrayLike,
        prefill_tokens: ArrayLike = 0.0,
        prefill_context: ArrayLike = 0.0,
    ) -> Floats:
        """Seconds of steps; arguments broadcast."""
        return self.scale * self.parts(decoding, decode_context, prefill_tokens, prefill_context).total_s

    def error(self, phase: str) -> Error:
        """How far this profile's predictions of this kind of model were off."""
        kind = "moe" if self.terms.moe else "dense"
        return next(e for e in self.profile.errors if e.phase == phase and e.kind == kind)

    def scaled(self, factor: float) -> StepModel:
        """The same model, every step `factor` times as long."""
        return replace(self, scale=self.scale * factor)

    def low_high(self, phase: str = "decode") -> tuple[StepModel, StepModel]:
        """The fast and the slow end of the interval of one `phase`."""
        width = self.error(phase).log_half_width
        return self.scaled(float(np.exp(-width))), self.scaled(float(np.exp(width)))


def step_model(spec: ModelSpec, profile: Profile, format_name: str, devices: int | None = None) -> StepModel:
    """`spec` in a weight format under `profile`. Raises UserError for an unknown format."""
    name = format_named(format_name).name
    return StepModel(spec, terms_of(spec, name), profile, devices or profile.devices)
