"""Sentences judged: rules, verdicts, the shipped data, the page that agrees with the code, and the command line."""

from __future__ import annotations

import json
import math
import re
import shlex
from importlib import import_module
from pathlib import Path

import msgspec
import pytest
from typer.main import get_command

import breakeven
from breakeven.answer.claim_cases import PUBLISHED_SPREAD, ClaimCase, listed, published_number, ratio_of
from breakeven.answer.claim_numbers import QUANTITIES
from breakeven.answer.claims import (
    AXES,
    PartSpec,
    Rule,
    RunSpec,
    claim_specs,
    compared_findings,
    judge_claims,
    judge_part,
    part_verdict,
    profiled_findings,
    where_of,
    whole_of,
)
from breakeven.cli.main import VERBS
from breakeven.errors import UserError
from breakeven.measure.progress import ProgressState, RatioRow
from breakeven.pages.claims import markdown
from breakeven.results.claims import Claim, ClaimFinding, ClaimPart, ClaimRun, Claims, ClaimSource
from breakeven.results.comparison import Comparison, NodeProfile, Pair
from breakeven.stats.estimate import Estimate, exactly
from tests.cli_fixtures import run_here

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def judged() -> Claims:
    """All of them, once for the module: some eight seconds of one core."""
    return judge_claims()


# --- rules and verdicts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(2.1, 3.0, "holds"), (1.0, 1.9, "fails"), (1.9, 2.1, "open"), (2.0, 2.0, "holds")]
)
def test_a_number_holds_only_with_its_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Rule(at_least=2).judges(Estimate((low + high) / 2, low, high)) == verdict


def test_a_sample_too_small_for_an_interval_decides_nothing() -> None:
    assert Rule(at_least=2).judges(Estimate(3.0, None, None, 1, "measured")) == "open"


def test_a_rule_has_one_end_or_two() -> None:
    between = Rule(at_least=2, at_most=5)
    assert between.judges(Estimate(3, 2.5, 4)) == "holds"
    assert between.judges(Estimate(6, 5.5, 7)) == "fails"
    assert Rule(at_most=0.4).judges(Estimate(0.5, 0.3, 0.7)) == "open"
    assert between.words() == "at least 2 and at most 5"


def finding(value: float, low: float, high: float, at: str = "", case: str = "a over b") -> ClaimFinding:
    estimate = Estimate(value, low, high)
    return ClaimFinding(case=case, at=at, value=estimate, verdict=Rule(at_least=2).judges(estimate))


HOLDS, FAILS = finding(3, 2.5, 4), finding(1, 0.5, 1.5)
OPEN_BELOW, OPEN_ABOVE = finding(1.5, 1, 2.5), finding(2.5, 1, 3)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([HOLDS, HOLDS], "holds"),
        ([HOLDS, FAILS], "holds where"),
        ([HOLDS, OPEN_BELOW], "holds where"),
        ([FAILS, FAILS], "does not hold"),
        ([FAILS, OPEN_BELOW], "does not hold"),
        ([FAILS, OPEN_ABOVE], "open"),
        ([OPEN_BELOW], "open"),
    ],
)
def test_what_numbers_say_together(found: list[ClaimFinding], verdict: str) -> None:
    assert part_verdict(Rule(at_least=2), found) == verdict


def test_one_winner_for_all_cases_is_refuted_by_two_sure_opposites() -> None:
    rule = Rule(at_least=2, quantifier="alike")
    assert part_verdict(rule, [HOLDS, FAILS]) == "does not hold"
    assert part_verdict(rule, [FAILS, FAILS]) == "holds"
    assert part_verdict(rule, [HOLDS, OPEN_BELOW]) == "open"


def test_a_sentence_is_as_true_as_its_least_true_part_unless_parts_are_readings() -> None:
    assert whole_of(["holds", "does not hold"]) == "does not hold"
    assert whole_of(["holds", "open"]) == "open"
    assert whole_of(["holds", "holds where"]) == "holds where"
    assert whole_of(["holds where", "does not hold"], readings=True) == "holds where"
    assert whole_of(["does not hold", "does not hold"], readings=True) == "does not hold"
    assert whole_of(["does not hold", "open"], readings=True) == "open"


