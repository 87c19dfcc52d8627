"""The look inside a running model: routed experts, time by kind of node, bare decode speed.

All of it runs in a child process over llama.cpp's C functions; see `layout` for what is refused and why.
"""

from breakeven.engine.inside.client import Inside
from breakeven.engine.inside.profiling import bare_decode_rate, profile
from breakeven.engine.inside.tracing import Traced, trace

__all__ = ["Inside", "Traced", "bare_decode_rate", "profile", "trace"]
