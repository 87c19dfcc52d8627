"""The verdict on an evaluation or a proof in a sentence, and what training brought: its loss, its twin, its experts.

What was trained need not be like its source, so it is told by bits a byte and by intervals alone: better, worse, or no
differently.
"""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.pages import words
from breakeven.pages.lab_words import (
    BITS,
    DIFFERENCE,
    EMPTY,
    KL,
    LabModel,
    artefact_of,
    is_rounding,
    is_unusable,
    label_of,
    listed,
    loss,
    loss_span,
    losses_of,
    measure_of,
    spelled,
    subjects_of,
)
from breakeven.results.lab import Evaluation, Experts, Proof, Twin
from breakeven.stats.estimate import Estimate


def proof_verdict(proof: Proof) -> str:
    """The answer in one sentence: what was made and what it cost."""
    made, size = artefact_of(proof), words.bytes_text(proof.artefact.bytes)
    if proof.source.bytes:
        size += f", {100 * proof.artefact.bytes / proof.source.bytes:.0f} % of its source"
    failed = [check.name for check in proof.checks if not check.passed]
    if failed:
        return f"{made.name} failed: {', '.join(failed)}."
    measure = measure_of([made])
    if not any(loss(one, measure) is not None for one in made.slices):
        return f"{made.name} ({size}) passed its checks; without a text nothing is known of its quality."
    if made.trained and measure == DIFFERENCE:
        return f"{made.name} ({size}) {_against_source(made)}{twin_text(proof.twin)}."
    if is_unusable(made):
        return f"{made.name} ({size}) is of no use: it finds its source's likeliest token for {_top1(made)} of tokens."
    if all(is_rounding(one) for one in made.slices):
        return (
            f"{made.name} ({size}) computes what its source does, up to the engine's own rounding, in every language."
        )
    verb = {KL: "differs from its source by", DIFFERENCE: "loses", BITS: "predicts with"}[measure]
    return f"{made.name} ({size}) {verb} {losses_of(made, measure)}."


def _against_source(made: LabModel) -> str:
    """ "predicts German better than its source, by 0.305 bits a byte; English no differently", by intervals alone."""
    groups: dict[str, list[tuple[str, Estimate]]] = {"better": [], "worse": [], "no differently": []}
    for one in made.slices:
        if (found := one.difference) is not None:
            sure = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
            word = "no differently" if not sure else "better" if found.value < 0 else "worse"
            groups[word].append((label_of(one, made.slices), found))
    said: list[str] = []
    for word, ones in groups.items():
        if not ones:
            continue
        sizes = sorted(abs(found.value) for _, found in ones)
        span = f"{sizes[0]:.3f}" if len(ones) == 1 else f"{sizes[0]:.3f} to {sizes[-1]:.3f}"
        by = "" if word == "no differently" else f", by {span} bits a byte"
        than = "" if said else " than its source" if by else " from its source"
        said.append(f"{listed([label for label, _ in ones])} {word}{than}{by}")
    return f"predicts {'; '.join(said)}"


def twin_word(found: Estimate | None) -> str:
    """Whether the trial surely won, surely lost, or neither."""
    if found is None:
        return "not measured"
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "no difference found"
    return "ahead of its twin" if found.value > 0 else "behind its twin"


def twin_text(twin: Twin | None) -> str:
    """How far it stands before the twin that was trained without what was tried, at equal tokens or else equal time."""
    found = None if twin is None else twin.equal_tokens or twin.equal_seconds
    if twin is None or found is None:
        return ""
    at, word = "tokens" if twin.equal_tokens is not None else "time", twin_word(found)
    if found.low is None or found.high is None or "its twin" not in word:
        return f"; at equal {at} no difference to its twin was found"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"; at equal {at} {abs(found.value):.3f} bits a byte ({low:.3f}-{high:.3f}) {word}"


