"""A model described by hand that follows no known family: it can be counted, not written."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.errors import UserError
from breakeven.spec.families.base import Family
from breakeven.spec.families.config import HELP
from breakeven.spec.families.metadata import none_yet
from breakeven.spec.model import ModelSpec


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """No configuration is of this family."""
    raise UserError(f"{source}: {name}: a custom model has no config.json form; {HELP}")


FAMILY = Family("custom", (), None, from_config, none_yet)
