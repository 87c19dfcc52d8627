"""Quantizing: codecs against the gguf package, importance against arithmetic, honest names, and nothing half."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf import quants as reference
from inside_fixtures import PROSE, decoded_shallow_copy
from small_models import small

from breakeven.engines.inside.client import Inside, trace
from breakeven.engines.synthesis.write import synthesise
from breakeven.errors import BreakevenError, UserError
from breakeven.lab import facts
from breakeven.lab.bits import quantize as subject
from breakeven.lab.bits.formats import planned
from breakeven.lab.bits.ggml import Ggml, WeightType
from breakeven.lab.bits.importance import FEWEST_TOKENS, apart, measure
from breakeven.lab.bits.quantize import QuantizeOptions, quantize
from breakeven.lab.corpus import Block, Document
from breakeven.lab.surgery.container import open_gguf
from breakeven.lab.surgery.experts import copy
from breakeven.model.architecture import ModelSpec
from breakeven.model.readers.gguf import read_gguf
from breakeven.results.lab import Proof
from tests.cli_fixtures import run_here

SLOW_TABLES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
"""Formats whose tables ggml computes for 1 to 13 s when they are first written."""


@pytest.fixture(scope="module")
def types() -> dict[str, WeightType]:
    return Ggml().types


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of random weights, 192 wide, which 256 does not divide; its feed-forwards are 512."""
    spec = small("llama", num_hidden_layers=2, hidden_size=192, num_attention_heads=3, num_key_value_heads=3)
    return _in_single_precision(spec, tmp_path_factory.mktemp("quantize") / "toy.F32.gguf")


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight experts of which two run."""
    spec = small("mixtral", num_hidden_layers=2)
    return _in_single_precision(spec, tmp_path_factory.mktemp("quantize") / "moe.F32.gguf")


def _in_single_precision(spec: ModelSpec, path: Path) -> Path:
    return decoded_shallow_copy(synthesise(spec, "F16", path.with_suffix(".f16")), path, 2)


def _error(values: np.ndarray, back: np.ndarray) -> float:
    """Root mean square, relative to the values'."""
    return float(np.sqrt(np.mean((back.reshape(values.shape) - values) ** 2) / np.mean(values**2)))


def test_every_format_comes_back_as_near_as_its_bits_allow(types: dict[str, WeightType]) -> None:
    values = np.random.default_rng(1).standard_normal((16, 1024), dtype=np.float32)
    counts = np.abs(np.random.default_rng(2).standard_normal(1024, dtype=np.float32)) + 0.1
    with Ggml() as ggml:
        for kind in types.values():
            if kind.name in SLOW_TABLES:
                continue
            data = ggml.encode(kind, values, counts if kind.needs_importance else None)
            assert data.size == kind.n_bytes(values.size)
            # A format of b bits keeps at best 2^-b of a normal value; these are within four times of it, to 8 bits.
            assert _error(values, ggml.decode(kind, data)) < 4 * 2 ** -min(kind.bits, 8.5), kind.name
    assert types["Q2_0"].block == 64  # which the gguf package does not know
    assert [kind.name for kind in types.values() if kind.needs_importance] == ["IQ1_S", "IQ2_XXS", "IQ2_XS"]


def test_codecs_agree_with_the_gguf_package_where_it_has_them(types: dict[str, WeightType]) -> None:
    values = np.random.default_rng(3).standard_normal((8, 512), dtype=np.float32)
    ggml, compared = Ggml(), set()
    for kind in types.values():
        if kind.name not in GGMLQuantizationType.__members__ or kind.name in SLOW_TABLES:
            continue
        theirs = GGMLQuantizationType[kind.name]
        data = ggml.encode(kind, values)
        try:
            decoded = reference.dequantize(data.view(np.float32) if kind.name == "F32" else data.reshape(8, -1), theirs)
        except NotImplementedError:
            continue
        np.testing.assert_allclose(ggml.decode(kind, data), decoded.reshape(-1), rtol=1e-6, atol=1e-7)
        try:
            their_data = reference.quantize(values, theirs)
        except NotImplementedError:
            continue
        compared.add(kind.name)
        back = reference.dequantize(their_data, theirs)
        assert _error(values, ggml.decode(kind, data)) <= 1.01 * _error(values, back), kind.name
    assert {"Q4_0", "Q5_1", "Q8_0", "TQ2_0", "F16"} <= compared


