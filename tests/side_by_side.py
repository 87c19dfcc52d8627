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

    def _split_scope(self, nodeid: str) -> str:
        return ALONE if nodeid in self._alone else nodeid.partition("::")[0]

    def _reschedule(self, node: WorkerController) -> None:
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
