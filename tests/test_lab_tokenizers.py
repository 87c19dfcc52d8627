"""Tokenizers from GGUF files to tokenizer.json and back: llama.cpp gives the same ids, or there is none."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from breakeven.engines.inside.library import Library, Model, library_path
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.pretokenizers import CUTS, Cut, as_json, cut_of
from breakeven.lab.bridge.tokenizer_keys import gguf_keys
from breakeven.lab.bridge.tokenizers import HOSTILE, load, same_ids, write_tokenizer
from breakeven.model.readers.gguf_header import read_header, read_value

PROSE = (
    "The keeper climbed 144 steps every evening; on the 31st of October the lamp stayed dark.\n\nHe'd said so.",
    "Der Wärter stieg jeden Abend 144 Stufen hinauf – am 31. Oktober aber blieb die Lampe dunkel, größer als sonst.",
    "Le gardien montait 144 marches chaque soir ; l'été, c'était déjà l'heure où la mer s'éteint… « Ça va ? »",
    "El guardián subía 144 peldaños cada noche: ¿quién apagó la lámpara el 31 de octubre? ¡Mañana será otro día!",
    "灯台守は毎晩144段を登った。十月三十一日の夜、ランプは暗いままだった。「誰かいますか？」と彼は言った。",
    "Смотритель каждый вечер поднимался на 144 ступени; 31 октября лампа осталась тёмной — никто не ответил.",
)
TEXTS = (*PROSE, *HOSTILE)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|begin|>", "<|end|>")
LETTER_OF_BYTE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def letters(text: str) -> str:
    """A text's bytes as the letters tokens are written in."""
    return "".join(piece for piece, _ in LETTER_OF_BYTE.pre_tokenize_str(text))


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Merges of almost any two bytes, in no order: a cut in another place makes other tokens."""
    seen = sorted({letter for text in TEXTS for letter in letters(text)})
    every = [(a, b) for a in seen for b in seen]
    random.Random(7).shuffle(every)
    return tuple(every[:3000])


def tokenizer_json(pre: Any, *, ignore_merges: bool = False, **changes: Any) -> dict[str, Any]:
    """A small byte-level BPE: two special tokens, one that is the user's own, one word that no merge makes."""
    merges = pairs()
    words = [*LETTERS, *dict.fromkeys(a + b for a, b in merges), "\u0120steps", *SPECIAL, "<tool>"]
    ids = {word: i for i, word in enumerate(dict.fromkeys(words))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[word], "content": word, "special": word in SPECIAL, **flags} for word in (*SPECIAL, "<tool>")
        ],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": ids,
            "merges": [list(pair) for pair in merges],
        },
        **changes,
    }


def directory_of(content: dict[str, Any], directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"eos_token": "<|end|>", "chat_template": "{{ messages }}", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def gguf_of(directory: Path, out: Path, **replaced: Any) -> Path:
    """A GGUF of the directory's tokenizer and no weights."""
    writer = GGUFWriter(out, "llama")
    writer.add_context_length(64)
    for entry in gguf_keys(directory):
        if entry.key not in replaced:
            writer.add_key_value(entry.key, entry.value, entry.kind, entry.of)
    for key, value in replaced.items():
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(library_path())


def differences(tokenizer: Tokenizer, model: Model, texts: Sequence[str]) -> list[str]:
    found = []
    for text in texts:
        for special in (True, False):
            tokenizer.encode_special_tokens = not special
            if tokenizer.encode(text).ids != model.tokenize(text, parse_special=special):
                found.append(text)
    return found


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.names[0])
def test_every_known_cut_is_found_by_its_parts_and_cuts_as_llama_cpp_does(
    cut: Cut, library: Library, tmp_path: Path
) -> None:
    directory = directory_of(tokenizer_json(as_json(cut), ignore_merges=cut.whole_words), tmp_path / "hf")
    assert cut_of(as_json(cut), cut.whole_words, "here") is cut
    model = Model(library, gguf_of(directory, tmp_path / "v.gguf"), 1, vocab_only=True)
    assert model.meta("tokenizer.ggml.pre") == cut.names[0]
    assert differences(load(directory), model, [*TEXTS, "a<tool><|end|>b <|end|", "<|begin|> <|begin|>x"]) == []
    model.close()


FUZZED = ("gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "tekken", "default")
# Characters that cuts tell apart, all assigned for long: which were added last is a matter of each library's Unicode.
FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            " ",
            "  ",
            "   ",
            "\n",
            "\r\n",
            "\t",
            "'s",
            "'LL",
            "'",
            "1",
            "12",
            "123",
            "1234",
            "٣",
            "Ⅷ",
            "½",
            "a",
            "Ab",
            "ABC",
            "é",
            "é",
            "ß",
            "ǅ",
            "ʰ",
            "Жж",
            "漢",
            "あア",
            "가",
            "हि",
            "ไท",
            "עִ",
            "!",
            "...",
            "$",
            "+=",
            "_",
            "/",
            "…",
            "“",
            "。",
            "€",
            "👩\u200d👩",
            "👍🏽",
            "\xa0",
            "\u3000",
            "\x85",
            "\u200b",
            "\ufeff",
            "\x00",
            "\x1c",
            "<",
            "end",
            ">",
        ]
    ),
    st.text(st.characters(max_codepoint=0x24F), max_size=4),
)


