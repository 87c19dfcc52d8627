"""What a file of `breakeven evaluate` says of a study's candidates: shares solved, answer lengths, bits per byte.

Models compare only on what all of them were asked: tasks of one name, language, number and method, text of one
language. Where no tasks are common the text ranks them. What was measured of a file is believed of that file alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from breakeven.answer.study.plan import CandidatePlan, QualityPlan
from breakeven.errors import UserError
from breakeven.model.quality.scores import QualityScore
from breakeven.model.readers.weights import digest_of, holds_weights, weight_files
from breakeven.model.resolve import split_format, weight_file
from breakeven.results.lab import Evaluated, Evaluation, Slice, TaskScore
from breakeven.results.store import RESULT, UnreadError, read
from breakeven.stats.estimate import Estimate
from breakeven.stats.percentiles import wilson

HASHED_BYTES = 4_000_000_000
"""A file up to this size is known by its sha256, which takes seconds; a larger one by its size."""
MOST_CUT = 0.1
"""Of answers: with more, a mean length is too far below the model's own."""
WHOLE = "all"
"""Language of a text of which nobody said one."""


def told_by(
    where: str, plan: QualityPlan, candidates: Sequence[CandidatePlan], languages: Sequence[str], floors: bool
) -> QualityPlan:
    """`plan` with what its evaluation tells of `candidates`, and answer lengths where none were typed.

    `languages`: the study's, empty: all of the text. `floors`: whether the study asks for a share of tasks. Raises
    UserError that begins with `where` for a file that is none, candidates it does not hold, and nothing common.
    """
    place, path = f"{where}: quality.evaluation", plan.evaluation
    assert path is not None
    try:
        evaluation = read(path / RESULT if path.is_dir() else path, Evaluation)
    except UnreadError as error:
        raise UserError(
            f"{place}: {path.name} is no evaluation ({error.detail}); write one with `breakeven evaluate --out FILE`"
        ) from error
    found: dict[str, Evaluated] = {}
    for candidate in candidates:
        if (mine := _model_of(place, candidate, evaluation)) is not None:
            found[candidate.name] = mine
        elif candidate.model is not None:
            held = ", ".join(each.name for each in evaluation.models)
            raise UserError(
                f"{place}: {path.name} does not hold {candidate.name!r}; it has {held}: name the candidate so, or "
                "evaluate it as well"
            )
    if not found:
        raise UserError(f"{place}: {path.name} holds none of the candidates; name them as it does")
    by_text = _texts(evaluation, found, languages)
    common = _common(found)
    if common:
        told = {name: _solved(common, mine, path.name, by_text.get(name)) for name, mine in found.items()}
    elif len(by_text) == len(found):
        if floors:
            raise UserError(
                f"{where}: quality.floor: {path.name} holds no tasks that all candidates were asked, so no share "
                "solved; evaluate them with --tasks, or use quality.max_loss"
            )
        told = {
            name: msgspec.structs.replace(score, source=f"{path.name}{_left_out(evaluation, languages)}")
            for name, score in by_text.items()
        }
    else:
        without = ", ".join(name for name in found if name not in by_text)
        spoken = f" in {', '.join(languages)}" if languages else ""
        raise UserError(
            f"{place}: {path.name} holds no tasks that all candidates were asked in one way, and no text{spoken} that "
            f"{without} was given; evaluate them together, with --tasks or --text"
        )
    lengths = plan.answer_tokens or _lengths(common, found)
    return replace(plan, told=told, answer_tokens=dict(lengths))


