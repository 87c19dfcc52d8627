"""Request bodies: exact in tokens, distinct, the same every time; against small servers of our own and llama.cpp."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.engines.backend import Backend
from breakeven.engines.llama_cpp.server import LlamaCppServer
from breakeven.errors import EngineError, UserError
from breakeven.measure.bodies import Bodies, prepare_bodies
from breakeven.traffic.draw import draw
from breakeven.traffic.prompts import LANGUAGES, make_corpus, passages
from breakeven.traffic.schedule import Schedule
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.workload import Agents, Arrivals, Length, Workload
from tests.bodies_fixtures import TEMPLATE_TOKENS, TURN_TOKENS, Split, across_words, count, in_words, toy

DATA = Path(__file__).parent / "data" / "traces"


def schedule(**more: Any) -> Schedule:
    asked: dict[str, Any] = {
        "arrivals": Arrivals(process="poisson", rate_per_s=50.0),
        "prompt": Length(kind="uniform", low=30, high=400),
        "output": Length(kind="uniform", low=5, high=60),
        "requests": 24,
        **more,
    }
    return draw(Workload(**asked))


@pytest.fixture(scope="module")
def by_tokens() -> Iterator[Backend]:
    with toy(engine="llama.cpp") as (backend, _):
        yield backend


@pytest.fixture(scope="module")
def by_chat() -> Iterator[Backend]:
    with toy(engine="llama.cpp", route="chat") as (backend, _):
        yield backend


def all_exact(bodies: Bodies, plan: Schedule, split: Split = in_words, rows: int = 60) -> bool:
    return all(
        count(json.loads(bodies.body(i)), split) == bodies.prompt_tokens(i) == plan.context_tokens(i)
        for i in range(rows)
    )


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("languages", [(), ("zh", "ja"), ("code",), ("de", "hi")])
def test_token_ids_are_exact(by_tokens: Backend, turns: int, languages: tuple[str, ...]) -> None:
    plan = schedule(turns=turns, languages=languages)
    bodies = prepare_bodies(by_tokens, plan)
    assert bodies.path == "/v1/completions"
    assert bodies.exact
    assert isinstance(json.loads(bodies.body(0))["prompt"], list)
    assert all_exact(bodies, plan)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("languages", [(), ("zh", "ja"), ("code",)])
def test_chats_are_exact_under_their_template(by_chat: Backend, turns: int, languages: tuple[str, ...]) -> None:
    plan = schedule(turns=turns, languages=languages)
    bodies = prepare_bodies(by_chat, plan)
    assert bodies.path == "/v1/chat/completions"
    assert bodies.exact
    assert bodies.overhead == TEMPLATE_TOKENS
    assert bodies.turn_overhead == (TURN_TOKENS if turns > 1 else 0)
    assert all_exact(bodies, plan)


def test_a_prompt_below_the_template_is_the_least_possible(by_chat: Backend) -> None:
    bodies = prepare_bodies(by_chat, schedule(prompt=Length(mean=3)))
    for i in range(20):
        [message] = json.loads(bodies.body(i))["messages"]
        assert len(in_words(message["content"])) == 1


def test_a_chat_can_be_asked_for(by_tokens: Backend) -> None:
    plan = schedule(chat=True)
    bodies = prepare_bodies(by_tokens, plan)
    assert bodies.path == "/v1/chat/completions"
    assert bodies.exact
    assert all_exact(bodies, plan)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE trained on the built-in text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        passages(), trainers.BpeTrainer(vocab_size=1_200, initial_alphabet=alphabet, show_progress=False)
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def split_by(path: Path) -> Split:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_tokenizer_file_does_as_well(tokenizer_file: Path, route: str) -> None:
    split = split_by(tokenizer_file)
    with toy(split, route=route) as (backend, _):
        plan = schedule(turns=2)
        bodies = prepare_bodies(backend, plan, tokenizer=tokenizer_file)
    assert bodies.exact
    assert bodies.overhead == (TEMPLATE_TOKENS if route == "chat" else 1)
    assert all_exact(bodies, plan, split)


def test_the_wrong_tokenizer_file_is_found_out(tokenizer_file: Path, tmp_path: Path) -> None:
    with toy(across_words, route="chat") as (backend, _):
        assert not prepare_bodies(backend, schedule(), tokenizer=tokenizer_file).exact
    (tmp_path / "tokenizer.json").write_text("{}")
    with toy() as (backend, _), pytest.raises(UserError, match=r"give the model's tokenizer\.json"):
        prepare_bodies(backend, schedule(), tokenizer=tmp_path / "tokenizer.json")


def test_a_tokenizer_that_does_not_add_up_is_not_called_exact() -> None:
    with toy(across_words, engine="llama.cpp", route="chat") as (backend, _):
        assert not prepare_bodies(backend, schedule()).exact


@pytest.mark.parametrize("tokens_a_piece", [1, 2])
def test_usage_alone_gives_about_the_right_length(tokens_a_piece: int) -> None:
    def split(text: str) -> list[str]:
        return [part for piece in in_words(text) for part in [piece] * tokens_a_piece]

    with toy(split) as (backend, asked):
        plan = schedule(prompt=Length(mean=400), languages=("en",))
        bodies = prepare_bodies(backend, plan)
    assert len(asked) == 2
    assert all(body["max_tokens"] == 1 for body in asked)
    assert not bodies.exact
    counts = [count(json.loads(bodies.body(i)), split) for i in range(40)]
    assert sum(counts) / len(counts) == pytest.approx(400, rel=0.15)


def test_a_tokenizer_of_single_bytes_is_exact_too() -> None:
    def split(text: str) -> list[str]:
        return [f"{byte}" for byte in text.encode()]

    with toy(split, engine="llama.cpp", route="chat") as (backend, _):
        plan = schedule(turns=2)
        bodies = prepare_bodies(backend, plan)
    assert bodies.exact
    assert all_exact(bodies, plan, split)


def test_an_engine_that_counts_nothing() -> None:
    with toy(usage=False, engine="llama.cpp", route="chat") as (backend, _):
        assert not prepare_bodies(backend, schedule()).exact
    with toy(usage=False) as (backend, _):
        assert not prepare_bodies(backend, schedule()).exact


def test_an_engine_that_refuses() -> None:
    with toy(status=401) as (backend, _), pytest.raises(EngineError, match="takes the key"):
        prepare_bodies(backend, schedule())


# --- the text --------------------------------------------------------------------------------------------------------


def prompt_of(body: bytes) -> Any:
    fields = json.loads(body)
    return fields["prompt"] if "prompt" in fields else fields["messages"][0]["content"].split()


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=30, unique=True), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_prompt_is_its_own_from_the_first_tokens_on(
    by_tokens: Backend, by_chat: Backend, rows: list[int], chat: bool
) -> None:
    bodies = prepare_bodies(by_chat if chat else by_tokens, schedule(prompt=Length(mean=64)))
    heads = {tuple(prompt_of(bodies.body(i))[: bodies.corpus.salt_tokens]) for i in rows}
    assert len(heads) == len(rows)


def test_neighbours_differ_in_their_first_token(by_tokens: Backend, by_chat: Backend) -> None:
    for backend in (by_tokens, by_chat):
        bodies = prepare_bodies(backend, schedule())
        firsts = [prompt_of(bodies.body(i))[0] for i in range(200)]
        assert all(a != b for a, b in itertools.pairwise(firsts))


def test_the_same_every_time_and_in_another_process(by_tokens: Backend, by_chat: Backend) -> None:
    for backend in (by_tokens, by_chat):
        plan = schedule(turns=2)
        bodies = prepare_bodies(backend, plan, salt="first")
        again = prepare_bodies(backend, plan, salt="first")
        other = prepare_bodies(backend, plan, salt="second")
        copy: Bodies = pickle.loads(pickle.dumps(bodies))
        for i in (0, 1, 7, 23, 24, 10**6):
            assert bodies.body(i) == again.body(i) == copy.body(i)
            assert bodies.body(i) != other.body(i)


def test_a_schedule_that_starts_over_brings_new_text(by_tokens: Backend) -> None:
    plan = schedule()
    bodies = prepare_bodies(by_tokens, plan)
    n = len(plan)
    assert bodies.prompt_tokens(3) == bodies.prompt_tokens(3 + n)
    assert bodies.max_tokens(3) == bodies.max_tokens(3 + n) == plan.row(3).output
    assert bodies.body(3) != bodies.body(3 + n)


@pytest.mark.parametrize("chat", [False, True])
def test_a_conversation_carries_its_history(by_tokens: Backend, by_chat: Backend, chat: bool) -> None:
    plan = schedule(turns=3)
    bodies = prepare_bodies(by_chat if chat else by_tokens, plan)
    for first in (0, 3, len(plan), len(plan) + 3):
        whole = [json.loads(bodies.body(first + turn)) for turn in range(3)]
        for earlier, later in itertools.pairwise(whole):
            if chat:
                assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
            else:
                assert later["prompt"][: len(earlier["prompt"])] == earlier["prompt"]
        if chat:
            assert [message["role"] for message in whole[2]["messages"]] == ["user", "assistant"] * 2 + ["user"]
            reply = whole[2]["messages"][1]["content"]
            assert len(in_words(reply)) == plan.row(first).output
            assert not reply.startswith(" ")


def common(a: list[Any], b: list[Any]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("chat", [False, True])
def test_blocks_are_shared_prefixes_only_where_sharing_is_asked_for(
    by_tokens: Backend, by_chat: Backend, chat: bool
) -> None:
    trace = read_trace(DATA / "mooncake.jsonl")
    backend = by_chat if chat else by_tokens
    for sharing in (True, False):
        plan = draw(Workload(arrivals=Arrivals(process="trace"), sharing=sharing), trace)
        bodies = prepare_bodies(backend, plan)
        assert all_exact(bodies, plan, rows=3)
        prompts = [
            in_words(json.loads(bodies.body(i))["messages"][0]["content"]) if chat else prompt_of(bodies.body(i))
            for i in range(3)
        ]
        same = common(prompts[0], prompts[1])
        if sharing:
            assert 1_024 <= same <= 1_024 + bodies.corpus.salt_tokens
            assert common(prompts[0], prompts[2]) <= bodies.corpus.salt_tokens
            assert prompts[0] == (
                in_words(json.loads(bodies.body(3))["messages"][0]["content"]) if chat else prompt_of(bodies.body(3))
            )
        else:
            assert same == 0


@pytest.mark.parametrize("chat", [False, True])
def test_agents_share_their_prefix_and_carry_it_on(by_tokens: Backend, by_chat: Backend, chat: bool) -> None:
    backend = by_chat if chat else by_tokens
    arrivals = Arrivals(process="agents", rate_per_s=1.0, agents=Agents(prefix=256, turns=4, new=600, task=400))
    plan = draw(Workload(arrivals=arrivals, requests=40, sharing=True))
    bodies = prepare_bodies(backend, plan)
    assert all_exact(bodies, plan, rows=len(plan))

    def said(i: int) -> list[Any]:
        body = json.loads(bodies.body(i))
        return [message["content"] for message in body["messages"]] if chat else prompt_of(bodies.body(i))

    begun = [i for i in range(len(plan)) if plan.turn_N[i] == 0 and plan.blocks[i] == tuple(range(4))]
    first, second = (in_words(said(i)[0]) if chat else said(i) for i in begun[:2])
    assert 256 <= common(first, second) <= 256 + bodies.corpus.salt_tokens
    later = next(i for i in range(len(plan)) if plan.turn_N[i] == 2)
    for before, now in itertools.pairwise(map(said, (later - 2, later - 1, later))):
        assert now[: len(before)] == before


def test_languages(by_tokens: Backend) -> None:
    with pytest.raises(UserError, match="en, de, fr, es, it, ja, zh, ru, ar, hi, code"):
        prepare_bodies(by_tokens, schedule(languages=("tlh",)))
    for language in LANGUAGES:
        assert len(passages((language,))) >= 3
    assert sum(len(passages((language,))) for language in LANGUAGES) == len(passages())
    with toy(engine="llama.cpp", route="chat") as (backend, _):
        bodies = prepare_bodies(backend, schedule(languages=("ru",), prompt=Length(mean=200)))
    text = json.loads(bodies.body(0))["messages"][0]["content"]
    assert len(re.findall(r"[а-яё]", text)) > len(text) / 2


# --- the dialect -----------------------------------------------------------------------------------------------------


def test_what_is_asked_for(by_tokens: Backend) -> None:
    fields = json.loads(prepare_bodies(by_tokens, schedule()).body(0))
    assert isinstance(fields.pop("seed"), int)
    del fields["prompt"]
    assert fields == {
        "model": "toy",
        "max_tokens": schedule().row(0).output,
        "temperature": 1.0,
        "top_k": 40,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "cache_prompt": False,
    }
    assert json.loads(prepare_bodies(by_tokens, schedule(sharing=True)).body(0))["cache_prompt"] is True
    assert json.loads(prepare_bodies(by_tokens, schedule(turns=2)).body(0))["cache_prompt"] is True
    silent = json.loads(prepare_bodies(by_tokens, schedule(stream=False)).body(0))
    assert silent["stream"] is False
    assert "stream_options" not in silent


def test_an_engine_that_takes_nothing_extra() -> None:
    with toy(extra_fields="refused", served_model="other/name") as (backend, _):
        bodies = prepare_bodies(backend, schedule())
    fields = json.loads(bodies.body(0))
    assert not bodies.ignore_eos
    assert fields["model"] == "other/name"
    assert not {"ignore_eos", "top_k", "cache_prompt", "timings_per_token"} & set(fields)


def test_a_corpus_may_be_shorter_than_a_prompt() -> None:
    ids = make_corpus([b",1", b",22", b",333"], None, [b",1", b",22"])
    assert ids.fill(1, 8)[1:] == b"22,333,1,22,333,1,22,333"
    assert ids.fill(0, 0) == b""
    words = make_corpus([b" one", b" two three", b" four"], [1, 2, 1], [b" x", b" y"])
    assert words.fill(1, 10) == b" two three four one two three four one two three"[: len(words.fill(1, 10))]
    assert words.fill(0, 2).startswith(b" one")
    assert len(words.fill(0, 2).split()) == 2
    with pytest.raises(ValueError, match="two or more"):
        make_corpus([b",1"], None, [b",1"])


# --- llama.cpp itself ------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    log = tmp_path_factory.mktemp("engine") / "llama.log"
    with LlamaCppServer(smollm2_gguf, context=512, slots=1, log=log, name="smol") as backend:
        yield backend


@pytest.mark.parametrize("chat", [False, True])
def test_llama_cpp_counts_what_was_planned(llama: Backend, chat: bool) -> None:
    plan = schedule(
        chat=chat,
        turns=2,
        prompt=Length(kind="uniform", low=40, high=90),
        output=Length(mean=4),
        stream=False,
        requests=4,
    )
    bodies = prepare_bodies(llama, plan)
    assert bodies.exact
    for i in range(4):
        request = urllib.request.Request(
            llama.url + bodies.path, data=bodies.body(i), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            usage = json.load(response)["usage"]
        assert usage["prompt_tokens"] == bodies.prompt_tokens(i)
        assert usage["completion_tokens"] == bodies.max_tokens(i) == 4
