"""How good models are, and what storing them in fewer bits costs of that."""
