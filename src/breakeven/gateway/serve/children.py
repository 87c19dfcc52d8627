"""The supervisor's children: forked, listened to, waited for, owed where the system refused one; and their doors.

A child whose heart stands still (`processes.beat`) was stopped or goes round in a circle. It is told by looks and not
by clocks: a machine that slept, or a whole group of processes that was stopped, finds all hearts as they were.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from breakeven.errors import BreakevenError, UserError, complain, printable
from breakeven.gateway.keys.windows import retire
from breakeven.gateway.plan.check import is_loopback
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.plan.reach import value_of
from breakeven.gateway.serve.parts import Backoff
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Process, Rows
from breakeven.hardware.system import ServiceManager
from breakeven.wire.listen import BACKLOG, another_socket, open_sockets

assert sys.platform != "win32"  # `run` has said so

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
LOOK_S = 1.0
"""Between two looks at the hearts."""
STILL = 5
"""Looks at a worker's heart that stands before it is killed; a loop that works is back within milliseconds."""
STILL_WATCHER = 10
"""The watching process reads files and engines' heads in between, and nobody waits for it."""
STILL_NEW = 60
"""For a heart that has not beaten yet: a small machine takes a while to start."""
MOST_LOGGED = 8000
"""Letters of one message of a library or a traceback."""
WATCHER = -1
"""The place of the watching process; those of workers count from 0."""


@dataclass
class Child:
    """One process of ours. `worker` None: the watching one. `place`: which socket it serves."""

    pid: int
    worker: int | None
    place: int
    generation: int
    rows: Rows
    """Those that it writes."""
    began_s: float
    beat: float = 0.0
    still: int = 0
    hung: bool = False

    @property
    def what(self) -> str:
        """As it is called when something is said of it."""
        return "the watching process" if self.worker is None else f"worker {self.worker}"


@dataclass
class Owed:
    """Places whose process is missing: when each is tried again, and how often it failed."""

    due_s: dict[int, float] = field(default_factory=dict)
    backoff: dict[int, Backoff] = field(default_factory=dict)

    def owe(self, place: int, lived_s: float, now_s: float) -> float:
        """Its process failed after `lived_s`; the seconds until it is due again, 0 the first time."""
        wait_s = self.backoff.setdefault(place, Backoff(healthy_s=10.0, most_s=15.0, free=1)).failed(lived_s)
        self.due_s[place] = now_s + wait_s
        return wait_s

    def due(self, now_s: float) -> list[int]:
        """Places to be tried now, which are owed no more."""
        found = [place for place, at_s in self.due_s.items() if at_s <= now_s]
        for place in found:
            del self.due_s[place]
        return found


