"""Decisions made up for testing how results are shown. No number in this file was measured or predicted."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from report_fixtures import HOSTILE

from breakeven.model.quality.scores import QualityScore
from breakeven.results.cost import Api, CostPoint, Own, Pricing, Rented
from breakeven.results.decision import (
    Advice,
    Assumption,
    CandidateResult,
    Day,
    DayBill,
    DayHour,
    Decision,
    DecisionMap,
    Flip,
    LatencyPoint,
    MapCell,
    NextMeasurement,
    Region,
    TrafficShare,
    Verdict,
)
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

RATES = tuple(0.1 * 10 ** (step / 10) for step in range(31))
"""0.1 to 100 requests/s."""
CONTEXTS = (512.0, 2048.0, 8192.0, 32768.0)
FORMATS = ("bf16", "fp8", "int4")
OUTPUT_TOKENS = 256
WORKLOAD = Workload(
    arrivals=Arrivals(process="gamma", rate_per_s=4.0, cv=3.0),
    prompt=Length(kind="lognormal", mean=700.0, sd=400.0, high=8000),
    output=Length(kind="fixed", mean=OUTPUT_TOKENS),
    duration_s=600.0,
)


def span(value: float, share: float = 0.12) -> Estimate:
    return Estimate(value=value, low=value / (1 + share), high=value * (1 + share))


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def cost_point(pricing: Pricing, capacity: Estimate | None, rate: float) -> CostPoint:
    if isinstance(pricing, Api):
        request = (700 * pricing.usd_per_mtok_input + OUTPUT_TOKENS * pricing.usd_per_mtok_output) / 1e6
        hour, replicas, used = exact(request * rate * 3600), None, None
    else:
        assert capacity is not None
        whole = [math.ceil(rate / each) for each in (capacity.value, capacity.high, capacity.low)]
        price = pricing.usd_per_hour if isinstance(pricing, Rented) else pricing.usd / pricing.life_years / 8760 + 0.05
        hour = Estimate(value=whole[0] * price, low=whole[1] * price, high=whole[2] * price)
        replicas = Estimate(value=whole[0], low=whole[1], high=whole[2])
        used = rate / capacity.value / whole[0]

    def over(count: float) -> Estimate:
        return Estimate(value=hour.value / count, low=hour.low / count, high=hour.high / count)

    return CostPoint(
        rate_per_s=rate,
        replicas=replicas,
        utilisation=used,
        usd_per_hour=hour,
        usd_per_request=over(rate * 3600),
        usd_per_mtok_output=over(rate * 3600 * OUTPUT_TOKENS / 1e6),
    )


def latency_point(capacity: float, rate: float, fast: float, band: float = 0.15) -> LatencyPoint:
    used = min(0.99, rate / capacity)
    ttft, tpot = fast * 4 / (1 - used), fast * (1 + 2.5 * used)
    return LatencyPoint(
        rate_per_s=rate,
        ttft_p50_s=span(ttft, band),
        ttft_p99_s=span(ttft * 3.1, band * 2),
        tpot_p50_s=span(tpot, band),
        tpot_p99_s=span(tpot * 1.6, band),
        e2e_p50_s=span(ttft + OUTPUT_TOKENS * tpot, band),
        e2e_p99_s=span(3 * ttft + OUTPUT_TOKENS * 1.6 * tpot, band),
        good_share=Estimate(value=1 - used**9, low=max(0.0, 1 - (used * 1.05) ** 8), high=min(1.0, 1 - used**12)),
        utilisation=used,
        tokens_per_s=rate * OUTPUT_TOKENS,
    )


def candidate(name: str, pricing: Pricing, capacity: float | None, **changes: Any) -> CandidateResult:
    """A candidate that serves `capacity` requests/s a replica; None: a hosted one."""
    limit = None if capacity is None else span(capacity)
    loads = [] if capacity is None else [capacity * share for share in (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)]
    fields: dict[str, Any] = {
        "name": name,
        "model": name,
        "kind": "dense",
        "machine": "" if capacity is None else "l40s",
        "engine": "" if capacity is None else "vllm",
        "format": "" if capacity is None else "fp8",
        "devices": 1,
        "location": "cloud",
        "provenance": "published" if capacity is None else "predicted",
        "capacity_per_s": limit,
        "saturation_tokens_per_s": None if capacity is None else capacity * OUTPUT_TOKENS * 1.2,
        "memory_bytes": None if capacity is None else 12.4e9,
        "memory_available_bytes": None if capacity is None else 48e9,
        "ruled_out": [],
        "quality": QualityScore(how="size", value=4.6e9, low=3.3e9, high=7.4e9),
        "pricing": pricing,
        "latency": [latency_point(capacity, rate, 0.012) for rate in loads] if capacity else [],
        "cost": [cost_point(pricing, limit, rate) for rate in RATES],
    }
    return CandidateResult(**(fields | changes))


def dense(name: str = "llama-3.1-8b", **changes: Any) -> CandidateResult:
    quality = QualityScore(how="published", value=0.694, benchmark="MMLU", source="one harness, 2025-07")
    return candidate(name, Rented(usd_per_hour=0.86, date="2026-02"), 9.0, **({"quality": quality} | changes))


def moe(name: str = "qwen3-30b-a3b", **changes: Any) -> CandidateResult:
    fields: dict[str, Any] = {
        "kind": "moe",
        "machine": "h100-sxm",
        "memory_bytes": 34.1e9,
        "memory_available_bytes": 80e9,
        "quality": QualityScore(how="own", value=0.78, low=0.74, high=0.82, benchmark="our tickets"),
        "notes": ["Context of 8,192 lies beyond what the profile was fitted on (4,096): extrapolated."],
    }
    return candidate(name, Rented(usd_per_hour=2.99, date="2026-02"), 52.0, **(fields | changes))


def hosted(name: str = "hosted-moe", **changes: Any) -> CandidateResult:
    price = Api(usd_per_mtok_input=0.1, usd_per_mtok_output=0.4, usd_per_mtok_cached_input=0.025, date="2026-02")
    return candidate(name, price, None, **({"kind": "unknown", "quality": QualityScore(how="none")} | changes))


def board(name: str = "mixtral-8x7b on the desk", **changes: Any) -> CandidateResult:
    price = Own(usd=2400.0, life_years=3.0, usd_per_kwh=0.31, idle_w=60.0, busy_w=420.0, power_overhead=1.0)
    fields: dict[str, Any] = {
        "kind": "moe",
        "machine": "rtx-4090",
        "engine": "llama.cpp",
        "format": "Q4_K_M",
        "location": "on-premise",
        "memory_bytes": 28.6e9,
        "memory_available_bytes": 24e9,
        "ruled_out": ["needs 28.6 GB, rtx-4090 has 24 GB", "draws 420 W, the study allows 350 W"],
        "cost": [],
        "latency": [],
        "capacity_per_s": None,
    }
    return candidate(name, price, 1.0, **(fields | changes))


def load_flip(at: float, start: str, end: str, share: float = 0.2) -> Flip:
    return Flip(
        quantity="load",
        from_=start,
        to=end,
        at=span(at, share),
        unit="req/s",
        meaning=f"above this load {end} costs less than {start}",
    )


def cells(xs: tuple[float, ...], ys: tuple[float | str, ...], first: str, second: str) -> list[MapCell]:
    made = []
    for row, y in enumerate(ys):
        for x in xs:
            ratio = (x / (12 / (1 + 1.2 * row))) ** 0.6
            sure = not 0.75 < ratio < 1.33
            tie = 0.97 < ratio < 1.03
            winner = None if tie else second if ratio > 1 else first
            kind: Any = None if tie else "moe" if ratio > 1 else "dense"
            if x > 60 and row == len(ys) - 1:
                made.append(MapCell(x=x, y=y, winner=None, kind=None, ratio=None, certain=True))
            else:
                made.append(MapCell(x=x, y=y, winner=winner, kind=kind, ratio=ratio, certain=sure))
    return made


def decision(candidates: list[CandidateResult], **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "name": "bursty-small-business",
        "question": "Which model should answer our shop's chat, and from which load on would that change?",
        "verdict": Verdict(
            outcome="api",
            winner="hosted-moe",
            sentence="Pay by the token for hosted-moe: at 4 req/s it costs half of the next, up to 6.7 req/s.",
            because=[
                "A machine of one's own idles 55 % of the day at this load",
                "Every candidate left keeps TTFT at most 2 s for 95 % of requests",
            ],
        ),
        "load_per_s": 4.0,
        "workload": WORKLOAD,
        "slo": Slo(ttft_s=2.0, tpot_s=0.08),
        "good_share": 0.95,
        "candidates": candidates,
        "regions": [],
        "flips": [],
        "maps": [],
        "advice": [],
        "next_measurements": [],
        "assumptions": [],
        "seed": 7,
    }
    return Decision(**(fields | changes))


def full() -> Decision:
    """Every part is there: a hosted candidate, two rented ones, one ruled out."""
    return decision(
        [dense(), moe(), hosted(), board()],
        regions=[
            Region(
                low_per_s=0.1,
                high_per_s=1.4,
                winner="hosted-moe",
                runner_up="llama-3.1-8b",
                margin=span(3.4, 0.1),
                certain=True,
            ),
            Region(low_per_s=1.4, high_per_s=1.6, winner=None, runner_up=None, margin=None, certain=False),
            Region(
                low_per_s=1.6,
                high_per_s=9.0,
                winner="llama-3.1-8b",
                runner_up="hosted-moe",
                margin=span(1.3, 0.2),
                certain=False,
            ),
            Region(
                low_per_s=9.0,
                high_per_s=None,
                winner="qwen3-30b-a3b",
                runner_up="llama-3.1-8b",
                margin=span(1.9),
                certain=True,
            ),
        ],
        flips=[
            load_flip(1.5, "hosted-moe", "llama-3.1-8b"),
            load_flip(27.0, "llama-3.1-8b", "qwen3-30b-a3b", 0.3),
            Flip(
                quantity="context",
                from_="hosted-moe",
                to=None,
                at=None,
                unit="tokens",
                meaning="hosted-moe stays the cheapest at every context seen",
            ),
            Flip(
                quantity="precision",
                from_="llama-3.1-8b",
                to="qwen3-30b-a3b",
                at=None,
                at_label="bf16 to fp8",
                unit="",
                meaning="in FP8 the MoE fits one device",
            ),
        ],
        maps=[
            DecisionMap(x="load", y="context", cells=cells(RATES[::2], CONTEXTS, "llama-3.1-8b", "qwen3-30b-a3b")),
            DecisionMap(x="load", y="precision", cells=cells(RATES[::3], FORMATS, "hosted-moe", "qwen3-30b-a3b")),
        ],
        advice=[
            Advice(
                topic="Fine-tuning",
                text="Routers of MoE models collapse more easily under small learning sets",
                source="Shen et al., 2023, arXiv:2305.14705",
            ),
            Advice(
                topic="Tail latency",
                text="Measure the 99th percentile with bursts of your own traffic",
                source="physics of batching; see docs/simulate.md",
            ),
        ],
        next_measurements=[
            NextMeasurement(
                command="breakeven calibrate --engine vllm --format fp8 --out l40s.json",
                why="the break-even hangs on llama-3.1-8b's capacity",
                band_before=1.69,
                band_after=1.14,
            ),
        ],
        assumptions=[
            Assumption(what="Price of l40s", value="$0.86 an hour", source="list price of one provider, 2026-02"),
            Assumption(what="Routing of qwen3-30b-a3b", value="uniform to skewed, as a band", source="no trace given"),
        ],
    )


def no_difference() -> Decision:
    """Two that cost the same; no API, one region without winner."""
    same = [dense(), dense("mistral-7b", provenance="measured")]
    return decision(
        same,
        verdict=Verdict(outcome="no_difference", winner=None, sentence="No difference worth your time.", because=[]),
        regions=[Region(low_per_s=0.1, high_per_s=None, winner=None, runner_up=None, margin=None, certain=True)],
    )


def nobody() -> Decision:
    """Everyone is ruled out and nothing could be drawn."""
    out = {"cost": [], "latency": [], "memory_bytes": None, "memory_available_bytes": None, "capacity_per_s": None}
    return decision(
        [dense(ruled_out=["licence forbids commercial use"], **out)],
        verdict=Verdict(
            outcome="none",
            winner=None,
            sentence="No candidate can serve this: the fastest needs 3.2 s to the first token, 2 s are asked for.",
            because=["A machine with 1.6 times the memory bandwidth would"],
        ),
    )


def both() -> Decision:
    """Edge dense and cloud MoE, each with its traffic."""
    return decision(
        [dense("llama-3.2-1b on the device", location="edge", machine="jetson-orin-nano-8gb"), moe()],
        verdict=Verdict(
            outcome="both",
            winner=None,
            sentence="Both: short requests to llama-3.2-1b on the device, the rest to qwen3-30b-a3b.",
            because=["Seven in ten requests are under 512 tokens"],
            shares=[
                TrafficShare(
                    candidate="llama-3.2-1b on the device",
                    traffic="prompts under 512 tokens",
                    share=0.7,
                    usd_per_hour=span(0.02),
                ),
                TrafficShare(candidate="qwen3-30b-a3b", traffic="all others", share=0.3, usd_per_hour=exact(2.99)),
            ],
        ),
        flips=[
            load_flip(at, "llama-3.2-1b on the device", "qwen3-30b-a3b", 0.05) for at in (9.0, 18.0, 27.0, 36.0, 45.0)
        ],
        regions=[
            Region(
                low_per_s=0.1,
                high_per_s=None,
                winner="qwen3-30b-a3b",
                runner_up="llama-3.2-1b on the device",
                margin=None,
                certain=False,
            )
        ],
    )


def many() -> Decision:
    """Seven candidates with long names, one over the other on the page; the load at the end of the range."""
    names = [f"a-rather-long-model-name-{index}-instruct-2507" for index in range(7)]
    found = [
        candidate(name, Rented(usd_per_hour=1.0 + 0.01 * index), 10.0 + index, kind="moe" if index % 2 else "dense")
        for index, name in enumerate(names)
    ]
    return decision(
        found,
        load_per_s=100.0,
        slo=Slo(e2e_s=30.0),
        regions=[
            Region(
                low_per_s=0.1, high_per_s=None, winner=names[0], runner_up=names[1], margin=exact(1.01), certain=False
            )
        ],
        maps=[DecisionMap(x="load", y="context", cells=cells(RATES[::6], CONTEXTS, names[0], names[5]))],
    )


def one_load() -> Decision:
    """A single load, and at it only one candidate: no axis to draw."""
    only = dense()
    near = min(only.cost, key=lambda point: abs(point.rate_per_s - 4.0))
    return decision([msgspec.structs.replace(only, cost=[near], latency=only.latency[2:3])])


def turns() -> Decision:
    """A day: nothing for two hours, dense by night and MoE by day."""
    small, large = dense(), moe()
    hours_per_s = [0.0] * 2 + [3.0] * 8 + [40.0] * 14
    night = DayHour(cheapest=small.name, usd=0.86, machines=1, used=0.28)
    busy = DayHour(cheapest=large.name, usd=2.99, machines=1, used=0.64)
    bill = DayBill(
        candidate=large.name,
        usd_per_day=span(71.76),
        machines=[1] * 24,
        utilisation=0.39,
        off_peak_hours=10,
        starts=0,
        used=[0.0] * 2 + [0.048] * 8 + [0.64] * 14,
    )
    day = Day(
        hours_per_s=hours_per_s,
        bills=[bill],
        by_hour=[large.name] * 2 + [small.name] * 8 + [large.name] * 14,
        by_hour_usd_per_day=span(48.74),
        single_over_by_hour=span(1.47),
        hours=[DayHour()] * 2 + [night] * 8 + [busy] * 14,
        sentences=["Taking turns is cheaper."],
    )
    return msgspec.structs.replace(decision([small, large], load_per_s=40.0), day=day)


def hostile() -> Decision:
    """Names and texts that would break a page or a terminal which trusts them."""
    bad = dense(HOSTILE, model=HOSTILE, machine=HOSTILE, engine=HOSTILE, format=HOSTILE, notes=[HOSTILE])
    return decision(
        [bad, moe(ruled_out=[HOSTILE])],
        name=HOSTILE,
        question=HOSTILE,
        verdict=Verdict(
            outcome="both",
            winner=HOSTILE,
            sentence=HOSTILE,
            because=[HOSTILE],
            shares=[TrafficShare(candidate=HOSTILE, traffic=HOSTILE, share=1.0)],
        ),
        regions=[
            Region(low_per_s=0.1, high_per_s=None, winner=HOSTILE, runner_up=HOSTILE, margin=span(2.0), certain=False)
        ],
        flips=[load_flip(9.0, HOSTILE, HOSTILE)],
        maps=[
            DecisionMap(x="load", y="precision", cells=cells(RATES[::5], (HOSTILE, "fp8"), HOSTILE, "qwen3-30b-a3b"))
        ],
        advice=[Advice(topic=HOSTILE, text=HOSTILE, source=HOSTILE)],
        next_measurements=[NextMeasurement(command=HOSTILE, why=HOSTILE, band_before=2.0, band_after=1.1)],
        assumptions=[Assumption(what=HOSTILE, value=HOSTILE, source=HOSTILE)],
    )
