"""Write `answer/data/hosted.json`: what hosts ask for the catalogue's models, from a copy of models.dev.

    python scripts/make_hosted.py DIR --date 2026-07-02 --commit SHA [--out FILE]

DIR: a checkout of models.dev (MIT), whose `providers/HOST/models/**.toml` hold a price each. Hosts that pass requests
on to others, plans by the month and free offers are left out; so is a mode of a model that the catalogue's row is not.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from breakeven.answer.choice.hosted import HostedPrice, HostedPrices
from breakeven.model.catalogue import entries
from breakeven.model.quality.kin import kin_of

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "answer" / "data" / "hosted.json"
HOSTS = (
    "alibaba", "cerebras", "deepinfra", "deepseek", "fireworks-ai", "groq", "minimax", "mistral", "moonshotai",
    "nebius", "novita-ai", "sarvam", "siliconflow", "togetherai", "zai",
)  # fmt: skip
"""That run the models themselves and ask by the token."""
VARIANT = re.compile(r"glm-\d+(\.\d+)?-turbo", re.IGNORECASE)
"""Models of their own, whose names end as those of hosts' quantized copies do."""
ABOUT = (
    "What hosts ask for a million tokens of models of the catalogue, in dollars, as collected by models.dev (MIT, "
    "(c) 2025 models.dev; LICENCES.txt of the room model). It tells no speed, nor the bits that a host serves."
)


def by_release() -> dict[str, dict[str, set[str]]]:
    """By release the catalogued models of that name, each with the ways of answering that its names say."""
    found: dict[str, dict[str, set[str]]] = {}
    for entry in entries():
        kins = [kin_of(name) for name in (entry.name, entry.hub_id, *entry.facts.also)]
        for kin in kins:
            found.setdefault(kin.release, {})[entry.name] = {each.mode for each in kins if each.told}
    return found


def meant(name: str, known: dict[str, dict[str, set[str]]]) -> str | None:
    """The catalogued model that a host's name means: one that answers so, else one that says nothing of it."""
    if VARIANT.search(name):
        return None
    kin = kin_of(name)
    models = known.get(kin.release, {})
    said = [model for model, modes in models.items() if kin.told and kin.mode in modes]
    other = [model for model, modes in models.items() if not kin.told or not modes]
    return next(iter([*said, *other]), None)


def prices(root: Path) -> Iterator[HostedPrice]:
    """Every price that is of a catalogued model."""
    known = by_release()
    for host in HOSTS:
        folder = root / "providers" / host / "models"
        for path in sorted(folder.rglob("*.toml")):
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
            cost, limit = facts.get("cost", {}), facts.get("limit", {})
            name = path.relative_to(folder).with_suffix("").as_posix()
            model = meant(name, known)
            if model is None or not cost.get("input") or not cost.get("output"):
                continue
            yield HostedPrice(
                model=model,
                host=host,
                name=name,
                usd_in=float(cost["input"]),
                usd_out=float(cost["output"]),
                # Remembered tokens that cost more than new ones are a slip of the list.
                usd_cached=cached if 0 < (cached := float(cost.get("cache_read", 0))) <= cost["input"] else None,
                context=int(limit.get("context", 0)) or None,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--date", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    found = sorted(prices(asked.directory), key=lambda each: (each.model, each.host, each.name))
    source = f"https://github.com/anomalyco/models.dev/tree/{asked.commit}"
    data = HostedPrices(about=ABOUT, date=asked.date, source=source, licence="MIT", prices=found)
    asked.out.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
    print(f"{len(found)} prices of {len({each.model for each in found})} models -> {asked.out.name}")


if __name__ == "__main__":
    main()
