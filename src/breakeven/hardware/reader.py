"""Reads what this machine is from the kernel's own files; runs no other program on Linux.

What a container or an affinity mask withholds does not count: cores and memory are those this process may use.
Whether it is a virtual machine matters to a measurement, because neighbours can take CPU time that only shows as
steal. Every reader takes the root of the file system, so that captured machines can be read as well as this one.
It does not know the memory's speed: that is measured (`memory`), never read. The accelerators are read by `devices`.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from breakeven.hardware.devices import apple_gpus, joined, read_gpus
from breakeven.hardware.machine import Gpu, MachineSpec
from breakeven.hardware.memory import read_memory_kind

DMI_VENDORS = (
    ("QEMU", "QEMU/KVM"),
    ("KVM", "KVM"),
    ("Amazon EC2", "Amazon EC2"),
    ("Google", "Google Compute Engine"),
    ("VMware", "VMware"),
    ("innotek", "VirtualBox"),
    ("VirtualBox", "VirtualBox"),
    ("Xen", "Xen"),
    ("Virtual Machine", "Hyper-V"),
    ("Parallels", "Parallels"),
    ("OpenStack", "OpenStack"),
    ("DigitalOcean", "DigitalOcean"),
)
"""What a firmware calls itself -> the hypervisor's name; the strings systemd-detect-virt knows."""

CONTAINER_WORDS = (("kubepods", "Kubernetes"), ("docker", "Docker"), ("lxc", "LXC"), ("libpod", "Podman"))
"""What a control group's path holds -> the container's kind."""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _container(root: Path) -> str | None:
    if (root / "run/.containerenv").exists():
        return "Podman"
    groups = _text(root / "proc/1/cgroup") + _text(root / "proc/self/cgroup")
    for word, name in CONTAINER_WORDS:
        if word in groups:
            return name
    return "Docker" if (root / ".dockerenv").exists() else None


def _hypervisor(root: Path) -> str | None:
    """The hypervisor's name, "no", or None when nothing tells."""
    if "microsoft" in _text(root / "proc/version").lower():
        return "WSL"
    kind = _text(root / "sys/hypervisor/type").strip()
    if kind:
        return kind.capitalize()
    dmi = root / "sys/class/dmi/id"
    firmware = " ".join(_text(dmi / name) for name in ("sys_vendor", "product_name", "bios_vendor", "board_vendor"))
    cpuinfo = _text(root / "proc/cpuinfo")
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    # A cloud's bare-metal instances carry the cloud's name as well, so on x86 the CPU's own flag has the last word.
    if flags and "hypervisor" not in flags:
        return "no"
    for word, name in DMI_VENDORS:
        if word in firmware:
            return name
    if flags or (root / "proc/device-tree/hypervisor").exists():
        return "hypervisor"
    return "no" if firmware.strip() or _text(root / "proc/device-tree/model") else None


def read_virtualised(root: Path = Path("/")) -> str | None:
    """Container and hypervisor by name ("Docker on hypervisor"), "no", or None when nothing tells."""
    container, hypervisor = _container(root), _hypervisor(root)
    if container is None:
        return hypervisor
    return container if hypervisor in (None, "no") else f"{container} on {hypervisor}"


ROOT = Path("/")

