"""A job with engines: compare, bench, capacity, calibrate, check, recompute."""
