"""The gateway's side of a simulation: what it would know of each backend, and what it learns from answers.

`Known` keeps the numbers as `gateway.serve` does: its own requests in flight, prompts not read yet, an engine's page
once a second, mean answers, and the corrections of its predictions. It sees no length before an answer has ended.
"""

from __future__ import annotations

from math import exp

import numpy as np

from bench.goodput.backends import Server, usual_context
from bench.goodput.cases import LONGEST_ANSWER, LONGEST_PROMPT, Place, steps_of
from breakeven.forecast.simulator.state import Jobs, Requests
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.route.build import table_from
from breakeven.gateway.route.speed import (
    USUAL_OUTPUT,
    Observed,
    SpeedTable,
    bound_of,
    corrected,
    healed,
    peaked,
    widened,
)
from breakeven.gateway.route.view import Score, Speed, view_of
from breakeven.gateway.serve.account import LEAST_GAPS
from breakeven.gateway.serve.poll import HEAL_S, POLL_S

LEARNING = 0.05
"""Weight of one answer in the mean length, as in `gateway.route.learned`."""
PROMPT_SPREAD = 0.1
"""Standard deviation of ln(estimated / true prompt tokens): a gateway counts bytes. An assumption."""


class Known:
    """One backend as the gateway knows it; `view` is what `choose` reads."""

    def __init__(self, index: int, place: Place, kind: str, server: Server, asked: Requests, jobs: Jobs) -> None:
        """Idle, with a speed of its own, and nothing learned yet."""
        context = usual_context(asked)
        speed: Speed
        if place.machine is None:
            speed = Observed.of(place.speed)
            slots = None
        else:
            steps, batching = steps_of(place.model, place.machine, context)
            made = table_from(steps, batching, LONGEST_PROMPT + LONGEST_ANSWER)
            speed = object.__new__(SpeedTable)
            for slot in SpeedTable.__slots__:
                setattr(speed, slot, getattr(made, slot))
            slots = batching.max_sequences
        plan = BackendPlan(
            name=place.model,
            url="http://127.0.0.1:1/v1",
            kind="dense" if kind == "dense" else "moe",
            place="edge" if place.machine == "apple-m2-pro" else "on-premise",
            slots=slots,
            limit=max(1024, slots or 0),
            price=place.price,
        )
        self.view = view_of(index, plan, speed)
        self.bound = bound_of(speed)
        self.server, self._jobs, self._asked = server, jobs, asked
        self._arrival_s: list[float] = asked.arrival_s_N.tolist()
        self.held: list[int] = []
        self._unread: list[int] = []
        self._ahead: dict[int, float] = {}
        self._size: dict[int, float] = {}
        self._scored: dict[int, tuple[Score | None, float, float]] = {}
        self._ahead_tokens = self._context_tokens = self._foreign = 0.0
        self._polled_s = self._healed_s = self._peaked_s = 0.0
        self._ttft_log = self._tpot_log = 0.0
        self._answers = self._answers_healed = 0
        self.output_tokens = USUAL_OUTPUT
        self._seen_one = False
        self.served: list[int] = []

    def look(self, now_s: float) -> None:
        """Everything that a gateway has seen by now."""
        self.server.move(now_s)
        jobs = self._jobs
        first_s, end_s = jobs.first_s, jobs.end_s
        events = [(first_s[i], 0, i) for i in self._unread if first_s[i] <= now_s]
        events += [(end_s[i], 1, i) for i in self.held if end_s[i] <= now_s]
        for at_s, ended, i in sorted(events):
            if ended:
                self._ended(i)
            else:
                self._began(i, at_s)
        if now_s - self._polled_s >= POLL_S:
            self._polled_s = now_s
            self._foreign = max(0.0, float(self.server.load(now_s) - len(self.held)))
        while now_s - self._healed_s >= HEAL_S:
            self._healed_s += HEAL_S
            if self._answers == self._answers_healed:
                self._ttft_log, self._tpot_log = healed(self._ttft_log, HEAL_S), healed(self._tpot_log, HEAL_S)
            self._answers_healed = self._answers
        view = self.view
        view.running = len(self.held) + self._foreign
        view.waiting = max(0.0, view.running - view.slots)
        view.ahead_tokens = self._ahead_tokens
        view.context = self._context_tokens / len(self.held) if self.held else 0.0
        view.ttft_factor, view.tpot_factor = exp(self._ttft_log), exp(self._tpot_log)

    def send(self, i: int, now_s: float, prompt_tokens: float, output_tokens: float, score: Score | None) -> None:
        """Request `i` goes there, with what was predicted for it."""
        self.held.append(i)
        self._unread.append(i)
        self.served.append(i)
        self._ahead[i], self._size[i] = prompt_tokens, prompt_tokens + output_tokens / 2
        self._ahead_tokens += prompt_tokens
        self._context_tokens += self._size[i]
        self._scored[i] = (score, self.view.ttft_factor, self.view.tpot_factor)
        self.server.send(i, now_s)

    @property
    def corrections(self) -> tuple[float, float]:
        """What TTFT and TPOT are multiplied with."""
        return exp(self._ttft_log), exp(self._tpot_log)

    def _began(self, i: int, at_s: float) -> None:
        self._unread.remove(i)
        self._ahead_tokens -= self._ahead.pop(i)
        score, factor, _ = self._scored[i]
        if score is None:
            return
        bare_s, actual_s = score.ttft_s / factor, at_s - self._arrival_s[i]
        view = self.view
        view.ttft_width = widened(view.ttft_width, self._ttft_log, bare_s, actual_s)
        self._ttft_log = corrected(self._ttft_log, bare_s, actual_s, self.bound)
        view.peak = peaked(view.peak, bare_s, actual_s, at_s - self._peaked_s)
        self._peaked_s = at_s
        self._answers += 1

    def _ended(self, i: int) -> None:
        self.held.remove(i)
        self._context_tokens -= self._size.pop(i)
        score, _, factor = self._scored.pop(i)
        jobs = self._jobs
        tokens = jobs.output[i]
        step = tokens - self.output_tokens
        self.output_tokens = self.output_tokens + LEARNING * step if self._seen_one else float(tokens)
        self._seen_one = True
        self.view.speed.output_tokens = self.output_tokens
        if score is not None and tokens > LEAST_GAPS:
            tpot_s = (jobs.end_s[i] - jobs.first_s[i]) / (tokens - 1)
            self._tpot_log = corrected(self._tpot_log, score.tpot_s / factor, tpot_s, self.bound)
            self._answers += 1


def estimated_prompts(asked: Requests, seed: int) -> list[float]:
    """Prompt tokens as a gateway estimates them."""
    n = len(asked)
    off_N = np.exp(np.random.default_rng([77, abs(seed)]).normal(0.0, PROMPT_SPREAD, n))
    found: list[float] = (asked.prompt_tokens_N * off_N).tolist()
    return found
