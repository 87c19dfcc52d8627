"""What a user names as MODEL: an architecture to synthesise, a weight file, or a server that already runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from breakeven.engines.openai_url import is_url
from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.resolve import resolve_spec, weight_file

SYNTHETIC = "synthetic weights: speed and memory only"
"""What stands beside every number that weights of our own writing gave."""


@dataclass(frozen=True, slots=True)
class Source:
    """One candidate before it runs. Exactly one of `path` (a GGUF that exists), `url` and `synthetic` holds.

    `spec` is None where the architecture is unknown: an URL, or a GGUF of a family Breakeven does not know.
    """

    text: str
    name: str
    spec: ModelSpec | None
    path: Path | None = None
    url: str | None = None

    @property
    def is_moe(self) -> bool:
        """True when it is known to route tokens to experts."""
        return self.spec is not None and self.spec.is_moe

    @property
    def synthetic(self) -> bool:
        """True when its weights are written by Breakeven."""
        return self.path is None and self.url is None


def parse_source(text: str) -> Source:
    """Read one MODEL argument. Raises UserError for what does not exist or cannot be read."""
    if is_url(text):
        return Source(text, text.partition("#")[2] or text, None, url=text)
    if (path := weight_file(text)) is not None:
        spec = resolve_spec(text)
        return Source(text, spec.name, spec, path=path)
    spec = resolve_spec(text)
    return Source(text, text.split("/")[-1] if not Path(text).exists() else spec.name, spec)


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
        sources.append(Source(source.text, name, source.spec, source.path, source.url))
    return sources


def slug(name: str) -> str:
    """`name` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-").lower()[:60] or "model"
