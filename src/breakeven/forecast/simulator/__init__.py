"""Continuous batching, simulated on top of the step model: every percentile of a load nobody has run."""
