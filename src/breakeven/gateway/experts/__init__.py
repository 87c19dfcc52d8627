"""Which experts a backend's requests reach, seen while it serves."""
