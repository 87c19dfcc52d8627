"""Tasks of the user's own: a file of one question a line, what a model answers, and whether that is right.

Two kinds. Exact match: the model generates an answer, whose first line must be one of those given. Multiple choice: the
likeliest of the choices is the model's, by log-likelihood a byte; a model that cannot be asked how likely a text is
gets the choices as letters and generates one. All models of an evaluation are judged in one way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from breakeven.errors import UserError
from breakeven.lab.facts import batch_that_fits, facts_of
from breakeven.lab.lockstep import BATCH, Lockstep, Scored
from breakeven.results.lab import TaskScore
from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.intervals import MIN_PAIRS, mean_interval
from breakeven.stats.percentiles import wilson

FORM = '{"prompt": "2 + 2 =", "answer": "4"} or {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'
MOST_TOKENS = 64
"""Of an answer where the task does not say."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_TOKENS = 8
WHOLE = "all"
"""Language of a task that names none."""
_MOST_BYTES = 256_000_000
_ENDS = " .!?。！？"

OnStep = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered, in at most `max_tokens` tokens, ended before any of `stop`."""

    text: str
    max_tokens: int = MOST_TOKENS
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """An answer. `tokens`: how many, None where nobody counted; `cut`: it would have gone on."""

    text: str
    tokens: int | None
    cut: bool


class Answerer(Protocol):
    """One model that can be asked. `weighs`: it can say how likely a text is. `remarks`: what must be said of it."""

    @property
    def name(self) -> str: ...

    @property
    def weighs(self) -> bool: ...

    @property
    def remarks(self) -> Sequence[str]: ...

    def weigh(self, asked: Sequence[tuple[str, Sequence[str]]], on_step: OnStep) -> list[list[float]]:
        """For each prompt and its continuations the log-likelihood of each continuation, in nats."""
        ...

    def answer(self, asked: Sequence[Prompt], on_step: OnStep) -> list[Said]:
        """The likeliest answer to each."""
        ...


class Local:
    """A model of a `Lockstep`, by its number there: prompts are given as they stand, without a chat template."""

    weighs = True
    remarks: Sequence[str] = ()

    def __init__(self, lock: Lockstep, model: int, name: str) -> None:
        self.name = name
        self._lock, self._model = lock, model
        self._positions = lock.loaded[model].n_positions

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, with what the tokenizer puts before it."""
        return self._lock.tokenize(self._model, text)

    def weigh_ids(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of tokens after others (one at least), and whether each is the likeliest where it stands."""
        scores = self._lock.score([*before, *after], only=[self._model])
        start = len(before) - 1
        likeliest = bool((scores.likeliest[0, start:] == list(after)).all())
        return -float(scores.nats[0, start:].sum(dtype=float)), likeliest

    def weigh(self, asked: Sequence[tuple[str, Sequence[str]]], on_step: OnStep) -> list[list[float]]:
        """As `Answerer` says, from the first token on in which a prompt's continuations differ from it."""
        found = []
        for number, (prompt, after) in enumerate(asked):
            alone, wholes = self.ids(prompt), [self.ids(prompt + each) for each in after]
            # A word's end may make one token with what follows: then that token is of the continuation.
            shared = max(1, min(_shared(alone, whole) for whole in wholes))
            for whole in wholes:
                self._check_room(len(whole), prompt)
            found.append([self.weigh_ids(whole[:shared], whole[shared:])[0] for whole in wholes])
            on_step("weighing", (number + 1) / len(asked))
        return found

    def answer(self, asked: Sequence[Prompt], on_step: OnStep) -> list[Said]:
        """As `Answerer` says."""
        found = []
        for number, each in enumerate(asked):
            found.append(self.answer_ids(self.ids(each.text), each))
            on_step("answering", (number + 1) / len(asked))
        return found

    def answer_ids(self, tokens: Sequence[int], asked: Prompt) -> Said:
        """The likeliest answer to `tokens`, which are those of the prompt."""
        self._check_room(len(tokens) + asked.max_tokens, asked.text)
        ids = self._lock.generate(self._model, tokens, asked.max_tokens, asked.stop)
        text = self._lock.text_of(self._model, ids)
        ends = [at for stop in asked.stop if (at := text.find(stop)) >= 0]
        return Said(text[: min(ends)] if ends else text, len(ids), len(ids) >= asked.max_tokens and not ends)

    def _check_room(self, tokens: int, prompt: str) -> None:
        if self._positions and tokens > self._positions:
            raise UserError(
                f"{prompt[:40]!r}... and its answer take {tokens} tokens, and {self.name} was made for "
                f"{self._positions}; shorten the prompt or its max_tokens"
            )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question. `choices` empty: an answer is generated, and any of `answers` is right."""

    name: str
    language: str
    prompt: Prompt
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def right(self) -> int:
        """Place of the right choice."""
        return self.choices.index(self.answers[0])


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line as it is written."""

    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    answer: int | str | list[str]
    choices: Annotated[list[str], msgspec.Meta(min_length=2, max_length=len(LETTERS))] | None = None
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] | None = None
    language: Annotated[str, msgspec.Meta(min_length=1, max_length=20)] = WHOLE
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=8192)] = MOST_TOKENS
    stop: str | list[str] = []


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file, one JSON object a line. Raises UserError naming the line that is none, and why."""
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: is {path.stat().st_size / 1e6:.0f} MB; give some thousand tasks, one a line")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of tasks, each {FORM}") from error
    found: list[Task] = []
    lines: dict[Task, int] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        task = _task(f"{path}:{number}", raw, path.stem)
        if task in lines:
            raise UserError(f"{path}:{number}: is the task of line {lines[task]} again; a task counts once, so drop it")
        lines[task] = number
        found.append(task)
    if not found:
        raise UserError(f"{path}: holds no tasks; write one a line, such as {FORM}")
    return found


def _task(place: str, raw: bytes, usual: str) -> Task:
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{place}: is not UTF-8; write the file anew in UTF-8") from None
    try:
        line = msgspec.json.decode(raw, type=_Line)
    except msgspec.ValidationError as error:
        raise UserError(f"{place}: {str(error).replace('`', '')}; a task is {FORM}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({error}); a task is {FORM}") from None
    stop = (line.stop,) if isinstance(line.stop, str) else tuple(line.stop)
    if "" in stop:
        raise UserError(f"{place}: stop holds an empty text, at which every answer would end; leave it out")
    prompt = Prompt(line.prompt, line.max_tokens, stop)
    name = line.name or usual
    if line.choices is not None:
        right = _choice(place, line.choices, line.answer)
        return Task(name=name, language=line.language, prompt=prompt, answers=(right,), choices=tuple(line.choices))
    if isinstance(line.answer, int):
        raise UserError(f'{place}: the answer is the number {line.answer}; write it as text, "{line.answer}"')
    answers = (line.answer,) if isinstance(line.answer, str) else tuple(line.answer)
    if not answers or not all(plain(answer) for answer in answers):
        raise UserError(f"{place}: the answer is empty; write the text that is right")
    return Task(name=name, language=line.language, prompt=prompt, answers=answers)


def _choice(place: str, choices: Sequence[str], answer: int | str | list[str]) -> str:
    """The right one of `choices`, which a line names by its place, from 0, or its text."""
    if len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices):
        raise UserError(f"{place}: two choices are the same, or one is empty; make them differ")
    if isinstance(answer, int):
        if not 0 <= answer < len(choices):
            last = len(choices) - 1
            raise UserError(f"{place}: the answer is choice {answer}; choices are counted from 0, here to {last}")
        return choices[answer]
    if isinstance(answer, list) or answer not in choices:
        shown = answer if isinstance(answer, str) else ", ".join(answer)
        raise UserError(f"{place}: the answer {shown!r} is none of the choices; write one of them, or its place from 0")
    return answer


def plain(text: str) -> str:
    """A text as answers are compared: one form of every letter, no case, single spaces, no full stop at its end."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(_ENDS)


