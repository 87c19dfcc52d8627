"""Everything one worker knows, and what each request asks for: by which policy, at whose expense."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from math import ceil

from breakeven.gateway.experiment import assign
from breakeven.gateway.experts.hand import Handing, language_of
from breakeven.gateway.guard import HedgeBudget
from breakeven.gateway.keys.entry import KeyEntry, Keys
from breakeven.gateway.keys.windows import Windows
from breakeven.gateway.plan.model import GatewayPlan, PolicyPlan
from breakeven.gateway.route.choose import NOT_SERVED, choose
from breakeven.gateway.route.learned import MOST_BYTES, held
from breakeven.gateway.route.view import Ask, Choice, Speed
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.serve.account import answered, hand_over, record_of, usd_of
from breakeven.gateway.serve.arms import Arms
from breakeven.gateway.serve.ask import FREE, Asked, BadAskError, Client, asks, new_ask, read_body
from breakeven.gateway.serve.course import Course
from breakeven.gateway.serve.forward import Forward, say
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.leg import Leg
from breakeven.gateway.serve.waiting import WaitingLine
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import (
    USAGE_COLUMNS,
    USED_NANO_USD,
    USED_OUTPUT,
    USED_PROMPT,
    USED_REFUSED,
    USED_REQUESTS,
    Count,
    Rows,
)
from breakeven.gateway.translate.said import CannotTranslateError
from breakeven.wire.message import Request, Responder

TTFT_HEADER, TPOT_HEADER, USD_HEADER = b"x-breakeven-ttft-ms", b"x-breakeven-tpot-ms", b"x-breakeven-max-usd"
SESSION_HEADER, LANGUAGE_HEADER = b"x-breakeven-session", b"x-breakeven-language"
OURS = b"x-breakeven-"
USUAL_LINE = PolicyPlan(model="", backends=()).queue_size
"""Of a backend that stands in no policy and is reached by its own name alone."""
_LONGEST_WHY = 200
NAMED = "named"
"""The policy of a backend's own name: nothing to choose."""


