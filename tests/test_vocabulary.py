"""A trimmed vocabulary cuts the text it was trimmed to as before, and every other text into tokens that spell it."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bridge.pretokenizers import CUTS, as_json
from breakeven.lab.bridge.tokenizers import HOSTILE, load, same_ids, write_tokenizer
from breakeven.lab.corpus import sample
from breakeven.lab.training import vocabulary
from breakeven.lab.training.vocabulary import trim
from tests.test_lab_tokenizers import PROSE, directory_of, gguf_of, letters, sentencepiece_json, tokenizer_json


def deep_json(seed: int, n_merges: int, *, whole_words: bool = False) -> dict[str, Any]:
    """A byte-level BPE whose tokens are made in many ways, some of them in several."""
    rng = random.Random(seed)
    content = tokenizer_json(as_json(CUTS[0]), ignore_merges=whole_words)
    words, merges = list("abc"), []
    for _ in range(n_merges):
        pair = [rng.choice(words), rng.choice(words)]
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            words.append("".join(pair))
    ids = {word: i for i, word in enumerate(dict.fromkeys([*content["model"]["vocab"], *words]))}
    content["model"] |= {"vocab": ids, "merges": merges}
    for each in content["added_tokens"]:
        each["id"] = ids[each["content"]]
    return content


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(0, 60),
    st.booleans(),
    st.lists(st.text(alphabet="abc ", max_size=40), min_size=1, max_size=4),
    st.text(alphabet="abcd é\n<|end|>", max_size=60),
)
def test_any_text_is_cut_as_before_and_any_other_is_spelled(
    seed: int, n_merges: int, whole_words: bool, texts: list[str], other: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = directory_of(deep_json(seed, n_merges, whole_words=whole_words), Path(place) / "hf")
        before = load(directory)
        if not any(texts):
            with pytest.raises(UserError, match="no tokens to trim"):
                trim(directory, texts, Path(place) / "out")
            return
        trimmed = trim(directory, texts, Path(place) / "out")
        after = load(Path(place) / "out")
        for text in texts:
            assert trimmed.kept_K[after.encode(text).ids].tolist() == before.encode(text).ids
        assert after.decode(after.encode(other).ids, skip_special_tokens=False) == other
        assert after.get_vocab_size() == trimmed.n
        # Nothing stays that no use was found for.
        used = {token for text in texts for token in before.encode(text).ids}
        assert trimmed.n_seen == len(used)
        words, added = [before.id_to_token(token) for token in used], {"<|begin|>", "<|end|>", "<tool>"}
        for word in after.get_vocab().keys() - added:
            assert len(word) == 1 or any(word in each for each in words)


def test_smollm2_for_one_language(smollm2_gguf: Path, tmp_path: Path) -> None:
    write_tokenizer(smollm2_gguf, tmp_path / "hf")
    ends = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": None}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(ends))
    english = [document.text for document in sample() if document.language == "en"] + [
        "<|im_start|>user 2026<|im_end|>"
    ]
    trimmed = trim(tmp_path / "hf", english, tmp_path / "en")
    before, after = load(tmp_path / "hf"), load(tmp_path / "en")
    assert trimmed.n_before == 49152
    assert trimmed.n_seen < trimmed.n < 2000
    assert f"{trimmed.n:,} of 49,152 tokens" in trimmed.said()
    for tokenizer in (before, after):
        tokenizer.encode_special_tokens = True
    for text in english:
        assert trimmed.kept_K[after.encode(text).ids].tolist() == before.encode(text).ids
    for document in sample():
        assert after.decode(after.encode(document.text).ids) == document.text
    # Special tokens keep their role under new numbers, in every file that names one.
    after.encode_special_tokens = False
    assert after.encode("<|im_start|>").ids == [after.token_to_id("<|im_start|>")]
    config = json.loads((tmp_path / "en" / "tokenizer_config.json").read_text())
    assert (
        config["chat_template"] == json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["chat_template"]
    )
    for token, each in config["added_tokens_decoder"].items():
        assert after.id_to_token(int(token)) == each["content"]
    said = json.loads((tmp_path / "en" / "generation_config.json").read_text())
    assert [after.id_to_token(each) for each in said["eos_token_id"]] == ["<|im_end|>", "<|endoftext|>"]
    assert trimmed.renumbered({"vocab_size": 49152, "eos_token_id": 49151, "hidden_size": 64}) == {
        "vocab_size": trimmed.n,
        "eos_token_id": None,
        "hidden_size": 64,
    }
    # llama.cpp cuts with it as tokenizers does, the text it was trimmed to and any other.
    check = same_ids(gguf_of(tmp_path / "en", tmp_path / "en.gguf"), tmp_path / "en", [*english, *PROSE])
    assert check.passed, check.detail


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_is_trimmed_too(prefix: bool, tmp_path: Path) -> None:
    directory = directory_of(sentencepiece_json(prefix=prefix), tmp_path / "hf", bos_token="<s>", eos_token="</s>")
    trimmed = trim(directory, PROSE[:1], tmp_path / "out")
    before, after = load(directory), load(tmp_path / "out")
    assert 259 < trimmed.n < before.get_vocab_size()
    assert trimmed.kept_K[after.encode(PROSE[0]).ids].tolist() == before.encode(PROSE[0]).ids
    assert after.encode("").tokens == ["<s>"], "what stands before a text is found under its new number"
    assert after.token_to_id("<mask:1>") == trimmed.n - 1
    check = same_ids(gguf_of(tmp_path / "out", tmp_path / "v.gguf"), tmp_path / "out", [*PROSE, *HOSTILE])
    assert check.passed, check.detail


def test_what_cannot_be_trimmed_exactly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = deep_json(3, 30)
    unigram = {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0}
    cases: list[tuple[dict[str, Any], type[BreakevenError], str]] = [
        ({**content, "model": unigram}, NotSupportedError, "kind 'Unigram' does not merge pairs"),
        ({**content, "model": {**content["model"], "dropout": 0.1}}, NotSupportedError, r"dropout=0\.1"),
        ({**content, "pre_tokenizer": None, "decoder": None}, NotSupportedError, "no tokens for bytes"),
        ({**content, "model": {**content["model"], "merges": ["abc"]}}, UserError, "no merge of two tokens"),
    ]
    for number, (broken, error, said) in enumerate(cases):
        directory = directory_of(broken, tmp_path / f"hf{number}")
        with pytest.raises(error, match=said):
            trim(directory, ["abc"], tmp_path / "out")
    # Were a token lost that the text is merged through, nothing would be written.
    word = letters("abcabcabc")
    chain = [["a", "b"], ["ab", "c"], ["abc", "abc"]]
    ids = {**{letter: i for letter, i in content["model"]["vocab"].items() if len(letter) == 1}}
    ids = {
        word: i
        for i, word in enumerate([*ids, "ab", "abc", "abcabc", *(t["content"] for t in content["added_tokens"])])
    }
    content["model"] |= {"vocab": ids, "merges": chain}
    for each in content["added_tokens"]:
        each["id"] = ids[each["content"]]
    directory = directory_of(content, tmp_path / "chain")
    assert set(trim(directory, [word], tmp_path / "whole").kept_K) >= {ids["ab"], ids["abc"], ids["abcabc"]}
    monkeypatch.setattr(vocabulary, "_merged_from", lambda words, ranks: set(words))
    with pytest.raises(BreakevenError, match="cuts 'abcabcabc' otherwise"):
        trim(directory, [word], tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_numbers_go_both_ways() -> None:
    trimmed = vocabulary.Trimmed(np.array([0, 3, 4]), 6, 2)
    assert trimmed.new_N.tolist() == [0, -1, -1, 1, 2, -1]
    assert trimmed.renumbered({"eos_token_id": [4, 5], "pad_token_id": 3}) == {"eos_token_id": [2], "pad_token_id": 1}
