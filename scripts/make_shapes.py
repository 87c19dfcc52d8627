"""Write the terms of every catalogued model in its usual formats to `src/breakeven/forecast/data/shapes.json`.

    python scripts/make_shapes.py [--only NAME ...]

Takes a minute or two. To be run whenever the catalogue, a layout or a format changes; tests/test_choose.py says so.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from importlib import resources
from pathlib import Path

import msgspec

from breakeven.errors import BreakevenError
from breakeven.forecast.shapes import ModelShape, Shapes, made_of, shapes
from breakeven.model.catalogue import entries, lookup

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "forecast" / "data" / "shapes.json"
ABOUT = "Terms of the step model by model and format, made of the catalogue by scripts/make_shapes.py."


def digest() -> str:
    """Of the catalogue's data."""
    data = resources.files("breakeven.model").joinpath("data", "models.json").read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    asked = parser.parse_args()
    made: dict[str, ModelShape] = dict(shapes()) if asked.only else {}
    for entry in entries():
        if asked.only is not None and entry.name not in asked.only:
            continue
        try:
            made[entry.name] = made_of(lookup(entry.name))
        except BreakevenError as error:
            sys.stderr.write(f"{entry.name}: left out, {error}\n")
    content = msgspec.json.encode(Shapes(about=ABOUT, catalogue=digest(), models=dict(sorted(made.items()))))
    TARGET.write_bytes(content.replace(b'],"', b'],\n"') + b"\n")
    sys.stdout.write(f"{len(made)} models, {TARGET.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main()
