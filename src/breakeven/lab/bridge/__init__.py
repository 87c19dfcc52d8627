"""A model as a GGUF or as a Hugging Face directory: weights, configuration and tokenizer, each way."""
