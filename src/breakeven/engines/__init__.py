"""What runs a model: llama.cpp, vLLM, any URL; synthetic weights; the look inside."""
