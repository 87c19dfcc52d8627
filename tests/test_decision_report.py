"""What people and programs are shown of a decision: terminal, JSON, charts and page."""

from __future__ import annotations

import functools
import io
import itertools
import re
from pathlib import Path
from typing import Any

import decision_fixtures as made
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from breakeven.errors import BreakevenError, UserError
from breakeven.model.quality.scores import QualityScore
from breakeven.pages.decision_html import render_decision
from breakeven.pages.decision_terminal import print_decision, summary
from breakeven.pages.figures.decision import DecisionFigures, figures_of_decision
from breakeven.pages.figures.figure import Figure, Missing, draw
from breakeven.pages.figures.maps import STEP, strokes
from breakeven.pages.saved import save_decision
from breakeven.results import decision as spec
from breakeven.results.decision import Decision, Region
from breakeven.results.store import encode, read, write

DECISIONS = ("full", "no_difference", "nobody", "both", "many", "one_load", "turns", "hostile")
PAGE = Path("out/report.html")
ROOT = Path(__file__).parent.parent


def printed(decision: Decision, width: int = 60, terminal: bool = False, full: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal)
    print_decision(decision, console, PAGE, full=full)
    return out.getvalue()


@functools.cache
def rendered(name: str) -> str:
    """The page of a made-up decision; drawing takes long enough to do it once."""
    return render_decision(getattr(made, name)())


@functools.cache
def figures_of_full() -> DecisionFigures:
    """The figures of the largest; making them takes long, too."""
    return figures_of_decision(made.full())


def layers_of(figure: Figure | Missing) -> list[dict[str, Any]]:
    """The layers of the wide drawing, each with its rows under "rows"."""
    assert isinstance(figure, Figure)
    chart = figure.wide.to_dict(validate=False)
    held = chart.get("datasets", {})

    def rows(data: dict[str, Any]) -> list[dict[str, Any]]:
        return data["values"] if "values" in data else held[data["name"]]  # type: ignore[no-any-return]

    return [{**layer, "rows": rows(layer.get("data", chart.get("data", {})))} for layer in chart["layer"]]


def flat(text: str) -> str:
    return " ".join(text.split())


