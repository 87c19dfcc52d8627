"""Tasks of one's own: what a line may be, what counts as right, and models behind URLs that answer or weigh."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from inside_fixtures import PROSE
from lab_fixtures import texts, toy

import breakeven
from breakeven.errors import UserError
from breakeven.lab.lockstep import Lockstep, Scored
from breakeven.lab.remote import Remote
from breakeven.lab.tasks import Local, OnStep, Prompt, Said, ask, is_right, joined, read_tasks
from breakeven.wire.behaviours import whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer

CAPITAL = {"prompt": "The capital of France is", "answer": "Paris"}
SUM = {"prompt": "2 + 2 =", "choices": ["3", "4", "22"], "answer": 1, "name": "sums", "language": "en"}


def tasks_in(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "quiz.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_line_is_a_question_with_its_answer_or_its_choices(tmp_path: Path) -> None:
    capital, total = read_tasks(tasks_in(tmp_path, CAPITAL, "", SUM))
    assert (capital.name, capital.language, capital.answers, capital.choices) == ("quiz", "all", ("Paris",), ())
    assert capital.prompt == Prompt("The capital of France is", 64, ())
    assert (total.name, total.language, total.answers, total.right) == ("sums", "en", ("4",), 1)
    by_text = read_tasks(tasks_in(tmp_path, SUM | {"answer": "22"}, CAPITAL | {"answer": ["Paris", "paris city"]}))
    assert by_text[0].right == 2
    assert by_text[1].answers == ("Paris", "paris city")


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("{", "is not JSON"),
        ("[1]", "Expected object, got array"),
        ({"prompt": "x"}, "missing required field answer"),
        ({"prompt": "", "answer": "x"}, "length >= 1 - at $.prompt"),
        (CAPITAL | {"anser": "x"}, "unknown field anser"),
        (CAPITAL | {"answer": ""}, "the answer is empty"),
        (CAPITAL | {"answer": " . "}, "the answer is empty"),
        (CAPITAL | {"answer": []}, "the answer is empty"),
        (CAPITAL | {"answer": 4}, 'write it as text, "4"'),
        (CAPITAL | {"max_tokens": 0}, "$.max_tokens"),
        (CAPITAL | {"stop": [""]}, "every answer would end"),
        (SUM | {"answer": 3}, "choice 3; choices are counted from 0, here to 2"),
        (SUM | {"answer": "5"}, "the answer '5' is none of the choices"),
        (SUM | {"choices": ["4"]}, "length >= 2"),
        (SUM | {"choices": ["4", "4"]}, "two choices are the same"),
        (CAPITAL, "is the task of line 1 again"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: object, right: str) -> None:
    path = tasks_in(tmp_path, CAPITAL, SUM, line)
    with pytest.raises(UserError) as error:
        read_tasks(path)
    text = str(error.value)
    assert text.startswith(f"{path}:3: ")
    assert right in text
    assert "\n" not in text


def test_a_file_that_holds_no_tasks_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tasks; write one a line"):
        read_tasks(tasks_in(tmp_path, ""))
    with pytest.raises(UserError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")
    path = tmp_path / "koi8.jsonl"
    path.write_bytes(json.dumps(CAPITAL).encode() + b"\n" + '{"prompt": "да", "answer": "нет"}'.encode("koi8-r"))
    with pytest.raises(UserError, match=r"koi8\.jsonl:2: is not UTF-8"):
        read_tasks(path)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Paris", True),
        (" paris.\nThe capital of Spain is", True),
        ("\n\nParis  \n", True),
        ("Paris, France", False),
        ("It is Paris", False),
        ("", False),
    ],
)
def test_the_first_line_is_the_answer(said: str, right: bool) -> None:
    assert is_right(said, ["Paris"]) is right


def test_forms_of_letters_and_answers_of_several_lines() -> None:
    assert is_right("Cafe\u0301", ["CAF\u00c9"])
    assert is_right("東京。", ["東京"])
    assert is_right("a\n b \n", ["a\nb"])
    assert not is_right("a\nc", ["a\nb"])


def test_a_space_stands_between_words_and_not_in_scripts_without() -> None:
    assert joined("The capital is", "Paris") == " Paris"
    assert joined("The capital is ", "Paris") == "Paris"
    assert joined("The capital is", " Paris") == " Paris"
    assert joined("日本の首都は", "東京") == "東京"


class Known:
    """A model of which everything is known: it says what it is told to, and likes continuations by a number."""

    def __init__(self, name: str, says: dict[str, Said], likes: Callable[[str], float] | None = None) -> None:
        self.name, self.says, self.likes = name, says, likes
        self.heard: list[Prompt] = []

    @property
    def weighs(self) -> bool:
        return self.likes is not None

    @property
    def remarks(self) -> Sequence[str]:
        return ()

    def weigh(self, asked: Sequence[tuple[str, Sequence[str]]], on_step: OnStep) -> list[list[float]]:
        assert self.likes is not None
        return [[self.likes(prompt + each) for each in after] for prompt, after in asked]

    def answer(self, asked: Sequence[Prompt], on_step: OnStep) -> list[Said]:
        self.heard += asked
        return [next(said for start, said in self.says.items() if each.text.startswith(start)) for each in asked]


def test_scores_are_by_name_and_language_with_their_intervals_and_lengths(tmp_path: Path) -> None:
    capitals = [CAPITAL | {"prompt": f"{i}. The capital of France is"} for i in range(8)]
    tasks = read_tasks(tasks_in(tmp_path, *capitals, SUM, SUM | {"prompt": "4 =", "language": "de"}))
    says = {f"{i}.": Said("Paris" if i < 6 else "Rome", 3 + i, cut=i == 7) for i in range(8)}
    # The right one of three is the likeliest a byte, though not as a whole.
    likes = {"2 + 2 = 3": -4.0, "2 + 2 = 4": -3.0, "2 + 2 = 22": -5.0, "4 = 3": -1.0, "4 = 4": -2.0, "4 = 22": -9.0}
    ((quiz, en, de),), caveats = ask(tasks, [Known("m", says, likes.__getitem__)])
    assert (quiz.name, quiz.tasks, quiz.solved.value, quiz.method, quiz.cut) == ("quiz", 8, 0.75, "generation", 1)
    assert quiz.solved.low == pytest.approx(0.4093, abs=1e-4)  # Wilson, 6 of 8
    assert quiz.answer_tokens is not None
    assert quiz.answer_tokens.value == 6.5
    assert quiz.answer_tokens.n == 8
    assert (en.name, en.language, en.solved.value, en.method, en.answer_tokens) == (
        "sums",
        "en",
        0.0,
        "likelihood",
        None,
    )
    assert (de.language, de.solved.value) == ("de", 0.0)
    assert caveats == [
        "1 of 8 answers of m were cut at the most tokens allowed: on average they are longer than is said; give tasks "
        "a max_tokens that lets them end."
    ]


def test_one_model_that_cannot_weigh_makes_all_answer_by_letter(tmp_path: Path) -> None:
    tasks = read_tasks(tasks_in(tmp_path, SUM, SUM | {"prompt": "4 ="}, SUM | {"prompt": "5 - 1 is"}))
    seeing = Known("seeing", {"2": Said(" B) 4", 3, False), "4": Said("22", 3, False), "5": Said("b", 1, False)}, len)
    blind = Known("blind", {"2": Said("Bananas", 3, False), "4": Said("4.", 3, False), "5": Said("**B**", 1, False)})
    ((first,), (second,)), caveats = ask(tasks, [seeing, blind])
    assert (first.method, second.method) == ("generation", "generation")
    assert [round(score.solved.value * 3) for score in (first, second)] == [2, 2]
    assert seeing.heard[0].text == "2 + 2 =\n\nA) 3\nB) 4\nC) 22\n\nAnswer with one letter.\nAnswer:"
    assert "as blind cannot say how likely a text is" in caveats[0]
    assert first.answer_tokens is None  # a letter is no answer whose length says anything


# --- URLs ------------------------------------------------------------------------------------------------------------

KEY = "BREAKEVEN_API_KEY"


def reply(question: ScriptedRequest, form: str) -> dict[str, Any]:
    """A server whose tokens are words; each is the less likely the longer it is. It tells as `form` has it."""
    body = question.fields
    prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    words = prompt.split(" ")
    values: list[float | None] = [None, *(-0.5 * len(word) for word in words[1:])]
    said = " Paris" if "France" in prompt else " Rome is large"
    option: dict[str, Any] = {"index": 0, "text": said, "finish_reason": "length" if "large" in said else "stop"}
    if form == "vllm" and "prompt_logprobs" in body:
        # As vLLM with a token that begins every text: it alone has no number.
        told = [
            {"7": {"logprob": v or -1.0, "rank": 1, "decoded_token": w}} for v, w in zip(values, words, strict=True)
        ]
        option["prompt_logprobs"] = [None, *told]
    if form in ("echo", "zeros") and body.get("echo"):
        given = [None, *([0.0] * (len(words) - 1))] if form == "zeros" else values
        option["logprobs"] = {"tokens": [*words, "x"], "token_logprobs": [*given, -9.0], "text_offset": []}
    if form == "generated" and "logprobs" in body:  # llama.cpp: of what was generated alone
        option["logprobs"] = {"content": [{"token": "x", "logprob": -0.1}]}
    if "messages" in body:
        option["message"] = {"role": "assistant", "content": option.pop("text").strip()}
    return {
        "object": "text_completion",
        "choices": [option],
        "usage": {"prompt_tokens": len(words), "completion_tokens": len(said.split())},
    }


def server_of(form: str, **settings: Any) -> ScriptedServer:
    def script(question: ScriptedRequest) -> Scene:
        if form == "refused" and question.fields.get("echo"):
            return whole(b'{"error": {"message": "Only no echo is supported"}}', status=400)
        return whole(json.dumps(reply(question, form)).encode())

    return ScriptedServer(script, models=["m"], **settings)


@pytest.mark.parametrize("form", ["vllm", "echo"])
def test_a_server_that_tells_is_read_in_either_form(form: str) -> None:
    with server_of(form) as server:
        model = Remote(f"{server.url}/v1#m")
        assert (model.name, model.weighs) == ("m", True)
        (read,) = model.read(["one three five"])
        assert read.nats.tolist() == [2.5, 2.0]
        assert read.n_bytes == len(" three five")
        # Of both together less that of the prompt: the words of the continuation alone.
        (weights,) = model.weigh([("The capital is", [" Paris", " a town"])], lambda what, share: None)
    assert weights == [pytest.approx(-2.5), pytest.approx(-2.5)]


@pytest.mark.parametrize("form", ["generated", "zeros", "refused", "none"])
def test_numbers_that_are_not_of_the_text_are_not_believed(form: str) -> None:
    with server_of(form) as server:
        model = Remote(f"{server.url}/v1#m")
        assert not model.weighs
        with pytest.raises(
            UserError, match=r"gives no log-probabilities of a prompt.*give its weights.*or give --tasks"
        ):
            model.read(["some text"])


def test_tasks_are_answered_over_a_url_with_its_key_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-1")
    italy = CAPITAL | {"prompt": "The capital of Italy is", "answer": "Rome is large", "stop": "\n", "max_tokens": 9}
    spain = CAPITAL | {"prompt": "The capital of Spain is", "answer": "Rome is large"}
    lyon = CAPITAL | {"prompt": "In France it is", "answer": "Lyon"}
    tasks = read_tasks(tasks_in(tmp_path, CAPITAL, spain, lyon, italy | {"name": "stopped"}))
    with server_of("none", key="sk-1") as server:
        ((score, stopped),), caveats = ask(tasks, [Remote(f"{server.url}/v1#m")])
        sent = [json.loads(body) for body in server.seen.bodies]
    assert round(score.solved.value * 3) == 2
    assert score.answer_tokens is not None
    assert score.answer_tokens.value == pytest.approx(5 / 3)
    assert score.cut == 1
    assert caveats
    # An answer that we end says nothing of its length.
    assert (stopped.solved.value, stopped.answer_tokens, stopped.cut) == (1.0, None, None)
    asked = next(body for body in sent if body.get("prompt") == italy["prompt"])
    assert (asked["stop"], asked["max_tokens"], asked["temperature"], asked["stream"]) == (["\n"], 9, 0, False)


def test_an_answer_that_did_not_come_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakeven.lab.remote.FIRST_WAIT_S", 0.01)
    failing = False

    def script(question: ScriptedRequest) -> Scene | str:
        busy = failing and question.number % 2 == 0
        return "503" if busy else whole(json.dumps(reply(question, "none")).encode())

    with ScriptedServer(script, models=["m"]) as server:
        model = Remote(f"{server.url}/v1#m")
        failing = True
        said = model.answer([Prompt("France"), Prompt("Spain")], lambda what, share: None)
        assert [each.text for each in said] == [" Paris", " Rome is large"]
        server.script = "400"
        with pytest.raises(UserError, match=r"did not answer \(status 400.*evaluate again"):
            model.answer([Prompt("France")], lambda what, share: None)


def test_the_page_shows_lines_that_read(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    lines = page.partition("```json\n")[2].partition("```")[0].splitlines()
    tasks = read_tasks(tasks_in(tmp_path, *lines))
    assert [task.name for task in tasks] == ["quiz", "capitals", "facts"]
    keys = set(tasks[0].__slots__) - {"prompt", "answers"} | {"prompt", "answer", "max_tokens", "stop"}
    assert all(f"| `{key}` |" in page for key in keys)


# --- in the process --------------------------------------------------------------------------------------------------


def test_a_real_model_answers_and_chooses_in_the_process(tmp_path: Path, smollm2_gguf: Path) -> None:
    quiz: list[dict[str, Any]] = [
        CAPITAL,
        {"prompt": "One, two, three, four,", "answer": "five", "stop": [",", "\n"]},
    ]
    asked = [
        {"prompt": "The sun rises in the", "choices": ["east", "kitchen", "bottle"], "answer": "east"},
        {"prompt": "The opposite of hot is", "choices": ["cold", "a bicycle made of wood"], "answer": 0},
    ]
    tasks = read_tasks(tasks_in(tmp_path, *(each | {"max_tokens": 6} for each in quiz), *asked))
    with Lockstep([Scored(smollm2_gguf)], threads=1) as lock:
        model = Local(lock, 0, "smollm2")
        ((written, chosen),), caveats = ask(tasks, [model])
        assert (written.solved.value, chosen.solved.value) == (1.0, 1.0)
        assert (written.method, chosen.method) == ("generation", "likelihood")
        # The second ends at its stop, of which no more is generated; the first may go on to the most allowed.
        five = model.answer([tasks[1].prompt], lambda what, share: None)[0]
        assert (five.text.strip(), five.cut) == ("five", False)
        assert five.tokens == 2
        assert len(caveats) == (written.cut or 0)
        with pytest.raises(UserError, match=r"take \d+ tokens, and smollm2 was made for \d+; shorten the prompt"):
            model.answer([Prompt("word " * 9000)], lambda what, share: None)


def test_a_file_and_urls_are_evaluated_side_by_side(tmp_path: Path) -> None:
    shallow = toy(tmp_path / "shallow.gguf")
    (tmp_path / "text.txt").write_text("\n\n".join(f"{i}. {PROSE} {PROSE}" for i in range(50)), encoding="utf-8")
    path = tasks_in(tmp_path, CAPITAL | {"stop": "\n", "max_tokens": 3})
    with server_of("echo") as seeing, server_of("none") as blind:
        urls = [f"{seeing.url}/v1#m", f"{blind.url}/v1#m"]
        found = breakeven.evaluate([*urls, shallow], tmp_path / "text.txt", tasks=path, against=shallow, threads=1)
        with pytest.raises(UserError, match="gives no log-probabilities of a prompt"):
            breakeven.evaluate([urls[1]], tmp_path / "text.txt")
    local, far, without = found.models
    assert [model.name for model in found.models] == ["shallow", "m", urls[1]]
    assert (far.path, far.sha256, far.format, far.bits_per_weight) == (urls[0], None, None, None)
    (here,), (there,) = local.slices, far.slices
    assert (there.blocks, there.documents) == (here.blocks, 1)
    # A nat for two letters of every word, and none for the first.
    letters = len(PROSE.replace(" ", "")) / len(PROSE)
    assert there.bits_per_byte.value == pytest.approx(letters / 2 / math.log(2), rel=0.05)
    assert there.difference is not None
    assert there.difference.value == pytest.approx(there.bits_per_byte.value - here.bits_per_byte.value, rel=1e-3)
    assert there.difference.low is not None
    assert (there.kl, there.kl_p99, there.top1) == (None, None, None)  # never zero: nobody knows them
    assert (without.slices, without.tokens_per_s) == ([], None)
    assert any("so no bits per byte can be had of it" in caveat for caveat in found.caveats)
    assert [model.tasks[0].solved.value for model in found.models] == [0.0, 1.0, 1.0]
    assert "--tasks" in found.command


def test_nothing_to_evaluate_by_is_said(smollm2_gguf: Path) -> None:
    with pytest.raises(UserError, match=r"give a text \(--text\), tasks \(--tasks\), or both"):
        breakeven.evaluate([smollm2_gguf])


def test_a_source_beside_a_url_alone_is_paired_with_it_and_what_a_url_cannot_do_is_refused(tmp_path: Path) -> None:
    shallow, text = toy(tmp_path / "shallow.gguf"), texts(tmp_path / "texts", ("en",))
    with server_of("echo") as server:
        url = f"{server.url}/v1#m"
        found = breakeven.evaluate([url], text, against=shallow, threads=1)
        with pytest.raises(UserError, match="--used: the server of a URL has its experts"):
            breakeven.evaluate([url], text, used=[4])
        with pytest.raises(UserError, match=r"--against http.*a server tells no whole distributions"):
            breakeven.evaluate([shallow], text, against=url)
    assert (found.against, [model.name for model in found.models]) == ("shallow", ["shallow", "m"])
    (own,), (far,) = (model.slices for model in found.models)
    assert far.source_bits_per_byte == own.bits_per_byte
    assert far.difference is not None


def test_memory_for_tasks_is_predicted_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow, path = toy(tmp_path / "shallow.gguf"), tasks_in(tmp_path, CAPITAL, SUM)
    monkeypatch.setattr("breakeven.lab.facts.free_memory", lambda: 1000)
    monkeypatch.setattr("breakeven.lab.tasks.Lockstep", None)
    with pytest.raises(UserError, match=r"the model need about .* in memory, and 0 MB are free"):
        breakeven.evaluate([shallow], tasks=path, threads=1)
