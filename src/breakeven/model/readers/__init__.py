"""Where a description comes from: a configuration, a GGUF or safetensors header, or a file written by hand."""
