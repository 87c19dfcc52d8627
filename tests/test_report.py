"""What people and programs are shown of a comparison: terminal, progress, JSON, charts and page."""

from __future__ import annotations

import functools
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import report_fixtures as made
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from breakeven.errors import BreakevenError, UserError
from breakeven.hardware import machine, placement
from breakeven.measure.progress import ProgressState, RatioRow
from breakeven.pages import words
from breakeven.pages.figures.comparison import export_charts, figures_of
from breakeven.pages.figures.figure import Figure, Missing
from breakeven.pages.html import render_report, write_report
from breakeven.pages.progress import Progress, ratio_bar
from breakeven.pages.terminal import print_comparison
from breakeven.results import comparison, lab, training
from breakeven.results.comparison import Comparison
from breakeven.results.store import read, write
from breakeven.stats import estimate
from breakeven.stats.estimate import Estimate

EVERY = ("two_models", "three_models", "same_twice", "urls_only", "hostile")
ROOT = Path(__file__).parent.parent


def printed(result: comparison.Comparison, width: int = 60, terminal: bool = False, full: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal)
    print_comparison(result, console, Path("out/report.html"), full=full)
    return out.getvalue()


@functools.cache
def rendered(name: str) -> str:
    """The page of a made-up comparison; drawing takes long enough to do it once."""
    return render_report(getattr(made, name)())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_first_screen_is_one(name: str, width: int) -> None:
    """At most 45 lines, the verdict first and the page last; what is missing is named."""
    short, whole = (printed(getattr(made, name)(), width, full=full).splitlines() for full in (False, True))
    assert len(short) <= 45
    assert short[0] == whole[0]
    assert short[-1] == whole[-1] == "Page: out/report.html"
    assert ("--full" in "\n".join(short)) == (len(whole) > 45)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (words.number(33.42), "33.4"),
        (words.number(12345.6), "12,346"),
        (words.number(float("nan")), "not available"),
        (words.bytes_text(3_930_000_000), "3.93 GB"),
        (words.bytes_text(0), "0 B"),
        (words.bytes_text(None), "not available"),
        (words.count_text(6_919_096_320), "6.92 B"),
        (words.seconds_text(0.62), "620 ms"),
        (words.seconds_text(171.3), "2 min 51 s"),
        (words.seconds_text(3900), "1 h 5 min"),
        (words.percent_text(0.034), "3.4 %"),
        (words.percent_text(0.02), "2 %"),
        (words.percent_text(0.0001), "under 0.1 %"),
        (words.percent_text(0), "0 %"),
        (words.with_interval(Estimate(33.4, 33.2, 33.6, 12, "measured")), "33.4 (33.2-33.6)"),
        (words.with_interval(Estimate(33.4, 33.39, 33.41, 12, "measured")), "33.40 (33.39-33.41)"),
        (words.with_interval(Estimate(33.4, None, None, 1, "measured")), "33.4 (no interval)"),
        (words.with_interval(Estimate(0.5, 0.4, 0.6, 3, "predicted"), 1e3), "500 predicted (400-600)"),
        (words.with_interval(None), "not available"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, meant: str) -> None:
    assert shown == meant


@given(st.floats(1e-3, 1e6), st.floats(1e-4, 0.5))
def test_an_interval_is_shown_about_its_value(value: float, half: float) -> None:
    given_estimate = Estimate(value, value * (1 - half), value * (1 + half), 5, "measured")
    shown = words.interval(given_estimate)
    assert shown is not None
    low, high = (float(end.replace(",", "")) for end in shown.split("-"))
    assert low <= float(words.value(given_estimate).replace(",", "")) <= high
    assert low == pytest.approx(given_estimate.low, rel=0.02)
    assert high == pytest.approx(given_estimate.high, rel=0.02)


# --- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_models", "three_models", "same_twice", "urls_only"])
def test_sixty_columns_hold_everything(name: str) -> None:
    result = getattr(made, name)()
    text = printed(result)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert " ".join(text.split()).startswith(result.verdict.headline)
    assert text.rstrip().endswith("Page: out/report.html")


def test_a_pipe_gets_plain_text_and_a_terminal_gets_colour() -> None:
    piped = printed(made.two_models())
    assert piped.isascii()
    assert "\x1b" not in piped
    assert "\x1b[1m" in printed(made.two_models(), terminal=True)


