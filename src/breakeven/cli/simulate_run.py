"""What `breakeven simulate` does with the words it was given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import msgspec
import typer
from rich.console import Console

from breakeven.errors import UserError
from breakeven.forecast.long_trace import WHOLE_BYTES, simulate_long_trace
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.predict import default_format
from breakeven.forecast.profiles import profile_named
from breakeven.forecast.simulated import simulate_schedules
from breakeven.forecast.simulator.fleet import Autoscale, Fleet
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.model.resolve import resolve_spec
from breakeven.pages.predicted import print_simulation
from breakeven.results.predicted import SimulationStudy
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import Schedule
from breakeven.traffic.schedule_file import load_schedule
from breakeven.traffic.words import Words, parse_duration, traffic_of
from breakeven.traffic.workload import Slo, parse_slo

DEFAULT_DURATION_S = 600.0


def run(model_text: str, words: Mapping[str, Any], *, as_json: bool) -> None:
    """Simulate and print."""
    profile = profile_named(words["machine"], words["engine"], words["devices"], words["format_name"])
    format_name = words["format_name"] or default_format(profile)
    model = step_model(resolve_spec(model_text), profile, format_name, words["devices"])
    study = _long(model, words) or _whole(model, words)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(study), indent=2).decode())
    else:
        print_simulation(study, Console())


def _whole(model: StepModel, words: Mapping[str, Any]) -> SimulationStudy:
    schedules, slo = _traffic(words)
    lengths = [float((s.prompt_N + s.output_N).mean()) for s in schedules]
    policy = _policy(model, max(lengths), words)
    return simulate_schedules(model, schedules, slo=slo, policy=policy, fleet=_fleet(words), machine=words["machine"])


def _long(model: StepModel, words: Mapping[str, Any]) -> SimulationStudy | None:
    """A trace longer than fits in memory, part by part; None for any other load."""
    path = words["trace"]
    if path is None or not path.is_file() or path.stat().st_size <= WHOLE_BYTES:
        return None
    for option in ("rate", "concurrency", "schedule", "window", "duration", "requests", "prompt", "output", "warm_up"):
        if words[option] is not None:
            raise UserError(
                f"{path} is too long to be read whole: leave out --{option.replace('_', '-')}, or cut the file"
            )
    return simulate_long_trace(
        model,
        path,
        speed=words["speed"],
        sharing=words["sharing"],
        slo=parse_slo(words["slo"]) if words["slo"] else None,
        policy=_policy(model, None, words),
        fleet=_fleet(words),
        machine=words["machine"],
    )


def _traffic(words: Mapping[str, Any]) -> tuple[list[Schedule], Slo | None]:
    if words["schedule"] is None:
        known = {field.name: words[field.name] for field in fields(Words) if field.name in words}
        traffic = traffic_of(Words(**known), DEFAULT_DURATION_S)
        return [draw(workload, traffic.trace) for workload in traffic.workloads], traffic.slo
    for other in ("rate", "concurrency", "trace"):
        if words[other] is not None:
            raise UserError(f"--schedule and --{other} are different kinds of load; give one of them")
    return [load_schedule(words["schedule"])], parse_slo(words["slo"]) if words["slo"] else None


def _policy(model: StepModel, length: float | None, words: Mapping[str, Any]) -> Policy:
    policy = policy_of(model, length)
    given = {"max_sequences": words["slots"], "max_step_tokens": words["step_tokens"], "kv_tokens": words["kv_tokens"]}
    return replace(policy, **{name: value for name, value in given.items() if value is not None})


def _fleet(words: Mapping[str, Any]) -> Fleet:
    if words["autoscale"] is None:
        return Fleet(replicas=words["replicas"], balancing=words["balancing"], seed=words["seed"])
    match = re.fullmatch(r"(\d+)-(\d+)", words["autoscale"].strip())
    if match is None:
        raise UserError(f"--autoscale {words['autoscale']!r}: give the fewest and the most replicas, such as 1-4")
    scale = Autoscale(
        least=int(match[1]),
        most=int(match[2]),
        per_replica=words["per_replica"],
        start_s=parse_duration(words["start_up"]),
    )
    return Fleet(balancing=words["balancing"], autoscale=scale, seed=words["seed"])
