"""`breakeven train` without torch: shapes that match, study files, what losses say, terminal and page."""

from __future__ import annotations

import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from breakeven.errors import UserError
from breakeven.lab.corpus import Block
from breakeven.lab.training.contrast import contrast, seed_noise, speed_up
from breakeven.lab.training.matching import TOLERANCE, CountedAs, amount, match
from breakeven.lab.training.shapes import STEP, ArmShape, ArmWish, checked, spec_of, whole, wish_of
from breakeven.lab.training.study_file import read_study_file
from breakeven.model.arithmetic import active_params, total_params
from breakeven.pages.training import render_study, show_study, write_study_page
from breakeven.results import store
from breakeven.results.lab import ScoredLayer
from breakeven.results.training import MatchedArm, TrainedRun, TrainStudy, TriedRate
from breakeven.stats.estimate import measured

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "matched-training.yaml"


# --- shapes ----------------------------------------------------------------------------------------------------------


def by_hand(shape: ArmShape, vocabulary: int) -> tuple[int, int]:
    """Total and active weights, from the architecture's own description."""
    heads = shape.hidden // 64
    attention = 2 * 64 * heads * shape.hidden + 2 * 64 * max(1, heads // 2) * shape.hidden + 2 * 64 + 2 * shape.hidden
    total = active = vocabulary * shape.hidden + shape.hidden
    for layer in range(shape.layers):
        total, active = total + attention, active + attention
        if layer in shape.routed:
            expert, router = 3 * shape.hidden * shape.expert_width, shape.experts * shape.hidden
            total, active = total + shape.experts * expert + router, active + shape.used * expert + router
        else:
            total, active = total + 3 * shape.hidden * shape.width, active + 3 * shape.hidden * shape.width
    return total, active


widths = st.integers(1, 6).map(lambda steps: steps * STEP)
references = st.builds(ArmShape, st.integers(1, 6), st.sampled_from([256, 512, 768]), widths)
experts = st.sampled_from([(4, 2), (8, 2), (8, 3), (16, 4), (64, 8)])
wishes = st.one_of(
    st.builds(lambda layers: ArmWish("dense", layers=layers), st.none() | st.integers(1, 6)),
    st.builds(lambda pair: ArmWish("moe", experts=pair[0], used=pair[1]), experts),
    st.builds(lambda pair, every: ArmWish("hybrid", experts=pair[0], used=pair[1], every=every), experts, st.just(2)),
)


@settings(max_examples=30, deadline=None)
@given(references, wishes, st.sampled_from(["active", "total", "flops"]), st.sampled_from([1024, 7961]))
def test_arms_match_within_a_hundredth_or_are_refused(
    reference: ArmShape, wish: ArmWish, measure: str, vocabulary: int
) -> None:
    counted = CountedAs(vocabulary, 128, measure)
    goal = amount(reference, counted)
    refused = ""
    try:
        found = match(wish, reference, counted, "arms.1")
    except UserError as error:
        refused = str(error)
    if refused:
        assert re.search(rf"within 1% of .*\({goal:,.0f}\); the nearest, \w+ ", refused), refused
        for width in range(STEP, 24 * STEP, STEP) if wish.kind != "hybrid" else ():
            plain = ArmShape(wish.layers or reference.layers, reference.hidden, width)
            routed = ArmShape(reference.layers, reference.hidden, width, wish.experts, wish.used, width)
            near = amount(plain if wish.kind == "dense" else routed, counted)
            assert abs(near / goal - 1) > TOLERANCE, "refused although it is there"
        return
    shape = found.shape
    assert abs(amount(shape, counted) / goal - 1) <= TOLERANCE
    assert found.off == pytest.approx(amount(shape, counted) / goal - 1)
    assert not any(each % STEP for each in (shape.hidden, shape.width, shape.expert_width))
    assert (shape.kind, shape.experts, shape.used) == (wish.kind, wish.experts, wish.used)
    spec = spec_of(shape, vocabulary, 128)
    assert (total_params(spec), active_params(spec)) == by_hand(shape, vocabulary)


def test_words_say_a_shape_and_are_said_back() -> None:
    for words in ("dense 4x256x1024", "moe 2x512x256 8/2", "hybrid 4x256x512 8/2", "hybrid 6x256x512 16/4 every 3"):
        assert whole(wish_of(words, "arms.0"), "arms.0").words == words
    assert whole(wish_of("dense 4x256", ""), "").width == 768
    assert whole(wish_of("hybrid 4x256 8/2", ""), "").routed == (1, 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("dense 4x250", r"hidden: found 250, it must be a multiple of 256, such as 256: no weight format"),
        ("moe 4x256 8/9", r"used: found 9, it must be 2 to its 8 experts"),
        ("moe 4x256", r"experts: found 0, it must be 2 to 512"),
        ("dense 4x256 8/2", r"experts: found 8, it must be left out"),
        ("hybrid 2x256 8/2 every 3", r"every: found 3"),
        ("sparse 4x256", r"found 'sparse 4x256', it must be KIND LAYERSxHIDDEN EXPERTS/USED, such as"),
    ],
)
def test_arms_that_cannot_be_are_refused(words: str, told: str) -> None:
    with pytest.raises(UserError, match="^arms.1: .*" + told):
        wish_of(words, "arms.1")


