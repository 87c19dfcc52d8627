"""What engines list: the devices that each build of llama.cpp here can use, and which engine that makes the usual one.

An engine is asked in a process of its own, because a driver that is asked may hang, crash or keep memory. The machine
itself is read elsewhere (`hardware/`); who wants both joins them by name or memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER
from breakeven.errors import UserError, expanded, printable
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import Placement
from breakeven.hardware.system import kill_session

VARIABLE = "BREAKEVEN_LLAMA_SERVER"
"""Environment variable that may name a `llama-server` executable, or that of ik_llama.cpp."""
HOMEBREW = (str(Path("/opt", "homebrew/bin")), "/usr/local/bin", str(Path("/home", "linuxbrew/.linuxbrew/bin")))
"""Where Homebrew puts executables, which a process that no shell started may not have on its PATH."""
Kind = Literal["gpu", "igpu", "cpu", "accel"]

_ASK_TIMEOUT_S = 60.0
_LOOK_S = 0.1
_MOST_SAID_BYTES = 2**24
_MIB = 2**20
_DEVICE = re.compile(r"^\s+(\S+): (.*?) \((\d+) MiB, (\d+) MiB free\)\s*$", re.MULTILINE)
_OLD_CUDA = re.compile(r"^\s+Device (\d+): (.+?), compute capability .*?(?:VRAM: (\d+) MiB)?\s*$", re.MULTILINE)
_FLAGS = re.compile(r"^\s*((?:-{1,2}[A-Za-z][\w-]*(?:,\s*|\s+))*-{1,2}[A-Za-z][\w-]*)")
_NEEDED = ("--model", "--ctx-size", "--parallel", "--port", "--batch-size")
_BUILD = re.compile(r"^version: (.+)$", re.MULTILINE)
_BUILT_WITH = re.compile(r"^built with (.+)$", re.MULTILINE)
_INTEGRATED = re.compile(r"\b(Apple|Radeon (Graphics|\d{3}M)|Radeon 8\d{3}S|UHD|Iris|Tegra|Orin|GB10)\b")


class EngineDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device as an engine lists it. None: it does not tell.

    `place` is the name that placements use, such as Vulkan0. `kind` "igpu": its memory is the machine's own.
    """

    engine: str
    place: str
    description: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    kind: Kind = "gpu"

    @property
    def is_gpu(self) -> bool:
        """Whether layers can lie on it."""
        return self.kind in ("gpu", "igpu")


class Binary(msgspec.Struct, frozen=True, kw_only=True):
    """A `llama-server` executable, as it tells of itself. `options`: flag -> its lines in the help."""

    path: Path
    version: str
    built_with: str | None
    options: dict[str, str]
    devices: tuple[EngineDevice, ...]

    def flag(self, *names: str) -> str | None:
        """The first of these names that it knows; None when it knows none."""
        return next((name for name in names if name in self.options), None)

    def build(self) -> str:
        """In a few words."""
        return f"{self.path.name} {self.version}"


def listed() -> list[EngineDevice]:
    """Devices of every engine here that lists them; none of one that is not here or cannot be asked."""
    found: list[EngineDevice] = []
    with contextlib.suppress(UserError):
        found += embedded_devices()
    with contextlib.suppress(UserError):
        found += read_binary(find_llama_server()).devices
    return found


@cache
def embedded_devices() -> tuple[EngineDevice, ...]:
    """What the embedded llama.cpp can use, asked in a child process. Raises UserError when it cannot be asked."""
    try:
        done = _run([sys.executable, "-m", "breakeven.engines.devices"])
        return msgspec.json.decode(done.stdout.rpartition("\n")[2], type=tuple[EngineDevice, ...])
    except (msgspec.DecodeError, ValueError) as error:
        raise UserError(f"xllamacpp does not tell its devices ({error}); reinstall it: pip install xllamacpp") from None


def devices_of_library() -> tuple[EngineDevice, ...]:
    """What the xllamacpp loaded into this very process lists: for a child that is an engine."""
    import xllamacpp

    kinds: dict[str, Kind] = {"GPU": "gpu", "IGPU": "igpu", "ACCEL": "accel"}
    return tuple(
        EngineDevice(
            engine=LLAMA_CPP,
            place=device["name"],
            description=device["description"],
            memory_bytes=device["memory_total"] or None,
            free_bytes=device["memory_free"] if device["memory_total"] else None,
            kind=_kind(kinds.get(device["type"].name.rpartition("_")[2], "cpu"), device["description"]),
        )
        for device in xllamacpp.get_device_info()
    )


