"""Mixture-of-Experts or dense: which language model should I run here, and at what load does the answer flip?

Every verb of the command line stands here under its own name: `breakeven.compare([...])` does what `breakeven compare`
does, `breakeven.keys.create("ann")` what `breakeven keys create ann` does. Beside them stand the words they take.
Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.version import __version__

if TYPE_CHECKING:
    from breakeven.answer.cost import CostOptions as CostOptions
    from breakeven.answer.cost import cost as cost
    from breakeven.answer.study.init import ask
    from breakeven.api.computed import choose as choose
    from breakeven.api.computed import claims as claims
    from breakeven.api.computed import decide as decide
    from breakeven.api.computed import decide_from_log as decide_from_log
    from breakeven.api.computed import predict as predict
    from breakeven.api.computed import simulate as simulate
    from breakeven.api.distill import distill as distill
    from breakeven.api.experts import ExpertVerbs
    from breakeven.api.gateway import ExperimentVerbs, KeyVerbs
    from breakeven.api.gateway import explain as explain
    from breakeven.api.gateway import serve as serve
    from breakeven.api.inspected import CacheVerbs
    from breakeven.api.inspected import machine as machine
    from breakeven.api.inspected import machines as machines
    from breakeven.api.inspected import models as models
    from breakeven.api.inspected import profile as profile
    from breakeven.api.inspected import synth as synth
    from breakeven.api.inspected import trace as trace
    from breakeven.api.lab import evaluate as evaluate
    from breakeven.api.lab import export as export
    from breakeven.api.lab import quantize as quantize
    from breakeven.api.measured import bench as bench
    from breakeven.api.measured import capacity as capacity
    from breakeven.api.measured import check as check
    from breakeven.api.measured import compare as compare
    from breakeven.api.measured import compare_under_load as compare_under_load
    from breakeven.api.measured import report as report
    from breakeven.api.training import train as train
    from breakeven.api.training import tune as tune
    from breakeven.api.training import tune_elsewhere as tune_elsewhere
    from breakeven.forecast.simulator.policy import Autoscale as Autoscale
    from breakeven.forecast.simulator.policy import Fleet as Fleet
    from breakeven.hardware.machine import Gpu as Gpu
    from breakeven.hardware.machine import Machine as Machine
    from breakeven.hardware.machine import MachineSpec as MachineSpec
    from breakeven.hardware.placement import Placement as Placement
    from breakeven.hardware.placement import placement_of as placement_of
    from breakeven.lab.surgery.experts import Surgery as Surgery
    from breakeven.results.cost import Api as Api
    from breakeven.results.cost import Own as Own
    from breakeven.results.cost import Rented as Rented
    from breakeven.runs.calibrate import calibrate as calibrate
    from breakeven.runs.capacity import CapacityOptions as CapacityOptions
    from breakeven.runs.load import LoadOptions as LoadOptions
    from breakeven.runs.probed import CalibrateOptions as CalibrateOptions
    from breakeven.traffic.words import Words

    cache = CacheVerbs
    experiment = ExperimentVerbs
    experts = ExpertVerbs
    init_study = ask
    keys = KeyVerbs
    Traffic = Words

_HOMES = {
    "Api": ("results.cost", "Api"),
    "Autoscale": ("forecast.simulator.policy", "Autoscale"),
    "CalibrateOptions": ("runs.probed", "CalibrateOptions"),
    "CapacityOptions": ("runs.capacity", "CapacityOptions"),
    "Placement": ("hardware.placement", "Placement"),
    "placement_of": ("hardware.placement", "placement_of"),
    "CostOptions": ("answer.cost", "CostOptions"),
    "Fleet": ("forecast.simulator.policy", "Fleet"),
    "Gpu": ("hardware.machine", "Gpu"),
    "LoadOptions": ("runs.load", "LoadOptions"),
    "Machine": ("hardware.machine", "Machine"),
    "MachineSpec": ("hardware.machine", "MachineSpec"),
    "Own": ("results.cost", "Own"),
    "Rented": ("results.cost", "Rented"),
    "Surgery": ("lab.surgery.experts", "Surgery"),
    "Traffic": ("traffic.words", "Words"),
    "bench": ("api.measured", "bench"),
    "cache": ("api.inspected", "CacheVerbs"),
    "calibrate": ("runs.calibrate", "calibrate"),
    "capacity": ("api.measured", "capacity"),
    "check": ("api.measured", "check"),
    "choose": ("api.computed", "choose"),
    "claims": ("api.computed", "claims"),
    "compare": ("api.measured", "compare"),
    "compare_under_load": ("api.measured", "compare_under_load"),
    "cost": ("answer.cost", "cost"),
    "decide": ("api.computed", "decide"),
    "decide_from_log": ("api.computed", "decide_from_log"),
    "distill": ("api.distill", "distill"),
    "evaluate": ("api.lab", "evaluate"),
    "export": ("api.lab", "export"),
    "experiment": ("api.gateway", "ExperimentVerbs"),
    "experts": ("api.experts", "ExpertVerbs"),
    "explain": ("api.gateway", "explain"),
    "init_study": ("answer.study.init", "ask"),
    "keys": ("api.gateway", "KeyVerbs"),
    "machine": ("api.inspected", "machine"),
    "machines": ("api.inspected", "machines"),
    "models": ("api.inspected", "models"),
    "predict": ("api.computed", "predict"),
    "profile": ("api.inspected", "profile"),
    "quantize": ("api.lab", "quantize"),
    "report": ("api.measured", "report"),
    "serve": ("api.gateway", "serve"),
    "simulate": ("api.computed", "simulate"),
    "synth": ("api.inspected", "synth"),
    "trace": ("api.inspected", "trace"),
    "train": ("api.training", "train"),
    "tune": ("api.training", "tune"),
    "tune_elsewhere": ("api.training", "tune_elsewhere"),
}
"""Public name to the module, below this package, that holds it, and its name there."""

_FORMER = {
    "decide_study": "decide",
    "experiment_status": "experiment.status",
    "predict_models": "predict",
    "recompute": "report",
}
"""Names until 0.1, which still work, and what to write instead."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _FORMER:
        import warnings
        from operator import attrgetter

        new = _FORMER[name]
        warnings.warn(f"breakeven.{name} is now breakeven.{new}", DeprecationWarning, stacklevel=2)
        return attrgetter(new)(import_module("breakeven"))
    if name in _HOMES:
        module, there = _HOMES[name]
        return getattr(import_module(f"breakeven.{module}"), there)
    raise AttributeError(f"module 'breakeven' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
