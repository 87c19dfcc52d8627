"""Study files: what is read, what is refused and how, what is written."""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from breakeven.answer.study.init import QUESTIONS, init_study, interview, study_text
from breakeven.answer.study.load import read_study, read_study_trace
from breakeven.answer.study.plan import CandidatePlan, Constraints, FineTuning, Incoming, QualityPlan, StudyPlan
from breakeven.answer.study.values import key_of, keys_of
from breakeven.answer.study.yaml_file import parts_in
from breakeven.errors import UserError
from breakeven.forecast.serving import unit_requests
from breakeven.results.cost import Api, Own, Rented
from breakeven.traffic.draw import draw
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.words import parse_bytes, parse_rate

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*.yaml") if "candidates:" in path.read_text(encoding="utf-8")
)

STUDY = """\
load: {rate: 2/s, prompt: 512, output: 128}
slo: {ttft: 2s, tpot: 100ms}
candidates:
  - {name: a, model: qwen3-30b-a3b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 0.6}}}
  - {name: b, model: qwen3-14b, machine: rtx-4090, price: {own: {usd: 3000, years: 4, usd_per_kwh: 0.15}}}
  - {name: c, model: llama-3.1-8b, price: {api: {input: 0.05, output: 0.08, date: 2026-09}}}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(**changes: object) -> str:
    """STUDY with keys replaced; `load__rate=3` reaches one level down, `candidates__0__model` two."""
    data: dict[str, Any] = yaml.safe_load(STUDY)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place: Any = data
        for key in parents:
            place = place[int(key)] if key.isdecimal() else place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return yaml.safe_dump(data)


def test_a_small_study_gets_its_defaults(tmp_path: Path) -> None:
    plan = read_study(written(tmp_path, STUDY))
    assert plan.name == "study"
    assert plan.load_per_s == 2
    assert plan.workload.arrivals.process == "poisson"
    assert plan.workload.arrivals.rate_per_s == 2
    assert (plan.slo.ttft_s, plan.slo.tpot_s, plan.good_share) == (2, 0.1, 0.99)
    assert plan.low_per_s < 2 < plan.high_per_s
    a, b, c = plan.candidates
    assert isinstance(a.pricing, Rented)
    assert a.location == "cloud"
    assert isinstance(b.pricing, Own)
    assert b.location == "on-premise"
    assert isinstance(c.pricing, Api)
    assert c.is_api
    assert c.location == "cloud"
    assert c.pricing.date == "2026-09"


@pytest.mark.parametrize(
    ("changes", "key", "right"),
    [
        ({"lood": 1}, "lood", "did you mean load?"),
        ({"load": None, "lode": {"rate": 1}}, "lode", "did you mean load?"),
        ({"load__rte": 1}, "load.rte", "did you mean rate?"),
        ({"candidates__0__modle": "x"}, "candidates.0.modle", "did you mean model?"),
        ({"load": None}, "load", "missing; say what comes in"),
        ({"slo": None}, "slo", "missing; say what is fast enough"),
        ({"slo": {"share": "95%"}}, "slo", "at least one of ttft"),
        ({"slo": "tttft=2s"}, "slo", "'tttft' is no term"),
        ({"slo__ttft": "2 parsecs"}, "slo.ttft", "found '2 parsecs', it must be a duration such as 90ms"),
        ({"slo__ttft": 0}, "slo.ttft", "above 0"),
        ({"slo__share": "120%"}, "slo.share", "found '120%', it must be a share such as 95%"),
        ({"load__rate": "2 pints"}, "load.rate", "found '2 pints', it must be a rate above 0"),
        ({"load__rate": -1}, "load.rate", "found -1, it must be a rate above 0"),
        ({"load__rate": True}, "load.rate", "found True"),
        ({"load__rate": None}, "load", "it must give a rate (2/s)"),
        ({"load__users": 3}, "load", "one kind of load"),
        ({"load__prompt": None}, "load", "prompt: tokens such as 512"),
        ({"load__prompt": "many"}, "load.prompt", "found 'many', it must be tokens as 128"),
        ({"load__arrivals": "steps:2x30s"}, "load.arrivals", "poisson, constant or gamma"),
        ({"load__arrivals": "agents"}, "load.arrivals", "poisson, constant or gamma"),
        ({"load__trace_format": "azure"}, "load", "trace_format only beside a trace"),
        ({"load__low": "5/s"}, "load.low", "must hold that of now, 2/s"),
        ({"load__trace": "nowhere.csv", "load__rate": None}, "load.trace", "does not exist"),
        ({"candidates": []}, "candidates", "found [], it must be a list with at least one candidate"),
        ({"candidates": None}, "candidates", "missing"),
        ({"candidates__1__name": "a"}, "candidates.1.name", "a second time"),
        ({"candidates__0__model": "qwen4-1t"}, "candidates.0.model", "nearest"),
        ({"candidates__0__machine": "h1000"}, "candidates.0.machine", "h1000"),
        ({"candidates__0__machine": "box.yaml"}, "candidates.0.machine", "does not exist"),
        ({"candidates__0__format": "q99"}, "candidates.0.format", "q99"),
        (
            {"candidates__0__engine": "vlm"},
            "candidates.0.engine",
            "found 'vlm', it must be 'llama.cpp', 'llama-",
        ),
        ({"candidates__0__machine": None}, "candidates.0", "a machine"),
        ({"candidates__2__machine": "rtx-4090"}, "candidates.2", "an API price alone"),
        ({"candidates__2__location": "edge"}, "candidates.2.location", "must be cloud"),
        (
            {"candidates__0__price__rented__usd_per_hour": -1},
            "usd_per_hour",
            "found -1, it must be US dollars, 0 or more",
        ),
        ({"candidates__0__price__own": {"usd": 1, "years": 1, "usd_per_kwh": 0}}, "candidates.0.price", "exactly one"),
        ({"candidates__1__price__own__years": 0}, "years", "greater than 0"),
        (
            {"candidates__1__price__own__idle": "300W", "candidates__1__price__own__busy": "90W"},
            "candidates.1.price.own",
            "found idle 300, busy 90",
        ),
        ({"candidates__0__devices": 0}, "candidates.0.devices", "found 0, it must be greater than or equal to 1"),
        ({"constraints": {"memory": "24 stone"}}, "constraints.memory", "a size such as 24GB"),
        ({"constraints": {"power": "-3W"}}, "constraints.power", "a power such as"),
        ({"languages": [False]}, "languages.0", 'write "no" in quotes'),
        ({"parts": [{"name": "x", "share": "80%"}]}, "parts", "add up to 100%"),
        ({"parts": [{"name": "x", "share": 1, "candidates": ["z"]}]}, "parts.0.candidates", "a, b, c"),
        ({"quality": {"scores": {"z": 0.5}}}, "quality.scores", "found 'z', it must be a candidate's name: a, b, c"),
        ({"quality": {"source": "own", "scores": {"a": 0.5}}}, "quality.scores", "missing for 'b'"),
        ({"quality": {"scores": {"a": 71}}}, "quality.scores.a", "a share such as 95%"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, changes: dict[str, object], key: str, right: str
) -> None:
    path = written(tmp_path, changed(**changes))
    with pytest.raises(UserError) as error:
        read_study(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert f"{key}:" in text or f"{key} " in text
    assert right in text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "must hold keys"),
        ("- 1\n- 2\n", "must hold keys"),
        ("load: [", "not YAML"),
        ("seed: 1\nseed: 2\n", "key 'seed' is written twice"),
        ("a: &a [*a]\n", "not YAML (an alias in it stands for something that holds the alias"),
        ("? [1]\n: 2\n", "study.yaml"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str, right: str) -> None:
    with pytest.raises(UserError, match=re.escape(right)):
        read_study(written(tmp_path, text))


def test_a_file_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="breakeven decide --init"):
        read_study(tmp_path / "none.yaml")


def test_users_are_a_rate(tmp_path: Path) -> None:
    load = {"users": 40, "requests_per_user": "6/h", "prompt": 1, "output": 1}
    assert read_study(written(tmp_path, changed(load=load))).load_per_s == pytest.approx(40 * 6 / 3600)


def test_a_trace_is_scaled_to_the_rate_and_draws_at_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("at_s,prompt_tokens,output_tokens\n0,10,2\n1,20,2\n2,30,2\n3,40,2\n")
    plan = read_study(written(tmp_path, changed(load={"trace": "t.csv", "rate": "8/s"})))
    assert plan.trace == (tmp_path / "t.csv").resolve()
    assert plan.load_per_s == pytest.approx(8)
    schedule = draw(plan.workload, read_trace(plan.trace))
    assert schedule.prompt_N.tolist() == [10, 20, 30, 40]
    assert schedule.due_ns_N[-1] / 1e9 == pytest.approx(3 / 6, rel=1e-6)


def test_a_recorded_day_is_as_busy_as_its_busiest_hour(tmp_path: Path) -> None:
    noon = [3600.0 * 12 + each for each in range(1, 10)]
    times = sorted([*(3600.0 * hour for hour in range(24)), *noon, 3600.0 * 23.9])
    (tmp_path / "day.csv").write_text("at_s,prompt_tokens,output_tokens\n" + "".join(f"{at},10,2\n" for at in times))
    plan = read_study(written(tmp_path, changed(load={"trace": "day.csv"})))
    assert len(plan.hours_per_s) == 24
    assert plan.load_per_s == max(plan.hours_per_s) == pytest.approx(10 / 3600)
    twice = read_study(written(tmp_path, changed(load={"trace": "day.csv", "speed": 2})))
    assert twice.load_per_s == pytest.approx(20 / 3600)


def test_a_study_says_the_unit_of_its_trace_where_rows_leave_it_open(tmp_path: Path) -> None:
    rows = [{"timestamp": at, "input_length": 40, "output_length": 2} for at in (0.0, 20.5, 61.25)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"t\.jsonl, line 2, .*say .* with load\.trace_format in .*study\.yaml"):
        read_study(written(tmp_path, changed(load={"trace": "t.jsonl"})))
    plan = read_study(written(tmp_path, changed(load={"trace": "t.jsonl", "trace_format": "mooncake:s:16"})))
    assert plan.load_per_s == pytest.approx(3 / 61.25)


def test_a_trace_beyond_memory_is_represented_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = "".join(f"{i},{10 + i},2\n" for i in range(500))
    path.write_text(f"at_s,prompt_tokens,output_tokens\n{rows}")
    assert len(read_study_trace(path)) == 500
    head = read_study_trace(path, whole_bytes=1000, head_lines=101)
    assert head.prompt.tolist() == list(range(10, 110))
    assert head.name == "long.csv"
    path.write_text(f"at_s,prompt_tokens,output_tokens\n{rows}".replace("\n48,58,2\n", "\n48,many,2\n"))
    with pytest.raises(UserError) as caught:
        read_study_trace(path, whole_bytes=1000, head_lines=101)
    # Of the person's file, not of the copy that was made of its beginning.
    assert str(caught.value).startswith(f"{path}, line 50, column prompt_tokens")


def test_a_long_document_has_no_beginning_to_read(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    path.write_text("{\n" + " " * 2000 + '"benchmarks": []}')
    with pytest.raises(UserError, match="one request a line"):
        read_study_trace(path, whole_bytes=1000)


def test_paths_count_from_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "twin.yaml").write_text("from: qwen3-0.6b\n")
    path = tmp_path / "studies" / "study.yaml"
    path.write_text(changed(candidates__0__model="twin.yaml"))
    monkeypatch.chdir(tmp_path)
    assert read_study(Path("studies/study.yaml")).candidates[0].model == str(tmp_path / "studies" / "twin.yaml")


@given(count=st.floats(0.001, 1e6), period=st.sampled_from([("s", 1), ("min", 60), ("h", 3600), ("day", 86400)]))
def test_rates_say_their_period(count: float, period: tuple[str, int]) -> None:
    assert parse_rate(f"{count!r}/{period[0]}") == pytest.approx(count / period[1])
    assert parse_rate(f"{count!r} requests per {period[0]}") == pytest.approx(count / period[1])
    assert parse_rate(f"{count!r}/8{period[0]}") == pytest.approx(count / period[1] / 8)


@given(st.text(max_size=12))
def test_any_text_is_a_rate_above_0_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert 0 < parse_rate(text) < math.inf


def test_sizes() -> None:
    assert parse_bytes("24GB") == 24 * 10**9
    assert parse_bytes("24 GiB") == 24 * 2**30
    assert parse_bytes("512") == 512


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_read_draw_and_say_what_they_assume(path: Path) -> None:
    plan = read_study(path)
    assert plan.name == path.stem
    trace = read_trace(plan.trace) if plan.trace else None
    assert len(unit_requests(plan.workload, trace, 1000)) >= 1000
    text = path.read_text(encoding="utf-8")
    assert "# Assumed:" in text
    assert "# Prices:" in text
    for candidate in plan.candidates:
        assert candidate.pricing is not None
        assert candidate.price_source


def test_there_are_seven_examples() -> None:
    assert len(EXAMPLES) == 7


def test_the_written_study_reads_back(tmp_path: Path) -> None:
    plan = read_study(init_study(tmp_path / "new.yaml"))
    assert [c.model for c in plan.candidates] == ["qwen3-30b-a3b", "qwen3-14b"]
    assert all(c.pricing is not None and c.format == "Q4_K_M" for c in plan.candidates)
    with pytest.raises(UserError, match="is there already"):
        init_study(tmp_path / "new.yaml")


@pytest.mark.parametrize(
    ("machine", "format_name"), [("h100-sxm", "fp8"), ("a100-80gb-sxm", "bf16"), ("this", "Q4_K_M")]
)
def test_the_written_format_is_one_people_run_there(machine: str, format_name: str) -> None:
    text = study_text(interview(None) | {"machines": machine, "price": "unknown"})
    assert {each["format"] for each in yaml.safe_load(text)["candidates"]} == {format_name}
    assert "# price:" in text


def test_every_comment_of_the_written_study_is_a_key_that_works(tmp_path: Path) -> None:
    """Uncommenting a suggestion must not lead into an error."""
    lines = study_text(interview(None)).splitlines()
    opened = [
        re.sub(r"^(\s*)# ((?:arrivals|cached|low|high|growth_per_year|offline|memory|power|licences): )", r"\1\2", line)
        for line in lines
    ]
    opened = [re.sub(r"^# ((?:budget_usd_per_month|languages|fine_tuning): )", r"\1", line) for line in opened]
    assert sum(a != b for a, b in zip(lines, opened, strict=True)) == 12
    plan = read_study(written(tmp_path, "\n".join(opened)))
    assert plan.workload.arrivals.process == "gamma"
    assert plan.languages == ("en", "de")
    assert plan.budget_usd_per_month == 500


def test_a_wrong_answer_is_explained_and_asked_again(tmp_path: Path) -> None:
    given = {q.key: [q.default] for q in QUESTIONS}
    given["rate"] = ["often", "3/min"]
    given["price"] = ["cheap", "1.40/h"]
    given["what"] = ['a "quoted": #name']
    given["stays"] = ["maybe", "yes"]
    by_text = {q.text: q.key for q in QUESTIONS}
    told: list[str] = []
    path = init_study(tmp_path / "asked.yaml", lambda text, default: given[by_text[text]].pop(0), told.append)
    plan = read_study(path)
    assert plan.load_per_s == pytest.approx(3 / 60)
    assert plan.name == 'a "quoted": #name'
    assert plan.constraints.on_premise
    assert isinstance(plan.candidates[0].pricing, Rented)
    assert plan.candidates[0].location == "on-premise"
    assert len(told) == 3


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs/decide.md").read_text(encoding="utf-8")
    keys = {key for part in parts_in(StudyPlan) for key in keys_of(part)}
    assert {key for key in keys if not re.search(rf"\b{key}\b", page)} == set()


def test_the_page_names_no_other_key_and_every_default_of_the_load() -> None:
    page = (ROOT / "docs/decide.md").read_text(encoding="utf-8")
    parts = {"load": Incoming, "candidates": CandidatePlan}
    for section, part in parts.items():
        text = page.partition(f"### {section}\n")[2].partition("\n### ")[0]
        rows = re.findall(r"^\| (`.*?) \|(?:.*\|)? (.*?) ?\|$", text, re.MULTILINE)
        cells = {key: cell for keys, cell in rows for key in re.findall(r"`(\w+)`", keys)}
        assert set(cells) == set(keys_of(part))
        for each in fields(part) if section == "load" else ():
            cell = cells[key_of(each.name)]
            if each.default is not None:
                value = float(each.default)  # type: ignore[arg-type]
                assert {f"{value:g}", f"{value:g}s", f"{value:.0%}"} & set(cell.split(", ")), each.name
    inside = {"constraints": Constraints, "quality": QualityPlan, "fine_tuning": FineTuning}
    rows = re.findall(r"^\| (`.*?) \|", page.partition("### constraints")[2], re.MULTILINE)
    told = {key for keys in rows for key in re.findall(r"`(\w+\.\w+)`", keys)}
    assert told == {f"{name}.{key}" for name, part in inside.items() for key in keys_of(part)}


def test_examples_of_the_page_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/decide.md").read_text(encoding="utf-8")
    whole, *prices = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(read_study(written(tmp_path, whole)).candidates) == 2
    assert len(prices) == 3
    for price in prices:
        read = yaml.safe_load(price)["price"]
        change = {"candidates__2__price": read} if "api" in read else {"candidates__0__price": read}
        read_study(written(tmp_path, changed(**change)))
