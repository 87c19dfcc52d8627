"""Which row of the shared block belongs to which name, fixed for one generation of a plan."""

from __future__ import annotations

import msgspec


class Rows(msgspec.Struct, frozen=True):
    """Row by name. The empty key is everybody's where no key is asked."""

    backends: dict[str, int]
    keys: dict[str, int]
    models: dict[str, int]
    experiments: dict[str, int]
