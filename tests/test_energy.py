"""Counters that wrap, and counters read from a file system laid out as the kernel lays it out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.measure.energy import (
    NvmlCounter,
    RailCounter,
    RaplCounter,
    Together,
    counter_delta,
    open_counter,
    open_rail,
    open_rapl,
)

RANGE_UJ = 262_143_328_850


@given(st.integers(1, 1 << 64), st.data())
def test_delta_counts_what_was_added_across_a_wrap(wraps_at: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, wraps_at - 1))
    added = data.draw(st.integers(0, wraps_at - 1))
    assert counter_delta(before, (before + added) % wraps_at, wraps_at) == added


@pytest.mark.parametrize(("before", "after"), [(-1, 0), (0, 10), (10, 0)])
def test_delta_refuses_readings_outside_the_range(before: int, after: int) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        counter_delta(before, after, 10)


def domain(root: Path, name: str, label: str, energy_uj: int) -> Path:
    path = root / "sys/class/powercap" / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{label}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path


def test_rapl_sums_packages_only_and_survives_a_wrap(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 0)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 0)
    counter = open_rapl(tmp_path)
    assert isinstance(counter, RaplCounter)
    assert counter.rail == "2 CPU packages (RAPL)"
    assert counter.read_joules() == 0
    (first / "energy_uj").write_text("2000000")
    (second / "energy_uj").write_text("4000000")
    (core / "energy_uj").write_text("9000000")
    # 1 J to the top of the range, one step over it, 2 J beyond; 4 J on the other package.
    assert counter.read_joules() == pytest.approx(7.000001)
    (first / "energy_uj").write_text("2500000")
    assert counter.read_joules() == pytest.approx(7.500001)


def test_rapl_that_cannot_be_read_is_no_counter(tmp_path: Path) -> None:
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    (path / "energy_uj").unlink()
    assert open_rapl(tmp_path) is None


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert open_rapl(tmp_path) is None
    assert open_rail(tmp_path) is None


def test_nvml_gives_joules_since_opening() -> None:
    totals = [[5_000, 1_000], [6_500, 3_000]]
    closed: list[bool] = []
    counter = NvmlCounter(lambda: totals.pop(0), lambda: closed.append(True))
    assert counter.rail == "2 GPU boards (NVML)"
    assert counter.read_joules() == pytest.approx(3.5)
    counter.close()
    assert closed == [True]


def test_a_board_rail_is_watts_over_time(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/hwmon/hwmon3"
    device.mkdir(parents=True)
    for channel, label, amperes in ((1, "VDD_IN", 2000), (2, "VDD_CPU_GPU_CV", 500)):
        (device / f"in{channel}_label").write_text(f"{label}\n")
        (device / f"in{channel}_input").write_text("5000\n")
        (device / f"curr{channel}_input").write_text(f"{amperes}\n")
    counter = open_counter(tmp_path)
    assert isinstance(counter, RailCounter)
    try:
        assert counter.rail.startswith("board input VDD_IN")
        start_ns = time.monotonic_ns()
        first = counter.read_joules()
        time.sleep(0.05)
        second, end_ns = counter.read_joules(), time.monotonic_ns()
        # 5 V times 2 A, over no less than the sleep and no more than the time around both calls.
        assert second - first >= 10 * 0.05
        assert second - first <= 10 * (end_ns - start_ns) / 1e9 + 1e-6
    finally:
        counter.close()


def test_counters_together_are_summed_and_named() -> None:
    def fixed(joules: float) -> NvmlCounter:
        totals = iter([[0], [int(joules * 1e3)]])
        return NvmlCounter(lambda: next(totals), lambda: None)

    with Together([fixed(1.5), fixed(2.0)]) as both:
        assert both.read_joules() == pytest.approx(3.5)
        assert both.rail == "GPU board (NVML) + GPU board (NVML)"
