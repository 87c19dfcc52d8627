"""Clients of three APIs before a backend that has chat alone: what each makes of an answer, by every API it speaks.

A client asks the backend for chat, directly. By way of the gateway it then asks for chat, Anthropic's messages and
OpenAI's responses, each whole and as a stream: texts, calls of tools with their arguments, reasons of the end and
tokens have to be those of the direct chat.

    python judges/chat_alone.py CLIENT API URL MODEL MOST CASE...       one result a line, as JSON
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chat_cases import APIS, CASES, PLAIN, SCHEMA, Case, chat
from found import Found
from npm_client import installed, node_version, wanted_of
from places import BIN, HERE, PUBLIC, Engine, gateway

MOST, MOST_PLAIN = 64, 16
"""Tokens of an answer at most; LiteLLM asks for no fewer than 16 of a response."""
WHOLE, STREAMED = "", ", streamed"
ENDS = {"stop": "stop", "end_turn": "stop", "completed": "stop", "tool_use": "tool_calls", "max_tokens": "length"}
ENDS |= {"incomplete": "length"}
Ask = Callable[[Case, bool], Any]


def said(text: str, calls: Sequence[Sequence[Any]], why: str | None, asked: int, answered: int) -> list[Any]:
    """What must be equal. A response that calls tools is completed like any other."""
    end = ENDS.get(why or "", why)
    # LiteLLM writes JSON anew; what it says is compared.
    return [
        json.loads(text) if text.startswith("{") else text,
        [*map(list, calls)],
        "tool_calls" if calls and end == "stop" else end,
        asked,
        answered,
    ]


def sdk(api: str, url: str, model: str, most: int) -> Ask:
    """The Python SDKs of OpenAI and Anthropic."""
    import anthropic
    import openai

    gpt = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)

    def ask(case: Case, streams: bool) -> Any:
        body = APIS[api](case, model, most)
        if api == "messages":
            body["extra_body"] = {"temperature": body.pop("temperature")}
            if streams:
                with claude.messages.stream(**body) as stream:
                    return of_message(stream.get_final_message())
            return of_message(claude.messages.create(**body))
        if api == "responses":
            if streams:
                events = list(gpt.responses.create(**body, stream=True))
                return of_events(events)
            return of_response(gpt.responses.create(**body))
        if streams:
            return of_chunks(gpt.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
        return of_chat(gpt.chat.completions.create(**body))

    return ask


def of_chat(answer: Any) -> list[Any]:
    """A chat completion."""
    choice = answer.choices[0]
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in choice.message.tool_calls or ()]
    usage = answer.usage
    return said(choice.message.content or "", calls, choice.finish_reason, usage.prompt_tokens, usage.completion_tokens)


def of_chunks(chunks: Any) -> list[Any]:
    """The pieces of one."""
    text, why, usage = "", None, None
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text, why = text + (choice.delta.content or ""), choice.finish_reason or why
            for call in choice.delta.tool_calls or ():
                held = calls.setdefault(call.index, ["", ""])
                held[0] += call.function.name or ""
                held[1] += call.function.arguments or ""
    assert usage is not None
    made = [[name, json.loads(arguments)] for name, arguments in calls.values()]
    return said(text, made, why, usage.prompt_tokens, usage.completion_tokens)


def of_message(answer: Any) -> list[Any]:
    """One of Anthropic's messages; what a cache had it counts apart."""
    text = "".join(block.text for block in answer.content if block.type == "text")
    calls = [[block.name, block.input] for block in answer.content if block.type == "tool_use"]
    asked = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    return said(text, calls, answer.stop_reason, asked, answer.usage.output_tokens)


def of_response(answer: Any) -> list[Any]:
    """A response."""
    text, written = _written(answer)
    usage = answer.usage
    made = [[name, json.loads(arguments)] for name, arguments in written]
    return said(text, made, answer.status, usage.input_tokens, usage.output_tokens)


