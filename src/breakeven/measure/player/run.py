"""Plays one schedule against one backend and writes down what happens: the heart of every run under load.

The schedule was drawn before and is played as it stands, by a crew: this process, several processes here, or workers on
other machines. Every request becomes one line of the log, in whatever state it ends, written by a thread so that a slow
disk never delays a request. Only the last half minute of delays is kept in memory, so a run may be of any length.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from breakeven.engines.backend import Backend
from breakeven.errors import BreakevenError, UserError
from breakeven.measure.bodies import Bodies
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.events import ClientCeiling, Event, EventWriter, LoadDone, LoadStarted, LoadWorker, NoiseSample
from breakeven.measure.player.clocks import run_quietly
from breakeven.measure.player.dispatch import FAILED, INTERRUPTED, Player
from breakeven.measure.player.job import Job
from breakeven.measure.player.ray_workers import RayCrew
from breakeven.measure.player.tally import Batch, Recorder, RunTally, refuse_more_than
from breakeven.measure.player.watch import EngineWatch, Watch
from breakeven.measure.player.worker import ProcessCrew
from breakeven.measure.pool import Pool
from breakeven.measure.progress import LoadState
from breakeven.traffic.schedule import Schedule


class BackgroundLog:
    """Appends to `log` from a thread, in order. Use as a context manager: leaving it waits for the last line.

    When writing fails, `error` is set, `on_error` is called from the thread, and everything after is discarded: what
    was written stays whole.
    """

    def __init__(self, log: EventWriter, on_error: Callable[[], None]) -> None:
        self._log, self._on_error = log, on_error
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="event log", daemon=True)
        self.error: BreakevenError | None = None

    def __enter__(self) -> BackgroundLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def append(self, event: Event) -> None:
        """Write one event, soon."""
        self._queue.put(msgspec.json.encode(event) + b"\n")

    def append_encoded(self, lines: bytes) -> None:
        """Write whole lines that are events already, soon."""
        self._queue.put(lines)

    def _write(self) -> None:
        while (lines := self._queue.get()) is not None:
            if self.error is None:
                try:
                    self._log.append_encoded(lines)
                except BreakevenError as error:
                    self.error = error
                    self._on_error()


class Crew(Protocol):
    """One run's players. `ready`, then `play`, then `finished`; `close` in any case."""

    lead_s: float
    """From the order to start to the start itself."""
    pids: list[int]
    """Processes of ours on this machine beside this one."""
    flags: list[str]
    """What a reader of the result must know: lost workers, clocks that moved."""

    async def ready(self) -> list[LoadWorker]:
        """Get everything in place; who plays. Raises BreakevenError when that cannot be."""

    def play(self, start_ns: int) -> None:
        """Start at this moment of this process's monotonic clock."""

    def cancel(self, detail: str) -> None:
        """End everything in flight; `finished` follows soon."""

    async def finished(self) -> None:
        """Wait until every request is over. Raises what went wrong in a player."""

    async def close(self) -> None:
        """Let go of processes and connections."""


class LocalCrew:
    """Plays on this process's own loop."""

    def __init__(self, job: Job, take: Callable[[Batch], None]) -> None:
        self.lead_s = 0.02
        self.pids: list[int] = []
        self.flags: list[str] = []
        self._job, self._take = job, take
        self._pool: Pool | None = None
        self._player: Player | None = None
        self._task: asyncio.Task[None] | None = None

    async def ready(self) -> list[LoadWorker]:
        """Nothing to wait for."""
        self._pool = Pool(self._job.backend)
        self._player = Player(self._job, self._pool, Recorder(self._take))
        return []

    def play(self, start_ns: int) -> None:
        """Start at this moment."""
        assert self._player is not None
        self._task = asyncio.ensure_future(self._player.play(start_ns))

    def cancel(self, detail: str) -> None:
        """End everything in flight."""
        if self._player is not None:
            self._player.cancel(detail)

    async def finished(self) -> None:
        """Wait until every request is over."""
        assert self._task is not None
        # Whoever stops waiting, as Ctrl-C does, still wants what is in flight to be recorded.
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Close the connections."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._pool is not None:
            await self._pool.close()