def test_a_refusal_says_how_wide_experts_would_have_to_be() -> None:
    wish = checked(ArmWish("moe", layers=2, hidden=256, experts=8, used=3), "arms.1")
    with pytest.raises(UserError, match=r"moe 2x256x256 8/3, has [\d,]+ \(\+.*each of its experts would be 1\d\d wide"):
        match(wish, ArmShape(2, 256, 512), CountedAs(2048, 128, "active"), "arms.1")


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_example_is_a_study(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "study.yaml"
    path.write_text(EXAMPLE.read_text())
    study = read_study_file(path, seed=7)
    arms = study.arms(2048)
    assert [(arm.name, arm.shape.kind, arm.copy_of) for arm in arms] == [
        ("dense", "dense", None),
        ("moe-8-2", "moe", None),
        ("hybrid-8-2", "hybrid", None),
        ("dense-again", "dense", 0),
    ]
    assert max(abs(arm.off) for arm in arms) <= TOLERANCE
    assert {(arm.shape.layers, arm.shape.hidden) for arm in arms} == {(2, 256)}
    assert study.file.seed == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arms: [dense 2x256, moe 8/2]", "text: missing; add it"),
        ("text: text\narms: [dense 2x256, moe 8/2]\nseedz: 3", "seedz: no such key, did you mean seed"),
        ("text: text\narms: [dense 2x256, {kind: moe, expert: 8}]", "expert: no such key, did you mean experts"),
        (
            "text: text\narms: [dense 2x256, moe 8/2]\nmatch: size",
            "match: found .size., it must be one of active, total",
        ),
        ("text: text\narms: [dense 2x256, moe 8/2]\nseeds: three", "seeds: found .three., it must be a whole number"),
        ("text: text\narms: [dense 2x256, 7]", "arms.1: found 7, it must be text or a mapping"),
        ("text: text\narms: dense 2x256", "arms: found .dense 2x256., it must be a list"),
        (
            "text: text\narms: [dense 2x256, {kind: moe, experts: many}]",
            "arms.1.experts: found .many., it must be",
        ),
        ("text: text\narms: [dense 2x256, moe 8/2]\nseeds: 0", "seeds: found 0, it must be 1 to 32"),
        ("text: text\narms: [dense 2x256]", "arms: found 1, give 2 to 12"),
        ("text: text\narms: [moe 8/2, dense 2x256]", "arms.0: the arm that others are matched to needs its size"),
        ("text: nowhere\narms: [dense 2x256, moe 8/2]", "text: found .nowhere., which does not exist"),
        ("text: text\narms: [dense 2x256, moe 8/2]\nreference: me", "reference: found .me., it must be one of dense"),
        ("text: text\narms: [dense 2x256, {kind: moe, experts: 8, used: 2, name: ../up}]", "arms.1.name: found"),
        ("- text", "it must hold keys such as"),
        ("text: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_by_its_key(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + told) as caught:
        read_study_file(path).arms(2048)
    assert "\n" not in str(caught.value)


# --- what losses say -------------------------------------------------------------------------------------------------

BLOCKS = [Block("en", "all", "guide", f"{number}") for number in range(16)]
TOKENS_B = np.full(16, 400.0)


def drawn_losses(rng: np.random.Generator, gaps: list[float], seeds: int, noise: float = 0.01) -> np.ndarray:
    """Nats (A, S, B) of arms that are `gaps` above the first, each training with its own luck."""
    luck = rng.normal(0, noise, (len(gaps), seeds))
    shared = rng.normal(0, 0.05, seeds)
    block = rng.normal(0, 0.3, 16)
    each = np.array(gaps)[:, None] + luck + shared
    own = rng.normal(0, 0.01, (len(gaps), seeds, 16))
    return (3.0 + each[:, :, None] + block + own) * TOKENS_B


def verdict_of(nats_ASB: np.ndarray, arm: int) -> object:
    noise = seed_noise(nats_ASB.sum(axis=2) / TOKENS_B.sum())
    return contrast(nats_ASB[arm], nats_ASB[0], TOKENS_B, BLOCKS, noise).verdict


def test_a_study_of_one_shape_says_no_difference_and_a_real_one_is_seen() -> None:
    rng = np.random.default_rng(0)
    same = [verdict_of(drawn_losses(rng, [0.0, 0.0, 0.0], 3), 1) for _ in range(200)]
    assert same.count("no difference") >= 192, "at 99 % two of 200 are named by chance"
    apart = [verdict_of(drawn_losses(rng, [0.0, -0.1, 0.1], 3), arm) for _ in range(40) for arm in (1, 2)]
    assert set(apart[::2]) == {"better"}
    assert set(apart[1::2]) == {"worse"}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        nats = drawn_losses(rng, [0.0, 0.02, 0.0], 3)
        noise = seed_noise(nats.sum(axis=2) / TOKENS_B.sum())
        found = contrast(nats[1], nats[0], TOKENS_B, BLOCKS, noise).difference
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.02 <= found.high
    assert held >= 278


def test_the_floor_is_what_two_trainings_of_one_shape_differ_by() -> None:
    rng = np.random.default_rng(2)
    noise = seed_noise(rng.normal(0, 0.02, (4, 30)))
    assert noise.freedom == 87
    assert noise.floor == pytest.approx(1.99 * np.sqrt(2) * 0.02, rel=0.2)
    assert seed_noise(rng.normal(0, 1, (2, 2))).floor is None, "one degree of freedom tells nothing"


def test_a_speed_up_reads_the_reference_s_own_curve() -> None:
    """A reference that loses 0.1 nats with every doubling reaches 0.1 less with twice the tokens."""
    reference_S = np.array([3.0, 3.01, 2.99])
    short_S = reference_S + 0.2
    found = speed_up(reference_S - 0.1, reference_S, short_S, 4.0)
    assert found is not None
    assert found.value == pytest.approx(2.0)
    slower = speed_up(reference_S - 0.1, reference_S, short_S, 4.0, np.array([0.5, 0.5, 0.5]))
    assert slower is not None
    assert slower.value == pytest.approx(1.0)
    assert speed_up(reference_S, reference_S, reference_S + 0.01, 4.0) is not None
    assert speed_up(reference_S, reference_S, reference_S - 0.01, 4.0) is None


# --- terminal and page -----------------------------------------------------------------------------------------------


def made_study() -> TrainStudy:
    def arm(name: str, kind: str, gap: float | None, **more: object) -> MatchedArm:
        routed = [] if kind == "dense" else [0, 1]
        return MatchedArm(
            **{
                "name": name,
                "kind": kind,
                "shape": f"{kind} 2x256",
                "layers": 2,
                "hidden": 256,
                "width": 512 if kind == "dense" else None,
                "experts": 8 if routed else 0,
                "used": 2 if routed else 0,
                "expert_width": 256 if routed else None,
                "routed_layers": routed,
                "total_params": 3_000_000,
                "active_params": 1_700_000,
                "flops_per_token": 1e7,
                "off": 0.002,
                "copy_of": None,
                "rate": 0.002,
                "rates": [
                    TriedRate(rate=0.001, loss=4.1),
                    TriedRate(rate=0.002, loss=4.0),
                    TriedRate(rate=0.004, loss=None),
                ],
                "steps": 200,
                "tokens": 200_000,
                "flops": 2e12,
                "loss": measured(3.9, 3.85, 3.95, 3),
                "bits_per_byte": measured(1.9, 1.88, 1.92, 3),
                "tokens_per_s": measured(5000.0, 4900.0, 5100.0, 3),
                "difference": None if gap is None else measured(gap, gap - 0.03, gap + 0.03, 3),
                "verdict": None if gap is None else "better" if gap < -0.03 else "no difference",
                "by_language": {} if gap is None else {"en": measured(gap, gap - 0.1, gap + 0.1, 3)},
                "speed_up": None if gap is None else measured(1.4, 1.1, 1.8, 3),
                "max_over_mean": measured(1.6, 1.5, 1.7, 3) if routed else None,
                "dead_experts": 1 if routed else None,
                "path": f"matched/{name}",
                **more,
            }  # type: ignore[arg-type]
        )

    layer = ScoredLayer(layer=0, tokens=[5, 3], max_over_mean=1.25, entropy=0.9)
    runs = [
        TrainedRun(
            arm=name,
            seed=seed,
            rate=0.002,
            steps=200,
            tokens=200_000,
            seconds=40.0,
            loss=3.9,
            bits_per_byte=1.9,
            best_step=200,
            checks=[[0, 7.6], [100, 4.5], [200, 3.9]],
            losses=[[1, 7.6], [200, 3.9]],
            layers=[layer] if name != "dense" else [],
        )
        for seed in range(3)
        for name in ("dense", "moe-8-2", "dense-again")
    ]
    return TrainStudy(
        command="breakeven train matched.yaml --steps 200",
        name="matched",
        text="text",
        match="active",
        reference="dense",
        seeds=[0, 1, 2],
        steps=200,
        short_steps=50,
        batch=8,
        row_tokens=128,
        vocabulary=2048,
        train_tokens=100_000,
        judged_bytes=60_000,
        judged_blocks=36,
        judged_tokens=20_000,
        noise_floor=0.021,
        noise_freedom=4,
        arms=[
            arm("dense", "dense", None),
            arm("moe-8-2", "moe", -0.08),
            arm("dense-again", "dense", 0.004, copy_of="dense", rates=[]),
        ],
        runs=runs,
        device="CPU, 2 threads",
        seconds=590.0,
        caveats=["<b>bold</b> claims"],
    )


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_says_who_learned_more(width: int) -> None:
    out = io.StringIO()
    show_study(made_study(), Console(file=out, width=width), Path("matched/result.html"))
    text, flat = out.getvalue(), " ".join(out.getvalue().split())
    assert "moe-8-2 learned more than dense: -0.080 (-0.110 to -0.050) nats a token" in flat
    assert "as dense would of 1.40 (1.10-1.80) times the tokens" in flat
    assert "No difference between dense-again and dense: +0.004 (-0.026 to +0.034)" in flat
    assert "differ by at most 0.021 nats a token in 95 %" in flat
    assert "2 of 8 experts in 2 of 2 layers; the busiest sees 1.60 (1.50-1.70) times the mean; 1 of 48 dead" in flat
    assert "Again (9 min 50 s): breakeven train matched.yaml --steps 200" in flat
    assert len(text.splitlines()) <= 47


def test_the_page_holds_every_arm_and_training_and_escapes(tmp_path: Path) -> None:
    study = made_study()
    page = write_study_page(study, tmp_path).read_text()
    assert page == render_study(study)
    assert page.count("<svg") == 4
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    for text in ("dense-again", "no number", "0.021 nats", "1 of 48 dead", "breakeven.train/1"):
        assert text in page
    assert len(re.findall(r"<td class=\"n\">3\.9000</td>", page)) == len(study.runs)
    path = store.write(study, tmp_path / "result.json")
    assert store.read(path, TrainStudy) == study


def test_a_study_of_one_seed_names_nobody() -> None:
    study = made_study()
    arms = [
        msgspec.structs.replace(arm, verdict=None, difference=arm.difference and measured(0.1, None, None, 1))
        for arm in study.arms
    ]
    out = io.StringIO()
    show_study(
        msgspec.structs.replace(study, arms=arms, noise_floor=None, noise_freedom=0), Console(file=out, width=120)
    )
    assert "moe-8-2 against dense: +0.100 (no interval) nats a token; too few trainings to tell." in out.getvalue()
    assert "Noise of seeds: not known" in out.getvalue()
