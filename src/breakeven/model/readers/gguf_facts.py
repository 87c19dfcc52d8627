"""What a GGUF header says of a block: keys for one block or all, shapes of its tensors, and which blocks slide."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from breakeven.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
DAMAGED = "get another file of the model, or convert it again with a current llama.cpp"

_PERIODS = {
    "llama4": (4, 8192),
    "gemma2": (2, 4096),
    "gemma3": (6, 0),
    "gemma3n": (5, 0),
    "gemma-embedding": (6, 0),
    "cohere2": (4, 0),
    "cohere2moe": (-4, 0),
    "olmo2": (4, 0),
    "exaone4": (4, 0),
    "exaone-moe": (4, 128),
    "gpt-oss": (2, 0),
    "afmoe": (4, 0),
    "laguna": (-4, 0),
    "mellum": (4, 0),
    "muse-glimmer": (4, 0),
    "plamo3": (8, 0),
    "smallthinker": (-4, 0),
    "lfm2": (0, 0),
    "modern-bert": (-3, 0),
    "deepseek4": (0, 0),
}
"""Where a file does not say which layers slide: all but the last of each so many (negative: but the first; 0: all),
over so many positions unless the file says. What llama.cpp fixes for an architecture (src/models/*.cpp)."""

GEMMA3N_OWN_CACHES = 20
"""Layers that keep a cache of their own in gemma3n files that do not say (`n_layer_kv_from_start`)."""

_WINDOW_UNUSED = re.compile(
    r"(llama|mistral[34]|qwen[23].*|phi[23]|phimoe|starcoder2?|internlm2|granite(moe|hybrid|switch)?|minicpm.*|glm.*|ernie.*|hunyuan.*"
    r"|deepseek2|bailing.*|dots1|minimax-m2|seed_oss|falcon.*|lfm2moe|nemotron.*|jamba|apertus)$"
)
"""Architectures that llama.cpp runs with full attention although files may name a window."""


class BlockFacts:
    """A header's keys and the shapes of its tensors, and errors that name what is missing.

    `blocks` have tensors, `drafting` those of a drafting block, `time_mixing` RWKV's; `own_blocks` run for each token.
    """

    def __init__(self, metadata: Mapping[str, object], shapes: Shapes, architecture: str, source: str) -> None:
        self.metadata, self.shapes, self.architecture, self.source = metadata, shapes, architecture, source
        self.own_blocks = 0
        named = [name.split(".", 2) for name in shapes if name.startswith("blk.")]
        inside = [(int(parts[1]), parts[2]) for parts in named if len(parts) == 3 and parts[1].isdecimal()]
        self.blocks = {i for i, _ in inside}
        self.drafting = {i for i, stem in inside if stem.startswith("nextn.")}
        self.time_mixing = {i for i, stem in inside if stem.startswith("time_mix_")}
        self.stems = {stem.rsplit(".", 1)[0] for _, stem in inside}
        self.indexed = any(stem.startswith("indexer.") for stem in self.stems)

    def refused(self, what: str) -> UserError:
        return UserError(
            f"{self.source}: {what}, so the layout of architecture {self.architecture!r} is not known here; "
            "describe the model by hand as docs/models-yaml.md shows"
        )

    def has(self, i: int, *stems: str, suffix: str = "weight") -> bool:
        """Whether block `i` has a tensor of one of these stems; some architectures leave the suffix out."""
        return any(f"blk.{i}.{stem}.{suffix}" in self.shapes or f"blk.{i}.{stem}" in self.shapes for stem in stems)

    def block(self, i: int, stem: str, dims: int, suffix: str = "weight") -> tuple[int, ...]:
        return self.need(f"blk.{i}.{stem}.{suffix}", dims)

    def rows(self, i: int, *stems: str) -> int:
        """Outputs of the first of these matrices that block `i` has."""
        stem = next((stem for stem in stems if self.has(i, stem)), stems[0])
        return self.block(i, stem, 2)[0]

    def size(self, i: int, stem: str, suffix: str = "weight") -> int:
        """Elements of a tensor of any shape, 0 where it is missing."""
        name = f"blk.{i}.{stem}{'.' if suffix else ''}{suffix}"
        return math.prod(self.shapes[name]) if name in self.shapes else 0

    def need(self, tensor: str, dims: int) -> tuple[int, ...]:
        shape = self.shapes.get(tensor)
        # Some files keep ones around a convolution's kernel.
        if shape is not None and len(shape) > dims:
            shape = tuple(n for n in shape if n != 1)
        if shape is None or len(shape) != dims or min(shape) < 1:
            raise self.refused(f"tensor {tensor} is {'missing' if shape is None else f'of shape {shape}'}")
        return shape

    def get(self, key: str) -> object:
        return self.metadata.get(f"{self.architecture}.{key}")

    def at(self, key: str, i: int, default: int | None = None) -> int:
        """A value that is one number for all blocks, or a list with one each."""
        value = self.get(key)
        if isinstance(value, list) and i < len(value) and isinstance(value[i], int) and value[i] >= 0:
            return int(value[i])
        if isinstance(value, list) and default is not None:
            return default
        return self.whole(key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            found = "is missing" if value is None else f"is {str(value)[:40]!r}"
            raise UserError(f"{self.source}: {self.architecture}.{key} {found}, it must be a whole number; {DAMAGED}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key)
        # Files hold float32: six digits give back the number that was meant.
        return float(f"{value:.6g}") if isinstance(value, int | float) else default

    def part(self, whole: int, by: int, i: int, what: str) -> int:
        """`whole / by`, which must be a whole number of 1 or more."""
        if by < 1 or whole < by or whole % by:
            raise self.refused(f"block {i} has {what} of {whole} in {by}")
        return whole // by


def window(f: BlockFacts, i: int) -> int | None:
    """Positions that a sliding block `i` sees, None for a block that sees all."""
    period, default = _PERIODS.get(f.architecture, (1, 0))
    size = f.at("attention.sliding_window", i, default)
    pattern = f.get("attention.sliding_window_pattern")
    if not size or (f.architecture == "exaone4" and pattern is None and f.own_blocks != 64):
        return None
    if isinstance(pattern, list) and pattern:
        # A list shorter than the model repeats.
        return size if pattern[i % len(pattern)] else None
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period = pattern
    if period < 0:
        return size if i % -period else None
    return size if period == 0 or i % period < period - 1 else None


def window_unsaid(f: BlockFacts) -> bool:
    """True when the file has a window, and nothing says which layers slide."""
    said = f.get("attention.sliding_window_pattern") is not None or not f.at("attention.sliding_window", 0, 0)
    return not said and f.architecture not in _PERIODS and not _WINDOW_UNUSED.match(f.architecture)
