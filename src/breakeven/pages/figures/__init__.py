"""The charts of every page."""
