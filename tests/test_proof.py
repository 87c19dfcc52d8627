"""A change stands only with its proof: both appear together, or nothing does."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from lab_fixtures import quantized, texts, toy

from breakeven.errors import BreakevenError, UserError
from breakeven.lab.corpus import read_documents
from breakeven.lab.facts import sha256_of
from breakeven.lab.proof import prove
from breakeven.lab.surgery.experts import split
from breakeven.results.lab import LabCheck, Proof, Substituted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, its split, its like of other weights, in two formats; and text."""
    folder = tmp_path_factory.mktemp("proof")
    toy(folder / "F32.gguf")
    toy(folder / "F32-other.gguf", seed=1)
    for name in ("", "-other"):
        quantized(folder / f"F32{name}.gguf", folder / f"Q8_0{name}.gguf")
    for kind in ("F32", "Q8_0"):
        split(folder / f"{kind}.gguf", folder / f"{kind}-split.gguf", 4)
    texts(folder / "texts")
    return folder


def made_of(source: Path, directory: Path) -> Path:
    """A copy under a temporary name, as a verb of the lab leaves it."""
    made = directory / ".made.gguf"
    shutil.copyfile(source, made)
    return made


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_same_function_is_proven_and_another_is_not(kind: str, folder: Path, tmp_path: Path) -> None:
    source, out = folder / f"{kind}.gguf", tmp_path / "out.q.gguf"
    proof = prove(
        "experts split", "breakeven experts split ...", source, made_of(folder / f"{kind}-split.gguf", tmp_path), out,
        format=kind, threads=1, same_function=True, caveats=["Slower."],
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.q.gguf", "out.q.proof.json"]
    assert msgspec.json.decode((tmp_path / "out.q.proof.json").read_bytes(), type=Proof) == proof
    assert proof.artefact.sha256 == sha256_of(out)
    assert proof.artefact.bytes == out.stat().st_size
    assert proof.source.sha256 == sha256_of(source)
    assert [(check.name, check.engine, check.passed) for check in proof.checks] == [
        ("loads and predicts", "llama.cpp", True), ("same function", "llama.cpp", True),
    ]  # fmt: skip
    assert (proof.slices, proof.caveats) == ([], ["Slower."])
    out.unlink()
    (tmp_path / "out.q.proof.json").unlink()
    with pytest.raises(BreakevenError, match=r"out\.q\.gguf was not kept: the check 'same function' .*at most"):
        prove(
            "experts split", "...", source, made_of(folder / f"{kind}-other.gguf", tmp_path), out,
            format=kind, threads=1, same_function=True,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_what_a_change_cost_is_told_by_language(folder: Path, tmp_path: Path) -> None:
    proof = prove(
        "quantize", "...", folder / "F32.gguf", made_of(folder / "Q8_0.gguf", tmp_path), tmp_path / "out.gguf",
        format="Q8_0", threads=1, text=read_documents(folder / "texts"),
        substituted=[Substituted(tensors=["a"], asked="Q2_K", made="IQ4_NL", why="576 columns")],
    )  # fmt: skip
    assert [part.language for part in proof.slices] == ["de", "en"]
    for part in proof.slices:
        assert part.kl is not None
        assert part.kl.low is not None
        assert part.difference is not None
        assert part.source_bits_per_byte is not None
    assert proof.artefact.substituted[0].made == "IQ4_NL"
    assert proof.caveats == []


def test_nothing_half_is_left_whatever_goes_wrong(folder: Path, tmp_path: Path) -> None:
    source, out = folder / "F32.gguf", tmp_path / "out.gguf"
    failed = LabCheck(name="bytes of kept experts", engine="breakeven", passed=False, detail="3 differ")
    with pytest.raises(BreakevenError, match=r"the check 'bytes of kept experts' by breakeven failed: 3 differ"):
        prove("v", "c", source, made_of(source, tmp_path), out, format="F32", threads=1, checks=[failed])
    damaged = made_of(source, tmp_path)
    data = bytearray(damaged.read_bytes())
    data[-200_000:] = b"\xff" * 200_000
    damaged.write_bytes(bytes(data))
    with pytest.raises(BreakevenError, match="no number"):
        prove("v", "c", source, damaged, out, format="F32", threads=1)
    truncated = made_of(source, tmp_path)
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        prove("v", "c", source, truncated, out, format="F32", threads=1)

    def interrupt(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove("v", "c", source, made_of(source, tmp_path), out, format="F32", threads=1, on_step=interrupt)
    (tmp_path / "out.proof.json").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*out\.proof\.json"):
        prove("v", "c", source, made_of(source, tmp_path), out, format="F32", threads=1)
    (tmp_path / "out.proof.json").rmdir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.gguf").mkdir()
    (tmp_path / "out.gguf" / "kept").touch()
    with pytest.raises(UserError, match=r"cannot write .*out\.gguf"):
        prove("v", "c", source, made_of(source, tmp_path), out, format="F32", threads=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "out.gguf"]