@pytest.fixture(scope="module")
def fuzzed(library: Library, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tokenizer, Model]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    made = []
    for cut in CUTS:
        if cut.names[0] in FUZZED:
            content = tokenizer_json(as_json(cut), ignore_merges=cut.whole_words)
            directory = directory_of(content, folder / cut.names[0])
            made.append(
                (
                    load(directory),
                    Model(library, gguf_of(directory, folder / f"{cut.names[0]}.gguf"), 1, vocab_only=True),
                )
            )
    assert len(made) == len(FUZZED)
    return made


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FRAGMENTS, max_size=24).map("".join))
def test_any_text_has_the_same_ids(fuzzed: list[tuple[Tokenizer, Model]], text: str) -> None:
    for tokenizer, model in fuzzed:
        assert differences(tokenizer, model, [text]) == [], model.path.stem


def test_smollm2_goes_to_tokenizer_json_and_back(smollm2_gguf: Path, tmp_path: Path) -> None:
    caveats = write_tokenizer(smollm2_gguf, tmp_path)
    check = same_ids(smollm2_gguf, tmp_path, PROSE)
    assert check.passed, check.detail
    assert caveats == []
    tokenizer = load(tmp_path)
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("on 2026").ids] == ["on", "\u0120", "2", "0", "2", "6"]
    header = read_header(smollm2_gguf)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == header.metadata["tokenizer.chat_template"]
    back = {entry.key: entry.value for entry in gguf_keys(tmp_path)}
    for key in ("tokens", "token_type", "merges", "pre", "model", "bos_token_id", "eos_token_id", "unknown_token_id"):
        assert back[f"tokenizer.ggml.{key}"] == read_value(header, f"tokenizer.ggml.{key}"), key
    assert back["tokenizer.chat_template"] == header.metadata["tokenizer.chat_template"]


