"""From what was typed to what runs: read and checked in a process of its own.

Reading a plan needs pydantic, numpy and the step models; serving needs none of them. So a child reads, and hands over
plain data: workers stay small, and a plan that is wrong, or kills whoever reads it, leaves the running gateway alone.
The process that watches, which lives on, hears of a new one by a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from breakeven.errors import BreakevenError, NotSupportedError, UserError, complain
from breakeven.gateway.keys.entry import KeyEntry
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.route.speed import Observed
from breakeven.gateway.route.view import Speed
from breakeven.gateway.shared.layout import Rows
from breakeven.hardware.system import KILLED
from breakeven.results.cost import Own
from breakeven.wire import tls

START_S = 120.0
"""How long the first reading may take; step models are prepared meanwhile."""
SEND_S = 1.0
"""How long the watching process may take to make room for a new plan; one that takes longer hangs."""
_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """A plan, the speed of each of its backends by name, and its keys (None: none is asked)."""

    plan: GatewayPlan
    speeds: dict[str, Speed]
    keys: tuple[KeyEntry, ...] | None


class NewPlan(NamedTuple):
    """A plan that is served from now on, as the watching process hears of it."""

    plan: GatewayPlan
    keys: tuple[KeyEntry, ...] | None
    rows: Rows


def send_news(to: socket.socket, news: NewPlan) -> None:
    """Tell the watching process. It may take its time: what is sent waits in the socket.

    Raises OSError when it makes no room.
    """
    said = pickle.dumps(news)
    to.settimeout(SEND_S)
    to.sendall(len(said).to_bytes(_LENGTH, "big") + said)


async def next_news(reader: asyncio.StreamReader) -> NewPlan:
    """Wait for the next plan."""
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    news: NewPlan = pickle.loads(await reader.readexactly(length))
    return news


def load(read: Callable[[], GatewayPlan]) -> ServedPlan:
    """Read and check everything here, in this process. Raises UserError for what cannot be served."""
    from breakeven.gateway.serve.lane import secret_of

    plan = read()
    for backend in plan.backends:
        secret_of(backend)
    contexts_of(plan)
    if any(backend.local is not None for backend in plan.backends):
        from breakeven.gateway.swap.needs import check_local

        check_local(plan)
    keys = None
    if plan.keys is not None:
        from breakeven.gateway.keys.store import load as load_keys

        keys = load_keys(plan.keys)
    plan = replace(plan, backends=tuple(map(_powered, plan.backends)))
    return ServedPlan(plan, {backend.name: _speed(backend) for backend in plan.backends}, keys)


def contexts_of(plan: GatewayPlan) -> tls.Contexts:
    """What the plan's connections need, from what stands in its files now, for `tls.use`.

    Raises UserError for what cannot be used, naming the backend or `tls`.
    """
    found: tls.Contexts = {}
    for backend in plan.backends:
        files = backend.tls_files
        if (backend.url or "").lower().startswith("https://") and ("client", files) not in found:
            try:
                found["client", files] = tls.new_client_tls(files)
            except UserError as error:
                raise UserError(f"backend {backend.name}: {error}") from None
    if (shown := plan.tls_files) is not None:
        try:
            found["server", shown] = tls.new_server_tls(shown)
        except UserError as error:
            raise UserError(f"tls: {error}") from None
    return found


def renewed(plan: GatewayPlan, before: GatewayPlan | None) -> tls.Contexts:
    """`contexts_of` a plan that is to take the place of one that is served, or to be the first.

    A certificate that clients would refuse is said; where they do not refuse that in use, it raises UserError as well.
    """
    made = contexts_of(plan)
    if why := why_refused(plan, made):
        if before is not None and not why_refused(before):
            raise UserError(why)
        complain(f"{why}, then send SIGHUP")
    return made


def only_certificates(new: ServedPlan, old: ServedPlan) -> bool:
    """Whether nothing can have changed but what stands in files of TLS, of which there are some."""
    files = {new.plan.tls_files, *(backend.tls_files for backend in new.plan.backends)} - {None, tls.SYSTEMS}
    return bool(files) and pickle.dumps(new) == pickle.dumps(old)


def why_refused(plan: GatewayPlan, made: tls.Contexts | None = None) -> str:
    """Why clients would refuse its certificate, as `made` or as in use, for the operator; empty: they would not."""
    if plan.tls is None or plan.tls_files is None:
        return ""
    why = tls.why_not_now((made or {}).get(("server", plan.tls_files)) or tls.server_tls(plan.tls_files))
    return f"tls.certificate: clients refuse {plan.tls.certificate}: {why}; renew it" if why else ""


def _powered(backend: BackendPlan) -> BackendPlan:
    """With its machine's watts in a price that leaves them out, as verdicts count them."""
    price = backend.price
    if backend.machine is None or not isinstance(price, Own):
        return backend
    from breakeven.forecast.profiles import profile_named
    from breakeven.price.pricing import with_watts

    try:
        profile = profile_named(backend.machine, backend.engine, backend.devices, backend.format)
    except UserError:
        # Of a machine that nobody knows no power is known; a backend that needs its step model says so below.
        return backend
    return replace(backend, price=with_watts(price, profile.idle_w, profile.busy_w, backend.devices))


