"""llama.cpp, from the xllamacpp wheel, each model in a child process of its own."""
