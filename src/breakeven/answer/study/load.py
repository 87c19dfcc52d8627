"""From a study file to a `StudyPlan`: paths, traffic, and whatever must agree between its parts.

The trace of a study may be of any length: what does not fit into memory is represented by its beginning.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from breakeven.answer.study.plan import QUESTION, CandidatePlan, Incoming, StudyPlan
from breakeven.answer.study.price import Location
from breakeven.answer.study.values import DAY_HOURS, HOURS, WEEK_HOURS, hourly
from breakeven.answer.study.yaml_file import record_of
from breakeven.errors import UserError, expanded
from breakeven.model.readers.typed import read_mapping
from breakeven.results.cost import Api, Pricing, Rented
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Workload

DOCS = "docs/decide.md lists the keys"
_MISSING = {
    "load": "say what comes in, such as rate: 2/s with prompt: 512 and output: 128",
    "slo": "say what is fast enough, such as ttft: 2s and tpot: 100ms; for batch work e2e: 8h",
    "candidates": "list what could serve it, each with a model and a machine or an API price",
}

WHOLE_BYTES = 256_000_000
"""A trace up to this size is read whole: some seven million requests as Azure writes them."""
HEAD_LINES = 1_000_000


def read_study_trace(
    path: Path, whole_bytes: int = WHOLE_BYTES, head_lines: int = HEAD_LINES, format: str | None = None
) -> TraceRows:
    """The requests of `path`, or its first `head_lines` lines where it is larger than `whole_bytes`.

    Its lines are copied as they are read, so memory does not grow with the file. Raises UserError as `read_trace`, and
    for a large file that is one JSON document, which has no beginning that could be read alone.
    """
    if not path.is_file() or path.stat().st_size <= whole_bytes:
        return read_trace(path, format)
    with tempfile.TemporaryDirectory() as directory:
        # The same name, as results and errors show it.
        head = Path(directory) / path.name
        with path.open("rb") as lines, head.open("wb") as copy:
            first = lines.readline(whole_bytes)
            if not first.endswith(b"\n") or first.strip() in (b"{", b"["):
                size = path.stat().st_size / 1e6
                raise UserError(f"{path}: is one document of {size:,.0f} MB; convert it to one request a line first")
            copy.write(first)
            copy.writelines(islice(lines, head_lines - 1))
        try:
            return read_trace(head, format)
        except UserError as error:
            raise UserError(str(error).replace(str(head), str(path))) from None  # the copy is gone when this is read


HOUR_S = 3600.0
LEAST_RECORDED = 20
"""Hours of a trace from which on it is a day, whose bill is made hour by hour."""
RANGE = 30.0
"""Flips are looked for from a thirtieth of the load to thirty times of it, and further where growth leads further."""
GROWTH_YEARS = 3
"""As far ahead as a growth rate is followed: hardware is commonly written off over about that long."""

_PATHS = (".yaml", ".yml", ".json", ".gguf")


def read_study(path: Path) -> StudyPlan:
    """The study in `path`. Relative paths in it count from its directory.

    Raises UserError naming file, key, what was found and what would be right.
    """
    path = expanded(path)
    found = read_mapping(
        path,
        too_large="give a study file, not a trace",
        give="give a study, or write one with breakeven decide --init",
        keys=f"keys such as `load:` and `candidates:`; {DOCS}",
    )
    return study_of(found, path.resolve(), str(path))


def study_of(found: Mapping[Any, Any], path: Path, where: str) -> StudyPlan:
    """`found` in the file `path`, which is called `where` in errors."""
    study = record_of(StudyPlan, found, where, DOCS, _MISSING)
    load = study.load
    candidates = tuple(
        _candidate(f"{where}: candidates.{i}", each, found["candidates"][i], path.parent, load.turns > 1)
        for i, each in enumerate(study.candidates)
    )
    names = [each.name for each in candidates]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{where}: candidates.{i}.name: found {name!r} a second time; give it a name of its own")
    trace, arrivals, load_per_s, hours = _arrivals(where, load, path.parent)
    low, high = _range(where, load, load_per_s)
    _check(where, study, names)
    quality = study.quality
    if quality.evaluation is not None:
        from breakeven.answer.study.evaluation import told_by

        file = existing(f"{where}: quality.evaluation", path.parent, str(quality.evaluation))
        floors = quality.floor is not None or any(part.floor is not None for part in study.parts)
        quality = told_by(where, replace(quality, evaluation=file), candidates, study.languages, floors)
    return replace(
        study,
        name=study.name or path.stem,
        question=study.question or QUESTION,
        candidates=candidates,
        quality=quality,
        path=path,
        workload=Workload(
            arrivals=arrivals,
            prompt=load.prompt,
            output=load.output,
            requests=load.requests,
            turns=load.turns,
            turn_think_s=load.think_s,
            sharing=load.turns > 1 or trace is not None,
            languages=study.languages,
            seed=study.seed,
        ),
        trace=trace,
        load_per_s=load_per_s,
        low_per_s=low,
        high_per_s=high,
        hours_per_s=hours,
    )


def _check(where: str, study: StudyPlan, names: list[str]) -> None:
    """What must agree between parts of the file."""
    _known(where, "quality.scores", study.quality.scores, names)
    _known(where, "quality.answer_tokens", study.quality.answer_tokens, names)
    for i, part in enumerate(study.parts):
        _known(where, f"parts.{i}.candidates", part.candidates, names)
    shares = sum(part.share for part in study.parts)
    if study.parts and abs(shares - 1) > 1e-6:
        raise UserError(f"{where}: parts: found shares that add up to {shares:.4g}, they must add up to 100%")
    own = study.quality.source == "own" and study.quality.evaluation is None
    if own and (missing := [name for name in names if name not in study.quality.scores]):
        raise UserError(
            f"{where}: quality.scores: missing for {missing[0]!r}; your own scores must cover every candidate"
        )
    for i, name in enumerate(study.formats):
        check_format(f"{where}: formats.{i}", name)


def _arrivals(where: str, load: Incoming, directory: Path) -> tuple[Path | None, Arrivals, float, tuple[float, ...]]:
    """The trace, how requests arrive, their mean rate, in the busiest hour of a day, and that of every hour."""
    if load.trace is None:
        hours = () if load.day is None else _hours(where, load.day, directory)
        rate = load.rate if load.rate is not None else (load.users or 0) * (load.requests_per_user or 0.0)
        rate = max(hours, default=rate)
        shape = load.arrivals or Arrivals(process="poisson")
        return None, Arrivals(process=shape.process, rate_per_s=rate, cv=shape.cv), rate, hours
    path = existing(f"{where}: load.trace", directory, load.trace)
    try:
        rows = read_study_trace(path, format=load.trace_format)
    except UserError as error:
        raise UserError(str(error).replace("--trace-format", f"load.trace_format in {where}")) from None
    if len(rows) < 2 or rows.span_s <= 0:
        raise UserError(f"{where}: load.trace: {path.name} holds {len(rows)} requests at one time; give at least two")
    recorded = len(rows) / rows.span_s
    scale = load.rate / recorded if load.rate is not None else (load.speed or 1.0)
    # Played faster, a recorded day is still a day: its hours are those of the clock that recorded it.
    hours = tuple(each * scale for each in recorded_hours(rows))
    rate = max(hours, default=recorded * scale)
    return path, Arrivals(process="trace", trace=path.name, rate_scale=scale), rate, hours


def _hours(where: str, day: tuple[float, ...] | str, directory: Path) -> tuple[float, ...]:
    """Loads of a day as given, or one a line of a file, of which the last column counts."""
    if not isinstance(day, str):
        return day
    path = existing(f"{where}: load.day", directory, day)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{where}: load.day: {path.name} cannot be read ({why}); give {HOURS}") from error
    lines = [line.rsplit(",", 1)[-1].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if len(lines) in (DAY_HOURS + 1, WEEK_HOURS + 1) and not any(letter.isdigit() for letter in lines[0]):
        lines = lines[1:]  # a head
    try:
        return hourly(lines)
    except ValueError as error:
        raise UserError(f"{where}: load.day: {path.name}: it must give {error}") from None


def whole_hours(rows: TraceRows) -> int:
    """Hours that a trace holds, to the nearest one."""
    return round(rows.span_s / HOUR_S)


def recorded_hours(rows: TraceRows) -> tuple[float, ...]:
    """Mean load of every hour of a trace of at least `LEAST_RECORDED` hours, of more than a week its last; or nothing.

    The first hour begins with the first request.
    """
    whole = whole_hours(rows)
    if whole < LEAST_RECORDED:
        return ()
    counts = np.bincount((rows.at_ns // int(HOUR_S * 1e9)).astype(np.int64), minlength=whole)[:whole]
    return tuple((counts[-WEEK_HOURS:] / HOUR_S).tolist())


def _range(where: str, load: Incoming, load_per_s: float) -> tuple[float, float]:
    grown = load_per_s * max(1.0, (1 + load.growth_per_year) ** GROWTH_YEARS)
    low = load.low if load.low is not None else load_per_s / RANGE
    high = load.high if load.high is not None else max(load_per_s * RANGE, grown)
    if not low <= load_per_s <= high:
        key = "low" if low > load_per_s else "high"
        raise UserError(
            f"{where}: load.{key}: found loads of {low:.4g} to {high:.4g} requests/s, they must hold that of now, "
            f"{load_per_s:.4g}/s"
        )
    return low, high


def _candidate(
    place: str, plan: CandidatePlan, typed: Mapping[str, Any], directory: Path, converses: bool
) -> CandidatePlan:
    """What was not said of a candidate, from what was."""
    model = None if plan.model is None else model_named(f"{place}.model", plan.model, directory)
    machine = None if plan.machine is None else machine_named(f"{place}.machine", plan.machine, directory)
    if plan.format is not None:
        check_format(f"{place}.format", plan.format, plan.model)
    if plan.kv is not None:
        check_kv(f"{place}.kv", plan.engine, plan.kv)
    location = location_of(f"{place}.location", typed.get("location"), plan.pricing, "on-premise")
    shown = plan.model or (plan.measured and plan.measured.stem) or "hosted model"
    usual = f"{shown} by API" if plan.is_api else f"{shown} on {plan.machine or 'measured'}"
    policy = plan.policy
    if policy.prefix_caching is None and converses:
        # Servers keep a conversation's keys and values unless told not to.
        policy = replace(policy, prefix_caching=True)
    return replace(
        plan,
        name=plan.name or usual,
        model=model,
        machine=machine,
        devices=plan.devices if "devices" in typed or machine is None else _devices_of(machine),
        location=location,
        measured=None if plan.measured is None else existing(f"{place}.measured", directory, typed["measured"]),
        policy=policy,
        price_source=None if plan.pricing is None else typed["price"].get("source"),
    )


def location_of(place: str, said: Location | None, pricing: Pricing | None, usual: Location) -> Location:
    """Where something runs: as said, else in a cloud where its price is one's, else `usual`."""
    location: Location = said or ("cloud" if isinstance(pricing, Api | Rented) else usual)
    if isinstance(pricing, Api) and location != "cloud":
        raise UserError(f"{place}: found {location!r}, it must be cloud: a hosted model runs elsewhere")
    return location