INSTRUCTION_SETS = {
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx_vnni": "avx_vnni",
    "avx_vnni_int8": "avx_vnni_int8",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
"""Kernel's flag -> name shown, in the order shown: the sets llama.cpp's CPU kernels choose by."""

ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
"""Arm's part numbers, as in Linux's arch/arm64/include/asm/cputype.h; 64-bit Arm kernels give no model name."""

UNLIMITED_BYTES = 1 << 60
"""A version 1 memory group without a limit reports a number near 2^63."""


def read_text(path: Path) -> str | None:
    """The file's text, stripped; None when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return None


def parse_cpu_list(text: str) -> frozenset[int]:
    """Linux's list of CPUs, "0-3,8" -> {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def parse_size(text: str) -> int:
    """A cache size as sysfs writes it, "48K" -> 49152 bytes."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor


def _cpuinfo_fields(root: Path) -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo, and what follows the last one (a board's name)."""
    fields: dict[str, str] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def read_cpu_name(root: Path = ROOT) -> str:
    """The CPU's name; on Arm the core's name and, when there is one, the board's."""
    fields = _cpuinfo_fields(root)
    if name := fields.get("model name") or fields.get("cpu model"):
        return " ".join(name.split())
    part = fields.get("CPU part", "").lower()
    core = ARM_PARTS.get(part) or (f"part {part}" if part else platform.machine())
    board = fields.get("Model") or read_text(root / "proc/device-tree/model")
    return f"{core} ({board})" if board else core


def read_instruction_sets(root: Path = ROOT) -> list[str]:
    """Names out of INSTRUCTION_SETS that the CPU has, in that order; "rvv" for RISC-V's vectors."""
    fields = _cpuinfo_fields(root)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found = [name for flag, name in INSTRUCTION_SETS.items() if flag in flags]
    # RISC-V writes its single-letter extensions as one word: rv64imafdcv_zba...
    if "v" in fields.get("isa", "").partition("_")[0].removeprefix("rv64"):
        found.append("rvv")
    return found


def read_cache_bytes(cpus: frozenset[int], root: Path = ROOT) -> dict[str, int]:
    """Bytes by level ("L1d", "L2", "L3") over all caches that `cpus` reach; a shared cache counts once."""
    sizes: dict[tuple[str, frozenset[int]], int] = {}
    for cpu in sorted(cpus):
        for index in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")):
            level, kind, size, shared = (
                read_text(index / name) for name in ("level", "type", "size", "shared_cpu_list")
            )
            if not level or not size or kind == "Instruction":
                continue
            name = f"L{level}d" if kind == "Data" else f"L{level}"
            sizes[name, parse_cpu_list(shared) if shared else frozenset({cpu})] = parse_size(size)
    totals: dict[str, int] = {}
    for (name, _), size_bytes in sorted(sizes.items(), key=lambda item: item[0][0]):
        totals[name] = totals.get(name, 0) + size_bytes
    return totals


def read_physical_cores(cpus: frozenset[int], root: Path = ROOT) -> int | None:
    """How many cores the logical `cpus` stand on; None when the kernel does not tell."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        core, package = read_text(topology / "core_id"), read_text(topology / "physical_package_id")
        if core is None:
            return None
        # Cores of different clusters of an Arm SoC may share an id; the set of siblings tells them apart.
        cores.add((package, core, read_text(topology / "thread_siblings_list")))
    return len(cores) or None


def _groups(controller: str, root: Path) -> list[Path]:
    """Directories of the control groups this process is in, innermost first: version 2, then version 1."""
    found: list[Path] = []
    base = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = base / "unified" if (base / "unified").is_dir() else base
        elif controller in controllers.split(","):
            top = base / controller
        else:
            continue
        here = top / path.lstrip("/")
        while True:
            found.append(here)
            if here == top or top not in here.parents:
                break
            here = here.parent
    return found


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and text.isdigit() else None


def read_memory_room(root: Path = ROOT) -> list[tuple[int, int]]:
    """(limit, still free) in bytes of every control group that limits this process's memory."""
    rooms = []
    for group in _groups("memory", root):
        for limit_file, usage_file, cold in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(group / limit_file)
            if limit is None or limit >= UNLIMITED_BYTES:
                continue
            used = _number(group / usage_file) or 0
            # File pages that nobody has touched for a while are given back before anything is killed.
            for line in (read_text(group / "memory.stat") or "").splitlines():
                key, _, value = line.partition(" ")
                if key == cold:
                    used -= int(value)
            rooms.append((limit, max(0, limit - max(0, used))))
    return rooms


def read_cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time the control groups allow; None when there is no limit."""
    quotas = []
    for group in _groups("cpu", root):
        if text := read_text(group / "cpu.max"):
            quota, _, period = text.partition(" ")
            if quota.isdigit() and period.isdigit():
                quotas.append(int(quota) / int(period))
        v1_quota, v1_period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if v1_quota and v1_period:
            quotas.append(v1_quota / v1_period)
    return min(quotas, default=None)


def read_os(root: Path = ROOT) -> str:
    """Distribution, kernel and architecture."""
    release = read_text(root / "etc/os-release") or ""
    names = (line.partition("=")[2].strip("\"'") for line in release.splitlines() if line.startswith("PRETTY_NAME="))
    system = next(names, platform.system())
    return f"{system}, {platform.system()} {platform.release()}, {platform.machine()}"


def _said_by(*command: str) -> str | None:
    """What a program of macOS prints; None when it is not there, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sysctl(name: str) -> str | None:
    return _said_by("sysctl", "-n", name)


def _read_mac() -> MachineSpec:
    """macOS, through sysctl; best effort."""
    arm = {
        "hw.optional.neon": "neon",
        "hw.optional.arm.FEAT_FP16": "fp16",
        "hw.optional.arm.FEAT_DotProd": "dotprod",
        "hw.optional.arm.FEAT_I8MM": "i8mm",
        "hw.optional.arm.FEAT_BF16": "bf16",
        "hw.optional.arm.FEAT_SME": "sme",
        "hw.optional.avx2_0": "avx2",
        "hw.optional.fma": "fma",
        "hw.optional.f16c": "f16c",
        "hw.optional.avx512f": "avx512f",
    }
    # With clusters of cores, perflevel0 is the fast one; hw.l2cachesize speaks of a single cache.
    caches = {"L1d": _sysctl("hw.l1dcachesize"), "L2": _sysctl("hw.l2cachesize"), "L3": _sysctl("hw.l3cachesize")}
    memory = psutil.virtual_memory()
    guest = _sysctl("kern.hv_vmm_present")
    return MachineSpec(
        cpu=_sysctl("machdep.cpu.brand_string") or platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        instruction_sets=[name for key, name in arm.items() if _sysctl(key) == "1"],
        cache_bytes={name: int(text) for name, text in caches.items() if text and text.isdigit() and text != "0"},
        memory_bytes=memory.total,
        available_memory_bytes=memory.available,
        os=f"macOS {platform.mac_ver()[0]}, {platform.machine()}",
        virtualised={"1": "hypervisor", "0": "no"}.get(guest or ""),
        gpus=apple_gpus(_said_by("system_profiler", "SPDisplaysDataType", "-json") or "", memory.total),
    )


def read_machine(listed: Sequence[Gpu] = ()) -> MachineSpec:
    """This machine, as far as this process may use it; `listed`: what an engine here calls its devices."""
    spec = _read_mac() if platform.system() == "Darwin" else _read_linux()
    return msgspec.structs.replace(spec, gpus=joined(spec.gpus, listed)) if listed else spec


def _read_linux() -> MachineSpec:
    affinity = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset[int]()
    cpus = affinity or frozenset(range(psutil.cpu_count() or 1))
    quota = read_cpu_quota()
    logical = len(cpus) if quota is None else min(len(cpus), max(1, int(quota)))
    memory = psutil.virtual_memory()
    rooms = read_memory_room()
    physical = read_physical_cores(cpus)
    return MachineSpec(
        cpu=read_cpu_name(),
        physical_cores=None if physical is None else min(physical, logical),
        logical_cores=logical,
        instruction_sets=read_instruction_sets(),
        cache_bytes=read_cache_bytes(cpus),
        memory_bytes=min([memory.total, *(limit for limit, _ in rooms)]),
        available_memory_bytes=min([memory.available, *(free for _, free in rooms)]),
        os=read_os(),
        virtualised=read_virtualised(),
        gpus=read_gpus(),
        memory_kind=read_memory_kind(),
    )


def available_threads() -> int:
    """CPUs this process may run on, which a container or `taskset` can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
