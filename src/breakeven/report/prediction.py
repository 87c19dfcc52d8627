"""Predicted speeds in a terminal: the numbers, who is faster, and what both rest on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from breakeven.report.tables import packed, shortened
from breakeven.report.words import bytes_text, grouped, number
from breakeven.spec.prediction import PredictedPoint, PredictedRatio, Prediction, Span

BOUNDS = {"weights": "weights", "kv": "KV", "compute": "compute", "overhead": "overheads"}


def print_prediction(result: Prediction, console: Console) -> None:
    """Print a table a machine, its notes, and how its constants came about."""
    for machine, points in grouped(result.points, lambda point: point.machine).items():
        first = points[0]
        devices = f"{first.devices} x " if first.devices > 1 else ""
        _say(console, f"{devices}{machine}, {first.engine}, {first.format}: predicted, not measured", style="bold")
        ratios = [ratio for ratio in result.ratios if ratio.machine == machine]
        for index, table in enumerate(_tables(points, ratios, console.width)):
            console.print() if index else None
            for line in table:
                _say(console, line)
        for pair in grouped(ratios, lambda ratio: ratio.model).values():
            _say(console, _verdict(pair))
        for note, named in grouped(((n, p) for p in points for n in p.notes), lambda pair: pair[0]).items():
            _say(console, f"{_where([point for _, point in named], points)}{note}", style="dim")
        _say(console, f"Constants: {result.profiles[machine]}.", style="dim")
        console.print()


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, markup=False)


def _tables(points: Sequence[PredictedPoint], ratios: Sequence[PredictedRatio], width: int) -> list[list[str]]:
    several = len({(point.batch, point.context) for point in points}) > 1
    label = [("B=" + str(point.batch) + f" {point.context:,} " if several else "") for point in points]
    names = ["Model", *(f"{at}{shortened(point.model)}" for at, point in zip(label, points, strict=True))]
    groups = [
        [["Decode tok/s", *(_speed(point) for point in points)]],
        *([[[f"over {shortened(ratios[0].over)}", *(_over(point, ratios) for point in points)]]] if ratios else []),
        [["Step ms", *(number(point.step_s.value * 1e3) for point in points)]],
        [["Prefill tok/s", *(number(point.prefill_tokens_per_s) for point in points)]],
        [["Memory", *(_memory(point) for point in points)]],
        [["Limited by", *(BOUNDS.get(point.bound, point.bound) for point in points)]],
    ]
    return packed(names, groups, width)


def _speed(point: PredictedPoint) -> str:
    low, high = point.batch / point.step_s.high, point.batch / point.step_s.low
    return f"{number(point.decode_tokens_per_s)} ({number(low)}-{number(high)})"


def _over(point: PredictedPoint, ratios: Sequence[PredictedRatio]) -> str:
    at = (point.model, point.batch, point.context)
    return next((_ratio(r.decode) for r in ratios if (r.model, r.batch, r.context) == at), "")


def _memory(point: PredictedPoint) -> str:
    return bytes_text(point.memory_bytes) + ("" if point.fits else " does not fit")


def _ratio(span: Span) -> str:
    return f"{span.value:.2f} ({span.low:.2f}-{span.high:.2f})"


def _verdict(pair: Sequence[PredictedRatio]) -> str:
    """What the intervals of two models' ratio say, over all batches and contexts."""
    said = [
        winner if len(some) == len(pair) else f"{winner} at {_loads(some, pair)}"
        for winner, some in grouped(pair, _winner).items()
    ]
    return f"Decode, {pair[0].model} against {pair[0].over}: {'; '.join(said)}."


def _winner(ratio: PredictedRatio) -> str:
    if ratio.decode.low > 1:
        return f"{ratio.model} is faster"
    return f"{ratio.over} is faster" if ratio.decode.high < 1 else "too close to call"


def _loads(some: Sequence[PredictedRatio], pair: Sequence[PredictedRatio]) -> str:
    one_context = len({ratio.context for ratio in pair}) == 1
    if one_context:
        return "batch " + ", ".join(str(ratio.batch) for ratio in some)
    return ", ".join(f"batch {ratio.batch} of {ratio.context:,} tokens" for ratio in some)


def _where(named: Sequence[PredictedPoint], points: Sequence[PredictedPoint]) -> str:
    """Whom a note is about: nothing when it is about all."""
    if len(named) == len(points):
        return ""
    models = list(grouped(named, lambda point: point.model))
    batches = sorted({point.batch for point in named})
    at = f" at batch {', '.join(map(str, batches))}" if batches != sorted({p.batch for p in points}) else ""
    return f"{', '.join(models)}{at}: "
