"""One backend whose experts are looked at: how one request is, what that took, and what it adds up to.

Where an engine returned its routing with the answer that is decoded. Where it is a llama.cpp of ours the prompt is put
into the engine's own template (`POST /apply-template`), and prompt and answer are read again by a second process on the
same weight file, which computes no more than routing needs.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from breakeven.engines.backend import open_url
from breakeven.engines.inside.routed import RoutingReader
from breakeven.errors import BreakevenError, UserError, complain, one_line
from breakeven.gateway.experiment.answer import read
from breakeven.gateway.experts.hand import CHAT, NOT_IN_STREAMS, Handed, engine_behind
from breakeven.gateway.experts.kept import KeptFile, path_of
from breakeven.gateway.experts.report import BackendExperts
from breakeven.gateway.experts.returned import choices_of
from breakeven.gateway.experts.tally import SeenExperts
from breakeven.gateway.plan.experts import RETURN_FLAG, ExpertsPlan, RoutedShape, seen_by, shape_of
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.swap.effects import EngineLoaded

OWN_SHARE = 0.5
"""Of `observe` times the engine's CPU time: what looking may take."""
IDLE_S = 300.0
"""Without a request to look at for so long, the weights are let go of."""
LOOK_S = 60.0
"""How often an engine's CPU time is read at least, and its family at most."""
SOON_S = 60.0
"""After its start an engine is new."""
RETRY_S = 60.0
"""Until weights that could not be read are tried again."""
RENDER_S = 10.0
"""For an engine to put a prompt into its template; it answers between two steps."""
MOST_RENDERED = 32 * 2**20
LETTERS_A_TOKEN = 32
"""Beyond so many for each token that is read, a text is cut before it is taken apart."""
PICTURES = (b'"image_url"', b'"input_audio"', b'"video_url"')
MOST_TROUBLE = 300

TO_KEEP_ITS_SHARE = "to keep its share of the CPU"
GONE = "its engine went"
NOT_RENDERED = "its engine did not tell the prompt"
NOT_TEXT = "its prompt is not one text"
HAS_PICTURES = "it holds pictures or sounds"
UNREADABLE = "its routing could not be read"
NOT_RETURNED = "its engine returned no routing"
NO_TOKEN = "its engine returned the routing of no token"

NewReader = Callable[[Path, int], RoutingReader]
"""The second process, from a weight file and the most tokens it reads at a time. Raises BreakevenError."""


class SkippedError(Exception):
    """A request that is not looked at; the text is the reason."""


class RoutedRequest(NamedTuple):
    """What one request chose: layers, choices (L, E) by layer and expert, tokens."""

    layers: Sequence[int]
    choices_LE: NDArray[np.int64]
    tokens: int


class _Completion(msgspec.Struct):
    prompt: str | list[Any] | None = None


class _Rendered(msgspec.Struct):
    prompt: str


