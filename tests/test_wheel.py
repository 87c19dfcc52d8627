"""What somebody has who installs the package and has no checkout: the command, and all that it reads beside its code.

The wheel is built as `make` builds it and installed by pip into an environment of its own. What the package needs is
lent by the environment of the tests, so that nothing is fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from breakeven.version import __version__

ROOT = Path(__file__).resolve().parent.parent
TINY = """name: {name}
family: {family}
hidden: 64
vocab: 512
context: 2048
n_layers: 1
heads: 1
kv_heads: 1
head_dim: 64
qk_norm: head
"""
DENSE = TINY.format(name="toy-dense", family="qwen3") + "ffn_width: 128\n"
MOE = TINY.format(name="toy-moe", family="qwen3moe") + "n_experts: 4\nn_experts_per_token: 2\nexpert_width: 64\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the checkout's own environment leaks in."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (extra dev)")
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    shutil.rmtree(source)
    (made,) = directory.glob("*.whl")
    return made


class Installed:
    """An environment with the package and without the checkout."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.environment, self.work = directory / "venv", directory / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.environment)], check=True, timeout=120)
        (packages,) = (self.environment / "lib").glob("python*/site-packages")
        # Only names of directories: what is editable there, the checkout among it, is not followed.
        lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (packages / "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
        python = str(self.environment / "bin" / "python")
        command = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index"]
        subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in a directory of its own, with nothing of ours in its variables."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        environment = {**kept, "HOME": str(self.work), "XDG_CACHE_HOME": str(self.work / "cache"), "NO_COLOR": "1"}
        command = [str(self.environment / "bin" / words[0]), *words[1:]]
        return subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    pytest.importorskip("pip", reason="there is no pip here")
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    own = ROOT / "src"
    there = {path.relative_to(own).as_posix() for path in (own / "breakeven").rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {name for name in inside if ".dist-info/" not in name} == there
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in inside)


def test_the_package_is_the_wheels_and_its_command_has_its_name(installed: Installed) -> None:
    done = installed.run("python", "-c", "import breakeven; print(breakeven.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed.environment), done.stderr
    done = installed.run("breakeven", "--version")
    assert __version__ in done.stdout
    # What `uvx breakeven` runs: the command that has the package's name.
    code = "import importlib.metadata as m; print([e.name for e in m.distribution('breakeven').entry_points])"
    assert installed.run("python", "-c", code).stdout.strip() == "['breakeven']"


def test_help_and_the_catalogue_need_no_checkout(installed: Installed) -> None:
    done = installed.run("breakeven", "--help")
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
    done = installed.run("breakeven", "models", "olmoe")
    assert done.returncode == 0, done.stderr
    assert "olmoe-1b-7b" in done.stdout
    assert installed.run("breakeven", "machines", "h100-sxm").returncode == 0


def test_a_toy_comparison_runs_to_its_page(installed: Installed) -> None:
    (installed.work / "toy-dense.yaml").write_text(DENSE)
    (installed.work / "toy-moe.yaml").write_text(MOE)
    quick = ["--streams", "1", "--budget", "5s", "--precision", "99%", "--prompt", "8", "--output", "8"]
    quick += ["--no-inside", "--out", "out"]
    done = installed.run(
        "breakeven", "compare", "toy-dense.yaml", "toy-moe.yaml", *quick, "--no-inside", "--out", "out"
    )
    assert done.returncode == 0, done.stderr
    assert "toy-moe" in done.stdout
    assert "<html" in (installed.work / "out" / "report.html").read_text("utf-8")


def test_a_gateway_and_its_pages_are_whole(installed: Installed) -> None:
    (installed.work / "toy-dense.yaml").write_text(DENSE)
    done = installed.run("breakeven", "serve", "toy-dense.yaml", "--check")
    assert done.returncode == 0, done.stderr
    code = "from breakeven.gateway.cluster.files import SAME, _fixed; print([len(_fixed(name)) > 50 for name in SAME])"
    assert "False" not in installed.run("python", "-c", code).stdout
