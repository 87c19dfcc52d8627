"""Expert surgery on a real model: same function, same weights, same metadata, and honest refusals."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_fixtures import PROSE, decoded_shallow_copy

from breakeven.engines.inside.client import Inside
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.surgery.container import open_gguf
from breakeven.lab.surgery.experts import copy, split
from breakeven.lab.surgery.scaling import F16_FIELDS, scaled

Q = GGMLQuantizationType
GREEDY_TOKENS = 48


@pytest.fixture(scope="module")
def split_gguf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts") / "split.gguf"
    done = split(smollm2_gguf, out, 8)
    assert (done.expert_width, done.used, done.same_function, done.scale_error) == (192, 8, True, 0.0)
    assert done.file_bytes == out.stat().st_size
    return out


def test_a_split_and_a_copy_in_f32_compute_what_the_dense_model_computes(smollm2_gguf: Path, tmp_path: Path) -> None:
    dense = decoded_shallow_copy(smollm2_gguf, tmp_path / "dense.gguf", layers=2)
    split(dense, tmp_path / "split.gguf", 8)
    copy(dense, tmp_path / "copy.gguf", 3)
    with Inside(dense) as inside:
        prompt = inside.tokenize(PROSE)
        text = inside.greedy(prompt, GREEDY_TOKENS)
        expected = inside.logits(prompt + text)
    for name in ("split.gguf", "copy.gguf"):
        with Inside(tmp_path / name) as inside:
            assert inside.loaded.n_experts > 0
            assert inside.greedy(prompt, GREEDY_TOKENS) == text
            # Attention rounds keys and values to 16 bits, which turns a last-bit difference into this much.
            np.testing.assert_allclose(inside.logits(prompt + text), expected, atol=2e-3 * float(expected.std()))


def test_a_split_of_quantized_weights_differs_no_more_than_the_dense_model_does_from_itself(
    smollm2_gguf: Path, split_gguf: Path
) -> None:
    with Inside(smollm2_gguf) as inside:
        tokens = inside.tokenize(PROSE * 4)[:80]
        dense = inside.logits(tokens)[:40]
        # The same model over the same tokens in a smaller batch: attention sums in another order, and activations
        # rounded to 8 bits turn last-bit differences into visible ones.
        own_noise = _rms(inside.logits(tokens[:40]) - dense)
    with Inside(split_gguf) as inside:
        moe = inside.logits(tokens)[:40]
    assert own_noise > 0
    assert _rms(moe - dense) < 2 * own_noise
    assert np.mean(moe.argmax(1) == dense.argmax(1)) > 0.85


def test_metadata_and_tokenizer_are_kept_and_every_weight_is_found_again(smollm2_gguf: Path, split_gguf: Path) -> None:
    before, after = GGUFReader(smollm2_gguf), GGUFReader(split_gguf)
    for key, field in before.fields.items():
        if not key.startswith("GGUF.") and key != "llama.feed_forward_length":
            mine = after.fields[key]
            assert [part.tobytes() for part in mine.parts] == [part.tobytes() for part in field.parts], key
    assert after.fields["llama.feed_forward_length"].contents() == 192
    assert after.fields["llama.expert_count"].contents() == 8
    old, new = ({tensor.name: tensor for tensor in reader.tensors} for reader in (before, after))
    assert new["blk.0.ffn_up_exps.weight"].data.tobytes() == old["blk.0.ffn_up.weight"].data.tobytes()
    assert new["token_embd.weight"].data.tobytes() == old["token_embd.weight"].data.tobytes()
    dense = _values(old["blk.3.ffn_down.weight"])
    experts = _values(new["blk.3.ffn_down_exps.weight"])
    np.testing.assert_array_equal(np.concatenate(list(experts), axis=1), 8 * dense)
    assert not new["blk.3.ffn_gate_inp.weight"].data.any()


def test_using_fewer_experts_than_there_are_gives_a_random_router_and_says_so(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    done = split(smollm2_gguf, tmp_path / "a.gguf", 4, 2, seed=1)
    assert not done.same_function
    split(smollm2_gguf, tmp_path / "b.gguf", 4, 2, seed=1)
    assert filecmp.cmp(tmp_path / "a.gguf", tmp_path / "b.gguf", shallow=False)
    routers = [t.data for t in open_gguf(tmp_path / "a.gguf").tensors if "ffn_gate_inp" in t.name]
    assert len(routers) == 30
    assert all(router.any() for router in routers)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0]),
    power=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_scaling_by_a_power_of_two_is_exact(kind: GGMLQuantizationType, power: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((3, 256), dtype=np.float32)
    data = np.ascontiguousarray(quantize(values, kind)).view(np.uint8).reshape(3, -1)
    result = scaled(data, kind, float(2**power))
    assert result.relative_error == 0.0
    np.testing.assert_array_equal(_decode(result.data, kind), 2**power * _decode(data, kind))


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_XS, Q.IQ2_XS, Q.IQ4_NL])
def test_scaling_finds_the_scales_of_blocks_that_gguf_cannot_write(kind: GGMLQuantizationType) -> None:
    elements, size = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (4, 3 * size), dtype=np.uint8)
    for offset in F16_FIELDS[kind]:
        for block in range(3):
            data[:, block * size + offset : block * size + offset + 2] = np.array([0.01], np.float16).view(np.uint8)
    result = scaled(data, kind, 3.0)
    assert 0 < result.relative_error <= 2**-11
    before = _decode(data, kind)
    assert before.shape == (4, 3 * elements)
    np.testing.assert_allclose(_decode(result.data, kind), 3 * before, rtol=1e-3, atol=1e-6)


def test_a_scale_that_overflows_is_refused() -> None:
    with pytest.raises(UserError, match="largest 16-bit float"):
        scaled(np.array([[60000.0]], np.float16).view(np.uint8), Q.F16, 4.0)


@pytest.mark.parametrize(("experts", "used", "said"), [(5, None, "24, 48"), (1, None, "2 to 1024"), (8, 9, "1 to 8")])
def test_impossible_numbers_are_refused_with_possible_ones(
    smollm2_gguf: Path, tmp_path: Path, experts: int, used: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        split(smollm2_gguf, tmp_path / "x.gguf", experts, used)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_dense_llama_is_refused(split_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="already"):
        split(split_gguf, tmp_path / "x.gguf", 2)
    writer = GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotSupportedError, match="qwen2"):
        copy(tmp_path / "qwen.gguf", tmp_path / "x.gguf", 2)


def test_a_broken_source_or_place_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as whole:
        cut.write_bytes(whole.read(3_000_000))
    with pytest.raises(UserError, match=r"truncated|not a whole"):
        split(cut, tmp_path / "x.gguf", 8)
    with pytest.raises(UserError, match="not a directory"):
        split(smollm2_gguf, tmp_path / "nowhere" / "x.gguf", 8)


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


def _values(tensor: ReaderTensor) -> np.ndarray:
    return dequantize(tensor.data, tensor.tensor_type)


def _decode(data: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    plain = {Q.F32: np.float32, Q.F16: np.float16}
    return dequantize(data.view(plain[kind]) if kind in plain else data, kind)
