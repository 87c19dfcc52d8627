"""The choice in sentences: why a row stands where it does, what it gives up, which limits ruled out what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from breakeven.answer.choice.front import ParetoFront, Seat
from breakeven.answer.choice.machine import Site
from breakeven.answer.choice.rows import Exact
from breakeven.answer.choice.search import Runnable, Searched
from breakeven.answer.choice.uses import Wish
from breakeven.answer.choice.worlds import DrawnWorlds
from breakeven.results.choose import ChoiceKinds, ChoiceLimit, ChoiceRow, PassedOver

NEAREST = 3
"""Models named of those that are passed over."""
KINDS = {True: "Mixture-of-Experts", False: "dense"}
SURE = 0.975
THINKING = ("#thinking", "#high", "#medium", "#low")


def pick_sentence(row: ChoiceRow, wish: Wish) -> str:
    """The pick, where it stands out."""
    return (
        f"Run {row.model} in {row.format}: the best for {wish.use} here in {row.wins:.0%} of the worlds drawn, "
        f"at {row.tokens_per_s.value:.3g} tokens/s and {row.memory_bytes / 1e9:.3g} GB."
    )


def equal_sentence(rows: Sequence[ChoiceRow], equals: Sequence[str]) -> str:
    """The pick, where others cannot be told from it."""
    first = rows[0]
    second = next((f"{row.model} in {row.format}" for row in rows[1:] if row.model in equals), equals[0])
    more = len(equals) - 1
    rest = f" (and {more} more)" if more else ""
    return f"{first.model} in {first.format} and {second}{rest} are equal on what is known; measure them."


def because_of(
    rows: Sequence[ChoiceRow], front: ParetoFront, worlds: DrawnWorlds, kinds: ChoiceKinds, wish: Wish
) -> list[str]:
    """What the pick rests on."""
    first = rows[0]
    found = [
        f"{first.model} would solve {first.quality.value:.0f} ({first.quality.least:.0f} to "
        f"{first.quality.most:.0f}) of 100 tasks of which the middle model solves 50, in {', '.join(worlds.areas)}; "
        f"by {_basis(first)}"
    ]
    found += _doubts_of(first, worlds, wish)
    found.append(kinds_text(kinds))
    other = next((row for row in rows[1:] if row.kind != first.kind), None)
    if other is not None:
        at = worlds.models.index(other.model)
        ratio = other.tokens_per_s.value / first.tokens_per_s.value
        found.append(
            f"the first {KINDS[other.kind == 'moe']} model shown, {other.model} in {other.format}, does better than it "
            f"in {1 - front.beats_M[at]:.0%} of worlds and is {_times(ratio)}"
        )
    else:
        found.append(f"no {KINDS[first.kind != 'moe']} model is on the front of quality, speed and memory here")
    if front.undecided > 1 - SURE:
        found.append(f"in {front.undecided:.0%} of worlds no model is as fast as asked: measure before you download")
    if any(row.quality_basis == "size" for row in rows):
        named = ", ".join(row.model for row in rows if row.quality_basis == "size")
        found.append(f"no score is known of {named}: parameters stand in, and the band says so")
    return found


def _doubts_of(first: ChoiceRow, worlds: DrawnWorlds, wish: Wish) -> list[str]:
    """What the pick's scores do not say, in one line."""
    at = worlds.models.index(first.model)
    told = [(area, worlds.told[area][at]) for area in worlds.areas]
    published = [(area, each) for area, each in told if each.source == "scores"]
    found = []
    if blank := [area for area, each in published if not each.n_scores]:
        found.append(f"it has no score in {', '.join(blank)} itself: what it does elsewhere, and its kin, stand in")
    if any(each.of.endswith(THINKING) for _, each in told if each.source != "own"):
        found.append(
            f"its quality is that of answers after thinking, which take many more than the {wish.output:,} tokens "
            "counted here"
        )
    return ["; and ".join(found)] if found else []


