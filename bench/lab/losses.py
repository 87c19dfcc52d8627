"""What fewer bits cost a real model, by language, beside the floor: the table of docs/quantize.md.

    python bench/lab/losses.py MODEL.gguf GUIDE --out DIR [--languages en,de,fr] [--bytes 30000]

GUIDE: the Debian installation guide, unpacked (`dpkg -x`): a folder a language with install.LANG.txt.gz. Each format is
written by `breakeven quantize` beside its proof; a row is what the proof says. Importance takes a third of the text,
which the proof then does not judge on.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import breakeven
from breakeven.results.lab import Proof
from breakeven.stats.estimate import Estimate

FORMATS = ("Q8_0", "Q4_K", "Q4_0", "Q2_K", "TQ2_0", "Q2_0")


def texts(guide: Path, languages: list[str], n_bytes: int, out: Path) -> Path:
    """The first so many bytes of each language, as files."""
    for language in languages:
        folder = out / language
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(guide / language / f"install.{language}.txt.gz") as file:
            (folder / "guide.txt").write_text(file.read(n_bytes).decode(errors="ignore"))
    return out


def said(found: Estimate | None, digits: int = 3) -> str:
    """A figure and its interval."""
    if found is None:
        return "not measured"
    ends = "" if found.low is None else f" ({found.low:.{digits}f} to {found.high:.{digits}f})"
    return f"{found.value:.{digits}f}{ends}"


def row(proof: Proof) -> str:
    """One line of the table."""
    made = proof.artefact
    kl = [said(part.kl) for part in proof.slices]
    floors = [part.kl_floor.value for part in proof.slices if part.kl_floor is not None]
    top = proof.slices[0].top1
    return " | ".join(
        [
            made.format,
            f"{made.bytes / 1e6:.1f}",
            f"{made.bits_per_weight:.2f}",
            *kl,
            "not measured" if top is None else f"{top.value:.1%}",
            f"{min(floors):.3f} to {max(floors):.3f}" if floors else "not measured",
        ]
    )


def main() -> None:
    """Make, and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("guide", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--languages", default="en,de,fr")
    parser.add_argument("--bytes", type=int, default=30_000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    asked = parser.parse_args()
    languages = asked.languages.split(",")
    text = texts(asked.guide, languages, asked.bytes, asked.out / "text")
    columns = ["asked", "MB", "bits", *[f"KL {each}" for each in languages], f"top-1 {languages[0]}", "floor"]
    print(" | ".join(columns))
    for wanted in asked.formats.split(","):
        (proof,) = breakeven.quantize(asked.model, [wanted], asked.out / wanted, text=text, allow_fallback=True)
        print(f"{row(proof)}   [{proof.seconds or 0:.0f} s judged]", flush=True)


if __name__ == "__main__":
    main()
