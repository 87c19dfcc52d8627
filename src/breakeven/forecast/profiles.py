"""From what a person types to a profile: this machine, a file, or a chip's name; and profiles on disk.

A chip's profile needs no probes: what its data sheet says, times the efficiencies its class of machine reaches
(`efficiencies`).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec

from breakeven.errors import UserError, expanded
from breakeven.forecast.constants import PROFILE_SCHEMA, Constants, Profile, ProfileOrigin, fault_of, step_engine
from breakeven.forecast.efficiencies import AS_THEY_ARE, Efficiency, Entry, efficiencies, efficiency_of
from breakeven.forecast.residency import (
    CORE_FLOPS_PER_S,
    HOST_FLOPS_PER_S,
    PCIE_BYTES_PER_S,
    SERVER_BYTES_PER_S,
)
from breakeven.hardware.chips import Chip, ChipClass, backend_of
from breakeven.hardware.described import machine_named
from breakeven.hardware.machine import Machine, MachineSpec
from breakeven.hardware.reader import read_machine
from breakeven.model.formats.gpu import MLX, GpuFormat
from breakeven.model.formats.named import OwnFormat, format_named
from breakeven.version import __version__

NO_LLAMA_CPP = ("gaudi", "tpu")
"""Makers' chips that llama.cpp has no backend for."""


def profile_of_chip(chip: Chip, engine: str, devices: int = 1, format_name: str | None = None) -> Profile:
    """What `engine` should reach on `devices` of `chip`, from its data sheet alone.

    `format_name` chooses the peak rate of arithmetic (fp8 tensors run on the fp8 units); None: 16-bit. Raises UserError
    for an unknown engine or format, and for fewer than one device.
    """
    if devices < 1:
        raise UserError(f"{devices} devices of {chip.slug}: give at least 1")
    if engine == "llama.cpp" and backend_of(chip) in NO_LLAMA_CPP:
        raise UserError(f"llama.cpp has no kernels for {chip.name}; give --engine vllm, or another machine")
    entry = efficiency_of(chip.chip_class, engine, backend_of(chip))
    return profile_with(chip, entry, devices, format_name, efficiencies().date, efficiencies().sources)


def profile_with(
    chip: Chip, entry: Entry, devices: int, format_name: str | None, date: str, sources: list[str]
) -> Profile:
    """`profile_of_chip` with the efficiencies given: what the fit calls."""
    found = entry.efficiency
    bandwidth = chip.bandwidth_bytes_per_s
    peak = peak_flops(chip, found, engine=entry.engine, format_name=format_name)
    link = chip.link_bytes_per_s * found.link_share if chip.link_bytes_per_s else found.link_bytes_per_s
    return Profile(
        name=chip.slug,
        engine=entry.engine,
        devices=devices,
        constants=Constants(
            weight_bytes_per_s=bandwidth * found.weight_share,
            kv_bytes_per_s=bandwidth * found.kv_share,
            decode_flops_per_s=peak * found.decode_flops_share,
            prefill_flops_per_s=peak * found.prefill_flops_share,
            element_s=found.element_bytes / bandwidth,
            host_flops_per_s=HOST_FLOPS_PER_S if found.host_bytes_per_s else None,
            stream_bytes_per_s=PCIE_BYTES_PER_S * found.stream_share if found.host_bytes_per_s else None,
            **{name: getattr(found, name) for name in AS_THEY_ARE},
            link_bytes_per_s=link,
        ),
        errors=entry.errors,
        ranges=entry.ranges,
        origin=ProfileOrigin(
            how="datasheet",
            engine=entry.engine,
            engine_version=None,
            date=date,
            version=__version__,
            format=format_name,
            points=entry.points,
            at_prior=entry.at_prior,
            sources=[f"data sheet: {chip.source}", entry.basis, *sources],
            kernels=sorted(entry.kernels),
            types=entry.types,
        ),
        memory_bytes=None if chip.memory_bytes is None else int(chip.memory_bytes * found.usable_memory),
        chip=chip,
        idle_w=None if chip.tdp_w is None else chip.tdp_w * found.idle_share,
        busy_w=None if chip.tdp_w is None else chip.tdp_w * found.busy_share,
    )