def model_named(place: str, text: str, directory: Path) -> str:
    """A path made absolute, a hub id as it is, a catalogue name checked, each with the format behind it.

    Raises UserError that begins with `place`.
    """
    from breakeven.model.resolve import bare_name, split_format

    _ask(place, lambda: bare_name(text))
    name, format_name = split_format(text)
    place_of = directory / expanded(name)
    if Path(name).suffix in _PATHS or place_of.is_file() or ("/" in name and place_of.is_dir()):
        path = str(existing(place, directory, name))
        return path if format_name is None else f"{path}:{format_name}"
    if "/" not in name:
        from breakeven.model.catalogue import find

        _ask(place, lambda: find(name))
    return text


def machine_named(place: str, text: str, directory: Path) -> str:
    """A path made absolute, "this" as it is, a machine in words checked. Raises UserError that begins with `place`."""
    if text == "this":
        return text
    if Path(text).suffix in _PATHS:
        return str(existing(place, directory, text))
    from breakeven.hardware import described

    _ask(place, lambda: described.machine_named(text))
    return text


def _devices_of(machine: str) -> int:
    """How many devices a machine that was described has; 1 of one that is known otherwise."""
    from breakeven.hardware import described

    with contextlib.suppress(UserError):
        return len(described.machine_named(machine).devices)
    return 1