def _speed(backend: BackendPlan) -> Speed:
    if backend.machine is None:
        places = backend.slots or (backend.local.slots if backend.local is not None else None)
        return Observed.of(backend.speed, places)
    # Only step models need numpy and what predicts.
    from breakeven.gateway.route.build import speed_of

    return speed_of(backend)


class PlanReading:
    """A plan that a child process is reading. `step` never waits, so that whoever watches over others can go on."""

    began_s: float
    _ours: int
    _child: int
    _said: list[bytes]
    _ended: bool

    def __init__(self, read: Callable[[], GatewayPlan]) -> None:
        """Begin to `load`. Raises BreakevenError where the system refuses another process."""
        if sys.platform == "win32":
            raise NotSupportedError("the gateway runs on Linux and macOS; on Windows run it inside WSL")
        self.began_s = time.monotonic()
        try:
            self._ours, theirs = os.pipe()
            try:
                self._child = os.fork()
            except OSError:
                os.close(self._ours)
                os.close(theirs)
                raise
        except OSError as error:
            raise BreakevenError(
                f"no process could be started to read the file ({error.strerror}); try again"
            ) from None
        if self._child == 0:
            os.close(self._ours)
            with contextlib.suppress(BaseException), os.fdopen(theirs, "wb") as out:
                pickle.dump(_outcome(read), out)
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(0)
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self._said = []
        self._ended = False

    def step(self, wait_s: float = 0.0) -> bool:
        """Take in what there is, after at most `wait_s`; whether that was all."""
        while not self._ended and select.select([self._ours], [], [], wait_s)[0]:
            part = os.read(self._ours, 1 << 20)
            self._said.append(part)
            if not part:
                self._end()
        return self._ended

    def result(self, most_s: float) -> ServedPlan:
        """What was read, at most `most_s` after the beginning. Raises what the child raised, or BreakevenError."""
        while not self.step(max(0.0, min(1.0, self.began_s + most_s - time.monotonic()))):
            if time.monotonic() - self.began_s >= most_s:
                self.give_up()
                raise BreakevenError(
                    f"reading the gateway's file took longer than {most_s:.0f} s; look whether its disk answers, and "
                    "whether a file that it names is a pipe"
                )
        try:
            outcome = pickle.loads(b"".join(self._said))
        except Exception:
            raise BreakevenError("reading the gateway's file ended without a word; try again") from None
        if isinstance(outcome, BaseException):
            raise outcome
        loaded: ServedPlan = outcome
        return loaded

    def give_up(self) -> None:
        """Nobody wants to know any more."""
        if not self.step():  # one that has ended may have been waited for, and its number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, KILLED)
            self._end()

    def _end(self) -> None:
        self._ended = True
        os.close(self._ours)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


class Rereading:
    """Reading the file again whenever it is asked for, without anybody waiting.

    Asked for while it is being read, it is read anew, since it may have changed in between; but every second reading
    comes to its end, so that asking ever again puts off nothing for ever.
    """

    def __init__(self, read: Callable[[], GatewayPlan], most_s: float) -> None:
        """`most_s`: how long a reading may take."""
        self._read, self._most_s = read, most_s
        self.under_way: PlanReading | None = None
        self._again = self._anew = False

    def ask(self) -> None:
        """Begin, or remember. Raises BreakevenError as `PlanReading` does."""
        self._again = True
        if self.under_way is None:
            self._begin()

    def come(self) -> PlanReading | None:
        """What has come, or took too long, for its `result`; None: nothing yet. Raises BreakevenError as `ask`."""
        reading = self.under_way
        if reading is None:
            if self._again:
                self._begin()
            return None
        if not (reading.step() or time.monotonic() - reading.began_s > self._most_s):
            return None
        self.under_way = None
        if self._again and not self._anew:
            reading.give_up()
            self._anew = True
            self._begin()
            return None
        self._anew = False
        return reading

    def result(self, reading: PlanReading) -> ServedPlan:
        """Raises what the reading child raised, or BreakevenError."""
        return reading.result(self._most_s)

    def give_up(self) -> None:
        """Nobody wants to know any more."""
        if self.under_way is not None:
            self.under_way.give_up()

    def _begin(self) -> None:
        self._again = False
        self.under_way = PlanReading(self._read)


def _outcome(read: Callable[[], GatewayPlan]) -> ServedPlan | BaseException:
    # A grid of a few hundred cells needs no threads, and a pool of them costs memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return load(read)
    except BreakevenError as error:
        return type(error)(str(error))
    except KeyboardInterrupt:
        return UserError("interrupted")
    except Exception:
        return BreakevenError(f"the gateway's file could not be read: {traceback.format_exc(limit=-3)}")
