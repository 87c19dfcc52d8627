"""What one backend would give one request at the load it has now: TTFT, TPOT, dollars, and how well that fits.

    ttft     = factor_ttft (load_s + line at the gateway + speed.ttft_s(...))
    tpot     = factor_tpot speed.tpot_s(running + 1, context with this one)
    usd      = prompt usd_per_input + output usd_per_output + usd_per_s factor_tpot speed.added_s(...)
    headroom = min(asked / predicted) over what was asked for

`line at the gateway`: with no place free, this one starts after `queued` + 1 of those running have ended, which end
one by one every output tpot / running seconds. Loading an engine is measured, so no factor touches it.

Machine seconds are what the request adds at that batch: what they could be sold for, whether or not the machine's
rent is paid anyway. A backend that is nearly idle bears its weights' reading alone; a full one shares it.
"""

from __future__ import annotations

from math import inf

from breakeven.gateway.route.speed import Table
from breakeven.gateway.route.view import Ask, Score, View

BROKEN = "its breaker is open"
"""The one reason against a backend that gives way when nobody else is left."""
NOTHING_S = 1e-9


def score(ask: Ask, view: View, floor: float | None = None) -> Score:
    """`view`'s prediction for `ask`; `floor`: the least quality that will do, 0 to 1."""
    speed = view.speed
    output = ask.output_tokens
    prompt = ask.prompt_tokens
    line = view.waiting
    running = view.running - line
    if running < 0.0:
        running = 0.0
    if view.stale and running < view.slots:
        # What nobody has looked at for a while may be full; it is the last resort, not a free place.
        running = float(view.slots)
    # This request's own tokens count: half of its answer is there on average while it decodes.
    context = (view.context * running + prompt + 0.5 * output) / (running + 1.0)
    if type(speed) is Table:
        # The same three numbers for one look at its grids.
        ttft, tpot, added = speed.together(prompt, output, running, context, view.ahead_tokens, line)
    else:
        ttft = speed.ttft_s(prompt, running, context, view.ahead_tokens, line)
        tpot = speed.tpot_s(running + 1.0, context)
        added = speed.added_s(prompt, output, running, context)
    ttft *= view.ttft_factor
    tpot *= view.tpot_factor
    if view.free <= 0:
        ttft += (view.queued + 1) * output * tpot / (running if running > 1.0 else 1.0)
    if not view.ready and view.load_s:
        ttft += view.load_s
    usd = prompt * view.usd_per_input + output * view.usd_per_output
    if view.usd_per_s:
        usd += view.usd_per_s * view.tpot_factor * added
    headroom = inf
    if ask.ttft_s is not None:
        headroom = ask.ttft_s / (ttft or NOTHING_S)
    if ask.tpot_s is not None and output > 1.0:
        room = ask.tpot_s / (tpot or NOTHING_S)
        if room < headroom:
            headroom = room
    if ask.usd is not None and usd > 0.0:
        room = ask.usd / usd
        if room < headroom:
            headroom = room
    return Score(
        backend=view.name,
        ttft_s=ttft,
        tpot_s=tpot,
        usd=usd,
        headroom=headroom,
        running=view.running,
        why_not=_why_not(ask, view, floor),
    )


def _why_not(ask: Ask, view: View, floor: float | None) -> str:
    """Why `view` cannot serve `ask`, empty when it can. An open breaker comes last: everything else is for good."""
    if view.endpoints and ask.endpoint not in view.endpoints:
        return f"does not serve {ask.endpoint}"
    limit = view.context_limit
    if limit is not None:
        tokens = ask.prompt_tokens + (ask.output_tokens if ask.most_output is None else ask.most_output)
        if tokens > limit:
            return f"too long: {tokens:.0f} tokens, it takes {limit}"
    if floor is not None and (view.quality is None or view.quality < floor):
        if view.quality is None:
            return f"no quality score, and {floor:g} is asked for"
        return f"quality {view.quality:g} is below {floor:g}"
    if not view.ready and view.load_s is None:
        return "it is not there and cannot be loaded now"
    if not view.open:
        return BROKEN
    return ""
