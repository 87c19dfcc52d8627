"""Models described by hand: the page's own examples, changes to known models, and what a slip is told."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from families_fixtures import small_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.model.architecture import (
    DenseFfn,
    FeedForward,
    Gating,
    Gqa,
    Indexer,
    KimiDelta,
    Layer,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Mtp,
    NgramTable,
    Norms,
    OutputGate,
    PerLayerEmbedding,
    QkNorm,
    Quantization,
    Rope,
    Scales,
    Streams,
)
from breakeven.model.catalogue import lookup, names
from breakeven.model.layouts.registry import FAMILIES
from breakeven.model.readers.yaml import read_yaml
from breakeven.model.readers.yaml_form import IndexerKeys, LayerKeys, LayerRun, ModelFile
from breakeven.model.readers.yaml_parts import key_of
from breakeven.model.readers.yaml_write import to_yaml
from breakeven.model.tensors import tensors

PAGE = Path(__file__).parents[1] / "docs" / "models-yaml.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def _read(tmp_path: Path, text: str) -> ModelSpec:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    return read_yaml(path, lambda name: lookup(name) if "-" in name else small_spec(name))


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_page_can_be_read(text: str, tmp_path: Path) -> None:
    spec = _read(tmp_path, text)
    assert spec.name == re.findall(r"^name: (\S+)", text, re.MULTILINE)[0]
    assert tensors(spec)


def test_the_page_explains_every_key_and_names_every_family_that_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    keys = ({*ModelFile.model_fields, *LayerRun.model_fields} - {"base"}) | {"from"}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []
    assert [f.name for f in FAMILIES.values() if f.gguf_architecture and f"`{f.name}`" not in page] == []


def test_128_experts_cost_what_they_hold(tmp_path: Path) -> None:
    base, changed = lookup("olmoe-1b-7b"), _read(tmp_path, "from: olmoe-1b-7b\nn_experts: 128\n")
    assert changed.family == "olmoe"
    assert changed.published_total_params is None
    more = sum(t.params for t in tensors(changed)) - sum(t.params for t in tensors(base))
    # 64 further experts in 16 layers, three matrices of 1024 x 2048 and a row of the router each.
    assert more == 16 * 64 * (3 * 1024 * 2048 + 2048)


def test_experts_into_a_dense_model_and_out_again(tmp_path: Path) -> None:
    routed = _read(tmp_path, "from: qwen3\nn_experts: 8\nn_experts_per_token: 2\nexpert_width: 48\n")
    assert routed.family == "qwen3moe"
    assert {layer.ffn for layer in routed.layers} == {MoeFfn(8, 2, 48)}
    dense = _read(tmp_path, "from: qwen3moe\nn_experts: 0\nffn_width: 96\n")
    assert dense.family == "qwen3"
    assert {layer.ffn for layer in dense.layers} == {DenseFfn(96)}
    assert _read(tmp_path, "from: olmoe\nn_experts: 0\nffn_width: 96\n").family == "custom"
    with pytest.raises(UserError, match="expert_width: missing, a layer with experts needs it"):
        _read(tmp_path, "from: qwen3\nn_experts: 8\nn_experts_per_token: 2\n")
    with pytest.raises(UserError, match="ffn_width: missing, a dense feed-forward needs it"):
        _read(tmp_path, "from: olmoe\nn_experts: 0\n")


def test_layers_are_cut_and_lengthened_only_when_alike(tmp_path: Path) -> None:
    assert len(_read(tmp_path, "from: llama\nn_layers: 2\n").layers) == 2
    assert len(_read(tmp_path, "from: llama\nn_layers: 9\n").layers) == 9
    assert _read(tmp_path, "from: gemma2\nn_layers: 3\n").layers == small_spec("gemma2").layers[:3]
    with pytest.raises(UserError, match="n_layers: found 9, gemma2 has 4 of several kinds"):
        _read(tmp_path, "from: gemma2\nn_layers: 9\n")


def test_a_new_window_is_for_the_layers_that_slide(tmp_path: Path) -> None:
    layers = _read(tmp_path, "from: gemma2\nwindow: 64\n").layers
    assert [layer.mixer.window for layer in layers if isinstance(layer.mixer, Gqa)] == [64, None, 64, None]


def test_keys_of_a_run_come_before_those_at_the_top(tmp_path: Path) -> None:
    hybrid = _read(tmp_path, next(text for text in EXAMPLES if "name: hybrid" in text))
    kinds = [type(layer.mixer) for layer in hybrid.layers]
    assert kinds == [LinearAttention] * 3 + [Gqa] + [LinearAttention] * 3 + [Gqa]
    assert hybrid.layers[3].mixer == Gqa(16, 4, 64)
    assert hybrid.layers[7].mixer == Gqa(16, 4, 64, window=1024)
    latent = _read(tmp_path, next(text for text in EXAMPLES if "kv_lora_rank" in text))
    assert {type(layer.mixer) for layer in latent.layers} == {Mla}
    assert [type(layer.ffn) for layer in latent.layers] == [DenseFfn] + [MoeFfn] * 11
    assert latent.layers[1].ffn == MoeFfn(32, 4, 512, n_shared_experts=1, shared_width=512)


_WHOLE = "hidden: 64\nvocab: 320\ncontext: 512\nn_layers: 2\nheads: 4\nffn_width: 96\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from: olmoe\nn_expert: 64\n", "n_expert: no such key, did you mean n_experts"),
        ("from: olmoe\nn_experts: many\n", "n_experts: found 'many', it must be a valid integer"),
        ("from: olmoe\nn_experts: -3\n", "n_experts: found -3, it must be greater than or equal to 0"),
        ("from: olmoe\nn_experts: 1\n", "n_experts_per_token: found 2, it must be 1 to 1"),
        ("from: olmoe\nhidden: 0\n", "hidden: found 0, it must be greater than 0"),
        ("from: olmoe\nffn_width: 96\n", "ffn_width: olmoe has no layer with it"),
        ("from: olmoe\nwindow: 128\n", "family: found 'olmoe', but llama.cpp's olmoe has no sliding layers"),
        ("from: olmoe\nlayers: [{ffn_width: 8}]\n", "layers.0: ffn_width: the layer has no part with it"),
        ("from: olmoe\nfamily: nonesuch\n", "family: found 'nonesuch', it must be one of"),
        (_WHOLE + "qk_norm: sideways\n", "qk_norm: found 'sideways', it must be 'none', 'head' or 'full'"),
        (_WHOLE + "kv_heads: 3\n", "kv_heads: found 3, it must divide heads, 4"),
        (_WHOLE + "layers: [{repat: 2}]\n", "layers.0.repat: no such key, did you mean repeat"),
        (_WHOLE + "layers: [{repeat: 3}]\n", "n_layers: found 2, but layers add up to 3"),
        (
            "family: llama\n" + _WHOLE + "layers: [{}, {n_experts: 2, n_experts_per_token: 1, expert_width: 8}]\n",
            "llama.cpp's llama has experts in all layers or in none",
        ),
        (
            "family: llama\n" + _WHOLE + "layers: [{}, {attention: conv}]\n",
            "llama.cpp's llama has softmax attention, not short convolutions",
        ),
        ("family: gemma2\n" + _WHOLE + "layers: [{window: 8}, {window: 9}]\n", "one window, not [8, 9]"),
        ("family: llama\n" + _WHOLE + "layers: [{}, {heads: 2}]\n", "the same heads in every layer"),
        ("family: llama\n" + _WHOLE + "layers: [{}, {ffn_width: 8}]\n", "one width for dense layers"),
        (_WHOLE + "published_total_params: 5000000\n", "5,000,000 were published"),
        (_WHOLE.replace("heads: 4\n", ""), "heads: missing, attention needs it"),
        ("hidden: 64\nvocab: 9\n", "context: missing"),
        ("hidden: {", "not YAML"),
        ("- hidden\n", "it must hold keys such as"),
        ("", "it must hold keys such as"),
    ],
)
def test_a_slip_is_told_with_file_key_and_what_is_right(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        _read(tmp_path, text)
    assert "m.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("from: loop.yaml\n")

    def again(name: str) -> ModelSpec:
        return read_yaml(tmp_path / name, again)

    with pytest.raises(UserError, match=r"from: found 'loop\.yaml', which leads back to this file"):
        read_yaml(path, again)


def test_an_absent_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml", lookup)


def _again(spec: ModelSpec, tmp_path: Path) -> ModelSpec:
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(spec))
    return read_yaml(path, lookup)


@pytest.mark.parametrize("name", names())
def test_every_model_of_the_catalogue_can_be_written_down_and_read_back(name: str, tmp_path: Path) -> None:
    spec = lookup(name)
    assert _again(spec, tmp_path) == spec


_SIZES = st.integers(1, 9)
_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "int": _SIZES,
    "int | None": st.none() | _SIZES,
    "float": st.sampled_from([0.5, 1.0, 2.5]),
    "bool": st.booleans(),
    "str | None": st.sampled_from([None, "FP8"]),
    "QkNorm": st.sampled_from(QkNorm),
    "Gating": st.sampled_from(Gating),
    "OutputGate": st.sampled_from(OutputGate),
    "Indexer | None": st.none() | st.builds(Indexer, *[_SIZES] * 5, *[st.booleans()] * 3),
}
_FITTING = {"heads": 72, "kv_heads": 4, "key_heads": 4, "value_heads": 8, "groups": 4, "output_groups": 4}
_FITTING |= {"n_experts": 64, "n_groups": 4, "chunk_experts": 8}


def _parts(kind: type) -> st.SearchStrategy[object]:
    """A part with anything in its fields that a model may have."""
    each = {}
    for field in fields(kind):
        strategy = _FIELDS[str(field.type)]
        fits = field.name in _FITTING and not (kind is KimiDelta or (kind is Lightning and field.name == "kv_heads"))
        each[field.name] = st.just(_FITTING[field.name]) if fits else strategy
    if kind is Mla:
        each["output_gate"] = st.sampled_from([OutputGate.NONE, OutputGate.FULL, OutputGate.HEAD])
    return st.builds(kind, **each)


_MIXERS = st.one_of(*(_parts(kind) for kind in get_args(Mixer)))
_LAYERS = st.builds(
    Layer,
    st.lists(_MIXERS, max_size=2, unique_by=type).map(tuple),
    st.one_of(_parts(DenseFfn), _parts(MoeFfn)),
    st.sampled_from(Norms),
) | st.builds(Layer, _MIXERS.map(lambda mixer: (mixer,)), st.none(), st.sampled_from(Norms))
_SPECS = st.builds(
    ModelSpec,
    name=st.sampled_from(["m", "org/M 1.0: a", "1e3", "no", "2024-01-02"]),
    family=st.just("custom"),
    hidden=_SIZES,
    vocab=_SIZES,
    context=_SIZES,
    tied_embeddings=st.booleans(),
    layers=st.lists(_LAYERS, min_size=1, max_size=3).flatmap(
        lambda kinds: st.lists(st.sampled_from(kinds), min_size=1, max_size=20).map(tuple)
    ),
    source=st.just("drawn"),
    rope=st.builds(Rope, st.just(1e6), st.none() | _SIZES, st.sampled_from([None, 1e4]), st.just("yarn"), st.just(4.0)),
    norm_epsilon=st.just(1e-6),
    layer_norm=st.booleans(),
    output_bias=st.booleans(),
    logit_softcap=st.sampled_from([None, 30.0]),
    scales=st.none() | st.builds(Scales, st.just(12.0), st.just(0.25)),
    per_layer_embedding=st.none() | st.builds(PerLayerEmbedding, _SIZES, _SIZES),
    ngrams=st.none() | st.builds(NgramTable, _SIZES, _SIZES, _SIZES, st.just((0,)), _SIZES),
    streams=st.none() | st.builds(Streams, _SIZES, st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 3)),
    mtp=st.none() | st.builds(Mtp, st.lists(_LAYERS, min_size=1, max_size=2).map(tuple), st.booleans(), st.booleans()),
    quantization=st.none()
    | st.builds(
        Quantization,
        st.just("FP8"),
        st.just(("re:.*x",)),
        _FIELDS["str | None"],
        st.sampled_from([(), (("a", "INT8"),)]),
    ),
    assumed=st.sampled_from([(), ("model_type",)]),
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=_SPECS)
def test_whatever_a_model_is_made_of_can_be_written_down_and_read_back(spec: ModelSpec, tmp_path: Path) -> None:
    assert _again(spec, tmp_path) == spec


def test_the_form_has_a_key_for_every_field_of_every_part() -> None:
    parts = (*get_args(Mixer), *get_args(FeedForward))
    wanted = {key_of(kind, field.name) for kind in parts for field in fields(kind)}
    assert wanted - LayerKeys.model_fields.keys() == set()
    assert {field.name for field in fields(Indexer)} == set(IndexerKeys.model_fields)
    beside = {"name", "family", "layers", "source", "rope", "stored", "output_bias"}
    assert {field.name for field in fields(ModelSpec)} - beside - set(ModelFile.model_fields) == set()


_NANO = """
name: nemotron-3-nano
hidden: 2688
vocab: 131072
context: 262144
heads: 32
kv_heads: 2
head_dim: 128
mamba_heads: 64
mamba_head_dim: 64
mamba_groups: 8
gated: false
n_experts: 128
n_experts_per_token: 6
expert_width: 1856
n_shared_experts: 1
shared_width: 3712
kinds:
  M: {attention: mamba, ffn: none}
  E: {attention: none, ffn: experts}
  A: {attention: gqa, ffn: none}
