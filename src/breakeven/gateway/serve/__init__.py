"""The running gateway: a supervisor, workers that forward requests, and one process that watches and steers."""
