"""Which requests are copied to a second backend whose answers nobody sees.

A copy is sent once the first backend has its request, at the lowest priority, on nobody's bill: it enters no key's
limits or budget, no histogram that judges an SLO, and is cancelled at a drain. Its record has `shadow_of` (the first
request's id), `arm` "treatment" and the experiment's name; the first request's record has the same name and `arm`
"control", which is what pairs them.
"""

from __future__ import annotations

from breakeven.gateway.experiment.assign import place
from breakeven.gateway.plan.model import ExperimentPlan

PRIORITY = -100
"""Goes last and is shed first."""
MOST_IN_FLIGHT = 16
"""Copies under way in one worker; more are not sent, so a slow second backend costs the gateway nothing."""
MOST_BYTES = 1 << 20
"""Of a request's body; larger ones are not copied, since the copy is held until it is sent."""
ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"})
"""`/v1/responses` keeps conversations at the backend: a copy would act twice."""


def copied(
    plan: ExperimentPlan,
    share: float,
    stopped: bool,
    *,
    request_id: str,
    endpoint: str,
    body_bytes: int,
    under_way: int,
    goes_to: str | None = None,
) -> bool:
    """Whether this request is copied. The choice hangs on its id alone, so it is the same in every process.

    `goes_to`: the backend it was sent to; only the control's requests have something to be compared with.
    """
    return (
        plan.kind == "shadow"
        and goes_to in (None, plan.control)
        and not stopped
        and under_way < MOST_IN_FLIGHT
        and body_bytes <= MOST_BYTES
        and endpoint in ENDPOINTS
        and place(plan.name, request_id) < share
    )
