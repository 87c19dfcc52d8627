"""What the lab says of a model: how well it predicts text and solves tasks, and what a change to it cost.

`Evaluation` is what `breakeven evaluate` returns; a `Proof` lies beside every file the lab makes; `ExpertScores` say
how experts are used and what each is worth. All are public contracts (`docs/lab-json.md`): fields are only ever added.
Every measured number is an `Estimate` over blocks of text. None means not measured or not available, never zero.

Shapes: L layers that route, E experts.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.stats.estimate import Estimate

EVALUATE_SCHEMA = "breakeven.evaluate/1"
PROOF_SCHEMA = "breakeven.proof/1"
EXPERTS_SCHEMA = "breakeven.experts/1"


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one language and domain. What compares it with a source is None where there is none.

    Bits per byte do not depend on the tokenizer; KL in nats a token, top-1 agreement a share of tokens.
    """

    language: str
    domain: str
    bytes: int
    documents: int
    blocks: int
    """Pieces of text that were resampled for the intervals."""
    tokens: int
    bits_per_byte: Estimate
    source_bits_per_byte: Estimate | None = None
    difference: Estimate | None = None
    """Bits per byte more than the source's, paired by block."""
    kl: Estimate | None = None
    """Mean of KL(source || model) a token."""
    kl_p99: Estimate | None = None
    kl_floor: Estimate | None = None
    """Mean KL of the model to itself, batches of 256 against batches of 7: what the engine's own rounding makes."""
    top1: Estimate | None = None
    """Share of tokens after which both find the same token likeliest."""