def test_places_are_drawn_together_along_their_axis() -> None:
    numbers = [(3, "1 stream"), (3, "4 streams"), (1, "16 streams"), (3, "64 streams")]
    found = [finding(value, value, value, at) for value, at in numbers]
    assert where_of(found) == ["a over b, 1 to 4 streams", "a over b, 64 streams"]
    named = [finding(3, 3, 3, at) for at in ("orange-pi-5", "apple-m1")] + [finding(1, 1, 1, "t4")]
    assert where_of(named) == ["a over b, orange-pi-5 and apple-m1"]
    assert where_of(found[:2]) == ["a over b"]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_published_number_without_an_interval_gets_one_and_says_so() -> None:
    alone = published_number(ClaimCase(label="x", value=2.0))
    assert alone.provenance == "published"
    assert alone.most == pytest.approx(2 * (1 + PUBLISHED_SPREAD))
    over = published_number(ClaimCase(label="x", value=3.0, over_value=2.0))
    assert over.value == 1.5
    assert over.most / over.value == pytest.approx(1 + PUBLISHED_SPREAD * math.sqrt(2))
    own = published_number(ClaimCase(label="x", value=3.0, low=2.9, high=3.1))
    assert (own.least, own.most) == (2.9, 3.1)


def test_ratios_add_errors_in_squares_and_forget_what_is_shared() -> None:
    a, b = Estimate(4, 2, 8), Estimate(2, 1, 4)
    apart, alike = ratio_of(a, b), ratio_of(a, b, own_share=0.5)
    assert apart.value == alike.value == 2
    assert math.log(apart.most / 2) == pytest.approx(math.sqrt(2) * math.log(2))
    assert math.log(alike.most / 2) == pytest.approx(math.sqrt(2) * math.log(2) / 2)
    assert ratio_of(Estimate(4, 0, 8), b).least == 0


def test_a_part_asks_the_model_that_predict_asks() -> None:
    part = PartSpec(
        says="speed",
        quantity="decode-ratio",
        holds=Rule(at_least=1),
        along={"batch": [1, 8]},
        cases=[ClaimCase(label="a", of="qwen3-30b-a3b", over="qwen3-32b", machine="h100-sxm", format="fp8")],
    )
    found = judge_part(part)
    predicted = breakeven.predict(["qwen3-32b", "qwen3-30b-a3b"], ["h100-sxm"], format="fp8", batches=(1, 8)).ratios
    assert [each.value for each in found.findings] == [each.decode for each in predicted]
    assert [each.at for each in found.findings] == ["1 stream", "8 streams"]
    assert found.commands == [
        "breakeven predict qwen3-32b qwen3-30b-a3b --machine h100-sxm --format fp8 --batch 1,8 --context 512"
    ]


def test_commands_write_whole_numbers_whole() -> None:
    contexts = [ClaimCase(label="a", context=context) for context in (512, 1_048_576, 10_000_000)]
    assert listed(contexts, "context") == "512,1048576,10000000"
    assert listed([ClaimCase(label="a", rate=rate) for rate in (2.0, 0.125, 1 / 3)], "rate") == "2,0.125,0.333333"


def test_a_case_nothing_is_known_of_stays_open_and_says_why() -> None:
    part = PartSpec(
        says="speed",
        quantity="decode-speed",
        holds=Rule(at_least=1),
        along={"machine": ["apple-m1", "apple-m99"]},
        cases=[ClaimCase(label="a", of="qwen3-4b", format="Q4_K_M")],
    )
    known, unknown = judge_part(part).findings
    assert known.value is not None
    assert unknown.value is None
    assert unknown.verdict == "open"
    assert "apple-m99" in (unknown.record or "")
    assert judge_part(part).verdict == "holds where"


def test_routing_alone_spreads_steps_most_where_few_experts_are_drawn() -> None:
    def spread(of: str, batch: int) -> float:
        case = ClaimCase(label="a", of=of, machine="h100-sxm", format="fp8", batch=batch)
        return QUANTITIES["routing-spread"].numbers([case])[0].value

    assert spread("qwen3-30b-a3b", 1) == 1.0
    assert spread("mixtral-8x7b", 2) > spread("qwen3-30b-a3b", 2) > spread("qwen3-30b-a3b", 64) > 1.0


# --- the shipped sentences -------------------------------------------------------------------------------------------


def test_the_data_is_whole() -> None:
    specs = claim_specs()
    names = [spec.name for spec in specs]
    assert 12 <= len(names) <= 20
    assert len(set(names)) == len(names)
    for spec in specs:
        assert spec.source.url or spec.source.title == "as heard"
        assert spec.settle
        assert spec.run is None or spec.run.part < len(spec.parts)
        for part in spec.parts:
            assert part.quantity in QUANTITIES
            assert set(part.along) <= set(AXES)
            assert len(part.along) <= 1
            for case in part.cases:
                assert case.record if case.published else case.of, f"{spec.name}: {case.label}"