def profile_of_machine(machine: Machine, engine: str, devices: int | None, format_name: str | None = None) -> Profile:
    """What `engine` should reach on a described machine: its devices, and what lies beside them in host memory.

    `devices`: how many of them, from the first; of one described device as many like it. None: all. Raises UserError
    for unlike devices in an engine that parts models evenly, and for more devices than there are.
    """
    described = len(machine.devices)
    if devices is not None and 1 < described < devices:
        raise UserError(f"{devices} devices of {machine.name}: it has {described}; give at most that many")
    count = devices or described
    chosen = machine.devices[: min(count, described)]
    profile = profile_of_chip(chosen[0], engine, count, format_name)
    unlike = len({chip.slug for chip in chosen}) > 1
    if unlike and engine != "llama.cpp":
        raise UserError(f"{engine} parts a model evenly among like devices; use --engine llama.cpp on {machine.name}")
    found = beside(profile, machine, efficiency_of(chosen[0].chip_class, engine, backend_of(chosen[0])).efficiency)
    others = [profile_of_chip(chip, engine, 1, format_name) for chip in chosen[1:]] if unlike else []
    name = machine.name if described > 1 or machine.host else profile.name
    return msgspec.structs.replace(found, name=name, others=others)


def beside(profile: Profile, machine: Machine, share: Efficiency) -> Profile:
    """`profile` with the described machine's host memory, link and disk."""
    host, constants = machine.host, profile.constants
    if share.host_bytes_per_s is None:
        return msgspec.structs.replace(profile, host=host)
    nominal = host.bandwidth_bytes_per_s if host else None
    found = constants.host_bytes_per_s
    if nominal is not None:
        found = nominal * (share.host_share if nominal < SERVER_BYTES_PER_S else share.host_server_share)
    flops = host.cores * CORE_FLOPS_PER_S if host and host.cores else constants.host_flops_per_s
    link, disk = machine.link_bytes_per_s, machine.disk_bytes_per_s
    return msgspec.structs.replace(
        profile,
        host=host,
        host_memory_bytes=host.memory_bytes if host else None,
        constants=msgspec.structs.replace(
            constants,
            host_bytes_per_s=found,
            host_flops_per_s=flops,
            stream_bytes_per_s=constants.stream_bytes_per_s if link is None else link * share.stream_share,
            disk_bytes_per_s=disk or constants.disk_bytes_per_s,
        ),
    )


def peak_flops(chip: Chip, found: Efficiency, *, engine: str, format_name: str | None) -> float:
    """Peak operations a second that the engine's matrix products draw on.

    vLLM multiplies FP8 and FP4 weights on units of that width where the chip has them; other formats, and llama.cpp's
    all, are charged against the 16-bit peak.
    """
    sixteen = (
        chip.peak_flops.get("bf16")
        or chip.peak_flops.get("fp16")
        or found.flops_per_byte * (chip.bandwidth_bytes_per_s)
    )
    if engine != "vllm" or format_name is None:
        return sixteen
    wanted = _UNITS.get(format_named(format_name).name, ())
    return max([sixteen, *(chip.peak_flops[kind] for kind in wanted if kind in chip.peak_flops)])


_UNITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("FP8", "FP8_TENSOR", "FP8_BLOCK", "MXFP8"), ("fp8",)),
    "INT8": ("int8", "fp8"),
    "NVFP4": ("fp4", "fp8"),
}
"""Units that multiply in a weight format's own width, the narrowest first."""


THIS = "this"
SERVING_CLASSES: tuple[ChipClass, ...] = ("datacenter", "workstation")
"""Chips on which models are served with vLLM by default; on all others llama.cpp runs them."""
BOTH_CLASSES: tuple[ChipClass, ...] = (*SERVING_CLASSES, "consumer")
"""Chips that both engines run on."""
SAME_MEMORY = 0.02
"""Machines whose memory differs by less are the same: the kernel's own share changes from boot to boot."""


def profile_directory() -> Path:
    """Where profiles are kept: `$XDG_DATA_HOME/breakeven/profiles`, else the platform's place for data."""
    base = os.environ.get("XDG_DATA_HOME")
    home = expanded("~") / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
    return (Path(base) if base else home) / "breakeven" / "profiles"


def save_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile, by default where `profile_named` finds it; returns where. Raises UserError when it cannot."""
    if path is None:
        parts = (profile.name, profile.origin.engine, profile.origin.format, f"{profile.devices}x", profile.origin.date)
        path = profile_directory() / f"{_slug('-'.join(p for p in parts if p))}.json"
    content = msgspec.json.format(msgspec.json.encode(profile), indent=2)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content + b"\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another place with --out") from error
    return path


def load_profile(path: Path) -> Profile:
    """A profile from its file. Raises UserError when it is none."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give what `breakeven calibrate` wrote") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path} is no profile: {error}; give what `breakeven calibrate` wrote") from error
    if profile.schema != PROFILE_SCHEMA:
        raise UserError(f"{path} has schema {profile.schema}, this version reads {PROFILE_SCHEMA}; calibrate again")
    if fault := fault_of(profile):
        raise UserError(f"{path}: {fault}; calibrate again, or put it right")
    return profile


