"""Reads the accelerators of this machine: from NVIDIA's library, and from what other drivers put into the file system.

Starts no engine and, on Linux, no program. What an engine lists of its devices is joined to what was read here
(`joined`). Every reader takes the root of the file system, so that captured machines can be read as well as this one.
A display adapter of a CPU that the catalogue does not know as an accelerator is not listed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

import msgspec

from breakeven.hardware.chips import Chip, chip_named, chip_or_none
from breakeven.hardware.machine import OWN_MEMORY, PCIE_LANE_BYTES_PER_S, Gpu

ROOT = Path("/")
AMD, INTEL, NVIDIA = "1002", "8086", "10de"

LEAST_BAR_BYTES = 1 << 30
"""A window onto device memory that is smaller is not resized and tells nothing of the memory's size."""

SAME_MEMORY = 0.15
"""Engines leave out what drivers reserve, and count an integrated device's share in other ways."""


def text_of(path: Path) -> str | None:
    """The file's text, stripped of blanks and of a device tree's zeros; None when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0").strip()
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """A whole number in a file; None when it cannot be read or is none."""
    text = text_of(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def pci_devices(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """(vendor, directory) of every device with a graphics card's node, in their order."""
    cards = [card for card in (root / "sys/class/drm").glob("card*") if re.fullmatch(r"card\d+", card.name)]
    for card in sorted(cards, key=lambda card: int(card.name[4:])):
        if vendor := text_of(card / "device/vendor"):
            yield vendor.lower().removeprefix("0x"), card / "device"


def read_gpus(root: Path = ROOT) -> list[Gpu]:
    """Every accelerator that this machine's drivers tell of; those of unknown memory are left out."""
    return [gpu for gpu, _ in located_gpus(root)]


def located_gpus(root: Path = ROOT) -> list[tuple[Gpu, Path | int | None]]:
    """As `read_gpus`, each with its number in NVIDIA's library or its directory; None: it has neither."""
    found: list[tuple[Gpu, Path | int | None]] = list(_nvml()) if root == ROOT else []
    found = found or [(gpu, None) for gpu in _nvidia_files(root)]
    nvidia = bool(found)
    for vendor, device in pci_devices(root):
        read = _READERS.get(vendor)
        if read is None or (vendor == NVIDIA and nvidia):
            continue
        if gpu := read(device, root):
            found.append((gpu, device))
    return found or [(gpu, None) for gpu in _jetson(root)]


