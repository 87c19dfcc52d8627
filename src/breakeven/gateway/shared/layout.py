"""Which numbers the gateway's processes share, and where each stands: grids of rows and named columns.

A cell has one writer, so nothing is locked: a worker writes its own rows, the watching process those without a worker,
and readers add rows up. Sums over workers are exact once nobody writes, and at most a request behind before.

Which row of the shared block belongs to which name, fixed for one generation of a plan.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

TIME_BOUNDS_S = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the histograms of TTFT; TPOT's are a tenth of them."""
RATIO_BOUNDS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Upper bounds of the histograms of actual / predicted."""
TIME_BUCKETS, RATIO_BUCKETS = len(TIME_BOUNDS_S) + 1, len(RATIO_BOUNDS) + 1


class UnderWay(IntEnum):
    """By worker and backend, int64: what goes up and down. All are 0 when nothing is under way."""

    IN_FLIGHT = 0
    DECODING = 1
    AHEAD_TOKENS = 2
    CONTEXT_TOKENS = 3
    QUEUED = 4
    WANTED = 5
    """Requests that wait for this local engine to be loaded."""
    BREAKER = 6
    """0 closed, 1 half open, 2 open."""
    CLAIM_PRIORITY = 7
    """Of the request that goes next of this worker's line."""
    CLAIM_FEWER = 8
    """Minus the places that its key holds here."""
    CLAIM_NS = 9
    """Monotonic time at which the worker said so; 0: nobody waits."""


class Count(IntEnum):
    """By worker and backend, int64: what only goes up. Histograms follow after the last one."""

    REQUESTS = 0
    OK = 1
    CLIENT_ERRORS = 2
    SERVER_ERRORS = 3
    TROUBLES = 4
    CUT = 5
    CANCELLED = 6
    RETRIED = 7
    HEDGED = 8
    HEDGE_WON = 9
    EXPLORED = 10
    SHED = 11
    PROMPT_TOKENS = 12
    CACHED_TOKENS = 13
    OUTPUT_TOKENS = 14
    NANO_USD = 15
    NANO_USD_ELSEWHERE = 16
    GOOD = 17
    JUDGED = 18
    BREAKER_OPENED = 19
    TTFT_NS = 20
    TPOT_NS = 21
    TTFT_COUNT = 22
    TPOT_COUNT = 23
    NO_FINISH = 24


TTFT_HISTOGRAM = len(Count)
TPOT_HISTOGRAM = TTFT_HISTOGRAM + TIME_BUCKETS
TTFT_RATIO_HISTOGRAM = TPOT_HISTOGRAM + TIME_BUCKETS
TPOT_RATIO_HISTOGRAM = TTFT_RATIO_HISTOGRAM + RATIO_BUCKETS
COUNT_COLUMNS = TPOT_RATIO_HISTOGRAM + RATIO_BUCKETS


class Used(IntEnum):
    """By worker and key, and by worker and public model, int64."""

    REQUESTS = 0
    PROMPT_TOKENS = 1
    OUTPUT_TOKENS = 2
    NANO_USD = 3
    REFUSED = 4
    STREAMS = 5


class Window(IntEnum):
    """By worker and limit of a key, int64: a ring of what was spent lately; the last row is other machines'."""

    STAMP = 0
    """Whose limit it counts; 0: nobody's."""
    LAST = 1
    """Number of the newest bucket: `SharedBlock.now_s` over a bucket's width. Bucket n stands at
    `FIRST + n % WINDOW_RING`."""
    TOTAL = 2
    """Sum of the ring."""
    FIRST = 3


WINDOW_RING = 16
WINDOW_COLUMNS = Window.FIRST + WINDOW_RING
TOLD_COLUMNS = WINDOW_COLUMNS + 1
"""What was added to a limit's counters in Redis: a window by the wall clock, and which counters those were."""
KEY_COLUMNS = 1024
"""Keys with a column of their own where places are shared; beyond, keys whose rows differ by this share one."""


class Process(IntEnum):
    """By worker, int64: what each tells of itself now and then."""

    PID = 0
    DROPPED = 1
    """Lines of the decision log that were not written."""
    CONNECTIONS = 2
    UNDER_WAY = 3
    BEAT_NS = 4
    """Monotonic time at which its loop last turned; 0: not yet. Row 0 is the watching process's."""


