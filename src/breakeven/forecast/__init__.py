"""What would happen: step times from shapes and constants, and a simulator of continuous batching on top of them."""
