"""What the verbs that make load do with the words they were given."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from breakeven.errors import UserError
from breakeven.pages.progress import LoadProgress
from breakeven.pages.studies import save, show
from breakeven.results.load import LoadStudy
from breakeven.runs.bench import bench as run_bench
from breakeven.runs.bench import compare_under_load, rate_loads, rounds, trace_turns
from breakeven.runs.load import LoadOptions
from breakeven.traffic.words import Traffic, Words, traffic_of


def target(text: str, model: str | None) -> str:
    """TARGET and --model as one source. Raises UserError when they do not go together."""
    if not text.startswith(("http://", "https://")):
        if model is not None:
            raise UserError("--model names a model at a server; TARGET is a model itself, so leave it out")
        return text
    if model is not None and "#" in text and text.partition("#")[2] != model:
        raise UserError(f"TARGET names another model than --model {model}; give one of them")
    return text if model is None or "#" in text else f"{text}#{model}"


def traffic(words: Mapping[str, Any]) -> Traffic:
    """The options of a verb that describe traffic, translated."""
    return traffic_of(Words(**{field.name: words[field.name] for field in fields(Words) if field.name in words}))


def options(words: Mapping[str, Any]) -> LoadOptions:
    """The options of a verb that say how to run."""
    known = {field.name: words[field.name] for field in fields(LoadOptions) if field.name in words}
    return LoadOptions(**{**known, "ray_address": words.get("ray"), "command": "breakeven " + shlex.join(sys.argv[1:])})


def bench(text: str, traffic: Traffic, options: LoadOptions, words: Mapping[str, Any]) -> None:
    """One target under every load; `words` are the verb's options."""
    if words["rounds"] < 1:
        raise UserError("--rounds must be 1 or more")
    loads = [load for workload in traffic.workloads for load in rounds(workload, words["rounds"])]
    as_json = words["as_json"]
    with _progress(words["quiet"] or as_json) as shown:
        study, directory = run_bench(
            text, loads, traffic.slo, options, trace=traffic.trace, on_state=shown.update, on_phase=shown.phase
        )
    finish(study, directory, as_json)


def compare(models: list[str], traffic: Traffic, options: LoadOptions, words: Mapping[str, Any]) -> None:
    """Several candidates under the same traffic; `words` are the verb's options."""
    if traffic.trace is not None:
        loads = trace_turns(traffic.workloads[0], traffic.trace)
    else:
        loads = rate_loads(traffic.workloads, words["rounds"])
    as_json = words["as_json"]
    with _progress(words["quiet"] or as_json) as shown:
        study, directory = compare_under_load(
            models,
            loads,
            traffic.slo,
            options,
            asked=traffic.workloads[0],
            trace=traffic.trace,
            on_state=shown.update,
            on_phase=shown.phase,
        )
    finish(study, directory, as_json)


def finish(study: LoadStudy, directory: Path, as_json: bool) -> None:
    """Write result and page, print what was asked for."""
    encoded = save(study, directory)
    if as_json:
        sys.stdout.write(encoded.decode().rstrip() + "\n")
    else:
        show(study, directory)


def _progress(quiet: bool) -> LoadProgress:
    return LoadProgress(Console(stderr=True, highlight=False), quiet=quiet)
