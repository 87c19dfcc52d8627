"""Where the weights of a model larger than its device lie: device, host memory, disk.

What is never read whole leaves first (the embedding table), then routed experts, whose bytes are read least often,
then everything else: the order in which llama.cpp's own fitting moves tensors. A part that lies elsewhere is read at
that place's rate, one after the other with the device's own reading.

First approximation: what has a place keeps it. An operating system that reads a file larger than memory in a circle
can throw every page away before its next use; then the whole file is read from disk in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.predict.terms import Terms

HOST_BYTES_PER_S = 40e9
"""Weights in host memory, where a profile does not say: two channels of DDR5 reach about this. A judgement."""
DISK_BYTES_PER_S = 2e9
"""Weights read through a memory map from an NVMe disk, where a profile does not say. A judgement."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Shares of a model's fixed bytes (W_f) and of its routed experts that lie in host memory and on disk."""

    fixed_host: float = 0.0
    fixed_disk: float = 0.0
    experts_host: float = 0.0
    experts_disk: float = 0.0
    away_bytes: float = 0.0
    """What left the device, the embedding table included."""

    @property
    def whole(self) -> bool:
        """Whether the device holds everything."""
        return not (self.fixed_host or self.fixed_disk or self.experts_host or self.experts_disk)


ON_DEVICE = Residency()


def residency(terms: Terms, room_bytes: float, host_bytes: float | None) -> Residency:
    """Where the weights lie when the device has `room_bytes` for them and the host `host_bytes` (None: enough)."""
    over = terms.total_bytes - room_bytes
    if over <= 0:
        return ON_DEVICE
    fixed = sum(nbytes for _, nbytes in terms.fixed)
    experts = sum(nbytes for group in terms.experts for _, nbytes in group.types)
    table = max(terms.total_bytes - fixed - experts, 0.0)
    experts_away = min(max(over - table, 0.0), experts)
    fixed_away = min(max(over - table - experts, 0.0), fixed)
    in_host = 1.0 if host_bytes is None else min(max(host_bytes, 0.0) / over, 1.0)
    experts_share = experts_away / experts if experts else 0.0
    return Residency(
        fixed_host=fixed_away / fixed * in_host,
        fixed_disk=fixed_away / fixed * (1.0 - in_host),
        experts_host=experts_share * in_host,
        experts_disk=experts_share * (1.0 - in_host),
        away_bytes=min(over, terms.total_bytes),
    )
