"""The catalogue of chips in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from breakeven.report.words import number
from breakeven.spec.chip import Chip, Price

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
    shown = [index for index, column in enumerate(COLUMNS) if console.width >= column[2]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in shown:
        heading, justify, _ = COLUMNS[index]
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for chip in chips:
        cells = _cells(chip)
        table.add_row(*(cells[index] for index in shown))
    console.print(table)
    console.print(
        "Nominal figures of data sheets. `breakeven machines NAME` shows one with its source.", highlight=False
    )


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
