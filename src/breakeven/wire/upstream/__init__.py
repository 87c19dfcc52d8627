"""The client that talks to backends: kept connections, time limits, bytes handed on as they come."""
