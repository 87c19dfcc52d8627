"""Evaluations, proofs and experts' scores on a terminal: the answer, the table of models, what each language lost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from breakeven.pages import lab_words as say_of
from breakeven.pages import words
from breakeven.pages.inside import mark
from breakeven.pages.lab_verdicts import evaluation_verdict, proof_verdict, retrained_lines, training_lines
from breakeven.pages.lab_words import EMPTY, KL, MEASURES, LabModel, labels_of, loss, loss_text, measure_of
from breakeven.pages.load_words import ended
from breakeven.pages.terminal import (
    LONGEST_NAME,
    Passage,
    Say,
    columns,
    listed_parts,
    packed,
    print_parts,
    say_tables,
    shortened,
)
from breakeven.results.lab import (
    Evaluation,
    ExpertScores,
    LabCheck,
    Proof,
    ScoredLayer,
    Substituted,
)
from breakeven.stats.estimate import Estimate

MOST_LABELS, MOST_ROWS, TABLE_LINES = 6, 10, 28
"""Languages and models of the first screen's table, and its lines."""
MOST_LAYERS = 16


def show_evaluation(result: Evaluation, console: Console, page: Path | None = None, *, full: bool = False) -> None:
    """Print the verdict, a row a model, what languages lose beside each other, tasks; every interval with `full`."""
    subjects = say_of.subjects_of(result)
    parts = [
        Passage(lambda say: _head(evaluation_verdict(result), result.caveats, say)),
        *_main_table(subjects, result.against, console.width),
        *listed_parts("Languages", say_of.compared_languages(subjects), most=3, rest=3),
        Passage(lambda say: _tasks(result, console.width, say), 1, "tasks"),
        *(Passage(partial(_slices, each, console.width), 4, "every interval") for each in subjects if each.slices),
        Passage(lambda say: _end(result.command, result.seconds, say), 5, "the command"),
    ]
    print_parts(parts, console, full=full, page=page)


def show_proof(proof: Proof, console: Console, page: Path | None = None, *, full: bool = False) -> None:
    """Print the verdict, what was made of what, what it cost by language, what was checked, how fast both ran."""
    made = say_of.subjects_of(proof)[1]
    parts = [
        Passage(lambda say: _head(proof_verdict(proof), proof.caveats, say)),
        Passage(lambda say: _made(proof, say)),
        *listed_parts("Not as asked", [substituted_text(each) for each in proof.artefact.substituted], most=2, rest=4),
        *([Passage(lambda say: _slices(made, console.width, say), 1, "by language")] if made.slices else []),
        *listed_parts("Languages", say_of.compared_languages([made]), most=2, rank=1, rest=5),
        *listed_parts("Trained", training_lines(proof), most=3, rank=1, rest=5),
        *listed_parts("Checked", [check_text(each) for each in proof.checks], most=3, rest=2),
        *listed_parts("Speed, taking turns", speed_lines(proof), most=4, rank=1, rest=5),
        *listed_parts("Experts", expert_lines(proof), most=3, rank=2, rest=5),
        Passage(lambda say: _end(proof.command, None, say), 3, "the command"),
    ]
    print_parts(parts, console, full=full, page=page)


def show_experts(scores: ExpertScores, console: Console, page: Path | None = None, *, full: bool = False) -> None:
    """Print how evenly experts are used, which are worth naming, and a mark an expert by layer."""
    first, rest = scores.layers[:MOST_LAYERS], scores.layers[MOST_LAYERS:]
    parts = [
        Passage(lambda say: _head(experts_verdict(scores), scores.caveats, say)),
        *listed_parts("Worth naming", [ended(each.text) for each in scores.findings], most=4, rest=3),
        Passage(lambda say: _layers(scores, first, console.width, say), 1, "loads by layer"),
        *([Passage(lambda say: _layers(scores, rest, console.width, say), 4, "the other layers")] if rest else []),
        *listed_parts("Chosen together more often than by chance", pair_lines(scores), most=3, rank=2, rest=5),
        *listed_parts("Least missed when switched off", without_lines(scores), most=3, rank=1, rest=5),
        Passage(lambda say: _watched(scores, say), 2, "the text"),
        Passage(lambda say: _end(scores.command, scores.seconds, say), 6, "the command"),
    ]
    print_parts(parts, console, full=full, page=page)


