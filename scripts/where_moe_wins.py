"""Write `docs/where-moe-wins.md`: MoE or dense on twenty classes of machine, for five uses, by `breakeven choose`.

    python scripts/where_moe_wins.py [--out FILE] [--machine NAME ...]

A hundred choices, a second or two each on an idle core. Nothing in the page is typed in but the list of machines.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import breakeven
from breakeven.results.choose import ChoiceRow, ModelChoice
from breakeven.version import __version__

TARGET = Path(__file__).parent.parent / "docs" / "where-moe-wins.md"
USES = ("chat", "code", "agent", "rag", "batch")
MACHINES: dict[str, str] = {
    "phone-class chip, 8 GB": "lpddr5-6400x1:8GB:8cores",
    "Raspberry Pi 5, 8 GB": "raspberry-pi-5:8GB",
    "laptop, 8 GB": "ddr4-3200x2:8GB:4cores",
    "laptop, 32 GB": "ddr5-5600x2:32GB:8cores",
    "Mac, 16 GB": "apple-m4:16GB",
    "Mac, 36 GB": "apple-m3-pro:36GB",
    "8 GB card, 32 GB RAM": "rtx-4060+ddr5-5600x2:32GB",
    "12 GB card, 32 GB RAM": "rtx-3060+ddr4-3200x2:32GB",
    "12 GB card, 64 GB RAM": "rtx-3060+ddr4-3200x2:64GB",
    "16 GB card, 64 GB RAM": "rtx-4080+ddr5-5600x2:64GB",
    "24 GB card, 32 GB RAM": "rtx-3090+ddr4-3200x2:32GB",
    "24 GB card, 64 GB RAM": "rtx-4090+ddr5-5600x2:64GB",
    "24 GB card, 128 GB RAM": "rtx-4090+ddr5-5600x2:128GB",
    "32 GB card, 128 GB RAM": "rtx-5090+ddr5-5600x2:128GB",
    "Strix Halo, 128 GB": "ryzen-ai-max-395",
    "DGX Spark": "dgx-spark",
    "one data-centre GPU": "h100-sxm",
    "eight data-centre GPUs": "8xh100-sxm",
    "one large data-centre GPU": "h200-sxm",
    "CPU server": "ddr5-4800x12:384GB:64cores",
}
HEAD = """# Where MoE wins

Mixture-of-Experts or dense: which, by how much and how sure, on twenty classes of machine for five uses, one user each.
Made by `scripts/where_moe_wins.py` from [`breakeven choose`](choose.md) {version} on {date}; nothing but the list of
machines is typed in. Run it again after anything changes.

*MoE* and *dense* are the shares of 400 drawn worlds in which the best model that keeps the use's limits is of that
kind; "open" where neither has 80 % of those in which anything keeps them. *Best shown*: the pick, or the ablest of
the kind's rows. *Turns at*: the nearest least speed asked of it at which the other kind wins more worlds, all else as
it is. Quality is in points with its 95 % band, speed predicted. On a CPU the step model counts the memory's rate,
not the cores: the phone and the 8 GB laptop have one rate and so one answer; no phone was measured.
"""


def kind_of(choice: ModelChoice) -> str:
    """Which kind is named for a machine and a use."""
    if choice.kinds is None:
        return "none"
    decided = choice.kinds.moe + choice.kinds.dense
    if choice.kinds.moe >= 0.8 * decided:
        return "**MoE**"
    return "**dense**" if choice.kinds.dense >= 0.8 * decided else "open"


def best_of(rows: list[ChoiceRow], kind: str) -> ChoiceRow | None:
    """The pick where it is of this kind, else the ablest of the kind's rows."""
    own = (row for row in rows if row.kind == kind)
    return max(own, key=lambda row: (row.role == "pick", row.quality.value), default=None)


def row_text(row: ChoiceRow | None) -> str:
    """A model as a table's cell shows it."""
    if row is None:
        return "none on the front"
    quality = f"{row.quality.value:.0f} ({row.quality.least:.0f} to {row.quality.most:.0f})"
    return f"{row.model}:{row.format}, {quality}, {row.tokens_per_s.value:.3g} tok/s"


def line_of(use: str, choice: ModelChoice) -> str:
    """One use's line."""
    if choice.kinds is None:
        return f"| {use} | none | | | {choice.sentence} | | |"
    moe, dense = (best_of(choice.rows, kind) for kind in ("moe", "dense"))
    flip = "nowhere" if choice.kinds.flips_at is None else f"{choice.kinds.flips_at:.3g} tok/s"
    shares = f"{choice.kinds.moe:.0%} | {choice.kinds.dense:.0%}"
    return f"| {use} | {kind_of(choice)} | {shares} | {row_text(moe)} | {row_text(dense)} | {flip} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--machine", nargs="*", default=None)
    asked = parser.parse_args()
    lines = [HEAD.format(version=__version__, date=datetime.datetime.now(datetime.UTC).date().isoformat())]
    for title, machine in MACHINES.items():
        if asked.machine and machine not in asked.machine:
            continue
        lines += [f"## {title}", f"`--machine {machine}`", ""]
        lines += [
            "| use | answer | MoE | dense | best MoE shown | best dense shown | turns at |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [line_of(use, breakeven.choose(machine, use=use)) for use in USES]
        lines.append("")
        sys.stderr.write(f"{title}\n")
    asked.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
