"""Whether a GGUF's tokenizer, carried to tokenizer.json and back to GGUF keys, gives llama.cpp's own ids.

python bench/token_ids.py FILE.gguf... --text FILE|DIR [--encoding koi8-r] [--bytes 20000]

Files of a vocabulary alone will do, such as the models/ggml-vocab-*.gguf of llama.cpp's source. `there`: the ids of the
directory against the file's; `back`: against those of a file made of the directory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from gguf import GGUFWriter

from breakeven.errors import BreakevenError
from breakeven.lab.bridge.tokenizer_keys import gguf_keys
from breakeven.lab.bridge.tokenizers import same_ids, write_tokenizer
from breakeven.lab.corpus import read_documents
from breakeven.model.readers.gguf_header import read_header


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--encoding")
    parser.add_argument("--bytes", type=int, default=20_000, help="of each text")
    given = parser.parse_args()
    texts = [
        document.text.encode()[: given.bytes].decode(errors="ignore")
        for document in read_documents(given.text, given.encoding)
    ]
    for file in given.files:
        pre = read_header(file).metadata.get("tokenizer.ggml.pre", "-")
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                there, back = round_trip(file, Path(folder), texts)
            except BreakevenError as error:
                there, back = f"refused: {error}", "-"
        print(f"{file.stem} ({pre}): there {there}; back {back}; {time.monotonic() - started_s:.0f} s", flush=True)


def round_trip(file: Path, folder: Path, texts: list[str]) -> tuple[str, str]:
    """What both checks say."""
    write_tokenizer(file, folder)
    there = same_ids(file, folder, texts)
    if not there.passed:
        return there.detail, "-"
    try:
        keys = gguf_keys(folder)
    except BreakevenError as error:
        return there.detail, f"refused: {error}"
    writer = GGUFWriter(folder / "back.gguf", "llama")
    for entry in keys:
        writer.add_key_value(entry.key, entry.value, entry.kind, entry.of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return there.detail, same_ids(folder / "back.gguf", folder, texts).detail


if __name__ == "__main__":
    main()
