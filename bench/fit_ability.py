"""Writes the posterior of models' abilities, fitted on published scores, with figures on harnesses left out.

python bench/fit_ability.py --scores quality_2026.tsv [--older quality_scores.json] [--out FILE] [--report]

The scores themselves are not written: only what the fit found, and where it found it. `--report` prints the figures
of docs/quality.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ability.areas import FITTED
from bench.ability.left_out import Pairs, again_of, agreement, halves, judged, pairs_without, reliability, targets_of
from bench.ability.mixed import FEATURES, Fitted, Floats, data_of, refined, start, tuned
from bench.ability.rows import AnswerLength, Score, read
from breakeven.model.quality.posterior import (
    AREAS,
    ELSEWHERE,
    AbilityData,
    BySize,
    Posterior,
    PublishedLength,
    ScoreOrigin,
)

TARGET = Path(__file__).parent.parent / "src" / "breakeven" / "model" / "data" / "ability.json"
RANK = 6
"""Doubts that models have in common are kept in so many directions; what is left counts as each model's own."""
ABOUT = (
    "Abilities of language models by area, in logits: the posterior of a linear mixed model of published scores, which "
    "are not in this file. Sources, licences and links stand under `sources`; rows that are single facts are read "
    "and not passed on. Written by bench/fit_ability.py; docs/quality.md says how."
)
HALVES = (("knowledge", 0.5), ("sense", 0.5))
"""What ability in a language is made of."""


def entities(scores: Sequence[Score]) -> list[Score]:
    """One score of each model and mode, to stand for it."""
    return list({s.kin.key: s for s in reversed(scores)}.values())


def posterior(scores: list[Score], lengths: list[AnswerLength], fit: Fitted) -> AbilityData:
    """What is shipped, but for the figures of what was left out."""
    models = sorted(entities(scores), key=lambda s: s.kin.key)
    spoken: dict[str, set[str]] = defaultdict(set)
    for s in scores:
        if s.language:
            spoken[s.kin.key].add(s.language)
    wanted: list[tuple[Score, str | None]] = []
    place: dict[tuple[str, str], int] = {}
    for s in models:
        for area in (*AREAS, ELSEWHERE, "en", *sorted(spoken[s.kin.key])):
            areas = ((area, 1.0),) if area in AREAS else HALVES
            place[s.kin.key, area] = len(wanted)
            wanted.append((replace(s, areas=areas), None if area in AREAS or area == "en" else area))
    mean, shared, own = fit.effects(targets_of(fit.data, wanted))
    z = shared @ np.linalg.cholesky(fit.cov_PP)
    u, size, _ = np.linalg.svd(z, full_matrices=False)
    kept = u[:, :RANK] * size[:RANK]
    var = (z**2).sum(1)
    for index, block in own:
        var[index] += np.diag(block)
    for (_, area), i in place.items():
        # A language that nobody tried is like none of those that were.
        var[i] += fit.sd["weights_language"] ** 2 if area == ELSEWHERE else 0.0
    zero = _zero(models, place, mean)
    series: dict[str, list[str]] = defaultdict(list)
    for s in models:
        series[s.kin.series].append(s.kin.key)
    return AbilityData(
        about=ABOUT, again=_short(again_of(fit)), zero=zero, sizes=_sizes(fit, models),
        models=_models(scores, models, spoken, place, mean, var, kept), series=dict(series),
        kin=_kin(dict(series), place, z, kept, own), sources=_sources(scores),
        answers=_named(lengths),
        left_out={},
    )  # fmt: skip


def _short(value: float) -> float:
    return round(float(value), 3)


def _named(lengths: list[AnswerLength]) -> list[PublishedLength]:
    return sorted(
        (PublishedLength(each.key, each.benchmark, each.area, round(each.tokens)) for each in lengths),
        key=lambda each: (each.benchmark, each.model),
    )


def _zero(models: Sequence[Score], place: dict[tuple[str, str], int], mean: Floats) -> dict[str, float]:
    """By area the middle of the models that answer."""
    answering = [s for s in models if s.kin.mode != "base"]
    return {
        area: _short(np.median([mean[place[s.kin.key, area]] for s in answering]))
        for area in (*AREAS, ELSEWHERE, "en")
    }  # fmt: skip