def kinds_text(kinds: ChoiceKinds) -> str:
    """Which kind wins how often, and where that turns."""
    told = f"the best is a Mixture-of-Experts model in {kinds.moe:.0%} of worlds, a dense one in {kinds.dense:.0%}"
    if kinds.flips_at is None:
        return f"{told}, and at no other least speed from 1 to 512 tokens/s does that turn"
    return f"{told}; asked for {kinds.flips_at:.3g} tokens/s it turns to {KINDS[kinds.flips_to == 'moe']}"


def _basis(row: ChoiceRow) -> str:
    return {"own": "your scores", "scores": "published scores", "size": "its size alone, as no score is known"}[
        row.quality_basis
    ]


def _times(ratio: float) -> str:
    if 0.95 <= ratio <= 1.05:
        return "as fast"
    return f"{ratio:.2g} times as fast" if ratio > 1 else f"{1 / ratio:.2g} times slower"


def why_text(each: Seat, front: ParetoFront, worlds: DrawnWorlds, options: Sequence[Runnable]) -> str:
    """Why a row is shown."""
    option = options[each.option]
    at = int(worlds.of_O[each.option])
    win, beaten = front.wins_M[at], 1 - front.beats_M[at]
    kind = KINDS[option.shape.moe]
    return {
        "pick": f"the ablest of those {'with scores' if worlds.scored_M[at] else 'there are'}; the best in "
        f"{win:.0%} of worlds",
        "equal": f"equal to the pick on what is known: better than it in {beaten:.0%} of worlds",
        "other kind": f"the ablest {kind} model on the front",
        "faster": "the ablest of those that are half as fast again",
        "smaller": "the ablest of those that take less than two thirds of the memory",
        "next": f"the best in {win:.0%} of worlds",
    }[each.role]


def gives_up_of(
    number: int,
    pick: int,
    worlds: DrawnWorlds,
    exact: Mapping[int, Exact],
    standing: Sequence[Seat],
    options: Sequence[Runnable],
) -> list[str]:
    """Against the pick; of the pick itself against the best of the rows in each."""
    if number == pick:
        return _pick_gives_up(pick, worlds, exact, standing, options)
    found = []
    points = worlds.quality_O[number] - worlds.quality_O[pick]
    if points <= -0.5:
        found.append(f"{-points:.1f} points")
    mine, its = exact[number], exact[pick]
    if mine.tokens_per_s.value < 0.95 * its.tokens_per_s.value:
        found.append(f"{its.tokens_per_s.value - mine.tokens_per_s.value:.3g} tokens/s")
    if mine.point.memory_bytes > 1.05 * its.point.memory_bytes:
        found.append(f"{(mine.point.memory_bytes - its.point.memory_bytes) / 1e9:.3g} GB more")
    return found


def _pick_gives_up(
    pick: int, worlds: DrawnWorlds, exact: Mapping[int, Exact], standing: Sequence[Seat], options: Sequence[Runnable]
) -> list[str]:
    found = []
    others = [each.option for each in standing if each.option != pick and each.option in exact]
    if not others:
        return []
    fast = max(others, key=lambda o: exact[o].tokens_per_s.value)
    if exact[fast].tokens_per_s.value > 1.05 * exact[pick].tokens_per_s.value:
        more = exact[fast].tokens_per_s.value / exact[pick].tokens_per_s.value
        found.append(f"speed: {options[fast].name} is {more:.2g} times as fast")
    small = min(others, key=lambda o: exact[o].point.memory_bytes)
    if exact[small].point.memory_bytes < 0.95 * exact[pick].point.memory_bytes:
        less = (exact[pick].point.memory_bytes - exact[small].point.memory_bytes) / 1e9
        found.append(f"memory: {options[small].name} takes {less:.3g} GB less")
    return found


# --- limits ---

Keeps = Callable[[Runnable], bool]


def _room(wish: Wish, place: Site) -> float:
    """Bytes that may be taken in all places together."""
    return min(place.device_room + (place.host_room or 0.0), wish.memory_bytes or math.inf)


