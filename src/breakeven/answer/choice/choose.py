"""`choose`: from a machine and a use to the models worth running there, the pick first, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.answer.choice.front import ParetoFront, Seat, equals_of, format_of, front_of, kinds_of, standings
from breakeven.answer.choice.machine import Site, place_of
from breakeven.answer.choice.rows import Exact, exact, measure_line, row_of
from breakeven.answer.choice.search import Runnable, Searched, search
from breakeven.answer.choice.uses import ChoiceWords, Wish, wish_of
from breakeven.answer.choice.why import (
    because_of,
    equal_sentence,
    explained_of,
    gives_up_of,
    limits_of,
    no_row_sentence,
    passed_over_of,
    pick_sentence,
    why_text,
)
from breakeven.answer.choice.worlds import SEED, WORLDS, DrawnWorlds, Floats, areas_of, worlds_of
from breakeven.forecast.predict import origin_text
from breakeven.model.catalogue import entries, find
from breakeven.model.formats.named import format_named
from breakeven.model.resolve import split_format
from breakeven.results.choose import ChoiceExplained, ChoiceRow, ChoiceUse, ModelChoice
from breakeven.version import __version__

TRIES = 6
"""How often what turns out not to fit, placed exactly, is taken out and the choice made again."""


@dataclass(frozen=True)
class Chosen:
    """The options that stay, and what is known of them."""

    searched: Searched
    options: tuple[Runnable, ...]
    worlds: DrawnWorlds
    memory_O: Floats
    allowed_O: NDArray[np.bool_]
    front: ParetoFront
    standing: list[Seat]
    exact: dict[int, Exact]


def choose(
    words: ChoiceWords,
    machine: str = "this",
    *,
    engine: str | None = None,
    devices: int | None = None,
    explain: str | None = None,
    seed: int = SEED,
) -> ModelChoice:
    """The choice. Raises UserError for an unknown machine, use or model, and for numbers that make no sense."""
    wish = wish_of(words)
    asked = None if explain is None else _asked(explain)
    place = place_of(machine, engine, devices)
    searched = search(place, wish)
    licensed = tuple(option for option in searched.options if allows(option, wish))
    dear = wish.max_usd_per_month is not None and (place.usd_per_month or 0.0) > wish.max_usd_per_month
    if not licensed or dear:
        return _nothing(wish, place, searched, licensed, None, asked, seed)
    found = _chosen(searched, licensed, place, wish, seed)
    if found.front.pick < 0:
        return _nothing(wish, place, searched, licensed, found, asked, seed)
    return _answer(found, place, wish, asked, seed)


def allows(option: Runnable, wish: Wish) -> bool:
    """Whether its licence is one of those allowed. One that is not known is none of them."""
    return not wish.licences or (option.entry.facts.licence or "").lower() in wish.licences


def _asked(text: str) -> tuple[str, str | None]:
    bare, format_name = split_format(text)
    return find(bare).name, None if format_name is None else format_named(format_name).name


def _chosen(searched: Searched, options: tuple[Runnable, ...], place: Site, wish: Wish, seed: int) -> Chosen:
    worlds = worlds_of(options, place, wish, seed)
    memory_O = np.array([option.timed.memory_bytes for option in options])
    out_O = np.zeros(len(options), dtype=np.bool_)
    known: dict[int, Exact] = {}
    for last in [*[False] * (TRIES - 1), True]:
        allowed_O = worlds.keeps_O(wish) & ~out_O
        front = front_of(worlds, memory_O, worlds.scores_WM(wish, ~out_O), allowed_O)
        standing = [] if front.pick < 0 else standings(front, worlds, options, memory_O)
        wrong = [each.option for each in standing if not _holds(each.option, options, known, place, wish)]
        if not wrong or last:
            standing = [each for each in standing if each.option not in wrong]
            break
        out_O[wrong] = True
    return Chosen(searched, options, worlds, memory_O, allowed_O, front, standing, known)


def _holds(number: int, options: tuple[Runnable, ...], known: dict[int, Exact], place: Site, wish: Wish) -> bool:
    """Whether an option still fits and keeps the limits when it is placed as its engine does; remembers how."""
    if number not in known:
        found = exact(options[number], place, wish)
        if found is None:
            return False
        known[number] = found
    found = known[number]
    return (
        found.fits
        and found.tokens_per_s.value >= wish.min_speed
        and found.ttft_s.value <= (wish.ttft_s or np.inf)
        and (wish.memory_bytes is None or found.point.memory_bytes <= wish.memory_bytes)
    )


def _answer(found: Chosen, place: Site, wish: Wish, asked: tuple[str, str | None] | None, seed: int) -> ModelChoice:
    worlds, front, options = found.worlds, found.front, found.options
    rows = [_row(found, each, place, wish) for each in found.standing]
    if not rows:
        return _nothing(wish, place, found.searched, options, found, asked, seed)
    equals = equals_of(front, worlds)
    first = rows[0]
    two = [(options[each.option], found.exact[each.option]) for each in found.standing[:2]]
    moe_M = np.array([options[first_of].shape.moe for first_of in worlds.starts_M])
    kinds = kinds_of(front, worlds, moe_M, wish)
    measure = measure_line(two, wish, place) if len(two) > 1 else None
    sentence = equal_sentence(rows, equals) if equals else pick_sentence(first, wish)
    return msgspec.structs.replace(
        _frame(wish, place, found.searched, options, found, seed),
        verdict="equal" if equals else "pick",
        sentence=sentence,
        because=because_of(rows, front, worlds, kinds),
        kinds=kinds,
        equals=equals,
        rows=rows,
        measure=measure,
        explained=None if asked is None else _explained(asked, found, place, wish),
    )


def _row(found: Chosen, each: Seat, place: Site, wish: Wish) -> ChoiceRow:
    pick = found.standing[0].option
    model = int(found.worlds.of_O[each.option])
    return row_of(
        each.option, found.options[each.option], found.exact[each.option], found.worlds, place, wish,
        role=each.role,
        on_front=bool(found.front.on_O[each.option]),
        wins=float(found.front.wins_M[model]),
        why=why_text(each, found.front, found.worlds, found.options),
        gives_up=gives_up_of(each.option, pick, found.worlds, found.exact, found.standing, found.options),
    )  # fmt: skip


def _explained(asked: tuple[str, str | None], found: Chosen, place: Site, wish: Wish) -> ChoiceExplained:
    """Why a model is not the pick; of one without a format, in the format that would be taken."""
    name, format_name = asked
    worlds, pick = found.worlds, found.standing[0].option
    own = [i for i, option in enumerate(found.options) if option.name == name and format_name in (None, option.format)]
    kept = [i for i in own if found.allowed_O[i]]
    row = None
    number: int | None = None
    if kept:
        mask = np.zeros(len(found.options), dtype=np.bool_)
        mask[kept] = True
        number = format_of(int(worlds.of_O[kept[0]]), worlds, found.memory_O, mask)
        if number not in found.exact and (timed := exact(found.options[number], place, wish)) is not None:
            found.exact[number] = timed
        if number in found.exact:
            seat = next((each for each in found.standing if each.option == number), Seat(number, "next"))
            row = _row(found, seat, place, wish)
    elif own:
        number = max(own, key=lambda i: worlds.speed_O[i])
    return explained_of(
        name, format_name, number, row, pick, found.options, worlds, found.front, found.searched, place, wish
    )


def _nothing(
    wish: Wish,
    place: Site,
    searched: Searched,
    options: tuple[Runnable, ...],
    found: Chosen | None,
    asked: tuple[str, str | None] | None,
    seed: int,
) -> ModelChoice:
    """No model keeps the limits: which limit, or which two together, and what comes nearest."""
    sentence, because = no_row_sentence(wish, place, searched, options)
    explained = None
    if asked is not None:
        explained = ChoiceExplained(
            model=asked[0], format=asked[1] or "any", picked=False, reasons=[sentence], row=None
        )
    frame = _frame(wish, place, searched, options, found, seed)
    return msgspec.structs.replace(frame, sentence=sentence, because=because, explained=explained)


def _frame(
    wish: Wish, place: Site, searched: Searched, options: tuple[Runnable, ...], found: Chosen | None, seed: int
) -> ModelChoice:
    """The choice without an answer: what was asked, what was weighed, what was passed over."""
    areas, unknown = areas_of(wish)
    return ModelChoice(
        version=__version__,
        machine=place.name,
        engine=place.engine,
        devices=place.devices,
        use=ChoiceUse(
            name=wish.use,
            users=wish.users,
            prompt=wish.prompt,
            output=wish.output,
            context=wish.context,
            reserve=wish.reserve,
            areas=list(areas),
            unknown_languages=list(unknown),
            about=wish.about,
        ),
        limits=limits_of(wish, place, searched, options, None if found is None else found.worlds),
        passed_over=passed_over_of(wish, place, searched, options, None if found is None else found.worlds),
        models=len(entries()),
        considered=searched.considered,
        worlds=WORLDS,
        seed=seed,
        profile=origin_text(place.profile),
        notes=_notes(wish, place, unknown),
        verdict="none",
        sentence="",
        because=[],
        kinds=None,
        equals=[],
        rows=[],
        measure=None,
        explained=None,
    )


def _notes(wish: Wish, place: Site, unknown: tuple[str, ...]) -> list[str]:
    notes = list(place.notes)
    if unknown:
        notes.append(
            f"no model's score in {', '.join(unknown)} is known, so the ranking does not count how well they "
            f"{'speak it' if len(unknown) == 1 else 'speak them'}; try rows on your own texts (`breakeven evaluate`)"
        )
    if wish.area != "knowledge":
        notes.append(
            "what a format costs was published in points for knowledge alone; elsewhere that stands in, with twice "
            "its band"
        )
    if wish.use == "agent":
        notes.append("no prefix is taken to be reused between steps: an agent's steps may be much faster than shown")
    if wish.max_usd_per_month is not None:
        said = "no rent of this machine is known, so --max-usd-per-month rules nothing out"
        if place.usd_per_month is not None:
            said = f"rent {place.usd_per_month:,.0f} dollars a month ({place.price_source}), the machine alone"
        notes.append(said)
    notes.append("hosted APIs are not among the candidates; `breakeven cost` prices one beside a machine")
    return notes
