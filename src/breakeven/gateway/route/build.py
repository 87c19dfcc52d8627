"""From a backend's plan to its speed: the step model that `breakeven predict` would use, evaluated on a grid once.

Run when a gateway starts or reloads, never for a request: it needs numpy and reads profiles and model descriptions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.errors import UserError, complain, one_line
from breakeven.forecast.asked import asked_model, model_on, profiles_for
from breakeven.forecast.model import StepModel
from breakeven.forecast.routing import MIN_TOKENS
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of
from breakeven.gateway.experts.gathered import shares_of
from breakeven.gateway.experts.kept import KeptExperts, path_of, read_kept, unpacked
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.route.speed import GRAIN, Cell, Observed, SpeedTable
from breakeven.gateway.route.view import Speed
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec, MoeFfn

Floats = NDArray[np.float64]

MOST_CONTEXT = 131072
READ_CONTEXT = 1024.0
"""Context of those who decode while a prompt is read; look-ups add what another one takes."""
RATE_TOKENS = 512
"""Prompt tokens in a step from which to a full one the cost of one more is taken, and the length of such prompts."""

Measured = tuple[tuple[float, ...], ...]
"""Share of tokens that use each expert, by layer that routes."""


def speed_of(backend: BackendPlan) -> Speed:
    """The speed of any backend: its step model's where it names a machine and a model, else what is said of it.

    Raises UserError for a model, machine or format that is not known.
    """
    local = backend.local
    if backend.machine is not None and (backend.model is not None or local is not None):
        return table_of(backend)
    places = backend.slots or (local.slots if local is not None else None)
    return Observed.of(backend.speed, places)


def table_of(backend: BackendPlan) -> SpeedTable:
    """The table of a backend that names its model and machine. Raises UserError where it does not, or for unknown ones.

    A local engine's slots and context are its plan's; others run as many sequences as `slots`, or their engine's usual.
    Where its experts are looked at the routing that was seen is predicted with, as it stands now.
    """
    local = backend.local
    model = backend.model or (local.model if local is not None else None)
    if model is None or backend.machine is None:
        raise UserError(
            f"backend {backend.name}: its speed cannot be predicted without a model and a machine; add "
            "`model:` and `machine:` (`breakeven models` and `breakeven machines` list them), or `speed:`"
        )
    engine = backend.engine or (local.engine if local is not None else None)
    name = backend.format or (local.format if local is not None else None)
    slots = local.slots if local is not None else backend.slots
    try:
        kv = backend.kv or (local.kv if local is not None else None)
        lies = (local.placement if local is not None else None) or AUTO
        seen = _routing_seen(backend, model, name)
        made = _table(model, backend.machine, engine, name, backend.devices, slots, backend.context, kv, lies, seen)
    except UserError as error:
        raise UserError(f"backend {backend.name}: {error}") from error
    # Each backend has its own answers, so its own usual length.
    copy = object.__new__(SpeedTable)
    for slot in SpeedTable.__slots__:
        setattr(copy, slot, getattr(made, slot))
    return copy


@lru_cache(maxsize=256)
def _table(
    model: str,
    machine: str,
    engine: str | None,
    format_name: str | None,
    devices: int,
    slots: int | None,
    context: int | None,
    kv: str | None,
    placement: Placement,
    frequencies: Measured | None,
) -> SpeedTable:
    asked = asked_model(model, format_name)
    profile = profiles_for([asked], machine, engine, devices)[0]
    steps = model_on(asked, profile, devices, frequencies=frequencies, kv=kv, placement=placement)
    policy = policy_of(steps)
    if slots is not None:
        policy = replace(policy, max_sequences=slots, max_step_tokens=max(policy.max_step_tokens, slots))
    return table_from(steps, policy, min(context or MOST_CONTEXT, MOST_CONTEXT))


def _routing_seen(backend: BackendPlan, model: str, format_name: str | None) -> Measured | None:
    """What was seen of a backend's experts, where that is asked for and enough; None: its routing is taken as even.

    A file that cannot be used is said and left, never a reason not to serve. Raises UserError for an unknown model.
    """
    if backend.experts is None:
        return None
    spec = asked_model(model, format_name).spec
    if not spec.is_moe:
        return None
    try:
        kept = read_kept(path_of(backend.name))
        if kept is None:
            return None
        if kept.model != model:
            raise ValueError(f"it is of {kept.model or 'a model without a name'}, not of {model}")
        return _frequencies(kept, spec)
    except (OSError, ValueError, UserError) as error:
        complain(
            f"backend {backend.name}: what was seen of its experts is not predicted with, and its routing is taken as "
            f"even: {one_line(str(error), 200)}"
        )
        return None


def _frequencies(kept: KeptExperts, spec: ModelSpec) -> Measured | None:
    """By layer; one of which nothing was seen is taken as even. None: too few tokens. Raises ValueError for no fit."""
    routing = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    most = max(ffn.n_experts_per_token for ffn in routing)
    # Whoever counts tells no tokens, so that there one counts once for each of its experts.
    if kept.tokens < MIN_TOKENS * (most if kept.source == "counted" else 1):
        return None
    if len(kept.layers) != len(routing) or kept.n_experts_per_token not in (None, most):
        raise ValueError(
            f"it has {len(kept.layers)} layers that route and {kept.n_experts_per_token or most} experts a token, "
            f"where {spec.name} has {len(routing)} and {most}"
        )
    rows = [layer.frequencies for layer in kept.layers]
    if not all(rows):
        rows = np.nan_to_num(shares_of(unpacked(kept).whole.choices_LE)).tolist()
    found = []
    for ffn, row in zip(routing, rows, strict=True):
        if len(row) > ffn.n_experts or not all(0 <= share <= 1 for share in row):
            raise ValueError(
                f"it has {len(row)} experts a layer, used by {min(row):.3g} to {max(row):.3g} of all tokens, where "
                f"{spec.name} has {ffn.n_experts}"
            )
        # Where only the highest number seen told how many there are, those above it were not seen.
        shares_E = np.pad(np.asarray(row), (0, ffn.n_experts - len(row)))
        total = shares_E.sum()
        even = ffn.n_experts_per_token / ffn.n_experts
        used_E = shares_E / total * ffn.n_experts_per_token if total else np.full(ffn.n_experts, even)
        found.append(tuple(np.minimum(used_E, 1.0).tolist()))
    return tuple(found)


def table_from(model: StepModel, policy: Policy, context: int = MOST_CONTEXT) -> SpeedTable:
    """The table of a step model under an engine's policy, for sequences of up to `context` tokens."""
    places = policy.max_sequences
    d_D = _grid(0, max(places, 2), 3)
    t_T = GRAIN * _grid(0, max(2, -(-context // GRAIN)), 2)
    decode_DT = _idle(d_D, decode_s(model, policy, d_D[:, None], t_T[None, :]))
    # One more sequence never makes a step shorter; some step models say so by a hair where tiles fill up.
    longer_DT = np.maximum(decode_s(model, policy, d_D[:, None] + 1.0, t_T[None, :]) - decode_DT, 0.0)
    reference_D1 = _idle(d_D, decode_s(model, policy, d_D, READ_CONTEXT))[:, None]
    steps_T = 1.0 + np.floor(t_T / policy.max_step_tokens)
    extra_DT = np.maximum(read_s(model, policy, d_D, t_T) - steps_T * reference_D1, 0.0)
    # A longer prompt never takes less, though the last step of a shorter one may have had room to spare.
    extra_DT = np.maximum.accumulate(extra_DT, axis=1)
    rate_D = _rate_s(model, policy, d_D)
    return SpeedTable(
        running=d_D.tolist(),
        tokens=t_T.tolist(),
        decode=[
            [(*step, *longer) for step, longer in zip(*rows, strict=True)]
            for rows in zip(cells(d_D, t_T, decode_DT), cells(d_D, t_T, longer_DT), strict=True)
        ],
        extra=cells(d_D, t_T, extra_DT),
        rate=list(zip(rate_D[:-1].tolist(), (np.diff(rate_D) / np.diff(d_D)).tolist(), strict=True)),
        places=places,
        kv_tokens=policy.kv_tokens,
        step_tokens=policy.max_step_tokens,
        lag=1.5 if policy.ahead else 0.5,
        front_s=policy.front_s,
        width=sqrt(model.error("decode").log_half_width * model.error("prefill").log_half_width),
    )


def _rate_s(model: StepModel, policy: Policy, d_D: Floats) -> Floats:
    """Seconds that one more prompt token adds to a step that reads prompts already, by sequences decoding in it.

    An engine with passes of `micro_batch` tokens takes another pass for as many more; others lengthen the one they run.
    """
    if policy.micro_batch is not None:
        alone = float(model.step_s(0.0, 0.0, float(policy.micro_batch), policy.micro_batch / 2.0))
        return np.full(len(d_D), alone / policy.micro_batch)
    # Up to a full step: few tokens more may hide behind the reading of weights, and a full step's worth does not.
    fewer, most = float(min(RATE_TOKENS, policy.max_step_tokens // 2)), float(policy.max_step_tokens)
    took_D = model.step_s(d_D, READ_CONTEXT, most, fewer / 2) - model.step_s(d_D, READ_CONTEXT, fewer, fewer / 2)
    return np.maximum(took_D / (most - fewer), 0.0)


def decode_s(model: StepModel, policy: Policy, d: ArrayLike, context: ArrayLike) -> Floats:
    """Seconds of steps in which `d` sequences decode and nothing is read; arguments broadcast.

    An engine that computes only adjacent slots together takes a pass for each run of them: of d slots out of n, any of
    them, d (n - d + 1) / n runs are expected.
    """
    if not policy.adjacent:
        return model.step_s(d, context)
    d, n = np.asarray(d, dtype=np.float64), policy.max_sequences
    runs = np.maximum(d * (n - d + 1.0) / n, 1.0)
    found: Floats = runs * model.step_s(d / runs, context)
    return found


def read_s(model: StepModel, policy: Policy, d_D: Floats, t_T: Floats) -> Floats:
    """Seconds of the steps that read prompts of `t_T` tokens while `d_D` others decode, by both.

    A step takes what its budget leaves beside the others, in passes of `micro_batch` where the engine has them; the
    others' tokens are in the first pass, or in one before it (`forecast.simulator.engine`).
    """
    apart = policy.apart or policy.adjacent
    others_D1 = _idle(d_D, decode_s(model, policy, d_D, READ_CONTEXT))[:, None]
    d_DT, left_DT = (x.copy() for x in np.broadcast_arrays(d_D[:, None], t_T[None, :]))
    read_DT, seconds_DT = np.zeros_like(left_DT), np.zeros_like(left_DT)
    budget_DT = np.maximum(policy.max_step_tokens - d_DT, 1.0)
    while np.any(left_DT > 0):
        step_DT = np.minimum(left_DT, budget_DT)
        if apart:
            seconds_DT = seconds_DT + np.where(step_DT > 0, others_D1, 0.0)
        left_DT = left_DT - step_DT
        beside_DT = np.zeros_like(d_DT) if apart else d_DT
        while np.any(step_DT > 0):
            pass_DT = step_DT
            if policy.micro_batch is not None:
                pass_DT = np.minimum(step_DT, np.maximum(policy.micro_batch - beside_DT, 1.0))
            took_DT = model.step_s(beside_DT, READ_CONTEXT, pass_DT, read_DT + pass_DT / 2.0)
            seconds_DT = seconds_DT + np.where(pass_DT > 0, took_DT, 0.0)
            read_DT, step_DT = read_DT + pass_DT, step_DT - pass_DT
            beside_DT = np.zeros_like(d_DT)
    return seconds_DT


def cells(x_X: Floats, y_Y: Floats, value_XY: Floats) -> list[list[Cell]]:
    """Bilinear interpolation as four numbers a cell: a + x (b + y d) + y c, x and y from the cell's lower corner."""
    dx_X1, dy_1Y = np.diff(x_X)[:, None], np.diff(y_Y)[None, :]
    a = value_XY[:-1, :-1]
    b = (value_XY[1:, :-1] - a) / dx_X1
    c = (value_XY[:-1, 1:] - a) / dy_1Y
    d = (value_XY[1:, 1:] - value_XY[1:, :-1] - value_XY[:-1, 1:] + a) / (dx_X1 * dy_1Y)
    return [list(zip(*(part[i].tolist() for part in (a, b, c, d)), strict=True)) for i in range(len(x_X) - 1)]


def _idle(d_D: Floats, step_D: Floats) -> Floats:
    """Steps by sequences, with no time where there is none: an idle engine does nothing."""
    busy = d_D > 0
    found: Floats = np.where(busy if step_D.ndim == 1 else busy[:, None], step_D, 0.0)
    return found


def _grid(low: int, high: int, per_octave: int) -> Floats:
    """Whole numbers from `low` to `high`, about `per_octave` to a doubling."""
    points = [float(low)]
    while points[-1] < high:
        points.append(min(float(high), max(points[-1] + 1.0, float(round(points[-1] * 2.0 ** (1.0 / per_octave))))))
    return np.asarray(points)
