"""Traffic as a bill sees it: how many tokens a request has, and how many requests a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedTraffic:
    """Means over all requests. `prompt_tokens` as the engine sees them: in a conversation, with its whole history.

    `cached_share`: of the prompt tokens, those that a provider bills at its price for cached input. `turns`: requests
    of one conversation.
    """

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    turns: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompt_tokens > 0 or not self.output_tokens > 0:
            raise UserError(
                f"{self.prompt_tokens:g} prompt and {self.output_tokens:g} output tokens: give numbers above 0"
            )
        if not 0 <= self.cached_share <= 1:
            raise UserError(f"a cached share of {self.cached_share:g}: give a share of the prompt between 0 and 1")
        if not self.turns >= 1:
            raise UserError(f"{self.turns:g} turns: a conversation has one or more")
