"""How tests are shared out to several processes; conftest.py says in which order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

ALONE = "alone"


class QuietAtTheEnd(LoadScopeScheduling):
    """A file at a time to whichever process is free; at the end, when the others have left, what must run alone."""

    _alone: frozenset[str] = frozenset()
    _looking: bool = False
    """What a process has died of is found out, before anybody gets what it left."""

    @property
    def _only_alone_is_left(self) -> bool:
        return next(iter(self.workqueue), None) == ALONE

    def schedule(self) -> None:
        if self.collection is None:
            file = Path(tempfile.gettempdir()) / f"breakeven-tests-{self.nodes[0].workerinput['testrunuid']}"
            if file.exists():  # not where pytest refused what it was asked
                self._alone = frozenset(file.read_text().splitlines())
                file.unlink()
        super().schedule()
        # One that takes a dead one's place does its last test only when it knows of another, or of the end.
        for node in self.nodes:
            self._reschedule(node)

    def _split_scope(self, nodeid: str) -> str:
        return ALONE if nodeid in self._alone else nodeid.partition("::")[0]

    def remove_node(self, node: WorkerController) -> str | None:
        """A test that its process died of has failed; xdist would give it to the next one, and so on."""
        self._looking = True
        crashed = super().remove_node(node)
        self._looking = False
        if crashed is not None:
            self.workqueue[self._split_scope(crashed)][crashed] = True
            for scope in [scope for scope, unit in self.workqueue.items() if all(unit.values())]:
                del self.workqueue[scope]
            self._order()
        return crashed

    def mark_test_pending(self, item: str) -> None:  # type: ignore[override]
        """It is asked once more."""
        self.workqueue.setdefault(self._split_scope(item), {})[item] = False
        self._order()

    def _order(self) -> None:
        """What was left stands at the end: before what runs alone. Who takes the dead one's place shares it out."""
        if ALONE in self.workqueue:
            self.workqueue.move_to_end(ALONE)

    def _reschedule(self, node: WorkerController) -> None:
        if self._looking:
            return
        if node.shutting_down or not self._only_alone_is_left:
            super()._reschedule(node)
        elif any(not other.shutting_down for other in self.nodes if other is not node):
            node.shutdown()  # once it has done what it has
        else:
            self._assign_work_unit(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [work for other, work in self.assigned_work.items() if other is not node]
        if not (self._only_alone_is_left and any(map(self._pending_of, others))):
            super()._assign_work_unit(node)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        if self._only_alone_is_left:
            for other in self.nodes:
                self._reschedule(other)
