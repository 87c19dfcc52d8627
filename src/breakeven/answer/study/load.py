"""The trace of a study, however long it is: what does not fit into memory is represented by its beginning.

From a study file to a `StudyPlan`: defaults, paths, and whatever must agree between its parts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from breakeven.answer.study.form import CandidateForm, LoadForm, PriceForm, StudyForm, read_form
from breakeven.answer.study.plan import (
    ApiSpeed,
    CandidatePlan,
    Constraints,
    Location,
    PolicyPlan,
    QualityPlan,
    StudyPlan,
    TrafficPart,
)
from breakeven.errors import UserError
from breakeven.results.cost import Api, Own, Pricing, Rented
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Slo, Workload

WHOLE_BYTES = 256_000_000
"""A trace up to this size is read whole: some seven million requests as Azure writes them."""
HEAD_LINES = 1_000_000


def read_study_trace(path: Path, whole_bytes: int = WHOLE_BYTES, head_lines: int = HEAD_LINES) -> TraceRows:
    """The requests of `path`, or its first `head_lines` lines where it is larger than `whole_bytes`.

    Its lines are copied as they are read, so memory does not grow with the file. Raises UserError as `read_trace`, and
    for a large file that is one JSON document, which has no beginning that could be read alone.
    """
    if not path.is_file() or path.stat().st_size <= whole_bytes:
        return read_trace(path)
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
        return read_trace(head)


RANGE = 30.0
"""Flips are looked for from a thirtieth of the load to thirty times of it, and further where growth leads further."""
GROWTH_YEARS = 3
"""As far ahead as a growth rate is followed: hardware is commonly written off over about that long."""

_PATHS = (".yaml", ".yml", ".json", ".gguf")


def read_study(path: Path) -> StudyPlan:
    """The study in `path`. Relative paths in it count from its directory.

    Raises UserError naming file, key, what was found and what would be right.
    """
    path = path.expanduser()
    return plan_of(read_form(path), path.resolve(), str(path))


def plan_of(form: StudyForm, path: Path, where: str) -> StudyPlan:
    """`form`, read from `path` and called `where` in errors, as a plan."""
    candidates = tuple(
        _candidate(where, i, each, path.parent, form.load.turns > 1) for i, each in enumerate(form.candidates)
    )
    names = [each.name for each in candidates]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{where}: candidates.{i}.name: found {name!r} a second time; give it a name of its own")
    trace, arrivals, load_per_s = _arrivals(where, form.load, path.parent)
    load = form.load
    low, high = _range(where, load, load_per_s)
    _known(where, "quality.scores", form.quality.scores, names)
    _known(where, "quality.answer_tokens", form.quality.answer_tokens, names)
    for i, part in enumerate(form.parts):
        _known(where, f"parts.{i}.candidates", part.candidates, names)
    shares = sum(part.share for part in form.parts)
    if form.parts and abs(shares - 1) > 1e-6:
        raise UserError(f"{where}: parts: found shares that add up to {shares:.4g}, they must add up to 100%")
    if form.quality.source == "own" and (missing := [name for name in names if name not in form.quality.scores]):
        raise UserError(
            f"{where}: quality.scores: missing for {missing[0]!r}; your own scores must cover every candidate"
        )
    for i, name in enumerate(form.formats):
        check_format(f"{where}: formats.{i}", name)
    return StudyPlan(
        name=form.name or path.stem,
        question=form.question or "Which of these should serve this traffic?",
        path=path,
        candidates=candidates,
        workload=Workload(
            arrivals=arrivals,
            prompt=load.prompt,
            output=load.output,
            requests=load.requests,
            turns=load.turns,
            turn_think_s=load.think,
            sharing=load.turns > 1 or trace is not None,
            languages=tuple(form.languages),
            seed=form.seed,
        ),
        trace=trace,
        load_per_s=load_per_s,
        slo=Slo(ttft_s=form.slo.ttft, tpot_s=form.slo.tpot, itl_s=form.slo.itl, e2e_s=form.slo.e2e),
        good_share=form.slo.share,
        low_per_s=low,
        high_per_s=high,
        parts=tuple(
            TrafficPart(name=part.name, share=part.share, floor=part.floor, candidates=tuple(part.candidates))
            for part in form.parts
        ),
        cached_share=load.cached,
        budget_usd_per_month=form.budget_usd_per_month,
        constraints=Constraints(
            memory_bytes=form.constraints.memory,
            on_premise=form.constraints.on_premise,
            offline=form.constraints.offline,
            power_w=form.constraints.power,
            licences=tuple(form.constraints.licences),
        ),
        quality=QualityPlan(
            source=form.quality.source,
            benchmark=form.quality.benchmark,
            scores=form.quality.scores,
            answer_tokens=form.quality.answer_tokens,
            floor=form.quality.floor,
        ),
        languages=tuple(form.languages),
        fine_tunes_per_year=form.fine_tuning.per_year,
        adapters=form.fine_tuning.adapters,
        growth_per_year=load.growth_per_year,
        contexts=tuple(form.contexts),
        formats=tuple(form.formats),
        seed=form.seed,
    )


def _arrivals(where: str, load: LoadForm, directory: Path) -> tuple[Path | None, Arrivals, float]:
    """The trace, how requests arrive, and their mean rate."""
    if load.trace is None:
        rate = load.rate if load.rate is not None else (load.users or 0) * (load.requests_per_user or 0.0)
        shape = load.arrivals or Arrivals(process="poisson")
        return None, Arrivals(process=shape.process, rate_per_s=rate, cv=shape.cv), rate
    pass  # DROPPED

    path = existing(f"{where}: load.trace", directory, load.trace)
    rows = read_study_trace(path)
    if len(rows) < 2 or rows.span_s <= 0:
        raise UserError(f"{where}: load.trace: {path.name} holds {len(rows)} requests at one time; give at least two")
    recorded = len(rows) / rows.span_s
    scale = load.rate / recorded if load.rate is not None else (load.speed or 1.0)
    return path, Arrivals(process="trace", trace=path.name, rate_scale=scale), recorded * scale


def _range(where: str, load: LoadForm, load_per_s: float) -> tuple[float, float]:
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


def _candidate(where: str, i: int, form: CandidateForm, directory: Path, converses: bool) -> CandidatePlan:
    place = f"{where}: candidates.{i}"
    model = None if form.model is None else model_named(f"{place}.model", form.model, directory)
    machine = None if form.machine is None else machine_named(f"{place}.machine", form.machine, directory)
    if form.format is not None:
        check_format(f"{place}.format", form.format)
    pricing = None if form.price is None else pricing_of(form.price)
    location: Location = form.location or ("cloud" if isinstance(pricing, Api | Rented) else "on-premise")
    if isinstance(pricing, Api) and location != "cloud":
        raise UserError(f"{place}.location: found {location!r}, it must be cloud: a hosted model runs elsewhere")
    shown = form.model or (form.measured and Path(form.measured).stem) or "hosted model"
    name = form.name or (f"{shown} by API" if isinstance(pricing, Api) else f"{shown} on {form.machine or 'measured'}")
    return CandidatePlan(
        name=name,
        model=model,
        machine=machine,
        engine=form.engine,
        devices=form.devices,
        format=form.format,
        location=location,
        pricing=pricing,
        measured=None if form.measured is None else existing(f"{place}.measured", directory, form.measured),
        licence=form.licence,
        memory_bytes=form.memory,
        host_memory_bytes=form.host_memory,
        max_replicas=form.replicas,
        policy=PolicyPlan(
            max_sequences=form.policy.max_sequences,
            max_step_tokens=form.policy.max_step_tokens,
            kv_tokens=form.policy.kv_tokens,
            # Servers keep a conversation's keys and values unless told not to.
            prefix_caching=True if form.policy.prefix_caching is None and converses else form.policy.prefix_caching,
        ),
        api_speed=None
        if form.speed is None
        else ApiSpeed(ttft_s=form.speed.ttft, tokens_per_s=form.speed.tokens_per_s, source=form.speed.source),
        price_source=None if form.price is None else form.price.source,
    )


def pricing_of(form: PriceForm) -> Pricing:
    """The price that a file gives."""
    if form.own is not None:
        return Own(
            usd=form.own.usd,
            life_years=form.own.years,
            usd_per_kwh=form.own.usd_per_kwh,
            idle_w=form.own.idle,
            busy_w=form.own.busy,
            power_overhead=form.own.overhead,
            yearly_upkeep_usd=form.own.upkeep_usd_per_year,
        )
    if form.rented is not None:
        return Rented(usd_per_hour=form.rented.usd_per_hour, date=form.rented.date)
    assert form.api is not None
    return Api(
        usd_per_mtok_input=form.api.input,
        usd_per_mtok_output=form.api.output,
        usd_per_mtok_cached_input=form.api.cached_input,
        date=form.api.date,
    )


def model_named(place: str, text: str, directory: Path) -> str:
    """A path made absolute, a hub id as it is, a catalogue name checked. Raises UserError that begins with `place`."""
    if Path(text).suffix in _PATHS:
        return str(existing(place, directory, text))
    if "/" not in text:
        from breakeven.model.catalogue import find

        _ask(place, lambda: find(text))
    return text


def machine_named(place: str, text: str, directory: Path) -> str:
    """A path made absolute, "this" as it is, a chip's name checked. Raises UserError that begins with `place`."""
    if text == "this":
        return text
    if Path(text).suffix in _PATHS:
        return str(existing(place, directory, text))
    from breakeven.hardware.chips import chip_named

    _ask(place, lambda: chip_named(text))
    return text


def check_format(place: str, text: str) -> None:
    """Raises UserError that begins with `place` where no weight format is called so."""
    from breakeven.model.formats.named import format_named

    _ask(place, lambda: format_named(text))


def _ask(place: str, look_up: Callable[[], object]) -> None:
    """Look something up now, so that the error names the key it is under."""
    try:
        look_up()
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def existing(place: str, directory: Path, text: str) -> Path:
    """A path made absolute. Raises UserError that begins with `place` where nothing is there."""
    path = directory / Path(text).expanduser()
    if not path.exists():
        raise UserError(f"{place}: found {text!r}, which does not exist; paths count from the file's directory")
    return path.resolve()


def _known(where: str, key: str, found: Iterable[str], names: list[str]) -> None:
    for name in found:
        if name not in names:
            raise UserError(f"{where}: {key}: found {name!r}, it must be a candidate's name: {', '.join(names)}")
