"""The HTTP/1.1 server: parsing, limits, slow clients, answers as they come."""
