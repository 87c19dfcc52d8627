"""A machine that is described in words, such as rtx-3090+ddr4-3200x2:64GB, or in a file.

Parts are joined by "+": devices by their chips' names, host memory by its kind or its rate, the link between the two,
and the disk. Chips stay the catalogue's (`chips`); a file is read by `chip_file`, which needs pydantic.
"""

from __future__ import annotations

import re

from breakeven.errors import UserError, expanded
from breakeven.hardware.chips import Chip, chip_or_none, devices_named
from breakeven.hardware.machine import HostMemory, Machine, assembled, host_of, moved_of

FILE_SUFFIXES = (".yaml", ".yml", ".json")
MOST_WORDS = 400
"""Letters; 64 unlike cards fit in a file, not in a shell's line."""


def machine_named(text: str) -> Machine:
    """The machine that `text` describes: a chip, parts joined by "+", or the path of a YAML or JSON file.

    `rtx-3090`, `2xrtx-3090`, `rtx-3090+rtx-3060`, `rtx-3090+ddr4-3200x2:64GB`, `rtx-3090+ram:64GB`,
    `rtx-3090+host:64GB@50GB/s:16cores+pcie4x16+disk@3.5GB/s`, `ddr5-4800x12:384GB` (a CPU server), `pc.yaml`.
    It has at least one device. Raises UserError that names the part or the file's key, what was found and what is
    right.
    """
    if len(text) > MOST_WORDS:
        raise UserError(
            f"a machine's description is at most {MOST_WORDS} letters; describe a larger one in a YAML file"
        )
    if text.strip().lower().endswith(FILE_SUFFIXES):
        from breakeven.hardware.chip_file import read_described

        return read_described(expanded(text.strip()))
    devices: list[Chip] = []
    once: dict[str, HostMemory | float] = {}
    for part in _parts(text):
        kind = _kind_of(part)
        if kind is None:
            devices.extend(devices_named(part))
            continue
        if kind in once:
            raise UserError(f"{part!r}: a machine has one {kind}; describe it once")
        once[kind] = host_of(part) if kind == "host memory" else _moved(part, kind)
    host, link, disk = (once.get(kind) for kind in ("host memory", "link", "disk"))
    return assembled(
        None,
        devices,
        host if isinstance(host, HostMemory) else None,
        link if isinstance(link, float) else None,
        disk if isinstance(disk, float) else None,
    )


def _moved(part: str, kind: str) -> float:
    text = part.strip().lower()
    try:
        return moved_of(re.sub(r"^(link|disk|ssd) ?[:@]", "", text))
    except ValueError:
        right = "link@16GB/s or pcie4x16" if kind == "link" else "disk@3.5GB/s"
        raise UserError(f"{part!r}: found no rate of the {kind}; right is {right}") from None


def _kind_of(part: str) -> str | None:
    """What a part speaks of; None: a device."""
    text = part.lower()
    if re.match(r"(lp)?ddr\d|(ram|host|memory|mem)\b|\d+(\.\d+)? ?[gt]i?b([:@ ]|$)", text):
        return "host memory"
    if re.match(r"link\b|pcie-?\d", text):
        return "link"
    return "disk" if re.match(r"(disk|ssd)\b", text) else None


def _parts(text: str) -> list[str]:
    """`text` at its plus signs, but for those that belong to a chip's name, such as ryzen-ai-max+-395."""
    pieces = text.split("+")
    parts: list[str] = []
    at = 0
    while at < len(pieces):
        joined = "+".join(pieces[at : at + 2]).strip()
        whole = at + 1 < len(pieces) and chip_or_none(joined) is not None
        parts.append(joined if whole else pieces[at].strip())
        at += 2 if whole else 1
    if not all(parts):
        raise UserError(f"{text!r}: nothing stands on one side of a +; give parts such as rtx-3090+ddr4-3200x2:64GB")
    return parts
