"""`breakeven choose`: all that could run on a machine, the front of it, a pick no surer than what is known."""

from __future__ import annotations

import doctest
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

import breakeven
from breakeven.answer.choice import choose as choose_module
from breakeven.answer.choice.front import EQUAL
from breakeven.answer.choice.hosted import hosted_prices
from breakeven.answer.choice.machine import Site, place_of
from breakeven.answer.choice.rows import Exact, blocks_with
from breakeven.answer.choice.search import Runnable, search
from breakeven.answer.choice.uses import USES, ChoiceWords, Wish, wish_of
from breakeven.answer.choice.worlds import worlds_of
from breakeven.errors import UserError
from breakeven.hardware.placement import split_served
from breakeven.model.catalogue import entries, lookup
from breakeven.model.quality.ability import ability
from breakeven.model.resolve import split_format
from breakeven.pages.choose import print_choice
from breakeven.pages.choose_html import render_choice
from breakeven.pages.terminal import SCREEN_LINES
from breakeven.results.choose import (
    ChoiceExplained,
    ChoiceKinds,
    ChoiceLimit,
    ChoiceRow,
    ChoiceUse,
    CommandLine,
    HostedRow,
    ModelChoice,
    PassedOver,
)
from breakeven.results.store import read
from tests.cli_fixtures import run_here

ROOT = Path(__file__).parent.parent
CARD = "rtx-3090+ddr4-3200x2:64GB"


@pytest.fixture(scope="module")
def coded() -> ModelChoice:
    """The choice for code on a card with RAM beside it."""
    return breakeven.choose(CARD, use="code")


# --- the answer ---


def test_the_pick_stands_first_and_keeps_the_limits(coded: ModelChoice) -> None:
    assert 1 <= len(coded.rows) <= 7
    assert coded.rows[0].role == "pick"
    assert len({row.model for row in coded.rows}) == len(coded.rows)
    for row in coded.rows:
        assert row.tokens_per_s.value >= USES["code"].min_speed
        assert row.ttft_s.value <= (USES["code"].ttft_s or 0)
        assert row.quality.least <= row.quality.value <= row.quality.most
        assert row.why
        assert row.start
    assert {row.kind for row in coded.rows} == {"moe", "dense"}


def test_a_pick_is_never_made_by_less_than_its_error(coded: ModelChoice) -> None:
    assert (coded.verdict == "equal") == bool(coded.equals)
    for row in coded.rows[1:]:
        if row.role == "equal":
            assert row.model in coded.equals
            assert f"{EQUAL:.0%}" not in row.why
    if coded.verdict == "equal":
        assert "equal on what is known; measure them" in coded.sentence


def test_the_kinds_share_the_worlds_and_turn_where_speed_is_asked_for(coded: ModelChoice) -> None:
    kinds = coded.kinds
    assert kinds is not None
    assert 0.9 < kinds.moe + kinds.dense <= 1.0001
    assert (kinds.flips_at is None) == (kinds.flips_to is None)
    if kinds.flips_at is not None:
        again = breakeven.choose(CARD, use="code", min_speed=kinds.flips_at).kinds
        assert again is not None
        assert (again.moe > again.dense) == (kinds.flips_to == "moe")


def test_the_same_seed_gives_the_same_choice(coded: ModelChoice) -> None:
    assert msgspec.json.encode(breakeven.choose(CARD, use="code")) == msgspec.json.encode(coded)


def test_commands_name_what_they_start(coded: ModelChoice) -> None:
    assert coded.measure is not None
    words = shlex.split(coded.measure)
    assert words[:2] == ["breakeven", "compare"]
    for word in words[2:4]:
        model, _, _ = split_served(word)
        name, format_name = split_format(model)
        assert lookup(name)
        assert format_name is not None
    for row in coded.rows:
        started = shlex.split(row.start[0].line)
        assert started[0] == "llama-server"
        assert started[started.index("-m") + 1] == f"{row.model}-{row.format}.gguf"
        assert int(started[started.index("-c") + 1]) == coded.use.reserve


