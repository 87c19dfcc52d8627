"""From measured points to a verdict in plain words. Pure: the same results give the same sentences."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.hardware.placement import HOST
from breakeven.results.comparison import ComparedPoint, ComparisonVerdict, ModelResult, NodeProfile, Pair, SelfCheck
from breakeven.stats.estimate import Estimate

DECODE, PREFILL = "decode_tokens_per_s", "prefill_tokens_per_s"
EXPLAINED = 0.10
"""A ratio of bytes within this of the ratio of rates counts as its explanation."""
SAME = 0.25
"""An interval wider than this to each side says nothing of two speeds being the same."""


def decide(
    models: Sequence[ModelResult],
    points: Sequence[ComparedPoint],
    pairs: Sequence[Pair],
    profiles: Sequence[NodeProfile],
    checks: Sequence[SelfCheck] = (),
) -> ComparisonVerdict:
    """The verdict on a study. The winner is whoever decodes faster at every load where a difference was found."""
    names = [m.name for m in models]
    decode = [p for p in pairs if p.metric == DECODE]
    winner = _overall(names, decode)
    return ComparisonVerdict(
        headline=_headline(models, decode, pairs, winner),
        winner=winner,
        reasons=[*_placed(models), *_reasons(models, pairs, profiles), *map(_checked, checks)],
        memory=_memory(models),
        would_change=_would_change(models, decode, points),
    )


def _overall(names: Sequence[str], decode: Sequence[Pair]) -> str | None:
    """The candidate that loses to nobody anywhere and beats every other at some load."""
    for name in names:
        mine = [p for p in decode if name in (p.a, p.b)]
        lost = any(p.winner not in (None, name) for p in mine)
        beaten = {p.b if p.a == name else p.a for p in mine if p.winner == name}
        if mine and not lost and beaten == set(names) - {name}:
            return name
    return None


def _placed(models: Sequence[ModelResult]) -> list[str]:
    """Where each candidate lay, where any was on a device."""
    if not any(_on_device(m) for m in models):
        return []
    return ["Where they lay: " + "; ".join(f"{m.name}, {m.placed.words()}" for m in models if m.placed) + "."]


def _on_device(model: ModelResult) -> bool:
    return model.placed is not None and any(at.place != HOST for at in model.placed.memory)


def _spilled(model: ModelResult) -> bool:
    """Whether it lies in both memories, so that some of its weights are read at another rate than the rest."""
    placed = model.placed
    if placed is None or not _on_device(model):
        return False
    part = placed.gpu_layers is not None and placed.layers is not None and 0 < placed.gpu_layers < placed.layers
    return part or bool(placed.cpu_moe)


def _headline(models: Sequence[ModelResult], decode: Sequence[Pair], pairs: Sequence[Pair], winner: str | None) -> str:
    names = [m.name for m in models]
    where = {m.name: f" ({m.placed.words()})" if m.placed and _on_device(m) else "" for m in models}
    spilled = any(map(_spilled, models))
    if not decode:
        return "Nothing was measured for long enough to say which to run."
    if len(names) > 2:
        return _headline_many(names, decode, winner)
    a, b = names
    won = {p.streams: p.winner for p in decode}
    if all(p.ratio.low is None for p in decode):
        return f"Too few pairs to say whether {a} or {b} is faster here; give a larger --budget."
    if not any(won.values()):
        closest = min(decode, key=lambda p: _width(p.ratio))
        if _width(closest.ratio) > SAME:
            span = f"{closest.ratio.value:.2f} ({closest.ratio.low:.2f} to {closest.ratio.high:.2f})"
            return (
                f"No difference found, and none ruled out: {a} decodes {span} times as fast as {b} here with "
                f"{_streams(closest.streams)}; give a larger --budget, or a quieter machine."
            )
        return (
            f"No difference found: {a} and {b} decode at the same speed here, "
            f"within {_percent(_width(closest.ratio))} ({_streams(closest.streams)})."
        )
    if winner is None:
        return _flip(a, b, won)
    widest = [p for p in decode if p.winner]
    first = widest[0]
    factor = _over(first, winner)
    loser = b if winner == a else a
    at = _loads([p.streams for p in widest])
    text = (
        f"Run {winner} here{where[winner]}: it decodes {_times(factor)} as fast as {loser}{where[loser]} with "
        f"{_streams(first.streams)}"
    )
    if len(widest) > 1:
        best, worst = (f(_over(p, winner).value for p in widest) for f in (max, min))
        text += f", {worst:.2f} to {best:.2f} times over {at}"
    if unsure := [p.streams for p in decode if p.winner is None]:
        text += f"; no difference found with {_loads(unsure)}"
    prefill = next((p for p in pairs if p.metric == PREFILL and p.streams == first.streams), None)
    if prefill and prefill.winner and (prefill.winner != winner or spilled):
        but = "but" if prefill.winner != winner else "and"
        text += f"; {but} it reads prompts at {_times(_over(prefill, winner))} the speed"
    elif prefill and spilled:
        text += "; no difference found in reading prompts"
    return text + "."


def _headline_many(names: Sequence[str], decode: Sequence[Pair], winner: str | None) -> str:
    if winner is None and all(p.ratio.low is None for p in decode):
        return "Too few pairs to say which is faster here; give a larger --budget."
    if winner is None and not any(p.winner for p in decode):
        if max(_width(p.ratio) for p in decode) > SAME:
            return (
                "No difference found between any two of them at any load measured here, and not all ruled out; "
                "give a larger --budget, or a quieter machine."
            )
        return "No difference found between any two of them at any load measured here."
    if winner is None:
        return "No single model decodes fastest at every load measured here; the table says which does where."
    parts, unsure = [], []
    for other in (name for name in names if name != winner):
        mine = [p for p in decode if {p.a, p.b} == {winner, other}]
        first = next(p for p in mine if p.winner == winner)  # it beats every other at some load
        parts.append(f"{_times(_over(first, winner))} {other} with {_streams(first.streams)}")
        if ties := [p.streams for p in mine if p.winner is None]:
            unsure.append(f"to {other} with {_loads(ties)}")
    tail = f"; no difference found {', '.join(unsure)}" if unsure else ""
    return f"Run {winner} here: it decodes at {', '.join(parts)}{tail}."


def _flip(a: str, b: str, won: dict[int, str | None]) -> str:
    parts = [f"{name} with {_loads([s for s, w in won.items() if w == name])}" for name in (a, b)]
    same = [s for s, w in won.items() if w is None]
    tail = f"; no difference with {_loads(same)}" if same else ""
    return f"It depends on the load: {parts[0]}, {parts[1]} decodes faster{tail}."


def _over(pair: Pair, name: str) -> Estimate:
    """The pair's ratio with `name` on top."""
    return pair.ratio if pair.a == name else pair.ratio.inverse()


