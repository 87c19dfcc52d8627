"""What an answer took and cost: into this worker's counters at once, and into its record for the log."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from breakeven.gateway.experiment.answer import Kept
from breakeven.gateway.experts.hand import CUT, LOST, MOST_ASKED, PACKED, TOO_LARGE, Handed, Handing, Looking
from breakeven.gateway.route.choose import score_of
from breakeven.gateway.route.learned import USUAL_BYTES, measured
from breakeven.gateway.route.speed import corrected, widened
from breakeven.gateway.seen.record import Attempt, DecisionRecord
from breakeven.gateway.serve.ask import FREE, WORDLESS
from breakeven.gateway.serve.forward import Forward
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.leg import Leg
from breakeven.gateway.shared.layout import (
    CACHED_TOKENS,
    GOOD,
    JUDGED,
    NANO_USD,
    NANO_USD_ELSEWHERE,
    NO_FINISH,
    OK,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    RATIO_BOUNDS,
    TIME_BOUNDS_S,
    TPOT_COUNT,
    TPOT_HISTOGRAM,
    TPOT_LOG,
    TPOT_NS,
    TPOT_RATIO_HISTOGRAM,
    TTFT_COUNT,
    TTFT_HISTOGRAM,
    TTFT_LOG,
    TTFT_NS,
    TTFT_RATIO_HISTOGRAM,
    TTFT_WIDTH,
    Count,
)
from breakeven.results.cost import Api
from breakeven.wire.meaning import Standing, standing

_TPOT_BOUNDS_S = tuple(bound / 10 for bound in TIME_BOUNDS_S)
MOST_LOOKED_AT = 1 << 18
"""Bytes of a prompt that teaches how many of them are a token; longer ones take longer to look at than they teach."""
LEAST_GAPS = 4
"""Tokens after the first one without which a time between tokens says nothing."""
_NS = 1e9
_OTHER = {"dense": "moe", "moe": "dense"}


def answered(forward: Forward, leg: Leg) -> None:
    """Count an answer, judge it against what was asked for, and learn from it."""
    lane, counted = leg.lane, leg.tap.counted
    if leg.status >= 500:
        lane.counted(Count.SERVER_ERRORS)
        return
    if leg.status >= 400:
        lane.counted(Count.CLIENT_ERRORS)
        return
    whole = leg.outcome == "answered"
    count, at = lane.count, lane.count_at
    if whole:
        count[at + OK] += 1
        if forward.asked.streams and not leg.tap.finish:
            lane.counted(NO_FINISH)
    if counted.prompt_tokens:
        count[at + PROMPT_TOKENS] += counted.prompt_tokens
        asked = forward.asked
        if whole and asked.prompt_bytes <= MOST_LOOKED_AT and not asked.pictures and measured(asked.fields):
            lane.lengths.learn_bytes(forward.client.name, asked.prompt_bytes, counted.prompt_tokens)
    if counted.cached_tokens:
        lane.counted(CACHED_TOKENS, counted.cached_tokens)
    if counted.output_tokens:
        count[at + OUTPUT_TOKENS] += counted.output_tokens
        if whole:
            lane.view.speed.output_tokens = lane.lengths.learn_output(forward.client.name, counted.output_tokens)
    _time(forward, leg)


def _time(forward: Forward, leg: Leg) -> None:
    """TTFT and TPOT: histograms, whether they were good, and corrections of the predictions."""
    if not leg.first_ns:
        # What says nothing, or an error, is not fast.
        return
    lane = leg.lane
    ttft_s = (leg.first_ns - forward.arrived_ns) / _NS
    served_s = (leg.first_ns - leg.start_ns) / _NS
    tpot_s = tpot_of(leg) if forward.asked.streams else None
    score = score_of(forward.choice, lane.name)
    if forward.asked.streams:
        lane.counted(TTFT_HISTOGRAM + bisect_left(TIME_BOUNDS_S, ttft_s))
        lane.counted(TTFT_NS, leg.first_ns - forward.arrived_ns)
        lane.counted(TTFT_COUNT)
        if score is not None and score.ttft_s > 0.0:
            lane.counted(TTFT_RATIO_HISTOGRAM + bisect_left(RATIO_BOUNDS, served_s / score.ttft_s))
            factor, bare_s = lane.known(TTFT_LOG), score.ttft_s / leg.ttft_factor
            lane.learn(TTFT_WIDTH, widened(lane.view.ttft_width, factor, bare_s, served_s))
            lane.learn(TTFT_LOG, corrected(factor, bare_s, served_s, lane.bound))
            lane.slow(bare_s, served_s, leg.first_ns / _NS)
    if tpot_s is not None:
        lane.counted(TPOT_HISTOGRAM + bisect_left(_TPOT_BOUNDS_S, tpot_s))
        lane.counted(TPOT_NS, round(tpot_s * _NS))
        lane.counted(TPOT_COUNT)
        if score is not None and score.tpot_s > 0.0:
            lane.counted(TPOT_RATIO_HISTOGRAM + bisect_left(RATIO_BOUNDS, tpot_s / score.tpot_s))
            factor = lane.known(TPOT_LOG)
            lane.learn(TPOT_LOG, corrected(factor, score.tpot_s / leg.tpot_factor, tpot_s, lane.bound))
    ask = forward.ask
    if (ask.ttft_s is not None and forward.asked.streams) or (ask.tpot_s is not None and tpot_s is not None):
        lane.counted(JUDGED)
        late = ask.ttft_s is not None and forward.asked.streams and ttft_s > ask.ttft_s
        slow = ask.tpot_s is not None and tpot_s is not None and tpot_s > ask.tpot_s
        if not late and not slow:
            lane.counted(GOOD)


def hand_over(to: Handing, forward: Forward, leg: Leg) -> None:
    """An answer that has ended, to whoever looks at the experts it took, where it is among those that are looked at."""
    kept, looking = leg.kept, leg.lane.looking
    if kept is None or looking is None or not kept.observed or leg.status >= 300:
        return
    try:
        _hand_over(to, forward, leg, kept, looking)
    except Exception:  # the request is over, and ends as it ended whatever becomes of a look at it
        to.miss(leg.lane.name, LOST)


def _hand_over(to: Handing, forward: Forward, leg: Leg, kept: Kept, looking: Looking) -> None:
    backend = leg.lane.name
    asked = leg.question.body() if looking.asked else b""
    if leg.outcome != "answered":
        to.miss(backend, CUT)
    elif why := looking.in_vain(forward.asked.streams, forward.asked.fields):
        to.miss(backend, why)
    elif any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in leg.head):
        to.miss(backend, PACKED)
    elif len(asked) > MOST_ASKED or (kept.cut and not (looking.asked and forward.asked.streams)):
        # Of a stream that is read again the beginning will do; a document without its end says nothing.
        to.miss(backend, TOO_LARGE)
    else:
        note = Handed(
            backend=backend, endpoint=leg.question.endpoint, key=forward.client.name, language=forward.language
        )
        to.give(note, asked, kept.pieces)


class Taken(NamedTuple):
    """What a backend did for one request, as it counted, else as it was seen or estimated."""

    prompt: int
    cached: int
    output: int
    usd: float


_REFUSES: frozenset[Standing] = frozenset({"client", "unable", "busy", "operator"})
_GOES_ON = ("queued", "in_progress")
"""What a response says of itself that is written when nobody listens (`background`)."""
NOTHING = Taken(0, 0, 0, 0.0)


def taken(forward: Forward, leg: Leg) -> Taken:
    """What asking this backend took: a request that was sent costs what was seen or estimated, whichever is more.

    The prompt is the backend's count, else its estimate, and so it is when nothing else came: most of the work of a
    prompt is done before its first byte. A status that refuses says that nothing was done; what was not sent is free.
    """
    exchange = leg.exchange
    if exchange is None or not exchange.sent_ns or (leg.status >= 300 and standing(leg.status) in _REFUSES):
        return NOTHING
    if forward.endpoint in FREE:
        return NOTHING
    tap, asked = leg.tap, forward.asked
    # What a key's own prompts have taught of bytes a token must not make its next one cheaper where nobody counts.
    prompt = tap.counted.prompt_tokens or max(leg.ahead, int(asked.prompt_tokens(USUAL_BYTES))) + 1
    output = tap.output_tokens if leg.status < 400 else 0
    if forward.endpoint in WORDLESS:
        output = tap.counted.output_tokens or 0
    if not output and leg.outcome == "cancelled" and not asked.streams:
        output = _unseen(forward, leg)
    elif tap.finish in _GOES_ON:
        output = max(output, int(asked.held_output(forward.endpoint, forward.ask.output_tokens)))
    cached = min(tap.counted.cached_tokens or 0, prompt)
    return Taken(prompt, cached, output, usd_of(leg.lane, prompt, cached, output, leg.running))


def _unseen(forward: Forward, leg: Leg) -> int:
    """Tokens that a backend has written by now of an answer in one piece, of which nothing is seen before its end.

    As predicted: by the time since its first token was due, and no more than is expected of it.
    """
    score = score_of(forward.choice, leg.lane.name)
    if score is None or score.tpot_s <= 0.0:
        return 0
    seconds = (time.monotonic_ns() - leg.start_ns) / _NS - score.ttft_s
    asked = forward.asked
    written = asked.choices * max(0.0, seconds) / score.tpot_s
    return int(min(written, asked.held_output(forward.endpoint, forward.ask.output_tokens)))


def tpot_of(leg: Leg) -> float | None:
    """Mean seconds between tokens of a stream that came; tokens as the backend counted them, else its events.

    Thoughts that were counted and never came took their time before the first token: they are charged, and no part of
    this. Each event that came was one token at least, so that thoughts which came as text are not left out.
    """
    counted, events = leg.tap.counted, leg.tap.events
    tokens = counted.output_tokens or events
    if counted.thoughts and not counted.thinks_aloud:
        tokens = max(tokens - counted.thoughts, min(tokens, events))
    if not leg.first_ns or tokens <= LEAST_GAPS:
        return None
    return max(0, leg.said_ns - leg.first_ns) / _NS / (tokens - 1)


def usd_of(lane: Lane, prompt: float, cached: float, output: float, running: float) -> float:
    """What an answer cost: an API's tokens, or the machine seconds it added at the batch it joined."""
    view = lane.view
    price = lane.plan.price
    if isinstance(price, Api):
        rate = price.usd_per_mtok_cached_input
        less = 0.0 if rate is None else cached * (view.usd_per_input - rate / 1e6)
        return max(0.0, prompt * view.usd_per_input + output * view.usd_per_output - less)
    if view.usd_per_s == 0.0:
        return 0.0
    return view.usd_per_s * view.speed.added_s(prompt, output, running, prompt + output / 2)


