"""Is there a place to write a weight file, and room for it? Asked before the first byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from breakeven.errors import UserError


def check_room(out: Path, needed_bytes: int, advice: str) -> None:
    """Raise UserError, ending in `advice`, unless `out`'s directory exists, is writable and has `needed_bytes` free."""
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory; {advice}")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent} is read-only; {advice}")
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise UserError(
            f"{out.name} needs {needed_bytes / 1e9:.2f} GB and {out.parent} has {free / 1e9:.2f} GB free; {advice}"
        )
