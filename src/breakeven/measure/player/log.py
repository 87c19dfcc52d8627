"""The event log behind a thread, so that a slow disk never delays a request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import msgspec

from breakeven.errors import BreakevenError
from breakeven.measure.events import Event, EventWriter


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
