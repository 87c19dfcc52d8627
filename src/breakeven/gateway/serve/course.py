"""What becomes of one request: a pure state machine. It reads no clock, opens nothing and holds no byte of an answer.

    begin -> [wait for a place | wait for an engine] -> asked -> first byte -> ... -> end
                                                        \\-> lost before the first byte -> next backend | refusal

Events are the methods of `Course`; what follows is done through `RequestEffects`, at once and in order. Another backend
is asked only while the client has got nothing: after an ending without a first byte, or after a silence (a hedge). The
first byte makes its backend the answer and drops the others. The client's leaving ends all of it at once.

Which endings send a request elsewhere, and which speak against a backend, says `wire.meaning`: a client's own mistake
(most 4xx) is its answer wherever it is sent; a busy backend (429) and one that cannot do it (501) are left, not blamed;
any other failure is the operator's trouble and never the client's answer: when nobody is left it hears 502, and why.

An answer that ends properly without content is tried once more elsewhere, and speaks against its backend only where
that one has some: there are prompts without an answer, and whoever sends one must not close a backend to others.
"""

from __future__ import annotations

from typing import Generic, Literal, Protocol, TypeVar

from breakeven.gateway.serve.opening import DECLINED, EMPTY, refusal, status_told, trouble_is_broken, trouble_told
from breakeven.gateway.shared.layout import Count, UnderWay
from breakeven.wire.meaning import Standing

CLIENT_LEFT = 499
"""nginx's word for a client that closed before its answer; it stands in the log only."""
Judgement = Literal["good", "broken", "busy"]
"""What an ending says of a backend. `busy` holds it off without taking it for broken."""
_JUDGED: dict[Standing, Judgement] = {"busy": "busy", "operator": "broken", "broken": "broken"}


class Counting(Protocol):
    """A backend as the machine sees it: a name, and counters that outlive the request."""

    @property
    def name(self) -> str: ...

    def add(self, column: int, by: int) -> None: ...

    def counted(self, column: int, by: int = 1) -> None: ...


Place = TypeVar("Place", bound=Counting)


class Answering(Protocol[Place]):
    """One backend that was asked. `outcome` is empty while it is under way; `status` is 0 before its head.

    `retry_s`: when it wants to be asked again, as far as it said.
    """

    lane: Place
    hedge: bool
    outcome: str
    status: int
    retry_s: float | None

    def send(self) -> None:
        """Ask it."""

    def judge(self, what: Judgement) -> None:
        """Tell its breaker how it did; the first judgement stands."""

    def settle(self, outcome: str) -> None:
        """Nothing of it is under way any more; whoever waited for its place goes."""

    def drop(self, outcome: str) -> None:
        """Cancel it and settle; nothing more is heard of it."""

    def finish(self) -> None:
        """The client has its whole answer."""

    def cut(self) -> None:
        """The client can tell that its answer is not whole."""


One = TypeVar("One", bound="Answering")  # type: ignore[type-arg]


class RequestEffects(Protocol[Place, One]):
    """What the machine has done to the world; a test writes it down instead."""

    def now_s(self) -> float: ...

    def ready(self, lane: Place) -> bool:
        """Whether it can be asked at all: an engine of ours may not be loaded."""

    def take(self, course: Course[Place, One], lane: Place, now_s: float) -> bool:
        """Take a place there if its breaker lets requests through and one is free at once."""

    def enter(self, course: Course[Place, One], lane: Place, now_s: float) -> Literal["go", "wait", "full"]:
        """Take a place whatever its breaker says, or stand in its line: `go` or `no_place` follows."""

    def leave(self, course: Course[Place, One], lane: Place) -> None:
        """Out of its line."""

    def want(self, course: Course[Place, One], lane: Place, now_s: float) -> bool:
        """Wait for an engine of ours: `loaded` or `not_loaded` follows. False: it cannot come."""

    def unwant(self, course: Course[Place, One], lane: Place) -> None:
        """Wait for it no more."""

    def prepare(self, course: Course[Place, One], lane: Place, *, hedge: bool) -> One:
        """Get ready to ask it; `send` follows."""

    def hedge_later(self, course: Course[Place, One], one: One) -> None:
        """`hedge_due` after as long a silence as its prediction allows, or never."""

    def stop_hedge(self) -> None:
        """No hedge any more."""

    def second(self, course: Course[Place, One]) -> Place | None:
        """Whom to ask as well, its place taken; None: nobody."""

    def tell_progress(self, lane: Place, progress: float) -> None:
        """The client hears how far the engine is that it waits for."""

    def refuse(self, status: int, message: str, code: str, retry_s: float | None) -> None:
        """The client gets no answer, and hears why as far as it is its business."""

    def over(self, course: Course[Place, One], one: One | None, status: int, error: str) -> None:
        """Account for it, and log it. Called once."""


