"""NVIDIA's library as it answers on machines with two GPUs; only its functions are replaced, not our use of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from breakeven.hardware.devices import read_gpus
from breakeven.hardware.machine import Gpu
from breakeven.measure.energy import open_nvml

pynvml = pytest.importorskip("pynvml", reason="the extra gpu is not installed")


class Driver:
    """Stands in for NVIDIA's library, which needs a GPU: two devices, the second without an energy counter if `old`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, old: bool = False) -> None:
        self.old, self.total_mj, self.open = old, 1_000, 0
        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, name, getattr(self, name))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", self.energy)
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.1")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: f"GPU {handle}")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self.memory)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def energy(self, handle: int) -> int:
        if self.old and handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.total_mj

    def memory(self, handle: int) -> SimpleNamespace:
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=80 << 30)


def test_nvml_is_opened_read_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    counter = open_nvml()
    assert counter is not None
    driver.total_mj += 2_500
    assert counter.read_joules() == pytest.approx(5.0)
    driver.old = True
    with pytest.raises(OSError, match="NVML"):
        counter.read_joules()
    counter.close()
    assert driver.open == 0


def test_a_gpu_without_a_counter_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, old=True)
    assert open_nvml() is None
    assert driver.open == 0


def test_gpus_that_tell_their_memory_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    assert read_gpus() == [Gpu("GPU 0", 80 << 30, "580.1")]
    assert driver.open == 0
