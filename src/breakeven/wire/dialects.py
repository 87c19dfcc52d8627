"""The dialect of each engine: the fields of a completion request beside its prompt."""

from __future__ import annotations

from typing import Any

from breakeven.engines.backend import LLAMA_CPP, Backend


def completion_fields(
    backend: Backend,
    *,
    max_tokens: int,
    temperature: float,
    stream: bool = True,
    ignore_eos: bool = True,
    top_k: int | None = None,
    seed: int | None = None,
    cache_prompt: bool = False,
) -> dict[str, Any]:
    """Everything but `prompt` or `messages`, as `backend` understands it.

    `cache_prompt` lets llama.cpp reuse the prefix of an earlier prompt; other engines decide that when they start.
    Fields beyond OpenAI's are left out where the backend refuses them.
    """
    fields: dict[str, Any] = {
        "model": backend.served_model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": stream,
    }
    if seed is not None:
        fields["seed"] = seed
    if backend.takes_extra_fields:
        if ignore_eos:
            fields["ignore_eos"] = True
        if top_k is not None:
            fields["top_k"] = top_k
    options: dict[str, bool] = {"include_usage": True}
    # Both make each piece of the stream say how many tokens came so far: a chunk is not a token.
    if backend.engine == LLAMA_CPP:
        fields["timings_per_token"] = True
        fields["cache_prompt"] = cache_prompt
    elif backend.engine == "vllm":
        options["continuous_usage_stats"] = True
    if stream:
        fields["stream_options"] = options
    return fields
