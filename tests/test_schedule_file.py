"""Schedule files: what is written is played again byte for byte, and what is wrong is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import BreakevenError, UserError
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import DEPENDS, Schedule
from breakeven.traffic.schedule_file import load_schedule, save_schedule
from breakeven.traffic.workload import Arrivals, Length, Workload

COLUMNS = ("due_ns_N", "prompt_N", "output_N", "warm_N", "session_N", "turn_N", "think_ns_N")
POISSON = Workload(
    arrivals=Arrivals(process="poisson", rate_per_s=20),
    prompt=Length(kind="uniform", low=5, high=900),
    output=Length(mean=16),
    requests=50,
    warm_up_s=1,
    turns=2,
)


@st.composite
def schedules(draw_from: st.DrawFn) -> Schedule:
    """Any schedule a file may hold, sessions and blocks included."""
    turns = draw_from(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    rows = [(session, turn) for session, n in enumerate(turns) for turn in range(n)]
    n = len(rows)
    many = st.lists
    big = st.integers(0, 2**62)
    small = st.integers(1, 2**31 - 1)
    blocks = draw_from(st.just(()) | many(many(big, max_size=3).map(tuple), min_size=n, max_size=n).map(tuple))
    return Schedule(
        workload=POISSON,
        due_ns_N=np.array(draw_from(many(st.just(DEPENDS) | big, min_size=n, max_size=n)), np.int64),
        prompt_N=np.array(draw_from(many(small, min_size=n, max_size=n)), np.int32),
        output_N=np.array(draw_from(many(small, min_size=n, max_size=n)), np.int32),
        warm_N=np.array(draw_from(many(st.booleans(), min_size=n, max_size=n)), np.bool_),
        session_N=np.array([-1 if turns[s] == 1 else s for s, _ in rows], np.int64),
        turn_N=np.array([turn for _, turn in rows], np.int32),
        think_ns_N=np.array(draw_from(many(big, min_size=n, max_size=n)), np.int64),
        blocks=blocks if any(blocks) else (),
        block_tokens=draw_from(st.integers(1, 4096)),
    )


@given(schedule=schedules())
@settings(max_examples=60, deadline=None)
def test_byte_for_byte(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("schedules")
    first, second = folder / "first.jsonl", folder / "second.jsonl"
    save_schedule(schedule, first)
    loaded = load_schedule(first)
    for column in COLUMNS:
        assert np.array_equal(getattr(loaded, column), getattr(schedule, column)), column
        assert getattr(loaded, column).dtype == getattr(schedule, column).dtype
    assert loaded.blocks == schedule.blocks
    assert loaded.workload == schedule.workload
    save_schedule(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    for i, line in enumerate(first.read_text().splitlines()[1:]):
        assert f'"i":{i},' in line


def test_every_line_is_a_row(tmp_path: Path) -> None:
    schedule = draw(POISSON)
    save_schedule(schedule, tmp_path / "s.jsonl")
    loaded = load_schedule(tmp_path / "s.jsonl")
    assert [loaded.row(i) for i in range(120)] == [schedule.row(i) for i in range(120)]


def spoiled(tmp_path: Path, line: int, old: str, new: str) -> Path:
    path = tmp_path / "s.jsonl"
    save_schedule(draw(POISSON), path)
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1], lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("line", "old", "new", "says"),
    [
        (1, "breakeven.schedule/1", "breakeven.schedule/9", "schema"),
        (1, "{", "[", "not the header"),
        (1, '"block_tokens":512', '"block_tokens":0', "block_tokens 1 or more"),
        (1, '512,"requests":', '512,"requests":9', "copy the whole file"),
        (4, '"i":2', '"i":3', "i: found 3, expected 2"),
        (4, '"output":16', '"output":0', "output: found 0"),
        (4, '"output":16', '"output":"x"', "$.output"),
        (4, '"output":16', '"output":3000000000', "int32"),
        (5, '"turn":1', '"turn":2', "does not follow"),
        (5, '"session":1', '"session":7', "does not follow"),
        (4, '"due_ns":', '"due_ns":-', "due_ns"),
        (4, '{"i"', '{i"', "not a request"),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, line: int, old: str, new: str, says: str) -> None:
    path = spoiled(tmp_path, line, old, new)
    with pytest.raises(UserError) as caught:
        load_schedule(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    if "whole file" not in says:
        assert f"line {line}" in str(caught.value)


def test_a_file_cut_off_is_told_from_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    save_schedule(draw(POISSON), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match="ends in the middle"):
        load_schedule(path)
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1])
    with pytest.raises(UserError, match="more than the"):
        load_schedule(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="line 1"):
        load_schedule(path)
    with pytest.raises(UserError, match="cannot read"):
        load_schedule(tmp_path / "none.jsonl")
    with pytest.raises(BreakevenError, match="cannot write"):
        save_schedule(draw(POISSON), path / "below" / "s.jsonl")


def test_a_schedule_may_be_changed_and_saved(tmp_path: Path) -> None:
    schedule = dataclasses.replace(draw(POISSON), block_tokens=16)
    save_schedule(schedule, tmp_path / "s.jsonl")
    assert load_schedule(tmp_path / "s.jsonl").block_tokens == 16
