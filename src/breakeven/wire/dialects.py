"""The dialects of OpenAI-like servers, as data (`dialects.json`): what a request may hold, and what `/metrics` says.

A new engine is a new entry there; nothing in the code names one. Its fields are those of `Dialect`; under `metrics`
stand for each field of `EngineNumbers` the names it has had, newest first, and where that was read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Protocol

import msgspec

_LINE = re.compile(r'([A-Za-z_:][\w:]*)(?:\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
MOST_LINES, MOST_LINE = 20_000, 4_096
"""Of a `/metrics` page, what is read: vLLM's longest pages have a few thousand lines of some hundred letters."""


class EngineNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One look at an engine. None: it does not tell.

    `running` and `waiting` are requests, `kv_share` the share of the KV cache in use, 0 to 1; the last two are totals
    since the engine started.
    """

    running: float | None = None
    waiting: float | None = None
    kv_share: float | None = None
    preemptions: float | None = None
    cached_prompt_tokens: float | None = None


FIELDS = EngineNumbers.__struct_fields__
_AVERAGED = frozenset({"kv_share"})
"""Averaged over the parts of an engine that report it (vLLM: one a data-parallel rank); the others are added up."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's. What is not said of an engine is as with one that is not known.

    `owned_by`: what its `/v1/models` says. `token_ids`: it takes a prompt as a list of them. `tokenize`: what
    POST /tokenize is asked, None where there is none. `fields`, `stream_options`: what a completion is asked beside
    OpenAI's fields, so that each piece of a stream says how many tokens came so far: a chunk is not a token. Values
    that begin with $ are filled in. `several_usages`: its streams tell them more than once. `keeps_connections`: False
    where it promises to keep a connection and closes it right after a stream. `seeds`: False where a request with a
    seed is kept out of the batch. `bars_ends`: it knows no `ignore_eos`, but a bias against the tokens that end a text.
    `extra_fields`: False where it passes over what OpenAI has not, so that a text ends where the model ends it.
    `like`: the engine whose dialect it is.
    `metrics_at`: the path of its metrics on its host; empty: `/metrics` below its address.
    """

    owned_by: str = ""
    token_ids: bool = False
    tokenize: dict[str, str | bool] | None = None
    fields: dict[str, str | bool] = {}
    stream_options: dict[str, bool] = {}
    several_usages: bool = False
    keeps_connections: bool = True
    seeds: bool = True
    bars_ends: bool = False
    extra_fields: bool = True
    like: str = ""
    metrics_at: str = ""
    metrics: dict[str, str | list[str]] = {}

    def tokenize_fields(self, model: str, text: str) -> dict[str, object] | None:
        """The body of POST /tokenize, None where it cannot be asked."""
        return None if self.tokenize is None else _filled(self.tokenize, {"$model": model, "$text": text})


class Speaker(Protocol):
    """What a backend says of itself that matters for a request."""

    @property
    def engine(self) -> str: ...

    @property
    def served_model(self) -> str: ...

    @property
    def takes_extra_fields(self) -> bool: ...

    @property
    def end_tokens(self) -> tuple[int, ...]: ...


@cache
def dialects() -> dict[str, Dialect]:
    """By engine."""
    text = resources.files("breakeven.wire").joinpath("dialects.json").read_bytes()
    found = msgspec.json.decode(text, type=dict[str, Dialect])
    spoken = {engine: found[dialect.like or engine] for engine, dialect in found.items()}
    return {engine: msgspec.structs.replace(dialect, like=found[engine].like) for engine, dialect in spoken.items()}


def dialect_of(engine: str) -> Dialect:
    """An engine's dialect; that of an unknown one speaks OpenAI's alone."""
    return dialects().get(engine) or _PLAIN


_PLAIN = Dialect()
_BARRED = -1000.0
"""A bias that no logit makes up for."""


def _filled(fields: dict[str, str | bool], values: dict[str, object]) -> dict[str, object]:
    return {name: values.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def completion_fields(
    backend: Speaker,
    *,
    max_tokens: int,
    temperature: float,
    stream: bool = True,
    ignore_eos: bool = True,
    top_k: int | None = None,
    seed: int | None = None,
    cache_prompt: bool = False,
) -> dict[str, Any]:
    """Everything but `prompt` or `messages`, as `backend` understands it.

    `cache_prompt` lets llama.cpp reuse the prefix of an earlier prompt; other engines decide that when they start.
    Fields beyond OpenAI's are left out where the backend refuses them.
    """
    fields: dict[str, Any] = {
        "model": backend.served_model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": stream,
    }
    dialect = dialect_of(backend.engine)
    if seed is not None and dialect.seeds:
        fields["seed"] = seed
    if backend.takes_extra_fields:
        if ignore_eos and not dialect.bars_ends:
            fields["ignore_eos"] = True
        elif ignore_eos and backend.end_tokens:
            fields["logit_bias"] = {str(token): _BARRED for token in backend.end_tokens}
        if top_k is not None:
            fields["top_k"] = top_k
    fields |= _filled(dialect.fields, {"$cache_prompt": cache_prompt})
    if stream:
        fields["stream_options"] = {"include_usage": True, **dialect.stream_options}
    return fields


@cache
def metric_names() -> dict[str, dict[str, tuple[str, ...]]]:
    """Engine -> field of `EngineNumbers` -> names, newest first; one that speaks as another does is not repeated."""
    return {
        engine: {field: tuple(dialect.metrics.get(field, ())) for field in FIELDS}
        for engine, dialect in dialects().items()
        if not dialect.like
    }


def lines_of(text: str) -> Iterator[str]:
    """The samples of a Prometheus text page, a line each, within bounds: no page costs more than some milliseconds."""
    return (line for line in text.split("\n", MOST_LINES)[:MOST_LINES] if 2 < len(line) <= MOST_LINE and line[0] != "#")


def parse_metrics(text: str) -> dict[str, list[float]]:
    """Every sample of a Prometheus text page by name, whatever its labels.

    Lines that are none, and values that are no finite number, are skipped.
    """
    found: dict[str, list[float]] = {}
    for line in lines_of(text):
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(match[1], []).append(value)
    return found


def engine_numbers(text: str) -> EngineNumbers | None:
    """What a `/metrics` page says, whichever known engine wrote it; None when it has none of their names."""
    samples = parse_metrics(text)
    values: dict[str, float] = {}
    for names in metric_names().values():
        for field in FIELDS:
            if (name := next((name for name in names[field] if name in samples), None)) is not None:
                found = samples[name]
                values[field] = sum(found) / len(found) if field in _AVERAGED else sum(found)
    return EngineNumbers(**values) if values else None
