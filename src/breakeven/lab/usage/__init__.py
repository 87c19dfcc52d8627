"""How a text uses a model's experts."""
