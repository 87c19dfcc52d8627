"""Plays a schedule: one process, several, or Ray workers; everything that happens goes into one log."""
