"""From evaluated candidates to an answer: who wins over which loads, how surely, and what would change it."""
