"""Traffic and service levels as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.traffic.words import (
    option_seconds,
    option_share,
    parse_arrivals,
    parse_duration,
    parse_length,
    parse_rates,
    parse_share,
)
from breakeven.traffic.workload import TERMS, UNITS_S, Arrivals, Length, Slo, parse_slo, slo_text

SECONDS = st.floats(1e-6, 1e5, allow_nan=False)


def said_by(parse: Callable[[str], object], text: str) -> str | None:
    """The error of `parse`, None when it took the text."""
    try:
        parse(text)
    except UserError as error:
        return str(error)
    return None


def test_the_example() -> None:
    assert parse_slo("ttft=1s,tpot=80ms") == Slo(ttft_s=1.0, tpot_s=0.08)
    assert parse_slo(" e2e = 2m , itl=500us ") == Slo(e2e_s=120.0, itl_s=0.0005)
    assert slo_text(Slo(ttft_s=1.0, tpot_s=0.08, itl_s=0.0005, e2e_s=120.0)) == "ttft=1s,tpot=80ms,itl=500us,e2e=120s"


@given(st.builds(Slo, **{name: st.none() | SECONDS for name in TERMS.values()}))
def test_what_is_written_reads_back_exactly(slo: Slo) -> None:
    text = slo_text(slo)
    assert (parse_slo(text) if text else Slo()) == slo


@given(st.permutations(["ttft=1s", "tpot=80ms", "itl=2s", "e2e=1m"]))
def test_order_does_not_matter(terms: list[str]) -> None:
    assert parse_slo(",".join(terms)) == Slo(ttft_s=1.0, tpot_s=0.08, itl_s=2.0, e2e_s=60.0)


@given(st.text(alphabet="tfpoi2el=,.msu0189 -", max_size=30))
def test_nothing_but_an_error_of_ours_comes_out(text: str) -> None:
    message = said_by(parse_slo, text)
    assert message is None or f"SLO {text!r}, column " in message


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("ttft=1s,tpto=80ms", 9, "ttft, tpot, itl, e2e"),
        ("ttft=1s,tpot=80", 16, "us, ms, s, m"),
        ("ttft=1s,tpot=80msec", 16, "us, ms, s, m"),
        ("ttft=1s,ttft=2s", 9, "second time"),
        ("ttft=1s,", 9, "expected a term"),
        ("", 1, "expected a term"),
        ("ttft=s", 6, "expected a number"),
        ("ttft=0s", 6, "above 0"),
        ("ttft=-1s", 6, "above 0"),
        ("ttft=1e999s", 6, "above 0"),
        ("ttft 1s", 1, "expected a term"),
        ("ttft=1s,  itx=1s", 11, "no term"),
    ],
)
def test_errors_name_the_column(text: str, column: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_slo(text)
    assert f"column {column}:" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("128", Length(mean=128.0)),
        ("uniform:64-512", Length(kind="uniform", low=64, high=512)),
        ("normal:512±128", Length(kind="normal", mean=512.0, sd=128.0)),
        ("normal:512,128", Length(kind="normal", mean=512.0, sd=128.0)),
        ("lognormal:1155,900", Length(kind="lognormal", mean=1155.0, sd=900.0)),
        ("lognormal:1155,900[16-8192]", Length(kind="lognormal", mean=1155.0, sd=900.0, low=16, high=8192)),
    ],
)
def test_lengths(text: str, length: Length) -> None:
    assert parse_length(text) == length


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-5",
        "12.5",
        "fixed",
        "uniform:512-64",
        "uniform:0-5",
        "uniform:5",
        "normal:5",
        "normal:,3",
        "lognormal:1,nan",
        "normal:5,2[",
        "normal:5,2[1-",
        "normal:5,2[9-2]",
        "normal:0,1",
        "zipf:2",
        "normal:5,2[1-4]x",
    ],
)
def test_no_lengths(text: str) -> None:
    with pytest.raises(UserError, match="no length"):
        parse_length(text)


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("constant", Arrivals(process="constant", rate_per_s=3.0)),
        ("poisson", Arrivals(process="poisson", rate_per_s=3.0)),
        ("gamma:2.5", Arrivals(process="gamma", rate_per_s=3.0, cv=2.5)),
    ],
)
def test_arrivals_with_a_rate(text: str, arrivals: Arrivals) -> None:
    assert parse_arrivals(text, 3.0) == arrivals


def test_arrivals_with_their_own_rates() -> None:
    assert parse_arrivals("steps:2x30s,5x1m") == Arrivals(process="steps", steps=((2.0, 30.0), (5.0, 60.0)))
    assert parse_arrivals("ramp:1-10") == Arrivals(process="ramp", rate_per_s=1.0, to_rate_per_s=10.0)
    for text in ("steps:2x30s", "ramp:1-10"):
        with pytest.raises(UserError, match="its own rates"):
            parse_arrivals(text, 3.0)


@pytest.mark.parametrize(
    "text", ["", "poisson:2", "gamma", "gamma:x", "gamma:0", "steps", "ramp:1", "ramp:0-0", "burst"]
)
def test_no_arrivals(text: str) -> None:
    with pytest.raises(UserError, match="no arrivals"):
        parse_arrivals(text)


@pytest.mark.parametrize("text", ["steps:2", "steps:x30s", "steps:2x", "steps:2x30s,", "steps:2x30y"])
def test_no_steps(text: str) -> None:
    with pytest.raises(UserError, match=r"no step|no duration"):
        parse_arrivals(text)


def test_durations_and_rates() -> None:
    assert [parse_duration(text) for text in ("60s", "500ms", "10m", "1h", "90", "1.5 min")] == [
        60.0,
        0.5,
        600.0,
        3600.0,
        90.0,
        90.0,
    ]
    assert parse_rates("2,5, 10") == (2.0, 5.0, 10.0)
    for text in ("", "-1s", "1d", "s", "nan", "1..2s"):
        with pytest.raises(UserError, match="no duration"):
            parse_duration(text)
    for text in ("", "2,,5", "0", "-1", "inf", "2,x"):
        with pytest.raises(UserError, match="no rate"):
            parse_rates(text)
    with pytest.raises(UserError, match="once"):
        parse_rates("2,5,2")


ACCEPTING = {
    ("compare", "--budget"): ("compare", "no-such-model", "nor-this"),
    ("compare", "--precision"): ("compare", "no-such-model", "nor-this"),
    ("capacity", "--budget"): ("capacity", "no-such-model", "--slo", "ttft=1s"),
    ("capacity", "--share"): ("capacity", "no-such-model", "--slo", "ttft=1s"),
    ("cost", "--share"): ("cost", "no-such-model", "--machine", "l40s"),
    ("cost", "--cached"): ("cost", "no-such-model", "--machine", "l40s"),
    ("bench", "--duration"): ("bench", "no-such-model"),
    ("simulate", "--duration"): ("simulate", "no-such-model", "--machine", "l40s"),
}
"""A command line that ends at a model nobody knows, once its options have been read."""


@pytest.mark.parametrize("words", ACCEPTING, ids=" ".join)
def test_every_verb_takes_every_form_of_a_duration_and_a_share(words: tuple[str, str]) -> None:
    times, shares = ("90s", "1min", "1m", "2h", "500ms", "90", "1.5 min"), ("90%", "0.9", ".9", "90 %", "90.0%")
    for text in times if words[1] in ("--budget", "--duration") else shares:
        with pytest.raises(UserError, match="no-such-model") as told:
            dispatch([*ACCEPTING[words], words[1], text])
        assert words[1] not in str(told.value)


def test_durations_and_shares_mean_the_same_wherever_they_stand() -> None:
    for text, seconds in (("90s", 90), ("1min", 60), ("1.5 min", 90), ("2h", 7200), ("500ms", 0.5), ("40us", 4e-5)):
        assert parse_duration(text) == option_seconds("--budget", text) == pytest.approx(seconds)
        assert parse_slo(f"e2e={text.replace(' ', '')}").e2e_s == pytest.approx(seconds)
    for text in ("90%", "0.9", ".9", "90 %", "90.0%"):
        assert parse_share(text) == option_share("--share", text, "a percentage") == 0.9


@pytest.mark.parametrize(
    ("verb", "option", "right", "wrong"),
    [
        ("compare", "--budget", "a time such as 90s, 3m or 1h", ("x", "", "-1", "1 parsec", "1:30")),
        ("compare", "--precision", "a percentage such as 2%", ("x", "", "-1", "-2%", "nan", "2%%")),
        ("capacity", "--share", "a percentage such as 5%", ("x", "", "-1%")),
        ("cost", "--share", "a percentage from 0% to 100%", ("120%", "-1%", "90", "x")),
    ],
)
def test_an_option_that_cannot_be_read_is_named_with_what_to_give(
    verb: str, option: str, right: str, wrong: tuple[str, ...]
) -> None:
    for text in wrong:
        with pytest.raises(UserError, match=re.escape(f"{option} {text!r}: give {right}")):
            dispatch([*ACCEPTING[verb, option], f"{option}={text}"])


@given(st.text(alphabet="uniformlgaestpcx0159:±,-[]. ", max_size=24))
def test_words_end_in_a_value_or_an_error_of_ours(text: str) -> None:
    for parse in (parse_length, parse_arrivals, parse_duration, parse_rates):
        message = said_by(parse, text)
        assert message is None or "write" in message


@given(st.sampled_from(sorted(UNITS_S)), st.integers(1, 10_000))
def test_units(unit: str, count: int) -> None:
    assert parse_slo(f"ttft={count}{unit}").ttft_s == pytest.approx(count * UNITS_S[unit])
