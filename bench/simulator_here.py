"""The simulator against the real thing, here: two unseen models under measured load, and the same schedule simulated.

    python bench/simulator_here.py --profile FILE [--engine llama.cpp] [--seconds 90] [--out DIR]

The profile is one of `breakeven calibrate`. Rates are shares of what the simulator itself takes for saturation. Each
schedule is drawn once, played against the engine, read back from the run's own file and simulated. A run that `--out`
already holds is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import breakeven
from breakeven.forecast.model import step_model
from breakeven.forecast.profiles import load_profile
from breakeven.forecast.serving import replica_of, saturation_per_s
from breakeven.forecast.simulated import simulate_schedules
from breakeven.forecast.simulator.run import policy_of
from breakeven.model.formats.named import default_format
from breakeven.model.resolve import resolve_spec
from breakeven.results.load import LoadPoint, LoadStudy
from breakeven.results.predicted import SimulatedPoint
from breakeven.traffic.schedule_file import load_schedule
from breakeven.traffic.workload import Arrivals, Length, Workload

DATA = Path(__file__).parent / "data"
MODELS = (DATA / "load-dense.yaml", DATA / "load-moe.yaml")
SHARES = (0.3, 0.6, 0.85)
PROMPT, OUTPUT = "lognormal:120,60[16-400]", "lognormal:40,20[8-120]"
SHAPE = Workload(
    arrivals=Arrivals(process="poisson", rate_per_s=1.0),
    prompt=Length(kind="lognormal", mean=120, sd=60, low=16, high=400),
    output=Length(kind="lognormal", mean=40, sd=20, low=8, high=120),
)
LOOKED_AT = tuple((metric, p) for metric in ("ttft_s", "tpot_s", "e2e_s") for p in (50, 90, 99))


@dataclass(frozen=True, slots=True)
class Row:
    """One delay at one load: measured, simulated, and the simulation's interval."""

    what: str
    measured: float
    value: float
    low: float
    high: float

    @property
    def off(self) -> float:
        """|simulated / measured - 1|."""
        return abs(self.value / self.measured - 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp(prefix="breakeven-here-"))
    profile = load_profile(asked.profile)
    rows: list[Row] = []
    for path in MODELS:
        spec = resolve_spec(str(path))
        model = step_model(spec, profile, profile.origin.format or default_format(spec, profile.engine))
        policy = policy_of(model, 160)
        replica = replica_of(model, policy, SHAPE)
        assert replica is not None
        top = saturation_per_s(replica)
        print(f"{path.stem}: simulated saturation {top:.2f} req/s", flush=True)
        for share in SHARES:
            rate = round(share * top, 2)
            directory = out / f"{path.stem}-{rate:g}"
            if (directory / "result.json").exists():
                study = breakeven.report(directory)
            else:
                study = breakeven.bench(
                    str(path),
                    breakeven.Traffic(rate=f"{rate:g}", prompt=PROMPT, output=OUTPUT, duration=f"{asked.seconds}s"),
                    options=breakeven.LoadOptions(out=directory, engine=asked.engine, slots=policy.max_sequences),
                )
            assert isinstance(study, LoadStudy)
            schedule = load_schedule(next(directory.glob("schedule-*.jsonl")))
            simulated = simulate_schedules(model, [schedule], policy=policy, over_time=False).points[0]
            rows += compared(f"{path.stem} {rate:g}/s", study.points[0], simulated)
    print(f"{'':<24}{'delay':>9}{'measured':>11}{'simulated':>11}{'interval':>20}{'off':>8}")
    for row in rows:
        name, delay = row.what.rsplit(" ", 1)
        span = f"{row.low:.4g}-{row.high:.4g}"
        print(f"{name:<24}{delay:>9}{row.measured:>11.4g}{row.value:>11.4g}{span:>20}{row.off:>8.1%}")
    for metric, p in LOOKED_AT:
        mine = sorted(r.off for r in rows if r.what.endswith(f"{metric}/p{p}"))
        inside = sum(r.low <= r.measured <= r.high for r in rows if r.what.endswith(f"{metric}/p{p}"))
        if mine:
            middle = (mine[len(mine) // 2] + mine[(len(mine) - 1) // 2]) / 2
            print(f"{metric} p{p}: median off {middle:.1%}, {inside} of {len(mine)} inside their interval")


def compared(load: str, measured: LoadPoint, simulated: SimulatedPoint) -> list[Row]:
    """Rows of one load, where both have the percentile."""
    found = []
    for metric, p in LOOKED_AT:
        real = next((one for one in measured.latencies if one.metric == metric), None)
        told = next((one for one in simulated.latencies if one.metric == metric), None)
        a = next((q.value for q in real.percentiles if q.p == p), None) if real else None
        b = next((q.seconds for q in told.percentiles if q.p == p), None) if told else None
        if a is not None and b is not None:
            found.append(Row(f"{load} {metric}/p{p}", a, b.value, b.low, b.high))
    return found


if __name__ == "__main__":
    main()
