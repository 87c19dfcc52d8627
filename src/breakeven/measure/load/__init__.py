"""From the log of a run under load to its numbers. Pure functions over events."""
