"""Small models of random weights and texts to evaluate, so that it is quick."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from inside_fixtures import decoded_shallow_copy
from small_models import small

from breakeven.engines.synthesis.write import synthesise
from breakeven.lab.corpus import sample
from breakeven.lab.surgery.container import OutTensor, SourceTensor, open_gguf, rewrite


def toy(path: Path, name: str = "llama", seed: int = 0) -> Path:
    """A model of two layers with random weights in single precision."""
    written = synthesise(small(name, num_hidden_layers=2), "F16", path.with_suffix(".f16"), seed=seed)
    decoded_shallow_copy(written, path, 2)
    written.unlink()
    return path


def quantized(source: Path, out: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0) -> Path:
    """A single-precision file's matrices rounded to `kind`."""
    file = open_gguf(source)

    def rounded(tensor: SourceTensor) -> OutTensor:
        if len(tensor.dims) < 2 or "ffn_gate_inp" in tensor.name:
            return OutTensor(tensor.name, tensor.dims, tensor.kind, tensor.data.nbytes, lambda: iter((tensor.data,)))
        rows = tensor.data.view(np.float32).reshape(-1, tensor.dims[0])
        data = quantize(rows, kind).reshape(-1).view(np.uint8)
        return OutTensor(tensor.name, tensor.dims, kind, data.nbytes, lambda: iter((data,)))

    rewrite(file, out, {}, [rounded(tensor) for tensor in file.tensors])
    return out


def texts(directory: Path, languages: tuple[str, ...] = ("de", "en"), files: int = 6, n_bytes: int = 150) -> Path:
    """A folder for each language with files of at least so many bytes: the sample's sentences in other orders."""
    for document in sample():
        if document.language not in languages:
            continue
        sentences = re.findall(r"[^.。]+[.。]", document.text)
        rng = random.Random(document.language)
        folder = directory / document.language
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(files):
            drawn = ""
            while len(drawn.encode()) < n_bytes:
                drawn += rng.choice(sentences)
            (folder / f"text-{number}.txt").write_text(drawn, encoding="utf-8")
    return directory
