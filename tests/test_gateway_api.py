"""The gateway's verbs from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import breakeven
from breakeven.errors import UserError
from breakeven.gateway.plan.model import LogPlan
from breakeven.gateway.route.view import Score
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.seen.record import DecisionRecord


@pytest.fixture
def log(tmp_path: Path) -> Path:
    writer = DecisionLog(tmp_path, 1, LogPlan())
    score = Score(backend="a", ttft_s=0.1, tpot_s=0.02, usd=0.001, headroom=2.0, running=0)
    writer.add(
        DecisionRecord(id="r-1", time_s=1.0, model="chat", endpoint="/v1/chat/completions", policy="breakeven",
                       reason="only", backend="a", status=200, scores=[score])
    )  # fmt: skip
    writer.close()
    return tmp_path


def test_a_request_is_explained(log: Path) -> None:
    assert "the only backend that can serve it" in breakeven.explain("r-1", log).text
    with pytest.raises(UserError, match="holds no request r-2"):
        breakeven.explain("r-2", log)


def test_a_log_without_experiments_says_so(log: Path) -> None:
    with pytest.raises(UserError, match="no gateway with experiments has logged here"):
        breakeven.experiment.status(log)


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a gateway file"):
        breakeven.serve()
    with pytest.raises(UserError, match="cannot be read"):
        breakeven.serve(str(tmp_path / "gateway.yaml"))
