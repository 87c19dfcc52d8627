"""Fewer, other or more experts: prune, order, add and merge the experts of a Mixture-of-Experts GGUF.

*prune* and *order* only move bytes. *add* repeats experts' bytes. *merge* averages two, which takes decoding and
encoding again. All four act on every layer that routes, since llama.cpp has one number of experts for a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bits.ggml import Ggml
from breakeven.lab.facts import sha256_of
from breakeven.lab.surgery.container import Bytes, SourceTensor
from breakeven.lab.surgery.experts import Surgery
from breakeven.lab.surgery.scaling import check_scalable, scaled
from breakeven.lab.surgery.stacks import (
    MAX_EXPERTS,
    Stacks,
    check_used,
    differing,
    open_stacks,
    part_of,
    rearrange,
    stack_of,
)
from breakeven.results.lab import ExpertScores, ScoredLayer
from breakeven.results.store import read

NEVER = -1e9
"""Added to an expert's selection, it is never chosen; and far from what 32 bits cannot hold."""

By = Literal["score", "load"]
Places = Mapping[int, Sequence[int]]


def prune(
    source: Path, out: Path, keep: int, scores: Path | None, used: int | None = None, *, by: By = "score"
) -> Surgery:
    """Keep the `keep` best experts of every layer, in the order they had, of which `used` run per token.

    `used` None: as many as before, or all that are kept where all ran. `scores`: a file of `breakeven experts score` on
    this very model; None: the first ones are kept, which are the best after `order` and after a split by importance.
    Raises UserError for numbers that do not fit and another model's scores, NotSupportedError as `open_stacks`.
    """
    stacks = open_stacks(source)
    groups = stacks.facts.n_groups if stacks.facts.n_groups > 1 else 1
    if not 1 <= keep < stacks.n_experts:
        raise UserError(
            f"--keep {keep}: {source.name} has {stacks.n_experts} experts; give 1 to {stacks.n_experts - 1}"
        )
    if keep % groups:
        raise UserError(f"--keep {keep}: experts stand in {groups} groups of equal size; give a multiple of {groups}")
    all_ran = stacks.used == stacks.n_experts
    k = (keep if all_ran else stacks.used) if used is None else used
    check_used(stacks, keep, k)
    said = None if scores is None else read_scores(scores, stacks)
    ranks = {block: list(range(stacks.n_experts)) for block in stacks.blocks}
    if scores is not None and said is not None:
        ranks = {layer.layer: ranked(layer, by, scores) for layer in said.layers}
        missing = [block for block in stacks.blocks if block not in ranks]
        if missing:
            raise UserError(
                f"{scores} says nothing of layer {missing[0]}, which routes too (a drafting block, which no text runs "
                "through?), and a model has one number of experts; give a file without it"
            )
    places = {block: _best(ranks[block], keep, groups) for block in stacks.blocks}
    caveats = [] if said is None else _losses(said, places)
    factor = k / stacks.used if stacks.unweighted() else 1.0
    error = 0.0
    changed: set[str] = set()
    if factor != 1.0:
        # Equal weights sum to one: of fewer experts each weighs more, and `down` makes up for it as `split` did.
        downs = [tensor for tensor in stacks.stacked() if "ffn_down_exps.weight" in tensor.name]
        for tensor in downs:
            check_scalable(tensor.kind, tensor.name)
        changed = {tensor.name for tensor in downs}
        caveats.append(
            f"the router says nothing, so each of {k} experts weighs 1/{k} where each of {stacks.used} weighed "
            f"1/{stacks.used}: down is multiplied by {k}/{stacks.used}"
        )

    def instead(tensor: SourceTensor, place: int) -> Bytes | None:
        nonlocal error
        block = stack_of(tensor)
        if tensor.name not in changed or block is None:
            return None
        part = part_of(tensor, places[block][place], stacks.n_experts)
        result = scaled(np.ascontiguousarray(part).reshape(tensor.dims[1], -1), tensor.kind, factor)
        error = max(error, result.relative_error)
        return result.data

    n_bytes = rearrange(stacks, out, places, used=k, instead=instead)
    _check_bytes(stacks, out, places, changed)
    return Surgery(
        out,
        keep,
        k,
        stacks.facts.expert_width,
        n_bytes,
        False,
        error,
        kept=_listed(stacks, places),
        caveats=tuple(caveats),
    )


