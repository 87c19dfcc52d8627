"""`evaluate` on real engines: the arithmetic against doubles, figures by language, refusals, a budget, and memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_fixtures import quantized, texts, toy

import breakeven
from breakeven.engines.inside.client import Inside
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.corpus import LEAST_BLOCKS, Block, Document, blocks_of, in_turn, read_documents, sample
from breakeven.lab.evaluate import evaluate
from breakeven.lab.facts import batch_that_fits, facts_of, sha256_of
from breakeven.lab.lockstep import LoadedModel, Lockstep, Scored, Scores
from breakeven.results.lab import Evaluation
from breakeven.stats.intervals import quotient_estimate
from breakeven.stats.percentiles import percentile_of_blocks
from tests.cli_fixtures import is_alive, run_here


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dense models of one vocabulary, one with experts, and texts in two languages."""
    folder = tmp_path_factory.mktemp("toys")
    toy(folder / "a.gguf")
    toy(folder / "b.gguf", seed=1)
    quantized(folder / "a.gguf", folder / "q.gguf")
    toy(folder / "moe.gguf", "mixtral")
    texts(folder / "texts")
    return folder


def test_scores_are_those_of_the_logits_in_double_precision(toys: Path) -> None:
    paths = [toys / "a.gguf", toys / "b.gguf"]
    with Lockstep([Scored(path) for path in paths], 1, batch=64) as lock:
        tokens = lock.tokenize(0, (toys / "texts/en/text-0.txt").read_text()[:300])
        scores = lock.score(tokens, [(0, 1), (0, 0), (1, 0)])
        assert lock.text_of(0, tokens).strip().startswith((toys / "texts/en/text-0.txt").read_text()[:200].strip())
    logs = []
    for path in paths:
        with Inside(path) as inside:
            x_TV = inside.logits(tokens).astype(np.float64)[:-1]
        logs.append(x_TV - np.log(np.exp(x_TV).sum(axis=1, keepdims=True)))
    came = np.array(tokens[1:])
    for row, log_TV in enumerate(logs):
        # Attention keeps 16 bits of keys and values, so another batch is another rounding.
        assert np.allclose(scores.nats[row], -log_TV[np.arange(len(came)), came], atol=5e-3)
        assert (scores.likeliest[row] == log_TV.argmax(axis=1)).mean() > 0.97
    kl_T = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    assert np.allclose(scores.kl[0], kl_T, rtol=0.02, atol=1e-3)
    assert np.abs(scores.kl[1]).max() < 1e-6
    assert scores.agree[1].all()
    assert (scores.agree[0] == (scores.likeliest[0] == scores.likeliest[1])).all()


def test_a_model_stands_off_itself_by_its_rounding(toys: Path) -> None:
    with Lockstep([Scored(toys / "a.gguf"), Scored(toys / "q.gguf")], 1) as lock:
        tokens = lock.tokenize(0, (toys / "texts/de/text-0.txt").read_text()[:400])
        floor = lock.score(tokens, small_batches=True).floor
        assert floor is not None
        assert lock.score(tokens).floor is None
        words = lock.generate(0, tokens[:20], 5)
    with Inside(toys / "a.gguf") as inside:
        assert inside.greedy(tokens[:20], 5) == words
    single, rounded = floor.mean(axis=1)
    assert abs(single) < 1e-5
    assert rounded > 10 * abs(single)


def test_an_evaluation_has_each_language_paired_with_the_source(toys: Path, tmp_path: Path) -> None:
    saved = tmp_path / "evaluation.json"
    done = run_here(
        "evaluate", str(toys / "q.gguf"), str(toys / "b.gguf"), "--against", str(toys / "a.gguf"),
        "--text", str(toys / "texts"), "--out", str(saved), "--threads", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=Evaluation)
    assert msgspec.json.decode(saved.read_bytes(), type=Evaluation) == result
    assert result.against == "a"
    source, near, far = result.models
    assert [model.name for model in result.models] == ["a", "q", "b"]
    assert near.sha256 == sha256_of(toys / "q.gguf")
    assert (near.format, source.experts_per_token) == ("Q8_0", None)
    assert near.bits_per_weight is not None
    assert 8.4 < near.bits_per_weight < 9
    for model in result.models:
        assert [part.language for part in model.slices] == ["de", "en"]
        for part in model.slices:
            assert part.blocks == part.documents == 6
            assert 900 < part.bytes < 2500
            estimate = part.bits_per_byte
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low < estimate.value < estimate.high
    for part, other, own in zip(near.slices, far.slices, source.slices, strict=True):
        assert own.kl is None
        assert own.kl_floor is not None
        assert part.kl is not None
        assert other.kl is not None
        assert other.difference is not None
        assert part.top1 is not None
        assert part.kl_floor is not None
        assert part.kl.value < 0.1 * other.kl.value
        assert part.source_bits_per_byte == own.bits_per_byte
        assert math.isclose(other.difference.value, other.bits_per_byte.value - own.bits_per_byte.value, abs_tol=1e-9)
        assert part.top1.value > 0.8
        assert part.kl_p99 is None or part.kl_p99.value > part.kl.value
    shown = run_here("evaluate", str(toys / "a.gguf"), "--text", str(toys / "texts"), "--threads", "1", "--quiet")
    assert shown.returncode == 0, shown.stderr
    assert "German" in shown.stdout