def sentencepiece_json(*, prefix: bool) -> dict[str, Any]:
    """A small byte-fallback BPE as of Llama 2, trained on the prose."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([*PROSE, "a" * 40, " " * 40, *HOSTILE[3:5]], trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    ids = content["model"]["vocab"]
    ranked = sorted((i, word[:at], word[at:]) for word, i in ids.items() for at in range(1, len(word)))
    merges = [[left, right] for _, left, right in ranked if left in ids and right in ids]
    content["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True, merges=merges)
    # ERNIE 4.5 has such: no special token, but one piece wherever it stands.
    ids["<mask:1>"] = len(ids)
    masked = {**content["added_tokens"][0], "id": ids["<mask:1>"], "content": "<mask:1>", "special": False}
    content["added_tokens"] = [*content["added_tokens"][:3], masked]
    parts = [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, *parts] if prefix else parts,
    }
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return content


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_keeps_scores_bytes_and_the_space_before(prefix: bool, tmp_path: Path) -> None:
    directory = directory_of(sentencepiece_json(prefix=prefix), tmp_path / "hf", bos_token="<s>", eos_token="</s>")
    gguf = gguf_of(directory, tmp_path / "v.gguf")
    there = same_ids(gguf, directory, PROSE)
    assert there.passed, there.detail
    write_tokenizer(gguf, tmp_path / "back")
    back = same_ids(gguf, tmp_path / "back", PROSE)
    assert back.passed, back.detail
    tokenizer = load(tmp_path / "back")
    assert tokenizer.encode("").ids == [1], "what llama.cpp puts before a text"
    assert tokenizer.decode(tokenizer.encode("Wärter \U0001f44d").ids) == "Wärter \U0001f44d"


def test_the_check_names_the_text_and_the_first_token_that_differs(tmp_path: Path) -> None:
    smollm, gpt2 = (next(cut for cut in CUTS if name in cut.names) for name in ("smollm", "gpt-2"))
    directory = directory_of(tokenizer_json(as_json(gpt2)), tmp_path / "hf")
    other = directory_of(tokenizer_json(as_json(smollm)), tmp_path / "other")
    check = same_ids(gguf_of(directory, tmp_path / "v.gguf"), other, ["no digits", "0123456789 9876543210"])
    assert not check.passed
    assert "text 2 of" in check.detail


def test_a_tokenizer_that_composes_is_held_to_composed_text(tmp_path: Path) -> None:
    qwen2 = next(cut for cut in CUTS if "qwen2" in cut.names)
    directory = directory_of(tokenizer_json(as_json(qwen2), normalizer={"type": "NFC"}), tmp_path / "hf")
    check = same_ids(gguf_of(directory, tmp_path / "v.gguf"), directory, PROSE)
    assert check.passed, check.detail
    assert "NFC" in check.detail


def test_spaces_that_only_llama_cpp_adds_are_left_out_of_the_check_and_said(tmp_path: Path) -> None:
    content = sentencepiece_json(prefix=True)
    # As transformers 5 saves a Llama 2 tokenizer: " a" and "<s>a" get no space there, and one more in llama.cpp.
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    directory = directory_of(content, tmp_path / "hf", bos_token="<s>", eos_token="</s>")
    check = same_ids(gguf_of(directory, tmp_path / "v.gguf"), directory, PROSE)
    assert check.passed, check.detail
    assert "begins with a space or stands behind a special token" in check.detail


def published(*splits: str) -> dict[str, Any]:
    parts = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False} for split in splits
    ]
    return {
        "type": "Sequence",
        "pretokenizers": [*parts, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
    }


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "llama-bpe": (published(LLAMA3), True),
    "dbrx": (published(LLAMA3), False),
    "qwen2": (published(LLAMA3.replace("{1,3}", "")), False),
    "gpt-2": ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, False),
    "smollm": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        False,
    ),
    "deepseek-v3": (
        published(
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
            " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ),
        False,
    ),
    "tekken": (
        published(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_words_in_which_makers_write_a_cut_are_known(name: str) -> None:
    pre, whole_words = PUBLISHED[name]
    assert cut_of(pre, whole_words, "here").names[0] == name


def test_what_has_no_form_in_the_other_is_refused(tmp_path: Path) -> None:
    gpt2 = next(cut for cut in CUTS if "gpt-2" in cut.names)
    good = tokenizer_json(as_json(gpt2))
    gguf = gguf_of(directory_of(good, tmp_path / "hf"), tmp_path / "a.gguf", **{"tokenizer.ggml.pre": "kimi-k2"})
    with pytest.raises(NotSupportedError, match=r"'kimi-k2' is not one of those known.*gpt-2"):
        write_tokenizer(gguf, tmp_path / "out")
    gguf = gguf_of(tmp_path / "hf", tmp_path / "b.gguf", **{"tokenizer.ggml.model": "t5"})
    with pytest.raises(NotSupportedError, match="of the kind 't5'"):
        write_tokenizer(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half was left"
    for change, said in (
        ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "ByteLevel"),
        ({"pre_tokenizer": published("x+")}, "no pre-tokenizer that splits by x+"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space=True"),
        ({"model": {**good["model"], "end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "kind 'WordPiece'"),
    ):
        with pytest.raises(NotSupportedError, match=said.replace("+", "[+]")):
            gguf_keys(directory_of({**good, **change}, tmp_path / "bad"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"a":' * 100_000,
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": false}, "added_tokens": [3]}',
    ],
)
def test_a_damaged_tokenizer_json_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        gguf_keys(tmp_path)


def test_a_vocabulary_is_filled_up_to_the_embedding_and_never_cut(tmp_path: Path) -> None:
    gpt2 = next(cut for cut in CUTS if "gpt-2" in cut.names)
    content = tokenizer_json(as_json(gpt2))
    directory, have = directory_of(content, tmp_path), len(content["model"]["vocab"])
    keys = {entry.key: entry.value for entry in gguf_keys(directory, have + 3)}
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{have + 2}]"
    assert keys["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    with pytest.raises(UserError, match="tokens for a model of"):
        gguf_keys(directory, have - 1)


def small_json() -> dict[str, Any]:
    content = tokenizer_json(as_json(CUTS[0]))
    words = [*LETTERS[:40], "ab", *SPECIAL, "<tool>"]
    content["model"].update(vocab={word: i for i, word in enumerate(words)}, merges=[["a", "b"]])
    for each in content["added_tokens"]:
        each["id"] = words.index(each["content"])
    return content


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(each for key, inner in children for each in places(inner, (*at, key)))]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=3), st.just("\ud800"),
    st.just([]), st.just({}), st.just([[["a"]]]), st.just({"type": "Sequence"}), st.just({"content": {"a": 1}}),
)  # fmt: skip


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_directory_holds_it_becomes_keys_or_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    file = data.draw(
        st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
    )
    whole = {
        "tokenizer.json": small_json(),
        "tokenizer_config.json": {
            "bos_token": "<|begin|>",
            "eos_token": {"content": "<|end|>"},
            "chat_template": [{"name": "default", "template": "x"}],
        },
        "special_tokens_map.json": {"pad_token": {"content": "<|end|>"}},
    }
    *above, last = data.draw(st.sampled_from([place for place in places(whole[file]) if place]))
    holder: Any = whole[file]
    for key in above:
        holder = holder[key]
    holder[last] = data.draw(ODD)
    for name, content in whole.items():
        (tmp_path / name).write_text(json.dumps(content))
    entries, said = [], ""
    try:
        entries = gguf_keys(tmp_path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    writer = GGUFWriter(tmp_path / "v.gguf", "llama")
    for entry in entries:
        writer.add_key_value(entry.key, entry.value, entry.kind, entry.of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