def test_order_is_verdict_table_ratio_why_memory_change_noise() -> None:
    text = printed(made.two_models())
    marks = ["Run llama", "Synthetic weights: speed and memory only", "31.5 (31.2-31.8)", "0.943", "Why"]
    marks += ["Memory\n", "What would change it", "Noise: 48 blocks", "Page:"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_points_and_ratios_are_gathered_however_they_are_listed() -> None:
    result = made.two_models()
    shuffled = msgspec.structs.replace(
        result,
        points=sorted(result.points, key=lambda point: point.streams),
        pairs=sorted(result.pairs, key=lambda pair: pair.streams),
    )
    assert printed(shuffled) == printed(result)
    assert render_report(shuffled) == rendered("two_models")


def test_synthetic_caveat_cannot_be_forgotten_nor_said_twice() -> None:
    assert words.caveats_of(made.two_models()) == ["Synthetic weights: speed and memory only"]
    said = msgspec.structs.replace(made.two_models(), caveats=["Synthetic weights: speed and memory only (both)."])
    assert len(words.caveats_of(said)) == 1
    assert words.caveats_of(made.urls_only()) == []


def test_what_is_missing_is_named_and_no_difference_is_an_answer() -> None:
    text = printed(made.urls_only())
    assert "not available" in text
    assert "no interval" in text
    assert "no difference" in text
    assert "None" not in text


def test_names_cannot_style_or_steer_the_terminal() -> None:
    model = made.moe("[bold red]x[/]\x1b[2Jy")
    text = printed(made.comparison([model, made.dense()], [30.0, 31.0]), width=100)
    assert "[bold red]x[/]?[2Jy" in text
    assert "\x1b" not in text


# --- progress --------------------------------------------------------------------------------------------------------


def state(elapsed: float, half: float, phase: str = "measuring") -> ProgressState:
    return ProgressState(phase, elapsed, 180, rows=(RatioRow(1, 0.94, 0.94 - half, 0.94 + half, 12),))


def test_a_log_gets_few_lines_and_every_new_phase() -> None:
    out, now = io.StringIO(), [0.0]
    with Progress(Console(file=out, width=80), plain_every_s=5, clock=lambda: now[0]) as progress:
        for second in range(11):
            now[0] = second
            progress.update(state(second, 0.1))
        progress.update(ProgressState("writing weights", 11, None, 10**8, 10**9, subject="olmoe"))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("measuring")] == [
        f"measuring: {second} s of at most 3 min" for second in (0, 5, 10)
    ]
    assert lines[-1] == "writing weights olmoe: 100 MB of 1.00 GB, 11 s"
    assert lines[1] == "  1 stream: 0.940 (0.840-1.040) from 12 pairs"


def test_quiet_is_silent() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=terminal), quiet=True) as progress:
            progress.update(state(1, 0.1))
        assert out.getvalue() == ""


def test_a_terminal_sees_the_interval_tighten() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100, color_system=None)) as progress:
        for half in (0.3, 0.1, 0.02):
            progress.update(state(1, half))
    bars = [bar for bar in re.findall(r"[.=|o]{25}", out.getvalue()) if "o" in bar]
    drawn = list(dict.fromkeys(bar.count("=") for bar in bars))
    assert drawn == sorted(drawn, reverse=True)
    assert len(drawn) == 3


@given(st.floats(1e-6, 1e6), st.floats(0.1, 3.0))
def test_the_ratio_bar_never_breaks(ratio: float, scale: float) -> None:
    bar = ratio_bar(RatioRow(1, ratio, ratio / 2, ratio * 2, 3), scale)
    assert len(bar) == 25
    assert bar.count("o") == 1


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_json_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    result = getattr(made, name)()
    path = write(result, tmp_path / "deep" / "result.json")
    assert read(path, Comparison) == result
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not json", "is not JSON"),
        (b"[]", "is not the result of a comparison"),
        (b"{}", "has no schema"),
        (b'{"schema": "breakeven.compare/9"}', 'has schema "breakeven.compare/9"'),
        (b'{"schema": "breakeven.compare/1"}', "is not a whole result"),
    ],
)
def test_wrong_json_is_one_clear_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        read(path, Comparison)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unwritable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        read(tmp_path / "nothing.json", Comparison)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write(made.two_models(), tmp_path / "file" / "result.json")


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    broken = msgspec.structs.replace(made.two_models(), measured_s=float("nan"))
    with pytest.raises(BreakevenError, match="not finite"):
        write(broken, tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_a_later_version_may_add_fields(tmp_path: Path) -> None:
    path = write(made.two_models(), tmp_path / "result.json")
    path.write_bytes(path.read_bytes().replace(b"{", b'{"added_later": 1,', 1))
    assert read(path, Comparison) == made.two_models()


@pytest.mark.parametrize(
    ("page", "modules", "least"),
    [("json.md", (comparison, estimate, machine, placement), 12), ("lab-json.md", (lab, training), 21)],
)
def test_every_field_is_documented(page: str, modules: tuple[ModuleType, ...], least: int) -> None:
    text = (ROOT / "docs" / page).read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    structs = [
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, msgspec.Struct) and found is not msgspec.Struct
    ]
    described = {"Chip", "HostMemory", "Machine", "Placement"}  # what is asked for or need not be here is in no result
    described |= {"Estimate"} if lab in modules else set()
    structs = [found for found in structs if found.__name__ not in described]
    assert len({found.__name__ for found in structs}) >= least
    for found in structs:
        for field in msgspec.structs.fields(found):
            assert f"| `{field.encode_name}` |" in sections.get(found.__name__, ""), f"{found.__name__}.{field.name}"


