"""Evaluations and proofs made up for testing how they are shown; losses by language are as a small model's were."""

from __future__ import annotations

import msgspec
from report_fixtures import HOSTILE

from breakeven.results.lab import (
    Artefact,
    Evaluated,
    Evaluation,
    ExpertFinding,
    ExpertLayer,
    ExpertPair,
    Experts,
    ExpertScores,
    LabCheck,
    LabSpeed,
    Origin,
    Proof,
    ScoredLayer,
    Slice,
    Substituted,
    TaskScore,
    Training,
    Twin,
    WatchedText,
    WithoutExpert,
)
from breakeven.stats.estimate import Estimate, measured

SOURCE_BITS = {"en": 0.878, "de": 1.682, "fr": 1.278, "ja": 1.638, "es": 1.31, "ru": 1.52}
LOSSES: dict[str, tuple[float, float, dict[str, float], float, float]] = {
    "Q8_0": (144.8, 8.51, {"en": 0.004, "de": 0.009, "fr": 0.007}, 0.98, 0.003),
    "Q4_K (5.94)": (101.7, 5.94, {"en": 0.036, "de": 0.097, "fr": 0.055}, 0.92, 0.006),
    "Q4_0": (91.7, 5.35, {"en": 0.163, "de": 0.357, "fr": 0.281}, 0.78, 0.004),
    "Q2_K (4.98)": (85.5, 4.98, {"en": 0.359, "de": 0.784, "fr": 0.791}, 0.66, 0.007),
    "Q2_0": (61.9, 3.57, {"en": 12.4, "de": 13.4, "fr": 13.3}, 0.004, 0.007),
}


def span(value: float, share: float = 0.08, n: int = 24) -> Estimate:
    return measured(value, value * (1 - share), value * (1 + share), n)


def piece(language: str, kl: float | None, top1: float = 0.9, floor: float = 0.004, domain: str = "all") -> Slice:
    bits = SOURCE_BITS.get(language, 1.4)
    if kl is None:
        return Slice(
            language=language,
            domain=domain,
            bytes=20_000,
            documents=1,
            blocks=11,
            tokens=6000,
            bits_per_byte=span(bits),
        )
    lost = kl * 0.42
    return Slice(
        language=language,
        domain=domain,
        bytes=20_000,
        documents=1,
        blocks=11,
        tokens=6000,
        bits_per_byte=span(bits + lost),
        source_bits_per_byte=span(bits),
        difference=span(lost, 0.1),
        kl=span(kl, 0.1),
        kl_p99=span(kl * 12, 0.2),
        kl_floor=span(floor, 0.1),
        top1=measured(top1, top1 * 0.98, min(1.0, top1 * 1.02), 24),
    )


def evaluated(name: str, slices: list[Slice], megabytes: float, bits: float) -> Evaluated:
    return Evaluated(
        name=name,
        path=f"made/smollm2-{name.split(' ')[0]}.gguf",
        sha256="ab" * 32,
        format=name.split(" ")[0],
        bits_per_weight=bits,
        experts_per_token=None,
        slices=slices,
        bytes=int(megabytes * 1e6),
    )


def evaluation(languages: tuple[str, ...] = ("en", "de", "fr")) -> Evaluation:
    """Five files against their F32 source."""
    models = [evaluated("F32", [piece(language, None) for language in languages], 538.1, 32.0)]
    for name, (megabytes, bits, kl, top1, floor) in LOSSES.items():
        slices = [piece(language, kl.get(language, kl["fr"]), top1, floor) for language in languages]
        models.append(evaluated(name, slices, megabytes, bits))
    return Evaluation(
        command="breakeven evaluate made/smollm2-F32.gguf made/smollm2-Q8_0.gguf --text guide --against F32",
        text="guide",
        against="F32",
        models=models,
        seconds=171.3,
    )


def alone() -> Evaluation:
    """One model, one file of text, tasks beside it; no source."""
    slices = [piece("all", None)]
    tasks = [
        TaskScore(name="capitals", language="all", tasks=40, solved=measured(0.62, 0.46, 0.76, 40)),
        TaskScore(name="sums", language="de", tasks=20, solved=measured(0.1, 0.02, 0.3, 20), answer_tokens=span(14.0)),
    ]
    model = msgspec.structs.replace(evaluated("SmolLM2", slices, 91.7, 5.35), tasks=tasks)
    return Evaluation(
        command="breakeven evaluate SmolLM2.gguf --text a.txt", text="a.txt", against=None, models=[model], seconds=12.0
    )


