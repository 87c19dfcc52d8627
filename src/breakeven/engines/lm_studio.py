"""LM Studio, through its HTTP API: a model that it has, or a GGUF linked into its models folder for the time of a run.

Its API lists, loads and unloads; it imports nothing. A file in the folder PUBLISHER/MODEL is how it comes to know one.
Requests, answers and the layout of the folder: developer documentation of LM Studio 0.4, `/api/v1`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breakeven.engines.backend import LM_STUDIO, Backend, check_in_clear
from breakeven.engines.borrowed import LOAD_TIMEOUT_S, MARK, BorrowedEngine, RefusedError, refuse_placement
from breakeven.errors import EngineError, UserError, expanded
from breakeven.hardware.placement import AUTO, Placement

VARIABLE = "BREAKEVEN_LMSTUDIO"
"""Environment variable that may name its address."""
FOLDER = "BREAKEVEN_LMSTUDIO_MODELS"
"""Environment variable that may name its models folder."""
KEY = "LM_API_TOKEN"
"""Environment variable that holds its token, where it wants one: the name its documentation gives it."""
ADDRESS = "http://127.0.0.1:1234"
NOTICE_TIMEOUT_S = 30.0
"""How long it may take to notice a new file."""

LEAST_CONTEXT = 512
"""Below, the texts that find out how long a token is would not fit."""

_POLL_S = 0.5


def models_folder() -> Path:
    """Where it looks for models: as BREAKEVEN_LMSTUDIO_MODELS says, as its settings do, else its usual place."""
    if named := os.environ.get(FOLDER):
        return expanded(named)
    home = expanded("~") / ".lmstudio"
    with contextlib.suppress(OSError):  # it writes down where its home is, where that was moved
        home = Path((expanded("~") / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip() or home)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told = json.loads((home / "settings.json").read_text(encoding="utf-8")).get("downloadsFolder")
        if isinstance(told, str) and told:
            return Path(told)
    return home / "models"


def refuse(placement: Placement) -> None:
    """Raise UserError for an option of a placement: its API has none."""
    instead = "its HTTP API leaves that to its own settings; leave it out, or use llama.cpp"
    refuse_placement(placement, "LM Studio", instead)


class LmStudioModel(BorrowedEngine):
    """Context manager: links `gguf` into LM Studio's folder, has it loaded, gives its `Backend`, takes it out after.

    `context` is tokens a sequence; `tokenizer`: a file that counts its tokens. How many sequences it serves at once and
    what lies on the GPU it settles itself.

    Raises UserError when it does not run, does not notice the file, or has no setting for `placement`; EngineError when
    it refuses the model.
    """

    title = "LM Studio"
    how_to_start = f"start its server (`lms server start`, or the Developer tab), or name its address in {VARIABLE}"
    kept_by = "lm-studio"

    def __init__(
        self,
        gguf: Path,
        *,
        context: int,
        slots: int,
        log: Path,
        name: str | None = None,
        tokenizer: Path | None = None,
        placement: Placement = AUTO,
        notice_timeout_s: float = NOTICE_TIMEOUT_S,
    ) -> None:
        token = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        address = os.environ.get(VARIABLE, ADDRESS).rstrip("/").removesuffix("/v1")
        if token:
            check_in_clear(address, KEY)
        super().__init__(address, name or gguf.stem, log, headers)
        refuse(placement)
        self.gguf, self.context = gguf, max(context, LEAST_CONTEXT)
        self._slots, self._notice_timeout_s, self._tokenizer = slots, notice_timeout_s, tokenizer
        self._key = KEY if token else None

    def _alive(self) -> None:
        self.ask("/api/v1/models")

    def _bring_up(self) -> Backend:
        if not self.gguf.is_file():
            raise UserError(f"{self.gguf} does not exist or is not a file; give the path of a GGUF file")
        try:
            self._models()
        except RefusedError as error:
            if error.status in (401, 403):
                raise UserError(f"LM Studio wants its API token; put it into {KEY}") from None
            raise UserError(f"LM Studio at {self.address} has no /api/v1; update it to 0.4 or newer") from None
        self.clean_up()
        folder = models_folder()
        if not folder.is_dir():
            raise UserError(f"LM Studio's models are not in {folder}; name their folder in {FOLDER}")
        place = folder / MARK / self.temporary_name()
        self.write_down({"folder": str(place)})
        self._link(place)
        key = self._noticed(place)
        began = time.monotonic()
        asked = {"model": key, "context_length": self.context, "echo_load_config": True}
        loaded = self.ask("/api/v1/models/load", asked, timeout_s=LOAD_TIMEOUT_S)
        told = loaded.get("load_time_seconds")
        load_s = float(told) if isinstance(told, int | float) else time.monotonic() - began
        served = str(loaded.get("instance_id", key))
        self.write_down({"folder": str(place), "instance": served})
        self._complete_one(self.address, model=served, prompt="a b c", headers=self._headers)
        config = loaded.get("load_config")
        settings = {
            "engine": LM_STUDIO,
            "build": "lmstudio (its API tells no version)",
            "served_model": served,
            "slots": f"its own, {self._slots} wanted",
            "context_per_slot": str(self.context),
            **({"tokenizer": str(self._tokenizer)} if self._tokenizer else {}),
            "prompt_cache": "its own, always on",
            **({str(key): str(value) for key, value in config.items()} if isinstance(config, dict) else {}),
        }
        return Backend(self.address, self.name, self._key, settings, None, load_s)

    def _models(self) -> list[dict[str, Any]]:
        found = self.ask("/api/v1/models").get("models")
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    def _link(self, place: Path) -> None:
        """A link to the file, or a hard one where links are not allowed: it is never copied."""
        target = place / f"{place.name}.gguf"
        try:
            place.mkdir(parents=True)
            try:
                target.symlink_to(self.gguf.resolve())
            except OSError:
                target.hardlink_to(self.gguf.resolve())
        except OSError as error:
            raise UserError(
                f"cannot link {self.gguf} into {place}: {error.strerror}; name a folder in {FOLDER}"
            ) from error

    def _noticed(self, place: Path) -> str:
        """The key under which it lists the new file."""
        until = time.monotonic() + self._notice_timeout_s
        while True:
            for row in self._listed(place):
                return str(row["key"])
            if time.monotonic() > until:
                raise UserError(
                    f"LM Studio did not notice the file in {place.parent.parent}; if its models are elsewhere name "
                    f"that folder in {FOLDER}, or run `lms import {self.gguf}` and give {self.address}/v1#KEY"
                )
            time.sleep(_POLL_S)

    def _take_out(self, facts: Mapping[str, str]) -> None:
        place, left = Path(facts["folder"]), None
        try:
            # It may have been loaded without our having been told.
            known = [facts["instance"]] if "instance" in facts else []
            for instance in known or [str(i.get("id")) for row in self._listed(place) for i in row["loaded_instances"]]:
                self._unload(instance)
        except (KeyError, TypeError, AttributeError):
            pass
        except (EngineError, UserError) as error:
            left = error
        try:
            for file in place.glob("*.gguf"):
                file.unlink()
            if place.is_dir():
                place.rmdir()
        except OSError as error:
            raise EngineError(f"cannot remove {place}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # others may be in it
            place.parent.rmdir()
        if isinstance(left, RefusedError):  # where nobody runs, nothing is loaded
            raise left

    def _listed(self, place: Path) -> list[dict[str, Any]]:
        """What it lists that comes from our folder: it makes its keys of the names, and ours ends like no other."""
        own = place.name.rpartition("-")[2]
        return [row for row in self._models() if own in str(row.get("key"))]

    def _unload(self, instance: str) -> None:
        try:
            self.ask("/api/v1/models/unload", {"instance_id": instance})
        except RefusedError as error:
            if error.status not in (400, 404):
                raise
