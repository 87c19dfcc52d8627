"""A distillation of toys, whole: taught, beside twins, proven, served; stopped and gone on; a bad teacher refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bridge_fixtures import CLASSES, CONFIGS, VOCAB, write_byte_tokenizer
from lab_fixtures import texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

from bench.lab import gpu  # noqa: E402
from breakeven.errors import UserError  # noqa: E402
from breakeven.lab.corpus import Document, blocks_of, read_documents  # noqa: E402
from breakeven.lab.facts import facts_of  # noqa: E402
from breakeven.lab.training import distill as course  # noqa: E402
from breakeven.lab.training import hyena  # noqa: E402
from breakeven.lab.training.distill_job import TEACHER_SHARE, run, taught_loss  # noqa: E402
from breakeven.lab.training.distill_proof import Distilled, DistillOptions  # noqa: E402
from breakeven.lab.training.shapes import ArmShape, config_of, spec_of, student_shape  # noqa: E402
from breakeven.lab.training.student import ArmSpec, Student, rows_for, save_array  # noqa: E402
from breakeven.lab.training.teacher import Cache, TeacherSpec, TeacherTold  # noqa: E402
from breakeven.lab.training.teacher import run as run_teacher  # noqa: E402
from breakeven.lab.training.texts import split  # noqa: E402
from breakeven.model.arithmetic import total_params  # noqa: E402
from breakeven.results import store  # noqa: E402
from breakeven.results.lab import Proof  # noqa: E402

torch.set_num_threads(1)
TOKENS = 64
QUIET: Callable[[str, float], None] = lambda what, share: None  # noqa: E731


def here(module: str, spec: msgspec.Struct, result: type, *, threads: object = None, on_step: Any = QUIET) -> Any:
    """A job in this process, which has torch already."""
    done = import_module(f"breakeven.lab.training.{module}").run(msgspec.json.encode(spec), on_step)
    return msgspec.json.decode(msgspec.json.encode(done), type=result)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("text"), ("en",), files=40, n_bytes=250)


@pytest.fixture(scope="module")
def documents(text: Path) -> list[Document]:
    return read_documents(text)


def new(directory: Path, shape: str = "dense 1x256") -> Path:
    """A model that has no weights yet."""
    directory.mkdir()
    write_byte_tokenizer(directory)
    found = student_shape(shape)
    assert isinstance(found, ArmShape)
    (directory / "config.json").write_text(json.dumps(config_of(found, VOCAB, 512, {"eos_token_id": 256})))
    return directory


@pytest.fixture(scope="module")
def teacher(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was trained on the text for longer than any student here is."""
    root = tmp_path_factory.mktemp("teacher")
    directory = new(root / "new")
    student = Student(directory, spec_of(ArmShape(1, 256, 768), VOCAB, 512), False, None, None, True)
    rows = rows_for(student, split(blocks_of(documents)), TOKENS)
    spec = ArmSpec(
        name="the teacher",
        directory=str(directory),
        begun=False,
        rows=save_array(root / "rows.npy", rows.train_NT),
        choose=save_array(root / "choose.npy", rows.choose_NT),
        cache=None,
        folder=str(root / "run"),
        made=str(root / "made"),
        seed=1,
        rate=2e-3,
        batch=8,
        seconds=None,
        steps=40,
    )
    done = run(msgspec.json.encode(spec), QUIET)
    assert done.best < 0.7 * done.checks[0][1]
    return root / "made"


def options(**changes: Any) -> DistillOptions:
    usual = {"seconds": None, "steps": 16, "twin_steps": 18, "batch": 4, "tokens": TOKENS, "threads": 1}
    return DistillOptions(**{**usual, **changes})


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "run_job", here)


def test_a_student_is_taught_proven_and_served(teacher: Path, documents: list[Document], tmp_path: Path) -> None:
    out = tmp_path / "student"
    proof = course.distill(
        teacher,
        "dense 1x256",
        documents,
        out,
        words=["breakeven", "distill", str(teacher)],
        options=options(trim_vocabulary=True, ternary=True),
    )
    assert store.read(out / "proof.json", Proof) == proof
    assert all(check.passed for check in proof.checks)
    assert {check.name for check in proof.checks} >= {"same predictions", "served as trained", "loads and predicts"}
    [slice_] = proof.slices
    assert slice_.difference is not None
    assert slice_.difference.low is not None
    assert slice_.kl is None, "its vocabulary is another"
    assert proof.twin is not None
    assert proof.training is not None
    assert proof.twin.equal_tokens is not None
    assert proof.twin.equal_seconds != proof.twin.equal_tokens
    assert proof.training.tokens == 16 * 4 * TOKENS
    assert proof.training.flops > 6 * proof.training.tokens * 590_000
    assert "--into 'dense 1x256' --steps 16 --twin-steps 18 --teacher-tokens " in proof.command
    assert 257 <= facts_of(out).n_vocab < VOCAB
    small = facts_of(out / "student.gguf")
    assert small.bytes < 0.4 * facts_of(out).bytes
    assert any("2.06 bits" in each for each in proof.caveats)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "student.training").exists()


