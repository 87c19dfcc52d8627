"""Traffic, service levels and delays under load as people read them; the load reports all speak through here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from breakeven.pages.words import NOT_AVAILABLE, SYNTHETIC_CAVEAT, decimals_of, number, percent_text, seconds_text
from breakeven.results.load import (
    CapacityStudy,
    ClientHealth,
    EngineState,
    Latency,
    LoadModel,
    LoadPoint,
    LoadStudy,
    Steady,
)
from breakeven.results.metrics import LATENCIES
from breakeven.stats.percentiles import Percentile, Share
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

TOO_SMALL = "n too small"


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit a set of delays is shown in: its name, and how many make a second."""

    name: str
    scale: float


MILLISECONDS, SECONDS = Unit("ms", 1e3), Unit("s", 1.0)
# From here on a figure in milliseconds has five digits, and seconds read better.
SECONDS_FROM_S = 10.0


def unit_of(delays_s: Iterable[float | None]) -> Unit:
    """Milliseconds, or seconds when any of `delays_s` is 10 s or more."""
    return SECONDS if any(delay is not None and delay >= SECONDS_FROM_S for delay in delays_s) else MILLISECONDS


def units_of(points: Sequence[LoadPoint]) -> dict[str, Unit]:
    """The unit of each delay, the same for all of `points` so that they compare at a glance."""
    return {
        metric: unit_of(
            each.value
            for point in points
            for found in point.latencies
            if found.metric == metric
            for each in found.percentiles
        )
        for metric in LATENCIES
    }


def latency_of(point: LoadPoint, metric: str) -> Latency | None:
    """The delay called `metric` of a point; None when it was not measured."""
    return next((latency for latency in point.latencies if latency.metric == metric), None)


def percentile_of(point: LoadPoint, metric: str, p: float) -> Percentile | None:
    """One percentile of one delay; None when the point does not hold it."""
    latency = latency_of(point, metric)
    return next((each for each in latency.percentiles if each.p == p), None) if latency else None


def delay_text(found: Percentile | None, unit: Unit) -> str:
    """A percentile without its unit, or why there is none: "412", "n too small", "not available"."""
    if found is None:
        return NOT_AVAILABLE
    if found.value is None:
        return found.why or NOT_AVAILABLE
    return number(found.value * unit.scale, _places(found, unit))


def delay_interval(found: Percentile | None, unit: Unit) -> str:
    """The interval of a percentile, as "398-430"; "over 398" when its upper end lies beyond all measured."""
    if found is None or found.value is None:
        return ""
    places = _places(found, unit)
    if found.low is None and found.high is None:
        return "no interval"
    low, high = (None if end is None else number(end * unit.scale, places) for end in (found.low, found.high))
    return f"over {low}" if high is None else f"under {high}" if low is None else f"{low}-{high}"


def _places(found: Percentile, unit: Unit) -> int:
    value = (found.value or 0.0) * unit.scale
    if found.low is None or found.high is None:
        return decimals_of(value)
    return decimals_of(value, (found.high - found.low) / 2 * unit.scale)


def rate_text(per_s: float | None) -> str:
    """A rate in requests per second without its unit."""
    return NOT_AVAILABLE if per_s is None else number(per_s)


def offered_text(point: LoadPoint) -> str:
    """What was asked of the candidate: a rate, or streams in a closed loop."""
    if point.rate_per_s is not None:
        return number(point.rate_per_s)
    if point.concurrency is not None:
        return f"{point.concurrency} at once"
    return NOT_AVAILABLE


def share_text(share: Share | None) -> str:
    """A share with its interval: "96.4 % (91.2-98.6)"."""
    if share is None:
        return NOT_AVAILABLE
    return f"{percent_text(share.share)} ({share_interval(share)})"


def share_interval(share: Share) -> str:
    """The interval of a share in percent, without the sign."""
    return f"{share.low * 100:.1f}-{share.high * 100:.1f}"


def counts_text(counts: dict[str, int]) -> str:
    """Counts by kind, most first: "3 timeout, 1 http_500"; "none" when there are none."""
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kind}" for kind, count in most_first if count) or "none"


def steady_text(steady: Steady) -> str:
    """Where delays had settled, or that they did not and what the numbers are then of."""
    return steady_short(steady) if steady.found else f"{steady_short(steady)}: the numbers are of the whole run"