def test_a_served_choice_is_started_with_its_hub_id() -> None:
    found = breakeven.choose("h100-sxm", use="rag", users=4)
    assert found.engine == "vllm"
    for row in found.rows:
        started = shlex.split(row.start[0].line)
        assert started[:2] == ["vllm", "serve"]
        assert started[2] in (row.hub_id, f"{row.model}-{row.format}")
        assert started[started.index("--max-num-seqs") + 1] == "4"
    # Formats of fewer bits than 16 are not made up in vLLM, and no line is given that it would refuse.
    two = {row.format for row in found.rows[:2]}
    assert (found.measure is not None) == (two == {"BF16"})
    assert any("makes up weights of 16 bits alone" in note for note in found.notes) == (found.measure is None)


@pytest.mark.parametrize(
    ("name", "away", "blocks"),
    [("qwen3-30b-a3b", 5, 5), ("glm-4.5-air", 3, 4), ("llama-4-maverick", 2, 4), ("deepseek-v3", 58, 61)],
)
def test_blocks_are_counted_where_layers_with_experts_are_meant(name: str, away: int, blocks: int) -> None:
    assert blocks_with(name, away) == blocks


def test_ollama_is_told_of_users_and_layers() -> None:
    found = breakeven.choose("rtx-3060", users=4)
    lines = [each for row in found.rows for each in row.start if each.engine == "ollama"]
    assert lines
    assert all("OLLAMA_NUM_PARALLEL=4" in (each.note or "") for each in lines)


