"""Writing a first study: a handful of questions, each with a default, and a file whose comments explain the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from breakeven.answer.study.load import study_of
from breakeven.errors import UserError, expanded
from breakeven.traffic.words import parse_length, parse_rate
from breakeven.traffic.workload import parse_slo

Ask = Callable[[str, str], str]
"""Puts a question with its default to a person and returns what they typed."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class InterviewQuestion:
    """`check` raises UserError for an answer that cannot be used."""

    key: str
    text: str
    default: str
    check: Callable[[str], object]


def ask(path: Path | str) -> Path:
    """Write a study to `path` by asking on the terminal. Where nobody is at one, every default is taken."""
    if not sys.stdin.isatty():
        return init_study(Path(path))
    return init_study(Path(path), _on_terminal, lambda text: print(f"  {text}", file=sys.stderr))


def _on_terminal(question: str, default: str) -> str:
    try:
        return input(f"{question}\n  [{default}] ")
    except EOFError:
        raise KeyboardInterrupt from None


def init_study(path: Path, ask: Ask | None = None, tell: Tell = lambda _: None) -> Path:
    """Write a commented study to `path`; `ask` None takes every default.

    A wrong answer is explained through `tell` and asked again. The file is read back before it is left. Raises
    UserError when `path` exists: a study is somebody's work.
    """
    if path.exists():
        raise UserError(f"{path}: is there already; give another name, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its directory does not exist; create it first")
    text = study_text(interview(ask, tell), path.parent)
    path.write_text(text, encoding="utf-8")
    return path


def interview(ask: Ask | None, tell: Tell = lambda _: None) -> dict[str, str]:
    """The answer to every one of `QUESTIONS`, by key."""
    answers = {}
    for question in QUESTIONS:
        while True:
            answer = question.default if ask is None else ask(question.text, question.default).strip()
            answer = answer or question.default
            try:
                question.check(answer)
            except UserError as error:
                if ask is None:
                    raise
                tell(str(error))
            else:
                answers[question.key] = answer
                break
    return answers


def study_text(answers: Mapping[str, str], directory: Path = Path()) -> str:
    """The study of `answers` as YAML for a file in `directory`, which reads back without an error."""
    import yaml

    models, machines = ([_from(directory, word) for word in _words(answers[key])] for key in ("models", "machines"))
    candidates = []
    for machine in machines:
        for model in models:
            lines = [f"  - name: {_quoted(f'{model} on {machine}')}", f"    model: {_quoted(model)}"]
            lines += [
                f"    machine: {_quoted(machine)}",
                *_format_lines(model, machine),
                *_price_lines(answers["price"]),
            ]
            # Rented machines are taken to stand elsewhere unless the study says otherwise.
            lines += ["    location: on-premise"] if _yes(answers["stays"]) else []
            candidates.append("\n".join(lines))
    text = _TEMPLATE.format(
        question=_quoted(f"Which model should serve {answers['what']}?"),
        name=_quoted(answers["what"]),
        rate=answers["rate"],
        prompt=_quoted(_part(answers["lengths"], 0)),
        output=_quoted(_part(answers["lengths"], 1)),
        slo=_quoted(answers["slo"]),
        on_premise="true" if _yes(answers["stays"]) else "false",
        candidates="\n".join(candidates),
    )
    # What cannot be read back would be found out one command too late.
    study_of(yaml.safe_load(text), directory.resolve() / "study.yaml", "the study")
    return text


def _check_models(text: str) -> None:
    from breakeven.model.catalogue import find
    from breakeven.model.resolve import bare_name

    names = " ".join(bare_name(name) for name in _words(text))
    _check_each(names, "model", (".yaml", ".yml", ".json", ".gguf"), lambda name: "/" in name or find(name))


def _check_machines(text: str) -> None:
    from breakeven.hardware.described import machine_named

    _check_each(text, "machine", (".yaml", ".yml", ".json"), lambda name: name == "this" or machine_named(name))


def _check_each(text: str, what: str, suffixes: tuple[str, ...], look_up: Callable[[str], object]) -> None:
    for name in _words(text):
        if Path(name).suffix not in suffixes:
            look_up(name)
        elif not expanded(name).exists():
            raise UserError(f"{name} does not exist; give a {what}'s name or a file that is there")
    if not _words(text):
        raise UserError(f"give at least one {what}")


def _check_lengths(text: str) -> None:
    if len(_lengths(text)) != 2:
        raise UserError(f"{text!r}: give two lengths in tokens, the question's and the answer's, such as 512 128")
    for part in _lengths(text):
        parse_length(part)


def _check_price(text: str) -> None:
    _price_lines(text)


def _check_yes(text: str) -> None:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise UserError(f"{text!r}: answer yes or no")


def _yes(text: str) -> bool:
    return text.lower() in ("y", "yes")


def _words(text: str) -> list[str]:
    return [part for part in text.replace(",", " ").split() if part]


def _from(directory: Path, word: str) -> str:
    """A file named from here as it is named from `directory`; anything else as it is, and the format behind either."""
    from breakeven.model.resolve import split_format

    name, format_name = split_format(word)
    path = expanded(name)
    if not (path.suffix and path.is_file()):
        return word
    return os.path.relpath(path, directory) + ("" if format_name is None else f":{format_name}")


def _lengths(text: str) -> list[str]:
    return text.split()


