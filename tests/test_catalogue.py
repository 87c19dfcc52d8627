"""The catalogue: what is in it, and how names find it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from breakeven.errors import UserError
from breakeven.model.architecture import Gqa
from breakeven.model.arithmetic import total_params
from breakeven.model.catalogue import CatalogueEntry, entries, find, lookup, names

ROOT = Path(__file__).parent.parent
PAPER = ("olmoe-1b-7b", "llama-3.2-1b", "qwen2.5-1.5b", "gemma-2-2b")


@pytest.mark.parametrize("entry", entries(), ids=names())
def test_count_agrees_with_the_published_total(entry: CatalogueEntry) -> None:
    spec = lookup(entry.name)
    assert spec.published_total_params is not None
    assert total_params(spec) == pytest.approx(spec.published_total_params, rel=0.03)


def test_names_are_plain_and_every_row_has_a_source() -> None:
    assert set(PAPER) | {"smollm2-135m"} <= set(names())
    assert names() == sorted(set(names()))
    for entry in entries():
        assert entry.name == entry.name.lower()
        assert "/" not in entry.name
        assert entry.facts["source"]
    assert len({entry.hub_id for entry in entries()}) == len(entries())


@pytest.mark.parametrize(
    "asked",
    [
        "olmoe-1b-7b",
        "OLMoE-1B-7B",
        " olmoe-1b-7b ",
        "allenai/OLMoE-1B-7B-0125-Instruct",
        "allenai/olmoe-1b-7b-0125-instruct",
        "OLMoE-1B-7B-0125-Instruct",
    ],
)
def test_every_way_to_say_a_name_finds_it(asked: str) -> None:
    assert lookup(asked) is lookup("olmoe-1b-7b")
    assert find(asked).hub_id == "allenai/OLMoE-1B-7B-0125-Instruct"


def test_no_name_means_two_models() -> None:
    seen: dict[str, str] = {}
    for entry in entries():
        for key in {entry.name, entry.hub_id.lower(), entry.hub_id.lower().rpartition("/")[2]}:
            assert seen.setdefault(key, entry.hub_id) == entry.hub_id


@pytest.mark.parametrize(
    ("asked", "near"),
    [("lama3.2-1b", "llama-3.2-1b"), ("olmoe", "olmoe-1b-7b"), ("qwen/qwen2.5-1.5", "qwen2.5-1.5b"), ("", "")],
)
def test_unknown_name_offers_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        lookup(asked)
    text = str(caught.value)
    assert f"no model is called {asked!r}; nearest: " in text
    assert near in text
    assert "\n" not in text


def test_qwen_2_5_is_the_released_one() -> None:
    spec = lookup("Qwen/Qwen2.5-1.5B")
    attention = spec.layers[0].mixer
    assert isinstance(attention, Gqa)
    assert attention.qkv_bias
    assert spec.tied_embeddings
    assert (spec.hidden, len(spec.layers), spec.context) == (1536, 28, 131072)
    assert total_params(spec) == 1_543_714_304  # the checkpoint's own count


def test_the_script_rewrites_the_same_kind_of_data(tmp_path: Path) -> None:
    rows = [dict(entry.facts) for entry in entries() if entry.name in PAPER and entry.name != "qwen2.5-1.5b"]
    wrong = {**rows[0], "name": "someone/wrong-7b", "published_total_b": 99}
    facts, target = tmp_path / "facts.json", tmp_path / "models.json"
    facts.write_text(json.dumps({"models": [*rows, wrong]}))
    script = ROOT / "scripts" / "make_catalogue.py"
    done = subprocess.run(
        [sys.executable, str(script), str(facts), "--out", str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "left out someone/wrong-7b: counts" in done.stderr
    written = json.loads(target.read_text())["models"]
    assert sorted(written) == sorted(PAPER)
    assert written == {entry.name: entry.facts for entry in entries() if entry.name in PAPER}
