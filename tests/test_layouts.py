"""Every layout that can be written is loaded by llama.cpp, generates finite numbers, and routes as asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from breakeven.engines.inside import child as m
from breakeven.engines.inside.client import Inside
from breakeven.engines.synthesis.routing import ExpertUse
from breakeven.engines.synthesis.write import synthesise, synthesised_bytes
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import DenseFfn, Gqa, Layer, ModelSpec, MoeFfn, Mtp, Norms, QkNorm
from breakeven.model.layouts.registry import FAMILIES, why_not_written
from breakeven.model.tensors import TensorGroup, tensors
from tests.small_layouts import DELTA, DENSE, LAYOUTS, MOE, NORMED, ROUTED
from tests.small_models import CONFIGS, small

FORMAT = "Q8_0"
"""One number type for all matrices: the fastest to write."""
TOKENS = 512
WRITTEN = [family for family in FAMILIES.values() if family.gguf_architecture]


def routed(spec: ModelSpec) -> dict[int, MoeFfn]:
    return {i: layer.ffn for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_loads_generates_and_routes_as_asked(name: str, tmp_path: Path) -> None:
    spec = replace(LAYOUTS[name], mtp=None)
    experts = routed(spec)
    by_token = FAMILIES[spec.family].token_routed and not all(f.selection_bias for f in experts.values())
    grouped = any(f.n_groups > 1 for f in experts.values())
    use = ExpertUse(1.2) if experts and not grouped and not by_token else ExpertUse()
    path = synthesise(spec, FORMAT, tmp_path / "m.gguf", routing=use)
    held = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in GGUFReader(path).tensors}
    assert held == {t.name: t.shape for t in tensors(spec)}
    assert 0 <= path.stat().st_size - synthesised_bytes(spec, FORMAT) < 100_000
    ids = np.random.default_rng(0).integers(0, spec.vocab, TOKENS).tolist()
    with Inside(path, threads=1) as inside:
        logits = inside.logits(ids[:16])
        assert np.isfinite(logits).all()
        scale = spec.scales.logit if spec.scales else 1.0
        assert 0.5 < logits.std() * scale < 3.0, "the last layer's size is not the first's"
        assert np.abs(logits[3] - logits[4]).max() > 0.1, "the tokens are not told apart"
        generated = inside.greedy(ids[:8], 12)
        assert len(generated) == 12
        assert all(0 <= token < spec.vocab for token in generated)
        if not experts:
            return
        traced = inside.ask(m.Trace(sequences=[ids], batch=64), m.Routed)
        chosen_LTK = np.load(inside.folder / "ids-0.npy")
    assert traced.layers == list(experts)
    for chosen_TK, f in zip(chosen_LTK, experts.values(), strict=True):
        assert chosen_TK.shape == (TOKENS, f.n_experts_per_token)
        wanted = use.frequencies(f.n_experts, f.n_experts_per_token)
        seen = np.sort(np.bincount(chosen_TK.ravel(), minlength=f.n_experts) / TOKENS)[::-1]
        # Sorting draws the extremes apart: sampling alone gives 4.5 standard errors on the worst of the values.
        assert np.all(np.abs(seen - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / TOKENS) + 0.01)


def test_every_family_that_is_written_is_tried() -> None:
    tried = {spec.family for spec in LAYOUTS.values()} | {small(name).family for name in CONFIGS}
    assert [family.name for family in WRITTEN if family.name not in tried] == []
    assert len(tried) >= 28


def test_the_page_names_every_family_that_is_written_and_those_that_are_not() -> None:
    page = (Path(__file__).parent.parent / "docs" / "synth.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []


DRAFTING = [name for name in ROUTED if FAMILIES[LAYOUTS[name].family].limits.mtp]


@pytest.mark.parametrize("name", ["qwen35", *DRAFTING])
def test_drafting_blocks_are_written_when_asked_for(name: str, tmp_path: Path) -> None:
    plain = LAYOUTS[name]
    attends = [layer for layer in plain.layers if isinstance(layer.ffn, MoeFfn) or name == "qwen35"][-1]
    spec = replace(plain, mtp=Mtp((attends,)))
    without = synthesise(spec, FORMAT, tmp_path / "without.gguf")
    path = synthesise(spec, FORMAT, tmp_path / "with.gguf", mtp=True)
    drafts = {t.name for t in tensors(spec) if t.group is TensorGroup.MTP}
    assert {t.name for t in GGUFReader(path).tensors} == {t.name for t in GGUFReader(without).tensors} | drafts
    with Inside(path, threads=1, mtp=True) as inside:
        assert np.isfinite(inside.logits([1, 2, 3])).all()


def test_drafting_blocks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no blocks that draft"):
        synthesise(LAYOUTS["qwen35"], FORMAT, tmp_path / "m.gguf", mtp=True)
    spec = replace(LAYOUTS["olmo2"], mtp=Mtp(LAYOUTS["olmo2"].layers[:1]))
    with pytest.raises(NotSupportedError, match="no drafting blocks of the family olmo2"):
        synthesise(spec, FORMAT, tmp_path / "m.gguf", mtp=True)
    assert list(tmp_path.iterdir()) == []


LLAMA = LAYOUTS["llama-rope"]


def with_layer(spec: ModelSpec, **facts: object) -> ModelSpec:
    """The spec with its first layer's attention or feed-forward changed in every layer."""
    layers = tuple(
        replace(layer, mixers=(replace(layer.mixers[0], **facts),)) if layer.mixers else layer for layer in spec.layers
    )
    return replace(spec, layers=layers)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (replace(LLAMA, layers=(Layer((DELTA,), DENSE),) * 2), "has softmax attention, not linear attention"),
        (with_layer(LLAMA, qk_norm=QkNorm.HEAD), "has no norms on queries and keys"),
        (with_layer(LLAMA, window=64), "has no sliding layers"),
        (with_layer(LLAMA, sinks=True), "has no sinks"),
        (replace(LLAMA, layers=(Layer((NORMED, NORMED), DENSE),)), "has one mixer in every layer"),
        (replace(LLAMA, layers=(Layer((Gqa(4, 2, 64),), None),)), "has a feed-forward in every layer"),
        (replace(LLAMA, layers=(Layer((Gqa(4, 2, 64),), DENSE, Norms.AFTER),)), "has a norm before each part"),
        (replace(LLAMA, layers=(Layer((Gqa(4, 2, 64),), DenseFfn(512, gated=False)),)), "of three matrices"),
        (replace(LAYOUTS["granitehybrid-dense"], layers=LLAMA.layers), "has Mamba-2 in at least one layer"),
        (with_layer(LAYOUTS["phi3"], head_dim=32), "make up the hidden size"),
        (replace(LAYOUTS["olmo2"], tied_embeddings=True), "has an output head of its own"),
        (replace(LAYOUTS["qwen3vlmoe"], layers=(Layer((NORMED,), replace(MOE, selection_bias=True)),)), "no bias for"),
        (replace(LAYOUTS["gemma3n"], streams=None), "has several residual streams"),
        (replace(LAYOUTS["granitehybrid"], hidden=512), "twice as wide as the hidden state"),
        (replace(LAYOUTS["nemotron_h"], layers=(Layer((NORMED,), DENSE),)), "has layers of one part each"),
        (replace(LAYOUTS["falcon-h1"], layers=LLAMA.layers), "side by side in every layer"),
        (replace(LAYOUTS["dots1"], layers=(Layer((NORMED,), DENSE), *LAYOUTS["dots1"].layers[1:])), "the same heads"),
        (replace(LAYOUTS["deepseek2"], layers=LAYOUTS["deepseek2"].layers[:1] + LAYOUTS["deepseek2"].layers[1:] * 13),
         "projects queries directly in models of 27 layers"),
    ],
)  # fmt: skip
def test_what_the_loader_cannot_say_is_refused(spec: ModelSpec, why: str) -> None:
    found = why_not_written(spec)
    assert found is not None
    assert why in found
    assert found.startswith(f"llama.cpp's {FAMILIES[spec.family].gguf_architecture} ")


def test_what_llama_cpp_has_no_architecture_for_is_refused_by_name() -> None:
    why = why_not_written(replace(LLAMA, family="olmo-hybrid"))
    assert why == "llama.cpp build 11549 has no architecture olmo-hybrid yet"
    assert why_not_written(replace(LLAMA, family="qwen4exp")) == "files of family qwen4exp cannot be written yet"
