"""LiteLLM's SDK as a client: the same calls directly and through the gateway give the same results.

python judges/litellm_client.py URL MODEL       one result a line, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from found import Found
from places import PUBLIC, Engine

MESSAGES = [{"role": "user", "content": "Say a word about the sea."}]
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}


def calls(url: str, model: str) -> dict[str, Callable[[], Any]]:
    """Every call, by name; each gives what must be equal."""
    import asyncio

    import litellm

    common: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "temperature": 0,
        "seed": 1,
        "max_tokens": 8,
        "num_retries": 0,
    }

    def whole(**more: Any) -> Any:
        answer = litellm.completion(**{**common, "messages": MESSAGES, **more})
        choices = [[choice.message.content, choice.finish_reason] for choice in answer.choices]
        return [choices, answer.usage.prompt_tokens, answer.usage.completion_tokens]

    def stream(**more: Any) -> Any:
        pieces = list(litellm.completion(**{**common, "messages": MESSAGES, "stream": True, **more}))
        texts = [piece.choices[0].delta.content for piece in pieces if piece.choices]
        usage = [piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)]
        # Where a text is cut is the engine's business.
        return ["".join(text or "" for text in texts), usage]

    async def later() -> Any:
        answer = await litellm.acompletion(**{**common, "messages": MESSAGES})
        return answer.choices[0].message.content

    def text() -> Any:
        settings = {**common, "model": f"text-completion-openai/{model}", "prompt": "The sea is"}
        answer = litellm.text_completion(**settings)
        return [answer.choices[0].text, answer.usage.completion_tokens]

    def responses() -> Any:
        settings = {name: common[name] for name in ("model", "api_base", "api_key", "temperature")}
        answer = litellm.responses(**settings, input="The sea", max_output_tokens=8)
        return [answer.status, answer.output_text, answer.usage.output_tokens]

    return {
        "chat": whole,
        "chat, async": lambda: asyncio.run(later()),
        "chat, streamed": stream,
        "chat, streamed with usage": lambda: stream(stream_options={"include_usage": True}),
        "chat, two answers": lambda: whole(n=2),
        "chat, stop": lambda: whole(stop=["e"]),
        "chat, tools": lambda: whole(tools=[TOOL], tool_choice="none"),
        "chat, JSON": lambda: whole(response_format={"type": "json_object"}),
        "chat, logprobs": lambda: whole(logprobs=True, top_logprobs=2),
        "chat, wrong type": lambda: whole(temperature="hot"),
        "chat, no messages": lambda: whole(messages=[]),
        "text": text,
        "responses": responses,
    }


def outcomes(url: str, model: str) -> dict[str, str]:
    """Result by call, from a process of its own."""
    command = [sys.executable, __file__, url, model]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    found: dict[str, str] = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    if not found:
        raise RuntimeError(f"LiteLLM did not run: {done.stderr[-2000:]}")
    return found


def judge(engine: Engine, through_url: str) -> list[Found]:
    """One row; a call that raises counts by its exception."""
    direct, through = outcomes(engine.url, engine.model), outcomes(through_url, PUBLIC)
    return [Found(f"LiteLLM {version('litellm')} as a client", engine.what, direct, through)]


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