def test_what_turns_out_not_to_fit_is_never_the_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the choice is made again."""
    place, wish = place_of("rtx-3060", None, None), wish_of(ChoiceWords())
    searched = search(place, wish)
    asked: list[int] = []

    def small(number: int, options: tuple[Runnable, ...], known: dict[int, Exact], place: Site, wish: Wish) -> bool:
        known[number] = None  # type: ignore[assignment]
        asked.append(number)
        return options[number].timed.memory_bytes < 2e9

    monkeypatch.setattr(choose_module, "_holds", small)
    found = choose_module._chosen(searched, searched.options, place, wish, 17)
    assert len(asked) > 7 * choose_module.TRIES
    assert found.standing[0].role == "pick"
    assert all(searched.options[each.option].timed.memory_bytes < 2e9 for each in found.standing)
    assert found.worlds.models[found.front.pick] == searched.options[found.standing[0].option].name


def test_nothing_that_fits_when_placed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_module, "_holds", lambda *_: False)
    found = breakeven.choose("raspberry-pi-5", use="batch")
    assert found.verdict == "none"
    assert "a little too large or too slow; loosen --min-speed" in found.sentence


def test_this_machine_needs_no_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = breakeven.choose("this", use="batch", min_speed=0.01)
    assert found.rows
    assert any("was not calibrated" in note for note in found.notes)


def test_a_licence_that_is_not_allowed_is_passed_over() -> None:
    found = breakeven.choose(CARD, licence="permissive")
    assert all(row.licence in ("apache-2.0", "mit") for row in found.rows)
    (over,) = [each for each in found.passed_over if each.reason == "licence"]
    assert over.models > 20
    (limit,) = [each for each in found.limits if each.option == "--licence"]
    assert limit.given
    assert limit.ruled_out == over.models


def test_a_language_without_scores_is_said_and_not_guessed() -> None:
    found = breakeven.choose(CARD, languages="tlh,en")
    assert found.use.unknown_languages == ["tlh"]
    assert "tlh" not in found.use.areas
    assert any("tlh" in note for note in found.notes)


def test_own_scores_come_before_published_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    found = [("qwen3-8b", 0.95), ("qwen3.5-9b", 0.2)]
    file.write_text("\n".join(json.dumps({"model": name, "score": s, "n": 500}) for name, s in found))
    place, plain = place_of("rtx-3060", None, None), wish_of(ChoiceWords())
    options = tuple(o for o in search(place, plain).options if o.name in ("qwen3-8b", "qwen3.5-9b"))
    before = worlds_of(options, place, plain)
    after = worlds_of(options, place, wish_of(ChoiceWords(scores=(file,))))
    first = next(i for i, option in enumerate(options) if option.name == "qwen3-8b")
    last = next(i for i, option in enumerate(options) if option.name == "qwen3.5-9b")
    assert before.quality_O[first] < before.quality_O[last]
    assert after.quality_O[first] > after.quality_O[last] + 20
    assert {each.source for each in after.told["instruction"]} == {"own"}


def test_what_a_scored_file_lost_is_lost_once(tmp_path: Path) -> None:
    """Scores of a file in two bits have that loss in them: the option in these bits is as able as it was scored."""
    place, plain = place_of("rtx-3060", None, None), wish_of(ChoiceWords())
    options = tuple(o for o in search(place, plain).options if o.name in ("qwen3-8b", "qwen3.5-9b") and o.kv == "f16")
    small = next(i for i, o in enumerate(options) if (o.name, o.format) == ("qwen3-8b", "Q2_K"))
    fine = next(i for i, o in enumerate(options) if (o.name, o.format) == ("qwen3-8b", "Q8_0"))
    found = {}
    for name in ("qwen3-8b", "qwen3-8b-Q2_K"):
        file = tmp_path / f"{name}.jsonl"
        rows = [(name, 0.5), ("qwen3.5-9b", 0.5)]
        file.write_text("\n".join(json.dumps({"model": m, "score": s, "n": 500}) for m, s in rows))
        found[name] = worlds_of(options, place, wish_of(ChoiceWords(scores=(file,))))
    said, scored = found["qwen3-8b"], found["qwen3-8b-Q2_K"]
    assert scored.quality_O[small] > 1.1 * said.quality_O[small]
    assert scored.quality_O[fine] > scored.quality_O[small]
    # What was scored needs no guess of its loss; that of the finer file is in doubt.
    spread = [np.log(worlds.quality_WO[:, small]).std() for worlds in (said, scored)]
    assert spread[1] < 0.8 * spread[0]


def test_a_finer_file_stands_for_the_model_and_the_rest_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [("qwen3-8b-Q8_0", 0.6), ("qwen3-8b-Q4_K_M", 0.4), ("qwen3-14b", 0.7)]
    file.write_text("\n".join(json.dumps({"model": m, "score": s, "n": 50}) for m, s in rows))
    notes = breakeven.choose("rtx-3060", scores=[file]).notes
    assert any("of qwen3-8b in Q4_K_M you gave a finer file too" in note for note in notes)
    assert not any("no candidate here" in note for note in notes)
    file.write_text(json.dumps({"model": "qwen3-8b-Q4_K_XL", "score": 0.4, "n": 50}))
    assert breakeven.choose("rtx-3060", scores=[file]).rows, "a format of unknown bits says nothing, and stops nothing"


def test_scores_in_a_language_that_was_not_asked_for_are_told_of(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"model": "qwen3-8b", "score": 0.5, "n": 50, "language": "hi"}\n')
    notes = breakeven.choose("rtx-3060", use="code", scores=[file]).notes
    assert any("yours are in hi: ask with --languages hi" in note for note in notes)
    asked = breakeven.choose("rtx-3060", use="code", languages="hi", scores=[file]).notes
    assert not any("none of your scores" in note for note in asked)


# --- behind an API ---


def test_hosted_models_are_abler_than_the_pick_and_priced(coded: ModelChoice) -> None:
    assert coded.hosted
    assert coded.hosted_date == hosted_prices().date
    assert [row.usd_per_1000_requests for row in coded.hosted] == sorted(r.usd_per_1000_requests for r in coded.hosted)
    for row in coded.hosted:
        assert row.better is not None
        assert row.better > 0.5
        price = next(p for p in hosted_prices().prices if (p.model, p.host, p.name) == (row.model, row.host, row.name))
        sent = coded.use.context - coded.use.output  # the history too: a host remembers nothing
        usd = (sent * price.usd_in + coded.use.output * price.usd_out) / 1e6
        assert row.usd_per_1000_requests == pytest.approx(1000 * usd)
        assert row.quality.least <= row.quality.value <= row.quality.most
        assert row.requests_for_rent is None
    # None of them is as cheap and less able than another.
    quality = [row.quality.value for row in coded.hosted]
    assert quality == sorted(quality)
    assert any("no limit of speed is held against them" in note for note in coded.notes)


def test_nothing_hosted_is_shown_where_it_is_not_allowed() -> None:
    found = breakeven.choose(CARD, use="code", offline_only=True)
    assert (found.hosted, found.hosted_date) == ([], None)
    assert any("nothing hosted is among the candidates" in note for note in found.notes)


def test_what_renting_costs_is_told_in_requests() -> None:
    found = breakeven.choose("h100-sxm", use="rag", max_usd_per_month=2000)
    rent = place_of("h100-sxm").usd_per_month
    assert rent is not None
    assert found.hosted
    for row in found.hosted:
        usd = row.usd_per_1000_requests / 1000
        assert row.requests_for_rent == pytest.approx(rent / usd)
        assert row.requests_in_limit == pytest.approx(2000 / usd)
        assert (row.better is None) == (row.model == found.rows[0].model)


def test_what_nothing_here_can_do_is_hosted_still() -> None:
    found = breakeven.choose("h100-sxm", max_usd_per_month=10)
    assert found.verdict == "none"
    assert found.hosted
    assert all(row.better is None and row.requests_in_limit for row in found.hosted)


def test_hosts_whose_models_may_not_be_used_are_left_out() -> None:
    found = breakeven.choose("raspberry-pi-5:8GB", licence="mit", context=200_000, use="batch")
    assert all(row.licence == "mit" and (row.context or 0) >= 200_000 for row in found.hosted)
    assert found.hosted


def test_prices_are_of_catalogued_models_and_dated() -> None:
    data = hosted_prices()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", data.date)
    assert len({price.model for price in data.prices}) > 20
    assert len({price.host for price in data.prices}) > 5
    for price in data.prices:
        assert lookup(price.model)
        assert 0 < price.usd_in < 100
        assert 0 < price.usd_out < 100
        assert price.usd_cached is None or 0 < price.usd_cached <= price.usd_in


def test_own_scores_that_count_for_nothing_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"model": "qwen3-8bb", "score": 0.5, "n": 50}\n')
    notes = breakeven.choose("rtx-3060", scores=[file]).notes
    assert any("your scores of qwen3-8bb are of no candidate here" in note for note in notes)
    assert any("none of your scores tells of a candidate in instruction" in note for note in notes)


def test_what_the_scores_of_the_pick_do_not_say_is_said() -> None:
    found = breakeven.choose(CARD, use="rag")
    because = "; ".join(found.because)
    assert ("no score in knowledge itself" in found.rows[0].quality_note) == ("it has no score in knowledge" in because)
    told = ability(found.rows[0].model, "knowledge").of
    assert told.endswith("#thinking") == ("answers after thinking" in because)


def test_a_language_beside_knowledge_is_not_knowledge_alone() -> None:
    plain, mixed = (breakeven.choose("rtx-3060", use="rag", languages=each).notes for each in (None, "hi"))
    assert not any("for knowledge alone" in note for note in plain)
    assert any("for knowledge alone" in note for note in mixed)


def test_a_trained_format_is_the_only_one_offered() -> None:
    place, wish = place_of(CARD, None, None), wish_of(ChoiceWords())
    assert {o.format for o in search(place, wish).options if o.name == "gpt-oss-20b"} == {"MXFP4"}


# --- nothing keeps the limits ---


def test_the_nearest_is_named_where_nothing_is_fast_enough() -> None:
    found = breakeven.choose("raspberry-pi-5", min_speed=500)
    assert found.verdict == "none"
    assert not found.rows
    assert found.measure is None
    assert re.search(r"keeps --min-speed: 500 tokens/s.*the fastest, \S+ in \S+, reaches", found.sentence)


def test_the_nearest_is_named_where_nothing_fits() -> None:
    found = breakeven.choose("rtx-3060", memory="100MB")
    assert found.verdict == "none"
    assert re.search(r"Nothing fits .* the nearest, \S+, takes .* GB", found.sentence)


def test_two_limits_that_contradict_each_other_are_named() -> None:
    place, wish = place_of("rtx-3060", None, None), wish_of(ChoiceWords(min_speed=1))
    options = search(place, wish).options
    fast = max(o.timed.speed for o in options if o.entry.facts.licence == "exaone")
    found = breakeven.choose("rtx-3060", min_speed=fast * 1.01, licence="exaone")
    assert found.verdict == "none"
    assert "--min-speed" in found.sentence
    assert "--licence" in found.sentence
    assert "contradict" in found.sentence


def test_a_rent_above_the_limit_leaves_nothing() -> None:
    found = breakeven.choose("h100-sxm", max_usd_per_month=10)
    assert found.verdict == "none"
    assert "--max-usd-per-month" in found.sentence


def test_the_rent_is_what_is_rented_not_what_it_costs_its_owner() -> None:
    place = place_of("h200-sxm")
    assert place.usd_per_month == pytest.approx(1.6 * 730)
    assert "rental" in (place.price_source or "")


def test_cores_of_a_cpu_are_said_to_count_for_nothing() -> None:
    assert any("cores are not counted" in note for note in place_of("ddr4-3200x2:8GB:4cores").notes)
    assert not any("cores are not counted" in note for note in place_of(CARD).notes)


def test_memory_beyond_the_machine_s_is_not_weighed() -> None:
    (limit,) = [each for each in breakeven.choose("rtx-3060", memory="200GB").limits if each.option == "--memory"]
    assert float(limit.asked.split()[0]) < 13


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"use": "poetry"}, "--use poetry"),
        ({"users": 0}, "--users 0"),
        ({"min_speed": -1.0}, "--min-speed -1"),
        ({"min_speed": 1e9}, "give a number above 0 and below 1,000,000,000"),
        ({"memory": "much"}, "--memory much"),
        ({"languages": "h!"}, "--languages"),
        ({"use": "translate"}, "--languages hi,en"),
        ({"context": 10}, "--context 10"),
        ({"explain": "no-such-model:Q4_K_M"}, "no model is called"),
    ],
)
def test_bad_words_are_refused_by_name(words: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        breakeven.choose(CARD, **words)  # type: ignore[arg-type]


# --- one model explained ---


def test_the_pick_is_explained_as_the_pick(coded: ModelChoice) -> None:
    first = coded.rows[0]
    found = breakeven.choose(CARD, use="code", explain=f"{first.model}:{first.format}")
    assert found.explained is not None
    assert found.explained.picked
    assert found.rows == coded.rows


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kimi-k2:Q8_0", "does not fit"),
        ("qwen3-0.6b:Q8_0", "better in"),
        ("gemma-2-9b", "context ends"),
        ("qwen3-14b:Q5_K_S", "is not weighed for it here"),
        ("gemma-4-31b-nvfp4", "it is gemma-4-31b in fewer bits"),
    ],
)
def test_a_model_that_is_not_picked_is_told_why(name: str, told: str) -> None:
    explained = breakeven.choose(CARD, use="code", explain=name).explained
    assert explained is not None
    assert not explained.picked
    assert told in "; ".join(explained.reasons)


def test_a_model_that_does_not_fit_when_placed_is_told_so(coded: ModelChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = choose_module._holds, coded.rows[-1].model

    def holds(number: int, options: tuple[Runnable, ...], known: dict[int, Exact], place: Site, wish: Wish) -> bool:
        return real(number, options, known, place, wish) and options[number].name != other

    monkeypatch.setattr(choose_module, "_holds", holds)
    explained = breakeven.choose(CARD, use="code", explain=other).explained
    assert explained is not None
    assert explained.row is None
    assert [reason for reason in explained.reasons if "placed as its engine places it" in reason] == explained.reasons


# --- how it is shown ---


def test_json_is_the_result(coded: ModelChoice) -> None:
    done = run_here("choose", "--machine", CARD, "--use", "code", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout, type=ModelChoice) == coded


def test_the_page_holds_every_row_and_no_markup_of_others(coded: ModelChoice, tmp_path: Path) -> None:
    hostile = msgspec.structs.replace(coded.rows[0], hub_id="<script>", why="<b>because</b>")
    page = render_choice(msgspec.structs.replace(coded, rows=[hostile, *coded.rows[1:]]))
    assert "<b>because</b>" not in page
    assert all(f"{row.model}:{row.format}" in page for row in coded.rows)
    assert "<svg" in page
    assert all(f"{row.model} at {row.host}" in page for row in coded.hosted)
    saved = breakeven.choose("raspberry-pi-5", use="batch", out=tmp_path)
    assert read(tmp_path / "result.json", ModelChoice) == saved
    assert (tmp_path / "report.html").read_text().count("<h1>") == 1


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_screen_holds_pick_table_and_commands(
    columns: int, coded: ModelChoice, capsys: pytest.CaptureFixture[str]
) -> None:
    print_choice(coded, Console(width=columns), None)
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= columns
    whole = " ".join(text.split())
    assert whole.startswith(coded.sentence.split(",")[0])
    assert "breakeven compare" in whole
    assert "llama-server" in whole
    assert f"Hosted, {coded.hosted[0].model} at {coded.hosted[0].host} does better in" in whole
    assert len(text.splitlines()) <= SCREEN_LINES
    pick, *others = coded.rows
    assert f"- {pick.model}: " in text
    cut = [row.model for row in others if f"- {row.model}: " not in text]
    assert bool(cut) == ("what each row gives up" in whole)
    print_choice(coded, Console(width=columns), None, full=True)
    text = capsys.readouterr().out
    assert all(f"- {row.model}: " in text for row in coded.rows)


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for found in (
        ModelChoice,
        ChoiceUse,
        ChoiceLimit,
        ChoiceRow,
        ChoiceKinds,
        CommandLine,
        PassedOver,
        ChoiceExplained,
        HostedRow,
    ):
        for field in msgspec.structs.fields(found):
            assert f"| `{field.encode_name}` |" in sections.get(found.__name__, ""), f"{found.__name__}.{field.name}"


def test_every_use_is_in_the_page() -> None:
    page = (ROOT / "docs" / "choose.md").read_text()
    for name, use in USES.items():
        speed = f"{use.min_speed:g}"
        wait = "none" if use.ttft_s is None else f"{use.ttft_s:g} s"
        tokens = " | ".join(f"{n:,}" for n in (use.prompt, use.output, use.context, use.reserve))
        row = f"| `{name}` | {tokens} | {use.area} | {speed} | {wait} |"
        assert row in page, row


def test_every_catalogued_model_is_weighed_or_said() -> None:
    place, wish = place_of("8xh100-sxm", None, None), replace(wish_of(ChoiceWords()), reserve=512, context=512)
    found = search(place, wish)
    told = {option.name for option in found.options} | set(found.too_big) | set(found.short)
    left = {entry.name for entry in entries()} - told
    assert all(re.search(r"-(fp8|nvfp4|mxfp4|int4|awq)$", name) for name in left)


def test_code_in_the_page_runs() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "choose.md"), module_relative=False)
    assert found.attempted >= 3
    assert found.failed == 0
