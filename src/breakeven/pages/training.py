"""A study of trainings on a terminal and as a page: who learned more, how surely, and how evenly experts were used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from breakeven.pages import words
from breakeven.pages.figures.training import figures_of_training
from breakeven.pages.html import Cell, cell, drawn, environment_of_pages
from breakeven.pages.lab_words import BITS, DIFFERENCE, EMPTY, loss_interval, loss_span, loss_text
from breakeven.pages.load_words import ended
from breakeven.pages.terminal import (
    Passage,
    Say,
    listed_parts,
    packed,
    print_parts,
    say_tables,
    shortened,
)
from breakeven.results.store import RESULT, write_whole
from breakeven.results.training import MatchedArm, TrainStudy
from breakeven.stats.estimate import Estimate
from breakeven.version import __version__

EQUAL_IN = {
    "active": "active weights",
    "total": "weights in all",
    "flops": "operations a token",
    "seconds": "seconds of training",
}


def page_of_study(out: Path) -> Path:
    """Where `write_study_page` writes the page of the study in the directory `out`."""
    return out / RESULT.replace(".json", ".html")


def write_study_page(study: TrainStudy, out: Path) -> Path:
    """Write the page of a study into its directory. Raises `UserError` where it cannot be written."""
    return write_whole(page_of_study(out), render_study(study).encode())


def show_study(study: TrainStudy, console: Console, page: Path | None = None, *, full: bool = False) -> None:
    """Print who learned more, a row an arm, how experts were used, what was left where."""
    parts = [
        Passage(lambda say: _head(study, say)),
        Passage(lambda say: _arms(study, console.width, say)),
        Passage(lambda say: _noise(study, say)),
        *listed_parts("Experts", expert_lines(study), most=4, rank=1, rest=4),
        *listed_parts("By language", language_lines(study), most=4, rank=2, rest=5),
        *listed_parts("Rates tried", rate_lines(study), most=3, rank=3, rest=5),
        *listed_parts("Left", left_lines(study), most=6, rank=2, rest=5),
        Passage(lambda say: _end(study, say)),
    ]
    print_parts(parts, console, full=full, page=page)


def render_study(study: TrainStudy) -> str:
    """The page of a study as HTML. Every text that came from outside is escaped."""
    environment = environment_of_pages()
    environment.filters.update(sentence=ended)
    return environment.get_template("training.html.jinja").render(
        result=study,
        verdict=" ".join(verdicts(study)),
        verdicts=verdicts(study),
        equal=EQUAL_IN[study.match],
        noise=noise_text(study),
        version=__version__,
        figures=drawn(figures_of_training(study)),
        difference=difference_cell,
        times=times_cell,
        bits=lambda each: Cell(loss_text(each.value, BITS), loss_interval(each, BITS, "–")),
        off=lambda each: off_text(study, each),
        experts=expert_lines(study),
        languages=language_lines(study),
        rates=rate_lines(study),
        left=left_lines(study),
        runs=study.runs,
    )


def verdicts(study: TrainStudy) -> list[str]:
    """A sentence for each arm beside the reference."""
    return [_verdict(study, arm) for arm in study.arms if arm.difference is not None]


def _verdict(study: TrainStudy, arm: MatchedArm) -> str:
    found = arm.difference
    assert found is not None
    span = f"{loss_span(found, DIFFERENCE)} nats a token"
    other = study.reference
    if arm.verdict is None:
        return f"{arm.name} against {other}: {span}; too few trainings to tell."
    if arm.verdict == "no difference":
        return f"No difference between {arm.name} and {other}: {span}."
    more = "more" if arm.verdict == "better" else "less"
    said = f"{arm.name} learned {more} than {other}: {span}"
    if arm.speed_up is not None:
        said += f", as {other} would of {times_text(arm.speed_up)} the tokens"
    return f"{said}."


def times_text(found: Estimate) -> str:
    """How many times as much: "1.42 (1.10-1.83) times"."""
    return f"{words.with_interval(found)} times"


def noise_text(study: TrainStudy) -> str:
    """What chance alone makes of a loss."""
    if study.noise_floor is None:
        return "Noise of seeds: not known, too few trainings."
    return (
        f"Noise of seeds: two trainings of one shape differ by at most {study.noise_floor:.3f} nats a token in 95 % "
        f"({study.noise_freedom} degrees of freedom)."
    )


def expert_lines(study: TrainStudy) -> list[str]:
    """How evenly each arm's experts were used."""
    found = []
    for arm in study.arms:
        if arm.max_over_mean is None:
            continue
        count = arm.experts * len(arm.routed_layers) * len(study.seeds)
        dead = "none dead" if not arm.dead_experts else f"{arm.dead_experts} of {count} dead"
        found.append(
            f"{arm.name}: {arm.used} of {arm.experts} experts in {len(arm.routed_layers)} of {arm.layers} layers; the "
            f"busiest sees {words.with_interval(arm.max_over_mean)} times the mean; {dead}"
        )
    return found