def test_a_rule_does_not_refute_the_numbers_its_sentence_was_made_from() -> None:
    """41.4 over 22.0 tokens/s, said as 1.9 times, is 1.88: a rule of 1.9 would say that its own source denies it."""
    own = [
        (part, case)
        for spec in claim_specs()
        for part in spec.parts
        for case in part.cases
        if (case.record or "").startswith("the sentence's own numbers")
    ]
    assert own
    for part, case in own:
        assert part.holds.judges(exactly(published_number(case).value)) == "holds"


def test_both_models_of_a_tail_are_named_each_at_its_own_loads() -> None:
    (part,) = [p for spec in claim_specs() for p in spec.parts if spec.name == "p99" and p.says == "MoE over dense"]
    case = part.cases[0]
    cases = [msgspec.structs.replace(case, utilisation=share) for share in (0.3, 0.85)]
    of, over = QUANTITIES["tail-ratio"].commands(cases)
    assert of.startswith(f"breakeven simulate {case.of} ")
    assert over.startswith(f"breakeven simulate {case.over} ")
    rates = [float(command.split("--rate ")[1].split(",")[0]) for command in (of, over)]
    assert rates[0] > 1.2 * rates[1]


def test_speeds_are_of_models_that_fit() -> None:
    """Elsewhere a ratio tells of a model that lies partly in host memory; such cases name their host memory."""
    for part in [part for spec in claim_specs() for part in spec.parts]:
        for case in [case for case in part.cases if not case.published and part.quantity == "decode-ratio"]:
            batches = tuple(int(each) for each in part.along.get("batch", [case.batch]))
            machines = [str(each) for each in part.along.get("machine", [case.machine or ""])]
            assert case.of
            assert case.over
            found = breakeven.predict(
                [case.of, case.over],
                [machine for machine in machines if "+" not in machine],
                format=case.format,
                engine=case.engine,
                devices=case.devices,
                batches=batches,
                contexts=(case.context,),
            )
            for point in found.points:
                assert point.fits, f"{case.label}: {point.model} at {point.batch} on {point.machine}, {point.lacking}"


def test_every_verdict_follows_from_numbers(judged: Claims) -> None:
    for claim, spec in zip(judged.claims, claim_specs(), strict=True):
        assert claim.verdict == whole_of([part.verdict for part in claim.parts], readings=spec.readings)
        for part in claim.parts:
            assert part.findings
            for each in part.findings:
                assert each.value is not None, f"{claim.name}: {each.case}, {each.at}: {each.record}"
                assert math.isfinite(each.value.value)
                assert each.value.least <= each.value.value <= each.value.most
            assert part.verdict != "holds where" or part.where


def test_every_command_is_one(judged: Claims) -> None:
    for claim in judged.claims:
        for command in [each for part in claim.parts for each in part.commands]:
            program, verb, *words = shlex.split(command)
            assert program == "breakeven"
            app = get_command(import_module(VERBS[verb].module).app)
            app.make_context(verb, words)  # refuses what the verb does not take


PAGE = ROOT / "docs" / "claims.md"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
TOLERANCE = 0.02


def test_the_page_agrees_with_the_code(judged: Claims) -> None:
    """Printed again with `breakeven claims --markdown > docs/claims.md`; rounding differs a little between machines."""
    page = PAGE.read_text()
    dated = re.search(r"^Numbers of (\d{4}-\d\d-\d\d), breakeven", page, re.M)
    assert dated is not None
    again = markdown(msgspec.structs.replace(judged, date=dated[1]))
    assert NUMBER.sub("#", again) == NUMBER.sub("#", page), "print it again: breakeven claims --markdown"
    pairs = zip(NUMBER.findall(again), NUMBER.findall(page), strict=True)
    numbers = [tuple(float(text.replace(",", "")) for text in pair) for pair in pairs]
    far = [(now, then) for now, then in numbers if not math.isclose(now, then, rel_tol=TOLERANCE, abs_tol=1e-9)]
    assert far == [], "print it again: breakeven claims --markdown"


def test_the_page_holds_every_sentence_and_its_source(judged: Claims) -> None:
    page = PAGE.read_text()
    for claim in judged.claims:
        assert claim.sentence in page
        assert claim.source.url is None or claim.source.url in page


def test_every_field_is_documented() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for found in (Claims, Claim, ClaimSource, ClaimPart, ClaimFinding, ClaimRun):
        for field in msgspec.structs.fields(found):
            assert f"| `{field.encode_name}` |" in sections.get(found.__name__, ""), f"{found.__name__}.{field.name}"


# --- measured here ---------------------------------------------------------------------------------------------------


