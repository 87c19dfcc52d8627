"""Experiments as one worker plays them: the arm that a request belongs to, and copies that nobody waits for.

A copy is a shadow of another request, or a prompt asked again to see how answers vary. It is sent once the first
backend has its request, at the lowest priority and on nobody's bill: it enters no key's limits, is judged by no service
level, is tried once, and nothing of its answer reaches a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from breakeven.gateway.experiment import assign
from breakeven.gateway.plan.model import ExperimentPlan, PolicyPlan
from breakeven.gateway.route.choose import score
from breakeven.gateway.route.view import Choice
from breakeven.gateway.serve.ask import Asked, Client
from breakeven.gateway.serve.course import Course
from breakeven.gateway.serve.forward import Forward, Home
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.leg import Leg
from breakeven.gateway.shared.block import SharedGrid
from breakeven.gateway.shared.layout import Treatment
from breakeven.gateway.translate.said import CannotTranslateError
from breakeven.wire.message import Headers, Request


class Nobody:
    """A `Responder` that no client is behind."""

    def __init__(self) -> None:
        self.gone = self.paused = False
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self.also: Headers = ()

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


class Arms:
    """The experiments of one worker. `copies`: those that have not ended."""

    def __init__(
        self,
        home: Home,
        plans: Sequence[ExperimentPlan],
        rows: Mapping[str, int],
        share: SharedGrid,
        lanes: Sequence[Lane],
        anyone: Client,
    ) -> None:
        """`rows` of `share` by experiment; `anyone`: in whose name copies are sent."""
        self._home, self._plans, self._rows, self._share = home, plans, rows, share
        self._lanes, self._anyone = lanes, anyone
        self.copies: set[Course[Lane, Leg]] = set()

    def _now(self, plan: ExperimentPlan) -> tuple[float, bool]:
        """The treatment's share, and whether the experiment is stopped."""
        row = self._rows[plan.name]
        return self._share.get(0, row, Treatment.SHARE), bool(self._share.get(0, row, Treatment.STOPPED))

    def assign(self, forward: Forward, order: list[Lane], request: Request, experiments: Sequence[int]) -> None:
        """Give a request its arm in the first of these experiments that takes it; the arm's backend is asked first."""
        for index in experiments:
            plan = self._plans[index]
            header = request.header(plan.sticky_by.lower().encode())
            unit = assign.sticky_unit(
                plan,
                header=None if header is None else header.decode(errors="replace"),
                user=forward.asked.user or None,
                key=forward.client.name,
                request_id=forward.id,
            )
            arm = assign.arm(plan, *self._now(plan), unit)
            if not arm:
                continue
            chosen = assign.backend_of(plan, arm)
            lane = next((lane for lane in order if lane.name == chosen), None)
            choice = forward.choice
            forward.experiment, forward.arm = plan.name, arm
            if lane is None:
                # An arm that cannot be asked stays in the experiment as what it is: an error of that arm.
                return
            order.remove(lane)
            order.insert(0, lane)
            choice.reason, choice.explored = "experiment", False
            others = [k for k, found in enumerate(choice.scores) if found.backend != chosen and not found.why_not]
            choice.alternative = others[0] if others else None
            return

    def follow(self, forward: Forward, course: Course[Lane, Leg], experiments: Sequence[int]) -> None:
        """Send the copies that experiments ask for of a request that is on its way."""
        for index in experiments:
            plan = self._plans[index]
            share, stopped = self._now(plan)
            if assign.copied(
                plan,
                share,
                stopped,
                request_id=forward.id,
                endpoint=forward.endpoint,
                body_bytes=len(forward.request_body),
                under_way=len(self.copies),
                goes_to=course.asked[0].lane.name if course.asked else None,
            ):
                if not forward.experiment:
                    forward.experiment, forward.arm = plan.name, "control"
                self._send(forward, plan, "treatment", "")
            if forward.experiment == plan.name and not stopped and assign.repeated(plan, forward.id):
                forward.group = forward.id
                for arm in ("control", "treatment"):
                    for _ in range(assign.TIMES):
                        if len(self.copies) < assign.MOST_IN_FLIGHT:
                            self._send(forward, plan, arm, forward.id)

    def cancel(self) -> None:
        """Let go of all copies."""
        for copy in list(self.copies):
            copy.gone()

    def _send(self, forward: Forward, plan: ExperimentPlan, arm: str, group: str) -> None:
        home = self._home
        name = plan.treatment if arm == "treatment" else plan.control
        lane = next((lane for lane in self._lanes if lane.name == name), None)
        if lane is None or not home.line.ready(lane):
            return
        ask = msgspec.structs.replace(forward.ask, ttft_s=None, tpot_s=None, usd=None, priority=assign.PRIORITY)
        found = score(ask, lane.refresh(time.monotonic()))
        if found.why_not:
            return
        policy = PolicyPlan(
            model=forward.policy.model, backends=(name,), policy="copy", attempts=1, explore=0.0, queue_s=5.0
        )
        query, now_ns = forward.query.removeprefix("?"), time.monotonic_ns()
        request = Request("POST", forward.endpoint, query, forward.headers, forward.request_body, "", now_ns)
        asked = Asked(dict(forward.asked.fields), forward.asked.form)
        try:
            asked.turn(forward.endpoint, lane.view.way(forward.endpoint))
        except CannotTranslateError:
            return
        choice = Choice(order=(), scores=[found], reason="experiment")
        copy = Forward(home, request, Nobody(), self._anyone, asked, ask, policy, choice)
        asked.model = forward.asked.model
        copy.experiment, copy.arm, copy.group, copy.shadow_of = plan.name, arm, group, forward.id
        course: Course[Lane, Leg] = Course(copy, [lane], policy.attempts, hedges=False)
        self.copies.add(course)
        copy.begin(course)
