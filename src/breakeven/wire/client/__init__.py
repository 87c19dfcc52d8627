"""The measuring client: requests out over lean HTTP, stamped bytes in, every failure by its name."""
