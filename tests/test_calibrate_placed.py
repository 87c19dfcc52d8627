"""A calibration through a real llama-server with a second device, experts moved between it and host memory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from vulkan_fixtures import lent_device, llama_server

from breakeven.engines.devices import EngineDevice
from breakeven.errors import UserError
from breakeven.forecast.calibration.probes import ProbeLoad, dense, moe
from breakeven.forecast.model import step_model
from breakeven.forecast.predict import predict
from breakeven.forecast.profiles import load_profile, profile_named
from breakeven.hardware.placement import Placement, placement_of
from breakeven.hardware.reader import read_machine
from breakeven.measure.events import BackendReady, read_events
from breakeven.pages.calibration import calibration_lines, plan_lines
from breakeven.runs.calibrate import calibrate
from breakeven.runs.probed import CalibrateOptions, plan, probes_placed

__all__ = ["lent_device", "llama_server"]

PROBES = (dense("tiny-d256x4", 256, 4, 768, 4, 2), moe("tiny-m256x4", 256, 4, (8, 2, 256), 4, 2))
LOADS = (ProbeLoad(1, 24, 8), ProbeLoad(2, 24, 8), ProbeLoad(1, 64, 4))


def options(directory: Path, flags: tuple[str, ...]) -> CalibrateOptions:
    return CalibrateOptions(
        engine="llama-server",
        gpu_layers="all",
        budget_s=0.1,
        out=directory / "here.json",
        threads=2,
        probes=PROBES,
        loads=LOADS,
        engine_flags=flags,
    )


def test_a_device_and_host_memory_are_probed_and_predicted(
    lent_device: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert "with experts in host memory, too: tiny-m256x4@cpu-moe=2, tiny-m256x4@cpu-moe=4" in "\n".join(
        plan_lines(options(tmp_path, lent_device))
    )
    found = calibrate(options(tmp_path, lent_device))
    ready = {e.model: e.placed for e in read_events(found.log_path) if isinstance(e, BackendReady)}
    assert {name: placed.cpu_moe for name, placed in ready.items() if placed and placed.cpu_moe is not None} == {
        "tiny-m256x4": 0,
        "tiny-m256x4@cpu-moe=2": 2,
        "tiny-m256x4@cpu-moe=4": 4,
    }
    shares = {round(x.seen.where.experts_host, 1) for x in found.left_out if x.seen.kind == "moe"}
    assert len(shares) == 3
    profile = load_profile(found.path)
    assert (profile.engine, profile.origin.engine, profile.origin.kv) == ("llama.cpp", "llama-server", "f16")
    assert profile.device is not None
    assert (profile.device.place, profile.device.unified) == ("RPC0", False)
    assert profile.constants.tile == 1
    assert profile.constants.host_bytes_per_s is not None
    assert profile.constants.stream_bytes_per_s is not None
    assert profile.host is not None
    assert any("experts of 2 in host memory" in words for words in profile.origin.placements)
    assert {e.spilled for e in profile.errors} == {False, True}
    assert "reads weights in host memory at" in "\n".join(calibration_lines(found))
    model = step_model(PROBES[1], profile, "Q4_K_M", placement=placement_of("all", 4))
    assert not model.residency.whole
    assert model.error("decode").spilled
    # Found again by the engine that was probed and by the one whose steps it takes, not by another.
    kept = profile_named(str(found.path), "llama-server")
    assert kept == profile_named(str(found.path), "llama.cpp") == profile
    with pytest.raises(UserError, match="llama-server"):
        profile_named(str(found.path), "vllm")
    (point,) = predict(["olmoe-1b-7b"], [str(found.path)], placement=Placement(gpu_layers="all", cpu_moe=8)).points
    assert point.placed is not None
    assert point.placed.cpu_moe == 8
    assert "calibrated on" in next(iter(predict(["olmoe-1b-7b"], [str(found.path)]).profiles.values()))


def test_experts_move_only_where_nobody_said_where_they_lie() -> None:
    def names(asked: Placement, *, beside: bool = True) -> list[str]:
        return [s.name for s in probes_placed(PROBES, "Q4_K_M", asked, beside_a_device=beside)]

    plain = [spec.name for spec in PROBES]
    assert names(placement_of("all")) == [*plain, "tiny-m256x4@cpu-moe=2", "tiny-m256x4@cpu-moe=4"]
    assert names(placement_of("all"), beside=False) == plain
    assert names(placement_of("all", 1)) == names(placement_of(3)) == plain


@pytest.mark.parametrize(("free", "large"), [(9 * 10**8, None), (3 * 10**9, False), (24 * 10**9, True)])
def test_probes_are_as_large_as_the_device_has_room(
    free: int, large: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = EngineDevice(engine="llama.cpp", place="CUDA0", description="a card", memory_bytes=free, free_bytes=free)
    monkeypatch.setattr("breakeven.runs.probed.devices_of", lambda *_: [card])
    machine = msgspec.structs.replace(read_machine(), available_memory_bytes=64 * 10**9)
    if large is None:
        with pytest.raises(UserError, match="CUDA0 has too little free memory"):
            plan(CalibrateOptions(engine="llama.cpp"), machine)
        return
    found = plan(CalibrateOptions(engine="llama.cpp"), machine)
    assert any(spec.name == "probe-d4096x12" for spec in found.probes) == large
    assert len(found.subjects) == len(found.probes) + 2 * 3
