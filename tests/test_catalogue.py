"""The catalogue: what is in it, and how names find it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.model.architecture import FileTensors, Gqa, StoredTensor
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.catalogue import (
    CatalogueEntry,
    CatalogueFile,
    base_words,
    counterparts,
    entries,
    find,
    lookup,
    matching,
    names,
    packed,
    series,
    unpacked,
)
from breakeven.model.formats.named import FORMATS, GPU_FORMATS
from breakeven.model.summary import detail, summarise
from breakeven.model.tensors import tensors

ROOT = Path(__file__).parent.parent
PAPER = ("olmoe-1b-7b", "llama-3.2-1b", "qwen2.5-1.5b", "gemma-2-2b")
COUNTS: dict[str, int] = json.loads((Path(__file__).parent / "data" / "model_counts.json").read_text())["counts"]


@pytest.mark.parametrize("entry", entries(), ids=names())
def test_count_agrees_with_the_published_total(entry: CatalogueEntry) -> None:
    counted = total_params(lookup(entry.name))
    if entry.facts.total is not None:
        assert entry.facts.total_source
        assert counted == pytest.approx(entry.facts.total, rel=0.03)
    if entry.name in COUNTS:
        assert counted == pytest.approx(COUNTS[entry.name], rel=0.005)


@pytest.mark.parametrize("entry", entries(), ids=names())
def test_kind_and_active_count_are_those_published(entry: CatalogueEntry) -> None:
    spec = lookup(entry.name)
    known = summarise(entry.name, spec, entry.facts)
    kind = "moe" if spec.is_moe else "dense"
    assert entry.facts.kind == (f"hybrid-{kind}" if known.hybrid else kind)
    if entry.facts.active is not None and spec.is_moe:
        # Publishers round, count the embedding or leave out the head; a wrong number of experts is further off.
        assert 0.6 < active_params(spec) / entry.facts.active < 1.7


def test_names_are_plain_and_every_row_has_a_source() -> None:
    assert set(PAPER) | {"smollm2-135m"} <= set(names())
    assert names() == sorted(set(names()))
    for entry in entries():
        assert re.fullmatch(r"[a-z0-9.-]+", entry.name), "NAME:FORMAT is read from the last colon"
        assert entry.facts.source
        assert "_about" not in entry.facts.config
        assert all(re.fullmatch("[a-z]{2,3}", language) for language in entry.facts.languages)
    assert len({entry.hub_id for entry in entries()}) == len(entries())
    assert not {*(name.lower() for name in (*FORMATS, *GPU_FORMATS))} & set(names())


def test_base_models_are_told_from_those_that_answer() -> None:
    for entry in entries():
        ids, base = (entry.hub_id, *entry.facts.also), entry.facts.base
        assert set(base) <= set(ids)
        assert {each for each in ids if re.search(r"-base(-|$)", each, re.IGNORECASE)} <= set(base)
        assert not any(re.search(r"instruct|chat|thinking|-it$", each, re.IGNORECASE) for each in base)
        assert entry.facts.answers in ids
        assert (entry.facts.answers in base) == ({each for each in ids if "/" in each} <= set(base))
    answers = {name: find(name).facts.answers for name in ("granite-4.0-h-1b", "mellum2-12b-a2.5b", "qwen2.5-32b")}
    assert list(answers.values()) == [
        "ibm-granite/granite-4.0-h-1b", "JetBrains/Mellum2-12B-A2.5B-Instruct", "Qwen/Qwen2.5-32B"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("qwen2.5-32b", "Qwen/Qwen2.5-32B is a base model, .*; no checkpoint of it that was is known here"),
        ("mimo-7b", "XiaomiMiMo/MiMo-7B-Base is a base model"),
        ("nemotron-h-56b", "nvidia/Nemotron-H-56B-Base-8K is a base model"),
        ("gemma-2-27b", "google/gemma-2-27b is a base model, .*; take google/gemma-2-27b-it"),
        ("Apertus-8B-2509", "swiss-ai/Apertus-8B-2509 is a base model, .*; take swiss-ai/Apertus-8B-Instruct-2509"),
        ("someone/Other-9B-Base", "someone/Other-9B-Base is a base model"),
        ("gemma-2-27b-it", None),
        ("apertus-8b", None),
        ("qwen3-8b", None),
        ("someone/Other-9B", None),  # not known is not said
        ("someone/database", None),
    ],
)
def test_whom_nobody_taught_to_chat_is_said(asked: str, said: str | None) -> None:
    found = base_words(asked)
    assert (found is None) if said is None else re.match(said, found or "")


@pytest.mark.parametrize(
    "asked",
    [
        "olmoe-1b-7b",
        "OLMoE-1B-7B",
        " olmoe-1b-7b ",
        "allenai/OLMoE-1B-7B-0125-Instruct",
        "allenai/olmoe-1b-7b-0125-instruct",
        "OLMoE-1B-7B-0125-Instruct",
        "allenai/OLMoE-1B-7B-0924",
    ],
)
def test_every_way_to_say_a_name_finds_it(asked: str) -> None:
    assert lookup(asked) is lookup("olmoe-1b-7b")
    assert find(asked).hub_id == "allenai/OLMoE-1B-7B-0125-Instruct"


def test_no_name_means_two_models() -> None:
    seen: dict[str, str] = {}
    for entry in entries():
        ids = [entry.hub_id.lower(), *(name.lower() for name in entry.facts.also)]
        for key in {entry.name, *ids, *(each.rpartition("/")[2] for each in ids)}:
            # Two publishers may call their files of one model alike; the short name is the 16-bit one's.
            assert seen.setdefault(key, entry.hub_id) == entry.hub_id or key in names()


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


def test_parts_of_names_find_models() -> None:
    assert set(matching("qwen3.5")) == {name for name in names() if name.startswith("qwen3.5")}
    assert matching("OLMoE") == ["olmoe-1b-7b"]
    assert set(matching("google")) == {entry.name for entry in entries() if entry.hub_id.startswith("google/")}
    assert matching("a3b qwen3-30b") == matching("qwen3-30b a3b")
    assert "qwen3-30b-a3b" in matching("qwen3-30b a3b")
    assert matching("no-such-model") == matching("") == matching("lama-3.2") == matching("[") == []


def test_qwen_2_5_is_the_released_one() -> None:
    spec = lookup("Qwen/Qwen2.5-1.5B")
    attention = spec.layers[0].mixer
    assert isinstance(attention, Gqa)
    assert attention.qkv_bias
    assert spec.tied_embeddings
    assert (spec.hidden, len(spec.layers), spec.context) == (1536, 28, 131072)
    assert total_params(spec) == 1_543_714_304  # the checkpoint's own count


def test_a_files_own_types_come_before_every_other_format() -> None:
    spec = lookup("smollm2-135m")
    stored = tuple(StoredTensor(t.name, t.shape, "F32", 4 * t.params) for t in tensors(spec))
    shown = detail("mine", replace(spec, stored=FileTensors("Q4_K - Medium", stored))).formats
    assert (shown[0].format, shown[0].label) == ("file", "Q4_K - Medium (this file)")
    assert shown[0].total_bytes == 4 * total_params(spec)
    assert [each.format for each in shown[1:]] == [*FORMATS, *GPU_FORMATS]


@pytest.mark.parametrize(
    ("name", "first", "all_of"),
    [
        ("qwen3-30b-a3b", "qwen3-32b", {"qwen3-32b", "qwen3-8b", "qwen3-4b"}),
        ("qwen3.5-35b-a3b", "qwen3.5-27b", {"qwen3.5-27b", "qwen3.5-9b", "qwen3.5-4b"}),
        ("qwen3-32b", "qwen3-30b-a3b", set()),
        ("gemma-4-26b-a4b", "gemma-4-31b", set()),
        ("gemma-4-31b", "gemma-4-26b-a4b", set()),
    ],
)
def test_the_other_kind_to_compare_with_is_of_the_family_first(name: str, first: str, all_of: set[str]) -> None:
    found = counterparts(find(name))
    assert found[0].name == first
    assert "same family" in found[0].why
    assert {each.name for each in found} >= all_of


@pytest.mark.parametrize("entry", entries(), ids=names())
def test_counterparts_are_of_the_other_kind(entry: CatalogueEntry) -> None:
    found = counterparts(entry)
    assert all(find(each.name).facts.is_moe != entry.facts.is_moe for each in found)
    assert len({each.name for each in found}) == len(found) <= 3
    assert found or not entry.facts.is_moe


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen3.5-35b-a3b", "qwen3.5"),
        ("qwen3-30b-a3b-2507", "qwen3"),
        ("gemma-4-31b", "gemma-4"),
        ("glm-4.5-air", "glm-4.5"),
        ("mixtral-8x7b", "mixtral"),
        ("gpt-oss-20b", "gpt-oss"),
        ("deepseek-v3.2", "deepseek-v3.2"),
    ],
)
def test_a_series_is_the_family_and_its_generation(name: str, family: str) -> None:
    assert series(name) == family


@given(st.lists(st.sampled_from(["full_attention", "sliding_attention", 0, 1, 128]), max_size=80))
def test_a_list_in_short_says_the_same(values: list[object]) -> None:
    short = packed({"layer_types": values})
    assert unpacked(short) == {"layer_types": values}
    told = short["layer_types"]
    assert told == values or 2 * len(told["runs"]) < len(values)


def test_a_period_is_written_once() -> None:
    layers = (["sliding"] * 5 + ["full"]) * 8
    assert packed(layers) == {"length": 48, "runs": [[5, "sliding"], [1, "full"]]}
    assert unpacked({"length": 7, "runs": [[1, "a"], [2, "b"]]}) == ["a", "b", "b", "a", "b", "b", "a"]


def test_the_script_rewrites_the_same_rows_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    for name in (*PAPER, "wrong-7b"):
        row = find("gemma-2-2b" if name == "wrong-7b" else name).facts
        about = msgspec.to_builtins(row) | {"hub_params": {"value": row.total}}
        config = about.pop("config")
        if name == "wrong-7b":
            about |= {"hub_id": "someone/wrong-7b", "hub_params": None, "published": {"total_b": 99, "source": "x"}}
        if row.active is not None:
            about["published"] = {"active_b": row.active / 1e9, "source": row.active_source}
        (tmp_path / f"{name}.json").write_text(json.dumps({"_about": about, **config}))
    target = tmp_path / "out" / "models.json"
    target.parent.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_catalogue.py"), str(tmp_path), "--out", str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "left out wrong-7b: counts -97" in done.stderr
    written = msgspec.json.decode(target.read_bytes(), type=CatalogueFile).models
    assert sorted(written) == sorted(PAPER)
    assert {name: row.config for name, row in written.items()} == {name: find(name).facts.config for name in PAPER}
    assert [written[name] for name in PAPER if name != "gemma-2-2b"] == [
        find(name).facts for name in PAPER if name != "gemma-2-2b"
    ]