def test_what_was_stopped_goes_on_to_the_same_curve(
    teacher: Path, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Distilled] = []
    few = options(steps=8, twin_steps=10)

    def proven(*given: Any) -> None:
        kept.append(given[4])

    monkeypatch.setattr(course, "proven", proven)

    def go(out: Path, stop: str | None = None) -> None:
        told = itertools.count(1)

        def on_step(what: str, share: float) -> None:
            if stop is not None and what.startswith(stop) and next(told) == 4:
                raise KeyboardInterrupt

        course.distill(teacher, "dense 1x256", documents, out, words=[], options=few, on_step=on_step)

    go(tmp_path / "whole")
    monkeypatch.setattr("breakeven.lab.training.loop._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("breakeven.lab.training.teacher._SAVE_EVERY_S", 0.0)
    for stop in ("the twin, without", "the teacher: ", "the student"):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "stopped", stop)
    assert (tmp_path / "stopped.training/asked.json").is_file()
    go(tmp_path / "stopped")
    whole, again = kept
    assert again.student.losses == whole.student.losses
    assert again.student.checks == whole.student.checks
    assert [done.checks for _, done in again.twins] == [done.checks for _, done in whole.twins]
    assert again.cached.mass == pytest.approx(whole.cached.mass)
    assert whole.student.losses != whole.twins[0][1].losses


def test_a_teacher_no_better_than_a_plain_student_is_refused(documents: list[Document], tmp_path: Path) -> None:
    bad = new(tmp_path / "bad")
    config = transformers.AutoConfig.from_pretrained(bad)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(bad)
    with pytest.raises(UserError, match=r"no better on this text than a plain student: \d\.\d+ nats a token.* worse"):
        course.distill(bad, "dense 1x256", documents, tmp_path / "out", words=[], options=options())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_another_tokenizer_is_refused_and_gold_named(teacher: Path, documents: list[Document], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:2]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="GOLD"):
        course.distill(teacher, str(other), documents, tmp_path / "out", words=[], options=options())
    with pytest.raises(UserError, match="--trim-vocabulary makes a new student's tokenizer"):
        course.distill(
            teacher, str(other), documents, tmp_path / "out2", words=[], options=options(trim_vocabulary=True)
        )


def test_a_moe_teacher_is_measured_with_all_experts_too(tmp_path: Path) -> None:
    directory = tmp_path / "moe"
    directory.mkdir()
    config = transformers.AutoConfig.for_model("qwen3_moe", **CONFIGS["qwen3_moe"])
    torch.manual_seed(0)
    getattr(transformers, CLASSES["qwen3_moe"])(config).save_pretrained(directory)
    rows = save_array(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, VOCAB, (3, 40)).astype(np.int32))
    told = run_teacher(
        msgspec.json.encode(TeacherSpec(directory=str(directory), rows=rows, kept=None, experts=4)), QUIET
    )
    assert [used for used, _ in told.nats] == [0, 4]
    assert told.nats[0][1] != told.nats[1][1]
    assert told.best == min(told.nats, key=lambda each: each[1])


def test_a_cache_holds_what_a_teacher_finds_likely(teacher: Path, tmp_path: Path) -> None:
    mine_NT = np.random.default_rng(0).integers(0, 150, (5, 24)).astype(np.int32)
    kept_K = np.arange(2, VOCAB, 2)  # what the teacher calls each of the student's tokens
    spec = TeacherSpec(
        directory=str(teacher),
        rows=save_array(tmp_path / "rows.npy", mine_NT),
        kept=save_array(tmp_path / "kept.npy", kept_K),
        cache=str(tmp_path / "cache"),
    )
    folder = tmp_path / "cache"
    folder.mkdir()
    save_array(folder / "read.npy", np.array([3, 4, 7, 8, 20]))
    told = run_teacher(msgspec.json.encode(spec), QUIET)
    assert isinstance(told, TeacherTold)
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(kept_K[mine_NT])).logits
        wanted = logits.log_softmax(-1)[..., torch.from_numpy(kept_K)].topk(32)
    tokens, logs = Cache(folder).rows(np.array([20, 3]))
    assert logs == pytest.approx(wanted.values[[4, 0]].numpy(), rel=1e-3, abs=1e-3)
    assert (tokens == wanted.indices[[4, 0]].numpy()).mean() > 0.99  # two nearly as likely may change places
    assert told.mass == pytest.approx(float(wanted.values.exp().sum(-1).mean()), rel=1e-3)
    assert (folder / "tokens.npy").stat().st_size < 128 + 5 * 24 * 32 * 2 + 64