def is_right(said: str, answers: Sequence[str]) -> bool:
    """Whether the first line that is not empty, or all of it for an answer of several lines, is one of `answers`."""
    first = next((line for line in said.splitlines() if line.strip()), "")
    return any(plain(said if "\n" in answer.strip() else first) == plain(answer) for answer in answers)


def joined(prompt: str, answer: str) -> str:
    """What must follow `prompt` so that `answer` does: a space between, unless one is there or the script has none."""
    if not prompt or prompt[-1].isspace() or answer[0].isspace():
        return answer
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in (prompt[-1], answer[0])):
        return answer
    return f" {answer}"


def ask(
    tasks: Sequence[Task], models: Sequence[Answerer], on_step: OnStep = lambda what, share: None
) -> tuple[list[list[TaskScore]], list[str]]:
    """Put all tasks to each of `models` in turn: scores by name and language of task, and what must be said of them."""
    caveats: list[str] = []
    weighed = all(model.weighs for model in models)
    if any(task.choices for task in tasks) and not weighed:
        blind = ", ".join(model.name for model in models if not model.weighs)
        caveats.append(
            f"Choices were put as letters to be answered, to all models, as {blind} cannot say how likely a text is; "
            "shares so solved do not compare with those by log-likelihood."
        )
    found = []
    for model in models:
        caveats += model.remarks
        told, said = _one(tasks, model, weighed, on_step)
        found.append(told)
        caveats += said
    return found, caveats


