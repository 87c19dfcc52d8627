"""Every verb of the command line is a function of `import breakeven` under its own name, typed and documented."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.main import get_command

import breakeven
from breakeven.cli.main import VERBS, dispatch
from breakeven.engines.source import SYNTHETIC, parse_source
from breakeven.errors import UserError
from breakeven.results.lab import Evaluation
from breakeven.results.load import LoadStudy
from breakeven.results.store import read

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/python.md").read_text()
BESIDE = {"compare_under_load", "decide_from_log", "init_study", "tune_elsewhere"}
"""Functions for options that make another verb of one."""
FORMER = {"predict_models": "predict", "decide_study": "decide", "recompute": "report"}


def sub_verbs(verb: str) -> list[str]:
    """Names of a verb's verbs, from the command line itself; none for a plain one."""
    module = __import__(VERBS[verb].module, fromlist=["app"])
    return list(getattr(get_command(module.app), "commands", {}))


def functions() -> dict[str, Callable[..., object]]:
    """Public name to function, of every verb and verb of a verb."""
    found: dict[str, Callable[..., object]] = {}
    for verb in [*VERBS, *sorted(BESIDE)]:
        subs = sub_verbs(verb) if verb in VERBS else []
        here = getattr(breakeven, verb)
        found |= {f"{verb}.{sub}": getattr(here, sub) for sub in subs} or {verb: here}
    return found


@pytest.mark.parametrize("name", functions())
def test_a_verb_is_typed_documented_and_listed(name: str) -> None:
    function = functions()[name]
    signature = inspect.signature(function)
    assert inspect.getdoc(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert f"| `{name}(" in PAGE, f"docs/python.md has no line on {name}"


def test_every_public_name_is_there_and_stands_in_the_page() -> None:
    for name in breakeven.__all__:
        assert getattr(breakeven, name) is not None
        assert name == "__version__" or f"`{name}" in PAGE
    assert set(breakeven.__all__) <= set(dir(breakeven))


@pytest.mark.parametrize(("old", "new"), FORMER.items())
def test_former_names_work_and_say_what_to_write(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"breakeven\.{old} is now breakeven\.{new}"):
        assert getattr(breakeven, old) is getattr(breakeven, new)
    with pytest.warns(DeprecationWarning, match=r"breakeven\.experiment_status is now breakeven\.experiment\.status"):
        assert breakeven.experiment_status is breakeven.experiment.status


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'forecasts'"):
        breakeven.forecasts  # noqa: B018


def test_importing_the_package_loads_no_library() -> None:
    code = (
        "import sys, breakeven; breakeven.__all__;"
        "sys.exit(' '.join({'typer', 'rich', 'numpy', 'msgspec', 'altair'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


CHIP = "h100-sxm"
SAME = {
    "models": (["models", "--json"], lambda: {"schema": "breakeven.models/1", "models": breakeven.models()}),
    "model": (
        ["models", "olmoe-1b-7b", "--json"],
        lambda: {"schema": "breakeven.models/1", "model": breakeven.models("olmoe-1b-7b")},
    ),
    "machines": (["machines", "--json"], lambda: {"schema": "breakeven.machines/1", "machines": breakeven.machines()}),
    "predict": (
        ["predict", "olmoe-1b-7b", "llama-3.2-1b", "--machine", CHIP, "--batch", "1,8", "--json"],
        lambda: breakeven.predict(["olmoe-1b-7b", "llama-3.2-1b"], [CHIP], batches=(1, 8)),
    ),
    "simulate": (
        ["simulate", "llama-3.2-1b", "--machine", CHIP, "--rate", "2", "--requests", "50", "--json"],
        lambda: breakeven.simulate("llama-3.2-1b", breakeven.Traffic(rate="2", requests=50), machine=CHIP),
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_the_result_is_what_json_prints(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, call = SAME[what]
    assert dispatch(words) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == msgspec.json.decode(msgspec.json.encode(call()))


def test_keys_from_python(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = breakeven.keys.create("ann", file, limits=["1000 requests/min"], usd=["5/day"], expires="30d")
    assert secret
    (key,) = breakeven.keys.list(file)
    assert (key.name, key.admin, len(key.limits)) == ("ann", False, 2)
    breakeven.keys.revoke("ann", file)
    assert breakeven.keys.list(file)[0].revoked_s is not None


ROWS = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.0,50,8\n"


def test_a_place_on_disk_may_be_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conv.csv").write_text(ROWS)
    Path("routing.json").write_text("no routing")
    played = breakeven.simulate("llama-3.2-1b", breakeven.Traffic(trace="conv.csv"), machine=CHIP)
    assert played == breakeven.simulate("llama-3.2-1b", breakeven.Traffic(trace=Path("conv.csv")), machine=CHIP)
    with pytest.raises(UserError, match=r"^routing\.json: "):
        breakeven.predict(["olmoe-1b-7b"], [CHIP], routing={"olmoe-1b-7b": "routing.json"})
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert breakeven.init_study("study.yaml").is_file()
    with pytest.raises(UserError, match="nothing to resume in here-calibration"):
        breakeven.calibrate(breakeven.CalibrateOptions(out="here.json", resume=True))


def test_so_may_the_texts_and_results_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breakeven.synth(str(ROOT / "examples/tiny-moe.yaml"), tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    Path("text").write_text((ROOT / "docs/metrics.md").read_text())
    assert breakeven.trace("tiny.gguf", ["text"], max_tokens=64).texts[0].label == "text"
    found = breakeven.evaluate(["tiny.gguf"], "text", out="evaluation.json")
    assert read(Path("evaluation.json"), Evaluation) == found
    traffic = breakeven.Traffic(concurrency="1", requests=2, prompt="8", output="2")
    study = breakeven.bench("tiny.gguf", traffic, options=breakeven.LoadOptions(out="kept"))
    assert read(Path("kept/result.json"), LoadStudy) == study


def test_a_file_that_synth_wrote_is_known_as_such(tmp_path: Path) -> None:
    model, asked = tmp_path / "tiny.gguf", tmp_path / "asked.txt"
    breakeven.synth(str(ROOT / "examples/tiny-dense.yaml"), model)
    asked.write_text("word " * 800)  # a byte is a token of such a model
    traffic = breakeven.Traffic(concurrency="1", requests=2, prompts=asked, output="2")
    study = breakeven.bench(str(model), traffic, options=breakeven.LoadOptions(out=tmp_path / "kept"))
    assert SYNTHETIC in study.caveats
    assert not any(study.points[0].errors.values())
    assert [parse_source(text).random_weights for text in ("llama-3.2-1b", "http://127.0.0.1:1/v1#m")] == [True, False]
