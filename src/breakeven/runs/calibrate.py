"""`breakeven calibrate`: a few small probes in the real engine, and from them the constants of this machine.

Probes run one after the other, each under every load, forward in even rounds and backward in odd ones, as long as the
budget lasts. Everything measured is in the event log; the profile is a pure function of it, so that it can be fitted
again.
"""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from breakeven.engines.backend import LLAMA_CPP, VLLM
from breakeven.engines.devices import EngineDevice, usual_engine
from breakeven.engines.kinds import Engine, engine_named
from breakeven.engines.start import kv_type, start, weights_of
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.forecast.calibration.fit import Fitted, LeftOut, errors_of, fit, leave_models_out, ranges_of
from breakeven.forecast.calibration.parameters import CPU_TILE
from breakeven.forecast.calibration.probes import ProbeLoad, loads_for, probes_for, slots_and_context
from breakeven.forecast.constants import Origin, Profile, step_engine
from breakeven.forecast.memory import LLAMA_CPP_MARGIN_BYTES
from breakeven.forecast.profiles import save_profile
from breakeven.hardware.machine import Gpu, HostMemory, MachineSpec
from breakeven.hardware.placement import AUTO
from breakeven.hardware.reader import read_machine
from breakeven.measure import noise
from breakeven.measure.energy import EnergyCounter, open_counter
from breakeven.measure.events import BackendReady, BackendStopped, Event, EventWriter, StudyStarted, StudyStopped
from breakeven.measure.paired.plan import order
from breakeven.measure.probe import ProbeRun
from breakeven.measure.progress import ProgressState
from breakeven.measure.runner import Candidate
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import format_named
from breakeven.results.store import LOG, fingerprint
from breakeven.runs.directory import open_directory
from breakeven.runs.observed import busy_watts, cannot_tell, finished, observations_of, on_a_device
from breakeven.runs.probed import Subject, devices_of, host_of_urls, probes_placed, served_shapes
from breakeven.runs.served import EngineWords
from breakeven.version import __version__

BUDGET_S = 600.0
LEAST_PROBES = 4
"""Run whatever the budget: two dense and two that route."""
MIN_PROBES = 2
LARGE_FROM_BYTES = 6e9
"""A device with so much room gets the probes of GPUs, smaller ones and those that share the host's memory the CPU's."""
IDLE_S = 2.0
"""How long the idle power is listened to, where there is a counter."""
SEED = 0

OnProgress = Callable[[ProgressState], None]


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The fields are those of `breakeven calibrate`. `format_name` None: what the engine usually runs.

    `probes` and `loads` empty: chosen for this machine. `out`: the profile's file; its log is kept beside it.
    `engine` None: the one that suits this machine. `gpu_layers`, `cpu_moe`, `device`, `tensor_split`: where the probes'
    weights are to lie; `engine_flags`: the engine's own flags; `kv`: type of keys and values. `urls`: servers to
    measure instead, each of one of `shapes`.
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
    urls: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    kv: str | None = None

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
    """A profile, where it was written, what the fit left out and left over, and what must be said of the engine."""

    profile: Profile
    path: Path
    log_path: Path
    fitted: Fitted
    left_out: list[LeftOut]
    noisy_blocks: int
    notice: str | None = None


def calibrate(options: CalibrateOptions, on_progress: OnProgress = lambda state: None) -> Calibration:
    """Probe this machine and write its profile.

    Raises UserError for what cannot be asked, EngineError when the engine fails (finished blocks are kept), and
    KeyboardInterrupt, with the log whole, when interrupted.
    """
    if options.budget_s <= 0:
        raise UserError("--budget must be above zero, such as 10m")
    machine = read_machine()
    chosen = plan(options, machine)
    kinds = [(s.name, str(s.spec), s.format_name, s.url) for s in chosen.subjects]
    mark = fingerprint(
        (chosen.engine_name, options.asked, kinds, chosen.loads, options.threads, options.kv, __version__)
    )
    where = options.out.with_name(options.out.stem + "-calibration") if options.out else None
    what = f"calibrate-{chosen.engine_name}-{chosen.format_name.lower()}"
    default = Path("results") / (f"{what}-{_slug(host_of_urls(options.urls))}" if options.urls else what)
    directory, history = open_directory(where, default, mark, options.resume)
    began = time.monotonic()
    with EventWriter(directory / LOG) as log:
        _add(log, history, _opening(mark, began=bool(history)))
        run = _Run(options, chosen, directory, log, history, on_progress, began)
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
    return profile_of(history, options, chosen, machine, directory, run.idle_w)


