"""Who may ask, for what, and how much: digests on disk, windows of requests, tokens and dollars."""
