"""What `breakeven cost` does with the words it was given."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import typer
from rich.console import Console

from breakeven.answer.cost import CostOptions, cost
from breakeven.errors import UserError
from breakeven.pages.predicted import print_cost
from breakeven.results.cost import Api, Own, Rented
from breakeven.traffic.words import Words, option_share, parse_rates, traffic_of
from breakeven.traffic.workload import Slo, parse_slo

SHARE = "a percentage from 0% to 100%"
OWN = "dollars, years, dollars per kWh and, if known, idle and busy watts: 1400,4,0.30 or 1400,4,0.30,15,60"
API = "dollars per million tokens in and out and, if billed apart, cached: hosted=0.10,0.40 or hosted=0.10,0.40,0.025"


def run(models: Sequence[str], words: Mapping[str, Any], *, as_json: bool) -> None:
    """Price what was asked for and print it."""
    result = cost(models, options_of(words))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        print_cost(result, Console())


def options_of(words: Mapping[str, Any]) -> CostOptions:
    """The verb's options, translated. Raises UserError naming the one that is wrong."""
    rates = None if words["rate"] is None else parse_rates(words["rate"])
    traffic = traffic_of(
        Words(
            rate=None if words["trace"] is not None else "1",
            arrivals=words["arrivals"],
            trace=words["trace"],
            prompt=words["prompt"],
            output=words["output"],
            turns=words["turns"],
            think=words["think"],
            seed=words["seed"],
        )
    )
    if words["usd_per_hour"] is not None and words["own"] is not None:
        raise UserError("--usd-per-hour and --own are two prices of one machine; give one of them")
    return CostOptions(
        workload=traffic.workloads[0],
        trace=traffic.trace,
        machine=words["machine"],
        engine=words["engine"],
        devices=words["devices"],
        format_name=words["format_name"],
        pricing=_pricing(words),
        apis=dict(_api(text) for text in words["api"] or ()),
        rates=rates,
        slo=parse_slo(words["slo"]) if words["slo"] else Slo(),
        good_share=option_share("--share", words["share"], SHARE, most=1.0),
        cached_share=option_share("--cached", words["cached"], SHARE, most=1.0),
        scores=_by_name("--score", words["score"] or ()),
        benchmark=words["benchmark"],
        answers=_by_name("--answer", words["answer"] or ()),
        changes=words["what_if"],
    )


def _pricing(words: Mapping[str, Any]) -> Own | Rented | None:
    if words["usd_per_hour"] is not None:
        return Rented(usd_per_hour=words["usd_per_hour"])
    if words["own"] is None:
        return None
    numbers = _numbers("--own", words["own"], (3, 5), OWN)
    idle_w, busy_w = numbers[3:] if len(numbers) == 5 else (None, None)
    return Own(usd=numbers[0], life_years=numbers[1], usd_per_kwh=numbers[2], idle_w=idle_w, busy_w=busy_w)


def _api(text: str) -> tuple[str, Api]:
    name, equals, prices = text.rpartition("=")
    if equals and not name.strip():
        raise UserError(f"--api {text!r}: give a name before =, as {API}")
    numbers = _numbers("--api", prices, (2, 3), API)
    cached = numbers[2] if len(numbers) == 3 else None
    api = Api(usd_per_mtok_input=numbers[0], usd_per_mtok_output=numbers[1], usd_per_mtok_cached_input=cached)
    return name.strip() or "api", api


def _numbers(option: str, text: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts or not all(0 <= number < math.inf for number in found):
        raise UserError(f"{option} {text!r}: give {form}")
    return found


def _by_name(option: str, texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number):
            raise UserError(f"{option} {text!r}: give a candidate and its number, such as {option} olmoe-1b-7b=0.62")
        found[name] = float(number)
    return found
