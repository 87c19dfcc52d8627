"""What people and programs are shown of runs under load: terminal, JSON, charts and page."""

from __future__ import annotations

import functools
import io
import itertools
import re
from pathlib import Path

import load_report_fixtures as made
import msgspec
import pytest
import report_fixtures
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from breakeven.errors import BreakevenError, UserError
from breakeven.pages import load_words as words
from breakeven.pages.figures.axes import Scale, apart, axes_of, scale_of
from breakeven.pages.figures.figure import Figure, Missing, draw
from breakeven.pages.html import (
    figures_of_load,
    render_capacity,
    render_load,
    write_capacity_report,
    write_load_report,
)
from breakeven.pages.load_terminal import print_capacity, print_check, print_load, tokens_told, warnings_of
from breakeven.results import load
from breakeven.results.comparison import Comparison
from breakeven.results.load import CapacityStudy, Check, LoadStudy
from breakeven.results.metrics import LATENCIES, metric_of
from breakeven.results.store import KINDS, LOG, encode, fingerprint, open_directory, read, write
from breakeven.stats.percentiles import Percentile
from breakeven.traffic import workload
from breakeven.traffic.workload import Arrivals, Length

STUDIES = ("crossing", "level", "one_endpoint", "one_point", "trace", "none_answered", "hostile")
CAPACITIES = ("capacity", "capacity_not_monotone")
PAGE = Path("out/report.html")
ROOT = Path(__file__).parent.parent


def printed(
    study: LoadStudy | CapacityStudy | load.Check, width: int = 60, terminal: bool = False, full: bool = True
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal)
    if isinstance(study, LoadStudy):
        print_load(study, console, PAGE, full=full)
    elif isinstance(study, CapacityStudy):
        print_capacity(study, console, PAGE, full=full)
    else:
        print_check(study, console)
    return out.getvalue()


@functools.cache
def rendered(name: str) -> str:
    """The page of a made-up study; drawing takes long enough to do it once."""
    study = getattr(made, name)()
    return render_capacity(study) if isinstance(study, CapacityStudy) else render_load(study)


# --- words -----------------------------------------------------------------------------------------------------------


def test_names_of_files_and_candidates_keep_their_letters() -> None:
    said = ["conv.csv is read as azure.", "served was asked it twice.", "client and engine share cores."]
    study = msgspec.structs.replace(made.one_endpoint(), models=[made.served()], caveats=said)
    assert words.load_caveats(study) == [*said[:2], "Client and engine share cores."]


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (words.delay_text(Percentile(p=99, value=None, why="n too small"), words.MILLISECONDS), "n too small"),
        (words.delay_text(None, words.MILLISECONDS), "not available"),
        (words.delay_text(Percentile(p=50, value=0.1234, low=0.12, high=0.13), words.MILLISECONDS), "123"),
        (words.delay_interval(Percentile(p=50, value=0.1234, low=0.12, high=0.13), words.MILLISECONDS), "120-130"),
        (words.delay_interval(Percentile(p=99, value=3.2, low=2.1), words.SECONDS), "over 2.10"),
        (words.delay_interval(Percentile(p=50, value=3.2, high=4.1), words.SECONDS), "under 4.10"),
        (words.delay_interval(Percentile(p=50, value=3.2), words.SECONDS), "no interval"),
        (words.unit_of([0.2, 9.9, None]).name, "ms"),
        (words.unit_of([0.2, 10.0]).name, "s"),
        (words.counts_text({"timeout": 1, "http_500": 3, "reset": 0}), "3 http_500, 1 timeout"),
        (words.counts_text({}), "none"),
        (words.share_text(made.share(95, 100)), "95 % (88.8-97.8)"),
        (words.slo_words(made.SLO), "TTFT at most 1 s, TPOT at most 80 ms"),
        (words.slo_words(None), "none given"),
        (words.arrivals_words(Arrivals(process="constant", rate_per_s=4.0)), "open loop: one request every 250 ms"),
        (
            words.arrivals_words(Arrivals(process="gamma", rate_per_s=2.0, cv=2.5)),
            "open loop: Gamma at 2 req/s, coefficient of variation 2.5",
        ),
        (
            words.arrivals_words(Arrivals(process="closed", concurrency=8, think_s=0.5)),
            "closed loop: 8 at once, each waiting 500 ms after an answer",
        ),
        (
            words.arrivals_words(Arrivals(process="ramp", rate_per_s=1.0, to_rate_per_s=9.0)),
            "open loop: Poisson rising from 1 req/s to 9 req/s",
        ),
        (
            words.arrivals_words(Arrivals(process="steps", steps=((1.0, 30.0), (5.0, 60.0)))),
            "open loop: Poisson at 1 req/s for 30 s, 5 req/s for 60 s",
        ),
        (
            words.arrivals_words(Arrivals(process="trace", trace="conv.csv", rate_scale=0.5, end_s=600.0)),
            "gaps of the trace conv.csv, 0.5 times as fast, from 0 s to 600 s",
        ),
        (words.arrivals_words(Arrivals(process="lunar")), "lunar"),
        (words.length_words(Length(kind="uniform", low=16, high=64)), "16 to 64 tokens, evenly"),
        (words.length_words(None), "as in the trace"),
    ],
)
def test_traffic_reads_as_people_say_it(shown: str, meant: str) -> None:
    assert shown == meant