def test_a_comparison_here_is_judged_by_the_same_rule() -> None:
    run = RunSpec(of="llama-3.2-1b", over="olmoe-1b-7b", measures="decode", part=0, minutes=6, memory_gb=10)
    ratio = Estimate(0.5, 0.4, 0.6, 12, "measured")
    pairs = [
        Pair(a="olmoe-1b-7b", b="llama-3.2-1b", metric=metric, streams=4, ratio=ratio, winner="llama-3.2-1b")
        for metric in ("decode_tokens_per_s", "ttft_s")
    ]
    (found,) = compared_findings(run, pairs)
    assert found.value is not None
    assert found.value.value == pytest.approx(2.0)
    assert (found.value.provenance, found.at) == ("measured", "4 streams")
    (part,) = [judge_part(claim_specs()[3].parts[0], [found])]
    assert part.findings[-1].verdict == "open"
    assert part.findings[-1].record == "measured here"


def test_a_profile_here_tells_the_routers_share_where_it_has_one() -> None:
    run = RunSpec(of="olmoe-1b-7b", measures="router", part=0, minutes=2, memory_gb=8)
    profiles = [
        NodeProfile(model="m", phase=phase, tokens=1, nodes=[], router_share_of_moe_block=share, observing_overhead=0.1)
        for phase, share in (("decode", 0.02), ("prefill", None))
    ]
    (found,) = profiled_findings(run, profiles)
    assert found.at == "decode"
    assert found.value is not None
    assert (found.value.value, found.value.provenance) == (0.02, "measured")
    assert found.value.most == pytest.approx(0.022)


# --- the command line and Python -------------------------------------------------------------------------------------


def test_the_list_fits_a_screen(judged: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakeven.answer.claims.judge_claims", lambda *args, **words: judged)
    done = run_here("claims")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    for claim, shown in zip(judged.claims, lines[::2], strict=False):
        assert shown.startswith(claim.name)
    assert lines[1].startswith(f"  {judged.claims[0].verdict}: ")


def test_one_is_shown_with_its_evidence() -> None:
    done = run_here("claims", "router-overhead")
    assert done.returncode == 0, done.stderr
    assert "Does not hold: " in done.stdout
    assert "breakeven claims router-overhead --run" in " ".join(done.stdout.split())
    assert "(published)" in done.stdout
    assert "arxiv.org" not in done.stdout
    assert "arxiv.org/abs/2606.21428" in run_here("claims", "router-overhead", "--full").stdout


def test_json_is_what_python_returns() -> None:
    done = run_here("claims", "laptop-q4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "breakeven.claims/1"
    printed = msgspec.json.decode(done.stdout, type=Claims)
    assert printed.claims == breakeven.claims("laptop-q4").claims


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ten-time",), "did you mean ten-times"),
        (("--run",), "name it"),
        (("saves-memory", "--run"), "cannot be measured here"),
        (("arm", "--markdown"), "leave out NAME"),
    ],
)
def test_misuse_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = run_here("claims", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_says_first_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def refuse(*args: object, **words: object) -> None:
        assert heard
        raise UserError("no engine in this test")

    monkeypatch.setattr("breakeven.api.measured.compare", refuse)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UserError, match="no engine"):
        breakeven.claims("arm", run=True, on_run=heard.append)
    assert heard == ["Measuring here, decode speed of llama-3.2-1b over olmoe-1b-7b: about 6 minutes, 10 GB of memory."]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_shows_how_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet: bool) -> None:
    def measured(*args: object, on_progress, on_saved, **words: object) -> Comparison:
        on_progress(ProgressState("loading", 1.0, subject="olmoe-1b-7b"))
        on_progress(ProgressState("measuring", 60.0, budget_s=180.0, rows=(RatioRow(1, 0.5, 0.4, 0.6, 3),)))
        on_saved(tmp_path)
        raise UserError("stopped in this test")

    monkeypatch.setattr("breakeven.api.measured.compare", measured)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    done = run_here("claims", "arm", "--run", *(["--quiet"] if quiet else []), cwd=tmp_path)
    assert done.returncode == 2
    assert "Measuring here, decode speed" in done.stderr
    assert f"Saved in {tmp_path}." in done.stderr.replace("\n", "")
    assert ("loading olmoe-1b-7b: 1 s" in done.stderr) is not quiet
    assert ("0.500 (0.400-0.600) from 3 pairs" in done.stderr) is not quiet


def test_a_sentence_about_a_processor_is_measured_on_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(UserError, match="arm is about aarch64 or arm64, and this is x86_64"):
        breakeven.claims("arm", run=True)
