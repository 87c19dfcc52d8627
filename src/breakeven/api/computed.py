"""Verbs that start no engine: what would happen, what it would cost, and which to run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, model_on, profiles_for
from breakeven.forecast.long_trace import WHOLE_BYTES, simulate_long_trace
from breakeven.forecast.model import StepModel
from breakeven.forecast.predict import predict as run_prediction
from breakeven.forecast.routing import read_routing
from breakeven.forecast.simulated import simulate_schedules
from breakeven.forecast.simulator.policy import Fleet, Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.hardware.placement import placement_of
from breakeven.model.layouts.derive import assuming
from breakeven.results.predicted import Prediction, SimulationStudy
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import Schedule
from breakeven.traffic.schedule_file import load_schedule
from breakeven.traffic.words import Words, traffic_of
from breakeven.traffic.workload import Slo, parse_slo

if TYPE_CHECKING:
    from breakeven.answer.claims import RunSpec
    from breakeven.answer.study.plan import StudyPlan
    from breakeven.measure.progress import ProgressState
    from breakeven.results.choose import ModelChoice
    from breakeven.results.claims import ClaimFinding, Claims
    from breakeven.results.decision import Decision, LogDecision

SIMULATED_S = 600.0
FOUR_STREAMS = Words()
ONE_REPLICA = Fleet()
OnPhase = Callable[[str, str], None]


def predict(
    models: Sequence[str],
    machines: Sequence[str] = ("this",),
    *,
    engine: str | None = None,
    devices: int | None = None,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (512,),
    format: str | None = None,
    routing: Mapping[str, Path | str] | None = None,
    expert_parallel: bool = False,
    kv: str | None = None,
    prompt: int | None = None,
    reserve: int | None = None,
    assume: bool = False,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
) -> Prediction:
    """Predicted step times and memory of every model on every machine; `breakeven predict` explains both.

    Models may name their format (`NAME:FORMAT`); `format` is that of the others, None: each one's own. Machines are
    slugs, words such as "rtx-3090+ddr4-3200x2:64GB", files or "this"; None as its class usually runs models.
    `routing`: what `breakeven trace --json` printed, by model as named in `models`; without it routing is taken as
    even. `kv`: type of keys and values, such as "q8_0". `prompt`, `reserve`: tokens of a prompt, and those each cache
    is made for; None: as the context. `assume`: read descriptions on past what is not known in them. `gpu_layers`
    ("auto", "all" or how many), `cpu_moe` ("auto" or how many), `device` and `tensor_split` are what llama.cpp is told.
    Raises UserError for unknown names.
    """
    with assuming(assume):
        return run_prediction(
            models,
            machines,
            engine=engine,
            devices=devices,
            batches=batches,
            contexts=contexts,
            format_name=format,
            frequencies={model: read_routing(Path(file)) for model, file in (routing or {}).items()},
            expert_parallel=expert_parallel,
            kv=kv,
            prompt=prompt,
            reserve=reserve,
            placement=placement_of(gpu_layers, cpu_moe, device, tensor_split),
        )


def choose(
    machine: str = "this",
    *,
    use: str = "chat",
    users: int = 1,
    prompt: int | None = None,
    output: int | None = None,
    context: int | None = None,
    min_speed: float | None = None,
    ttft: float | None = None,
    memory: str | None = None,
    languages: str | None = None,
    licence: str | None = None,
    max_usd_per_month: float | None = None,
    offline_only: bool = False,
    engine: str | None = None,
    devices: int | None = None,
    scores: Sequence[Path | str] = (),
    explain: str | None = None,
    out: Path | str | None = None,
) -> ModelChoice:
    """The best catalogued model for a machine and a use, the rest of the front, and how sure; as `breakeven choose`.

    `machine` as for `predict`; "this" needs no calibration. `use`: chat, code, agent, rag, batch or translate, whose
    numbers the others replace: tokens of a prompt, an answer and a cache, tokens/s of each of `users`, seconds to the
    first token, "12GB" of memory. `languages` and `licence` are parted by commas. `scores`: files of your own, which
    come before published ones. `explain`: NAME or NAME:FORMAT, to hear why that is not the pick. With `out` also its
    result.json and page there. Raises UserError for what is not known and for numbers that make no sense.
    """
    from breakeven.answer.choice.choose import choose as run_choice
    from breakeven.answer.choice.uses import ChoiceWords

    words = ChoiceWords(
        use=use,
        users=users,
        prompt=prompt,
        output=output,
        context=context,
        min_speed=min_speed,
        ttft=ttft,
        memory=memory,
        languages=languages,
        licence=licence,
        max_usd_per_month=max_usd_per_month,
        offline_only=offline_only,
        scores=tuple(Path(file) for file in scores),
    )
    result = run_choice(words, machine, engine=engine, devices=devices, explain=explain)
    if out is not None:
        from breakeven.pages.choose_html import save_choice

        save_choice(result, Path(out))
    return result


def simulate(
    model: str,
    traffic: Words = FOUR_STREAMS,
    *,
    schedule: Path | str | None = None,
    machine: str = "this",
    engine: str | None = None,
    devices: int | None = None,
    format: str | None = None,
    fleet: Fleet = ONE_REPLICA,
    slots: int | None = None,
    step_tokens: int | None = None,
    kv_tokens: int | None = None,
    kv: str | None = None,
    assume: bool = False,
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
) -> SimulationStudy:
    """How the engine would answer `traffic`, without running it, as `breakeven simulate` does.

    `traffic` holds the words of the command line: `Traffic(rate="5,20", slo="ttft=1s")`; with `schedule`, a file that a
    run wrote, only its service level counts. `slots`, `step_tokens` and `kv_tokens` None: what the engine does and what
    fits. `model`, `format`, `kv`, `assume` and what lies where as for `predict`. Raises UserError for unknown names,
    traffic that makes no sense and a model that does not fit.
    """
    with assuming(assume):
        asked = asked_model(model, format)
    lies = placement_of(gpu_layers, cpu_moe, device, tensor_split)
    steps = model_on(asked, profiles_for([asked], machine, engine, devices)[0], devices, kv=kv, placement=lies)

    def policy(length: float | None) -> Policy:
        usual = policy_of(steps, length)
        return replace(
            usual,
            max_sequences=usual.max_sequences if slots is None else slots,
            max_step_tokens=usual.max_step_tokens if step_tokens is None else step_tokens,
            kv_tokens=usual.kv_tokens if kv_tokens is None else kv_tokens,
            # What a run was asked it held, however its engine was told to.
            slot_tokens=None if schedule is not None else steps.spec.context or None,
        )

    trace = None if traffic.trace is None else Path(traffic.trace)
    if trace is not None and trace.is_file() and trace.stat().st_size > WHOLE_BYTES:
        return _long(steps, traffic, trace, schedule, policy(None), fleet, machine)
    schedules, slo, notes = _schedules(traffic, schedule)
    longest = max(float((each.prompt_N + each.output_N).mean()) for each in schedules)
    study = simulate_schedules(steps, schedules, slo=slo, policy=policy(longest), fleet=fleet, machine=machine)
    return msgspec.structs.replace(study, notes=[*notes, *study.notes])


def _long(
    steps: StepModel,
    traffic: Words,
    trace: Path,
    schedule: Path | str | None,
    policy: Policy,
    fleet: Fleet,
    machine: str,
) -> SimulationStudy:
    """A trace longer than fits in memory, part by part."""
    given = {
        "rate": traffic.rate,
        "concurrency": traffic.concurrency,
        "schedule": schedule,
        "window": traffic.window,
        "duration": traffic.duration,
        "requests": traffic.requests,
        "prompt": traffic.prompt,
        "output": traffic.output,
        "warm-up": traffic.warm_up,
        "prompts": traffic.prompts,
        "turns": None if traffic.turns == 1 else traffic.turns,
    }
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{trace} is too long to be read whole: leave out --{option}, or cut the file")
    if not 0 < traffic.speed <= 1e6:
        raise UserError(f"--speed {traffic.speed:g}: give how many times as fast as recorded, such as 0.5")
    slo = parse_slo(traffic.slo) if traffic.slo else None
    return simulate_long_trace(
        steps,
        trace,
        format=traffic.trace_format,
        speed=traffic.speed,
        sharing=traffic.sharing,
        slo=slo,
        policy=policy,
        fleet=fleet,
        machine=machine,
    )


def _schedules(traffic: Words, schedule: Path | str | None) -> tuple[list[Schedule], Slo | None, tuple[str, ...]]:
    if schedule is None:
        asked = traffic_of(traffic, SIMULATED_S)
        return [draw(workload, asked.trace) for workload in asked.workloads], asked.slo, asked.notes
    for other, value in (("rate", traffic.rate), ("concurrency", traffic.concurrency), ("trace", traffic.trace)):
        if value is not None:
            raise UserError(f"--schedule and --{other} are different kinds of load; give one of them")
    return [load_schedule(Path(schedule))], parse_slo(traffic.slo) if traffic.slo else None, ()


def decide(
    study: Path | str | StudyPlan,
    out: Path | str | None = None,
    *,
    assume: bool = False,
    on_phase: OnPhase = lambda phase, subject: None,
) -> Decision:
    """The verdict on a study, a file or a plan made in Python; with `out` also its result.json and page there.

    `assume`: read descriptions of models on past what is not known in them. Raises UserError naming file and key for a
    study that makes no sense.
    """
    from breakeven.answer.decide import decide as run_decision
    from breakeven.answer.study.load import read_study
    from breakeven.pages.saved import save_decision

    with assuming(assume):
        result = run_decision(read_study(Path(study)) if isinstance(study, Path | str) else study, on_phase)
    if out is not None:
        save_decision(result, Path(out))
    return result


def decide_from_log(
    study: Path | str,
    logs: Sequence[Path | str],
    out: Path | str,
    *,
    saved: Path | str | None = None,
    on_phase: OnPhase = lambda phase, subject: None,
) -> LogDecision:
    """The study, or a gateway's file, decided again on the traffic in decision logs, as `decide --from-log` does.

    Writes the traffic as a trace, `from-log.json`, `result.json` and `report.html` into `out`. `saved`: the result.json
    that holds the verdict so far, if any. Raises UserError for what cannot be read.
    """
    from breakeven.gateway.loop.run import decide_from_log as run_from_log
    from breakeven.pages.saved import save_log_decision

    before = None if saved is None else Path(saved)
    result = run_from_log(Path(study), [Path(log) for log in logs], Path(out), on_phase, before)
    on_phase("writing", str(out))
    save_log_decision(result, Path(out))
    return result


def claims(
    name: str | None = None,
    *,
    run: bool = False,
    on_claim: Callable[[str], None] = lambda name: None,
    on_run: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Claims:
    """The sentences that people come with, judged by today's model: all, or the one called `name`.

    `run`: also measure that one on this machine, where it can be; `on_run` hears first what it takes, and `on_progress`
    how it goes on. Raises UserError for an unknown name, and where nothing can be measured here.
    """
    from breakeven.answer.claims import claim_named, judge_claims, run_of

    if not run:
        return judge_claims(name, on_claim=on_claim)
    if name is None:
        raise UserError("--run measures one claim; name it (`breakeven claims` lists them)")
    spec = claim_named(name).run
    if spec is None:
        raise UserError(f"{name} cannot be measured here; `breakeven claims {name}` says what would settle it")
    if spec.only_on and platform.machine() not in spec.only_on:
        raise UserError(f"{name} is about {' or '.join(spec.only_on)}, and this is {platform.machine()}; run it there")
    takes = run_of(name, spec)
    on_run(
        f"Measuring here, {takes.measures}: about {takes.minutes:g} minutes, {takes.memory_bytes / 1e9:g} GB of memory."
    )
    return judge_claims(name, _measured(spec, on_run, on_progress), on_claim)


def _measured(
    run: RunSpec, on_run: Callable[[str], None], on_progress: Callable[[ProgressState], None]
) -> list[ClaimFinding]:
    """What a measurement on this machine says of a claim."""
    from breakeven.answer.claims import compared_findings, profiled_findings
    from breakeven.api.inspected import profile
    from breakeven.api.measured import compare

    if run.over is None:
        return profiled_findings(run, profile(run.of, on_progress=on_progress).profiles)
    result = compare(
        [run.of, run.over],
        streams=run.streams,
        budget_s=60.0 * run.minutes / 2,
        on_progress=on_progress,
        on_saved=lambda directory: on_run(f"Saved in {directory}."),
    )
    return compared_findings(run, result.pairs)