def machine_memory_bytes(root: Path = ROOT, line: str = "MemTotal") -> int | None:
    """What the kernel has to give, which a device without memory of its own shares; or another line of its table."""
    found = re.search(rf"^{line}:\s+(\d+) kB", text_of(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@lru_cache(maxsize=1)
def _pci_ids() -> dict[str, str]:
    data = resources.files("breakeven.hardware").joinpath("data", "pci_ids.json").read_bytes()
    ids = json.loads(data)["ids"]
    assert isinstance(ids, dict)
    return ids


def _id(device: Path, name: str) -> str:
    return (text_of(device / name) or "").lower().removeprefix("0x")


def chip_at(device: Path) -> Chip | None:
    """The catalogue's chip of a PCI device, by its id and, where one id has several products, its revision."""
    key = ":".join(_id(device, name) for name in ("vendor", "device"))
    slug = _pci_ids().get(f"{key}:{_id(device, 'revision')}") or _pci_ids().get(key)
    return chip_named(slug) if slug else None


def _name(device: Path, root: Path) -> str:
    """What the lists of the system call a device that the catalogue does not know."""
    if said := text_of(device / "product_name"):
        return said
    vendor, number, revision = (_id(device, name) for name in ("vendor", "device", "revision"))
    for line in (text_of(root / "usr/share/libdrm/amdgpu.ids") or "").splitlines() if vendor == AMD else ():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and (parts[0].lower(), parts[1].lower()) == (number, revision):
            return parts[2]
    for path in ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"):
        listed = re.search(rf"^{vendor} .*\n(?:[\t#].*\n)*?\t{number}  (.*)$", text_of(root / path) or "", re.MULTILINE)
        if listed and number:
            inside = re.search(r"\[(.*)\]", listed[1])
            return f"{_VENDORS[vendor]} {inside[1] if inside else listed[1]}"
    return f"{_VENDORS[vendor]} device {number}"


_VENDORS = {AMD: "AMD", INTEL: "Intel", NVIDIA: "NVIDIA"}


def _driver(device: Path, root: Path) -> str:
    found = re.search(r"^DRIVER=(\S+)$", text_of(device / "uevent") or "", re.MULTILINE)
    name = found[1] if found else "not available"
    version = text_of(root / "sys/module" / name / "version")
    return f"{name} {version}" if version else name


_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""GT/s of a lane, to the generation of PCI Express."""


def _link(device: Path) -> float | None:
    """Bytes a second of the narrowest PCI Express link up to the root: cards hold bridges of their own."""
    rates = []
    for step in (device.resolve(), *device.resolve().parents):
        # Idle links are slowed down; how wide they are stays.
        speed = re.match(r"([\d.]+) GT/s", text_of(step / "max_link_speed") or "")
        width = number_of(step / "current_link_width")
        generation = (
            {"2.5": 1, "5.0": 2, "5": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}.get(speed[1]) if speed else 0
        )
        if generation and width:
            rates.append(PCIE_LANE_BYTES_PER_S[generation] * width)
        elif rates:
            break
    return min(rates, default=None)


def _window_bytes(device: Path) -> int | None:
    """The largest window onto device memory where it spans more than a corner of it; None else."""
    sizes = [0]
    for line in (text_of(device / "resource") or "").splitlines():
        with contextlib.suppress(ValueError):
            first, last, _ = (int(part, 16) for part in line.split())
            sizes.append(last - first + 1 if last else 0)
    return max(sizes) if max(sizes) >= LEAST_BAR_BYTES else None


def _amd(device: Path, root: Path) -> Gpu | None:
    own, chip = number_of(device / "mem_info_vram_total"), chip_at(device)
    if not own:
        return None
    # The driver names who made a card's memory; an integrated one has none of its own.
    maker = text_of(device / "mem_info_vram_vendor")
    shared = chip.chip_class in OWN_MEMORY if chip else maker in (None, "unknown")
    if shared and chip is None:
        return None
    memory = own + (number_of(device / "mem_info_gtt_total") or 0) if shared else own
    name = chip.name if chip else _name(device, root)
    if chip and not shared and chip.memory_bytes and abs(own - chip.memory_bytes) > SAME_MEMORY * chip.memory_bytes:
        name = re.sub(r" \d+GB$", "", name)  # the same chip on a card of another size
    return Gpu(name, memory, _driver(device, root), unified=shared, link_bytes_per_s=None if shared else _link(device))


def _intel(device: Path, root: Path) -> Gpu | None:
    chip, window = chip_at(device), _window_bytes(device)
    if chip and chip.chip_class in OWN_MEMORY:
        memory = machine_memory_bytes(root)
        return None if memory is None else Gpu(chip.name, memory, _driver(device, root), unified=True)
    return _as_sold(chip, window, device, root)


def _as_sold(chip: Chip | None, window: int | None, device: Path, root: Path, name: str | None = None) -> Gpu | None:
    """A card whose driver does not tell its memory: the catalogue's, or as much as its window shows."""
    sizes = [size for size in (chip and chip.memory_bytes, window) if size]
    if not sizes:
        return None
    said = name or (chip.name if chip else _name(device, root))
    return Gpu(said, min(sizes), _driver(device, root), memory_told=False, link_bytes_per_s=_link(device))


def _nouveau(device: Path, root: Path) -> Gpu | None:
    return _as_sold(chip_at(device), _window_bytes(device), device, root)


_READERS = {AMD: _amd, INTEL: _intel, NVIDIA: _nouveau}


def _nvidia_files(root: Path) -> list[Gpu]:
    """NVIDIA GPUs by what the driver says without its library, which does not hold their memory."""
    found = []
    version = re.search(r"Kernel Module\D*(\d[\d.]+)", text_of(root / "proc/driver/nvidia/version") or "")
    for said in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", text_of(said) or "", re.MULTILINE)
        if model is None:
            continue
        device, name = root / "sys/bus/pci/devices" / said.parent.name, " ".join(model[1].split())
        chip = chip_at(device) or chip_or_none(name)
        driver = version[1] if version else "not available"
        if chip and chip.chip_class in OWN_MEMORY:
            if memory := machine_memory_bytes(root):
                found.append(Gpu(name, memory, driver, unified=True))
        elif gpu := _as_sold(chip, _window_bytes(device), device, root, name):
            found.append(msgspec.structs.replace(gpu, driver=driver))
    return found


def _jetson(root: Path) -> list[Gpu]:
    """The GPU of a Jetson, which hangs on no bus: its board's name, and all of its memory."""
    model, memory = text_of(root / "proc/device-tree/model"), machine_memory_bytes(root)
    if not _is_tegra(root) or not model or not memory:
        return []
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text_of(root / "etc/nv_tegra_release") or "")
    return [Gpu(model, memory, f"L4T {release[1]}.{release[2]}" if release else "not available", unified=True)]


def _is_tegra(root: Path) -> bool:
    return "nvidia,tegra" in (text_of(root / "proc/device-tree/compatible") or "")


def _nvml() -> list[tuple[Gpu, int]]:
    """NVIDIA GPUs with their numbers; none when nvidia-ml-py is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    gpus: list[tuple[Gpu, int]] = []
    try:
        driver = _words(pynvml.nvmlSystemGetDriverVersion())
        for index in range(pynvml.nvmlDeviceGetCount()):
            # One GPU may be lost; the others still count.
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name = _words(pynvml.nvmlDeviceGetName(handle))
                try:
                    memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
                except pynvml.NVMLError:
                    # A DGX Spark's or Jetson's driver counts none, because it is the machine's.
                    shared = machine_memory_bytes() if _shares(name) else None
                    if shared:
                        gpus.append((Gpu(name, shared, driver, unified=True), index))
                    continue
                link = _nvml_link(handle)
                gpus.append((Gpu(name, memory, driver, unified=_shares(name), link_bytes_per_s=link), index))
    except pynvml.NVMLError:
        return gpus
    finally:
        pynvml.nvmlShutdown()
    return gpus


def _shares(name: str) -> bool:
    chip = chip_or_none(name)
    return chip.chip_class in OWN_MEMORY if chip else _is_tegra(ROOT)


def _nvml_link(handle: object) -> float | None:
    import pynvml

    try:
        generation = int(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))
        width = int(pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle))
    except (pynvml.NVMLError, TypeError):
        return None
    return PCIE_LANE_BYTES_PER_S[generation] * width if generation in PCIE_LANE_BYTES_PER_S and width else None


def _words(value: str | bytes) -> str:
    """Older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def apple_gpus(told: str, memory_bytes: int) -> list[Gpu]:
    """The GPUs in the JSON of `system_profiler SPDisplaysDataType`; Apple's own share the machine's memory."""
    try:
        entries = json.loads(told)["SPDisplaysDataType"]
        found = [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError):
        return []
    gpus = []
    for entry in found:
        name = str(entry.get("sppci_model") or entry.get("_name") or "")
        family = re.search(r"metal(\d+)", str(entry.get("spdisplays_mtlgpufamilysupport", "")))
        driver = f"Metal {family[1]}" if family else "Metal"
        own = re.match(r"(\d+) (GB|MB)", str(entry.get("spdisplays_vram", "")))
        if name.startswith("Apple"):
            gpus.append(Gpu(name, memory_bytes, driver, unified=True))
        elif name and own:
            gpus.append(Gpu(name, int(own[1]) << (30 if own[2] == "GB" else 20), driver))
    return gpus


def joined(read: Sequence[Gpu], listed: Sequence[Gpu]) -> list[Gpu]:
    """What was read here with the places of what an engine lists; a device that only the engine sees comes after.

    Two of an engine's ways to one card, such as CUDA0 and Vulkan0, are one device: the first keeps its place.
    """
    found = list(read)
    ways: list[set[str]] = [set() for _ in found]
    for device in listed:
        way = re.sub(r"\d+$", "", device.place or "")
        alike = [at for at, gpu in enumerate(found) if way not in ways[at] and _same(gpu, device)]
        if not alike:
            found.append(device)
            ways.append({way})
            continue
        at, gpu = alike[0], found[alike[0]]
        if gpu.place is None:
            memory = gpu.memory_bytes if gpu.memory_told or not device.memory_told else device.memory_bytes
            told = gpu.memory_told or device.memory_told
            found[at] = msgspec.structs.replace(gpu, place=device.place, memory_bytes=memory, memory_told=told)
        ways[at].add(way)
    return found


def _same(gpu: Gpu, listed: Gpu) -> bool:
    """Whether both are one device, by what they are called, else by maker and memory."""
    names = [re.sub(r"\(.*?\)", " ", name) for name in (gpu.name, listed.name)]
    chips = [chip_or_none(name) for name in names]
    if chips[0] and chips[1]:
        return chips[0].slug == chips[1].slug
    keys = [re.sub(r"\W+|graphics", " ", name.lower()).split() for name in names]
    if keys[0] == keys[1]:
        return True
    maker = keys[0][:1] == keys[1][:1] and keys[0][:1] != []
    return maker and abs(gpu.memory_bytes - listed.memory_bytes) <= SAME_MEMORY * gpu.memory_bytes
