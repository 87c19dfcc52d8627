"""A chip that a user describes: a YAML or JSON file with what its data sheet says, in the units data sheets use.

Beside the catalogue because it needs pydantic, which whoever only looks a chip up by name does without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from breakeven.errors import UserError
from breakeven.hardware.chips import Chip, ChipClass, Price, slug_of
from breakeven.model.readers.bounded import MOST_TYPED_BYTES, bounded_json, bounded_yaml, read_bounded, shown

EXAMPLE = "name: My board\nclass: sbc\nbandwidth_gb_per_s: 34.1\nmemory_gb: 16\npeak_tflops: {fp16: 0.5}\n"
"""The least a file may hold is its first three lines."""

_Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Price(_Strict):
    kind: Literal["hour", "purchase"]
    usd: Annotated[float, Field(ge=0)]
    what: str = "as given"
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]
    source: str = "as given"


class _Form(_Strict):
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
}


def read_chip(path: Path) -> Chip:
    """The chip a user described in a YAML or JSON file.

    Raises UserError that names the file, the key, what was found and what would be right.
    """
    try:
        data = read_bounded(path, MOST_TYPED_BYTES)
        content = bounded_json(data) if path.suffix == ".json" else bounded_yaml(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); give a YAML or JSON file that describes a chip") from error
    except ValueError as error:
        raise UserError(f"{path}: not well-formed: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {shown(content)} where keys were expected, such as {_RIGHT_KEYS}")
    try:
        form = _Form.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error)}") from error
    return _chip(form, path)


_RIGHT_KEYS = ", ".join(_RIGHT)


def _chip(form: _Form, path: Path) -> Chip:
    return Chip(
        slug=slug_of(form.name) or path.stem,
        name=form.name,
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


def _said(error: ValidationError) -> str:
    """The first thing that is wrong: key, what was found, what would be right."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "[key]"]
    key, top = ".".join(place), place[0] if place else ""
    if first["type"] == "missing":
        return f"{key} is missing; give {_RIGHT.get(top, 'it')}"
    if first["type"] == "extra_forbidden":
        return f"no key is called {key!r}; the keys are {_RIGHT_KEYS}"
    return f"{key}: found {shown(first['input'])}; right is {_RIGHT.get(top, first['msg'])}"
