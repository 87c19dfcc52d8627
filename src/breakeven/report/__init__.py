"""How people see a comparison: terminal, page, charts and JSON. Reads results; measures and decides nothing."""
