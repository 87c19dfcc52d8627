"""The verdict's words must follow from the intervals, whoever is named first."""

from __future__ import annotations

import msgspec
import pytest

from breakeven.hardware.placement import MemoryAt, Placed
from breakeven.measure.paired.pairs import winner_of
from breakeven.results.comparison import ComparisonVerdict, ModelResult, Pair, SelfCheck
from breakeven.runs.verdict import decide
from breakeven.stats.estimate import Estimate


def named(a: str, b: str, metric: str, e: Estimate) -> str | None:
    """The winner as far as the interval tells; the stricter rule is tested with the statistics."""
    sure = e.low is not None and e.high is not None and (e.low > 1 or e.high < 1)
    return winner_of(a, b, metric, e) if sure else None


def model(name: str, moe: bool, decode_bytes: int | None = 700_000_000) -> ModelResult:
    return ModelResult(
        name=name,
        source="a test",
        synthetic=True,
        format="Q4_0",
        moe=moe,
        total_params=7_000_000_000,
        active_params=1_200_000_000,
        file_bytes=4_000_000_000,
        peak_rss_bytes=9_000_000_000 if moe else 1_500_000_000,
        load_s=2.0,
        decode_bytes_per_token=decode_bytes,
    )


def pair(value: float, streams: int = 1, half: float = 0.02, metric: str = "decode_tokens_per_s") -> Pair:
    estimate = Estimate(value, value * (1 - half), value * (1 + half), 5, "measured")
    return Pair(
        a="moe",
        b="dense",
        metric=metric,
        streams=streams,
        ratio=estimate,
        winner=named("moe", "dense", metric, estimate),
    )


def verdict(*pairs: Pair) -> ComparisonVerdict:
    return decide([model("moe", True), model("dense", False)], [], list(pairs), [])


def test_a_clear_winner_is_named_with_factor_and_interval() -> None:
    found = verdict(pair(1.2), pair(1.5, streams=4))
    assert found.winner == "moe"
    assert "1.20 times (1.18 to 1.22) as fast as dense with one stream" in found.headline
    assert "1.20 to 1.50 times over 1 and 4 streams" in found.headline


def test_a_winner_at_one_load_does_not_hide_a_tie_at_another() -> None:
    found = verdict(pair(1.0), pair(0.75, streams=4))
    assert found.winner == "dense"
    assert "with 4 streams; no difference found with one stream" in found.headline


def test_the_loser_named_first_turns_the_ratio_round() -> None:
    found = verdict(pair(0.8))
    assert found.winner == "dense"
    assert "1.25 times (1.23 to 1.28) as fast as moe" in found.headline


def test_an_interval_that_holds_one_is_no_difference() -> None:
    found = verdict(pair(1.01), pair(0.99, streams=2))
    assert found.winner is None
    assert found.headline.startswith("No difference found")
    assert any("larger --budget" in line for line in found.would_change)


def test_a_wide_interval_is_not_called_the_same_speed() -> None:
    found = verdict(pair(0.6, half=0.8))
    assert found.winner is None
    assert found.headline.startswith("No difference found, and none ruled out: moe decodes 0.60 (")
    assert "the same speed" in verdict(pair(1.01)).headline


def test_a_flip_names_both_sides_of_the_line() -> None:
    found = verdict(pair(1.2), pair(1.0, streams=2), pair(0.8, streams=4))
    assert found.winner is None
    assert "moe with one stream, dense with 4 streams" in found.headline
    assert "no difference with 2 streams" in found.headline


def test_too_few_pairs_name_nobody() -> None:
    few = Pair(
        a="moe",
        b="dense",
        metric="decode_tokens_per_s",
        streams=1,
        ratio=Estimate(2.0, None, None, 2, "measured"),
        winner=None,
    )
    found = verdict(few)
    assert found.winner is None
    assert "Too few pairs" in found.headline
    assert decide([model("moe", True), model("dense", False)], [], [], []).winner is None


def test_slow_prefill_of_a_winner_is_said_in_the_same_breath() -> None:
    found = verdict(pair(1.2), pair(0.66, metric="prefill_tokens_per_s"))
    assert "reads prompts at 0.66 times" in found.headline
    assert any("thin" in reason for reason in found.reasons)


def test_bytes_explain_a_ratio_only_when_they_do() -> None:
    models = [model("moe", True, 700_000_000), model("dense", False, 770_000_000)]
    explained = decide(models, [], [pair(1.08)], []).reasons[0]
    assert "by bytes alone the ratio would be 1.10, measured 1.08." in explained
    assert "something else costs" in decide(models, [], [pair(0.7)], []).reasons[0]


def test_a_self_check_claims_only_what_it_could_tell() -> None:
    models = [model("moe", True), model("dense", False)]
    clear = SelfCheck(model="moe", streams=4, same_over_distinct=Estimate(1.2, 1.1, 1.3, 3, "measured"))
    unclear = SelfCheck(model="moe", streams=4, same_over_distinct=Estimate(1.2, 0.5, 3.4, 3, "measured"))
    assert "1.20 times (1.10 to 1.30)" in decide(models, [], [pair(1.2)], [], [clear]).reasons[-1]
    assert "could not tell" in decide(models, [], [pair(1.2)], [], [unclear]).reasons[-1]


