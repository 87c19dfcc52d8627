"""Expert surgery on the bytes of a GGUF."""
