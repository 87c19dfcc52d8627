"""Several processes on this machine play one schedule together, into one log: the crew, and a worker's own side.

Each gets the whole schedule and plays its own rows from the same moment of the monotonic clock, which all processes
of a machine share. A process that dies takes nothing down with it: what it owed is recorded as cancelled, and the
others go on.

A worker is `python -m breakeven.measure.player.worker`. It reads a pickled job from standard input, says it is ready,
starts when told, and writes batches of its part of the log to standard output. It ends when its part is over or its
parent is gone. Frames on both pipes: four bytes of length, then that many bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, TypeAlias

import msgspec

from breakeven.errors import BreakevenError
from breakeven.measure.events import LoadWorker
from breakeven.measure.player.clocks import run_quietly
from breakeven.measure.player.dispatch import Player
from breakeven.measure.player.job import Job, Outstanding, parts
from breakeven.measure.player.tally import Batch, Recorder
from breakeven.measure.pool import Pool

READY_S = 120.0
"""Longest a worker may take to import, and to read a schedule of a million requests."""
LEAD_S = 0.3
"""From the order to start to the start: time for every process to hear it and to make its first bodies."""


LENGTH = struct.Struct("<I")


class Ready(msgspec.Struct, tag=True):
    """To the parent: everything is in place."""


class WorkerFailed(msgspec.Struct, tag=True):
    """To the parent: this process cannot go on."""

    why: str


class WorkerNews(msgspec.Struct, tag=True):
    """To the parent: a `Batch`, encoded."""

    batch: msgspec.Raw


class Over(msgspec.Struct, tag=True):
    """To the parent: this part is over."""


class Start(msgspec.Struct, tag=True):
    """To the worker: play from this moment of the shared monotonic clock."""

    at_ns: int


class Cancel(msgspec.Struct, tag=True):
    """To the worker: end everything in flight."""

    detail: str


FromWorker: TypeAlias = Ready | WorkerFailed | WorkerNews | Over
ToWorker: TypeAlias = Start | Cancel


def frame(message: FromWorker | ToWorker) -> bytes:
    """A message as it goes through a pipe."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message; None when the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


class _Pipe:
    """Standard output, written by a thread: a parent that is slow to read must not delay a request."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def send(self, message: FromWorker) -> None:
        self._queue.put(frame(message))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (data := self._queue.get()) is not None:
            left = memoryview(data)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:  # the parent is gone, and reading from it will say so
                return


class ProcessCrew:
    """Worker processes of this one. They ignore Ctrl-C, which is for their parent to handle, and end with it."""

    def __init__(self, job: Job, processes: int, take: Callable[[Batch], None]) -> None:
        self.pids: list[int] = []
        self.flags: list[str] = []
        self.lead_s = LEAD_S
        self._workers = [_Worker(part, take, self.flags) for part in parts(job, processes)]

    async def ready(self) -> list[LoadWorker]:
        """Start the processes and wait until each has its job. Raises BreakevenError when one cannot."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(worker.start(loop) for worker in self._workers))
        self.pids.extend(worker.pid for worker in self._workers)
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.gather(*(worker.is_ready for worker in self._workers))
        except TimeoutError as error:
            raise BreakevenError(f"worker processes were not ready within {READY_S:g} s; give fewer --processes") from (
                error
            )
        return [
            LoadWorker(block=worker.job.block, worker=worker.job.worker, host=socket.gethostname())
            for worker in self._workers
        ]

    def play(self, start_ns: int) -> None:
        """Tell them all to start at this moment."""
        for worker in self._workers:
            worker.play(start_ns)

    def cancel(self, detail: str) -> None:
        """End everything in flight."""
        for worker in self._workers:
            worker.tell(Cancel(detail))

    async def finished(self) -> None:
        """Wait until every part is over. Raises BreakevenError when no worker is left that could play."""
        whole = await asyncio.shield(asyncio.gather(*(worker.over for worker in self._workers)))
        if not any(whole):
            raise BreakevenError(f"every worker process was lost; {self.flags[0]}")

    async def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        await asyncio.gather(*(asyncio.to_thread(worker.wait) for worker in self._workers))


