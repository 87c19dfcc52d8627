"""`choose`: from a machine and a use to the models worth running there, the pick first, and how sure that is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.answer.choice.front import (
    EQUAL,
    ParetoFront,
    Seat,
    equals_of,
    format_of,
    front_of,
    kinds_of,
    standings,
)
from breakeven.answer.choice.hosted import hosted_prices, hosted_rows
from breakeven.answer.choice.machine import Site, place_of
from breakeven.answer.choice.rows import Exact, exact, measure_line, row_of
from breakeven.answer.choice.search import Runnable, Searched, format_of_another, search, weighed_formats
from breakeven.answer.choice.uses import ChoiceWords, Wish, wish_of
from breakeven.answer.choice.why import (
    because_of,
    equal_sentence,
    gives_up_of,
    limits_of,
    no_row_sentence,
    passed_over_of,
    pick_sentence,
    why_text,
)
from breakeven.answer.choice.worlds import SEED, TRANSLATED, WORLDS, DrawnWorlds, Floats, areas_of, worlds_of
from breakeven.forecast.asked import origin_text
from breakeven.model.catalogue import entries, find
from breakeven.model.formats.named import format_named
from breakeven.model.quality.kin import kin_of
from breakeven.model.resolve import split_format
from breakeven.results.choose import ChoiceExplained, ChoiceRow, ChoiceUse, ModelChoice
from breakeven.version import __version__

TRIES = 6
"""What turns out not to fit, placed exactly, is taken out and the choice made again; after so many turns it takes all
formats of its model with it that are as large."""
_UNMEASURED = {
    "vllm": "no one command measures the two best before a download: vLLM makes up weights of 16 bits alone; give "
    "`breakeven compare` their directories",
    "llama.cpp": "no one command measures the two best before a download: a comparison has one type of keys and "
    "values, and one of them cannot have the other's",
}


@dataclass(frozen=True)
class Chosen:
    """The options that stay, and what is known of them."""

    searched: Searched
    options: tuple[Runnable, ...]
    worlds: DrawnWorlds
    memory_O: Floats
    placed_O: NDArray[np.bool_]
    """All but those that turned out not to hold."""
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
    for turn in itertools.count(1):
        allowed_O = worlds.keeps_O(wish) & ~out_O
        front = front_of(worlds, memory_O, worlds.scores_WM(wish, ~out_O), allowed_O)
        standing = [] if front.pick < 0 else standings(front, worlds, options, memory_O)
        wrong = [each.option for each in standing if not _holds(each.option, options, known, place, wish)]
        if not wrong:
            break
        out_O[wrong] = True
        if turn >= TRIES:
            for option in [each for each in wrong if each in known]:
                out_O |= (worlds.of_O == worlds.of_O[option]) & (memory_O >= memory_O[option])
    return Chosen(searched, options, worlds, memory_O, ~out_O, allowed_O, front, standing, known)


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
    equals = equals_of(front, worlds)
    first, first_option = rows[0], found.standing[0].option
    two = [(options[each.option], found.exact[each.option]) for each in found.standing[:2]]
    moe_M = np.array([options[first_of].shape.moe for first_of in worlds.starts_M])
    kinds = kinds_of(front, worlds, moe_M, wish, found.placed_O)
    measure = measure_line(two, wish, place) if len(two) > 1 else None
    frame = _frame(wish, place, found.searched, options, found, seed)
    hosted, said = hosted_rows(wish, place, worlds, first_option, seed)
    notes = [*frame.notes, *_of_own(worlds, wish), *said]
    if len(two) > 1 and measure is None:
        notes.append(_UNMEASURED["vllm" if place.engine == "vllm" else "llama.cpp"])
    sentence = equal_sentence(rows, equals) if equals else pick_sentence(first, wish)
    return msgspec.structs.replace(
        frame,
        notes=notes,
        verdict="equal" if equals else "pick",
        sentence=sentence,
        because=because_of(rows, front, worlds, kinds, wish),
        kinds=kinds,
        equals=equals,
        rows=rows,
        measure=measure,
        hosted=hosted,
        hosted_date=hosted_prices().date if hosted else None,
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
        if _holds(number, found.options, found.exact, place, wish):
            seat = next((each for each in found.standing if each.option == number), Seat(number, "next"))
            row = _row(found, seat, place, wish)
    elif own:
        number = max(own, key=lambda i: worlds.speed_O[i])
    if number is None:
        shown, reasons = "any", [_not_weighed(name, format_name, found.searched, place, wish)]
    elif number == pick:
        shown, reasons = found.options[number].format, ["it is the pick"]
    elif row is None and worlds.keeps_O(wish)[number]:
        placed = exact(found.options[number], place, wish)
        lacking = "does not run" if placed is None else placed.point.lacking or "no longer keeps the limits"
        shown, reasons = found.options[number].format, [f"placed as its engine places it, it {lacking}"]
    else:
        shown, reasons = found.options[number].format, _against(number, pick, found, wish)
    return ChoiceExplained(model=name, format=format_name or shown, picked=number == pick, reasons=reasons, row=row)


def _not_weighed(name: str, format_name: str | None, searched: Searched, place: Site, wish: Wish) -> str:
    """Why nothing of a model is among the options."""
    if (same := format_of_another(name)) is not None:
        return f"it is {same} in fewer bits, which is weighed under that name"
    if name in searched.short:
        return f"its context ends at {searched.short[name]:,} tokens; {wish.reserve:,} are asked for"
    if name in searched.too_big:
        return f"it does not fit: in its smallest format it takes {searched.too_big[name] / 1e9:.3g} GB"
    fits = [option for option in searched.options if option.name == name and format_name in (None, option.format)]
    if fits:
        return f"its licence, {fits[0].entry.facts.licence or 'not known'}, is none of those allowed"
    if format_name is not None and format_name not in weighed_formats(name, place):
        return f"{format_name} is not weighed for it here: {', '.join(weighed_formats(name, place))} are"
    return f"it does not fit in {format_name}; smaller formats of it may"


def _against(number: int, pick: int, found: Chosen, wish: Wish) -> list[str]:
    """What speaks against an option that was weighed; it keeps its limits or is too slow."""
    options, worlds, front = found.options, found.worlds, found.front
    option, best = options[number], options[pick]
    reasons = []
    if option.timed.speed < wish.min_speed:
        reasons.append(f"{option.timed.speed:.3g} tokens/s in {option.format}; {wish.min_speed:g} are asked for")
    if wish.ttft_s is not None and option.timed.ttft_s > wish.ttft_s:
        reasons.append(f"its first token comes after {option.timed.ttft_s:.3g} s; {wish.ttft_s:g} are asked for")
    at = int(worlds.of_O[number])
    if at == int(worlds.of_O[pick]):
        points = worlds.quality_O[number] - worlds.quality_O[pick]
        reasons.append(
            f"the same model in {best.format} is taken: {option.format} is {abs(points):.1f} points "
            f"{'better' if points > 0 else 'worse'} and takes {option.timed.memory_bytes / 1e9:.3g} GB instead of "
            f"{best.timed.memory_bytes / 1e9:.3g}"
        )
        return reasons
    if not found.allowed_O[number]:
        return reasons
    beaten = float(front.beats_M[at])
    points = worlds.quality_O[pick] - worlds.quality_O[number]
    named = f"{best.name} in {best.format}"
    if beaten >= EQUAL:
        reasons.append(f"{named} is better in {beaten:.0%} of worlds, by {points:.0f} points in the middle")
    else:
        reasons.append(
            f"on what is known it is equal to {named}, which is better in {beaten:.0%} of worlds: measure both"
        )
    above_O = front.on_O & (worlds.quality_O >= worlds.quality_O[number]) & (worlds.speed_O >= worlds.speed_O[number])
    above = [int(i) for i in np.flatnonzero(above_O)]
    over = [i for i in above if options[i].timed.memory_bytes <= option.timed.memory_bytes]
    if over and not front.on_O[number]:
        other = options[max(over, key=lambda i: float(worlds.quality_O[i]))]
        reasons.append(f"it is not on the front: {other.name} in {other.format} is as able, as fast and no larger")
    return reasons


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
    hosted, said = hosted_rows(wish, place, None, None, seed)
    return msgspec.structs.replace(
        frame,
        sentence=sentence,
        because=because,
        explained=explained,
        hosted=hosted,
        hosted_date=hosted_prices().date if hosted else None,
        notes=[*frame.notes, *said],
    )


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
        notes=_notes(wish, place, areas, unknown),
        verdict="none",
        sentence="",
        because=[],
        kinds=None,
        equals=[],
        rows=[],
        measure=None,
        explained=None,
    )


def _of_own(worlds: DrawnWorlds, wish: Wish) -> list[str]:
    """Scores of the user's that count for nothing here."""
    if wish.own is None:
        return []
    notes = []
    names, kins = set(worlds.models), {kin_of(name) for name in worlds.models}
    strange = {s.model for s in wish.own.scores if s.model.lower() not in names and kin_of(s.model) not in kins}
    if strange:
        notes.append(
            f"your scores of {', '.join(sorted(strange))} are of no candidate here; name models as `breakeven models` "
            "does"
        )
    if wish.own.coarser:
        notes.append(
            f"of {', '.join(wish.own.coarser)} you gave a finer file too, whose scores stand for the model: what fewer "
            "bits cost is expected, not yours"
        )
    if not any(each.source == "own" for area in worlds.areas for each in worlds.told[area]):
        spoken = sorted({s.language for s in wish.own.scores if s.language and s.language not in wish.languages})
        hint = f"; yours are in {', '.join(spoken)}: ask with --languages {','.join(spoken)}" if spoken else ""
        notes.append(
            f"none of your scores tells of a candidate in {', '.join(worlds.areas)}: published ones stand{hint}"
        )
    return notes


def _notes(wish: Wish, place: Site, areas: tuple[str, ...], unknown: tuple[str, ...]) -> list[str]:
    notes = list(place.notes)
    if unknown:
        notes.append(
            f"no model's score in {', '.join(unknown)} is known, so the ranking does not count how well they "
            f"{'speak it' if len(unknown) == 1 else 'speak them'}; try rows on your own texts (`breakeven evaluate`)"
        )
    if areas != (TRANSLATED,):
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
    return notes