def order(source: Path, out: Path, scores: Path, *, by: By = "score") -> Surgery:
    """Sort the experts of every layer, the best or busiest first; the model computes what it did.

    Layers that the scores do not know (drafting blocks) stay. Raises as `prune` does.
    """
    stacks = open_stacks(source)
    said = read_scores(scores, stacks)
    groups = stacks.facts.n_groups if stacks.facts.n_groups > 1 else 1
    ranks = {layer.layer: ranked(layer, by, scores) for layer in said.layers}
    unknown = [block for block in stacks.blocks if block not in ranks]
    size = stacks.n_experts // groups
    places: dict[int, list[int]] = {}
    for block in stacks.blocks:
        rank = ranks.get(block, list(range(stacks.n_experts)))
        # Whole groups take part in the choice, so an expert stays in its own.
        places[block] = [e for group in range(groups) for e in rank if e // size == group]
    n_bytes = rearrange(stacks, out, places)
    _check_bytes(stacks, out, places, set())
    caveats = [f"layers {unknown} are not in the scores and keep their order"] if unknown else []
    same = stacks.used == stacks.n_experts or not stacks.unweighted()
    if not same:
        caveats.append(f"the router says nothing, so their places decide which {stacks.used} experts run")
    return Surgery(
        out,
        stacks.n_experts,
        stacks.used,
        stacks.facts.expert_width,
        n_bytes,
        same,
        0.0,
        kept=_listed(stacks, places),
        caveats=tuple(caveats),
    )


def add(source: Path, out: Path, copies: Mapping[int, int]) -> Surgery:
    """Put copies of experts behind the last one, `copies[expert]` of each, in every layer.

    Where a number an expert can keep it from being chosen, the new ones have it and the model computes what it did.
    Elsewhere a copy is chosen along with its original and takes the place of another. Raises UserError for experts that
    do not exist, NotSupportedError as `open_stacks` and for experts in groups.
    """
    stacks = open_stacks(source)
    _check_alternatives(stacks, "added to")
    _check_there(stacks, copies, "--copies")
    if not copies or min(copies.values()) < 1:
        raise UserError("--copies: give EXPERT:COUNT with a count of 1 or more, such as 3:1")
    new = [expert for expert, count in copies.items() for _ in range(count)]
    total = stacks.n_experts + len(new)
    if total > MAX_EXPERTS:
        raise UserError(f"{total} experts are more than llama.cpp's limit of {MAX_EXPERTS}; give fewer copies")
    places = {block: [*range(stacks.n_experts), *new] for block in stacks.blocks}
    name = "exp_probs_b" if stacks.facts.selection_bias else "ffn_gate_inp.bias"
    apart = stacks.selected_apart
    biases = {tensor.name for tensor in stacks.stacked() if f".{name}" in tensor.name} if apart else set()
    if apart and any(t.kind != GGMLQuantizationType.F32 for t in stacks.stacked() if t.name in biases):
        raise NotSupportedError(f"{source.name}: {name} is not F32, so no expert can be kept from being chosen")
    never = np.array([NEVER], np.float32).view(np.uint8)

    def instead(tensor: SourceTensor, place: int) -> Bytes | None:
        return never if tensor.name in biases and place >= stacks.n_experts else None

    n_bytes = rearrange(stacks, out, places, instead=instead)
    kept = {block: [*range(stacks.n_experts), *[-1] * len(new)] for block in stacks.blocks}
    _check_bytes(stacks, out, kept, set())
    what = " and ".join(f"{expert} ({count})" if count > 1 else str(expert) for expert, count in copies.items())
    if apart:
        caveats = [f"copies of expert {what} are never chosen ({name} is {NEVER:g}) until it is raised"]
    else:
        caveats = [
            f"nothing in this family keeps an expert from being chosen: a token that chose expert {what} now chooses "
            "its copies too and as many others less; by how much answers moved is in the proof"
        ]
    return Surgery(
        out,
        total,
        stacks.used,
        stacks.facts.expert_width,
        n_bytes,
        apart,
        0.0,
        kept=_listed(stacks, kept),
        caveats=tuple(caveats),
    )


def merge(
    source: Path, out: Path, pairs: Sequence[tuple[int, int]], scores: Path | None = None, used: int | None = None
) -> Surgery:
    """Average the two experts of each pair, in every layer, in the place of the one with the smaller number.

    Weighted by the tokens each saw in `scores`, equally without. Matrices, router rows and biases are averaged and
    encoded again in their own types. Raises UserError for experts that do not exist or stand in two pairs, and as
    `prune` does.
    """
    stacks = open_stacks(source)
    _check_alternatives(stacks, "merged in")
    named = [expert for pair in pairs for expert in pair]
    _check_there(stacks, named, "--pairs")
    if not pairs or len(set(named)) != len(named):
        raise UserError("--pairs: give FIRST:SECOND, two experts, each in one pair, such as 2:5,0:7")
    k = stacks.used if used is None else used
    check_used(stacks, stacks.n_experts - len(pairs), k)
    tokens: dict[int, list[int]] = {}
    if scores is not None:
        tokens = {layer.layer: layer.tokens for layer in read_scores(scores, stacks).layers}
    partner = {min(pair): max(pair) for pair in pairs}
    gone = set(partner.values())
    left = [expert for expert in range(stacks.n_experts) if expert not in gone]
    places = dict.fromkeys(stacks.blocks, left)
    squares = np.zeros(2)
    with Ggml() as ggml:
        for tensor in stacks.stacked():
            if tensor.kind.name not in ggml.types or ggml.types[tensor.kind.name].needs_importance:
                raise NotSupportedError(
                    f"{tensor.name} is {tensor.kind.name}, which is not written without a text's importance; merge a "
                    "file of more bits and quantize the result"
                )

        def instead(tensor: SourceTensor, place: int) -> Bytes | None:
            block, expert = stack_of(tensor), left[place]
            if block is None or expert not in partner:
                return None
            two = (expert, partner[expert])
            seen = [tokens[block][e] if block in tokens else 1 for e in two]
            first = seen[0] / sum(seen) if sum(seen) else 0.5
            kind, width = ggml.types[tensor.kind.name], tensor.dims[0] if len(tensor.dims) > 1 else 1
            one, other = (ggml.decode(kind, part_of(tensor, e, stacks.n_experts)) for e in two)
            mean = (np.float32(first) * one + np.float32(1 - first) * other).reshape(-1, width)
            data = ggml.encode(kind, mean)
            moved = ggml.decode(kind, data).reshape(mean.shape) - mean
            squares[:] += np.square(moved, dtype=np.float64).sum(), np.square(mean, dtype=np.float64).sum()
            return data

        n_bytes = rearrange(stacks, out, places, used=k, instead=instead)
    merged = {block: [-1 if expert in partner else expert for expert in left] for block in stacks.blocks}
    _check_bytes(stacks, out, merged, set())
    how = "by the tokens each saw" if tokens else "equally (--scores weighs them by the tokens each saw)"
    return Surgery(
        out,
        len(left),
        k,
        stacks.facts.expert_width,
        n_bytes,
        False,
        0.0,
        requantized=float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0,
        kept=_listed(stacks, merged),
        caveats=(
            f"experts are averaged {how}, neuron by neuron as they stand; merging is second choice: the router can no "
            "longer weigh the two apart, and published models lost more than by `experts prune` (docs/experts.md)",
        ),
    )


def read_scores(path: Path, stacks: Stacks) -> ExpertScores:
    """The scores in a file, if they are of this very model. Raises UserError that says what differs."""
    said = read(path, ExpertScores)
    again = "run `breakeven experts score` on this file"
    if said.n_experts != stacks.n_experts:
        raise UserError(f"{path} is of a model of {said.n_experts} experts, this one has {stacks.n_experts}; {again}")
    for layer in said.layers:
        lists = [layer.tokens, layer.score, layer.score_error, *layer.by_language.values()]
        wrong = [len(each) for each in lists if each is not None and len(each) != stacks.n_experts]
        if wrong:
            raise UserError(
                f"{path}: layer {layer.layer} tells of {wrong[0]} experts, the model has {stacks.n_experts}; {again}"
            )
    strange = [layer.layer for layer in said.layers if layer.layer not in stacks.blocks]
    if strange or not said.layers:
        raise UserError(
            f"{path} is of a model that routes in layer {strange[0] if strange else '?'}, this one does not; {again}"
        )
    if said.model.sha256 != sha256_of(stacks.path):
        raise UserError(f"{path} is of {said.model.path}, whose bytes are not those of {stacks.path}; {again}")
    return said


def ranked(layer: ScoredLayer, by: By, scores: Path) -> list[int]:
    """A layer's experts, the best or busiest first; those that no token reached last."""
    worth: Sequence[float | None] = layer.tokens
    if by == "score":
        if layer.score is None:
            raise UserError(f"{scores} has loads and no scores; run `breakeven experts score`, or give --by load")
        worth = layer.score

    def key(expert: int) -> tuple[bool, float, int]:
        value = worth[expert]
        unseen = value is None or layer.tokens[expert] == 0
        return unseen, -(value or 0.0), expert

    return sorted(range(len(layer.tokens)), key=key)


def _best(rank: Sequence[int], keep: int, groups: int) -> list[int]:
    """The first `keep` of a ranking, as many of each group, in their old order."""
    size = len(rank) // groups
    kept: list[int] = []
    for group in range(groups):
        kept += sorted([expert for expert in rank if expert // size == group][: keep // groups])
    return kept


def _losses(said: ExpertScores, places: Places) -> list[str]:
    """What the scores warn of: experts dropped that one language needs, and those that no token reached."""
    caveats = []
    dropped = {layer.layer: set(range(said.n_experts)) - set(places[layer.layer]) for layer in said.layers}
    for finding in said.findings:
        if finding.kind == "one language" and finding.expert in dropped.get(finding.layer, set()):
            caveats.append(f"layer {finding.layer} loses expert {finding.expert}, which {finding.language} needs")
    unseen = sum(layer.tokens[expert] == 0 for layer in said.layers for expert in dropped[layer.layer])
    if unseen:
        caveats.append(
            f"{unseen} of the experts dropped saw no token of the text they were scored on, so what they are worth is "
            "not known; more text, or other languages, would tell"
        )
    return caveats


def _check_bytes(stacks: Stacks, made: Path, places: Places, skipped: set[str]) -> None:
    """Read back what was written and remove it where it is not what was meant."""
    wrong = differing(stacks, made, places, skipped)
    if wrong is not None:
        made.unlink(missing_ok=True)
        raise UserError(
            f"{wrong} read back from {made.name} is not what was written; the disk or its memory is at fault"
        )


def _check_alternatives(stacks: Stacks, what: str) -> None:
    """Raise NotSupportedError for experts in groups, and for those of a split, which are parts and no alternatives."""
    if stacks.unweighted():
        raise NotSupportedError(
            f"{stacks.path.name}: its router says nothing, so its experts are parts of one feed-forward, which cannot "
            f"be {what}"
        )
    if stacks.facts.n_groups > 1:
        raise NotSupportedError(
            f"{stacks.path.name} has experts in {stacks.facts.n_groups} groups of equal size, which cannot be {what}; "
            "prune and order keep groups"
        )


def _check_there(stacks: Stacks, experts: Sequence[int] | Mapping[int, int], option: str) -> None:
    strange = [expert for expert in experts if not 0 <= expert < stacks.n_experts]
    if strange:
        raise UserError(f"{option}: there is no expert {strange[0]}; give numbers from 0 to {stacks.n_experts - 1}")


def _listed(stacks: Stacks, places: Places) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(places[block]) for block in stacks.blocks)
