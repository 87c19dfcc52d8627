"""The HTTP/1.1 server that clients talk to: parsing, limits, slow clients, answers as they come."""
