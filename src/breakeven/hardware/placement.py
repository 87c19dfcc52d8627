"""Which weights and caches lie where: as a person asks for it, and as it came to be.

The words are llama.cpp's: layers on the devices (`-ngl`), routed experts of the first layers in host memory
(`--n-cpu-moe`), devices by the names that the engine lists them under, shares of the layers by device, and tensors by
pattern (`-ot`).
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from breakeven.errors import UserError

HOST = "host"
"""The place that is no device: memory that the CPU reads."""


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked for. `auto`: as the engine's own fitting chooses for the memory it finds free.

    `gpu_layers` counts the output head as llama.cpp does; "all" leaves none to the CPU. `cpu_moe`: routed experts of
    the first layers that stay in host memory; None: none of them, or what the fitting chooses. `devices`: empty for all
    that the engine lists. `tensor_split`: shares of the layers by device, in their order; empty: as their free memory.
    `overrides`: "PATTERN=PLACE" for tensors whose names match.
    """

    gpu_layers: int | Literal["auto", "all"] = "auto"
    cpu_moe: int | Literal["auto"] | None = None
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def fitted(self) -> bool:
        """Whether the engine's own fitting is left to choose."""
        return self.cpu_moe == "auto" or (self.gpu_layers == "auto" and self.cpu_moe is None and not self.overrides)

    def words(self) -> str:
        """In a few words, as a table's row or a setting says it."""
        parts = [f"{self.gpu_layers} layers on the GPU" if self.gpu_layers != "auto" else "layers as they fit"]
        if self.cpu_moe is not None:
            experts = "as they fit" if self.cpu_moe == "auto" else f"of {self.cpu_moe} layers"
            parts.append(f"experts {experts} in host memory")
        if self.devices:
            parts.append(f"on {', '.join(self.devices)}")
        return ", ".join(parts)


AUTO = Placement()


class MemoryAt(msgspec.Struct, frozen=True, kw_only=True):
    """What one place holds of a loaded model, in bytes. None: the engine did not say."""

    place: str
    """A device as the engine names it, or "host"."""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    """Keys, values and states."""
    compute_bytes: int | None = None
    held_bytes: int | None = None
    """All three together, where it tells no more than that."""
    peak_bytes: int | None = None
    """The most that its counter showed in use while it was measured, whoever used it."""
    total_bytes: int | None = None
    """Memory of the place."""


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model lies. `how` "asked": as told; "fitted": as the engine chose; "predicted": as we expect it to.

    `gpu_layers` of `layers`, the output head counted as one; `cpu_moe` layers have routed experts in host memory,
    whole or in part. None: not known.
    """

    how: Literal["asked", "fitted", "predicted"]
    gpu_layers: int | None = None
    layers: int | None = None
    cpu_moe: int | None = None
    memory: list[MemoryAt] = []

    def words(self) -> str:
        """In a few words, such as "25/25 layers on the GPU, experts of 12 in host memory"."""
        if self.gpu_layers is None:
            held = {at.place: at.held_bytes for at in self.memory if at.held_bytes is not None}
            if not held or not sum(held.values()):
                return "placement not available"
            on_device = sum(size for place, size in held.items() if place != HOST)
            return f"{on_device / sum(held.values()):.0%} of its memory on the GPU"
        if self.gpu_layers == 0:
            return "on the CPU"
        of = "" if self.layers is None else f"/{self.layers}"
        experts = f", experts of {self.cpu_moe} in host memory" if self.cpu_moe else ""
        return f"{self.gpu_layers}{of} layers on the GPU{experts}"


def placement_of(
    gpu_layers: str | int | None = None,
    cpu_moe: str | int | None = None,
    device: str | None = None,
    tensor_split: str | None = None,
    overrides: tuple[str, ...] = (),
) -> Placement:
    """A placement from what people type: `auto|all|N`, `auto|N`, `CUDA0,CUDA1`, `3,1`, `PATTERN=PLACE`.

    Raises UserError that names the option.
    """
    return Placement(
        gpu_layers=_layers(gpu_layers),
        cpu_moe=_experts(cpu_moe),
        devices=tuple(part.strip() for part in (device or "").split(",") if part.strip()),
        tensor_split=_shares(tensor_split),
        overrides=_patterns(overrides),
    )


def _layers(given: str | int | None) -> int | Literal["auto", "all"]:
    text = "auto" if given is None else str(given).strip().lower()
    if text == "auto":
        return "auto"
    if text == "all":
        return "all"
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"--gpu-layers {given}: give auto, all, or how many layers, such as 20")
    return int(text)


def _experts(given: str | int | None) -> int | Literal["auto"] | None:
    if given is None:
        return None
    text = str(given).strip().lower()
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"--cpu-moe {given}: give auto, or of how many layers the experts stay in host memory")
    return int(text)


def _shares(given: str | None) -> tuple[float, ...]:
    if not given:
        return ()
    try:
        shares = tuple(float(part) for part in re.split(r"[,/]", given))
    except ValueError:
        shares = ()
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise UserError(f"--tensor-split {given}: give a share for each device, such as 3,1")
    return shares


def _patterns(given: tuple[str, ...]) -> tuple[str, ...]:
    for text in given:
        pattern, _, place = text.rpartition("=")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--override-tensor {text}: {pattern!r} is no pattern ({error})") from None
        if not pattern or not place:
            raise UserError(f"--override-tensor {text}: give PATTERN=PLACE, such as exps=CPU")
    return tuple(given)


WORDS = {"gpu-layers": "gpu_layers", "cpu-moe": "cpu_moe", "device": "device", "tensor-split": "tensor_split"}
"""What may stand behind `MODEL@`, and the argument of `placement_of` that it gives."""


def split_served(text: str) -> tuple[str, str | None, dict[str, str]]:
    """`MODEL@ENGINE,KEY=VALUE,...` as the model, the engine and arguments of `placement_of`; all but MODEL may lack.

    A list within a value is joined by `+` or `/`, because a comma parts the words: `device=CUDA0+CUDA1`,
    `tensor-split=3/1`. Raises UserError for a word that is neither.
    """
    head, _, tail = text.rpartition("@")
    if not head or "/" in tail.partition("=")[0] or "\\" in tail:
        return text, None, {}
    engine: str | None = None
    found: dict[str, str] = {}
    for word in tail.split(","):
        key, equals, value = (part.strip() for part in word.partition("="))
        if equals and key in WORDS and value:
            found[WORDS[key]] = value.replace("+", ",")
        elif not equals and key and engine is None:
            engine = key
        else:
            keys = ", ".join(f"{known}=" for known in WORDS)
            raise UserError(f"{text}: {word!r} is no engine and none of {keys}; write such as {head}@cpu-moe=12")
    placement_of(**found)  # type: ignore[arg-type]  # a value that cannot be is refused here
    return head, engine, found
