"""Columns of shared memory as plain whole numbers: looking one up in an enumeration costs more than adding to it."""

from __future__ import annotations

from breakeven.gateway.shared.layout import Count, Known, Load, Usage

IN_FLIGHT, DECODING, AHEAD_TOKENS, CONTEXT_TOKENS = map(
    int, (Load.IN_FLIGHT, Load.DECODING, Load.AHEAD_TOKENS, Load.CONTEXT_TOKENS)
)
QUEUED = int(Load.QUEUED)

REQUESTS, OK, NO_FINISH = int(Count.REQUESTS), int(Count.OK), int(Count.NO_FINISH)
PROMPT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS = map(int, (Count.PROMPT_TOKENS, Count.CACHED_TOKENS, Count.OUTPUT_TOKENS))
NANO_USD, NANO_USD_ELSEWHERE = int(Count.NANO_USD), int(Count.NANO_USD_ELSEWHERE)
GOOD, JUDGED = int(Count.GOOD), int(Count.JUDGED)
TTFT_NS, TTFT_COUNT, TPOT_NS, TPOT_COUNT = map(int, (Count.TTFT_NS, Count.TTFT_COUNT, Count.TPOT_NS, Count.TPOT_COUNT))

POLLED_S, RUNNING, WAITING, OURS_AT_POLL = map(int, (Known.POLLED_S, Known.RUNNING, Known.WAITING, Known.OURS_AT_POLL))
STATE, LOAD_S = int(Known.STATE), int(Known.LOAD_S)
TTFT_LOG, TPOT_LOG, TTFT_WIDTH = int(Known.TTFT_LOG), int(Known.TPOT_LOG), int(Known.TTFT_WIDTH)
BYTES_PER_TOKEN, MEAN_OUTPUT = int(Known.BYTES_PER_TOKEN), int(Known.OUTPUT_TOKENS)

USED_REQUESTS, USED_PROMPT, USED_OUTPUT, USED_NANO_USD = map(
    int, (Usage.REQUESTS, Usage.PROMPT_TOKENS, Usage.OUTPUT_TOKENS, Usage.NANO_USD)
)
USED_REFUSED = int(Usage.REFUSED)
USAGE_COLUMNS = len(Usage)
