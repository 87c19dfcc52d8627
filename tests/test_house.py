"""The rules of the house that no other tool checks."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from breakeven.cli.main import VERBS, help_text
from tests.cli_fixtures import run_here

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MAX_LINES = 400

# Spelled in pieces, so that this file does not hold what it looks for.
REGISTRY_HOSTS = re.compile(
    "|".join([r"py" + r"pi\.org", r"python" + r"hosted\.org", r"npm" + r"js\.org", r"debian" + r"\.org"])
)
MACHINE_PATHS = re.compile(r"(?<![\w.~/])/(?:home|root|Users|work|mnt|opt)" + r"/[A-Za-z0-9_.-]+")


def tracked() -> list[Path]:
    """Files under version control, or, in a source archive, all of the project's own."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [
        p for d in ("src", "tests", "docs") for p in (ROOT / d).rglob("*")
    ]
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[str, str]]:
    """(name, text) of every tracked file that is text."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            found.append((path.relative_to(ROOT).as_posix(), data.decode("utf-8")))
    return found


def test_no_file_names_a_registry_host() -> None:
    assert [(name, hit.group()) for name, text in texts() for hit in REGISTRY_HOSTS.finditer(text)] == []


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    assert [(name, hit.group()) for name, text in texts() for hit in MACHINE_PATHS.finditer(text)] == []


def test_nobody_is_told_to_install_this_package_from_an_index() -> None:
    """No index has it: an extra is installed from the checkout, by what its page says."""
    told = re.compile(r"pip install (?:-\S+ )*['\"]?breakeven")
    assert [name for name, text in texts() if told.search(text)] == []
    for page in ("README.md", "docs/lab.md"):
        assert "pip install --no-deps --require-hashes -r constraints-lab.txt" in (ROOT / page).read_text()


UNPINNED_EXTRAS = {"vllm", "lab"}
"""Which build of vLLM is right depends on the accelerator."""


def test_every_dependency_is_pinned_with_a_hash() -> None:
    pinned = set.union(*(pins(f"constraints{kind}.txt") for kind in ("", "-test", "-lab", "-docs")))
    extras = PROJECT["optional-dependencies"].items()
    asked = [
        *PROJECT["dependencies"],
        *(name for extra, group in extras if extra not in UNPINNED_EXTRAS for name in group),
    ]
    assert {normal(re.split(r"[<>=\[;]", name)[0]) for name in asked} <= pinned


def pins(file: str) -> set[str]:
    """Names a constraints file pins; every one of its lines has a hash."""
    pinned = set()
    for line in filter(None, map(str.strip, (ROOT / file).read_text().replace("\\\n", " ").splitlines())):
        match = re.match(r"([A-Za-z0-9_.-]+)==\S+ .*--hash=sha256:[0-9a-f]{64}", line)
        assert match, f"not a pinned, hashed requirement: {line[:80]}"
        pinned.add(normal(match.group(1)))
    return pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower().strip()


def test_every_dependency_has_its_line() -> None:
    page = normal((ROOT / "docs/dependencies.md").read_text())
    for name in [*PROJECT["dependencies"], *(n for g in PROJECT["optional-dependencies"].values() for n in g)]:
        assert normal(re.split(r"[<>=\[;]", name)[0]) in page


def test_the_changelog_has_this_version_on_top() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_help_and_has_its_page(verb: str) -> None:
    assert f"  {verb} " in help_text()
    page = ROOT / "docs" / f"{verb}.md"
    assert page.is_file(), f"docs/{verb}.md is missing"
    assert f"({verb}.md)" in (ROOT / "docs/index.md").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    done = run_here(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"breakeven {verb}" in done.stdout


IMPORT_ALL = """
import importlib, pathlib, sys
sys.path[:0] = ["bench", "."]
files = sorted(pathlib.Path("bench").rglob("*.py"))
ours = {"breakeven", "bench", *(file.stem for file in files)}
for file in files:
    name = ".".join(file.with_suffix("").parts)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ours:
            sys.exit(f"{name}: {error}")
    except ImportError as error:
        sys.exit(f"{name}: {error}")
"""


def test_every_script_of_the_bench_starts() -> None:
    """What others are to repeat must at least find the names it uses; an extra that is not installed is no fault."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []


def test_every_page_can_be_found_from_the_first() -> None:
    listed = (ROOT / "docs/index.md").read_text()
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert sorted(page for page in pages if f"({page})" not in listed) == []


def test_files_stay_readable() -> None:
    long = []
    for path in (ROOT / "src").rglob("*.py"):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {MAX_LINES}")
    assert long == []