def _limits(wish: Wish, place: Site) -> dict[str, tuple[str, Keeps]]:
    """By option: what was asked in words, and whether an option that fits keeps it."""
    found: dict[str, tuple[str, Keeps]] = {
        "--min-speed": (f"{wish.min_speed:g} tokens/s for each user", lambda o: o.timed.speed >= wish.min_speed)
    }
    if (ttft := wish.ttft_s) is not None:
        found["--ttft"] = (f"the first token within {ttft:g} s", lambda o: o.timed.ttft_s <= ttft)
    if wish.licences:
        found["--licence"] = (
            f"a licence of {', '.join(wish.licences)}",
            lambda o: (o.entry.facts.licence or "").lower() in wish.licences,
        )
    if (most := wish.max_usd_per_month) is not None and place.usd_per_month is not None:
        rent = place.usd_per_month
        found["--max-usd-per-month"] = (f"at most {most:,.0f} dollars a month", lambda _: rent <= most)
    return found


def limits_of(
    wish: Wish, place: Site, searched: Searched, options: Sequence[Runnable], worlds: DrawnWorlds | None
) -> list[ChoiceLimit]:
    """Every limit with how many models it rules out, whatever else they keep."""
    all_models = {option.name for option in searched.options}
    room = _room(wish, place)
    found = [
        ChoiceLimit(
            option="--memory",
            asked=f"{room / 1e9:.3g} GB for weights, caches and buffers",
            given="--memory" in wish.given,
            ruled_out=len(searched.too_big),
        ),
        ChoiceLimit(
            option="--context",
            asked=f"a context of {wish.reserve:,} tokens",
            given="--context" in wish.given,
            ruled_out=len(searched.short),
        ),
    ]
    for option, (asked, keeps) in _limits(wish, place).items():
        kept = {each.name for each in searched.options if keeps(each)}
        found.append(
            ChoiceLimit(option=option, asked=asked, given=option in wish.given, ruled_out=len(all_models - kept))
        )
    return found


def passed_over_of(
    wish: Wish, place: Site, searched: Searched, options: Sequence[Runnable], worlds: DrawnWorlds | None
) -> list[PassedOver]:
    """Who is not in the answer, by the first reason that holds."""
    found = []
    if searched.short:
        near = sorted(searched.short.items(), key=lambda each: -each[1])[:NEAREST]
        found.append(_over("context too short", searched.short, [f"{n} (up to {c:,} tokens)" for n, c in near]))
    if searched.too_big:
        near_big = sorted(searched.too_big.items(), key=lambda each: each[1])[:NEAREST]
        found.append(_over("too big", searched.too_big, [f"{n} (from {b / 1e9:.3g} GB)" for n, b in near_big]))
    left = {option.name for option in searched.options}
    limits = _limits(wish, place)
    if "--licence" in limits:
        kept = {option.name for option in searched.options if limits["--licence"][1](option)}
        if others := sorted(left - kept):
            licences = {o.name: o.entry.facts.licence or "not known" for o in searched.options}
            found.append(_over("licence", others, [f"{n} ({licences[n]})" for n in others[:NEAREST]]))
        left = kept
    for option, reason in (("--min-speed", "too slow"), ("--ttft", "first token too late")):
        if option not in limits:
            continue
        keeps = limits[option][1]
        kept = {o.name for o in searched.options if o.name in left and keeps(o)}
        if out := left - kept:
            fastest = option == "--min-speed"
            best = _best(out, searched, worlds, fastest=fastest)
            numbers = [f"{o.timed.speed:.2g} tokens/s" if fastest else f"{o.timed.ttft_s:.3g} s" for o in best]
            told = [f"{o.name} ({number} in {o.format})" for o, number in zip(best, numbers, strict=True)]
            found.append(_over(reason, out, told))
        left = kept
    return found


