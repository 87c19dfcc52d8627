"""A Hugging Face directory beside the GGUF it was made from: the same figures from transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from inside_fixtures import decoded_shallow_copy
from lab_fixtures import texts

pytest.importorskip("torch")
pytest.importorskip("transformers")

from breakeven.lab.bridge.bridge import to_directory
from breakeven.lab.corpus import read_documents
from breakeven.lab.proof import prove
from breakeven.results.lab import Proof


def test_transformers_and_llama_cpp_agree_and_a_directory_stands_with_its_proof(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    source = decoded_shallow_copy(smollm2_gguf, tmp_path / "shallow.gguf", 2)
    to_directory(source, tmp_path / "hub")
    documents = read_documents(texts(tmp_path / "texts", n_bytes=100))
    out = tmp_path / "made"
    proof = prove(
        "export", "...", source, tmp_path / "hub", out,
        format="F32", text=documents, threads=1, same_function=True,
    )  # fmt: skip
    assert [check.engine for check in proof.checks] == ["transformers", "transformers"]
    assert [part.language for part in proof.slices] == ["de", "en"]
    for part in proof.slices:
        assert part.source_bits_per_byte is not None
        assert abs(part.bits_per_byte.value - part.source_bits_per_byte.value) <= 1e-3
        assert part.kl is not None
        assert part.top1 is not None
        assert abs(part.kl.value) <= 1e-6
        assert part.top1.value == 1
        # Single precision is not rounded by the size of a batch, so there is nothing to measure.
        assert part.kl_floor is None
    assert msgspec.json.decode((out / "proof.json").read_bytes(), type=Proof) == proof
    assert not (tmp_path / "hub").exists()
