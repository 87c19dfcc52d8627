"""Keys and values on one replica: blocks taken, given back, and kept for prompts that begin alike.

A sequence's blocks are its own, except those of a prefix that the cache holds, which sequences share. What nobody uses
stays in the cache until room is needed; the longest unused goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf


class Blocks:
    """All blocks of a replica. `total` in blocks, infinite where nothing limits it.

    Invariant: own + cached <= total, and `idle` holds exactly those cached chunks that nobody uses.
    """

    __slots__ = ("block", "chunk", "idle", "own", "total", "users")

    def __init__(self, kv_tokens: int | None, block_tokens: int, chunk_tokens: int) -> None:
        self.block = block_tokens
        self.total: float = inf if kv_tokens is None else kv_tokens // block_tokens
        self.chunk = chunk_tokens // block_tokens
        self.own = 0
        self.users: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> float:
        """Blocks that can be taken, those of idle chunks included."""
        return self.total - self.own - (len(self.users) - len(self.idle)) * self.chunk

    @property
    def used_tokens(self) -> int:
        """Tokens' worth of blocks that sequences hold; idle chunks excluded."""
        return (self.own + (len(self.users) - len(self.idle)) * self.chunk) * self.block

    def count(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill or begin."""
        return -(-tokens // self.block)

    def held(self, ids: Sequence[int], most: int) -> int:
        """How many of the first `most` ids the cache holds without a gap."""
        ids = ids[:most]
        return next((n for n, chunk in enumerate(ids) if chunk not in self.users), len(ids))

    def idle_among(self, ids: Sequence[int]) -> int:
        """Of these cached chunks, those nobody uses: using them takes room from what is available."""
        return sum(1 for chunk in ids if chunk in self.idle)

    def take(self, blocks: int) -> None:
        """A sequence's own blocks; the caller has made sure that they are available."""
        self.own += blocks
        self._make_room()

    def give(self, blocks: int) -> None:
        """Own blocks come back."""
        self.own -= blocks

    def share(self, ids: Sequence[int]) -> None:
        """One more sequence uses these cached chunks."""
        for chunk in ids:
            self.users[chunk] += 1
            self.idle.pop(chunk, None)

    def publish(self, ids: Sequence[int]) -> list[int]:
        """Turn own blocks into cached chunks, used once; returns those not cached yet, the others stay."""
        fresh = [chunk for chunk in dict.fromkeys(ids) if chunk not in self.users]
        self.own -= len(fresh) * self.chunk
        for chunk in fresh:
            self.users[chunk] = 1
        return fresh

    def leave(self, ids: Sequence[int]) -> None:
        """A sequence stops using these chunks; a chunk without users becomes idle."""
        for chunk in reversed(ids):
            self.users[chunk] -= 1
            if not self.users[chunk]:
                self.idle[chunk] = None

    def _make_room(self) -> None:
        while self.own + len(self.users) * self.chunk > self.total:
            chunk, _ = self.idle.popitem(last=False)
            del self.users[chunk]
