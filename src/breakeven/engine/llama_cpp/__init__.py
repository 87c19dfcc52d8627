"""llama.cpp, from the xllamacpp wheel, each model in a child process of its own."""

from breakeven.engine.llama_cpp.server import LlamaCppServer
from breakeven.engine.llama_cpp.settings import KvType, ServerSettings, available_threads

__all__ = ["KvType", "LlamaCppServer", "ServerSettings", "available_threads"]