def record_of(
    forward: Forward, legs: Sequence[Leg], leg: Leg | None, status: int, error: str, kinds: Mapping[str, str]
) -> tuple[DecisionRecord, Taken]:
    """The line of the log, and what to charge.

    `legs`: all that were asked; `leg`: the answer; `kinds`: dense or moe, by backend.
    """
    choice, ask, asked = forward.choice, forward.ask, forward.asked
    arrived_ns = forward.arrived_ns
    now_ns = time.monotonic_ns()
    record = DecisionRecord(
        id=forward.id,
        time_s=time.time() - (now_ns - arrived_ns) / _NS,
        model=asked.model,
        endpoint=forward.endpoint,
        policy=forward.policy.policy,
        reason=choice.reason,
        key=forward.client.name,
        status=status,
        stream=asked.streams,
        priority=ask.priority,
        session=ask.session,
        explored=choice.explored,
        asked_ttft_s=ask.ttft_s,
        asked_tpot_s=ask.tpot_s,
        asked_usd=ask.usd,
        predicted_prompt_tokens=ask.prompt_tokens,
        predicted_output_tokens=ask.output_tokens,
        scores=choice.scores,
        e2e_s=(now_ns - arrived_ns) / _NS,
        experiment=forward.experiment,
        arm=forward.arm,
        group=forward.group,
        shadow_of=forward.shadow_of,
        error=error,
    )
    if choice.alternative is not None:
        record.alternative = choice.scores[choice.alternative].backend
    if forward.sent_ns and forward.queued_ns:
        record.queue_s = (forward.sent_ns - forward.queued_ns) / _NS
    record.attempts = [_attempt(one, arrived_ns, now_ns) for one in legs]
    charged = _charge(forward, record, legs, leg, kinds)
    if leg is None:
        return record, charged
    name = leg.lane.name
    record.backend = name
    record.translated_to = leg.question.translated_to
    if leg.first_ns and asked.streams:
        record.ttft_s = (leg.first_ns - arrived_ns) / _NS
        record.tpot_s = tpot_of(leg)
    record.finish = leg.tap.finish or ("cut" if asked.streams and leg.status < 400 and status != 499 else "")
    score = score_of(forward.choice, name)
    if score is not None:
        record.predicted_ttft_s, record.predicted_tpot_s = score.ttft_s, score.tpot_s
        record.predicted_usd = score.usd
    prompts = forward.home.plan.log.prompts
    if leg.kept is not None and leg.status < 400 and (forward.experiment or prompts):
        answer = leg.kept.answer()
        record.refusal = answer.refusal
        if forward.group:
            record.answer_hash = answer.digest
        if prompts:
            record.request_body = forward.request_body.decode(errors="replace")
            record.response_body = answer.text
    return record, charged


