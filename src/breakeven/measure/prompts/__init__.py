"""What is asked: text, its exact length in tokens, and the bytes of every request."""
