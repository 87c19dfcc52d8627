"""The reader on machines laid out as their kernels lay them out, and on the one the tests run on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.reader import (
    parse_cpu_list,
    parse_size,
    read_cache_bytes,
    read_cpu_name,
    read_cpu_quota,
    read_instruction_sets,
    read_machine,
    read_memory_room,
    read_os,
    read_physical_cores,
    read_virtualised,
)

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R)   Processor
flags\t\t: fpu sse2 fma avx f16c avx2 avx512f avx512_vnni amx_int8{extra}

processor\t: 1
model name\t: Intel(R) Xeon(R)   Processor
"""
RASPBERRY = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
RISCV = "processor\t: 0\nisa\t\t: rv64imafdcv_zicsr\n"


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_intel_name_and_instruction_sets(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": INTEL.format(extra="")})
    assert read_cpu_name(tmp_path) == "Intel(R) Xeon(R) Processor"
    assert read_instruction_sets(tmp_path) == ["avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_int8"]


def test_arm_board_name_and_instruction_sets(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": RASPBERRY})
    assert read_cpu_name(tmp_path) == "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    assert read_instruction_sets(tmp_path) == ["neon", "fp16", "dotprod"]


def test_risc_v_vectors(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": RISCV})
    assert read_instruction_sets(tmp_path) == ["rvv"]
    put(tmp_path, {"proc/cpuinfo": RISCV.replace("dcv", "dc")})
    assert read_instruction_sets(tmp_path) == []


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    names = {"level": str(level), "type": kind, "size": size, "shared_cpu_list": shared}
    return {f"{base}/{name}": text + "\n" for name, text in names.items()}


def test_shared_caches_count_once_and_only_where_we_may_run(tmp_path: Path) -> None:
    for cpu in range(4):
        put(tmp_path, cache(cpu, 0, 1, "Data", "48K", str(cpu)))
        put(tmp_path, cache(cpu, 1, 1, "Instruction", "32K", str(cpu)))
        put(tmp_path, cache(cpu, 2, 2, "Unified", "2M", f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"))
        put(tmp_path, cache(cpu, 3, 3, "Unified", "32M", "0-3"))
    everywhere = {"L1d": 4 * 48 * 1024, "L2": 4 << 20, "L3": 32 << 20}
    assert read_cache_bytes(frozenset(range(4)), tmp_path) == everywhere
    assert read_cache_bytes(frozenset({0, 1}), tmp_path) == {"L1d": 2 * 48 * 1024, "L2": 2 << 20, "L3": 32 << 20}
    assert read_cache_bytes(frozenset({9}), tmp_path) == {}


def test_hyperthreads_share_a_core(tmp_path: Path) -> None:
    for cpu in range(4):
        base = f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = f"{cpu % 2},{cpu % 2 + 2}"
        files = {"core_id": str(cpu % 2), "physical_package_id": "0", "thread_siblings_list": siblings}
        put(tmp_path, {f"{base}/{name}": text for name, text in files.items()})
    assert read_physical_cores(frozenset(range(4)), tmp_path) == 2
    assert read_physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert read_physical_cores(frozenset({0, 7}), tmp_path) is None


def test_version_2_groups_limit_memory_and_cores(tmp_path: Path) -> None:
    gib = 1 << 30
    put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/memory.max": f"{8 * gib}\n",
            "sys/fs/cgroup/user/memory.current": f"{7 * gib}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {2 * gib}\n",
            "sys/fs/cgroup/user/job/memory.max": "max\n",
            "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
        },
    )
    assert read_memory_room(tmp_path) == [(8 * gib, 3 * gib)]
    assert read_cpu_quota(tmp_path) == 1.5


def test_version_1_groups_limit_memory_and_cores(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_memory_room(tmp_path) == [(1_000_000, 600_000)]
    assert read_cpu_quota(tmp_path) == 2.0


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert read_memory_room(tmp_path) == []
    assert read_cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/cpuinfo": INTEL.format(extra="")}, "no"),
        ({"proc/cpuinfo": INTEL.format(extra=" hypervisor")}, "hypervisor"),
        ({"proc/cpuinfo": INTEL.format(extra=" hypervisor"), "sys/class/dmi/id/sys_vendor": "QEMU"}, "QEMU/KVM"),
        ({"proc/cpuinfo": INTEL.format(extra=""), "sys/class/dmi/id/sys_vendor": "Amazon EC2"}, "no"),
        ({"proc/cpuinfo": INTEL.format(extra=" hypervisor"), ".dockerenv": ""}, "Docker on hypervisor"),
        ({"proc/cpuinfo": INTEL.format(extra=""), "proc/1/cgroup": "0::/kubepods/x"}, "Kubernetes"),
        ({"proc/cpuinfo": RASPBERRY, "proc/device-tree/model": "Raspberry Pi 5"}, "no"),
        ({"proc/version": "Linux 6.6 Microsoft-standard-WSL2"}, "WSL"),
        ({}, None),
    ],
)
def test_virtualised(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    assert read_virtualised(put(tmp_path, files)) == expected


def test_os_is_named_after_its_release(tmp_path: Path) -> None:
    put(tmp_path, {"etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'})
    assert read_os(tmp_path).startswith("Debian GNU/Linux 12 (bookworm), ")


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cpu_lists_are_read_as_linux_writes_them(cpus: set[int]) -> None:
    parts, ordered = [], sorted(cpus)
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        parts.append(f"{first}" if first == last else f"{first}-{last}")
    assert parse_cpu_list(",".join(parts) + "\n") == cpus


@pytest.mark.parametrize(("text", "size_bytes"), [("48K", 49152), ("2M", 2097152), ("1G", 1 << 30), ("512", 512)])
def test_cache_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_this_machine_agrees_with_psutil() -> None:
    machine = read_machine()
    assert machine.memory_bytes <= psutil.virtual_memory().total
    assert 0 < machine.available_memory_bytes <= machine.memory_bytes
    assert 1 <= machine.logical_cores <= (psutil.cpu_count() or 1)
    assert machine.cpu
    assert platform.machine() in machine.os
    assert msgspec.json.decode(msgspec.json.encode(machine), type=MachineSpec) == machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_cores_withheld_by_affinity_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert read_machine().logical_cores == 1
    finally:
        os.sched_setaffinity(0, allowed)