def _models(
    scores: Sequence[Score],
    models: Sequence[Score],
    spoken: dict[str, set[str]],
    place: dict[tuple[str, str], int],
    mean: Floats,
    var: Floats,
    kept: Floats,
) -> dict[str, Posterior]:
    count: dict[str, Counter[str]] = defaultdict(Counter)
    harnesses: dict[str, set[str]] = defaultdict(set)
    for s in scores:
        harnesses[s.kin.key].add(s.harness)
        count[s.kin.key][s.language or "en"] += 1
        if s.language is None:
            count[s.kin.key].update(area for area, _ in s.areas)
    out = {}
    for s in models:
        key = s.kin.key
        rows = {area: place[key, area] for area in (*AREAS, ELSEWHERE, "en", *sorted(spoken[key]))}
        at = {area: [_short(mean[i]), _short(np.sqrt(var[i])), *map(_short, kept[i])] for area, i in rows.items()}
        out[key] = Posterior(sorted(harnesses[key]), dict(sorted(count[key].items())), at)
    return out


def _kin(
    series: dict[str, list[str]],
    place: dict[tuple[str, str], int],
    z: Floats,
    kept: Floats,
    own: list[tuple[np.ndarray, Floats]],
) -> dict[str, dict[str, list[float]]]:
    where = {int(i): (index, block, n) for index, block in own for n, i in enumerate(index)}
    out: dict[str, dict[str, list[float]]] = {}
    for name, keys in series.items():
        out[name] = {area: [] for area in (*AREAS, ELSEWHERE, "en")}
        for area, triangle in out[name].items():
            rows = [place[key, area] for key in keys]
            for a, i in enumerate(rows):
                for j in rows[:a]:
                    block = where[i][1][where[i][2], where[j][2]]
                    triangle.append(_short(block + z[i] @ z[j] - kept[i] @ kept[j]))
    return out


def _sizes(fit: Fitted, models: Sequence[Score]) -> dict[str, BySize]:
    """What is known of a model without scores: coefficients by area, and the effects of series."""
    sd, n_bench, n = fit.sd, len(fit.data.benchmarks), len(FEATURES)
    by_series = list({s.kin.series: s for s in models}.values())
    out = {}
    for area in (*AREAS, ELSEWHERE, "en"):
        areas = dict(((area, 1.0),) if area in AREAS else HALVES)
        pick = np.zeros((n, len(fit.mean_P)))
        for f in range(n):
            pick[f, n_bench + f] = 1
            for a, name in enumerate(FITTED):
                pick[f, n_bench + n * (1 + a) + f] = areas.get(name, 0.0)
            pick[f, n_bench + n * (1 + len(FITTED)) + f] = float(area == ELSEWHERE)
        own = sum(w**2 for w in areas.values())
        foreign = float(area == ELSEWHERE)
        series_var = sd["series"] ** 2 + sd["series_area"] ** 2 * own + sd["series_foreign"] ** 2 * foreign
        release = (
            sd["weights"] ** 2 + sd["entity"] ** 2 + (sd["weights_area"] ** 2 + sd["entity_area"] ** 2) * own
            + (sd["weights_foreign"] ** 2 + sd["weights_language"] ** 2) * foreign
        )  # fmt: skip
        # A model of the series that nobody knows: its weights and release are of numbers that no score has.
        made = [replace(s, kin=replace(s.kin, release="?", weights="?"), areas=tuple(areas.items())) for s in by_series]
        points = targets_of(fit.data, [(s, ELSEWHERE if foreign else None) for s in made])
        mean, _, blocks = fit.effects(points)
        coefficients = pick @ fit.mean_P
        effect = mean - points.x_NF @ coefficients
        left = np.zeros(len(made))
        for index, block in blocks:
            left[index] = np.sqrt(np.maximum(np.diag(block) - release, 0.0))
        out[area] = BySize(
            [_short(c) for c in coefficients], np.round(pick @ fit.cov_PP @ pick.T, 4).tolist(),
            _short(np.sqrt(series_var)), _short(np.sqrt(release)),
            {s.kin.series: (_short(effect[i]), _short(left[i])) for i, s in enumerate(by_series)},
        )  # fmt: skip
    return out


