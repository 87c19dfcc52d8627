"""Three prepared pairs, the largest first: a Mixture-of-Experts model and the dense model people weigh it against."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from breakeven.engines.cache import cache_directory
from breakeven.engines.memory import RESERVE, needed_bytes
from breakeven.errors import UserError
from breakeven.hardware.reader import read_machine
from breakeven.measure.paired.plan import Plan
from breakeven.model.arithmetic import file_bytes
from breakeven.model.catalogue import lookup
from breakeven.runs.compare import Options


@dataclass(frozen=True, slots=True)
class Demo:
    """One pair and the requests that measure it in about three minutes on two cores."""

    models: tuple[str, str]
    plan: Plan


DEMOS = (
    Demo(("olmoe-1b-7b", "llama-3.2-1b"), Plan((1, 4), 32, 32, 0.02, 175.0)),  # the pair of arXiv 2606.21428
    Demo(("granite-3.1-3b-a800m", "llama-3.2-1b"), Plan((1, 4), 32, 32, 0.02, 175.0)),
    Demo(("granite-3.1-1b-a400m", "smollm2-360m"), Plan((1, 4), 32, 32, 0.02, 120.0)),
)


def demo_pair(options: Options) -> tuple[list[str], Options]:
    """The largest pair that fits this machine's memory and disk. Raises UserError when none does."""
    available = read_machine().available_memory_bytes
    place = next(p for p in (cache_directory(), *cache_directory().parents) if p.exists())
    free = shutil.disk_usage(place).free
    for demo in DEMOS:
        specs = [lookup(name) for name in demo.models]
        memory = sum(needed_bytes(s, options.format_name, 256, max(demo.plan.streams)) for s in specs)
        disk = sum(file_bytes(s, options.format_name) for s in specs)
        if memory <= RESERVE * available and disk <= free:
            return list(demo.models), replace(options, plan=replace(demo.plan, seed=options.plan.seed))
    raise UserError(
        f"the smallest demonstration needs {memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk;"
        f" this machine has {available / 1e9:.1f} GB and {Path(place)} {free / 1e9:.1f} GB"
    )
