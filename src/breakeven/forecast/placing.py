"""Which weights and caches llama.cpp puts where, foretold from shapes: as it is told to, or as its own fitting chooses.

`place` follows src/llama-model.cpp (which layers go to which device) and common/fit.cpp (`--fit`): whole layers from
the back, a mixture's routed experts in host memory; then, where everything else fits, whole layers from the front for
as long as they fit, and a part of one more. What it weighs by is memory alone, so a prediction is as good as the bytes.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from breakeven.errors import UserError
from breakeven.forecast.fitting import EXPERTS, Take, Told, dense_from_the_back, plan_of, whole_from_the_front
from breakeven.hardware.placement import AUTO, HOST, MemoryAt, Placed, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import attends, loaded, state_bytes
from breakeven.model.formats.named import format_named, kv_element_bytes, tensor_bytes, tensor_types
from breakeven.model.reserved import (
    PlacedShapes,
    Streamed,
    cells,
    compute_bytes,
    device_compute_bytes,
    host_compute_bytes,
    output_bytes,
)
from breakeven.model.tensors import TensorGroup, tensors

MARGIN_BYTES = 2**30
"""What llama.cpp's own fitting leaves free on a device (common/common.h: fit_params_target, 1024 MiB)."""
HOST_NAMES = ("cpu", "host")
_INPUT = re.compile(r"token_embd|token_types|position_embd|per_layer_token_embd")
"""Tables that are read by row stay in host memory, however many layers are asked for."""


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """A device and the bytes that are free on it, in the order the engine lists them. `unified`: host memory's own.

    `largest_bytes`: of one tensor, where the device sets a limit (Vulkan's maxStorageBufferRange); others stay behind.
    """

    place: str
    free_bytes: float
    unified: bool = False
    largest_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """The tensors of one group and layer that lie in one place. `layer` None: of no block.

    `copy`: a second copy, as of a tied head on a device while the embedding stays in host memory.
    """

    layer: int | None
    group: TensorGroup
    place: str
    n_bytes: int
    copy: bool = False


@dataclass(frozen=True, slots=True)
class PlaceBytes:
    """What one place holds, in bytes. `kv`: keys, values and states; `output`: the copy of logits in host memory."""

    weights: float = 0.0
    kv: float = 0.0
    compute: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.kv + self.compute + self.output


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """Where a model lies. `gpu_layers` of `layers`, the output head counted as one.

    `cpu_moe`: layers with routed experts in host memory, whole or in part. `fitted`: the engine's fitting chose.
    `memory`: by place, host memory last. `parts`: every weight, once, and copies. `layer_places`: where a block's keys,
    values and state lie, and its work is done. `rules`: `-ot` patterns that hold, in order.
    """

    fitted: bool
    gpu_layers: int
    layers: int
    cpu_moe: int
    memory: Mapping[str, PlaceBytes]
    parts: tuple[PlacedPart, ...]
    layer_places: tuple[str, ...]
    head_place: str
    kv_by_layer: tuple[float, ...]
    layers_by_device: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[str, ...] = ()

    def weight_bytes(self, place: str, *groups: TensorGroup, layer: int | None = None) -> int:
        """Bytes of weights in a place: of these groups (none: all), of this layer (None: all)."""
        return sum(
            part.n_bytes
            for part in self.parts
            if part.place == place and (not groups or part.group in groups) and (layer is None or part.layer == layer)
        )

    def placed(self) -> Placed:
        """In the words that results are written in."""
        memory = [
            MemoryAt(
                place=place,
                weights_bytes=round(at.weights),
                kv_bytes=round(at.kv),
                compute_bytes=round(at.compute + at.output),
            )
            for place, at in self.memory.items()
        ]
        return Placed(
            how="predicted", gpu_layers=self.gpu_layers, layers=self.layers, cpu_moe=self.cpu_moe, memory=memory
        )


