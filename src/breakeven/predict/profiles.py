"""Profiles on disk, and from what a person types to a profile: this machine, a file, or a chip's name."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.spec.chip import Chip, ChipClass
from breakeven.spec.formats import format_named
from breakeven.spec.gpu_formats import GpuFormat
from breakeven.spec.machine import MachineSpec
from breakeven.spec.machine_reader import read_machine
from breakeven.spec.profile import PROFILE_SCHEMA, Profile

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
    home = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
    return (Path(base) if base else home) / "breakeven" / "profiles"


def save_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile, by default where `profile_named` finds it; returns where. Raises UserError when it cannot."""
    if path is None:
        parts = (profile.name, profile.engine, profile.origin.format, f"{profile.devices}x", profile.origin.date)
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
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no profile: {error}; give what `breakeven calibrate` wrote") from error
    if profile.schema != PROFILE_SCHEMA:
        raise UserError(f"{path} has schema {profile.schema}, this version reads {PROFILE_SCHEMA}; calibrate again")
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
    chip described in YAML or JSON. Else the name of a catalogued chip, from its data sheet. `engine` None: the one that
    such machines run. Raises UserError when there is no such profile, and says what to do.
    """
    if machine == THIS:
        return _this(engine, devices, format_name)
    path = Path(machine).expanduser()
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _from_file(path, engine, devices, format_name)
    from breakeven.spec.chips import chip_named

    return _from_chip(chip_named(machine), engine, devices, format_name)


def default_engine(chip: Chip, format_name: str | None = None) -> str:
    """The engine that machines with this chip run unless told otherwise.

    A format that only one of the engines reads decides, where the class of machine runs both.
    """
    usual = "vllm" if chip.chip_class in SERVING_CLASSES else "llama.cpp"
    if format_name is None or chip.chip_class not in BOTH_CLASSES:
        return usual
    chosen = format_named(format_name)
    if isinstance(chosen, GpuFormat):
        return "vllm"
    return "llama.cpp" if chosen.quantized and chosen.name != "MXFP4" else usual


def _this(engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    known = profiles_here(read_machine())
    fitting = [p for p in known if engine in (None, p.engine) and devices in (None, p.devices)]
    if not fitting:
        wanted = f" with {engine}" if engine else ""
        wanted += f" on {devices} devices" if devices and devices > 1 else ""
        others = ", ".join(sorted({p.engine for p in known}))
        raise UserError(
            f"this machine has not been calibrated{wanted}; run `breakeven calibrate"
            + (f" --engine {engine}`" if engine else "`")
            + ", or name a chip with --machine (`breakeven machines` lists them)"
            + (f"; calibrated so far: {others}" if others else "")
        )
    same_format = [p for p in fitting if _lower(p.origin.format) == _lower(format_name)]
    return (same_format or fitting)[0]


def _from_file(path: Path, engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    if path.suffix.lower() == ".json" and _is_profile(path):
        profile = load_profile(path)
        if engine not in (None, profile.engine):
            raise UserError(f"{path} is a profile of {profile.engine}, not of {engine}; leave --engine out")
        return profile
    from breakeven.spec.chips import read_chip

    return _from_chip(read_chip(path), engine, devices, format_name)


def _from_chip(chip: Chip, engine: str | None, devices: int | None, format_name: str | None) -> Profile:
    from breakeven.predict.prior import profile_of_chip

    return profile_of_chip(chip, engine or default_engine(chip, format_name), devices or 1, format_name)


def _is_profile(path: Path) -> bool:
    """Whether a JSON file has a profile's constants; a chip's description has none."""
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
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