def ask_all(
    tasks: Sequence[Task],
    loaded: Mapping[str, Scored],
    others: Sequence[Answerer] = (),
    threads: int | None = None,
    on_step: OnStep = lambda what, share: None,
) -> tuple[list[list[TaskScore]], list[str]]:
    """`ask` of models loaded here, by name, and of `others`, in this order.

    Raises UserError, before anything is loaded, where they do not fit into memory together.
    """
    if not loaded:
        return ask(tasks, others, on_step)
    facts = [facts_of(each.path) for each in loaded.values()]
    batch = batch_that_fits(facts, max(map(_most_positions, tasks)), BATCH, small=False)
    with Lockstep(list(loaded.values()), threads, batch=batch) as lock:
        return ask(tasks, [*(Local(lock, i, name) for i, name in enumerate(loaded)), *others], on_step)


def _most_positions(task: Task) -> int:
    """Tokens of its prompt with its answer, or its choices as letters, at most: one a byte and what stands around."""
    if task.choices:
        return len(task.prompt.text.encode()) + sum(len(choice.encode()) + 4 for choice in task.choices) + 64
    return len(task.prompt.text.encode()) + task.prompt.max_tokens + 4


def _one(tasks: Sequence[Task], model: Answerer, weighed: bool, on_step: OnStep) -> tuple[list[TaskScore], list[str]]:
    def step(what: str) -> OnStep:
        return lambda _, share: on_step(f"{what} of {model.name}", share)

    chosen = [task for task in tasks if task.choices]
    written = [task for task in tasks if not task.choices]
    solved: dict[Task, bool] = {}
    lengths: dict[Task, Said] = {}
    if chosen and weighed:
        asked = [(t.prompt.text, [joined(t.prompt.text, choice) for choice in t.choices]) for t in chosen]
        for task, nats in zip(chosen, model.weigh(asked, step("choices")), strict=True):
            # A byte, not a token: a choice that takes more words is not the less likely for it.
            each = [value / len(choice.encode()) for value, choice in zip(nats, task.choices, strict=True)]
            solved[task] = each.index(max(each)) == task.right
    elif chosen:
        prompts = [Prompt(_lettered(task), LETTER_TOKENS) for task in chosen]
        for task, said in zip(chosen, model.answer(prompts, step("choices")), strict=True):
            solved[task] = _chosen(said.text, task) == task.right
    if written:
        for task, said in zip(written, model.answer([t.prompt for t in written], step("answers")), strict=True):
            solved[task] = is_right(said.text, task.answers)
            lengths[task] = said
    groups: dict[tuple[str, str, bool], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.name, task.language, bool(task.choices)), []).append(task)
    scores = []
    for (name, language, chooses), group in groups.items():
        share = wilson(sum(solved[task] for task in group), len(group))
        # An answer that we end says nothing of how long the model's own are.
        free = not any(task.prompt.stop for task in group)
        answers = [lengths[task] for task in group if task in lengths and free]
        scores.append(
            TaskScore(
                name=name,
                language=language,
                tasks=len(group),
                solved=measured(share.share, share.low, share.high, share.n),
                answer_tokens=_length(answers),
                method="likelihood" if chooses and weighed else "generation",
                cut=sum(said.cut for said in answers) if answers else None,
            )
        )
    cut = sum(score.cut or 0 for score in scores)
    if not cut:
        return scores, []
    return scores, [
        f"{cut} of {len(written)} answers of {model.name} were cut at the most tokens allowed: on average they are "
        "longer than is said; give tasks a max_tokens that lets them end."
    ]


def _length(answers: Sequence[Said]) -> Estimate | None:
    """Mean tokens of answers; None without any, or where one was not counted."""
    counts = [said.tokens for said in answers if said.tokens is not None]
    if not counts or len(counts) < len(answers):
        return None
    if len(counts) < MIN_PAIRS:
        return measured(sum(counts) / len(counts), None, None, len(counts))
    return measured(*mean_interval(counts), len(counts))


def _lettered(task: Task) -> str:
    """A choice as a question that a letter answers."""
    listed = "\n".join(f"{letter}) {choice.strip()}" for letter, choice in zip(LETTERS, task.choices, strict=False))
    return f"{task.prompt.text.rstrip()}\n\n{listed}\n\nAnswer with one letter.\nAnswer:"


_LETTER = re.compile(r"\W*([A-Za-z])(?![\w'])")


def _chosen(said: str, task: Task) -> int | None:
    """The choice that an answer names: by its text, else by a letter that stands alone at its head; None: neither."""
    first = next((line for line in said.splitlines() if line.strip()), "")
    texts = [plain(choice) for choice in task.choices]
    if plain(first) in texts:
        return texts.index(plain(first))
    letter = _LETTER.match(first)
    place = -1 if letter is None else LETTERS.find(letter[1].upper())
    return place if 0 <= place < len(texts) else None
