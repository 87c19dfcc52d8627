"""What evidence supports and arithmetic cannot settle, for the studies it concerns. Each piece names its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from breakeven.answer.study.plan import CandidatePlan, StudyPlan
from breakeven.model.architecture import ModelSpec
from breakeven.results.decision import Advice

Specs = Mapping[str, ModelSpec | None]
"""Architectures by candidate name; None where it is not known."""

_CALIBRATED = ("int4", "int8", "nvfp4", "iq", "q2", "q3", "q4")
"""How formats begin that are often made with the help of calibration data."""


def advice_for(plan: StudyPlan, specs: Specs) -> list[Advice]:
    """Everything of `ADVICE` that concerns this study, in order of how much it can cost to ignore it."""
    # What somebody else serves, they adapt, quantize and watch.
    served = (each for each in plan.candidates if not each.is_api)
    moe = [each for each in served if (spec := specs.get(each.name)) is not None and spec.is_moe]
    return [advice for rule in ADVICE if (advice := rule(plan, moe)) is not None]


def _adapters(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    if not moe or not (plan.adapters or plan.fine_tunes_per_year):
        return None
    return Advice(
        topic="adapters",
        text=(
            f"Check that an adapter changes the answers of {_names(moe)} before you trust it. Serving stacks have "
            "loaded adapters for experts without an error and applied none of them (Gemma 4 26B-A4B in vLLM 0.23 to "
            "0.29), refused every adapter of a family (Granite MoE), or put them on attention only; for other models "
            "the same build is right. Compare a few answers with those of merged weights; do it for a dense model too, "
            "where the first report began."
        ),
        source=(
            "github.com/vllm-project/vllm/issues/41754; github.com/unslothai/unsloth-zoo/pull/1267 (vLLM 0.29, both "
            "cases measured); github.com/vllm-project/vllm/pull/46247"
        ),
    )


def _fine_tuning(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    if not moe or not plan.fine_tunes_per_year:
        return None
    return Advice(
        topic="fine-tuning routers",
        text=(
            f"Fine-tuning {_names(moe)} {plan.fine_tunes_per_year:g} times a year is riskier than fine-tuning a dense "
            "model: training instability and uncertain quality after fine-tuning are the known weak points of sparse "
            "models. Keep the router frozen (a target of all-linear trains it as well), hold out a test that stops a "
            "bad run, and plan for more attempts."
        ),
        source=(
            "ST-MoE, arXiv:2202.08906; StableMoE, arXiv:2204.08396 (freezes the router after a first stage); "
            "github.com/AgileRL/AgileRL/pull/630 (all-linear also wraps the router)"
        ),
    )


def _tail(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    spread = [each for each in moe if each.devices > 1]
    if not spread or plan.good_share < 0.95:
        return None
    return Advice(
        topic="tail latency",
        text=(
            f"{plan.good_share:.0%} of requests must be in time, and {_names(spread)} spreads experts over devices, "
            "where the busiest one sets the pace. Repetitive prompts alone, sent on purpose or not, raised the time "
            "to the first token by 20 % to 148 % on eight GPUs. Load it with your own prompts (`breakeven bench "
            "--trace`) before you promise a percentile; leave more headroom than for a dense model."
        ),
        source="RepetitionCurse, Huang et al., Proceedings of Machine Learning Research 306 (2026)",
    )


def _monitoring(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    if not moe:
        return None
    return Advice(
        topic="per-expert monitoring",
        text=(
            f"Watch how evenly the experts of {_names(moe)} are used, and watch it as your traffic changes: trained "
            "models stay imbalanced, and speed, memory and tails follow the imbalance. Engines do not report it "
            "unasked: vLLM's log_balancedness is off by default. `breakeven trace` shows the experts that a text of "
            "yours touches."
        ),
        source=(
            "docs.vllm.ai, vllm.config.parallel.EPLBConfig; Least-Loaded Expert Parallelism, Nguyen et al., "
            "Proceedings of Machine Learning Research 306 (2026)"
        ),
    )


def _quantization(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    small = [each for each in moe if each.format is not None and each.format.lower().startswith(_CALIBRATED)]
    if not small:
        return None
    return Advice(
        topic="quantized experts",
        text=(
            f"Test the quality of the very file of {_names(small)} that you will serve. A quantizer that calibrates on "
            "data leaves experts that the data rarely reaches badly calibrated, down to numerical failure; good "
            "recipes send every calibration token through every expert. Speed and memory above do not depend on it, "
            "answers do."
        ),
        source="docs.vllm.ai/projects/llm-compressor, Adding MoE Calibration Support for a New Model",
    )


def _languages(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    others = [name for name in plan.languages if not name.startswith("en")]
    if not others or not moe:
        return None
    return Advice(
        topic="languages",
        text=(
            f"Evaluate {_names(moe)} in {', '.join(others)} apart from English. Routing depends on the language in the "
            "first and last layers, and quality in a language falls with the distance of its routing from that of "
            "English. Routing of your own mix is one `breakeven trace` away."
        ),
        source="Multilingual Routing in Mixture-of-Experts, arXiv:2510.04694",
    )


def _both(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    if len(plan.parts) < 2:
        return None
    return Advice(
        topic="who decides which request goes where",
        text=(
            "Split by what you can see (the task, the length, the load, who asks) rather than by a trained guess of "
            "how hard a prompt is: on a neutral benchmark such routers scored between 34 and 67 of 100, a plain "
            "nearest-neighbour one 55, and a well-known trained one 48."
        ),
        source="RouterArena, arXiv:2510.00202, leaderboard of October 2025",
    )


def _repeatable(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    return Advice(
        topic="the same answer twice",
        text=(
            "Do not expect the same answer to the same prompt under load, even at temperature 0: kernels add up in an "
            "order that depends on the batch, and an expert choice near a tie turns a rounding difference into another "
            "path. If tests or audits need it, use the engine's batch-invariant mode and measure again: it is slower."
        ),
        source=(
            "Defeating Nondeterminism in LLM Inference, Thinking Machines Lab, September 2025; "
            "docs.vllm.ai/en/stable/features/batch_invariance"
        ),
    )


def _answer_lengths(plan: StudyPlan, moe: list[CandidatePlan]) -> Advice | None:
    if plan.quality.answer_tokens or len({each.model for each in plan.candidates}) < 2:
        return None
    return Advice(
        topic="answer lengths",
        text=(
            "All candidates are charged here for answers of one length, and real ones differ in how much they say: one "
            "that says twice as much costs twice as much. Let each answer a hundred of your prompts and write the mean "
            "lengths under quality.answer_tokens."
        ),
        source="docs/decide.md, quality",
    )


ADVICE: tuple[Callable[[StudyPlan, list[CandidatePlan]], Advice | None], ...] = (
    _tail,
    _adapters,
    _fine_tuning,
    _quantization,
    _languages,
    _both,
    _monitoring,
    _answer_lengths,
    _repeatable,
)


def _names(candidates: list[CandidatePlan]) -> str:
    names = [each.name for each in candidates]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
