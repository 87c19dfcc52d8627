"""Accelerators on machines captured as their kernels lay them out, and the join with what engines list."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import breakeven
from breakeven.errors import BreakevenError
from breakeven.hardware.chips import chip_named
from breakeven.hardware.devices import _pci_ids, apple_gpus, joined, read_gpus
from breakeven.hardware.machine import Gpu
from breakeven.hardware.memory import measured, read_memory_kind
from breakeven.hardware.reader import read_machine
from tests.captured import ARC, JETSON, MAC, RTX, RX_7900, SPARK, STRIX, laid_out

GIB = 2**30


def test_an_rtx_box_without_the_library_names_its_card_and_says_that_memory_is_as_sold(tmp_path: Path) -> None:
    (card,) = read_gpus(laid_out(tmp_path, RTX))
    assert (card.name, card.driver) == ("NVIDIA GeForce RTX 3090", "570.133.07")
    assert (card.memory_bytes, card.memory_told, card.unified) == (24 * GIB, False, False)
    assert card.link_bytes_per_s == pytest.approx(31.504e9)


def test_a_window_that_spans_the_memory_shows_the_size_of_a_card_sold_in_two(tmp_path: Path) -> None:
    window = {"sys/bus/pci/devices/0000:01:00.0/resource": "0x4000000000 0x41ffffffff 0x14220c\n"}
    device = {"sys/bus/pci/devices/0000:01:00.0/device": "0x2504"}
    said = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 3060\n"}
    (card,) = read_gpus(laid_out(tmp_path, RTX | device | said | window))
    assert (card.name, card.memory_bytes) == ("NVIDIA GeForce RTX 3060", 8 * GIB)


def test_an_amd_card_tells_its_memory_and_its_revision_names_it(tmp_path: Path) -> None:
    (card,) = read_gpus(laid_out(tmp_path, RX_7900))
    assert card == Gpu("AMD Radeon RX 7900 XTX", 25753026560, "amdgpu", link_bytes_per_s=pytest.approx(31.504e9))
    revision = {"sys/class/drm/card1/device/revision": "0xcc"}
    assert read_gpus(laid_out(tmp_path, RX_7900 | revision))[0].name == "AMD Radeon RX 7900 XT"


def test_an_amd_card_that_is_not_catalogued_is_named_by_the_systems_lists(tmp_path: Path) -> None:
    other = {
        "sys/class/drm/card1/device/device": "0x7999",
        "usr/share/misc/pci.ids": "1002  AMD\n\t7999  Navi [RX X]\n",
    }
    (card,) = read_gpus(laid_out(tmp_path, RX_7900 | other))
    assert (card.name, card.memory_bytes, card.unified) == ("AMD RX X", 25753026560, False)
    (tmp_path / "usr/share/misc/pci.ids").unlink()
    assert read_gpus(tmp_path)[0].name == "AMD device 7999"


def test_strix_halo_shares_the_machines_memory(tmp_path: Path) -> None:
    (chip,) = read_gpus(laid_out(tmp_path, STRIX))
    assert chip.name == chip_named("strix-halo").name
    assert (chip.memory_bytes, chip.unified) == (512 * 2**20 + 120 * GIB, True)
    assert chip.link_bytes_per_s is None


def test_an_arc_card_does_not_tell_its_memory(tmp_path: Path) -> None:
    (card,) = read_gpus(laid_out(tmp_path, ARC))
    assert (card.name, card.memory_bytes, card.memory_told) == ("Intel Arc B580", 12 * GIB, False)
    assert card.driver == "xe"


def test_an_intel_gpu_in_a_cpu_is_listed_where_the_catalogue_knows_it(tmp_path: Path) -> None:
    device = "sys/class/drm/card0/device"
    lunar = {f"{device}/vendor": "0x8086", f"{device}/device": "0x64a0", "proc/meminfo": "MemTotal: 32768000 kB\n"}
    (chip,) = read_gpus(laid_out(tmp_path, lunar))
    assert (chip.memory_bytes, chip.unified) == (32768000 * 1024, True)
    assert read_gpus(laid_out(tmp_path, {f"{device}/device": "0x3e92"})) == []


def test_a_jetson_is_its_board_and_all_of_its_memory(tmp_path: Path) -> None:
    (board,) = read_gpus(laid_out(tmp_path, JETSON))
    assert board == Gpu(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7802884 * 1024, "L4T 36.4.3", unified=True
    )


def test_a_spark_without_the_library_has_the_machines_memory(tmp_path: Path) -> None:
    (chip,) = read_gpus(laid_out(tmp_path, SPARK))
    assert (chip.name, chip.memory_bytes, chip.unified) == ("NVIDIA GB10", 125513600 * 1024, True)


def test_servers_display_adapters_are_no_devices(tmp_path: Path) -> None:
    aspeed = {"sys/class/drm/card0/device/vendor": "0x1a03", "sys/class/drm/card0/device/device": "0x2000"}
    assert read_gpus(laid_out(tmp_path, aspeed)) == []
    assert read_gpus(tmp_path / "nothing") == []


def test_a_mac_tells_by_its_profiler() -> None:
    assert apple_gpus(MAC, 32 * GIB) == [Gpu("Apple M2 Pro", 32 * GIB, "Metal 3", unified=True)]
    old = {"SPDisplaysDataType": [{"sppci_model": "AMD Radeon Pro 5500M", "spdisplays_vram": "8 GB"}]}
    assert apple_gpus(json.dumps(old), 32 * GIB) == [Gpu("AMD Radeon Pro 5500M", 8 * GIB, "Metal")]


@given(st.text() | st.builds(json.dumps, st.dictionaries(st.just("SPDisplaysDataType"), st.lists(st.integers()))))
def test_what_a_profiler_may_print_is_read_or_passed_over(told: str) -> None:
    assert apple_gpus(told, GIB) == []


def test_every_pci_id_names_a_chip_of_the_maker() -> None:
    makers = {"1002": ("AMD", "Steam Deck", "Valve"), "10de": "NVIDIA", "8086": "Intel"}
    assert all(chip_named(slug).name.startswith(makers[key[:4]]) for key, slug in _pci_ids().items())


def listed(name: str, gib: float, place: str, **more: bool) -> Gpu:
    return Gpu(name, round(gib * GIB), "b10434", place=place, **more)


CARD = Gpu("NVIDIA GeForce RTX 3090", 24 * GIB, "570")
RADEON = Gpu("AMD Radeon RX 7900 XTX", 24 * GIB, "amdgpu")
HALO = Gpu("AMD Ryzen AI Max+ 395 (Radeon 8060S)", round(120.5 * GIB), "amdgpu", unified=True)


def test_what_an_engine_lists_gets_its_place() -> None:
    cards = [CARD, CARD, RADEON]
    found = joined(
        cards,
        [
            listed("NVIDIA GeForce RTX 3090", 23.6, "CUDA0"),
            listed("NVIDIA GeForce RTX 3090", 23.6, "CUDA1"),
            listed("AMD Radeon RX 7900 XTX (RADV NAVI31)", 24, "Vulkan2"),
        ],
    )
    assert [gpu.place for gpu in found] == ["CUDA0", "CUDA1", "Vulkan2"]
    assert [gpu.memory_bytes for gpu in found] == [24 * GIB] * 3
    (halo,) = joined([HALO], [listed("AMD Radeon Graphics (RADV GFX1151)", 119, "Vulkan0")])
    assert halo.place == "Vulkan0"


def test_two_ways_to_a_card_are_one_device() -> None:
    both = [listed(CARD.name, 24, "CUDA0"), listed(CARD.name, 24, "Vulkan0")]
    (card,) = joined([CARD], both)
    assert card.place == "CUDA0"


def test_what_only_an_engine_sees_comes_after() -> None:
    found = joined([CARD], [listed("llvmpipe (LLVM 15.0.6, 256 bits)", 2, "Vulkan0")])
    assert [(gpu.name, gpu.place) for gpu in found] == [
        ("NVIDIA GeForce RTX 3090", None),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", "Vulkan0"),
    ]


def test_a_machine_lists_what_engines_here_can_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "llama-server"
    flags = "--model X\n--ctx-size N\n--parallel N\n--port N\n--batch-size N\n--list-devices"
    devices = "  Vulkan7: A card that is not in any list (8192 MiB, 8000 MiB free)"
    server.write_text(f"#!/bin/sh\ncase $1 in --help) echo '{flags}';; --list-devices) echo '{devices}';; esac\n")
    server.chmod(0o755)
    monkeypatch.setenv("BREAKEVEN_LLAMA_SERVER", str(server))
    (gpu,) = [gpu for gpu in breakeven.machine().gpus if gpu.place == "Vulkan7"]
    assert (gpu.name, gpu.memory_bytes, gpu.driver) == ("A card that is not in any list", 8 * GIB, "llama-server")
    assert not any(gpu.place == "Vulkan7" for gpu in breakeven.machine(listed=()).gpus)


def test_an_engine_that_tells_no_memory_leaves_it_as_sold() -> None:
    (card,) = joined(
        [msgspec.structs.replace(CARD, memory_told=False)], [Gpu(CARD.name, 0, "b", False, "CUDA0", False)]
    )
    assert (card.place, card.memory_bytes, card.memory_told) == ("CUDA0", 24 * GIB, False)


def test_an_engine_tells_the_memory_that_a_driver_does_not() -> None:
    arc = Gpu("Intel Arc A770", 16 * GIB, "i915", memory_told=False)
    (card,) = joined([arc], [listed("Intel(R) Arc(tm) A770 Graphics (DG2)", 15.9, "Vulkan0")])
    assert (card.memory_bytes, card.memory_told, card.place) == (round(15.9 * GIB), True, "Vulkan0")


names = st.sampled_from(["NVIDIA GeForce RTX 3090", "AMD Radeon RX 7900 XTX", "llvmpipe", "Apple M2", "x"])
gpus = st.lists(st.builds(Gpu, names, st.integers(GIB, 99 * GIB), st.just("d")), max_size=4)
lists = st.lists(
    st.builds(listed, names, st.integers(1, 99), st.sampled_from(["CUDA0", "CUDA1", "Vulkan0"])), max_size=4
)


@given(gpus, lists)
def test_a_join_loses_no_device_and_doubles_none(read: list[Gpu], told: list[Gpu]) -> None:
    found = joined(read, told)
    assert [gpu.name for gpu in found[: len(read)]] == [gpu.name for gpu in read]
    assert {gpu.name for gpu in told} <= {gpu.name for gpu in found} | {"x"}
    assert len(found) <= len(read) + len(told)


def test_this_machine_joins_a_list() -> None:
    plain = read_machine()
    here = read_machine(listed=[listed("llvmpipe (LLVM 15.0.6, 256 bits)", 2, "Vulkan0")])
    assert [gpu.place for gpu in here.gpus[len(plain.gpus) :]] == ["Vulkan0"]


def module(size: int, kind: int, rate: int) -> bytes:
    body = bytearray(0x28)
    body[0], body[1] = 17, 0x28
    body[0x0C:0x0E] = size.to_bytes(2, "little")
    body[0x12] = kind
    body[0x20:0x22] = rate.to_bytes(2, "little")
    return bytes(body) + b"DIMM 0\0\0"


def test_the_firmwares_table_tells_the_memorys_kind(tmp_path: Path) -> None:
    assert read_memory_kind(tmp_path) is None
    table = tmp_path / "sys/firmware/dmi/tables/DMI"
    table.parent.mkdir(parents=True)
    bios = bytes([0, 4, 0, 0]) + b"\0\0"
    table.write_bytes(bios + module(16384, 0x1A, 3200) + module(0, 2, 0) + module(16384, 0x1A, 3200))
    assert read_memory_kind(tmp_path) == "ddr4-3200, 2 modules"


@given(st.binary(max_size=200))
def test_any_table_is_read_or_passed_over(tmp_path_factory: pytest.TempPathFactory, table: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "any-table"
    (root / "sys/firmware/dmi/tables").mkdir(parents=True, exist_ok=True)
    (root / "sys/firmware/dmi/tables/DMI").write_bytes(table)
    read_memory_kind(root)


def test_boards_with_error_correction_tell_the_kind_to_everybody(tmp_path: Path) -> None:
    dimm = "sys/devices/system/edac/mc/mc0/dimm"
    files = {f"{dimm}{slot}/dimm_mem_type": "Registered-DDR5" for slot in range(3)}
    files |= {f"{dimm}0/size": "65536", f"{dimm}1/size": "65536", f"{dimm}2/size": "0"}
    assert read_memory_kind(laid_out(tmp_path, files)) == "ddr5, 2 modules"


def test_memory_is_measured_with_its_spread() -> None:
    machine = measured(read_machine(), seconds=0.3)
    assert machine.memory_bytes_per_s is not None
    assert machine.memory_bytes_per_s_range is not None
    low, high = machine.memory_bytes_per_s_range
    assert 1e8 < low <= machine.memory_bytes_per_s <= high < 1e13


def test_memory_is_not_measured_where_arrays_would_lie_in_the_cache() -> None:
    import msgspec

    full = msgspec.structs.replace(read_machine(), available_memory_bytes=1 << 20, cache_bytes={"L3": 1 << 25})
    with pytest.raises(BreakevenError, match="1 MiB of free memory are too few"):
        measured(full)
