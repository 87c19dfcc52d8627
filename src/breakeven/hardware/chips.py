"""The chips Breakeven knows by name: what the data sheet says.

Memory, bandwidth, peak rates, power, and prices with their dates. The catalogue is package data, each figure with its
source; a chip of one's own is described in a file (`chip_file`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Literal

import msgspec

from breakeven.errors import UserError

ChipClass = Literal["datacenter", "workstation", "consumer", "apple", "unified", "jetson", "sbc", "integrated", "cpu"]
"""Machines of one class share the efficiencies a datasheet prior starts from."""


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one device costs. `kind` "hour": US dollars an hour of one device; "purchase": dollars once."""

    kind: Literal["hour", "purchase"]
    usd: float
    what: str
    """Who charges it, such as "neocloud" or "3-year rental"."""
    date: str
    """Year and month, such as 2026-04. Prices date quickly: never show one without it."""
    source: str


class Chip(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device as published. None: not published, or not found with a source."""

    slug: str
    """Plain name for the command line: h100-sxm, rtx-4090, apple-m2-pro, raspberry-pi-5."""
    name: str
    chip_class: ChipClass
    bandwidth_bytes_per_s: float
    """Nominal memory bandwidth."""
    memory_bytes: int | None = None
    """Nominal device memory; unified memory of the largest model sold, or None where it varies."""
    peak_flops: dict[str, float] = {}
    """Dense (never sparse) peak operations a second by number type: bf16, fp16, fp8, fp4, int8."""
    link_bytes_per_s: float | None = None
    """Between devices of one machine, one direction."""
    tdp_w: float | None = None
    prices: list[Price] = []
    source: str
    note: str | None = None


HOW_TO_DESCRIBE = "or describe yours in a YAML file (`breakeven machines --help`) and name that"


class _Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """The data file. `aliases`: other names people use, to the slug that is meant."""

    about: str
    chips: list[Chip]
    aliases: dict[str, str]


def backend_of(chip: Chip) -> str:
    """Whose kernels run on a chip: cuda, metal, amd (ROCm or Vulkan), intel (SYCL or Vulkan), adreno, cpu, gaudi, tpu.

    Makers' words may stand before the name, as in "NVIDIA GeForce RTX 5070" of a description. Empty where neither its
    class nor its name tells.
    """
    if chip.chip_class in BACKENDS:
        return BACKENDS[chip.chip_class]
    return next((name for name, words in _KERNELS if re.search(rf"(?:^|-)(?:{words})", chip.slug)), "")


BACKENDS: dict[ChipClass, str] = {"apple": "metal", "sbc": "cpu", "cpu": "cpu", "jetson": "cuda"}
_KERNELS = (
    ("gaudi", r"gaudi"),
    ("tpu", r"tpu"),
    ("adreno", r"adreno|snapdragon"),
    ("cuda", r"nvidia|geforce|tesla|rtx|gtx|quadro|titan"),
    ("amd", r"amd\b|rx-|radeon|mi\d|ryzen|steam-deck|instinct"),
    ("intel", r"arc-|intel\b"),
    ("cuda", r"dgx|gb\d|gh\d|[ahblvpmt]\d"),
)


def chips() -> tuple[Chip, ...]:
    """All chips of the catalogue, in the order of its file: by class, then by vendor."""
    return tuple(_catalogue().chips)


def chip_named(name: str) -> Chip:
    """The chip of this slug, full name or common alias, in any case and spelling ("RTX 4090", "nvidia_h100_sxm").

    A size may follow ("apple-m2-max-64gb"): where memory is sold in several sizes it becomes the chip's.
    Raises UserError that offers the nearest names and says how to describe a chip that is not here.
    """
    if found := chip_or_none(name):
        return found
    raise UserError(
        f"no chip is called {name!r}; nearest: {', '.join(_nearest(slug_of(name)))} (`breakeven machines` lists all), "
        + HOW_TO_DESCRIBE
    )


def chip_or_none(name: str) -> Chip | None:
    """As `chip_named`, None where no chip is called so: what a driver calls a device need not be one of the list."""
    known = _by_key()
    asked = slug_of(name)
    return known.get(asked) or known.get(_bare(asked)) or _of_size(asked) or _glued().get(asked.replace("-", ""))


_SOLD_IN_SIZES = {"apple", "unified", "sbc", "integrated"}
"""Classes whose chips come with more or less memory beside them, at the same bandwidth."""


def _of_size(asked: str) -> Chip | None:
    """The chip of a name that ends in its memory, None where it has no such size."""
    found = re.fullmatch(r"(.+?)-(\d+)-?gb", asked)
    chip = (_by_key().get(found[1]) or _by_key().get(_bare(found[1]))) if found else None
    if found is None or chip is None or chip.memory_bytes is None:
        return None
    size = int(found[2]) * 2**30
    if size == chip.memory_bytes:
        return chip
    if chip.chip_class not in _SOLD_IN_SIZES or not 0 < size < chip.memory_bytes:
        return None
    return msgspec.structs.replace(chip, slug=f"{chip.slug}-{found[2]}gb", memory_bytes=size)


MOST_DEVICES = 64
"""Of a machine that is described."""
_SIZE = re.compile(r"(\d{1,7}(?:\.\d{1,3})?) ?([mgt])(?:i?b)?", re.IGNORECASE)
_RATE = re.compile(r"(\d{1,7}(?:\.\d{1,3})?) ?([mgt])b(?:/s|ps)", re.IGNORECASE)


def size_of(text: str) -> int:
    """Bytes of "64GB" or "64 GiB", which mean the same here: memory is sold in powers of two. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * 2 ** {"m": 20, "g": 30, "t": 40}[found[2].lower()]) if found else 0
    if not 2**20 <= size <= 2**50:
        raise ValueError("a size with its unit, such as 64GB")
    return size


