"""The shape of the house: rooms, what imports what, one name for one thing, files of one sitting.

An allow-list names what a rule does not hold for yet, and why; it may only shrink.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from breakeven.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "breakeven"

MAX_LINES = 400
LEAST_LINES = 100
"""A file shorter than this is merged when a single file of its own folder imports it."""

OPEN_SETS: dict[str, str] = {
    "breakeven.cli.main": "verbs, loaded by name so that one verb's imports cost no other",
}
"""Tables whose members are registered by name: a member may be a short file of its own."""

SHORT_ALONE: dict[str, str] = {}
AS_TYPED: dict[str, str] = {
    "breakeven.answer.study.load": "what stands in a study file, beside the record made of it",
    "breakeven.engines.vllm.directory": "Hugging Face's config.json",
    "breakeven.gateway.plan.load": "what stands in a gateway file, beside the record made of it",
}
PAGE_OF = {"api": "cli"}
"""Rooms that share a page."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    named = {}
    for path in SRC.rglob("*.py"):
        named[".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")] = path
    return named


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of the package that `module` imports, wherever the import stands and whatever it is for."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            whole = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            # Importing a.b.c runs a and a.b first.
            found.update(part for part in whole if part in modules())
    return frozenset(found - {module, "breakeven"})


def classes(module: str) -> list[str]:
    return [node.name for node in tree(module).body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]


def circles() -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imported(module):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in modules():
        if module not in index:
            visit(module)
    return groups


def rooms() -> list[str]:
    """The rooms in data-flow order, as the import contract has them, without what is no folder."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    names = [name.strip().removeprefix("breakeven.") for layer in layers for name in layer.split("|")]
    return [name for name in reversed(names) if (SRC / name).is_dir()]


def test_no_circle_of_imports() -> None:
    assert circles() == []


def test_every_folder_is_a_room_of_the_contract() -> None:
    folders = sorted(path.name for path in SRC.iterdir() if (path / "__init__.py").exists())
    assert folders == sorted(rooms())


def test_a_room_carries_no_verbs_name() -> None:
    assert set(rooms()) & set(VERBS) == set()


def told_together(path: Path, text: str) -> bool:
    """A folder may stand for its files, and `VERB.py` for all of the verbs."""
    if path.parent == SRC / "cli":
        return "VERB.py" in text and (path.stem in VERBS or path.stem.startswith("__"))
    return path.parent.parent != SRC and f"{path.parent.name}/ " in text


@pytest.mark.parametrize("room", rooms())
def test_every_room_has_its_page(room: str) -> None:
    page = ROOT / "docs" / "rooms" / f"{PAGE_OF.get(room, room)}.md"
    assert page.is_file(), f"{page.name} is missing"
    text = page.read_text()
    missing = [
        path.relative_to(SRC / room).as_posix()
        for path in (SRC / room).rglob("*.py")
        if path.name != "__init__.py" and path.name not in text and not told_together(path, text)
    ]
    assert missing == [], f"{page.name} does not name them"


def test_one_public_class_a_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for name in classes(module):
            homes[name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_a_helper_with_one_caller_lives_beside_it() -> None:
    importers: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for other in imported(module):
            importers[other].append(module)
    alone = []
    for module, path in modules().items():
        callers = importers[module]
        registered = any(table in OPEN_SETS for table in callers) or module.startswith("breakeven.cli.")
        short = len(path.read_text().splitlines()) < LEAST_LINES
        if path.name == "__init__.py" or not short or registered or module in SHORT_ALONE or len(callers) != 1:
            continue
        if callers[0].rpartition(".")[0] == module.rpartition(".")[0]:
            alone.append(f"{module} belongs into {callers[0]}")
    assert alone == []


def test_files_are_of_one_sitting() -> None:
    lengths = Counter({module: len(path.read_text().splitlines()) for module, path in modules().items()})
    assert [f"{module}: {lines}" for module, lines in lengths.items() if lines > MAX_LINES] == []


def test_packages_only_say_what_they_are() -> None:
    """A package that imports its members makes circles, and makes one of them cost all of them."""
    busy = [
        module
        for module, path in modules().items()
        if path.name == "__init__.py" and module != "breakeven" and len(tree(module).body) > 1
    ]
    assert busy == []


def test_no_bag_of_names_travels_between_functions() -> None:
    found = []
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "locals":
                found.append(f"{module}:{node.lineno} locals()")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and module not in AS_TYPED:
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                spelled = [ast.unparse(each) for each in [*(arg.annotation for arg in given), node.returns] if each]
                if any("Mapping[str, Any]" in text for text in spelled):
                    found.append(f"{module}:{node.lineno} {node.name}")
    assert found == []
