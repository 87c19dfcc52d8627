"""The page of twenty public questions: every one is in it, and its picks are those of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.choose_questions import QUESTIONS, asked_here, pick_text, stands

PAGE = (Path(__file__).parent.parent / "docs" / "choose-questions.md").read_text()
LINES = {int(line.split(" | ")[0].strip("| ")): line for line in PAGE.splitlines() if line[:3].strip("| ").isdigit()}


def test_there_are_twenty_with_an_address_each() -> None:
    assert len(QUESTIONS) == len(LINES) == 20
    for number, question in enumerate(QUESTIONS, 1):
        assert question.asked in LINES[number]
        assert f"]({question.address})" in LINES[number]


def test_every_pick_that_is_another_one_is_explained() -> None:
    for number, line in LINES.items():
        differs = line.rstrip(" |").rpartition("| ")[2] in ("equal", "differs")
        assert (f"- **{number}**" in PAGE) == differs


@pytest.mark.parametrize("number", [1, 7, 15, 19])
def test_the_page_says_what_is_picked_today(number: int) -> None:
    question = QUESTIONS[number - 1]
    choice = asked_here(question)
    # The model and its format; speeds move in their last digit between systems.
    assert pick_text(choice).partition(",")[0] in LINES[number]
    assert LINES[number].rstrip(" |").endswith(stands(question, choice))
