"""`breakeven compare`: models in, `Comparison` out, all that happened in a directory; and the prepared pairs."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from breakeven.engines import openai_url
from breakeven.engines.cache import cache_directory
from breakeven.engines.keeper import threads_wait
from breakeven.engines.memory import CONTEXT_STEP, RESERVE, needed_bytes, whole_context
from breakeven.engines.source import Source, parse_sources, slug
from breakeven.engines.start import format_of, weights_of
from breakeven.engines.synthesis.routing import ExpertUse
from breakeven.engines.synthesis.write import check_routable
from breakeven.errors import BreakevenError, UserError
from breakeven.hardware.reader import read_machine
from breakeven.measure.energy import open_counter
from breakeven.measure.events import Event, EventWriter, StudyStarted, StudyStopped
from breakeven.measure.paired.blocks import blocks_of
from breakeven.measure.paired.plan import Plan
from breakeven.measure.paired.run import PairedRun
from breakeven.measure.paired.turns import TurnsRun
from breakeven.measure.progress import ProgressState, RatioRow
from breakeven.measure.runner import Candidate
from breakeven.model.arithmetic import file_bytes
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import format_named
from breakeven.model.layouts.derive import assuming
from breakeven.results.comparison import Comparison
from breakeven.results.store import LOG, fingerprint
from breakeven.runs import result
from breakeven.runs.directory import open_directory
from breakeven.runs.served import Candidates, EngineWords, check_fit, kv_of, served
from breakeven.version import __version__


@dataclass(frozen=True, slots=True)
class Options:
    """What a comparison may be told beside its models; the fields are those of `breakeven compare`.

    `format_name`: of synthetic models that name none; None: each one's own, else Q4_K_M. `assume`: read
    models on past what is not known in their files.
    """

    plan: Plan = field(default_factory=Plan)
    format_name: str | None = None
    kv: str | None = None
    assume: bool = False
    out: Path | None = None
    resume: bool = False
    threads: int | None = None
    look_inside: bool = True
    command: str = "breakeven.compare"
    asked: EngineWords = field(default_factory=EngineWords)
    notes: tuple[str, ...] = ()
    """How files were understood, for whoever reads the result."""

    def check(self) -> None:
        """Raise UserError for numbers that mean nothing."""
        plan = self.plan
        if not plan.streams or min(plan.streams) < 1:
            raise UserError("--streams must be one or more whole numbers above zero, such as 1,2,4")
        if len(set(plan.streams)) < len(plan.streams):
            raise UserError("--streams names a load twice")
        for name, value, least in (("--prompt", plan.prompt_tokens, 1), ("--output", plan.output_tokens, 2)):
            if value < least:
                raise UserError(f"{name} is {value}; give {least} or more")
        if not 0 < plan.precision < 1:
            raise UserError("--precision must lie between 0 and 100 %, such as 2%")
        if plan.budget_s <= 0:
            raise UserError("--budget must be above zero, such as 3m")
        if self.threads is not None and self.threads < 1:
            raise UserError("--threads must be 1 or more")


def compare(
    models: Sequence[str],
    options: Options | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> tuple[Comparison, Path]:
    """Measure `models` against each other on this machine; return the result and the directory that holds its log.

    Raises UserError for what cannot be compared, EngineError when an engine fails (finished blocks are kept), and
    KeyboardInterrupt, after saving what was measured, when interrupted.
    """
    options = options or Options()
    options.check()
    with assuming(options.assume):
        sources = parse_sources(list(models))
    plan = options.plan
    context = whole_context(plan.prompt_tokens + plan.output_tokens + 8)
    slots = max(plan.streams)
    format_name = None if options.format_name is None else format_named(options.format_name).name
    for source in sources:
        if source.synthetic and source.spec is not None:
            check_routable(source.spec, ExpertUse())
        elif source.url is not None:
            openai_url.connect(source.url)  # refused now rather than after gigabytes were written
    machine = read_machine()
    show = _Show(on_progress, plan)
    ways, notices = served(options.asked, sources, machine)
    kv = kv_of(sources, ways, options.kv)
    formats = [format_of(s, format_name, way.engine) for s, way in zip(sources, ways, strict=True)]
    apart = check_fit(sources, ways, formats, context, slots, machine, kv)
    said = [*options.notes, *notices, *([] if apart is None else [apart])]
    for words in said:
        show.phase(words, "")
    question = (
        [s.question for s in sources],
        (format_name, kv, options.asked),
        (plan.streams, plan.prompt_tokens, plan.output_tokens, plan.seed, *plan.texts),
        (options.threads, threads_wait()),
        __version__,
    )
    default = Path("results") / "-vs-".join(slug(s.name) for s in sources)
    mark = fingerprint(question)
    directory, history = open_directory(options.out, default, mark, options.resume)
    in_turns = _in_turns(history, apart)
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    paths = [
        weights_of(s, format_name, plan.seed, show.writing(s), engine=way.engine.name)
        for s, way in zip(sources, ways, strict=True)
    ]
    opening = StudyStarted(
        fingerprint=mark,
        version=__version__,
        started_at=began,
        command=options.command,
        seed=plan.seed,
        resumed=bool(history),
    )
    with EventWriter(directory / LOG) as log:
        _add(log, history, opening)
        crew = Candidates(
            sources,
            ways,
            paths,
            directory,
            context=context,
            slots=slots,
            kv=kv,
            threads=options.threads,
            gpus=machine.gpus,
            on_phase=show.phase,
            record=lambda event: _add(log, history, event),
        )
        asked = result.CompareFacts(plan, sources, formats, paths, machine, in_turns, said)
        try:
            because = _measured(crew, plan, log, history, show, in_turns)
        except (KeyboardInterrupt, BreakevenError) as error:
            because = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            whole = {block.model for block in blocks_of(history)} >= {s.name for s in sources}
            if whole:
                told = result.facts(asked, history, result.InsideViews())
                history.append(told)
                with contextlib.suppress(BreakevenError):  # a full disk must not hide why the run ended
                    log.append(told)
            stopped = StudyStopped(because=because, measured_s=_measured_s(history), detail=str(error) or None)
            _add(log, history, stopped)
            if whole:
                result.save_partial(result.comparison_of(history), directory)
            raise
        inside = result.InsideViews()
        if options.look_inside:
            inside = result.look_inside(asked, history, options.threads, show.phase)
        _add(log, history, result.facts(asked, history, inside))
        _add(log, history, StudyStopped(because=because, measured_s=_measured_s(history)))
    return result.comparison_of(history), directory


def _in_turns(history: Sequence[Event], apart: str | None) -> bool:
    """Whether candidates take turns: as the study began, for what is measured both ways is no pair."""
    begun = blocks_of(history)
    if begun and begun[0].turn is None and apart is not None:
        raise UserError(
            f"this study began with all candidates up at once, but now {apart.rstrip('.')}; close other programs"
        )
    return begun[0].turn is not None if begun else apart is not None


def _measured(crew: Candidates, plan: Plan, log: EventWriter, history: list[Event], show: _Show, in_turns: bool) -> str:
    """Measure, with all candidates up at once or one after the other; why it ended."""
    names = [source.name for source in crew.sources]
    if in_turns:
        return TurnsRun(plan, names, _turns_of(crew), log, history, show.measuring, open_counter()).run()
    with ExitStack() as stack:
        running = [crew.up(stack, index) for index in range(len(names))]
        candidates = [Candidate(up.name, up.backend, up.alive, up.source.is_moe) for up in running]
        because = PairedRun(plan, candidates, log, history, show.measuring, open_counter()).run()
        for up in running:
            crew.stopped(up)
        return because


def _turns_of(crew: Candidates) -> Callable[[int], contextlib.AbstractContextManager[Candidate]]:
    """A candidate, up for as long as its turn lasts."""

    @contextlib.contextmanager
    def turn(index: int) -> Iterator[Candidate]:
        with ExitStack() as stack:
            up = crew.up(stack, index)
            yield Candidate(up.name, up.backend, up.alive, up.source.is_moe)
            crew.stopped(up)

    return turn


def _add(log: EventWriter, history: list[Event], event: Event) -> None:
    log.append(event)
    history.append(event)


def _measured_s(history: Sequence[Event]) -> float:
    return sum(block.seconds for block in blocks_of(history))


class _Show:
    """Turns what happens into progress states."""

    def __init__(self, sink: Callable[[ProgressState], None], plan: Plan) -> None:
        self._sink = sink
        self._plan = plan
        self._began = time.monotonic()

    def phase(self, text: str, subject: str, share: float | None = None) -> None:
        self._sink(ProgressState(text, time.monotonic() - self._began, subject=subject, share=share))

    def writing(self, source: Source) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            state = ProgressState(
                "writing weights",
                time.monotonic() - self._began,
                done_bytes=done,
                total_bytes=total,
                subject=source.name,
            )
            self._sink(state)

        return report

    def measuring(self, elapsed_s: float, rows: list[RatioRow]) -> None:
        self._sink(ProgressState("measuring", elapsed_s, self._plan.budget_s, rows=tuple(rows)))


@dataclass(frozen=True, slots=True)
class Demo:
    """A Mixture-of-Experts model, the dense one people weigh it against, and a plan of three minutes on two cores."""

    models: tuple[str, str]
    plan: Plan


DEMOS = (  # the largest first
    Demo(("olmoe-1b-7b", "llama-3.2-1b"), Plan((1, 4), 32, 32, 0.02, 175.0)),  # the pair of arXiv 2606.21428
    Demo(("granite-3.1-3b-a800m", "llama-3.2-1b"), Plan((1, 4), 32, 32, 0.02, 175.0)),
    Demo(("granite-3.1-1b-a400m", "smollm2-360m"), Plan((1, 4), 32, 32, 0.02, 120.0)),
)


def demo_pair(options: Options) -> tuple[list[str], Options]:
    """The largest pair that fits this machine's memory and disk. Raises UserError when none does."""
    available = read_machine().available_memory_bytes
    place = next(p for p in (cache_directory(), *cache_directory().parents) if p.exists())
    free = shutil.disk_usage(place).free
    for demo in DEMOS:
        specs = [lookup(name) for name in demo.models]
        weights, streams = options.format_name or "Q4_K_M", max(demo.plan.streams)
        memory = sum(needed_bytes(s, weights, CONTEXT_STEP, streams, options.kv or "f16") for s in specs)
        disk = sum(file_bytes(s, weights) for s in specs)
        if memory <= RESERVE * available and disk <= free:
            return list(demo.models), replace(
                options, plan=replace(demo.plan, seed=options.plan.seed, texts=options.plan.texts)
            )
    raise UserError(
        f"the smallest demonstration needs {memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk;"
        f" this machine has {available / 1e9:.1f} GB and {Path(place)} {free / 1e9:.1f} GB"
    )
