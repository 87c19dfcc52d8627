"""Runs under load made up for testing how results are shown. No number in this file was measured."""

from __future__ import annotations

import math

import msgspec
from report_fixtures import HOSTILE, MACHINE

from breakeven.measure.progress import LoadState
from breakeven.results.load import (
    CapacityStudy,
    Ceiling,
    Check,
    CheckedMetric,
    ClientHealth,
    Crossing,
    EngineState,
    Latency,
    Limit,
    LoadDifference,
    LoadModel,
    LoadPoint,
    LoadStudy,
    Steady,
    Trial,
)
from breakeven.results.metrics import LATENCIES
from breakeven.stats.estimate import Estimate
from breakeven.stats.percentiles import Percentile, Share
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

RATES = (1.0, 2.0, 5.0, 10.0)
SLO = Slo(ttft_s=1.0, tpot_s=0.08)
# Fewest requests for a percentile, as the real statistics ask for.
ENOUGH = {50: 6, 90: 64, 95: 130, 99: 662, 99.9: 6636}
SETTINGS = {"engine": "llama.cpp", "build": "b11549", "threads": "2", "slots": "8", "url": "http://127.0.0.1:8080"}


def percentiles(median: float, n: int, spread: float = 0.5) -> list[Percentile]:
    """Of a lognormal delay; "n too small" where `n` does not support one."""
    made = []
    for p, sigmas in ((50, 0.0), (90, 1.28), (95, 1.64), (99, 2.33), (99.9, 3.09)):
        value = median * math.exp(spread * sigmas)
        half = 1.5 / math.sqrt(max(n, 1)) * (1 + sigmas)
        if n < ENOUGH[p]:
            made.append(Percentile(p=p, value=None, why="n too small"))
        else:
            made.append(Percentile(p=p, value=value, low=value * (1 - half / 2), high=value * (1 + half)))
    return made


def latency(metric: str, median: float, n: int) -> Latency:
    mean = Estimate(median * 1.13, median * 1.05, median * 1.22, n, "measured") if n > 5 else None
    return Latency(metric=metric, n=n, mean=mean, percentiles=percentiles(median, n, 0.3 if "pot" in metric else 0.5))


def share(hits: int, n: int) -> Share:
    """With the Wilson interval at 1.96 standard errors."""
    if n == 0:
        return Share(share=0.0, low=0.0, high=1.0, hits=0, n=0)
    p, z = hits / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Share(share=p, low=max(0.0, middle - half), high=min(1.0, middle + half), hits=hits, n=n)


def health(**changes: object) -> ClientHealth:
    fields: dict[str, object] = {
        "ceiling": Ceiling(requests_per_s=8120.0, stream_events_per_s=91_300.0, processes=1),
        "requests_share": 0.0012,
        "events_share": 0.0064,
        "lag_p50_s": 0.00011,
        "lag_p99_s": 0.00042,
        "achieved_over_offered": 0.996,
        "shares_cores_with_engine": True,
    }
    return ClientHealth(**(fields | changes))  # type: ignore[arg-type]


def point(model: str, rate: float | None, capacity: float, seconds: float = 120.0, **changes: object) -> LoadPoint:
    """A candidate that saturates at `capacity` requests/s, with the delays of a queue that fills towards it."""
    offered = rate or capacity * 0.6
    used = min(0.985, offered / capacity)
    n = int(offered * seconds)
    ttft = 0.09 / (1 - used)
    tpot = 0.021 * (1 + 2.2 * used)
    failed = int(max(0.0, offered - capacity) * seconds * 0.05)
    good = int(n * max(0.0, 1 - used**6) * 0.995)
    fields: dict[str, object] = {
        "model": model,
        "load": f"{offered:g} req/s",
        "rate_per_s": rate,
        "concurrency": None,
        "requests": n,
        "answered": n - failed,
        "errors": {"timeout": failed} if failed else {},
        "anomalies": {},
        "measured_s": seconds,
        "requests_per_s": (n - failed) / seconds,
        "input_tokens_per_s": (n - failed) * 512 / seconds,
        "output_tokens_per_s": (n - failed) * 96 / seconds,
        "prompt_tokens_mean": 512.0,
        "output_tokens_mean": 96.0,
        "exact_prompts": True,
        "latencies": [
            latency(
                name, {"tpot_s": tpot, "itl_s": tpot * 0.95}.get(name, ttft + (96 * tpot if "e2e" in name else 0)), n
            )
            for name in LATENCIES
        ],
        "good": share(good, n),
        "goodput_per_s": good / seconds,
        "in_flight_mean": offered * (ttft + 96 * tpot),
        "in_flight_max": int(3 + 2 * offered * (ttft + 96 * tpot)),
        "steady": Steady(found=True, start_s=12.0, end_s=seconds, reason="delays settled"),
        "whole_run_ttft_s": Estimate(ttft * 1.2, ttft * 1.1, ttft * 1.3, n, "measured"),
        "whole_run_tpot_s": Estimate(tpot, tpot * 0.98, tpot * 1.02, n, "measured"),
        "engine": EngineState(
            samples=120,
            running_mean=offered * 96 * tpot,
            running_max=8,
            waiting_mean=max(0.0, offered * ttft - 1),
            waiting_max=14,
            kv_share_mean=0.31 * used,
            kv_share_max=0.62 * used,
            preemptions=0,
        ),
        "client": health(),
    }
    return LoadPoint(**(fields | changes))  # type: ignore[arg-type]


