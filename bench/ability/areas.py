"""What published benchmarks ask: area, share had by guessing, tasks; other spellings of models; dates of series."""

from __future__ import annotations

from breakeven.model.quality.posterior import AREAS

FITTED = (*AREAS, "sense")
"""Areas of the fit. sense: what text, in any language, means and how it goes on; part of ability in a language."""

SKIPPED = (
    r"vectara",  # faithfulness of summaries: an area of its own, in which one harness alone has scores
    r"mean of|overall|: LiveBench$|GAIA - |Culturally",  # means of others that are here
    r"auto_round|mlx_lm",  # of quantized files beside their sources
    r"lilmoo",  # two models of 0.6 B
)
"""Rows that are left out."""

BENCHMARKS: tuple[tuple[str, str, float, int], ...] = (
    # pattern of "source: benchmark", area (A+B: half each), chance, tasks
    (r"euroeval: (hellaswag|goldenswag|nor_common)", "sense", 0.25, 2048),
    (r"euroeval: (winogrande|copa)", "sense", 0.5, 1000),
    (r"euroeval: squad", "sense", 0.0, 2048),
    (r"euroeval: ", "knowledge", 0.25, 1500),
    (r"indic_mmlu", "knowledge", 0.25, 14042),
    (r"global_mmlu_lite", "knowledge", 0.25, 400),
    (r"in22", "sense", 0.0, 1024),
    (r"C-Eval|CMMLU", "knowledge", 0.25, 1300),
    (r"bfcl_v4: .*(AST|live)$", "tools", 0.0, 1000),
    (r"bfcl_v4: ", "tools", 0.0, 300),
    (r"hal: .*(tau|gaia|GAIA|Assistant|Mind2Web)", "tools", 0.0, 60),
    (r"hal: ", "code", 0.0, 60),
    (r"openhands_index: .*gaia", "tools", 0.0, 165),
    (r"hf2: (bbh|musr)", "sense", 0.3, 3000),
    (r"hf2: gpqa", "knowledge", 0.25, 1192),
    (r"qwen3tr: bbh", "reasoning+knowledge", 0.25, 5761),
    (r"openhands_index: ", "code+tools", 0.0, 250),
    (r"livebench: .*IF$", "instruction", 0.0, 200),
    (r"livebench: .*Agentic", "code+tools", 0.0, 60),
    (r"livebench: .*Coding$", "code", 0.0, 100),
    (r"livebench: ", "reasoning", 0.0, 150),
    (r"aider|MBPP|EvalPlus|MultiPL", "code", 0.0, 225),
    (r"LiveCodeBench|livecodebenchpro|SciCode", "code", 0.0, 170),
    (r"IFEval|ifeval|IFBench", "instruction", 0.0, 541),
    (r"wildbench", "instruction", 0.0, 1000),
    (r"(mmlu_pro|MMLU-Pro)", "knowledge", 0.1, 12032),
    (r"SimpleQA|TriviaQA", "knowledge", 0.0, 4000),
    (r"SuperGPQA", "knowledge", 0.1, 10000),
    (r"token economy: knowledge", "knowledge", 0.0, 25),
    (r"(mmlu|MMLU)", "knowledge", 0.25, 14042),
    (r"(gpqa|GPQA)", "reasoning", 0.25, 448),
    (r"AIME|aime|hmmt", "reasoning", 0.0, 60),
    (r"math|MATH|GSM8K|Math", "reasoning", 0.0, 1000),
    (r"logic puzzle", "reasoning", 0.0, 40),
    (r"nyt_connections", "reasoning", 0.0, 700),
)

ALIASES: tuple[tuple[str, str], ...] = (
    (r"^DeepSeek-R1 \+ claude|^QwQ-32B \+", ""),
    (r"^DeepSeek[ -]R1 \((May 2025|0528)\)", "deepseek-r1-0528"),
    (r"^DeepSeek R1 \(January", "deepseek-r1"),
    (r"^DeepSeek[ -]V3 \((March 2025|0324)\)|chat-v3-0324", "deepseek-v3-0324"),
    (r"^DeepSeek-V3 \(prev\)", "deepseek-v3"),
    (r"^DeepSeek V3.1 \(Aug", "deepseek-v3.1"),
    (r"^DeepSeek-V3.2-Exp \(Chat", "deepseek-v3.2-exp"),
    (r"^DeepSeek-V3.2-Exp \(Reas", "deepseek-v3.2-exp-thinking"),
    (r"^GPT-OSS-120B High", "gpt-oss-120b-high"),
    (r"^GPT-OSS-120B \(", "gpt-oss-120b"),
    (r"^Qwen3-235B-A22B.*(no think|/no_think)", "qwen3-235b-a22b#plain"),
    (r"^Qwen3-235B-A22B.*thinking\)", "qwen3-235b-a22b#thinking"),
    (r"^Qwen3-32B.*/no_think", "qwen3-32b#plain"),
    (r"^Qwen3-32B.*thinking\)", "qwen3-32b#thinking"),
    (r"^command-a-03-2025-quality", "command-a-03-2025"),
    (r"^(qwen/)?qwen3\.5-flash", "qwen3.5-35b-a3b"),
    (r"^qwen3\.6-flash", "qwen3.6-35b-a3b"),
    (r"(^|/)mistral-small-(instruct-)?2501$", "mistral-small-24b-instruct-2501"),
    (r"(^|/)mistral-small-2503$", "mistral-small-3.1-24b-instruct-2503"),
    (r"(^|/)mistral-small-2506$", "mistral-small-3.2-24b-instruct-2506"),
    (r"mistral-3-large-2512|^mistral-large-3", "mistral-large-3-675b-instruct-2512"),
    (r"^Nemotron-3-Nano$", "nemotron-3-nano-30b-a3b"),
    (r"^(nemotron-3-super|Nemotron-3-Super)$", "nemotron-3-super-120b-a12b"),
    (r"^Qwen3-Coder-480B$", "qwen3-coder-480b-a35b"),
    (r"^Qwen3-Coder-Next$", "qwen3-coder-next-80b-a3b"),
    (r"^Llama-3.1-70B$", "llama-3.1-70b-instruct"),
    (r"^Gemma-3-27B$", "gemma-3-27b-it"),
    (r"^Mistral-7B-v0\.3$", "mistral-7b-instruct-v0.3"),
    (r"meta-llama/Llama-4-Scout-17B-16E$", "llama-4-scout#base"),
    (r"^Llama-4-Scout-Base", "llama-4-scout#base"),
    (r"^Llama-4-Maverick-Base", "llama-4-maverick#base"),
    (r"^IndicTrans2|^nllb", ""),
    (r"^Command A$", "command-a-03-2025"),
    (r"^Command A Reasoning", "command-a-reasoning"),
    (r"^arcee-trinity-large-preview", "trinity-large-preview"),
    (r"^Trinity-Large-Thinking", "trinity-large-thinking"),
    (r"^DeepSeek-V3.2 \(no reas", "deepseek-v3.2#plain"),
)
"""Pattern of a name as a source gives it, and the name that is meant."""

