"""How the tests themselves are shared out: nothing beside what must run alone, and nothing left out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.side_by_side import QuietAtTheEnd


class Process:
    """A worker as xdist's: it runs what it was given in order, the last of it only once it knows what comes next."""

    def __init__(self, run: str) -> None:
        self.workerinput = {"testrunuid": run}
        self.gateway = SimpleNamespace(id="")
        self.given: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def ready(self) -> bool:
        return len(self.given) > 1 or (bool(self.given) and self.shutting_down)


@given(
    files=st.lists(st.integers(1, 6), max_size=8),
    alone=st.integers(0, 3),
    processes=st.integers(1, 4),
    deaths=st.integers(0, 2),
    data=st.data(),
)
def test_what_is_alone_begins_when_all_else_has_ended(
    files: list[int], alone: int, processes: int, deaths: int, data: st.DataObject
) -> None:
    tests = [f"tests/test_{f}.py::test_{i}[a::b]" for f, n in enumerate(files) for i in range(n)]
    quiet = [f"tests/test_0.py::test_quiet_{i}" for i in range(alone)]
    everything = [*tests, *quiet]
    run = f"side-by-side-{id(files)}"
    (Path(tempfile.gettempdir()) / f"breakeven-tests-{run}").write_text("\n".join(quiet))
    settings: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=False, debug=False), getvalue=lambda name: ["popen"] * processes
    )
    sched = QuietAtTheEnd(settings, SimpleNamespace(loadscopesched=lambda *said: None))  # type: ignore[arg-type]
    workers: list[Any] = [Process(run) for _ in range(processes)]
    for worker in workers:
        sched.add_node(worker)
        sched.add_node_collection(worker, everything)
    sched.schedule()
    ended: list[str] = []
    while any(worker.ready for worker in workers):
        worker = data.draw(st.sampled_from([one for one in workers if one.ready]))
        index = worker.given.pop(0)
        if deaths and data.draw(st.booleans()):
            deaths -= 1
            workers.remove(worker)
            crashed = sched.remove_node(worker)
            assert crashed == everything[index]
            if data.draw(st.booleans()):
                sched.mark_test_pending(crashed)
            else:
                ended.append(crashed)
            workers.append(Process(run))
            sched.add_node(workers[-1])
            sched.add_node_collection(workers[-1], everything)
            sched.schedule()
            if sched.tests_finished:
                for one in workers:
                    one.shutdown()
            continue
        if everything[index] in quiet:
            assert set(ended) >= set(tests), "something else still runs"
            assert not any(other.given for other in workers if other is not worker)
        ended.append(everything[index])
        sched.mark_test_complete(worker, index)
        if sched.tests_finished:
            for one in workers:
                one.shutdown()
    assert sorted(ended) == sorted(everything)
    assert not everything or sched.tests_finished
