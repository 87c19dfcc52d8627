"""The errors a person can meet. Their text says what to do next; the command line prints it as one line."""

from __future__ import annotations

from pathlib import Path


def printable(text: str) -> str:
    """`text` with a question mark for whatever drives a terminal: names and messages quote what files say."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


class BreakevenError(Exception):
    """Something went wrong here (exit status 1)."""

    exit_status = 1


class UserError(BreakevenError):
    """What the user gave cannot be used (exit status 2)."""

    exit_status = 2


class EngineError(BreakevenError):
    """An engine failed, died or answered nonsense; the text carries its last log lines."""


class NotSupportedError(UserError):
    """This build, machine or model cannot do what was asked; the text says what can."""


def expanded(path: str | Path) -> Path:
    """`path` with the home directory for its `~`. Raises UserError where that user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{printable(str(path))}: no home directory is known for it; write the path in full") from error
