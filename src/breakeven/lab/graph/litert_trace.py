"""The process that converts a model for LiteRT with torch and runs both beside each other. Child process only."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, Say, serve
from breakeven.errors import NotSupportedError
from breakeven.lab.bridge.directory_words import tokenizer_of
from breakeven.lab.graph.litert import TraceWindow, WindowTraced
from breakeven.lab.torch_scorer import load_model

FILE = "model.tflite"
_KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class OneWindow(torch.nn.Module):
    """Token ids of one window to logits: the model without its memory."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, T) ids to (1, T, V) logits."""
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def trace(asked: TraceWindow, say: Say) -> WindowTraced:
    """Convert and compare. Raises NotSupportedError for a model that the converter cannot take."""
    source, out = Path(asked.source), Path(asked.out)
    model = load_model(source)
    window = OneWindow(model).eval()
    say("converting", 0.2)
    ids = torch.arange(asked.window)[None] % model.config.vocab_size
    out.mkdir(parents=True)
    try:
        litert_torch.convert(window, (ids,)).export(str(out / FILE))
    except Exception as error:  # whatever its compiler stumbles over
        reason = " ".join(str(error).split())[:300]
        raise NotSupportedError(f"LiteRT's converter cannot take {source.name}: {reason}") from error
    for name in _KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    say("comparing", 0.8)
    return _compared(window, out / FILE, source, asked)


def _compared(window: OneWindow, file: Path, source: Path, asked: TraceWindow) -> WindowTraced:
    interpreter = Interpreter(model_path=str(file), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    into, back = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def lite(ids: torch.Tensor) -> np.ndarray[Any, Any]:
        interpreter.set_tensor(into["index"], ids.numpy().astype(into["dtype"]))
        interpreter.invoke()
        found: np.ndarray[Any, Any] = interpreter.get_tensor(back["index"])
        return found

    tokenizer = tokenizer_of(source)
    worst, same, tokens = 0.0, 1.0, 0
    before: list[float] = []
    after: list[float] = []
    with torch.inference_mode():
        for text in asked.texts:
            known = tokenizer.encode(text).ids[: asked.window]
            # What stands behind a token does not change what is predicted after it, so any filling does.
            ids = torch.tensor([known + known[-1:] * (asked.window - len(known))])
            first_TV = window(ids)[0, : len(known)].to(torch.float64).log_softmax(-1)
            other_TV = torch.from_numpy(lite(ids))[0, : len(known)].to(torch.float64).log_softmax(-1)
            kl_T = (first_TV.exp() * (first_TV - other_TV)).sum(-1)
            worst = max(worst, float(kl_T.mean()))
            same = min(same, float((first_TV.argmax(-1) == other_TV.argmax(-1)).to(torch.float64).mean()))
            tokens += len(known)
        for _ in range(asked.rounds):
            began = time.perf_counter()
            window(ids)
            middle = time.perf_counter()
            lite(ids)
            after.append(asked.window / (time.perf_counter() - middle))
            before.append(asked.window / (middle - began))
    weights = sum(each.numel() for each in window.parameters())
    return WindowTraced(weights=weights, kl=worst, same=same, tokens=tokens, before=before, after=after)


def _begin(request: TraceWindow, say: Say) -> tuple[WindowTraced, Answer]:
    die_with_parent(request.parent_pid)

    def answer(again: TraceWindow) -> WindowTraced:
        return trace(again, say)

    return answer(request), answer


if __name__ == "__main__":
    serve(TraceWindow, _begin)