def test_several_rates_of_one_study_are_all_named() -> None:
    study = made.one_endpoint()
    rows = dict(words.workload_rows(study.workload, study.slo, study.points))
    assert rows["Arrivals"] == "open loop: Poisson at 2, 8 and 16 req/s"
    assert rows["Service level"] == "TTFT at most 1 s, TPOT at most 80 ms"


def test_a_flag_is_said_once_with_the_loads_it_concerns() -> None:
    assert warnings_of(made.one_endpoint().points) == [
        "The client ran above half of its own ceiling (16 req/s).",
        "93 % of the rate offered was achieved (16 req/s).",
        "Another process used 21 % of the cores (16 req/s).",
    ]
    everywhere = [msgspec.structs.replace(each, flagged=["hot"]) for each in made.crossing().points]
    assert warnings_of(everywhere) == ["Hot."]


# --- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STUDIES[:-1], *CAPACITIES, "check"])
@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_of_any_width_holds_everything(name: str, width: int) -> None:
    study = getattr(made, name)()
    text = printed(study, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert " ".join(text.split()).startswith(study.headline)
    assert "None" not in text
    assert text.isascii()


@pytest.mark.parametrize("name", [*STUDIES, *CAPACITIES])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_first_screen_is_one(name: str, width: int) -> None:
    """At most 45 lines, the headline first and the page last; what is missing is named."""
    study = getattr(made, name)()
    short, whole = (printed(study, width, full=full).splitlines() for full in (False, True))
    assert len(short) <= 45
    assert short[0] == whole[0]
    assert short[-1] == whole[-1] == f"Page: {PAGE}"
    assert ("--full" in "\n".join(short)) == (len(whole) > 45)


def test_narrow_and_wide_terminals_tell_the_same() -> None:
    def cells(text: str) -> list[str]:
        return sorted(set(re.findall(r"\d[\d.,]*", text)))

    for name in STUDIES:
        assert cells(printed(getattr(made, name)(), 60)) == cells(printed(getattr(made, name)(), 200))


def test_order_is_headline_flags_loads_rest_traffic_page() -> None:
    text = printed(made.one_endpoint(), 100)
    marks = ["mistral meets", "The client ran above half", "TTFT p50", "Failed requests:", "Steady state:"]
    marks += ["Engine: not available.", "Energy: not available.", "Client:", "Arrivals:", "Page: out/report.html"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_a_bench_tells_what_failed_what_is_too_small_and_what_did_not_settle() -> None:
    text = " ".join(printed(made.one_endpoint(), 100).split())
    assert "n too small" in text
    assert "3 http_429, 1 timeout" in text
    assert "none found (TTFT kept rising): the numbers are of the whole run" in text
    assert "at 61 % of its ceiling" in text
    assert "8120 req/s and 91,300 stream events/s" in text
    assert "99.2 % (97.0-99.8)" in text


def test_a_comparison_tells_ratios_winners_and_crossings() -> None:
    text = printed(made.crossing(), 80)
    assert "TTFT: olmoe-1b-7b over llama-3.2-1b (less is better)" in text
    assert re.search(r"2 req/s\s+1\.080\s+1\.031-1\.134\s+llama-3\.2-1b", text)
    assert "no difference" in text
    assert "TPOT does not cross between 1 and 10 req/s" in text
    assert "Synthetic weights: speed and memory only" in text


def test_a_long_reason_stands_once_beneath_its_table() -> None:
    text = printed(made.none_answered())
    assert text.count("over half failed") == 1
    assert "240 of 240" in text


def test_left_out_pairs_are_counted() -> None:
    study = made.crossing()
    assert "left out" not in printed(study)
    lost = [msgspec.structs.replace(each, dropped_pairs=3) for each in study.differences[:2]]
    lossy = msgspec.structs.replace(study, differences=lost)
    assert "6 pairs left out" in printed(lossy)
    assert "left out" in render_load(lossy)


def test_a_capacity_search_speaks_the_sentence_once_and_lists_every_trial() -> None:
    text = printed(made.capacity(), 80)
    sentence = "24 people can talk to this at once; the 25th makes everyone wait."
    assert text.count(sentence) == 1
    assert "7.5 requests a second meet the service level" in text
    for verdict in ("meets it", "does not", "not decided"):
        assert verdict in text
    assert re.search(r"25\s+180 of 200\s+90 %", text)
    assert "the limit means little" not in text
    assert "the limit means little" in " ".join(printed(made.capacity_not_monotone()).split())


def test_a_check_says_which_got_worse() -> None:
    text = printed(made.check())
    assert re.search(r"TTFT\s+1\.310\s+1\.220-1\.410\s+worse", text)
    assert re.search(r"TPOT\s+0\.900\s+0\.860-0\.940\s+better", text)
    assert re.search(r"Goodput\s+1\.000\s+no interval\s+no difference", text)
    assert "results/main/result.json" in text
    assert "worse" not in printed(made.check(worse=False)).replace("Nothing got worse", "")


def test_a_pipe_gets_plain_text_and_names_cannot_style_or_steer() -> None:
    assert "\x1b[1m" in printed(made.crossing(), terminal=True)
    study = msgspec.structs.replace(made.one_point(), headline="[bold red]x[/]\x1b[2Jy")
    assert printed(study).startswith("[bold red]x[/]?[2Jy")


def test_a_study_without_a_finished_load_says_so() -> None:
    empty = msgspec.structs.replace(made.one_point(), points=[], stopped_because="interrupted")
    assert "No load was finished" in printed(empty)
    assert "No load was finished" in render_load(empty)


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_json_of_a_run_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    study = getattr(made, name)()
    path = write(study, tmp_path / "deep" / "result.json")
    assert read(path, LoadStudy) == study
    assert read(path, Comparison, LoadStudy, CapacityStudy) == study
    assert path.read_bytes() == encode(study)


def test_json_of_searches_checks_and_comparisons_comes_back_too(tmp_path: Path) -> None:
    path = write(made.capacity(), tmp_path / "result.json")
    assert read(path, CapacityStudy) == read(path, Comparison, LoadStudy, CapacityStudy) == made.capacity()
    assert read(write(made.check(), tmp_path / "check.json"), Check) == made.check()
    path = write(report_fixtures.two_models(), tmp_path / "result.json")
    assert read(path, Comparison, LoadStudy, CapacityStudy) == report_fixtures.two_models()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not json", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not the result of a run"),
        (b"{}", "has no schema"),
        (b'{"schema": "breakeven.load/9"}', 'has schema "breakeven.load/9"'),
        (b'{"schema": "breakeven.check/1"}', 'has schema "breakeven.check/1"'),
        (b'{"schema": "breakeven.load/1"}', "is not a whole result"),
    ],
)
def test_wrong_json_is_one_clear_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        read(path, Comparison, LoadStudy, CapacityStudy)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_kind_is_not_read_as_another(tmp_path: Path) -> None:
    path = write(made.capacity(), tmp_path / "result.json")
    with pytest.raises(UserError, match=r'has schema "breakeven\.capacity/1", this version reads "breakeven\.load/1"'):
        read(path, LoadStudy)


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    broken = msgspec.structs.replace(made.one_point().points[0], measured_s=float("inf"))
    with pytest.raises(BreakevenError, match="not finite"):
        write(msgspec.structs.replace(made.one_point(), points=[broken]), tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    structs = {
        found
        for module in (load, workload)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, msgspec.Struct) and found is not msgspec.Struct
    }
    assert len(structs) >= 22
    for found in structs:
        for field in msgspec.structs.fields(found):
            assert f"| `{field.encode_name}` |" in sections.get(found.__name__, ""), f"{found.__name__}.{field.name}"