class Desk:
    """One worker's state. Make it on the running loop, after the fork."""

    def __init__(
        self,
        plan: GatewayPlan,
        speeds: dict[str, Speed],
        rows: Rows,
        block: SharedBlock,
        worker: int,
        entries: Sequence[KeyEntry] | None,
        log: DecisionLog | None,
        handing: Handing | None = None,
    ) -> None:
        """`speeds` by backend; `entries` None: no key is asked; `handing`: to whoever looks at experts.

        Raises UserError for a backend's missing key.
        """
        self.plan, self.rows, self.block, self.worker, self.log = plan, rows, block, worker, log
        self.handing = handing
        self.loop = asyncio.get_running_loop()
        self.dice = random.Random()
        lines: dict[str, int] = {}
        for policy in plan.policies:
            for name in policy.backends:
                lines[name] = max(lines.get(name, 0), policy.queue_size)
        self.lanes = [
            Lane(
                index,
                backend,
                rows.backends[backend.name],
                block,
                worker,
                speeds[backend.name],
                plan.limits,
                lines.get(backend.name, USUAL_LINE),
                len(entries or ()),
            )
            for index, backend in enumerate(plan.backends)
        ]
        self.kinds = {lane.name: lane.view.kind for lane in self.lanes}
        by_name = {lane.name: lane for lane in self.lanes}
        self.policies: dict[str, PolicyPlan] = {policy.model: policy for policy in plan.policies}
        for backend in plan.backends:
            # A backend's own name reaches it directly.
            self.policies.setdefault(
                backend.name, PolicyPlan(model=backend.name, backends=(backend.name,), policy=NAMED, explore=0.0)
            )
        self.members = {model: [by_name[name] for name in policy.backends] for model, policy in self.policies.items()}
        self.models = [policy.model for policy in plan.policies] + [
            lane.name for lane in self.lanes if lane.name not in {p.model for p in plan.policies}
        ]
        self.budgets = {policy.model: HedgeBudget(policy.hedge.share) for policy in plan.policies if policy.hedge}
        self.experiments = {model: assign.of_model(plan.experiments, model) for model in self.policies}
        self.keys = None if entries is None else Keys(entries)
        self.anyone = Client(None, rows.keys.get("", 0))
        self.clients = {entry.name: Client(entry, rows.keys[entry.name]) for entry in entries or ()}
        self.windows = Windows(block, worker)
        self.line = WaitingLine(self.loop, plan.limits, plan.maximum_wait_s)
        self.arms = Arms(self, plan.experiments, rows.experiments, block.share, self.lanes, self.anyone)
        self.draining = False
        self.under_way = 0
        self._key_usage = block.key_usage.mine(worker)
        self._model_usage = block.model_usage.mine(worker)
        self._ids = f"{os.urandom(5).hex()}{worker:x}-"
        self._id = 0

    def new_id(self) -> str:
        """Unique among workers and restarts."""
        self._id += 1
        return f"{self._ids}{self._id:x}"

    # A request comes in.

    def client_of(self, request: Request) -> Client | None:
        """Who asks; None: nobody we know."""
        if self.keys is None:
            return self.anyone
        authorization = request.header(b"authorization")
        bare = None
        if authorization is None:
            bare = request.header(b"x-api-key") or request.header(b"api-key")
        entry = self.keys.find(authorization, bare)
        return None if entry is None else self.clients.get(entry.name)

    def is_ready(self) -> bool:
        """Whether some backend can be asked now."""
        now_s = time.monotonic()
        return not self.draining and any(self.line.ready(lane) and lane.refresh(now_s).open for lane in self.lanes)

    def ask(
        self, request: Request, responder: Responder, client: Client, path: str, asked: Asked | None = None
    ) -> None:
        """A body for one of the endpoints, from a client that is known: route it and send it on its way.

        `asked`: the body, where it has been taken apart already.
        """
        try:
            asked = asked or read_body(request.body)
            if path in FREE:
                asked.prompt_bytes = asked.pictures = 0
            ttft_ms = tpot_ms = usd = session = language = None
            if [name for name, _ in request.headers if name.startswith(OURS)]:
                ttft_ms = asks(TTFT_HEADER, request.header(TTFT_HEADER))
                tpot_ms = asks(TPOT_HEADER, request.header(TPOT_HEADER))
                usd = asks(USD_HEADER, request.header(USD_HEADER))
                session = request.header(SESSION_HEADER)
                language = request.header(LANGUAGE_HEADER)
        except BadAskError as error:
            say(responder, 400, str(error), "invalid_request")
            return
        policy = self.policies.get(asked.model)
        if policy is None or (client.entry is not None and not client.entry.may(asked.model)):
            # One answer for both: a key must not find out by asking which models there are.
            message = f"there is no model {asked.model[:200]!r} for you here; GET /v1/models lists those there are"
            say(responder, 404, message, "model_not_found")
            return
        now_s = time.monotonic()
        ask = self._new_ask(path, asked, policy, client, ttft_ms, tpot_ms, usd)
        if session is not None:
            ask.session = hash_of(session)
        lanes = self.members[asked.model]
        for lane in lanes:
            if path in lane.view.translates:
                _turn(ask, asked, lane.view.way(path))
        choice = choose(policy, ask, [lane.refresh(now_s) for lane in lanes], self.dice)
        spent = None
        if (entry := client.entry) is not None:
            unix_s = self.windows.now_s()
            output = asked.held_output(path, ask.output_tokens)
            usd = 0.0
            if client.counts_usd:
                # As many as may be asked, and a hedge.
                asked_of = [self.lanes[index] for index in choice.order[: policy.attempts + 1]]
                usd = _dearest(choice, ask, output, asked_of)
            least = asked.prompt_bytes / MOST_BYTES + asked.held_output(path, 1.0)
            tokens, usd = held(entry.limits, least, ask.prompt_tokens + output, usd)
            if (refusal := self._over(client, entry, unix_s, tokens, usd)) is not None:
                self._refuse(responder, client, refusal)
                return
            spent = self.windows.spend(client.slot, entry.limits, unix_s, tokens, usd)
        forward = Forward(self, request, responder, client, asked, ask, policy, choice)
        if language is not None:
            forward.language = language_of(language)
        order = [self.lanes[index] for index in choice.order]
        course: Course[Lane, Leg] = Course(forward, order, policy.attempts, hedges=policy.hedge is not None)
        if policy.policy == NAMED and choice.reason == "only":
            choice.reason = "named"
        if experiments := self.experiments[asked.model]:
            self.arms.assign(forward, order, request, experiments)
        if (budget := self.budgets.get(asked.model)) is not None:
            budget.requested()
        self.under_way += 1
        forward.spent = spent
        if choice.explored and order:
            order[0].counted(Count.EXPLORED)
        if order:
            try:
                forward.begin(course)
            except Exception:
                course.gone()  # else nobody would: what it holds would be held for good
                raise
            if experiments:
                self.arms.follow(forward, course, experiments)
        elif choice.reason == "shed":
            lanes[0].counted(Count.SHED)
            course.refuse(429, "no backend would keep the time that was asked for; try again", "shed", retry_s=1.0)
        else:
            why = "; ".join(f"{score.backend}: {score.why_not}" for score in choice.scores if score.why_not)
            told = f"no backend can serve this request ({why[:500]})"
            if not all(score.why_not.startswith(NOT_SERVED) for score in choice.scores):
                course.refuse(503, told, "no_backend", retry_s=1.0)
            elif ask.untranslatable:
                course.refuse(400, told, "cannot_translate")
            else:
                course.refuse(404, told, "endpoint_not_served")

    def _new_ask(
        self,
        path: str,
        asked: Asked,
        policy: PolicyPlan,
        client: Client,
        ttft_ms: float | None,
        tpot_ms: float | None,
        usd: float | None,
    ) -> Ask:
        first = self.members[asked.model][0]
        lengths, key = first.lengths, client.name
        ask = new_ask(path, asked, lengths.output_tokens(key))
        ask.prompt_tokens = asked.prompt_tokens(lengths.bytes_per_token(key))
        slo = client.slo or policy.slo
        ask.ttft_s = slo.ttft_s if ttft_ms is None else ttft_ms / 1000
        ask.tpot_s = slo.tpot_s if tpot_ms is None else tpot_ms / 1000
        # What the operator lets a request cost can be lowered by it, not raised.
        ask.usd = policy.max_usd if usd is None else usd if policy.max_usd is None else min(usd, policy.max_usd)
        ask.priority = client.priority
        return ask

    # What it may cost its key.

    def _over(
        self, client: Client, entry: KeyEntry, unix_s: float, tokens: float, usd: float
    ) -> tuple[str, float | None] | None:
        """What a key has used up, in words, and when it may ask again; None: it may now, and has taken a stream."""
        refusal = self.windows.refused(client.slot, entry.limits, unix_s, tokens, usd)
        if refusal is not None:
            return refusal.text, refusal.retry_after_s
        most = self.plan.limits.streams_per_key
        if not self.windows.open_stream(client.slot, most):
            return f"the key has {most} requests under way, which is as many as it may", 1.0
        return None

    def _refuse(self, responder: Responder, client: Client, refusal: tuple[str, float | None]) -> None:
        self._key_usage[client.slot * USAGE_COLUMNS + USED_REFUSED] += 1
        text, retry_s = refusal
        headers = [] if retry_s is None else [(b"retry-after", str(max(1, ceil(retry_s))).encode())]
        say(responder, 429, text, "rate_limit_exceeded", headers)

    def _use(self, client: Client, policy: PolicyPlan, prompt: int, output: int, usd: float) -> None:
        """What a request took, to its key and to its public model."""
        nano_usd = round(usd * 1e9)
        for usage, slot in ((self._key_usage, client.slot), (self._model_usage, self.rows.models[policy.model])):
            at = slot * USAGE_COLUMNS
            usage[at + USED_REQUESTS] += 1
            if prompt:
                usage[at + USED_PROMPT] += prompt
            if output:
                usage[at + USED_OUTPUT] += output
            if nano_usd:
                usage[at + USED_NANO_USD] += nano_usd

    # A request is over.

    def over(self, forward: Forward, course: Course[Lane, Leg], leg: Leg | None, status: int, error: str) -> None:
        """Account for it once, and log it."""
        if leg is not None:
            answered(forward, leg)
        record, charged = record_of(forward, course.asked, leg, status, error, self.kinds)
        if leg is not None and self.handing is not None:
            hand_over(self.handing, forward, leg)
        if forward.shadow_of:
            self.arms.copies.discard(course)
            if self.log is not None:
                self.log.add(record)
            return
        self.under_way -= 1
        client, policy = forward.client, forward.policy
        self._use(client, policy, charged.prompt, charged.output, charged.usd)
        if client.entry is not None:
            self.windows.settle(forward.spent, self.windows.now_s(), charged.prompt + charged.output, charged.usd)
            self.windows.close_stream(client.slot)
        if self.log is not None:
            self.log.add(record)


def hash_of(value: bytes) -> int:
    """A number that is equal in every worker for equal values, never 0."""
    from zlib import crc32

    return crc32(value) or 1


def _turn(ask: Ask, asked: Asked, way: str) -> None:
    """Put it in the words of a backend that speaks another API; what it has no words for is noted."""
    if way not in ask.untranslatable:
        try:
            asked.turn(ask.endpoint, way)
        except CannotTranslateError as error:
            ask.untranslatable = {**ask.untranslatable, way: str(error)[:_LONGEST_WHY]}


def _dearest(choice: Choice, ask: Ask, output: float, lanes: Sequence[Lane]) -> float:
    """The most that a request may cost wherever it ends up, with `output` tokens: what its key must have left."""
    most = max((score.usd for score in choice.scores if not score.why_not), default=0.0)
    return max([most, *(usd_of(lane, ask.prompt_tokens, 0.0, output, lane.view.running) for lane in lanes)])
