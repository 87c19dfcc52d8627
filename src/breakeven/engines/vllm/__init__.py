"""vLLM, from the environment's own installation, as a server in a process group of its own."""
