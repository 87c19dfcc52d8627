"""`result.json` of a decision: the same contract and the same care as `json_file`."""

from __future__ import annotations

from pathlib import Path

from breakeven.report.json_file import Kind, encode, read_kind, write_whole
from breakeven.spec.decision import DECISION_SCHEMA, Decision

DECISION = Kind(Decision, DECISION_SCHEMA, "decision")


def encode_decision(decision: Decision) -> bytes:
    """`decision` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(decision)


def write_decision(decision: Decision, path: Path) -> Path:
    """Write `decision` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(decision))


def read_decision(path: Path) -> Decision:
    """Read what `write_decision` wrote. Raises `UserError` when the file is missing, not JSON, or of another schema."""
    return read_kind(path, DECISION)
