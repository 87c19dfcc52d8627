"""Model layouts: how a configuration becomes layers, and which GGUF keys say so."""
