"""Synthetic weights: files with the exact tensors, shapes and types of a model, and random values."""
