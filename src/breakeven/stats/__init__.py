"""How sure: intervals, percentiles with the sample they need, sequential tests. Pure."""
