"""Energy from the machine's own counters: NVIDIA's NVML, AMD's and Intel's GPU sensors, RAPL, a board's power monitor.

Each counter says which rail it reads, since a package's joules and a board's joules are not the same thing.
Where there is no counter there is no number: `open_counter` returns None and every reader shows "not available".
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from breakeven.hardware.devices import INTEL, located_gpus, pci_devices, text_of
from breakeven.measure.devices import monitor_of, watts_of

ROOT = Path("/")

BOARD_RAILS = ("VDD_IN", "POM_5V_IN")
"""Labels under which a Jetson's INA3221 gives the whole module's input (Orin Nano and NX, Xavier NX, TX2; Nano).

Jetson AGX Orin has no such rail, only parts, and is therefore not read.
"""

RAIL_PERIOD_S = 0.1
"""A power monitor gives watts, which are summed up at this period; its own averaging time is about as long."""


class EnergyCounter(Protocol):
    """Joules used since it was opened."""

    rail: str

    def read_joules(self) -> float:
        """Joules since the counter was opened; never falls. Raises OSError when the counter has gone."""

    def close(self) -> None:
        """Let go of it."""


def counter_delta(before: int, after: int, wraps_at: int) -> int:
    """What a counter that runs from 0 to `wraps_at` - 1 has grown by, given that it wrapped at most once. Pure."""
    if not 0 <= before < wraps_at or not 0 <= after < wraps_at:
        raise ValueError(f"a counter below {wraps_at} cannot read {before} or {after}")
    return (after - before) % wraps_at


class RaplCounter:
    """RAPL packages through the kernel's powercap files, in microjoules that wrap at `max_energy_range_uj`.

    Most Intel CPUs count 2^32 units of 61 uJ: 262 kJ, half an hour at 150 W. Read it at least once a block.
    """

    def __init__(self, domains: Sequence[Path]) -> None:
        """`domains`: one directory a package. Raises OSError or ValueError when one cannot be read."""
        self._ranges = [int((domain / "max_energy_range_uj").read_text()) + 1 for domain in domains]
        self._files = [domain / "energy_uj" for domain in domains]
        self._last = [int(file.read_text()) for file in self._files]
        self._total_uj = 0
        self.rail = "CPU package (RAPL)" if len(domains) == 1 else f"{len(domains)} CPU packages (RAPL)"

    def read_joules(self) -> float:
        """Joules of all packages since it was opened."""
        now = [int(file.read_text()) for file in self._files]
        for before, after, wraps_at in zip(self._last, now, self._ranges, strict=True):
            self._total_uj += counter_delta(before, after, wraps_at)
        self._last = now
        return self._total_uj / 1e6

    def close(self) -> None:
        """Nothing is held open."""


class NvmlCounter:
    """NVIDIA GPUs' total energy, in millijoules since the driver was loaded (Volta and later)."""

    def __init__(self, read_mj: Callable[[], Sequence[int]], close: Callable[[], None]) -> None:
        """`read_mj` gives one total a GPU; `close` is called once at the end."""
        self._read_mj, self._close = read_mj, close
        self._start = list(read_mj())
        self.rail = "GPU board (NVML)" if len(self._start) == 1 else f"{len(self._start)} GPU boards (NVML)"

    def read_joules(self) -> float:
        """Joules of all GPUs since it was opened."""
        return sum(after - before for before, after in zip(self._start, self._read_mj(), strict=True)) / 1e3

    def close(self) -> None:
        """Give the driver back."""
        self._close()


class RailCounter:
    """A power monitor, such as a board's input, integrated over time by a thread of its own (trapezoids)."""

    def __init__(self, rail: str, read_watts: Callable[[], float], period_s: float = RAIL_PERIOD_S) -> None:
        """`read_watts` reads the monitor once; it raises OSError when the monitor has gone."""
        self.rail = f"{rail} (power monitor, every {period_s * 1e3:.0f} ms)"
        self._read_watts, self._period_s = read_watts, period_s
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._joules, self._last_ns, self._last_watts = 0.0, time.monotonic_ns(), read_watts()
        self._thread = threading.Thread(target=self._watch, name="power-monitor", daemon=True)
        self._thread.start()

    def _step(self) -> float:
        with self._lock:
            watts, now_ns = self._read_watts(), time.monotonic_ns()
            self._joules += (watts + self._last_watts) / 2 * (now_ns - self._last_ns) / 1e9
            self._last_ns, self._last_watts = now_ns, watts
            return self._joules

    def _watch(self) -> None:
        while not self._stop.wait(self._period_s):
            # A reading that fails now and then is bridged by the next; a caller's own reading still raises.
            with contextlib.suppress(OSError):
                self._step()

    def read_joules(self) -> float:
        """Joules since it was opened."""
        return self._step()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()