def _over(reason: str, models: Sequence[str] | set[str] | Mapping[str, object], nearest: list[str]) -> PassedOver:
    return PassedOver(reason=reason, models=len(models), nearest=nearest)


def _best(names: set[str], searched: Searched, worlds: DrawnWorlds | None, *, fastest: bool) -> list[Runnable]:
    """The ablest of these models, each as it comes nearest to the limit."""
    quality: dict[str, float] = {}
    if worlds is not None:
        for at, value in zip(worlds.of_O, worlds.quality_O, strict=True):
            name = worlds.models[at]
            quality[name] = max(quality.get(name, 0.0), float(value))
    nearest: dict[str, Runnable] = {}
    for option in searched.options:
        if option.name in names:
            had = nearest.get(option.name)
            nearer = had is None or (
                option.timed.speed > had.timed.speed if fastest else option.timed.ttft_s < had.timed.ttft_s
            )
            if nearer:
                nearest[option.name] = option
    return sorted(nearest.values(), key=lambda o: (-quality.get(o.name, 0.0), -o.shape.total_params))[:NEAREST]


def no_row_sentence(wish: Wish, place: Site, searched: Searched, options: Sequence[Runnable]) -> tuple[str, list[str]]:
    """Why nothing keeps the limits: no room, one limit, or two that together leave nothing; and what comes nearest."""
    if not searched.options:
        if not searched.too_big:
            longest = max(searched.short.values(), default=0)
            return (
                f"No model holds {wish.reserve:,} tokens; the longest context is {longest:,}: ask for less, --context.",
                [],
            )
        name, need = min(searched.too_big.items(), key=lambda each: each[1])
        return (
            f"Nothing fits {_room(wish, place) / 1e9:.3g} GB with a cache of {wish.reserve:,} tokens for "
            f"{_users(wish)}; the nearest, {name}, takes {need / 1e9:.3g} GB: ask for less with --context or --users, "
            "or add memory.",
            [],
        )
    limits = _limits(wish, place)
    holding = {option: [keeps(each) for each in searched.options] for option, (_, keeps) in limits.items()}
    for option, kept in holding.items():
        if not any(kept):
            return (
                f"Nothing that fits here keeps {option}: {limits[option][0]}; {_short(option, wish, place, searched)}.",
                [],
            )
    for one, other in itertools.combinations(holding, 2):
        if not any(a and b for a, b in zip(holding[one], holding[other], strict=True)):
            return (
                f"{one} ({limits[one][0]}) and {other} ({limits[other][0]}) contradict each other here: each can be "
                "kept, both together cannot; loosen one.",
                [_short(one, wish, place, searched), _short(other, wish, place, searched)],
            )
    if any(all(kept) for kept in zip(*holding.values(), strict=True)):
        return (
            "What keeps the limits in a quick search does not once it is placed as its engine places it: a little too "
            f"large or too slow; loosen {' or '.join(holding)}, or ask for less with --context or --users.",
            [],
        )
    return f"The limits {', '.join(holding)} together leave nothing here, though any two can be kept; loosen one.", []


def _users(wish: Wish) -> str:
    return "one user" if wish.users == 1 else f"each of {wish.users} users"


def _short(option: str, wish: Wish, place: Site, searched: Searched) -> str:
    """The nearest to one limit, and what to ask for."""
    if option == "--min-speed":
        best = max(searched.options, key=lambda o: o.timed.speed)
        return f"the fastest, {best.name} in {best.format}, reaches {best.timed.speed:.3g} tokens/s"
    if option == "--ttft":
        best = min(searched.options, key=lambda o: o.timed.ttft_s)
        return f"the soonest, {best.name} in {best.format}, needs {best.timed.ttft_s:.3g} s"
    if option == "--licence":
        known = sorted({o.entry.facts.licence for o in searched.options if o.entry.facts.licence})
        return f"the models that fit have {', '.join(known[:6])}"
    return f"renting it costs {place.usd_per_month or 0.0:,.0f} dollars a month ({place.price_source})"
