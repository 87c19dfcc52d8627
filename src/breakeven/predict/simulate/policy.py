"""How an engine fills its steps: the few settings in which servers differ.

vLLM (V1 scheduler, `vllm/v1/core/sched/scheduler.py`): every step first gives one token to each running sequence, then
what is left of `max_num_batched_tokens` to prompts, in order of arrival, cut into chunks. Blocks of keys and values are
taken as they are needed; when none is left, the sequence admitted last gives its own back and starts over. Scheduling
is asynchronous (`async_scheduling`, on by default): a step is put together while the one before it runs.

llama.cpp (`tools/server/server-context.cpp`, `update_slots`): a request waits for a free slot, whose context is its
own. A step takes one token of every generating slot and prompt tokens up to `n_batch`, and runs as several passes of
`n_ubatch` tokens each; nobody gets a token before all of them are done, so prompts hold up everyone's answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One engine's way of batching.

    `max_sequences` in a step; `max_step_tokens`, prompts and answers together. `micro_batch`: a step of more tokens
    than this runs as several passes; None: one pass. `chunked` False: a prompt runs whole or waits. `kv_tokens`: tokens
    of keys and values on one replica; None: what fits beside the weights. `slot_tokens`: context of one sequence; None:
    only `kv_tokens` limits it. `block_tokens`: what keys and values are taken in. `front_s`: from a request's arrival
    to the engine's queue and back (HTTP, tokenizer), beside the steps. `ahead`: a step is planned when the one
    before it starts, so who arrives meanwhile joins the step after.
    """

    name: str
    max_sequences: int
    max_step_tokens: int
    micro_batch: int | None = None
    chunked: bool = True
    kv_tokens: int | None = None
    slot_tokens: int | None = None
    block_tokens: int = 16
    prefix_caching: bool = False
    front_s: float = 0.0
    ahead: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for settings under which no step could run."""
        least = {
            "max_sequences": self.max_sequences,
            "max_step_tokens": self.max_step_tokens,
            "block_tokens": self.block_tokens,
            "micro_batch": self.micro_batch,
            "kv_tokens": self.kv_tokens,
            "slot_tokens": self.slot_tokens,
        }
        for name, value in least.items():
            if value is not None and value < 1:
                raise UserError(f"policy {self.name}: {name} must be 1 or more; found {value}")
        if self.max_step_tokens < self.max_sequences:
            raise UserError(
                f"policy {self.name}: a step of {self.max_step_tokens} tokens cannot give one to each of "
                f"{self.max_sequences} sequences; raise max_step_tokens"
            )
        if self.front_s < 0:
            raise UserError(f"policy {self.name}: front_s must be 0 or more; found {self.front_s}")


POLICIES: dict[str, Policy] = {
    # vllm serve on a data-centre GPU: EngineArgs.get_batch_defaults, usage OPENAI_API_SERVER, 70 GiB or more.
    "vllm": Policy(name="vllm", max_sequences=1024, max_step_tokens=8192, prefix_caching=True, ahead=True),
    # The same on smaller GPUs and on CPUs.
    "vllm-small": Policy(name="vllm-small", max_sequences=256, max_step_tokens=2048, prefix_caching=True, ahead=True),
    # As Breakeven starts it: prompt cache off, so that candidates meet the same work.
    "llama.cpp": Policy(name="llama.cpp", max_sequences=4, max_step_tokens=2048, micro_batch=512, block_tokens=1),
}


def policy_named(name: str) -> Policy:
    """The policy of an engine. Raises UserError for one that is not known."""
    if name not in POLICIES:
        raise UserError(f"no batching policy is known for the engine {name!r}; there is {', '.join(POLICIES)}")
    return POLICIES[name]
