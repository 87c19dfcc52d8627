"""A configuration with its name and source, so that every complaint can say where it looked.

A Hugging Face `config.json` names one fact in several ways; `Config` finds it under any of them, or raises an error
that names the fact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from breakeven.errors import UserError
from breakeven.model.readers.bounded import MOST_LAYERS, MOST_WHOLE, shown

MOST_NUMBER = 1e100

HELP = "see docs/models-yaml.md to describe the model by hand"

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_top_k")
EXPERT_WIDTH = ("moe_intermediate_size", "expert_intermediate_size")
CONTEXT = ("max_position_embeddings", "n_positions", "model_max_length")


class Config:
    """A configuration with its name and source, so that every complaint can say where it looked.

    Multimodal models keep the language model under `text_config`; that part is read, with the outer values
    filling what it leaves out.
    """

    def __init__(self, values: Mapping[str, object], name: str, source: str) -> None:
        nested = values.get("text_config")
        self.values: Mapping[str, object] = {**values, **nested} if isinstance(nested, Mapping) else values
        self.name = name
        self.source = source

    def has(self, *keys: str) -> bool:
        """True when any of `keys` is there and not null."""
        return any(self.values.get(key) is not None for key in keys)

    def whole(self, *keys: str) -> int:
        """The first of `keys` as a positive whole number; raises UserError when none is there or it is not one."""
        for key in keys:
            if self.values.get(key) is not None:
                return self._whole(key)
        others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
        raise UserError(f"{self.source}: {self.name} does not say {keys[0]}{others}; add it, or {HELP}")

    def whole_or(self, default: int, *keys: str) -> int:
        """As `whole`, but `default` when none is there; zero is allowed."""
        return next((self._whole(key, least=0) for key in keys if self.values.get(key) is not None), default)

    def number_or(self, default: float, *keys: str) -> float:
        """The first of `keys` as a number."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            # Neither infinite nor not a number, which JSON in Python's dialect may say.
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST_NUMBER:
                raise self._wrong(key, "a number")
            return float(value)
        return default

    def flag_or(self, default: bool, *keys: str) -> bool:
        """The first of `keys` as true or false."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, bool):
                raise self._wrong(key, "true or false")
            return value
        return default

    def text_or(self, default: str, key: str) -> str:
        """`key` as a string."""
        value = self.values.get(key)
        return value if isinstance(value, str) else default

    def list_of(self, key: str) -> Sequence[object] | None:
        """`key` as a list, None when absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return cast(Sequence[object], value)

    def kinds(self, count: int) -> list[str] | None:
        """`layer_types`, one kind a layer; None when absent."""
        listed = self.list_of("layer_types")
        if listed is None:
            return None
        if len(listed) != count:
            raise UserError(
                f"{self.source}: {self.name}: layer_types names {len(listed)} layers, num_hidden_layers says {count}; "
                "one of them must change"
            )
        return [str(kind) for kind in listed]

    def rope_base(self, default: float) -> float:
        """`rope_theta`, which newer configurations keep inside `rope_parameters`."""
        inside = self.values.get("rope_parameters")
        if not self.has("rope_theta") and isinstance(inside, Mapping):
            theta = inside.get("rope_theta")
            return float(theta) if isinstance(theta, int | float) and 0 < theta < MOST_NUMBER else default
        return self.number_or(default, "rope_theta")

    def _whole(self, key: str, least: int = 1) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, "a positive whole number" if least else "a whole number, zero or more")
        most = MOST_LAYERS if "layer" in key else MOST_WHOLE
        if value > most:
            raise self._wrong(key, f"at most {most:,}")
        return value

    def _wrong(self, key: str, right: str) -> UserError:
        return UserError(f"{self.source}: {self.name}: {key} is {shown(self.values[key])}, it must be {right}")