class ProbePlan(NamedTuple):
    """What a calibration would run. `gpu`: weights lie on one; `engine` None: servers that run elsewhere."""

    engine_name: str
    format_name: str
    gpu: bool
    probes: tuple[ModelSpec, ...]
    loads: tuple[ProbeLoad, ...]
    subjects: tuple[Subject, ...] = ()
    kv: str = "f16"
    devices: tuple[EngineDevice, ...] = ()
    engine: Engine | None = None
    notice: str | None = None


def plan(options: CalibrateOptions, machine: MachineSpec) -> ProbePlan:
    """The probes and loads for `machine`. Raises UserError for an engine, format, machine or URL that cannot be."""
    placement = options.asked.placement()  # refused now rather than after the probes were written
    if options.urls or options.shapes:
        return _plan_served(options)
    usual, notice = usual_engine(options.engine, machine)
    engine = engine_named(usual)
    engine.check_placement(placement, options.engine_flags)
    format_name = _format(engine, options.format_name)
    devices = devices_of(engine.name, placement, options.engine_flags)
    gpu = bool(devices) or (bool(machine.gpus) and engine.name == VLLM)
    memory, large = float(machine.available_memory_bytes), gpu
    if devices:
        rooms = [device.free_bytes or device.memory_bytes for device in devices]
        free = sum(room or 0 for room in rooms) - LLAMA_CPP_MARGIN_BYTES
        memory = min(memory, max(float(free), 0.0)) if all(rooms) else memory
        large = memory >= LARGE_FROM_BYTES and all(device.kind == "gpu" for device in devices)
    elif gpu:
        memory = float(machine.gpus[0].memory_bytes)
    probes = options.probes or probes_for(format_name, gpu=large, memory_bytes=memory)
    if len(probes) < MIN_PROBES:
        where = f"{devices[0].place} has" if devices else "this machine has"
        raise UserError(f"{where} too little free memory for the probes; close other programs and try again")
    own = any(device.kind == "gpu" for device in devices)
    subjects = probes_placed(probes, format_name, placement, beside_a_device=own)
    loads = options.loads or loads_for(gpu=gpu and engine.name == VLLM)
    kv = kv_type([subject.source for subject in subjects], engine.name, options.kv)
    return ProbePlan(engine.name, format_name, gpu, tuple(probes), loads, subjects, kv, tuple(devices), engine, notice)


def _plan_served(options: CalibrateOptions) -> ProbePlan:
    beside = options.engine_flags or options.engine or options.threads or options.kv
    if beside or options.asked.placement() != AUTO:
        raise UserError(
            "a server runs as it was started; leave --engine, --threads, --kv, placement and engine flags out"
        )
    subjects, engine = served_shapes(options.urls, options.shapes, options.format_name)
    formats = "+".join(dict.fromkeys(subject.format_name for subject in subjects))
    specs = tuple(subject.spec for subject in subjects)
    return ProbePlan(engine, formats, False, specs, options.loads or loads_for(gpu=False), tuple(subjects))


def profile_of(
    history: Sequence[Event],
    options: CalibrateOptions,
    chosen: ProbePlan,
    machine: MachineSpec,
    directory: Path,
    idle_w: float | None,
) -> Calibration:
    """Fit what the log holds, leave every model out once, write the profile. Raises BreakevenError for too little."""
    family, served = step_engine(chosen.engine_name), bool(options.urls)
    formats = {subject.name: subject.format_name for subject in chosen.subjects}
    observations = observations_of(history, {s.name: s.spec for s in chosen.subjects}, formats, chosen.kv)
    on_gpu = on_a_device(history) or (chosen.gpu and not chosen.devices)
    tile = CPU_TILE if family == LLAMA_CPP and not on_gpu and not served else 1
    fitted = fit(observations, tile, few=served)
    left_out = leave_models_out(observations, fitted)
    builds = [e.settings for e in history if isinstance(e, BackendReady)]
    first = chosen.devices[0] if chosen.devices and on_gpu else None
    gpu = machine.gpus[0] if on_gpu and machine.gpus else None
    device = None
    if first is not None:
        size = first.memory_bytes or (gpu.memory_bytes if gpu else 0)
        device = Gpu(first.description, size, first.engine, first.kind == "igpu", first.place, size > 0)
    holds = device or gpu
    memory = holds.memory_bytes if holds is not None else machine.memory_bytes
    placed = [e.placed.words() for e in history if isinstance(e, BackendReady) and e.placed is not None]
    profile = Profile(
        name=host_of_urls(options.urls) if served else first.description if first else gpu.name if gpu else machine.cpu,
        engine=family,
        constants=fitted.constants,
        errors=errors_of(left_out),
        ranges=ranges_of(observations),
        origin=Origin(
            how="probes",
            engine=chosen.engine_name,
            engine_version=next((s["build"] for s in builds if "build" in s), None),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            version=__version__,
            format=chosen.subjects[0].format_name,
            points=len(observations),
            seconds=round(_measured_s(history), 1),
            at_prior=list(fitted.at_prior),
            spread={name: round(value, 4) for name, value in fitted.spread.items() if math.isfinite(value)},
            unknown=cannot_tell(observations, served=served) if served else [],
            kv=next((s["kv_type"] for s in builds if "kv_type" in s), None),
            placements=list(dict.fromkeys(placed)),
            sources=list(options.urls),
        ),
        memory_bytes=None if served else memory or None,
        host_memory_bytes=machine.memory_bytes if on_gpu and not served else None,
        host=HostMemory(
            memory_bytes=machine.memory_bytes,
            bandwidth_bytes_per_s=machine.memory_bytes_per_s,
            cores=machine.physical_cores,
            words=machine.memory_kind,
        )
        if on_gpu and not served
        else None,
        device=device,
        machine=None if served else machine,
        idle_w=idle_w,
        busy_w=None if served else busy_watts(history),
    )
    path = save_profile(profile, options.out)
    noisy = sum(bool(done.flagged) for _, done in finished(history))
    return Calibration(profile, path, directory / LOG, fitted, left_out, noisy, chosen.notice)