class _Worker(asyncio.Protocol):
    """One process and the pipes to it."""

    def __init__(self, job: Job, take: Callable[[Batch], None], flags: list[str]) -> None:
        self.job, self._start_ns, self.pid = job, 0, 0
        self._take, self._flags = take, flags
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.ReadTransport | None = None
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._batches = msgspec.msgpack.Decoder(Batch)
        self._outstanding = Outstanding(job)
        self._why = "ended without a word"

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the process and hand it its job."""
        self.is_ready: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[bool] = loop.create_future()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "breakeven.measure.player.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._transport, _ = await loop.connect_read_pipe(lambda: self, self._process.stdout)
        await asyncio.to_thread(self._hand_over)

    def _hand_over(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died; the end of its output tells
            pickle.dump(self.job, self._process.stdin, protocol=5)
            self._process.stdin.flush()

    def play(self, start_ns: int) -> None:
        """Tell it to start, or record what it owes if it has died meanwhile."""
        self._start_ns = start_ns
        if self.over.done():
            self._record_lost()
        else:
            self.tell(Start(start_ns))

    def tell(self, order: ToWorker) -> None:
        """Send an order; one that is gone needs none."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(frame(order))
                self._process.stdin.flush()

    def data_received(self, data: bytes) -> None:
        """Take whole messages out of what has come."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, at)
            end = at + LENGTH.size + length
            if end > len(buffer):
                break
            self._hear(self._decoder.decode(bytes(buffer[at + LENGTH.size : end])))
            at = end
        del buffer[:at]

    def connection_lost(self, error: Exception | None) -> None:
        """The process is gone. Before it said that its part was over: record what it owed."""
        if not self.is_ready.done():
            self.is_ready.set_exception(BreakevenError(f"a worker process {self._why}; give fewer --processes"))
            self.is_ready.exception()  # whoever waits still gets it; nobody waiting is no matter of its own
        if self.over.done():
            return
        if self._start_ns:
            self._record_lost()
        self.over.set_result(False)

    def _record_lost(self) -> None:
        recorder = Recorder(self._take, worker=self.job.worker)
        count = self._outstanding.record(recorder, self._start_ns, time.monotonic_ns())
        self._flags.append(f"worker {self.job.worker} {self._why}; {count} requests were lost with it")

    def close(self) -> None:
        """Let it end: it does when its orders end."""
        if self._transport is not None:
            self._transport.close()
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Wait until it has ended, and make it when it does not."""
        if self._process is None:
            return
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hear(self, message: FromWorker) -> None:
        match message:
            case Ready():
                self.is_ready.set_result(None)
            case WorkerNews(batch):
                news = self._batches.decode(batch)
                self._outstanding.add(news)
                self._take(news)
            case WorkerFailed(why):
                self._why = f"failed ({why})"
            case Over():
                if not self.over.done():
                    self.over.set_result(True)


async def _play(pipe: _Pipe, orders: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    job = pickle.load(orders)
    assert isinstance(job, Job)
    pool = Pool(job.backend)

    def send(batch: Batch) -> None:
        pipe.send(WorkerNews(msgspec.Raw(msgspec.msgpack.encode(batch))))

    player = Player(job, pool, Recorder(send, worker=job.worker, track=True))
    start: asyncio.Future[int] = loop.create_future()

    def obey(order: ToWorker | None) -> None:
        if isinstance(order, Start):
            start.set_result(order.at_ns)
        elif start.done():
            player.cancel("the run was lost" if order is None else order.detail)
        else:
            start.cancel()

    def listen() -> None:
        decoder = msgspec.msgpack.Decoder(ToWorker)
        while (data := read_frame(orders)) is not None:
            loop.call_soon_threadsafe(obey, decoder.decode(data))
        loop.call_soon_threadsafe(obey, None)

    threading.Thread(target=listen, daemon=True).start()
    pipe.send(Ready())
    try:
        await player.play(await start)
    finally:
        await pool.close()


def main() -> None:
    """Play one part and tell the parent."""
    # Anything else that prints must not get between the frames.
    pipe = _Pipe(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        run_quietly(lambda: _play(pipe, sys.stdin.buffer))
        pipe.send(Over())
    except asyncio.CancelledError:  # told to stop before the start
        pipe.send(Over())
    except Exception as error:
        pipe.send(WorkerFailed(f"{type(error).__name__}: {error}"))
    pipe.close()
    # A thread may still wait for orders on standard input; nothing is left to tidy up.
    os._exit(0)


if __name__ == "__main__":
    main()
