"""The process that traces a model into an ONNX graph with torch. Child process only.

The graph is that of a step which reads several tokens behind a memory of others, taken from two steps of a generation:
with an empty memory it reads a prompt, with one token it makes an answer, so one graph and one copy of the weights do.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_prefill_decode

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, Say, serve
from breakeven.errors import NotSupportedError
from breakeven.lab.graph.onnx import GraphTraced, TraceGraph
from breakeven.lab.torch_scorer import load_model

_KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_SEQUENCES, _TOKENS = 2, 9
"""Of the text it is traced with: no size of one, which the graph would keep as one."""


def trace(asked: TraceGraph, say: Say) -> GraphTraced:
    """Write the graph. Raises NotSupportedError where neither form of it can be traced."""
    source, out = Path(asked.source), Path(asked.out)
    model = load_model(source)
    notes = _drift()
    ids = torch.arange(_SEQUENCES * _TOKENS).reshape(_SEQUENCES, _TOKENS) % model.config.vocab_size
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    say("tracing the graph", 0.2)
    try:
        step = decompose_prefill_decode(model, inputs, multi_token_decode=True)["decode"][1]
        _write(model, step, out)
        cached = True
    except Exception as error:  # whatever its compiler stumbles over
        say("tracing the graph without a memory", 0.5)
        shutil.rmtree(out, ignore_errors=True)
        notes.append(f"a graph with a memory could not be traced ({' '.join(str(error).split())[:120]})")
        try:
            _write(model, {"input_ids": ids, "use_cache": False}, out)
        except Exception as again:
            reason = " ".join(str(again).split())[:300]
            raise NotSupportedError(
                f"transformers {transformers.__version__} cannot trace {source.name} into a graph: {reason}"
            ) from again
        cached = False
    for name in _KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return GraphTraced(cached=cached, notes=notes)


def _write(model: Any, inputs: dict[str, Any], out: Path) -> None:
    exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True))
    exported.save_pretrained(out)


def _drift() -> list[str]:
    """What the exporter says of the versions it finds, once, as a note; its other words go to the log."""
    notes: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if "drift" in said and not notes:
                found = said.partition("detected")[2].strip(" —-").partition(". If")[0]
                notes.append(f"the exporter was not tested with these versions: {found}")

    transformers.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(Heard())
    OnnxExporter()
    transformers.logging.set_verbosity_error()
    return notes


def _begin(request: TraceGraph, say: Say) -> tuple[GraphTraced, Answer]:
    die_with_parent(request.parent_pid)

    def answer(again: TraceGraph) -> GraphTraced:
        return trace(again, say)

    return answer(request), answer


if __name__ == "__main__":
    serve(TraceGraph, _begin)