# --- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_of_any_width_holds_everything(name: str, width: int) -> None:
    decision = getattr(made, name)()
    text = printed(decision, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert flat(text).startswith(flat(decision.verdict.sentence))
    assert "None" not in text
    assert text.isascii()


def test_narrow_and_wide_terminals_tell_the_same() -> None:
    def cells(text: str) -> list[str]:
        return sorted(set(re.findall(r"\d[\d,]*(?:\.\d+)?", text)))

    for name in DECISIONS:
        assert cells(printed(getattr(made, name)(), 60)) == cells(printed(getattr(made, name)(), 200))


def test_order_is_verdict_reasons_candidates_flips_and_what_it_rests_on() -> None:
    text = printed(made.full(), 100)
    marks = ["Pay by the token", "Why", "At 4 req/s: 3 predicted, 1 published", "Best by load"]
    marks += ["Where the answer changes", "Ruled out", "What would narrow", "What arithmetic cannot settle"]
    marks += ["Load now: 4 req/s.", "Share to keep it: at least 95 % of requests.", "Page: out/report.html"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_who_is_ruled_out_is_marked_and_told_why() -> None:
    text = flat(printed(made.full(), 100))
    assert "mixtral-8x7b on the desk *" in text
    assert "mixtral-8x7b on the desk: needs 28.6 GB, rtx-4090 has 24 GB; draws 420 W, the study allows 350 W" in text
    assert "*" not in printed(made.both(), 100)


def test_a_day_is_told_hour_by_hour() -> None:
    lines = [line.split() for line in printed(made.turns(), 140).splitlines()]
    assert ["0-1", "h", "0", "-", "-", "-", "-", "1", "0", "%"] in lines
    assert ["2-3", "h", "3", "llama-3.1-8b", "1", "28", "%", "$0.86", "1", "4.8", "%"] in lines
    assert ["23-24", "h", "40", "qwen3-30b-a3b", "1", "64", "%", "$2.99", "1", "64", "%"] in lines
    assert "every hour" in printed(made.turns(), 140, full=False)
    page = rendered("turns")
    assert "<h2>Hour by hour</h2>" in page
    assert page.count('<td class="n">llama-3.1-8b</td>') == 8
    assert page.count('<td class="n">$0.86</td>') == 8
    assert "Hour by hour" not in rendered("one_load")


def test_both_says_which_traffic_goes_to_whom() -> None:
    text = flat(printed(made.both(), 140))
    assert "llama-3.2-1b on the device: prompts under 512 tokens" in text
    assert "(70 % of requests, $14.61 (13.0-16.4) a month)" in text


def test_colour_only_on_a_terminal() -> None:
    assert "\x1b[" in printed(made.full(), terminal=True)
    assert "\x1b[" not in printed(made.full())


def test_names_are_not_read_as_markup_or_escapes() -> None:
    bad = made.decision([made.dense("bad\x1b[31m[bold]name")])
    text = printed(bad, 100)
    assert "\x1b" not in text
    assert "[bold]name" in text


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECISIONS)
def test_json_round_trip(name: str, tmp_path: Path) -> None:
    decision = getattr(made, name)()
    written = write(decision, tmp_path / "deep" / "result.json")
    assert read(written, Decision) == decision
    raw = msgspec.json.decode(written.read_bytes())
    assert raw["schema"] == "breakeven.decision/1"
    assert all("from" in flip and "from_" not in flip for flip in raw["flips"])


@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_first_screen_is_one(name: str, width: int) -> None:
    """At most 45 lines, the verdict first and the page last; what is missing is named."""
    short, whole = (printed(getattr(made, name)(), width, full=full).splitlines() for full in (False, True))
    assert len(short) <= 45
    assert short[0] == whole[0]
    assert short[-1] == whole[-1] == f"Page: {PAGE}"
    assert ("--full" in "\n".join(short)) == (len(whole) > 45)


def test_saving_writes_the_data_and_the_page_and_the_summary_points_to_it(tmp_path: Path) -> None:
    decision = made.no_difference()
    directory = save_decision(decision, tmp_path / "out")
    assert directory == tmp_path / "out"
    assert (directory / "result.json").read_bytes() == encode(decision)
    assert (directory / "report.html").read_text().startswith("<!DOCTYPE html>")
    said = summary(decision, directory / "report.html")
    assert said.startswith("No difference worth your time.")
    assert "report.html" in said.replace("\n", "")


def test_what_is_not_finite_is_not_written() -> None:
    endless = made.decision([made.dense(capacity_per_s=made.exact(float("inf")))])
    with pytest.raises(BreakevenError, match="not finite"):
        encode(endless)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text('{"schema": "breakeven.compare/1"}')
    with pytest.raises(UserError, match=r"breakeven\.compare/1.*breakeven\.decision/1"):
        read(file, Decision)
    with pytest.raises(UserError, match="Cannot read"):
        read(tmp_path / "missing.json", Decision)


FROM_LOG = {"LoggedFleet", "LoggedTraffic", "LogDecision"}
"""What `decide --from-log` adds; its page tells the fields of a part in the row of the part."""


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "decision-json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    structs = [each for each in vars(spec).values() if isinstance(each, type) and each.__module__ == spec.__name__]
    structs.append(QualityScore)
    assert len(structs) >= 13 + len(FROM_LOG)
    for each in structs:
        if each.__name__ in FROM_LOG:
            continue
        for field in msgspec.structs.fields(each):
            assert f"| `{field.encode_name}` |" in sections.get(each.__name__, ""), f"{each.__name__}.{field.name}"


def test_every_field_of_a_decision_on_a_log_is_documented() -> None:
    page = (ROOT / "docs" / "json-gateway.md").read_text()
    section = page.partition("## breakeven.decide_log/1\n")[2].partition("\n## ")[0]
    for name in FROM_LOG:
        for field in msgspec.structs.fields(getattr(spec, name)):
            assert f"`{field.encode_name}`" in section, f"{name}.{field.name}"


# --- charts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECISIONS)
def test_every_figure_is_drawn_or_says_why_not(name: str) -> None:
    figures = figures_of_decision(getattr(made, name)())
    assert len({figure.name for figure in figures.all if isinstance(figure, Figure)}) == sum(
        isinstance(figure, Figure) for figure in figures.all
    )
    for figure in figures.all:
        if isinstance(figure, Missing):
            assert figure.why.endswith(".")
        else:
            assert figure.alt
            assert figure.narrow is not None


def test_nobody_can_be_drawn() -> None:
    figures = figures_of_decision(made.nobody())
    assert all(isinstance(figure, Missing) for figure in figures.all)


def test_the_bill_is_a_staircase_for_machines_and_a_line_for_tokens() -> None:
    (cost,) = figures_of_full().cost
    assert isinstance(cost, Figure)
    (drawn,) = [layer["rows"] for layer in layers_of(cost) if layer["mark"]["type"] == "line"]
    assert {row["model"] for row in drawn} == {"llama-3.1-8b", "qwen3-30b-a3b", "hosted-moe"}
    rented = sorted((row["x"], row["value"]) for row in drawn if row["model"] == "llama-3.1-8b")
    # Every rise happens at once, between one load and its neighbour a hair above.
    rises = [b[0] / a[0] for a, b in itertools.pairwise(rented) if b[1] > a[1]]
    assert rises
    assert max(rises) < 1.001
    hosted = sorted((row["x"], row["value"]) for row in drawn if row["model"] == "hosted-moe")
    assert len(hosted) == len(made.RATES)
    assert all(b[1] / a[1] == pytest.approx(b[0] / a[0]) for a, b in itertools.pairwise(hosted))


def test_flips_are_marked_with_their_bands() -> None:
    (cost,) = figures_of_full().cost
    assert isinstance(cost, Figure)
    for chart in (cost.wide, cost.narrow):
        assert chart is not None
        drawn = draw(chart)
        assert "flips at 1.50 (1.25–1.80) req/s" in drawn
        assert "flips at 27.0 (20.8–35.1) req/s" in drawn
        assert "now 4 req/s" in drawn
    assert "flips at 1.50 (1.25-1.80) req/s to llama-3.1-8b" in cost.alt
    (crowded,) = figures_of_decision(made.both()).cost
    assert isinstance(crowded, Figure)
    assert "2 more flips are drawn without words." in crowded.caption


def test_what_is_not_sure_is_hatched_and_what_is_sure_is_not() -> None:
    def hatched(figure: Figure | Missing) -> int:
        return sum(len(layer["rows"]) for layer in layers_of(figure) if "x1" in str(layer["encoding"].get("x")))

    full = figures_of_full()
    assert hatched(full.regions[0]) > 0
    assert hatched(full.maps[0]) > 0
    sure = [
        msgspec.structs.replace(each, cells=[msgspec.structs.replace(cell, certain=True) for cell in each.cells])
        for each in made.full().maps
    ]
    regions = [msgspec.structs.replace(each, certain=True) for each in made.full().regions]
    plain = figures_of_decision(msgspec.structs.replace(made.full(), maps=sure, regions=regions))
    assert hatched(plain.regions[0]) == hatched(plain.maps[0]) == 0


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 200), st.floats(1, 200))
def test_strokes_stay_in_their_box_and_rise(left: float, top: float, wide: float, tall: float) -> None:
    box = (left, top, left + wide, top + tall)
    for x1, y1, x2, y2 in strokes(box):
        assert left - 1e-6 <= x1 < x2 <= left + wide + 1e-6
        assert top - 1e-6 <= y2 < y1 <= top + tall + 1e-6
        assert x2 - x1 == pytest.approx(y1 - y2)
    if wide + tall > 4 * STEP and min(wide, tall) > STEP:
        assert strokes(box)


