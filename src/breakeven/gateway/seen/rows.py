"""Where the names of a plan stand in the shared block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Rows(Protocol):
    """Row by name, as `Slots.name` gives them: backends, keys, public models, experiments."""

    @property
    def backends(self) -> Mapping[str, int]: ...

    @property
    def keys(self) -> Mapping[str, int]: ...

    @property
    def models(self) -> Mapping[str, int]: ...

    @property
    def experiments(self) -> Mapping[str, int]: ...
