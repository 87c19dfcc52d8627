"""Logits of a Hugging Face directory in mlx-lm, wherever that is installed, and how far they are from another engine's.

`python mlx_logits.py DIRECTORY FOLDER` reads tokens.npy of FOLDER and writes logits.npy: mlx-lm often has an
environment of its own, whose interpreter knows nothing of Breakeven, so what runs there needs numpy and mlx-lm alone.

Legend: T tokens, V vocabulary.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 900


def ask_mlx(python: str, directory: Path, tokens: list[int]) -> tuple[Any, str]:
    """Logits (T, V) of mlx-lm in the interpreter `python`, and its version; or None, and why there are none."""
    with tempfile.TemporaryDirectory(prefix="breakeven-mlx-") as folder:
        np.save(Path(folder) / "tokens.npy", np.array(tokens, np.int64))
        command = [python, "-I", __file__, str(directory), folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
            answer = json.loads(done.stdout.splitlines()[-1])
        except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
            return None, f"mlx-lm does not answer: {' '.join(str(error).split())[:200]}"
        if "refused" in answer:
            return None, str(answer["refused"])
        return np.load(Path(folder) / "logits.npy"), str(answer["version"])


def kl_and_top1(source_TV: Any, other_TV: Any) -> tuple[Any, Any]:
    """KL(source || other) in nats and whether the likeliest token is the same, after each of T tokens."""
    p, q = (each.astype(np.float64) for each in (source_TV, other_TV))
    p -= p.max(axis=1, keepdims=True)
    q -= q.max(axis=1, keepdims=True)
    log_p = p - np.log(np.exp(p).sum(axis=1, keepdims=True))
    log_q = q - np.log(np.exp(q).sum(axis=1, keepdims=True))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)


def _main(directory: str, folder: str) -> dict[str, str]:
    from importlib import import_module, metadata

    try:
        utils, arrays = import_module("mlx_lm.utils"), import_module("mlx.core")
    except ImportError as error:
        return {"refused": f"mlx-lm is not installed there ({error})"}
    try:
        # Single precision throughout; a GPU would round products.
        arrays.set_default_device(arrays.cpu)
        model, _ = utils.load_model(Path(directory))
        model.set_dtype(arrays.float32)
        tokens = np.load(Path(folder) / "tokens.npy")
        logits = model(arrays.array(tokens)[None])[0].astype(arrays.float32)
        np.save(Path(folder) / "logits.npy", np.array(logits))
    except Exception as error:  # whatever its model's constructor or arithmetic meets
        return {"refused": " ".join(str(error).split())[:300]}
    return {"version": metadata.version("mlx-lm")}


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2])))
