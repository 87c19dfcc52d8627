"""Traces: requests somebody recorded, in the formats they are published in."""
