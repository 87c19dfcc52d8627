"""Closing the loop: what the gateway served, as the workload of a study."""
