"""Write the published losses of quantization that may be shipped, from a table of all that was collected.

    python scripts/make_losses.py TABLE.tsv [--out FILE]

The table has one published figure a row and a header: model, kind, total_b, active_b, method, bits_per_weight,
calibration, metric, value, baseline_format, baseline_value, text, language, link, licence, date, note. A row gets in
when its licence lets it be passed on; the others are cited by link in docs/quality.md.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import msgspec

from breakeven.model.quality.curve import Losses, LossModel, LossRow, LossSource

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "model" / "data" / "losses.json"
ABOUT = (
    "Published losses of quantization: a figure a row, as its source gives it, against the baseline it names. KL in "
    "nats a token. A row: model, method, bits a weight, calibration, metric, value, baseline, baseline's value, text, "
    "language, place among the sources. Collected 2026-11-28; each source with its terms. Most are from the GGUF Tool "
    "Suite, credit to Thireus, in text and with the importance matrices of ubergarm. Written by scripts/make_losses.py."
)
FREE = ("MIT", "Apache-2.0", "CC0", "CC-BY", "BSD")
"""Beginnings of licences under which figures may be passed on."""
UNFIT = ("do not use for a prior", "KLD of another tool")
"""Notes of rows that mislead: a model that is off its feet in 16 bits already, another definition of KL."""
ACTIVE_B = {"GLM-5.2": 40.0}
"""Active parameters that the table leaves out, in billions: those of the model's predecessor of the same shape."""


def number(text: str) -> float | None:
    """A cell's number, None where it is empty."""
    return float(text) if text.strip() else None


def page(link: str) -> str:
    """A hub's repository rather than each of its files."""
    return re.split(r"/(?:tree|blob)/", link)[0] if "huggingface.co" in link else link


def losses_of(rows: list[dict[str, str]]) -> Losses:
    """The shipped file's content."""
    kept = [r for r in rows if r["licence"].startswith(FREE) and not any(note in r["note"] for note in UNFIT)]
    places = {key: i for i, key in enumerate(dict.fromkeys((page(r["link"]), r["licence"]) for r in kept))}
    models = {}
    for row in kept:
        total = number(row["total_b"])
        assert total is not None, row
        active = number(row["active_b"]) or ACTIVE_B.get(row["model"], total)
        models[row["model"]] = LossModel(row["kind"], total, active)
    return Losses(
        about=ABOUT,
        sources=[LossSource(link, licence) for link, licence in places],
        models=models,
        rows=[
            LossRow(
                r["model"],
                r["method"],
                number(r["bits_per_weight"]),
                r["calibration"],
                r["metric"],
                float(r["value"]),
                r["baseline_format"],
                number(r["baseline_value"]),
                r["text"],
                r["language"],
                places[page(r["link"]), r["licence"]],
            )
            for r in kept
        ],
    )


def main() -> None:
    """Write the file and say what got in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    lines = [line for line in args.table.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = losses_of(rows)
    # A row a line, so that changes can be read.
    text = msgspec.json.encode(found).decode().replace('],["', '],\n["').replace('},{"link', '},\n{"link')
    args.out.write_text(text + "\n")
    print(f"{len(found.rows)} of {len(rows)} rows of {len(found.models)} models from {len(found.sources)} sources")


if __name__ == "__main__":
    main()