def tasks_only() -> Evaluation:
    """A server: no text, tasks alone."""
    told = alone()
    model = msgspec.structs.replace(
        told.models[0], slices=[], bytes=None, sha256=None, bits_per_weight=None, format=None, path="http://h:1/v1#m"
    )
    return msgspec.structs.replace(told, text=None, models=[model], caveats=["no prompt log-probabilities there"])


def many() -> Evaluation:
    """Seventeen models and six languages of two domains: more than a screen holds."""
    told, models = evaluation(), []
    for index in range(17):
        slices = [
            piece(language, 0.01 * (index + 1) * (2 if language == "de" else 1), domain=domain)
            for language in SOURCE_BITS
            for domain in ("manual", "news")
        ]
        models.append(evaluated(f"SmolLM2-135M-Instruct-variant-{index}", slices, 90.0 + index, 5.0))
    return msgspec.structs.replace(told, models=[told.models[0], *models])


def hostile() -> Evaluation:
    """Names and words of others that are markup."""
    told = evaluation()
    models = [msgspec.structs.replace(each, name=HOSTILE if each.name == "Q4_0" else each.name) for each in told.models]
    return msgspec.structs.replace(
        told, models=models, command=HOSTILE, text=HOSTILE, caveats=[HOSTILE, "\x1b[2Jcleared\x00"]
    )


def proof() -> Proof:
    """A file of two bits a weight that holds five, and what that cost."""
    megabytes, bits, kl, top1, floor = LOSSES["Q2_K (4.98)"]
    return Proof(
        verb="quantize",
        command="breakeven quantize smollm2-F32.gguf --to Q2_K --text guide --allow-fallback --out made",
        source=Origin(path="smollm2-F32.gguf", sha256="cd" * 32, bytes=538_100_000, format="F32", bits_per_weight=32.0),
        artefact=Artefact(
            path="made/smollm2-Q2_K.gguf",
            sha256="ef" * 32,
            bytes=int(megabytes * 1e6),
            format="Q2_K",
            bits_per_weight=bits,
            substituted=[
                Substituted(
                    tensors=[f"blk.{layer}.ffn_up.weight" for layer in range(180)],
                    asked="Q2_K",
                    made="IQ4_NL",
                    why="576 columns, which 256 does not divide",
                )
            ],
        ),
        slices=[piece(language, kl[language], top1, floor) for language in kl],
        checks=[LabCheck(name="loads and predicts", engine="llama.cpp", passed=True, detail="64 tokens, all finite")],
        seconds=43.0,
    )


def other_proof() -> Proof:
    """Another file of the same source."""
    megabytes, bits, kl, top1, floor = LOSSES["Q8_0"]
    told = proof()
    made = msgspec.structs.replace(
        told.artefact,
        path="made/smollm2-Q8_0.gguf",
        sha256="12" * 32,
        bytes=int(megabytes * 1e6),
        format="Q8_0",
        bits_per_weight=bits,
        substituted=[],
    )
    return msgspec.structs.replace(
        told, artefact=made, slices=[piece(language, kl[language], top1, floor) for language in kl]
    )


LAYERS, EXPERTS = 6, 8


def pruned() -> Proof:
    """Two of eight experts left out of every layer, with both speeds."""
    layers = [
        ExpertLayer(
            layer=layer,
            tokens=[100 + 40 * ((expert * 7 + layer) % EXPERTS) if expert != 3 else 0 for expert in range(EXPERTS)],
            score=[0.1 * (expert + 1) for expert in range(EXPERTS)],
            dead=[3],
        )
        for layer in range(LAYERS)
    ]
    told = other_proof()
    return msgspec.structs.replace(
        told,
        verb="experts prune",
        command="breakeven experts prune moe.gguf --keep 6 --scores score.json --out pruned.gguf",
        experts=Experts(layers=layers, n_experts_per_token=2, kept=[[0, 1, 4, 5, 6, 7]] * LAYERS),
        speeds=[
            LabSpeed(of="source", engine="llama.cpp", what="answer", tokens_per_s=span(31.2)),
            LabSpeed(of="artefact", engine="llama.cpp", what="answer", tokens_per_s=span(38.9)),
        ],
    )


