"""Breakeven as a model of lm-evaluation-harness: the numbers are those of the logits, its own evaluation runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from inside_fixtures import PROSE, decoded_shallow_copy

from breakeven.engines.inside.client import Inside
from breakeven.errors import UserError

pytest.importorskip("lm_eval")

from breakeven.lab.harness import HarnessModel

QUIZ = [
    {"question": "The sky is", "choices": [" blue", " made of cheese"], "gold": 0},
    {"question": "Two and two are", "choices": [" four", " a table"], "gold": 0},
]
TASK = """\
task: quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def shallow(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoded_shallow_copy(smollm2_gguf, tmp_path_factory.mktemp("harness") / "shallow.gguf", 2)


@pytest.fixture(scope="module")
def model(shallow: Path) -> Iterator[HarnessModel]:
    made = HarnessModel(str(shallow), max_length=64)
    yield made
    made.close()


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_log_likelihoods_are_those_of_the_logits(model: HarnessModel, shallow: Path) -> None:
    with Inside(shallow) as inside:
        tokens = inside.tokenize(PROSE)
        logits = inside.logits(tokens).astype(np.float64)
        greedy = inside.greedy(inside.tokenize("The lamp"), 4)
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    each = log_p[np.arange(len(tokens) - 1), tokens[1:]]
    at = PROSE.index(" on the last night")
    start = len(model.tok_encode(PROSE[:at]))
    ((value, is_greedy),) = model.loglikelihood([asked(PROSE[:at], PROSE[at:])])
    assert value == pytest.approx(each[start - 1 :].sum(), rel=1e-4)
    assert not is_greedy
    ((_, is_greedy),) = model.loglikelihood([asked("The lamp", model._lock.text_of(0, greedy[:2]))])
    assert is_greedy
    # A text without a context is read after the token that begins or ends one: every token of it counts.
    (whole,) = model.loglikelihood_rolling([asked(PROSE)])
    ((pair, _),) = model.loglikelihood([asked("", PROSE)])
    assert whole == pytest.approx(pair, rel=1e-5)
    assert whole < each.sum()


def test_long_texts_are_read_in_windows_and_answers_end_at_their_stop(model: HarnessModel) -> None:
    text = " ".join([PROSE] * 8)
    assert len(model.tok_encode(text)) > 2 * 64
    (pieces,) = model.loglikelihood_rolling([asked(text)])
    model.max_length = 512
    (whole,) = model.loglikelihood_rolling([asked(text)])
    model.max_length = 64
    assert pieces != whole  # tokens have less before them, but each counts once
    assert pieces == pytest.approx(whole, rel=0.1)
    (free,) = model.generate_until([asked("The lamp", {"until": [], "max_gen_toks": 8})])
    stop = free.strip().split(" ")[0][-1]
    (ended,) = model.generate_until([asked("The lamp", {"until": [stop], "max_gen_toks": 8})])
    assert ended == free[: free.index(stop)]
    with pytest.raises(UserError, match="samples its answers"):
        model.generate_until([asked("x", {"do_sample": True, "temperature": 0.8})])
    with pytest.raises(UserError, match="leave no room"):
        model.generate_until([asked("x", {"max_gen_toks": 64})])


def test_the_harness_itself_runs_on_it(shallow: Path, tmp_path: Path) -> None:
    (tmp_path / "quiz.json").write_text("\n".join(map(json.dumps, QUIZ)))
    (tmp_path / "quiz.yaml").write_text(TASK.format(data=tmp_path / "quiz.json"))
    command = [sys.executable, "-m", "breakeven.lab.harness", "--model_args", f"model={shallow},max_length=128"]
    command += ["--tasks", "quiz", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (result,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(result.read_text())
    assert told["config"]["model"] == "breakeven"
    assert told["results"]["quiz"]["acc,none"] in (0.0, 0.5, 1.0)
