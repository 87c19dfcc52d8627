"""The judgement on scripted readings, and one busy process that the real counters must show."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.measure.noise import LIMITS, Reading, _throttle_count, assess, sample, summarise

QUIET = Reading(at_ns=0, busy_s=100.0, steal_s=1.0, total_s=1000.0, own_s=50.0, swap_bytes=0, throttled=0)
"""Ten seconds of two cores later, with our own processes using both, the counters read `LATER`."""
LATER = Reading(at_ns=10**10, busy_s=120.0, steal_s=1.0, total_s=1020.0, own_s=70.0, swap_bytes=0, throttled=0)


def later(**changes: float) -> Reading:
    return msgspec.structs.replace(LATER, **changes)


def test_our_own_work_is_not_noise() -> None:
    assert assess(QUIET, LATER).reasons == []
    noise = assess(QUIET, LATER)
    assert noise.other_cpu_share == 0.0
    assert noise.steal_share == 0.0
    assert noise.clock_mhz_low is None
    assert noise.temperature_c_high is None


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (later(own_s=68.0), "other processes used 10% of the CPU"),
        (later(steal_s=2.0), "the hypervisor took 5% of the CPU"),
        (later(swap_bytes=3_000_000), "3 MB were swapped"),
        (later(throttled=1), "the CPU was throttled"),
        (later(temperature_c=91.0), "the CPU reached 91 C (limit 90 C)"),
        (later(temperature_c=85.0, temperature_limit_c=80.0), "the CPU reached 85 C (limit 80 C)"),
    ],
)
def test_each_kind_of_noise_is_named(after: Reading, reason: str) -> None:
    assert assess(QUIET, after).reasons == [reason]


@pytest.mark.parametrize(
    "after",
    [
        later(own_s=69.2),
        later(steal_s=1.3),
        later(swap_bytes=1 << 20),
        later(temperature_c=95.0, temperature_limit_c=100.0),
    ],
)
def test_what_stays_within_the_limits_is_quiet(after: Reading) -> None:
    assert assess(QUIET, after).reasons == []


def test_the_clock_is_judged_under_load_only() -> None:
    slow, fast = later(clock_mhz=800.0), later(clock_mhz=4000.0)
    assert assess(slow, fast).reasons == []
    noise = assess(slow, fast, during=(later(clock_mhz=4000.0), later(clock_mhz=3500.0)))
    assert noise.reasons == ["the clock fell from 4000 to 3500 MHz"]
    assert (noise.clock_mhz_low, noise.clock_mhz_high) == (3500.0, 4000.0)
    assert assess(slow, fast, during=(later(clock_mhz=4000.0), later(clock_mhz=3700.0))).reasons == []


def test_a_counter_that_is_missing_gives_no_number() -> None:
    bare = msgspec.structs.replace(QUIET, steal_s=None, swap_bytes=None, throttled=None)
    noise = assess(bare, LATER)
    assert noise.steal_share is None
    assert noise.swap_bytes is None
    assert noise.reasons == []
    assert assess(QUIET, QUIET).other_cpu_share is None


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1e-3, 1e6))
def test_shares_are_shares(busy: float, idle: float, steal: float, own: float, start: float) -> None:
    before = Reading(at_ns=0, busy_s=start, steal_s=0.0, total_s=start, own_s=start)
    total = start + busy + idle + steal
    noise = assess(before, Reading(at_ns=1, busy_s=start + busy, steal_s=steal, total_s=total, own_s=start + own))
    if noise.other_cpu_share is not None:
        assert 0 <= noise.other_cpu_share <= 1
        assert noise.steal_share is not None
        assert 0 <= noise.steal_share <= 1
    # A process cannot be both ours and someone else's.
    if own >= busy:
        assert not noise.other_cpu_share


def test_the_record_keeps_the_worst_and_counts_the_noisy() -> None:
    blocks = [assess(QUIET, LATER), assess(QUIET, later(own_s=68.0)), assess(QUIET, later(own_s=68.0, steal_s=2.0))]
    record = summarise(blocks, repeated=4)
    assert (record.blocks, record.repeated, record.flagged) == (3, 4, 2)
    assert record.other_cpu_share == pytest.approx(0.1)
    assert record.steal_share == pytest.approx(0.05)
    assert record.swap_bytes == 0
    assert record.reasons == [
        "other processes used 10% of the CPU at worst, in 2 blocks",
        "the hypervisor took 5% of the CPU",
    ]
    worse = summarise([*blocks, assess(QUIET, later(own_s=60.0)), assess(QUIET, later(throttled=2))])
    assert worse.reasons == [
        "other processes used 50% of the CPU at worst, in 3 blocks",
        "the hypervisor took 5% of the CPU",
        "the CPU was throttled",
    ]
    empty = summarise([])
    assert (empty.blocks, empty.other_cpu_share, empty.swap_bytes) == (0, None, None)


def test_throttle_counts_are_summed(tmp_path: Path) -> None:
    assert _throttle_count(tmp_path) is None
    for cpu, count in ((0, 3), (1, 4)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    assert _throttle_count(tmp_path) == 7


SPIN = (
    "import time\nprint('there', flush=True)\ninput()\n"
    "end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
)


@pytest.mark.parametrize("ours", [False, True])
def test_a_real_busy_process_is_seen_unless_it_is_ours(ours: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPIN + "\nprint('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        pids = [child.pid] if ours else []
        assert child.stdout.readline() == "there\n"
        before = sample(pids)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        # The counters of the whole machine may be a tick behind those of the process.
        time.sleep(0.05)
        after = sample(pids)
        child.stdin.write("\n")
        child.stdin.close()
    own_s = after.own_s - before.own_s
    if ours:
        assert own_s >= 0.35
    else:
        assert own_s < 0.35
        noise = assess(before, after)
        assert noise.other_cpu_share is not None
        assert noise.other_cpu_share * (after.total_s - before.total_s) >= 0.35
    assert after.at_ns > before.at_ns
    assert LIMITS.other_cpu_share < 1
