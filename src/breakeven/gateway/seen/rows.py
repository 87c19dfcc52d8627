"""Where the names of a plan stand in the shared block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Row by name, as `Slots.name` gives them: backends, keys, public models, experiments."""

    backends: Mapping[str, int]
    keys: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    experiments: Mapping[str, int] = field(default_factory=dict)
