"""`breakeven calibrate`: a few small probes in the real engine, and from them the constants of this machine.

Probes run one after the other, each under every load, forward in even rounds and backward in odd ones, as long as the
budget lasts. Everything measured is in the event log; the profile is a pure function of it, so that it can be fitted
again.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from breakeven.engines.backend import LLAMA_CPP, VLLM
from breakeven.engines.devices import usual_engine
from breakeven.engines.source import Source
from breakeven.engines.start import Engine, engine_named, start, weights_of
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.forecast.calibration.fit import Fitted, LeftOut, errors_of, fit, leave_models_out, ranges_of
from breakeven.forecast.calibration.parameters import CPU_TILE, Observation, Phase
from breakeven.forecast.calibration.probes import ProbeLoad, loads_for, probes_for, slots_and_context
from breakeven.forecast.constants import Origin, Profile
from breakeven.forecast.profiles import save_profile
from breakeven.forecast.terms import terms_of
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.reader import read_machine
from breakeven.measure import events, noise
from breakeven.measure.energy import EnergyCounter, open_counter
from breakeven.measure.events import BackendReady, BackendStopped, Event, EventWriter, StudyStarted, StudyStopped
from breakeven.measure.paired.blocks import block_metrics
from breakeven.measure.paired.plan import order
from breakeven.measure.probe import ProbeRun, step_s
from breakeven.measure.progress import ProgressState
from breakeven.measure.runner import Candidate
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import format_named
from breakeven.results.store import LOG, fingerprint
from breakeven.runs.directory import open_directory
from breakeven.runs.served import EngineWords
from breakeven.version import __version__

LEAST_STEPS = 4
"""Output tokens of a block whose decode steps count."""

_Key = tuple[str, Phase, int, int, int]


def finished(log: Sequence[events.Event]) -> list[tuple[events.BlockStarted, events.BlockDone]]:
    """Blocks that count, in the order they ended."""
    started = {e.block: e for e in log if isinstance(e, events.BlockStarted)}
    return [(started[e.block], e) for e in log if isinstance(e, events.BlockDone) and e.ok and e.block in started]


def observations_of(log: Sequence[events.Event], specs: Mapping[str, ModelSpec], format_name: str) -> list[Observation]:
    """Every load of every probe as one decode step and, for single streams, one prompt; medians over rounds.

    Flagged blocks count only where a load has no other. A decode step's context is its prompt and half its output.
    """
    requests: dict[str, list[events.RequestDone]] = {}
    for event in log:
        if isinstance(event, events.RequestDone):
            requests.setdefault(event.block, []).append(event)
    times: dict[_Key, list[tuple[bool, float]]] = {}
    for begun, done in finished(log):
        mine = requests.get(begun.block, [])
        if begun.model not in specs or not mine:
            continue
        prompt = round(statistics.fmean(request.prompt_tokens for request in mine))
        load = (begun.streams, prompt, begun.output_tokens)
        seconds = step_s(mine) if begun.output_tokens >= LEAST_STEPS else None
        if seconds:
            times.setdefault((begun.model, "decode", *load), []).append((bool(done.flagged), seconds))
        ttft_s = block_metrics(mine).service_ttft_s if begun.streams == 1 else None
        if ttft_s:
            times.setdefault((begun.model, "prefill", *load), []).append((bool(done.flagged), ttft_s))
    found = []
    for (model, phase, streams, prompt, output), values in times.items():
        quiet = [seconds for flagged, seconds in values if not flagged] or [seconds for _, seconds in values]
        tokens = prompt + output / 2 if phase == "decode" else float(prompt)
        terms = terms_of(specs[model], format_name)
        found.append(Observation(model, terms, phase, streams, tokens, statistics.median(quiet), len(quiet)))
    return found


def busy_watts(log: Sequence[events.Event]) -> float | None:
    """Mean power over the blocks; None without an energy counter."""
    spent = [(done.joules, (done.at_ns - start.at_ns) / 1e9) for start, done in finished(log) if done.joules]
    seconds = sum(s for _, s in spent)
    return sum(j for j, _ in spent) / seconds if seconds > 0 else None


BUDGET_S = 600.0
LEAST_PROBES = 4
"""Run whatever the budget: two dense and two that route."""
MIN_PROBES = 2
IDLE_S = 2.0
"""How long the idle power is listened to, where there is a counter."""
SEED = 0

OnProgress = Callable[[ProgressState], None]


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The fields are those of `breakeven calibrate`. `format_name` None: what the engine usually runs.

    `probes` and `loads` empty: chosen for this machine. `out`: the profile's file; its log is kept beside it.
    `engine` None: the one that suits this machine. `gpu_layers`, `cpu_moe`, `device`, `tensor_split`: where the probes'
    weights are to lie; `engine_flags`: the engine's own flags.
    """

    engine: str | None = None
    format_name: str | None = None
    budget_s: float = BUDGET_S
    out: Path | None = None
    resume: bool = False
    threads: int | None = None
    probes: tuple[ModelSpec, ...] = ()
    loads: tuple[ProbeLoad, ...] = ()
    gpu_layers: str | int | None = None
    cpu_moe: str | int | None = None
    device: str | None = None
    tensor_split: str | None = None
    engine_flags: tuple[str, ...] = ()

    @property
    def asked(self) -> EngineWords:
        """How the engine is to be started."""
        return EngineWords(
            engine=self.engine,
            gpu_layers=self.gpu_layers,
            cpu_moe=self.cpu_moe,
            device=self.device,
            tensor_split=self.tensor_split,
            flags=self.engine_flags,
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile, where it was written, and what the fit left out and left over."""

    profile: Profile
    path: Path
    log_path: Path
    fitted: Fitted
    left_out: list[LeftOut]
    noisy_blocks: int


def calibrate(options: CalibrateOptions, on_progress: OnProgress = lambda state: None) -> Calibration:
    """Probe this machine and write its profile.

    Raises UserError for what cannot be asked, EngineError when the engine fails (finished blocks are kept), and
    KeyboardInterrupt, with the log whole, when interrupted.
    """
    if options.budget_s <= 0:
        raise UserError("--budget must be above zero, such as 10m")
    machine = read_machine()
    engine, format_name, gpu, probes, loads = plan(options, machine)
    asked = (engine.name, options.asked)
    mark = fingerprint((asked, format_name, [str(p) for p in probes], loads, options.threads, __version__))
    where = options.out.with_name(options.out.stem + "-calibration") if options.out else None
    default = Path("results") / f"calibrate-{engine.name}-{format_name.lower()}"
    directory, history = open_directory(where, default, mark, options.resume)
    began = time.monotonic()
    with EventWriter(directory / LOG) as log:
        _add(log, history, _opening(mark, began=bool(history)))
        run = _Run(options, engine, format_name, probes, loads, directory, log, history, on_progress, began)
        try:
            run.rounds()
        except (KeyboardInterrupt, BreakevenError) as error:
            because = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            _add(
                log, history, StudyStopped(because=because, measured_s=_measured_s(history), detail=str(error) or None)
            )
            raise
        _add(log, history, StudyStopped(because="budget", measured_s=_measured_s(history)))
    on_progress(ProgressState("fitting", time.monotonic() - began))
    return profile_of(history, options, machine, directory, run.idle_w, probes, engine.name, format_name, gpu=gpu)


class ProbePlan(NamedTuple):
    """What a calibration would run. `gpu`: the engine's weights lie on a GPU."""

    engine: Engine
    format_name: str
    gpu: bool
    probes: tuple[ModelSpec, ...]
    loads: tuple[ProbeLoad, ...]


def plan(options: CalibrateOptions, machine: MachineSpec) -> ProbePlan:
    """The probes and loads for `machine`. Raises UserError for an engine, format or machine that cannot be probed."""
    engine = engine_named(usual_engine(options.engine, machine)[0])
    options.asked.placement()  # refused now rather than after the probes were written
    format_name = _format(engine, options.format_name)
    gpu = bool(machine.gpus) and engine.name == VLLM
    memory = machine.gpus[0].memory_bytes if gpu else machine.available_memory_bytes
    probes = options.probes or probes_for(format_name, gpu=gpu, memory_bytes=memory)
    if len(probes) < MIN_PROBES:
        raise UserError("this machine has too little free memory for the probes; close other programs and try again")
    return ProbePlan(engine, format_name, gpu, probes, options.loads or loads_for(gpu=gpu))


def profile_of(
    history: Sequence[Event],
    options: CalibrateOptions,
    machine: MachineSpec,
    directory: Path,
    idle_w: float | None,
    probes: Sequence[ModelSpec],
    engine: str,
    format_name: str,
    *,
    gpu: bool,
) -> Calibration:
    """Fit what the log holds, leave every model out once, write the profile. Raises BreakevenError for too little."""
    observations = observations_of(history, {spec.name: spec for spec in probes}, format_name)
    fitted = fit(observations, CPU_TILE if engine == LLAMA_CPP and not gpu else 1)
    left_out = leave_models_out(observations, fitted)
    builds = [e.settings for e in history if isinstance(e, BackendReady)]
    profile = Profile(
        name=machine.gpus[0].name if gpu else machine.cpu,
        engine=engine,
        constants=fitted.constants,
        errors=errors_of(left_out),
        ranges=ranges_of(observations),
        origin=Origin(
            how="probes",
            engine=engine,
            engine_version=next((s["build"] for s in builds if "build" in s), None),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            version=__version__,
            format=format_name,
            points=len(observations),
            seconds=round(_measured_s(history), 1),
            at_prior=list(fitted.at_prior),
        ),
        memory_bytes=machine.gpus[0].memory_bytes if gpu else machine.memory_bytes,
        host_memory_bytes=machine.memory_bytes if gpu else None,
        machine=machine,
        idle_w=idle_w,
        busy_w=busy_watts(history),
    )
    path = save_profile(profile, options.out)
    noisy = sum(bool(done.flagged) for _, done in finished(history))
    return Calibration(profile, path, directory / LOG, fitted, left_out, noisy)


@dataclass(slots=True)
class _Run:
    """The measuring part: rounds over the probes while the budget lasts."""

    options: CalibrateOptions
    engine: Engine
    format_name: str
    probes: Sequence[ModelSpec]
    loads: Sequence[ProbeLoad]
    directory: Path
    log: EventWriter
    history: list[Event]
    on_progress: OnProgress
    began: float
    idle_w: float | None = None

    def rounds(self) -> None:
        """Measure. The first probes run whatever the budget, the others when they are expected to end within it."""
        energy = open_counter()
        self.idle_w = _idle_watts(energy)
        wait = "passive" if noise.busy() else None
        took: dict[str, float] = {}
        for number in range(1000):
            for index in order(number, len(self.probes)):
                spec = self.probes[index]
                left = [load for load in self.loads if not self._has(spec.name, load, number)]
                if not left:
                    continue
                elapsed = time.monotonic() - self.began
                expected = took.get(spec.name) or (sum(took.values()) / len(took) if took else 0.0)
                enough = number > 0 or len(self._probed()) >= min(LEAST_PROBES, len(self.probes))
                if enough and elapsed + expected > self.options.budget_s:
                    return
                at = time.monotonic()
                self._probe(spec, left, number, energy, passive=wait is not None)
                took[spec.name] = time.monotonic() - at

    def _probe(
        self, spec: ModelSpec, loads: Sequence[ProbeLoad], number: int, energy: EnergyCounter | None, *, passive: bool
    ) -> None:
        source = Source(spec.name, spec.name, spec)
        self._show("writing weights", spec.name)
        path = weights_of(source, self.format_name, SEED, None, engine=self.engine.name)
        slots, context = slots_and_context(self.loads)
        with ExitStack() as stack:
            self._show("loading", spec.name)
            running = start(
                stack,
                source,
                path,
                context=context,
                slots=slots,
                log=self.directory / f"{spec.name}.log",
                threads=self.options.threads,
                wait_policy="passive" if passive else None,
                engine=self.engine.name,
                placement=self.options.asked.placement(),
                arguments=self.options.engine_flags,
            )
            backend = running.backend
            ready = BackendReady(
                model=spec.name, settings=backend.settings, load_s=backend.load_s, placed=backend.placed
            )
            _add(self.log, self.history, ready)
            run = ProbeRun(Candidate(spec.name, backend, running.alive), self.log, self.history, SEED, energy)
            run.warm_up()
            for load in loads:
                self._show("measuring", spec.name)
                run.block(load.streams, load.prompt_tokens, load.output_tokens, number)
            _add(self.log, self.history, BackendStopped(model=spec.name, peak_rss_bytes=backend.peak_rss_bytes()))

    def _has(self, model: str, load: ProbeLoad, number: int) -> bool:
        """Whether this block is in the log already, from before it was resumed."""
        wanted = (model, load.streams, load.prompt_tokens, load.output_tokens, number)
        return any(
            (start.model, start.streams, start.prompt_tokens, start.output_tokens, start.round) == wanted
            for start, _ in finished(self.history)
        )

    def _probed(self) -> set[str]:
        return {start.model for start, _ in finished(self.history)}

    def _show(self, phase: str, subject: str) -> None:
        self.on_progress(ProgressState(phase, time.monotonic() - self.began, self.options.budget_s, subject=subject))


def _format(engine: Engine, asked: str | None) -> str:
    name = format_named(asked or engine.default_format).name
    if engine.formats is not None and name not in engine.formats:
        raise NotSupportedError(
            f"{engine.name} gets no {name} from Breakeven; give one of --format {', '.join(engine.formats)}"
        )
    return name


def _opening(mark: str, *, began: bool) -> StudyStarted:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return StudyStarted(
        fingerprint=mark, version=__version__, started_at=now, command="breakeven calibrate", seed=SEED, resumed=began
    )


def _idle_watts(energy: EnergyCounter | None) -> float | None:
    if energy is None:
        return None
    before, at = energy.read_joules(), time.monotonic()
    time.sleep(IDLE_S)
    return (energy.read_joules() - before) / (time.monotonic() - at)


def _measured_s(history: Sequence[Event]) -> float:
    return sum((done.at_ns - start.at_ns) / 1e9 for start, done in finished(history))


def _add(log: EventWriter, history: list[Event], event: Event) -> None:
    log.append(event)
    history.append(event)
