"""What people are shown of evaluations, proofs and experts' scores: terminal, page, and the page in a browser."""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path

import lab_report_fixtures as made
import msgspec
import pytest
from rich.console import Console
from test_report_browser import CHROMIUM, OVERLAPS, RIGHTS, SHOWN, Page, visit

import breakeven
from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.pages import lab_words
from breakeven.pages.lab import show_evaluation, show_experts, show_proof
from breakeven.pages.lab_html import LabResult, render_lab, siblings, write_page
from breakeven.results.lab import Artefact, Evaluation, Proof
from breakeven.results.store import read, write
from breakeven.stats.estimate import measured

EVERY = (
    "evaluation", "alone", "tasks_only", "many", "hostile", "proof", "pruned", "checked_only", "same_function",
    "scores", "trained", "distilled", "retrained",
)  # fmt: skip


def printed(result: LabResult, width: int = 80, full: bool = False) -> str:
    out = io.StringIO()
    console, page = Console(file=out, width=width), Path("out/x.html")
    if isinstance(result, Evaluation):
        show_evaluation(result, console, page, full=full)
    elif isinstance(result, Proof):
        show_proof(result, console, page, full=full)
    else:
        show_experts(result, console, page, full=full)
    return out.getvalue()


@functools.cache
def rendered(name: str) -> str:
    """The page of a made-up result; drawing takes long enough to do it once."""
    return render_lab(getattr(made, name)(), [made.other_proof()] if name == "proof" else [])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_first_screen_is_one_and_the_answer_is_first(name: str, width: int) -> None:
    short, whole = (printed(getattr(made, name)(), width, full) for full in (False, True))
    lines = short.splitlines()
    assert len(lines) <= 45
    assert max(map(len, whole.splitlines())) <= width
    assert lines[0] == whole.splitlines()[0]
    assert lines[-1] == "Page: out/x.html"
    assert ("--full" in short) == (len(lines) < len(whole.splitlines()))
    assert "None" not in whole
    assert "\x1b" not in whole


def test_the_table_has_size_bits_loss_agreement_and_floor() -> None:
    lines = printed(made.evaluation(), 100).splitlines()
    head = next(line for line in lines if "bits" in line and "floor" in line)
    assert head.split() == ["MB", "bits", "en", "de", "fr", "top-1", "en", "floor"]
    row = next(line for line in lines if "Q4_K" in line and "101.7" in line)
    assert row.split()[-8:] == ["101.7", "5.94", "0.036", "0.097", "0.055", "92", "%", "0.006"]
    assert next(line for line in lines if line.strip().startswith("Q2_0")).endswith("unusable")


def test_languages_are_compared_by_their_intervals_alone() -> None:
    subjects = lab_words.subjects_of(made.evaluation())
    assert lab_words.compared_languages(subjects) == ["German and French lose 1.5 to 2.7 times as much as English."]
    proof = made.proof()
    assert lab_words.compared_languages(lab_words.subjects_of(proof)) == [
        "German and French lose 2.2 times as much as English."
    ]
    # As far apart, but known so badly that nobody can say.
    vague = [
        msgspec.structs.replace(one, kl=measured(one.kl.value, one.kl.value / 5, one.kl.value * 5, 6))
        for one in proof.slices
        if one.kl is not None
    ]
    told = lab_words.compared_languages(lab_words.subjects_of(msgspec.structs.replace(proof, slices=vague)))
    assert told == ["German and French do not surely lose more or less than English."]
    bare = [msgspec.structs.replace(one, kl=measured(one.kl.value, None, None, 6)) for one in proof.slices if one.kl]
    told = lab_words.compared_languages(lab_words.subjects_of(msgspec.structs.replace(proof, slices=bare)))
    assert "not surely" in told[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("evaluation", "Q8_0 stands nearest to F32, 0.004 nats a token in English to 0.009 in German; Q2_K (4.98)"),
        ("evaluation", "Q2_0 is of no use"),
        ("alone", "SmolLM2: 1.400 bits a byte in the text."),
        ("tasks_only", "solves most of capitals: 62 %"),
        ("proof", "smollm2-Q2_K (4.98) (85.5 MB, 16 % of its source) differs from its source by 0.359 nats a token in"),
        ("checked_only", "without a text nothing is known of its quality"),
        ("same_function", "computes what its source does, up to the engine's own rounding"),
        (
            "trained",
            "predicts German better than its source, by 0.305 bits a byte; French worse, by 0.052 bits a byte;",
        ),
        ("trained", "English no differently."),
        ("distilled", "English no differently; at equal tokens 0.115 bits a byte"),
        ("scores", "moe.gguf: the busiest expert takes 2.10 times its share (layer 5); every one is reached."),
    ],
)
def test_verdicts_say_what_the_numbers_say(name: str, said: str) -> None:
    assert said in " ".join(printed(getattr(made, name)(), 200).split("\n")[0].split())


