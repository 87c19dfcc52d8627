"""`breakeven calibrate`: a few small probes in the real engine, and from them the constants of this machine.

Probes run one after the other, each under every load, and from the first again while the budget lasts, A B C A B C:
what the machine does meanwhile meets all alike, and shows in how far visits to one probe differ. Everything measured is
in the event log; the profile is a pure function of it, so that it can be fitted again.
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

from breakeven.engines.backend import LLAMA_CPP
from breakeven.engines.keeper import threads_wait
from breakeven.engines.start import start, weights_of
from breakeven.errors import BreakevenError, UserError
from breakeven.forecast.calibration.fit import Fitted, LeftOut, errors_of, fit, leave_models_out, ranges_of
from breakeven.forecast.calibration.parameters import CPU_TILE
from breakeven.forecast.calibration.probes import (
    ProbeLoad,
    Visit,
    expected_s,
    rounds_of,
    slots_and_context,
)
from breakeven.forecast.constants import Profile, ProfileOrigin, step_engine
from breakeven.forecast.profiles import save_profile
from breakeven.hardware.machine import Gpu, HostMemory, MachineSpec
from breakeven.hardware.reader import read_machine
from breakeven.measure.energy import EnergyCounter, open_counter
from breakeven.measure.events import BackendReady, BackendStopped, Event, EventWriter, StudyStarted, StudyStopped
from breakeven.measure.probe import ProbeRun
from breakeven.measure.progress import ProgressState
from breakeven.measure.runner import Candidate
from breakeven.results.store import LOG, fingerprint
from breakeven.runs.directory import open_directory
from breakeven.runs.observed import busy_watts, cannot_tell, finished, observations_of, on_a_device
from breakeven.runs.probed import CalibrateOptions, ProbePlan, Subject, host_of_urls, plan
from breakeven.version import __version__

LEAST_PROBES = 4
"""Run whatever the budget: two dense and two that route."""
IDLE_S = 2.0
"""How long the idle power is listened to, where there is a counter."""
SEED = 0

OnProgress = Callable[[ProgressState], None]


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
    threads = (options.threads, threads_wait())
    mark = fingerprint((chosen.engine_name, options.asked, kinds, chosen.loads, threads, options.kv, __version__))
    out = Path(options.out) if options.out else None
    where = out.with_name(out.stem + "-calibration") if out else None
    what = f"calibrate-{chosen.engine_name}-{chosen.format_name.lower()}"
    what += re.sub(r"[^A-Za-z0-9.]+", "-", f"-{host_of_urls(options.urls)}").rstrip("-") if options.urls else ""
    directory, history = open_directory(where, Path("results") / what, mark, options.resume)
    began = time.monotonic()
    with EventWriter(directory / LOG) as log:
        _add(log, history, _opening(mark, began=bool(history)))
        run = _Run(options, chosen, directory, log, history, on_progress, began)
        try:
            run.rounds()
        except (KeyboardInterrupt, BreakevenError) as error:
            because = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            stopped = StudyStopped(because=because, measured_s=_measured_s(history), detail=str(error) or None)
            _add(log, history, stopped)
            raise
        _add(log, history, StudyStopped(because="budget", measured_s=_measured_s(history)))
    on_progress(ProgressState("fitting", time.monotonic() - began))
    return profile_of(history, options, chosen, machine, directory, run.idle_w)


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
        origin=ProfileOrigin(
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
    path = save_profile(profile, Path(options.out) if options.out else None)
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
        took: dict[str, Visit] = {}
        subjects = self.chosen.subjects
        models = list(dict.fromkeys(subject.spec.name for subject in subjects))[:LEAST_PROBES]
        least = {subject.name for subject in subjects if subject.spec.name in models}
        for cycle in range(500):
            visited = too_long = 0
            for subject in subjects:
                left = self._left(subject.name, cycle)
                if not left:
                    continue
                ends_s = time.monotonic() - self.began + expected_s(took, subject.name, len(left))
                if (cycle > 0 or least <= self._probed()) and ends_s > self.options.budget_s:
                    too_long += 1
                    if cycle == 0:
                        return
                    continue
                took[subject.name] = self._probe(subject, left, energy)
                visited += 1
            if too_long and not visited:
                return

    def _probe(self, subject: Subject, blocks: Sequence[tuple[ProbeLoad, int]], energy: EnergyCounter | None) -> Visit:
        """Load a probe, run `blocks`, each a load and its round, and unload it."""
        began = time.monotonic()
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
            at = time.monotonic()
            for load, number in blocks:
                self._show("measuring", subject.name)
                run.block(load.streams, load.prompt_tokens, load.output_tokens, number)
            blocks_s = time.monotonic() - at
            _add(self.log, self.history, BackendStopped(model=subject.name, peak_rss_bytes=backend.peak_rss_bytes()))
        return Visit(time.monotonic() - began, blocks_s, len(blocks))

    def _left(self, model: str, cycle: int) -> list[tuple[ProbeLoad, int]]:
        """Loads and rounds of a visit, without what the log holds from before it was resumed."""
        known = [begun for begun, _ in finished(self.history) if begun.model == model]
        done = {(b.streams, b.prompt_tokens, b.output_tokens, b.round) for b in known}
        wanted = [(load, number) for number in rounds_of(cycle) for load in self.chosen.loads]
        return [(x, n) for x, n in wanted if (x.streams, x.prompt_tokens, x.output_tokens, n) not in done]

    def _probed(self) -> set[str]:
        return {start.model for start, _ in finished(self.history)}

    def _show(self, phase: str, subject: str) -> None:
        self.on_progress(ProgressState(phase, time.monotonic() - self.began, self.options.budget_s, subject=subject))


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
