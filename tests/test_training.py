"""What all trainings share: a text in three, rows in an order of their own, a directory that one run holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.lab.corpus import LEAST_BLOCKS, Block, blocks_of, check_enough
from breakeven.lab.training.texts import Batches, apart_from_each_other, rows_of, split
from breakeven.lab.training.work import batch_that_trains, work_beside, write_whole


def blocks(n: int, language: str = "en") -> list[Block]:
    return [Block(language, "all", "guide", f"{language} block {i}. " * 20) for i in range(n)]


@given(st.lists(st.integers(18, 400), min_size=1, max_size=4))
def test_every_block_is_for_one_thing(counts: list[int]) -> None:
    text = [block for number, n in enumerate(counts) for block in blocks(n, f"l{number}")]
    found = split(text)
    assert sorted([*found.train, *found.choose, *found.judge], key=text.index) == text
    check_enough(blocks_of(found.judged()))
    assert [b.text for b in blocks_of(found.judged())] == [b.text for b in found.judge]
    for number, n in enumerate(counts):
        mine = [b for b in found.train if b.language == f"l{number}"]
        assert len(mine) >= 0.5 * n
        assert sum(b.language == f"l{number}" for b in found.judge) >= LEAST_BLOCKS


def test_a_text_too_short_for_all_three_is_refused() -> None:
    with pytest.raises(UserError, match=r"the text of de .* too few to train on .* at least"):
        split([*blocks(40), *blocks(17, "de")])


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_rows_are_read_once_each_before_any_twice(n_rows: int, batch: int, seed: int, step: int) -> None:
    batches = Batches(n_rows, batch, seed)
    read = np.concatenate([batches.rows(each) for each in range(step + 1)])
    counts = np.bincount(read, minlength=n_rows)
    assert counts.max() - counts.min() <= 1
    assert (batches.rows(step) == read[step * batch :]).all(), "a step's rows do not depend on those before it"


def test_rows_hold_the_text_in_its_order() -> None:
    rows = rows_of([Block("en", "all", "a", "abcd"), Block("en", "all", "b", "efgh")], lambda t: list(t.encode()), 3, 0)
    assert rows.tolist() == [[97, 98, 99], [100, 0, 101], [102, 103, 104]]
    with pytest.raises(UserError, match="fewer than one row"):
        rows_of([Block("en", "all", "a", "ab")], lambda t: list(t.encode()), 3, None)


def test_a_directory_is_held_by_one_run_and_goes_on_only_as_it_was_asked(tmp_path: Path) -> None:
    out = tmp_path / "model"

    def hold(asked: dict[str, object], *, fail: bool = False) -> None:
        with work_beside(out, asked) as folder:
            if fail:
                write_whole(folder / "state.pt", b"half")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold({"seed": 1}, fail=True)
    with pytest.raises(UserError, match="asked otherwise \\(seed\\)"):
        hold({"seed": 2})
    other = (
        "from breakeven.lab.training.work import work_beside; from pathlib import Path; import sys\n"
        "with work_beside(Path(sys.argv[1]), {'seed': 1}): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run trains here"):
            hold({"seed": 1})
        process.kill()
    assert (tmp_path / "model.training" / "state.pt").read_bytes() == b"half"
    hold({"seed": 1})
    assert not (tmp_path / "model.training").exists()
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "asked.json").write_text(json.dumps([1])[:-1])
    with pytest.raises(UserError, match="begin anew"):
        hold({"seed": 1})


def test_what_was_refused_before_any_training_is_in_nobodys_way(tmp_path: Path) -> None:
    out, folder = tmp_path / "model", tmp_path / "model.training"

    def stops(asked: dict[str, object], error: BaseException, name: str = "rows.npy") -> None:
        with work_beside(out, asked) as given:
            (given / "run").mkdir(exist_ok=True)
            write_whole(given / "run" / name, b"rows")
            raise error

    with pytest.raises(UserError, match=r"^too short$"):
        stops({"--for": 1}, UserError("too short"))
    assert not folder.exists(), "the advice, another --for, can be followed"
    with pytest.raises(KeyboardInterrupt):
        stops({"--for": 9}, KeyboardInterrupt())
    assert (folder / "run" / "rows.npy").is_file()
    with pytest.raises(KeyboardInterrupt):
        stops({"--for": 10}, KeyboardInterrupt(), "others.npy")
    assert [path.name for path in (folder / "run").iterdir()] == ["others.npy"], "begun anew, and alone"
    said = rf"^disk full; {re.escape(str(folder))} holds what was trained: the same command goes on .* want it removed$"
    with pytest.raises(UserError, match=said):
        stops({"--for": 10}, UserError("disk full"), "state.pt")
    with pytest.raises(UserError, match=rf"{re.escape(str(folder))} holds a training .* \(--for\); .* or remove it"):
        stops({"--for": 11}, UserError("not reached"))
    assert (folder / "run" / "state.pt").is_file()


def test_memory_is_known_before(tmp_path: Path) -> None:
    sizes = {"weights": 135_000_000, "trained": 135_000_000, "hidden": 576, "layers": 30, "vocab": 49152, "tokens": 256}
    assert batch_that_trains(**sizes, batch=16, free_bytes=100_000_000_000) == 16
    fewer = batch_that_trains(**sizes, batch=16, free_bytes=5_000_000_000)
    assert 1 <= fewer < 16
    with pytest.raises(UserError, match=r"needs \d+\.\d GB even one row at a time"):
        batch_that_trains(**sizes, batch=16, free_bytes=1_000_000_000)


def test_what_judges_is_not_learned_from_a_copy() -> None:
    text = blocks(40)
    plain = split(text)
    found = split([*text, *(Block("en", "all", "copy", f"  {each.text}\n") for each in text[:23]), *blocks(40, "de")])
    apart = {" ".join(block.text.split()) for block in (*found.judge, *found.choose)}
    assert not apart & {" ".join(block.text.split()) for block in found.train}
    assert found.repeated >= 1
    assert re.match(rf"{found.repeated} pieces of the text are repeated .* trained nothing", found.notes()[0])
    assert not plain.notes()
    with pytest.raises(UserError, match=r"the text of en repeats itself: .* leave copies out"):
        split(blocks(1) * 40)
    # A replay that holds the text itself, in a larger folder that is cut elsewhere.
    others = [Block("all", "all", "b", f"{number} " * 40) for number in range(9)]
    replay = split([*others, *(Block("all", "all", "a", each.text) for each in text)])
    ours, theirs = apart_from_each_other([plain, replay])
    for one, other in ((ours, theirs), (theirs, ours)):
        judged = {" ".join(block.text.split()) for block in other.judge}
        assert not judged & {" ".join(block.text.split()) for block in one.train}
    assert ours.repeated
    assert ours.judge == plain.judge