def moe(name: str = "olmoe-1b-7b") -> LoadModel:
    return LoadModel(name=name, source="catalogue", synthetic=True, moe=True, settings=SETTINGS)


def dense(name: str = "llama-3.2-1b") -> LoadModel:
    return LoadModel(name=name, source="catalogue", synthetic=True, moe=False, settings=SETTINGS)


def served(name: str = "served") -> LoadModel:
    return LoadModel(name=name, source="http://127.0.0.1:8000/v1", synthetic=False, moe=None)


WORKLOAD = Workload(
    arrivals=Arrivals(process="poisson", rate_per_s=1.0),
    prompt=Length(kind="lognormal", mean=512, sd=300, low=16, high=4096),
    output=Length(kind="fixed", mean=96),
    duration_s=120.0,
    warm_up_s=10.0,
    seed=7,
)


def study(models: list[LoadModel], points: list[LoadPoint], **changes: object) -> LoadStudy:
    fields: dict[str, object] = {
        "breakeven_version": "0.1.0",
        "started_at": "2026-01-02T03:04:05Z",
        "command": "breakeven compare " + " ".join(model.name for model in models) + " --rate 1,2,5,10",
        "seed": 7,
        "stopped_because": "finished",
        "machine": MACHINE,
        "models": models,
        "workload": WORKLOAD,
        "slo": SLO,
        "points": points,
        "headline": "Under 4.2 req/s llama-3.2-1b answers first; above it olmoe-1b-7b does.",
    }
    return LoadStudy(**(fields | changes))  # type: ignore[arg-type]


def differences(a: str, b: str, loads: list[str]) -> list[LoadDifference]:
    """Ratios that fall with load, so that the winner changes on the way."""
    made = []
    for metric, more in (("ttft_s", False), ("tpot_s", False), ("output_tokens_per_s", True), ("goodput_per_s", True)):
        for index, load in enumerate(loads):
            ratio = 1.22 - 0.14 * index if not more else 1 / (1.04 - 0.02 * index)
            low, high = ratio * 0.955, ratio * 1.05
            winner = None if low <= 1 <= high else a if (low > 1) == more else b
            made.append(
                LoadDifference(
                    a=a, b=b, metric=metric, load=load, ratio=Estimate(ratio, low, high, 24, "measured"), winner=winner
                )
            )
    return made


def crossing() -> LoadStudy:
    """Two candidates under four rates: the curves of TTFT cross, those of TPOT do not."""
    a, b = moe(), dense()
    points = [point(m.name, rate, capacity) for m, capacity in ((a, 14.0), (b, 10.4)) for rate in RATES]
    slower = [
        msgspec.structs.replace(
            each,
            latencies=[
                latency(
                    found.metric, (found.percentiles[0].value or 0.0) * (1.35 if each.model == a.name else 1), found.n
                )
                for found in each.latencies
            ],
        )
        for each in points
    ]
    return study(
        [a, b],
        slower,
        differences=differences(a.name, b.name, [f"{rate:g} req/s" for rate in RATES]),
        crossings=[
            Crossing(
                a=a.name,
                b=b.name,
                metric="ttft_s",
                rate_per_s=4.2,
                low=3.4,
                high=5.3,
                sentence="llama-3.2-1b has the lower TTFT under 4.2 req/s (3.4-5.3), olmoe-1b-7b above it.",
            ),
            Crossing(
                a=a.name,
                b=b.name,
                metric="tpot_s",
                rate_per_s=None,
                low=None,
                high=None,
                sentence="TPOT does not cross between 1 and 10 req/s: olmoe-1b-7b is slower throughout.",
            ),
        ],
    )