def steady_short(steady: Steady) -> str:
    """Where delays had settled: "from 12 s to 60 s", or "none found" and why."""
    if steady.found:
        return f"from {_moment(steady.start_s)} to {_moment(steady.end_s)}"
    return f"none found ({steady.reason})" if steady.reason else "none found"


def _moment(seconds: float) -> str:
    return "0 s" if seconds == 0 else seconds_text(seconds)


def ceiling_text(client: ClientHealth) -> str:
    """What the client can drive here, before any of it is used."""
    if client.ceiling is None:
        return "not measured"
    processes = client.ceiling.processes
    return (
        f"{number(client.ceiling.requests_per_s)} req/s and {number(client.ceiling.stream_events_per_s)} "
        f"stream events/s with {processes} process{'' if processes == 1 else 'es'}"
    )


def client_text(client: ClientHealth) -> str:
    """Share of the ceiling in use, lag, rate achieved and whose cores, in one clause."""
    parts = []
    if (share := ceiling_share(client)) is not None:
        parts.append(f"at {percent_text(share)} of its ceiling")
    if client.lag_p99_s is not None:
        median = "" if client.lag_p50_s is None else f"{_moment(client.lag_p50_s)} at the median, "
        parts.append(f"sent late by {median}{_moment(client.lag_p99_s)} at p99")
    if client.achieved_over_offered is not None:
        parts.append(f"{percent_text(client.achieved_over_offered)} of the rate offered")
    if client.shares_cores_with_engine:
        parts.append("shares cores with the engine")
    return ", ".join(parts) or NOT_AVAILABLE


def ceiling_share(client: ClientHealth) -> float | None:
    """Share of the client's ceiling in use, whichever of requests and stream events is nearer to it."""
    return max((part for part in (client.requests_share, client.events_share) if part is not None), default=None)


def engine_text(engine: EngineState | None) -> str:
    """What the engine told about its queue and KV cache, as far as it tells."""
    if engine is None or not engine.samples:
        return NOT_AVAILABLE
    parts = []
    for name, mean, most in (
        ("running", engine.running_mean, engine.running_max),
        ("waiting", engine.waiting_mean, engine.waiting_max),
    ):
        if mean is not None:
            parts.append(f"{number(mean)} {name}" + ("" if most is None else f" (at most {number(most)})"))
    if engine.kv_share_mean is not None:
        most_text = "" if engine.kv_share_max is None else f" (at most {percent_text(engine.kv_share_max)})"
        parts.append(f"KV cache {percent_text(engine.kv_share_mean)} full{most_text}")
    if engine.preemptions is not None:
        parts.append(f"{number(engine.preemptions, 0)} preemption{'' if engine.preemptions == 1 else 's'}")
    if engine.cached_prompt_tokens is not None:
        parts.append(f"{number(engine.cached_prompt_tokens, 0)} prompt tokens from its cache")
    return ", ".join(parts) or NOT_AVAILABLE


def energy_text(point: LoadPoint) -> str:
    """Energy per token and per request, or that there is no counter."""
    if point.joules_per_token is None:
        return NOT_AVAILABLE
    request = "" if point.joules_per_request is None else f", {number(point.joules_per_request)} J a request"
    return f"{number(point.joules_per_token)} J a token{request}"


def prompts_text(point: LoadPoint) -> str:
    """Mean lengths as the engine counted, and whether prompts had the tokens asked for."""
    if point.prompt_tokens_mean is None and point.output_tokens_mean is None:
        return NOT_AVAILABLE
    prompt = NOT_AVAILABLE if point.prompt_tokens_mean is None else number(point.prompt_tokens_mean)
    output = NOT_AVAILABLE if point.output_tokens_mean is None else number(point.output_tokens_mean)
    untold = point.anomalies.get("no_usage", 0)
    exact = f"not {'' if untold < point.answered else 'known to be '}exactly as asked"
    exact = "exactly as asked" if point.exact_prompts else exact
    kept = (
        f", {percent_text(point.cached_prompt_share)} of prompts kept from before" if point.cached_prompt_share else ""
    )
    if untold:
        kept += f"; {untold:,} answers came without counts: prompts as planned, a token for each piece of a stream"
    return f"on average {prompt} prompt tokens ({exact}) and {output} output tokens{kept}"