def place(
    spec: ModelSpec,
    format_name: str,
    devices: Sequence[DeviceRoom],
    *,
    context: float,
    slots: float = 1,
    placement: Placement = AUTO,
    kv: str = "f16",
    every_logit: bool = False,
    margin_bytes: float = MARGIN_BYTES,
) -> PlacedModel:
    """Where llama.cpp puts a model that serves `slots` sequences of `context` tokens on these devices.

    `kv`: type of keys and values; `every_logit`: as in `compute_bytes`; `margin_bytes`: left free on each device by the
    fitting. It asks of no device or host memory whether it is large enough: see `lacking`. Raises UserError for a
    device that is not among `devices`, and for an unknown format.
    """
    chosen = _chosen(devices, placement)
    sizes = _Sizes(spec, format_named(format_name).name, context, slots, kv, every_logit)
    layers = sizes.layers + 1
    asked = layers if isinstance(placement.gpu_layers, str) or placement.fitted else placement.gpu_layers
    plan = Told(
        gpu_layers=min(asked, layers) if chosen else 0,
        shares=_shares(chosen, placement),
        rules=_rules(sizes, chosen, placement),
    )
    fitted = placement.fitted and bool(chosen)
    if fitted:
        plan = _fitted(sizes, chosen, plan, margin_bytes, may_change=not (placement.tensor_split and len(chosen) > 1))
    return sizes.placed(plan, chosen, fitted)


def lacking(placed: PlacedModel, devices: Sequence[DeviceRoom], host_bytes: float | None) -> str | None:
    """What is too small for it, with the numbers, such as "needs 61.0 GB of RAM beside the card; 32.0 GB are there".

    None: nothing, as far as is known. What overflows host memory is read from the disk for every token.
    """
    said = []
    for device in devices:
        need = placed.memory[device.place].total if device.place in placed.memory else 0.0
        if need > device.free_bytes:
            said.append(f"{_gb(need)} on {device.place}; {_gb(device.free_bytes)} are free")
    shared = sum(placed.memory[d.place].total for d in devices if d.unified and d.place in placed.memory)
    need = placed.memory[HOST].total + shared
    if host_bytes is not None and need > host_bytes:
        beside = "" if shared or not placed.gpu_layers else " beside the card" + ("s" if len(devices) > 1 else "")
        said.append(f"{_gb(need)} of RAM{beside}; {_gb(host_bytes)} are there")
    return f"needs {', and '.join(said)}" if said else None


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    layer: int | None
    group: TensorGroup
    n_bytes: int