END_GRACE_S = 15.0
"""Longest a player may take to end what it was told to cancel."""


def run_load(
    backend: Backend,
    schedule: Schedule,
    bodies: Bodies,
    log: EventWriter,
    *,
    block: str,
    model: str,
    load: str,
    round: int = 0,
    schedule_file: str,
    processes: int = 1,
    ray_address: str | None = None,
    drain_s: float = 60.0,
    ceiling: ClientCeiling | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    alive: Callable[[], None] = lambda: None,
    pids: Sequence[int] = (),
    energy: EnergyCounter | None = None,
    stop: threading.Event | None = None,
) -> LoadDone:
    """Play `schedule` once; the log afterwards holds all of it, from LoadStarted to LoadDone, which is returned.

    What the server does wrong is counted and the run goes on. `processes` > 1 play it together, on this machine or,
    with `ray_address` ("auto", "local" or an address), as Ray workers. `drain_s` after the last request was due,
    whatever is unfinished is cancelled. `ceiling`: what the client can drive here; more is refused before anything
    is sent. `on_state` is called about twice a second, from a thread, as is `alive` every second, which raises when
    our own engine has died. `pids`: processes of ours whose use of the CPU is no noise. `stop`: ends the run when set.

    Raises UserError for a rate beyond the ceiling; KeyboardInterrupt after Ctrl-C or `stop`; what `alive` raised; and
    BreakevenError when the log cannot be written. In each of these cases the log was brought to an end first.
    """
    if ceiling is not None:
        refuse_more_than(ceiling, schedule)
    if len(schedule) == 0:
        raise UserError("the schedule is empty; give a longer duration or a higher rate")
    if backend.model != model:
        settings = {**backend.settings, "served_model": backend.served_model}
        backend = dataclasses.replace(backend, model=model, settings=settings)
    job = Job(backend=backend, schedule=schedule, bodies=bodies, block=block, drain_s=drain_s)
    processes = min(processes, job.most_workers())
    tally = RunTally(model, load, schedule, ceiling)
    started = LoadStarted(
        block=block,
        model=model,
        load=load,
        workload=schedule.workload,
        schedule=schedule_file,
        at_ns=0,
        measure_from_ns=0,
        round=round,
        processes=processes,
        shares_cores=_is_here(backend),
    )
    run = _Run(job, log, tally, started, on_state, alive, pids, energy, stop)
    done = run_quietly(lambda: run.play(_crew(job, processes, ray_address, run.take)))
    with contextlib.suppress(BreakevenError) if run.error is not None else contextlib.nullcontext():
        log.append(done)
    if run.error is not None:
        raise run.error
    if done.because == "interrupted":
        raise KeyboardInterrupt
    return done


def _crew(job: Job, processes: int, ray_address: str | None, take: Callable[[Batch], None]) -> Crew:
    if ray_address is not None:
        return RayCrew(job, processes, ray_address, take)
    return ProcessCrew(job, processes, take) if processes > 1 else LocalCrew(job, take)


