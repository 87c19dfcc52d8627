"""What `choose` weighs: the shapes that are shipped, the search over them, and the worlds that are drawn."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib import resources

import msgspec
import numpy as np
import pytest

from breakeven.answer.choice.front import front_of
from breakeven.answer.choice.machine import place_of
from breakeven.answer.choice.rows import exact
from breakeven.answer.choice.search import search
from breakeven.answer.choice.uses import ChoiceWords, wish_of
from breakeven.answer.choice.worlds import worlds_of
from breakeven.forecast import shapes as shapes_module
from breakeven.forecast.shapes import made_of, shape_of, shapes, terms_from, with_kv
from breakeven.forecast.terms import terms_of
from breakeven.model.catalogue import lookup, names
from tests.pace_fixtures import paced

CARD = "rtx-3090+ddr4-3200x2:64GB"


# --- the shapes that are shipped ---


def test_the_shapes_are_of_this_catalogue() -> None:
    raw = resources.files("breakeven.forecast").joinpath("data", "shapes.json").read_bytes()
    data = msgspec.json.decode(raw, type=shapes_module.Shapes)
    catalogue = resources.files("breakeven.model").joinpath("data", "models.json").read_bytes()
    again = "run scripts/make_shapes.py"
    assert data.catalogue == hashlib.sha256(catalogue).hexdigest()[:16], again
    assert set(data.models) == set(names()), again


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-3-4b", "deepseek-v2-lite", "falcon-h1-0.5b"])
def test_the_shapes_are_what_the_code_makes(name: str) -> None:
    assert shapes()[name] == made_of(lookup(name)), "run scripts/make_shapes.py"


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_terms_of_the_file_are_those_of_the_step_model(kv: str) -> None:
    spec = lookup("qwen3-30b-a3b")
    shipped = with_kv(terms_from("qwen3-30b-a3b", shape_of("qwen3-30b-a3b"), "Q4_K_M"), kv)
    made = terms_of(spec, "Q4_K_M", 2.0 if kv == "f16" else 34 / 32)
    assert shipped.total_bytes == made.total_bytes
    assert shipped.experts == made.experts
    assert shipped.attention == made.attention
    assert [kind for kind, _ in shipped.work] == [kind for kind, _ in made.work]


# --- the search ---


@pytest.mark.parametrize(("machine", "use"), [(CARD, "code"), ("apple-m2-pro", "chat"), ("h100-sxm", "rag")])
def test_the_search_agrees_with_predict(machine: str, use: str) -> None:
    """Wherever the whole model lies on its devices, the coarse search says what `predict` says."""
    place, wish = place_of(machine, None, None), wish_of(ChoiceWords(use=use))
    whole = [option for option in search(place, wish).options if not option.spilled]
    assert len(whole) > 100
    for option in whole[:: len(whole) // 8]:
        found = exact(option, place, wish)
        assert found is not None
        assert option.timed.speed == pytest.approx(found.tokens_per_s.value, rel=0.02), option.name
        assert option.timed.ttft_s == pytest.approx(found.ttft_s.value, rel=0.25), option.name
        assert option.timed.memory_bytes == pytest.approx(found.point.memory_bytes, rel=0.08, abs=3e8), option.name


def test_a_spilled_search_is_near() -> None:
    place, wish = place_of(CARD, None, None), wish_of(ChoiceWords())
    spilled = [o for o in search(place, wish).options if o.spilled and o.name in ("gpt-oss-120b", "glm-4.5-air")]
    assert spilled
    for option in spilled[:: max(len(spilled) // 3, 1)]:
        found = exact(option, place, wish)
        assert found is not None
        assert 0.5 < option.timed.speed / found.tokens_per_s.value < 2.0, option.name


def test_nothing_offered_is_larger_than_the_machine() -> None:
    place, wish = place_of("rtx-3060", None, None), wish_of(ChoiceWords(memory="8GB"))
    found = search(place, wish)
    assert max(option.timed.memory_bytes for option in found.options) <= 8 * 2**30
    assert "llama-3.1-70b" in found.too_big or "llama-3.3-70b" in found.too_big


def test_unsaid_ram_holds_nothing() -> None:
    place = place_of("rtx-3060", None, None)
    assert any("how much RAM" in note for note in place.notes)
    assert not any(option.spilled for option in search(place, wish_of(ChoiceWords())).options)


def test_more_users_are_slower_and_take_more() -> None:
    place = place_of(CARD, None, None)
    one, many = (
        {(o.name, o.format, o.kv): o.timed for o in search(place, wish_of(ChoiceWords(users=n))).options}
        for n in (1, 8)
    )
    both = [key for key in many if key in one]
    assert len(both) > 200
    assert all(many[key].memory_bytes > one[key].memory_bytes for key in both)
    assert all(many[key].speed <= one[key].speed * 1.001 for key in both)


# --- the draws ---


def test_a_model_keeps_less_of_its_quality_in_fewer_bits() -> None:
    place, wish = place_of(CARD, None, None), wish_of(ChoiceWords())
    options = tuple(o for o in search(place, wish).options if o.name == "qwen3-14b" and o.kv == "f16")
    worlds = worlds_of(options, place, wish)
    by_bits = sorted(range(len(options)), key=lambda i: options[i].bits)
    quality = [float(worlds.quality_O[i]) for i in by_bits]
    assert quality == sorted(quality)
    assert quality[0] < 0.9 * quality[-1]


def test_formats_of_one_model_are_off_together() -> None:
    """How able the model is moves all of its formats alike."""
    place, wish = place_of(CARD, None, None), wish_of(ChoiceWords())
    found = search(place, wish).options
    options = tuple(o for o in found if o.name == "qwen3-14b" and o.format in ("Q8_0", "Q6_K") and o.kv == "f16")
    worlds = worlds_of(options, place, wish)
    assert np.asarray(np.corrcoef(worlds.quality_WO.T))[0, 1] > 0.95
    assert np.corrcoef(np.log(worlds.speed_WO.T))[0, 1] > 0.95


def test_losses_are_drawn_apart_from_abilities() -> None:
    place, wish = place_of(CARD, None, None), wish_of(ChoiceWords())
    found = search(place, wish).options
    options = tuple(o for o in found if o.format == "IQ2_XXS" and o.kv == "f16")
    worlds = worlds_of(options, place, wish)
    kept_WO = worlds.quality_WO / worlds.ability_WM[:, worlds.of_O]
    together = [np.corrcoef(worlds.ability_WM[:, m], kept_WO[:, o])[0, 1] for o, m in enumerate(worlds.of_O)]
    assert len(together) > 20
    assert np.abs(together).mean() < 0.1


def test_more_languages_without_scores_are_no_surer() -> None:
    place = place_of(CARD, None, None)
    one, three = (wish_of(ChoiceWords(use="translate", languages=each)) for each in ("hi", "hi,ta,te"))
    options = tuple(o for o in search(place, one).options if o.name in ("qwen3-8b", "gemma-3-27b") and o.kv == "f16")
    narrow, wide = (worlds_of(options, place, wish).ability_WM.std(axis=0) for wish in (three, one))
    assert (narrow > 0.8 * wide).all()


def test_the_front_holds_what_nothing_betters() -> None:
    place, wish = place_of("apple-m2-pro", None, None), wish_of(ChoiceWords())
    options = search(place, wish).options
    worlds = worlds_of(options, place, wish)
    memory = np.array([option.timed.memory_bytes for option in options])
    allowed = worlds.keeps_O(wish)
    front = front_of(worlds, memory, worlds.scores_WM(wish, np.ones(len(options), bool)), allowed)
    on = np.flatnonzero(front.on_O)
    assert 2 < len(on) < allowed.sum()
    for o in np.flatnonzero(allowed)[::37]:
        over = (worlds.quality_O[on] >= worlds.quality_O[o]) & (worlds.speed_O[on] >= worlds.speed_O[o])
        assert (over & (memory[on] <= memory[o])).any()
    assert front.wins_M.sum() + front.undecided == pytest.approx(1)


# --- what it takes ---


@pytest.mark.skipif(sys.platform == "win32", reason="the system tells a process' use in another way there")
@pytest.mark.parametrize(("machine", "use"), [("8xh100-sxm", "agent"), ("rtx-4090+ddr5-5600x2:128GB", "code")])
def test_a_choice_takes_five_seconds_of_one_core_and_400_mb_at_most(machine: str, use: str) -> None:
    """Of the whole catalogue, imports and all; the CPU's time, which others on the machine do not lengthen."""
    code = (
        "import json, resource, breakeven\n"
        "from pathlib import Path\n"
        f"found = breakeven.choose({machine!r}, use={use!r}, users=4)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "status, peak = Path('/proc/self/status'), used.ru_maxrss\n"
        "if status.exists():  # of this process alone: the other figure begins with whoever started it\n"
        "    peak = int(status.read_text().partition('VmHWM:')[2].split()[0])\n"
        "print(json.dumps([used.ru_utime + used.ru_stime, peak, found.considered]))\n"
    )
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **one}, capture_output=True, text=True, check=True
    )
    cpu_s, peak, considered = json.loads(done.stdout)
    assert considered > 500
    assert cpu_s <= paced(5.0)
    assert peak * (1 if sys.platform == "darwin" else 1024) < 400e6
