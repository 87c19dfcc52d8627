"""Routing policies, each one file with a page in docs/policies."""