def trained() -> Proof:
    """Tuned on German: better there, no different in English, worse in French."""
    told = other_proof()
    losses = [[float(step), 1.4 + 1.2 / (1 + step / 20) + 0.05 * (step % 3)] for step in range(1, 301)]
    by = {"de": (-0.305, -0.36, -0.25), "en": (0.004, -0.006, 0.014), "fr": (0.052, 0.031, 0.073)}
    slices = [
        msgspec.structs.replace(each, difference=measured(*by[each.language], 11), top1=measured(0.04, 0.03, 0.05, 11))
        for each in told.slices
    ]
    return msgspec.structs.replace(
        told,
        verb="tune",
        command="breakeven tune smollm2.gguf --text text/de --steps 300 --out tuned",
        slices=slices,
        training=Training(
            tokens=614_400,
            seconds=171.0,
            seed=0,
            flops=4.9e14,
            losses=losses,
            chosen=[[0.0, 2.61], [150.0, 1.71], [300.0, 1.62]],
            best_step=300,
        ),
    )


def distilled() -> Proof:
    """A student, ahead of its twin after as many tokens and not surely after as long."""
    told = trained()
    twin = Twin(equal_tokens=measured(0.115, 0.074, 0.155, 23), equal_seconds=measured(0.02, -0.03, 0.07, 23))
    return msgspec.structs.replace(told, verb="distill", twin=twin)


def retrained() -> Proof:
    """Experts 3 and 7 of every layer trained on German."""
    told, source = trained(), pruned().experts
    assert source is not None

    def layers(share: float) -> list[ExpertLayer]:
        rest = (1 - 2 * share) / (EXPERTS - 2)
        row = [share if expert in (3, 7) else rest for expert in range(EXPERTS)]
        return [msgspec.structs.replace(each, by_language={"de": row, "en": row}, dead=[]) for each in source.layers]

    return msgspec.structs.replace(
        told,
        verb="experts retrain",
        experts=Experts(layers=layers(0.06), n_experts_per_token=2),
        experts_after=Experts(layers=layers(0.15), n_experts_per_token=2, retrained=[[3, 7]] * LAYERS),
    )


def checked_only() -> Proof:
    """No text was given: nothing is known of quality."""
    return msgspec.structs.replace(pruned(), slices=[], experts=None, speeds=[], seconds=None)


def same_function() -> Proof:
    """What a split costs: nothing beyond rounding."""
    return msgspec.structs.replace(other_proof(), verb="experts split", slices=[piece("en", 0.0028, 0.98, 0.0037)])


def scores(layers: int = LAYERS) -> ExpertScores:
    """Loads and worth of eight experts in every layer, two languages."""
    made = [
        ScoredLayer(
            layer=layer,
            tokens=[100 + 40 * ((expert * 7 + layer) % EXPERTS) for expert in range(EXPERTS)],
            max_over_mean=1.6 + layer / 10,
            entropy=0.93,
            dead=[],
            by_language={
                "en": [(1 + (expert + layer) % 3) / 16 for expert in range(EXPERTS)],
                "de": [(1 + (expert + layer) % 4) / 20 for expert in range(EXPERTS)],
            },
            pairs=[ExpertPair(experts=[1, 4], tokens=90, over_chance=2.3, languages=["de"])],
            score=[0.1 * (expert + 1) for expert in range(EXPERTS)],
            without=[
                WithoutExpert(
                    expert=2,
                    nats_per_token={"en": span(0.01), "de": span(0.03)},
                    bits_per_byte={"en": span(0.004), "de": span(0.011 + layer / 1000)},
                )
            ],
        )
        for layer in range(layers)
    ]
    return ExpertScores(
        command="breakeven experts score moe.gguf --text guide",
        model=Origin(path="made/moe.gguf", sha256="ab" * 32),
        format="gguf",
        architecture="llama",
        text="guide",
        languages=[
            WatchedText(language=name, bytes=20_000, blocks=11, tokens=6000, sampling_error=0.004)
            for name in ("en", "de")
        ],
        n_experts=EXPERTS,
        n_experts_per_token=2,
        layers=made,
        findings=[
            ExpertFinding(
                layer=3,
                expert=7,
                kind="one language",
                language="de",
                text="layer 3, expert 7: 31 % of German, 2 % of English",
            )
        ],
        tried=layers,
        seconds=61.0,
    )
