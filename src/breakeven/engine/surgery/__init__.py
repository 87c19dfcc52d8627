"""Expert surgery: a dense weight file turned into a Mixture-of-Experts one, its weights' values kept."""

from breakeven.engine.surgery.experts import Surgery, copy, split

__all__ = ["Surgery", "copy", "split"]