def _sources(scores: Sequence[Score]) -> dict[str, ScoreOrigin]:
    out = {}
    for name in sorted({s.harness for s in scores}):
        mine = [s for s in scores if s.harness == name]
        models = len({s.kin.key for s in mine})
        out[name] = ScoreOrigin(len(mine), models, mine[0].licence, mine[0].link)
    return out


def figures(scores: list[Score], sd: dict[str, float]) -> tuple[Pairs, dict[str, float]]:
    """Of every harness left out in turn: the pairs, and how right it was. Deviations of effects are those of all."""
    names = sorted({s.harness for s in scores})
    with ProcessPoolExecutor(2) as workers:
        parts = list(workers.map(pairs_without, names, [scores] * len(names), [sd] * len(names)))
    pairs = Pairs.of([part for part in parts if part is not None])
    told = judged(pairs.chosen(pairs.known > 0))
    told |= {f"direct_{key}": value for key, value in judged(pairs.chosen(pairs.known >= 2)).items()}
    beside = pairs.chosen(pairs.known == 3)
    told |= {f"beside_{key}": value for key, value in judged(beside).items()}
    told["beside_other_harness_right"] = float(np.average(beside.others, weights=beside.weight()))
    told |= {f"by_size_{key}": value for key, value in judged(pairs.chosen(pairs.known == 0)).items()}
    return pairs, told


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads, fits, leaves out, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--older", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args(arguments)
    scores, lengths = read(given.scores, given.older)
    fit = refined(tuned(refined(start(data_of(scores)))), 2)
    pairs, told = figures(scores, fit.sd)
    data = posterior(scores, lengths, fit)
    data.left_out = {key: _short(value) for key, value in told.items()}
    given.out.write_bytes(_lines(data))
    print(f"{len(scores)} scores of {len(data.models)} models in {len(data.sources)} sources -> {given.out.name}")
    sd = {name: _short(value) for name, value in fit.sd.items()}
    print(f"sd {sd}, again {again_of(fit):.3f}")
    if given.report:
        _report(scores, pairs, told)
    return 0


def _report(scores: Sequence[Score], pairs: Pairs, told: dict[str, float]) -> None:
    for name, value in told.items():
        print(f"  {name:32} {value:.3f}")
    for name in np.unique(pairs.harness):
        here = pairs.chosen((pairs.harness == name) & (pairs.known > 0))
        if len(here.difference):
            direct = here.difference[here.known >= 2]
            print(
                f"  {name:24} {len(here.difference):6d} pairs, right {np.mean(here.difference > 0):.3f}; "
                f"{len(direct)} in areas with scores elsewhere, right {np.mean(direct > 0) if len(direct) else 0:.3f}"
            )
    print("  another harness says the same of {:.3f} of {} pairs".format(*agreement(scores)))
    print("  the other half of its own benchmarks says the same of {:.3f} of {} pairs".format(*halves(scores)))
    for stated, true, n in reliability(pairs.chosen(pairs.known > 0)):
        print(f"  said {stated:.2f}, came true {true:.2f} ({n} pairs)")


def _lines(data: AbilityData) -> bytes:
    """JSON with one line a model, so that a change can be read."""
    whole = msgspec.to_builtins(data)
    encode = msgspec.json.encode
    parts = []
    for key, value in whole.items():
        if isinstance(value, dict) and key in ("models", "sizes", "kin", "sources"):
            lines = b",\n".join(encode(name) + b":" + encode(each) for name, each in value.items())
            parts.append(encode(key) + b":{\n" + lines + b"}")
        else:
            parts.append(encode(key) + b":" + encode(value))
    return b"{" + b",\n".join(parts) + b"}\n"


if __name__ == "__main__":
    sys.exit(main())