def level() -> LoadStudy:
    """The same model twice, in a closed loop: the lines lie on each other, nobody wins, and nothing crosses."""
    twins = [dense("llama-3.2-1b #1"), dense("llama-3.2-1b #2")]
    points = [
        point(model.name, rate, 10.4, rate_per_s=None, concurrency=int(rate), load=f"{rate:g} streams")
        for model in twins
        for rate in RATES
    ]
    same = Estimate(1.002, 0.991, 1.013, 24, "measured")
    return study(
        twins,
        points,
        workload=msgspec.structs.replace(WORKLOAD, arrivals=Arrivals(process="closed", concurrency=1)),
        differences=[
            LoadDifference(a=twins[0].name, b=twins[1].name, metric="ttft_s", load=each.load, ratio=same, winner=None)
            for each in points[:4]
        ],
        crossings=[
            Crossing(
                a=twins[0].name,
                b=twins[1].name,
                metric="ttft_s",
                rate_per_s=None,
                low=None,
                high=None,
                sentence="no difference found in TTFT at any load measured (1 to 10 streams)",
            )
        ],
        headline="No difference found between the candidates at any load measured.",
    )


def one_endpoint() -> LoadStudy:
    """A bench of one URL over three rates: errors, no steady state, a busy client, no engine metrics."""
    model = served("mistral")
    points = [
        point(model.name, 2.0, 12.0, engine=None),
        point(model.name, 8.0, 12.0, engine=None, errors={"http_429": 3, "timeout": 1}, answered=956),
        point(
            model.name,
            16.0,
            12.0,
            engine=None,
            steady=Steady(found=False, start_s=0.0, end_s=120.0, reason="TTFT kept rising"),
            client=health(
                events_share=0.61,
                lag_p99_s=0.031,
                achieved_over_offered=0.93,
                flags=["the client ran above half of its own ceiling", "93 % of the rate offered was achieved"],
            ),
            flagged=["another process used 21 % of the cores"],
            anomalies={"no_usage": 12},
        ),
    ]
    return study(
        [model],
        points,
        command="breakeven bench http://127.0.0.1:8000/v1 --model mistral --rate 2,8,16",
        headline="mistral meets the service level in 99 % of requests at 2 req/s and in 4 % at 16 req/s.",
    )


def one_point() -> LoadStudy:
    """One closed-loop load of few requests: percentiles that the sample does not support, no SLO, no ceiling."""
    model = served("a")
    made = point(
        model.name,
        None,
        4.0,
        seconds=10.0,
        load="4 at once",
        concurrency=4,
        good=None,
        goodput_per_s=None,
        engine=None,
        client=health(
            ceiling=None,
            requests_share=None,
            events_share=None,
            lag_p50_s=None,
            lag_p99_s=None,
            achieved_over_offered=None,
            shares_cores_with_engine=False,
        ),
        joules_per_token=0.82,
        joules_per_request=79.0,
    )
    return study(
        [model],
        [made],
        slo=None,
        workload=msgspec.structs.replace(WORKLOAD, arrivals=Arrivals(process="closed", concurrency=4), warm_up_s=0.0),
        command="breakeven bench http://127.0.0.1:8000/v1 --model a --concurrency 4",
        headline="a answers 2.4 requests a second with 4 at once.",
    )


def trace() -> LoadStudy:
    """Two candidates with long names under one trace: no curve to draw, one dot plot instead."""
    a, b = moe("qwen3-30b-a3b-instruct-2507-ud-q4_k_xl-gguf"), dense("mistral-small-3.2-24b-instruct-2506-q4_k_m")
    load = "AzureLLMInferenceTrace_conv.csv x0.05"
    points = [
        point(
            a.name,
            3.1,
            9.0,
            seconds=600.0,
            load=load,
            exact_prompts=False,
            tokens_per_conversation=812.0,
            seconds_per_conversation=19.3,
        ),
        point(b.name, 3.1, 4.1, seconds=600.0, load=load, exact_prompts=False),
    ]
    return study(
        [a, b],
        points,
        workload=Workload(
            arrivals=Arrivals(process="trace", trace="AzureLLMInferenceTrace_conv.csv", rate_scale=0.05, end_s=600.0),
            turns=3,
            turn_think_s=2.5,
            sharing=True,
            chat=True,
            languages=("en", "de"),
        ),
        differences=differences(a.name, b.name, [load]),
        headline=f"{a.name} answers first under this trace: TTFT is 0.71 times that of {b.name} (0.66-0.77).",
    )


def none_answered() -> LoadStudy:
    """Every request failed: nothing but counts is known."""
    model = served("gone")
    lost = [Percentile(p=p, value=None, why="over half failed") for p in (50, 90, 99)]
    made = point(
        model.name,
        2.0,
        10.0,
        requests=240,
        answered=0,
        errors={"connection_refused": 198, "reset": 40, "cancelled": 2},
        requests_per_s=0.0,
        input_tokens_per_s=0.0,
        output_tokens_per_s=0.0,
        prompt_tokens_mean=None,
        output_tokens_mean=None,
        exact_prompts=False,
        latencies=[
            Latency(metric=name, n=240 if "ttft" in name or "e2e" in name else 0, mean=None, percentiles=lost)
            for name in LATENCIES
        ],
        good=share(0, 240),
        goodput_per_s=0.0,
        in_flight_mean=0.0,
        in_flight_max=1,
        steady=Steady(found=False, start_s=0.0, end_s=120.0, reason="no request was answered"),
        whole_run_ttft_s=None,
        whole_run_tpot_s=None,
        engine=None,
    )
    return study([model], [made], stopped_because="failed", headline="No request to gone was answered.")


