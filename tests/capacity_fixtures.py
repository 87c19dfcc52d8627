"""A server whose capacity is known: so many slots, and a fixed time that an answer holds one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from breakeven.wire.completions import Question
from breakeven.wire.scripted import ScriptedServer, Step


class QueueServer(ScriptedServer):
    """Answers `slots` requests at a time, each in `service_s`, evenly token by token; the others wait their turn.

    It carries slots / service_s requests a second and not one more. `service_s` may be changed while it runs.
    """

    def __init__(self, slots: int, service_s: float) -> None:
        super().__init__(self._step, models=["m"], owned_by="somebody", at_once=slots, end_s=0.0, usage_always=True)
        self.service_s = service_s

    @property
    def url(self) -> str:
        """With the name of its model."""
        return f"{super().url}/v1#m"

    @property
    def answered(self) -> int:
        """Requests answered in full."""
        return self.seen.answered

    def _step(self, question: Question) -> Step:
        gap_s = self.service_s / question.chunks
        return {"first_s": gap_s, "chunk_s": gap_s}


@contextmanager
def queue_server(slots: int, service_s: float) -> Iterator[QueueServer]:
    """Serve on a free loopback port, from a thread with an event loop of its own."""
    with QueueServer(slots, service_s) as server:
        yield server