def test_importance_is_the_mean_square_of_what_a_matrix_multiplies(toy: Path) -> None:
    found = measure(toy, [Block("en", "all", "a", PROSE), Block("en", "all", "b", PROSE[40:])], threads=2)
    weights = {t.name: t.data.view(np.float32).reshape(t.dims[::-1]) for t in open_gguf(toy).tensors}
    with Inside(toy) as inside:
        tokens = inside.tokenize(PROSE) + inside.tokenize(PROSE[40:])
    embedded = weights["token_embd.weight"][tokens]
    normed = embedded / np.sqrt(np.mean(embedded**2, axis=1, keepdims=True) + 1e-5) * weights["blk.0.attn_norm.weight"]
    expected = np.mean(normed**2, axis=0)
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found.mean_squares[f"blk.0.{name}.weight"][0], expected, rtol=1e-4)
    assert {int(n.sum()) for n in found.tokens.values()} == {len(tokens)} == {found.text_tokens}
    # Every matrix of both layers was seen, and the output matrix, which is the embedding.
    assert len(found.mean_squares) == 2 * 7 + 1
    assert found.experts() is None


def test_each_expert_is_measured_on_the_tokens_routed_to_it(moe: Path) -> None:
    text = " ".join(PROSE.split() * 3)
    found = measure(moe, [Block("all", "all", "a", text)], threads=2)
    traced = trace(moe, {"a": text}, threads=2)
    experts = found.experts()
    assert experts is not None
    for row, layer in enumerate(experts.layers):
        counted = np.bincount(traced.ids["a"][row].ravel(), minlength=8)
        assert layer.tokens == counted.tolist()
        assert layer.dead == np.flatnonzero(counted == 0).tolist()
        for part in ("gate", "up", "down"):
            assert found.tokens[f"blk.{layer.layer}.ffn_{part}_exps.weight"].tolist() == layer.tokens
        # What the experts saw, each token twice, is what the router saw.
        squares = found.mean_squares[f"blk.{layer.layer}.ffn_gate_exps.weight"] * np.array(layer.tokens)[:, None]
        router = found.mean_squares[f"blk.{layer.layer}.ffn_gate_inp.weight"][0] * found.text_tokens
        np.testing.assert_allclose(squares.sum(axis=0), 2 * router, rtol=1e-3)


def test_every_third_block_of_each_language_is_measured_on_and_the_others_judge() -> None:
    lines = [f"{language} line {i}. " * 90 for language in ("de", "en") for i in range(36)]
    documents = [Document("de", "all", "a", "\n".join(lines[:36])), Document("en", "all", "b", "\n".join(lines[36:]))]
    blocks, judged = apart(documents)
    assert {block.language for block in blocks} == {"de", "en"} == {document.language for document in judged}
    words = {line for document in judged for line in document.text.splitlines() if line}
    assert sum(len(block.text) for block in blocks) * 2 == pytest.approx(sum(len(d.text) for d in judged), rel=0.2)
    assert not words & {line for block in blocks for line in block.text.splitlines() if len(line) > 500}