def evaluation_verdict(result: Evaluation) -> str:
    """The answer in one sentence or two: who stands nearest to the source, or how well each predicts the text."""
    subjects = subjects_of(result)
    measure = measure_of(subjects)
    told = [each for each in subjects if not each.source and any(loss(one, measure) is not None for one in each.slices)]
    if not told:
        return "No model was evaluated on a text." if not result.models else _tasks_verdict(result)
    useless = [each for each in told if is_unusable(each)]
    kept = [each for each in told if each not in useless] or told
    if measure == BITS:
        best = min(kept, key=lambda each: _mean(each, measure))
        said = f"{best.name}: {losses_of(best, measure)}."
        if len(kept) > 1:
            said = f"{best.name} predicts the text best on average: {losses_of(best, measure)}."
        return said
    near = min(kept, key=lambda each: _mean(each, measure))
    said = f"{near.name} differs from {result.against} by {losses_of(near, measure)}."
    if len(kept) > 1:
        far = max(kept, key=lambda each: _mean(each, measure))
        said = f"{near.name} stands nearest to {result.against}, {losses_of(near, measure)}; "
        said += f"{far.name} farthest, {losses_of(far, measure)}."
    if useless and kept is not told:
        names = ", ".join(each.name for each in useless)
        said += f" {names} {'is' if len(useless) == 1 else 'are'} of no use."
    return said


def _tasks_verdict(result: Evaluation) -> str:
    scored = [(score.solved.value, model.name, score.name) for model in result.models for score in model.tasks]
    if not scored:
        return "Nothing was measured."
    share, name, task = max(scored)
    return f"{name} solves most of {task}: {words.percent_text(share)}."


def _mean(subject: LabModel, measure: str) -> float:
    known = [found.value for one in subject.slices if (found := loss(one, measure)) is not None]
    return sum(known) / len(known)


def _top1(subject: LabModel) -> str:
    return words.percent_text(max(each.top1.value for each in subject.slices if each.top1 is not None))


def retrained_lines(before: Experts, after: Experts | None) -> list[str]:
    """Which experts were trained by themselves, and their part of the choices in each language, before and after."""
    if after is None or not any(after.retrained or ()):
        return []
    assert after.retrained is not None
    alike = len({tuple(each) for each in after.retrained if each}) == 1
    names = ", ".join(map(str, next(each for each in after.retrained if each))) if alike else "others by layer"
    lines = [f"trained alone, with their rows of the router: {names} in {sum(map(bool, after.retrained))} layers"]
    for language in after.layers[0].by_language:
        shares = [_part(found, after.retrained, language) for found in (before, after)]
        lines.append(f"their part of the choices in {spelled(language)}: {shares[0]} before, {shares[1]} after")
    return lines


def _part(found: Experts, chosen: Sequence[Sequence[int]], language: str) -> str:
    """Mean over the layers in which some are `chosen`."""
    parts = [
        sum(share for expert, share in enumerate(layer.by_language.get(language, ())) if expert in mine)
        for layer, mine in zip(found.layers, chosen, strict=False)
        if mine
    ]
    return words.percent_text(sum(parts) / len(parts)) if parts else EMPTY


def training_lines(proof: Proof) -> list[str]:
    """How it was trained, what the text that chose said, and how its twin fared."""
    told = proof.training
    if told is None:
        return []
    lines = [
        f"{told.tokens:,} tokens in {words.seconds_text(told.seconds)}, seed {told.seed}, {told.flops:.2g} operations"
    ]
    if told.chosen:
        first, best = told.chosen[0][1], min(loss for _, loss in told.chosen)
        kept = "" if told.best_step is None else f"; kept is step {told.best_step} of {told.chosen[-1][0]:.0f}"
        lines.append(f"loss on the text that chose: {first:.3f} to {best:.3f} nats a token{kept}")
    return lines + twin_lines(proof.twin)


def twin_lines(twin: Twin | None) -> list[str]:
    """Bits a byte that its twin, trained without what was tried, stands behind it."""
    if twin is None:
        return []
    found = {"tokens": twin.equal_tokens, "time": twin.equal_seconds}
    return [
        f"ahead of its twin, which had not what was tried, at equal {what}: {loss_span(each, DIFFERENCE)} bits a byte"
        for what, each in found.items()
        if each is not None
    ]
