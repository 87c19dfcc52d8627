"""`breakeven machines` without a name: a screen of names, or a line for each."""

from __future__ import annotations

import re

import pytest

import breakeven
from breakeven.pages.terminal import SCREEN_LINES
from tests.cli_fixtures import run_here


def named(text: str) -> list[str]:
    """Names as the list shortens them: "rtx-{4090 3090} gb10"."""
    found = []
    for family, rest, alone in re.findall(r"([\w.]+-)\{([^}]*)\}|([\w.-]+)", text):
        found += [family + name for name in rest.split()] if family else [alone]
    return found


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_screen_has_the_names_by_class_and_says_which_classes_it_leaves_out(columns: int) -> None:
    done = run_here("machines", columns=columns)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= columns
    body, _, left_out = done.stdout.partition("With --full also: ")
    by_class: dict[str, list[str]] = {}
    for chip in breakeven.machines():
        by_class.setdefault(chip.chip_class, []).append(chip.slug)
    shown = dict(re.findall(r"^(\w+), \d+: (.*?)(?=^\S|\Z)", body, re.M | re.S))
    assert sorted([*shown, *left_out.split(".")[0].replace(",", " ").split()]) == sorted(by_class)
    assert columns < 80 or list(shown) == list(by_class)
    for chip_class, names in shown.items():
        assert sorted(named(names)) == sorted(by_class[chip_class])


def test_full_is_a_line_for_every_chip() -> None:
    done = run_here("machines", "--full", columns=100)
    first = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {chip.slug for chip in breakeven.machines()} <= set(first)
    refused = run_here("machines", "rtx-3090", "--full")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "leave it out to read of rtx-3090" in refused.stderr
