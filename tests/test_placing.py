"""Where weights and caches go: every one once, as told, and as the fitting chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MOE, small

from bench.placement import CASES, LLVMPIPE_LARGEST_BYTES, predicted
from breakeven.errors import UserError
from breakeven.forecast.memory import check_room
from breakeven.forecast.placing import DeviceRoom, lacking, place
from breakeven.hardware.placement import HOST, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import file_bytes
from breakeven.model.catalogue import lookup
from breakeven.model.reserved import reserved_kv_bytes
from breakeven.model.tensors import TensorGroup

GB = 1e9
CARD = (DeviceRoom("Vulkan0", 2 * 2**30),)
PAIR = (DeviceRoom("CUDA0", 3 * 2**30), DeviceRoom("CUDA1", 1 * 2**30))
BIG = small(
    "qwen3moe", num_hidden_layers=24, hidden_size=2048, moe_intermediate_size=1024, num_experts=32, vocab_size=32768
)
DENSE = small("llama", num_hidden_layers=24, hidden_size=4096, intermediate_size=14336, vocab_size=32768)


def test_all_layers_that_are_asked_for_lie_on_the_device() -> None:
    found = place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers="all"))
    assert (found.gpu_layers, found.layers, found.cpu_moe, found.fitted) == (25, 25, 0, False)
    assert set(found.layer_places) == {"Vulkan0"}
    # The embedding is read by row and stays with the host; the head is another matrix.
    assert {p.group for p in found.parts if p.place == HOST} == {TensorGroup.EMBEDDING}


def test_layers_go_to_the_device_from_the_back_and_the_head_counts_as_one() -> None:
    found = place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers=5))
    assert found.layer_places == (HOST,) * 20 + ("Vulkan0",) * 4
    assert found.head_place == "Vulkan0"
    one = place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers=1))
    assert (one.layer_places, one.head_place) == ((HOST,) * 24, "Vulkan0")
    none = place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers=0))
    assert none.head_place == HOST
    assert none.memory["Vulkan0"].weights == 0


def test_caches_lie_with_their_layer() -> None:
    found = place(DENSE, "Q8_0", CARD, context=2048, slots=2, placement=Placement(gpu_layers=13))
    whole = 2 * reserved_kv_bytes(DENSE, 2048)
    assert found.memory["Vulkan0"].kv == pytest.approx(whole / 2)
    assert found.memory[HOST].kv == pytest.approx(whole / 2)


def test_a_tied_head_is_copied_to_the_device_that_it_lies_on() -> None:
    tied = small("qwen2")
    found = place(tied, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers="all"))
    (copy,) = [p for p in found.parts if p.copy]
    (original,) = [p for p in found.parts if p.group is TensorGroup.EMBEDDING and not p.copy]
    assert (copy.place, original.place, copy.n_bytes) == ("Vulkan0", HOST, original.n_bytes)
    assert not any(p.copy for p in place(tied, "Q8_0", CARD, context=2048, placement=Placement(gpu_layers=0)).parts)


def test_experts_of_the_first_layers_stay_in_host_memory() -> None:
    found = place(BIG, "Q4_0", CARD, context=2048, placement=Placement(gpu_layers="all", cpu_moe=7))
    assert found.cpu_moe == 7
    away = {p.layer for p in found.parts if p.place == HOST and p.layer is not None}
    assert away == set(range(7))
    assert {p.group for p in found.parts if p.place == HOST and p.layer is not None} == {TensorGroup.ROUTED_EXPERTS}
    assert set(found.layer_places) == {"Vulkan0"}


def test_patterns_send_tensors_to_places_and_the_first_one_that_matches_holds() -> None:
    asked = Placement(gpu_layers="all", overrides=(r"blk\.3\.ffn_up_exps=Vulkan0", "exps=CPU"))
    found = place(BIG, "Q4_0", CARD, context=2048, placement=asked)
    up = found.weight_bytes("Vulkan0", TensorGroup.ROUTED_EXPERTS)
    assert up == found.weight_bytes("Vulkan0", TensorGroup.ROUTED_EXPERTS, layer=3) > 0
    assert found.cpu_moe == 24


def test_shares_part_the_layers_of_unlike_devices() -> None:
    by_memory = place(DENSE, "Q4_0", PAIR, context=2048, placement=Placement(gpu_layers="all"))
    assert by_memory.layers_by_device == {"CUDA0": 19, "CUDA1": 6}
    told = place(DENSE, "Q4_0", PAIR, context=2048, placement=Placement(gpu_layers="all", tensor_split=(1, 4)))
    assert told.layers_by_device == {"CUDA0": 5, "CUDA1": 20}
    one = place(DENSE, "Q4_0", PAIR, context=2048, placement=Placement(gpu_layers=10, devices=("CUDA1",)))
    assert one.layers_by_device == {"CUDA1": 10}


@pytest.mark.parametrize(
    ("gpu_layers", "shares", "rpc", "vulkan", "host"),
    [
        (99, (1.0, 1.0), (37.08, 10.0), (26.37, 6.0), (2.25, 0.0)),
        (99, (3.0, 1.0), (52.12, 14.0), (11.33, 2.0), (2.25, 0.0)),
        (6, (1.0, 3.0), (15.04, 4.0), (26.37, 6.0), (24.29, 6.0)),
    ],
)
def test_two_unlike_devices_hold_what_llama_cpp_reported(
    gpu_layers: int,
    shares: tuple[float, float],
    rpc: tuple[float, ...],
    vulkan: tuple[float, ...],
    host: tuple[float, ...],
) -> None:
    """Build 10068, an RPC server before a Vulkan device: weights and caches in MiB, from its log."""
    spec = small(
        "qwen3moe",
        num_hidden_layers=8,
        hidden_size=512,
        vocab_size=8192,
        moe_intermediate_size=512,
        num_experts=16,
        max_position_embeddings=4096,
    )
    devices = [DeviceRoom("RPC0", 24 * GB), DeviceRoom("Vulkan0", 2 * 2**30)]
    asked = Placement(gpu_layers=gpu_layers, tensor_split=shares)
    found = place(spec, "Q4_K_M", devices, context=4096, placement=asked).memory
    for at, said in (("RPC0", rpc), ("Vulkan0", vulkan), (HOST, host)):
        assert (found[at].weights / 2**20, found[at].kv / 2**20) == pytest.approx(said, abs=0.01)


def test_a_device_or_place_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="--device CUDA7: no such device; there: Vulkan0"):
        place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(devices=("CUDA7",)))
    with pytest.raises(UserError, match="no place is called moon"):
        place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(overrides=("exps=moon",)))
    with pytest.raises(UserError, match="2 shares and there are 1"):
        place(DENSE, "Q8_0", CARD, context=2048, placement=Placement(tensor_split=(1, 2)))


def test_without_a_device_all_is_host_memory() -> None:
    found = place(BIG, "Q4_0", (), context=2048)
    assert (found.gpu_layers, found.fitted) == (0, False)
    assert found.memory.keys() == {HOST}
    assert found.memory[HOST].weights == file_bytes(BIG, "Q4_0")


def test_what_is_too_small_is_said_with_numbers() -> None:
    found = place(BIG, "Q4_0", CARD, context=2048, placement=Placement(gpu_layers="all", cpu_moe=24))
    assert lacking(found, CARD, 64e9) is None
    said = lacking(found, CARD, 1e9)
    assert said is not None
    assert said.startswith("needs ")
    assert said.endswith(" GB of RAM beside the card; 1.0 GB are there")


RECORDED = json.loads((Path(__file__).parent / "data" / "placements.json").read_text())
"""What llama-server build 10068 reported of bench/placement.py's cases on a Vulkan device of 2 GiB."""
FITTED_OTHERWISE = {0, 26}
"""One more layer of experts in host memory, by 2 MiB of compute buffer; and attention with sinks over caches in host
memory, for which this build turns flash attention off and newer ones do not."""
MEMORY_OTHERWISE = {26, 27}


