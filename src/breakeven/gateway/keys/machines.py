"""What keys spent on all machines, by way of Redis.

Machines share limits beside the path of requests: no request waits for it. Each machine decides by what it knows. In
the background it adds what was spent here, by bucket, to counters that all machines share, and reads their sums; what
is not its own goes into the grid's last row, where workers see it like one more worker. So machines together may
overstep a limit by what the others start within one exchange (`every_s` and a round trip).

An exchange whose answer was lost is repeated as it was, and Redis adds it once. Counters that Redis lost are known by
another birth mark, and every machine adds its own again. What somebody else wrote there is named and left out.

Buckets have the wall clock's numbers here: keep clocks in step (NTP).
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.keys.budgets import MOST, get_told, limit_cells, ours, put_told, wall_shift
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit
from breakeven.gateway.keys.windows import BUCKETS, number, put_row, row_buckets
from breakeven.gateway.plan.model import Redis
from breakeven.gateway.plan.reach import value_of
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import WINDOW_COLUMNS

EVERY_S = 0.1
AGAIN_S = 1.0
"""Between attempts while Redis is away."""
IDLE_AT_ONCE = 50
"""Limits that nothing was spent on here since the last exchange, and are asked after in turn."""
TOLD_AT_ONCE = 100
"""Limits in one pipeline: its time limit must not depend on how many there are."""
LONGEST_NAME, MOST_NAMED = 60, 20
"""Of what somebody else wrote, as far as it is told: characters, and hashes."""
YOUNG_S, YOUNG_EACH_S = 5.0, 0.01
"""How long others may take to add theirs again to counters that Redis lost, and more for each limit."""

# One hash a limit. Field "n:BUCKET": what all machines spent in it. "id:born": the hash's birth mark, since Redis may
# lose it. "id:MACHINE": the last addition that was made for a machine, so that none is made twice.
# ARGV: machine, oldest bucket that counts, milliseconds to live, birth mark that the caller knows or "", the mark of
# this addition, a birth mark to give, the most in a counter, then bucket, difference, ...
# Returns the birth mark or "", whether the addition holds, what is not ours, then bucket, sum, ...
SCRIPT = """
local key, most = KEYS[1], tonumber(ARGV[7])
local function amount(text)
  local number = text and #text < 17 and not string.find(text, '[^0-9]') and tonumber(text)
  return number and number <= most and number
