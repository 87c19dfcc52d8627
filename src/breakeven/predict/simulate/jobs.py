"""The state of every request of a run, as columns of plain lists: read and written once an event."""

from __future__ import annotations

from math import nan

from breakeven.predict.simulate.requests import NOBODY, Requests

_CARRIED = (
    "given", "target", "read", "own", "ends_at", "cached", "preempted", "shared", "first_s", "last_s", "gap_s",
    "queued_s",
)  # fmt: skip


class Jobs:
    """Columns by request.

    `prompt`, `output`, `prefix` are as asked. `given`: tokens answered when it last joined or left the running ones.
    `target`, `read`: tokens to read before it decodes, and those read. `own`, `shared`: its blocks, and the cached
    chunks it uses. `ends_at`: the step at which it ends. `gap_s`: longest wait between two of its tokens.
    """

    __slots__ = (
        "cached", "end_s", "ends_at", "first_s", "gap_s", "given", "last_s", "output", "own", "preempted", "prefix",
        "prompt", "queued_s", "read", "refused", "replica", "shared", "target",
    )  # fmt: skip

    def __init__(self, requests: Requests) -> None:
        n = len(requests)
        self.prompt: list[int] = requests.prompt_tokens_N.tolist()
        self.output: list[int] = requests.output_tokens_N.tolist()
        self.prefix = requests.prefix
        self.given, self.target, self.read = [0] * n, [0] * n, [0] * n
        self.own, self.ends_at, self.cached, self.preempted = [0] * n, [0] * n, [0] * n, [0] * n
        self.shared: list[list[int]] = [[] for _ in range(n)]
        self.replica = [NOBODY] * n
        self.refused = [False] * n
        self.queued_s = [0.0] * n
        self.first_s, self.end_s, self.last_s, self.gap_s = [nan] * n, [nan] * n, [nan] * n, [0.0] * n

    def take_over(self, other: Jobs, numbers: list[int]) -> None:
        """The first requests here are the `numbers` of `other`: their state comes along."""
        n = len(numbers)
        for name in _CARRIED:
            theirs = getattr(other, name)
            getattr(self, name)[:n] = [theirs[i] for i in numbers]
