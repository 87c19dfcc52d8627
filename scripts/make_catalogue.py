"""Write the catalogue's data from a table of published model facts.

    python scripts/make_catalogue.py FACTS.json

Keeps the rows that Breakeven can describe tensor by tensor and whose count agrees with the published total within 3 %;
says which it left out and why. Derived numbers of the table are dropped: Breakeven computes its own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from breakeven.errors import BreakevenError
from breakeven.model.arithmetic import total_params
from breakeven.model.catalogue import spec_from_facts

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "spec" / "data" / "models.json"
GUARD = 0.03
DERIVED = {
    "arch",
    "counted_total_b",
    "counted_active_b",
    "routed_expert_share",
    "count_vs_published_pct",
    "kv_elems_per_token_per_layer",
}
ABOUT = (
    "Architecture facts of published language models: shapes and counts, no weights. Each row names its source; "
    "published_* come from the model's name or card and serve to check the count. gguf_bytes are sizes of published "
    "files. The models themselves carry their publishers' licences. Written by scripts/make_catalogue.py."
)
EXTRA: list[dict[str, object]] = [
    {
        "name": "Qwen/Qwen2.5-1.5B",
        "model_type": "qwen2",
        "hidden": 1536,
        "layers": 28,
        "heads": 12,
        "kv_heads": 2,
        "head_dim": 128,
        "intermediate": 8960,
        "vocab": 151936,
        "tied_embeddings": True,
        "context": 131072,
        "attention": "GQA",
        "source": "config.json of Qwen/Qwen2.5-1.5B as kept in kaitchup/Qwen2.5-1.5B-AutoRound-GPTQ-asym-4bit; "
        "total from the model card",
        "published_total_b": 1.54,
        "published_active_b": 1.54,
    },
]
NOISE = re.compile(r"-(instruct|it|base|bf16|fp8|nvfp4|v0\.\d|\d{4})(?=-|$)")


def short_name(hub_id: str) -> str:
    """`allenai/OLMoE-1B-7B-0125-Instruct` is `olmoe-1b-7b`: no owner, no date, no tuning stage, lower case."""
    return NOISE.sub("", hub_id.rpartition("/")[2].lower().removeprefix("meta-"))


def kept(row: dict[str, object]) -> str | None:
    """None when the row belongs in the catalogue, else why not."""
    try:
        spec = spec_from_facts(row)
    except BreakevenError as error:
        return str(error)
    if spec.published_total_params is None:
        return "no published total to check against"
    off = total_params(spec) / spec.published_total_params - 1
    return f"counts {off:+.1%} against the published total" if abs(off) > GUARD else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()
    rows = json.loads(given.facts.read_text())["models"] + EXTRA
    models: dict[str, dict[str, object]] = {}
    for row in rows:
        if why := kept(row):
            print(f"left out {row['name']}: {why}", file=sys.stderr)
            continue
        short = short_name(row["name"])
        if short in models:
            sys.exit(f"{row['name']} and {models[short]['name']} are both {short}")
        models[short] = {key: value for key, value in row.items() if key not in DERIVED}
    text = json.dumps({"about": ABOUT, "models": dict(sorted(models.items()))}, indent=1, ensure_ascii=False)
    given.out.write_text(text + "\n")
    print(f"{len(models)} models in {given.out}")


if __name__ == "__main__":
    main()