def test_fewer_experts_are_another_model_of_the_same_file(toys: Path) -> None:
    result = breakeven.evaluate([toys / "moe.gguf"], toys / "texts/en", threads=1, used=[8, 2, 1])
    assert [(model.name, model.experts_per_token) for model in result.models] == [
        ("moe", 2), ("moe (8 of 8)", 8), ("moe (1 of 8)", 1),
    ]  # fmt: skip
    assert result.against == "moe"
    for model in result.models[1:]:
        kl = model.slices[0].kl
        assert kl is not None
        assert kl.value > 1e-5
    for used, said in (([9], r"--used 9: moe has 8 experts"), ([0], r"--used 0")):
        with pytest.raises(UserError, match=said):
            breakeven.evaluate([toys / "moe.gguf"], toys / "texts/en", threads=1, used=used)
    with pytest.raises(UserError, match=r"--used: a is dense"):
        breakeven.evaluate([toys / "a.gguf"], toys / "texts/en", threads=1, used=[2])


def test_the_real_model_knows_english_best_and_other_tokenizers_are_compared_by_bytes(
    toys: Path, smollm2_gguf: Path
) -> None:
    # Six short blocks are enough to be one language's slice, so that this costs seconds.
    documents = [
        Document(each.language, "all", str(i), part)
        for each in sample()
        if each.language in ("en", "de")
        for i, part in enumerate(each.text[start : start + 170] for start in range(0, 1000, 170))
    ]
    result = evaluate([smollm2_gguf, toys / "a.gguf"], documents, threads=1, command="a test")
    bits = {part.language: part.bits_per_byte.value for part in result.models[0].slices}
    assert 0.8 < bits["en"] < 1.9
    assert bits["de"] > 1.2 * bits["en"]
    assert all(part.bits_per_byte.value > 4 for part in result.models[1].slices)
    assert all(part.kl is None for model in result.models for part in model.slices)
    with pytest.raises(NotSupportedError, match=r"different tokenizers \(1,024 against 49,152 words\).*GOLD"):
        evaluate([toys / "a.gguf"], documents, against=smollm2_gguf, threads=1, command="a test")


def test_a_budget_reads_every_language_and_says_how_much(toys: Path) -> None:
    documents = read_documents(texts(toys / "long", files=400))
    result = evaluate([toys / "a.gguf"], documents, budget_s=1.0, threads=1, command="a test")
    read = {part.language: part.blocks for part in result.models[0].slices}
    assert abs(read["de"] - read["en"]) <= 1
    assert 0 < read["de"] < 400
    assert any("of the text was read" in said for said in result.caveats)
    short = evaluate([toys / "a.gguf"], documents, budget_s=1e-9, threads=1, command="a test")
    assert {part.blocks for part in short.models[0].slices} == {LEAST_BLOCKS}, "an interval's, whatever the budget"


def test_blocks_are_read_in_turn_and_spread_over_their_text() -> None:
    assert sorted(in_turn([Block("en", "all", "a", "x")] * 11)) == list(range(11))
    assert in_turn([Block("en", "all", "a", "x")] * 8) == [0, 4, 2, 6, 1, 5, 3, 7]
    blocks = [Block(language, "all", "a", "x") for language in ("en",) * 4 + ("de",) * 2]
    assert in_turn(blocks) == [0, 4, 2, 5, 1, 3]


def test_memory_is_predicted_before_anything_is_loaded(toys: Path) -> None:
    facts = facts_of(toys / "moe.gguf")
    assert (facts.n_experts, facts.n_experts_per_token, facts.n_vocab) == (8, 2, 1024)
    assert facts.cache_bytes_per_token == 2 * 2 * 128 * 2
    whole = facts.in_memory_bytes + 2050 * facts.cache_bytes_per_token
    assert batch_that_fits([facts], 2050, 256, small=False, free_bytes=whole + 256 * 8192) == 256
    assert batch_that_fits([facts], 2050, 256, small=False, free_bytes=whole + 100 * 8192) == 64
    with pytest.raises(UserError, match=r"the 3 models need about .* are free; evaluate two at a time"):
        batch_that_fits([facts] * 3, 2050, 256, small=True, free_bytes=whole)


