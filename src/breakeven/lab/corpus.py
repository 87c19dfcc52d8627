"""Text to judge models on: documents by language and domain, and the blocks they are cut into.

A file is one document of language "all". In a directory each folder is a language, and holds files, or a folder for
each domain. Blocks are cut at the same places for every tokenizer, so that models that cut words differently are
compared on the same text, block by block.
"""

from __future__ import annotations

import codecs
import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError, printable

ALL = "all"
"""Language of a single file, and domain where there are no folders of domains."""
BLOCK_BYTES = 2048
"""At most; some 450 tokens of English, the context that a token in a block's end is predicted from."""
LEAST_BLOCKS = 6
"""Fewer blocks of a language and domain have no interval worth its name."""
_MOST_BYTES = 1 << 28
_SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
_CUTS = ("\n\n", "\n", ". ", " ", "。")
"""Where a block may end, best first; a character's end where there is none of them."""
_SAMPLE = Path(__file__).parent / "data" / "sample"


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `domain` is "all" where there are no folders of domains, `language` of a single file too."""

    language: str
    domain: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document; a document's blocks one after the other are the document."""

    language: str
    domain: str
    document: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Of its UTF-8."""
        return len(self.text.encode())


def read_documents(path: Path, encoding: str | None = None) -> list[Document]:
    """The documents of a file, of DIR/LANGUAGE/files or of DIR/LANGUAGE/DOMAIN/files: .txt, .md and .gz of them.

    `encoding`: of files that are not UTF-8; others stay UTF-8. Raises UserError for what cannot be read, holds no such
    file, or is not UTF-8 without an encoding said, naming what it looks like.
    """
    if encoding is not None:
        _check_encoding(encoding)
    if path.is_dir():
        documents = list(_of_directory(path, encoding))
        if not documents:
            raise UserError(
                f"{path}: no text here; give a file, or a directory with a folder for each language that holds .txt or "
                ".md files (or .gz of them)"
            )
        return documents
    return [Document(ALL, ALL, path.name, _read(path, encoding))]


def sample() -> list[Document]:
    """A kilobyte in each of six languages, written for this: enough to see whether a model predicts text at all."""
    return list(_of_directory(_SAMPLE, None))


def blocks_of(documents: Iterable[Document]) -> list[Block]:
    """Pieces of at most `BLOCK_BYTES` of about the same length, cut at the ends of paragraphs, lines or words."""
    return [
        Block(document.language, document.domain, document.name, text)
        for document in documents
        for text in _pieces(document.text)
        if text.strip()
    ]


def by_slice(blocks: Iterable[Block]) -> dict[tuple[str, str], list[Block]]:
    """Blocks by language and domain, in their order."""
    slices: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        slices.setdefault((block.language, block.domain), []).append(block)
    return slices


def slice_name(language: str, domain: str) -> str:
    """What to call a language and domain in a sentence."""
    return language if domain == ALL else f"{language}/{domain}"


def check_enough(blocks: Sequence[Block]) -> None:
    """Raise UserError for a language and domain of fewer than `LEAST_BLOCKS`, saying how much text is needed."""
    if not blocks:
        raise UserError(f"the text is empty; give at least {_needed()} bytes of each language")
    for (language, domain), held in by_slice(blocks).items():
        if len(held) < LEAST_BLOCKS:
            size = sum(block.n_bytes for block in held)
            what = "the text" if language == ALL else f"the text of {slice_name(language, domain)}"
            raise UserError(
                f"{what} has {size:,} bytes, too few for an interval; give at least {_needed()} bytes of each language"
            )


def in_turn(blocks: Sequence[Block]) -> list[int]:
    """Numbers of blocks, one of each language and domain in turn, spread over its text: wherever reading stops, what
    was read stands for the whole."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, block in enumerate(blocks):
        numbers.setdefault((block.language, block.domain), []).append(number)
    queues = [[held[i] for i in _spread(len(held))] for held in numbers.values()]
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def fewest_in_turn(blocks: Sequence[Block]) -> int:
    """How many blocks, taken in turn, give each slice what an interval needs: read whatever the budget."""
    return LEAST_BLOCKS * len(by_slice(blocks))


def _spread(n: int) -> list[int]:
    """0 to n-1 in the order of their reversed bits: the first few lie evenly over all (van der Corput)."""
    width = max(1, (n - 1).bit_length())
    return [i for turn in range(1 << width) if (i := int(f"{turn:0{width}b}"[::-1], 2)) < n]


def _needed() -> str:
    # One more than five whole blocks makes six.
    return f"{(LEAST_BLOCKS - 1) * BLOCK_BYTES + 1:,}"


