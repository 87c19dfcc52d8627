"""From the words of `breakeven predict` to its arguments."""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.forecast.routing import Routing, read_routing


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers parted by commas. Raises UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: give whole numbers from 1, parted by commas, such as 1,8,32")
    return [int(part) for part in parts]


def routings(texts: list[str], models: list[str]) -> dict[str, Routing]:
    """Routing by model from MODEL=FILE, or FILE alone where there is one model. Raises UserError for other words."""
    found = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        name = name or (models[0] if len(models) == 1 else "")
        if name not in models:
            raise UserError(f"--routing {text}: give MODEL=FILE with a MODEL of this command ({', '.join(models)})")
        found[name] = read_routing(Path(file))
    return found