@lru_cache(maxsize=32)
def _weights(spec: ModelSpec, format_name: str) -> tuple[_Weight, ...]:
    held = loaded(spec)
    kinds = tensor_types(held, format_name)
    return tuple(_Weight(t.name, t.layer, t.group, tensor_bytes(t, kinds[t.name])) for t in tensors(held))


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class _Sizes:
    """Bytes of a model's tensors, caches and buffers, and where a plan puts them."""

    def __init__(
        self, spec: ModelSpec, format_name: str, context: float, slots: float, kv: str, every_logit: bool
    ) -> None:
        self.spec, self.context, self.slots, self.every_logit = spec, context, slots, every_logit
        self.weights = _weights(spec, format_name)
        self.layers = max([len(spec.layers), *(w.layer + 1 for w in self.weights if w.layer is not None)])
        self.routed = any(w.group is TensorGroup.ROUTED_EXPERTS for w in self.weights)
        self.tied = not any(w.name.startswith("output.weight") for w in self.weights)
        element = kv_element_bytes(kv)
        self.kv = tuple(
            slots
            * (
                element * sum(a.elements * cells(context, a.window) / a.every for a in attends(layer))
                + state_bytes(replace(spec, layers=(layer,)))
            )
            for layer in spec.layers
        )

    def by_layer(self, plan: Told, devices: Sequence[DeviceRoom]) -> list[str]:
        """The place of each block, and of the output head behind them."""
        blocks = self.layers + 1
        start, total = blocks - plan.gpu_layers, sum(plan.shares)
        ends = [sum(plan.shares[: i + 1]) / total for i in range(len(plan.shares))] if total else []
        found = []
        for i in range(blocks):
            on = bisect.bisect_right(ends, (i - start) / plan.gpu_layers) if i >= start and ends else -1
            found.append(devices[on].place if 0 <= on < len(devices) else HOST)
        return found

    def placed(self, plan: Told, devices: Sequence[DeviceRoom], fitted: bool) -> PlacedModel:
        """Everything where the plan puts it."""
        *blocks, head = self.by_layer(plan, devices)
        held: dict[tuple[int | None, TensorGroup, str, bool], int] = {}
        away: dict[int, Streamed] = {}
        limits = {d.place: d.largest_bytes for d in devices if d.largest_bytes is not None}
        for weight in self.weights:
            layer = weight.layer
            default = blocks[layer] if layer is not None else HOST if _INPUT.match(weight.name) else head
            where = next(
                (
                    to
                    for only, pattern, to in plan.rules
                    if (only is None or only == layer) and _matcher(pattern).search(weight.name)
                ),
                HOST if weight.n_bytes > limits.get(default, math.inf) else default,
            )
            key = (layer, weight.group, where, False)
            held[key] = held.get(key, 0) + weight.n_bytes
            tied = weight.name == "token_embd.weight" and self.tied and HOST == where != head
            if tied and weight.n_bytes <= limits.get(head, math.inf):
                held[(None, weight.group, head, True)] = weight.n_bytes
            elif where == HOST and layer is not None and layer < len(self.spec.layers):
                away[layer] = _lent(away.get(layer, Streamed(layer)), weight)
        parts = tuple(PlacedPart(layer, group, at, n, copy) for (layer, group, at, copy), n in held.items())
        experts_away = {p.layer for p in parts if p.group is TensorGroup.ROUTED_EXPERTS and p.place == HOST}
        return PlacedModel(
            fitted=fitted,
            gpu_layers=plan.gpu_layers,
            layers=self.layers + 1,
            cpu_moe=len(experts_away),
            memory=self._memory(parts, blocks, head, devices, tuple(away.values())),
            parts=parts,
            layer_places=tuple(blocks),
            head_place=head,
            kv_by_layer=self.kv,
            layers_by_device={d.place: [*blocks, head].count(d.place) for d in devices},
            rules=tuple(f"{pattern}={to}" for _, pattern, to in plan.rules),
        )

    def _memory(
        self,
        parts: Sequence[PlacedPart],
        blocks: Sequence[str],
        head: str,
        devices: Sequence[DeviceRoom],
        away: tuple[Streamed, ...],
    ) -> dict[str, PlaceBytes]:
        weights: dict[str, float] = {}
        for part in parts:
            weights[part.place] = weights.get(part.place, 0.0) + part.n_bytes
        caches: dict[str, float] = {}
        for at, nbytes in zip(blocks, self.kv, strict=False):
            caches[at] = caches.get(at, 0.0) + nbytes
        found = {}
        own = blocks[: len(self.spec.layers)]
        away = tuple(replace(a, cache=self.kv[a.layer] if own[a.layer] == HOST else 0.0) for a in away)
        for i, device in enumerate(devices):
            layers = tuple(j for j, at in enumerate(own) if at == device.place)
            # Prompts are multiplied by weights in host memory on the first device.
            lent = away if i == 0 else ()
            shapes = PlacedShapes(layers, head == device.place, lent)
            compute = device_compute_bytes(self.spec, shapes, self.context, self.slots, every_logit=self.every_logit)
            found[device.place] = PlaceBytes(weights.get(device.place, 0.0), caches.get(device.place, 0.0), compute)
        compute = (
            host_compute_bytes(self.spec, self.context, self.slots)
            if devices
            else compute_bytes(self.spec, self.context, self.slots, gpu=False, every_logit=self.every_logit)
        )
        output = output_bytes(self.spec, self.slots)
        found[HOST] = PlaceBytes(weights.get(HOST, 0.0), caches.get(HOST, 0.0), compute, output)
        return found


