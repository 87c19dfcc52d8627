"""How much answers to one prompt vary: some prompts are asked several times over, unseen by the client.

Only digests of answers are kept. Equal digests mean equal text to the last character, so at a temperature above 0 most
long answers differ; what tells is the difference between two arms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from breakeven.gateway.experiment.assign import place
from breakeven.gateway.plan.model import ExperimentPlan

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
