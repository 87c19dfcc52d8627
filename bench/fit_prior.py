"""Writes the efficiencies that data-sheet profiles rest on, fitted on public measurements, with left-out errors.

python bench/fit_prior.py --data DIR [--out src/breakeven/forecast/data/efficiencies.json]

DIR holds the files of published records that `bench/published/records.py` names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.closed_form import steady_tpot_s
from bench.published.fitting import Fit, Problem, fitted, problem
from bench.published.judged import judged
from bench.published.leaving_out import by_machine, by_model, left_out
from bench.published.predicting import model_of, on_device
from bench.published.records import Observation, read
from bench.published.spilled import errors_of as errors_of_spilled
from bench.published.spilled import machine_of, spilled, with_constants
from breakeven.forecast.constants import Error, Range
from breakeven.forecast.profiles import Efficiencies, Entry
from breakeven.model.arithmetic import active_params

Floats = NDArray[np.float64]
ENGINE = {"local": "llama.cpp", "serving": "vllm"}
COVER = 0.9
LEAN = 8
"""A class with this many model-machine pairs counts as much in its own width as the whole family does."""
UNSEEN = 1.25
"""How much wider than the family's an interval is in a class that nobody measured. A judgement."""
SOURCES = {
    "local": ["published single-stream speeds (llama.cpp, Ollama, MLX), each record with its source"],
    "serving": [
        "aiconfigurator silicon samples (Apache-2.0), vLLM rows",
        "vllm-cost-meter (MIT)",
        "LLMServingSim bench examples (MIT)",
    ],
}
MOSTLY = 0.6
"""Share of a time between tokens above which it tells about decoding."""
DATE = "2026-11"


def usable(data: Path, family: str) -> list[Observation]:
    """A family's observations whose model we think the device holds."""
    base = judged(ENGINE[family])
    some = [o for o in read(data)[0] if o.family == family]
    return [o for o in some if on_device(o, base[o.chip.chip_class])]


def width(observations: Sequence[Observation], errors: Floats) -> float:
    """The |error| that covers `COVER` of what was left out; n records of one model on one chip count as sqrt(n)."""
    pairs = [(o.model_group, o.chip.slug) for o in observations]
    weight = np.array([pairs.count(p) ** -0.5 for p in pairs])
    order = np.argsort(np.abs(errors))
    reached = np.cumsum(weight[order]) / (weight.sum() + 1.0)  # the one more that has not been seen (conformal)
    return float(np.abs(errors)[order][min(int(np.searchsorted(reached, COVER)), len(errors) - 1)])


def centred(observations: Sequence[Observation], errors: Floats) -> Floats:
    """Errors less their machine's and phase's median; nan where a machine has one model alone."""
    found = np.full(len(errors), np.nan)
    keys = [(o.chip.slug, o.phase, o.engine) for o in observations]
    for key in set(keys):
        rows = [i for i, k in enumerate(keys) if k == key]
        if len({observations[i].model_group for i in rows}) > 1:
            found[rows] = errors[rows] - np.median(errors[rows])
    return found


def phases_of(asked: Problem, fit: Fit) -> list[str]:
    """What each observation tells about: a time between tokens that is mostly other people's prompts is prefill's."""
    found = []
    for o in asked.observations:
        phase: str = o.phase
        if o.family == "serving" and o.concurrency > 1:
            model = model_of(o, fit.entry(o.chip.chip_class))
            tpot = steady_tpot_s(model, o.concurrency, o.prompt, o.output)[1]
            plain = float(model.step_s(o.concurrency, o.prompt + o.output / 2))
            phase = "decode" if plain > MOSTLY * tpot else "prefill"
        found.append(phase)
    return found


def errors_of(
    chip_class: str, asked: Problem, phases: list[str], model_out: Floats, machine_out: Floats
) -> list[Error]:
    """The class's errors by phase and kind of model, leaning on the whole family where it has little data."""
    obs = asked.observations
    apart = centred(obs, model_out)
    found = []
    for phase in ("decode", "prefill"):
        for kind in ("dense", "moe"):
            family = [i for i, o in enumerate(obs) if phases[i] == phase and o.kind == kind]
            stretch = 1.0
            if len({obs[i].model_group for i in family}) < 2:  # too few to tell: all errors of this kind, wider
                family = [i for i, o in enumerate(obs) if o.kind == kind]
                stretch = UNSEEN
            own = [i for i in family if obs[i].chip.chip_class == chip_class and phases[i] == phase]
            pairs = len({(obs[i].model_group, obs[i].chip.slug) for i in own})
            share = pairs / (pairs + LEAN)

            def blended(
                errors: Floats,
                family: list[int] = family,
                own: list[int] = own,
                share: float = share,
                stretch: float = stretch,
            ) -> float:
                whole = [i for i in family if np.isfinite(errors[i])]
                mine = [i for i in own if np.isfinite(errors[i])]
                if not whole:  # no machine with two models: nothing says what would cancel
                    return float("inf")
                pooled = width([obs[i] for i in whole], errors[whole]) * stretch
                if not own:
                    return pooled * UNSEEN
                here = width([obs[i] for i in mine], errors[mine]) if mine else pooled
                return share * here + (1.0 - share) * pooled

            half = max(blended(model_out), blended(machine_out))
            rows = own or family
            both = np.concatenate([model_out[rows], machine_out[rows]])
            found.append(
                Error(
                    phase=phase,
                    kind=kind,
                    log_half_width=round(half, 4),
                    between_models=round(min(blended(apart), half), 4),
                    median=round(float(np.median(np.abs(np.expm1(both)))), 4),
                    n=len({obs[i].model_group for i in own}),
                    coverage=round(float(np.mean(np.abs(both) <= half)), 3) if own else None,
                )
            )
    return found