def _of_directory(path: Path, encoding: str | None) -> Iterator[Document]:
    folders = _languages(path)
    for file in [] if folders else _texts(path):
        yield Document(ALL, ALL, file.name, _read(file, encoding))
    for folder in folders:
        inside = _entries(folder)
        files = [entry for entry in inside if _is_text(entry)]
        domains = [(entry, _texts(entry)) for entry in inside if entry.is_dir()]
        domains = [(entry, found) for entry, found in domains if found]
        if files and domains:
            raise UserError(
                f"{folder}: holds {files[0].name} beside folders of domains; put each file in the folder of its domain"
            )
        for file in files:
            yield Document(folder.name, ALL, file.name, _read(file, encoding))
        for entry, found in domains:
            for file in found:
                yield Document(folder.name, entry.name, file.name, _read(file, encoding))


def beside_languages(path: Path) -> list[str]:
    """Names of texts that are not read because they lie beside folders of languages, in none of them."""
    return [file.name for file in _texts(path)] if path.is_dir() and _languages(path) else []


def _languages(path: Path) -> list[Path]:
    """Folders that hold texts, or folders that do."""
    folders = [entry for entry in _entries(path) if entry.is_dir()]
    return [each for each in folders if _texts(each) or any(_texts(sub) for sub in _entries(each) if sub.is_dir())]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a text file or a directory of them") from None


def _texts(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if _is_text(entry)]


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def _read(path: Path, encoding: str | None) -> str:
    """A file's text with plain line ends. A byte order mark is no text."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            data: bytes = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or "damaged"
        raise UserError(f"{path}: cannot be read ({why}); give a text file or a directory of them") from None
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: more than {_MOST_BYTES >> 20} MiB of text; give a part of it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        text = _of_encoding(path, data, encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _of_encoding(path: Path, data: bytes, encoding: str | None) -> str:
    if encoding is not None:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            raise UserError(f"{path}: is neither UTF-8 nor {encoding}; convert it to UTF-8") from None
        if "\0" in text:
            raise UserError(f"{path}: holds zero bytes as {encoding}, so it is no text; give another file")
        return text
    looks = looks_like(data)
    if looks is None:
        raise UserError(f"{path}: is not UTF-8 text; convert it, or say what it is with --encoding NAME")
    raise UserError(
        f"{path}: is not UTF-8; it looks like {looks.upper()}, so add --encoding {looks} if it is, or convert it"
    )


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(codecs.lookup(encoding).name)
    except (LookupError, ValueError):
        raise UserError(
            f"--encoding {printable(encoding)}: no such encoding; give a name such as koi8-r, cp1251 or shift_jis"
        ) from None


def looks_like(data: bytes) -> str | None:
    """The encoding that bytes which are not UTF-8 look like, by what letters they would spell; None: unclear."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[: 1 << 16]
    if head.count(0) > len(head) // 8:
        return "utf-16-le" if head[1::2].count(0) > head[0::2].count(0) else "utf-16-be"
    high = [byte for byte in head if byte >= 0x80]
    if not high:
        return None
    if len(high) > len(head) // 5:
        # Most letters of a text are small: KOI8-R has them at 0xC0, code page 1251 at 0xE0.
        cyrillic = sum(byte >= 0xC0 for byte in high)
        if cyrillic > 0.9 * len(high):
            return "koi8-r" if sum(0xC0 <= byte < 0xE0 for byte in high) > cyrillic // 2 else "cp1251"
        return _eastern(data)
    # Few letters with marks between plain ones: the West's, where 0x80 to 0x9F are rare.
    return "cp1252" if sum(byte >= 0xA0 for byte in high) > 0.8 * len(high) else None


def _eastern(data: bytes) -> str | None:
    """Which of the East's encodings spells most kana, hangul or usual Chinese characters."""
    best: tuple[float, str | None] = (0.5, None)
    for name in ("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"):
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        foreign = [char for char in text if ord(char) >= 0x80]
        ranges = (("\u3040", "\u30ff"), ("\uac00", "\ud7a3"), ("\u4e00", "\u9fff"), ("\u3000", "\u303f"))
        known = sum(any(low <= char <= high for low, high in ranges) for char in foreign)
        share = known / len(foreign) if foreign else 0.0
        if share > best[0]:
            best = (share, name)
    return best[1]


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most `BLOCK_BYTES`, none of them much smaller than the others."""
    raw, at = text.encode(), 0
    while (left := len(raw) - at) > BLOCK_BYTES:
        goal = left / math.ceil(left / BLOCK_BYTES)
        most = min(BLOCK_BYTES, round(goal * 1.1))
        cut = _cut(raw, at + most // 2, at + most)
        yield raw[at:cut].decode()
        at = cut
    if at < len(raw):
        yield raw[at:].decode()


def _cut(raw: bytes, least: int, most: int) -> int:
    """Where to cut between places `least` and `most` of `raw`."""
    for mark in _CUTS:
        sought = mark.encode()
        if (at := raw.rfind(sought, least, most)) >= 0:
            return at + len(sought)
    while raw[most] & 0xC0 == 0x80:
        most -= 1
    return most
