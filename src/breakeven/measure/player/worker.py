"""One process of several that play a schedule together: `python -m breakeven.measure.player.worker`.

It reads a pickled job from standard input, says it is ready, starts when told, and writes batches of its part of the
log to standard output. It ends when its part is over or its parent is gone. Frames on both pipes: four bytes of
length, then that many bytes.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import struct
import sys
import threading
from typing import BinaryIO, TypeAlias

import msgspec

LENGTH = struct.Struct("<I")


class Ready(msgspec.Struct, tag=True):
    """To the parent: everything is in place."""


class Failed(msgspec.Struct, tag=True):
    """To the parent: this process cannot go on."""

    why: str


class News(msgspec.Struct, tag=True):
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


FromWorker: TypeAlias = Ready | Failed | News | Over
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


async def _play(pipe: _Pipe, orders: BinaryIO) -> None:
    # Imported here: the frames above are also what the parent needs, and it has these already.
    from breakeven.measure.player.dispatch import Player
    from breakeven.measure.player.job import Job
    from breakeven.measure.player.tally import Batch, Recorder
    from breakeven.measure.pool import Pool

    loop = asyncio.get_running_loop()
    job = pickle.load(orders)
    assert isinstance(job, Job)
    pool = Pool(job.backend)

    def send(batch: Batch) -> None:
        pipe.send(News(msgspec.Raw(msgspec.msgpack.encode(batch))))

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
    from breakeven.measure.player.run import quick_switches
    from breakeven.measure.requests import quiet_gc
    from breakeven.wire.client import new_loop

    # Anything else that prints must not get between the frames.
    pipe = _Pipe(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with quiet_gc(), quick_switches(), asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_play(pipe, sys.stdin.buffer))
        pipe.send(Over())
    except asyncio.CancelledError:  # told to stop before the start
        pipe.send(Over())
    except Exception as error:
        pipe.send(Failed(f"{type(error).__name__}: {error}"))
    pipe.close()
    # A thread may still wait for orders on standard input; nothing is left to tidy up.
    os._exit(0)


if __name__ == "__main__":
    main()
