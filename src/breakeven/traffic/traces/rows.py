"""The requests of a trace, whichever file they came from, and what is looked at in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError


@dataclass(frozen=True, slots=True)
class TraceRows:
    """Columns of equal length n, sorted by time; rows of one time keep the order of the file.

    `at_ns` int64, nanoseconds since the first request. `prompt`, `output` int32 tokens; in a session `prompt` counts
    the new tokens of that turn. `session` int64 (-1: none) and `turn` int32 are None where the trace has no sessions;
    turns of a session follow each other by `turn`, then by time. `think_ns` int64 is the pause between the answer
    before and this turn (-1: not recorded). `blocks[i]` are ids of `block_tokens` tokens of prompt i each. `images`
    int32: pictures of each request, None where the trace does not count them.
    `out_of_order` rows came later in the file than their time; `skipped` rows hold no request that could be replayed;
    `anew` turns begin a conversation because their context cannot hold what theirs had said before them; `cut` rows
    broke off when they were recorded, so that their answers would have been longer.
    `unit`: what times and blocks were taken to be, in words; `unused`: keys of the file that say nothing here.
    """

    name: str
    format: str
    at_ns: NDArray[np.int64]
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]
    session: NDArray[np.int64] | None = None
    turn: NDArray[np.int32] | None = None
    think_ns: NDArray[np.int64] | None = None
    blocks: tuple[tuple[int, ...], ...] = field(default=())
    block_tokens: int = 512
    out_of_order: int = 0
    skipped: int = 0
    anew: int = 0
    cut: int = 0
    images: NDArray[np.int32] | None = None
    unit: str = ""
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def span_s(self) -> float:
        """Seconds from the first request to just after the last."""
        return float(self.at_ns[-1] + 1) / 1e9

    @property
    def reading(self) -> str:
        """How the file was understood, in one sentence: nobody shall learn of a wrong unit from a wrong result."""
        said = [f"{self.name} is read as {self.format}" + (f" ({self.unit})" if self.unit else "")]
        said[0] += f": {len(self):,} request{'' if len(self) == 1 else 's'} in {self.span_s:,.1f} s"
        said += told_apart(
            out_of_order=self.out_of_order,
            skipped=self.skipped,
            anew=self.anew,
            cut=self.cut,
            blank=int((self.prompt == 0).sum()),
            empty=int((self.output == 0).sum()),
            images=0 if self.images is None else int(self.images.sum()),
            pictured=0 if self.images is None else int((self.images > 0).sum()),
        )
        if self.unused:
            said.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(said)


def told_apart(
    *,
    out_of_order: int = 0,
    skipped: int = 0,
    anew: int = 0,
    cut: int = 0,
    blank: int = 0,
    empty: int = 0,
    images: int = 0,
    pictured: int = 0,
) -> list[str]:
    """What is said of rows that are not played just as they stand in the file, a phrase for each kind there is.

    `pictured`: requests that have the `images`.
    """
    kinds = (
        (out_of_order, "out of order of time and sorted"),
        (skipped, "without token counts and left out"),
        (anew, "with no more context than was said before, played as the beginning of a conversation"),
        (cut, "cut off when they were recorded, and played with as much of an answer as had come"),
        (blank, "without a prompt's tokens and played with one"),
        (empty, "without an answer's tokens and played with one"),
    )
    said = [f"{count:,} {what}" for count, what in kinds if count]
    return said + ([f"{images:,} images, in {pictured:,} of them, are counted, not sent"] if images else [])


def trace_rows(
    name: str,
    format: str,
    at_ns: Sequence[int],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    sessions: Sequence[object] | None = None,
    turn: Sequence[int] | None = None,
    think_ns: Sequence[int] | None = None,
    blocks: Sequence[tuple[int, ...]] = (),
    block_tokens: int = 512,
    skipped: int = 0,
    anew: int = 0,
    cut: int = 0,
    images: Sequence[int] = (),
    unit: str = "",
) -> TraceRows:
    """Columns in file order, made into TraceRows. `sessions` may be any names, None for a row without one.

    Raises UserError when there is no row.
    """
    if not at_ns:
        raise UserError(f"{name}: holds no request; give a trace with at least one")
    times_N = np.asarray(at_ns, np.int64)
    order_N = np.argsort(times_N, kind="stable")
    ids: dict[object, int] = {}
    session_N = turn_N = think_N = None
    if sessions is not None and any(session is not None for session in sessions):
        session_N = np.array([-1 if s is None else ids.setdefault(s, len(ids)) for s in sessions], np.int64)[order_N]
        turn_N = np.asarray([0] * len(times_N) if turn is None else turn, np.int32)[order_N]
        think_N = None if think_ns is None else np.asarray(think_ns, np.int64)[order_N]
    return TraceRows(
        name=name,
        format=format,
        at_ns=times_N[order_N] - times_N.min(),
        prompt=np.asarray(prompt, np.int32)[order_N],
        output=np.asarray(output, np.int32)[order_N],
        session=session_N,
        turn=turn_N,
        think_ns=think_N,
        blocks=tuple(blocks[k] for k in order_N.tolist()) if blocks else (),
        block_tokens=block_tokens,
        out_of_order=int((times_N < np.maximum.accumulate(times_N)).sum()),
        skipped=skipped,
        anew=anew,
        cut=cut,
        images=np.asarray(images, np.int32)[order_N] if len(images) else None,
        unit=unit,
    )


class Turns(NamedTuple):
    """Rows that count whole contexts, told turn by turn: what is new in each, and which conversation it belongs to.

    `before`: the row whose answer each one follows, -1 for none. `anew`: how many later turns begin a conversation of
    their own, because their context cannot hold what was said before them.
    """

    prompt: list[int]
    session: list[object]
    before: list[int]
    anew: int


def turns_of(
    contexts: Sequence[int], outputs: Sequence[int], sessions: Sequence[object], turns: Sequence[int]
) -> Turns:
    """What is new in each row of a file that counts the whole context of a conversation; None: a row of no session.

    new(k) = context(k) - context(j) - output(j), where j is the last turn before k that is there. A context that does
    not exceed what was said by then lacks some of it (an answer left out, a history cut short): it is taken whole, as
    the beginning of a conversation that later turns go on with. So is the second of two rows of one turn.
    """
    prompt, names, before = list(contexts), list(sessions), [-1] * len(contexts)
    last: dict[object, tuple[int, int]] = {}
    """Session -> the row it ended with so far, and how many conversations it was before."""
    anew = 0
    for k in sorted(range(len(turns)), key=lambda k: turns[k]):
        session = sessions[k]
        if session is None:
            continue
        j, part = last.get(session, (-1, 0))
        if j >= 0:
            new = contexts[k] - contexts[j] - outputs[j]
            if turns[k] > turns[j] and new > 0:
                prompt[k], before[k] = new, j
            else:
                part, anew = part + 1, anew + (turns[k] > 0)
        names[k] = session, part
        last[session] = k, part
    return Turns(prompt, names, before, anew)


_OTHER_UNIT = 1_000
_FALLS = 2.0
"""A time that goes back to less than half is looked at; jitter of a recorder is far smaller."""
_SWITCH = (900.0, 1_100.0)
_AROUND = 3
"""Rows before and after a switch of units that must be there to see it."""


def check_one_unit(path: Path, column: str, lines: Sequence[int], at_ns: Sequence[int]) -> None:
    """Raises UserError, naming line and column, where some times only make sense a thousand times as long or short.

    Either a row falls out of the order of its neighbours and falls into it when its unit is changed, or from one row
    on every time and every gap is a thousand times as long.
    """
    t_N = np.asarray(at_ns, np.float64)
    if len(t_N) < _AROUND:
        return
    for k in np.flatnonzero(t_N[1:] * _FALLS < t_N[:-1]).tolist()[:_LOOKED_AT]:
        before, after = t_N[k], t_N[k + 1]
        low = t_N[: k + 1][t_N[: k + 1] <= after].max(initial=0.0)
        if 0 < low <= before / _OTHER_UNIT <= after:
            raise _mixed(path, lines[k], column, "a thousandth")
        then = t_N[k + 2] if k + 2 < len(t_N) and t_N[k + 2] > before else 2 * before
        if before <= after * _OTHER_UNIT <= then:
            raise _mixed(path, lines[k + 1], column, "a thousand times as much")
    for k in np.flatnonzero((t_N[:-1] > 0) & (t_N[1:] >= _SWITCH[0] * t_N[:-1])).tolist()[:_LOOKED_AT]:
        if k < _AROUND or len(t_N) - k - 1 <= _AROUND or t_N[k + 1] > _SWITCH[1] * t_N[k]:
            continue
        slow, fast = np.median(np.diff(t_N[: k + 1])), np.median(np.diff(t_N[k + 1 :]))
        if slow > 0 and _OTHER_UNIT / 5 <= fast / slow <= _OTHER_UNIT * 5:
            raise _mixed(path, lines[k + 1], column, "a thousandth")


_LOOKED_AT = 100


def _mixed(path: Path, number: int, column: str, fits: str) -> UserError:
    return UserError(
        f"{path}, line {number}, column {column}: fits the rows around it only at {fits}, so the trace mixes units; "
        "write all its times in one"
    )
