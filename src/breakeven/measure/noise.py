"""Was the machine quiet while a block ran? Readings before and after, and a judgement that is a pure function of them.

A noisy block is repeated or flagged, never averaged in silently: llama.cpp's threads spin at every barrier, so that one
busy neighbour on two cores cuts its decode rate from 30 to 4 tokens/s.

What it refuses to know: how much slower the noise made the block. It says why a block is suspect and no more.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import psutil

from breakeven.measure.devices import DeviceReading, devices_here
from breakeven.results.comparison import NoiseRecord


class QuietLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What still counts as quiet."""

    other_cpu_share: float = 0.05
    """Of all cores. An idle desktop stays below; one busy thread on 16 cores is 6 %."""
    counted_s: float = 0.05
    """CPU seconds of others, or stolen, below which a share means nothing: counters tick in 10 ms."""
    steal_share: float = 0.02
    """Of all cores. Steal hits whichever thread holds up the barrier, so it costs more than its share."""
    swap_bytes: int = 1 << 20
    """Moved in and out. Weights are mapped, never swapped; a megabyte means memory ran short."""
    clock_drop: float = 0.10
    """Lowest over highest clock under load. Turbo steps of one active-core bin stay below."""
    temperature_c: float = 90.0
    """Where the sensor names no limit of its own: x86 CPUs throttle from 95 to 105 C."""


LIMITS = QuietLimits()

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp", "acpitz")
"""Drivers whose sensors sit on the CPU, best first (Intel, AMD, Arm boards, firmware)."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The counters at one moment. Times are CPU seconds since boot, all cores together. None: not told here."""

    at_ns: int
    busy_s: float
    steal_s: float | None
    total_s: float
    own_s: float
    """Used by this process, its finished children, and the processes named to `sample`."""
    swap_bytes: int | None = None
    """Moved in and out since boot."""
    throttled: int | None = None
    """How often a core or package has been throttled since boot."""
    clock_mhz: float | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    devices: list[DeviceReading] = []


class BlockNoise(msgspec.Struct, frozen=True, kw_only=True):
    """How quiet the machine was during one block. No `reasons`: quiet."""

    other_cpu_share: float | None
    steal_share: float | None
    swap_bytes: int | None
    clock_mhz_low: float | None
    clock_mhz_high: float | None
    temperature_c_high: float | None
    reasons: list[str]
    device_clock_mhz_low: float | None = None
    """Of accelerators while the block ran; not judged."""
    device_clock_mhz_high: float | None = None
    device_temperature_c_high: float | None = None