class Windows(Lockstep):
    """A model of few positions, whose score of a token is the token; it keeps what it was given."""

    def __init__(self, n_positions: int) -> None:
        self.loaded = [LoadedModel(engine="none", n_vocab=9, n_positions=n_positions)]
        self.seen: list[list[int]] = []

    def score(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Scores:
        self.seen.append(list(tokens))
        came = np.array([tokens[1:]], np.float32)
        none = np.zeros((0, len(tokens) - 1), np.float32)
        return Scores(came, came.astype(np.int32), none, none.astype(np.bool_), None, (1.0,))


@given(st.integers(4, 80), st.integers(5, 24), st.integers(0, 3))
def test_every_window_of_a_long_text_begins_as_texts_do(length: int, limit: int, lead: int) -> None:
    tokens = list(range(100, 100 + length))
    lock = Windows(limit)
    scores = lock.score_all(tokens, lead=lead)
    assert scores.nats[0].tolist() == tokens[1:], "each token once"
    assert all(len(seen) <= limit and seen[:lead] == tokens[:lead] for seen in lock.seen)
    assert scores.seconds == (len(lock.seen),)


def test_a_graph_has_no_other_number_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_local_experts": 8, "num_experts_per_tok": 2}))
    (tmp_path / "model.onnx").write_bytes(bytes(400))
    with pytest.raises(UserError, match=r"--used: .* is an ONNX graph, which fixes its experts a token"):
        evaluate([tmp_path], sample() * 6, used=[8, 6], command="a test")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.gguf"], "gone.gguf: cannot be read"),
        (["texts"], "no config.json"),
        (["texts/en/text-0.txt"], "is not a GGUF file"),
        (["a.gguf", "a.gguf"], "is given twice"),
        (["a.gguf", "--used", "two"], "whole numbers"),
        (["a.gguf", "--budget", "soon"], "--budget"),
        (["a.gguf", "--text", "short.txt"], "too few for an interval"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, toys: Path) -> None:
    (toys / "short.txt").write_text("Too short. " * 20)
    given = words if "--text" in words else [*words, "--text", "texts"]
    done = run_here("evaluate", *given, cwd=toys)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_damaged_weights_are_named(toys: Path, tmp_path: Path) -> None:
    data = bytearray((toys / "a.gguf").read_bytes())
    data[-200_000:] = b"\xff" * 200_000
    (tmp_path / "bad.gguf").write_bytes(bytes(data))
    done = run_here("evaluate", str(tmp_path / "bad.gguf"), "--text", str(toys / "texts"), "--threads", "1", "--quiet")
    assert done.returncode == 1
    assert "no number" in done.stderr


def test_interrupted_it_ends_with_its_child(toys: Path) -> None:
    texts(toys / "long", files=400)
    command = [
        sys.executable,
        "-m",
        "breakeven.cli",
        "evaluate",
        "a.gguf",
        "--text",
        "long",
        "--threads",
        "1",
        "--quiet",
    ]

    def heard() -> None:
        """Whoever runs the tests in the background ignores the signal, and children inherit that."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    run = subprocess.Popen(command, cwd=toys, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while not children and time.monotonic() < deadline:
        time.sleep(0.05)
        children = psutil.Process(run.pid).children()
    assert children
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    # Interrupted while it starts the child, it leaves the end to the child itself, which is first done importing.
    deadline = time.monotonic() + 60
    while (left := [child for child in children if is_alive(child)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_quotients_of_any_sign_and_percentiles_of_blocks_hold_what_they_promise() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        under = rng.integers(300, 600, 12).astype(float)
        over = 0.01 * under + rng.normal(0, 0.05 * under)
        estimate = quotient_estimate([over], [under])
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0.01 <= estimate.high
    assert held >= 180
    values = [rng.exponential(1.0, 200) for _ in range(10)]
    found = percentile_of_blocks(values, 99.0)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 4.6 < found.high
    assert percentile_of_blocks([rng.exponential(1.0, 50)], 99.0) is None


def test_what_json_prints_is_the_contract(toys: Path) -> None:
    done = run_here("evaluate", str(toys / "a.gguf"), "--text", str(toys / "texts/en"), "--threads", "1", "--json")
    printed = json.loads(done.stdout)
    assert printed["schema"] == "breakeven.evaluate/1"
    assert printed["command"].startswith("breakeven evaluate ")
    (part,) = printed["models"][0]["slices"]
    assert (part["language"], part["domain"], part["kl"]) == ("all", "all", None)
    assert part["bits_per_byte"]["provenance"] == "measured"
    assert len(blocks_of(read_documents(toys / "texts/en"))) == part["blocks"]
