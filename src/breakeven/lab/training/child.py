"""The process that trains: one job, by the module of this room that does it. Torch is imported here."""

from __future__ import annotations

from importlib import import_module

import msgspec
import torch

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, Say, serve
from breakeven.errors import BreakevenError, NotSupportedError
from breakeven.lab.training.work import TrainingDone, TrainingJob


def _begin(request: TrainingJob, say: Say) -> tuple[TrainingDone, Answer]:
    die_with_parent(request.parent_pid)
    torch.set_num_threads(request.threads)
    module = import_module(f"breakeven.lab.training.{request.module}")
    try:
        done = module.run(bytes(request.spec), say)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        raise BreakevenError("no memory to train in; give --batch 1, shorter rows, or a smaller model") from error
    return TrainingDone(result=msgspec.Raw(msgspec.json.encode(done))), _nothing_more


def _nothing_more(request: TrainingJob) -> TrainingDone:
    raise NotSupportedError("this process has done its job")


if __name__ == "__main__":
    serve(TrainingJob, _begin)