# --- figures ---------------------------------------------------------------------------------------------------------


def curves(study: LoadStudy) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures_of_load(study) if isinstance(figure, Figure)}


def test_a_comparison_draws_means_bands_and_the_crossing() -> None:
    found = curves(made.crossing())
    assert list(found) == ["ttft-rate", "tpot-rate", "goodput-rate"]
    for drawn in (found["ttft-rate"].wide, found["ttft-rate"].narrow):
        assert drawn is not None
        assert "cross at 4.20 (3.40–5.30) req/s" in draw(drawn)
    assert "cross at" not in draw(found["tpot-rate"].wide)
    assert "as in the ratios" in found["ttft-rate"].caption
    assert "mean olmoe-1b-7b" in draw(found["ttft-rate"].wide)


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [(3.4, None, "cross at 4.20 (3.40 or more) req/s"), (None, 5.3, "cross at 4.20 (at most 5.30) req/s")],
)
def test_a_crossing_with_one_open_end_says_which(low: float | None, high: float | None, label: str) -> None:
    study = made.crossing()
    crossing = msgspec.structs.replace(study.crossings[0], low=low, high=high)
    drawn = draw(curves(msgspec.structs.replace(study, crossings=[crossing]))["ttft-rate"].wide)
    assert label in drawn


