"""What was seen of a backend's experts, in a file: counts over all starts of the gateway, and routing to predict with.

Its top level is what `breakeven predict --routing` reads. Matrices stand in it as one .npz, in base64.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.gateway.experts.gathered import Floats, Gathered, Group, Sums
from breakeven.hardware.system import cache_home
from breakeven.results.store import write_whole

KEPT_SCHEMA = "breakeven.experts-kept/1"
_MOST_BYTES = 256 * 2**20
_LONGEST_NAME = 200
_DISPUTED = (
    "Another gateway writes {} too, and what the last of them saw is all that is kept: give one of the two backends "
    "another name, or one of the gateways its own XDG_CACHE_HOME."
)


class KeptLayer(msgspec.Struct):
    """A layer that routes, as `breakeven predict --routing` reads it; empty where tokens were not counted."""

    layer: int
    frequencies: list[float]


class KeptGroup(msgspec.Struct):
    """A key, or a language."""

    name: str
    requests: int
    tokens: int


class KeptExperts(msgspec.Struct, kw_only=True):
    """The file. `days`: requests and tokens by UTC day since 1970; `sums`: all matrices."""

    schema: str = KEPT_SCHEMA
    backend: str
    model: str | None
    source: str
    tokens: int
    requests: int
    n_experts_per_token: int | None
    layers: list[KeptLayer]
    since_s: float
    until_s: float
    skipped: dict[str, int]
    days: dict[str, tuple[int, int]]
    keys: list[KeptGroup]
    languages: list[KeptGroup]
    sums: str


def path_of(backend: str) -> Path:
    """Where what is seen of a backend is kept, whatever its name."""
    return cache_home() / "breakeven" / "gateway" / f"experts-{quote(backend, safe='')[:_LONGEST_NAME]}.json"


def keep(
    path: Path,
    seen: Gathered,
    *,
    backend: str,
    model: str | None,
    source: str,
    per_token: int | None,
    skipped: dict[str, int],
) -> None:
    """Write it whole or not at all. `per_token`: experts a token, None where that is not known. Raises UserError."""
    frequencies_LE = np.clip(np.nan_to_num(seen.whole.shares_LE()) * (per_token or 0), 0.0, 1.0)
    kept = KeptExperts(
        backend=backend,
        model=model,
        source=source,
        tokens=seen.whole.tokens,
        requests=seen.whole.requests,
        n_experts_per_token=per_token,
        layers=[
            KeptLayer(layer, row if per_token else [])
            for layer, row in zip(seen.layers, frequencies_LE.tolist(), strict=True)
        ],
        since_s=seen.since_s,
        until_s=seen.until_s,
        skipped=skipped,
        days={str(day): (sums.requests, sums.tokens) for day, sums in seen.days.items()},
        keys=[KeptGroup(name, group.requests, group.tokens) for name, group in seen.keys.items()],
        languages=[KeptGroup(name, group.requests, group.tokens) for name, group in seen.languages.items()],
        sums=_packed(seen),
    )
    write_whole(path, msgspec.json.encode(kept))


def read_kept(path: Path) -> KeptExperts | None:
    """The file, without a look at its matrices; None where there is none.

    Raises OSError, and ValueError for what is none, or is of another version of breakeven.
    """
    try:
        with path.open("rb") as file:
            kept = msgspec.json.decode(file.read(_MOST_BYTES), type=KeptExperts)
    except FileNotFoundError:
        return None
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if kept.schema != KEPT_SCHEMA:
        raise ValueError(f"it is {kept.schema}, of another version of breakeven, not {KEPT_SCHEMA}")
    return kept


class KeptFile:
    """Whether a file is still the one that we found or wrote there. `disputed`: what to do as it is not; else empty."""

    def __init__(self, path: Path) -> None:
        """As it stands."""
        self._path, self.disputed = path, ""
        self.written()

    def written(self) -> None:
        """It is ours as it stands."""
        self._mark = self._marked()

    def look(self) -> bool:
        """Whether somebody else has begun to write it since."""
        before = self.disputed
        self.disputed = _DISPUTED.format(self._path.name) if self._marked() not in (None, self._mark) else before
        return self.disputed != before

    def _marked(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def _packed(seen: Gathered) -> str:
    arrays: dict[str, NDArray[Any]] = {}
    for name, sums in (("whole", seen.whole), *((f"day{day}", sums) for day, sums in seen.days.items())):
        for index, array in enumerate(sums.arrays()):
            arrays[f"{name}.{index}"] = array
    for what, groups in (("key", seen.keys), ("language", seen.languages)):
        for index, group in enumerate(groups.values()):
            arrays[f"{what}{index}"] = group.choices_LE
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(written.getvalue()).decode()


class _Matrices:
    """Those of a file, each of the shape that the first one has. Raises ValueError for any other."""

    def __init__(self, arrays: Any, n_layers: int) -> None:
        self._arrays, self._n_layers = arrays, n_layers
        self.n_experts: int | None = None

    def cells(self, name: str) -> Floats:
        """(L, E)."""
        found = self._numbers(name)
        if found.ndim != 2 or len(found) != self._n_layers or self.n_experts not in (None, found.shape[1]):
            raise ValueError(name)
        self.n_experts = found.shape[1]
        return found

    def sums(self, name: str, requests: int, tokens: int) -> Sums:
        """What `_packed` wrote of them."""
        cells = [self.cells(f"{name}.{index}") for index in range(3)]
        rows = [self._numbers(f"{name}.{index}") for index in (3, 4)]
        if any(row.shape != (self._n_layers,) for row in rows):
            raise ValueError(name)
        return Sums(cells[0], cells[1], cells[2], rows[0], rows[1], requests, tokens)

    def groups(self, what: str, told: Sequence[KeptGroup]) -> dict[str, Group]:
        """Keys, or languages."""
        return {
            each.name: Group(self.cells(f"{what}{index}"), each.requests, each.tokens)
            for index, each in enumerate(told)
        }

    def _numbers(self, name: str) -> Floats:
        found = np.asarray(self._arrays[name], dtype=np.float64)
        if not np.isfinite(found).all() or (found < 0).any():
            raise ValueError(name)
        return found


def unpacked(kept: KeptExperts) -> Gathered:
    """Its matrices. Raises ValueError for what does not fit together."""
    try:
        packed = io.BytesIO(base64.b64decode(kept.sums, validate=True))
        with np.load(packed, allow_pickle=False) as arrays:
            matrices = _Matrices(arrays, len(kept.layers))
            whole = matrices.sums("whole", kept.requests, kept.tokens)
            return Gathered(
                tuple(layer.layer for layer in kept.layers),
                whole.choices_LE.shape[1],
                whole,
                {int(day): matrices.sums(f"day{day}", *told) for day, told in kept.days.items()},
                matrices.groups("key", kept.keys),
                matrices.groups("language", kept.languages),
                kept.since_s,
                kept.until_s,
            )
    except Exception as error:
        # Archives, what packs them and numpy each have errors of their own for a file that a disk or a hand changed.
        raise ValueError(f"{type(error).__name__}: {error}") from error