@dataclass(slots=True)
class _Run:
    """The measuring part: rounds over the probes while the budget lasts."""

    options: CalibrateOptions
    chosen: ProbePlan
    directory: Path
    log: EventWriter
    history: list[Event]
    on_progress: OnProgress
    began: float
    idle_w: float | None = None

    def rounds(self) -> None:
        """Measure. The first probes run whatever the budget, the others when they are expected to end within it."""
        energy = None if self.options.urls else open_counter()
        self.idle_w = _idle_watts(energy)
        wait = "passive" if noise.busy() else None
        took: dict[str, float] = {}
        subjects = self.chosen.subjects
        models = list(dict.fromkeys(subject.spec.name for subject in subjects))[:LEAST_PROBES]
        least = {subject.name for subject in subjects if subject.spec.name in models}
        for number in range(1000):
            for index in order(number, len(subjects)):
                subject = subjects[index]
                left = [load for load in self.chosen.loads if not self._has(subject.name, load, number)]
                if not left:
                    continue
                elapsed = time.monotonic() - self.began
                expected = took.get(subject.name) or (sum(took.values()) / len(took) if took else 0.0)
                enough = number > 0 or least <= self._probed()
                if enough and elapsed + expected > self.options.budget_s:
                    return
                at = time.monotonic()
                self._probe(subject, left, number, energy, passive=wait is not None)
                took[subject.name] = time.monotonic() - at

    def _probe(
        self, subject: Subject, loads: Sequence[ProbeLoad], number: int, energy: EnergyCounter | None, *, passive: bool
    ) -> None:
        engine = self.chosen.engine
        path = None
        if engine is not None:
            self._show("writing weights", subject.name)
            path = weights_of(subject.source, subject.format_name, SEED, None, engine=engine.name)
        slots, context = slots_and_context(self.chosen.loads)
        with ExitStack() as stack:
            self._show("loading" if engine else "connecting", subject.name)
            running = start(
                stack,
                subject.source,
                path,
                context=context,
                slots=slots,
                log=self.directory / f"{subject.name}.log",
                threads=self.options.threads,
                wait_policy="passive" if passive else None,
                engine=engine.name if engine else LLAMA_CPP,  # of a URL nobody asks
                kv=self.chosen.kv,
                placement=subject.placement,
                arguments=self.options.engine_flags,
            )
            backend = running.backend
            ready = BackendReady(
                model=subject.name, settings=backend.settings, load_s=backend.load_s, placed=backend.placed
            )
            _add(self.log, self.history, ready)
            run = ProbeRun(Candidate(subject.name, backend, running.alive), self.log, self.history, SEED, energy)
            run.warm_up()
            for load in loads:
                self._show("measuring", subject.name)
                run.block(load.streams, load.prompt_tokens, load.output_tokens, number)
            _add(self.log, self.history, BackendStopped(model=subject.name, peak_rss_bytes=backend.peak_rss_bytes()))

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


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def _measured_s(history: Sequence[Event]) -> float:
    return sum((done.at_ns - start.at_ns) / 1e9 for start, done in finished(history))


def _add(log: EventWriter, history: list[Event], event: Event) -> None:
    log.append(event)
    history.append(event)