class Together:
    """Several counters read as one, such as a CPU's package and a GPU's board."""

    def __init__(self, counters: Sequence[EnergyCounter]) -> None:
        self._counters = counters
        self.rail = " + ".join(counter.rail for counter in counters)

    def read_joules(self) -> float:
        """Joules of all."""
        return sum(counter.read_joules() for counter in self._counters)

    def close(self) -> None:
        """Close all."""
        for counter in self._counters:
            counter.close()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _package_domains(root: Path) -> list[Path]:
    """RAPL's package domains. Cores, uncore and memory are parts of them or beside them, hence left out."""
    found = []
    for name in sorted((root / "sys/class/powercap").glob("intel-rapl:*/name")):
        with contextlib.suppress(OSError):
            if name.read_text().startswith("package"):
                found.append(name.parent)
    return found


def open_rapl(root: Path = ROOT) -> RaplCounter | None:
    """RAPL, when there is one and this user may read it (most kernels: root only)."""
    domains = _package_domains(root)
    try:
        return RaplCounter(domains) if domains else None
    except (OSError, ValueError):
        return None


def open_rail(root: Path = ROOT) -> RailCounter | None:
    """A board's input rail among the INA sensors, when there is one."""
    for device in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for label_file in sorted(device.glob("in*_label")):
            try:
                label = label_file.read_text().strip()
                channel = label_file.name.removeprefix("in").removesuffix("_label")
                volts_file, amperes_file = device / f"in{channel}_input", device / f"curr{channel}_input"
                if label not in BOARD_RAILS:
                    continue

                def watts(volts: Path = volts_file, amperes: Path = amperes_file) -> float:
                    # hwmon's units are millivolts and milliamperes.
                    return int(volts.read_text()) * int(amperes.read_text()) / 1e6

                return RailCounter(f"board input {label}", watts)
            except (OSError, ValueError):
                continue
    return None


def open_nvml() -> NvmlCounter | None:
    """NVIDIA's counters, when nvidia-ml-py is installed and every GPU has one."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

        def read_mj() -> list[int]:
            try:
                return [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles]
            except pynvml.NVMLError as error:
                raise OSError(f"NVML: {error}") from error

        if handles:
            return NvmlCounter(read_mj, pynvml.nvmlShutdown)
    except (pynvml.NVMLError, OSError):
        pass
    pynvml.nvmlShutdown()
    return None


class IntelCounter:
    """Intel cards' energy as their drivers count it: microjoules that do not wrap."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files`: one a card. Raises OSError or ValueError when one cannot be read."""
        self._files = list(files)
        self._start = [int(file.read_text()) for file in self._files]
        self.rail = "GPU card (Intel)" if len(files) == 1 else f"{len(files)} GPU cards (Intel)"

    def read_joules(self) -> float:
        """Joules of all cards since it was opened."""
        return sum(int(file.read_text()) - start for file, start in zip(self._files, self._start, strict=True)) / 1e6

    def close(self) -> None:
        """Nothing is held open."""


def open_intel(root: Path = ROOT) -> IntelCounter | None:
    """Intel's cards, when there are some and each has a counter: the card's, else that of its package."""
    monitors = [monitor_of(device) for vendor, device in pci_devices(root) if vendor == INTEL]
    files = []
    for monitor in filter(None, monitors):
        by_label = {text_of(path): path for path in sorted(monitor.glob("energy*_label"))}
        label = by_label.get("card") or by_label.get("pkg")
        file = monitor / (label.name.replace("_label", "_input") if label else "energy1_input")
        files += [file] if file.exists() else []
    try:
        return IntelCounter(files) if files and len(files) == len([each for each in monitors if each]) else None
    except (OSError, ValueError):
        return None


def open_amd(root: Path = ROOT, integrated: bool = False) -> RailCounter | None:
    """AMD's cards by their power sensors; or, `integrated`, the chip whose CPU and GPU share one."""
    found = [where for gpu, where in located_gpus(root) if isinstance(where, Path) and gpu.unified == integrated]
    found = [device for device in found if (device / "mem_info_vram_total").exists()]
    monitors = [monitor for monitor in map(monitor_of, found) if monitor and watts_of(monitor) is not None]
    if not monitors or len(monitors) < len(found):
        return None

    def watts() -> float:
        now = [watts_of(monitor) for monitor in monitors]
        if None in now:
            raise OSError("amdgpu: the power sensor has gone")
        return sum(each or 0.0 for each in now)

    what = "CPU and GPU package" if integrated else "GPU board"
    return RailCounter(f"{what} (amdgpu)" if len(monitors) == 1 else f"{len(monitors)} {what}s (amdgpu)", watts)


def open_counter(root: Path = ROOT) -> EnergyCounter | None:
    """Every counter this machine has, as one; None when it has none that this user may read.

    A board's input rail holds everything else, so where there is one it stands alone.
    """
    if rail := open_rail(root):
        return rail
    rapl = open_rapl(root)
    # One sensor counts a whole chip of AMD's, CPU included: beside RAPL it would count it twice.
    package: EnergyCounter | None = rapl or open_amd(root, integrated=True)
    opened: list[EnergyCounter | None] = [package, open_nvml(), open_amd(root), open_intel(root)]
    counters = [counter for counter in opened if counter is not None]
    if not counters:
        return None
    return counters[0] if len(counters) == 1 else Together(counters)