class Children:
    """All of them by process id. To be used by a process without threads or a loop."""

    def __init__(self, block: SharedBlock) -> None:
        self.block = block
        self.of: dict[int, Child] = {}
        self._looked_s = 0.0

    def free_row(self) -> int | None:
        """A worker's row of the block that nobody has; None: all are taken."""
        taken = {child.worker for child in self.of.values()}
        return next((row for row in range(1, self.block.shape.workers) if row not in taken), None)

    def fork(self, worker: int | None, place: int, generation: int, rows: Rows, run: Callable[[], int]) -> Child:
        """Start a process that does `run` and ends with its status. Raises OSError where the system refuses."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        pid = os.fork()
        if pid == 0:
            _be_child(run)
        child = self.of[pid] = Child(pid, worker, place, generation, rows, time.monotonic())
        return child

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Children that have ended, each with its exit status; what they counted is kept, what they had is gone."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.of.pop(pid, None)
            if child is None:
                continue
            if child.worker is not None:
                retire(self.block, child.worker)
                self.block.retire(child.worker)
            else:
                self.block.worker.put(0, 0, Process.BEAT_NS, 0)
            yield child, os.waitstatus_to_exitcode(status)

    def show_anew(self, generation: int) -> None:
        """Every process of this generation takes certificates from their files; no connection ends for that."""
        for child in self.of.values():
            if child.generation == generation:
                kill(child.pid, signal.SIGHUP)

    def kill_hung(self, now_s: float) -> list[Child]:
        """At most every `LOOK_S`: kill whose heart stood still for too many looks; those that were not before."""
        if now_s - self._looked_s < LOOK_S:
            return []
        self._looked_s = now_s
        found = []
        for child in self.of.values():
            beat = self.block.worker.get(child.worker or 0, 0, Process.BEAT_NS)
            child.still = child.still + 1 if beat == child.beat else 0
            child.beat = beat
            if child.still >= (STILL_NEW if not beat else STILL_WATCHER if child.worker is None else STILL):
                kill(child.pid, signal.SIGKILL)
                if not child.hung:
                    child.hung = True
                    found.append(child)
        return found


class Doors:
    """Listening sockets by worker's place: one of its own each, or all the same ones that a service manager passed.

    `host`, `port`: where clients connect. `admin`: the live page's; none where there is no page.
    """

    def __init__(self, plan: GatewayPlan, manager: ServiceManager) -> None:
        """Opens what was not passed.

        Raises UserError when a port is taken, or a socket that was passed would open the gateway to others unasked.
        """
        self.admin = [one for name, one in manager.passed if name == "admin"]
        clients = [one for name, one in manager.passed if name != "admin"]
        for one in clients:
            _check_reach(one, plan.keys is not None, "`keys:` in the gateway's file")
        for one in self.admin:
            _check_reach(one, bool(value_of(plan.admin_secret_env)), f"a secret in {plan.admin_secret_env}")
        self._passed = bool(clients)
        self._shut: set[int] = set()
        opened = [] if clients else open_sockets(plan.host, plan.port, plan.workers)
        self._doors = [clients] * plan.workers if clients else [[one] for one in opened]
        self._address = self._doors[0][0].getsockname()
        self.host = str(self._address[0]) if clients else plan.host
        self.port: int = self._address[1]
        if not self.admin and plan.admin_port is not None:
            try:
                self.admin = open_sockets(plan.admin_host, plan.admin_port, 1)
            except UserError:
                self.leave(())
                raise

    @property
    def admin_port(self) -> int | None:
        """Where the live page is; None: there is none."""
        return self.admin[0].getsockname()[1] if self.admin else None

    def of(self, place: int) -> list[socket.socket]:
        """A worker's sockets, made again where they were closed; `open` lets clients in. Raises OSError."""
        if not self._doors[place]:
            self._doors[place] = [another_socket(self._address)]
            self._shut.add(place)
        return self._doors[place]

    def open(self, place: int) -> None:
        """Somebody is there to serve: clients may come."""
        if place in self._shut:
            self._shut.discard(place)
            for one in self._doors[place]:
                with suppress(OSError):  # the child listens as well
                    one.listen(BACKLOG)

    def close(self, place: int) -> None:
        """Give up a worker's own socket; one that was passed serves the others as well."""
        if not self._passed:
            for one in self._doors[place]:
                one.close()
            self._doors[place] = []

    def leave(self, mine: Sequence[socket.socket]) -> None:
        """Close all but `mine`. Whoever holds a socket keeps it open: it would take clients that nobody serves."""
        for one in [*(each for door in self._doors for each in door), *self.admin]:
            if one not in mine:
                one.close()


def _check_reach(one: socket.socket, guarded: bool, what: str) -> None:
    host = str(one.getsockname()[0])
    if not guarded and not is_loopback(host):
        raise UserError(
            f"the service manager passed a socket at {host}, which others can reach, and there is no guard; set "
            f"{what}, or write ListenStream=127.0.0.1:PORT in the socket unit"
        )


def all_ready(gate: int, count: int, most_s: float, turn: Callable[[], float]) -> bool:
    """Whether so many children wrote to a pipe within `most_s`. Closes it; `turn` is called meanwhile: the next wait.

    It is at its end when every child has closed its side, ready or dead.
    """
    ready, until_s = 0, time.monotonic() + most_s
    while ready < count and time.monotonic() < until_s:
        if select.select([gate], [], [], turn())[0]:
            if not (said := os.read(gate, count)):
                break
            ready += len(said)
    os.close(gate)
    return ready == count


def kill(pid: int, number: int) -> None:
    """Send a signal to a child that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class _Plain(logging.Formatter):
    """What is logged, tracebacks included: cut, and nothing in it that drives a terminal. Errors quote what came in."""

    def format(self, record: logging.LogRecord) -> str:
        return _plain(super().format(record))

    def formatException(self, ei: Any) -> str:
        return _plain(super().formatException(ei))


def _plain(text: str) -> str:
    return "\n".join(map(printable, text[:MOST_LOGGED].split("\n")))


def _be_child(run: Callable[[], int]) -> None:
    """In the child: never returns."""
    status = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Whoever presses Ctrl-C tells the supervisor; it tells us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Certificates are as new as the supervisor's: asked to take new ones before it listens, it need not.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        speaks = logging.StreamHandler()
        speaks.setFormatter(_Plain())
        logging.getLogger().addHandler(speaks)
        status = run()
    except KeyboardInterrupt:
        status = 130
    except BreakevenError as error:
        complain(str(error))
    except BaseException as error:
        with suppress(OSError, ValueError):
            sys.stderr.write(_Plain().formatException((type(error), error, error.__traceback__)) + "\n")
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
