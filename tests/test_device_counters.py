"""What accelerators tell while they work, read from captured machines; and what the noise guard makes of it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from breakeven.hardware.devices import read_gpus
from breakeven.hardware.machine import Gpu
from breakeven.hardware.placement import MemoryAt, Placed
from breakeven.measure.devices import DeviceMemory, DevicePeak, DeviceReading, Devices, open_devices, with_peaks
from breakeven.measure.energy import IntelCounter, RailCounter, Together, open_amd, open_counter, open_intel
from breakeven.measure.noise import Reading, assess, sample, summarise
from tests.captured import ARC, JETSON, RTX, RX_7900, SPARK, STRIX, laid_out

GIB = 2**30


def test_an_amd_card_tells_memory_clock_load_power_and_heat(tmp_path: Path) -> None:
    (reading,) = open_devices(laid_out(tmp_path, RX_7900)).read()
    assert reading == DeviceReading(
        name="AMD Radeon RX 7900 XTX",
        memory_used_bytes=GIB,
        memory_bytes=25753026560,
        clock_mhz=2431.0,
        busy_share=0.97,
        power_w=287.0,
        temperature_c=88.0,
        temperature_limit_c=110.0,
    )


def test_shared_memory_counts_both_of_its_pools(tmp_path: Path) -> None:
    (reading,) = open_devices(laid_out(tmp_path, STRIX)).read()
    assert reading.memory_used_bytes == 256 * 2**20 + 60 * GIB
    assert (reading.power_w, reading.clock_mhz, reading.temperature_c) == (82.0, None, None)
    (tmp_path / "sys/class/drm/card0/device/mem_info_gtt_used").unlink()
    assert open_devices(tmp_path).read()[0].memory_used_bytes is None


def test_an_arc_card_tells_its_clock_and_whether_heat_holds_it(tmp_path: Path) -> None:
    heat = {"sys/class/drm/card0/device/tile0/gt0/freq0/throttle/reason_thermal": "0"}
    devices = open_devices(laid_out(tmp_path, ARC | heat))
    (cool,) = devices.read()
    assert (cool.clock_mhz, cool.throttled, cool.memory_used_bytes, cool.power_w) == (2850.0, False, None, None)
    laid_out(tmp_path, dict.fromkeys(heat, "1"))
    assert devices.read()[0].throttled is True


def test_i915_keeps_its_clock_below_the_card(tmp_path: Path) -> None:
    device = "sys/class/drm/card0/device"
    old = {
        f"{device}/vendor": "0x8086",
        f"{device}/device": "0x56a0",
        "sys/class/drm/card0/gt/gt0/rps_act_freq_mhz": "2400",
    }
    (reading,) = open_devices(laid_out(tmp_path, old)).read()
    assert (reading.clock_mhz, reading.throttled) == (2400.0, None)


@pytest.mark.parametrize(
    ("files", "used"), [(JETSON, (7802884 - 2802884) * 1024), (SPARK, (125513600 - 99000000) * 1024)]
)
def test_memory_in_use_of_a_board_is_the_machines(tmp_path: Path, files: dict[str, str], used: int) -> None:
    (reading,) = open_devices(laid_out(tmp_path, files)).read()
    assert reading.memory_used_bytes == used


def test_a_jetson_tells_its_clock(tmp_path: Path) -> None:
    heat = {"sys/class/thermal/thermal_zone1/type": "gpu-thermal", "sys/class/thermal/thermal_zone1/temp": "51500"}
    (reading,) = open_devices(laid_out(tmp_path, JETSON | heat)).read()
    assert (reading.clock_mhz, reading.temperature_c, reading.throttled) == (918.0, 51.5, None)


def test_a_card_of_which_nothing_is_told_reads_as_nothing(tmp_path: Path) -> None:
    (reading,) = open_devices(laid_out(tmp_path, RTX)).read()
    assert reading == DeviceReading(name="NVIDIA GeForce RTX 3090")
    assert open_devices(tmp_path / "none").read() == []


def test_readings_come_in_the_order_of_the_devices(tmp_path: Path) -> None:
    root = laid_out(tmp_path, RX_7900 | ARC)
    assert [reading.name for reading in open_devices(root).read()] == [gpu.name for gpu in read_gpus(root)]


def test_nvidias_library_is_asked_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml", reason="the extra gpu is not installed")
    opened = [0]
    answers = {
        "nvmlInit": lambda: opened.__setitem__(0, opened[0] + 1),
        "nvmlShutdown": lambda: opened.__setitem__(0, opened[0] - 1),
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "NVIDIA GeForce RTX 3090",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=24 * GIB, used=3 * GIB),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50, memory=9),
        "nvmlDeviceGetPowerUsage": lambda handle: 220_000,
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1695,
        "nvmlDeviceGetTemperature": lambda handle, kind: 71,
        "nvmlDeviceGetTemperatureThreshold": lambda handle, kind: 95,
        # At its power cap, which is how it always runs.
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer, raising=False)
    devices = open_devices()
    (reading,) = devices.read()
    assert reading == DeviceReading(
        name="NVIDIA GeForce RTX 3090",
        memory_used_bytes=3 * GIB,
        memory_bytes=24 * GIB,
        clock_mhz=1695.0,
        busy_share=0.5,
        power_w=220.0,
        temperature_c=71.0,
        temperature_limit_c=95.0,
        throttled=False,
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda handle: 0x4 | 0x20)

    def unsupported(handle: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", unsupported)
    (hot,) = devices.read()
    assert (hot.throttled, hot.power_w) == (True, None)
    devices.close()
    devices.close()
    assert opened == [0]


def test_the_most_in_use_is_kept(tmp_path: Path) -> None:
    used = laid_out(tmp_path, RX_7900) / "sys/class/drm/card1/device/mem_info_vram_used"
    with DeviceMemory(open_devices(tmp_path), period_s=0.01) as watch:
        used.write_text(str(9 * GIB))
        ends = time.monotonic() + 60
        while watch.peaks()[0].peak_bytes != 9 * GIB and time.monotonic() < ends:
            time.sleep(0.01)
        used.write_text(str(2 * GIB))
        (peak,) = watch.peaks()
    assert peak == DevicePeak(
        name="AMD Radeon RX 7900 XTX", before_bytes=GIB, peak_bytes=9 * GIB, total_bytes=25753026560
    )


def test_a_device_that_does_not_tell_its_memory_has_no_peak() -> None:
    with DeviceMemory(Devices([lambda: DeviceReading(name="x")])) as watch:
        assert watch.peaks() == [DevicePeak(name="x", before_bytes=None, peak_bytes=None, total_bytes=None)]


def peak(size: int) -> DevicePeak:
    return DevicePeak(name="x", before_bytes=0, peak_bytes=size, total_bytes=99)


def test_peaks_are_put_where_the_places_say() -> None:
    placed = Placed(how="fitted", memory=[MemoryAt(place=place) for place in ("CUDA1", "host", "CUDA0")])
    gpus = [Gpu("a", 99, "d", place="CUDA0"), Gpu("a", 99, "d", place="CUDA1")]
    found = with_peaks(placed, [peak(1), peak(2)], gpus)
    assert [(each.place, each.peak_bytes) for each in found.memory] == [("CUDA1", 2), ("host", None), ("CUDA0", 1)]
    unplaced = [msgspec.structs.replace(gpu, place=None) for gpu in gpus]
    assert with_peaks(placed, [peak(1), peak(2)], unplaced) == placed
    one = Placed(how="fitted", memory=[MemoryAt(place="Vulkan0"), MemoryAt(place="host")])
    assert [each.peak_bytes for each in with_peaks(one, [peak(7)], unplaced[:1]).memory] == [7, None]


def test_an_amd_cards_power_is_summed_up(tmp_path: Path) -> None:
    counter = open_counter(laid_out(tmp_path, RX_7900))
    assert isinstance(counter, RailCounter)
    try:
        assert counter.rail == "GPU board (amdgpu) (power monitor, every 100 ms)"
        started_ns, first = time.monotonic_ns(), counter.read_joules()
        time.sleep(0.05)
        grown, ended_ns = counter.read_joules() - first, time.monotonic_ns()
        assert 287 * 0.05 <= grown <= 287 * (ended_ns - started_ns) / 1e9 + 1e-6
    finally:
        counter.close()


def test_a_chip_with_cpu_and_gpu_counts_once(tmp_path: Path) -> None:
    assert open_amd(laid_out(tmp_path, STRIX)) is None
    counter = open_counter(tmp_path)
    assert counter is not None
    assert counter.rail.startswith("CPU and GPU package (amdgpu)")
    counter.close()
    package = "sys/class/powercap/intel-rapl:0"
    rapl = {
        f"{package}/name": "package-0",
        f"{package}/max_energy_range_uj": "65532610987",
        f"{package}/energy_uj": "5",
    }
    beside = open_counter(laid_out(tmp_path, rapl))
    assert beside is not None
    assert beside.rail == "CPU package (RAPL)"


def test_an_intel_card_counts_its_own_energy(tmp_path: Path) -> None:
    monitor = laid_out(tmp_path, ARC) / "sys/class/drm/card0/device/hwmon/hwmon2"
    counter = open_intel(tmp_path)
    assert isinstance(counter, IntelCounter)
    assert counter.rail == "GPU card (Intel)"
    (monitor / "energy1_input").write_text("7500000")
    assert counter.read_joules() == pytest.approx(2.5)
    (monitor / "energy1_input").unlink()
    with pytest.raises(OSError, match="energy1_input"):
        counter.read_joules()
    assert open_intel(laid_out(tmp_path / "other", RX_7900)) is None


def test_two_makers_cards_are_summed_and_named(tmp_path: Path) -> None:
    both = open_counter(laid_out(tmp_path, RX_7900 | ARC))
    assert isinstance(both, Together)
    assert both.rail == "GPU board (amdgpu) (power monitor, every 100 ms) + GPU card (Intel)"
    both.close()


def at(**told: object) -> Reading:
    device = DeviceReading(name="NVIDIA GeForce RTX 3090", **told)  # type: ignore[arg-type]
    return Reading(at_ns=0, busy_s=0.0, steal_s=0.0, total_s=10.0, own_s=0.0, devices=[device])


COOL = at(clock_mhz=300.0, temperature_c=60.0, temperature_limit_c=95.0, throttled=False)


def test_heat_on_a_device_is_noise() -> None:
    assert assess(COOL, COOL, [COOL]).reasons == []
    held = at(clock_mhz=1200.0, temperature_c=80.0, temperature_limit_c=95.0, throttled=True)
    assert assess(COOL, COOL, [held, held]).reasons == [
        "NVIDIA GeForce RTX 3090 was slowed down by heat or its power supply"
    ]
    assert assess(held, COOL, [COOL]).reasons == []
    hot = at(temperature_c=96.0, temperature_limit_c=95.0)
    assert assess(COOL, COOL, [hot]).reasons == ["NVIDIA GeForce RTX 3090 reached its limit of 95 C"]


def test_a_devices_clocks_are_recorded_and_not_judged() -> None:
    slow, fast = at(clock_mhz=900.0, temperature_c=70.0), at(clock_mhz=1900.0, temperature_c=75.0)
    noise = assess(COOL, COOL, [slow, fast])
    assert noise.reasons == []
    assert (noise.device_clock_mhz_low, noise.device_clock_mhz_high, noise.device_temperature_c_high) == (900, 1900, 75)
    record = summarise([noise, assess(COOL, COOL, [fast])])
    assert (record.device_clock_mhz_low, record.device_clock_mhz_high) == (900, 1900)
    assert record.device_temperature_c_high == 75


def test_what_no_device_tells_is_none() -> None:
    blank = at()
    noise = assess(blank, blank, [blank])
    assert (noise.device_clock_mhz_low, noise.device_temperature_c_high, noise.reasons) == (None, None, [])
    assert len(sample().devices) == len(read_gpus())
