"""Goodput of routing on bursty traces, against blind rules and an oracle: simulated engines, the real `choose`.

    python -m bench.gateway_goodput [--case gpu ...] [--trace FILE ...] [--cuts 1,3,5,7,9] [--out FILE]
    python -m bench.gateway_goodput --table FILE
    python -m bench.gateway_goodput --real [--models DENSE MOE] [--seconds 60] [--rates 1,2,4]

A dense and an MoE backend get a cut of a trace, its times stretched to a share of what both keep alone. Each machine is
off its step model by a draw from that profile's stated error; the gateway does not know by how much, nor any length
before an answer has ended. Every line of `--out` is one run. `--real`: two llama.cpp engines behind a gateway here.
docs/gateway-goodput.md says what came of it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.goodput.cases import CASES, cuts
from bench.goodput.oracle import ORACLES
from bench.goodput.play import ALONE, PAIRS, RIVALS, play, saturation
from bench.goodput.real import TINY, real

TRACES = (Path("examples/traces/azure-conversations-5min.csv"), Path("examples/traces/azure-code-10min.csv"))
LOADS = (0.7, 1.0, 1.3)
AMONG = 10
"""A trace is cut in so many places. The even ones were used to choose the policy's margin, the odd ones were not."""
HELD_OUT = (1, 3, 5, 7, 9)
RULES = (*RIVALS, *ALONE, *PAIRS, "breakeven", "breakeven, true lengths", "breakeven, shed", *ORACLES)
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Student's t, two-sided 95 %, by degrees of freedom."""


def run(said: argparse.Namespace) -> None:
    """Every case on every trace, one JSON line a run as soon as it is there."""
    numbers = tuple(int(number) for number in said.cuts.split(","))
    loads = [float(load) for load in said.loads.split(",")]
    with said.out.open("a") as out:
        for name in said.case:
            case = CASES[name]
            rules = said.rules or (*RULES, *(policy for policy in case.policies if policy not in RULES))
            if any(place.machine is None for place in case.places):
                # Nobody rents two of a hosted model, and two devices are no alternative to one.
                rules = tuple(rule for rule in rules if rule not in PAIRS)
            for trace in said.trace:
                for number, cut in zip(numbers, cuts(trace, said.requests, AMONG, numbers), strict=True):
                    full = saturation(case, cut, number)
                    for load in loads:
                        for rule in rules:
                            found = play(case, rule, cut, load * full, number)
                            row = {"case": name, "trace": cut.name, "cut": number, "gaps_cv": cut.gaps_cv}
                            row |= {"load": load, "rate_per_s": load * full, "rule": rule, **asdict(found)}
                            print(json.dumps(row), file=out, flush=True)


def table(path: Path) -> None:
    """Markdown tables of a file of runs: share of promises kept, ratios with intervals, dollars."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["case"], row["trace"]].append(row)
    for (case, trace), found in groups.items():
        loads = sorted({row["load"] for row in found})
        print(f"\n**{case}, {trace}** ({len({row['cut'] for row in found})} cuts)\n")
        head = " | ".join(f"{load:g}: kept | breakeven over it | USD / 1000 kept" for load in loads)
        print(f"| rule | {head} |\n|---|{'---|---|---|' * len(loads)}")
        for rule in dict.fromkeys(row["rule"] for row in found):
            cells = []
            for load in loads:
                mine = _by_cut(found, "breakeven", load)
                theirs = _by_cut(found, rule, load)
                kept = fmean(row["good"] / row["requests"] for row in theirs)
                usd = 1000 * sum(row["usd"] for row in theirs) / max(1, sum(row["good"] for row in theirs))
                told = "" if rule == "breakeven" else ratio_text([a["good"] for a in mine], [b["good"] for b in theirs])
                cells.append(f"{kept:.3f} | {told} | {usd:.3f}")
            print(f"| {rule} | {' | '.join(cells)} |")


def _by_cut(rows: Sequence[dict[str, Any]], rule: str, load: float) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["rule"] == rule and row["load"] == load), key=lambda row: row["cut"])


def ratio_text(mine: Sequence[int], theirs: Sequence[int]) -> str:
    """Geometric mean of paired ratios with its 95 % interval (Student's t on logarithms)."""
    logs = [log(max(a, 0.5) / max(b, 0.5)) for a, b in zip(mine, theirs, strict=True)]
    middle = fmean(logs)
    if len(logs) < 2:
        return f"{exp(middle):.2f}"
    half = T95[len(logs) - 1] * stdev(logs) / sqrt(len(logs))
    return f"{exp(middle):.2f} [{exp(middle - half):.2f}, {exp(middle + half):.2f}]"


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--trace", nargs="*", type=Path, default=list(TRACES))
    parser.add_argument("--cuts", default=",".join(map(str, HELD_OUT)), help="which of ten cuts; also the seeds")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)), help="shares of what both keep alone")
    parser.add_argument("--rules", nargs="*", help="all that the case has, unless given")
    parser.add_argument("--requests", type=int, default=600, help="in a cut")
    parser.add_argument("--out", type=Path, default=Path("gateway-goodput.jsonl"))
    parser.add_argument("--table", type=Path, help="print the tables of such a file")
    parser.add_argument("--real", action="store_true", help="two llama.cpp backends behind a gateway on this machine")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --real: of traffic for every rule and rate")
    parser.add_argument("--models", nargs=2, type=Path, default=TINY, help="with --real: a dense and an MoE one")
    parser.add_argument("--rates", default="1,2,4", help="with --real: requests a second")
    said = parser.parse_args()
    if said.table is not None:
        table(said.table)
    elif said.real:
        real(said.trace[0], said.seconds, [float(rate) for rate in said.rates.split(",")], tuple(said.models))
    else:
        run(said)


if __name__ == "__main__":
    main()
