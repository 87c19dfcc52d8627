"""The experts that engines return with an answer, in every packing, and what cannot be believed."""

from __future__ import annotations

import base64
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.experts.returned import MOST_BYTES, Returned, choices_of

Ids = np.ndarray[Any, Any]


def routed(tokens: int, layers: int, per_token: int, n_experts: int, seed: int = 0) -> Ids:
    """Experts (T, L, K), each once a token."""
    rng = np.random.default_rng(seed)
    order = rng.random((tokens, layers, n_experts)).argsort(axis=2)
    return order[:, :, :per_token].astype(np.int64)


def counted(ids: Ids, n_experts: int) -> Ids:
    """The same counted in the plainest way."""
    choices = np.zeros((ids.shape[1], n_experts), np.int64)
    for layer in range(ids.shape[1]):
        for expert in ids[:, layer].ravel():
            choices[layer, expert] += 1
    return choices


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def npy(ids: Ids, dtype: str = "uint8") -> str:
    file = io.BytesIO()
    np.save(file, ids.astype(dtype))
    return b64(file.getvalue())


def answer(packed: object, **beside: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "routed_experts": packed}
    return json.dumps({"id": "x", "choices": [choice], **beside}).encode()


def streamed(*events: dict[str, object]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


PROMPT, GENERATED = routed(9, 3, 2, 8), routed(5, 3, 2, 8, seed=1)
BOTH = np.concatenate([PROMPT, GENERATED])
USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
"""The last token that is generated is not routed."""
SPARSE = np.concatenate([np.zeros((14, 1, 2), np.int64), BOTH], axis=1)
"""With a place for a dense layer, as both engines keep one."""
BLOCKS = range(1, 4)
"""Numbers of those that route."""
FLAT = b64(BOTH.astype("<i4").tobytes())


def packed(ids: Ids, dtype: str = "int16") -> dict[str, object]:
    data = b64(ids.astype(dtype).tobytes())
    return {"encoding": "base64", "dtype": dtype, "shape": list(ids.shape), "data": data}


WAYS = {
    "nested, the prompt apart": answer(GENERATED.tolist(), prompt_routed_experts=PROMPT.tolist()),
    "npy": answer(npy(BOTH)),
    "npy of another type": answer(npy(BOTH, ">i4")),
    "npy in Fortran order": answer(npy(np.asfortranarray(BOTH), "int32")),
    "packed": answer(packed(BOTH)),
    "packed, the prompt apart": answer(packed(GENERATED), prompt_routed_experts=packed(PROMPT)),
    "flat of a choice": json.dumps({"choices": [{"index": 0, "meta_info": {"routed_experts": FLAT}}]}).encode(),
    "flat at the top": json.dumps({"meta_info": {"routed_experts": FLAT}, "usage": USAGE, "choices": []}).encode(),
    "flat beside": json.dumps({"sglext": {"routed_experts": FLAT}, "choices": [{"text": "a"}]}).encode(),
    "a dense layer": answer(npy(SPARSE)),
    "a dense layer, flat": answer(b64(SPARSE.astype("<i4").tobytes()), usage=USAGE),
    "a place that was not filled": answer(npy(np.concatenate([BOTH, np.zeros((1, 3, 2))]))),
    "of several choices the first": json.dumps(
        {"choices": [{"index": 1, "routed_experts": npy(PROMPT)}, {"index": 0, "routed_experts": npy(BOTH)}]}
    ).encode(),
    "a stream": streamed(
        {"choices": [{"index": 0, "delta": {"content": "yes"}}], "usage": None},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "routed_experts": npy(BOTH)}]},
        {"choices": [], "usage": USAGE},
    ),
    "a stream that says it anew each time": streamed(
        {"choices": [{"index": 0, "delta": {}, "meta_info": {"routed_experts": npy(PROMPT)}}]},
        {"choices": [{"index": 0, "delta": {}, "meta_info": {"routed_experts": npy(BOTH)}}]},
    ),
    "a stream, the prompt apart": streamed(
        {"choices": [{"index": 0, "text": "a"}], "prompt_routed_experts": PROMPT.tolist()},
        {"choices": [{"index": 0, "text": "", "routed_experts": GENERATED.tolist()}], "prompt_routed_experts": None},
    ),
    "a stream whose usage follows": streamed(
        {"choices": [], "sglext": {"routed_experts": b64(SPARSE.astype("<i4").tobytes())}},
        {"choices": [], "usage": USAGE},
    ),
    "a stream with other line ends": streamed({"choices": [{"routed_experts": npy(BOTH)}]}).replace(b"\n", b"\r\n"),
}