@pytest.mark.parametrize("said", RECORDED, ids=lambda said: f"{said['case']}-{said['model']}")
def test_a_placement_is_the_one_that_llama_cpp_reported(said: dict[str, Any]) -> None:
    case = CASES[said["case"]]
    assert (case.model, case.layers) == (said["model"], said["layers"])
    ours = predicted(case, [DeviceRoom("Vulkan0", 2**31, largest_bytes=LLVMPIPE_LARGEST_BYTES)], 2048)
    if said["case"] not in FITTED_OTHERWISE:
        assert (ours.gpu_layers, ours.cpu_moe) == (said["gpu_layers"], said["cpu_moe"])
    if said["case"] not in MEMORY_OTHERWISE:
        for at, sizes in said["bytes_at"].items():
            assert ours.total(at) == pytest.approx(sum(sizes.values()), rel=0.0501)


def test_nine_of_ten_recorded_placements_are_foretold() -> None:
    assert len(RECORDED) == len(CASES) >= 20
    assert len(FITTED_OTHERWISE) <= 0.1 * len(RECORDED)
    assert len(MEMORY_OTHERWISE) <= 0.1 * len(RECORDED)


@pytest.mark.parametrize(
    ("card_gb", "host_gb", "placement", "words"),
    [
        (
            24,
            32,
            Placement(),
            r"gpt-oss-120b in MXFP4 needs [\d.]+ GB of RAM beside the card; 32.0 GB are there; hunyuan-a13b would fit",
        ),
        (24, 64, Placement(gpu_layers="all"), r"needs [\d.]+ GB on CUDA0; 24.0 GB are free; --gpu-layers auto fits"),
    ],
)
def test_a_model_that_fits_nowhere_is_refused_with_the_nearest_that_does(
    card_gb: float, host_gb: float, placement: Placement, words: str
) -> None:
    card = [DeviceRoom("CUDA0", card_gb * GB)]
    with pytest.raises(UserError, match=words):
        check_room(lookup("gpt-oss-120b"), "MXFP4", card, host_gb * GB, context=8192, placement=placement)