def language_lines(study: TrainStudy) -> list[str]:
    """What each arm's loss differs by on each language."""
    return [
        f"{arm.name}: " + "; ".join(f"{name} {loss_span(each, DIFFERENCE)}" for name, each in arm.by_language.items())
        for arm in study.arms
        if arm.by_language
    ]


def rate_lines(study: TrainStudy) -> list[str]:
    """Losses of the learning rates that were tried."""
    found = []
    for arm in study.arms:
        if arm.copy_of is not None:
            found.append(f"{arm.name}: {arm.rate:g}, as {arm.copy_of}")
        elif arm.rates:
            tried = ", ".join(
                f"{each.rate:g} {'no number' if each.loss is None else f'{each.loss:.3f}'}" for each in arm.rates
            )
            found.append(f"{arm.name}: {arm.rate:g} (nats a token after {study.short_steps} steps: {tried})")
        else:
            found.append(f"{arm.name}: {arm.rate:g}, given")
    return found


def left_lines(study: TrainStudy) -> list[str]:
    """The models that were left standing, and what llama.cpp was checked to compute."""
    found = []
    for arm in study.arms:
        checks = [f"{check.kl.value:.1g} nats from {check.engine}" for check in arm.checks if check.kl is not None]
        file = "" if arm.gguf is None else f", and {arm.gguf}" + (f" ({'; '.join(checks)})" if checks else "")
        found += [] if arm.path is None else [f"{arm.path}{file}"]
    return found


def off_text(study: TrainStudy, arm: MatchedArm) -> str:
    """By how much an arm misses the reference's number."""
    return "reference" if arm.name == study.reference else f"{arm.off:+.2%}".replace("%", " %")


def difference_cell(found: Estimate | None) -> Cell:
    """Nats more than the reference."""
    return (
        Cell("–", "")
        if found is None
        else Cell(loss_text(found.value, DIFFERENCE), loss_interval(found, DIFFERENCE, "–"))
    )


def times_cell(found: Estimate | None) -> Cell:
    """A ratio, or nothing."""
    return Cell("–", "") if found is None else cell(found)


def _head(study: TrainStudy, say: Say) -> None:
    for text in verdicts(study):
        say(text, "bold")
    for caveat in study.caveats:
        say(ended(caveat), "yellow")


def _arms(study: TrainStudy, width: int, say: Say) -> None:
    say()
    say(
        f"Equal in {EQUAL_IN[study.match]}; {study.arms[0].tokens:,} tokens, {len(study.seeds)} "
        f"seed{'s' if len(study.seeds) > 1 else ''}",
        "bold",
    )
    first = ["", *(shortened(arm.name) for arm in study.arms)]

    def column(head: str, cells: Sequence[str]) -> list[list[list[str]]]:
        return [[[head, *cells]]] if any(each != EMPTY for each in cells) else []

    def spans(found: Sequence[Estimate | None]) -> list[str]:
        return [EMPTY if each is None else loss_span(each, DIFFERENCE) for each in found]

    def times(found: Sequence[Estimate | None]) -> list[str]:
        return [EMPTY if each is None else words.with_interval(each) for each in found]

    groups = [
        *column("shape", [arm.shape for arm in study.arms]),
        *column("active", [words.count_text(arm.active_params) for arm in study.arms]),
        *column("total", [words.count_text(arm.total_params) for arm in study.arms]),
        *column("off", [off_text(study, arm) for arm in study.arms]),
        *column("nats/token", [loss_span(arm.loss, BITS) for arm in study.arms]),
        *column("more than reference", spans([arm.difference for arm in study.arms])),
        *column("times the tokens", times([arm.speed_up for arm in study.arms])),
        *column("times the seconds", times([arm.speed_up_on_clock for arm in study.arms])),
        *column("tok/s", [EMPTY if arm.tokens_per_s is None else words.value(arm.tokens_per_s) for arm in study.arms]),
    ]
    say_tables(packed(first, groups, width - 2), say)


def _noise(study: TrainStudy, say: Say) -> None:
    say(noise_text(study), "dim", 2)
    say(
        f"Judged on {study.judged_bytes / 1e3:,.1f} kB in {study.judged_blocks} pieces that trained nothing; trained "
        f"on {study.device}.",
        "dim",
        2,
    )


def _end(study: TrainStudy, say: Say) -> None:
    say()
    say(f"Again ({words.seconds_text(study.seconds)}): {study.command}", "dim")