def rate_of(text: str) -> float:
    """Bytes a second of "51.2GB/s", in powers of ten as data sheets give them. Raises ValueError."""
    found = _RATE.fullmatch(text.strip())
    rate = float(round(float(found[1]) * 10 ** {"m": 6, "g": 9, "t": 12}[found[2].lower()])) if found else 0.0
    if not 1e6 <= rate <= 1e15:
        raise ValueError("a rate with its unit, such as 51.2GB/s")
    return rate


def devices_named(text: str) -> tuple[Chip, ...]:
    """The chips of "rtx-3090", "2xrtx-3090" or, with another size of memory than is sold, "rtx-2080-ti:22GB".

    Raises UserError as `chip_named` does, and for a number or a size that makes no sense.
    """
    found = re.fullmatch(r"\s*(?:(\d{1,9}) ?[x*] ?)?([^:]*)(?::(.*))?", text, re.IGNORECASE | re.DOTALL)
    if found is None:  # a second colon
        raise UserError(f"{text!r} is no device; give its name, such as rtx-3090, 2xrtx-3090 or rtx-2080-ti:22GB")
    # A number before an x may be the chip's own, as of "7900xtx".
    count, named = int(found[1] or 1), found[2]
    if whole := chip_or_none(text.partition(":")[0]):
        count, named = 1, whole.slug
    if not 1 <= count <= MOST_DEVICES:
        raise UserError(f"{text!r}: found {count} devices; give 1 to {MOST_DEVICES}, such as 2xrtx-3090")
    chip = chip_named(named)
    if found[3] is not None:
        try:
            size = size_of(found[3])
        except ValueError as error:
            raise UserError(f"{text!r}: found {found[3]!r} behind {chip.slug}; right is {error}") from None
        if size != chip.memory_bytes:
            chip = msgspec.structs.replace(chip, slug=f"{chip.slug}:{size_words(size)}", memory_bytes=size)
    return (chip,) * count


def size_words(size_bytes: int) -> str:
    """A size as `size_of` reads it, "64GB"."""
    return _exact(size_bytes, (("GB", 2**30), ("MB", 2**20)), size_of)


def rate_words(bytes_per_s: float) -> str:
    """A rate as `rate_of` reads it, "51.2GB/s"."""
    return _exact(bytes_per_s, (("GB/s", 1e9), ("MB/s", 1e6)), rate_of)


def _exact(value: float, units: Sequence[tuple[str, float]], read: Callable[[str], float]) -> str:
    """In the first unit of at least 1 that loses nothing, else in the last."""
    text = ""
    for unit, factor in units:
        text = f"{value / factor:.3f}".rstrip("0").rstrip(".") + unit
        if value >= factor and read(text) == value:
            break
    return text


_VENDORS = {"nvidia", "amd", "intel", "geforce", "radeon", "rx", "quadro", "tesla", "tm", "r", "cpu", "gpu", "chip"}
"""Words that people add or leave out; no two chips differ by them alone."""


def slug_of(name: str) -> str:
    """`name` as a slug: lower case, words joined by hyphens."""
    return "-".join(_words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.+]+", name.lower().replace("‑", "-"))


def _bare(slug: str) -> str:
    return "-".join(word for word in slug.split("-") if word not in _VENDORS)


@lru_cache(maxsize=1)
def _catalogue() -> _Catalogue:
    data = resources.files("breakeven.hardware").joinpath("data", "chips.json").read_bytes()
    return msgspec.json.decode(data, type=_Catalogue)


@lru_cache(maxsize=1)
def _by_key() -> Mapping[str, Chip]:
    """Chips by slug, alias and full name. A slug is never taken by another chip's alias."""
    catalogue = _catalogue()
    by_slug = {chip.slug: chip for chip in catalogue.chips}
    named: dict[str, Chip] = {alias: by_slug[slug] for alias, slug in catalogue.aliases.items()}
    for chip in catalogue.chips:
        named.setdefault(slug_of(chip.name), chip)
        named.setdefault(_bare(slug_of(chip.name)), chip)
    return {**{_bare(slug): chip for slug, chip in by_slug.items()}, **named, **by_slug}


@lru_cache(maxsize=1)
def _glued() -> Mapping[str, Chip]:
    """Chips by their names without hyphens, as in "RTX4090" and "7900xtx", where one chip alone is written so."""
    found: dict[str, Chip | None] = {}
    for key, chip in _by_key().items():
        name = key.replace("-", "")
        found[name] = chip if found.get(name, chip) == chip else None
    return {name: chip for name, chip in found.items() if chip is not None}


def _nearest(asked: str) -> list[str]:
    known = _by_key()
    found = difflib.get_close_matches(_bare(asked), known, n=6, cutoff=0.4) or sorted(known)
    return list(dict.fromkeys(known[key].slug for key in found))[:3]