def profiles_here(machine: MachineSpec) -> list[Profile]:
    """Profiles in the user's directory that were fitted on `machine`, newest first. Passes over what it cannot read."""
    found = []
    for path in profile_directory().glob("*.json"):
        try:
            profile = load_profile(path)
        except UserError:
            continue
        if profile.machine is not None and _same(profile.machine, machine):
            found.append((profile.origin.date, path.stat().st_mtime, profile))
    return [profile for _, _, profile in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def profile_named(
    machine: str, engine: str | None = None, devices: int | None = None, format_name: str | None = None
) -> Profile:
    """The profile of what a person calls a machine.

    "this": the newest calibrated profile of this machine, one of `format_name` before others. A path: a profile, or a
    machine described in YAML or JSON. Else a machine in words (`rtx-3090+ddr4-3200x2:64GB`), from data sheets. `engine`
    None: the one that such machines run. Raises UserError when there is no such profile, and says what to do.
    """
    if machine == THIS:
        return _this(engine, devices, format_name)
    path = expanded(machine)
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _from_file(path, engine, devices, format_name)
    return _described(machine_named(machine), engine, devices, format_name)


def default_engine(chip: Chip, format_name: str | None = None) -> str:
    """The engine that machines with this chip run unless told otherwise.

    A format that only one of the engines reads decides, where the class of machine runs both.
    """
    usual = "vllm" if chip.chip_class in SERVING_CLASSES else "llama.cpp"
    if format_name is None or chip.chip_class not in BOTH_CLASSES:
        return usual
    return engine_of_format(format_name) or usual


def engine_of_format(format_name: str) -> str | None:
    """The one engine that reads a weight format; None where both do, or neither. Raises UserError for no format."""
    chosen = format_named(format_name)
    if isinstance(chosen, GpuFormat):
        return None if chosen.home == MLX else "vllm"
    if isinstance(chosen, OwnFormat):
        return "llama.cpp"
    return "llama.cpp" if chosen.quantized and chosen.name != "MXFP4" else None


def _this(engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    known = profiles_here(read_machine())
    fitting = [p for p in known if engine in (None, p.origin.engine, p.engine) and devices in (None, p.devices)]
    if not fitting:
        wanted = f" with {engine}" if engine else ""
        wanted += f" on {devices} devices" if devices and devices > 1 else ""
        others = ", ".join(sorted({p.origin.engine for p in known}))
        raise UserError(
            f"this machine has not been calibrated{wanted}; run `breakeven calibrate"
            + (f" --engine {engine}`" if engine else "`")
            + ", or name a chip with --machine (`breakeven machines` lists them)"
            + (f"; calibrated so far: {others}" if others else "")
        )
    fitting.sort(key=lambda p: engine not in (None, p.origin.engine))  # the engine itself before its relatives
    same_format = [p for p in fitting if _lower(p.origin.format) == _lower(format_name)]
    return (same_format or fitting)[0]


def _from_file(path: Path, engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    if path.suffix.lower() == ".json" and _is_profile(path):
        profile = load_profile(path)
        if engine not in (None, profile.engine, profile.origin.engine):
            found = f"{path} is a profile of {profile.origin.engine}, not of {engine}"
            raise UserError(f"{found}; give one of {engine}, or leave --engine out")
        return profile
    return _described(machine_named(str(path)), engine, devices, format_name)


def _described(machine: Machine, engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    chosen = step_engine(engine or default_engine(machine.devices[0], format_name))
    return profile_of_machine(machine, chosen, devices, format_name)


def _is_profile(path: Path) -> bool:
    """Whether a JSON file has a profile's constants; a chip's description has none."""
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, RecursionError):
        return False  # the reader of chips says what is wrong
    return isinstance(content, dict) and ("constants" in content or content.get("schema") == PROFILE_SCHEMA)


def _same(a: MachineSpec, b: MachineSpec) -> bool:
    return (
        (a.cpu, a.logical_cores) == (b.cpu, b.logical_cores)
        and [gpu.name for gpu in a.gpus] == [gpu.name for gpu in b.gpus]
        and abs(a.memory_bytes - b.memory_bytes) <= SAME_MEMORY * b.memory_bytes
    )


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
