"""A person's own prompts: every kind of file is read, sent as it was given, and refused with its place and key."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from breakeven.errors import UserError
from breakeven.measure.bodies import CHAT, COMPLETIONS, prepare_bodies
from breakeven.measure.runner import Candidate, PromptMaker
from breakeven.traffic.draw import draw
from breakeven.traffic.prompt_file import UNSAID_OUTPUT, read_prompts
from breakeven.traffic.schedule import DEPENDS, context_of
from breakeven.traffic.schedule_file import load_schedule, save_schedule
from breakeven.traffic.words import Words, traffic_of
from tests.bodies_fixtures import in_words, toy

TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]
AGENT: list[dict[str, object]] = [
    {"role": "system", "content": "You mend code."},
    {"role": "user", "content": "Why does the test fail?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "read", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "def f(): return 1"},
    {"role": "assistant", "content": "Because f returns 1 and not 2, as the test wants it to."},
]
SHAREGPT = [
    {"from": "gpt", "value": "Left over from before."},
    {"from": "human", "value": "How tall is the tower?"},
    {"from": "gpt", "value": "About 300 m, without its mast."},
    {"from": "human", "value": "And with it?"},
    {"from": "gpt", "value": "330 m."},
]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- what is read ----------------------------------------------------------------------------------------------------


def test_rows_of_prompts_and_plain_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", {"prompt": "How do tides work?", "output_tokens": 64}, {"text": "A haiku."})
    found = read_prompts(path)
    assert [(r.text, r.output) for r in found.requests] == [("How do tides work?", 64), ("A haiku.", None)]
    assert not found.chat
    assert "1 do not say how long their answers are: 128 tokens each" in found.said(output=False)
    assert "128" not in found.said(output=True)
    plain = tmp_path / "own.txt"
    plain.write_text("\ufeffHow do tides work?\n\nA haiku.\n", encoding="utf-8")
    assert [r.text for r in read_prompts(plain).requests] == ["How do tides work?", "A haiku."]


def test_null_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Rows of a table have all its columns."""
    path = tmp_path / "table.jsonl"
    rows = [
        {"messages": None, "prompt": "How tall?", "images": None, "tools": None, "max_tokens": None, "note": None},
        {"messages": [{"role": "user", "content": "hi"}], "prompt": None, "images": None},
        {"custom_id": "a", "body": {"messages": None, "prompt": "And you?", "tools": None}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts(path)
    assert [request.plain for request in found.requests] == ["How tall?", "hi", "And you?"]
    assert found.unused == ()


def test_messages_are_one_request_with_all_they_hold(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", {"messages": AGENT, "tools": TOOLS, "temperature": 0.2})
    found = read_prompts(path)
    (request,) = found.requests
    assert found.chat
    assert json.loads(b"{%b}" % request.members) == {"messages": AGENT[:4], "tools": TOOLS}
    # As long as the recorded answer, at four bytes a token.
    assert (request.output, request.guessed) == (round(len(str(AGENT[4]["content"])) / 4), True)
    assert found.unused == ("temperature",)
    assert "not used: temperature" in found.said(output=False)


def test_with_turns_every_recorded_answer_ends_a_request(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", {"messages": AGENT}, {"messages": AGENT[:2]})
    found = read_prompts(path, turns=5)
    assert found.starts == (0, 2, 3)
    sent = [json.loads(b"{%b}" % request.members)["messages"] for request in found.requests]
    assert sent == [AGENT[:2], AGENT[:4], AGENT[:2]]
    first, second, _ = found.requests
    # What is new in the second is the tool's answer: the call before it was the first one's answer.
    assert second.new_bytes < len(second.plain) - len(first.plain)


def test_sharegpt_as_a_list_and_by_lines(tmp_path: Path) -> None:
    whole = tmp_path / "sharegpt.json"
    whole.write_text(json.dumps([{"id": "a", "conversations": SHAREGPT}]))
    for path in (whole, lines(tmp_path / "sharegpt.jsonl", {"conversations": SHAREGPT})):
        (request,) = read_prompts(path).requests
        assert json.loads(b"{%b}" % request.members) == {
            "messages": [{"role": "user", "content": "How tall is the tower?"}]
        }
        assert len(read_prompts(path, turns=8).requests) == 2


def test_conversations_without_a_question_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    silent = [{"conversations": [{"from": "gpt", "value": "Left over."}]}, {"conversations": []}]
    path.write_text(json.dumps([silent[0], {"conversations": SHAREGPT}, silent[1]]))
    found = read_prompts(path)
    assert [request.plain for request in found.requests] == ["How tall is the tower?"]
    assert (found.starts, found.unasked) == ((0, 1), 2)
    assert "2 conversations without a question, left out" in found.said(output=True)
    path.write_text(json.dumps(silent))
    with pytest.raises(UserError, match=r"sharegpt\.json: holds no prompt in its 2 conversations"):
        read_prompts(path)


def test_llama_factory_s_calls_of_tools(tmp_path: Path) -> None:
    call, result = '{"name": "look", "arguments": {}}', '{"celsius": 21}'
    row = {
        "conversations": [
            {"from": "human", "value": "How warm is it?"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": result},
            {"from": "gpt", "value": "It is 21 degrees."},
        ],
        "tools": json.dumps([{"name": "look", "description": "Looks.", "parameters": {}}]),
    }
    found = read_prompts(lines(tmp_path / "own.jsonl", row), turns=5)
    first, second = (json.loads(b"{%b}" % request.members) for request in found.requests)
    assert first["messages"] == [{"role": "user", "content": "How warm is it?"}]
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": call},
        {"role": "user", "content": result},
    ]
    wrapped = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}
    assert first["tools"] == second["tools"] == [wrapped]


@pytest.mark.parametrize("key", ["conversations", "conversation"])
def test_conversations_of_roles_and_contents(tmp_path: Path, key: str) -> None:
    turns = [{"role": "assistant", "content": "Left over."}, {"role": "human", "content": "Hi?"}, *AGENT[2:]]
    found = read_prompts(lines(tmp_path / "own.jsonl", {key: turns, "model": "m"}), turns=2)
    sent = [json.loads(b"{%b}" % request.members)["messages"] for request in found.requests]
    asked = {"role": "user", "content": "Hi?"}
    assert sent == [[asked], [asked, *AGENT[2:4]]]
    assert found.unused == ()


@pytest.mark.parametrize(
    "first", ["[INST] How tall is it? [/INST]", "{{name}}, hello", "[1] and [2] differ how?", "[[wiki]] pages"]
)
def test_text_that_begins_as_json_does_is_text(tmp_path: Path, first: str) -> None:
    path = tmp_path / "own.txt"
    path.write_text(f"{first}\nA haiku.\n")
    assert [request.text for request in read_prompts(path).requests] == [first, "A haiku."]


@pytest.mark.parametrize("url", ["/chat/completions", "https://a.example/v1/completions?api-version=2026-01-01"])
def test_batches_of_azure_and_others(tmp_path: Path, url: str) -> None:
    path = lines(tmp_path / "batch.jsonl", {"custom_id": "1", "url": url, "body": {"messages": AGENT[:2]}})
    assert len(read_prompts(path).requests) == 1


def test_openai_batches(tmp_path: Path) -> None:
    body = {"model": "m", "messages": AGENT[:2], "max_tokens": 9}
    path = lines(
        tmp_path / "batch.jsonl", {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    )
    found = read_prompts(path)
    assert found.requests[0].output == 9
    assert found.unused == ()


def test_prompts_that_only_a_chat_can_say_make_the_traffic_one(tmp_path: Path) -> None:
    chat = lines(tmp_path / "chat.jsonl", {"messages": AGENT, "tools": TOOLS})
    plain = lines(tmp_path / "plain.jsonl", {"prompt": "How do tides work?"})
    for path, chats in ((chat, True), (plain, False)):
        assert traffic_of(Words(rate="1", prompts=path)).workloads[0].chat == chats


def test_images_are_counted_and_files_are_sent_along(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8picture")
    path = lines(tmp_path / "own.jsonl", {"prompt": "What is this?", "images": ["a.jpg", "https://example.org/b.png"]})
    found = read_prompts(path)
    parts = json.loads(b"{%b}" % found.requests[0].members)["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]
    data = base64.b64encode(b"\xff\xd8picture").decode()
    assert parts[1]["image_url"]["url"] == f"data:image/jpeg;base64,{data}"
    assert found.chat
    assert "2 images" in found.said(output=False)


# --- what is drawn and sent ------------------------------------------------------------------------------------------


def test_every_prompt_is_asked_in_an_order_of_its_own_seed(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", *({"prompt": f"Number {k}", "output_tokens": k + 1} for k in range(7)))
    traffic = traffic_of(Words(rate="5", requests=14, prompts=path, warm_up="0s", seed=3))
    plan = draw(traffic.workloads[0])
    assert plan.asked_N is not None
    assert sorted(plan.asked_N.tolist()) == sorted([*range(7)] * 2)
    assert plan.asked_N.tolist() != [*range(7)] * 2
    assert plan.output_N.tolist() == (plan.asked_N + 1).tolist()
    assert traffic.notes[0].startswith(f"{path}: 7 prompts")
    with toy(engine="llama.cpp") as (backend, _):
        bodies = prepare_bodies(backend, plan)
        assert bodies.path == COMPLETIONS
        for i in range(14):
            body = json.loads(bodies.body(i))
            assert body["prompt"] == f"Number {plan.asked_N[i]}"
            assert body["max_tokens"] == plan.output_N[i]
            assert bodies.prompt_tokens(i) == len(in_words(body["prompt"]))
        # A closed loop that outlives its rows starts over.
        assert json.loads(bodies.body(14))["prompt"] == json.loads(bodies.body(0))["prompt"]
    again = draw(traffic_of(Words(rate="5", requests=14, prompts=path, warm_up="0s", seed=4)).workloads[0])
    assert again.asked_N is not None
    assert again.asked_N.tolist() != plan.asked_N.tolist()


def test_a_recorded_conversation_waits_for_its_answers_and_grows(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", {"messages": AGENT}, {"conversations": SHAREGPT}, {"prompt": "Alone?"})
    words = Words(concurrency="2", requests=10, prompts=path, turns=9, think="3s", output="7", warm_up="0s")
    plan = draw(traffic_of(words).workloads[0])
    assert set(plan.output_N.tolist()) == {7}
    later = plan.turn_N > 0
    assert later.any()
    assert (plan.due_ns_N[later] == DEPENDS).all()
    assert (plan.think_ns_N[later] == 3_000_000_000).all()
    with toy(engine="llama.cpp") as (backend, _):
        bodies = prepare_bodies(backend, plan)
        assert bodies.path == CHAT
        for i in np.flatnonzero(later).tolist():
            before, now = (json.loads(bodies.body(k))["messages"] for k in (i - 1, i))
            assert now[: len(before)] == before
            assert len(now) > len(before)


def test_what_was_drawn_is_saved_and_held_against_its_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", *({"prompt": f"Number {k}"} for k in range(5)))
    plan = draw(traffic_of(Words(rate="5", requests=5, prompts=path)).workloads[0])
    save_schedule(plan, tmp_path / "schedule.jsonl")
    read = load_schedule(tmp_path / "schedule.jsonl")
    assert read.asked_N is not None
    assert plan.asked_N is not None
    assert read.asked_N.tolist() == plan.asked_N.tolist()
    assert read.row(2) == plan.row(2)
    assert set(read.output_N.tolist()) == {UNSAID_OUTPUT}
    lines(path, *({"prompt": f"Another {k}"} for k in range(5)))
    with toy(engine="llama.cpp") as (backend, _), pytest.raises(UserError, match="has changed since"):
        prepare_bodies(backend, read)


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path) -> None:
    long = " ".join(["word"] * 300)
    path = lines(tmp_path / "own.jsonl", {"prompt": "Short."}, {"prompt": long, "output_tokens": 20})
    plan = draw(traffic_of(Words(rate="5", requests=4, prompts=path, warm_up="0s")).workloads[0])
    # Room is kept for as many tokens as so many bytes may be.
    assert context_of([plan]) >= len(long) // 2 + 20
    assert context_of([plan], of_bytes=True) >= len(long) + 20
    with (
        toy(engine="llama.cpp", context_per_slot="256") as (backend, _),
        pytest.raises(UserError, match=r"own\.jsonl, line 2, key prompt: 300 tokens and 20 of answer .* 256"),
    ):
        prepare_bodies(backend, plan)


def test_a_comparison_without_traffic_is_made_of_the_same_text(tmp_path: Path) -> None:
    texts = ("alpha beta gamma delta " * 9, "epsilon zeta eta theta " * 9)
    with toy(engine="llama.cpp", route="chat") as (backend, _):
        maker = PromptMaker(Candidate("toy", backend, lambda: None), 5, texts=texts)
        made = [request.prompt for request in maker.requests("block", ["a", "b"], 60, 4)]
    words = {word for prompt in made for word in str(prompt).split()[1:-1]}
    assert words <= set(" ".join(texts).split())
    assert len({str(prompt)[:9] for prompt in made}) == 2


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["is empty"]),
        ('{"prompt": "a"}\n{"prom', ["line 2", "not a JSON object"]),
        ('{"prompt": ""}\n', ["line 1", "key prompt", "''"]),
        ('{"question": "a"}\n', ["line 1", "key prompt", "found nothing"]),
        ('{"prompt": "a", "max_tokens": 0}\n', ["line 1", "key max_tokens", "1 to 100,000,000 tokens"]),
        ('{"prompt": "a", "max_tokens": 4000000000}\n', ["line 1", "key max_tokens", "1 to 100,000,000 tokens"]),
        ('{"messages": []}\n', ["line 1", "key messages", "a list of messages"]),
        ('{"messages": [{"role": "robot", "content": "a"}]}\n', ["line 1", "messages[0].role", "robot"]),
        ('{"messages": [{"role": "user", "content": 5}]}\n', ["line 1", "messages[0].content", "5"]),
        ('{"messages": [{"role": "system", "content": "a"}]}\n', ["line 1", "asks nothing"]),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {}}\n', ["line 1", "key tools"]),
        ('{"conversations": [{"from": "me", "value": "a"}]}\n', ["line 1", "conversations[0]", "human"]),
        ('{"conversations": [{"from": {"role": "user"}, "value": "a"}]}\n', ["line 1", "conversations[0]", "human"]),
        ('{"prompt": "a", "images": ["none.png"]}\n', ["line 1", "images[0]", "none.png"]),
        ('{"body": {"prompt": "a"}, "url": "/v1/embeddings"}\n', ["line 1", "key url", "/v1/embeddings"]),
        ('{"body": {"prompt": "a"}, "url": "/v1/responses"}\n', ["line 1", "key url", "/v1/responses"]),
        ('{"body": {"prompt": 7}}\n', ["line 1", "key body", "key prompt"]),
        ('[{"prompt": "a"}, 7]', ["item 2", "expected an object"]),
        ('[{"prompt": "a"}', ["no whole JSON list"]),
        ('[[{"role": "user", "content": "a"}]]', ["item 1", "expected an object"]),
        ("[[1, 2],\n [3, 4]]", ["item 1", "expected an object"]),
        ("[1, 2]\n", ["item 1", "expected an object"]),
        ('{"prom', ["line 1", "not a JSON object"]),
        ("{'prompt': 'a'}\n", ["line 1", "not a JSON object"]),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": "many"}\n', ["line 1", "key tools", "many"]),
        ('{"conversation": [{"role": "me", "content": "a"}]}\n', ["line 1", "conversation[0].role", "me"]),
        ('{"prompt": "a", "images": ["\\u0000"]}\n', ["line 1", "key images[0]", "cannot read"]),
        ("at_s,prompt_tokens,output_tokens\n0,1,2\n", ["line 1", "is a trace (simple)", "--trace"]),
        ('"TIMESTAMP","ContextTokens","GeneratedTokens"\n', ["line 1", "is a trace (azure)", "--trace"]),
        ('{"timestamp": 0, "input_length": 9, "output_length": 2}\n', ["line 1", "is a trace (mooncake)", "--trace"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    for part in (*says, "own.jsonl"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_over_several_lines_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(b'[\n{"prompt": "caf\xe9"}\n]')
    with pytest.raises(UserError, match=r"own\.json: is no whole JSON list"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"prompt": "64"}, "--prompt makes prompts up"),
        ({"languages": "de"}, "--languages"),
        ({"trace_format": "azure"}, "--trace-format"),
    ],
)
def test_words_that_do_not_go_together(tmp_path: Path, words: dict[str, object], says: str) -> None:
    path = lines(tmp_path / "own.jsonl", {"prompt": "Hello?"})
    with pytest.raises(UserError, match=says):
        traffic_of(Words(rate="1", prompts=path, **words))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        traffic_of(Words(rate="1", prompts=tmp_path / "none.jsonl"))


def test_a_trace_tells_when_and_the_file_what(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", {"prompt": "Hello?", "output_tokens": 3})
    data = Path(__file__).parent / "data" / "traces"
    traffic = traffic_of(Words(trace=data / "azure.csv", prompts=path))
    plan = draw(traffic.workloads[0], traffic.trace)
    assert plan.due_ns_N.tolist() == [0, 4_314_579_000, 4_541_877_100, 4_541_877_100]
    assert plan.output_N.tolist() == [3] * 4
    assert len(traffic.notes) == 2
    with pytest.raises(UserError, match="conversations brings its own"):
        traffic_of(Words(trace=data / "simple.csv", prompts=path))
