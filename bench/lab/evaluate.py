"""What `breakeven evaluate` takes and finds on a real model: the targets of docs/evaluate.md.

    python bench/lab/evaluate.py MODEL.gguf GUIDE [--languages en,de,fr] [--bytes 20000]

GUIDE: the Debian installation guide, unpacked (`dpkg -x`): a folder a language with install.LANG.txt.gz. Prints bits
per byte, the time of one model on three languages, and of the arithmetic of a pair.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from breakeven.lab.corpus import Document, blocks_of, read_documents
from breakeven.lab.evaluate import evaluate
from breakeven.lab.scoring import Apart


def cut(documents: list[Document], n_bytes: int) -> list[Document]:
    """The first so many bytes of each."""
    return [
        Document(each.language, each.domain, each.name, each.text.encode()[:n_bytes].decode(errors="ignore"))
        for each in documents
    ]


def arithmetic_ms(n_vocab: int = 49_152, tokens: int = 256) -> float:
    """Milliseconds a token that one more model costs beside its own run: its sums, and its comparison with a source."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 3, (tokens, n_vocab)).astype(np.float32) for _ in range(2)]
    targets = rng.integers(0, n_vocab, tokens)
    took = []
    for pairs in ([], [(0, 1)]):
        models = logits[: 1 + len(pairs)]
        found = Apart.empty(len(models), pairs, tokens)
        began = time.perf_counter()
        for begin in range(0, tokens, 5):
            found.rows(models, targets, 0, begin, min(begin + 5, tokens))
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / tokens * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("guide", type=Path)
    parser.add_argument("--languages", default="en,de,fr")
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    documents = []
    for language in asked.languages.split(","):
        found = read_documents(asked.guide / language, "koi8-r")
        documents += [Document(language, "all", each.name, each.text) for each in cut(found, asked.bytes)]
    print(f"arithmetic of a pair: {arithmetic_ms():.2f} ms a token, one thread")
    began = time.monotonic()
    result = evaluate([asked.model], documents, against=asked.against, threads=asked.threads, command="bench")
    print(f"{len(blocks_of(documents))} blocks in {time.monotonic() - began:.0f} s")
    for model in result.models:
        rate = model.tokens_per_s
        print(model.name, "" if rate is None else f"{rate.value:.0f} tokens/s")
        for part in model.slices:
            kl = (
                ""
                if part.kl is None or part.kl_floor is None
                else f", KL {part.kl.value:.4f}, floor {part.kl_floor.value:.4f}"
            )
            bits = part.bits_per_byte
            print(f"  {part.language}: {bits.value:.3f} ({bits.low:.3f} to {bits.high:.3f}), {part.tokens} tokens{kl}")


if __name__ == "__main__":
    main()
