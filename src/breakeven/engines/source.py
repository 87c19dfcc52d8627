"""What a user names as MODEL: an architecture to synthesise, a weight file, or a server that already runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from breakeven.engines.backend import LLAMA_CPP, LLAMA_SERVER
from breakeven.engines.openai_url import is_url
from breakeven.errors import UserError
from breakeven.hardware.placement import split_served
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import OWN, GpuFormat, OwnFormat, default_format, format_named
from breakeven.model.readers.gguf_header import read_header
from breakeven.model.resolve import path_of, resolve_spec, split_format, weight_file

SYNTHETIC = "synthetic weights: speed and memory only"
"""What stands beside every number that weights of our own writing gave."""


@dataclass(frozen=True, slots=True)
class Source:
    """One candidate before it runs. Exactly one of `path` (a GGUF that exists), `url` and `synthetic` holds.

    `spec` is None where the architecture is unknown: an URL, or a GGUF of a family Breakeven does not know.
    `format_name`: the weight format behind the name, as in `text`. `engine` and `words`, arguments of `placement_of`,
    are this candidate's own, from behind its `@`, which `text` leaves out. `by_synth`: the header of its file says so.
    """

    text: str
    name: str
    spec: ModelSpec | None
    path: Path | None = None
    url: str | None = None
    format_name: str | None = None
    engine: str | None = None
    words: Mapping[str, str] = field(default_factory=dict, hash=False)
    by_synth: bool = False

    @property
    def question(self) -> tuple[object, ...]:
        """What makes it the same candidate as another."""
        return (self.text, str(self.spec), self.engine, sorted(self.words.items()))

    @property
    def is_moe(self) -> bool:
        """True when it is known to route tokens to experts."""
        return self.spec is not None and self.spec.is_moe

    @property
    def synthetic(self) -> bool:
        """True when its weights are written by Breakeven."""
        return self.path is None and self.url is None

    @property
    def random_weights(self) -> bool:
        """True also of a file that `breakeven synth` wrote before."""
        return self.synthetic or self.by_synth


def parse_source(text: str) -> Source:
    """Read one MODEL argument. Raises UserError for what does not exist or cannot be read."""
    if is_url(text):
        return Source(text, text.partition("#")[2] or text, None, url=text)
    if "@" in text and not path_of(text).exists():
        model, engine, words = split_served(text)
        if engine is not None or words:
            source = parse_source(model)
            return replace(source, name=source.name + text[len(model) :], engine=engine, words=words)
    bare, format_name = split_format(text)
    if (path := weight_file(bare)) is not None:
        if format_name not in (None, OWN):
            raise UserError(f"{text}: a weight file runs in its own types; leave :{format_name} out")
        spec = resolve_spec(bare)
        by_synth = read_header(path).metadata.get("general.description") == SYNTHETIC
        return Source(bare, spec.name, spec, path=path, by_synth=by_synth)
    spec = resolve_spec(text)
    name = bare.split("/")[-1] if not Path(bare).exists() else spec.name
    return Source(text, name + text[len(bare) :], spec, format_name=format_name)


def weight_format(source: Source, asked: str | None, engine: str, usual: str | None = None) -> str:
    """The format in which `engine` gets a candidate: that behind its name, else as `asked`, else its own.

    `usual`: the engine's, for what has none of its own. Raises UserError for an unknown format.
    """
    if engine == LLAMA_SERVER:  # it reads what the embedded one reads
        engine = LLAMA_CPP
    if chosen := source.format_name or asked:
        return format_named(chosen).name
    own = format_named(OWN if source.spec is None else default_format(source.spec, engine))
    unread = isinstance(own, OwnFormat) or (engine == LLAMA_CPP and isinstance(own, GpuFormat))
    return (usual or "Q4_K_M") if unread else own.name


def parse_sources(texts: list[str]) -> list[Source]:
    """Read two or more MODEL arguments and give each its own name: a model against itself gets "(again)"."""
    if len(texts) < 2:
        raise UserError("give at least two models to compare, such as: breakeven compare olmoe-1b-7b llama-3.2-1b")
    sources: list[Source] = []
    for text in texts:
        source = parse_source(text)
        name, taken = source.name, {s.name for s in sources}
        while name in taken:
            name += " (again)"
        sources.append(replace(source, name=name))
    return sources


def assumed_caveats(sources: Iterable[Source]) -> list[str]:
    """What was passed over in descriptions of models, because the user said so."""
    return [
        f"{source.name} was read on past {', '.join(source.spec.assumed)}, which is not known here."
        for source in sources
        if source.spec is not None and source.spec.assumed
    ]


def slug(name: str) -> str:
    """`name` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-").lower()[:60] or "model"
