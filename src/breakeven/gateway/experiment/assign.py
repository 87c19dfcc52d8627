"""Which arm of an experiment a request belongs to: a pure function of the experiment's name and the caller's unit.

Equal units go to one arm as long as the share stands. A unit's place on [0, 1) never moves, so when a share grows
whoever was in the treatment stays in it, and when it shrinks nobody is moved into it.
"""

from __future__ import annotations

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
