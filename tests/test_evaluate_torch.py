"""A Hugging Face directory beside the GGUF it was made from: the same figures from transformers and llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest
from inside_fixtures import decoded_shallow_copy
from lab_fixtures import texts, toy

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from breakeven.errors import UserError
from breakeven.lab.bridge.bridge import to_directory
from breakeven.lab.bridge.directory_words import pieces_of
from breakeven.lab.corpus import read_documents
from breakeven.lab.evaluate import evaluate
from breakeven.lab.lockstep import Scorer
from breakeven.lab.proof import prove
from breakeven.lab.scoring import tokenized
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


def tokenizer_of_letters(letters: str) -> Tokenizer:
    """Words of letters in SentencePiece's manner, and no token for any other letter."""
    vocab = {each: i for i, each in enumerate(["<unk>", *sorted({*letters.replace(" ", ""), "\u2581"}), "\u2581h"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "h")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


class Words:
    """What a scorer says of words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces_of(tokenizer)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def piece(self, token: int) -> bytes:
        return self._pieces.get(token, b"")


@pytest.mark.parametrize(
    ("text", "first", "spelled"),
    [("hello", 1, 5), (" hello", 2, 6), ("  hello", 1, 7), ("lo", 0, 2), ("hello жук", 1, 6), ("ж", 0, 0), ("", 0, 0)],
)
def test_tokens_spell_what_of_a_text_they_are_tokens_for(text: str, first: int, spelled: int) -> None:
    found = tokenized(cast(Scorer, Words(tokenizer_of_letters("helo"))), text)
    assert (found.first_bytes, found.spelled_bytes) == (first, spelled)


def test_a_language_without_tokens_is_left_out_for_all(tmp_path: Path) -> None:
    documents = read_documents(texts(tmp_path / "texts", ("en", "ru")))
    hub = tmp_path / "hub"
    tokenizer = tokenizer_of_letters("".join(each.text for each in documents if each.language == "en"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(hub)
    tokenizer.save(str(hub / "tokenizer.json"))
    both = [toy(tmp_path / "able.gguf"), hub]
    found = evaluate(both, documents, threads=1, command="a test")
    assert [[part.language for part in model.slices] for model in found.models] == [["en"], ["en"]]
    assert found.caveats[0].startswith("The text of ru was left out for all models: hub's tokenizer has no tokens for")
    alone = [each for each in documents if each.language == "ru"]
    with pytest.raises(UserError, match="No other text is left"):
        evaluate(both, alone, threads=1, command="a test")
    part_lost = [replace(each, text=each.text + " жук" * 5 * (i == 0)) for i, each in enumerate(documents[:6] * 4)]
    found = evaluate([hub], part_lost, threads=1, command="a test")
    assert (found.models[0].slices[0].blocks, "was left out for all models" in found.caveats[0]) == (23, True)
