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
from breakeven.report import decision_words as words
from breakeven.report.decision_files import save_decision
from breakeven.report.decision_html import render_decision
from breakeven.report.decision_json import encode_decision, read_decision, write_decision
from breakeven.report.decision_terminal import print_decision
from breakeven.report.figure import Figure, Missing
from breakeven.report.figures_decision import figures_of_decision
from breakeven.report.hatching import STEP, strokes
from breakeven.report.svg import draw
from breakeven.spec import decision as spec
from breakeven.spec.cost import Own
from breakeven.spec.decision import Decision, Flip, QualityScore, Region
from breakeven.spec.prediction import Span

DECISIONS = ("full", "no_difference", "nobody", "both", "many", "one_load", "hostile")
PAGE = Path("out/report.html")
ROOT = Path(__file__).parent.parent


def printed(decision: Decision, width: int = 60, terminal: bool = False) -> str:
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=width, force_terminal=terminal), PAGE)
    return out.getvalue()


@functools.cache
def rendered(name: str) -> str:
    """The page of a made-up decision; drawing takes long enough to do it once."""
    return render_decision(getattr(made, name)())


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


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (words.span_text(Span(value=9.0, low=8.04, high=10.08)), "9.00 (8.04-10.08)"),
        (words.span_text(made.exact(3.0)), "3"),
        (words.span_text(Span(value=3.0, low=2.0, high=4.0)), "3 (2-4)"),
        (words.span_text(made.exact(0.25)), "0.250"),
        (words.span_text(None), "not available"),
        (words.usd(6.98), "$6.98"),
        (words.usd(7.0), "$7"),
        (words.usd(0.5), "$0.50"),
        (words.usd(12300.4), "$12,300"),
        (words.usd(0.000412), "$0.000412"),
        (words.usd(0.025), "$0.025"),
        (words.usd(0.0), "$0"),
        (words.usd(None), "not available"),
        (words.usd_span(Span(value=2183.0, low=2000.0, high=2400.0)), "$2,183 (2,000-2,400)"),
        (words.usd_span(made.exact(2.99), words.MONTH_HOURS), "$2,183"),
        (words.load_text(0.1), "0.1"),
        (words.load_text(1234.5), "1,230"),
        (words.load_text(12.49), "12.5"),
        (words.kind_words("moe"), "MoE"),
        (words.kind_words("unknown"), "not known"),
        (words.kind_words(None), "not known"),
        (words.pricing_text(None), "no price given"),
        (
            words.pricing_text(made.hosted().pricing),
            "$0.10 in, $0.025 cached and $0.40 out per million tokens (2026-02)",
        ),
        (words.pricing_text(made.moe().pricing), "$2.99 an hour (2026-02)"),
        (
            words.pricing_text(
                Own(
                    usd=2400.0,
                    life_years=1.0,
                    usd_per_kwh=0.31,
                    busy_w=420.0,
                    power_overhead=1.2,
                    yearly_upkeep_usd=90.0,
                )
            ),
            "bought for $2,400, used 1 year, 420 W busy at $0.31/kWh, building adds 20 %, upkeep $90 a year",
        ),
        (words.quality_text(QualityScore(how="none")), "quality not known"),
        (words.quality_text(made.dense().quality), "69.4 % on MMLU, published: one harness, 2025-07"),
        (words.quality_text(made.moe().quality), "78 % (74.0-82.0) on our tickets, own evaluation"),
        (words.quality_text(made.board().quality), "by size like a dense model of 4.60 B (3.30 B to 7.40 B)"),
        (words.runs_on(made.moe(devices=2)), "2 x h100-sxm, vllm, fp8, cloud"),
        (words.runs_on(made.hosted()), "hosted, paid by the token"),
        (words.memory_text(made.moe()), "34.1 GB of 80.0 GB"),
        (words.memory_text(made.hosted()), "not available"),
        (words.rests_on(made.full().candidates), "3 predicted, 1 published"),
        (words.delay_span(Span(value=0.298, low=0.229, high=0.387)), "298 ms (229-387)"),
        (words.delay_span(made.exact(12.0)), "12 s"),
        (words.delay_span(None), "not available"),
    ],
)
def test_numbers_and_names_read_as_people_say_them(shown: str, meant: str) -> None:
    assert shown == meant


def test_flips_say_where_in_numbers_in_a_name_or_not_at_all() -> None:
    load, _, context, precision = made.full().flips
    assert words.flip_line(load) == (
        "load, 1.50 (1.25-1.80) req/s: above this load llama-3.1-8b costs less than hosted-moe."
    )
    assert words.flip_at(context) == "not in the range seen"
    assert words.flip_at(precision) == "bf16 to fp8"
    ratio = Flip(quantity="price", from_="a", to="b", at=made.exact(1.25), unit="", meaning="dearer")
    assert words.flip_at(ratio) == "1.25"