def conversation_text(point: LoadPoint) -> str | None:
    """What one conversation took; None when requests stood alone."""
    if point.tokens_per_conversation is None:
        return None
    time = "" if point.seconds_per_conversation is None else f" and {seconds_text(point.seconds_per_conversation)}"
    return f"{number(point.tokens_per_conversation)} tokens{time} a conversation"


def load_caveats(study: LoadStudy | CapacityStudy) -> list[str]:
    """Sentences that must stand beside the headline; the one on synthetic weights is never left out."""
    models = study.models if isinstance(study, LoadStudy) else [study.model]
    return with_synthetic(study.caveats, models)


def with_synthetic(caveats: list[str], models: list[LoadModel]) -> list[str]:
    """`caveats`, led by the one on synthetic weights where they lack it and a model has such."""
    said = any(SYNTHETIC_CAVEAT in caveat.lower() for caveat in caveats)
    needed = any(model.synthetic for model in models) and not said
    names = tuple(model.name for model in models)
    found = ([SYNTHETIC_CAVEAT] if needed else []) + caveats
    return [caveat if caveat.startswith(names) else capital(caveat) for caveat in found]


def capital(text: str) -> str:
    """`text` with a capital at its front, unless a file's name stands there."""
    return text if "." in text.partition(" ")[0].rstrip(".") else text[:1].upper() + text[1:]