def test_a_smaller_format_is_offered_before_another_model() -> None:
    with pytest.raises(UserError, match=r"needs .* 3\.0 GB are there; --format Q\d\w+ fits"):
        check_room(BIG, "F16", CARD, 3e9, context=2048)


def test_advice_looks_into_no_more_models_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and counting the whole catalogue takes seconds, so what is looked into is counted."""
    looked: list[str] = []
    monkeypatch.setattr("breakeven.forecast.memory.lookup", lambda name: looked.append(name) or lookup(name))
    with pytest.raises(UserError, match="would fit"):
        check_room(lookup("gpt-oss-120b"), "MXFP4", [DeviceRoom("CUDA0", 24 * GB)], 32 * GB, context=8192)
    assert 1 <= len(looked) < 10


def test_a_model_that_fits_is_placed() -> None:
    card = [DeviceRoom("CUDA0", 24 * GB)]
    found = check_room(lookup("gpt-oss-120b"), "MXFP4", card, 64 * GB, context=8192)
    assert found.gpu_layers == 37
    assert 20 < found.cpu_moe < 36


def test_a_tensor_above_the_devices_limit_stays_in_host_memory() -> None:
    narrow = [DeviceRoom("Vulkan0", 2 * 2**30, largest_bytes=60e6)]
    found = place(DENSE, "Q8_0", narrow, context=2048, placement=Placement(gpu_layers="all"))
    kept = {p.group for p in found.parts if p.place == HOST}
    assert kept == {TensorGroup.EMBEDDING, TensorGroup.OUTPUT_HEAD, TensorGroup.DENSE_FFN}


@given(
    name=st.sampled_from([*MOE, "llama", "gemma3", "qwen2"]),
    free=st.lists(st.floats(0.0, 40e6), min_size=1, max_size=3),
    context=st.sampled_from([256, 1024, 2048]),
    slots=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_everything_lies_somewhere_once_and_within_what_is_free(
    name: str, free: list[float], context: int, slots: int
) -> None:
    spec = _wide(name)
    devices = [DeviceRoom(f"CUDA{i}", n) for i, n in enumerate(free)]
    found = place(spec, "Q8_0", devices, context=context, slots=slots, margin_bytes=1e6)
    once = sum(part.n_bytes for part in found.parts if not part.copy)
    assert once == file_bytes(spec, "Q8_0")
    assert sum(at.weights for at in found.memory.values()) == sum(part.n_bytes for part in found.parts)
    assert sum(at.kv for at in found.memory.values()) == pytest.approx(sum(found.kv_by_layer))
    assert sum(found.layers_by_device.values()) == found.gpu_layers
    for device in devices:
        took = found.layers_by_device[device.place]
        assert not took or found.memory[device.place].total <= device.free_bytes - 1e6


@given(name=st.sampled_from([*MOE, "llama", "qwen2"]), small_room=st.floats(0, 40e6), more=st.floats(0, 20e6))
@settings(max_examples=40, deadline=None)
def test_more_room_never_places_less(name: str, small_room: float, more: float) -> None:
    spec = _wide(name)
    less, all_of_it = (
        place(spec, "Q8_0", [DeviceRoom("CUDA0", room)], context=1024, margin_bytes=1e6)
        for room in (small_room, small_room + more)
    )
    assert all_of_it.gpu_layers >= less.gpu_layers
    if all_of_it.gpu_layers == less.gpu_layers:
        assert all_of_it.cpu_moe <= less.cpu_moe


def _wide(name: str) -> ModelSpec:
    return small(name, num_hidden_layers=8, **({"layer_types": _TYPES[name]} if name in _TYPES else {}))


_TYPES = {
    "gpt-oss": ["sliding_attention", "full_attention"] * 4,
    "lfm2moe": ["conv", "full_attention"] * 4,
}
