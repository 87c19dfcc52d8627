"""Which to run: a study in, a verdict out. Starts no engine."""
