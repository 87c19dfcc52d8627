"""The command line's verbs for Python: typed, with the same results that `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.answer.decide import decide as run_decision
from breakeven.answer.study.load import read_study
from breakeven.answer.study.plan import StudyPlan
from breakeven.errors import UserError
from breakeven.forecast.predict import predict as run_prediction
from breakeven.measure.paired.plan import Plan
from breakeven.measure.progress import LoadState, ProgressState
from breakeven.pages.decision_files import save_decision
from breakeven.pages.studies import save
from breakeven.results.comparison import Comparison
from breakeven.results.decision import Decision
from breakeven.results.load import CapacityStudy, LoadStudy
from breakeven.results.predicted import Prediction
from breakeven.runs.bench import bench as run_bench
from breakeven.runs.bench import compare_under_load as run_under_load
from breakeven.runs.bench import rate_loads, trace_turns
from breakeven.runs.bench import rounds as repeated
from breakeven.runs.capacity import CapacityOptions
from breakeven.runs.capacity import capacity as run_capacity
from breakeven.runs.compare import Options
from breakeven.runs.compare import compare as run_comparison
from breakeven.runs.load import LoadOptions
from breakeven.runs.recompute import Study
from breakeven.runs.recompute import recompute as compute_again
from breakeven.traffic.words import Words, traffic_of
from breakeven.traffic.workload import parse_slo

if TYPE_CHECKING:
    from breakeven.gateway.seen.snapshot import ExperimentState
    from breakeven.results.decision import LogDecision

DEFAULTS = Plan()
FOUR_STREAMS = Words()


def compare(
    models: Sequence[str],
    *,
    format: str = "Q4_K_M",
    streams: Sequence[int] = DEFAULTS.streams,
    prompt_tokens: int = DEFAULTS.prompt_tokens,
    output_tokens: int = DEFAULTS.output_tokens,
    precision: float = DEFAULTS.precision,
    budget_s: float = DEFAULTS.budget_s,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    look_inside: bool = True,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Comparison:
    """Measure `models` against each other on this machine; `breakeven compare` explains what a model may be.

    `precision` is relative (0.02: 2 %), `budget_s` seconds of measuring. Writes `result.json`, `events.jsonl` and
    `report.html` to `out` (default: a new directory under `results`). Raises UserError for what cannot be compared and
    EngineError when an engine fails.
    """
    plan = Plan(tuple(streams), prompt_tokens, output_tokens, precision, budget_s, seed)
    options = Options(plan, format, Path(out) if out is not None else None, resume, threads, look_inside)
    result, directory = run_comparison(models, options, on_progress)
    save(result, directory)
    return result


def bench(
    target: str,
    traffic: Words = FOUR_STREAMS,
    *,
    rounds: int = 1,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
) -> LoadStudy:
    """Measure one server (`http://host:port/v1#model`) or model under load, as `breakeven bench` does.

    `traffic` holds the words of the command line: `Traffic(rate="2,5", slo="ttft=1s")`. Writes result, log and page to
    `options.out` (default: a new directory under `results`). Raises UserError for what cannot be asked and EngineError
    when an engine fails.
    """
    asked = traffic_of(traffic)
    loads = [load for workload in asked.workloads for load in repeated(workload, rounds)]
    study, directory = run_bench(target, loads, asked.slo, options, trace=asked.trace, on_state=on_state)
    save(study, directory)
    return study


def compare_under_load(
    models: Sequence[str],
    traffic: Words,
    *,
    rounds: int = 2,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
) -> LoadStudy:
    """Measure candidates under the same traffic, as `breakeven compare --rate` or `--trace` does; see `bench`."""
    asked = traffic_of(traffic)
    whole = asked.workloads[0]
    loads = rate_loads(asked.workloads, rounds) if asked.trace is None else trace_turns(whole, asked.trace)
    study, directory = run_under_load(
        models, loads, asked.slo, options, asked=whole, trace=asked.trace, on_state=on_state
    )
    save(study, directory)
    return study


def capacity(
    target: str,
    slo: str,
    search: CapacityOptions | None = None,
    *,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
) -> CapacityStudy:
    """Find how much traffic `target` carries within `slo` ("ttft=1s,tpot=80ms"), as `breakeven capacity` does."""
    study, directory = run_capacity(target, parse_slo(slo), search, options, on_state=on_state)
    save(study, directory)
    return study


def recompute(directory: Path | str) -> Study:
    """The result of a study again, from the event log in its directory alone, as `breakeven report` shows it.

    Raises UserError when the directory holds no study.
    """
    return compute_again(Path(directory))


def predict_models(
    models: Sequence[str],
    machines: Sequence[str],
    *,
    engine: str | None = None,
    devices: int | None = None,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (512,),
    format: str | None = None,
) -> Prediction:
    """Predicted step times and memory of every model on every machine; `breakeven predict` explains both.

    Machines are slugs, files or "this"; None as the machine's class usually runs models. Raises UserError for unknown
    names.
    """
    return run_prediction(
        models, machines, engine=engine, devices=devices, batches=batches, contexts=contexts, format_name=format
    )


def serve(
    *what: str,
    decision: Path | str | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    admin_port: int | None = None,
) -> int:
    """Serve a gateway file, models, or a saved decision, as `breakeven serve` does, until SIGTERM; the exit status.

    It forks, so call it from a program that runs no threads and no event loop. Raises UserError for what cannot be
    served.
    """
    from breakeven.gateway.serve.run import run, source_of

    saved = None if decision is None else Path(decision)
    return run(source_of(what, saved, host=host, port=port, workers=workers, admin_port=admin_port))


def decide_from_log(study: Path | str, logs: Sequence[Path | str], out: Path | str) -> LogDecision:
    """The study, or a gateway's file, decided again on the traffic in decision logs; the trace is written into `out`.

    Raises UserError for what cannot be read.
    """
    from breakeven.gateway.loop.run import decide_from_log as run_from_log

    return run_from_log(Path(study), [Path(log) for log in logs], Path(out))


def explain(request_id: str, log: Path | str) -> str:
    """Why a request went where it went, in words. Raises UserError when the log does not hold it."""
    from breakeven.gateway.route.replay import explain as words
    from breakeven.gateway.seen.read_log import find

    record = find(Path(log), request_id)
    if record is None:
        raise UserError(f"{log} holds no request {request_id}")
    return words(record)


def experiment_status(log: Path | str) -> list[ExperimentState]:
    """How a gateway's experiments stand, as it saved them beside its log. Raises UserError when it has none."""
    from breakeven.gateway.experiment.watch import status

    return status(Path(log), None)


def decide_study(study: Path | str | StudyPlan, out: Path | str | None = None) -> Decision:
    """The verdict on a study, a file or a plan made in Python; with `out` also its result.json and page there.

    Raises UserError naming file and key for a study that makes no sense.
    """
    plan = study if isinstance(study, StudyPlan) else read_study(Path(study))
    result = run_decision(plan)
    if out is not None:
        save_decision(result, Path(out))
    return result
