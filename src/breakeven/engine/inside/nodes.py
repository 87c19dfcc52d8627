"""Which part of a model a node of the compute graph belongs to: one table, and the order in which it is asked.

A node is placed by the weight it multiplies, else by its name, else by its operation; one that has neither a known
name nor a weight (llama.cpp names such nodes `node_<n>`) goes with the node before it, because llama.cpp builds a
graph part by part. Norms, residual additions, the embedding look-up and anything unknown are "rest".
Names as llama.cpp gives them in `build_moe_ffn`, `build_ffn`, `build_attn` (src/llama-graph.cpp) and in src/models/
for llama, qwen2, qwen3, qwen3moe, olmoe, gemma2, gemma3, granite, granitemoe, phimoe, deepseek2 and gpt-oss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ATTENTION = "attention"
ROUTER = "router"
EXPERTS = "expert products"
COMBINATION = "combination"
DENSE = "dense feed-forward"
HEAD = "head"
REST = "rest"
KINDS = (ATTENTION, ROUTER, EXPERTS, COMBINATION, DENSE, HEAD, REST)
MOE_KINDS = (ROUTER, EXPERTS, COMBINATION)

# These only describe other nodes' memory; nothing is computed.
NO_WORK = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})

# First match wins. Shared experts count as expert products: they are part of the MoE block.
WEIGHTS: tuple[tuple[str, str], ...] = (
    (r".*_norm(\.|$)", REST),
    (r".*_shexp\b", EXPERTS),
    (r"blk\.\d+\.ffn_gate_inp\b", ROUTER),
    (r"blk\.\d+\.exp_probs_b\b", ROUTER),
    (r"blk\.\d+\.ffn_\w+_exps\b", EXPERTS),
    (r"blk\.\d+\.ffn_(gate|up|down)\b", DENSE),
    (r"blk\.\d+\.(attn|ssm|shortconv|time_mix)_?", ATTENTION),
    (r"(output|token_embd)\.", HEAD),
)

NAMES: tuple[tuple[str, str], ...] = (
    (r"ffn_moe_(logits|probs|argsort|topk|group_topk)", ROUTER),
    (r"ffn_moe_(weights|weighted|out)", COMBINATION),
    (r"ffn_moe_|ffn_shexp|shared_expert_gate", EXPERTS),
    (r".*norm$|ffn_inp|sa_out|l_out|inp_|embd|attn_residual|post_moe", REST),
    (r"ffn_", DENSE),
    (r"[QKV]cur|kqv?|fattn|__fattn__|cache_[kv]_|attn_out|attn_|linear_attn|conv_|state_", ATTENTION),
    (r"(q|k|v|kv)(_\w+)?$", ATTENTION),
    (r"result_output", HEAD),
)

OPERATIONS: dict[str, str] = {
    "RMS_NORM": REST,
    "NORM": REST,
    "FLASH_ATTN_EXT": ATTENTION,
    "ROPE": ATTENTION,
    "SSM_CONV": ATTENTION,
    "SSM_SCAN": ATTENTION,
    "GATED_DELTA_NET": ATTENTION,
    "MUL_MAT_ID": EXPERTS,
}

_WEIGHTS = [(re.compile(pattern), kind) for pattern, kind in WEIGHTS]
_NAMES = [(re.compile(pattern), kind) for pattern, kind in NAMES]
_PRODUCTS = frozenset({"MUL_MAT", "MUL_MAT_ID", "ADD", "ADD_ID", "MUL"})


def kind_of(name: str, operation: str, sources: Sequence[str], previous: str) -> str | None:
    """The kind of one node, None for a node that computes nothing.

    name, operation: as `ggml_get_name` and `ggml_op_name` give them; sources: names of its inputs;
    previous: kind of the last node that computed something.
    """
    if operation in NO_WORK:
        return None
    if operation in _PRODUCTS:
        for source in sources:
            if not source.endswith((".weight", ".bias")):
                continue
            for pattern, kind in _WEIGHTS:
                if pattern.match(source):
                    return kind
    base = re.sub(r"( \(.*\))+$", "", name)
    base = re.sub(r"-\d+$", "", base)
    if base == "ffn_out" and operation == "ADD":
        # The sum of routed and shared experts bears the name of a dense layer's result.
        return COMBINATION if previous in MOE_KINDS else REST
    if operation in OPERATIONS:
        return OPERATIONS[operation]
    for pattern, kind in _NAMES:
        if pattern.match(base):
            # Shared experts are built like a dense feed-forward and name their activations so.
            return EXPERTS if kind == DENSE and previous == EXPERTS else kind
    return previous
