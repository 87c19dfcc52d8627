"""Requests nobody waits for: shadows of others, and prompts asked again to see how answers vary.

A copy is sent once the first backend has its request, at the lowest priority and on nobody's bill: it enters no key's
limits, is judged by no service level, is tried once, and nothing of its answer reaches a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from breakeven.gateway.experiment import assign
from breakeven.gateway.plan.model import ExperimentPlan, PolicyPlan
from breakeven.gateway.route.choose import score
from breakeven.gateway.route.view import Choice
from breakeven.gateway.serve.ask import Asked
from breakeven.gateway.serve.forward import Forward
from breakeven.gateway.shared.layout import Share
from breakeven.wire.message import Headers, Request

if TYPE_CHECKING:
    from breakeven.gateway.serve.desk import Desk


class Nobody:
    """A `Responder` that no client is behind."""

    def __init__(self) -> None:
        self.gone = self.paused = False
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Nobody hears it."""

    def start(self, status: int, headers: Headers) -> None:
        """Nobody hears it."""

    def write(self, data: bytes) -> None:
        """Nobody hears it."""

    def finish(self) -> None:
        """Nobody hears it."""

    def abort(self) -> None:
        """Nobody hears it."""


class Copies:
    """The copies of one worker. `under_way` counts those that have not ended."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.under_way: set[Forward] = set()

    def follow(self, forward: Forward, experiments: list[int]) -> None:
        """Send the copies that experiments ask for of a request that is on its way."""
        desk = self.desk
        for index in experiments:
            plan = desk.plan.experiments[index]
            row = desk.rows.experiments[plan.name]
            share = desk.block.share.get(0, row, Share.SHARE)
            stopped = bool(desk.block.share.get(0, row, Share.STOPPED))
            if assign.copied(
                plan,
                share,
                stopped,
                request_id=forward.id,
                endpoint=forward.endpoint,
                body_bytes=len(forward.request_body),
                under_way=len(self.under_way),
                goes_to=forward.legs[0].lane.plan.name if forward.legs else None,
            ):
                if not forward.experiment:
                    forward.experiment, forward.arm = plan.name, "control"
                self._send(forward, plan, "treatment", "")
            if forward.experiment == plan.name and not stopped and assign.repeated(plan, forward.id):
                forward.group = forward.id
                for arm in ("control", "treatment"):
                    for _ in range(assign.TIMES):
                        if len(self.under_way) < assign.MOST_IN_FLIGHT:
                            self._send(forward, plan, arm, forward.id)

    def cancel(self) -> None:
        """Let go of all of them."""
        for copy in list(self.under_way):
            copy.leave()

    def _send(self, forward: Forward, plan: ExperimentPlan, arm: str, group: str) -> None:
        desk = self.desk
        name = plan.treatment if arm == "treatment" else plan.control
        lane = next((lane for lane in desk.lanes if lane.plan.name == name), None)
        if lane is None or not desk.line.ready(lane):
            return
        ask = msgspec.structs.replace(forward.ask, ttft_s=None, tpot_s=None, usd=None, priority=assign.PRIORITY)
        found = score(ask, lane.refresh(time.monotonic()))
        if found.why_not:
            return
        policy = PolicyPlan(
            model=forward.policy.model, backends=(name,), policy="copy", attempts=1, explore=0.0, queue_s=5.0
        )
        request = Request("POST", forward.endpoint, "", forward.headers, forward.request_body, "", time.monotonic_ns())
        asked = Asked(dict(forward.asked.fields))
        copy = Forward(
            desk,
            request,
            Nobody(),
            desk.anyone,
            asked,
            ask,
            policy,
            Choice(order=(), scores=[found], reason="experiment"),
        )
        asked.model = forward.asked.model
        copy.order = [lane]
        copy.experiment, copy.arm, copy.group, copy.shadow_of = plan.name, arm, group, forward.id
        self.under_way.add(copy)
        copy.begin()
