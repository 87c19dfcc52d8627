"""Rows of the benchmarks' table, as bench/lab prints them: what was missed says so."""

from __future__ import annotations

from collections import Counter

import msgspec
from lab_report_fixtures import distilled, retrained, trained

from bench.lab.gpu import phone_book
from bench.lab.learned import distilled_row, heading, retrained_row, trained_row, tuned_row
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
