"""Which format each tensor takes when a GGUF is quantized, what that makes of the file, and what is refused.

Matrices take the format asked for. The embedding and the output matrix, through which every token goes, are kept at 8
bits; routers, norms, biases and small convolutions stay as they are. A matrix whose rows are no whole blocks takes a
format of blocks of 32 instead, which can make a "2-bit" file of 5 bits: so sizes are known before the first byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from breakeven.errors import UserError
from breakeven.lab.bits.ggml import WeightType
from breakeven.lab.bits.importance import FEWEST_TOKENS, Importance
from breakeven.lab.surgery.container import DenseFile, SourceTensor
from breakeven.model.formats.gguf import category, takes_format
from breakeven.model.formats.mixtures import Category
from breakeven.model.readers.gguf_file import bare_name
from breakeven.results.lab import Substituted

HIGH = "Q8_0"
"""What the embedding and the output matrix take: every token passes them, and the likeliest are told apart there."""
NARROW = "IQ4_NL"
NARROWER: Mapping[str, str] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Formats of blocks of 32 for rows that are no whole blocks of 256, as llama.cpp chooses them; NARROW for all others.

For 2 and 3 bits llama.cpp takes Q4_0 since 2026, which has as many bits as IQ4_NL and a larger error.
"""
WITHOUT_IMPORTANCE = "Q2_K"
"""Of nearly as few bits as the formats that cannot do without importance."""
MOST_EXCESS = 1.15
"""Bits made over bits asked beyond which a file is refused, unless --allow-fallback says otherwise."""
_NAMED_EXPERTS = 6


@dataclass(slots=True)
class FormatPlan:
    """What one file will be: the type of every tensor, and which could not have what was asked."""

    asked: WeightType
    kinds: dict[str, WeightType | None]
    """By tensor; None: its bytes are copied."""
    n_bytes: int
    bits: float
    bits_asked: float
    """Had every matrix taken the format asked for."""
    substituted: list[Substituted] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The format's name, with the bits a weight that were made where some tensors took another."""
        return f"{self.asked.name} ({self.bits:.2f})" if self.substituted else self.asked.name

    def file_name(self, source: DenseFile) -> str:
        """`model-Q4_K.gguf`, `model-Q2_K-4.98bpw.gguf`."""
        bits = f"-{self.bits:.2f}bpw" if self.substituted else ""
        return f"{bare_name(source.header)}-{self.asked.name}{bits}.gguf"


def known(types: Mapping[str, WeightType], name: str) -> WeightType:
    """The format of this name, in any case; raises UserError with the list of those there are."""
    kind = types.get(name.strip().upper())
    if kind is not None:
        return kind
    near = get_close_matches(name.strip().upper(), types, n=1, cutoff=0.75)
    hint = f" (did you mean {near[0]}? mixtures of formats are not made)" if near else ""
    raise UserError(f"--to {name.strip() or '?'}: no format that llama.cpp writes{hint}; it knows {', '.join(types)}")