class Course(Generic[Place, One]):
    """A request on its way. `order` are backends still to be asked, best first; `asked` those that were."""

    __slots__ = (
        "_effects",
        "_hedged",
        "_hedges",
        "_most",
        "_told",
        "asked",
        "attempts",
        "ended",
        "errors",
        "order",
        "waits_at",
        "wanted",
        "winner",
    )

    def __init__(self, effects: RequestEffects[Place, One], order: list[Place], attempts: int, *, hedges: bool) -> None:
        """Nothing is sent yet. `attempts`: backends that may be asked one after another."""
        self._effects, self.order = effects, order
        self._most, self._hedges, self._hedged = attempts, hedges, False
        self.attempts = 0
        self.asked: list[One] = []
        self.winner: One | None = None
        self.errors = self._told = ""
        self.ended = False
        self.waits_at: Place | None = None
        self.wanted: Place | None = None

    # The way out.

    def begin(self) -> None:
        """A backend was chosen. The best one that can be asked at once; else a place in the line of the best one."""
        effects, order = self._effects, self.order
        now_s = effects.now_s()
        if not self.attempts and order and self._wait_for_engine(order[0], now_s):
            return
        for k, lane in enumerate(order):
            if effects.take(self, lane, now_s):
                del order[k]
                self.go(lane)
                return
        while order:
            if self._wait_for_engine(order[0], now_s):
                return
            lane = order.pop(0)
            if not effects.ready(lane):
                continue
            # With every breaker open, the best one is tried all the same: it may have come back.
            entered = effects.enter(self, lane, now_s)
            if entered == "go":
                self.go(lane)
                return
            if entered == "wait":
                self.waits_at = lane
                lane.add(UnderWay.QUEUED, 1)
                return
            lane.counted(Count.SHED)
        self._refuse()

    def _wait_for_engine(self, lane: Place, now_s: float) -> bool:
        """Wait for an engine of ours that is not loaded, if it can be: it was chosen with its loading in mind."""
        if self._effects.ready(lane) or not self._effects.want(self, lane, now_s):
            return False
        self.order.remove(lane)
        self.wanted = lane
        return True

    def loaded(self, lane: Place) -> None:
        """The engine it waited for is there."""
        self.wanted = None
        self.order.insert(0, lane)
        self.begin()

    def not_loaded(self, lane: Place, why: str) -> None:
        """The engine it waited for does not come: on to the next backend."""
        self.wanted = None
        self._note(f"{lane.name}: {why}")
        self.begin()

    def tell_progress(self, lane: Place, progress: float) -> None:
        """The engine it waits for is on its way."""
        self._effects.tell_progress(lane, progress)

    def no_place(self, lane: Place, why: str) -> None:
        """It lost its place in line without going."""
        lane.add(UnderWay.QUEUED, -1)
        lane.counted(Count.SHED)
        self.waits_at = None
        self.refuse(503, f"no place became free: {why}", "overloaded", retry_s=1.0)

    def go(self, lane: Place, *, hedge: bool = False) -> None:
        """There is a place at this backend: ask it."""
        if self.waits_at is not None:
            self.waits_at.add(UnderWay.QUEUED, -1)
            self.waits_at = None
        self.wanted = None
        one = self._effects.prepare(self, lane, hedge=hedge)
        self.asked.append(one)
        if hedge:
            lane.counted(Count.HEDGED)
        else:
            self.attempts += 1
            if self.attempts > 1:
                lane.counted(Count.RETRIED)
            elif self._hedges and self.order:
                self._hedged = True
                self._effects.hedge_later(self, one)
        one.send()

    def hedge_due(self) -> None:
        """The first backend has been silent for long: a second one is asked beside it."""
        if self.ended or self.winner is not None:
            return
        lane = self._effects.second(self)
        if lane is not None:
            if lane in self.order:
                self.order.remove(lane)
            self.go(lane, hedge=True)

    # The way back.

    def failed_with(self, one: One, status: int, stands: Standing) -> bool:
        """A head with a status that is about its backend. False: another is asked. True: nobody is left, so it is read
        to its end, for `came_to_nothing` where it speaks against the backend, else for the client."""
        if (judged := _JUDGED.get(stands)) is not None:
            one.judge(judged)
        if not (self._others(one) or self._may_go_on()):
            return True
        one.drop(f"status_{status}")
        if judged == "broken":
            one.lane.counted(Count.SERVER_ERRORS)
        self._lost(one, f"answered with status {status}", status_told(status))
        return False

    def came_to_nothing(self, one: One, message: str) -> None:
        """The answer that `failed_with` left under way has ended; `message`: what it says, for the client too."""
        status = one.status
        one.settle(f"status_{status}")
        one.lane.counted(Count.SERVER_ERRORS)
        why = f"answered with status {status}: {message}" if message else f"answered with status {status}"
        self._lost(one, why, status_told(status, message))

    def said_error(self, one: One, status: int, stands: Standing, message: str) -> None:
        """An error for an answer, under a status of success; `status`: what it amounts to."""
        if (judged := _JUDGED.get(stands)) is not None:
            one.judge(judged)
        one.lane.counted(Count.TROUBLES)
        one.drop(f"error_{status}")
        self._lost(one, f"answered with an error ({status}): {message}", f"an error, {status_told(status, message)}")

    def says_nothing(self, one: One) -> bool:
        """An answer that ends properly without content: whether it is dropped, and somebody else asked."""
        if any(other.outcome == EMPTY for other in self.asked) or not (self._others(one) or self._may_go_on()):
            return False
        one.lane.counted(Count.TROUBLES)
        one.drop(EMPTY)
        self._lost(one, "said nothing", trouble_told(EMPTY))
        return True

    def first_byte(self, one: One) -> bool:
        """The first byte from a backend: it is the answer, the others are cancelled. False: another one was faster."""
        if self.winner is not None:
            one.drop("hedge_lost")
            return False
        self.winner = one
        if self._hedged:
            self._hedged = False
            self._effects.stop_hedge()
        for other in self.asked:
            if other is not one and not other.outcome:
                other.drop("hedge_lost")
        if one.hedge:
            one.lane.counted(Count.HEDGE_WON)
        return True

    def whole(self, one: One, *, failing: str = "", nothing: str = "") -> None:
        """The answer is whole. `failing`: the error in its middle. `nothing`: why it has no content."""
        if failing or nothing:
            if failing:
                one.judge("broken")
            one.lane.counted(Count.CLIENT_ERRORS if nothing == DECLINED else Count.TROUBLES)
            one.settle(nothing or "error")
        else:
            one.judge("good")
            one.settle("answered" if one.status < 400 else f"status_{one.status}")
            if one.status < 400:
                for other in self.asked:
                    if other.outcome == EMPTY:
                        other.judge("broken")
        one.finish()
        self._end(one, one.status, f"error: {failing}" if failing else nothing and trouble_told(nothing))

    def trouble(self, one: One, trouble: str, detail: str) -> None:
        """A backend's answer ended badly, or never began."""
        if trouble_is_broken(trouble):
            one.judge("broken")
        one.lane.counted(Count.TROUBLES)
        one.settle(trouble)
        if self.winner is one:
            one.lane.counted(Count.CUT)
            one.cut()
            self._end(one, one.status, f"{trouble}: {detail}")
        else:
            self._lost(one, f"{trouble}: {detail}", trouble_told(trouble))

    def gone(self) -> None:
        """The client has left."""
        if self.ended:
            return
        if self.waits_at is not None:
            self._effects.leave(self, self.waits_at)
            self.waits_at.add(UnderWay.QUEUED, -1)
            self.waits_at = None
        if self.wanted is not None:
            self._effects.unwant(self, self.wanted)
            self.wanted = None
        for one in self.asked:
            if not one.outcome:
                one.lane.counted(Count.CANCELLED)
                one.drop("cancelled")
        self._end(self.winner, CLIENT_LEFT, "the client left")

    # What follows an ending.

    def _others(self, one: One) -> bool:
        """Whether somebody else is being asked as well."""
        return any(other is not one and not other.outcome for other in self.asked)

    def _may_go_on(self) -> bool:
        """Whether there is another backend, and an attempt left for it."""
        return bool(self.order) and self.attempts < self._most

    def _note(self, error: str) -> None:
        self.errors = f"{self.errors}; {error}" if self.errors else error

    def _lost(self, one: One, why: str, told: str) -> None:
        """A backend came to nothing without a byte for the client, who is `told` of it when nobody is left."""
        self._note(f"{one.lane.name} {why}")
        self._told = f"{self._told}; {one.lane.name}: {told}" if self._told else f"{one.lane.name}: {told}"
        if self.ended or self.winner is not None or self._others(one):
            return
        if self._may_go_on():
            self.begin()
        else:
            self._refuse()

    def _refuse(self) -> None:
        """Nobody is left to ask."""
        if not self.asked:
            self.refuse(503, "no backend has a place; try again", "overloaded", retry_s=1.0)
        else:
            retries = [one.retry_s for one in self.asked if one.retry_s is not None]
            status, message, code = refusal(self.asked[-1].outcome, self._told)
            self.refuse(status, message, code, retry_s=min(retries, default=None))

    def refuse(self, status: int, message: str, code: str, *, retry_s: float | None = None) -> None:
        """It gets no answer."""
        self._effects.refuse(status, message, code, retry_s)
        self._end(None, status, self.errors or message)

    def _end(self, one: One | None, status: int, error: str) -> None:
        if self.ended:
            return
        self.ended = True
        if self._hedged:
            self._hedged = False
            self._effects.stop_hedge()
        self._effects.over(self, one, status, error)
        # They hold this object: without the circle all go at once instead of with the next collection.
        self.asked = []
        self.winner = None
