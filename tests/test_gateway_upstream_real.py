"""The client of backends with a real engine behind it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import uvloop
from gateway_upstream_fixtures import CHAT, JSON, Memory, ask, until, upstream_of

from breakeven.engines.llama_cpp.server import LlamaCppServer


def _body(stream: bool, tokens: int) -> bytes:
    messages = [{"role": "user", "content": "Tell a long story."}]
    return json.dumps({"model": "m", "stream": stream, "max_tokens": tokens, "messages": messages}).encode()


def test_streams_and_cancels_of_llama_cpp(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Its server says keep-alive and closes after every stream; a cancelled stream frees its slot."""

    async def test(base_url: str) -> None:
        async with upstream_of(base_url) as upstream:
            for _ in range(5):
                memory = await ask(upstream, _body(True, 4))
                assert (memory.ends, memory.status) == (["end"], 200), memory.detail
                assert memory.body.endswith(b"data: [DONE]\n\n")
            await until(lambda: upstream.idle == 0)
            memory = await ask(upstream, _body(False, 4))
            assert json.loads(memory.body)["usage"]["completion_tokens"] == 4
            assert upstream.idle == 1
            story = Memory()
            exchange = upstream.send(CHAT, JSON, _body(True, 100_000), story)
            await until(lambda: len(story.pieces) > 2)
            exchange.cancel()
            while b"llamacpp:requests_processing 0" not in (await upstream.get("/metrics", timeout_s=20))[1]:
                assert story.ends == []
                await asyncio.sleep(0.05)

    server = LlamaCppServer(smollm2_gguf, context=2048, slots=1, threads=1, log=tmp_path / "log")
    with server as backend:
        uvloop.run(test(backend.url))
