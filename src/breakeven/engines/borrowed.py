"""Engines that run already and are ours for a while: what is put into one is taken out again, whatever happens.

Each thing put in is written down first, one small file in the cache, and the file goes when the thing has gone. So what
a killed run left behind is found and removed at the next start.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import psutil

from breakeven.engines.backend import MemoryUse, open_url
from breakeven.engines.cache import cache_directory
from breakeven.engines.keeper import KeptEngine
from breakeven.engines.source import slug
from breakeven.errors import EngineError, UserError
from breakeven.hardware.placement import Placement

MARK = "breakeven-tmp"
"""How the name begins of everything we put into somebody's engine."""
TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 1800.0


class RefusedError(EngineError):
    """The engine answered with an HTTP error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class BorrowedEngine(KeptEngine):
    """A server that is not ours. `_bring_up` puts a model in, `_take_out` removes it, by what was written down of it.

    Raises UserError from `with` when there is no such server.
    """

    ours = False
    how_to_start: ClassVar[str]
    """What to do when it does not run."""
    kept_by: ClassVar[str]
    """The folder of its records, in the cache."""

    def __init__(self, address: str, name: str, log: Path, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(name, log, LOAD_TIMEOUT_S)
        self.address = address
        self._headers = dict(headers or {})
        self._record: Path | None = None

    @abstractmethod
    def _take_out(self, facts: Mapping[str, str]) -> None:
        """Remove what `facts` tell of; nothing where it is gone already. Raises EngineError where it cannot be."""

    @abstractmethod
    def _alive(self) -> None:
        """Ask for the cheapest thing it answers."""

    def last_words(self) -> str:
        """Its log is not ours to read."""
        return ""

    def memory(self) -> MemoryUse | None:
        """Not known: its processes are not ours."""
        return None

    def check_alive(self) -> None:
        """Raise EngineError when it no longer answers."""
        try:
            self._alive()
        except UserError as error:
            raise EngineError(f"{self.title} no longer answers for {self.name} ({error})") from None

    def ask(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        method: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """The JSON object it answers with, empty where it answers with none.

        Raises UserError when it does not run, RefusedError when it refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(f"{self.address}{path}", data, headers, method=method)
        try:
            with open_url(request, timeout_s=timeout_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(
                    f"{self.title} refused {path}: {_words(error.read(), error.code)}", error.code
                ) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{self.title} is not at {self.address} ({reason}); {self.how_to_start}") from None
        try:
            found = json.loads(text) if text.strip() else {}
        except ValueError:
            raise UserError(f"{self.address} does not answer as {self.title} does; {self.how_to_start}") from None
        return found if isinstance(found, dict) else {}

    def temporary_name(self) -> str:
        """A name nobody else has, by which a person sees whose it is."""
        return f"{MARK}-{slug(self.name)[:40]}-{secrets.token_hex(4)}"

    def write_down(self, facts: Mapping[str, str]) -> None:
        """Keep `facts`, which `_take_out` gets, until it is done: before anything is put in, and when more is known."""
        folder = self._folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._record = self._record or folder / f"{MARK}-{os.getpid()}-{secrets.token_hex(4)}.json"
            mine = {"address": self.address, "pid": os.getpid(), "began_s": psutil.Process().create_time()}
            scratch = self._record.with_suffix(".new")
            scratch.write_text(json.dumps({**mine, "facts": dict(facts)}), encoding="utf-8")
            scratch.replace(self._record)
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
            ) from error

    def clean_up(self) -> int:
        """Remove what runs that were killed left in this server, as far as it lets us; how many things."""
        done = 0
        for path in sorted(self._folder().glob(f"{MARK}-*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                facts = {str(key): str(value) for key, value in record["facts"].items()}
                theirs = record["address"] == self.address and not _runs(record["pid"], record["began_s"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                path.unlink(missing_ok=True)  # half written: nothing was put in yet
                continue
            if theirs:
                try:
                    self._take_out(facts)
                except EngineError:  # it keeps its record, and is no reason not to run
                    continue
                path.unlink(missing_ok=True)
                done += 1
        return done

    def _stop(self) -> None:
        if self._record is None:
            return
        record, self._record = self._record, None
        try:
            facts = json.loads(record.read_text(encoding="utf-8"))["facts"]
            self._take_out(facts)
        except (EngineError, UserError, OSError, ValueError):
            return  # the record stays, and the next start tries again
        record.unlink(missing_ok=True)

    def _folder(self) -> Path:
        return cache_directory().parent / self.kept_by


def refuse_placement(placement: Placement, title: str, instead: str, *, taken: tuple[str, ...] = ()) -> None:
    """Raise UserError for an option of a placement that an engine has no setting for; those in `taken` it has."""
    options = {
        "--gpu-layers": placement.gpu_layers != "auto",
        "--cpu-moe": placement.cpu_moe not in (None, "auto"),
        "--device": bool(placement.devices),
        "--tensor-split": bool(placement.tensor_split),
        "--override-tensor": bool(placement.overrides),
    }
    if odd := next((name for name, given in options.items() if given and name not in taken), None):
        raise UserError(f"{odd}: {title} has no such setting; {instead}")


def _runs(pid: int, began_s: float) -> bool:
    """Whether that very process is still there: ids are used again."""
    try:
        return abs(psutil.Process(pid).create_time() - began_s) < 1.0
    except psutil.Error:
        return False


def _words(body: bytes, status: int) -> str:
    """What an error answer says, on one line."""
    try:
        found = json.loads(body)
        said = found.get("error", found) if isinstance(found, dict) else found
        text = str(said.get("message", said) if isinstance(said, dict) else said)
    except ValueError:
        text = body.decode(errors="replace")
    return " ".join(text.split())[:300] or f"status {status}"