WITH_DENSE = ("a dense layer", "a dense layer, flat", "a stream whose usage follows")


@pytest.mark.parametrize("way", WAYS)
def test_every_packing_says_the_same(way: str) -> None:
    all_layers = 4 if way in WITH_DENSE else 3
    layers = BLOCKS if way in WITH_DENSE else range(3)
    found = choices_of(WAYS[way], layers=layers, per_token=2, n_experts=8, all_layers=all_layers)
    assert found is not None
    assert (found.layers, found.tokens) == (list(layers), 14)
    assert (found.choices_LE == counted(BOTH, 8)).all()
    assert found.choices_LE.dtype == np.int64


def test_of_a_model_that_is_not_known_the_largest_number_tells() -> None:
    ids = routed(40, 3, 2, 6)
    found = choices_of(answer(npy(SPARSE)))
    assert found is not None
    assert found.layers == list(BLOCKS)
    made = choices_of(answer(npy(ids)))
    assert made is not None
    assert made.choices_LE.shape == (3, 6)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        answer(None),
        json.dumps({"choices": [{"message": {"content": "routed_experts are [1]"}}]}).encode(),
        json.dumps({"choices": [{"index": 1, "routed_experts": [[[1, 2]]]}]}).encode(),
        streamed({"choices": [{"delta": {"content": '"routed_experts": [[[1]]]'}}]}),
    ],
)
def test_an_answer_without_any_says_nothing(body: bytes) -> None:
    assert choices_of(body, layers=range(3), per_token=2, n_experts=8) is None