def test_times_are_better_when_smaller() -> None:
    assert pair(0.5, metric="ttft_s").winner == "moe"
    assert pair(2.0, metric="itl_s").winner == "dense"


@pytest.mark.parametrize("swap", [False, True])
def test_three_models_have_a_winner_only_if_it_beats_both(swap: bool) -> None:
    def of(a: str, b: str, value: float) -> Pair:
        estimate = Estimate(value, value * 0.98, value * 1.02, 5, "measured")
        winner = named(a, b, "decode_tokens_per_s", estimate)
        return Pair(a=a, b=b, metric="decode_tokens_per_s", streams=1, ratio=estimate, winner=winner)

    models = [model("x", True), model("y", False), model("z", False)]
    clear = [of("x", "y", 1.3), of("x", "z", 1.4), of("y", "z", 1.0)]
    assert decide(models, [], clear, []).winner == "x"
    beaten = [of("x", "y", 1.3), of("x", "z", 0.7), of("y", "z", 1.0)]
    assert decide(models, [], beaten[::-1] if swap else beaten, []).winner is None


def lying(found: ModelResult, cpu_moe: int | None) -> ModelResult:
    memory = [
        MemoryAt(place="CUDA0", weights_bytes=3_000_000_000, kv_bytes=500_000_000, peak_bytes=4_000_000_000),
        MemoryAt(place="host", weights_bytes=6_000_000_000),
    ]
    placed = Placed(how="fitted", gpu_layers=25, layers=25, cpu_moe=cpu_moe, memory=memory)
    return msgspec.structs.replace(found, placed=placed)


def test_a_verdict_names_where_each_lay_and_parts_decode_from_prefill() -> None:
    models = [lying(model("moe", True), 12), lying(model("dense", False), None)]
    found = decide(models, [], [pair(1.4), pair(1.2, metric="prefill_tokens_per_s")], [])
    assert (
        "Run moe here (25/25 layers on the GPU, experts of 12 in host memory): it decodes 1.40 times" in found.headline
    )
    assert "as fast as dense (25/25 layers on the GPU) with one stream" in found.headline
    assert "and it reads prompts at 1.20 times" in found.headline
    assert "moe, 25/25 layers on the GPU, experts of 12 in host memory" in found.reasons[0]
    assert not any("something else costs" in reason for reason in found.reasons)
    slower = decide(models, [], [pair(1.4), pair(0.5, metric="prefill_tokens_per_s")], [])
    assert "but it reads prompts at 0.50 times" in slower.headline
    assert any("copied to the device for a long prompt" in reason for reason in slower.reasons)
    assert "3.50 GB (peak in use 4.00 GB) on CUDA0, 6.00 GB in host memory" in found.memory[0]


def test_who_lay_on_no_device_is_not_said_to_have_lain_anywhere() -> None:
    host = Placed(how="asked", gpu_layers=0, memory=[MemoryAt(place="host", weights_bytes=1)])
    models = [msgspec.structs.replace(m, placed=host) for m in (model("moe", True), model("dense", False))]
    assert decide(models, [], [pair(1.4)], []) == verdict(pair(1.4))


def of_three(*found: tuple[str, int, float | None], half: float = 0.02) -> str:
    """The headline on x, y and z: of each pair ("xy"), at so many streams, the ratio; None: too few pairs."""
    rows = []
    for (a, b), streams, value in found:
        interval = (None, None) if value is None else (value * (1 - half), value * (1 + half))
        estimate = Estimate(value or 2.0, *interval, 5, "measured")
        winner = named(a, b, "decode_tokens_per_s", estimate)
        rows.append(Pair(a=a, b=b, metric="decode_tokens_per_s", streams=streams, ratio=estimate, winner=winner))
    return decide([model("x", True), model("y", False), model("z", False)], [], rows, []).headline


def test_of_three_each_is_beaten_at_the_load_that_is_named() -> None:
    first = of_three(("xy", 1, 1.0), ("xz", 1, 1.4), ("yz", 1, 1.0), ("xy", 4, 1.3), ("xz", 4, 1.5), ("yz", 4, 1.0))
    assert first == (
        "Run x here: it decodes at 1.30 times (1.27 to 1.33) y with 4 streams, "
        "1.40 times (1.37 to 1.43) z with one stream; no difference found to y with one stream."
    )
    everywhere = of_three(("xy", 1, 0.5), ("xz", 1, 1.0), ("yz", 1, 1.4))
    assert everywhere == (
        "Run y here: it decodes at 2.00 times (1.96 to 2.04) x with one stream, "
        "1.40 times (1.37 to 1.43) z with one stream."
    )


def test_of_three_no_difference_is_no_split() -> None:
    alike = ("xy", 1, 1.01), ("xz", 1, 0.99), ("yz", 1, 1.0)
    assert of_three(*alike) == "No difference found between any two of them at any load measured here."
    assert "not all ruled out" in of_three(*alike, half=0.8)
    few = of_three(("xy", 1, None), ("xz", 1, None), ("yz", 1, None))
    assert few == "Too few pairs to say which is faster here; give a larger --budget."
    split = of_three(("xy", 1, 1.3), ("xz", 1, 0.7), ("yz", 1, 1.0))
    assert split.startswith("No single model decodes fastest")
