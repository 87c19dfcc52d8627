"""Sessions of agents in llama.cpp here: what it keeps of prompts, the delay of first tokens, and the same simulated.

    python bench/agents_reuse.py --out DIR [--profile FILE] [--model NAME]... [--seconds 240] [--share 0.3] [--quick]

Without `--profile` the machine is calibrated first, for `--budget` seconds, and the profile kept under DIR. A model (a
dense and a Mixture-of-Experts shape by default, weights made up) then plays `--arrivals agents` at a rate that keeps it
`--share` busy by the simulator's own word, for about `--seconds`, each slot keeping its last prompt. The simulator gets
the schedule that was played, and nothing measured. What DIR holds is not measured again: give another DIR, or take the
model's directory away. The machine must have nothing else to do. `--quick`: one tiny model and a dozen requests, which
shows that it runs and is no figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import breakeven
from bench.simulator_here import DATA, Row, compared
from breakeven.forecast.constants import Profile
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import load_profile
from breakeven.forecast.simulated import simulate_schedules, simulate_traffic
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.model.formats.named import default_format
from breakeven.model.resolve import resolve_spec
from breakeven.results.load import LoadPoint, LoadStudy
from breakeven.results.predicted import SimulatedPoint
from breakeven.runs.calibrate import calibrate
from breakeven.runs.probed import CalibrateOptions
from breakeven.traffic.schedule_file import load_schedule
from breakeven.traffic.workload import Agents, Arrivals, Workload

ENGINE = "llama.cpp"
MODELS = ("smollm2-360m", "granite-3.1-1b-a400m")
QUICK = (str(DATA / "load-dense.yaml"),)
SHAPE = Agents(prefix=768, task=80, new=100, output=32, turns=5, tool_s=2.0, subagents=0.1)
SLOTS = 4
TRIED_PER_S, TRIED = 0.002, 200
"""Sessions a second so rare that they seldom meet, and how many requests tell what share of the time they take."""
QUICK_REQUESTS = 12
TARGET = 0.20
"""TTFT p50: |predicted / measured - 1| at most."""


@dataclass(frozen=True, slots=True)
class Played:
    """One model's sessions. Shares are of the prompts' tokens; `measured` None: the engine did not say."""

    model: str
    load: str
    requests: int
    measured: float | None
    predicted: float
    delays: list[Row]

    @property
    def first(self) -> Row | None:
        """TTFT p50; None: it was not to be had."""
        return next((row for row in self.delays if row.what.endswith(" ttft_s/p50")), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--budget", type=float, default=360.0, help="seconds of calibration, where no profile is given")
    parser.add_argument("--model", action="append", help=f"by default {' and '.join(MODELS)}")
    parser.add_argument("--seconds", type=float, default=240.0, help="of traffic a model")
    parser.add_argument("--share", type=float, default=0.3, help="of the time that the engine is to be busy")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    profile = load_profile(asked.profile) if asked.profile else calibrated(asked.out, asked.budget)
    found = [
        played(name, profile, asked.out, asked.share, None if asked.quick else asked.seconds)
        for name in asked.model or (QUICK if asked.quick else MODELS)
    ]
    (asked.out / "rows.json").write_text(json.dumps([asdict(one) for one in found], indent=1))
    text = table(found)
    (asked.out / "table.md").write_text(text)
    print(text, end="")


def calibrated(out: Path, budget_s: float) -> Profile:
    """The profile kept under `out`, measured now where there is none."""
    kept = out / "profile.json"
    if not kept.exists():
        begun = (out / "profile-calibration").exists()
        print(f"calibrating for {budget_s / 60:.0f} minutes", flush=True)
        calibrate(CalibrateOptions(engine=ENGINE, budget_s=budget_s, out=kept, resume=begun))
    return load_profile(kept)


def played(name: str, profile: Profile, out: Path, share: float, seconds: float | None) -> Played:
    """Sessions measured, unless `out` has them, and simulated. `seconds` None: only so many that it is seen to run."""
    spec = resolve_spec(name)
    form = profile.origin.format or default_format(spec, profile.engine)
    model = step_model(spec, profile, form)
    policy = policy_of(model)
    assert policy.max_sequences == SLOTS
    directory = out / f"agents-{spec.name}"
    if (directory / "result.json").exists():
        study = breakeven.report(directory)
    else:
        shutil.rmtree(directory, ignore_errors=True)  # what an interruption left
        per_s, requests = sessions(model, policy, share, seconds)
        print(f"{spec.name}: {requests} requests, {per_s:g} sessions/s", flush=True)
        study = breakeven.bench(
            name,
            breakeven.Traffic(rate=f"{per_s:g}", arrivals=words(), requests=requests, warm_up="0s"),
            options=breakeven.LoadOptions(out=directory, engine=ENGINE, slots=SLOTS, format_name=form),
        )
    assert isinstance(study, LoadStudy)
    schedule = load_schedule(next(directory.glob("schedule-*.jsonl")))
    simulated = simulate_schedules(model, [schedule], policy=policy, over_time=False).points[0]
    return beside(spec.name, study.points[0], simulated)


def sessions(model: StepModel, policy: Policy, share: float, seconds: float | None) -> tuple[float, int]:
    """Sessions a second that keep the engine busy for `share` of the time, and requests for about `seconds` of them."""
    arrivals = Arrivals(process="agents", rate_per_s=TRIED_PER_S, agents=SHAPE)
    tried = simulate_traffic(model, [Workload(arrivals=arrivals, requests=TRIED)], policy=policy, over_time=False)
    per_s = float(f"{TRIED_PER_S * share / tried.points[0].utilisation:.2g}")
    a_session = SHAPE.turns * (1 + SHAPE.subagents * max(1.0, SHAPE.turns / 3))
    return per_s, QUICK_REQUESTS if seconds is None else max(QUICK_REQUESTS, round(per_s * a_session * seconds))


def words() -> str:
    """`SHAPE` as `--arrivals` takes it."""
    told = {name: f"{getattr(SHAPE, name):g}" for name in ("prefix", "task", "new", "output", "turns")}
    told |= {"tool": f"{SHAPE.tool_s:g}s", "subagents": f"{SHAPE.subagents:.0%}"}
    return "agents:" + ",".join(f"{name}={value}" for name, value in told.items())


def beside(name: str, measured: LoadPoint, simulated: SimulatedPoint) -> Played:
    """The two in one record."""
    return Played(
        model=name,
        load=measured.load,
        requests=simulated.requests,
        measured=measured.cached_prompt_share,
        predicted=simulated.cached_prompt_share,
        delays=compared(name, measured, simulated),
    )


def table(found: list[Played]) -> str:
    """What was reused and TTFT p50 in Markdown, then every delay that both have."""
    lines = [
        "| model | load | requests | reused measured | predicted | TTFT p50 measured s | predicted | interval | off |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for one in found:
        kept = "not told" if one.measured is None else f"{one.measured:.1%}"
        first = "not available | | |" if one.first is None else _delay(one.first)
        lines.append(f"| {one.model} | {one.load} | {one.requests} | {kept} | {one.predicted:.1%} | {first} |")
    lines += ["", f"target: TTFT p50 within {TARGET:.0%}", ""]
    lines += ["| model, delay | measured s | predicted s | interval | off |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {_delay(row)} |" for one in found for row in one.delays]
    return "\n".join(lines) + "\n"


def _delay(row: Row) -> str:
    off = row.value / row.measured - 1
    return f"{row.measured:.4g} | {row.value:.4g} | {row.low:.3g} to {row.high:.3g} | {off:+.1%}"


if __name__ == "__main__":
    main()
