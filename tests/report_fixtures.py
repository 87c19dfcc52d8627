"""Comparisons made up for testing how results are shown. No number in this file was measured."""

from __future__ import annotations

from breakeven.hardware.machine import Gpu, MachineSpec
from breakeven.results.comparison import (
    ComparedPoint,
    Comparison,
    ComparisonVerdict,
    ModelResult,
    NodeProfile,
    NodeTime,
    NoiseRecord,
    Pair,
    Routing,
)
from breakeven.stats.estimate import Estimate

HOSTILE = "<script>alert('x')</script> & [red]\"name\""
STREAMS = (1, 2, 4, 8)


def estimate(value: float, half: float = 0.01, n: int = 12) -> Estimate:
    return Estimate(value, value * (1 - half), value * (1 + half), n, "measured")


def point(model: str, streams: int, speed: float) -> ComparedPoint:
    return ComparedPoint(
        model=model,
        streams=streams,
        prompt_tokens=128,
        output_tokens=64,
        decode_tokens_per_s=estimate(speed * streams**0.4),
        prefill_tokens_per_s=estimate(speed * 4.2, 0.02),
        ttft_s=estimate(128 / (speed * 4.2) * streams, 0.03),
        itl_s=estimate(streams**0.6 / speed, 0.01),
    )


def pairs(a: str, b: str, ratio: float, half: float = 0.012) -> list[Pair]:
    made = []
    for metric, more in (
        ("decode_tokens_per_s", True),
        ("prefill_tokens_per_s", True),
        ("ttft_s", False),
        ("itl_s", False),
    ):
        for streams in STREAMS:
            value = ratio * (1 - 0.06 * STREAMS.index(streams))
            value = value if more else 1 / value
            low, high = value * (1 - half), value * (1 + half)
            winner = None if low <= 1 <= high else a if (low > 1) == more else b
            made.append(
                Pair(
                    a=a,
                    b=b,
                    metric=metric,
                    streams=streams,
                    ratio=Estimate(value, low, high, 12, "measured"),
                    winner=winner,
                )
            )
    return made


def moe(name: str = "olmoe-1b-7b") -> ModelResult:
    return ModelResult(
        name=name,
        source="catalogue",
        synthetic=True,
        format="Q4_0",
        moe=True,
        total_params=6_919_096_320,
        active_params=1_281_949_696,
        file_bytes=3_930_000_000,
        peak_rss_bytes=4_120_000_000,
        load_s=2.41,
        decode_bytes_per_token=688_000_000,
        settings={"engine": "llama.cpp", "build": "b11549", "threads": "2", "context": "4096", "flash_attention": "on"},
    )


def dense(name: str = "llama-3.2-1b") -> ModelResult:
    return ModelResult(
        name=name,
        source="catalogue",
        synthetic=True,
        format="Q4_0",
        moe=False,
        total_params=1_235_814_400,
        active_params=1_235_814_400,
        file_bytes=770_000_000,
        peak_rss_bytes=905_000_000,
        load_s=0.62,
        decode_bytes_per_token=763_000_000,
        settings={"engine": "llama.cpp", "build": "b11549", "threads": "2", "context": "4096", "flash_attention": "on"},
    )


MACHINE = MachineSpec(
    cpu="Example CPU 3000 @ 2.50GHz",
    physical_cores=1,
    logical_cores=2,
    instruction_sets=["avx2", "fma", "f16c"],
    cache_bytes={"L1d": 32768, "L2": 1048576, "L3": 37748736},
    memory_bytes=16_000_000_000,
    available_memory_bytes=13_500_000_000,
    os="Linux 6.1",
    virtualised="kvm",
    gpus=[Gpu(name="Example GPU", memory_bytes=24_000_000_000, driver="600.1")],
)

NOISE = NoiseRecord(
    blocks=48,
    repeated=2,
    flagged=1,
    other_cpu_share=0.034,
    steal_share=0.004,
    swap_bytes=0,
    clock_mhz_low=2480.0,
    clock_mhz_high=2500.0,
    temperature_c_high=None,
    reasons=["block 17 was repeated: another process used 21 % of the cores"],
)


def profile(model: str, phase: str, routed: bool) -> NodeProfile:
    scale = 0.03 if phase == "decode" else 0.9
    kinds = {"attention": 0.22, "head": 0.16, "rest": 0.06}
    kinds |= {"router": 0.04, "expert products": 0.47, "combination": 0.05} if routed else {"dense feed-forward": 0.56}
    return NodeProfile(
        model=model,
        phase=phase,
        tokens=64 if phase == "decode" else 128,
        nodes=[NodeTime(kind, share * scale) for kind, share in kinds.items()],
        router_share_of_moe_block=0.071 if routed else None,
        observing_overhead=0.16,
    )


def routing(model: str, layers: int = 16, experts: int = 64, top_k: int = 8) -> Routing:
    rows = []
    for layer in range(layers):
        raw = [1 + 0.9 * ((expert * 37 + layer * 11) % 29) / 29 for expert in range(experts)]
        rows.append([top_k * share / sum(raw) for share in raw])
    return Routing(
        model=model,
        layers=list(range(layers)),
        n_experts=experts,
        n_experts_per_token=top_k,
        tokens=512,
        frequencies=rows,
    )