def find_llama_server(environment: Mapping[str, str] | None = None) -> Path:
    """The user's own: what BREAKEVEN_LLAMA_SERVER names, `llama-server` on the PATH, Homebrew's.

    Raises UserError when there is none.
    """
    inherited = os.environ if environment is None else environment
    if named := inherited.get(VARIABLE):
        path = expanded(named)
        found = shutil.which(str(path / "llama-server" if path.is_dir() else path))
        if found is None:
            raise UserError(f"{VARIABLE} is {named}, which is no executable; name a llama-server")
        return Path(found)
    path_and_brew = os.pathsep.join([inherited.get("PATH", os.defpath), *HOMEBREW])
    if (found := shutil.which("llama-server", path=path_and_brew)) is not None:
        return Path(found)
    raise UserError(
        "llama-server is not here; install llama.cpp (brew install llama.cpp, winget install llama.cpp, or a release "
        f"of its own), put llama-server on the PATH, or name it in {VARIABLE}"
    )


def read_binary(path: Path) -> Binary:
    """What an executable says of itself; asked once for each file.

    Raises UserError when it is no llama-server, cannot run here, or is too old to be told what is needed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a llama-server in {VARIABLE}") from None
    return _read(path, stat.st_mtime_ns, stat.st_size, os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _read(path: Path, _mtime_ns: int, _size: int, _visible: str | None) -> Binary:
    done = _run([str(path), "--help"])
    options = read_options(done.stdout + done.stderr)
    if "--model" not in options or "--ctx-size" not in options:
        said = next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "nothing")
        raise UserError(f"{path} is no llama-server (its --help says {said[:80]!r}); name one in {VARIABLE}")
    if lacking := [name for name in _NEEDED if name not in options]:
        raise UserError(f"{path} is too old: its --help lacks {', '.join(lacking)}; install a newer llama.cpp")
    done = _run([str(path), "--version"])
    text = done.stdout + done.stderr
    build, compiler = _BUILD.search(text), _BUILT_WITH.search(text)
    devices: tuple[EngineDevice, ...] = ()
    if "--list-devices" in options:
        asked = _run([str(path), "--list-devices"])
        devices = read_devices(asked.stdout + asked.stderr)
    else:
        devices = read_devices(text + done.stderr)
    return Binary(
        path=path,
        version=build[1].strip() if build else "unknown",
        built_with=compiler[1].strip() if compiler else None,
        options=options,
        devices=devices,
    )


def devices_with(binary: Binary, arguments: Sequence[str]) -> tuple[EngineDevice, ...]:
    """Its devices with further flags of the user's, which may name servers that lend theirs (`--rpc`)."""
    if "--rpc" not in arguments or "--list-devices" not in binary.options:
        return binary.devices
    servers = list(arguments[arguments.index("--rpc") :][:2])
    asked = _run([str(binary.path), *servers, "--list-devices"])
    return read_devices(asked.stdout + asked.stderr)


def read_options(help_text: str) -> dict[str, str]:
    """Every flag that a help page names at the start of a line, and its lines."""
    options: dict[str, str] = {}
    names: list[str] = []
    for line in help_text.splitlines():
        match = _FLAGS.match(line) if line.lstrip().startswith("-") else None
        if match:
            names = re.split(r",\s*|\s+", match[1])
        for name in names:
            options[name] = f"{options.get(name, '')}{line.strip()}\n"
    return options


def read_devices(text: str) -> tuple[EngineDevice, ...]:
    """The devices of `--list-devices`, or of what older CUDA builds say when they start."""
    found = [
        EngineDevice(
            engine=LLAMA_SERVER,
            place=place,
            description=description,
            # A device that says 0 of 0 does not tell.
            memory_bytes=int(total) * _MIB or None,
            free_bytes=int(free) * _MIB if int(total) else None,
            kind=_kind("accel" if place.startswith("BLAS") else "gpu", description),
        )
        for place, description, total, free in _DEVICE.findall(text)
    ]
    if not found:
        found = [
            EngineDevice(
                engine=LLAMA_SERVER, place=f"CUDA{i}", description=name, memory_bytes=int(mib or 0) * _MIB or None
            )
            for i, name, mib in _OLD_CUDA.findall(text)
        ]
    return tuple(found)