def hostile() -> LoadStudy:
    """Every text a person can set holds markup for HTML, for the terminal and for SVG."""
    model = LoadModel(name=HOSTILE, source=HOSTILE, synthetic=False, moe=None, settings={HOSTILE: HOSTILE})
    points = [point(model.name, rate, 12.0, errors={HOSTILE: 1}, flagged=[HOSTILE]) for rate in (1.0, 2.0)]
    return study([model], points, headline=HOSTILE, command=HOSTILE, caveats=[HOSTILE])


def trials(*found: tuple[float, float, bool | None]) -> list[Trial]:
    return [
        Trial(load=load, requests=200, good=share(int(200 * part), 200), meets=meets) for load, part, meets in found
    ]


def capacity() -> CapacityStudy:
    """A search that found both limits."""
    return CapacityStudy(
        breakeven_version="0.1.0",
        started_at="2026-01-02T03:04:05Z",
        command="breakeven capacity http://127.0.0.1:8080/v1 --slo ttft=1s,tpot=80ms",
        seed=7,
        stopped_because="finished",
        machine=MACHINE,
        model=dense(),
        workload=WORKLOAD,
        slo=SLO,
        target_share=0.95,
        confidence=0.95,
        rate=Limit(
            value=7.5,
            low=7.0,
            high=8.0,
            trials=trials(
                (1, 1, True),
                (2, 1, True),
                (4, 0.995, True),
                (8, 0.81, False),
                (6, 0.985, True),
                (7, 0.98, True),
                (7.5, 0.96, None),
            ),
            monotone=True,
            sentence="7.5 requests a second meet the service level; 8 do not.",
        ),
        users=Limit(
            value=24,
            low=24,
            high=25,
            trials=trials((8, 1, True), (16, 0.995, True), (32, 0.62, False), (24, 0.99, True), (25, 0.9, False)),
            monotone=True,
            sentence="24 people can talk to this at once; the 25th makes everyone wait.",
        ),
        headline="24 people can talk to this at once; the 25th makes everyone wait.",
    )


def capacity_not_monotone() -> CapacityStudy:
    """A search whose answers contradict each other, cut short by the budget."""
    limit = Limit(
        value=None,
        low=None,
        high=1.0,
        trials=trials((1, 0.9, False), (2, 0.99, True), (4, 0.5, False)),
        monotone=False,
        sentence="No limit: 2 requests a second met the service level where 1 did not.",
    )
    return msgspec.structs.replace(
        capacity(),
        stopped_because="budget",
        rate=limit,
        users=None,
        headline="No limit found: the search contradicts itself.",
        caveats=["the machine was busy in 2 of 3 trials"],
    )


def check(worse: bool = True) -> Check:
    """A new run against a saved one."""
    load = "2 req/s"
    ttft = Estimate(1.31, 1.22, 1.41, 24, "measured") if worse else Estimate(1.01, 0.95, 1.07, 24, "measured")
    return Check(
        baseline="results/main/result.json",
        worse=worse,
        metrics=[
            CheckedMetric(metric="ttft_s", load=load, new_over_old=ttft, verdict="worse" if worse else "same"),
            CheckedMetric(
                metric="tpot_s", load=load, new_over_old=Estimate(0.9, 0.86, 0.94, 24, "measured"), verdict="better"
            ),
            CheckedMetric(
                metric="goodput_per_s", load=load, new_over_old=Estimate(1.0, None, None, 1, "measured"), verdict="same"
            ),
        ],
        headline="TTFT got worse: 1.31 times the saved run (1.22-1.41)." if worse else "Nothing got worse.",
        caveats=["the saved run used another build of llama.cpp"],
    )


def state(elapsed: float = 12.0, **changes: object) -> LoadState:
    fields: dict[str, object] = {
        "model": "olmoe-1b-7b",
        "load": "5 req/s",
        "elapsed_s": elapsed,
        "of_s": 60.0,
        "offered_per_s": 5.0,
        "achieved_per_s": 4.92,
        "issued": 61,
        "answered": 49,
        "in_flight": 9,
        "errors": {"timeout": 2, "http_500": 1},
        "ttft_p50_s": 0.212,
        "ttft_p99_s": 1.38,
        "tpot_p50_s": 0.0341,
        "tpot_p99_s": 0.0522,
        "lag_p99_s": 0.00031,
        "headroom": 0.12,
        "engine_running": 8.0,
        "engine_waiting": 1.0,
    }
    return LoadState(**(fields | changes))  # type: ignore[arg-type]
