"""What whoever watches a run under load is shown."""

from __future__ import annotations

import io
import re

import load_report_fixtures as made
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from breakeven.pages.progress import LoadProgress, load_live_lines, load_plain_line

NOTHING = {
    "offered_per_s": None,
    "achieved_per_s": None,
    "ttft_p50_s": None,
    "ttft_p99_s": None,
    "tpot_p50_s": None,
    "tpot_p99_s": None,
    "lag_p99_s": None,
    "headroom": None,
    "engine_running": None,
    "engine_waiting": None,
    "of_s": None,
    "errors": {},
}


def test_a_log_gets_a_line_every_five_seconds_and_at_every_new_load() -> None:
    out, now = io.StringIO(), [0.0]
    with LoadProgress(Console(file=out, width=80), clock=lambda: now[0]) as progress:
        for second in range(11):
            now[0] = float(second)
            progress.update(made.state(float(second)))
        progress.update(made.state(0.0, load="10 req/s"))
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "olmoe-1b-7b, 5 req/s, 0 s of 60 s",
        "olmoe-1b-7b, 5 req/s, 5 s of 60 s",
        "olmoe-1b-7b, 5 req/s, 10 s of 60 s",
        "olmoe-1b-7b, 10 req/s, 0 s of 60 s",
    ]


def test_a_line_tells_all_that_is_known() -> None:
    assert load_plain_line(made.state()) == (
        "olmoe-1b-7b, 5 req/s, 12 s of 60 s: 4.92 of 5.00 req/s; 49 of 61 answered; 9 in flight; "
        "TTFT p50 212, p99 1380 ms; TPOT p50 34.1, p99 52.2 ms; failed: 2 timeout, 1 http_500; "
        "client at 12 % of its ceiling; engine 8 running, 1 waiting"
    )


def test_nothing_to_tell_yet_is_not_told_as_zero() -> None:
    line = load_plain_line(made.state(0.0, **NOTHING))
    assert "TTFT p50 -, p99 - ms" in line
    assert "engine" not in line
    assert "client" not in line
    assert not re.search(r"None|failed", line)
    assert any("does not tell its queue" in line for line in load_live_lines(made.state(0.0, **NOTHING), 80))


def test_quiet_is_silent() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        with LoadProgress(Console(file=out, force_terminal=terminal), quiet=True) as progress:
            progress.update(made.state())
        assert out.getvalue() == ""


def test_a_terminal_sees_headroom_fill_and_errors_by_kind() -> None:
    out = io.StringIO()
    with LoadProgress(Console(file=out, force_terminal=True, width=100, color_system=None)) as progress:
        for headroom in (0.1, 0.5, 0.9):
            progress.update(made.state(headroom=headroom))
    text = out.getvalue()
    bars = [
        bar.count("#") for line in text.splitlines() if "its ceiling" in line for bar in re.findall(r"\[[#-]+\]", line)
    ]
    assert bars == sorted(bars)
    assert len(set(bars)) == 3
    assert "2 timeout, 1 http_500" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@given(
    model=st.text(max_size=80),
    seconds=st.floats(0, 1e5),
    delay=st.none() | st.floats(1e-6, 1e4),
    headroom=st.none() | st.floats(0, 5),
    failed=st.integers(0, 10**9),
)
def test_a_block_is_never_wider_than_the_terminal(
    width: int, model: str, seconds: float, delay: float | None, headroom: float | None, failed: int
) -> None:
    state = made.state(
        seconds, model=model, ttft_p99_s=delay, tpot_p50_s=delay, headroom=headroom, errors={"timeout": failed}
    )
    lines = load_live_lines(state, width)
    assert max(cell_len(line) for line in lines) <= width
    assert len(lines) == 8
    assert "\n" not in "".join(lines)


def test_names_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in load_plain_line(made.state(model="a\x1b[2J"))
    assert "\x1b" not in "".join(load_live_lines(made.state(model="a\x1b[2J"), 80))