def ranges_of(observations: Sequence[Observation]) -> list[Range]:
    """What the observations span."""
    spans = {
        "batch": [o.concurrency or 1.0 for o in observations if o.phase == "decode"],
        "context": [o.prompt + o.output / 2 for o in observations if o.phase == "decode"],
        "active_params": [float(active_params(o.spec)) for o in observations],
    }
    return [Range(quantity=name, low=min(values), high=max(values)) for name, values in spans.items() if values]


def at_prior(fit: Fit, asked: Problem, chip_class: str) -> list[str]:
    """Constants of a class about which its own data say little: more than 0.8 of the prior's variance is left."""
    here = asked.residuals(fit, fit.theta)
    jacobian = asked.jacobian(fit, fit.theta, here)
    covariance = np.linalg.inv(jacobian.T @ jacobian + np.diag(1.0 / fit.spreads**2))
    left = np.diag(covariance) / fit.spreads**2
    known = {name for (name, c), share in zip(fit.slots, left, strict=True) if c == chip_class and share < 0.8}
    whole = {name for (name, c), share in zip(fit.slots, left, strict=True) if not c and share < 0.8}
    return [
        k.name for k in fit.knobs if k.name not in (known if k.between is not None else whole) and " " not in k.name
    ]


def entries(family: str, data: Path) -> list[Entry]:
    """Entries of all classes under one engine."""
    base, asked = judged(ENGINE[family]), problem(usable(data, family))
    fit = fitted(asked, base)
    model_out, machine_out = left_out(asked, fit, by_model, by_machine)
    phases = phases_of(asked, fit)
    made = []
    for chip_class in base:
        own = [o for o in asked.observations if o.chip.chip_class == chip_class]
        basis = (
            f"fitted on {len(own)} published measurements of {len({o.model_group for o in own})} models on "
            f"{len({o.chip.slug for o in own})} chips of this class"
            if own
            else "no published measurement of this class was used: the typical values of all others"
        )
        made.append(
            Entry(
                engine=ENGINE[family],
                chip_class=chip_class,
                efficiency=_rounded(fit, chip_class),
                errors=errors_of(chip_class, asked, phases, model_out, machine_out),
                ranges=ranges_of(own or asked.observations),
                basis=basis,
                points=len(own),
                at_prior=at_prior(fit, asked, chip_class) if own else [k.name for k in fit.knobs if " " not in k.name],
            )
        )
    return made


def _rounded(fit: Fit, chip_class: str) -> object:
    def short(x: object) -> object:
        if isinstance(x, dict):
            return {key: short(value) for key, value in x.items()}
        return float(f"{x:.3g}") if isinstance(x, float) else x

    found = fit.efficiency(chip_class)
    return msgspec.structs.replace(found, **{name: short(getattr(found, name)) for name in found.__struct_fields__})


def with_host_memory(made: list[Entry], data: Path) -> list[Entry]:
    """The entries of classes with host memory beside their devices, its constants and errors filled in."""
    apart = [entry for entry in made if entry.efficiency.host_bytes_per_s]
    found = spilled(data, apart)
    errors = errors_of_spilled(found)
    short = {name: float(f"{value:.3g}") for name, value in found.constants.items()}
    machines = len({machine_of(r) for r in found.records})
    basis = f"host memory fitted on {len(found.records)} published measurements of {machines} machines"
    return [
        msgspec.structs.replace(
            with_constants(entry, short), errors=[*entry.errors, *errors], basis=f"{entry.basis}; {basis}"
        )
        if entry in apart
        else entry
        for entry in made
    ]


def main() -> None:
    """Fits both families and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/breakeven/forecast/data/efficiencies.json"))
    given = parser.parse_args()
    local, serving = (entries(family, given.data) for family in ENGINE)
    made = Efficiencies(
        date=DATE,
        sources=[*SOURCES["local"], *SOURCES["serving"]],
        entries=[*with_host_memory(local, given.data), *serving],
    )
    given.out.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")


if __name__ == "__main__":
    main()
