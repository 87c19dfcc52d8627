"""Models described by hand: the page's own examples, changes to known models, and what a slip is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families_fixtures import small_spec

from breakeven.errors import UserError
from breakeven.model.architecture import DenseFfn, Gqa, LinearAttention, Mla, ModelSpec, MoeFfn
from breakeven.model.catalogue import lookup
from breakeven.model.layouts.registry import FAMILIES
from breakeven.model.readers.yaml import read_yaml
from breakeven.model.readers.yaml_form import LayerRun, ModelFile
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
        ("from: olmoe\nlayers: [{ffn_width: 8}]\n", "layers: cannot be changed"),
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
