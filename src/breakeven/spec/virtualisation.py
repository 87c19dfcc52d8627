"""Is this a virtual machine or a container? Told from the kernel's files alone.

Virtualisation matters to a measurement because neighbours can take CPU time that only shows as steal.
"""

from __future__ import annotations

from pathlib import Path

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
