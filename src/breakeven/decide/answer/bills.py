"""One candidate's bill for whole arrays of loads and capacities: `price.staircase`, drawn many times."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from breakeven.decide.answer.draws import Floats
from breakeven.price.pricing import JOULES_PER_KWH, Power, standing_usd_per_hour, usd_per_added_request
from breakeven.price.staircase import ROUNDING
from breakeven.price.traffic import PricedTraffic
from breakeven.spec.cost import Api, Own, Pricing


def bills(
    pricing: Pricing,
    rate_per_s: ArrayLike,
    capacity_per_s: ArrayLike | None,
    traffic: PricedTraffic,
    power: Power | None = None,
    max_replicas: int | None = None,
) -> Floats:
    """Dollars an hour; `rate_per_s` and `capacity_per_s` (of one replica, ignored for an API) broadcast.

    Infinite where a replica can serve nothing, or where more than `max_replicas` would be needed.
    """
    rate = np.asarray(rate_per_s, dtype=np.float64)
    if isinstance(pricing, Api):
        return np.asarray(3600.0 * usd_per_added_request(pricing, traffic, np.inf) * rate)
    capacity = np.asarray(0.0 if capacity_per_s is None else capacity_per_s, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicas = np.maximum(np.ceil(rate / capacity - ROUNDING), 1.0)
        joules = 0.0 if power is None else np.nan_to_num((power.busy_w - power.idle_w) / capacity, posinf=0.0)
    hourly = standing_usd_per_hour(pricing, power) * replicas
    if isinstance(pricing, Own):
        hourly = hourly + 3600.0 * rate * joules / JOULES_PER_KWH * pricing.usd_per_kwh
    unable = ~(capacity > 0) | (np.isinf(replicas))
    if max_replicas is not None:
        unable = unable | (replicas > max_replicas)
    return np.where(unable, np.inf, hourly)
