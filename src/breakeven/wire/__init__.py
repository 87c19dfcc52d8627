"""How bytes travel: HTTP clients and servers, event streams, and the dialects of OpenAI-like servers."""
