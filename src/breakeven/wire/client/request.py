"""One request to an engine: what is asked, and the bytes that ask it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from breakeven.engines.backend import Backend
from breakeven.wire.client.dialect import completion_fields

STALL_TIMEOUT_S = 600.0
"""No byte for this long ends a request. Generous: a long prompt on a slow CPU is silent for minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to ask for.

    `prompt` is token ids where the backend takes them (no tokenising on the hot path), else text; `prompt_tokens` is
    its length. `chat` sends the text as one user message, as is done anyway where a backend knows only chat.
    `ignore_eos` asks for exactly `max_tokens` tokens, and fewer is then an error. `due_ns` None: due when it is
    issued. `total_timeout_s` bounds the whole request.
    """

    block: str
    stream: int
    prompt: str | list[int]
    prompt_tokens: int
    max_tokens: int
    chat: bool = False
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int | None = None
    top_k: int | None = None
    due_ns: int | None = None
    stall_timeout_s: float = STALL_TIMEOUT_S
    total_timeout_s: float | None = None

    def path(self, backend: Backend) -> str:
        """Where it goes, below the backend's URL."""
        return "/v1/chat/completions" if self.chat or backend.chat_only else "/v1/completions"

    def body(self, backend: Backend) -> bytes:
        """JSON in the dialect of the backend's engine. Raises ValueError for token ids it does not take."""
        fields = completion_fields(
            backend,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            top_k=self.top_k,
            seed=self.seed,
        )
        if isinstance(self.prompt, str):
            if self.chat or backend.chat_only:
                fields["messages"] = [{"role": "user", "content": self.prompt}]
            else:
                fields["prompt"] = self.prompt
        elif self.chat or not backend.takes_token_ids:
            raise ValueError(f"{backend.engine} at {backend.url} takes text, not token ids")
        else:
            fields["prompt"] = self.prompt
        return msgspec.json.encode(fields)
