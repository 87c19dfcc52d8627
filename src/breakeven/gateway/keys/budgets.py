"""What keys spent, beyond the processes that count it: in a file over restarts, and in Redis among machines.

The file stands beside the file of keys. The watching process saves it every few seconds and at the end, so that a
machine that loses its power forgets only what was spent since. It is read before the first worker starts.

By way of Redis machines share limits, beside the path of requests: no request waits for it. Each machine decides by
what it knows. In the background it writes its own spending by bucket and reads the others', which it puts into the
grid's last row, where workers see it like one more worker. So machines together may overstep a limit by what the others
start within one exchange (`every_s` and a round trip).

What is written are totals, not additions: an exchange whose answer was lost is repeated without counting twice, and
after an outage the first one makes up for all. Buckets are numbered by the clock: keep clocks in step (NTP).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit
from breakeven.gateway.keys.store import replace_file
from breakeven.gateway.keys.windows import BUCKETS, number, put_row, row_buckets
from breakeven.gateway.plan.model import Redis
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import WINDOW_COLUMNS
from breakeven.hardware.system import regular

SCHEMA = "breakeven.key_budgets/1"


class _Spent(msgspec.Struct, kw_only=True):
    stamp: int
    buckets: list[tuple[int, int]]
    """Number and amount."""


class _File(msgspec.Struct, kw_only=True):
    schema: str
    saved_s: float
    machine: str
    """Names this machine to others that share its limits; random, made once."""
    spent: list[_Spent]


def budget_path(keys: Path) -> Path:
    """The file that belongs to a file of keys."""
    return keys.with_name(f"{keys.stem}.budgets.json")


def load_budgets(path: Path, block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> str:
    """Put what was saved into row 0 and return this machine's name for others. `slots`: rows by key's name.

    Without a file everything starts at 0. Call it before workers exist. Raises UserError for a file that is damaged.
    """
    try:
        with open(path, "rb", opener=regular) as opened:
            data = opened.read()
    except FileNotFoundError:
        return secrets.token_hex(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must belong to who runs the gateway") from None
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it to count keys' spending from 0") from None
    if file.schema != SCHEMA:
        raise UserError(
            f"{path}: schema is {file.schema!r} and this version reads {SCHEMA!r}; delete it to start from 0"
        )
    known = {one.stamp: one.buckets for one in file.spent}
    now_s = time.time()
    for limit, at in limit_cells(block, entries, slots):
        if limit.stamp in known:
            put_row(block.windows.cells, at, limit.stamp, number(now_s, limit.window_s), dict(known[limit.stamp]))
    return file.machine


def save_budgets(
    path: Path, block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int], machine: str
) -> None:
    """Write what the windows hold now, of all this machine's workers. Raises UserError when it cannot be written."""
    now_s = time.time()
    spent = []
    for limit, at in limit_cells(block, entries, slots):
        if buckets := ours(block, at, limit, number(now_s, limit.window_s)):
            spent.append(_Spent(stamp=limit.stamp, buckets=sorted(buckets.items())))
    file = _File(schema=SCHEMA, saved_s=round(now_s, 3), machine=machine, spent=spent)
    replace_file(path, msgspec.json.encode(file) + b"\n")


def limit_cells(
    block: SharedBlock, entries: Iterable[KeyEntry], slots: Mapping[str, int]
) -> Iterator[tuple[KeyLimit, int]]:
    """Every limit with the place of its cells in row 0 of the grid."""
    windows = block.shape.windows
    for entry in entries:
        slot = slots.get(entry.name)
        if slot is None:
            continue
        for i, limit in enumerate(entry.limits[:windows]):
            yield limit, (slot * windows + i) * WINDOW_COLUMNS


def ours(block: SharedBlock, at: int, limit: KeyLimit, last: int) -> dict[int, int]:
    """What this machine's workers spent, by bucket up to `last`; `at`: as `limit_cells` gives it."""
    grid = block.windows
    found: dict[int, int] = {}
    # The last row is other machines'.
    for worker in range(grid.workers - 1):
        place = at + worker * grid.entities * WINDOW_COLUMNS
        for n, amount in row_buckets(grid.cells, place, limit.stamp, last).items():
            found[n] = found.get(n, 0) + amount
    return found


_Due = tuple[KeyLimit, int, int, dict[int, int]]
"""A limit, its cells in row 0, the newest bucket's number, and what was spent here by bucket."""
EVERY_S = 0.1
AGAIN_S = 1.0
"""Between attempts while Redis is away."""
_UNSURE = -1
IDLE_AT_ONCE = 50
"""Limits that nothing was spent on here since the last exchange, and are asked after in turn."""

# One hash a limit: field "machine:bucket", value the amount. KEYS: the hash. ARGV: this machine, the oldest bucket that
# counts, milliseconds to live, then bucket, amount, ... of ours. Returns bucket, amount, ... of the others.
SCRIPT = """
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[1] .. ':' .. ARGV[i], ARGV[i + 1]) end
if #ARGV > 3 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
local all, others, old = redis.call('HGETALL', KEYS[1]), {}, {}
for i = 1, #all, 2 do
  local colon = string.find(all[i], ':', 1, true)
  local bucket = string.sub(all[i], colon + 1)
  if tonumber(bucket) < tonumber(ARGV[2]) then
    old[#old + 1] = all[i]
  elseif string.sub(all[i], 1, colon - 1) ~= ARGV[1] then
    others[#others + 1] = bucket
    others[#others + 1] = all[i + 1]
  end
end
if #old > 0 then redis.call('HDEL', KEYS[1], unpack(old)) end
return others
"""