def _written(answer: Any) -> tuple[str, list[list[str]]]:
    """A response's text, and its calls with the arguments as they were written."""
    items = [item if isinstance(item, dict) else item.model_dump() for item in answer.output]
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    calls = [[item["name"], item["arguments"]] for item in items if item["type"] == "function_call"]
    return "".join(part["text"] for part in parts), calls


def of_events(events: list[Any]) -> list[Any]:
    """A response's stream: its last event, which must say what the pieces before it said."""
    last = events[-1].response
    text, calls = _written(last)
    pieces = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    if (pieces, arguments) != (text, "".join(call[1] for call in calls)):
        raise ValueError(f"{pieces!r} and {arguments!r} are not the whole, {text!r} and {calls}")
    return of_response(last)


def counted(url: str, model: str) -> Any:
    """What a chat has no question for: tokens of a message."""
    import anthropic

    claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    return claude.messages.count_tokens(model=model, messages=[{"role": "user", "content": "x"}]).input_tokens


def embedded(url: str, model: str) -> Any:
    """And vectors."""
    import openai

    return len(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        .embeddings.create(model=model, input="x")
        .data
    )


REFUSED: dict[str, Callable[[str, str], Any]] = {"count tokens": counted, "embeddings": embedded}
"""Asked by the Python SDKs of the scripted server, which has neither; nothing is made up for them."""


def langchain(api: str, url: str, model: str, most: int) -> Ask:
    """ChatOpenAI by chat and by responses, ChatAnthropic by messages."""
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI

    asked: dict[str, Any] = {"model": model, "api_key": "none", "max_retries": 0, "max_tokens": most}
    asked["stream_usage"] = True
    chosen: Any
    if api == "messages":
        chosen = ChatAnthropic(**asked, base_url=url, model_kwargs={"extra_body": {"temperature": 0}})
    else:
        chosen = ChatOpenAI(**asked, base_url=f"{url}/v1", temperature=0, use_responses_api=api == "responses")

    def ask(case: Case, streams: bool) -> Any:
        runs = chosen
        body = chat(case, model, most)
        if case.tools:
            runs = chosen.bind_tools(body["tools"])
        if case.schema:
            form = {"title": "city", "description": "a city", **SCHEMA}
            shaped = chosen.with_structured_output(form, method="json_schema", include_raw=True)
            # Of a stream the pieces of the raw message come one by one.
            raw = [piece["raw"] for piece in shaped.stream(body["messages"]) if "raw" in piece] if streams else []
            answer = functools.reduce(operator.add, raw) if streams else shaped.invoke(body["messages"])["raw"]
        elif streams:
            answer = functools.reduce(operator.add, runs.stream(body["messages"]))
        else:
            answer = runs.invoke(body["messages"])
        told, usage = answer.response_metadata, answer.usage_metadata
        why = told.get("finish_reason") or told.get("stop_reason") or told.get("status")
        calls = [[call["name"], call["args"]] for call in answer.tool_calls]
        return said(answer.text, calls, why, usage["input_tokens"], usage["output_tokens"])

    return ask


def litellm(api: str, url: str, model: str, most: int) -> Ask:
    """`completion` with the providers openai and anthropic, `responses` with openai."""
    import litellm as lite

    lite.suppress_debug_info = True
    common: dict[str, Any] = {"api_key": "none", "num_retries": 0}
    common["api_base"] = url if api == "messages" else f"{url}/v1"
    name = f"{'anthropic' if api == 'messages' else 'openai'}/{model}"
    # Of a model that it does not know it takes responses whole and makes a stream of them itself.
    lite.register_model({name: {"litellm_provider": "openai", "mode": "chat", "supports_native_streaming": True}})

    def ask(case: Case, streams: bool) -> Any:
        if api == "responses":
            body = APIS[api](case, name, most)
            if streams:
                return of_events(list(lite.responses(**common, **body, stream=True)))
            return of_response(lite.responses(**common, **body))
        body = chat(case, name, most)
        if not streams:
            return of_chat(lite.completion(**common, **body))
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(lite.completion(**common, **body, **options))
        return of_chat(lite.stream_chunk_builder(chunks, messages=case.messages))

    return ask


