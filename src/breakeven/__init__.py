"""Mixture-of-Experts or dense: which language model should I run here, and at what load does the answer flip?

`breakeven.compare([...])` does what `breakeven compare` does. Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.version import __version__

if TYPE_CHECKING:
    from breakeven.api import compare as compare

__all__ = ["__version__", "compare"]


def __getattr__(name: str) -> Any:
    if name == "compare":
        from breakeven.api import compare

        return compare
    raise AttributeError(f"module 'breakeven' has no attribute {name!r}")
