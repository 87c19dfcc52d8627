"""The errors a person can meet. Their text says what to do next; the command line prints it as one line."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

MOST_SAID = 4000
"""Letters of one message; what a server or a file made longer says no more."""


def printable(text: str) -> str:
    """`text` with a question mark for whatever drives a terminal: names and messages quote what files say."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def one_line(text: str, most: int = MOST_SAID) -> str:
    """`text` without line breaks or control characters, and cut: for a terminal or a line of a log."""
    line = printable(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def complain(text: str) -> None:
    """Say one line on standard error. A full disk behind it, or a reader that left, must not end what goes on."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"breakeven: {one_line(text)}\n")
        sys.stderr.flush()


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


def word_of(path: str | Path) -> str:
    """`path` as a command repeats it: one that begins with a dash is written so that no verb takes it for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text
