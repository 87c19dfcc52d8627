"""Mixture-of-Experts or dense: which language model should I run here, and at what load does the answer flip?

`breakeven.compare([...])` does what `breakeven compare` does, and so do the other verbs; `report` is `recompute`.
Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.version import __version__

if TYPE_CHECKING:
    from breakeven.api import bench as bench
    from breakeven.api import capacity as capacity
    from breakeven.api import compare as compare
    from breakeven.api import compare_under_load as compare_under_load
    from breakeven.api import recompute as recompute
    from breakeven.decide.load import LoadOptions as LoadOptions
    from breakeven.decide.traffic import Words as Traffic

__all__ = ["LoadOptions", "Traffic", "__version__", "bench", "capacity", "compare", "compare_under_load", "recompute"]

_HOMES = {"LoadOptions": ("breakeven.decide.load", "LoadOptions"), "Traffic": ("breakeven.decide.traffic", "Words")}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in __all__:
        module, there = _HOMES.get(name, ("breakeven.api", name))
        return getattr(import_module(module), there)
    raise AttributeError(f"module 'breakeven' has no attribute {name!r}")
