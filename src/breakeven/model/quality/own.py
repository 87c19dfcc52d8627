"""The user's own scores of models: JSON lines, lm-eval's results, or what `breakeven evaluate` wrote.

Own tasks come before anybody's: they are the only ones measured on what the user wants done.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.model.quality.methods import method_of
from breakeven.model.quality.posterior import AREAS, languages

_EVALUATION_SCHEMA = "breakeven.evaluate/1"
MOST_BYTES = 64 * 2**20
"""No file of scores is larger; results of lm-eval with every sample are another file."""
_METRICS = ("exact_match", "acc_norm", "acc", "pass@1", "f1", "prompt_level_strict_acc")
"""lm-eval's metrics that are shares solved, the first there is of a task."""
ENGLISH = "en"
_FILE_FORMAT = re.compile(
    r"[-.:]((?:ud-)?(?:i?q\d_\w+|mxfp4(?:_moe)?|nvfp4|bf16|f16|f32|fp8|int[48]|awq|gptq))(?:-\d{5}-of-\d{5})?$",
    re.IGNORECASE,
)
"""The weight format that a name says after the model's."""


class OwnScore(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one set of tasks: the share solved of `n`, and the mean tokens of an answer where known.

    `area` None: for every area. `language` None: not said, so that it tells of no language in particular.
    """

    model: str
    task: str = "tasks"
    score: float
    n: int
    area: str | None = None
    language: str | None = None
    answer_tokens: float | None = None
    format: str | None = None
    """Of the weights that were asked, where the line or the name says it: what it costs is in the score already."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"score {self.score} is no share from 0 to 1")
        if self.n < 1:
            raise ValueError(f"n is {self.n}; it is how many tasks were asked")
        if self.area is not None and self.area not in AREAS and not re.fullmatch(r"[a-z]{2,3}(-\w+)*", self.area):
            raise ValueError(f"area {self.area!r} is none of {', '.join(AREAS)}, nor a language's code")
        if self.format is not None and method_of(self.format).bits is None:
            raise ValueError(f"format {self.format!r} is no weight format of known bits, such as Q4_K_M")


@dataclass(frozen=True, slots=True)
class OwnScores:
    """All of a user's scores, and the file they are of. `coarser`: those of further files of one model, which count for
    nothing, each as NAME in FORMAT."""

    source: str
    scores: tuple[OwnScore, ...]
    coarser: tuple[str, ...] = ()

    def of_area(self, area: str, *, is_language: bool) -> tuple[OwnScore, ...]:
        """Those that tell of `area`: of a language those in it; of another area those that name it, and those that name
        no area and no language but English.

        What a model does in Hindi says of its code no more than of its Hindi: that is an area of its own. Of a language
        in which nobody published scores there is none, so that such tasks go on telling of every area.
        """
        if is_language:
            return tuple(s for s in self.scores if s.language == area or s.area == area)
        return tuple(s for s in self.scores if s.area == area or (s.area is None and not _of_a_language(s)))


def read_own(*paths: Path) -> OwnScores:
    """The scores in all of these files. Raises UserError that names the file, the line, and what would be right."""
    named = [_named(score) for path in paths for score in _of_file(path)]
    kept, coarser = _finest(named)
    return OwnScores(", ".join(path.name for path in paths), kept, coarser)


def _of_a_language(score: OwnScore) -> bool:
    return score.language in languages() and score.language != ENGLISH


def _named(score: OwnScore) -> OwnScore:
    """The score under the bare name of its model, with the weight format that the name ends in."""
    found = _FILE_FORMAT.search(name := score.model.removesuffix(".gguf"))
    if found is None:
        return score
    said = found[1].upper()
    # Bits that nobody knows say nothing of what was lost: as if no format were named.
    known = said if method_of(said).bits is not None else None
    return msgspec.structs.replace(score, model=name[: found.start()], format=score.format or known)


def _finest(scores: list[OwnScore]) -> tuple[tuple[OwnScore, ...], tuple[str, ...]]:
    """One score of a model in a set of tasks: of several weight formats the one of the most bits, as it says best what
    the model can do."""
    best: dict[tuple[object, ...], OwnScore] = {}
    for score in scores:
        held = best.get(key := _asked(score))
        if held is None or _bits(score) >= _bits(held):
            best[key] = score
    kept = tuple(score for score in scores if best[_asked(score)].format == score.format)
    return kept, tuple(dict.fromkeys(f"{s.model} in {s.format or 16}" for s in scores if s not in kept))


def _asked(score: OwnScore) -> tuple[object, ...]:
    return score.model.lower(), score.task, score.area, score.language


def _bits(score: OwnScore) -> float:
    return 16.0 if score.format is None else method_of(score.format).bits or 0.0


def _of_file(path: Path) -> tuple[OwnScore, ...]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path.name} has over {MOST_BYTES >> 20} MiB; give the file of scores, not of samples")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the scores in {path.name}: {error}") from error
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and whole.get("schema") == _EVALUATION_SCHEMA:
        scores = tuple(_of_evaluation(path.name, whole))
    elif isinstance(whole, dict) and isinstance(whole.get("results"), dict):
        scores = tuple(_of_harness(path.name, whole))
    else:
        scores = tuple(_of_lines(path.name, text))
    if not scores:
        raise UserError(
            f'{path.name} holds no scores; give lines such as {{"model": "qwen3-8b", "score": 0.62, "n": 200}}, '
            "lm-eval's results.json, or a file of `breakeven evaluate --tasks`"
        )
    return scores


