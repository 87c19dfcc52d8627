"""Serving the answer: one OpenAI-compatible endpoint that sends each request where it is served best at this moment."""
