"""Text to judge on: how it is read and refused, and how it is cut into blocks that are the same for every model."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.lab.corpus import (
    BLOCK_BYTES,
    Block,
    Document,
    beside_languages,
    blocks_of,
    by_slice,
    check_enough,
    looks_like,
    read_documents,
    sample,
)

RUSSIAN = "Поезд опаздывал на сорок минут, и на маленькой станции никто этому не удивлялся. "
JAPANESE = "町の図書館は駅から歩いて十分ほどの丘の上にある。"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_folders_are_languages_and_domains_and_a_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path / "de" / "a.txt", b"\xef\xbb\xbfeins\r\nzwei")
    write(tmp_path / "de" / "b.md.gz", gzip.compress(b"drei"))
    write(tmp_path / "de" / "notes.pdf", b"%PDF")
    write(tmp_path / "en" / "law" / "c.txt", b"one")
    write(tmp_path / "en" / "news" / "d.txt", b"two")
    write(tmp_path / "en" / "images" / "e.png", b"\x89PNG")
    found = [(d.language, d.domain, d.name, d.text) for d in read_documents(tmp_path)]
    assert found == [
        ("de", "all", "a.txt", "eins\nzwei"),
        ("de", "all", "b.md.gz", "drei"),
        ("en", "law", "c.txt", "one"),
        ("en", "news", "d.txt", "two"),
    ]
    assert read_documents(tmp_path / "de" / "a.txt") == [Document("all", "all", "a.txt", "eins\nzwei")]
    assert [d.language for d in read_documents(tmp_path / "de")] == ["all", "all"]


def test_texts_beside_folders_of_languages_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "readme.txt", b"about these")
    write(tmp_path / "en" / "a.txt", b"one")
    write(tmp_path / "en" / "images" / "b.png", b"\x89PNG")
    assert [d.name for d in read_documents(tmp_path)] == ["a.txt"]
    assert beside_languages(tmp_path) == ["readme.txt"]
    assert beside_languages(tmp_path / "en") == []


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        (RUSSIAN, "koi8-r", "koi8-r"),
        (RUSSIAN, "cp1251", "cp1251"),
        ("Die Brücke über den Fluss ist für Fußgänger gesperrt. ", "cp1252", "cp1252"),
        (JAPANESE, "shift_jis", "shift_jis"),
        (JAPANESE, "euc_jp", "euc_jp"),
        ("plain words", "utf-16-le", "utf-16-le"),
    ],
)
def test_text_that_is_not_utf8_is_never_guessed_in_silence(
    text: str, encoding: str, named: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "text.txt", (text * 20).encode(encoding))
    with pytest.raises(UserError, match=rf"text\.txt: is not UTF-8; it looks like .*--encoding {named} "):
        read_documents(file)
    assert read_documents(file, encoding)[0].text == text * 20


def test_an_encoding_is_of_the_files_that_are_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "ru" / "a.txt.gz", gzip.compress(RUSSIAN.encode("koi8-r")))
    write(tmp_path / "ja" / "b.txt", JAPANESE.encode())
    assert {d.language: d.text for d in read_documents(tmp_path, "koi8-r")} == {"ru": RUSSIAN, "ja": JAPANESE}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no text here"),
        ({"en/a.png": b"x"}, "no text here"),
        ({"en/a.txt": b"x", "en/law/b.txt": b"y"}, r"holds a\.txt beside folders of domains"),
        ({"en/a.txt.gz": b"no gzip"}, r"a\.txt\.gz: cannot be read"),
        ({"en/a.txt.gz": gzip.compress(b"text" * 1000)[:-20]}, r"a\.txt\.gz: cannot be read"),
        ({"en/a.txt": bytes(range(128, 256)) * 9}, r"a\.txt: is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    for name, data in files.items():
        write(tmp_path / name, data)
    with pytest.raises(UserError, match=said) as caught:
        read_documents(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_encoding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read"):
        read_documents(tmp_path / "gone.txt")
    for name in ("klingon", "base64", "\0"):
        with pytest.raises(UserError, match="no such encoding"):
            read_documents(tmp_path, name)


@given(st.binary(max_size=300))
def test_looking_at_bytes_never_fails(data: bytes) -> None:
    looks = looks_like(data)
    assert looks is None or re.fullmatch(r"[a-z0-9_-]+", looks)


@given(st.lists(st.sampled_from(["word ", "line\n", "\n\n", "語。", "é", "x" * 900, "й" * 1500]), max_size=60))
def test_blocks_are_the_document_cut_at_characters(parts: list[str]) -> None:
    text = "".join(parts)
    blocks = blocks_of([Document("en", "all", "a", text)])
    assert all(0 < block.n_bytes <= BLOCK_BYTES for block in blocks)
    assert "".join(block.text for block in blocks).split() == text.split()


def _cut_by_copying(text: str) -> list[str]:
    """The same cuts by the plain rule, which copies what is left after each."""
    raw, found = text.encode(), []
    while len(raw) > BLOCK_BYTES:
        most = min(BLOCK_BYTES, round(len(raw) / math.ceil(len(raw) / BLOCK_BYTES) * 1.1))
        places = (raw.rfind(mark.encode(), most // 2, most) for mark in ("\n\n", "\n", ". ", " ", "。"))
        marks = zip(places, (2, 1, 2, 1, 3), strict=True)
        cut = next((at + size for at, size in marks if at >= 0), most)
        while raw[cut] & 0xC0 == 0x80:
            cut -= 1
        found.append(raw[:cut].decode())
        raw = raw[cut:]
    return [*found, raw.decode()]


@given(st.lists(st.sampled_from(["word ", "end. ", "line\n", "\n\n", "語。", "é", "x" * 900, "й" * 1500]), min_size=9))
def test_a_long_text_is_cut_where_the_plain_rule_cuts(parts: list[str]) -> None:
    text = "".join(parts) * 8
    expected = [each for each in _cut_by_copying(text) if each.strip()]
    assert [block.text for block in blocks_of([Document("en", "all", "a", text)])] == expected


def test_blocks_end_where_words_do_and_are_of_one_size() -> None:
    text = "\n\n".join(f"Paragraph {i} of several words, which end in a line." for i in range(400))
    blocks = blocks_of([Document("en", "all", "a", text)])
    assert all(block.text.endswith("\n\n") for block in blocks[:-1])
    assert min(block.n_bytes for block in blocks) > BLOCK_BYTES / 2
    assert "".join(block.text for block in blocks) == text


def test_too_little_text_is_refused_with_what_is_needed() -> None:
    def blocks(language: str, count: int) -> list[Block]:
        return [Block(language, "all", "a", "x" * 2000)] * count

    check_enough(blocks("en", 6) + blocks("de", 6))
    with pytest.raises(UserError, match=r"the text of de has 10,000 bytes, too few .* at least 10,241 bytes of each"):
        check_enough(blocks("en", 6) + blocks("de", 5))
    with pytest.raises(UserError, match="the text is empty"):
        check_enough([])


def test_the_sample_is_a_kilobyte_in_each_of_six_languages() -> None:
    blocks = blocks_of(sample())
    assert [language for language, _ in by_slice(blocks)] == ["de", "en", "es", "fr", "ja", "ru"]
    assert all(800 < block.n_bytes <= 2048 for block in blocks)