def test_what_training_brought_is_told() -> None:
    shown = printed(made.distilled(), 200)
    assert "(0.074-0.155) ahead of its twin." in shown
    assert "614,400 tokens in 2 min 51 s, seed 0, 4.9e+14 operations" in shown
    assert "loss on the text that chose: 2.610 to 1.620 nats a token; kept is step 300 of 300" in shown
    assert "at equal time: +0.020 (-0.030 to +0.070) bits a byte" in printed(made.distilled(), 200, full=True)
    page = rendered("distilled")
    titles = "|".join(re.findall(r"<h2>(.*?)</h2>", page))
    assert titles == "What was done|What it cost, by language|Training|Size, speed and quality|Verdict"
    assert "Loss while it was trained, nats a token:" in page
    assert "kept: 1.620" in page
    assert re.search(r"as many tokens.*\+0\.115.*ahead of its twin.*as much time.*no difference found", page, re.S)
    assert "of no use" not in page, "what was trained need not agree with its source"
    moved = printed(made.retrained(), 200, full=True)
    assert "trained alone, with their rows of the router: 3, 7 in 6 layers" in moved
    assert "their part of the choices in German: 12 % before, 30 % after" in moved


def test_what_was_not_made_as_asked_is_on_the_first_screen() -> None:
    assert "180 tensors: Q2_K asked, IQ4_NL made: 576 columns, which 256 does not divide." in printed(made.proof(), 200)
    assert "answers at 38.9" in printed(made.pruned(), 200)


@pytest.mark.parametrize("name", EVERY)
def test_the_page_stands_alone(name: str) -> None:
    page = rendered(name)
    assert not re.search(r"<(?:script|link|img|iframe|object|embed)\b", page)
    assert not re.search(r"""\b(?:src|href|xlink:href|action)\s*=""", page)
    assert not re.search(r"@import|url\(", page)
    assert "None" not in page
    assert "\x00" not in page
    assert "\x1b" not in page
    assert page.count("<caption>") == page.count("<table>")


def test_hostile_names_stay_text() -> None:
    page = rendered("hostile")
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    shown = printed(made.hostile(), 200, full=True)
    assert '[red]"name"' in shown
    assert "?[2Jcleared?" in shown


def test_the_page_has_every_part() -> None:
    page = rendered("proof")
    titles = "|".join(re.findall(r"<h2>(.*?)</h2>", page))
    assert titles == "What was done|What it cost, by language|Size, speed and quality|Verdict"
    for text in (made.proof().command, made.proof().artefact.sha256, "blk.179.ffn_up.weight", "smollm2-Q8_0"):
        assert text in page
    assert "Before: experts of the source" in rendered("pruned")
    assert "After: the experts that were kept" in rendered("pruned")
    assert "Load in German" in rendered("scores")


def test_report_writes_the_page_beside_a_proof_and_sets_its_siblings_beside_it(tmp_path: Path) -> None:
    write(made.other_proof(), tmp_path / "smollm2-Q8_0.proof.json")
    file = write(made.proof(), tmp_path / "smollm2-Q2_K.proof.json")
    assert breakeven.report(file) == made.proof()
    page = (tmp_path / "smollm2-Q2_K.proof.html").read_text()
    assert "smollm2-Q8_0" in page
    again = write_page(made.proof(), file)
    assert again.read_text() == page
    directory = tmp_path / "hf"
    write(made.pruned(), directory / "proof.json")
    assert breakeven.report(directory) == made.pruned()
    assert (directory / "proof.html").is_file()
    with pytest.raises(UserError, match="no such file"):
        breakeven.report(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="--charts"):
        breakeven.report(file, charts=True)
    (tmp_path / "other.json").write_text('{"schema": "breakeven.compare/1"}')
    with pytest.raises(UserError, match="this version shows"):
        breakeven.report(tmp_path / "other.json")