class TaskScore(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one name: the share solved, and how long the answers were."""

    name: str
    language: str
    tasks: int
    solved: Estimate
    answer_tokens: Estimate | None = None
    """Tokens generated an answer; None where answers were chosen, ended at a `stop`, or the server counted none."""
    method: Literal["likelihood", "generation"] = "generation"
    """How an answer was had: the likeliest of the choices, or generated. Shares of the two do not compare."""
    cut: int | None = None
    """Answers that were cut at the most tokens allowed, so that `answer_tokens` is too low; None as there."""


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it was evaluated."""

    name: str
    path: str
    """A file, a directory or a URL, as given."""
    sha256: str | None
    """Of the file; of a directory's weight files in order of their names; None for a URL."""
    format: str | None
    bits_per_weight: float | None
    """Of the whole file's weights."""
    experts_per_token: int | None
    """None for a dense model, and where a URL does not tell."""
    slices: list[Slice]
    tasks: list[TaskScore] = []
    bytes: int | None = None
    """Of the file, or of a directory's weight files; None for a URL."""
    tokens_per_s: Estimate | None = None
    """Tokens of text scored a second, models taking turns: a prompt's speed, not an answer's. None: not measured."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Several models on the same text and tasks."""

    command: str
    text: str | None
    against: str | None
    """Name of the model that the others were compared with."""
    models: list[Evaluated]
    seconds: float
    caveats: list[str] = []
    schema: str = EVALUATE_SCHEMA


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The model that was changed."""

    path: str
    sha256: str
    bytes: int | None = None
    format: str | None = None
    bits_per_weight: float | None = None


class Substituted(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that could not take the type asked for, and what they were given instead."""

    tensors: list[str]
    asked: str
    made: str
    why: str


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. `bytes` of the file, or of all files of a directory."""

    path: str
    sha256: str
    bytes: int
    format: str
    bits_per_weight: float
    substituted: list[Substituted] = []


class LabCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that had to hold before the artefact was left standing. `engine`: by whom, such as "llama.cpp"."""

    name: str
    engine: str
    passed: bool
    kl: Estimate | None = None
    top1: Estimate | None = None
    detail: str = ""
    """What was compared with what, and the limit."""


class ExpertLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's experts. All lists have one entry an expert (E)."""

    layer: int
    tokens: list[int]
    """Tokens each expert saw in the text."""
    score: list[float] | None = None
    dead: list[int] = []
    """Experts that no token reached."""
    by_language: dict[str, list[float]] = {}
    """Share of the layer's choices by language; each sums to 1."""


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """How experts were used, or scored, and which of the source's experts were kept, in the artefact's order."""

    layers: list[ExpertLayer]
    n_experts_per_token: int
    kept: list[list[int]] | None = None
    """One list a layer: the source's expert in each place of the artefact; -1 for a new one. None: all, in order."""
    retrained: list[list[int]] | None = None
    """One list a layer: the experts whose weights were trained on. None: none by themselves."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How an artefact was trained."""

    tokens: int
    seconds: float
    seed: int
    flops: float
    losses: list[list[float]]
    """Pairs of step and loss in nats a token."""
    chosen: list[list[float]] = []
    """Pairs of step and loss on the text by which the best checkpoint was chosen, the first before any step."""
    best_step: int | None = None
    """The step whose weights were kept; 0: before the first. None: not told."""


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """The same model trained without what was tried: bits per byte it stands behind, positive where the trial won."""

    equal_tokens: Estimate | None
    equal_seconds: Estimate | None


class LabSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one of the two ran beside the other, taking turns."""

    of: str
    """"source" or "artefact"."""
    engine: str
    what: str
    """"prompt": tokens read at once; "answer": tokens made one by one."""
    tokens_per_s: Estimate


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What a change to a model cost, by language, and that the engine serves what was made."""

    verb: str
    command: str
    source: Origin
    artefact: Artefact
    slices: list[Slice]
    checks: list[LabCheck]
    experts: Experts | None = None
    """Of the source, as the text was routed there."""
    experts_after: Experts | None = None
    """Of the artefact on a few blocks of each language of the text; None: not measured."""
    training: Training | None = None
    twin: Twin | None = None
    speeds: list[LabSpeed] = []
    caveats: list[str] = []
    seconds: float | None = None
    """Of loading and scoring what was made, without making it."""
    schema: str = PROOF_SCHEMA


class WatchedText(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one language that experts were watched on."""

    language: str
    bytes: int
    blocks: int
    """Pieces of text, each its own sequence, that were resampled for the intervals."""
    tokens: int
    sampling_error: float
    """Standard error of an expert's share of a layer's choices, from the spread between blocks, and at least what
    tokens that choose independently would have: smaller differences are chance."""


class ExpertPair(msgspec.Struct, frozen=True, kw_only=True):
    """Two experts of a layer that are chosen together more often than chance."""

    experts: list[int]
    """Two, the smaller number first."""
    tokens: int
    """Tokens that chose both."""
    over_chance: float
    """Over the tokens expected by chance: that many pairs, in each block as its experts are used there."""
    languages: list[str]
    """Where it was surely more than chance by itself."""


class WithoutExpert(msgspec.Struct, frozen=True, kw_only=True):
    """What was lost when one expert was switched off, as `experts prune` would leave it out (`switched_off` says how).

    Paired by block; negative where the model predicted better without. Keys are languages, in the order of the text.
    """

    expert: int
    nats_per_token: dict[str, Estimate]
    bits_per_byte: dict[str, Estimate]


class ScoredLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer that routes. Lists have one entry an expert (E), named as in `ExpertLayer`."""

    layer: int
    tokens: list[int]
    """Tokens each expert saw in the text."""
    max_over_mean: float
    """Tokens of the busiest expert over the mean; 1 is perfect balance."""
    entropy: float
    """Of the shares, normalised: 1 is perfect balance, 0 one expert alone."""
    dead: list[int] = []
    """Experts that no token reached."""
    by_language: dict[str, list[float]] = {}
    """Share of the layer's choices by language; each sums to 1."""
    tokens_by_language: dict[str, list[int]] = {}
    pairs: list[ExpertPair] = []
    """Surest first, a few. Empty where every expert is always chosen."""
    score: list[float | None] | None = None
    """REAP: mean, over the tokens that chose the expert, of its gate weight (those of a token's experts sum to 1) times
    the norm of its output. None for an expert that no token reached; the whole list None when only loads were asked."""
    score_error: list[float | None] | None = None
    """Standard error of each score, from the spread between blocks: scores nearer than that are not told apart."""
    score_by_language: dict[str, list[float | None]] = {}
    contribution_by_language: dict[str, list[float | None]] = {}
    """Share of the layer's sum of gate weight times norm over all tokens, score times tokens; each sums to 1. None
    where the layer gave nothing there."""
    without: list[WithoutExpert] = []
    """Experts that were switched off one at a time, in the order in which they were tried."""


class ExpertFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One expert worth naming."""

    layer: int
    expert: int
    kind: str
    """"one language" (serves `language`, hardly any other) or "lagging" (much load, little contribution)."""
    language: str | None
    text: str
    """Why, with the figures."""


class ExpertScores(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's experts are used, and what each is worth: what `experts load` and `experts score` return."""

    command: str
    model: Origin
    format: str
    """"gguf" or "hf" (a Hugging Face directory)."""
    architecture: str
    text: str | None
    languages: list[WatchedText]
    n_experts: int
    n_experts_per_token: int
    layers: list[ScoredLayer]
    findings: list[ExpertFinding] = []
    tried: int = 0
    """Experts that were switched off one at a time, of `n_experts` times the layers."""
    switched_off: str | None = None
    """How an expert was switched off; None when none was."""
    observing_overhead: float | None = None
    """How much slower watching made a batch: 0.05 is 5 %. None where it was not measured."""
    seconds: float
    caveats: list[str] = []
    schema: str = EXPERTS_SCHEMA
