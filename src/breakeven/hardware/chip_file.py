"""A chip or a whole machine that a user describes: a YAML or JSON file, in the units of data sheets.

A chip's file holds what its data sheet says, and may say what stands beside it (`host`, `link`, `disk`). A machine's
file names its `devices`: chips of the catalogue, or chips described in place.

Beside the catalogue because it needs pydantic, which whoever only looks a chip up by name does without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from breakeven.errors import UserError, printable
from breakeven.hardware.chips import MOST_DEVICES, Chip, ChipClass, Price, devices_named, rate_of, size_of, slug_of
from breakeven.hardware.machine import HostMemory, Machine, assembled, host_of, moved_of
from breakeven.model.readers.bounded import MOST_TYPED_BYTES, bounded_json, bounded_yaml, read_bounded, shown

EXAMPLE = "name: My board\nclass: sbc\nbandwidth_gb_per_s: 34.1\nmemory_gb: 16\npeak_tflops: {fp16: 0.5}\n"
"""The least a file may hold is its first three lines."""

_Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _size(value: object) -> int:
    return size_of(_text(value))


def _rate(value: object) -> float:
    return rate_of(_text(value))


def _moved(value: object) -> float:
    return moved_of(_text(value))


def _kind(value: object) -> str:
    try:
        found = host_of(text := _text(value))
    except UserError as error:
        raise ValueError(str(error)) from None
    if found.bandwidth_bytes_per_s is None or found.words is None or found.memory_bytes or found.cores:
        raise ValueError("no kind")
    return text


_Any = TypeVar("_Any", bound=_Strict)
_Size = Annotated[int, BeforeValidator(_size)]
_Rate = Annotated[float, BeforeValidator(_rate)]
_Moved = Annotated[float, BeforeValidator(_moved)]
_Kind = Annotated[str, BeforeValidator(_kind)]


class _Host(_Strict):
    memory: _Size | None = None
    bandwidth: _Rate | None = None
    ddr: _Kind | None = None
    cores: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None


class _Beside(_Strict):
    host: _Host | str | None = None
    link: _Moved | None = None
    disk: _Rate | None = None


class _Machine(_Beside):
    name: Annotated[str, Field(min_length=1)] | None = None
    devices: list[Any] = []


class _Price(_Strict):
    kind: Literal["hour", "purchase"]
    usd: Annotated[float, Field(ge=0)]
    what: str = "as given"
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]
    source: str = "as given"


class _Form(_Beside):
    name: Annotated[str, Field(min_length=1)]
    chip_class: ChipClass = Field(alias="class")
    bandwidth_gb_per_s: _Positive
    memory_gb: _Positive | None = None
    peak_tflops: dict[Literal["bf16", "fp16", "fp8", "fp4", "int8"], _Positive] = {}
    link_gb_per_s: _Positive | None = None
    tdp_w: _Positive | None = None
    prices: list[_Price] = []
    source: str | None = None
    note: str | None = None
    host_memory_gb: _Positive | None = None
    host_bandwidth_gb_per_s: _Positive | None = None


_RIGHT_BESIDE = {
    "host": "what stands beside the devices, such as {memory: 64GB, ddr: ddr4-3200x2, cores: 16}",
    "host.memory": "the size of the host memory with its unit, such as 64GB",
    "host.bandwidth": "the nominal rate of the host memory with its unit, such as 51.2GB/s",
    "host.ddr": "the kind, MT/s and channels of the host memory, such as ddr4-3200x2",
    "host.cores": "how many cores, such as 16",
    "link": "the rate between host memory and a device, such as 16GB/s or pcie4x16",
    "disk": "the rate of the disk, such as 3.5GB/s",
}
_RIGHT_MACHINE = {"name": "a name", "devices": "a list of chips, such as [rtx-3090, rtx-3060]", **_RIGHT_BESIDE}
_RIGHT = {
    "name": "a name",
    "class": f"one of {', '.join(get_args(ChipClass))}",
    "bandwidth_gb_per_s": "the nominal memory bandwidth in GB/s, such as 273",
    "memory_gb": "the memory in GiB, such as 64",
    "peak_tflops": "dense peak rates in TFLOPS by type (bf16, fp16, fp8, fp4, int8), such as {fp16: 59.4}",
    "link_gb_per_s": "the rate between two devices in GB/s, one direction",
    "tdp_w": "watts",
    "prices": "a list of {kind: hour or purchase, usd: 1.5, date: 2026-04}",
    "source": "where the figures come from",
    "note": "any text",
    **_RIGHT_BESIDE,
    "host_memory_gb": "the size of the host memory in GiB, such as 64",
    "host_bandwidth_gb_per_s": "the nominal rate of the host memory in GB/s, such as 51.2",
}


def read_chip(path: Path) -> Chip:
    """The chip a user described in a YAML or JSON file; what it says beside the chip is left out.

    Raises UserError that names the file, the key, what was found and what would be right.
    """
    machine = read_described(path)
    if len(machine.devices) > 1:
        raise UserError(
            f"{printable(str(path))}: describes a machine of {len(machine.devices)} devices where one chip is asked for"
        )
    return machine.devices[0]


def read_described(path: Path) -> Machine:
    """The machine, or the one chip as a machine, that a user described in a YAML or JSON file.

    Raises UserError that names the file, the key, what was found and what would be right.
    """
    named = printable(str(path))
    try:
        data = read_bounded(path, MOST_TYPED_BYTES)
        content = bounded_json(data) if path.suffix.lower() == ".json" else bounded_yaml(data)
    except OSError as error:
        why = error.strerror or "not a file"
        raise UserError(f"{named}: cannot be read ({why}); give a YAML or JSON file that describes a chip") from error
    except ValueError as error:
        raise UserError(f"{named}: not well-formed: {printable(str(error))}") from error
    if not isinstance(content, dict):
        raise UserError(f"{named}: found {shown(content)} where keys were expected, such as {_RIGHT_KEYS}")
    try:
        # Host memory alone is a machine: a CPU.
        whole = "devices" in content or ("host" in content and not {"class", "bandwidth_gb_per_s"} & content.keys())
        return _whole(content, path) if whole else _alone(content, path)
    except UserError as error:
        raise UserError(f"{named}: {error}") from error


def _whole(content: dict[Any, Any], path: Path) -> Machine:
    form = _checked(_Machine, content)
    if len(form.devices) > MOST_DEVICES:
        raise UserError(f"devices: found {len(form.devices)} entries; give at most {MOST_DEVICES}")
    devices: list[Chip] = []
    for index, entry in enumerate(form.devices):
        if isinstance(entry, dict):
            devices.append(_chip(_checked(_Form, entry, f"devices.{index}."), path))
        elif isinstance(entry, str):
            try:
                devices += devices_named(entry)
            except UserError as error:
                raise UserError(f"devices.{index}: {error}") from None
        else:
            raise UserError(f"devices.{index}: found {shown(entry)}; right is a chip's name, or a chip's own keys")
    return assembled(printable(form.name or path.stem), devices, _host(form.host), form.link, form.disk)


def _alone(content: dict[Any, Any], path: Path) -> Machine:
    form = _checked(_Form, content)
    chip, host = _chip(form, path), _host(form.host)
    memory, rate = form.host_memory_gb, form.host_bandwidth_gb_per_s
    if memory is not None or rate is not None:
        if host is not None:
            raise UserError("host and host_memory_gb or host_bandwidth_gb_per_s say the same; give host alone")
        host = HostMemory(
            memory_bytes=None if memory is None else round(memory * 2**30),
            bandwidth_bytes_per_s=None if rate is None else rate * 1e9,
        )
    return assembled(printable(form.name), [chip], host, form.link, form.disk)


def _host(form: _Host | str | None) -> HostMemory | None:
    if form is None:
        return None
    if isinstance(form, str):
        try:
            return host_of(form)
        except UserError as error:
            raise UserError(f"host: {error}") from None
    if form.ddr is not None and form.bandwidth is not None:
        raise UserError("host: ddr and bandwidth say the same; give one of them")
    if form == _Host():
        raise UserError(f"host: found nothing in it; right is {_RIGHT_BESIDE['host']}")
    kind = HostMemory() if form.ddr is None else host_of(form.ddr)
    return HostMemory(
        memory_bytes=form.memory,
        bandwidth_bytes_per_s=form.bandwidth or kind.bandwidth_bytes_per_s,
        cores=form.cores,
        words=kind.words,
    )


def _checked(form: type[_Any], content: dict[Any, Any], place: str = "") -> _Any:
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise UserError(_said(error, place, _RIGHT_MACHINE if form is _Machine else _RIGHT)) from None


_RIGHT_KEYS = ", ".join(key for key in _RIGHT if "." not in key)


def _chip(form: _Form, path: Path) -> Chip:
    return Chip(
        slug=slug_of(form.name) or path.stem,
        name=printable(form.name),
        chip_class=form.chip_class,
        bandwidth_bytes_per_s=form.bandwidth_gb_per_s * 1e9,
        memory_bytes=None if form.memory_gb is None else round(form.memory_gb * 2**30),
        peak_flops={kind: rate * 1e12 for kind, rate in form.peak_tflops.items()},
        link_bytes_per_s=None if form.link_gb_per_s is None else form.link_gb_per_s * 1e9,
        tdp_w=form.tdp_w,
        prices=[Price(kind=p.kind, usd=p.usd, what=p.what, date=p.date, source=p.source) for p in form.prices],
        source=form.source or f"described in {path.name}",
        note=form.note,
    )


def _said(error: ValidationError, place: str, right: dict[str, str]) -> str:
    """The first thing that is wrong: key, what was found, what would be right."""
    # A host that is neither text nor keys is told once a kind; what is wrong inside the keys says more.
    first = next((each for each in error.errors() if each["loc"][:2] != ("host", "str")), error.errors()[0])
    loc = [str(part) for part in first["loc"] if part not in ("[key]", "_Host", "str")]
    key, top = ".".join(loc), loc[0] if loc else ""
    said = right.get(key) or right.get(top)
    if first["type"] == "missing":
        return f"{place}{printable(key)} is missing; give {said or 'it'}"
    if first["type"] == "extra_forbidden":
        inside = [name.removeprefix("host.") for name in right if name.startswith("host.")]
        keys = inside if top == "host" else [name for name in right if "." not in name]
        return f"no key is called {place + key!r}; the keys are {', '.join(keys)}"
    return f"{place}{printable(key)}: found {shown(first['input'])}; right is {said or first['msg']}"
