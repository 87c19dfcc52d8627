"""Small models and texts to evaluate: of random weights, so that they are quick, and their bytes a tokenizer of sorts."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from small_models import small

from breakeven.engines.synthesis.write import synthesise
from breakeven.lab.container import OutTensor, SourceTensor, open_gguf, rewrite
from breakeven.lab.corpus import sample


def toy(path: Path, name: str = "llama", seed: int = 0) -> Path:
    """A model of two layers with random weights in single precision."""
    synthesise(small(name, num_hidden_layers=2), "F32", path, seed=seed)
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


def texts(directory: Path, languages: tuple[str, ...] = ("de", "en"), n_bytes: int = 11_000) -> Path:
    """A folder for each language with one file of about so many bytes: the sample's sentences in other orders."""
    for document in sample():
        if document.language not in languages:
            continue
        sentences = re.findall(r"[^.。]+[.。]", document.text)
        rng, drawn = random.Random(document.language), ""
        while len(drawn.encode()) < n_bytes:
            drawn += rng.choice(sentences)
        folder = directory / document.language
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(drawn, encoding="utf-8")
    return directory
