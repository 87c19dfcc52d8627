"""Models that are trained: matched from scratch, taught by another, tuned, single experts brought back."""
