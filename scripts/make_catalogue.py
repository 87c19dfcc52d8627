"""Write the catalogue's data from a directory of published configurations, or add some to it.

    python scripts/make_catalogue.py DIRECTORY [--out FILE] [--from FILE]

A file of the directory is NAME.json: the keys of a model's config.json, and under `_about` what is known of it
(`hub_id`, `kind`, `source`, `published`, `hub_params`, `count_check`, `licence`, ...). Rows of the catalogue given by
--from stay unless a file of that name replaces them. A row gets in when Breakeven reads its configuration and counts
within 3 % of the published total; else it is left out, and why is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from breakeven.errors import BreakevenError
from breakeven.model.arithmetic import TOLERANCE, total_params
from breakeven.model.catalogue import CatalogueFile, ModelFacts, packed, spec_from_facts

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "model" / "data" / "models.json"
ABOUT = (
    "Architecture facts of published language models: the keys of their config.json that describe the language model, "
    "as published, and what their publishers say; no weights. A list in short is {length, runs}: runs of "
    "[times, value], over again until it is so long. total: parameters of the language model alone; total_source says "
    "whose figure. Licences, dates and languages are those of the hub's cards (as listed in llmfit 1.1.17, PyPI) where "
    "no other source is named. The models themselves carry their publishers' licences. Written by "
    "scripts/make_catalogue.py."
)
SAME = 0.001
"""A hub's count this near to the language model's own has nothing else in it (scales of FP8 at most)."""


def facts_of(about: dict[str, Any], config: dict[str, object]) -> ModelFacts:
    """The row of one file; `total` is filled in by `with_total`."""
    published = about.get("published") or {}
    active = published.get("active_b") if about["kind"].endswith("moe") else None
    return ModelFacts(
        hub_id=about["hub_id"],
        also=tuple(about.get("also", ())),
        base=tuple(about.get("base", ())),
        kind=about["kind"],
        date=about.get("date"),
        licence=about.get("licence"),
        licence_source=about.get("licence_source"),
        languages=tuple(about.get("languages", ())),
        towers=tuple(about.get("towers", ())),
        active=None if active is None else round(active * 1e9),
        active_source=None if active is None else published.get("source"),
        source=about["source"],
        note=about.get("note"),
        config={key: packed(value) for key, value in config.items()},
    )


def with_total(facts: ModelFacts, about: dict[str, Any], counted: int) -> ModelFacts:
    """The row with the published figure that is of the language model alone, by the rule of docs/models.md."""
    check = about.get("count_check") or {}
    alone = check.get("computed_total") or counted
    hub = (about.get("hub_params") or {}).get("value")
    published = about.get("published") or {}
    rounded = published.get("total_b")
    if hub and abs(hub / alone - 1) <= SAME:
        return msgspec.structs.replace(facts, total=hub, total_source="the hub's tensor count")
    if rounded and abs(rounded * 1e9 / alone - 1) <= TOLERANCE:
        return msgspec.structs.replace(facts, total=round(rounded * 1e9), total_source=published["source"])
    if hub and check.get("difference"):
        words = f"the hub's tensor count, {hub:,}, less what else it holds: {check['difference']}"
        return msgspec.structs.replace(facts, total=alone, total_source=words)
    if hub:
        return msgspec.structs.replace(facts, total=hub, total_source="the hub's tensor count, whatever else is in it")
    if rounded:
        return msgspec.structs.replace(facts, total=round(rounded * 1e9), total_source=published["source"])
    return facts


def main() -> None:
    """Read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--from", dest="base", type=Path, help="a catalogue whose rows stay")
    given = parser.parse_args()
    models = msgspec.json.decode(given.base.read_bytes(), type=CatalogueFile).models if given.base else {}
    for path in sorted(given.directory.glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        about = config.pop("_about")
        try:
            row = facts_of(about, config)
            counted = total_params(spec_from_facts(row))
            row = with_total(row, about, counted)
        except BreakevenError as error:
            print(f"left out {path.stem}: {error}", file=sys.stderr)
            continue
        if row.total is not None and abs(off := counted / row.total - 1) > TOLERANCE:
            print(f"left out {path.stem}: counts {off:+.1%} against the published {row.total:,}", file=sys.stderr)
            continue
        models[path.stem] = row
    hub_ids = [row.hub_id for row in models.values()]
    if twice := sorted({hub_id for hub_id in hub_ids if hub_ids.count(hub_id) > 1}):
        sys.exit(f"in two rows: {', '.join(twice)}")
    given.out.write_text(_text(models), encoding="utf-8")
    print(f"{len(models)} models in {given.out}")


def _text(models: dict[str, ModelFacts]) -> str:
    """Two lines a model, the configuration on the second: short enough to read, whole enough to compare."""
    rows = []
    for name in sorted(models):
        fields = msgspec.to_builtins(models[name])
        config = json.dumps(fields.pop("config"), ensure_ascii=False)
        rows.append(f'"{name}": {json.dumps(fields, ensure_ascii=False)[:-1]},\n  "config": {config}}}')
    about = json.dumps(ABOUT, ensure_ascii=False)
    return f'{{"about": {about},\n"models": {{\n' + ",\n".join(rows) + "\n}}\n"


if __name__ == "__main__":
    main()