class Known(IntEnum):
    """By backend, float64: what the watching process knows of it, and what workers learn together."""

    POLLED_S = 0
    """Monotonic time of the last look at its own numbers; 0: never."""
    RUNNING = 1
    WAITING = 2
    KV_SHARE = 3
    OURS_AT_POLL = 4
    UP = 5
    """1: it answers; 0: it does not; -1: nobody has asked."""
    STATE = 6
    """`State` of a local engine; always READY behind a URL."""
    PROGRESS = 7
    LOAD_S = 8
    """Seconds until it would be ready, were it asked for now."""
    PORT = 9
    TTFT_LOG = 10
    """Learned correction: natural logarithm of the factor."""
    TPOT_LOG = 11
    BYTES_PER_TOKEN = 12
    OUTPUT_TOKENS = 13
    """Mean answer, for what is not known beforehand."""
    TTFT_WIDTH = 14
    LESSONS = 15
    """What its refusals taught (`wire.lessons.as_number`)."""
    MOST_OUTPUT = 16
    """Tokens that its model writes at most, as a refusal said; 0: none said so."""
    UNTOLD = 17
    """Names of earlier thoughts that it refuses, a bit for each of `translate.table.THOUGHTS`."""
    TAUGHT_S = 18
    """When it last taught one of these three, by `SharedBlock.now_s`."""
    TAUGHT_BY = 19
    """Of which server they are true (`speech.whose`): workers that still drain may ask the one that was here before."""


class State(IntEnum):
    """Of a local engine."""

    READY = 0
    UNLOADED = 1
    LOADING = 2
    DRAINING = 3
    FAILED = 4


class Global(IntEnum):
    """One row, float64."""

    GENERATION = 0
    STARTED_S = 1
    """Unix time."""
    DRAINING = 2
    KEYS_UNUSABLE = 3
    """1 while the file of keys cannot be used as it is."""
    REPLACED = 4
    """Processes that ended unasked or hung, and for which another was started."""
    HUNG = 5
    """Of these, those that were killed because their heart stood still."""
    MISSING = 6
    """Processes that ought to be there and are not yet: the system refused, or they died too often."""


class Treatment(IntEnum):
    """By experiment, float64, written by the watching process."""

    SHARE = 0
    STOPPED = 1


class Rows(msgspec.Struct, frozen=True):
    """Row by name. The empty key is everybody's where no key is asked."""

    backends: dict[str, int]
    keys: dict[str, int]
    models: dict[str, int]
    experiments: dict[str, int]


# The same columns as plain whole numbers: looking one up in an enumeration costs more than adding to it.

IN_FLIGHT, DECODING, AHEAD_TOKENS, CONTEXT_TOKENS = map(
    int, (UnderWay.IN_FLIGHT, UnderWay.DECODING, UnderWay.AHEAD_TOKENS, UnderWay.CONTEXT_TOKENS)
)
QUEUED = int(UnderWay.QUEUED)

REQUESTS, OK, NO_FINISH = int(Count.REQUESTS), int(Count.OK), int(Count.NO_FINISH)
PROMPT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS = map(int, (Count.PROMPT_TOKENS, Count.CACHED_TOKENS, Count.OUTPUT_TOKENS))
NANO_USD, NANO_USD_ELSEWHERE = int(Count.NANO_USD), int(Count.NANO_USD_ELSEWHERE)
GOOD, JUDGED = int(Count.GOOD), int(Count.JUDGED)
TTFT_NS, TTFT_COUNT, TPOT_NS, TPOT_COUNT = map(int, (Count.TTFT_NS, Count.TTFT_COUNT, Count.TPOT_NS, Count.TPOT_COUNT))

POLLED_S, RUNNING, WAITING, OURS_AT_POLL = map(int, (Known.POLLED_S, Known.RUNNING, Known.WAITING, Known.OURS_AT_POLL))
STATE, LOAD_S, UP = int(Known.STATE), int(Known.LOAD_S), int(Known.UP)
LESSONS_TAUGHT, MOST_WRITTEN, UNTOLD, TAUGHT_S, TAUGHT_BY = map(
    int, (Known.LESSONS, Known.MOST_OUTPUT, Known.UNTOLD, Known.TAUGHT_S, Known.TAUGHT_BY)
)
TTFT_LOG, TPOT_LOG, TTFT_WIDTH = int(Known.TTFT_LOG), int(Known.TPOT_LOG), int(Known.TTFT_WIDTH)
BYTES_PER_TOKEN, MEAN_OUTPUT = int(Known.BYTES_PER_TOKEN), int(Known.OUTPUT_TOKENS)

USED_REQUESTS, USED_PROMPT, USED_OUTPUT, USED_NANO_USD = map(
    int, (Used.REQUESTS, Used.PROMPT_TOKENS, Used.OUTPUT_TOKENS, Used.NANO_USD)
)
USED_REFUSED = int(Used.REFUSED)
USAGE_COLUMNS = len(Used)
