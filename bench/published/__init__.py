"""Published measurements of others, read as records of one form."""
