"""A gateway that exists only as numbers in a block: two machines, an API, keys, an experiment, and time that passes."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field

from breakeven.gateway.experts.report import ExpertsSeen
from breakeven.gateway.plan.model import BackendPlan, ExperimentPlan, GatewayPlan, LocalPlan, PolicyPlan
from breakeven.gateway.route.view import Score
from breakeven.gateway.seen.record import Attempt, DecisionRecord
from breakeven.gateway.seen.snapshot import ArmState, Difference, ExperimentState, Snapshot, snapshot
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import (
    RATIO_BOUNDS,
    TIME_BOUNDS_S,
    TPOT_HISTOGRAM,
    TPOT_RATIO_HISTOGRAM,
    TTFT_HISTOGRAM,
    TTFT_RATIO_HISTOGRAM,
    Count,
    Global,
    Known,
    State,
    UnderWay,
    Used,
)
from breakeven.results.cost import Api, Own, Rented
from breakeven.traffic.workload import Slo

DENSE, MOE, API = "llama-8b", "mixtral-small", "hosted-moe"
TTFT = {DENSE: 0.12, MOE: 0.28, API: 0.6}
TPOT = {DENSE: 0.021, MOE: 0.012, API: 0.009}
USD = {DENSE: 0.00011, MOE: 0.00008, API: 0.0009}
T0 = 1_800_000_000.0


@dataclass(frozen=True)
class Named:
    """Rows as the supervisor hands them out."""

    backends: dict[str, int] = field(default_factory=lambda: {DENSE: 0, MOE: 1, API: 2, "tiny": 3})
    keys: dict[str, int] = field(default_factory=lambda: {"team-a": 0, "team-b": 1})
    models: dict[str, int] = field(default_factory=lambda: {"chat": 0})
    experiments: dict[str, int] = field(default_factory=lambda: {"dense-or-moe": 0})


def plan() -> GatewayPlan:
    """Dense and MoE on rented and bought machines, a hosted MoE, and a local engine."""
    return GatewayPlan(
        path=None,
        backends=(
            BackendPlan(
                name=DENSE, url="http://127.0.0.1:1/v1", kind="dense", price=Rented(usd_per_hour=0.8), limit=64
            ),
            BackendPlan(
                name=MOE,
                url="http://127.0.0.1:2/v1",
                kind="moe",
                price=Own(usd=20000, life_years=4, usd_per_kwh=0.2, idle_w=200, busy_w=700),
                limit=128,
            ),
            BackendPlan(
                name=API,
                url="http://127.0.0.1:3/v1",
                kind="moe",
                place="cloud",
                price=Api(usd_per_mtok_input=0.3, usd_per_mtok_output=1.2),
                poll=False,
            ),
            BackendPlan(name="tiny", local=LocalPlan(model="tiny.gguf"), kind="dense", limit=4),
        ),
        policies=(PolicyPlan(model="chat", backends=(DENSE, MOE, API), slo=Slo(ttft_s=0.5, tpot_s=0.05)),),
        experiments=(ExperimentPlan(name="dense-or-moe", kind="ab", model="chat", control=DENSE, treatment=MOE),),
    )


def block() -> SharedBlock:
    """Two workers, room for a few more names than are used."""
    made = SharedBlock(Shape(workers=3, backends=5, keys=4, models=2, experiments=2))
    for row, up in enumerate((1, 1, -1, -1)):
        made.known.put(0, row, Known.UP, up)
    made.known.put(0, 3, Known.STATE, State.UNLOADED)
    made.everywhere.put(0, 0, Global.STARTED_S, T0)
    for worker in (1, 2):
        made.worker.put(worker, 0, 0, 1000 + worker)
    return made


class World:
    """Seconds of traffic. `share`: of requests that go to the MoE; `rate`: requests a second."""

    def __init__(self) -> None:
        self.plan, self.block, self.rows = plan(), block(), Named()
        self.dice = random.Random(7)
        self.now_s = T0
        self.recent: list[DecisionRecord] = []
        self.number = 0
        self.experiments: list[ExperimentState] = [experiment()]
        self.warnings: list[str] = []
        self.expert_load: dict[str, list[float]] = {MOE: [5, 9, 4, 12, 7, 3, 8, 30]}
        self.experts: ExpertsSeen | None = None

    def pass_s(self, seconds: float, rate: float, share: float) -> None:
        """Time passes in steps of a second at most."""
        count = round(rate * seconds)
        for i in range(count):
            name = MOE if self.dice.random() < share else DENSE
            if self.dice.random() < 0.02:
                name = API
            self.request(name, self.now_s + seconds * i / count, rate)
        self.now_s += seconds
        running = {DENSE: rate * (1 - share) * 2, MOE: rate * share * 2, API: 0.0, "tiny": 0.0}
        for name, row in self.rows.backends.items():
            self.block.load.put(1, row, UnderWay.IN_FLIGHT, round(running[name]))
            if name in (DENSE, MOE):
                self.block.known.put(0, row, Known.POLLED_S, self.now_s)
                self.block.known.put(0, row, Known.RUNNING, round(running[name]))
                self.block.known.put(0, row, Known.KV_SHARE, min(1.0, running[name] / 60))

    def request(self, name: str, at_s: float, rate: float = 4.0) -> DecisionRecord:
        """One request that was answered by `name`, in every number that it appears in."""
        self.number += 1
        row, worker = self.rows.backends[name], 1 + self.number % 2
        slow = math.exp(self.dice.gauss(0, 0.25))
        predicted = TTFT[name] * (1 + rate / 20), TPOT[name] * (1 + rate / 40)
        ttft, tpot = predicted[0] * slow, predicted[1] * math.exp(self.dice.gauss(0.05, 0.12))
        good = ttft <= 0.5 and tpot <= 0.05
        usd = USD[name] * (0.6 + 0.8 * self.dice.random())
        elsewhere = usd * (1.6 if name == MOE else 0.8 if rate > 6 else 2.2)
        cells = self.block.count.mine(worker)
        base = row * self.block.count.columns
        for column, value in {
            Count.REQUESTS: 1,
            Count.OK: 1,
            Count.PROMPT_TOKENS: 400,
            Count.OUTPUT_TOKENS: 150,
            Count.NANO_USD: round(usd * 1e9),
            Count.NANO_USD_ELSEWHERE: round(elsewhere * 1e9),
            Count.GOOD: int(good),
            Count.JUDGED: 1,
            Count.TTFT_NS: round(ttft * 1e9),
            Count.TPOT_NS: round(tpot * 1e9),
            Count.TTFT_COUNT: 1,
            Count.TPOT_COUNT: 1,
        }.items():
            cells[base + column] += value
        cells[base + TTFT_HISTOGRAM + bisect_left(TIME_BOUNDS_S, ttft)] += 1
        cells[base + TPOT_HISTOGRAM + bisect_left(TIME_BOUNDS_S, tpot * 10)] += 1
        cells[base + TTFT_RATIO_HISTOGRAM + bisect_left(RATIO_BOUNDS, ttft / predicted[0])] += 1
        cells[base + TPOT_RATIO_HISTOGRAM + bisect_left(RATIO_BOUNDS, tpot / predicted[1])] += 1
        key = self.number % 2
        for grid, entity in ((self.block.key_usage, key), (self.block.model_usage, 0)):
            mine = grid.mine(worker)
            mine[entity * len(Used) + Used.REQUESTS] += 1
            mine[entity * len(Used) + Used.PROMPT_TOKENS] += 400
            mine[entity * len(Used) + Used.OUTPUT_TOKENS] += 150
            mine[entity * len(Used) + Used.NANO_USD] += round(usd * 1e9)
        other = DENSE if name == MOE else MOE
        record = DecisionRecord(
            id=f"req-{self.number:06d}",
            time_s=at_s,
            model="chat",
            endpoint="/v1/chat/completions",
            policy="breakeven",
            reason="explored" if name == API else "cheapest_that_fits",
            explored=name == API,
            key=f"team-{'ab'[key]}",
            backend=name,
            status=200,
            asked_ttft_s=0.5,
            asked_tpot_s=0.05,
            predicted_prompt_tokens=400,
            predicted_output_tokens=150,
            predicted_ttft_s=predicted[0],
            predicted_tpot_s=predicted[1],
            predicted_usd=USD[name],
            alternative=other,
            scores=[
                Score(backend=each, ttft_s=TTFT[each], tpot_s=TPOT[each], usd=USD[each], headroom=2.0, running=3)
                for each in (name, other)
            ],
            attempts=[Attempt(backend=name, outcome="answered", start_s=0.0, seconds=ttft + 150 * tpot)],
            ttft_s=ttft,
            tpot_s=tpot,
            e2e_s=ttft + 150 * tpot,
            prompt_tokens=400,
            output_tokens=150,
            finish="stop",
            usd=usd,
            usd_elsewhere=elsewhere,
            request_body="SECRET PROMPT",
            response_body="SECRET ANSWER",
        )
        self.recent = [record, *self.recent][:150]
        return record

    def snapshot(self) -> Snapshot:
        """As the watching process would make it."""
        return snapshot(
            self.plan,
            self.block,
            self.rows,
            recent=self.recent,
            experiments=self.experiments,
            expert_load=self.expert_load,
            experts=self.experts,
            warnings=self.warnings,
            now_s=self.now_s,
        )


def experiment() -> ExperimentState:
    """An A/B under way: faster, not clearly cheaper."""
    return ExperimentState(
        name="dense-or-moe",
        kind="ab",
        model="chat",
        state="running",
        share=0.5,
        winner=None,
        reason="The interval of e2e still holds no difference.",
        arms=[
            ArmState(name="control", backend=DENSE, requests=412, means={"e2e": 3.4, "usd": 0.00011, "errors": 0.012}),
            ArmState(name="treatment", backend=MOE, requests=398, means={"e2e": 2.2, "usd": 0.0001, "errors": 0.01}),
        ],
        differences=[
            Difference(metric="e2e", ratio=0.65, low=0.55, high=0.77),
            Difference(metric="usd", ratio=0.93, low=0.78, high=1.1),
            Difference(metric="ttft", ratio=1.4, low=1.1, high=None),
            Difference(
                metric="errors",
                ratio=None,
                low=None,
                high=None,
                difference=-0.002,
                difference_low=-0.02,
                difference_high=0.016,
            ),
        ],
    )
