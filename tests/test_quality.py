"""Quality: one source for all candidates, in order of trust."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from families_fixtures import small_spec
from hypothesis import given
from hypothesis import strategies as st

from breakeven.answer.candidates import Facts, ruled_out
from breakeven.answer.study.load import read_study
from breakeven.answer.study.plan import StudyPlan
from breakeven.engines.source import parse_source
from breakeven.errors import UserError
from breakeven.lab.bits.formats import planned
from breakeven.lab.bits.ggml import Ggml
from breakeven.lab.surgery.container import open_gguf
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.catalogue import lookup, names
from breakeven.model.quality import benchmarks, published, quality_of, sources
from breakeven.pages.decision_words import quality_text
from breakeven.results.lab import Evaluated, Evaluation, Slice, TaskScore
from breakeven.results.store import write
from breakeven.stats.estimate import measured
from breakeven.stats.percentiles import wilson
from tests.test_gguf_files import write_split


def test_own_scores_come_first_and_reach_apis() -> None:
    models = {"a": lookup("olmoe-1b-7b"), "b": lookup("llama-3.2-1b")}
    scores = quality_of(models, own={"a": 0.5, "b": 0.4, "api": 0.9})
    assert {name: (s.how, s.value) for name, s in scores.items()} == {
        "a": ("own", 0.5),
        "b": ("own", 0.4),
        "api": ("own", 0.9),
    }


def test_published_scores_are_of_one_source_benchmark_and_stage() -> None:
    scores = quality_of({"moe": lookup("olmoe-1b-7b"), "dense": lookup("llama-3.2-1b")})
    assert {score.how for score in scores.values()} == {"published"}
    assert len({(score.benchmark, score.source) for score in scores.values()}) == 1
    moe = scores["moe"]
    assert moe.value == 0.1915  # allenai/OLMoE-1B-7B-0125-Instruct, Open LLM Leaderboard v2, MMLU-Pro
    assert "instruct" in str(moe.source)
    assert moe.low is not None
    assert moe.high is not None
    assert moe.low < moe.value < moe.high


def test_a_benchmark_asked_for_is_taken() -> None:
    models = {"moe": lookup("mixtral-8x7b"), "dense": lookup("llama-3.1-8b")}
    assert {score.benchmark for score in quality_of(models, benchmark="ifeval").values()} == {"ifeval"}
    with pytest.raises(UserError, match="no scores of 'arena' are known"):
        quality_of(models, benchmark="arena")


def test_harnesses_are_never_mixed() -> None:
    # Llama-3.1-8B stands in one harness, Qwen3-30B-A3B in another: size is all that covers both.
    models = {"moe": lookup("qwen3-30b-a3b"), "dense": lookup("llama-3.1-8b")}
    assert {score.how for score in quality_of(models).values()} == {"size"}
    with pytest.raises(UserError, match="no one source"):
        quality_of(models, source="published")


def test_own_scores_must_cover_everybody() -> None:
    models = {"a": lookup("olmoe-1b-7b"), "b": lookup("llama-3.2-1b")}
    with pytest.raises(UserError, match="missing for b"):
        quality_of(models, source="own", own={"a": 0.5})
    assert quality_of(models, own={"a": 0.5})["a"].how == "published"


@given(st.sampled_from(names()))
def test_size_is_a_guess_with_its_band(model: str) -> None:
    spec = lookup(model)
    score = quality_of({"it": spec}, source="size")["it"]
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high <= 1.6 * total_params(spec)
    if spec.is_moe:
        root = math.sqrt(total_params(spec) * active_params(spec))
        assert (score.low, score.high) == (pytest.approx(0.72 * root), pytest.approx(1.60 * root))
    else:
        assert score.low == score.high == total_params(spec)


@given(st.lists(st.sampled_from(names()), min_size=1, max_size=4, unique=True))
def test_whatever_is_compared_compares(models: list[str]) -> None:
    scores = quality_of({name: lookup(name) for name in models})
    assert scores.keys() == set(models)
    assert len({(score.how, score.benchmark, score.source) for score in scores.values()}) == 1


def test_every_score_shipped_names_a_source_that_may_be_shipped() -> None:
    assert {row.source for row in published()} == set(sources())
    assert all(source.licence and source.via for source in sources().values())
    assert all(0 <= share <= 1 for row in published() for share in row.scores.values())
    assert "mmlu_pro" in benchmarks()


def test_the_page_says_how_many_models_each_source_has() -> None:
    page = (Path(__file__).parent.parent / "docs" / "quality.md").read_text()
    for name in sources():
        rows = sum(row.source == name for row in published())
        line = next(line for line in page.splitlines() if sources()[name].name.split(",")[0] in line)
        assert f"| {rows}" in line
    assert all(f"`{name}`" in page for name in benchmarks())


# --- an evaluation ---------------------------------------------------------------------------------------------------


def slice_of(language: str, bits: float, more: float | None = None) -> Slice:
    return Slice(
        language=language,
        domain="guide",
        bytes=20_000,
        documents=1,
        blocks=10,
        tokens=5_000,
        bits_per_byte=measured(bits, bits - 0.02, bits + 0.02, 10),
        difference=None if more is None else measured(more, more - 0.01, more + 0.01, 10),
    )


def tasks_of(
    solved: int, tokens: float | None, method: Literal["likelihood", "generation"] = "generation"
) -> TaskScore:
    share = wilson(solved, 40)
    length = None if tokens is None else measured(tokens, tokens - 2, tokens + 2, 40)
    return TaskScore(
        name="tickets",
        language="en",
        tasks=40,
        solved=measured(share.share, share.low, share.high, 40),
        answer_tokens=length,
        method=method,
    )


def model_of(name: str, slices: list[Slice], tasks: list[TaskScore], path: Path | None = None) -> Evaluated:
    return Evaluated(
        name=name,
        path=name if path is None else str(path),
        sha256=None if path is None else hashlib.sha256(path.read_bytes()).hexdigest(),
        format="Q4_0",
        bits_per_weight=4.5,
        experts_per_token=None,
        slices=slices,
        tasks=tasks,
    )


STUDY = """\
load: {rate: 2/s, prompt: 512, output: 128}
slo: {ttft: 2s}
languages: [en, de]
quality: {evaluation: evaluation.json%s}
candidates:
  - {name: a, model: qwen3-14b, machine: rtx-4090, price: {rented: {usd_per_hour: 0.6}}}
  - {name: b, model: llama-3.1-8b, machine: rtx-4090, price: {rented: {usd_per_hour: 0.6}}}
