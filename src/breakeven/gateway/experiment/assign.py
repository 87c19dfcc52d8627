"""Which requests an experiment touches: the arm of each, those that are copied, those that are asked again.

Which arm of an experiment a request belongs to: a pure function of the experiment's name and the caller's unit.

Equal units go to one arm as long as the share stands. A unit's place on [0, 1) never moves, so when a share grows
whoever was in the treatment stays in it, and when it shrinks nobody is moved into it.

Which requests are copied to a second backend whose answers nobody sees.

A copy is sent once the first backend has its request, at the lowest priority, on nobody's bill: it enters no key's
limits or budget, no histogram that judges an SLO, and is cancelled at a drain. Its record has `shadow_of` (the first
request's id), `arm` "treatment" and the experiment's name; the first request's record has the same name and `arm`
"control", which is what pairs them.

How much answers to one prompt vary: some prompts are asked several times over, unseen by the client.

Only digests of answers are kept. Equal digests mean equal text to the last character, so at a temperature above 0 most
long answers differ; what tells is the difference between two arms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

from breakeven.gateway.plan.model import ExperimentPlan

Arm = Literal["control", "treatment", ""]


def place(experiment: str, unit: str) -> float:
    """A unit's place on [0, 1): uniform over units, independent between experiments. About 1 us.

    BLAKE2b keyed with the experiment's name (RFC 7693; a key is at most 64 bytes).
    """
    key = experiment.encode("utf-8", "surrogatepass")[:64]
    digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    # 53 bits: what a float holds exactly, so that 1.0 cannot come out.
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def arm(plan: ExperimentPlan, share: float, stopped: bool, unit: str) -> Arm:
    """The arm of `unit`, empty when the experiment does not decide where it goes.

    `share` and `stopped` are the experiment's cells of the shared block. A stopped A/B test leaves requests to the
    policy. A canary keeps deciding: after a step-back everything goes to the control, once done to the treatment.
    A shadow never decides (`shadow.copied`).
    """
    if plan.kind == "shadow" or (stopped and plan.kind == "ab"):
        return ""
    return "treatment" if place(plan.name, unit) < share else "control"


def sticky_unit(plan: ExperimentPlan, *, header: str | None, user: str | None, key: str, request_id: str) -> str:
    """What is held together, from `plan.sticky_by`: the body's "user", "key", or a header.

    Without a value every request is a unit of its own.
    """
    value = user if plan.sticky_by == "user" else key if plan.sticky_by == "key" else header
    return value or request_id


def first_share(plan: ExperimentPlan) -> float:
    """The treatment's share before anything is known."""
    return plan.steps[0] if plan.kind == "canary" and plan.steps else plan.share


def backend_of(plan: ExperimentPlan, of: Arm) -> str:
    """The backend of an arm."""
    return plan.treatment if of == "treatment" else plan.control


def of_model(experiments: Sequence[ExperimentPlan], model: str) -> list[int]:
    """Indexes of the experiments on one public model."""
    return [i for i, plan in enumerate(experiments) if plan.model == model]


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


TIMES = 3
"""How often more a chosen prompt is asked, of each arm."""


def repeated(plan: ExperimentPlan, request_id: str) -> bool:
    """Whether this request is one of the `plan.repeats` in a thousand that are asked again."""
    return plan.repeats > 0 and place(f"repeats of {plan.name}", request_id) < plan.repeats / 1000


def answer_digest(text: str) -> str:
    """Twelve bytes of BLAKE2b over the text, as hex: equal texts, equal digests; the text cannot be had from it."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def distinct_share(digests: Sequence[str]) -> float | None:
    """Share of pairs of answers that differ: 0 all alike, 1 all different; None for fewer than two.

    1 - sum c (c - 1) / (n (n - 1)) over the counts c of each answer: Simpson's unbiased estimator, so groups of
    different sizes estimate the same thing.
    """
    n = len(digests)
    if n < 2:
        return None
    return 1 - sum(c * (c - 1) for c in Counter(digests).values()) / (n * (n - 1))


def length_spread(lengths: Sequence[float]) -> float | None:
    """Standard deviation of the answers' lengths over their mean; None for fewer than two or empty answers."""
    n = len(lengths)
    mean = sum(lengths) / n if n else 0.0
    if n < 2 or mean <= 0:
        return None
    return math.sqrt(sum((length - mean) ** 2 for length in lengths) / (n - 1)) / mean
