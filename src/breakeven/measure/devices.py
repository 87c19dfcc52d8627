"""What accelerators tell while they work: memory in use, clock, heat, throttling, power.

NVIDIA by its library, AMD and Intel by their drivers' files, a Jetson by its board's; Apple tells root only. Each
figure is None where nothing tells it. What it refuses to know: who uses a device. Its counters count everybody.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType

import msgspec

from breakeven.hardware.devices import located_gpus, machine_memory_bytes, number_of, text_of
from breakeven.hardware.machine import Gpu
from breakeven.hardware.placement import Placed

ROOT = Path("/")

HEAT_REASONS = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's reasons to slow down that are no choice: hardware slowdown, heat (two kinds), power brake. Its power cap is
left out: a card at its cap runs as it always will."""

JETSON_GPUS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "*.gm20b")
"""Names of a Jetson's GPU among the devices whose clock scales: Thor and Orin, Xavier, TX2, Nano."""

WATCH_S = 0.1


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment. None: not told here."""

    name: str
    memory_used_bytes: int | None = None
    """By whomever; of a device without memory of its own, what the machine has in use."""
    memory_bytes: int | None = None
    clock_mhz: float | None = None
    busy_share: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    """From which it slows down."""
    throttled: bool | None = None
    """Whether heat or a fault holds its clock down now."""


class Devices:
    """Devices that are read again and again; holds NVIDIA's library open where there is one."""

    def __init__(self, readers: Sequence[Callable[[], DeviceReading]], close: Callable[[], None] | None = None) -> None:
        self._readers, self._close = list(readers), close

    def read(self) -> list[DeviceReading]:
        """Each device now, in the order of `read_gpus`."""
        return [read() for read in self._readers]

    def close(self) -> None:
        """Give the driver back."""
        if self._close is not None:
            self._close()
        self._close = None


def open_devices(root: Path = ROOT) -> Devices:
    """The devices of this machine, or of a captured one."""
    readers: list[Callable[[], DeviceReading]] = []
    close = None
    for gpu, where in located_gpus(root):
        if isinstance(where, int):
            close = close or _open_library()
            readers.append(partial(_nvidia, gpu, where, root))
        elif where is not None and (where / "mem_info_vram_total").exists():
            readers.append(partial(_amd, gpu, where))
        elif where is not None:
            readers.append(partial(_intel, gpu, where))
        else:
            readers.append(partial(_board, gpu, root))
    return Devices(readers, close)


@lru_cache(maxsize=1)
def devices_here() -> Devices:
    """This machine's devices, opened once."""
    return open_devices()


def _open_library() -> Callable[[], None] | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return partial(_shut, pynvml.nvmlShutdown)


def _shut(shutdown: Callable[[], None]) -> None:
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        shutdown()


def _used_of_machine(root: Path) -> int | None:
    total, free = machine_memory_bytes(root), machine_memory_bytes(root, "MemAvailable")
    return None if total is None or free is None else total - free


