"""A Mixture-of-Experts GGUF as stacks of experts, and the same experts in other places: bytes move, none is decoded.

What belongs to one expert lies together in every tensor it has a part of: a slice of each stacked matrix, a row of the
router, a number of each bias. So experts are dropped, sorted and repeated by choosing slices, whatever the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.surgery.container import Bytes, DenseFile, OutTensor, SourceTensor, open_gguf, rewrite
from breakeven.model.parts import Gating, MoeFfn
from breakeven.model.readers.gguf import read_gguf
from breakeven.model.tensors import TensorGroup, group_of

# LLAMA_MAX_EXPERTS of src/llama-hparams.h.
MAX_EXPERTS = 1024
_PIECE_BYTES = 8 << 20

_STACKED = re.compile(
    r"ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)|ffn_gate_inp\.(weight|bias)"
    r"|exp_probs_b(\.(bias|weight))?"
)
"""Tensors of a block with one part an expert, the expert outermost: those of every family (gguf-py's constants)."""

_REFUSED: tuple[tuple[str, str], ...] = (
    (r"ffn_\w+_chexps\.", "small experts are shared by groups of experts (GroveMoE)"),
    (r"ffn_gate_tid2eid", "experts are chosen by a table of tokens (DeepSeek-V4)"),
    (r"ffn_(gate|up|down)\.\d+\.", "experts are not stacked, as in files from before 2024; convert the model again"),
)
"""Tensors whose experts cannot be moved so, and why."""

_INDEPENDENT = frozenset({Gating.SIGMOID, Gating.SQRT_SOFTPLUS})
"""Gates that weigh one expert without a look at the others."""

Instead = Callable[[SourceTensor, int], Bytes | None]
"""What a tensor holds at a place of the result; None: what the source's expert there holds."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """A file and where its experts lie. `blocks` route, all over `n_experts`, of which `used` run for each token."""

    source: DenseFile
    blocks: tuple[int, ...]
    n_experts: int
    used: int
    facts: MoeFfn

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.header.path

    @property
    def selected_apart(self) -> bool:
        """Whether a number an expert, in every block, can keep it from being chosen and change nothing else."""
        return (self.facts.selection_bias and self.facts.gating in _INDEPENDENT) or self.facts.router_bias

    def stacked(self, block: int | None = None) -> list[SourceTensor]:
        """Tensors with one part an expert, of one block or of all."""
        found = [tensor for tensor in self.source.tensors if stack_of(tensor) is not None]
        return found if block is None else [tensor for tensor in found if stack_of(tensor) == block]

    def unweighted(self) -> bool:
        """Whether the router says nothing, as after a split: each of the k experts that run weighs 1/k, whatever k."""
        routers = [tensor for tensor in self.stacked() if "ffn_gate_inp." in tensor.name]
        plain = self.source.header.architecture == "llama" and not self.facts.selection_bias
        return plain and not any(tensor.data.any() for tensor in routers)


def stack_of(tensor: SourceTensor) -> int | None:
    """The block in which this tensor holds one part an expert; None for any other tensor."""
    parts = tensor.name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and _STACKED.fullmatch(parts[2]):
        return int(parts[1])
    return None


def part_of(tensor: SourceTensor, expert: int, n_experts: int) -> Bytes:
    """The bytes of one expert in a stacked tensor."""
    size = tensor.data.nbytes // n_experts
    return tensor.data[expert * size : (expert + 1) * size]


def open_whole(path: Path) -> DenseFile:
    """A GGUF that is one whole file. Raises UserError for a part of a split one."""
    reader = open_gguf(path)
    parts = reader.header.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UserError(f"{path} is one of {parts} parts; join them first (`llama-gguf-split --merge`)")
    return reader


def open_stacks(path: Path) -> Stacks:
    """The experts of a Mixture-of-Experts GGUF.

    Raises NotSupportedError for a dense model, experts that are kept in another way and tensors that could belong to
    experts and are not known; UserError for a file that is damaged or a part of one.
    """
    source = open_whole(path)
    found = {stack_of(tensor) for tensor in source.tensors}
    blocks = tuple(sorted(block for block in found if block is not None))
    for tensor in source.tensors:
        stem = tensor.name.split(".", 2)[-1]
        why = next((why for pattern, why in _REFUSED if tensor.name != stem and re.match(pattern, stem)), None)
        if why is not None:
            raise NotSupportedError(f"{path.name}: {why} ({tensor.name}); its experts cannot be moved")
    if not blocks:
        raise NotSupportedError(
            f"{path.name} is a dense model ({source.header.architecture}, no experts); "
            "`breakeven experts split` makes experts of one"
        )
    # Keys and tensors that are not known, and blocks that do not fit together, are refused by the reader.
    spec = read_gguf(path)
    layers = [*spec.layers, *(spec.mtp.layers if spec.mtp else ())]
    ffns = [layers[block].ffn for block in blocks]
    kinds = {(ffn.n_experts, ffn.n_experts_per_token) for ffn in ffns if isinstance(ffn, MoeFfn)}
    counted = source.header.metadata.get(f"{source.header.architecture}.expert_count")
    if len(kinds) != 1 or not isinstance(counted, int):
        raise NotSupportedError(f"{path.name}: its layers differ in experts ({sorted(kinds)}), which cannot be moved")
    ((n_experts, used),) = kinds
    for tensor in source.tensors:
        _check_known(path, tensor, n_experts)
    facts = next(ffn for ffn in ffns if isinstance(ffn, MoeFfn))
    return Stacks(source, blocks, n_experts, used, facts)


def _check_known(path: Path, tensor: SourceTensor, n_experts: int) -> None:
    """Raise NotSupportedError for a tensor that may belong to experts in a way that is not known."""
    if stack_of(tensor) is not None:
        if tensor.dims[-1] != n_experts or tensor.data.nbytes % n_experts:
            raise NotSupportedError(
                f"{path.name}: {tensor.name} has {tensor.dims[-1]} parts for {n_experts} experts; they cannot be moved"
            )
        return
    if not tensor.name.startswith("blk."):
        return
    group = group_of(tensor.name.split(".", 2)[-1])
    router_scale = tensor.name.endswith("ffn_gate_inp.scale") and n_experts not in tensor.dims
    if group in (TensorGroup.ROUTED_EXPERTS, TensorGroup.ROUTER) and not router_scale:
        raise NotSupportedError(f"{path.name}: {tensor.name} is of the experts, and how is not known; nothing is moved")
    if group is None and n_experts in tensor.dims:
        raise NotSupportedError(f"{path.name}: {tensor.name} is not known and may have one part an expert")


def check_used(stacks: Stacks, experts: int, used: int) -> None:
    """Raise UserError unless `used` of `experts` can run for each token; groups of experts count (DeepSeek-V3)."""
    groups, chosen = stacks.facts.n_groups, stacks.facts.n_groups_used
    if groups > 1 and experts < 2 * groups:
        raise UserError(f"experts stand in {groups} groups, judged by their two best; keep {2 * groups} or more")
    within = experts // groups * chosen if groups > 1 else experts
    if not 1 <= used <= within:
        of = f"{within} that a token can reach in {chosen} of {groups} groups" if groups > 1 else f"{experts} there"
        raise UserError(
            f"{used} experts run for each token, more than the {of}; keep more, or give --used {within} or fewer"
            if used > within
            else f"--used {used}: give a number from 1 to {within}"
        )
    if experts > MAX_EXPERTS:
        raise UserError(f"{experts} experts are more than llama.cpp's limit of {MAX_EXPERTS}")


def rearrange(
    stacks: Stacks,
    out: Path,
    places: Mapping[int, Sequence[int]],
    *,
    used: int | None = None,
    instead: Instead = lambda tensor, place: None,
) -> int:
    """Write `out`, whole or not at all, with the source's expert `places[block][i]` in place i of every block.

    Router rows and biases move with their experts. `used`: experts a token, None to leave it. Returns the file's bytes.
    """
    count = len(places[stacks.blocks[0]])
    assert {len(each) for each in places.values()} == {count}
    assert set(places) == set(stacks.blocks)
    tensors: list[OutTensor] = []
    for tensor in stacks.source.tensors:
        block = stack_of(tensor)
        if block is None:
            pieces = partial(_kept, tensor)
            tensors.append(OutTensor(tensor.name, tensor.dims, tensor.kind, tensor.data.nbytes, pieces))
            continue
        n_bytes = tensor.data.nbytes // stacks.n_experts * count
        pieces = partial(_moved, tensor, places[block], stacks.n_experts, instead)
        tensors.append(OutTensor(tensor.name, (*tensor.dims[:-1], count), tensor.kind, n_bytes, pieces))
    architecture = stacks.source.header.architecture
    numbers = {f"{architecture}.expert_count": count}
    if used is not None and used != stacks.used:
        numbers[f"{architecture}.expert_used_count"] = used
    return rewrite(stacks.source, out, numbers, tensors)


def _kept(tensor: SourceTensor) -> Iterator[Bytes]:
    yield tensor.data


def _moved(tensor: SourceTensor, experts: Sequence[int], n_experts: int, instead: Instead) -> Iterator[Bytes]:
    for place, expert in enumerate(experts):
        other = instead(tensor, place)
        yield part_of(tensor, expert, n_experts) if other is None else other


def differing(stacks: Stacks, made: Path, places: Mapping[int, Sequence[int]], skipped: set[str]) -> str | None:
    """The first tensor of `made` that does not hold the bytes promised; None where every one does.

    `skipped`: names of tensors that were meant to change. A place of -1 is new and may hold anything.
    """
    written = {tensor.name: tensor for tensor in open_gguf(made).tensors}
    for tensor in stacks.source.tensors:
        block, there = stack_of(tensor), written[tensor.name]
        if tensor.name in skipped:
            continue
        if block is None:
            same = _equal(tensor.data, there.data)
        else:
            experts = places[block]
            same = all(
                _equal(part_of(tensor, expert, stacks.n_experts), part_of(there, place, len(experts)))
                for place, expert in enumerate(experts)
                if expert >= 0
            )
        if not same:
            return tensor.name
    return None


def _equal(one: Bytes, other: Bytes) -> bool:
    """Compared in pieces: the comparison of a whole tensor takes as much memory as it has."""
    starts = range(0, max(one.size, 1), _PIECE_BYTES)
    return one.size == other.size and all(
        np.array_equal(one[at : at + _PIECE_BYTES], other[at : at + _PIECE_BYTES]) for at in starts
    )
