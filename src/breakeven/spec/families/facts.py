"""A row of the published-facts table, turned into the configuration it was taken from and read by its family.

The table's keys are its own; its values are those of released configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.spec.families import spec_from_config
from breakeven.spec.model import ModelSpec

_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "context": "max_position_embeddings",
    "sliding_window": "sliding_window",
    "n_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_intermediate": "moe_intermediate_size",
    "shared_expert_intermediate": "shared_expert_intermediate_size",
    "n_shared_experts": "n_shared_experts",
    "first_dense_layers": "first_k_dense_replace",
}
"""The table's key for each fact, and Hugging Face's."""

_SAME = (
    "model_type",
    "interleave_moe_layer_step",
    "intermediate_size_mlp",
    "decoder_sparse_step",
    "full_attention_interval",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "attn_output_gate",
    "num_global_key_value_heads",
    "global_head_dim",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
"""Keys the table takes over unchanged."""


def spec_from_facts(row: Mapping[str, object]) -> ModelSpec:
    """The model of one row, with its published total when the row has one.

    Raises UserError naming the fact that a row lacks. Whether the count agrees with the published total is for
    `guard.check_count` to say.
    """
    name, source = str(row.get("name", "unnamed")), str(row.get("source", "facts"))
    config: dict[str, object] = {theirs: row[ours] for ours, theirs in _KEYS.items() if ours in row}
    config |= {key: row[key] for key in _SAME if key in row}
    if "first_dense_layers" in row:
        config["num_dense_layers"] = row["first_dense_layers"]
    if isinstance(row.get("layer_types"), Mapping):
        config["layer_types"] = _in_turn(row["layer_types"], name)  # type: ignore[arg-type]
    spec = spec_from_config(config, name, source)
    published = row.get("published_total_b")
    return replace(spec, published_total_params=round(published * 1e9) if isinstance(published, int | float) else None)


def _in_turn(counts: Mapping[str, int], name: str) -> list[str]:
    """Layers of two kinds when only their numbers are known: the rarer kind ends each run of the other.

    That is the released order of every family in the table but LFM2, whose six attention layers stand within one
    place of it.
    """
    if len(counts) == 1:
        return [kind for kind, count in counts.items() for _ in range(count)]
    if len(counts) != 2:
        raise UserError(f"{name}: layer_types counts {len(counts)} kinds, the table's form knows two")
    # Where both are equally many, the one that attends to everything comes second.
    rare, common = sorted(counts, key=lambda kind: (counts[kind], kind != "full_attention"))
    total = sum(counts.values())
    ends = {(i + 1) * total // counts[rare] - 1 for i in range(counts[rare])}
    return [rare if i in ends else common for i in range(total)]
