"""Nothing is lost, answered twice or mixed while backends fail in every known way and clients leave as they like."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_chaos_fixtures import LEAVING, SHARES, Chaos, Told, run_chaos

REQUESTS = 1500
GROWTH_BYTES = 8 * 2**20
"""Of a worker's memory between the third tenth of the requests, when every pool has been in use, and the end."""


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    """One run that all tests here look at."""
    return run_chaos(tmp_path_factory.mktemp("chaos") / "run", REQUESTS, seed=7)


def test_every_request_has_one_ending_one_record_and_only_its_own_bytes(chaos: Chaos) -> None:
    assert len(chaos.told) == REQUESTS
    assert len({one.number for one in chaos.told}) == REQUESTS
    problems = chaos.problems()
    assert not problems, "\n".join(problems[:20])


def test_everything_that_can_happen_happened(chaos: Chaos) -> None:
    # Of the rarest few are expected; the others must have come up, or the run shows nothing.
    assert {name for name, share in SHARES.items() if share >= 0.01} <= set(chaos.behaviours)
    endings = chaos.endings
    assert endings["whole"] > REQUESTS / 2
    assert endings["left"] > REQUESTS * LEAVING / 4
    assert endings["cut"] > 0
    assert endings["error"] > 0
    assert any(len(record.attempts) > 1 and record.status == 200 for record in chaos.records)


def test_memory_and_open_files_stay(chaos: Chaos) -> None:
    assert len(chaos.rss_bytes) >= 8
    for early, late in zip(chaos.rss_bytes[2], chaos.rss_bytes[-1], strict=True):
        assert late - early < GROWTH_BYTES
    # Kept connections to three backends, and what a worker has at its start.
    assert max(chaos.descriptors) < 120


def test_the_reckoning_finds_what_is_wrong(chaos: Chaos) -> None:
    """A check that finds nothing in a run that is known to be wrong would show nothing in a good one."""
    whole = next(k for k, one in enumerate(chaos.told) if one.ending == "whole")
    right = chaos.told[whole]
    try:
        chaos.told[whole] = Told(right.number, "error", 500, right.id)
        assert any("logged with status 200" in one for one in chaos.problems())
        chaos.told[whole] = Told("q0", "whole", 200, right.id)
        assert any("0 records" in one for one in chaos.problems())
        chaos.told[whole] = Told(right.number, "lost")
        assert any(one.startswith("lost") for one in chaos.problems())
    finally:
        chaos.told[whole] = right
    chaos.records.append(chaos.records[0])
    try:
        assert any("2 records" in one for one in chaos.problems())
    finally:
        chaos.records.pop()


def test_reloads_meanwhile_lose_nothing_on_kept_connections(tmp_path: Path) -> None:
    chaos = run_chaos(tmp_path / "run", 500, at_once=24, seed=11, hangups=2)
    assert "reloaded: generation" in chaos.said
    problems = chaos.problems()
    assert not problems, "\n".join(problems[:20])
