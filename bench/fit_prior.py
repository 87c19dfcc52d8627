"""Writes the efficiencies that data-sheet profiles rest on, fitted on public measurements, with left-out errors.

python bench/fit_prior.py --data DIR [--out src/breakeven/forecast/data/efficiencies.json]

DIR holds the files of published records that `bench/published/records.py` names.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.closed_form import steady_tpot_s
from bench.published.by_class import class_table, ratio_table
from bench.published.fitting import Fit, Problem, backend, fitted, problem
from bench.published.judged import judged
from bench.published.leaving_out import by_machine, by_model, left_out
from bench.published.predicting import model_of, on_device
from bench.published.records import Observation, of_threads, read
from bench.published.spilled import errors_of as errors_of_spilled
from bench.published.spilled import machine_of, spilled, with_constants
from breakeven.forecast.constants import UNSEEN, Error, Range
from breakeven.forecast.efficiencies import Efficiencies, Entry
from breakeven.hardware.chips import backend_of, chips
from breakeven.model.arithmetic import active_params

Floats = NDArray[np.float64]
ENGINE = {"local": "llama.cpp", "serving": "vllm"}
COVER = 0.9
LEAN = 8
"""A class with this many model-machine pairs counts as much in its own width as the whole family does."""
MOSTLY_OF = 0.05
"""Number types with less of a model's bytes do not count as measured with it."""
SOURCES = {
    "local": ["published speeds (llama.cpp, Ollama, MLX), each record with its source"],
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
    some = [o for o in (*read(data)[0], *of_threads()) if o.family == family]
    return [o for o in some if on_device(o, base[o.chip.chip_class])]


def width(observations: Sequence[Observation], errors: Floats) -> float:
    """The |error| that covers `COVER` of what was left out; n records of one model on one chip count as sqrt(n)."""
    pairs = [(o.model_group, o.chip.slug) for o in observations]
    counts = Counter(pairs)
    weight = np.array([counts[p] ** -0.5 for p in pairs])
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
            model = model_of(o, fit.entry(o.chip.chip_class, kernels=backend(o)))
            tpot = steady_tpot_s(model, o.concurrency, o.prompt, o.output)[1]
            plain = float(model.step_s(o.concurrency, o.prompt + o.output / 2))
            phase = "decode" if plain > MOSTLY * tpot else "prefill"
        found.append(phase)
    return found


def errors_of(
    chip_class: str, kernels: str, asked: Problem, phases: list[str], model_out: Floats, machine_out: Floats
) -> list[Error]:
    """The errors of a class and backend by phase and kind of model.

    Where they have little data they lean on the backend's other classes, and those on the whole family.
    """
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
            alike = [i for i in family if backend(obs[i]) == kernels] if kernels else family
            own = [i for i in alike if obs[i].chip.chip_class == chip_class and phases[i] == phase]
            levels = [family, alike, own] if kernels else [family, own]
            half = max(_blended(errors, obs, levels) for errors in (model_out, machine_out)) * stretch
            between = _blended(apart, obs, levels) * stretch
            rows = own or alike or family
            both = np.concatenate([model_out[rows], machine_out[rows]])
            found.append(
                Error(
                    phase=phase,
                    kind=kind,
                    log_half_width=round(half, 4),
                    between_models=round(min(between, half), 4),
                    median=round(float(np.median(np.abs(np.expm1(both)))), 4),
                    n=len({obs[i].model_group for i in own}),
                    coverage=round(float(np.mean(np.abs(both) <= half)), 3) if own else None,
                    records=len(own),
                    machines=len({obs[i].chip.slug for i in own}),
                )
            )
    return found


def _blended(errors: Floats, obs: Sequence[Observation], levels: list[list[int]]) -> float:
    """The width of the last level, each leaning on the one before it as far as its own data are few."""
    known = [[i for i in rows if np.isfinite(errors[i])] for rows in levels]
    if not known[0]:  # no machine with two models: nothing says what would cancel
        return float("inf")
    found = width([obs[i] for i in known[0]], errors[known[0]])
    for rows in known[1:]:
        pairs = len({(obs[i].model_group, obs[i].chip.slug) for i in rows})
        share = pairs / (pairs + LEAN)
        if rows:
            found = share * width([obs[i] for i in rows], errors[rows]) + (1.0 - share) * found
    return found if levels[-1] else found * UNSEEN


def ranges_of(observations: Sequence[Observation]) -> list[Range]:
    """What the observations span."""
    spans = {
        "batch": [o.concurrency or 1.0 for o in observations if o.phase == "decode"],
        "context": [o.prompt + o.output / 2 for o in observations if o.phase == "decode"],
        "active_params": [float(active_params(o.spec)) for o in observations],
    }
    return [Range(quantity=name, low=min(values), high=max(values)) for name, values in spans.items() if values]


def types_of(observations: Sequence[Observation]) -> dict[str, int]:
    """Records by number type of weights."""
    found: Counter[str] = Counter()
    for o in observations:
        terms = model_of(o, judged(ENGINE[o.family])[o.chip.chip_class]).terms
        nbytes: Counter[str] = Counter()
        for kind, n in (*terms.fixed, *(pair for group in terms.experts for pair in group.types)):
            nbytes[kind] += int(n)
        found.update(kind for kind, n in nbytes.items() if n > MOSTLY_OF * nbytes.total())
    return dict(sorted(found.items()))


def left_of_priors(fit: Fit, asked: Problem) -> dict[tuple[str, str], float]:
    """By slot, the share of its prior's variance that the data left."""
    here = asked.residuals(fit, fit.theta)
    jacobian = asked.jacobian(fit, fit.theta, here)
    covariance = np.linalg.inv(jacobian.T @ jacobian + np.diag(1.0 / fit.spreads**2))
    return dict(zip(fit.slots, np.diag(covariance) / fit.spreads**2, strict=True))


def at_prior(fit: Fit, left: dict[tuple[str, str], float], chip_class: str, kernels: str) -> list[str]:
    """Constants about which a class's own data, or its backend's, say little: they left 0.8 of the prior or more."""
    known = {name for (name, of), share in left.items() if of in (chip_class, kernels) and of and share < 0.8}
    whole = {name for (name, of), share in left.items() if not of and share < 0.8}
    parted = {k.name for k in fit.knobs if k.between is not None or k.across is not None}
    return [k.name for k in fit.knobs if " " not in k.name and k.name not in (known if k.name in parted else whole)]


def entries(family: str, data: Path) -> tuple[list[Entry], str]:
    """Entries of all classes under one engine, and the tables of what was left out."""
    base, asked = judged(ENGINE[family]), problem(usable(data, family))
    fit = fitted(asked, base)
    model_out, machine_out = left_out(asked, fit, by_model, by_machine)
    phases, left = phases_of(asked, fit), left_of_priors(fit, asked)
    made = []
    for chip_class, kernels in kinds_of(family, base):
        own = [o for o in asked.observations if o.chip.chip_class == chip_class and kernels in ("", backend(o))]
        basis = (
            f"fitted on {len(own)} published measurements of {len({o.model_group for o in own})} models on "
            f"{len({o.chip.slug for o in own})} chips of this class"
            if own
            else "no published measurement of this class was used: the typical values of all others"
        )
        if kernels and not own:
            alike = sum(backend(o) == kernels for o in asked.observations)
            basis = f"no published measurement of this class was used: those of {alike} with the same kernels elsewhere"
        made.append(
            Entry(
                engine=ENGINE[family],
                chip_class=chip_class,
                backend=kernels,
                efficiency=_rounded(fit, chip_class, kernels),
                errors=errors_of(chip_class, kernels, asked, phases, model_out, machine_out),
                ranges=ranges_of(own or asked.observations),
                basis=basis,
                points=len(own),
                kernels=dict(sorted(Counter(backend_of(o.chip) for o in own).items())),
                types=types_of(own),
                at_prior=at_prior(fit, left, chip_class, kernels)
                if own
                else [k.name for k in fit.knobs if " " not in k.name],
            )
        )
    tables = class_table(asked.observations, machine_out, made)
    if family == "local":
        tables += "\n" + ratio_table(asked.observations, machine_out)
    return made, tables


def kinds_of(family: str, base: dict[str, Entry]) -> list[tuple[str, str]]:
    """Classes and backends of the catalogue, and each class with no matter whose kernels."""
    found = [(chip_class, "") for chip_class in base]
    if family == "local":
        seen = {(chip.chip_class, backend_of(chip)) for chip in chips()}
        found += sorted((c, b) for c, b in seen if b and c in base)
    return found


def _rounded(fit: Fit, chip_class: str, kernels: str) -> object:
    def short(x: object) -> object:
        if isinstance(x, dict):
            return {key: short(value) for key, value in x.items()}
        return float(f"{x:.3g}") if isinstance(x, float) else x

    found = fit.efficiency(chip_class, kernels=kernels)
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
    """Fits both families, writes the file and prints the tables by class of docs/accuracy.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/breakeven/forecast/data/efficiencies.json"))
    given = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        (local, local_tables), (serving, serving_tables) = pool.map(entries, ENGINE, [given.data] * len(ENGINE))
    print(local_tables, serving_tables, sep="\n")
    made = Efficiencies(
        date=DATE,
        sources=[*SOURCES["local"], *SOURCES["serving"]],
        entries=[*with_host_memory(local, given.data), *serving],
    )
    given.out.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")


if __name__ == "__main__":
    main()