class SharedWindows:
    """The watching process's side. `away`: Redis cannot be reached, and limits are this machine's alone."""

    def __init__(
        self,
        plan: Redis,
        block: SharedBlock,
        machine: str,
        say: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        """Opens nothing yet. `say` gets one line when Redis goes and one when it is back.

        Raises UserError when the variable with its address is not set or names none, or the redis package is missing.
        """
        self._plan, self._block, self._machine, self._say, self._every_s = plan, block, machine, say, every_s
        self._limits: list[tuple[KeyLimit, int]] = []
        self._told: dict[int, dict[int, int]] = {}
        self._turn = 0
        self.away = False
        self._client = _client(plan)

    def know(self, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> None:
        """The keys to share, at the start and after a reload. `slots`: rows by key's name."""
        self._limits = list(limit_cells(self._block, entries, slots))
        self._told = {}

    async def run(self) -> None:
        """Exchange until cancelled."""
        try:
            while True:
                well = await self.exchange()
                await asyncio.sleep(self._every_s if well else AGAIN_S)
        finally:
            await self._client.aclose()

    async def exchange(self) -> bool:
        """Write what changed here, read what others spent; False when Redis did not answer."""
        from redis.exceptions import RedisError

        now_s = time.time()
        asked = self._due(now_s)
        if not asked:
            return True
        pipe = self._client.pipeline(transaction=False)
        for limit, _, last, mine in asked:
            changed = {n: v for n, v in mine.items() if self._told.get(limit.stamp, {}).get(n) != v}
            pairs = [str(each) for pair in changed.items() for each in pair]
            alive_ms = str(int(2000 * limit.window_s))
            name = f"{self._plan.prefix}spent:{limit.stamp:016x}"
            pipe.eval(SCRIPT, 1, name, self._machine, str(last - BUCKETS), alive_ms, *pairs)
        try:
            # The client's own limit is per read; this one is for the whole exchange.
            async with asyncio.timeout(max(1.0, 10 * self._plan.timeout_s)):
                answers = await pipe.execute()
            for (limit, at, last, mine), answer in zip(asked, answers, strict=True):
                self._heard(limit, at, last, answer)
                self._told[limit.stamp] = mine
        # ValueError: something there is not ours.
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            self._gone(error)
            return False
        if self.away:
            self.away = False
            self._say("Redis is back: limits are shared between machines again")
        return True

    def _due(self, now_s: float) -> list[_Due]:
        """Limits spent on here since the last exchange, and some of the others in turn."""
        changed: list[_Due] = []
        idle: list[_Due] = []
        for limit, at in self._limits:
            last = number(now_s, limit.window_s)
            mine = ours(self._block, at, limit, last)
            told = self._told.get(limit.stamp)
            if told is not None and any(n >= last - BUCKETS and n not in mine for n in told):
                # Taken back to 0: said as well, or others would go on counting it.
                mine = {**dict.fromkeys((n for n in told if n >= last - BUCKETS), 0), **mine}
            (idle if mine == (told or {}) else changed).append((limit, at, last, mine))
        if idle:
            start = self._turn % len(idle)
            changed += (idle + idle)[start : start + min(IDLE_AT_ONCE, len(idle))]
            self._turn = start + IDLE_AT_ONCE
        return changed

    def _heard(self, limit: KeyLimit, at: int, last: int, answer: list[bytes]) -> None:
        buckets: dict[int, int] = {}
        for i in range(0, len(answer), 2):
            # A clock that is ahead of ours must not push the ring forward.
            n = min(int(answer[i]), last)
            buckets[n] = buckets.get(n, 0) + int(answer[i + 1])
        grid = self._block.windows
        place = at + (grid.workers - 1) * grid.entities * WINDOW_COLUMNS
        put_row(grid.cells, place, limit.stamp, last, buckets)

    def _gone(self, error: BaseException) -> None:
        # All is told again afterwards: Redis may have lost what it was told before.
        self._told = {stamp: dict.fromkeys(told, _UNSURE) for stamp, told in self._told.items()}
        if not self.away:
            self.away = True
            kind = type(error).__name__
            self._say(
                f"Redis ({self._plan.url_env}) does not answer ({kind}): limits are this machine's own until it does"
            )


def _client(plan: Redis) -> Any:
    try:
        from redis.asyncio import Redis as Client
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise UserError(
            "sharing limits between machines needs the redis package: pip install 'breakeven[scale]'"
        ) from None
    address = os.environ.get(plan.url_env, "")
    if not address:
        raise UserError(f"the environment variable {plan.url_env} holds no address of Redis; set it, or take redis out")
    try:
        return Client.from_url(
            address,
            socket_timeout=plan.timeout_s,
            socket_connect_timeout=max(plan.timeout_s, 0.25),
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # The address may hold a password, so it is not repeated.
        raise UserError(
            f"the environment variable {plan.url_env} is no address of Redis; write redis://HOST:6379/0"
        ) from None