def check_format(place: str, text: str, model: str | None = None) -> None:
    """Raises UserError that begins with `place` where no format is called so, or `model` names another behind it."""
    from breakeven.model.formats.named import format_named
    from breakeven.model.resolve import split_format

    _ask(place, lambda: format_named(text))
    behind = None if model is None else split_format(model)[1]
    if behind is not None and behind != format_named(text).name:
        raise UserError(f"{place}: found {text!r}, and the model is named {model}; say its format once")


def check_kv(place: str, engine: str | None, text: str) -> None:
    """Raises UserError that begins with `place` where no type of keys and values is called so, or not to `engine`."""
    from breakeven.model.formats.named import kv_element_bytes, kv_for

    _ask(place, lambda: kv_element_bytes(text) if engine is None else kv_for(engine, text))


def _ask(place: str, look_up: Callable[[], object]) -> None:
    """Look something up now, so that the error names the key it is under."""
    try:
        look_up()
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def existing(place: str, directory: Path, text: str) -> Path:
    """A path made absolute. Raises UserError that begins with `place` where nothing is there."""
    path = directory / expanded(text)
    if not path.exists():
        raise UserError(f"{place}: found {text!r}, which does not exist; paths count from the file's directory")
    return path.resolve()


def _known(where: str, key: str, found: Iterable[str], names: list[str]) -> None:
    for name in found:
        if name not in names:
            raise UserError(f"{where}: {key}: found {name!r}, it must be a candidate's name: {', '.join(names)}")
