"""Models that lie in part in host memory: what it costs, what it needs, and what is said of it."""

from __future__ import annotations

import json

import pytest

from breakeven.errors import UserError
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.predict import predict, speed_ratio
from breakeven.forecast.profiles import profile_named
from breakeven.forecast.residency import OFFLOAD_TOKENS
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.catalogue import lookup
from tests.cli_fixtures import run_here

PC = "rtx-3090+ddr4-3200x2:64GB"


def model(name: str, machine: str, placement: Placement = AUTO, format_name: str = "Q4_K_M") -> StepModel:
    return step_model(lookup(name), profile_named(machine, "llama.cpp"), format_name, placement=placement)


def speed(name: str, machine: str, placement: Placement = AUTO, format_name: str = "Q4_K_M") -> float:
    return float(1.0 / model(name, machine, placement, format_name).step_s(1, 512))


def test_host_memory_is_part_of_the_profile() -> None:
    slow, fast = (profile_named(f"rtx-3090+{host}:64GB") for host in ("ddr4-3200x2", "ddr5-5600x2"))
    assert slow.host_memory_bytes == 64 * 2**30
    assert slow.constants.host_bytes_per_s is not None
    assert fast.constants.host_bytes_per_s == pytest.approx(slow.constants.host_bytes_per_s * 5600 / 3200)
    assert slow.constants.weight_bytes_per_s == profile_named("rtx-3090").constants.weight_bytes_per_s
    assert speed("gpt-oss-120b", "rtx-3090+ddr5-5600x2:64GB", format_name="MXFP4") > speed(
        "gpt-oss-120b", PC, format_name="MXFP4"
    )


def test_what_fits_is_untouched_by_what_stands_beside_it() -> None:
    assert speed("qwen3-8b", PC) == speed("qwen3-8b", "rtx-3090")
    assert model("qwen3-8b", PC).residency.whole


def test_layers_are_a_cliff_and_experts_are_a_slope() -> None:
    whole = speed("qwen3-30b-a3b", PC, Placement(gpu_layers="all"))
    layers = speed("qwen3-30b-a3b", PC, Placement(gpu_layers=25))
    experts = [speed("qwen3-30b-a3b", PC, Placement(gpu_layers="all", cpu_moe=n)) for n in (0, 12, 24, 48)]
    assert experts[0] == pytest.approx(whole)
    assert experts == sorted(experts, reverse=True)
    assert layers < whole
    # Half of the layers' experts in host memory leave attention and its caches on the card.
    assert layers < experts[2] * 1.05
    dense = [speed("qwen3-32b", PC, Placement(gpu_layers=n)) for n in (65, 55, 45, 0)]
    assert dense == sorted(dense, reverse=True)
    assert dense[1] < 0.6 * dense[0]


def test_a_large_step_copies_weights_over_the_link() -> None:
    found = model("qwen3-30b-a3b", PC, Placement(gpu_layers="all", cpu_moe=48))
    few, many = (found.parts(0, 0, n, n / 2) for n in (OFFLOAD_TOKENS - 1, OFFLOAD_TOKENS))
    assert few.host_s > 0
    assert many.host_s == 0
    assert many.link_s > few.link_s > 0
    quick = model("qwen3-30b-a3b", f"{PC}+pcie4x16", found.placement)
    slow = model("qwen3-30b-a3b", f"{PC}+pcie3x4", found.placement)
    assert slow.prefill_s(2048) > 2 * quick.prefill_s(2048)
    assert slow.step_s(1, 512) == pytest.approx(quick.step_s(1, 512), rel=0.02)


def test_caches_of_layers_on_the_cpu_are_read_there() -> None:
    some = model("qwen3-32b", PC, Placement(gpu_layers=33))
    all_ = model("qwen3-32b", PC, Placement(gpu_layers="all"))
    assert 0.4 < some.residency.kv_host < 0.6
    slower = [float(m.step_s(1, 16384) - m.step_s(1, 512)) for m in (some, all_)]
    assert slower[0] > 2 * slower[1]


def test_too_little_ram_is_paged_and_said_so() -> None:
    (point,) = predict(["gpt-oss-120b:MXFP4"], ["rtx-3090+ddr4-3200x2:32GB"]).points
    enough = predict(["gpt-oss-120b:MXFP4"], [PC]).points[0]
    assert any("of RAM beside the card; 34.4 GB are there" in note for note in point.notes)
    assert any("paged from disk" in note for note in point.notes)
    assert point.parts_s["disk"] > 0
    assert "disk" not in enough.parts_s
    assert not enough.fits
    assert enough.host_bytes > 20e9
    assert enough.placed is not None
    assert {at.place for at in enough.placed.memory} == {"CUDA0", "host"}
    unsaid = predict(["gpt-oss-120b:MXFP4"], ["rtx-3090"]).points[0]
    assert any("how much there is was not said" in note for note in unsaid.notes)


def test_unlike_devices_each_do_their_share() -> None:
    both, fast, slow = (
        speed("qwen3-8b", machine, Placement(gpu_layers="all"))
        for machine in ("rtx-3090+rtx-3060", "rtx-3090", "rtx-3060")
    )
    assert slow < both < fast
    larger = predict(["qwen3-32b"], ["rtx-3090+rtx-3060"]).points[0]
    assert (larger.devices, larger.fits) == (2, True)
    most = speed("qwen3-8b", "rtx-3090+rtx-3060", Placement(gpu_layers="all", tensor_split=(9, 1)))
    assert most > both
    with pytest.raises(UserError, match=r"evenly.*llama\.cpp"):
        predict(["qwen3-8b"], ["rtx-3090+rtx-3060"], engine="vllm")


@pytest.mark.parametrize(
    ("machine", "engine", "said"),
    [("apple-m2-pro", None, "one memory for all"), ("h100-sxm", "vllm", r"of --engine llama\.cpp")],
)
def test_a_placement_where_there_is_none_is_refused(machine: str, engine: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        predict(["qwen3-8b"], [machine], engine=engine, placement=Placement(gpu_layers=3))


def test_host_memory_does_not_cancel_in_a_ratio() -> None:
    spilled, whole = model("gpt-oss-120b", PC, format_name="MXFP4"), model("qwen3-14b", PC)
    found = speed_ratio(spilled, whole, 1, 512)
    assert found.low is not None
    assert found.high is not None
    assert found.high / found.low > speed_ratio(whole, whole, 1, 512).high / speed_ratio(whole, whole, 1, 512).low  # type: ignore[operator]


def test_the_command_line_places() -> None:
    done = run_here(
        "predict", "qwen3-30b-a3b:Q8_0", "--machine", PC, "--gpu-layers", "all", "--cpu-moe", "24", "--json"
    )
    assert done.returncode == 0, done.stderr
    point = json.loads(done.stdout)["points"][0]
    assert (point["placed"]["gpu_layers"], point["placed"]["cpu_moe"], point["placed"]["how"]) == (49, 24, "predicted")
    bad = run_here("predict", "qwen3-8b", "--machine", PC, "--cpu-moe", "many")
    assert bad.returncode == 2
    assert "--cpu-moe many" in bad.stderr
    odd = run_here("predict", "qwen3-8b", "--machine", PC, "--device", "CUDA7")
    assert odd.returncode == 2
    assert "CUDA0" in odd.stderr
