"""Ray workers, on any machines of a cluster, play one schedule together into one log here.

Every worker's monotonic clock is compared with ours before the run. The start is told to each on its own clock, and
every time it reports is put onto ours before it enters the log, so that the log reads as if one process had written it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from breakeven.errors import BreakevenError, UserError
from breakeven.measure.events import LoadWorker
from breakeven.measure.player.clocks import MOST_UNCERTAIN_NS, Offset, measure_offset, run_quietly
from breakeven.measure.player.dispatch import Player
from breakeven.measure.player.job import Job, Outstanding, parts
from breakeven.measure.player.tally import Batch, Recorder
from breakeven.measure.pool import Pool

READY_S = 120.0
KNOCK_S = 5.0
LEAD_S = 0.5
TAKE_S = 0.5
"""How long a worker with nothing to tell keeps a question for news waiting."""


class Playing:
    """One worker's side; an actor of Ray. Its methods run in threads beside each other."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._player: Player | None = None
        self._detail: str | None = None
        self._error: str | None = None
        self._job: Job | None = None

    def clock_ns(self) -> int:
        """This machine's monotonic clock."""
        return time.monotonic_ns()

    def get_ready(self, job: Job, worker: int, workers: int) -> tuple[str, bool]:
        """Take the job; the name of this machine, and whether the API key is here."""
        self._job = dataclasses.replace(job, worker=worker, workers=workers)
        name = job.backend.api_key_env
        return socket.gethostname(), name is None or bool(os.environ.get(name))

    def play(self, start_ns: int, shift_ns: int) -> None:
        """Start at `start_ns` of this clock, and report times with `shift_ns` added. Returns at once."""
        self._thread = threading.Thread(target=self._run, args=(start_ns, shift_ns), daemon=True)
        self._thread.start()

    def take(self) -> tuple[list[bytes], bool, str | None]:
        """News since the last time: encoded batches, whether the part is over, and why it failed."""
        news: list[bytes] = []
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=TAKE_S)
            while item is not None:
                news.append(item)
                item = self._queue.get_nowait()
            return news, True, self._error
        return news, False, None

    def cancel(self, detail: str) -> None:
        """End everything in flight."""
        self._detail = detail
        if self._loop is not None and self._player is not None:
            with contextlib.suppress(RuntimeError):  # it is over already
                self._loop.call_soon_threadsafe(self._player.cancel, detail)

    def _run(self, start_ns: int, shift_ns: int) -> None:
        try:
            run_quietly(lambda: self._play(start_ns, shift_ns))
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
        self._queue.put(None)

    async def _play(self, start_ns: int, shift_ns: int) -> None:
        assert self._job is not None
        self._loop = asyncio.get_running_loop()
        pool = Pool(self._job.backend)

        def send(batch: Batch) -> None:
            self._queue.put(msgspec.msgpack.encode(batch))

        recorder = Recorder(send, worker=self._job.worker, shift_ns=shift_ns, track=True)
        self._player = Player(self._job, pool, recorder)
        if self._detail is not None:
            self._player.cancel(self._detail)
        try:
            await self._player.play(start_ns)
        finally:
            await pool.close()


