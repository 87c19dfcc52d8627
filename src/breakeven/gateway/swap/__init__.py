"""Local engines come and go by demand within a memory budget."""
