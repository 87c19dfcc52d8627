"""SDKs of OpenAI and Anthropic before an engine's own responses and messages, and a gateway that has its chat alone.

What the engine makes of its own APIs is what the gateway's translation has to make of its chat: texts, reasons of the
end, kinds of items and tokens of the answer, whole and streamed.

python judges/translated.py URL MODEL       one result a line, as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from found import Found
from places import PUBLIC, Engine, gateway

MESSAGES: Any = [{"role": "user", "content": "Say a word about the sea."}]
TURNS: Any = [*MESSAGES, {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Another one."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def calls(url: str, model: str) -> dict[str, Callable[[], Any]]:
    """Every call, by name; each gives what must be equal."""
    import anthropic
    import openai

    claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    gpt = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    common: Any = {"model": model, "temperature": 0}
    # Anthropic's newer SDKs have no argument for it; their API, and the engine, still do.
    asked: Any = {"model": model, "extra_body": {"temperature": 0}, "max_tokens": 8, "messages": MESSAGES}

    def message(**more: Any) -> Any:
        found = claude.messages.create(**{**asked, **more})
        return [[block.to_dict() for block in found.content], found.stop_reason, found.usage.output_tokens]

    def messages(**more: Any) -> Any:
        with claude.messages.stream(**{**asked, **more}) as stream:
            kinds = list(dict.fromkeys(event.type for event in stream))
            found = stream.get_final_message()
        return [kinds, found.content[0].to_dict(), found.stop_reason, found.usage.output_tokens]

    def response(**more: Any) -> Any:
        found = gpt.responses.create(**{**common, "max_output_tokens": 8, "input": "The sea", **more})
        return [[item.type for item in found.output], found.output_text, found.usage and found.usage.output_tokens]

    def responses(**more: Any) -> Any:
        asked = {**common, "max_output_tokens": 8, "input": "The sea", "stream": True, **more}
        events = list(gpt.responses.create(**asked))
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        return [events[-1].type, deltas, events[-1].response.usage.output_tokens]

    tool: Any = {"name": "f", "description": "does f", "input_schema": SCHEMA}
    function: Any = {"type": "function", "name": "f", "parameters": SCHEMA}
    return {
        "messages": message,
        "messages, system": lambda: message(system="Be short."),
        "messages, turns": lambda: message(messages=TURNS),
        "messages, tools": lambda: message(tools=[tool], tool_choice={"type": "none"}),
        "messages, stop": lambda: message(stop_sequences=["e"])[0],
        "messages, streamed": messages,
        "messages, streamed with turns": lambda: messages(messages=TURNS, system="Be short."),
        "responses": response,
        "responses, instructions": lambda: response(instructions="Be short."),
        "responses, turns": lambda: response(input=TURNS),
        "responses, tools": lambda: response(tools=[function], tool_choice="none"),
        "responses, streamed": responses,
    }


def outcomes(url: str, model: str) -> dict[str, str]:
    """Result by call, from a process of its own."""
    done = subprocess.run([sys.executable, __file__, url, model], capture_output=True, text=True, timeout=600)
    found: dict[str, str] = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    if not found:
        raise RuntimeError(f"the SDKs did not run: {done.stderr[-2000:]}")
    return found


def judge(engine: Engine) -> list[Found]:
    """One row; a call that raises counts by its exception."""
    with gateway(engine, endpoints=("/v1/chat/completions",)) as through_url:
        direct, through = outcomes(engine.url, engine.model), outcomes(through_url, PUBLIC)
    name = f"anthropic {version('anthropic')} and openai {version('openai')}, translated"
    return [Found(name, engine.what, direct, through)]


def main() -> None:
    """Make every call."""
    for name, call in calls(*sys.argv[1:3]).items():
        try:
            result = f"ok {json.dumps(call())}"
        except Exception as error:
            result = f"{type(error).__name__} {getattr(error, 'status_code', '')}"
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main()