def header(shape: str, descr: str = "'|u1'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text + b"\n").to_bytes(2, "little") + text + b"\n"


class Ran:
    """What must not run: unpickling it fails the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it ran",)


def objects() -> str:
    """An .npy of pickled objects, by hand: numpy would unpickle it in place."""
    return b64(header("(1, 1, 1)", "'|O'") + pickle.dumps([[[Ran()]]]))


BROKEN: dict[str, tuple[object, str]] = {
    "two ranks": (npy(BOTH[0]), "shape"),
    "four ranks": (npy(BOTH[None]), "shape"),
    "no whole numbers": (npy(BOTH, "float32"), "float32"),
    "pickled objects": (objects(), "object"),
    "a giant shape": (b64(header("(1048576, 1048576, 1048576)")), "hold"),
    "a negative shape": (b64(header("(-1, -3, 2)") + bytes(6)), "hold"),
    "a shape of words": (b64(header("'abc'")), "header"),
    "no header": (b64(b"\x93NUMPY\x01\x00"), "header"),
    "another version": (b64(b"\x93NUMPY\x09\x00" + bytes(40)), "header"),
    "cut base64": (npy(BOTH)[:-3], "cut short"),
    "cut numbers": (b64(base64.b64decode(npy(BOTH))[:-5]), "hold"),
    "more than it promises": (b64(base64.b64decode(npy(BOTH)) + b"x"), "hold"),
    "ragged rows": ([[[1, 2], [3]], [[1, 2], [3, 4]]], "lengths"),
    "an expert below none": (npy(np.where(BOTH == 7, -1, BOTH), "int8"), "expert -1"),
    "an expert beyond all": ([[[0, 8]] * 3], "expert 8"),
    "a number beyond 64 bits": ([[[0, 2**70]] * 3], "no"),
    "one expert twice": ([[[5, 5], [1, 2], [3, 4]]], "twice"),
    "fewer layers": (npy(BOTH[:, :2]), "2 of its layers"),
    "more layers": (npy(np.concatenate([BOTH, BOTH], axis=1)), "6 of its layers"),
    "other experts a token": (npy(routed(4, 3, 4, 8)), "4 experts a token"),
    "a shape of none": (npy(np.array(5)), "shape"),
    "no shape": ({**packed(BOTH[0, 0, :1]), "shape": []}, "shape"),
    "nothing kept": (npy(np.zeros_like(BOTH)), "nothing"),
    "too many layers": (npy(routed(1, 600, 2, 8)), "beyond"),
    "an unknown packing": ({"encoding": "zlib", "dtype": "int16", "shape": [1, 3, 2], "data": ""}, "zlib"),
    "an unknown type": ({"encoding": "base64", "dtype": "O", "shape": [1, 3, 2], "data": ""}, "O in base64"),
    "another shape": ({**packed(BOTH), "shape": [14, 3, 3]}, "hold"),
    "words": ([[["a"]]], "str"),
    "a number": (7, "int"),
    "odd bytes": (b64(bytes(13)), "13 bytes"),
    "no whole tokens": (b64(bytes(4 * 7)), "7 numbers"),
}


@pytest.mark.parametrize(("returned", "why"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_routing_of_the_model_is_refused_in_one_line(returned: object, why: str) -> None:
    with pytest.raises(UserError) as caught:
        choices_of(answer(returned), layers=range(3), per_token=2, n_experts=8)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_cut_or_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        choices_of(answer(npy(BOTH))[:-20])
    with pytest.raises(UserError, match="16 MiB"):
        choices_of(answer("A" * MOST_BYTES))
    with pytest.raises(UserError, match="different shapes"):
        choices_of(answer(npy(BOTH), prompt_routed_experts=BOTH[:, :2].tolist()))


def test_layers_bear_the_models_numbers_also_where_dense_ones_have_no_place() -> None:
    found = choices_of(answer(npy(BOTH)), layers=(3, 4, 5), per_token=2, n_experts=8, all_layers=6)
    assert found is not None
    assert found.layers == [3, 4, 5]
    assert (found.choices_LE == counted(BOTH, 8)).all()


@pytest.mark.parametrize("most", [1, 8, 9, 10, 13, 14, 99])
def test_no_more_tokens_are_counted_than_are_asked_for(most: int) -> None:
    for way in ("nested, the prompt apart", "npy", "a dense layer, flat"):
        layers = BLOCKS if way in WITH_DENSE else range(3)
        found = choices_of(
            WAYS[way], layers=layers, per_token=2, n_experts=8, all_layers=max(layers) + 1, most_tokens=most
        )
        assert found is not None
        assert found.tokens == min(most, 14)
        assert (found.choices_LE == counted(BOTH[:most], 8)).all()


def test_tokens_of_which_nothing_was_kept_take_the_place_of_none() -> None:
    """A beginning that an engine had cached comes as zeros."""
    late = np.concatenate([np.zeros((20, 3, 2), BOTH.dtype), BOTH])
    found = choices_of(answer(npy(late)), layers=range(3), per_token=2, n_experts=8, all_layers=3, most_tokens=8)
    assert found is not None
    assert found.tokens == 8
    assert (found.choices_LE == counted(BOTH[:8], 8)).all()
    with pytest.raises(UserError, match="nothing was kept"):
        choices_of(answer(npy(late[:20])), layers=range(3), per_token=2, n_experts=8, all_layers=3, most_tokens=8)


def test_a_shape_that_nobody_tells_needs_a_model() -> None:
    with pytest.raises(UserError, match="model:"):
        choices_of(answer(FLAT))
    with pytest.raises(UserError, match="at most 4096"):
        choices_of(answer([[[1, 4096]]]))


def test_one_expert_a_token_and_dense_layers_need_a_model_to_be_told_apart() -> None:
    ids = routed(30, 2, 1, 4)
    with_dense = np.concatenate([np.zeros((30, 1, 1), np.int64), ids], axis=1)
    found = choices_of(answer(npy(with_dense)), layers=(1, 2), per_token=1, n_experts=4)
    assert found is not None
    assert found.layers == [1, 2]
    assert (found.choices_LE == counted(ids, 4)).all()
    # Of a few tokens a layer that routes may have taken expert 0 alone, as a dense one seems to.
    with_dense[:, 2] = 0
    found = choices_of(answer(npy(with_dense)), layers=(1, 2), per_token=1, n_experts=4)
    assert found is not None
    assert (found.layers, found.choices_LE[1].tolist()) == ([1, 2], [30, 0, 0, 0])
    for routing in (with_dense, ids):
        with pytest.raises(UserError, match="model:"):
            choices_of(answer(npy(routing)))


@pytest.mark.parametrize("returned", ["", [], npy(BOTH[:0]), packed(BOTH[:0])])
def test_routing_of_no_token_is_none_and_no_mistake(returned: object) -> None:
    found = choices_of(answer(returned), layers=range(3), per_token=2, n_experts=8)
    assert found is not None
    assert (found.layers, found.tokens) == ([], 0)


def test_usage_is_no_shape_but_may_contradict_it() -> None:
    ids = routed(60, 4, 2, 8)
    flat = b64(ids.astype("<i4").tobytes())
    model: dict[str, Any] = {"layers": range(4), "per_token": 2, "n_experts": 8, "all_layers": 4}
    choice = {"index": 0, "message": {"content": "yes"}, "meta_info": {"routed_experts": flat}}
    usage = {"prompt_tokens": 50, "completion_tokens": 71}  # 120 routed tokens, as of two layers
    with pytest.raises(UserError, match="60 tokens of 4 layers"):
        choices_of(json.dumps({"choices": [choice], "usage": usage}).encode(), **model)
    several = {"choices": [choice, {"index": 1, "message": {"content": "no"}}], "usage": usage}
    found = choices_of(json.dumps(several).encode(), **model)
    assert found is not None
    assert found.tokens == 60, "usage is of both answers"
    assert (found.choices_LE == counted(ids, 8)).all()


@given(
    tokens=st.integers(1, 40),
    layers=st.integers(1, 5),
    n_experts=st.integers(2, 300),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_what_was_packed_is_what_is_counted(
    tokens: int, layers: int, n_experts: int, seed: int, data: st.DataObject
) -> None:
    per_token = data.draw(st.integers(2, min(8, n_experts)))
    dense = data.draw(st.integers(0, 2))
    ids = routed(tokens, layers, per_token, n_experts, seed)
    shown = np.concatenate([np.zeros((tokens, dense, per_token), np.int64), ids], axis=1)
    way = data.draw(st.sampled_from(["nested", "npy", "packed", "flat"]))
    value: object = {
        "nested": shown.tolist,
        "npy": lambda: npy(shown, data.draw(st.sampled_from(["<u2", ">i4", "<i8"]))),
        "packed": lambda: packed(shown),
        "flat": lambda: b64(shown.astype("<i4").tobytes()),
    }[way]()
    usage = {"prompt_tokens": 1, "completion_tokens": tokens}
    body = answer(value, usage=usage)
    if data.draw(st.booleans()):
        body = streamed({"choices": [{"index": 0, "routed_experts": value}]}, {"choices": [], "usage": usage})
    numbers = range(dense, dense + layers)
    found = choices_of(body, layers=numbers, per_token=per_token, n_experts=n_experts, all_layers=layers + dense)
    assert found is not None
    assert found.layers == list(numbers)
    assert (found.choices_LE == counted(ids, n_experts)).all()
    assert found.tokens == tokens
    assert int(found.choices_LE.sum()) == tokens * layers * per_token


@given(st.binary(max_size=200), st.sampled_from(["raw", "base64", "npy"]))
def test_no_bytes_make_it_fall_over(junk: bytes, way: str) -> None:
    body = {
        "raw": b'{"routed_experts": ' + junk,
        "base64": answer(b64(junk)),
        "npy": answer(b64(b"\x93NUMPY\x01\x00" + junk)),
    }[way]
    try:
        found = choices_of(body, layers=range(3), per_token=2, n_experts=8)
    except UserError:
        return
    assert found is None or isinstance(found, Returned)