def test_a_map_tells_ties_from_what_nobody_can_serve() -> None:
    figures = figures_of_full()
    context = figures.maps[0]
    assert isinstance(context, Figure)
    assert "context 512" in context.alt
    assert "nobody can serve it" in context.alt
    assert "no difference" in context.alt
    assert draw(context.wide).count("32,768 tokens") == 1


# --- page ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECISIONS)
def test_a_page_stands_alone_and_leads_with_the_verdict(name: str) -> None:
    page = rendered(name)
    assert page.count("<h1>") == 1
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="', page)
    assert "default-src 'none'" in page
    assert ">None<" not in page
    assert "nan" not in re.sub(r"<[^>]*>", "", page).lower().split()


def test_the_page_holds_every_part() -> None:
    page = rendered("full")
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "Where the answer flips",
        "What it costs",
        "Ruled out",
        "How long people wait",
        "Map",
        "Memory",
        "What would narrow the answer most",
        "What arithmetic cannot settle",
        "Every candidate",
        "What was assumed",
    ]
    assert "list price of one provider, 2026-02" in page
    assert "arXiv:2305.14705" in page
    assert "breakeven calibrate --engine vllm" in page
    assert "Needs 28.6 GB, rtx-4090 has 24 GB. Draws 420 W, the study allows 350 W." in page


def test_sentences_start_with_a_capital_but_names_stay() -> None:
    assert "hosted-moe stays the cheapest" in rendered("full")
    assert "In FP8 the MoE fits one device." in rendered("full")


def test_text_from_outside_is_escaped() -> None:
    page = rendered("hostile")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_region_without_end_reaches_the_edge_of_the_strip() -> None:
    strip = figures_of_full().regions[0]
    assert isinstance(strip, Figure)
    bars = layers_of(strip)[1]["rows"]
    assert [bar["left"] for bar in bars[1:]] == [bar["right"] for bar in bars[:-1]]
    assert bars[0]["left"] == 0
    assert bars[-1]["right"] == strip.wide.to_dict(validate=False)["width"]


def test_a_region_from_zero_is_drawn() -> None:
    zero = [Region(low_per_s=0.0, high_per_s=None, winner="llama-3.1-8b", runner_up=None, margin=None, certain=True)]
    strip = figures_of_decision(msgspec.structs.replace(made.full(), regions=zero)).regions[0]
    assert isinstance(strip, Figure)
    (bar,) = layers_of(strip)[1]["rows"]
    assert (bar["left"], bar["right"]) == (0, strip.wide.to_dict(validate=False)["width"])
    assert draw(strip.wide).startswith("<svg")
