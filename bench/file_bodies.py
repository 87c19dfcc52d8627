"""Request bodies made of prompts from a file: what lets our client send the very text its rivals send.

In a module of its own because worker processes must be able to import it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class FileBodies:
    """Request bodies from prompts in a file, with the methods a run asks for; the prompts start over at their end."""

    prompts: list[str]
    tokens: int
    stream: bool
    model: str
    path: str = "/v1/completions"
    exact: bool = False
    ignore_eos: bool = True

    def body(self, i: int) -> bytes:
        """The JSON to send as request `i`."""
        asked: dict[str, object] = {
            "model": self.model,
            "prompt": self.prompts[i % len(self.prompts)],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": self.stream,
        }
        if self.stream:
            asked["stream_options"] = {"include_usage": True}
        return json.dumps(asked, separators=(",", ":")).encode()

    def max_tokens(self, i: int) -> int:
        """Tokens asked for."""
        return self.tokens

    def prompt_tokens(self, i: int) -> int:
        """Words of the prompt: what the mock's tokenizer counts."""
        return self.prompts[i % len(self.prompts)].count(" ") + 1
