"""What a routing policy sees and what it says. Plain slotted classes: a worker fills them for every request.

Seconds and dollars throughout. A `View` is made once a backend and refilled in place; policies only read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from breakeven.gateway.plan.model import BackendPlan
from breakeven.price.pricing import machine_usd_per_hour, power_of
from breakeven.results.cost import Api, Own, Rented


class Ask(msgspec.Struct, kw_only=True, gc=False):
    """One request, as far as routing needs it. `output_tokens` is what is expected, `most_output` what is allowed.

    `ttft_s`, `tpot_s`, `usd`: what is asked for by the request's header, else its key, else the policy; None: nothing.
    `session`: a number that is equal for requests of one conversation or user, 0 when unknown. `context_tokens`: prompt
    and the longest answer together.
    """

    endpoint: str
    prompt_tokens: float
    output_tokens: float
    most_output: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    usd: float | None = None
    priority: int = 0
    """Higher goes first; below 0 is shed first."""
    session: int = 0
    streams: bool = False
    untranslatable: dict[str, str] = {}
    """Why it cannot be asked in the words of another endpoint, by that."""


class Speed(Protocol):
    """How fast a backend answers: a table of its step model, or what was observed of it."""

    output_tokens: float
    """Of a usual answer; set by whoever has seen some."""

    def ttft_s(
        self, prompt_tokens: float, running: float, context: float, ahead_tokens: float, waiting: float
    ) -> float:
        """Seconds to the first token of a prompt that joins `running` sequences of `context` tokens on average.

        `ahead_tokens` of other prompts are not read yet; `waiting` requests are in line before it.
        """

    def tpot_s(self, running: float, context: float) -> float:
        """Seconds a token while `running` sequences (this one included) of `context` tokens decode."""

    def added_s(self, prompt_tokens: float, output_tokens: float, running: float, context: float) -> float:
        """Machine seconds this request adds to what `running` others need anyway."""


class View:
    """One backend as it stands now.

    `running`: requests it works on or holds, ours and other people's. `waiting`: of these, those in its line.
    `ahead_tokens`: prompt tokens sent and not yet answered by a first byte. `context`: mean tokens of those running.
    `queued`: requests that wait at the gateway for a place. `free`: places left of its limit.
    `open`: its breaker lets requests through. `ready`: it is there; else `load_s` more seconds pass until it would be
    (None: it cannot come now). `stale`: its own numbers are old, which counts as saturated.
    `away`: it did not answer when it was last asked for its numbers, or was not yet: a replica that nobody has started.
    `ttft_factor`, `tpot_factor`: bounded correction learned online, times the speed's answer.
    `usd_per_input`, `usd_per_output`: an API's price of a token; `usd_per_s`: a machine's price of a second.
    """

    __slots__ = (
        "ahead_tokens",
        "away",
        "context",
        "context_limit",
        "endpoints",
        "free",
        "group",
        "index",
        "kind",
        "load_s",
        "name",
        "open",
        "peak",
        "place",
        "quality",
        "queued",
        "ready",
        "running",
        "slots",
        "speed",
        "stale",
        "tpot_factor",
        "translates",
        "ttft_factor",
        "ttft_width",
        "usd_per_input",
        "usd_per_output",
        "usd_per_s",
        "waiting",
    )

    def __init__(self, index: int, name: str, speed: Speed) -> None:
        """Idle, free of charge, and known for nothing but its speed."""
        self.index, self.name, self.speed = index, name, speed
        self.kind = "unknown"
        self.place = "on-premise"
        self.group: str | None = None
        self.quality: float | None = None
        self.endpoints: frozenset[str] = frozenset()
        self.translates: dict[str, str] = {}
        """Endpoints that it is asked for in the words of another one that it has, and that one."""
        self.context_limit: int | None = None
        self.slots = 256
        self.running = self.waiting = self.ahead_tokens = self.context = 0.0
        self.queued = 0
        self.free = 1 << 30
        self.open = self.ready = True
        self.load_s: float | None = 0.0
        self.stale = self.away = False
        self.ttft_factor = self.tpot_factor = 1.0
        self.ttft_width = 0.5
        """Half width of the interval of ln(actual / predicted TTFT): p95 is about ttft * exp(width)."""
        self.peak = 1.0
        """How slow it was lately: peak-EWMA of actual / uncorrected predicted TTFT, for the choice among replicas."""
        self.usd_per_input = self.usd_per_output = self.usd_per_s = 0.0

    def way(self, endpoint: str) -> str:
        """By which of its endpoints it is asked for this one: itself where it has it; empty: by none."""
        if not self.endpoints or endpoint in self.endpoints:
            return endpoint
        return self.translates.get(endpoint, "")


class Score(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """What one backend would give this request. `why_not`: why it cannot be chosen, empty when it may."""

    backend: str
    ttft_s: float
    tpot_s: float
    usd: float
    headroom: float
    """Smallest of asked / predicted over TTFT, TPOT and dollars; 1 is just met; inf when nothing was asked."""
    running: float
    why_not: str = ""

    @property
    def fits(self) -> bool:
        """Meets everything that was asked for."""
        return not self.why_not and self.headroom >= 1.0


class Choice(msgspec.Struct, kw_only=True, gc=False):
    """Where a request goes. `order`: indexes of views, best first; the rest are for failover. Empty: refused.

    `reason` is one of `REASONS`. `scores`: of every backend considered, the chosen one among them.
    `alternative`: the best one not chosen, an index into `scores`; None when there is none.
    """

    order: Sequence[int]
    scores: list[Score]
    reason: str
    explored: bool = False
    alternative: int | None = None


REASONS = {
    "only": "the only backend that can serve it",
    "cheapest_that_fits": "the cheapest that is predicted to keep what was asked for with room to spare",
    "roomiest": "nobody keeps what was asked for with much to spare; here it uses least of it",
    "least_late": "none is predicted to keep what was asked for; this one misses least",
    "least_harm": "none is predicted to keep what was asked for; here it slows down the fewest who are in time",
    "fastest": "predicted to end it first",
    "cheapest": "the cheapest",
    "first": "the one to be filled first has room",
    "spilled": "the one to be filled first would be late",
    "weight": "by weight",
    "edge": "this device serves it well enough",
    "away_slow": "this device would be late",
    "away_long": "too long for this device",
    "offline": "only this device can be reached",
    "explored": "sent here to learn how it does",
    "named": "the request names this backend",
    "experiment": "an experiment's arm",
    "sticky": "the conversation is there",
    "shed": "nobody would serve it in time",
    "tried_anyway": "every backend that can serve it has failed lately; this one misses least",
    "long": "it may be too long for every backend; this one takes most",
    "none": "no backend can serve it",
}


def view_of(index: int, plan: BackendPlan, speed: Speed) -> View:
    """What does not change about a backend."""
    view = View(index, plan.name, speed)
    view.kind, view.place, view.group, view.quality = plan.kind, plan.place, plan.replica_of, plan.quality
    view.endpoints = plan.serves
    view.context_limit = plan.context
    slots = plan.slots or (plan.local.slots if plan.local else None)
    view.slots = slots or plan.limit
    price = plan.price
    if isinstance(price, Api):
        view.usd_per_input = price.usd_per_mtok_input / 1e6
        view.usd_per_output = price.usd_per_mtok_output / 1e6
    elif price is not None:
        view.usd_per_s = usd_per_s(price)
    return view


def usd_per_s(price: Own | Rented) -> float:
    """A second of a machine: its rent, or its purchase over its life with upkeep and the power of a busy machine."""
    # While it is busy it does not matter what it would draw if it idled.
    return machine_usd_per_hour(price, power_of(price, price.busy_w if isinstance(price, Own) else None), 1.0) / 3600
