"""Rows of the benchmarks' table, as bench/lab prints them: what was missed says so."""

from __future__ import annotations

import gzip
import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lab_report_fixtures import distilled, evaluation, retrained, trained

import breakeven
from bench.lab.gpu import phone_book
from bench.lab.learned import (
    HEAD_LINES,
    LANGUAGES,
    ROWS,
    Bench,
    distilled_row,
    heading,
    retrained_row,
    rows_of,
    trained_row,
    tuned_row,
)
from breakeven.results import store
from breakeven.results.lab import LabCheck, Proof
from breakeven.stats.estimate import measured
from tests.test_train import made_study


def with_checks(proof: Proof, served: float = 3e-8) -> Proof:
    checks = [
        LabCheck(name="same predictions", engine="transformers", passed=True, kl=measured(served, None, None, 9)),
        LabCheck(name="not the base", engine="llama.cpp", passed=True, kl=measured(0.3, None, None, 9)),
        LabCheck(name="all else as it was", engine="breakeven", passed=True, detail="50 tensors bit for bit"),
    ]
    return msgspec.structs.replace(proof, checks=checks)


def test_a_row_says_what_was_promised_and_what_was_missed() -> None:
    proof = with_checks(trained())
    by = {part.language: part for part in proof.slices}
    german = msgspec.structs.replace(proof, slices=[by["de"]])
    row = tuned_row("LoRA, German", german)
    assert row.line().startswith(
        "| LoRA, German, 171 s of training | improves, interval without 0; served KL at most 1e-06 | "
    )
    assert "bits a byte, -0.305 (-0.360 to -0.250); served KL 3e-08, the base 0.30 away" in row.measured
    assert row.how == proof.command
    assert "missed" not in row.measured
    assert tuned_row("", with_checks(german, 1e-5)).measured.startswith("**missed**: ")
    assert tuned_row("", msgspec.structs.replace(proof, slices=[by["en"]])).measured.startswith("**missed**: ")

    row = distilled_row(distilled(), 300.0)
    assert row.measured.startswith(
        "**missed**: +0.020 (-0.030 to +0.070) bits a byte over the twin at equal seconds, +0.115"
    )
    assert row.measured.endswith("5.0 min in all")
    assert distilled_row(distilled(), None).measured.endswith("time not measured")

    row = retrained_row(with_checks(retrained()), "de")
    assert row.measured.startswith("**missed**: de -0.305"), "French got surely worse"
    assert row.measured.endswith("50 tensors bit for bit")

    row = trained_row(made_study())
    assert row.measured.startswith("moe-8-2 better: -0.080 (-0.110 to -0.050) nats a token; dense-again no difference")
    assert "moe-8-2's busiest expert 1.60 (1.50 to 1.70) of the mean, 1 dead; 9.8 min" in row.measured
    again = msgspec.structs.replace(made_study().arms[2], verdict="worse")
    other = msgspec.structs.replace(made_study(), arms=[*made_study().arms[:2], again])
    assert trained_row(other).measured.startswith("**missed**: ")
    assert heading("H200").endswith(", H200.\n\n| what | promised | measured | how |\n|---|---|---|---|")


def test_a_phone_book_is_read_out_in_other_orders_and_says_one_number_a_name() -> None:
    lines = phone_book(50, 4).splitlines()
    assert set(Counter(lines).values()) == {4}
    assert len({line.split()[0] for line in lines}) == len(set(lines)) == 50
    assert lines[:50] != lines[50:100]
    assert phone_book(50, 4) == phone_book(50, 4)


def test_every_row_asks_for_what_the_verbs_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs are stood in for by their signatures: what is trained takes an hour."""
    guide = tmp_path / "guide"
    for language in LANGUAGES:
        (guide / language).mkdir(parents=True)
        with gzip.open(guide / language / f"install.{language}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("".join(f"{language} {number}\n" for number in range(HEAD_LINES + 2)))
    asked: list[str] = []

    def stands_in(owner: Any, name: str, result: Any, makes: Callable[[Path], None] = lambda out: None) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            given = inspect.signature(real).bind(*args, **named).arguments
            asked.append(name)
            for word in ("text", "replay"):
                assert word not in given or Path(given[word]).is_dir()
            if "out" in given:
                makes(Path(given["out"]))
            return result

        monkeypatch.setattr(owner, name, call)

    def rounded(out: Path) -> None:
        out.mkdir()
        (out / "student-TQ2_0.gguf").touch()

    def directory(out: Path) -> None:
        out.mkdir()
        store.write(with_checks(distilled()), out / "proof.json")

    def bench_of(name: str) -> Any:
        return next(each for each in evaluation().models if each.name.startswith(name))

    served = LabCheck(name="served as trained", engine="llama.cpp", passed=True, detail="KL 1e-05, at most 2e-05")
    proof = with_checks(retrained())
    stands_in(breakeven, "tune", with_checks(trained()))
    stands_in(breakeven, "distill", msgspec.structs.replace(distilled(), checks=[served]), directory)
    stands_in(breakeven, "quantize", [distilled()], rounded)
    few = [bench_of("Q8_0"), bench_of("Q4_0"), bench_of("Q4_K")]
    stands_in(breakeven, "evaluate", msgspec.structs.replace(evaluation(), models=few))
    stands_in(breakeven, "train", made_study())
    stands_in(breakeven.experts, "split", None)
    stands_in(breakeven.experts, "retrain", proof)
    rows = list(rows_of(Bench(tmp_path / "smollm2.gguf", guide, tmp_path / "out"), ROWS))
    assert asked == ["tune", "split", "tune", "distill", "distill", "quantize", "evaluate", "train", "train", "retrain"]
    assert [row.line().count(" | ") for row in rows] == [3] * len(ROWS)
    told = "0.893 bits a byte trained, 0.946 rounded, 0.880 in F32; KL 1e-05, at most 2e-05"
    assert rows[3].measured == told
    learned = (tmp_path / "out/long/de/guide.txt").read_text()
    assert learned == f"de {HEAD_LINES}\nde {HEAD_LINES + 1}\n"
