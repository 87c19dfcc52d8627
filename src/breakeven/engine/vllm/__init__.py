"""vLLM, from the environment's own installation, as a server in a process group of its own."""

from breakeven.engine.vllm.directory import FORMATS, dtype_of, has_weights, provide
from breakeven.engine.vllm.find import find_vllm
from breakeven.engine.vllm.server import VllmServer

__all__ = ["FORMATS", "VllmServer", "dtype_of", "find_vllm", "has_weights", "provide"]
