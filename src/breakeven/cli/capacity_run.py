"""What `breakeven capacity` does with the words it was given."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from breakeven.errors import UserError
from breakeven.pages.progress import LoadProgress
from breakeven.pages.studies import save, show
from breakeven.results.store import RESULT
from breakeven.runs.capacity import CapacityOptions, capacity
from breakeven.runs.capacity_study import RATE, USERS
from breakeven.runs.load import LoadOptions
from breakeven.traffic.words import parse_duration, parse_length
from breakeven.traffic.workload import parse_slo

AXES = {None: (RATE, USERS), "rate": (RATE,), "users": (USERS,)}


def search_of(words: Mapping[str, Any]) -> CapacityOptions:
    """The options of the verb that describe the search. Raises UserError naming the one that is wrong."""
    if words["only"] not in AXES:
        raise UserError(f"--only {words['only']!r}: give rate or users, or leave it out for both")
    if words["seed"] < 0:
        raise UserError(f"--seed {words['seed']}: give 0 or more")
    return CapacityOptions(
        prompt=parse_length(words["prompt"]),
        output=parse_length(words["output"]),
        chat=words["chat"],
        think_s=_seconds("--think", words["think"]),
        target_share=percent("--share", words["share"]),
        confidence=percent("--confidence", words["confidence"]),
        precision=percent("--precision", words["precision"]),
        budget_s=_seconds("--budget", words["budget"]),
        axes=AXES[words["only"]],
        most_users=words["max_users"],
        highest_rate=words["max_rate"],
        seed=words["seed"],
    )


def run(target: str, slo: str, search: CapacityOptions, options: LoadOptions, *, quiet: bool, as_json: bool) -> None:
    """Search, write the result, print it."""
    wanted = parse_slo(slo)
    shown = LoadProgress(Console(stderr=True, highlight=False), quiet=quiet or as_json)
    try:
        with shown:
            study, directory = capacity(target, wanted, search, options, on_state=shown.update, on_phase=shown.phase)
    except KeyboardInterrupt:
        print(f"\nwhat was found is in {RESULT}; run the same command with --resume to go on", file=sys.stderr)
        raise
    encoded = save(study, directory)
    if as_json:
        sys.stdout.write(encoded.decode().rstrip() + "\n")
    else:
        show(study, directory)


def percent(option: str, text: str) -> float:
    """A share from "90%" or "0.9". Raises UserError naming `option`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    if not match:
        raise UserError(f"{option} {text!r}: give a percentage such as 5%")
    return float(match[1]) / (100 if match[2] else 1)


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