def test_a_proof_on_other_text_is_no_sibling(tmp_path: Path) -> None:
    mine, other = made.proof(), made.other_proof()
    file = write(mine, tmp_path / "mine.proof.json")
    write(other, tmp_path / "same.proof.json")
    write(msgspec.structs.replace(made.checked_only(), artefact=another("aa")), tmp_path / "no-text.proof.json")
    longer = [msgspec.structs.replace(each, bytes=each.bytes + 1) for each in other.slices]
    for name, slices in (("bb", longer), ("cc", other.slices[:1])):
        write(msgspec.structs.replace(other, slices=slices, artefact=another(name)), tmp_path / f"{name}.proof.json")
    assert {each.artefact.sha256[:2] for each in siblings(mine, file)} == {"12", "aa"}
    bare = msgspec.structs.replace(mine, slices=[])
    assert {each.artefact.sha256[:2] for each in siblings(bare, file)} == {"aa"}  # whose texts could differ


def another(sha: str) -> Artefact:
    return msgspec.structs.replace(made.other_proof().artefact, sha256=sha * 32)


WRITTEN = ["split", "copy", "prune --keep 2", "order --scores s", "add --copies 1:1", "merge --pairs 0:1"]


@pytest.mark.parametrize(
    "words", [*(f"experts {each} m.gguf" for each in WRITTEN), "export m --to hf", "quantize m --to Q4_0"]
)
@pytest.mark.parametrize("full", [True, False])
def test_what_offers_the_rest_with_full_takes_it(words: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr("breakeven.pages.lab.show_proof", lambda *_, full: told.append(full))
    done = breakeven.Surgery(Path("x.gguf"), 4, 2, 8, 1, True, 0.0, proof=made.proof())
    for verb in WRITTEN:
        monkeypatch.setattr(breakeven.experts, verb.split()[0], staticmethod(lambda *_, **__: done))
    monkeypatch.setattr(breakeven, "export", lambda *_, **__: made.proof())
    monkeypatch.setattr(breakeven, "quantize", lambda *_, **__: [made.proof()])
    assert dispatch([*words.split(), "--out", "x.gguf", *(["--full"] if full else [])]) == 0
    assert told == [full]


@pytest.mark.parametrize("name", ["evaluation", "proof", "scores"])
def test_json_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    result = getattr(made, name)()
    assert read(write(result, tmp_path / "x.json"), type(result)) == result


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here, so the page was not looked at: apt-get install chromium"
)
def test_pages_fit_every_window_in_both_themes(tmp_path: Path) -> None:
    fill = "getComputedStyle(document.querySelector('figure svg text')).fill"

    async def act(page: Page) -> None:
        for name in ("evaluation", "many", "hostile", "proof", "pruned", "scores", "checked_only"):
            file = tmp_path / f"{name}.html"
            file.write_text(rendered(name))
            for width, kind in ((360, "narrow"), (1200, "wide")):
                where = f"{name} at {width}"
                await page.open(file, width)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, where
                figures = await page.evaluate("document.querySelectorAll('figure').length")
                assert await page.evaluate(f"{SHOWN}.length") == figures, where
                assert await page.evaluate(f"{SHOWN}.every(s => s.parentElement.classList.contains('{kind}'))"), where
                assert await page.evaluate(f"Math.max(0, ...{RIGHTS})") <= width, where
                assert await page.evaluate(OVERLAPS) == [], where
        await page.open(tmp_path / "proof.html", dark=False)
        light = await page.evaluate(fill)
        await page.open(tmp_path / "proof.html", dark=True)
        assert await page.evaluate(fill) != light
        assert {request.split(":")[0] for request in page.requests} == {"file"}
        assert page.complaints == []

    visit(tmp_path / "profile", act)