def _charge(
    forward: Forward, record: DecisionRecord, legs: Sequence[Leg], leg: Leg | None, kinds: Mapping[str, str]
) -> Taken:
    """What all that were asked took together: what its key is charged. Into the record where the answer did not say."""
    prompt = cached = output = 0
    usd = 0.0
    for one in legs:
        took = taken(forward, one)
        prompt, cached, output, usd = prompt + took.prompt, cached + took.cached, output + took.output, usd + took.usd
        nano_usd = round(took.usd * _NS)
        lane = one.lane
        lane.count[lane.count_at + NANO_USD] += nano_usd
        if one is leg and leg.begun and leg.status < 400:
            record.usd = took.usd
            elsewhere = record.usd_elsewhere = _elsewhere(forward, leg, took.usd, kinds)
            nano_usd = nano_usd if elsewhere is None else round(elsewhere * _NS)
        # What came to nothing here would have come to nothing there.
        lane.count[lane.count_at + NANO_USD_ELSEWHERE] += nano_usd
    if leg is not None:
        counted = leg.tap.counted
        # A count of nothing of a prompt, or beside an answer, is none.
        record.prompt_tokens, record.cached_tokens = counted.prompt_tokens or None, counted.cached_tokens
        record.output_tokens = counted.output_tokens or (None if leg.tap.output_tokens else counted.output_tokens)
    if prompt != (record.prompt_tokens or 0):
        record.charged_prompt_tokens = prompt
    if output != (record.output_tokens or 0):
        record.charged_output_tokens = output
    if usd != (record.usd or 0.0):
        record.charged_usd = usd
    return Taken(prompt, cached, output, usd)


def _attempt(leg: Leg, arrived_ns: int, now_ns: int) -> Attempt:
    start_s = (leg.start_ns - arrived_ns) / _NS
    end_ns = leg.last_ns or now_ns
    seconds = (end_ns - leg.start_ns) / _NS
    return Attempt(
        backend=leg.lane.name, outcome=leg.outcome or "answered", start_s=start_s, seconds=seconds, hedge=leg.hedge
    )


def _elsewhere(forward: Forward, leg: Leg, usd: float, kinds: Mapping[str, str]) -> float | None:
    """The same answer at the cheapest backend of the other architecture; None: there is none.

    In the proportion of the two predictions, since both are of the moment at which the request was routed.
    """
    other = _OTHER.get(leg.lane.view.kind)
    mine = score_of(forward.choice, leg.lane.name)
    if other is None or mine is None:
        return None
    least = None
    for score in forward.choice.scores:
        if kinds[score.backend] == other and (least is None or score.usd < least):
            least = score.usd
    if least is None:
        return None
    return least * usd / mine.usd if mine.usd > 0.0 else least