def _head(verdict: str, caveats: Sequence[str], say: Say) -> None:
    say(verdict, "bold")
    for caveat in caveats:
        say(ended(caveat), "yellow")


def _end(command: str, seconds: float | None, say: Say) -> None:
    say()
    took = "" if seconds is None else f" ({words.seconds_text(seconds)})"
    say(f"Again{took}: {command}", "dim")


def _main_table(subjects: Sequence[LabModel], against: str | None, width: int) -> list[Passage]:
    """A row a model: size, bits, loss by language, agreement, floor. What does not fit stands in a second table."""
    measure, labels = measure_of(subjects), labels_of(subjects)
    shown = next(
        (rows for rows in (MOST_ROWS, 6, 4, 2) if _count(subjects[:rows], labels[:MOST_LABELS], measure, width)), 1
    )

    def draw(say: Say, rows: Sequence[LabModel], among: Sequence[str]) -> None:
        tables = _tables(rows, among, measure, width)
        if not tables:
            return
        say()
        to = f" to {against}" if against is not None and measure == KL else ""
        say(MEASURES[measure].replace("KL", f"KL{to}", 1), "bold")
        say_tables(tables, say)

    def notes(say: Say) -> None:
        if any(say_of.floor_of(each) is not None for each in subjects):
            say("Floor: most a model differs from itself, by the engine's own rounding.", "dim", 2)

    parts = [Passage(lambda say: draw(say, subjects[:shown], labels[:MOST_LABELS])), Passage(notes, 2)]
    if shown < len(subjects) or len(labels) > MOST_LABELS:
        parts.insert(1, Passage(lambda say: draw(say, subjects, labels), 3, "every model and language"))
    return parts


def _count(subjects: Sequence[LabModel], labels: Sequence[str], measure: str, width: int) -> bool:
    """Whether the table of these is short enough."""
    tables = _tables(subjects, labels, measure, width)
    return sum(len(lines) + 1 for lines in tables) <= TABLE_LINES


