"""One API's requests, answers and streams in the words of another."""