end
local born = redis.call('HGET', key, 'id:born')
if not (born and string.find(born, '^[0-9]+$') and (#born < 19 or (#born == 19 and born <= '9223372036854775807'))) then
  redis.call('DEL', key); born = ''
end
local holds = 0
if ARGV[4] == '' or ARGV[4] == born then
  holds = 1
  if #ARGV > 7 and redis.call('HGET', key, 'id:' .. ARGV[1]) ~= ARGV[5] then
    for i = 8, #ARGV, 2 do
      local field = 'n:' .. ARGV[i]
      local sum = (amount(redis.call('HGET', key, field)) or 0) + tonumber(ARGV[i + 1])
      redis.call('HSET', key, field, string.format('%.0f', math.max(0, math.min(most, sum))))
    end
    if born == '' then born = ARGV[6]; redis.call('HSET', key, 'id:born', born) end
    redis.call('HSET', key, 'id:' .. ARGV[1], ARGV[5])
    redis.call('PEXPIRE', key, ARGV[3])
  end
end
if redis.call('HLEN', key) > 1000 then return redis.error_reply('ERR more than 1000 fields') end
local all, found, bad = redis.call('HGETALL', key), {}, {}
for i = 1, #all, 2 do
  local bucket = string.match(all[i], '^n:([0-9]+)$')
  if bucket and #bucket < 16 and tonumber(bucket) < tonumber(ARGV[2]) then
    redis.call('HDEL', key, all[i])
  elseif bucket and #bucket < 16 and amount(all[i + 1]) then
    found[#found + 1] = bucket
    found[#found + 1] = all[i + 1]
  elseif bucket or string.sub(all[i], 1, 3) ~= 'id:' then
    bad[#bad + 1] = all[i]
    if bucket then redis.call('HDEL', key, all[i]) end
  end
end
return {born, holds, bad[1] or '', unpack(found)}
"""


class _Saying(msgspec.Struct):
    """What one limit's counters are told in one exchange, and again until an answer comes."""

    mark: str
    changes: dict[int, int]
    mine: dict[int, int]
    """What they hold of ours afterwards."""


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
        """Opens nothing yet. `say` gets one line when Redis goes, when it is back, and for each hash that is not ours.

        Raises UserError when the variable with its address is not set or names none, or the redis package is missing.
        """
        self._plan, self._block, self._machine, self._say, self._every_s = plan, block, machine, say, every_s
        self._limits: list[tuple[KeyLimit, int]] = []
        self._told: dict[int, tuple[int, dict[int, int]]] = {}
        """By limit: the birth mark of its counters, and what they hold of ours."""
        self._saying: dict[int, _Saying] = {}
        self._named: set[str] = set()
        self.troubles: dict[str, str] = {}
        """What is wrong now, by hash."""
        self._young_s: dict[int, float] = {}
        """By limit: until when its counters are too young to be whole, on the monotonic clock."""
        self._turn = 0
        self.away = False
        self._client = _client(plan)

    def know(self, entries: Iterable[KeyEntry], slots: Mapping[str, int]) -> None:
        """The keys to share, at the start and after a reload. `slots`: rows by key's name."""
        self._limits = list(limit_cells(self._block, entries, slots))
        self._told = {limit.stamp: get_told(self._block, at, limit.stamp) for limit, at in self._limits}
        self._saying = {}

    async def run(self) -> None:
        """Exchange until cancelled, and once more then: what ended last is told as well, as a pod may not come back."""
        before = True
        try:
            while True:
                well = await self.exchange()
                # An answer that was late is asked for again soon: others spend meanwhile. Who is away is left alone.
                await asyncio.sleep(self._every_s if well or before else AGAIN_S)
                before = well
        except asyncio.CancelledError:
            # What it was cut off in is repeated as it was; what was spent since needs another.
            for _ in range(2 if self._saying else 1):
                if self.away or not await self.exchange():
                    break
            raise
        finally:
            await self._client.aclose()

    async def exchange(self) -> bool:
        """Add what was spent here, read what others spent; False when Redis did not answer."""
        asked = self._due()
        for start in range(0, len(asked), TOLD_AT_ONCE):
            if not await self._tell(asked[start : start + TOLD_AT_ONCE]):
                return False
        if asked and self.away:
            self.away = False
            self._say("Redis is back: limits are shared between machines again")
        return True

    async def _tell(self, asked: list[tuple[KeyLimit, int]]) -> bool:
        """The exchange of some limits; False when Redis did not answer."""
        from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError

        pipe = self._client.pipeline(transaction=False)
        for limit, _ in asked:
            born, _told = self._told[limit.stamp]
            saying = self._saying.get(limit.stamp)
            pairs = [] if saying is None else [str(each) for pair in saying.changes.items() for each in pair]
            pipe.eval(
                SCRIPT,
                1,
                self._name(limit),
                self._machine,
                str(self._last(limit) - BUCKETS),
                str(int(2000 * limit.window_s)),
                str(born or ""),
                "" if saying is None else saying.mark,
                str(secrets.randbits(62) | 1),
                str(MOST),
                *pairs,
            )
        try:
            # The client's own limit is per read; this one is for all of them.
            async with asyncio.timeout(max(1.0, 10 * self._plan.timeout_s)):
                answers = await pipe.execute(raise_on_error=False)
            # Of the server, not of one hash.
            if isinstance(answers[0], (NoPermissionError, OutOfMemoryError, ReadOnlyError)):
                raise answers[0]
        except (RedisError, OSError, TimeoutError) as error:
            self._gone(error)
            return False
        for (limit, at), answer in zip(asked, answers, strict=True):
            try:
                if isinstance(answer, BaseException):
                    raise answer
                self._heard(limit, at, answer)
            # Of one hash alone: it may hold anything, or not be ours to touch. The others are shared all the same.
            except (RedisError, ValueError, TypeError, LookupError) as error:
                self._foreign(limit, f"{type(error).__name__}: {error}")
        return True

    def _name(self, limit: KeyLimit) -> str:
        return f"{self._plan.prefix}sums:{limit.stamp:016x}"

    def _last(self, limit: KeyLimit) -> int:
        """The newest bucket's number, by the wall clock."""
        return number(self._block.now_s(), limit.window_s) + wall_shift(self._block, limit.window_s)

    def _due(self) -> list[tuple[KeyLimit, int]]:
        """Limits with something to add since the last exchange, and some of the others in turn."""
        changed: list[tuple[KeyLimit, int]] = []
        idle: list[tuple[KeyLimit, int]] = []
        for limit, at in self._limits:
            if limit.stamp not in self._saying:
                mine = ours(self._block, at, limit)
                _, told = self._told[limit.stamp]
                oldest = self._last(limit) - BUCKETS
                changes = {
                    n: mine.get(n, 0) - told.get(n, 0)
                    for n in mine.keys() | told.keys()
                    if n >= oldest and mine.get(n, 0) != told.get(n, 0)
                }
                if changes:
                    self._saying[limit.stamp] = _Saying(secrets.token_hex(8), changes, mine)
            (changed if limit.stamp in self._saying else idle).append((limit, at))
        if idle:
            start = self._turn % len(idle)
            changed += (idle + idle)[start : start + min(IDLE_AT_ONCE, len(idle))]
            self._turn = start + IDLE_AT_ONCE
        return changed

    def _heard(self, limit: KeyLimit, at: int, answer: list[bytes]) -> None:
        """What a limit's counters hold, less what they were told here, is what others spent."""
        stamp, last, shift = limit.stamp, self._last(limit), wall_shift(self._block, limit.window_s)
        born, holds, foreign = int(answer[0] or 0), bool(answer[1]), answer[2]
        sums = {int(answer[i]): min(int(answer[i + 1]), MOST) for i in range(3, len(answer), 2)}
        saying = self._saying.pop(stamp, None)
        # Other counters than those we know: nothing of ours is in them, and all of it is added next.
        told = {} if not holds else saying.mine if saying is not None else self._told[stamp][1]
        # A sum below what we added lost it; that is added again.
        kept = {n: min(amount, sums[n]) for n, amount in told.items() if n in sums}
        now_s = time.monotonic()
        if kept != told or self._told[stamp][0] not in (0, born):
            self._young_s[stamp] = now_s + YOUNG_S + YOUNG_EACH_S * len(self._limits)
        told, young = kept, now_s < self._young_s.get(stamp, 0.0)
        self._told[stamp] = (born, told)
        put_told(self._block, at, stamp, last, born, told)
        others: dict[int, int] = {}
        for n, amount in sums.items():
            # A clock that is ahead of ours must not push the ring forward.
            mine = min(n, last) - shift
            others[mine] = others.get(mine, 0) + amount - told.get(n, 0)
        grid = self._block.windows
        place = at + (grid.workers - 1) * grid.entities * WINDOW_COLUMNS
        if foreign or young:
            # What cannot be read now is what it was: nobody frees a budget by damaging its counters.
            for n, amount in row_buckets(grid.cells, place, stamp, last - shift).items():
                others[n] = max(amount, others.get(n, 0))
        put_row(grid.cells, place, stamp, last - shift, others)
        self.troubles.pop(self._name(limit), None)
        if foreign:
            self._foreign(limit, f"the field {foreign.decode(errors='replace')}")

    def _foreign(self, limit: KeyLimit, what: str) -> None:
        """Somebody else wrote there, or may forbid it: said once for each hash."""
        name = self._name(limit)
        text = (
            f"Redis: {name} holds what no gateway wrote, or is not ours ({ascii(what)[1:-1][:LONGEST_NAME]}); "
            "it is left out, other limits are shared as before; give Redis a user of the gateways' own"
        )
        if name in self.troubles or len(self.troubles) < MOST_NAMED:
            self.troubles[name] = text
        if name not in self._named and len(self._named) < MOST_NAMED:
            self._named.add(name)
            self._say(text)

    def _gone(self, error: BaseException) -> None:
        if not self.away:
            self.away = True
            self._say(f"Redis ({self._plan.url_env}) {_why(error)}: until then limits are this machine's own")


def _why(error: BaseException | None) -> str:
    """What an operator can do about it; never the error's own text, which may hold an address or more."""
    from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError

    kind = type(error).__name__
    while error is not None:
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)):
            return f"takes nothing in ({kind}); give it memory, or the address of one that is no replica"
        if isinstance(error, AuthenticationError):
            return "does not take the user or password of its address; correct them"
        if isinstance(error, NoPermissionError):
            return "does not let its user do what sharing needs; docs/keys.md lists the commands"
        if isinstance(error, ssl.SSLError):
            return "has a certificate that is not trusted; name its authority, rediss://...?ssl_ca_certs=FILE"
        error = error.__cause__ or error.__context__
    return f"does not answer ({kind}); start it, or correct its address"


def _client(plan: Redis) -> Any:
    try:
        from redis.asyncio import Redis as Client
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise UserError(
            "limits are this machine's own: sharing them between machines needs the redis package; "
            "install it with pip, or the extra `scale` (how: docs/scale.md)"
        ) from None
    address = value_of(plan.url_env)
    if not address:
        raise UserError(f"the environment variable {plan.url_env} holds no address of Redis; set it, or take redis out")
    try:
        return Client.from_url(
            address,
            # Nothing of the newer protocol is needed, and its greeting is one more command for a user to be allowed.
            protocol=2,
            socket_timeout=plan.timeout_s,
            # Time for the three round trips of TLS and a password, and for a name to be looked up.
            socket_connect_timeout=max(plan.timeout_s, 0.5),
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        # The address may hold a password, so it is not repeated.
        raise UserError(
            f"the environment variable {plan.url_env} is no address of Redis; write redis://HOST:6379/0, or with TLS "
            "and a user rediss://USER:PASSWORD@HOST:6379/0"
        ) from None