def _of_lines(name: str, text: str) -> Iterator[OwnScore]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield msgspec.json.decode(line.encode(), type=OwnScore)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise UserError(
                    f'{name}:{number}: {error}; a line is {{"model": NAME, "score": SHARE, "n": TASKS}}, and may say '
                    "task, area, language, answer_tokens"
                ) from error


class _Value(msgspec.Struct):
    value: float


class _Task(msgspec.Struct):
    name: str
    language: str
    tasks: int
    solved: _Value
    answer_tokens: _Value | None = None
    method: str = "generation"


class _Model(msgspec.Struct):
    name: str
    tasks: list[_Task] = []


class _Evaluation(msgspec.Struct):
    models: list[_Model]


def _of_evaluation(name: str, whole: object) -> Iterator[OwnScore]:
    try:
        evaluation = msgspec.convert(whole, _Evaluation)
        for model in evaluation.models:
            for task in model.tasks:
                yield OwnScore(
                    model=model.name,
                    # Answers chosen by likelihood do not compare with those generated.
                    task=f"{task.name} ({task.language}, {task.method})",
                    score=task.solved.value,
                    n=task.tasks,
                    language=None if task.language == "all" else task.language,
                    answer_tokens=None if task.answer_tokens is None else task.answer_tokens.value,
                )
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"{name} is no evaluation: {error}; write one with `breakeven evaluate --out FILE`") from error


def _of_harness(name: str, whole: Mapping[str, object]) -> Iterator[OwnScore]:
    """lm-eval's results: one model a file, a metric under `METRIC,FILTER`, the tasks asked under `n-samples`."""
    results, counts = whole["results"], whole.get("n-samples")
    asked = counts if isinstance(counts, dict) else {}
    model = _model_name(whole)
    if model is None:
        raise UserError(f"{name} does not say of which model its results are; add a key model_name")
    assert isinstance(results, dict)
    for task, metrics in results.items():
        n = asked.get(task)
        n = n.get("effective") if isinstance(n, dict) else n
        if not isinstance(metrics, dict) or not isinstance(n, int) or n < 1:
            continue  # a group's mean, whose tasks are here themselves
        found = ((metric, key) for metric in _METRICS for key in metrics if key.partition(",")[0] == metric)
        share = next((metrics[key] for _, key in found if isinstance(metrics[key], int | float)), None)
        if share is not None and 0 <= share <= 1:
            yield OwnScore(model=model, task=str(task), score=float(share), n=n)


def _model_name(whole: Mapping[str, object]) -> str | None:
    for key in ("model_name", "model_name_sanitized"):
        if isinstance(said := whole.get(key), str) and said:
            return said.replace("__", "/")
    config = whole.get("config")
    args = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(args, dict):
        args = ",".join(f"{key}={value}" for key, value in args.items())
    found = re.search(r"(?:^|,)(?:pretrained|model|path)=([^,]+)", args) if isinstance(args, str) else None
    return found[1] if found else None