def _below(pids: Iterable[int]) -> set[int]:
    """Descendants of `pids` that run."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
    return found


def _own_seconds(pids: Iterable[int]) -> float:
    """CPU seconds of this process with its finished children, and of `pids` with all theirs.

    An engine may keep its work in processes below the one we started. A process that ended counts no more.

    A child that was named before and has been waited for since is counted by its parent, so the sum never drops.
    """
    total = 0.0
    for pid in {os.getpid(), *pids, *_below(pids)}:
        try:
            used = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
        # Not on every system, and only of finished children.
        total += getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
    return total


def _swap_bytes() -> int | None:
    # psutil warns, rather than raises, where the kernel does not tell.
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            swap = psutil.swap_memory()
        except (OSError, RuntimeWarning):
            return None
    return int(swap.sin) + int(swap.sout)


def _throttle_count(root: Path = Path("/")) -> int | None:
    """Throttling events of all cores and packages since boot (x86 on bare metal only)."""
    counts = []
    for name in ("core_throttle_count", "package_throttle_count"):
        for path in (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/thermal_throttle/{name}"):
            try:
                counts.append(int(path.read_text()))
            except (OSError, ValueError):
                continue
    return sum(counts) if counts else None


def _clock_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return float(frequency.current) if frequency and frequency.current else None


def _temperature() -> tuple[float | None, float | None]:
    """Hottest CPU sensor and the limit it names, in degrees Celsius."""
    read = getattr(psutil, "sensors_temperatures", None)
    sensors = read() if read is not None else {}
    for name in CPU_SENSORS:
        if entries := sensors.get(name):
            hottest = max(entries, key=lambda entry: entry.current)
            return float(hottest.current), hottest.critical or hottest.high or None
    return None, None


def sample(pids: Iterable[int] = ()) -> Reading:
    """Read the counters now. `pids`: processes of ours besides this one, the engines above all."""
    own_s = _own_seconds(pids)
    cpu = psutil.cpu_times()
    # iowait is idle time; guest time is part of user time already.
    busy = cpu.user + cpu.system + sum(getattr(cpu, name, 0.0) for name in ("nice", "irq", "softirq"))
    steal = getattr(cpu, "steal", None)
    temperature, limit = _temperature()
    return Reading(
        at_ns=time.monotonic_ns(),
        busy_s=busy,
        steal_s=steal,
        total_s=busy + (steal or 0.0) + cpu.idle + getattr(cpu, "iowait", 0.0),
        own_s=own_s,
        swap_bytes=_swap_bytes(),
        throttled=_throttle_count(),
        clock_mhz=_clock_mhz(),
        temperature_c=temperature,
        temperature_limit_c=limit,
        devices=devices_here().read(),
    )


def _grown(before: float | None, after: float | None) -> float | None:
    """Growth of a counter; None when either end is missing, 0 when it was set back."""
    return None if before is None or after is None else max(0.0, after - before)


def assess(before: Reading, after: Reading, during: Sequence[Reading] = (), limits: QuietLimits = LIMITS) -> BlockNoise:
    """Judge a block from readings at its ends and, for the clock, `during` it. Pure.

    Shares are of all cores' time between the ends:
    other = (busy - own) / total, steal / total. Counters tick in 10 ms: a second on one core resolves 1 %.
    Clocks of idle cores say nothing, hence the clock is judged only over readings taken under load.
    """
    total_s = after.total_s - before.total_s
    other: float | None = None
    steal: float | None = None
    if total_s > 0:
        own_s = max(0.0, after.own_s - before.own_s)
        other = min(1.0, max(0.0, after.busy_s - before.busy_s - own_s) / total_s)
        stolen_s = _grown(before.steal_s, after.steal_s)
        steal = None if stolen_s is None else min(1.0, stolen_s / total_s)
    swapped = _grown(before.swap_bytes, after.swap_bytes)
    clocks = [reading.clock_mhz for reading in during if reading.clock_mhz is not None]
    readings = (before, *during, after)
    hot = max(
        (reading for reading in readings if reading.temperature_c is not None),
        key=lambda reading: reading.temperature_c or 0.0,
        default=None,
    )

    reasons = []
    if other is not None and other > limits.other_cpu_share and other * total_s > limits.counted_s:
        reasons.append(f"other processes used {other:.0%} of the CPU")
    if steal is not None and steal > limits.steal_share and steal * total_s > limits.counted_s:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPU")
    if swapped is not None and swapped > limits.swap_bytes:
        reasons.append(f"{swapped / 1e6:.0f} MB were swapped")
    if _grown(before.throttled, after.throttled):
        reasons.append("the CPU was throttled")
    if clocks and min(clocks) < (1 - limits.clock_drop) * max(clocks):
        reasons.append(f"the clock fell from {max(clocks):.0f} to {min(clocks):.0f} MHz")
    if hot is not None and hot.temperature_c is not None:
        limit_c = hot.temperature_limit_c or limits.temperature_c
        if hot.temperature_c >= limit_c:
            reasons.append(f"the CPU reached {hot.temperature_c:.0f} C (limit {limit_c:.0f} C)")
    at_work = [device.clock_mhz for reading in during for device in reading.devices if device.clock_mhz is not None]
    hottest = _largest(device.temperature_c for reading in readings for device in reading.devices)
    # What a device says before a block belongs to what ran before it.
    reasons += _device_reasons([*during, after])
    return BlockNoise(
        other_cpu_share=other,
        steal_share=steal,
        swap_bytes=None if swapped is None else int(swapped),
        clock_mhz_low=min(clocks, default=None),
        clock_mhz_high=max(clocks, default=None),
        temperature_c_high=None if hot is None else hot.temperature_c,
        reasons=reasons,
        device_clock_mhz_low=min(at_work, default=None),
        device_clock_mhz_high=max(at_work, default=None),
        device_temperature_c_high=hottest,
    )


def _device_reasons(readings: Sequence[Reading]) -> list[str]:
    """What heat did to accelerators, once a device. Their clocks are not judged: they move with the load by design."""
    said: dict[int, str] = {}
    for reading in readings:
        for index, device in enumerate(reading.devices):
            now, limit = device.temperature_c, device.temperature_limit_c
            if device.throttled:
                said[index] = f"{device.name} was slowed down by heat or its power supply"
            elif now is not None and limit is not None and now >= limit:
                said.setdefault(index, f"{device.name} reached its limit of {limit:.0f} C")
    return [said[index] for index in sorted(said)]


def summarise(blocks: Sequence[BlockNoise], repeated: int = 0) -> NoiseRecord:
    """One record over all blocks that count. `repeated`: noisy blocks that were run again. Pure."""
    swapped = [block.swap_bytes for block in blocks if block.swap_bytes is not None]
    return NoiseRecord(
        blocks=len(blocks),
        repeated=repeated,
        flagged=sum(bool(block.reasons) for block in blocks),
        other_cpu_share=_largest(block.other_cpu_share for block in blocks),
        steal_share=_largest(block.steal_share for block in blocks),
        swap_bytes=sum(swapped) if swapped else None,
        clock_mhz_low=min((b.clock_mhz_low for b in blocks if b.clock_mhz_low is not None), default=None),
        clock_mhz_high=_largest(block.clock_mhz_high for block in blocks),
        temperature_c_high=_largest(block.temperature_c_high for block in blocks),
        device_clock_mhz_low=min(
            (b.device_clock_mhz_low for b in blocks if b.device_clock_mhz_low is not None), default=None
        ),
        device_clock_mhz_high=_largest(block.device_clock_mhz_high for block in blocks),
        device_temperature_c_high=_largest(block.device_temperature_c_high for block in blocks),
        reasons=_merged([reason for block in blocks for reason in block.reasons]),
    )


def _merged(reasons: Sequence[str]) -> list[str]:
    """One line a kind of reason, with its largest figure and how many blocks gave it: a long run has hundreds."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"\d+", "#", reason), []).append(reason)
    lines = []
    for alike in kinds.values():
        worst = max(alike, key=lambda reason: [int(figure) for figure in re.findall(r"\d+", reason)])
        lines.append(worst if len(alike) == 1 else f"{worst} at worst, in {len(alike)} blocks")
    return lines


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