def test_a_bench_draws_medians_and_leaves_out_a_p99_that_is_not_supported() -> None:
    ttft = curves(made.one_endpoint())["ttft-rate"]
    assert "Solid: median" in ttft.caption
    assert "mistral at 2 req/s: p50 0.108 (0.103-0.118), p99 n too small" in ttft.alt
    assert "p99 mistral" in draw(ttft.wide)


def test_a_single_load_is_drawn_as_dots() -> None:
    found = curves(made.trace())
    assert list(found) == ["delays"]
    assert found["delays"].alt.count("TTFT p99 of") == 2
    one = curves(made.one_point())["delays"]
    assert "n too small" in draw(one.wide)


def test_what_cannot_be_drawn_says_why() -> None:
    (left_out,) = figures_of_load(made.none_answered())
    assert isinstance(left_out, Missing)
    assert left_out.why in rendered("none_answered")
    bare = [msgspec.structs.replace(each, good=None, goodput_per_s=None) for each in made.one_endpoint().points]
    whys = [
        f.why
        for f in figures_of_load(msgspec.structs.replace(made.one_endpoint(), points=bare))
        if isinstance(f, Missing)
    ]
    assert whys == ["No service level was asked for, so there is no goodput to draw."]


def test_a_closed_loop_has_its_own_axis_and_names_every_number_of_streams() -> None:
    study = made.level()
    assert list(curves(study)) == ["ttft-streams", "tpot-streams", "goodput-streams"]
    assert "requests at once" in draw(curves(study)["ttft-streams"].wide)
    assert dict(words.workload_rows(study.workload, study.slo, study.points))["Arrivals"] == (
        "closed loop: 1, 2, 5 and 10 at once"
    )
    assert "no difference found in TTFT at any load measured (1 to 10 streams)." in rendered("level")