def _times(e: Estimate) -> str:
    if e.low is None or e.high is None:
        return f"{e.value:.2f} times (no interval: {e.n} pairs)"
    return f"{e.value:.2f} times ({e.low:.2f} to {e.high:.2f})"


def _width(e: Estimate) -> float:
    return (e.high - e.low) / 2 / e.value if e.low is not None and e.high is not None else float("inf")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _streams(n: int) -> str:
    return "one stream" if n == 1 else f"{n} streams"


def _loads(streams: Sequence[int]) -> str:
    ordered = [str(s) for s in sorted(streams)]
    if ordered == ["1"]:
        return "one stream"
    return (", ".join(ordered[:-1]) + " and " if len(ordered) > 1 else "") + ordered[-1] + " streams"


def _reasons(models: Sequence[ModelResult], pairs: Sequence[Pair], profiles: Sequence[NodeProfile]) -> list[str]:
    found = []
    by_name = {m.name: m for m in models}
    single = next((p for p in pairs if p.metric == DECODE and p.streams == 1), None)
    if single:
        a, b = by_name[single.a], by_name[single.b]
        if a.decode_bytes_per_token and b.decode_bytes_per_token:
            by_bytes = b.decode_bytes_per_token / a.decode_bytes_per_token
            text = (
                f"Decode reads {_mb(a.decode_bytes_per_token)} a token ({a.name}) against "
                f"{_mb(b.decode_bytes_per_token)} ({b.name}): by bytes alone the ratio would be {by_bytes:.2f}, "
                f"measured {single.ratio.value:.2f}"
            )
            off = single.ratio.value / by_bytes - 1
            if _spilled(a) or _spilled(b):
                found.append(f"{text}; what lies in host memory is read at another rate.")
            elif abs(off) <= EXPLAINED:
                found.append(f"{text}.")
            else:
                found.append(f"{text}, so something else costs {_percent(abs(off))}.")
    prefill = next((p for p in pairs if p.metric == PREFILL and p.winner), None)
    if prefill:
        slow = prefill.b if prefill.winner == prefill.a else prefill.a
        assert prefill.winner is not None
        speed = _over(prefill, slow)
        why = " because each expert's matrix products are thin" if _thin(by_name[slow], by_name[prefill.winner]) else ""
        if _spilled(by_name[slow]) and not _spilled(by_name[prefill.winner]):
            why = ": what lies in host memory is copied to the device for a long prompt, or multiplied on the CPU"
        found.append(f"Prefill of {slow} runs at {_percent(speed.value)} of {prefill.winner}'s rate{why}.")
    for profile in profiles:
        total = sum(node.seconds for node in profile.nodes)
        top = sorted(profile.nodes, key=lambda node: -node.seconds)[:3]
        shares = ", ".join(f"{node.kind} {100 * node.seconds / total:.0f} %" for node in top)
        text = f"{profile.model}, {profile.phase}: {shares} of the time"
        if profile.router_share_of_moe_block is not None:
            text += f"; the router is {_percent(profile.router_share_of_moe_block)} of the MoE blocks"
        found.append(text + ".")
    return found