def _kind(kind: Kind, description: str) -> Kind:
    """llama.cpp calls Apple's and some integrated ones GPUs like any other."""
    return "igpu" if kind == "gpu" and _INTEGRATED.search(description) else kind


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to its end. A program that hangs, or writes without end, is ended with all that it started.

    It writes into files: a pipe that some child of a wrapper script keeps open would never end.
    """
    words = " ".join([Path(command[0]).name, *command[1:]])
    try:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
            try:
                _wait(child, [out.fileno(), err.fileno()], words)
            except BaseException:
                kill_session(child.pid)
                child.wait()
                raise
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(_plain(file.read(_MOST_SAID_BYTES).decode(errors="replace")))
            return subprocess.CompletedProcess(command, child.returncode, *said)
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run ({error.strerror}); name a llama-server in {VARIABLE}") from None


def _plain(text: str) -> str:
    """Lines without what drives a terminal: names and versions in them are shown."""
    return "\n".join(printable(line.replace("\t", " ")) for line in text.replace("\r\n", "\n").split("\n"))


def _wait(child: subprocess.Popen[bytes], files: Sequence[int], words: str) -> None:
    until = time.monotonic() + _ASK_TIMEOUT_S
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_LOOK_S)
            return
        if sum(os.fstat(fd).st_size for fd in files) > _MOST_SAID_BYTES:
            raise UserError(f"{words} writes without end; name another in {VARIABLE}")
        if time.monotonic() > until:
            raise UserError(f"{words} did not answer within {_ASK_TIMEOUT_S:.0f} s; name another in {VARIABLE}")


def check_devices(placement: Placement, gpus: Sequence[EngineDevice], engine: str, build: str) -> None:
    """Raise UserError for a placement that asks for a device which this build does not list, or that cannot be."""
    if placement.cpu_moe == "auto" and (isinstance(placement.gpu_layers, int) or placement.overrides):
        raise UserError(
            "--cpu-moe auto: llama.cpp chooses layers and experts together; leave --gpu-layers out, or give --cpu-moe "
            "a number"
        )
    spelled(placement.devices, gpus)
    wants = placement.gpu_layers not in ("auto", 0) or placement.cpu_moe is not None or placement.tensor_split
    if wants and not gpus:
        raise UserError(
            f"{engine} ({build}) lists no GPU, so nothing can be placed on one; leave --gpu-layers and --cpu-moe out, "
            "or use a build for this machine's GPU"
        )
    if len(placement.tensor_split) > max(1, len(placement.devices) or len(gpus)):
        raise UserError(
            f"--tensor-split gives {len(placement.tensor_split)} shares and {engine} lists "
            f"{', '.join(gpu.place for gpu in gpus)}"
        )


def check_embedded(placement: Placement) -> None:
    """`check_devices` with what the embedded llama.cpp lists; it is asked only where the placement needs a device."""
    if msgspec.structs.replace(placement, overrides=()) not in (Placement(), Placement(gpu_layers=0)):
        check_devices(placement, [device for device in embedded_devices() if device.is_gpu], LLAMA_CPP, "built in")


def check_user_binary(placement: Placement, flags: Sequence[str]) -> None:
    """`check_devices` with what the user's llama-server lists with these flags. Raises UserError if there is none."""
    binary = read_binary(find_llama_server())
    gpus = [device for device in devices_with(binary, flags) if device.is_gpu]
    check_devices(placement, gpus, LLAMA_SERVER, binary.build())


def spelled(asked: Sequence[str], gpus: Sequence[EngineDevice]) -> list[str]:
    """The devices asked for, as the engine spells them. Raises UserError that names those there are."""
    known = {gpu.place.lower(): gpu.place for gpu in gpus}
    for place in asked:
        if place.lower() not in known:
            there = ", ".join(f"{gpu.place} ({gpu.description})" for gpu in gpus) or "none"
            raise UserError(f"--device {place}: the engine has no such device (it lists: {there})")
    return [known[place.lower()] for place in asked]


def usual_engine(asked: str | None, machine: MachineSpec) -> tuple[str, str | None]:
    """The engine that is used, and what must be said of that choice first; None when nothing must.

    The embedded llama.cpp, unless only the user's llama-server can use a GPU. `asked`: what was named, which is kept.
    """
    if asked not in (None, LLAMA_CPP):
        return asked or LLAMA_CPP, None
    binary = None
    with contextlib.suppress(UserError):
        binary = read_binary(find_llama_server())
    theirs = [device for device in binary.devices if device.is_gpu] if binary else []
    if not theirs and not machine.gpus:
        return LLAMA_CPP, None
    with contextlib.suppress(UserError):
        if any(device.is_gpu for device in embedded_devices()):
            return LLAMA_CPP, None
    if binary is not None and theirs and asked is None:
        return LLAMA_SERVER, (
            f"Runs {binary.path.name} (build {binary.version}), which can use {theirs[0].description}; the built-in "
            "llama.cpp of this installation has no GPU. --engine llama.cpp measures the CPU."
        )
    gpu = theirs[0].description if theirs else machine.gpus[0].name
    change = (
        "--engine llama-server uses it"
        if theirs
        else f"install a llama-server for it (or name yours in {VARIABLE}), or an xllamacpp wheel for CUDA, ROCm or "
        "Vulkan, to measure it"
    )
    return LLAMA_CPP, f"{gpu} stands here and this build of llama.cpp cannot use it: this measures the CPU; {change}."


if __name__ == "__main__":
    sys.stdout.write("\n" + msgspec.json.encode(devices_of_library()).decode())
