"""Experts are pruned, sorted, added and merged: their bytes are looked at one by one, and the engine runs them."""

from __future__ import annotations

import errno
import hashlib
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

import breakeven
from breakeven.cli.main import dispatch
from breakeven.engines.inside.client import Inside
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bits.importance import measure
from breakeven.lab.corpus import blocks_of, sample
from breakeven.lab.surgery.container import OutTensor, open_gguf, rewrite
from breakeven.lab.surgery.experts import split
from breakeven.lab.surgery.prune import add, merge, order, prune
from breakeven.lab.surgery.stacks import open_stacks
from breakeven.model.parts import MoeFfn
from breakeven.results.lab import ExpertFinding, ExpertScores, Origin, Proof, ScoredLayer
from breakeven.results.store import read
from tests.small_layouts import LAYOUTS
from tests.small_models import small as config

Q = GGMLQuantizationType
E = 8
"""Experts of every small model here."""
PER_EXPERT = ("_exps.", "ffn_gate_inp.weight", "ffn_gate_inp.bias", "exp_probs_b")
TOKENS = list(range(60, 100))


def small(name: str, directory: Path, *, format_name: str = "Q8_0") -> Path:
    """A small model of random weights whose experts differ; where they stand in groups, in two of four."""
    spec = (
        LAYOUTS[name]
        if name in LAYOUTS
        else config(name, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    )
    layers = [
        replace(layer, ffn=replace(layer.ffn, n_groups=2, n_groups_used=1))
        if isinstance(layer.ffn, MoeFfn) and layer.ffn.n_groups > 1
        else layer
        for layer in spec.layers
    ]
    return synthesise(replace(spec, layers=tuple(layers), mtp=None), format_name, directory / f"{name}.gguf")


def scores_of(model: Path, out: Path, score: Sequence[float | None] | None = None, **changes: Any) -> Path:
    """A score file of this model: every layer has the same scores, and as many tokens as they say."""
    stacks = open_stacks(model)
    worth: list[float | None] = list(range(stacks.n_experts)) if score is None else list(score)
    layers = [
        ScoredLayer(
            layer=block,
            tokens=[0 if each is None else int(10 * each) + 1 for each in worth],
            max_over_mean=1.0,
            entropy=1.0,
            score=worth,
        )
        for block in stacks.blocks
    ]
    said = ExpertScores(
        command="breakeven experts score",
        model=Origin(path=str(model), sha256=hashlib.sha256(model.read_bytes()).hexdigest()),
        format="gguf",
        architecture=stacks.source.header.architecture,
        text="guide",
        languages=[],
        n_experts=stacks.n_experts,
        n_experts_per_token=stacks.used,
        layers=layers,
        seconds=1.0,
    )
    out.write_bytes(msgspec.json.encode(msgspec.structs.replace(said, **changes)))
    return out


def by_expert(path: Path, experts: int) -> tuple[dict[str, list[bytes]], dict[str, bytes]]:
    """The bytes of each expert in every tensor that has a part of it, and the bytes of all other tensors."""
    parts, others = {}, {}
    for tensor in open_gguf(path).tensors:
        data = tensor.data.tobytes()
        if any(part in tensor.name for part in PER_EXPERT):
            size = len(data) // experts
            parts[tensor.name] = [data[i * size : (i + 1) * size] for i in range(experts)]
        else:
            others[tensor.name] = data
    return parts, others


def logits(path: Path) -> np.ndarray:
    with Inside(path, threads=1) as inside:
        return inside.logits(TOKENS)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small("qwen3vlmoe", tmp_path_factory.mktemp("moe"))


@settings(max_examples=10)
@given(score=st.lists(st.floats(0, 9), min_size=E, max_size=E), keep=st.integers(2, E - 1))
def test_pruning_keeps_exactly_the_bytes_of_the_best_and_ordering_those_of_all(
    moe: Path, tmp_path_factory: pytest.TempPathFactory, score: list[float], keep: int
) -> None:
    directory = tmp_path_factory.mktemp("moved")
    scores = scores_of(moe, directory / "score.json", score)
    old, old_others = by_expert(moe, E)
    done = prune(moe, directory / "pruned.gguf", keep, scores)
    assert done.file_bytes == (directory / "pruned.gguf").stat().st_size
    new, others = by_expert(directory / "pruned.gguf", keep)
    assert others == old_others
    kept = sorted(sorted(range(E), key=lambda e: (-score[e], e))[:keep])
    assert done.kept == ((*kept,),) * 2
    assert new == {name: [each[e] for e in kept] for name, each in old.items()}

    done = order(moe, directory / "ordered.gguf", scores)
    new, others = by_expert(directory / "ordered.gguf", E)
    assert others == old_others
    assert done.kept is not None
    for place in done.kept:
        assert sorted(place) == list(range(E))
        assert [score[e] for e in place] == sorted(score, reverse=True)
    assert new == {name: [each[e] for e in done.kept[0]] for name, each in old.items()}


KEPT_APART = ("gpt-oss", "deepseek2", "gemma4-moe", "hy_v3", "arctic", "nemotron-latent")
"""Families that each keep other tensors beside their experts: biases, groups, scales, shared experts, no gate."""


@pytest.mark.parametrize("name", KEPT_APART)
def test_the_engine_runs_what_is_pruned_of_every_family(name: str, tmp_path: Path) -> None:
    prune(small(name, tmp_path), tmp_path / "pruned.gguf", 4, None)
    with Inside(tmp_path / "pruned.gguf", threads=1) as inside:
        assert (inside.loaded.n_experts, inside.loaded.n_experts_per_token) == (4, 2)
        assert np.isfinite(inside.logits(TOKENS)).all()


@pytest.mark.parametrize("name", ["qwen3vlmoe", "deepseek2"])
def test_an_order_changes_nothing(name: str, tmp_path: Path) -> None:
    model = small(name, tmp_path)
    order(model, tmp_path / "ordered.gguf", scores_of(model, tmp_path / "score.json", [3, 1, 4, 1.5, 9, 2.5, 6, 5]))
    expected = logits(model)
    # The softmax sums in another order, and activations are rounded to 8 bits after it.
    np.testing.assert_allclose(logits(tmp_path / "ordered.gguf"), expected, atol=0.02 * float(expected.std()))


def test_groups_of_experts_stay_groups(tmp_path: Path) -> None:
    model = small("deepseek2", tmp_path)  # two groups of four, of which one is reached
    scores = scores_of(model, tmp_path / "score.json", [9, 8, 4, 7, 1, 3, 2, 0.5])
    done = prune(model, tmp_path / "pruned.gguf", 4, scores)
    assert done.kept == ((0, 1, 5, 6),) * 2
    assert order(model, tmp_path / "ordered.gguf", scores).kept == ((0, 1, 3, 2, 5, 6, 4, 7),) * 2
    for wrong, said in ((5, "multiple of 2"), (2, "keep 4 or more")):
        with pytest.raises(UserError, match=said):
            prune(model, tmp_path / "x.gguf", wrong, scores)
    with pytest.raises(UserError, match="more than the 2 that a token can reach in 1 of 2 groups"):
        prune(model, tmp_path / "x.gguf", 4, scores, used=3)
    with pytest.raises(NotSupportedError, match="groups of equal size"):
        add(model, tmp_path / "x.gguf", {1: 1})
    with pytest.raises(NotSupportedError, match="groups of equal size"):
        merge(model, tmp_path / "x.gguf", [(0, 1)])


@pytest.mark.parametrize(("name", "exact"), [("glm4moe", True), ("gpt-oss", True), ("qwen3vlmoe", False)])
def test_copies_are_never_chosen_where_a_bias_can_say_so(name: str, exact: bool, tmp_path: Path) -> None:
    model = small(name, tmp_path)
    done = add(model, tmp_path / "more.gguf", {3: 1, 0: 2})
    assert (done.experts, done.same_function) == (E + 3, exact)
    assert done.kept is not None
    assert done.kept[0] == (*range(E), -1, -1, -1)
    old, _ = by_expert(model, E)
    new, _ = by_expert(tmp_path / "more.gguf", E + 3)
    name = next(each for each in old if "ffn_up_exps.weight" in each)
    assert new[name] == [*old[name], old[name][3], old[name][0], old[name][0]]
    expected, more = logits(model), logits(tmp_path / "more.gguf")
    if exact:
        np.testing.assert_allclose(more, expected, atol=1e-3 * float(expected.std()))
    else:
        assert "answers moved" in done.caveats[0]
        assert float(np.abs(more - expected).max()) > 0.05 * float(expected.std())


def test_merged_experts_are_the_mean_weighted_by_their_tokens(tmp_path: Path) -> None:
    model = small("qwen3vlmoe", tmp_path, format_name="F16")
    scores = scores_of(model, tmp_path / "score.json", [0.2, 1, 1, 1, 1, 0.8, 1, 1])  # 3 tokens against 9
    done = merge(model, tmp_path / "merged.gguf", [(5, 0)], scores)
    assert (done.experts, done.same_function, done.kept) == (7, False, ((-1, 1, 2, 3, 4, 6, 7),) * 2)
    assert done.requantized is not None
    assert done.requantized < 1e-3
    old = {t.name: t.data for t in GGUFReader(model).tensors}
    new = {t.name: t.data for t in GGUFReader(tmp_path / "merged.gguf").tensors}
    for name in ("blk.1.ffn_down_exps.weight", "blk.0.ffn_gate_inp.weight"):
        mean = 0.25 * old[name][0].astype(np.float32) + 0.75 * old[name][5].astype(np.float32)
        np.testing.assert_allclose(new[name][0].astype(np.float32), mean, atol=1e-3)
        np.testing.assert_array_equal(new[name][1:], old[name][[1, 2, 3, 4, 6, 7]])
    assert np.isfinite(logits(tmp_path / "merged.gguf")).all()


def uneven(source: Path, out: Path) -> Path:
    """A dense model in F32 whose neurons matter very differently, in no order."""
    reader, rng = open_gguf(source), np.random.default_rng(0)
    tensors = []
    for tensor in reader.tensors:
        stored = tensor.data.view(np.float32) if tensor.kind == Q.F32 else tensor.data
        values = dequantize(stored, tensor.kind).reshape(tensor.dims[::-1])
        if "ffn_down" in tensor.name:
            values = values * rng.lognormal(0.0, 1.5, tensor.dims[0]).astype(np.float32)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        tensors.append(OutTensor(tensor.name, tensor.dims, Q.F32, data.nbytes, partial(iter, (data,))))
    rewrite(reader, out, {}, tensors)
    return out


def test_the_coldest_expert_of_a_split_by_importance_is_missed_least(tmp_path: Path) -> None:
    dense = uneven(synthesise(config("llama", num_hidden_layers=2), "Q8_0", tmp_path / "d.gguf"), tmp_path / "e.gguf")
    squares = measure(dense, blocks_of(sample()), most_tokens=1024).mean_squares
    by_importance = split(dense, tmp_path / "sorted.gguf", 8, squares=squares)
    assert (by_importance.same_function, by_importance.requantized) == (True, None)  # F32: columns move as bytes
    split(dense, tmp_path / "plain.gguf", 8)
    with pytest.raises(NotSupportedError, match="parts of one feed-forward"):
        add(tmp_path / "plain.gguf", tmp_path / "x.gguf", {1: 1})
    with pytest.raises(NotSupportedError, match="parts of one feed-forward"):
        merge(tmp_path / "plain.gguf", tmp_path / "x.gguf", [(1, 2)])
    expected = logits(dense)
    np.testing.assert_allclose(logits(tmp_path / "sorted.gguf"), expected, atol=2e-3 * float(expected.std()))
    lost = {}
    for name in ("sorted", "plain"):
        done = prune(tmp_path / f"{name}.gguf", tmp_path / f"{name}-7.gguf", 7, None)
        assert done.used == 7
        assert "7/8" in done.caveats[0]
        lost[name] = _kl(expected, logits(tmp_path / f"{name}-7.gguf"))
    assert 0 < lost["sorted"] < 0.1 * lost["plain"]


def test_a_split_is_pruned_again_and_again_to_any_number_that_runs(tmp_path: Path) -> None:
    dense = synthesise(config("llama", num_hidden_layers=2), "F16", tmp_path / "dense.gguf")
    split(dense, tmp_path / "8.gguf", 8)
    prune(tmp_path / "8.gguf", tmp_path / "7.gguf", 7, None, used=4)
    done = prune(tmp_path / "7.gguf", tmp_path / "5.gguf", 5, None, used=3)
    assert "down is multiplied by 3/4" in done.caveats[0]
    # Each of the three that run weighs 1/3, so each holds three times its columns of the dense matrix.
    down = {tensor.name: tensor.data for tensor in GGUFReader(dense).tensors}["blk.1.ffn_down.weight"]
    downs = {tensor.name: tensor.data for tensor in GGUFReader(done.out).tensors}["blk.1.ffn_down_exps.weight"]
    width = down.shape[1] // 8
    for expert in range(5):
        mine = down[:, expert * width : (expert + 1) * width].astype(np.float32)
        np.testing.assert_allclose(downs[expert].astype(np.float32), 3 * mine, rtol=2e-3, atol=1e-6)
    # Equal experts are chosen by their places, so other places are another function.
    ordered = order(done.out, tmp_path / "o.gguf", scores_of(done.out, tmp_path / "s.json", [1, 2, 3, 4, 5]))
    assert not ordered.same_function
    for act in (
        lambda: add(done.out, tmp_path / "x.gguf", {1: 1}),
        lambda: merge(done.out, tmp_path / "x.gguf", [(1, 2)]),
    ):
        with pytest.raises(NotSupportedError, match="parts of one feed-forward"):
            act()


def test_a_split_by_importance_that_cannot_be_is_refused_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = synthesise(config("llama", num_hidden_layers=2), "Q8_0", tmp_path / "dense.gguf")

    def measuring(*_: object) -> None:
        raise AssertionError("it measured first")

    monkeypatch.setattr("breakeven.lab.surgery.surgery.important", measuring)
    for options, out, said in (
        ({"experts": 7}, "x.gguf", "cannot be cut into 7 experts"),
        ({"experts": 8, "used": 9}, "x.gguf", "from 1 to 8"),
        ({"experts": 8, "down": "Q9"}, "x.gguf", "no such format"),
        ({"experts": 8}, "x", r"ends in \.gguf"),
        ({"experts": 8}, "dense.gguf", "is the model itself"),
    ):
        with pytest.raises(UserError, match=said):
            breakeven.experts.split(dense, tmp_path / out, by="importance", **options)


@pytest.mark.parametrize(("format_name", "experts", "most"), [("Q4_1", 8, 0.1), ("Q8_0", 4, 0.01), ("Q4_K_S", 2, 0.1)])
def test_a_split_by_importance_of_quantized_weights_says_what_it_moved(
    format_name: str, experts: int, most: float, tmp_path: Path
) -> None:
    dense = synthesise(config("llama", num_hidden_layers=2), format_name, tmp_path / "dense.gguf")
    rng = np.random.default_rng(0)
    squares = {f"blk.{layer}.ffn_down.weight": rng.random((1, 512), dtype=np.float32) for layer in range(2)}
    done = split(dense, tmp_path / "a.gguf", experts, squares=squares)
    assert not done.same_function
    assert done.requantized is not None
    assert 0.001 < done.requantized < most
    assert "encoded anew" in done.caveats[0]
    # Rows of gate and up are the same bytes in another order; columns of down the same weights, nearly.
    old, new = ({tensor.name: tensor for tensor in open_gguf(path).tensors} for path in (dense, tmp_path / "a.gguf"))
    gate, gates = old["blk.1.ffn_gate.weight"].data.reshape(512, -1), new["blk.1.ffn_gate_exps.weight"].data
    place = {row.tobytes(): number for number, row in enumerate(gate)}
    moved = [place[row.tobytes()] for row in gates.reshape(512, -1)]
    assert sorted(moved) == list(range(512))
    down, downs = old["blk.1.ffn_down.weight"], new["blk.1.ffn_down_exps.weight"]
    before = dequantize(down.data.reshape(256, -1), down.kind)[:, moved]
    after = np.concatenate(list(dequantize(downs.data.reshape(experts, 256, -1), downs.kind)), axis=1) / experts
    norms = np.square(before).mean(axis=0) ** 0.5 * squares["blk.1.ffn_down.weight"][0, moved]
    assert (np.diff(norms) <= 1e-6 * norms[0]).all()
    assert float(np.sqrt(np.square(after - before).sum() / np.square(before).sum())) < 1.5 * done.requantized
    if format_name == "Q4_1":
        finer = split(dense, tmp_path / "c.gguf", experts, squares=squares, down="q8_0")
        assert finer.requantized is not None
        assert finer.requantized < 0.5 * done.requantized
        kinds = {tensor.name: tensor.kind for tensor in open_gguf(tmp_path / "c.gguf").tensors}
        assert (kinds["blk.0.ffn_down_exps.weight"], kinds["blk.0.ffn_up_exps.weight"]) == (Q.Q8_0, Q.Q4_1)
        assert np.isfinite(logits(tmp_path / "c.gguf")).all()
        with pytest.raises(UserError, match="no such format"):
            split(dense, tmp_path / "b.gguf", experts, squares=squares, down="Q9")
    del squares["blk.1.ffn_down.weight"]
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down.*this very file"):
        split(dense, tmp_path / "b.gguf", experts, squares=squares)
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda model, out: prune(model, out, 1, None), "2 experts run for each token, more than the 1 there"),
        (lambda model, out: prune(model, out, 8, None), "give 1 to 7"),
        (lambda model, out: prune(model, out, 0, None), "give 1 to 7"),
        (lambda model, out: prune(model, out, 4, None, 5), "--used 4 or fewer"),
        (lambda model, out: prune(model, out, 4, None, 0), "from 1 to 4"),
        (lambda model, out: add(model, out, {8: 1}), "there is no expert 8; give numbers from 0 to 7"),
        (lambda model, out: add(model, out, {2: 0}), "count of 1 or more"),
        (lambda model, out: add(model, out, {2: 1020}), "limit of 1024"),
        (lambda model, out: merge(model, out, [(2, 9)]), "there is no expert 9"),
        (lambda model, out: merge(model, out, [(2, 2)]), "each in one pair"),
        (lambda model, out: merge(model, out, [(0, 1), (1, 2)]), "each in one pair"),
        (lambda model, out: merge(model, out, [(0, 1), (2, 3), (4, 5), (6, 7)], used=5), "--used 4 or fewer"),
    ],
)
def test_experts_that_do_not_exist_and_numbers_that_do_not_fit_are_refused(
    moe: Path, tmp_path: Path, act: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        act(moe, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_scores_of_another_model_are_refused(moe: Path, tmp_path: Path) -> None:
    other = synthesise(LAYOUTS["qwen3vlmoe"], "Q8_0", tmp_path / "other.gguf", seed=1)
    out, scores = tmp_path / "x.gguf", tmp_path / "score.json"
    scores_of(other, scores)
    with pytest.raises(UserError, match=r"other\.gguf, whose bytes are not"):
        prune(moe, out, 4, scores)
    scores_of(moe, scores, n_experts=16)
    with pytest.raises(UserError, match="of a model of 16 experts, this one has 8"):
        order(moe, out, scores)
    layers = msgspec.json.decode(scores_of(moe, scores).read_bytes(), type=ExpertScores).layers
    moved = [msgspec.structs.replace(layer, layer=layer.layer + 5) for layer in layers]
    with pytest.raises(UserError, match="routes in layer 5"):
        order(moe, out, scores_of(moe, scores, layers=moved))
    with pytest.raises(UserError, match="says nothing of layer 1"):
        prune(moe, out, 4, scores_of(moe, scores, layers=layers[:1]))
    short = [msgspec.structs.replace(layers[0], tokens=[1, 2]), *layers[1:]]
    shorter = [layers[0], msgspec.structs.replace(layers[1], score=[1.0] * 7)]
    for wrong, layer, count in ((short, 0, 2), (shorter, 1, 7)):
        for act in (lambda path: prune(moe, out, 4, path), lambda path: order(moe, out, path)):
            with pytest.raises(UserError, match=f"layer {layer} tells of {count} experts, the model has 8"):
                act(scores_of(moe, scores, layers=wrong))
    loads = [msgspec.structs.replace(layer, score=None) for layer in layers]
    with pytest.raises(UserError, match="--by load"):
        prune(moe, out, 4, scores_of(moe, scores, layers=loads))
    assert prune(moe, out, 4, scores, by="load").kept == ((4, 5, 6, 7),) * 2
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(UserError):
        prune(moe, out, 4, tmp_path / "no.json")


def test_what_the_scores_warn_of_is_said(moe: Path, tmp_path: Path) -> None:
    needed = ExpertFinding(layer=1, expert=2, kind="one language", language="de", text="")
    scores = scores_of(moe, tmp_path / "score.json", [3, 1, 0.5, None, 9, 2.5, 6, 5], findings=[needed])
    done = prune(moe, tmp_path / "x.gguf", 6, scores)
    assert done.kept == ((0, 1, 4, 5, 6, 7),) * 2
    assert "layer 1 loses expert 2, which de needs" in done.caveats
    assert any(caveat.startswith("2 of the experts dropped saw no token") for caveat in done.caveats)


def test_other_ways_to_keep_experts_are_refused_and_so_is_a_dense_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"is a dense model.*experts split"):
        prune(smollm2_gguf, tmp_path / "x.gguf", 4, None)
    grove = synthesise(LAYOUTS["grovemoe"], "Q8_0", tmp_path / "grove.gguf")
    with pytest.raises(NotSupportedError, match="shared by groups of experts"):
        prune(grove, tmp_path / "x.gguf", 4, None)
    assert not (tmp_path / "x.gguf").exists()


def test_a_full_disk_leaves_nothing_half_written(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"needs .* free some space"):
            prune(moe, tmp_path / "x.gguf", 4, None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("breakeven.lab.surgery.container._write_tensor", full)
    with pytest.raises(BreakevenError, match="filled up while writing"):
        prune(moe, tmp_path / "x.gguf", 4, None)
    assert list(tmp_path.iterdir()) == []


def _kl(expected: np.ndarray, got: np.ndarray) -> float:
    """Mean over tokens of KL(expected || got), in nats."""

    def log_softmax(values: np.ndarray) -> np.ndarray:
        shifted: np.ndarray = values.astype(np.float64) - values.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return shifted

    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_what_is_made_lies_beside_its_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    little = config("llama", num_hidden_layers=1, hidden_size=64, num_attention_heads=1, num_key_value_heads=1)
    dense = uneven(synthesise(little, "Q8_0", tmp_path / "d.gguf"), tmp_path / "e.gguf")
    words = ["experts", "split", str(dense), "--experts", "8", "--by", "importance", "--out", str(tmp_path / "s.gguf")]
    assert dispatch([*words, "--json"]) == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert proof == read(tmp_path / "s.proof.json", Proof)
    assert shlex.split(proof.command) == ["breakeven", *words]
    assert [check.name for check in proof.checks] == ["loads and predicts", "same function"]
    assert all(check.passed for check in proof.checks)
    assert proof.checks[1].kl is not None
    assert proof.checks[1].kl.value <= 1e-6
    assert "built-in sample" in proof.caveats[0]

    done = breakeven.experts.prune(tmp_path / "s.gguf", tmp_path / "p.gguf", 6, first=True)
    assert done.proof == read(tmp_path / "p.proof.json", Proof)
    assert done.proof is not None
    assert (done.proof.artefact.bytes, done.proof.artefact.format) == (done.file_bytes, "F32")
    assert done.proof.experts is not None
    assert done.proof.experts.kept == [list(range(6))]
    assert shlex.split(done.proof.command)[1:-1] == [
        *("experts", "prune", str(tmp_path / "s.gguf"), "--keep", "6", "--first", "--out")
    ]


def test_what_fails_its_proof_is_not_left(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise BreakevenError("x.gguf was not kept")

    monkeypatch.setattr("breakeven.lab.surgery.surgery.prove", failing)
    with pytest.raises(BreakevenError, match="not kept"):
        breakeven.experts.prune(moe, tmp_path / "x.gguf", 4, first=True)
    wrong_options: list[tuple[dict[str, Any], str]] = [
        ({"first": True, "scores": tmp_path / "a.json"}, "--scores FILE"),
        ({}, "--first to keep the first"),
        ({"first": True, "by": "size"}, "by score or by load"),
    ]
    for options, said in wrong_options:
        with pytest.raises(UserError, match=said):
            breakeven.experts.prune(moe, tmp_path / "x.gguf", 4, **options)
    (tmp_path / "short.txt").write_text("Too little to tell anything by.")
    with pytest.raises(UserError, match="too few for an interval"):
        breakeven.experts.prune(moe, tmp_path / "x.gguf", 4, first=True, text=tmp_path / "short.txt")
    (tmp_path / "short.txt").unlink()
    with pytest.raises(UserError, match="is the model itself"):
        breakeven.experts.add(moe, moe, {1: 1})
    with pytest.raises(UserError, match=r"ends in \.gguf"):
        breakeven.experts.add(moe, tmp_path / "x", {1: 1})
    for wrong in ("3", "3:x", "3:1,"):
        with pytest.raises(UserError, match="give numbers such as 3:1"):
            dispatch(["experts", "add", str(moe), "--copies", wrong, "--out", str(tmp_path / "x.gguf")])
    assert list(tmp_path.iterdir()) == []