def _lent(so_far: Streamed, weight: _Weight) -> Streamed:
    """What a layer has in host memory, with one more of its tensors."""
    stem = weight.name.split(".", 2)[-1]
    kind = "out" if stem.startswith("ffn_down") else "into" if stem.startswith("ffn_") else "beside"
    return replace(so_far, **{kind: max(getattr(so_far, kind), weight.n_bytes)})


def _chosen(devices: Sequence[DeviceRoom], placement: Placement) -> tuple[DeviceRoom, ...]:
    """The devices that are asked for, in the order they are named."""
    known = {device.place.lower(): device for device in devices}
    wanted = [name for name in placement.devices if name.lower() != "none"]
    for name in wanted:
        if name.lower() not in known:
            there = ", ".join(d.place for d in devices) or "none"
            raise UserError(f"--device {name}: no such device; there: {there}")
    if placement.devices:
        return tuple(known[name.lower()] for name in wanted)
    return tuple(devices)


def _shares(devices: Sequence[DeviceRoom], placement: Placement) -> tuple[float, ...]:
    """Shares of the layers by device: as told, else as free memory."""
    told = placement.tensor_split
    if not told or not devices:
        return tuple(max(d.free_bytes, 1.0) for d in devices)
    if len(told) > len(devices):
        raise UserError(
            f"--tensor-split names {len(told)} shares and there are {len(devices)} devices; give one for each"
        )
    shares = (*told, *[0.0] * (len(devices) - len(told)))
    if not sum(shares):
        raise UserError("--tensor-split: the shares add up to nothing; give at least one above 0, such as 3,1")
    return shares


def _rules(sizes: _Sizes, devices: Sequence[DeviceRoom], placement: Placement) -> tuple[tuple[None, str, str], ...]:
    places = {d.place.lower(): d.place for d in devices} | dict.fromkeys(HOST_NAMES, HOST)
    rules: list[tuple[None, str, str]] = []
    for text in placement.overrides:
        pattern, _, to = text.rpartition("=")
        if to.lower() not in places:
            raise UserError(f"--override-tensor {text}: no place is called {to}; there: CPU, {', '.join(places)}")
        rules.append((None, pattern, places[to.lower()]))
    if isinstance(placement.cpu_moe, int):
        rules += [(None, rf"blk\.{i}\.{EXPERTS}", HOST) for i in range(min(placement.cpu_moe, sizes.layers))]
    return tuple(rules)


def _fitted(sizes: _Sizes, devices: Sequence[DeviceRoom], plan: Told, margin_bytes: float, *, may_change: bool) -> Told:
    """What common/fit.cpp chooses: `plan`, which puts all on the devices, where that leaves the margins."""
    targets = [d.free_bytes - margin_bytes for d in devices]

    def needs(one: Told) -> list[float]:
        memory = sizes.placed(one, devices, fitted=True).memory
        return [memory[d.place].total for d in devices]

    if all(need <= target for need, target in zip(needs(plan), targets, strict=True)) or not may_change:
        return plan

    def taken(takes: Sequence[Take]) -> Told:
        return plan_of(takes, sizes.layers + 1, [d.place for d in devices])

    takes = dense_from_the_back(sizes.layers + 1, targets, sizes.routed, lambda some: needs(taken(some)))
    if sizes.routed and sum(targets) > sum(needs(replace(plan, rules=((None, EXPERTS, HOST),)))):
        takes = whole_from_the_front(takes, targets, lambda some: needs(taken(some)))
    return taken(takes)


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"
