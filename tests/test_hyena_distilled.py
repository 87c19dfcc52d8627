"""`distill --into "hyena 1x256"`: the dense student is proven and served, the one without attention lies beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from breakeven.lab.corpus import Document
from breakeven.lab.training import hyena
from tests import test_distil_torch as toys

documents, teacher, in_this_process = toys.documents, toys.teacher, toys.in_this_process


def test_the_experiment_lies_beside_the_student_and_is_told(
    teacher: Path, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyena, "run_job", toys.here)
    short = {**hyena.without_attention.__kwdefaults__, "lengths": (64,), "speed_lengths": (64,)}
    monkeypatch.setattr(hyena.without_attention, "__kwdefaults__", short)
    out = tmp_path / "student"
    words = ["breakeven", "distill", str(teacher)]
    proof = toys.course.distil(teacher, "hyena 1x256", documents, out, words=words, options=toys.options())
    assert "--into 'hyena 1x256' --steps 16" in proof.command
    assert {each.name for each in (out / hyena.HYENA).iterdir()} == set(hyena.LEFT)
    assert (out / "student.gguf").is_file()
    assert any("not exported" in each for each in proof.caveats)
    assert [each.split()[:2] for each in proof.caveats if each.startswith(("text  ", "copy", "recall"))] == [
        ["text", "64"],
        ["copy", "64"],
        ["recall", "64"],
    ]