def _nvidia(gpu: Gpu, index: int, root: Path) -> DeviceReading:
    import pynvml

    def ask(name: str, *given: object) -> float | None:
        # Older bindings lack a function, older cards an answer.
        try:
            value = getattr(pynvml, name)(pynvml.nvmlDeviceGetHandleByIndex(index), *given)
        except (pynvml.NVMLError, AttributeError, TypeError):
            return None
        return None if value is None else float(getattr(value, "used", getattr(value, "gpu", value)))

    used, busy, power = (ask(f"nvmlDeviceGet{name}") for name in ("MemoryInfo", "UtilizationRates", "PowerUsage"))
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    shared = _used_of_machine(root) if gpu.unified else None
    return DeviceReading(
        name=gpu.name,
        memory_used_bytes=shared if used is None else int(used),
        memory_bytes=gpu.memory_bytes,
        clock_mhz=ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        busy_share=None if busy is None else busy / 100,
        power_w=None if power is None else power / 1e3,
        temperature_c=ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        temperature_limit_c=ask("nvmlDeviceGetTemperatureThreshold", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        throttled=None if reasons is None else bool(int(reasons) & HEAT_REASONS),
    )


def monitor_of(device: Path) -> Path | None:
    """The directory of a device's own sensors."""
    return next(iter(sorted((device / "hwmon").glob("hwmon*"))), None)


def watts_of(monitor: Path) -> float | None:
    """What a sensor says of power now; hwmon counts in microwatts."""
    for name in ("power1_average", "power1_input"):
        if (value := number_of(monitor / name)) is not None:
            return value / 1e6
    return None


def _heat(monitor: Path | None, labels: Sequence[str]) -> tuple[float | None, float | None]:
    """Degrees Celsius and their limit by the first label that is there."""
    found = {text_of(path): path.name.removesuffix("_label") for path in monitor.glob("temp*_label")} if monitor else {}
    for label in labels:
        if monitor and (channel := found.get(label)):
            now, limit = number_of(monitor / f"{channel}_input"), number_of(monitor / f"{channel}_crit")
            if now is not None:
                return now / 1e3, limit / 1e3 if limit else None
    return None, None


def _amd(gpu: Gpu, device: Path) -> DeviceReading:
    monitor = monitor_of(device)
    pools = ("mem_info_vram_used", "mem_info_gtt_used") if gpu.unified else ("mem_info_vram_used",)
    used = [number_of(device / pool) for pool in pools]
    # The line of the clock in use is starred: "1: 2431Mhz *".
    clock = re.search(r"(\d+)\s*mhz\s*\*", text_of(device / "pp_dpm_sclk") or "", re.IGNORECASE)
    busy = number_of(device / "gpu_busy_percent")
    now, limit = _heat(monitor, ("junction", "edge"))
    return DeviceReading(
        name=gpu.name,
        memory_used_bytes=None if None in used else sum(each or 0 for each in used),
        memory_bytes=gpu.memory_bytes,
        clock_mhz=float(clock[1]) if clock else None,
        busy_share=None if busy is None else busy / 100,
        power_w=watts_of(monitor) if monitor else None,
        temperature_c=now,
        temperature_limit_c=limit,
    )


def _intel(gpu: Gpu, device: Path) -> DeviceReading:
    """xe keeps its clock below the device, i915 below the card."""
    clocks = [*sorted(device.glob("tile*/gt*/freq0/act_freq")), *sorted(device.parent.glob("gt/gt*/rps_act_freq_mhz"))]
    heat = [
        *sorted(device.glob("tile*/gt*/freq0/throttle/reason_thermal")),
        *sorted(device.parent.glob("gt/gt*/throttle_reason_thermal")),
    ]
    held = [value for value in map(number_of, heat) if value is not None]
    rates = [value for value in map(number_of, clocks) if value is not None]
    now, limit = _heat(monitor_of(device), ("pkg", "package"))
    return DeviceReading(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes if gpu.memory_told else None,
        clock_mhz=float(max(rates)) if rates else None,
        temperature_c=now,
        temperature_limit_c=limit,
        throttled=any(held) if held else None,
    )


def _board(gpu: Gpu, root: Path) -> DeviceReading:
    """A Jetson's, or a device of which only its name is known."""
    if not gpu.unified:
        return DeviceReading(name=gpu.name)
    rates = [number_of(path / "cur_freq") for name in JETSON_GPUS for path in (root / "sys/class/devfreq").glob(name)]
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    heat = [number_of(zone / "temp") for zone in zones if (text_of(zone / "type") or "").lower().startswith("gpu")]
    clocks, degrees = [rate for rate in rates if rate], [value for value in heat if value is not None]
    return DeviceReading(
        name=gpu.name,
        memory_used_bytes=_used_of_machine(root),
        memory_bytes=gpu.memory_bytes,
        clock_mhz=clocks[0] / 1e6 if clocks else None,
        temperature_c=degrees[0] / 1e3 if degrees else None,
    )


class DevicePeak(msgspec.Struct, frozen=True, kw_only=True):
    """What a device had in use when the watch began, and the most since. None: not told here."""

    name: str
    before_bytes: int | None
    peak_bytes: int | None
    total_bytes: int | None


class DeviceMemory:
    """Watches what devices have in use, by a thread of its own, until it is closed."""

    def __init__(self, devices: Devices, period_s: float = WATCH_S) -> None:
        self._devices, self._period_s = devices, period_s
        self._before = devices.read()
        self._most = [reading.memory_used_bytes for reading in self._before]
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="device-memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._period_s):
            self._look()

    def _look(self) -> None:
        with self._lock:
            used = [reading.memory_used_bytes for reading in self._devices.read()]
            self._most = [
                max((size for size in pair if size is not None), default=None)
                for pair in zip(self._most, used, strict=True)
            ]

    def peaks(self) -> list[DevicePeak]:
        """Each device so far, in the order of `read_gpus`."""
        self._look()
        return [
            DevicePeak(
                name=before.name,
                before_bytes=before.memory_used_bytes,
                peak_bytes=most,
                total_bytes=before.memory_bytes,
            )
            for before, most in zip(self._before, self._most, strict=True)
        ]

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> DeviceMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def device_memory(root: Path = ROOT) -> DeviceMemory:
    """A watch over this machine's devices; of one without devices its peaks are an empty list."""
    return DeviceMemory(devices_here() if root == ROOT else open_devices(root))


def with_peaks(placed: Placed, peaks: Sequence[DevicePeak], gpus: Sequence[Gpu]) -> Placed:
    """`placed` with the peaks of its devices. `gpus`: the machine's, whose `place` says which is which. Pure.

    Without places one device that holds something is the machine's one device; nothing is guessed beyond that.
    """
    by_place = {gpu.place: peak for gpu, peak in zip(gpus, peaks, strict=False) if gpu.place is not None}
    on_devices = [memory.place for memory in placed.memory if memory.place != "host"]
    if not by_place and len(on_devices) == len(peaks) == 1:
        by_place = {on_devices[0]: peaks[0]}
    memory = [
        msgspec.structs.replace(
            each,
            peak_bytes=found.peak_bytes if each.peak_bytes is None else each.peak_bytes,
            total_bytes=found.total_bytes if each.total_bytes is None else each.total_bytes,
        )
        if (found := by_place.get(each.place))
        else each
        for each in placed.memory
    ]
    return msgspec.structs.replace(placed, memory=memory)