"""
# French is nobody's language in the study, so what is lost in it does not count.
SOURCE = [slice_of("en", 1.0), slice_of("de", 2.0), slice_of("fr", 1.5)]
SMALLER = [slice_of("en", 1.01, 0.01), slice_of("de", 2.2, 0.2), slice_of("fr", 9.0, 7.5)]


def told(
    tmp_path: Path, models: list[Evaluated], keys: str = "", study: str = STUDY, against: str | None = "a"
) -> StudyPlan:
    found = Evaluation(command="breakeven evaluate", text="guide", against=against, models=models, seconds=1.0)
    write(found, tmp_path / "evaluation.json")
    (tmp_path / "study.yaml").write_text(study % keys)
    return read_study(tmp_path / "study.yaml")


def test_text_ranks_and_rules_out_by_the_language_that_loses_most(tmp_path: Path) -> None:
    plan = told(tmp_path, [model_of("a", SOURCE, []), model_of("b", SMALLER, [])], ", max_loss: 3%")
    assert plan.quality.told is not None
    a, b = plan.quality.told["a"], plan.quality.told["b"]
    assert (a.how, a.value, a.loss) == ("bits_per_byte", pytest.approx(1.5), 0.0)
    assert a.benchmark == "text in de, en"
    # Independent errors of two languages: sqrt(0.02^2 + 0.02^2) / 2.
    assert a.high == pytest.approx(1.5 + 0.02 / math.sqrt(2))
    assert (b.loss_language, b.loss_against, b.loss) == ("de", "a", pytest.approx(0.1))
    assert (b.loss_low, b.loss_high) == (pytest.approx(0.095), pytest.approx(0.105))
    assert ruled_out(plan, plan.candidates[0], Facts(loss=a, quality=a)) == []
    (why,) = ruled_out(plan, plan.candidates[1], Facts(loss=b, quality=b))
    assert why == "takes 10 % more bits per byte than a in de; the study allows 3 %"
    assert "2.1" not in quality_text(a)
    assert quality_text(b) == (
        "1.605 (1.591-1.619) bits per byte of text in de, en, 10.0 % (9.5-10.5) more than a in de, own evaluation"
    )


def test_without_a_reference_the_best_candidate_is_it_and_has_no_interval(tmp_path: Path) -> None:
    models = [model_of("a", SMALLER, []), model_of("b", SOURCE, [])]
    plan = told(tmp_path, models, ", max_loss: 20%", against=None)
    assert plan.quality.told is not None
    a = plan.quality.told["a"]
    assert (a.loss_against, a.loss, a.loss_low) == ("b", pytest.approx(0.1), None)
    assert ruled_out(plan, plan.candidates[0], Facts(loss=a)) == []


def test_tasks_give_scores_and_answer_lengths(tmp_path: Path) -> None:
    models = [model_of("a", SOURCE, [tasks_of(30, 80)]), model_of("b", SMALLER, [tasks_of(10, 240)])]
    plan = told(tmp_path, models, ", floor: 50%, max_loss: 3%")
    assert plan.quality.told is not None
    a, b = plan.quality.told["a"], plan.quality.told["b"]
    assert (a.how, a.value, b.value) == ("own", 0.75, 0.25)
    assert a.low is not None
    assert 0.59 < a.low < 0.61  # Wilson, 30 of 40
    assert b.loss == pytest.approx(0.1)  # text is said beside it
    assert plan.quality.answer_tokens == {"a": 80, "b": 240}
    assert "25 %" in quality_text(b)
    assert ", 10.0 % (9.5-10.5) bits per byte more than a in de" in quality_text(b)
    cut = [msgspec.structs.replace(model, tasks=[msgspec.structs.replace(model.tasks[0], cut=5)]) for model in models]
    assert told(tmp_path, cut).quality.answer_tokens == {}
    typed = told(tmp_path, models, ", answer_tokens: {a: 100}")
    assert typed.quality.answer_tokens == {"a": 100}


def test_generated_answers_and_likelihoods_never_compare(tmp_path: Path) -> None:
    models = [model_of("a", SOURCE, [tasks_of(30, None, "likelihood")]), model_of("b", SMALLER, [tasks_of(10, 9)])]
    plan = told(tmp_path, models)
    assert plan.quality.told is not None
    assert {score.how for score in plan.quality.told.values()} == {"bits_per_byte"}
    assert plan.quality.answer_tokens == {}
    with pytest.raises(UserError, match=r"quality\.floor: evaluation\.json holds no tasks"):
        told(tmp_path, models, ", floor: 50%")
    models[1] = model_of("b", [], [tasks_of(10, 9)])
    with pytest.raises(UserError, match="no text in en, de that b was given"):
        told(tmp_path, models)


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        (", scores: {a: 0.5}", "scores, or an evaluation"),
        (", source: size", "sources are never mixed"),
        (", max_loss: -3%", "max_loss"),
    ],
)
def test_what_an_evaluation_excludes_is_named(tmp_path: Path, keys: str, right: str) -> None:
    with pytest.raises(UserError, match="quality") as error:
        told(tmp_path, [model_of("a", SOURCE, [])], keys)
    assert right in str(error.value)


def test_a_candidate_that_was_not_evaluated_or_is_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not hold 'b'; it has a: name the candidate so"):
        told(tmp_path, [model_of("a", SOURCE, [])])
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "study.yaml").write_text(STUDY % "")
    with pytest.raises(UserError, match=r"quality\.evaluation: evaluation\.json is no evaluation \(no schema\)"):
        read_study(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text(STUDY.replace("evaluation: evaluation.json%s", "max_loss: 3%"))
    with pytest.raises(UserError, match="max_loss beside an evaluation alone"):
        read_study(tmp_path / "study.yaml")


def test_a_model_is_known_by_the_bytes_of_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "split").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    pieces = [tmp_path / "hf" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for piece in pieces:
        piece.write_bytes(piece.name.encode())
    whole = tmp_path / "q4.gguf"
    write_split(tmp_path, small_spec("qwen3moe"), 1)[0].rename(whole)
    split = write_split(tmp_path / "split", small_spec("qwen3moe"), 2)
    for model, files in ((whole, [whole]), (split[0], split), (tmp_path / "hf", pieces)):
        content = b"".join(file.read_bytes() for file in files)
        mine = msgspec.structs.replace(
            model_of("q4 of mine", SOURCE, []),
            path=str(model),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        models = [mine, model_of("b", SMALLER, [])]
        study = STUDY.replace("model: qwen3-14b", f"model: {model}")
        assert told(tmp_path, models, study=study, against=None).quality.told is not None
        with files[-1].open("r+b") as last:
            last.seek(-1, 2)
            last.write(b"!")
        with pytest.raises(UserError, match=rf"{model.name} of 'a' is not the file that was evaluated as q4 of mine"):
            told(tmp_path, models, study=study, against=None)
        with monkeypatch.context() as patched:
            patched.setattr("breakeven.answer.study.evaluation.HASHED_BYTES", len(content) - 1)  # too large to hash
            assert told(tmp_path, models, study=study, against=None).quality.told is not None
    split[1].unlink()
    study = STUDY.replace("model: qwen3-14b", f"model: {split[0]}")
    mine = msgspec.structs.replace(models[0], path=str(split[0]))
    with pytest.raises(UserError, match=r"quality\.evaluation: 'a': .*-00002-of-00002\.gguf is missing"):
        told(tmp_path, [mine, models[1]], study=study, against=None)


def test_the_tutorials_studies_name_what_its_commands_make(tmp_path: Path, smollm2_gguf: Path) -> None:
    halves = (Path(__file__).parent.parent / "docs/lab.md").read_text().split("\n# The second half")
    assert len(halves) == 2
    for number, page in enumerate(halves):
        (tmp_path / f"{number}").mkdir()
        _study_of_the_tutorial(page, tmp_path / f"{number}", smollm2_gguf, first=number == 0)


def _study_of_the_tutorial(page: str, tmp_path: Path, smollm2_gguf: Path, *, first: bool) -> None:
    commands = [shlex.split(line) for line in page.replace("\\\n", " ").splitlines() if line.startswith("breakeven ")]

    def out_of(verb: str, option: str) -> str:
        (line,) = [each for each in commands if each[1] == verb and option in each]
        return line[line.index("--out") + 1]

    (tmp_path / "made").mkdir()
    shutil.copyfile(smollm2_gguf, tmp_path / "smollm2.gguf")
    with Ggml() as ggml:
        source = open_gguf(tmp_path / "smollm2.gguf")
        made = [planned(source, ggml.types[name], ggml.types).file_name(source) for name in ("Q4_K", "Q2_K")]
    loaded = out_of("compare", "--rate")
    (compared,) = [each for each in commands if each[1] == "compare" and "--rate" in each]
    trained = [line[line.index("--out") + 1] for line in commands if line[1] in ("distill", "tune")]
    for name in made if first else [f"{Path(out).name}/{Path(out).name}.gguf" for out in trained]:
        (tmp_path / "made" / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(smollm2_gguf, tmp_path / "made" / name)
    files = [tmp_path / each for each in compared[2:] if each.endswith(".gguf")]
    names_there = {parse_source(str(file)).name for file in files}
    evaluated = [model_of(file.stem, SOURCE, [], path=file) for file in files]
    told_of = Evaluation(command="", text="text", against="smollm2", models=evaluated, seconds=1.0)
    write(told_of, tmp_path / out_of("evaluate", "--out"))
    (tmp_path / loaded).mkdir()
    study = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "study.yaml").write_text(study)
    plan = read_study(tmp_path / "study.yaml")
    assert plan.quality.told is not None
    for candidate in plan.candidates:
        assert candidate.model is not None
        assert candidate.measured == tmp_path / loaded
        assert Path(candidate.model).stem in names_there
        assert candidate.pricing is not None
    named = [Path(each.model or "").name for each in plan.candidates]
    assert named == (["smollm2.gguf", made[0]] if first else ["smollm2.gguf", "student.gguf", "ternary.gguf"])
    for said in ("README.md", "docs/lab.md", "docs/lab-json.md"):
        text = (Path(__file__).parent.parent / said).read_text()
        assert set(re.findall(r"smollm2-Q[\w.-]*?(?=\.gguf|\.proof)", text)) <= {Path(each).stem for each in made}
