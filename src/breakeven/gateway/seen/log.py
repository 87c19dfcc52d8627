"""The decision log as one worker writes it: `decisions-<worker>-<n>.jsonl`, one record a line.

`add` runs on the event loop, so it only encodes (3 us; a thread that encodes would hold the interpreter's lock for a
whole batch) and queues. A thread writes what is queued ten times a second. When the disk is slower than the traffic,
or full, records are dropped and counted: serving never waits for its log. What clients and backends may choose freely
is cut and made printable on its way in.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from breakeven.errors import complain as complain_once
from breakeven.errors import printable
from breakeven.gateway.plan.model import LogPlan
from breakeven.gateway.seen.record import DecisionRecord

WRITE_EVERY_S = 0.1
QUEUE_BYTES = 16 * 2**20
"""More than this waiting to be written is dropped; about 20,000 usual records."""
RETRY_S = 1.0
AGAIN_S = 60.0
"""A disk that fills again and again is spoken of at most this often."""
LONGEST_TEXT, LONGEST_FINISH = 500, 40
"""Letters of a model's name or an error, and of a finish reason."""
FILE = re.compile(r"decisions-(\d+)-(\d+)\.jsonl")


def log_file(directory: Path, worker: int, number: int) -> Path:
    """The `number`-th file of one worker's series."""
    return directory / f"decisions-{worker}-{number}.jsonl"


def series(directory: Path) -> dict[int, list[tuple[int, Path]]]:
    """Files by worker, each (number, path), oldest first; empty when there is no such directory."""
    found: dict[int, list[tuple[int, Path]]] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if (match := FILE.fullmatch(entry.name)) and not _is_pipe(entry):
                found.setdefault(int(match[1]), []).append((int(match[2]), Path(entry.path)))
    return {worker: sorted(files) for worker, files in sorted(found.items())}


def _plain(text: str, most: int) -> str:
    return printable(text[:most]) if len(text) > most or not text.isprintable() else text


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _is_pipe(entry: os.DirEntry[str]) -> bool:
    """Whether reading it might never end. (A device, such as a disk that is always full, is read and written.)"""
    if entry.is_file():
        return False
    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(entry.stat().st_mode)
    return False


class DecisionLog:
    """One worker's writer. Make it after the fork: it starts a thread.

    `complain` is told in one line when the first records are lost, and again when it had gone well in between. Files
    and directory are for their owner alone. `written` and `dropped` count records.
    """

    def __init__(
        self, directory: Path, worker: int, plan: LogPlan, complain: Callable[[str], None] = complain_once
    ) -> None:
        self.directory, self.worker, self.plan = directory, worker, plan
        self.written = self.dropped = 0
        self._encode = msgspec.json.Encoder().encode
        self._queue: deque[bytes] = deque()
        self._queued_bytes = self._taken_bytes = 0
        self._complain, self._complained, self._complained_s = complain, False, -AGAIN_S
        self._file: int | None = None
        self._size = self._number = 0
        self._whole = 0
        self._retry_s = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.tend()

    def tend(self) -> None:
        """Start the thread where there is none: the system refused one, or a defect ended it."""
        if (self._thread is not None and self._thread.is_alive()) or self._ending.is_set():
            return
        thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def add(self, record: DecisionRecord) -> None:
        """Queue one record; it is on its way to the disk within about `WRITE_EVERY_S`. Never waits, never raises."""
        if not self.plan.prompts and (record.request_body or record.response_body):
            record.request_body = record.response_body = ""
        record.model = _plain(record.model, LONGEST_TEXT)
        if record.error:
            record.error = _plain(record.error, LONGEST_TEXT)
        record.finish = _plain(record.finish, LONGEST_FINISH)
        try:
            line = self._encode(record)
        except (TypeError, ValueError):  # A lone surrogate in a client's model name has no UTF-8.
            self.dropped += 1
            return
        # Each of the two sums has one writer, so neither needs a lock.
        if self._queued_bytes - self._taken_bytes + len(line) > QUEUE_BYTES or self._ending.is_set():
            self.dropped += 1
            return
        self._queued_bytes += len(line)
        self._queue.append(line)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued and end. Records added from now on are dropped."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        else:
            self._write_queued()

    def _run(self) -> None:
        while not self._ending.wait(WRITE_EVERY_S):
            self._write_queued()
        self._write_queued()
        if self._file is not None:
            os.close(self._file)

    def _write_queued(self) -> None:
        lines = []
        while self._queue:
            lines.append(self._queue.popleft())
        if not lines:
            return
        self._taken_bytes += sum(map(len, lines))
        if self._retry_s and time.monotonic() < self._retry_s and not self._ending.is_set():
            self.dropped += len(lines)
            return
        try:
            self._write(lines)
            self._retry_s = 0.0
        except Exception as error:  # a defect of ours must not end the thread either
            self.dropped += len(lines) - self._whole
            self.written += self._whole
            self._retry_s = time.monotonic() + RETRY_S
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError):
                    os.close(file)
            if not self._complained and time.monotonic() - self._complained_s >= AGAIN_S:
                self._complained, self._complained_s = True, time.monotonic()
                why = (error.strerror if isinstance(error, OSError) else None) or repr(error)
                self._complain(
                    f"the decision log in {self.directory} cannot be written ({why}); requests are served, their "
                    "records are dropped and counted until it can. Make room, or set log.directory elsewhere"
                )
        else:
            self.written += len(lines)
            self._complained = False

    def _write(self, lines: list[bytes]) -> None:
        """Whole lines to the present file, rotating between them. `_whole`: how many of them are in."""
        self._whole = 0
        batch: list[bytes] = []
        size = 0
        for line in lines:
            if self._size + size + len(line) + 1 > self.plan.rotate_bytes and self._size + size:
                self._append(batch)
                self._rotate()
                batch, size = [], 0
            batch.append(line)
            size += len(line) + 1
        self._append(batch)

    def _append(self, batch: list[bytes]) -> None:
        if not batch:
            return
        # Somebody may have removed the file to make room; writing on would go nowhere.
        if self._file is not None and os.fstat(self._file).st_nlink == 0:
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._open()
        assert self._file is not None
        data = memoryview(b"\n".join(batch) + b"\n")
        done = 0
        try:
            while done < len(data):
                done += os.write(self._file, data[done:])
        except OSError:
            self._whole += bytes(data[:done]).count(b"\n")
            raise
        self._size += len(data)
        self._whole += len(batch)

    def _open(self) -> None:
        """Go on with the newest file, after a line that a crash or a full disk cut short."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if files := series(self.directory).get(self.worker):
            self._number = max(self._number, files[-1][0])
        path = log_file(self.directory, self.worker, self._number)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._file).st_size
        if self._size and _last_byte(path) != b"\n":
            self._size += os.write(self._file, b"\n")

    def _rotate(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._number += 1
        for number, path in series(self.directory).get(self.worker, []):
            if number <= self._number - self.plan.keep:
                path.unlink(missing_ok=True)
        path = log_file(self.directory, self.worker, self._number)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = 0
