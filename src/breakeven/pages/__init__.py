"""How people see it: words, terminal, pages and charts. Reads results, computes nothing."""