def _part(text: str, i: int) -> str:
    return _lengths(text)[i]


def _format_lines(model: str, machine: str) -> list[str]:
    """The format as a line of a candidate; none where the model has one of its own."""
    from breakeven.model.resolve import is_weight_file, split_format

    name, format_name = split_format(model)
    return [] if format_name or is_weight_file(name) else [f"    format: {_format(machine)}"]


def _format(machine: str) -> str:
    """The weight format people commonly run there; a file and `this` may be anything, so llama.cpp's usual one."""
    from breakeven.forecast.profiles import default_engine
    from breakeven.hardware.described import machine_named

    if machine == "this" or Path(machine).suffix:
        return "Q4_K_M"
    chip = machine_named(machine).devices[0]
    if default_engine(chip) == "llama.cpp":
        return "Q4_K_M"
    return "fp8" if "fp8" in chip.peak_flops else "bf16"


def _price_lines(text: str) -> list[str]:
    """The price as lines of a candidate: `1.40/h` is rented, `2800` bought, `unknown` left to be filled in."""
    word = text.strip().lower().lstrip("$")
    if word == "unknown":
        return ["    # price: {rented: {usd_per_hour: 1.40}}   # else its chip's known price; without one it is out"]
    number, slash, unit = word.partition("/")
    try:
        usd = float(number)
        if not (0 <= usd < 1e9) or (slash and unit.strip() not in ("h", "hour")):
            raise ValueError
    except ValueError:
        raise UserError(f"{text!r}: give 1.40/h (rented), 2800 (bought) or unknown, in US dollars") from None
    if slash:
        return [f"    price: {{rented: {{usd_per_hour: {usd:g}}}}}"]
    return [f"    price: {{own: {{usd: {usd:g}, years: 3, usd_per_kwh: {USD_PER_KWH}}}}}"]


def _quoted(text: str) -> str:
    """Text as YAML in double quotes, so that no character in it means anything."""
    import msgspec

    return msgspec.json.encode(text).decode()


USD_PER_KWH = 0.1437
"""Mean of commercial customers in the United States, February 2026: EIA, Electric Power Monthly, table 5.6.A."""

RTX_4090_RENT = "0.60/h"
"""US dollars, of the machine that is the default: RunPod on demand, March 2026, as listed by deploybase.ai."""

QUESTIONS = (
    InterviewQuestion("what", "What is it for?", "our chat service", lambda text: text),
    InterviewQuestion(
        "models", "Which models could do it? (names from `breakeven models`)", "qwen3-30b-a3b qwen3-14b", _check_models
    ),
    InterviewQuestion(
        "machines",
        "On which machines? (`breakeven machines` lists them; with RAM: rtx-3090+ddr4-3200x2:64GB; here: this)",
        "rtx-4090",
        _check_machines,
    ),
    InterviewQuestion(
        "price", "What does one machine cost? (0.60/h rented, 2800 bought, unknown)", RTX_4090_RENT, _check_price
    ),
    InterviewQuestion("rate", "How many requests come? (2/s, 40/min, 5000/day)", "1/s", parse_rate),
    InterviewQuestion("lengths", "How many tokens has a question, and an answer?", "512 128", _check_lengths),
    InterviewQuestion(
        "slo", "How fast is fast enough? (ttft: first token, tpot: each further)", "ttft=2s,tpot=100ms", parse_slo
    ),
    InterviewQuestion("stays", "Must the data stay on your own premises? (yes, no)", "no", _check_yes),
)

_TEMPLATE = """\
# A study for `breakeven decide`. docs/decide.md explains every key; whatever is commented out has a default.
name: {name}
question: {question}

# What comes in, and how it may grow.
load:
  rate: {rate}  # mean arrivals; or `users: 40` with `requests_per_user: 6/h`, or `trace: file.csv`
  # day: loads.csv             # instead: the load of every hour, 24 numbers here or in a file
  # arrivals: gamma:3          # burstier than poisson, the default: coefficient of variation of the gaps
  prompt: {prompt}  # tokens; or lognormal:1155,900[16-8192]
  output: {output}
  # turns: 4                   # each arrival starts a conversation of so many turns
  # cached: 60%                # share of prompt tokens that an API bills as cached
  # low: 0.1/s                 # loads between which flips are looked for
  # high: 30/s
  # growth_per_year: 40%

# What a request must keep to be good, from the moment it is due; `share` of them must.
slo: {slo}

# budget_usd_per_month: 500
constraints:
  on_premise: {on_premise}
  # offline: true
  # memory: 24GB
  # power: 350W
  # licences: [apache-2.0, mit]

# quality:
#   source: own                # own, published or size; the best that covers every candidate when not said
#   scores: {{name of a candidate: 71%}}
#   evaluation: evaluation.json  # instead: what `breakeven evaluate` measured of these candidates
#   max_loss: 3%               # bits per byte that a candidate of it may lose
#   floor: 60%

# languages: [en, de]
# fine_tuning: {{per_year: 4, adapters: 0}}

# A price is that of one replica, all its devices together. A hosted model has no machine, but a price a million tokens:
# `price: {{api: {{input: 0.05, output: 0.08}}}}`. A machine may also be words such as
# rtx-3090+ddr4-3200x2:64GB, or a profile that `breakeven calibrate` wrote.
candidates:
{candidates}
"""