def test_two_bits_of_smollm2_are_refused_or_named_by_what_they_hold(
    smollm2_gguf: Path, tmp_path: Path, types: dict[str, WeightType]
) -> None:
    plan = planned(open_gguf(smollm2_gguf), types["Q2_K"], types)
    assert plan.name == "Q2_K (4.98)"
    narrow = {each.made: len(each.tensors) for each in plan.substituted}
    assert narrow == {"IQ4_NL": 180}
    with pytest.raises(UserError, match=r"4\.98 bits.*180 of 210 have 576 columns, which 256 does not divide.*Q2_0"):
        quantize(smollm2_gguf, ["Q4_K", "Q2_K"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert planned(open_gguf(smollm2_gguf), types["Q4_0"], types).name == "Q4_0"
    assert planned(open_gguf(smollm2_gguf), types["Q4_K"], types).name == "Q4_K (5.94)"


def test_a_quantized_model_runs_and_is_proven(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_here("quantize", str(toy), "--to", "q4_0,Q2_K", "--allow-fallback", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    proofs = msgspec.json.decode(done.stdout, type=list[Proof])
    words = ["breakeven", "quantize", str(toy), "--to", "Q4_0", "--allow-fallback", "--out", str(out)]
    assert proofs[0].command == shlex.join(words)
    assert [proof.artefact.format for proof in proofs] == ["Q4_0", f"Q2_K ({proofs[1].artefact.bits_per_weight:.2f})"]
    assert Path(proofs[0].artefact.path).name == "toy-Q4_0.gguf"
    assert {each.made for each in proofs[1].artefact.substituted} == {"IQ4_NL"}
    for proof in proofs:
        made = Path(proof.artefact.path)
        assert proof.artefact.bytes == made.stat().st_size
        assert all(check.passed for check in proof.checks)
        assert json.loads(made.with_name(f"{made.stem}.proof.json").read_text())["verb"] == "quantize"
    assert sorted(p.suffix for p in out.iterdir()) == sorted([".gguf", ".json", ".html"] * 2)
    before, after = GGUFReader(toy), GGUFReader(proofs[0].artefact.path)
    for key, field in before.fields.items():
        if not key.startswith(("GGUF.", "general.file_type", "general.quantization_version")):
            assert [p.tobytes() for p in after.fields[key].parts] == [p.tobytes() for p in field.parts], key
    kinds = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    assert (kinds["token_embd.weight"], kinds["blk.1.ffn_up.weight"]) == ("Q8_0", "Q4_0")
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    # Whoever lists it later is told the bits too.
    spec = read_gguf(Path(proofs[1].artefact.path))
    assert spec.stored is not None
    assert spec.stored.label == proofs[1].artefact.format
    refused = run_here("quantize", str(toy), "--to", "Q2_K", "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_the_same_bytes_whatever_the_threads_and_pieces(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: dict[str, WeightType]
) -> None:
    file, plan = open_gguf(toy), planned(open_gguf(toy), types["Q4_0"], types)
    with Ggml() as ggml:
        subject._write(file, tmp_path / "a", plan, ggml, None, 1, lambda what, share: None)
        monkeypatch.setattr(subject, "PIECE_WEIGHTS", 5000)
        subject._write(file, tmp_path / "b", plan, ggml, None, 3, lambda what, share: None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert 0 <= plan.n_bytes - (tmp_path / "a").stat().st_size < 100_000


def test_a_format_the_gguf_package_does_not_know_is_read_copied_and_quantized_again(
    toy: Path, tmp_path: Path, types: dict[str, WeightType]
) -> None:
    with Ggml() as ggml:
        for source, kind in ((toy, "Q2_0"), (tmp_path / "Q2_0.gguf", "Q4_0")):
            file = open_gguf(source)
            plan = planned(file, types[kind], types)
            subject._write(file, tmp_path / f"{kind}.gguf", plan, ggml, None, 2, lambda what, share: None)
    copy(tmp_path / "Q2_0.gguf", tmp_path / "copy.gguf", 2)
    before, again, copied = (
        {t.name: t for t in open_gguf(tmp_path / name).tensors} for name in ("Q2_0.gguf", "Q4_0.gguf", "copy.gguf")
    )
    assert (before["blk.0.ffn_up.weight"].kind.name, again["blk.0.ffn_up.weight"].kind.name) == ("Q2_0", "Q4_0")
    experts = copied["blk.0.ffn_up_exps.weight"].data.reshape(2, -1)
    np.testing.assert_array_equal(experts[1], before["blk.0.ffn_up.weight"].data)


def test_an_expert_is_quantized_for_itself(moe: Path, tmp_path: Path, types: dict[str, WeightType]) -> None:
    file = open_gguf(moe)
    found = measure(moe, [Block("all", "all", "a", PROSE * 4)], threads=2)
    plan = planned(file, types["Q4_0"], types, found)
    with Ggml() as ggml:
        subject._write(file, tmp_path / "a.gguf", plan, ggml, found, 2, lambda what, share: None)
        name = "blk.1.ffn_down_exps.weight"
        source = next(t for t in file.tensors if t.name == name)
        made = next(t for t in open_gguf(tmp_path / "a.gguf").tensors if t.name == name)
        values = source.data.view(np.float32).reshape(source.dims[::-1])
        for expert, few in enumerate(found.tokens[name] < FEWEST_TOKENS):
            alone = ggml.encode(types["Q4_0"], values[expert], None if few else found.mean_squares[name][expert])
            np.testing.assert_array_equal(made.data.reshape(8, -1)[expert], alone)


def test_experts_the_text_did_not_reach_are_named_refused_or_replaced(
    tmp_path: Path, types: dict[str, WeightType]
) -> None:
    source = synthesise(small("qwen3moe", num_hidden_layers=2, num_experts=32), "F16", tmp_path / "moe.gguf")
    found = measure(source, [Block("all", "all", "a", PROSE)], threads=2)
    plan = planned(open_gguf(source), types["IQ2_XXS"], types, found)
    starved = [each for each in plan.substituted if "saw fewer than" in each.why]
    assert starved
    assert {each.made for each in starved} == {"Q2_K"}
    documents = [Document("all", "all", "a", PROSE * 200)]
    with pytest.raises(UserError, match=r"IQ2_XXS needs importance.*blk\.0\.ffn_.*: \d+.*--allow-fallback"):
        quantize(source, ["IQ2_XXS"], tmp_path / "out", documents=documents, options=QuantizeOptions(tokens=100))
    with pytest.raises(UserError, match=r"too few for an interval.*and half as much again for importance"):
        quantize(source, ["IQ2_XXS"], tmp_path / "out", documents=[Document("all", "all", "a", PROSE * 60)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        (["Q9_K"], r"--to Q9_K: no format that llama\.cpp writes.*Q2_0.*BF16"),
        (["Q4_K_M"], r"did you mean Q4_K\? mixtures"),
        (["I8"], "no format"),
        (["Q8_K"], "no format"),
        ([""], r"--to \?"),
        (["IQ2_XXS"], "cannot be made without importance; give a text with --text"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(
    toy: Path, tmp_path: Path, formats: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        quantize(toy, formats, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_places_and_sources(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    with pytest.raises(UserError, match=r"breakeven export '.*/a b' --to gguf"):
        quantize(tmp_path / "a b", ["Q4_0"], tmp_path / "out")
    with pytest.raises(UserError, match="is a directory; make a GGUF of it first"):
        quantize(tmp_path, ["Q4_0"], tmp_path / "out")
    (tmp_path / "same").mkdir()
    same = shutil.copy(toy, tmp_path / "same" / "toy-Q4_0.gguf")
    with pytest.raises(UserError, match="is the source itself"):
        quantize(Path(same), ["Q4_0"], tmp_path / "same")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"needs .* MB and .* free"):
        quantize(toy, ["Q4_0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _FullError(OSError):
    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, _FullError], ids=["interrupted", "disk full"])
def test_nothing_half_is_left(toy: Path, tmp_path: Path, raised: type[BaseException]) -> None:
    def step(what: str, share: float) -> None:
        if what.startswith("quantizing") and share > 0.5:
            raise raised

    with pytest.raises(KeyboardInterrupt if raised is KeyboardInterrupt else BreakevenError):
        quantize(toy, ["Q4_0"], tmp_path / "out", on_step=step)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_named(toy: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copy(toy, tmp_path / "broken.gguf"))
    header = open_gguf(broken).header
    begin = header.data_offset_bytes + next(t.offset_bytes for t in header.tensors if t.name == "blk.1.ffn_up.weight")
    with broken.open("r+b") as file:
        file.seek(begin + 4000)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(BreakevenError, match=r"blk\.1\.ffn_up\.weight holds weights that are not finite"):
        quantize(broken, ["Q4_0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_a_proof(smollm2_gguf: Path, types: dict[str, WeightType]) -> None:
    file = open_gguf(smollm2_gguf)
    said = subject._caveats(file, planned(file, types["Q4_0"], types), None)
    assert any("quantized already (Q4_1)" in each for each in said)
    assert any("made without importance" in each for each in said)


def test_importance_reaches_every_language_and_names_those_it_does_not(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    languages = [f"l{n}" for n in range(10)]
    blocks = [Block(language, "all", "a", PROSE * 4) for language in languages for _ in range(3)]
    found = measure(toy, blocks, most_tokens=650, threads=1)
    # 65 of each, where 512 of the first alone would have left 138 to the second and none to eight.
    assert (found.unread, found.text_tokens, found.caveats()) == ((), 650, [])
    found = measure(toy, blocks, most_tokens=130, threads=1)
    assert (found.unread, found.text_tokens) == (tuple(languages[3:]), 130)
    assert "not measured on l3, l4, l5, l6, l7, l8, l9" in found.caveats()[0]
    spec = small(
        "llama",
        num_hidden_layers=2,
        hidden_size=192,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=48,
    )
    short = _in_single_precision(spec, tmp_path / "short.gguf")
    assert measure(short, blocks[:1], threads=1).text_tokens == 48
    monkeypatch.setattr(facts, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"the model need about .* in memory"):
        measure(toy, blocks[:1], threads=1)


def test_nothing_is_replaced_that_was_not_made_here(toy: Path, tmp_path: Path) -> None:
    shutil.copy(toy, tmp_path / "-toy.gguf")
    words = ("quantize", "--to", "Q4_0", "--out", "out", "--json", "--", "./-toy.gguf")
    place, proof = tmp_path / "out" / "-toy-Q4_0.gguf", tmp_path / "out" / "-toy-Q4_0.proof.json"
    place.parent.mkdir()
    for name, holds in ((place, b"another's"), (proof, b"{}")):
        name.write_bytes(holds)
        refused = run_here(*words, cwd=tmp_path)
        assert (refused.returncode, "no proof says it was made here" in refused.stderr) == (2, True), refused.stderr
        assert name.read_bytes() == holds
        name.unlink()
    with subprocess.Popen(["true"]) as gone:
        pass
    mine, other = f".x.{os.getpid()}.made.gguf", f".x.{gone.pid}.txt"
    left = [f".x.{gone.pid}.made.gguf", f"..x.{gone.pid}.made.gguf.{gone.pid}.partial", f".x.{gone.pid}.made"]
    for name in (*left[:2], mine, other, "x.made.gguf"):
        (place.parent / name).touch()
    (place.parent / left[2] / "within").mkdir(parents=True)
    done = run_here(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [name for name in left if (place.parent / name).exists()]
    assert all((place.parent / name).exists() for name in (mine, other, "x.made.gguf"))
    # The command of the proof makes it again, in the place of what was made here.
    command = shlex.split(msgspec.json.decode(done.stdout, type=list[Proof])[0].command)
    assert command[:3] == ["breakeven", "quantize", "./-toy.gguf"]
    again = run_here(*command[1:], "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    with place.open("ab") as file:
        file.write(b"changed since")
    assert run_here(*words, cwd=tmp_path).returncode == 2
    assert place.read_bytes().endswith(b"changed since")


ENDLESS_PROOF = """
import time
import breakeven.lab.bits.quantize as quantize
from breakeven.cli.main import main
quantize.prove = lambda *_, **__: time.sleep(600)  # it cannot be done before it is told to end
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["terminated", "hung up"])
def test_a_verb_that_is_ended_leaves_nothing(toy: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("ignored here, as under nohup, and so it stays")
    command = [sys.executable, "-c", ENDLESS_PROOF, "quantize", str(toy), "--to", "Q4_0", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not list(out.glob(".*.made.gguf")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("breakeven: interrupted.\n")
    assert list(tmp_path.iterdir()) == []
