"""The admin listener and its live page."""