DATES = {
    "llama-2": 2023.5, "llama-3": 2024.3, "llama-3.1": 2024.55, "llama-3.2": 2024.72, "llama-3.3": 2024.92,
    "llama-4": 2025.26, "qwen1.5": 2024.1, "qwen2": 2024.43, "qwen2.5": 2024.7, "qwq": 2025.17, "qwen3": 2025.32,
    "qwen3-next": 2025.7, "qwen3-coder-next": 2026.08, "qwen3-coder": 2025.55, "qwen3.5": 2026.15,
    "qwen3.6": 2026.3, "gemma": 2024.15, "gemma-2": 2024.48, "gemma-3": 2025.2, "gemma-4": 2026.2,
    "recurrentgemma": 2024.3, "mistral": 2024.0, "mixtral": 2024.1, "mistral-nemo": 2024.55, "mistral-large": 2024.88,
    "mistral-small": 2024.9, "ministral": 2024.8, "ministral-3": 2025.92, "mistral-large-3": 2025.92,
    "magistral-small": 2025.5, "phi-1": 2023.7, "phi-2": 2023.95, "phi-3": 2024.35, "phi-3.5": 2024.63,
    "phi-4": 2024.95, "olmo": 2024.1, "olmo-2": 2024.92, "olmo-3": 2025.88, "olmo-3.1": 2025.95, "olmoe": 2024.7,
    "granite-3.0": 2024.8, "granite-3.1": 2024.95, "granite-3.2": 2025.15, "granite-3.3": 2025.3,
    "granite-4.0": 2025.75, "deepseek-llm": 2023.9, "deepseek-moe": 2024.03, "deepseek-v3": 2024.98,
    "deepseek-r1": 2025.06, "deepseek-r1-distill": 2025.06, "deepseek-v3.1": 2025.63, "deepseek-v3.2": 2025.8,
    "deepseek-v4": 2026.31, "falcon": 2023.4, "falcon3": 2024.95, "falcon-mamba": 2024.6, "yi-1.5": 2024.37,
    "yi": 2023.85, "smollm": 2024.55, "smollm2": 2024.83, "smollm3": 2025.52, "aya-expanse": 2024.8, "aya": 2024.4,
    "command-r": 2024.95, "command-a": 2025.2, "minitron": 2024.55, "nemotron-mini": 2024.7, "tinyllama": 2024.0,
    "gpt": 2019.5, "gpt2": 2019.5, "pythia": 2023.1, "internlm": 2024.3, "internlm2": 2024.1, "jamba": 2024.25,
    "dbrx": 2024.23, "lfm2": 2025.53, "command-r7b": 2024.95, "aya-23": 2024.4, "internlm2.5": 2024.5,
    "phi-mini-moe": 2025.4,
    "phi-1.5": 2023.7, "jamba-v0.1": 2024.25, "mistral-nemo-minitron": 2024.65, "trinity-large-preview": 2026.08,
    "lfm2.5": 2026.02, "apertus": 2025.67, "eurollm": 2025.3, "bielik": 2025.4,
    "glm-4.1": 2025.5, "glm-4.5": 2025.55, "glm-4.6": 2025.75, "glm-4.7": 2025.97, "glm-5": 2026.12,
    "glm-5.1": 2026.25, "glm-5.2": 2026.45, "kimi-k2": 2025.53, "kimi-k2.5": 2026.04, "kimi-k2.6": 2026.29,
    "kimi-k2.7": 2026.45, "minimax-m1": 2025.45, "minimax-m2": 2025.8, "minimax-m2.1": 2025.97,
    "minimax-m2.5": 2026.12, "minimax-m2.7": 2026.27, "minimax-m3": 2026.42, "gpt-oss": 2025.6,
    "nemotron-nano": 2025.62, "nemotron-3": 2025.95, "nemotron-cascade-2": 2026.2, "nemotron-super": 2025.21,
    "mimo-v2": 2026.2, "step-3.5": 2026.08, "trinity-large": 2026.08, "qed-nano": 2026.1, "marin": 2025.4,
}  # fmt: skip
"""Year of release by series, where neither name nor catalogue tells; to some weeks."""
