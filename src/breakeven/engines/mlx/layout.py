"""What mlx-lm would load of a configuration, and predicts: asked of it, in this process or in the one that has it.

`python layout.py` reads a question from standard input and writes the answer: mlx-lm often has an environment of its
own, whose interpreter knows nothing of Breakeven. Standard library and mlx-lm (with its numpy) alone, therefore.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pathlib
import subprocess
import sys


def ask_here(question: dict[str, object]) -> dict[str, object]:
    """Build the model of `config` without weights, as `dtype` and in `bits` (None: as it is) with groups of `group`.

    The answer holds `counts`, (name, elements) before it was quantized; `rows`, (name, shape, dtype) of all it loads;
    and `config` as it then is. `missing` without mlx-lm, `refused` where it cannot build it: in words.
    """
    try:
        utils, trees = importlib.import_module("mlx_lm.utils"), importlib.import_module("mlx.utils")
        arrays = importlib.import_module("mlx.core")
    except ImportError as error:
        return {"missing": str(error)}
    config = question["config"]
    try:
        model_class, args_class = utils._get_classes(config=config)
        model = model_class(args_class.from_dict(config))
        model.set_dtype(getattr(arrays, str(question["dtype"])))
        counts = [(key, value.size) for key, value in trees.tree_flatten(model.parameters())]
        if question["bits"] is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                model, config = utils.quantize_model(model, config, question["group"], question["bits"])
        # Arrays are lazy: asking for shapes allocates none.
        found = trees.tree_flatten(model.parameters())
    except Exception as error:  # mlx-lm raises whatever its model's constructor meets
        return {"refused": " ".join(str(error).split())}
    rows = [(key, list(value.shape), str(value.dtype).rpartition(".")[2]) for key, value in found]
    return {"counts": counts, "rows": rows, "config": config}


def logits_here(question: dict[str, object]) -> dict[str, object]:
    """Run `tokens` through the directory `model` in single precision; logits (tokens, vocabulary) go to `file`.npy.

    The answer holds mlx-lm's `version`; `missing` and `refused` as above.
    """
    try:
        utils, arrays = importlib.import_module("mlx_lm.utils"), importlib.import_module("mlx.core")
        numbers, packages = importlib.import_module("numpy"), importlib.import_module("importlib.metadata")
    except ImportError as error:
        return {"missing": str(error)}
    try:
        # A GPU would round products.
        arrays.set_default_device(arrays.cpu)
        model, _ = utils.load_model(pathlib.Path(str(question["model"])))
        model.set_dtype(arrays.float32)
        logits = model(arrays.array(question["tokens"])[None])[0].astype(arrays.float32)
        numbers.save(str(question["file"]), numbers.array(logits))
    except Exception as error:  # whatever its model's constructor or arithmetic meets
        return {"refused": " ".join(str(error).split())}
    return {"version": packages.version("mlx-lm")}


def ask_there(question: dict[str, object], python: str) -> dict[str, object]:
    """As `ask_here`, or `logits_here` where it holds `tokens`, in another interpreter."""
    try:
        # Isolated, so that nothing of ours is imported there.
        done = subprocess.run(
            [python, "-I", __file__], input=json.dumps(question), capture_output=True, text=True, timeout=600
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"missing": f"{python} does not answer: {error}"}
    return answer if isinstance(answer, dict) else {"missing": f"{python} does not answer"}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(logits_here(asked) if "tokens" in asked else ask_here(asked)))
