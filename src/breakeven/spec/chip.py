"""What a chip's data sheet says: memory, bandwidth, peak rates, power, and prices with their dates."""

from __future__ import annotations

from typing import Literal

import msgspec

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