def _model_of(place: str, candidate: CandidatePlan, evaluation: Evaluation) -> Evaluated | None:
    """The evaluated model of the candidate's name, else of its file's name, else of its model's; None: not there."""
    file = None if candidate.model is None else Path(split_format(candidate.model)[0])
    there = file is not None and file.exists()
    tests: list[Callable[[Evaluated], bool]] = [lambda each: each.name == candidate.name]
    if there and file is not None:
        tests.append(lambda each: Path(each.path).name == file.name)
    elif candidate.model is not None:
        tests.append(lambda each: candidate.model in (each.name, each.path))
    for test in tests:
        same = [each for each in evaluation.models if test(each)]
        if len(same) > 1:
            names = ", ".join(each.name for each in same)
            raise UserError(f"{place}: {names} may all be {candidate.name!r}; name the candidate as one of them")
        if same:
            if there and file is not None:
                _check_same(place, candidate, file, same[0])
            return same[0]
    return None


def _check_same(place: str, candidate: CandidatePlan, file: Path, mine: Evaluated) -> None:
    """Raises UserError where the weights of a candidate are not those that were evaluated.

    They are a file, all parts of a split one, or all weight files of a directory; a mere description has none.
    """
    if mine.sha256 is None:
        return
    try:
        whole = weight_file(str(file))
        if whole is None and (not file.is_dir() or not holds_weights(file)):
            return
        files = weight_files(file if whole is None else whole)
        size = sum(each.stat().st_size for each in files)
        same = mine.bytes is None or mine.bytes == size
        if same and size <= HASHED_BYTES:
            same = digest_of(files) == mine.sha256
    except (UserError, OSError) as error:
        raise UserError(f"{place}: {candidate.name!r}: {error}") from error
    if not same:
        raise UserError(
            f"{place}: {file.name} of {candidate.name!r} is not the file that was evaluated as {mine.name}: its bytes "
            "differ; evaluate this one"
        )


Key = tuple[str, str, int, str]
"""Of tasks: name, language, how many, method."""


def _key(score: TaskScore) -> Key:
    return score.name, score.language, score.tasks, score.method


def _common(found: Mapping[str, Evaluated]) -> list[Key]:
    """Tasks that every model was asked in one way."""
    shared = set.intersection(*({_key(score) for score in mine.tasks} for mine in found.values()))
    return sorted(shared)


def _solved(common: Sequence[Key], mine: Evaluated, file: str, text: QualityScore | None) -> QualityScore:
    """Share solved of all common tasks together, every task counting as one, and what the text says is lost."""
    scores = [score for score in mine.tasks if _key(score) in common]
    share = wilson(round(sum(s.solved.value * s.tasks for s in scores)), sum(s.tasks for s in scores))
    score = QualityScore(
        how="own",
        value=share.share,
        low=share.low,
        high=share.high,
        benchmark=_names(dict.fromkeys(score.name for score in scores)),
        source=file,
    )
    if text is None:
        return score
    return msgspec.structs.replace(
        score,
        loss=text.loss,
        loss_low=text.loss_low,
        loss_high=text.loss_high,
        loss_language=text.loss_language,
        loss_against=text.loss_against,
    )


def _lengths(common: Sequence[Key], found: Mapping[str, Evaluated]) -> dict[str, float]:
    """Mean tokens an answer by candidate, over tasks that all generated, to their own ends, and all were counted."""
    counted = [key for key in common if all(_ended(s) for mine in found.values() for s in mine.tasks if _key(s) == key)]
    if not counted:
        return {}
    tasks = sum(key[2] for key in counted)
    return {
        name: max(1.0, sum(_tokens(score) * score.tasks for score in mine.tasks if _key(score) in counted) / tasks)
        for name, mine in found.items()
    }


def _ended(score: TaskScore) -> bool:
    return score.answer_tokens is not None and (score.cut or 0) <= MOST_CUT * score.tasks


def _tokens(score: TaskScore) -> float:
    assert score.answer_tokens is not None
    return score.answer_tokens.value


@dataclass(frozen=True, slots=True)
class _Text:
    """Bits per byte of one model in one language, and how much more than the reference's where paired."""

    bits: Estimate
    more: Estimate | None


