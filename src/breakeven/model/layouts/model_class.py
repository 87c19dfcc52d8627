"""What a class of models decides, where the keys of its files cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from breakeven.model.architecture import Gating, Norms, OutputGate, QkNorm


@dataclass(frozen=True, slots=True)
class ModelClass:
    """The defaults of one class of models.

    `family`, `routed`: llama.cpp's name for files of it, and with experts. `tied`: None when the file must say.
    Attention: `attention_bias_output`, whether `attention_bias` means the output matrix too; `head_dim_given`: heads
    are not hidden / heads wide; `gate`, and `gate_of_true` where a key says no more than true; `linear_qk_norm`, of
    layers with fixed decay; `delta`: what linear layers are where keys do not tell; `full_rank_gate`: of Kimi nets;
    `kv_matrices_shared`: layers that share a cache keep key and value matrices; `indexed_by_word`: layers whose word is
    plain attention have no indexer; `parallel_mamba`: attention and a state-space mixer in every layer.
    Order: `pattern`, kinds of layers in turn where no key says, `first_full` with a full one first;
    `sliding_alone`: every layer slides when there is a window and nothing else is said; `no_window`: windows are
    not applied; `window_optional`: without a window in the file every layer is full; `words`: its own words for
    kinds of layers; `kinds_required`: the key that must say what each layer is, `stand_in` where it does not and
    the user reads on.
    Feed-forwards: `gated` None by the activation; `expert_key`: the key of an expert's width, `latent_key` of the
    state that they work on; `shared_experts`: as the class builds them; `dense_beside`: a dense one in layers that
    route; `dense_only`: no experts, whatever the file says; `no_ffn`: layers are a mixer alone; `double`: layers
    hold two of each part (LongCat).
    `own_norms`: of layers without attention where they differ. `joins`: residual streams are weighed before the
    head. `idle`: keys that stand in its files and build nothing; `left_out`: keys of small parts that no part here
    describes, which are read past, and the model says so. `defaults`: values of keys that its files may leave out.
    """

    family: str = "custom"
    routed: str | None = None
    tied: bool | None = None
    qk_norm: QkNorm = QkNorm.NONE
    linear_qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    output_bias: bool = False
    attention_bias_output: bool = True
    mlp_bias: bool = False
    norms: Norms = Norms.BEFORE
    own_norms: Norms | None = None
    layer_norm: bool = False
    lm_head_bias: bool = False
    head_dim_given: bool = False
    pattern: tuple[str, ...] = ()
    first_full: bool = False
    sliding_alone: bool = True
    no_window: bool = False
    window_optional: bool = False
    indexed_by_word: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    kinds_required: str = ""
    stand_in: tuple[str, ...] = ()
    full_rank_gate: bool = False
    dense_only: bool = False
    joins: bool = True
    sinks: bool = False
    gate: OutputGate = OutputGate.NONE
    gate_of_true: OutputGate = OutputGate.FULL
    parallel_mamba: bool = False
    delta: str = ""
    kv_matrices_shared: bool = True
    dt_norms: bool = False
    mamba_norm: bool = True
    gated: bool | None = None
    no_ffn: bool = False
    double: bool = False
    expert_key: str | None = None
    latent_key: str = ""
    gating: Gating = Gating.SOFTMAX
    normalise: bool = True
    selection_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    shared_experts: int = 0
    shared_gate: bool = False
    dense_beside: bool = False
    mtp_tables: bool = False
    mtp_dense: bool = False
    rope_base: float = 10000.0
    scaled: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    idle: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)


UNKNOWN = ModelClass()
"""What is taken for granted of a class that is not in the table."""
