"""The root command as people meet it: in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from breakeven.cli import main as root
from breakeven.errors import BreakevenError, EngineError, UserError
from breakeven.version import __version__

MOST_MODULES = 60
"""That `--help` may load beyond what Python has loaded itself; 31 are. typer alone brings 200, and 0.1 s."""


def breakeven(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "breakeven.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def verb(monkeypatch: pytest.MonkeyPatch, raises: BaseException | None = None) -> None:
    """Register the verb `try`, which raises the given exception."""
    app = typer.Typer()

    @app.command()
    def run(number: int = 0) -> None:
        print(f"ran {number}")
        if raises is not None:
            raise raises

    module = types.ModuleType("verb_for_tests")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verb_for_tests", module)
    monkeypatch.setitem(root.VERBS, "try", root.Verb("verb_for_tests", "Only for tests."))


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["breakeven", *args])
    with pytest.raises(SystemExit) as stop:
        root.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_help_lists_every_verb() -> None:
    done = breakeven("--help")
    assert done.returncode == 0
    for name, entry in root.VERBS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout


def test_help_and_version_are_cheap() -> None:
    """Loading is what costs time, so what is loaded is counted: the same on every machine, however busy."""
    count = (
        "import sys; bare = len(sys.modules); from breakeven.cli.main import dispatch; dispatch(sys.argv[1:]);"
        "print(len(sys.modules) - bare, file=sys.stderr)"
    )
    for option, expected in (("--version", f"breakeven {__version__}\n"), ("--help", root.help_text())):
        assert breakeven(option).stdout == expected
        command = [sys.executable, "-c", count, option]
        counted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert counted.stdout == expected
        assert int(counted.stderr) < MOST_MODULES


def test_help_loads_no_library() -> None:
    code = (
        "import sys; from breakeven.cli.main import dispatch; dispatch(['--help']); import breakeven;"
        "sys.exit(' '.join({'typer', 'rich', 'numpy', 'pydantic', 'xllamacpp', 'altair'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_verb_help_is_shown_as_misuse() -> None:
    done = breakeven()
    assert done.returncode == 2
    assert "Verbs:" in done.stdout


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("compair",), "breakeven: no such verb: compair; did you mean compare?\n"),
        (("qqq",), f"breakeven: no such verb: qqq; the verbs are {', '.join(root.VERBS)}.\n"),
        (("--verbose",), "breakeven: no such option: --verbose"),
        (("machine", "--nope"), "breakeven: No such option: --nope. Try: breakeven machine --help\n"),
    ],
)
def test_misuse_is_one_line_and_status_2(args: tuple[str, ...], line: str) -> None:
    done = breakeven(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("no\nsuch  thing"), 2), (EngineError("it died"), 1), (BreakevenError("odd"), 1)]
)
def test_our_errors_are_one_line_with_their_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BreakevenError, status: int
) -> None:
    verb(monkeypatch, error)
    assert run(monkeypatch, "try") == status
    assert capsys.readouterr().err == f"breakeven: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort(), typer.Exit(130)])
def test_an_interrupt_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    verb(monkeypatch, error)
    assert run(monkeypatch, "try") == 130
    assert capsys.readouterr().err == "breakeven: interrupted.\n"


def test_status_and_arguments_reach_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(monkeypatch)
    assert run(monkeypatch, "try", "--number", "7") == 0
    assert capsys.readouterr().out == "ran 7\n"
    assert run(monkeypatch, "try", "--number", "seven") == 2
    verb(monkeypatch, typer.Exit(3))
    assert run(monkeypatch, "try") == 3


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    verb(monkeypatch, ZeroDivisionError("bug"))
    monkeypatch.setattr(sys, "argv", ["breakeven", "try"])
    with pytest.raises(ZeroDivisionError):
        root.main()


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed by a POSIX shell")
@pytest.mark.parametrize("words", ["--help", "--version", "models qwen3-8b", "machines h100-sxm --json"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_a_closed_stream_is_nobody_who_listens(words: str, closed: str) -> None:
    script = f"'{sys.executable}' -m breakeven.cli {words} {closed}"
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed by a POSIX shell")
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A child that is started prints to number 1, which must not be somebody's file."""
    code = (
        "import subprocess, sys; from breakeven.cli import main; main._run = lambda args: 0\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "kept = open(sys.argv[1], 'w'); subprocess.run(['echo', 'spoilt'], check=True); kept.close()"
    )
    kept = tmp_path / "kept"
    script = f"'{sys.executable}' -c \"$0\" '{kept}' >&-"
    done = subprocess.run(["bash", "-c", script, code], stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr, kept.read_text()) == (0, b"", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a name cannot be made")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_name_that_is_no_text_is_one_line_with_and_without_json(tmp_path: Path, more: tuple[str, ...]) -> None:
    named = os.fsencode(tmp_path) + b"/b\xffad.yaml"
    command = [sys.executable, "-m", "breakeven.cli", "predict", named, "--machine", "rtx-4090", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "b?ad.yaml: a name that is not UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x/config.json"), "x/config.json: Permission denied; "),
        (OSError(errno.EROFS, "Read-only file system", "out/x"), "out/x: Read-only file system; "),
        (UnicodeEncodeError("utf-8", "b\udcffad", 1, 2, "surrogates not allowed"), "b?ad: a name that is not UTF-8"),
    ],
)
def test_what_may_not_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    verb(monkeypatch, error)
    assert run(monkeypatch, "try") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"breakeven: {line}")
    assert said.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    script = f"'{sys.executable}' -m breakeven.cli machine 2>'{errors}' | true"
    assert subprocess.run(["bash", "-c", script], timeout=60, check=False).returncode == 0
    assert errors.read_text() == ""


def test_machine_speaks_json() -> None:
    done = breakeven("machine", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["schema"] == "breakeven.machine/1"
    assert told["logical_cores"] >= 1
    assert f"{told['cpu']}" in breakeven("machine").stdout


@pytest.mark.parametrize(
    "args",
    [
        ("predict", "qwen3-32b", "--machine", "~nobody-here/pc.yaml"),
        ("predict", "qwen3-32b", "--machine", "~nobody-here/pc"),
        ("predict", "~nobody-here/model", "--machine", "rtx-3090"),
        ("machines", "~nobody-here/pc.yaml"),
        ("decide", "~nobody-here/study.yaml"),
        ("compare", "~nobody-here/a.gguf@ollama", "~nobody-here/b.gguf"),
    ],
)
def test_the_home_of_nobody_is_one_line(args: tuple[str, ...]) -> None:
    done = breakeven(*args)
    assert done.returncode == 2
    assert done.stderr.endswith("no home directory is known for it; write the path in full\n")
    assert done.stderr.count("\n") == 1


def test_a_name_too_long_for_a_file_is_one_line() -> None:
    done = breakeven("compare", "x" * 300 + "@ollama", "qwen3-0.6b")
    assert done.returncode == 2
    assert "is no name or path of a model" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--slo", "ttft=1s"), "--slo ttft=1s is of traffic"),
        (("--duration", "9s"), "--duration 9s is of traffic"),
        (("--warm-up", "9s"), "--warm-up 9s is of traffic"),
        (("--window", "0s-9s"), "--window 0s-9s is of traffic"),
        (("--speed", "2"), "--speed 2.0 is of traffic"),
        (("--arrivals", "gamma:3"), "--arrivals gamma:3 is of traffic"),
        (("--trace", "t.csv", "--rounds", "5"), "--rounds 5 repeats a --rate"),
    ],
)
def test_what_a_comparison_would_not_heed_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        root.dispatch(["compare", "olmoe-1b-7b", "llama-3.2-1b", *words])