def ended(text: str) -> str:
    """`text` with a full stop, unless it has one."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def ended_text(stopped_because: str) -> str:
    """Why the run ended, as a clause."""
    return {
        "finished": "ran to its end",
        "interrupted": "interrupted: what was finished by then is shown",
        "budget": "stopped at the budget",
        "failed": "failed: what was finished by then is shown",
    }.get(stopped_because, f"stopped: {stopped_because}")


def slo_words(slo: Slo | None) -> str:
    """The service level asked for: "TTFT at most 1 s, TPOT at most 80 ms"."""
    if slo is None:
        return "none given"
    terms = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("longest gap between tokens", slo.itl_s), ("E2E", slo.e2e_s))
    return ", ".join(f"{name} at most {_exact(bound)}" for name, bound in terms if bound is not None) or "none given"


def _exact(seconds: float) -> str:
    """A bound as it was typed, without zeros it never had."""
    return f"{seconds * 1e3:g} ms" if seconds < 1 else f"{seconds:g} s"


def arrivals_words(arrivals: Arrivals, unit: str = "req/s") -> str:
    """When requests come, as a clause. `unit`: what a rate counts (`Workload.rate_unit`)."""
    rate = f"{arrivals.rate_per_s:g} {unit}" if arrivals.rate_per_s is not None else "the rate given"
    if arrivals.process == "closed":
        think = f", each waiting {_exact(arrivals.think_s)} after an answer" if arrivals.think_s else ""
        return f"closed loop: {arrivals.concurrency} at once{think}"
    if arrivals.process == "constant":
        one = "one request" if unit == "req/s" else "one conversation"
        return f"open loop: {one} every {_exact(1 / arrivals.rate_per_s)}" if arrivals.rate_per_s else "constant"
    if arrivals.process == "poisson":
        return f"open loop: Poisson at {rate}"
    if arrivals.process == "gamma":
        return f"open loop: Gamma at {rate}, coefficient of variation {arrivals.cv:g}"
    if arrivals.process == "ramp":
        return f"open loop: Poisson rising from {rate} to {arrivals.to_rate_per_s or 0:g} {unit}"
    if arrivals.process == "steps":
        steps = ", ".join(f"{rate:g} {unit} for {_exact(seconds)}" for rate, seconds in arrivals.steps)
        return f"open loop: Poisson at {steps}"
    if arrivals.process == "trace":
        scale = f", {arrivals.rate_scale:g} times as fast" if arrivals.rate_scale != 1 else ""
        end = "its end" if arrivals.end_s is None else _exact(arrivals.end_s)
        window = f", from {_moment(arrivals.start_s)} to {end}" if arrivals.start_s or arrivals.end_s else ""
        return f"gaps of the trace {arrivals.trace}{scale}{window}"
    if arrivals.agents is not None:
        each = arrivals.agents
        return (
            f"sessions of agents, Poisson at {arrivals.rate_per_s:g} a second: {each.turns:g} turns, "
            f"{_exact(each.tool_s)} of tools between them, a subagent beside {percent_text(each.subagents)} of them"
        )
    return arrivals.process


def length_words(length: Length | None) -> str:
    """A distribution of token counts, as a clause."""
    if length is None:
        return "as in the trace"
    clipped = f", {length.low} to {length.high}" if length.high is not None else ""
    if length.kind == "fixed":
        return f"{length.mean:g} tokens"
    if length.kind == "uniform":
        return f"{length.low} to {length.high} tokens, evenly"
    return f"{length.kind}, mean {length.mean:g}, standard deviation {length.sd:g} tokens{clipped}"


def several_words(workload: Workload, points: Sequence[LoadPoint]) -> str:
    """When requests came, where one study tried several rates or numbers of streams."""
    arrivals, unit = workload.arrivals, workload.rate_unit
    rates = sorted({point.rate_per_s for point in points if point.rate_per_s is not None})
    streams = sorted({point.concurrency for point in points if point.concurrency is not None})
    if arrivals.process in ("constant", "poisson", "gamma") and len(rates) > 1:
        spread = f", coefficient of variation {arrivals.cv:g}" if arrivals.process == "gamma" else ""
        return f"open loop: {arrivals.process.capitalize()} at {_listed(rates)} {unit}{spread}"
    if arrivals.process == "closed" and len(streams) > 1:
        return arrivals_words(arrivals, unit).replace(f"{arrivals.concurrency} at once", f"{_listed(streams)} at once")
    return arrivals_words(arrivals, unit)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:-1]) + f" and {values[-1]:g}"


def _prompt_words(workload: Workload) -> str:
    if workload.prompts is not None:
        return f"{workload.prompts.prompts:,} of one's own from {workload.prompts.file}, as they are"
    if (agents := workload.arrivals.agents) is not None:
        return (
            f"{agents.prefix:,} tokens that sessions share, a task of {agents.task:g}, "
            f"then {agents.new:g} new ones a turn"
        )
    return f"{length_words(workload.prompt)}, {'prefixes shared' if workload.sharing else 'all distinct'}"


def _output_words(workload: Workload) -> str:
    if workload.output is None and workload.prompts is not None:
        return "as the prompts' file says"
    if workload.output is None and (agents := workload.arrivals.agents) is not None:
        return f"lognormal, mean {agents.output:g} tokens"
    return length_words(workload.output)


def workload_rows(
    workload: Workload,
    slo: Slo | None,
    points: Sequence[LoadPoint] = (),
    models: Sequence[LoadModel] = (),
    *,
    played: bool = True,
) -> list[tuple[str, str]]:
    """Name and value of all about the traffic of `models` (some chat alone) that one needs to judge the numbers.

    `played`: to an engine; of what was only simulated, load by load, there is no warm-up, no end and no endpoint.
    """
    ends = [_exact(workload.duration_s)] if workload.duration_s is not None else []
    ends += [f"{workload.requests} requests"] if workload.requests is not None else []
    rows = [
        ("Arrivals", several_words(workload, points)),
        ("Prompts", _prompt_words(workload)),
        ("Outputs", _output_words(workload)),
        ("Service level", slo_words(slo)),
    ]
    if played or ends:
        rows.append(("Ends after", " or ".join(ends) or "the trace"))
    if played:
        warm_up = f"{_exact(workload.warm_up_s)} of the same traffic, not counted" if workload.warm_up_s else "none"
        rows.append(("Warm-up", warm_up))
    if workload.turns > 1:
        rows.append(("Conversations", f"{workload.turns} turns, {_exact(workload.turn_think_s)} between them"))
    if workload.languages:
        rows.append(("Languages", ", ".join(workload.languages)))
    if played:
        only = [model.name for model in models if model.settings.get("route") == "chat"]
        chat = workload.chat or (bool(only) and len(only) == len(models))
        endpoint = "chat completions" if chat else "completions" + (f", as a chat of {', '.join(only)}" if only else "")
        rows.append(("Requests", f"{endpoint}, {'streamed' if workload.stream else 'not streamed'}"))
    rows.append(("Seed", str(workload.seed)))
    return rows


def think_words(study: CapacityStudy) -> str:
    """What a user of the search does; empty where none was tried, or it was not told then."""
    return "" if study.think_s is None else f"each asking again {_exact(study.think_s)} after an answer"