@pytest.mark.parametrize("page", ["json.md", "report.md"])
def test_code_in_the_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert blocks
    write(made.same_twice(), tmp_path / "out" / "result.json")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {})


# --- charts ----------------------------------------------------------------------------------------------------------


def test_charts_are_files_of_their_own(tmp_path: Path) -> None:
    files = export_charts(made.two_models(), tmp_path)
    names = ["ratios-1", "decode-throughput", "prefill-throughput", "time-by-node", "memory", "routing-1"]
    assert [file.stem for file in files] == names
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 40
        text = file.read_text()
        assert "var(" not in text
        assert not re.search(r"#0000[1-4]\d", text)
        assert not re.search(r"(?:href|src)=|url\((?!#)", text)


def test_charts_say_who_is_shown(tmp_path: Path) -> None:
    ratio, decode, *_ = (file.read_text() for file in export_charts(made.two_models(), tmp_path))
    assert "0.943 (0.932–0.954)" in ratio
    assert "llama-3.2-1b wins" in ratio
    assert ">olmoe-1b-7b</text>" in decode


def test_missing_data_leaves_the_chart_out_with_a_sentence(tmp_path: Path) -> None:
    figures = figures_of(made.urls_only())
    left_out = [figure for figure in figures.all if isinstance(figure, Missing)]
    assert {figure.title for figure in left_out} == {"Prefill throughput, tok/s", "Time by node", "Memory", "Routing"}
    page = rendered("urls_only")
    assert all(figure.why in page for figure in left_out)
    assert [file.stem for file in export_charts(made.urls_only(), tmp_path)] == ["ratios-1", "decode-throughput"]


def test_one_forest_for_each_pair_and_every_ratio_in_it() -> None:
    forests = [figure for figure in figures_of(made.three_models()).ratios if isinstance(figure, Figure)]
    assert [figure.title for figure in forests] == [
        "olmoe-1b-7b over llama-3.2-1b",
        "olmoe-1b-7b over qwen2.5-1.5b",
        "llama-3.2-1b over qwen2.5-1.5b",
    ]
    assert all(figure.alt.count("stream") == 16 for figure in forests)


# --- page ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_page_stands_alone(name: str) -> None:
    page = rendered(name)
    assert not re.search(r"<(?:script|link|img|iframe|object|embed)\b", page)
    assert not re.search(r"""\b(?:src|href|xlink:href|action)\s*=""", page)
    assert not re.search(r"@import|url\(", page)
    assert "None" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text() -> None:
    page = rendered("hostile")
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_a_control_character_in_a_name_does_not_end_the_process() -> None:
    """The renderer of charts ends it, with no exception to catch, on what no XML may hold."""
    told = made.two_models()
    name = msgspec.json.encode(told.models[0].name)
    hostile = msgspec.json.encode(told).replace(name, msgspec.json.encode("a\x1b[31mZb\x00"))
    page = render_report(msgspec.json.decode(hostile, type=Comparison))
    assert "?[31mZb?" in page
    assert "\x00" not in page


def test_the_page_holds_what_it_takes_to_run_again() -> None:
    result = made.two_models()
    page = rendered("two_models")
    for text in (
        result.command,
        result.machine.cpu,
        "flash_attention",
        "b11549",
        "<dd>7</dd>",
        "block 17 was repeated",
    ):
        assert text in page
    titles = "By how much|Under load|Why|Memory|Routing|What would change it|Noise record|Machine|To run it again"
    assert "|".join(re.findall(r"<h2>(.*?)</h2>", page)) == titles
    assert page.count("<caption>") == page.count("<table>")
    assert page.index("Synthetic weights: speed and memory only") < page.index("By how much")


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    again = render_report(made.two_models())
    assert again == rendered("two_models")
    assert write_report(made.two_models(), tmp_path / "report.html").read_text() == again


def test_pairs_that_noise_left_out_are_counted_in_terminal_and_page() -> None:
    result = made.two_models()
    marked = [msgspec.structs.replace(p, left_out=3) if p.streams == 1 else p for p in result.pairs]
    marked = [msgspec.structs.replace(p, disturbed=2) if p.streams == 4 else p for p in marked]
    noisy = msgspec.structs.replace(result, pairs=marked)
    left = "Pairs left out because the machine was not quiet: 3 with 1 stream (12 count)."
    kept = "Pairs that count though it was not, for want of quiet ones: 2 with 4 streams (12 count)."
    for shown in (printed(noisy, width=200), render_report(noisy)):
        assert left in shown
        assert kept in shown
    assert "Pairs left out" not in printed(result) + render_report(result)