class _Run:
    """One run and what it holds: the log's thread, the watch, and why it ended."""

    def __init__(
        self,
        job: Job,
        log: EventWriter,
        tally: RunTally,
        started: LoadStarted,
        on_state: Callable[[LoadState], None],
        alive: Callable[[], None],
        pids: Sequence[int],
        energy: EnergyCounter | None,
        stop: threading.Event | None,
    ) -> None:
        self._job, self._events, self._tally, self._started = job, log, tally, started
        self._on_state, self._alive, self._pids, self._energy, self._stop = on_state, alive, pids, energy, stop
        self._log: BackgroundLog | None = None
        self.error: Exception | None = None
        """What must be raised once the log is whole."""

    def take(self, batch: Batch) -> None:
        """News from a player."""
        self._tally.add(batch)
        if self._log is not None:
            self._log.append_encoded(batch.lines)

    async def play(self, crew: Crew) -> LoadDone:
        """Everything from LoadStarted up to LoadDone, which is returned and not yet written."""
        loop = asyncio.get_running_loop()
        disk_full = asyncio.Event()
        with BackgroundLog(self._events, lambda: _tell(loop, disk_full)) as self._log:
            try:
                done = await self._play(crew, disk_full)
            finally:
                await crew.close()
        self.error = self.error or self._log.error
        return done if self.error is None else msgspec.structs.replace(done, ok=False, because="failed")

    async def _play(self, crew: Crew, disk_full: asyncio.Event) -> LoadDone:
        assert self._log is not None
        job, workload = self._job, self._job.schedule.workload
        workers = await crew.ready()
        start_ns = time.monotonic_ns() + round(crew.lead_s * 1e9)
        self._tally.start_ns = start_ns
        measure_from_ns = start_ns + round(workload.warm_up_s * 1e9)
        self._log.append(msgspec.structs.replace(self._started, at_ns=start_ns, measure_from_ns=measure_from_ns))
        for worker in workers:
            self._log.append(worker)
        watch = Watch(
            job.block,
            self._log.append,
            engine=EngineWatch(job.backend),
            energy=self._energy,
            pids=[*self._pids, *crew.pids],
            alive=self._alive,
            state=lambda: self._tally.state(watch.engine_state),
            on_state=self._on_state,
            stop=self._stop,
        )
        crew.play(start_ns)
        because = await self._until_over(crew, watch, disk_full)
        await crew.close()
        heard, wall_step_s = watch.finish()
        fields = {field: getattr(heard, field) for field in heard.__struct_fields__ if field != "reasons"}
        self._log.append(NoiseSample(block=job.block, at_ns=time.monotonic_ns(), **fields))
        return LoadDone(
            block=job.block,
            ok=because == "finished",
            at_ns=time.monotonic_ns(),
            arrivals_end_ns=max(start_ns, self._tally.last_due_ns),
            because=because,
            # As in the comparison: beside an engine of somebody else's, the others may well be that engine.
            flagged=[*(heard.reasons if job.backend.pid is not None else []), *crew.flags],
            wall_step_s=wall_step_s,
        )

    async def _until_over(self, crew: Crew, watch: Watch, disk_full: asyncio.Event) -> str:
        """Wait for the end, whatever it is; end what is still in flight. Why it ended; `error` is set if it failed."""
        playing = asyncio.ensure_future(crew.finished())
        looking = asyncio.ensure_future(watch.run())
        full = asyncio.ensure_future(disk_full.wait())
        try:
            await asyncio.wait({playing, looking, full}, return_when=asyncio.FIRST_COMPLETED)
            because = "finished" if playing.done() else "interrupted"
        except asyncio.CancelledError:  # Ctrl-C
            because = "interrupted"
        detail = INTERRUPTED
        if looking.done() and not looking.cancelled() and (error := looking.exception()) is not None:
            because, detail, self.error = "failed", FAILED, _as_exception(error)
        elif full.done():
            because, detail = "failed", "the log could not be written"
        if because != "finished":
            crew.cancel(detail)
        try:
            await asyncio.wait_for(playing, END_GRACE_S)
        except TimeoutError:
            crew.flags.append(f"a player did not end within {END_GRACE_S:g} s of being told to")
        except Exception as error:
            because, self.error = "failed", self.error or error
        for task in (looking, full):
            task.cancel()
        await asyncio.gather(looking, full, return_exceptions=True)
        if because == "finished":
            try:
                self._alive()
            except Exception as error:
                because, self.error = "failed", error
        return because


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _is_here(backend: Backend) -> bool:
    """Whether client and engine share this machine's cores."""
    if backend.pid is not None:
        return True
    host = urlsplit(backend.url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