layers:
  - {repeat: 6, pattern: [M, E, M, E, M, A, E]}
  - {pattern: [M, E], repeat: 5}
"""
"""As many layers of each kind as Nemotron 3 Nano has, if not in its order."""


def test_layers_of_one_part_and_experts_without_a_gate_count_what_was_published(tmp_path: Path) -> None:
    spec = _read(tmp_path, _NANO)
    kinds = [type(layer.mixer) for layer in spec.layers]
    assert (kinds.count(Mamba2), kinds.count(Gqa), kinds.count(type(None))) == (23, 6, 23)
    assert sum(t.params for t in tensors(spec)) == pytest.approx(31.58e9, rel=0.001)


def test_mamba_has_the_sizes_of_its_paper_unless_the_file_says_others(tmp_path: Path) -> None:
    spec = _read(tmp_path, "hidden: 64\nvocab: 9\ncontext: 9\nheads: 4\nlayers: [{attention: mamba, ffn: none}]\n")
    assert spec.layers == (Layer((Mamba2(2, 64, 128),)),)
    spec = _read(tmp_path, "hidden: 64\nvocab: 9\ncontext: 9\nlayers: [{attention: mamba1, ffn: none}]\n")
    assert spec.layers == (Layer((Mamba1(128, 16, 4),)),)


def test_every_fourth_layer_full_attention(tmp_path: Path) -> None:
    """Of a model that has both kinds, whose own sizes each kind keeps; and of one that lacks the other."""
    base = lookup("qwen3-next-80b-a3b")
    linear, full = base.layers[0], base.layers[3]
    changed = _read(tmp_path, "from: qwen3-next-80b-a3b\nevery: {2: {attention: full}}\n")
    assert changed.layers == (linear, full) * 24
    assert _read(tmp_path, "from: qwen3-next-80b-a3b\npattern: [linear, full]\n").layers == changed.layers
    few = _read(tmp_path, "from: qwen3-next-80b-a3b\nn_experts: 64\npattern: [full, linear, linear]\nn_layers: 12\n")
    assert [layer.mixer for layer in few.layers] == [full.mixer, linear.mixer, linear.mixer] * 4
    assert {layer.ffn.n_experts for layer in few.layers if isinstance(layer.ffn, MoeFfn)} == {64}
    with pytest.raises(UserError, match=r"pattern\.0: key_heads: missing, linear attention needs it"):
        _read(tmp_path, "from: qwen3-30b-a3b\npattern: [linear, full]\n")
    sizes = "key_heads: 16\nvalue_heads: 32\nkey_dim: 128\nvalue_dim: 128\n"
    mixed = _read(tmp_path, f"from: qwen3-30b-a3b\npattern: [linear, linear, linear, full]\n{sizes}")
    assert [type(layer.mixer) for layer in mixed.layers] == [*[LinearAttention] * 3, Gqa] * 12
    assert (mixed.layers[3], mixed.layers[0].ffn) == (lookup("qwen3-30b-a3b").layers[3], mixed.layers[3].ffn)
    assert mixed.family == "custom"


def test_a_window_comes_and_goes(tmp_path: Path) -> None:
    slid = _read(tmp_path, "from: qwen3-8b\nwindow: 1024\nevery: {6: full}\nfamily: custom\n")
    windows = [layer.mixer.window for layer in slid.layers if isinstance(layer.mixer, Gqa)]
    assert windows == [*[1024] * 5, None] * 6
    wide = _read(tmp_path, "from: gpt-oss-20b\nwindow: none\n")
    assert {layer.mixer.window for layer in wide.layers if isinstance(layer.mixer, Gqa)} == {None}
    with pytest.raises(UserError, match=r"every\.2: window: missing, a sliding layer needs it"):
        _read(tmp_path, "from: qwen3-8b\nevery: {2: sliding}\n")


def test_first_last_and_every_say_one_layer_each(tmp_path: Path) -> None:
    text = _WHOLE.replace("n_layers: 2", "n_layers: 8")
    experts = "n_experts_per_token: 2\nexpert_width: 8\nkinds: {moe: {n_experts: 4}}\n"
    said = "every: {2: moe}\nfirst: {3: {ffn_width: 5}}\nlast: {1: {attention: none}}\n"
    spec = _read(tmp_path, text + experts + said)
    assert [layer.ffn for layer in spec.layers[:4]] == [DenseFfn(5), MoeFfn(4, 2, 8), DenseFfn(5), MoeFfn(4, 2, 8)]
    assert [bool(layer.mixers) for layer in spec.layers] == [True] * 7 + [False]
    for said, told in (
        ("every: {9: moe}", "every.9: the model has 8 layers"),
        ("first: {2: {repeat: 3}}", "first.2: it must be one layer"),
        ("every: {2: more}", "every.2: found 'more', it must be a name from `kinds` or one of moe, gqa"),
        ("layers: [moe]\npattern: [moe]", "pattern: stands beside layers"),
        ("attention: none\nffn: none", "both are none, so the layer is empty"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            _read(tmp_path, f"{text}{experts}{said}\n")


def test_parts_side_by_side_and_experts_of_other_kinds(tmp_path: Path) -> None:
    text = _WHOLE.replace("n_layers: 2", "n_layers: 1")
    both = _read(tmp_path, f"{text}attention: [gqa, {{kind: mamba2, conv_kernel: 3}}]\nmamba_norm: false\n").layers[0]
    assert both.mixers == (Gqa(4, 4, 16), Mamba2(2, 64, 128, conv_kernel=3, norm=False))
    latent = "n_experts: 8\nn_experts_per_token: 2\nexpert_width: 8\nlatent_width: 16\nzero_experts: 4\n"
    assert _read(tmp_path, text + latent).layers[0].ffn == MoeFfn(8, 2, 8, latent_width=16, zero_experts=4)
    gates = _read(tmp_path, f"{text}output_gate: true\npost_norms: true\n").layers[0]
    assert gates == Layer((Gqa(4, 4, 16, output_gate=OutputGate.TWIN),), DenseFfn(96), Norms.AROUND)


def test_what_stands_beside_the_layers_can_be_changed(tmp_path: Path) -> None:
    base = lookup("deepseek-v3")
    spec = _read(
        tmp_path,
        "from: deepseek-v3\nmtp: 2\nrope_scaling: yarn\nrope_factor: 40\nstreams: {count: 4}\n"
        "indexer: {heads: 64, head_dim: 128, top_k: 2048}\nquantization: FP8\nfamily: custom\n",
    )
    assert spec.mtp == Mtp(spec.layers[-1:] * 2)
    assert (spec.rope.scaling, spec.rope.factor, spec.rope.base) == ("yarn", 40, base.rope.base)
    assert (spec.streams, spec.quantization) == (Streams(4), Quantization("FP8"))
    assert {layer.mixer.indexer for layer in spec.layers if isinstance(layer.mixer, Mla)} == {Indexer(64, 128, 2048)}
    path = tmp_path / "base.yaml"
    path.write_text(to_yaml(spec))
    narrow = tmp_path / "narrow.yaml"
    narrow.write_text(f"from: {path}\nindexer: {{top_k: 512}}\nevery: {{2: {{indexer: none}}}}\n")
    changed = read_yaml(narrow, lambda name: read_yaml(Path(name), lookup))
    found = [layer.mixer.indexer for layer in changed.layers if isinstance(layer.mixer, Mla)]
    assert found[:2] == [Indexer(64, 128, 512), None]


def test_shared_experts_are_as_many_as_said(tmp_path: Path) -> None:
    base = lookup("deepseek-v3")
    twice = _read(tmp_path, "from: deepseek-v3\nn_shared_experts: 2\n")
    layers = (*base.layers, *twice.layers)
    widths = {layer.ffn.shared_width for layer in layers if isinstance(layer.ffn, MoeFfn)}
    assert widths == {2048, 4096}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hidden: 2020-13-45\n", "hidden: found '2020-13-45', it must be a valid integer"),
        ("hidden: !!timestamp abc\n", "could not determine a constructor"),
        ("hidden: !!int abc\n", "invalid literal"),
        ("hidden: !!bool abc\n", "a value is not what its tag says"),
        ("hidden: 0x" + "f" * 5000, "hidden: found a very large number, it must be less than or equal to"),
        ("hidden: 1\nhidden: 2\n", "key 'hidden' is written twice"),
        ("? [1]\n: 2\n", "unhashable key"),
        ("1: 2\n", "1: a key must be a word"),
        ("a: &a [*a]\n", "an alias in it stands for something that holds the alias"),
        (_WHOLE + "name: {a: 1}\n", "name: found {'a': 1}, it must be a valid string"),
        (_WHOLE + "rope_base: .inf\n", "rope_base: found inf, it must be a finite number"),
        (_WHOLE + "every: {x: full}\n", "every.x: found 'x', it must be a valid integer"),
        (_WHOLE + "every: {2: {atention: full}}\n", "every.2.atention: no such key, did you mean attention?"),
        (_WHOLE + "indexer: {head: 2}\n", "indexer.head: no such key, did you mean heads?"),
        (_WHOLE + "streams: {}\n", "streams.count: missing"),
        (_WHOLE + "attention: mambo\n", "attention: found 'mambo', it must be gqa, full, sliding"),
        (
            _WHOLE + "ngrams: {rows: 9, width: 9, joined: 9, layers: [7]}\n",
            "ngrams.layers: found 7, the last layer is 1",
        ),
    ],
)
def test_a_strange_value_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        _read(tmp_path, text)
    assert "\n" not in str(caught.value)
