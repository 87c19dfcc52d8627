"""What a request sees when an engine serves many at once, in closed form: the steady state of a closed loop.

`concurrency` requests are always in the system; each brings a prompt and asks for an answer, and is replaced the moment
it ends. Prompt tokens ride in the steps that decode for everybody else, `chunk` tokens at most in one step, so a
measured gap between tokens contains other people's prompts. With D sequences decoding, D / output requests end in a
step, so D prompt / output prompt tokens must pass in the mean step; of n requests in the loop, n - 1 are other
people's. They come in pieces of a prompt, or of several when more than one passes in a step, up to the chunk:

    P = (1 - 1/n) D prompt / output
    piece = P, at least prompt / ceil(prompt / chunk), at most chunk
    TPOT = (1 - s) t(D) + s t(D, piece)                               s = min(1, P / piece)
    n = D + D / (output TPOT) * ceil(prompt / chunk) t(D, piece)      Little's law: those not decoding are being read

Percentiles and anything that arrives unevenly need the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.model import StepModel

Floats = NDArray[np.float64]

DEFAULT_CHUNK = 8192
"""Tokens in one step that vLLM allows by default on large GPUs (max_num_batched_tokens of its server, release 0.10)."""
ROUNDS = 7
"""Each halves the distance to the fixed point, which starts within a fifth of it at most loads."""


def steady_tpot_s(
    model: StepModel, concurrency: float, prompt: float, output: float, chunk: float = DEFAULT_CHUNK
) -> tuple[float, float]:
    """(mean TTFT, mean TPOT) in seconds of `concurrency` closed-loop streams of `prompt` in and `output` tokens out."""
    ttft, tpot = steady_state(model, [concurrency], [prompt], [output], [chunk])
    return float(ttft[0]), float(tpot[0])


def steady_state(
    model: StepModel, concurrency: ArrayLike, prompt: ArrayLike, output: ArrayLike, chunk: ArrayLike = DEFAULT_CHUNK
) -> tuple[Floats, Floats]:
    """`steady_tpot_s` for many loads of one model at once; the arguments broadcast to one shape."""
    loads: Sequence[Floats] = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (concurrency, prompt, output, chunk))
    )
    n, i, o, budget = loads
    room = np.maximum(budget - n, 1.0)
    pieces = np.maximum(np.ceil(i / room), 1.0)
    decoding = n.copy()
    for _ in range(ROUNDS):
        tpot, mixed, arriving = _between_tokens(model, decoding, n, i, o, room, pieces)
        # Prompts in service take `pieces` mixed steps; when every step is full of them, the rest waits in line.
        prompt_s = pieces * mixed
        ends_per_s = decoding / (o * tpot)
        sustained = np.where(arriving > room, o * room / np.maximum(i, 1e-9), n - np.minimum(ends_per_s * prompt_s, n))
        decoding = 0.5 * decoding + 0.5 * np.clip(sustained, np.minimum(1.0, n), n)
    wait = np.maximum(n - decoding - ends_per_s * prompt_s, 0.0) / ends_per_s
    # A prompt that arrives alone still waits for half of the step that is running.
    busy = np.where(n > 1.0, 0.5 * tpot, 0.0)
    return prompt_s + wait + busy, tpot


def tpot_at_s(model: StepModel, decoding: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> Floats:
    """Mean time between tokens where so many sequences are known to decode at a time, however many wait."""
    d, i, o = (np.asarray(x, dtype=np.float64) for x in (decoding, prompt, output))
    room = np.maximum(DEFAULT_CHUNK - d, 1.0)
    return _between_tokens(model, d, d, i, o, room, np.maximum(np.ceil(i / room), 1.0))[0]


def _between_tokens(
    model: StepModel, decoding: Floats, n: Floats, i: Floats, o: Floats, room: Floats, pieces: Floats
) -> tuple[Floats, Floats, Floats]:
    """TPOT, a step that carries a piece of a prompt, and prompt tokens a step must take for all to stay as it is."""
    # An answer's tokens are read back from a cache that grows from the prompt to prompt + output.
    context = i + o / 2.0
    arriving = decoding / o * i
    others = (1.0 - 1.0 / n) * arriving
    piece = np.clip(others, i / pieces, room)
    share = np.minimum(1.0, others / np.maximum(piece, 1e-9))
    # A piece attends to itself and to the pieces before it: half the prompt on average.
    mixed = model.step_s(decoding, context, piece, i / 2.0)
    return (1.0 - share) * model.step_s(decoding, context) + share * mixed, mixed, arriving
