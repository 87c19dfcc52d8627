"""Synthetic weights: files with the exact tensors, shapes and types of a model, and random values.

Speed and memory depend on shapes and formats, not on what the weights say, so such a file measures a model
before it is downloaded. It says nothing about quality: every report repeats that.
"""

from breakeven.engine.synthesis.routing import Routing, parse_routing
from breakeven.engine.synthesis.write import synthesise, synthesised_bytes

__all__ = ["Routing", "parse_routing", "synthesise", "synthesised_bytes"]
