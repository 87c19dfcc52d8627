"""What was seen: the decision log, metrics, usage, and the state that the live page shows."""