def planned(
    file: DenseFile, asked: WeightType, types: Mapping[str, WeightType], importance: Importance | None = None
) -> FormatPlan:
    """The type of every tensor of `file` for a format. Without importance the shapes alone are looked at."""
    kinds: dict[str, WeightType | None] = {}
    why: dict[tuple[str, str], list[str]] = {}
    n_bytes = asked_bytes = weights = 0
    for tensor in file.tensors:
        own = types.get(tensor.kind.name)
        elements = math.prod(tensor.dims)
        kind, ideal, reason = None, None, ""
        if own is not None and takes_format(tensor.name, tensor.dims[::-1], file.header.architecture):
            if _is_high(tensor.name):
                kind = ideal = _fitting(_high(own, asked, types), tensor, types)[0]
            else:
                ideal, (kind, reason) = asked, _possible(asked, tensor, types, importance)
        if kind is not None and reason:
            why.setdefault((kind.name, reason), []).append(tensor.name)
        # What has the type already keeps its bytes.
        kinds[tensor.name] = None if kind is None or kind is own else kind
        n_bytes += tensor.data.nbytes if kind is None else kind.n_bytes(elements)
        asked_bytes += tensor.data.nbytes if ideal is None else -(-elements * ideal.block_bytes // ideal.block)
        weights += elements
    substituted = [
        Substituted(tensors=each, asked=asked.name, made=made, why=said) for (made, said), each in why.items()
    ]
    plan = FormatPlan(asked, kinds, n_bytes, 8 * n_bytes / weights, 8 * asked_bytes / weights, substituted)
    plan.n_bytes += file.header.data_offset_bytes + file.alignment * len(file.tensors)
    return plan


def _is_high(name: str) -> bool:
    return category(name) in (Category.OUTPUT, Category.TOKEN_EMBEDDING)


def _high(own: WeightType, asked: WeightType, types: Mapping[str, WeightType]) -> WeightType:
    """What the embedding takes: HIGH, what was asked if that is more, what it has if that is less."""
    high = types[HIGH]
    if asked.bits >= high.bits:
        return asked
    return own if own.bits <= high.bits else high


def _possible(
    asked: WeightType, tensor: SourceTensor, types: Mapping[str, WeightType], importance: Importance | None
) -> tuple[WeightType, str]:
    """The type a matrix takes, and why it is not the one asked for."""
    kind, reason = _fitting(asked, tensor, types)
    if not kind.needs_importance or importance is None:
        return kind, reason
    if tensor.name not in importance.tokens:
        reason = "the text never ran it, and the format needs importance"
    elif starved := importance.starved(tensor.name):
        reason = f"experts {listed(starved)} saw fewer than {FEWEST_TOKENS} tokens, and the format needs importance"
    else:
        return kind, reason
    return _fitting(types[WITHOUT_IMPORTANCE], tensor, types)[0], reason


def _fitting(kind: WeightType, tensor: SourceTensor, types: Mapping[str, WeightType]) -> tuple[WeightType, str]:
    columns = tensor.dims[0]
    if columns % kind.block == 0:
        return kind, ""
    narrow = types[NARROWER.get(kind.name, NARROW)]
    made = narrow if columns % narrow.block == 0 else types["F16"]
    return made, f"{columns:,} columns, which {kind.block} does not divide"


def listed(numbers: Sequence[int]) -> str:
    """The first few of some experts' numbers, and how many more there are."""
    shown = ", ".join(str(number) for number in numbers[:_NAMED_EXPERTS])
    return shown + (f" and {len(numbers) - _NAMED_EXPERTS} more" if len(numbers) > _NAMED_EXPERTS else "")


def refuse_excess(plan: FormatPlan, file: DenseFile, types: Mapping[str, WeightType], allowed: bool) -> None:
    """Refuse a file of many more bits than were asked for, saying which matrices made it so and what fits them."""
    if allowed or plan.bits <= MOST_EXCESS * plan.bits_asked:
        return
    dims = {tensor.name: tensor.dims for tensor in file.tensors}
    family = file.header.architecture
    matrices = sum(takes_format(name, each[::-1], family) and not _is_high(name) for name, each in dims.items())
    told = "; ".join(
        f"{len(each.tensors)} of {matrices} have {each.why} ({each.made} instead)" for each in plan.substituted
    )
    columns = {dims[name][0] for each in plan.substituted for name in each.tensors}
    able = [kind.name for kind in types.values() if kind.bits < plan.bits and not any(c % kind.block for c in columns)]
    raise UserError(
        f"{plan.asked.name} asked, {plan.bits:.2f} bits a weight would be made instead of {plan.bits_asked:.2f}: of "
        f"the matrices {told}. --allow-fallback makes it, named {plan.name}; "
        + (f"formats that fit all and are smaller: {', '.join(able)}" if able else "no smaller format fits all")
    )


def refuse_starved(plan: FormatPlan, importance: Importance | None, allowed: bool) -> None:
    """Refuse a format that needs importance where the text did not reach an expert often enough."""
    if allowed or importance is None or not plan.asked.needs_importance:
        return
    starved = {
        each: numbers
        for each in plan.kinds
        if each in importance.tokens and len(importance.tokens[each]) > 1 and (numbers := importance.starved(each))
    }
    if starved:
        told = [f"{each.removesuffix('.weight')}: {listed(numbers)}" for each, numbers in starved.items()][:3]
        raise UserError(
            f"{plan.asked.name} needs importance, and some experts saw fewer than {FEWEST_TOKENS} of "
            f"{importance.text_tokens:,} tokens ({'; '.join(told)}; {len(starved)} stacks in all); give more text with "
            f"--text and --tokens, or --allow-fallback for {WITHOUT_IMPORTANCE} in their place"
        )
