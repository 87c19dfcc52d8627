"""Host memory: of what kind it is, as the firmware says it, and what reading it reaches.

The kind is read where this user may: the firmware's table is for root, and boards with error correction tell a little
to everybody. The rate is measured: every core reads an array of its own, far larger than the caches, over and over.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from breakeven.errors import BreakevenError
from breakeven.hardware.devices import number_of, text_of
from breakeven.hardware.machine import MachineSpec

MEASURED_S = 2.0
CACHES = 4
"""Arrays hold at least so many times the last cache, so that what is found there is a quarter at most."""
LEAST_BYTES = 256 << 20
FREE_SHARE = 0.25
"""Of the memory that is free, the most that the arrays take."""
WARM_PASSES = 2
PASS_S = 0.05
"""A pass lasts so long at least: dozens of threads take a millisecond to meet."""

_TYPES = {0x18: "ddr3", 0x1A: "ddr4", 0x1D: "lpddr3", 0x1E: "lpddr4", 0x22: "ddr5", 0x23: "lpddr5"}
"""Of a memory device's table (SMBIOS 3.7, section 7.18.2)."""


def read_memory_kind(root: Path = Path("/")) -> str | None:
    """The memory's kind, MT/s and modules, such as "ddr4-3200, 2 modules"; None where nothing tells this user."""
    try:
        table = (root / "sys/firmware/dmi/tables/DMI").read_bytes()
    except OSError:
        table = b""
    found = _modules(table) or [
        (kind.lower(), None)
        for dimm in sorted((root / "sys/devices/system/edac/mc").glob("mc*/dimm*"))
        if number_of(dimm / "size") and (kind := (text_of(dimm / "dimm_mem_type") or "").rpartition("-")[2])
    ]
    if not found:
        return None
    kind, rate = found[0]
    alike = f"{len(found)} module{'s' if len(found) > 1 else ''}"
    return f"{kind}{f'-{rate}' if rate else ''}, {alike}"


def _modules(table: bytes) -> list[tuple[str, int | None]]:
    """Kind and configured MT/s of every module that is in a slot. Layout: SMBIOS 3.7, structure type 17."""
    found: list[tuple[str, int | None]] = []
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        if length < 4:
            break
        if kind == 17 and length >= 0x17 and int.from_bytes(table[at + 0x0C : at + 0x0E], "little"):
            words = [at + 0x20, at + 0x15] if length >= 0x22 else [at + 0x15]
            rates = [int.from_bytes(table[word : word + 2], "little") for word in words]
            if name := _TYPES.get(table[at + 0x12]):
                found.append((name, next((rate for rate in rates if 0 < rate < 0xFFFF), None)))
        # Texts follow, and two zeros end them.
        end = table.find(b"\0\0", at + length)
        if end < 0:
            break
        at = end + 2
    return found


def measured(machine: MachineSpec, seconds: float = MEASURED_S) -> MachineSpec:
    """`machine` with the rate at which all cores that this process may use read its memory together, and its spread.

    The middle one of all passes. Raises BreakevenError where too little memory is free.
    """
    threads = machine.logical_cores
    last_cache = max(machine.cache_bytes.values(), default=0)
    wanted = max(LEAST_BYTES, CACHES * last_cache)
    size = int(min(wanted, FREE_SHARE * machine.available_memory_bytes)) // threads // 4096 * 4096
    if size * threads <= 2 * last_cache or size == 0:
        raise BreakevenError(
            f"{machine.available_memory_bytes / 2**20:.0f} MiB of free memory are too few to measure its rate beside "
            f"{last_cache / 2**20:.0f} MiB of cache; end other programs and try again"
        )
    rates = _passes(size, threads, seconds)
    return msgspec.structs.replace(
        machine, memory_bytes_per_s=statistics.median(rates), memory_bytes_per_s_range=(min(rates), max(rates))
    )


def _passes(size: int, threads: int, seconds: float) -> list[float]:
    """Bytes a second of each pass, in which all threads read their arrays as often as the others."""
    started: list[int] = []
    rates: list[float] = []
    going = [True]
    n_done = [0]
    repeats = [1]
    ends_ns = time.monotonic_ns() + round(seconds * 1e9)

    def begin() -> None:
        now = time.monotonic_ns()
        if started:
            n_done[0] += 1
            if n_done[0] > WARM_PASSES:
                rates.append(repeats[0] * size * threads / (now - started[0]) * 1e9)
            elif n_done[0] == WARM_PASSES:
                repeats[0] = 1 + int(PASS_S * 1e9 / (now - started[0]))
        started[:] = [now]
        going[0] = now < ends_ns or not rates

    barrier = threading.Barrier(threads, action=begin)

    def read() -> None:
        # Written once: pages that were only promised share one page of zeros. By the thread that reads them: they lie
        # beside its core.
        try:
            mine = np.zeros(size, dtype=np.bool_)
            mine.fill(False)
            while True:
                barrier.wait()
                if not going[0]:
                    return
                # Compares whole registers and stores nothing; it lets other threads run meanwhile.
                for _ in range(repeats[0]):
                    mine.any()
        except (MemoryError, threading.BrokenBarrierError):
            barrier.abort()

    workers = [threading.Thread(target=read, name=f"memory-{index}", daemon=True) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not rates:
        raise BreakevenError("the memory's rate was not measured: the arrays found no room; end other programs")
    return rates