class EngineTime:
    """CPU seconds that one backend's engines have taken while they were looked at, over all that came and went.

    One that is found soon after its start counts from there. `seconds` None: the system does not tell.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: float | None = 0.0
        self._clock = clock
        self._family: list[psutil.Process] = []
        """The process that was started, and those below it."""
        self._last_s = self._looked_s = self._found_s = 0.0

    def tend(self, pid: int | None) -> None:
        """Look where there is another engine, and now and then; None: there is none now."""
        if pid is None:
            self._family = []
        elif not self._family or self._family[0].pid != pid or self._clock() - self._looked_s > LOOK_S:
            self.look(pid)

    def look(self, pid: int) -> None:
        """Add what the engine that began as `pid` took since the last look."""
        if self.seconds is None:
            return
        try:
            self._look(pid, self._clock())
        except psutil.NoSuchProcess:
            self._family = []
        except (psutil.Error, OSError):
            self.seconds = None

    def _look(self, pid: int, now_s: float) -> None:
        if not self._family or self._family[0].pid != pid:
            head = psutil.Process(pid)
            self._family = [head, *head.children(recursive=True)]
            self._found_s = now_s
            self._last_s = 0.0 if time.time() - head.create_time() < SOON_S else self._taken()
        elif now_s - self._found_s > LOOK_S:  # reads the whole table of processes
            self._family[1:] = self._family[0].children(recursive=True)
            self._found_s = now_s
        taken_s, self._looked_s = self._taken(), now_s
        assert self.seconds is not None
        self.seconds += max(0.0, taken_s - self._last_s)
        self._last_s = taken_s

    def _taken(self) -> float:
        """Of the whole family, those that ended and were waited for included. Raises psutil.Error for its head."""
        total = 0.0
        for one in self._family:
            try:
                used = one.cpu_times()
            except psutil.Error:
                if one is self._family[0]:
                    raise
                continue
            total += used.user + used.system
            # Not on every system, and only of those that have been waited for.
            total += getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
        return total


class BackendLook:
    """A backend that is looked at: its sums, and the second process where there is one.

    `changed`: there is something to save; `touched`: there was, or some were skipped. `trouble`: why it cannot be
    looked at as asked; empty: nothing. `alarmed`: bounds that are passed, which was said.
    """

    def __init__(
        self, plan: BackendPlan, experts: ExpertsPlan, new_reader: NewReader, clock: Callable[[], float]
    ) -> None:
        """With what was seen before; starts nothing."""
        self.plan, self.experts, self._new_reader, self._clock = plan, experts, new_reader, clock
        self._engine = engine_behind(plan)
        self.source = seen_by(self._engine, experts)
        self.path = path_of(plan.name)
        self.seen = SeenExperts(
            plan.name,
            plan.model or (plan.local.model if plan.local is not None else None),
            self.source,
            observe=experts.observe,
            imbalance=experts.imbalance,
            drift=experts.drift,
        ).resume(self.path)
        self._file = KeptFile(self.path)
        self.changed = self.touched = False
        self.alarmed: set[str] = set()
        self.trouble = ""
        self.cpu_s = self.load_cpu_s = 0.0
        self._reads, self._read_s = 0, 0.0
        """Requests that were read again, and what that took."""
        self.engine = EngineTime(clock)
        self._reader: RoutingReader | None = None
        self._weights: Path | None = None
        self._used_s = self._retry_s = 0.0
        self._shape: RoutedShape | None = None
        self._counting, self._saving = threading.Lock(), threading.Lock()
        self._busy = False
        """The second process reads, or comes up."""
        self._closed = False

    def skip(self, reason: str, count: int = 1) -> None:
        """Requests that were to be looked at and are not."""
        for _ in range(count):
            self.seen.skip(reason)
        # Saved with what is looked at next: packing takes of the share for want of which most are skipped.
        self.touched = True

    def report(self, now_s: float) -> BackendExperts | None:
        """What was seen; None: nothing yet."""
        found = self.seen.report(now_s)
        if found is None:
            return None
        told = []
        if found.layers and self.source != "observed" and self.shape.n_experts is None:
            told.append(
                f"That a layer has {found.n_experts} experts is the highest number seen and one: those above it that "
                "nothing reached are not known of; name the backend's `model:`, one known here."
            )
        if self._file.disputed:
            told.append(self._file.disputed)
        if self.load_cpu_s:
            told.append(
                f"Loading its weights to look at them took {self.load_cpu_s:.2g} s of CPU, which its share leaves out."
            )
        return msgspec.structs.replace(found, caveats=[*found.caveats, *told])

    @property
    def shape(self) -> RoutedShape:
        """Of the model that the backend names."""
        if self._shape is None:
            self._shape = shape_of(self.plan.model)
        return self._shape

    @contextlib.contextmanager
    def own_time(self) -> Iterator[None]:
        """What this thread takes inside counts as looking."""
        began_s = time.thread_time()
        try:
            yield
        finally:
            self._took(time.thread_time() - began_s)

    def _took(self, cpu_s: float) -> None:
        with self._counting:  # the loop tends to it and copies it while a thread looks
            self.cpu_s += cpu_s

    # What is kept.

    def copied(self) -> SeenExperts:
        """What was seen so far, for `save` while more is added."""
        with self.own_time():
            return deepcopy(self.seen)

    def save(self, seen: SeenExperts) -> None:
        """Keep it, from any thread: of many experts it takes seconds to pack."""
        with self._saving, self.own_time():
            if self._closed and seen is not self.seen:
                return  # the end has saved more
            if self._file.look():
                complain(f"experts of {self.plan.name}: {self._file.disputed}")
            try:
                seen.save(self.path)
                self._file.written()
            except (OSError, UserError) as error:
                self.changed = True
                self.trouble = one_line(f"what was seen of its experts cannot be saved: {error}", MOST_TROUBLE)

    # The second process.

    def tend(self, engine: EngineLoaded | None) -> None:
        """What the engine took so far; let go of weights that nobody needs."""
        with self.own_time():
            self.engine.tend(None if engine is None else engine.pid)
        idle = not self._busy and self._clock() - self._used_s > IDLE_S
        if engine is None or engine.weights != self._weights or idle:
            self.let_go()

    def let_go(self) -> None:
        """End the second process, whatever it does."""
        reader, self._reader = self._reader, None
        if reader is not None:
            with contextlib.suppress(OSError):
                reader.close()

    def give_up(self, why: str) -> None:
        """Let go of its weights, say why, and look at them again after a while."""
        self.let_go()
        self._retry_s = self._clock() + RETRY_S
        self.trouble = one_line(why, MOST_TROUBLE)

    def close(self) -> None:
        """For good, from any thread."""
        self._closed = True
        self.let_go()

    def check(self, engine: EngineLoaded | None) -> EngineLoaded | None:
        """The engine whose weights may be read for a request now, None where none need be. Raises SkippedError."""
        if self.source != "observed":
            return None
        if engine is None or engine.weights is None:
            raise SkippedError(GONE)
        if not self._within_share():
            with self.own_time():
                if engine.pid is not None:
                    self.engine.look(engine.pid)
            if not self._within_share():
                raise SkippedError(TO_KEEP_ITS_SHARE)
        if self._clock() < self._retry_s:
            raise SkippedError(UNREADABLE)
        if engine.weights != self._weights:
            self.let_go()
        self._used_s = self._clock()
        return engine

    def _within_share(self) -> bool:
        engine_s, observe = self.engine.seconds, self.experts.observe
        if engine_s is None or observe is None:
            return True
        usual_s = self._read_s / self._reads if self._reads else 0.0
        return self.cpu_s + usual_s <= OWN_SHARE * observe * engine_s

    # One request, in a thread apart.

    def looked_at(
        self, note: Handed, asked: bytes, answer: bytes, engine: EngineLoaded | None, key: str
    ) -> RoutedRequest:
        """What it chose. `engine`: as `check` gave it; `key`: what that asks for. Raises SkippedError."""
        with self.own_time():
            if engine is None:
                return self._returned(answer)
            self._busy = True
            try:
                found = self._read(note, asked, answer, engine, key)
            except (BreakevenError, OSError) as error:
                self.give_up(f"its weights cannot be looked at: {error}")
                raise SkippedError(UNREADABLE) from None
            finally:
                self._busy, self._used_s = False, self._clock()
            self.trouble = ""
            return found

    def _returned(self, answer: bytes) -> RoutedRequest:
        try:
            found = choices_of(answer, **self.shape._asdict(), most_tokens=self.experts.tokens)
        except UserError as error:
            self.trouble = one_line(f"the routing it returns cannot be read: {error}", MOST_TROUBLE)
            raise SkippedError(UNREADABLE) from None
        if found is None and self._engine == "vllm" and answer.lstrip()[:1] != b"{":
            raise SkippedError(NOT_IN_STREAMS)  # as of 0.32, also where nobody seemed to ask for one
        if found is None:
            self.trouble = f"it returns no routing with its answers; start its engine with {RETURN_FLAG}"
            raise SkippedError(NOT_RETURNED)
        if not found.tokens:
            raise SkippedError(NO_TOKEN)
        self.trouble = ""
        return RoutedRequest(found.layers, found.choices_LE, found.tokens)

    def _read(self, note: Handed, asked: bytes, answer: bytes, engine: EngineLoaded, key: str) -> RoutedRequest:
        """Prompt and answer, read again. Raises SkippedError, BreakevenError and OSError."""
        if any(mark in asked for mark in PICTURES):
            raise SkippedError(HAS_PICTURES)
        text = _rendered(engine.port, key, asked) if note.endpoint == CHAT else _prompt_of(asked)
        text += read(answer, thoughts=True).text
        if not text:
            raise SkippedError(NOT_TEXT)
        reader = self._reader
        if reader is None:
            assert engine.weights is not None
            reader = self._new_reader(engine.weights, self.experts.tokens)
            self.load_cpu_s += reader.load_cpu_s
            self._weights, self._reader = engine.weights, reader  # in this order: see `tend`
            if self._closed:  # while it loaded
                self.let_go()
                raise SkippedError(GONE)
        try:
            found = reader.read(text[: LETTERS_A_TOKEN * self.experts.tokens])
        except UserError:  # nothing of it is a token
            raise SkippedError(UNREADABLE) from None
        except BreakevenError:
            if self._reader is not reader:  # let go of meanwhile
                raise SkippedError(GONE) from None
            raise
        self._took(found.cpu_s)
        self._reads += 1
        self._read_s += found.cpu_s
        return RoutedRequest(found.layers, found.choices_LE, found.tokens)


def _rendered(port: int, key: str, asked: bytes) -> str:
    """The prompt of a chat as its engine makes it: it reads the same body by the same rules. Raises SkippedError."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/apply-template", asked, headers)
    try:
        with open_url(request, timeout_s=RENDER_S) as response:
            return msgspec.json.decode(response.read(MOST_RENDERED), type=_Rendered).prompt
    except (OSError, HTTPException, msgspec.MsgspecError, UnicodeDecodeError):
        raise SkippedError(NOT_RENDERED) from None


def _prompt_of(asked: bytes) -> str:
    """The one text that a completion continues. Raises SkippedError."""
    try:
        prompt = msgspec.json.decode(asked, type=_Completion).prompt
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SkippedError(NOT_TEXT) from None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise SkippedError(NOT_TEXT)
    return prompt