def test_open_and_closed_loops_get_an_axis_each() -> None:
    study = made.crossing()
    closed = [
        msgspec.structs.replace(each, rate_per_s=None, concurrency=index + 1)
        for index, each in enumerate(study.points[:2])
    ]
    mixed = msgspec.structs.replace(study, points=[*study.points, *closed])
    assert [axis.key for axis, _ in axes_of(mixed)] == ["rate", "streams"]
    # With two axes nobody could tell on which a crossing lies.
    assert "cross at" not in draw(curves(mixed)["ttft-rate"].wide)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_its_values_and_its_ticks(values: list[float], from_zero: bool) -> None:
    scale = scale_of(values, from_zero)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    ticks = scale.ticks(280)
    assert ticks == sorted(set(ticks))
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in ticks)
    assert all(0 <= scale.share(value) <= 1 for value in values)


def test_places_on_a_log_axis() -> None:
    scale = Scale(log=True, low=1.0, high=100.0)
    assert scale.share(10.0) == pytest.approx(0.5)
    assert scale.share(0.0) == 0.0
    assert scale.pixel(1000.0, 300) == 300


@given(st.lists(st.floats(0, 280), min_size=1, max_size=10))
def test_labels_keep_their_distance_and_stay_on_the_chart(places: list[float]) -> None:
    placed = sorted(label["at"] for label in apart([{"at": place} for place in places], 15, 280))
    assert all(b - a >= 15 - 1e-6 for a, b in itertools.pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 280 + 1e-6


# --- page ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STUDIES, *CAPACITIES])
def test_the_page_stands_alone(name: str) -> None:
    page = rendered(name)
    assert not re.search(r"<(?:script|link|img|iframe|object|embed)\b", page)
    assert not re.search(r"""\b(?:src|href|xlink:href|action)\s*=""", page)
    assert not re.search(r"@import|url\(", page)
    assert "None" not in page
    assert page.count("<caption>") == page.count("<table>")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_pages_are_written_where_asked(tmp_path: Path) -> None:
    page = write_load_report(made.none_answered(), tmp_path / "deep" / "report.html")
    assert page.read_text() == rendered("none_answered")
    page = write_capacity_report(made.capacity_not_monotone(), tmp_path / "capacity.html")
    assert page.read_text() == rendered("capacity_not_monotone")


def test_hostile_names_stay_text() -> None:
    page = rendered("hostile")
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_the_page_holds_every_point_and_what_it_takes_to_run_again() -> None:
    study = made.crossing()
    page = rendered("crossing")
    for text in (study.command, study.machine.cpu, "b11549", "Poisson at 1, 2, 5 and 10 req/s", "breakeven.load/1"):
        assert text in page
    titles = "Who wins at which load|Delays and goodput|Every load|By how much they differ|"
    titles += "Was it the engine, or the client?|How it was measured|Machine|To run it again"
    assert "|".join(re.findall(r"<h2>(.*?)</h2>", page)) == titles
    assert page.count("<details>") == len(study.points)
    assert page.index("Synthetic weights: speed and memory only") < page.index("Who wins at which load")
    for metric in LATENCIES:
        title = metric_of(metric).title
        assert page.count(f'<th scope="row">{title}, ') >= len(study.points)


def test_flags_stand_at_the_top_of_the_page() -> None:
    page = rendered("one_endpoint")
    for flag in warnings_of(made.one_endpoint().points):
        assert page.index(flag) < page.index("<h2>")
    assert "The engine does not tell its queue." in page
    assert "none found (TTFT kept rising)" in page


def test_a_page_is_the_same_each_time() -> None:
    assert render_load(made.one_point()) == rendered("one_point")
    assert render_capacity(made.capacity()) == rendered("capacity")


def test_the_capacity_page_leads_with_the_sentence() -> None:
    page = rendered("capacity")
    assert "<h1>24 people can talk to this at once; the 25th makes everyone wait.</h1>" in page
    assert page.count("the 25th makes everyone wait") == 2  # the title of the window, and the headline
    assert "the limit means little" not in page
    assert "the limit means little" in rendered("capacity_not_monotone")
    assert "95 % of requests within the service level" in page


def test_the_capacity_page_tells_the_traffic_of_the_search_and_not_of_its_first_look() -> None:
    found = msgspec.structs.replace(
        made.capacity(),
        workload=workload.Workload(arrivals=Arrivals(process="closed", concurrency=1), requests=12),
        think_s=10.0,
    )
    page = render_capacity(found)
    assert "Poisson at each rate tried" in page
    assert "each asking again 10 s after an answer" in page
    assert "1 at once" not in page
    assert "12 requests" not in page
    assert "each asking again 10 s after an answer" in printed(found, 100)


def test_the_page_tells_conversations_from_requests() -> None:
    assert "Offered and achieved in requests a second," in rendered("one_point")
    two = made.crossing()
    talked = msgspec.structs.replace(two, workload=msgspec.structs.replace(two.workload, turns=3))
    assert "Offered in conversations a second, achieved in requests," in render_load(talked)
    (single, _), (several, _) = (axes_of(study)[0] for study in (two, talked))
    assert (single.title, several.title) == ("requests/s offered", "conversations/s offered")
    assert "cross at 4.20 (3.40–5.30) conversations/s" in draw(curves(talked)["ttft-rate"].wide)
    # Three times as many requests as conversations may be good.
    assert "every request offered is good" in curves(two)["goodput-rate"].caption
    assert "every request offered is good" not in curves(talked)["goodput-rate"].caption


def test_tokens_that_nobody_counted_are_no_rate_of_zero() -> None:
    study = made.one_point()
    untold = [msgspec.structs.replace(each, output_tokens_mean=None, output_tokens_per_s=0.0) for each in study.points]
    assert [tokens_told(each) for each in untold] == [None] * len(untold)
    assert [tokens_told(each) for each in study.points] == [each.output_tokens_per_s for each in study.points]
    nobody = msgspec.structs.replace(untold[0], answered=0)
    assert tokens_told(nobody) == 0
    page = render_load(msgspec.structs.replace(study, points=untold))
    assert page.count("not available") > render_load(study).count("not available")


def test_a_server_that_has_chat_alone_was_not_asked_for_completions() -> None:
    study = made.one_endpoint()
    chats = [msgspec.structs.replace(model, settings={"route": "chat"}) for model in study.models]
    for models, text in ((study.models, "completions, streamed"), (chats, "chat completions, streamed")):
        assert dict(words.workload_rows(study.workload, study.slo, study.points, models))["Requests"] == text


def test_flags_that_differ_by_numbers_alone_are_said_once_with_the_worst() -> None:
    points = [
        msgspec.structs.replace(point, flagged=[f"other processes used {share}% of the CPU"])
        for point, share in zip(made.one_endpoint().points, (9, 61, 54), strict=False)
    ]
    found = [text for text in warnings_of(points) if text.startswith("Other processes")]
    assert len(found) == 1
    assert found[0].startswith("Other processes used 61% of the CPU (the worst of ")


def test_every_kind_that_is_stored_says_its_own_schema() -> None:
    assert len({kind.schema for kind in KINDS.values()}) == len(KINDS)
    for each, kind in KINDS.items():
        said = {field.name: field.default for field in msgspec.structs.fields(each)}
        assert said["schema"] == kind.schema


def test_a_study_gets_the_first_free_directory_and_is_found_again(tmp_path: Path) -> None:
    def study_of(log: Path) -> str:
        return log.read_text()

    default, mark = tmp_path / "a", fingerprint(("a question", 1))
    assert open_directory(None, default, mark, False, study_of) == (default, False)
    (default / LOG).write_text(mark)
    assert open_directory(None, default, mark, True, study_of) == (default, True)
    second = tmp_path / "a-2"
    assert open_directory(None, default, mark, False, study_of) == (second, False)
    (second / LOG).write_text("another")
    assert open_directory(None, default, mark, True, study_of) == (default, True)
    for asked, resume, told in (
        (second, False, "another study"),
        (default, False, "already holds"),
        (tmp_path / "b", True, "holds no study"),
    ):
        with pytest.raises(UserError, match=told):
            open_directory(asked, default, mark, resume, study_of)
    with pytest.raises(UserError, match="asks the same"):
        open_directory(None, tmp_path / "c", mark, True, study_of)
