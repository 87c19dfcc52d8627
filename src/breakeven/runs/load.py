"""A study under load while it runs: engines up, client tested, one log; then candidate after candidate on a schedule.

What a study asks for (loads, rounds, who plays when) is decided elsewhere: `bench`, `capacity`, `recheck`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from breakeven.engines import openai_url
from breakeven.engines.keeper import threads_wait
from breakeven.engines.memory import whole_context
from breakeven.engines.source import SYNTHETIC, Source, assumed_caveats, slug
from breakeven.engines.start import Running, format_of, weights_of
from breakeven.errors import UserError
from breakeven.hardware.reader import read_machine
from breakeven.measure import events
from breakeven.measure.bodies import Bodies, prepare_bodies
from breakeven.measure.ceiling import measure_ceiling
from breakeven.measure.energy import open_counter
from breakeven.measure.events import EventWriter, iter_events
from breakeven.measure.load.points import load_points
from breakeven.measure.player.run import run_load
from breakeven.measure.progress import LoadState
from breakeven.model.formats.named import format_named
from breakeven.results.load import LoadModel, LoadPoint
from breakeven.results.store import LOG, fingerprint
from breakeven.runs.directory import open_directory
from breakeven.runs.served import Candidates, EngineWords, check_fit, kv_of, served
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import Schedule
from breakeven.traffic.schedule_file import load_schedule, save_schedule
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload
from breakeven.version import __version__

CONTEXT_SPARE = 16
DEFAULT_SLOTS = 8
"""Requests an engine of ours works on at once in an open loop; what comes beyond waits in its queue."""
USEFUL_SHARE = 0.5
"""A client above half of its ceiling adds delays of its own (docs/client.md)."""
LOADED_WARM_UP_S = 10.0
"""Of the same traffic after each load of candidates that take turns, not counted."""
URL_CAVEAT = "An engine behind a URL may share its machine with others; its noise cannot be seen from here."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a study under load may be told beside its targets and traffic.

    `processes` None: as many as it takes; `format_name`: of models that name none; None: each one's own, else
    the engine's usual one. `kv`: type of keys and values of engines started here. `assume`: read models on
    past what is not known in their files. `engine` None: the one that suits this machine. `gpu_layers`, `cpu_moe`,
    `device`, `tensor_split`: where weights are to lie, as on the command line; `engine_flags`: the engine's own flags.
    `drain_s`: how long after the last request is due answers are waited for; longer where the SLO allows for more.
    """

    out: Path | str | None = None
    resume: bool = False
    processes: int | None = None
    ray_address: str | None = None
    engine: str | None = None
    gpu_layers: str | int | None = None
    cpu_moe: str | int | None = None
    device: str | None = None
    tensor_split: str | None = None
    engine_flags: tuple[str, ...] = ()
    format_name: str | None = None
    kv: str | None = None
    assume: bool = False
    threads: int | None = None
    slots: int | None = None
    tokenizer: Path | None = None
    drain_s: float = 60.0
    command: str = "breakeven"

    @property
    def asked(self) -> EngineWords:
        """How engines are to be started."""
        return EngineWords(
            engine=self.engine,
            gpu_layers=self.gpu_layers,
            cpu_moe=self.cpu_moe,
            device=self.device,
            tensor_split=self.tensor_split,
            flags=self.engine_flags,
        )

    def check(self) -> None:
        """Raise UserError for numbers that mean nothing."""
        for name, value in (("--processes", self.processes), ("--threads", self.threads), ("--slots", self.slots)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more")
        if self.drain_s < 0:
            raise UserError("LoadOptions.drain_s must be 0 or more")
        if self.ray_address and self.processes is not None and self.processes > 1:
            raise UserError("--ray spreads the load over its workers; leave --processes out")


class Session:
    """Runs the turns of one study and logs them. Use as a context manager; engines it started stop at the end.

    `schedules` that are known beforehand set the context engines are started with. Raises UserError for targets that
    do not exist, EngineError when an engine fails.
    """

    def __init__(
        self,
        kind: str,
        sources: Sequence[Source],
        workload: Workload,
        slo: Slo | None,
        options: LoadOptions,
        *,
        context_tokens: int,
        slots: int,
        question: tuple[object, ...] = (),
        target_share: float | None = None,
        confidence: float | None = None,
        trace: TraceRows | None = None,
        notes: Sequence[str] = (),
        on_state: Callable[[LoadState], None] = lambda state: None,
        on_phase: Callable[[str, str], None] = lambda phase, subject: None,
    ) -> None:
        options.check()
        self._kind, self._sources, self._workload, self._slo = kind, list(sources), workload, slo
        self._options, self._trace, self._notes = options, trace, notes
        self._context = whole_context(context_tokens + CONTEXT_SPARE)
        self._slots = options.slots or slots
        self._target_share, self._confidence = target_share, confidence
        self._on_state, self._on_phase = on_state, on_phase
        self._question = (
            kind,
            [s.question for s in sources],
            (workload, slo, target_share, confidence, question),
            (options.asked, options.format_name, options.kv, options.threads, threads_wait(), self._slots),
            __version__,
        )
        self._stack = ExitStack()
        self._prepared: dict[tuple[int, str], Bodies] = {}
        self._finished: set[tuple[str, str, int]] = set()
        self._attempts: dict[tuple[str, str, int], int] = {}
        self.because = "finished"
        """Why the study ends when nothing goes wrong; a search that runs out of time says "budget"."""
        self._turn, self._up = ExitStack(), dict[int, Running]()
        self.in_turns = False
        """Whether candidates do not fit side by side, and each is loaded when it plays."""
        self.ceiling: events.ClientCeiling | None = None

    def __enter__(self) -> Session:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        because = self.because if error is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        try:
            # The log has everything before this line; a full disk must not hide why the run ended.
            with contextlib.suppress(Exception):
                detail = str(error) if error is not None and str(error) else None
                self._log.append(events.StudyStopped(because=because, measured_s=0.0, detail=detail))
        finally:
            self._turn.close()
            self._stack.close()

    def play(self, index: int, workload: Workload, *, load: str, round: int = 0) -> None:
        """Let candidate `index` serve `workload`, drawn once for every candidate; skipped where the log has it."""
        key = (self._sources[index].name, load, round)
        if key in self._finished:
            return
        if self.in_turns and not workload.arrivals.trace:
            workload = msgspec.structs.replace(workload, warm_up_s=max(workload.warm_up_s, LOADED_WARM_UP_S))
        up = self._running(index)
        schedule, file = self._schedule(workload, load, round)
        ceiling = self._tested_client(schedule)
        self._on_phase("preparing prompts", up.name)
        bodies = prepare_bodies(
            up.backend, schedule, tokenizer=self._options.tokenizer, salt=f"{self._salt}/{load}/{round}"
        )
        attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
        try:
            run_load(
                up.backend,
                schedule,
                bodies,
                self._log,
                block="/".join([*map(str, key), *([str(attempt)] if attempt > 1 else [])]),
                model=up.name,
                load=load,
                round=round,
                schedule_file=file,
                processes=ceiling.processes,
                ray_address=self._options.ray_address,
                drain_s=max(self._options.drain_s, _patience_s(self._slo, schedule)),
                ceiling=None if self._options.ray_address else ceiling,
                on_state=self._on_state,
                alive=up.alive,
                pids=[r.backend.pid for r in self._up.values() if r.backend.pid is not None],
                energy=self._energy,
            )
        finally:
            up.alive()
        self._finished.add(key)

    def point(self, index: int, load: str) -> LoadPoint:
        """What candidate `index` did under `load` so far, all rounds together."""
        name = self._sources[index].name
        mine = load_points(self._events_of(name, load), self._slo)
        return mine[0]

    def _events_of(self, model: str, load: str) -> Iterator[events.Event]:
        blocks: set[str] = set()
        for event in iter_events(self.log_path):
            if isinstance(event, events.LoadStarted) and event.model == model and event.load == load:
                blocks.add(event.block)
            block = getattr(event, "block", None)
            if block is None or block in blocks:
                yield event

    @property
    def log_path(self) -> Path:
        """The event log."""
        return self.directory / LOG

    def _open(self) -> None:
        options, sources = self._options, self._sources
        for source in sources:
            if source.url is not None:
                # Refused now rather than after gigabytes were written.
                openai_url.connect(source.url, chat=self._workload.chat)
        self.machine = machine = read_machine()
        served_as, notices = served(options.asked, sources, machine)
        format_name = None if options.format_name is None else format_named(options.format_name).name
        kv = kv_of(sources, served_as, options.kv)
        formats = [format_of(s, format_name, how.engine) for s, how in zip(sources, served_as, strict=True)]
        apart = check_fit(sources, served_as, formats, self._context, self._slots, machine, kv)
        self.in_turns = apart is not None
        self._said = [*self._notes, *notices, *([] if apart is None else [apart])]
        for words in self._said:
            self._on_phase(words, "")
        mark = fingerprint(self._question)
        default = Path("results") / ("-vs-".join(slug(s.name) for s in sources) + f"-{self._kind}")
        self.directory, history = open_directory(options.out, default, mark, options.resume)
        self._recall(history)
        paths = [
            weights_of(s, format_name, self._workload.seed, None, engine=how.engine.name)
            for s, how in zip(sources, served_as, strict=True)
        ]
        self._crew = Candidates(
            sources,
            served_as,
            paths,
            self.directory,
            context=self._context,
            slots=self._slots,
            kv=kv,
            threads=options.threads,
            share_prefixes=self._workload.sharing,
            chat=self._workload.chat,
            on_phase=self._on_phase,
            # What is up before the log is opened stands in its opening.
            record=lambda event: self._log.append(event) if self.in_turns else None,
        )
        if not self.in_turns:
            self._up = {index: self._crew.up(self._stack, index) for index in range(len(sources))}
        self._energy = open_counter()
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # Alike for every candidate of a study, and other than in any study before: a server that kept its prefix cache
        # must not recognise a prompt.
        self._salt = f"{mark}/{began}"
        self._log = self._stack.enter_context(EventWriter(self.log_path))
        self._log.append(
            events.LoadStudyStarted(
                kind=self._kind,
                fingerprint=mark,
                version=__version__,
                started_at=began,
                salt=self._salt,
                command=options.command,
                seed=self._workload.seed,
                machine=machine,
                models=[_model(source, formats[i], self._up.get(i)) for i, source in enumerate(sources)],
                workload=self._workload,
                slo=self._slo,
                target_share=self._target_share,
                confidence=self._confidence,
                caveats=self._caveats(),
                resumed=bool(history),
            )
        )

    def _running(self, index: int) -> Running:
        """A candidate that answers: loaded now where they take turns, and whoever was up before is not."""
        if index not in self._up:
            for up in self._up.values():
                self._crew.stopped(up)
            self._turn.close()
            self._up = {index: self._crew.up(self._turn, index)}
        return self._up[index]

    def _recall(self, history: Sequence[events.Event]) -> None:
        started: dict[str, tuple[str, str, int]] = {}
        for event in history:
            if isinstance(event, events.LoadStarted):
                key = started[event.block] = (event.model, event.load, event.round)
                self._attempts[key] = self._attempts.get(key, 0) + 1
            elif isinstance(event, events.LoadDone) and event.ok and event.block in started:
                self._finished.add(started[event.block])

    def _schedule(self, workload: Workload, load: str, round: int) -> tuple[Schedule, str]:
        """The saved schedule of this load and round; drawn and saved the first time."""
        file = f"schedule-{slug(load)}-{round}.jsonl"
        path = self.directory / file
        if path.exists():
            return load_schedule(path), file
        schedule = draw(workload, self._trace)
        save_schedule(schedule, path)
        return schedule, file

    def _tested_client(self, schedule: Schedule) -> events.ClientCeiling:
        """The ceiling of as many client processes as the traffic needs, tested once a number of processes."""
        asked = self._options.processes
        if self.ceiling is None:
            self._on_phase("testing the client", "")
            self._test(asked or 1)
        assert self.ceiling is not None
        rate, tokens_per_s = _peak(schedule)
        while (
            asked is None
            and self.ceiling.processes < (os.cpu_count() or 1)
            and (
                rate > USEFUL_SHARE * self.ceiling.requests_per_s
                or tokens_per_s > USEFUL_SHARE * self.ceiling.stream_events_per_s
            )
        ):
            self._test(self.ceiling.processes + 1)
        return self.ceiling

    def _test(self, processes: int) -> None:
        self.ceiling = measure_ceiling(processes)
        self._log.append(self.ceiling)

    def _caveats(self) -> list[str]:
        found = [*self._said]
        if any(source.random_weights for source in self._sources):
            found.append(SYNTHETIC)
        if any(source.url for source in self._sources):
            found.append(URL_CAVEAT)
        found += assumed_caveats(self._sources)
        if len({repr(s.question) for s in self._sources}) < len(self._sources):
            found.append("A/A run: a model against itself; any difference found here is an error of the measurement.")
        return found


def _model(source: Source, weights: str, up: Running | None) -> LoadModel:
    spec = source.spec
    return LoadModel(
        name=source.name,
        source=spec.source if spec else source.text.partition("#")[0],
        synthetic=source.synthetic,
        moe=spec.is_moe if spec else None,
        format=weights if source.synthetic else None,
        settings=up.backend.settings if up else {},
        placed=up.backend.placed if up else None,
    )


def _patience_s(slo: Slo | None, schedule: Schedule) -> float:
    """Seconds from its due time that `slo` lets an answer take, as far as its terms say."""
    if slo is None:
        return 0.0
    if slo.e2e_s is not None:
        return slo.e2e_s
    return (slo.ttft_s or 0.0) + (slo.tpot_s or slo.itl_s or 0.0) * int(schedule.output_N.max(initial=0))


def _peak(schedule: Schedule) -> tuple[float, float]:
    """Requests and output tokens per second that the schedule asks for on average; 0 in a closed loop."""
    due = schedule.due_ns_N[schedule.due_ns_N >= 0]
    if len(due) < 2 or due[-1] <= due[0]:
        return 0.0, 0.0
    seconds = float(due[-1] - due[0]) / 1e9
    return len(due) / seconds, float(schedule.output_N.sum()) / seconds