def comparison(models: list[ModelResult], speeds: list[float], **changes: object) -> Comparison:
    found = []
    for index, a in enumerate(models):
        for other in range(index + 1, len(models)):
            found += pairs(a.name, models[other].name, speeds[index] / speeds[other])
    fields: dict[str, object] = {
        "breakeven_version": "0.1.0",
        "started_at": "2026-01-02T03:04:05Z",
        "measured_s": 171.3,
        "stopped_because": "precision",
        "precision": 0.02,
        "seed": 7,
        "command": "breakeven compare " + " ".join(model.name for model in models),
        "machine": MACHINE,
        "models": models,
        "points": [
            point(model.name, streams, speed)
            for model, speed in zip(models, speeds, strict=True)
            for streams in STREAMS
        ],
        "pairs": found,
        "noise": NOISE,
        "verdict": ComparisonVerdict(
            headline=f"Run {models[-1].name} here: it decodes 6 % faster at one stream in a fifth of the memory.",
            winner=models[-1].name,
            reasons=[
                "decode reads 688 MB a token against 763 MB",
                "prefill runs at 66 % because each expert's products are thin",
            ],
            memory=["olmoe-1b-7b needs 4.12 GB at its peak, llama-3.2-1b 905 MB"],
            would_change=["a prompt under 16 tokens", "twice the memory bandwidth"],
        ),
        "profiles": [
            profile(model.name, phase, bool(model.moe)) for model in models[:2] for phase in ("decode", "prefill")
        ],
        "routings": [routing(model.name) for model in models if model.moe],
        "caveats": [],
    }
    return Comparison(**(fields | changes))  # type: ignore[arg-type]


def two_models() -> Comparison:
    return comparison([moe(), dense()], [31.5, 33.4])


def three_models() -> Comparison:
    return comparison([moe(), dense(), dense("qwen2.5-1.5b")], [31.5, 33.4, 27.0])


def same_twice() -> Comparison:
    """An A/A run: the intervals straddle 1 and nobody wins."""
    twins = [dense("llama-3.2-1b #1"), dense("llama-3.2-1b #2")]
    made = comparison(twins, [33.4, 33.4])
    level = [
        Pair(
            a=p.a,
            b=p.b,
            metric=p.metric,
            streams=p.streams,
            ratio=Estimate(1.002, 0.991, 1.013, 12, "measured"),
            winner=None,
        )
        for p in made.pairs
    ]
    return comparison(
        twins,
        [33.4, 33.4],
        pairs=level,
        verdict=ComparisonVerdict(
            headline="No difference found: the same model ran twice.",
            winner=None,
            reasons=["both are the same file"],
            memory=[],
            would_change=[],
        ),
    )


def urls_only() -> Comparison:
    """Two servers behind URLs: no size, no memory, no prefill rate; one block, so no interval."""
    models = [
        ModelResult(
            name=name,
            source=f"http://127.0.0.1:8000/v1#{name}",
            synthetic=False,
            format=None,
            moe=None,
            total_params=None,
            active_params=None,
            file_bytes=None,
            peak_rss_bytes=None,
            load_s=None,
            decode_bytes_per_token=None,
        )
        for name in ("served-a", "served-b")
    ]
    points = [
        ComparedPoint(
            model=model.name,
            streams=streams,
            prompt_tokens=128,
            output_tokens=64,
            decode_tokens_per_s=Estimate(40.0 * streams, None, None, 1, "measured"),
            prefill_tokens_per_s=None,
            ttft_s=None,
            itl_s=None,
        )
        for model in models
        for streams in (1, 2)
    ]
    ratios = [
        Pair(
            a="served-a",
            b="served-b",
            metric="decode_tokens_per_s",
            streams=streams,
            ratio=Estimate(1.0, None, None, 1, "measured"),
            winner=None,
        )
        for streams in (1, 2)
    ]
    noise = NoiseRecord(
        blocks=2,
        repeated=0,
        flagged=0,
        other_cpu_share=None,
        steal_share=None,
        swap_bytes=None,
        clock_mhz_low=None,
        clock_mhz_high=None,
        temperature_c_high=None,
    )
    machine = MachineSpec(
        cpu="Example CPU",
        physical_cores=None,
        logical_cores=2,
        instruction_sets=[],
        cache_bytes={},
        memory_bytes=16_000_000_000,
        available_memory_bytes=13_000_000_000,
        os="Linux 6.1",
        virtualised=None,
        gpus=[],
    )
    verdict = ComparisonVerdict(
        headline="No difference found.", winner=None, reasons=[], memory=[], would_change=["a longer budget"]
    )
    return comparison(
        models,
        [40.0, 40.0],
        points=points,
        pairs=ratios,
        noise=noise,
        machine=machine,
        verdict=verdict,
        profiles=[],
        routings=[],
        stopped_because="budget",
    )


def hostile() -> Comparison:
    """Every text a person can set holds markup for HTML, for the terminal and for SVG."""
    return comparison(
        [moe(HOSTILE), dense()],
        [31.5, 33.4],
        command=f"breakeven compare {HOSTILE!r}",
        verdict=ComparisonVerdict(
            headline=HOSTILE, winner=HOSTILE, reasons=[HOSTILE], memory=[HOSTILE], would_change=[HOSTILE]
        ),
        caveats=[HOSTILE],
    )
