"""The page of an evaluation, a proof or experts' scores, which lies beside its JSON: `x.proof.json` has `x.proof.html`.

Proofs of the same source in the same directory enter its chart, so that files of several sizes stand side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from breakeven.errors import UserError
from breakeven.pages import lab_words as say_of
from breakeven.pages.figures.lab import figures_of_lab
from breakeven.pages.html import Cell, cell, drawn, environment_of_pages
from breakeven.pages.lab import (
    expert_lines,
    experts_verdict,
    pair_lines,
    speed_lines,
    substituted_text,
    without_lines,
)
from breakeven.pages.lab_verdicts import evaluation_verdict, proof_verdict, training_lines, twin_word
from breakeven.pages.lab_words import LabModel, labels_of, loss, loss_interval, loss_text
from breakeven.pages.load_words import ended
from breakeven.results.comparison import Comparison
from breakeven.results.lab import Evaluation, ExpertScores, Proof, Slice
from breakeven.results.store import read, write_whole
from breakeven.stats.estimate import Estimate
from breakeven.version import __version__

LabResult = Evaluation | Proof | ExpertScores


def page_beside(data: Path) -> Path:
    """Where the page of the result in the file `data` lies."""
    return data.with_suffix(".html")


def write_page(result: LabResult, beside: Path, compared: Comparison | None = None) -> Path:
    """Write the page of `result` beside its JSON file, and return it. Raises `UserError` where it cannot be written.

    `compared`: a comparison of the same files, whose speeds enter the chart.
    """
    others = siblings(result, beside) if isinstance(result, Proof) else []
    return write_whole(page_beside(beside), render_lab(result, others, compared).encode())


def write_proof_page(proof: Proof) -> Path:
    """Write the page of a proof beside the file or into the directory it is of, where its JSON lies."""
    made = Path(proof.artefact.path)
    return write_page(proof, made / "proof.json" if made.is_dir() else made.with_name(f"{made.stem}.proof.json"))


def page_of_proof(proof: Proof) -> Path:
    """Where `write_proof_page` writes it."""
    made = Path(proof.artefact.path)
    return made / "proof.html" if made.is_dir() else made.with_name(f"{made.stem}.proof.html")


def siblings(proof: Proof, beside: Path) -> list[Proof]:
    """Proofs of the same source that lie in the same directory, without this one; what cannot be read is none.

    One that was measured on other text is left out: losses on different texts do not compare. One without text stays.
    """
    found = []
    mine = _texts(proof)
    for path in sorted(beside.parent.glob("*proof.json")):
        with contextlib.suppress(UserError):
            other = read(path, Proof)
            same_source = other.source.sha256 == proof.source.sha256
            if same_source and other.artefact.sha256 != proof.artefact.sha256 and _texts(other) in (mine, set()):
                found.append(other)
    return found


def _texts(proof: Proof) -> set[tuple[str, str, int]]:
    """What a proof's losses were measured on, as far as it says: languages, domains and bytes."""
    return {(each.language, each.domain, each.bytes) for each in proof.slices}


def render_lab(result: LabResult, others: Sequence[Proof] = (), compared: Comparison | None = None) -> str:
    """The page of `result` as HTML. Every text that came from outside is escaped."""
    figures = figures_of_lab(result, others, compared)
    environment = environment_of_pages()
    environment.filters.update(sentence=ended)
    scores = result if isinstance(result, ExpertScores) else None
    proof = result if isinstance(result, Proof) else None
    evaluation = result if isinstance(result, Evaluation) else None
    subjects = [] if isinstance(result, ExpertScores) else say_of.subjects_of(result, others, compared)
    measure = say_of.measure_of(subjects)
    title = (
        proof_verdict(result)
        if isinstance(result, Proof)
        else evaluation_verdict(result)
        if isinstance(result, Evaluation)
        else experts_verdict(result)
    )
    return environment.get_template("lab.html.jinja").render(
        result=result,
        proof=proof,
        evaluation=evaluation,
        scores=scores,
        verdict=title,
        version=__version__,
        subjects=subjects,
        labels=labels_of(subjects),
        label=say_of.label_of,
        measure=say_of.MEASURES[measure],
        megabytes=lambda each: "–" if each.bytes is None else f"{each.bytes / 1e6:,.1f}",
        bits=lambda each: "–" if each.bits is None else f"{each.bits:.2f}",
        floor=floor_text,
        label_cell=lambda each, label: Cell("–", "") if (one := each.of(label)) is None else loss_cell(one, measure),
        languages=say_of.compared_languages(subjects),
        losses=drawn(figures.losses),
        lineup=drawn(figures.lineup),
        experts=drawn(figures.experts),
        curve=drawn(figures.training),
        training=[] if proof is None else training_lines(proof),
        loss_cell=loss_cell,
        twin_cell=twin_cell,
        twin_word=twin_word,
        share_cell=share_cell,
        speeds=[] if proof is None else speed_lines(proof),
        substituted=[] if proof is None else [(each, substituted_text(each)) for each in proof.artefact.substituted],
        expert_lines=[] if proof is None else expert_lines(proof),
        pairs=[] if scores is None else pair_lines(scores),
        without=[] if scores is None else without_lines(scores),
        number_cell=cell,
        sentence=ended,
        kb=lambda one: f"{one.bytes / 1e3:.1f}",
    )


def loss_cell(one: Slice, measure: str) -> Cell:
    """What a slice says in `measure` as a table shows it."""
    found = loss(one, measure)
    if found is None:
        return Cell("–", "")
    return Cell(loss_text(found.value, measure), loss_interval(found, measure, "–"))


def twin_cell(found: Estimate | None) -> Cell:
    """A difference to the twin as a table shows it."""
    if found is None:
        return Cell("–", "")
    return Cell(loss_text(found.value, say_of.DIFFERENCE), loss_interval(found, say_of.DIFFERENCE, "–"))


def floor_text(subject: LabModel) -> str:
    """The largest of a model's floors as a table shows it."""
    floor = say_of.floor_of(subject)
    return "unusable" if say_of.is_unusable(subject) else "–" if floor is None else loss_text(floor, say_of.KL)


def share_cell(share: Estimate | None) -> Cell:
    """A share in percent, its interval beneath."""
    if share is None:
        return Cell("–", "")
    ends = "" if share.low is None or share.high is None else f"{share.low * 100:.1f}–{share.high * 100:.1f}"
    return Cell(say_of.top1_text(share), ends)