def _checked(check: SelfCheck) -> str:
    e = check.same_over_distinct
    if e.low is None or e.high is None or e.low <= 1 <= e.high:
        return f"Self-check of {check.model}: {e.n} short pairs could not tell repeated from distinct prompts."
    what = f"one prompt in all {check.streams} streams would show {check.model} decoding {_times(e)} as fast"
    return f"Self-check: {what} as distinct prompts do; distinct ones were used."


def _thin(slow: ModelResult, fast: ModelResult) -> bool:
    """True when experts explain a slow prefill: the slower is MoE and does not compute more than the faster."""
    if not slow.moe or fast.moe or not slow.active_params or not fast.active_params:
        return False
    return slow.active_params <= 1.25 * fast.active_params


def _memory(models: Sequence[ModelResult]) -> list[str]:
    lines = []
    for m in models:
        file = f"{m.file_bytes / 1e9:.2f} GB file" if m.file_bytes else "file size not available"
        peak = f"{m.peak_rss_bytes / 1e9:.2f} GB resident at its peak" if m.peak_rss_bytes else "memory not available"
        load = f"loads in {m.load_s:.1f} s" if m.load_s is not None else "load time not available"
        lines.append(f"{m.name}: {file}, {peak}, {load}{_by_place(m)}.")
    return lines


def _by_place(model: ModelResult) -> str:
    """What each place holds, where one of them is a device."""
    if model.placed is None or not _on_device(model):
        return ""
    parts = []
    for at in model.placed.memory:
        told = [b for b in (at.weights_bytes, at.kv_bytes, at.compute_bytes) if b is not None]
        held = sum(told) if told else at.held_bytes
        size = "an unknown amount" if held is None else f"{held / 1e9:.2f} GB"
        size += f" (peak in use {at.peak_bytes / 1e9:.2f} GB)" if at.peak_bytes is not None else ""
        parts.append(f"{size} in host memory" if at.place == HOST else f"{size} on {at.place}")
    return f"; {', '.join(parts)}"


def _would_change(models: Sequence[ModelResult], decode: Sequence[Pair], points: Sequence[ComparedPoint]) -> list[str]:
    lines = []
    open_pairs = [p for p in decode if p.winner is None and p.ratio.low is not None]
    if open_pairs:
        loads = _loads(sorted({p.streams for p in open_pairs}))
        lines.append(f"With {loads} no winner is sure: a larger --budget would narrow the interval.")
    sizes = [m for m in models if m.peak_rss_bytes]
    if len(sizes) > 1:
        small, large = (f(sizes, key=lambda m: m.peak_rss_bytes or 0) for f in (min, max))
        lines.append(
            f"A machine with less memory: {large.name} needs {_gb(large.peak_rss_bytes)}, "
            f"{small.name} {_gb(small.peak_rss_bytes)}."
        )
    if any(m.moe for m in models):
        most = max((p.streams for p in points), default=1)
        lines.append(f"More than {_streams(most)} at once: each step then touches more experts; not measured here.")
        lines.append("Long prompts with short answers weigh prefill over decode; compare the prefill rates above.")
    return lines


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _gb(count: int | None) -> str:
    return f"{(count or 0) / 1e9:.1f} GB"
