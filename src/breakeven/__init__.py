"""Mixture-of-Experts or dense: which language model should I run here, and at what load does the answer flip?

`breakeven.compare([...])` does what `breakeven compare` does, and so do the other verbs; `report` is `recompute`, and
two verbs whose names are rooms of the package, `breakeven.predict` and `breakeven.decide`, are `predict_models` and
`decide_study`.
Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.version import __version__

if TYPE_CHECKING:
    from breakeven.answer.cost import CostOptions as CostOptions
    from breakeven.answer.cost import cost as cost
    from breakeven.api import bench as bench
    from breakeven.api import capacity as capacity
    from breakeven.api import compare as compare
    from breakeven.api import compare_under_load as compare_under_load
    from breakeven.api import decide_from_log as decide_from_log
    from breakeven.api import decide_study as decide_study
    from breakeven.api import experiment_status as experiment_status
    from breakeven.api import explain as explain
    from breakeven.api import predict_models as predict_models
    from breakeven.api import recompute as recompute
    from breakeven.api import serve as serve
    from breakeven.runs.calibrate import CalibrateOptions as CalibrateOptions
    from breakeven.runs.calibrate import calibrate as calibrate
    from breakeven.runs.load import LoadOptions as LoadOptions
    from breakeven.traffic.words import Words as Traffic

_HOMES = {
    "CalibrateOptions": ("breakeven.runs.calibrate", "CalibrateOptions"),
    "CostOptions": ("breakeven.answer.cost", "CostOptions"),
    "LoadOptions": ("breakeven.runs.load", "LoadOptions"),
    "Traffic": ("breakeven.traffic.words", "Words"),
    "bench": ("breakeven.api", "bench"),
    "calibrate": ("breakeven.runs.calibrate", "calibrate"),
    "capacity": ("breakeven.api", "capacity"),
    "compare": ("breakeven.api", "compare"),
    "compare_under_load": ("breakeven.api", "compare_under_load"),
    "cost": ("breakeven.answer.cost", "cost"),
    "decide_from_log": ("breakeven.api", "decide_from_log"),
    "decide_study": ("breakeven.api", "decide_study"),
    "experiment_status": ("breakeven.api", "experiment_status"),
    "explain": ("breakeven.api", "explain"),
    "predict_models": ("breakeven.api", "predict_models"),
    "recompute": ("breakeven.api", "recompute"),
    "serve": ("breakeven.api", "serve"),
}

__all__ = [
    "CalibrateOptions",
    "CostOptions",
    "LoadOptions",
    "Traffic",
    "__version__",
    "bench",
    "calibrate",
    "capacity",
    "compare",
    "compare_under_load",
    "cost",
    "decide_from_log",
    "decide_study",
    "experiment_status",
    "explain",
    "predict_models",
    "recompute",
    "serve",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        module, there = _HOMES[name]
        return getattr(import_module(module), there)
    raise AttributeError(f"module 'breakeven' has no attribute {name!r}")
