"""What a gateway might have seen of its experts, made up: any number of layers and experts, the same each time."""

from __future__ import annotations

import math
import random

from breakeven.gateway.experts.report import BackendExperts, ExpertsSeen, GroupSeen, LayerSeen

T0 = 1_800_000_000.0


def layer_seen(number: int, shares: list[float], used: int, *, dead: list[int], hot: list[int]) -> LayerSeen:
    """A layer of these shares."""
    bits = -sum(share * math.log(share) for share in shares if share > 0)
    return LayerSeen(
        layer=number,
        shares=shares,
        frequencies=[share * used for share in shares],
        imbalance=max(shares) * len(shares),
        entropy=bits / math.log(len(shares)),
        dead=dead,
        hot=hot,
        drift=0.03 + 0.001 * number,
        drift_by_chance=0.012,
    )


def backend_seen(name: str, n_layers: int, n_experts: int, used: int, *, spread: float = 0.35) -> BackendExperts:
    """A backend whose experts' shares are spread; the first layer's last two experts saw nothing."""
    dice = random.Random(f"{name} {n_layers} {n_experts}")
    layers = []
    for number in range(n_layers):
        weights = [math.exp(dice.gauss(0, spread)) for _ in range(n_experts)]
        dead = [n_experts - 2, n_experts - 1] if number == 0 and n_experts > 8 else []
        for expert in dead:
            weights[expert] = 0.0
        whole = sum(weights)
        shares = [weight / whole for weight in weights]
        hot = [expert for expert, share in enumerate(shares) if share * n_experts > 2]
        layers.append(layer_seen(number, shares, used, dead=dead, hot=hot))
    worst = max(layers, key=lambda layer: layer.imbalance)
    return BackendExperts(
        backend=name,
        model=f"{name}.gguf",
        source="observed",
        observe=0.01,
        n_experts=n_experts,
        n_experts_per_token=used,
        requests=212,
        tokens=181_240,
        since_s=T0,
        until_s=T0 + 3.2 * 86_400,
        skipped={"to keep its share of the CPU": 12},
        cpu_s=10.2,
        engine_cpu_s=1000.0,
        layers=layers,
        keys=[
            GroupSeen(name="team-a", requests=150, tokens=120_000, apart=0.061, apart_by_chance=0.014),
            GroupSeen(name="team-b", requests=62, tokens=61_240, apart=0.061, apart_by_chance=0.014),
        ],
        languages=[
            GroupSeen(name="", requests=200, tokens=170_000, apart=0.11, apart_by_chance=0.05),
            GroupSeen(name="de", requests=12, tokens=11_240, apart=None, apart_by_chance=None),
        ],
        imbalance=worst.imbalance,
        worst_layer=worst.layer,
        entropy=sum(layer.entropy for layer in layers) / n_layers,
        dead=sum(len(layer.dead) for layer in layers),
        hot=sum(len(layer.hot) for layer in layers),
        drift=0.041,
        drift_by_chance=0.012,
        alarms=["imbalance 3.10 of layer 7 is above 3"] if n_layers > 8 else [],
        caveats=["Prompts beyond 4,096 tokens are read to there."],
        watched={"imbalance": n_layers > 8, "drift": False},
    )


def seen(*backends: BackendExperts, asked: tuple[str, ...] = ()) -> ExpertsSeen:
    """All of them at one moment."""
    names = sorted({*asked, *(each.backend for each in backends)})
    return ExpertsSeen(version="0.1.0", time_s=T0 + 4 * 86_400, backends=list(backends), asked=names)