def _tables(subjects: Sequence[LabModel], labels: Sequence[str], measure: str, width: int) -> list[list[str]]:
    longest = max(10, min(LONGEST_NAME, width // 3))
    first = ["", *(shortened(each.name, longest) for each in subjects)]
    groups: list[list[list[str]]] = []

    def add(head: str, cells: list[str]) -> None:
        if any(each != EMPTY for each in cells):
            groups.append([[head, *cells]])

    add("MB", [EMPTY if each.bytes is None else f"{each.bytes / 1e6:,.1f}" for each in subjects])
    add("bits", [EMPTY if each.bits is None else f"{each.bits:.2f}" for each in subjects])
    for label in labels:
        found = [loss(each.of(label), measure) for each in subjects]
        add(label, [EMPTY if one is None else loss_text(one.value, measure) for one in found])
    base = "en" if "en" in labels else labels[0] if labels else ""
    add(f"top-1 {base}", [_top1(each, base) for each in subjects])
    add("floor", [_floor(each) for each in subjects])
    add("tok/s", [EMPTY if each.tokens_per_s is None else words.value(each.tokens_per_s) for each in subjects])
    return packed(first, groups, width - 2)


def _top1(subject: LabModel, label: str) -> str:
    one = subject.of(label)
    return EMPTY if one is None else say_of.top1_text(one.top1)


def _floor(subject: LabModel) -> str:
    floor = say_of.floor_of(subject)
    return "unusable" if say_of.is_unusable(subject) else EMPTY if floor is None else loss_text(floor, KL)


def _slices(subject: LabModel, width: int, say: Say) -> None:
    """Every slice of one model with its intervals."""
    say()
    say(subject.name, "bold")
    first = ["", *labels_of([subject])]
    groups: list[list[list[str]]] = []

    def add(head: str, cells: list[str]) -> None:
        if any(each != EMPTY for each in cells):
            groups.append([[head, *cells]])

    def spans(found: Sequence[Estimate | None], measure: str) -> list[str]:
        return [EMPTY if each is None else say_of.loss_span(each, measure) for each in found]

    slices = subject.slices
    add("bits/byte", spans([each.bits_per_byte for each in slices], say_of.BITS))
    add("more than source", spans([each.difference for each in slices], say_of.DIFFERENCE))
    add("KL", spans([each.kl for each in slices], KL))
    add("floor", [EMPTY if each.kl_floor is None else loss_text(each.kl_floor.value, KL) for each in slices])
    add("top-1", [say_of.top1_text(each.top1) for each in slices])
    add("kB", [f"{each.bytes / 1e3:.1f}" for each in slices])
    say_tables(packed(first, groups, width - 2), say)


def _tasks(result: Evaluation, width: int, say: Say) -> None:
    scored = [(model.name, score) for model in result.models for score in model.tasks]
    if not scored:
        return
    say()
    say("Tasks solved", "bold")
    longest = max(10, min(LONGEST_NAME, width // 3))
    answers = [EMPTY if each.answer_tokens is None else words.value(each.answer_tokens) for _, each in scored]
    table = [
        ["tasks", *(each.name + ("" if each.language == say_of.WHOLE else f" {each.language}") for _, each in scored)],
        ["of", *(f"{each.tasks}" for _, each in scored)],
        ["solved", *(share_span(each.solved) for _, each in scored)],
        ["answer, tokens", *answers],
    ]
    first = ["", *(shortened(name, longest) for name, _ in scored)]
    say_tables(packed(first, [[column] for column in table], width - 2), say)


def share_span(share: Estimate) -> str:
    """A share in percent with its interval: "62 % (48-74)"."""
    ends = "" if share.low is None or share.high is None else f" ({share.low * 100:.0f}-{share.high * 100:.0f})"
    return f"{share.value * 100:.0f} %{ends}"


def _made(proof: Proof, say: Say) -> None:
    made, source = proof.artefact, proof.source
    was = [words.bytes_text(source.bytes)] if source.bytes is not None else []
    was += [f"{source.bits_per_weight:.2f} bits"] if source.bits_per_weight is not None else []
    say(
        f"{proof.verb}: {made.format}, {words.bytes_text(made.bytes)}, {made.bits_per_weight:.2f} bits a weight, of "
        f"{Path(source.path).name}" + (f" ({', '.join(was)})" if was else "")
    )


def substituted_text(each: Substituted) -> str:
    """ "180 tensors: Q2_K asked, IQ4_NL made: 576 columns ..." """
    count = f"{len(each.tensors)} tensor{'' if len(each.tensors) == 1 else 's'}"
    return ended(f"{count}: {each.asked} asked, {each.made} made: {each.why}")


def check_text(check: LabCheck) -> str:
    """One check in a line."""
    parts = [f"KL {say_of.loss_span(check.kl, KL)}"] if check.kl is not None else []
    parts += [f"top-1 {say_of.top1_text(check.top1)}"] if check.top1 is not None else []
    parts += [check.detail] if check.detail else []
    return f"{check.name} ({check.engine}): {'; '.join(['passed' if check.passed else 'FAILED', *parts])}"


def speed_lines(proof: Proof) -> list[str]:
    """Speeds in lines, those of prompts and those of answers apart."""
    what = {"prompt": "reads a prompt at", "answer": "answers at"}
    names = {"source": "source", "artefact": say_of.artefact_name(proof)}
    return [
        f"{names.get(each.of, each.of)} ({each.engine}) {what.get(each.what, each.what)} "
        f"{words.with_interval(each.tokens_per_s)} tokens/s"
        for each in proof.speeds
    ]


def expert_lines(proof: Proof) -> list[str]:
    """How many experts were used, are dead, were kept."""
    found = proof.experts
    if found is None or not found.layers:
        return []
    experts, dead = len(found.layers[0].tokens), sum(len(each.dead) for each in found.layers)
    lines = [f"{experts} in each of {len(found.layers)} layers, {found.n_experts_per_token} a token"]
    lines += [f"{dead} that no token of the text reached"] if dead else []
    lines += retrained_lines(found, proof.experts_after)
    if found.kept:
        kept = sorted({len(each) for each in found.kept})
        lines.append(f"{'-'.join(map(str, kept))} a layer in the file made; which, the page and the JSON tell")
    return lines


def experts_verdict(scores: ExpertScores) -> str:
    """How evenly a model's experts are used, in one sentence."""
    if not scores.layers:
        return "No layer routes tokens to experts."
    worst = max(scores.layers, key=lambda each: each.max_over_mean)
    dead = sum(len(each.dead) for each in scores.layers)
    reached = (
        "every one is reached" if not dead else f"{dead} of {scores.n_experts * len(scores.layers)} are never reached"
    )
    return (
        f"{Path(scores.model.path).name}: the busiest expert takes {worst.max_over_mean:.2f} times its share "
        f"(layer {worst.layer}); {reached}."
    )


def _layers(scores: ExpertScores, layers: Sequence[ScoredLayer], width: int, say: Say) -> None:
    scored = any(each.score for each in layers)
    rows = [["layer", "max/mean", "entropy", "dead", *(["lowest score"] if scored else []), "experts"]]
    for each in layers:
        mean = sum(each.tokens) / len(each.tokens)
        marks = "".join(mark(tokens / mean if mean else 0.0) for tokens in each.tokens)
        least = [_lowest(each)] if scored else []
        counts = [f"{each.layer}", f"{each.max_over_mean:.2f}", f"{each.entropy:.3f}", f"{len(each.dead)}"]
        rows.append([*counts, *least, marks])
    title = "Load by layer"
    if max(map(len, columns(rows))) > width - 2:
        # More experts than a line holds: the page draws them.
        rows = [row[:-1] for row in rows]
    else:
        title += " (a mark an expert: · below half the mean, █ above 1.5 times, blank none)"
    say()
    say(title, "bold")
    for line in columns(rows, text_columns=(5,) if scored else (4,)):
        say(line, indent=2)


def _lowest(layer: ScoredLayer) -> str:
    known = [(score, expert) for expert, score in enumerate(layer.score or []) if score is not None]
    return EMPTY if not known else f"{min(known)[1]} ({min(known)[0]:.3g})"


def pair_lines(scores: ExpertScores) -> list[str]:
    """Pairs of experts, surest first."""
    return [
        f"layer {layer.layer}: {pair.experts[0]} and {pair.experts[1]}, {pair.over_chance:.2g} times as often "
        f"({', '.join(pair.languages) or 'no language alone'})"
        for layer in scores.layers
        for pair in layer.pairs
    ]


def without_lines(scores: ExpertScores) -> list[str]:
    """Experts that were switched off, those that cost least first."""
    tried = [
        (max(e.value for e in one.bits_per_byte.values()), layer.layer, one)
        for layer in scores.layers
        for one in layer.without
    ]
    return [
        f"layer {layer}, expert {one.expert}: "
        + ", ".join(f"{name} {say_of.loss_span(cost, say_of.DIFFERENCE)}" for name, cost in one.bits_per_byte.items())
        + " bits a byte"
        for _, layer, one in sorted(tried, key=lambda each: each[:2])
    ]


def _watched(scores: ExpertScores, say: Say) -> None:
    say()
    told = ", ".join(f"{each.language} {each.tokens:,} (±{each.sampling_error:.3f})" for each in scores.languages)
    say(f"Tokens watched, with the error of one expert's share: {told}.", "dim")