def _texts(evaluation: Evaluation, found: Mapping[str, Evaluated], languages: Sequence[str]) -> dict[str, QualityScore]:
    """Bits per byte of every candidate that was given text, and what it loses against the reference.

    The mean over languages, each counting alike; the loss is that of the language in which it is most. The reference is
    the model that the others were compared with, else the best of the candidates.
    """
    wanted = [mine for mine in found.values() if mine.slices]
    against = next((each for each in evaluation.models if each.name == evaluation.against), None)
    if not wanted:
        return {}
    both = [*wanted, against] if against is not None and against.slices else wanted
    spoken = sorted(set.intersection(*({s.language for s in mine.slices} for mine in both)))
    if languages and spoken != [WHOLE]:
        spoken = [each for each in spoken if _among(each, languages)]
    if not spoken:
        return {}
    texts = {mine.name: {each: _text(mine.slices, each) for each in spoken} for mine in both}
    means = {name: _mean([text.bits for text in by.values()]) for name, by in texts.items()}
    best = min((mine.name for mine in wanted), key=lambda name: means[name].value)
    reference = against.name if against is not None and against.slices else best
    told = {}
    for name, mine in found.items():
        if not mine.slices:
            continue
        lost = {each: _loss(texts[mine.name][each], texts[reference][each], against is not None) for each in spoken}
        worst = max(lost, key=lambda each: lost[each].value)
        itself = mine.name == reference
        told[name] = QualityScore(
            how="bits_per_byte",
            value=means[mine.name].value,
            low=means[mine.name].low,
            high=means[mine.name].high,
            benchmark="text" if spoken == [WHOLE] else f"text in {_names(spoken)}",
            loss=0.0 if itself else lost[worst].value,
            loss_low=None if itself else lost[worst].low,
            loss_high=None if itself else lost[worst].high,
            loss_language=None if itself else worst,
            loss_against=None if itself else reference,
        )
    return told


def _text(slices: Sequence[Slice], language: str) -> _Text:
    """All domains of one language together, byte by byte."""
    mine = [each for each in slices if each.language == language]
    weights = [each.bytes for each in mine]
    more = [each.difference for each in mine if each.difference is not None]
    return _Text(
        _mean([each.bits_per_byte for each in mine], weights), _mean(more, weights) if len(more) == len(mine) else None
    )


def _mean(found: Sequence[Estimate], weights: Sequence[int] | None = None) -> Estimate:
    """Weighted mean of estimates that are independent of each other; an end that one lacks is None."""
    shares = [1 / len(found)] * len(found) if weights is None else [each / sum(weights) for each in weights]
    value = sum(share * each.value for share, each in zip(shares, found, strict=True))
    n = sum(each.n or 0 for each in found)
    if any(each.low is None or each.high is None for each in found):
        return Estimate(value, None, None, n, "measured")
    below = math.hypot(*(share * (each.value - each.least) for share, each in zip(shares, found, strict=True)))
    above = math.hypot(*(share * (each.most - each.value) for share, each in zip(shares, found, strict=True)))
    return Estimate(value, value - below, value + above, n, "measured")


def _loss(mine: _Text, reference: _Text, paired: bool) -> Estimate:
    """Share of bits more than the reference takes; with an interval where both were read block by block together."""
    if paired and mine.more is not None:
        return mine.more.scaled(1 / reference.bits.value)
    return Estimate(mine.bits.value / reference.bits.value - 1, None, None)


def _among(language: str, wanted: Iterable[str]) -> bool:
    return language.lower().partition("-")[0] in {each.lower().partition("-")[0] for each in wanted}


def _left_out(evaluation: Evaluation, languages: Sequence[str]) -> str:
    """Which of the study's languages the text does not have, in words behind the file's name."""
    spoken = {each.language for model in evaluation.models for each in model.slices}
    left = [] if spoken == {WHOLE} else [each for each in languages if not any(_among(s, [each]) for s in spoken)]
    return f" (no text in {', '.join(left)})" if left else ""


def _names(found: Iterable[str]) -> str:
    return ", ".join(found)
