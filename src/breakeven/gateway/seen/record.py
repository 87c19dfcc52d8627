"""One line of the decision log: what was asked, known, chosen, and what happened. A contract: fields are only added."""

from __future__ import annotations

import msgspec

from breakeven.gateway.route.view import Score

RECORD_SCHEMA = "breakeven.decision_log/1"


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One backend asked. `outcome`: answered, cancelled, hedge_lost, a trouble's name, `status_NNN`, `error_NNN`."""

    backend: str
    outcome: str
    start_s: float
    """After the request's arrival."""
    seconds: float
    hedge: bool = False


class DecisionRecord(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A request from its arrival to its end. Seconds from its arrival; None: not available."""

    id: str
    time_s: float
    """Unix time of its arrival."""
    model: str
    """As the client named it."""
    endpoint: str
    policy: str
    reason: str
    key: str = ""
    """The key's name; empty without keys."""
    backend: str = ""
    """Who answered; empty when nobody did."""
    status: int = 0
    """What the client got; 499: it left."""
    stream: bool = False
    priority: int = 0
    session: int = 0
    explored: bool = False
    asked_ttft_s: float | None = None
    asked_tpot_s: float | None = None
    asked_usd: float | None = None
    predicted_prompt_tokens: float = 0.0
    predicted_output_tokens: float = 0.0
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_usd: float | None = None
    alternative: str = ""
    scores: list[Score] = []
    attempts: list[Attempt] = []
    queue_s: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish: str = ""
    """The backend's finish reason; "cut" when its stream ended without one."""
    refusal: bool = False
    usd: float | None = None
    charged_prompt_tokens: int | None = None
    """What the key was charged for all that was asked, where it is not what stands above; so are the next two."""
    charged_output_tokens: int | None = None
    charged_usd: float | None = None
    usd_elsewhere: float | None = None
    """What it would have cost at the best backend of the other architecture."""
    experiment: str = ""
    arm: str = ""
    shadow_of: str = ""
    """The id of the request that this one copies."""
    group: str = ""
    """Equal for answers to one prompt that was asked several times over, to see how they vary."""
    translated_to: str = ""
    """The endpoint in whose words the backend was asked; empty: the client's own."""
    answer_hash: str = ""
    """A digest of the answer's text, where variability is looked at."""
    error: str = ""
    request_body: str = ""
    response_body: str = ""
