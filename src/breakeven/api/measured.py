"""Verbs that run engines here or ask servers, and those that read what such runs left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.events import iter_events
from breakeven.measure.paired.plan import Plan
from breakeven.measure.progress import LoadState, ProgressState
from breakeven.pages.lab_html import LabResult, write_page
from breakeven.pages.saved import lab_file, save
from breakeven.results.comparison import Comparison
from breakeven.results.lab import Evaluation, ExpertScores, Proof
from breakeven.results.load import CapacityStudy, Check, LoadStudy
from breakeven.results.store import RESULT, read, write
from breakeven.runs.bench import bench as run_bench
from breakeven.runs.bench import compare_under_load as run_under_load
from breakeven.runs.bench import rate_loads, trace_turns
from breakeven.runs.bench import rounds as repeated
from breakeven.runs.capacity import CapacityOptions
from breakeven.runs.capacity import capacity as run_capacity
from breakeven.runs.check import TOLERANCE
from breakeven.runs.check import check as compare_runs
from breakeven.runs.compare import Options, demo_pair
from breakeven.runs.compare import compare as run_comparison
from breakeven.runs.load import LoadOptions
from breakeven.runs.load_study import load_study
from breakeven.runs.recheck import log_of, replay
from breakeven.runs.recompute import Study, recompute
from breakeven.runs.served import EngineWords
from breakeven.traffic.prompt_file import read_prompts
from breakeven.traffic.words import Words, traffic_of
from breakeven.traffic.workload import parse_slo

DEFAULTS = Plan()
FOUR_STREAMS = Words()


def compare(
    models: Sequence[str] = (),
    *,
    format: str | None = None,
    kv: str | None = None,
    assume: bool = False,
    engine: str | None = None,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
    engine_flags: Sequence[str] = (),
    streams: Sequence[int] = DEFAULTS.streams,
    prompt_tokens: int = DEFAULTS.prompt_tokens,
    output_tokens: int = DEFAULTS.output_tokens,
    prompts: Path | str | None = None,
    precision: float = DEFAULTS.precision,
    budget_s: float = DEFAULTS.budget_s,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    look_inside: bool = True,
    charts: bool = False,
    demo: bool = False,
    command: str = "breakeven.compare",
    on_progress: Callable[[ProgressState], None] = lambda state: None,
    on_saved: Callable[[Path], None] = lambda directory: None,
) -> Comparison:
    """Measure `models` against each other on this machine; `breakeven compare` explains what a model may be.

    `engine` None: the one that suits this machine; `gpu_layers` ("auto", "all" or a number), `cpu_moe`, `device` and
    `tensor_split`: where weights are to lie, of candidates that do not say so themselves (`NAME@cpu-moe=12`);
    `engine_flags`: the engine's own flags.

    `format`: of synthetic models that name none (`NAME:FORMAT`); None: each one's own, else Q4_K_M. `kv`: type of keys
    and values, None: 16 bits. `assume`: read models on past what is not known in their files. `precision` is relative
    (0.02: 2 %), `budget_s` seconds of measuring. `prompts`: a file of one's own, of whose text prompts are made. Writes
    `result.json`, `events.jsonl` and `report.html` to `out` (default: a new directory under `results`, which `on_saved`
    hears), with `charts` every chart too. `demo`: the largest prepared pair that fits here instead of `models`.
    `command` is recorded. Raises UserError for what cannot be compared and EngineError when an engine fails.
    """
    own = None if prompts is None else read_prompts(prompts)
    texts = () if own is None else tuple(request.plain for request in own.requests)
    plan = Plan(tuple(streams), prompt_tokens, output_tokens, precision, budget_s, seed, texts)
    asked = EngineWords(
        engine=engine,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
        flags=tuple(engine_flags),
    )
    notes = () if own is None else (f"Prompts are made of {len(texts):,} of one's own ({prompts}), cut to one length.",)
    options = Options(plan, format, kv, assume, _path(out), resume, threads, look_inside, command, asked, notes)
    if demo:
        if models:
            raise UserError("--demo chooses its own models; leave either it or them out")
        models, options = demo_pair(options)
    result, directory = run_comparison(models, options, on_progress)
    save(result, directory, charts=charts)
    on_saved(directory)
    return result


def bench(
    target: str,
    traffic: Words = FOUR_STREAMS,
    *,
    rounds: int = 1,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
    on_saved: Callable[[Path], None] = lambda directory: None,
) -> LoadStudy:
    """Measure one server (`http://host:port/v1#model`) or model under load, as `breakeven bench` does.

    `traffic` holds the words of the command line: `Traffic(rate="2,5", slo="ttft=1s")`. Writes result, log and page to
    `options.out` (default: a new directory under `results`, which `on_saved` hears). Raises UserError for what cannot
    be asked and EngineError when an engine fails.
    """
    asked = traffic_of(traffic)
    if rounds < 1:
        raise UserError("--rounds must be 1 or more")
    loads = [load for workload in asked.workloads for load in repeated(workload, rounds)]
    study, directory = run_bench(
        target,
        loads,
        asked.slo,
        options,
        trace=asked.trace,
        notes=asked.notes,
        on_state=on_state,
        on_phase=on_phase,
    )
    save(study, directory)
    on_saved(directory)
    return study


def compare_under_load(
    models: Sequence[str],
    traffic: Words,
    *,
    rounds: int = 2,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
    on_saved: Callable[[Path], None] = lambda directory: None,
) -> LoadStudy:
    """Measure candidates under the same traffic, as `breakeven compare --rate` or `--trace` does; see `bench`."""
    asked = traffic_of(traffic)
    if rounds < 1 and asked.trace is None:
        raise UserError("--rounds must be 1 or more")
    whole = asked.workloads[0]
    loads = rate_loads(asked.workloads, rounds) if asked.trace is None else trace_turns(whole, asked.trace)
    study, directory = run_under_load(
        models,
        loads,
        asked.slo,
        options,
        asked=whole,
        trace=asked.trace,
        notes=asked.notes,
        on_state=on_state,
        on_phase=on_phase,
    )
    save(study, directory)
    on_saved(directory)
    return study


def capacity(
    target: str,
    slo: str,
    search: CapacityOptions | None = None,
    *,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
    on_saved: Callable[[Path], None] = lambda directory: None,
) -> CapacityStudy:
    """Find how much traffic `target` carries within `slo` ("ttft=1s,tpot=80ms"), as `breakeven capacity` does.

    Writes and raises as `bench` does.
    """
    study, directory = run_capacity(target, parse_slo(slo), search, options, on_state=on_state, on_phase=on_phase)
    save(study, directory)
    on_saved(directory)
    return study


def check(
    baseline: Path | str,
    new: Path | str | None = None,
    *,
    url: str | None = None,
    tolerance: float = TOLERANCE,
    options: LoadOptions | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> Check:
    """Compare a run with a saved one, both directories that `bench` wrote; `worse` only where an interval says so.

    Without `new` the saved schedule is played again, on `url` or on what the saved run measured; the new run is written
    to `options.out`. Differences up to `tolerance` (a share) are never worse. Raises UserError for what is no such run.
    """
    old = Path(baseline)
    place = _path(new)
    if place is not None and url is not None:
        raise UserError("NEW is a run that was saved and --url asks for one to be made; give one of them")
    saved = _saved_run(old)
    if place is None:
        study, place = replay(old, url, options or LoadOptions(), on_state=on_state, on_phase=on_phase)
        write(study, place / RESULT)
    else:
        study = _saved_run(place)
    old_log, new_log = log_of(old), log_of(place)
    logs = (iter_events(old_log), iter_events(new_log)) if old_log and new_log else None
    return compare_runs(saved, study, logs=logs, tolerance=tolerance, name=str(baseline))


def _saved_run(place: Path) -> LoadStudy:
    """The saved run at a directory or file: its result.json, else computed from its log."""
    if not place.exists():
        raise UserError(f"{place} does not exist; give a directory that `breakeven bench --out` wrote")
    result = place / RESULT if place.is_dir() else place
    if result.is_file():
        return read(result, LoadStudy)
    log = log_of(place)
    if log is None:
        raise UserError(f"{place} holds neither {RESULT} nor events.jsonl; give what `breakeven bench --out` wrote")
    return load_study(log)


def report(
    directory: Path | str,
    out: Path | str | None = None,
    *,
    charts: bool = False,
    speed: Path | str | None = None,
) -> Study | LabResult:
    """The result of a study again, from the event log in its directory alone; with `out` result and page there too.

    `directory`: also the JSON file of an evaluation, a proof or experts' scores, or a directory that holds a
    `proof.json`; its page is written beside it, or into `out`, and `speed` names a saved comparison of the same files,
    which tells how fast they answer. `charts`: also each chart of a comparison, in `out`. Raises UserError when there
    is none of these, and for charts of another kind of study.
    """
    place = Path(directory)
    data = lab_file(place)
    if place.suffix == ".json" and not place.exists():
        raise UserError(f"{place}: no such file; give what a verb of the lab wrote, or the directory of a study")
    if data is not None and (place.is_file() or log_of(place) is None):
        if charts:
            raise UserError("--charts writes the figures of a comparison without load; the lab's are in their page")
        lab = read(data, Evaluation, Proof, ExpertScores)
        compared = None if speed is None else read(_result_at(Path(speed)), Comparison)
        write_page(lab, data if out is None else Path(out) / data.name, compared)
        return lab
    if speed is not None:
        raise UserError(f"--speed adds a comparison to the lab's results; {place} holds none, so leave it out")
    study = recompute(place)
    if charts and not isinstance(study, Comparison):
        raise UserError("--charts writes the figures of a comparison without load; this study's are in its page")
    if out is not None:
        save(study, Path(out), charts=charts)
    return study


def _result_at(place: Path) -> Path:
    return place / RESULT if place.is_dir() else place


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)
