"""Chips known by name in a terminal, and machines that are described.

Readable from 40 columns on, because columns give way by importance.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from breakeven.hardware.chips import Chip, ChipClass, Price, rate_words, size_words
from breakeven.hardware.machine import Machine
from breakeven.pages.catalogue import table_within
from breakeven.pages.terminal import Passage, Say, print_parts
from breakeven.pages.words import grouped, number

COLUMNS = (
    ("Machine", "left", 0),
    ("Class", "left", 64),
    ("Memory", "right", 52),
    ("Bandwidth", "right", 0),
    ("16-bit peak", "right", 76),
    ("Power", "right", 90),
    ("$/h", "left", 110),
)
"""Heading, alignment, and the terminal width from which the column is shown."""


def print_chips(chips: Sequence[Chip], console: Console) -> None:
    """Print one line a chip, readable from 40 columns on."""
    console.print(table_within(COLUMNS, [_cells(chip) for chip in chips], console.width))
    console.print(
        "Nominal figures of data sheets. `breakeven machines NAME` shows one with its source.", highlight=False
    )


def print_chip_names(chips: Sequence[Chip], console: Console) -> None:
    """Print the names of all chips by class, what stands before the first dash only once; a screen of them."""
    by_class = grouped(chips, lambda chip: chip.chip_class)

    def head(say: Say) -> None:
        say(f"{len(chips)} chips by class", "bold")
        say("`breakeven machines NAME` shows one, `--full` a line for each. rtx-{4090 3090}: rtx-4090, rtx-3090")

    def names(chip_class: ChipClass, say: Say) -> None:
        group = by_class[chip_class]
        heading = f"{chip_class}, {len(group)}: "
        lines = textwrap.wrap(heading + _braced(group), console.width, subsequent_indent="  ", break_on_hyphens=False)
        for line in lines:
            say(line.lstrip(), indent=len(line) - len(line.lstrip()))

    # Where there is no room for all, who has no GPU at all is left out first.
    parts = [Passage(partial(names, each), rank, each) for rank, each in enumerate(by_class, start=1)]
    print_parts([Passage(head), *parts], console, full=False)


def _braced(chips: Sequence[Chip]) -> str:
    """Names of one family in braces: "rtx-{4090 3090} gb10"."""
    words = []
    for family, members in grouped(chips, lambda chip: chip.slug.partition("-")[0]).items():
        rest = [chip.slug.removeprefix(f"{family}-") for chip in members]
        # A name without a dash is its own family.
        alone = [name for name in rest if name == family]
        rest = [name for name in rest if name != family]
        words += alone
        if rest:
            words.append(f"{family}-{rest[0]}" if len(rest) == 1 else f"{family}-{{{' '.join(rest)}}}")
    return " ".join(words)


def print_chip(chip: Chip, console: Console) -> None:
    """Print everything about one chip."""
    console.print(chip.name, style="bold", highlight=False, markup=False)
    peaks = ", ".join(f"{kind} {number(rate / 1e12)} TFLOPS" for kind, rate in chip.peak_flops.items())
    rows = [
        ("Name here", chip.slug),
        ("Class", chip.chip_class),
        ("Memory", _memory(chip)),
        ("Bandwidth", _rate(chip.bandwidth_bytes_per_s)),
        ("Peak", peaks or "not published"),
        ("Link", "none known" if chip.link_bytes_per_s is None else f"{_rate(chip.link_bytes_per_s)}, one direction"),
        ("Power", _watts(chip) or "not published"),
        *(("Price", _price(price)) for price in chip.prices),
        ("Source", chip.source),
    ]
    if chip.note:
        rows.append(("Note", chip.note))
    _print_rows(rows, console)


def print_machine(machine: Machine, console: Console) -> None:
    """Print a machine that is described: its devices, what stands beside them, and the rates between."""
    console.print(machine.name, style="bold", highlight=False, markup=False)
    rows = [
        ("Device", f"{chip.name}, {_memory(chip)} at {_rate(chip.bandwidth_bytes_per_s)}") for chip in machine.devices
    ]
    host = machine.host
    if host is None:
        rows.append(("Host", "not described"))
    else:
        size, rate = host.memory_bytes, host.bandwidth_bytes_per_s
        words = [
            "memory of unknown size" if size is None else size_words(size),
            "rate not said" if rate is None else f"at {rate_words(rate)}" + (f" ({host.words})" if host.words else ""),
            "" if host.cores is None else f"{host.cores} cores",
        ]
        rows.append(("Host", ", ".join(word for word in words if word)))
    for label, moved in (("Link", machine.link_bytes_per_s), ("Disk", machine.disk_bytes_per_s)):
        if moved is not None:
            rows.append((label, rate_words(moved)))
    _print_rows(rows, console)


def _print_rows(rows: Sequence[tuple[str, str]], console: Console) -> None:
    for label, text in rows:
        console.print(f"{label:<11}{text}", highlight=False, markup=False, soft_wrap=True)


def _cells(chip: Chip) -> tuple[str, ...]:
    sixteen = chip.peak_flops.get("bf16") or chip.peak_flops.get("fp16")
    hour = [price for price in chip.prices if price.kind == "hour"]
    return (
        chip.slug,
        chip.chip_class,
        _memory(chip),
        _rate(chip.bandwidth_bytes_per_s),
        "" if sixteen is None else f"{number(sixteen / 1e12)} TFLOPS",
        _watts(chip),
        "" if not hour else f"{min(p.usd for p in hour):.2f}-{max(p.usd for p in hour):.2f} ({hour[0].date})",
    )


def _memory(chip: Chip) -> str:
    return "varies" if chip.memory_bytes is None else f"{chip.memory_bytes / 2**30:g} GB"


def _rate(bytes_per_s: float) -> str:
    return f"{number(bytes_per_s / 1e9)} GB/s"


def _watts(chip: Chip) -> str:
    return "" if chip.tdp_w is None else f"{number(chip.tdp_w)} W"


def _price(price: Price) -> str:
    unit = "an hour" if price.kind == "hour" else "to buy"
    return f"${price.usd:,.2f} {unit} ({price.what}, {price.date}; {price.source})"