CLIENTS: dict[str, Callable[[str, str, str, int], Ask]] = {"sdk": sdk, "langchain": langchain, "litellm": litellm}
PACKAGES = {
    "sdk": "openai {openai} and anthropic {anthropic}",
    "langchain": "langchain-openai {langchain-openai} and langchain-anthropic {langchain-anthropic}",
    "litellm": "LiteLLM {litellm}",
}
NPM = "npm"
"""The npm SDKs, which take the bodies and tell results as these clients do (`chat_alone.mjs`)."""


def outcomes(client: str, api: str, url: str, model: str, most: int, names: list[str], cache: Path) -> dict[str, str]:
    """Result by case, from a process of its own. Raises RuntimeError where the client is not to be had."""
    if client == NPM:
        where = installed(cache / "npm", "chat_alone.mjs")
        bodies = [[name, APIS[api](CASES[name], model, most)] for name in names]
        command, told = ["node", "chat_alone.mjs", api, url], json.dumps(bodies)
    else:
        where, told = HERE, ""
        command = [sys.executable, __file__, client, api, url, model, str(most), *names]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(command, cwd=where, input=told, capture_output=True, text=True, timeout=600, env=environment)
    found: dict[str, str] = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    if not found:
        raise RuntimeError(f"{client} did not run: {done.stderr[-2000:]}")
    return found


def judge(behind: Engine, cache: Path, *, plain: bool = False) -> list[Found]:
    """A row for each client. `plain`: ask what any model can answer, and no more."""
    names, most = ([*PLAIN], MOST_PLAIN) if plain else ([*CASES], MOST)
    rows = []
    with gateway(behind, endpoints=("/v1/chat/completions",)) as through_url:
        for client in [*CLIENTS, NPM]:
            more = [] if plain or client != "sdk" else [*REFUSED]
            alone = outcomes(client, "chat", behind.url, behind.model, most, names + more, cache)
            direct: dict[str, str] = {}
            through: dict[str, str] = {}
            for api in APIS:
                direct |= {f"{api}: {name}": outcome for name, outcome in alone.items()}
                asked = outcomes(client, api, through_url, PUBLIC, most, names + more, cache)
                through |= {f"{api}: {name}": outcome for name, outcome in asked.items()}
            rows.append(Found(f"{named(client)}, chat alone behind", behind.what, direct, through))
    return rows


def named(client: str) -> str:
    """A client with its versions."""
    if client == NPM:
        return f"{' and '.join(f'{name} {of}' for name, of in wanted_of().items())} of npm, node {node_version()}"
    names = [part.split("}")[0] for part in PACKAGES[client].split("{")[1:]]
    text = PACKAGES[client]
    for name in names:
        text = text.replace(f"{{{name}}}", version(name))
    return text


@contextlib.contextmanager
def chat_server() -> Iterator[Engine]:
    """The scripted backend (`chat_server.py`)."""
    command = [str(BIN / "python"), str(HERE / "chat_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Engine(process.stdout.readline().strip(), "chat", "chat alone, scripted")
        finally:
            process.stdin.close()
            process.wait(60)


def main() -> None:
    """Ask every case, whole and streamed. An error counts by its status."""
    client, api, url, model, most, *names = sys.argv[1:]
    ask = CLIENTS[client](api, url, model, int(most))
    for name in names:
        for streams in (False,) if name in REFUSED else (False, True):
            try:
                found = REFUSED[name](url, model) if name in REFUSED else ask(CASES[name], streams)
                result = f"ok {json.dumps(found, sort_keys=True, ensure_ascii=False)}"
            except Exception as error:
                status = getattr(error, "status_code", None)
                result = f"refused {status}" if status else f"failed {type(error).__name__}: {error}"[:300]
            print(json.dumps([f"{name}{STREAMED if streams else WHOLE}", result]), flush=True)


if __name__ == "__main__":
    main()