def test_what_a_student_makes_smaller_is_smallest_where_it_agrees_with_its_teacher() -> None:
    torch.manual_seed(0)
    teacher_BTV, ids_BT = torch.randn(2, 6, 50), torch.randint(0, 50, (2, 6))
    logs = teacher_BTV.log_softmax(-1)
    top = logs.topk(8)

    def taught(logits_BTV: Any) -> Any:
        came = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
        return taught_loss(logits_BTV, ids_BT, top.indices, top.values) - (1 - TEACHER_SHARE) * came

    mine = teacher_BTV.clone().requires_grad_()
    least = taught(mine)
    least.backward()
    assert float(mine.grad.abs().max()) < 1e-6
    for seed in range(5):
        torch.manual_seed(seed)
        assert taught(teacher_BTV + 0.3 * torch.randn_like(teacher_BTV)) > least


@pytest.mark.parametrize("shape", ["dense 2x256", "moe 2x256 4/2", "moe 1x512 8/8"])
def test_counts_are_those_of_the_class(shape: str) -> None:
    found = student_shape(shape)
    assert isinstance(found, ArmShape)
    config = config_of(found, 1000, 512, {})
    with torch.device("meta"):
        named = transformers.AutoConfig.for_model(**config)
        model = transformers.AutoModelForCausalLM.from_config(named)
    assert sum(each.numel() for each in model.parameters()) == total_params(spec_of(found, 1000, 512))


def test_the_experiment_without_attention_lies_beside_the_student_and_is_told(
    teacher: Path, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--into "hyena 1x256"`: what is proven, as above, is the dense student with this beside it."""
    monkeypatch.setattr(hyena, "run_job", here)
    short = {**hyena.without_attention.__kwdefaults__, "lengths": (64,), "speed_lengths": (64,)}
    monkeypatch.setattr(hyena.without_attention, "__kwdefaults__", short)
    beside: set[str] = set()
    notes: list[str] = []

    def proven(source: Path, taught: Path, student: Student, plan: Any, trained: Distilled, *given: Any) -> None:
        beside.update(each.name for each in (trained.made / hyena.HYENA).iterdir())
        notes.extend(student.notes)
        assert given[3] == ["--into", "hyena 1x256"], "what the command repeats"

    monkeypatch.setattr(course, "proven", proven)
    few = options(steps=8, twin_steps=8)
    course.distill(teacher, "hyena 1x256", documents, tmp_path / "student", words=[], options=few)
    assert beside == set(hyena.LEFT)
    assert any("not exported" in each for each in notes)
    assert [each.split()[:2] for each in notes if each.startswith(("text  ", "copy", "recall"))] == [
        ["text", "64"],
        ["copy", "64"],
        ["recall", "64"],
    ]


def test_the_gpu_script_teaches_from_what_was_carried(teacher: Path, text: Path, tmp_path: Path) -> None:
    """At toy size, on the processor: its sizes are a GPU's, its course is this."""
    told = gpu.carry(teacher, text, tmp_path / "carried", into="dense 1x256", rows=20, tokens=TOKENS, job=here)
    assert teacher.is_dir(), "a directory of the user's stays"
    assert 0 < told.mass <= 1
    parts = gpu.Parts(tmp_path / "carried", text, tmp_path / "out", seconds=None, steps=8, job=here)
    row = parts.ternary()
    assert re.search(
        r"bits a byte over its twin after 8 steps .*: teacher \d\.\d+, student \d\.\d+, twin", row.measured
    )
    assert row.what.startswith("student in two bits of 0.")
    assert "1 languages, logits carried" in row.what
    twin, student = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("ternary-twin", "ternary"))
    assert any(not torch.equal(twin[name], student[name]) for name in twin), "one of them was taught"