def test_regions_say_by_how_much_and_whether_that_is_sure() -> None:
    first, tie, unsure, last = map(words.region_line, made.full().regions)
    assert first == "0.1 to 1.4 req/s: hosted-moe; llama-3.1-8b costs 3.40 (3.09-3.74) times as much"
    assert tie == "1.4 to 1.6 req/s: no difference worth your time"
    assert unsure.endswith("; not sure")
    assert last.startswith("above 9 req/s: qwen3-30b-a3b")


def test_a_number_of_another_load_does_not_stand_for_this_one() -> None:
    only = made.one_load().candidates[0]
    assert words.cost_at(only, 4.0) is only.cost[0]
    assert words.cost_at(only, 4.0 * 1.3) is None
    assert words.latency_at(only, 4.0) is None, "the one load that was looked at is well below"
    assert words.latency_at(only, 2.5) is only.latency[0]


def test_delays_are_those_of_one_replica_with_its_part() -> None:
    eight = made.dense()
    # 60 requests/s over 8 replicas are 7.5 each; looked at were 6.3 and 7.65.
    found = words.latency_at(eight, 60.0)
    assert found is not None
    assert found.rate_per_s == pytest.approx(7.65)
    # Between two loads the higher one is shown, never the flattering one.
    between = words.latency_at(eight, 3.0)
    assert between is not None
    assert between.rate_per_s == pytest.approx(4.5)


@given(st.floats(1e-9, 1e9), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_an_interval_as_shown_never_excludes_its_value(value: float, below: float, above: float) -> None:
    span = Span(value=value, low=value / below, high=value * above)
    shown = words.interval_of(span)
    if shown and "-0" not in words.value_of(span):
        low, high = (float(end.replace(",", "")) for end in re.fullmatch(r"([\d.,]+)-([\d.,]+)", shown).groups())  # type: ignore[union-attr]
        assert low <= float(words.value_of(span).replace(",", "")) <= high


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
        return sorted(set(re.findall(r"\d[\d.,]*", text)))

    for name in DECISIONS:
        assert cells(printed(getattr(made, name)(), 60)) == cells(printed(getattr(made, name)(), 200))


def test_order_is_verdict_reasons_candidates_flips_and_what_it_rests_on() -> None:
    text = printed(made.full(), 100)
    marks = ["Pay by the token", "Why", "At 4 req/s (3 predicted, 1 published)", "Best by load"]
    marks += ["Where the answer changes", "Ruled out", "What would narrow", "What arithmetic cannot settle"]
    marks += ["Load now: 4 req/s.", "Share to keep it: at least 95 % of requests.", "Page: out/report.html"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_who_is_ruled_out_is_marked_and_told_why() -> None:
    text = flat(printed(made.full(), 100))
    assert "mixtral-8x7b on the desk *" in text
    assert "mixtral-8x7b on the desk: needs 28.6 GB, rtx-4090 has 24 GB; draws 420 W, the study allows 350 W" in text
    assert "*" not in printed(made.both(), 100)


def test_both_says_which_traffic_goes_to_whom() -> None:
    text = flat(printed(made.both(), 140))
    assert "llama-3.2-1b on the device: prompts under 512 tokens" in text
    assert "(70 % of requests, $14.60 (13.0-16.4) a month)" in text


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
    written = write_decision(decision, tmp_path / "deep" / "result.json")
    assert read_decision(written) == decision
    raw = msgspec.json.decode(written.read_bytes())
    assert raw["schema"] == "breakeven.decision/1"
    assert all("from" in flip and "from_" not in flip for flip in raw["flips"])


def test_saving_writes_the_data_and_the_page(tmp_path: Path) -> None:
    encoded = save_decision(made.no_difference(), tmp_path / "out")
    assert (tmp_path / "out" / "result.json").read_bytes() == encoded
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_what_is_not_finite_is_not_written() -> None:
    endless = made.decision([made.dense(capacity_per_s=made.exact(float("inf")))])
    with pytest.raises(BreakevenError, match="not finite"):
        encode_decision(endless)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text('{"schema": "breakeven.compare/1"}')
    with pytest.raises(UserError, match=r"breakeven\.compare/1.*breakeven\.decision/1"):
        read_decision(file)
    with pytest.raises(UserError, match="Cannot read"):
        read_decision(tmp_path / "missing.json")


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "decision-json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    structs = [each for each in vars(spec).values() if isinstance(each, type) and each.__module__ == spec.__name__]
    assert len(structs) >= 13
    for each in structs:
        for field in msgspec.structs.fields(each):
            assert f"| `{field.encode_name}` |" in sections.get(each.__name__, ""), f"{each.__name__}.{field.name}"


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
    (cost,) = figures_of_decision(made.full()).cost
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
    (cost,) = figures_of_decision(made.full()).cost
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

    full = figures_of_decision(made.full())
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
    figures = figures_of_decision(made.full())
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
    strip = figures_of_decision(made.full()).regions[0]
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