class RayCrew:
    """The workers of a Ray cluster: "local" starts one here, "auto" or an address joins one that runs."""

    def __init__(self, job: Job, workers: int, address: str, take: Callable[[Batch], None]) -> None:
        """Raises UserError when Ray is not installed or cannot be reached."""
        self.pids: list[int] = []
        self.flags: list[str] = []
        self.lead_s = LEAD_S
        self._job, self._take, self._address = job, take, address
        self._outstanding = [Outstanding(part) for part in parts(job, workers)]
        self._offsets: list[Offset] = []
        self._actors: list[Any] = []
        self._over: list[asyncio.Future[bool]] = []
        self._start_ns = 0
        self._ray, self._ours = _connect(address, workers)

    async def ready(self) -> list[LoadWorker]:
        """Start the actors, hand out the schedule, compare clocks. Raises BreakevenError when one is not up to it."""
        return await asyncio.to_thread(self._get_ready)

    def play(self, start_ns: int) -> None:
        """Tell each to start at this moment, on its own clock, and listen."""
        loop = asyncio.get_running_loop()
        self._start_ns = start_ns
        for worker, (actor, offset) in enumerate(zip(self._actors, self._offsets, strict=True)):
            self._over.append(loop.create_future())
            actor.play.remote(start_ns - offset.offset_ns, offset.offset_ns)
            threading.Thread(target=self._listen, args=(loop, worker), daemon=True).start()

    def cancel(self, detail: str) -> None:
        """End everything in flight."""
        for actor in self._actors:
            actor.cancel.remote(detail)

    async def finished(self) -> None:
        """Wait until every part is over, and compare clocks again. Raises BreakevenError when no worker is left."""
        whole = await asyncio.shield(asyncio.gather(*self._over))
        if not any(whole):
            raise BreakevenError(f"every Ray worker was lost; {self.flags[0]}")
        await asyncio.to_thread(self._check_drift, whole)

    async def close(self) -> None:
        """End the actors, and the cluster if it was started for this run."""
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if self._ours:
            self._ours = False
            await asyncio.to_thread(self._ray.shutdown)

    def _get_ready(self) -> list[LoadWorker]:
        ray = self._ray
        actor_class = ray.remote(Playing)
        options = {"num_cpus": 1, "max_concurrency": 4, "scheduling_strategy": "SPREAD"}
        self._actors = [actor_class.options(**options).remote() for _ in self._outstanding]
        # Once into the object store, not once a worker through the driver.
        job = ray.put(self._job)
        asked = [actor.get_ready.remote(job, i, len(self._actors)) for i, actor in enumerate(self._actors)]
        try:
            answers = ray.get(asked, timeout=READY_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UserError(
                f"Ray had no room for {len(asked)} workers of one CPU each within {READY_S:g} s; give fewer --processes"
            ) from error
        except ray.exceptions.RayError as error:
            raise BreakevenError(f"a Ray worker could not start: {_first_line(error)}") from error
        for host, has_key in answers:
            if not has_key:
                raise UserError(
                    f"{self._job.backend.api_key_env} is not set on {host}; a key travels only by environment, so set "
                    "it where the Ray workers start"
                )
        self._offsets = [
            self._measure_offset(actor, f"worker {worker} on {host}")
            for worker, (actor, (host, _)) in enumerate(zip(self._actors, answers, strict=True))
        ]
        return [
            LoadWorker(
                block=self._job.block,
                worker=worker,
                host=host,
                offset_ns=offset.offset_ns,
                uncertainty_ns=offset.uncertainty_ns,
            )
            for worker, ((host, _), offset) in enumerate(zip(answers, self._offsets, strict=True))
        ]

    def _measure_offset(self, actor: Any, who: str) -> Offset:
        return measure_offset(lambda: int(self._ray.get(actor.clock_ns.remote())), who)

    def _listen(self, loop: asyncio.AbstractEventLoop, worker: int) -> None:
        """Ask one worker for news until it has none left. In a thread, for Ray's answers are waited for."""
        actor = self._actors[worker]
        decoder = msgspec.msgpack.Decoder(Batch)
        why: str | None = None
        over = False
        while not over:
            try:
                news, over, why = self._ray.get(actor.take.remote())
            except Exception as error:  # whatever Ray calls it, the worker cannot be reached any more
                why, over, news = f"was lost ({_first_line(error)})", True, []
            batches = [decoder.decode(data) for data in news]
            with contextlib.suppress(RuntimeError):  # the run has ended without waiting for this worker
                loop.call_soon_threadsafe(self._hear, worker, batches, over, why)

    def _hear(self, worker: int, batches: list[Batch], over: bool, why: str | None) -> None:
        for batch in batches:
            self._outstanding[worker].add(batch)
            self._take(batch)
        if not over or self._over[worker].done():
            return
        if why is not None:
            recorder = Recorder(self._take, worker=worker)
            count = self._outstanding[worker].record(recorder, self._start_ns, time.monotonic_ns())
            self.flags.append(f"worker {worker}: {why}; {count} requests were lost with it")
        self._over[worker].set_result(why is None)

    def _check_drift(self, whole: list[bool]) -> None:
        """Flag a clock that has moved against ours since the start."""
        for worker, (actor, before) in enumerate(zip(self._actors, self._offsets, strict=True)):
            if not whole[worker]:
                continue
            try:
                now = self._measure_offset(actor, f"worker {worker}")
            except Exception as error:
                self.flags.append(f"worker {worker}: its clock could not be checked again ({_first_line(error)})")
                continue
            moved_ns = abs(now.offset_ns - before.offset_ns) - now.uncertainty_ns - before.uncertainty_ns
            if moved_ns > MOST_UNCERTAIN_NS:
                self.flags.append(f"worker {worker}: its clock moved by {moved_ns / 1e6:.1f} ms against ours")


def _connect(address: str, workers: int) -> tuple[Any, bool]:
    """Ray, and whether it was started for this run. Raises UserError when it is not there."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray needs Ray, which is not installed; install the extra `scale` (how: docs/scale.md)"
        ) from error
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            _knock(address)
            ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises a bare one when a node does not start in time
        what = "Ray did not start here" if address == "local" else f"no Ray cluster at {address!r}"
        raise UserError(
            f"{what} ({_first_line(error)}); start one with `ray start --head` and give --ray auto"
        ) from error
    return ray, True


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for a minute and then end the whole process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
