"""What is known of a distillation before anything is trained: shapes, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_fixtures import texts

import breakeven
from breakeven.api.distill import _fits
from breakeven.errors import UserError
from breakeven.lab.training.shapes import (
    ArmShape,
    ArmWish,
    largest_that_fits,
    spec_of,
    student_shape,
    weight_bytes,
    whole,
    wish_of,
)
from breakeven.lab.training.student import served_config
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.formats.named import tensor_types
from breakeven.model.tensors import tensors

SHAPES = st.builds(
    lambda layers, steps, experts: whole(
        ArmWish("moe" if experts[0] else "dense", layers, 256 * steps, experts=experts[0], used=experts[1]), ""
    ),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([(0, 0), (4, 2), (8, 2), (8, 8)]),
)


@given(SHAPES)
def test_a_shape_is_what_its_words_say_and_every_format_holds_it(shape: ArmShape) -> None:
    assert student_shape(shape.words) == shape
    spec = spec_of(shape, 1000, 512)
    assert (len(spec.layers), spec.hidden, spec.vocab, spec.context) == (shape.layers, shape.hidden, 1000, 512)
    assert spec.is_moe == bool(shape.experts)
    if shape.experts:
        assert active_params(spec) < total_params(spec) or shape.used == shape.experts
    rows = [each.shape[-1] for each in tensors(spec) if len(each.shape) > 1]
    assert not any(row % 256 for row in rows)
    assert weight_bytes(spec, ternary=False) == 4 * total_params(spec)
    assert weight_bytes(spec, ternary=True) < weight_bytes(spec, ternary=False) / 3
    assert tensor_types(spec, "TQ2_0")


def test_one_word_means_one_thing_to_distill_and_to_train() -> None:
    for words in ("dense 4x256", "dense 2x512x768", "moe 2x256 8/2", "moe 2X256x256  8 / 2"):
        assert student_shape(words) == whole(wish_of(words, "arms.0"), "arms.0")
    assert student_shape("dense 4x256") == ArmShape(4, 256, 768)
    assert student_shape("moe 4x256 8/2") == ArmShape(4, 256, 768, 8, 2, 512)
    assert student_shape("MoE") == "moe"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dense 4x300", r"--into: hidden: found 300, it must be a multiple of 256, such as 256"),
        ("dense 4x256x700", r"--into: width: found 700, it must be a multiple of 256, such as 768"),
        ("moe 4x256 8/9", r"used: found 9, it must be 2 to its 8 experts"),
        ("moe 4x256", r"experts: found 0, it must be 2 to 512, with how many a token uses: 8/2"),
        ("moe 8/2", r"a student needs its size, LAYERSxHIDDEN, such as moe 4x256 8/2"),
        ("dense 4x256 8/2", r"experts: found 8, it must be left out: a dense model has none"),
        ("dense 0x256", r"layers: found 0, it must be 1 to 128"),
        ("hybrid 4x256 8/2", r"give a shape such as \"dense 4x256\""),
        ("huge", r"give a shape such as \"dense 4x256\""),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_can(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        student_shape(text)


def test_the_largest_that_fits_is_found_by_memory_and_speed() -> None:
    on_this = _fits(200_000_000, None, None)

    def device(spec: object) -> str | None:
        return on_this(spec, weight_bytes(spec, ternary=False))  # type: ignore[arg-type]

    found = largest_that_fits("dense", 8000, 512, [device])
    spec = spec_of(found, 8000, 512)
    assert 4 * total_params(spec) < 200_000_000
    assert device(spec) is None
    larger = largest_that_fits("dense", 8000, 512, [])
    assert total_params(spec_of(larger, 8000, 512)) > total_params(spec)
    assert "more than 200 MB" in str(device(spec_of(larger, 8000, 512)))
    assert "ms a token" in str(_fits(10**12, "raspberry-pi-5", 1e-9)(spec, 4.0 * total_params(spec)))
    with pytest.raises(UserError, match=r"not even dense 2x256x768 fits: too large; allow more"):
        largest_that_fits("dense", 8000, 512, [lambda spec: "too large"])


def test_both_spellings_of_the_rotary_base_are_written() -> None:
    new = {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}, "dtype": "bfloat16"}
    assert served_config(dict(new)) == {
        "rope_parameters": new["rope_parameters"],
        "rope_theta": 5.0,
        "torch_dtype": "float32",
    }


def test_what_cannot_teach_is_refused_with_what_is_possible_instead(tmp_path: Path) -> None:
    text = texts(tmp_path / "text", ("en",))
    with pytest.raises(UserError, match=r"whole distributions.*give its weights.*tune --chat"):
        breakeven.distill("http://127.0.0.1:8080/v1#m", "dense 4x256", text, tmp_path / "out")
    with pytest.raises(UserError, match=r"--for and --steps"):
        breakeven.distill(tmp_path, "dense 4x256", text, tmp_path / "out", seconds=1.0, steps=1)
    with pytest.raises(UserError, match=r"--machine is where"):
        breakeven.distill(tmp_path, "dense 4x256", text, tmp_path / "out", machine="this")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match=r"no config.json"):
        breakeven.distill(tmp_path, "dense 4x256", text, tmp_path / "full")
    assert not (tmp_path / "out.training").exists()
