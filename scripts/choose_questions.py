"""Write `docs/choose-questions.md`: twenty questions that people asked in public, the answer given there, and ours.

    python scripts/choose_questions.py [--out FILE]

Twenty choices, a second or two each on an idle core. Questions and answers are typed in with their addresses; what
stands beside them is what `breakeven choose` says today, also why another model than theirs is its pick.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import breakeven
from breakeven.results.choose import ModelChoice
from breakeven.version import __version__

TARGET = Path(__file__).parent.parent / "docs" / "choose-questions.md"
MOE = "a Mixture-of-Experts model"


@dataclass(frozen=True)
class Question:
    """`asked` and `told`: question and reasoned answer in our words. `theirs`: the catalogue's name of what they name,
    or `MOE` where the answer is a kind. `machine`, `words`: how it is asked here; a minute for the first token
    where nobody there speaks of it."""

    asked: str
    told: str
    address: str
    theirs: str
    machine: str
    words: dict[str, Any] = field(default_factory=dict)


QUESTIONS = (
    Question(
        "12 GB card, 64 GB RAM: which of Gemma 4 and Qwen 3.6?",
        "Gemma 4 12B, measured: Qwen 3.6 comes in nothing that fits 12 GB whole",
        "https://kimono-oyaji.com/en/gemma4-vs-qwen35/",
        "gemma-4-12b", "rtx-3060+ddr4-3200x2:64GB",
    ),
    Question(
        "24 GB card: which of Gemma 4 and Qwen 3.6?",
        "Qwen 3.6 27B, measured: the best balance of quality and speed at Q4_K_M",
        "https://kimono-oyaji.com/en/gemma4-vs-qwen35/",
        "qwen3.6-27b", "rtx-3090",
    ),
    Question(
        "12 GB card: the best overall?",
        "Qwen3 14B in Q4_K_M: the largest dense model that fits with 16k of context, 22 tokens/s",
        "https://bestllmfor.com/best/vram-12gb/",
        "qwen3-14b", "rtx-3060",
    ),
    Question(
        "12 GB card and 32 GB RAM: is there more to have?",
        "Qwen3 30B-A3B in Q4_K_M, its experts partly in RAM, 14 to 18 tokens/s",
        "https://bestllmfor.com/best/vram-12gb/",
        "qwen3-30b-a3b", "rtx-4070+ddr5-5600x2:32GB",
    ),
    Question(
        "24 GB card: the best overall?",
        "Qwen3 32B in Q4_K_M: better than a 70B model in two bits, and room for 16k of context",
        "https://bestllmfor.com/best/vram-24gb/",
        "qwen3-32b", "rtx-4090",
    ),
    Question(
        "24 GB card, for code?",
        "Qwen3-Coder 30B-A3B: fast, and near the best hosted models in HumanEval+",
        "https://bestllmfor.com/best/vram-24gb/",
        "qwen3-coder-30b-a3b", "rtx-4090", {"use": "code"},
    ),
    Question(
        "8 GB card, for chat?",
        "Qwen 3.5 9B: more of MMLU-Pro than others that fit, 35 to 45 tokens/s",
        "https://intelligibberish.com/articles/2026-03-17-best-local-chat-models-2026-vram-tier-comparison",
        "qwen3.5-9b", "rtx-4060",
    ),
    Question(
        "Laptop with 8 GB on the card and 16 GB RAM, as a chatbot for security work?",
        "Qwen3 8B in Q4_K_M: it fits 8 GB well and is balanced in code, reasoning and chat",
        "https://github.com/Stability-AI/generative-models/issues/490",
        "qwen3-8b", "rtx-4070-laptop+ddr5-5600x2:16GB",
    ),
    Question(
        "8 GB RTX 2060 with 48 GB RAM: a dense 27B?",
        "No: dense weights must lie on the card. A model of the 35B-A3B class, its experts in RAM, is for such a box",
        "https://github.com/FlashML-org/FreeToken/issues/179",
        MOE, "rtx-2060-super+ddr4-3200x2:48GB",
    ),
    Question(
        "16 GB RAM and no card?",
        "Phi-4 Mini in Q4_K_M or Llama 3.2 3B: what is larger is too slow to talk to",
        "https://promptquorum.com/local-llms/local-llm-hardware-guide-2026",
        "phi-4-mini", "ddr4-3200x2:16GB:8cores", {"ttft": 60},
    ),
    Question(
        "Strix Halo with 128 GB, for agents?",
        "gpt-oss-120b: its whole context fits, and it writes 48 tokens/s",
        "https://agledger.ai/blog/local-llm-strix-halo-ubuntu-26-04/",
        "gpt-oss-120b", "ryzen-ai-max-395", {"use": "agent"},
    ),
    Question(
        "DGX Spark, for code?",
        "gpt-oss-120b: few active weights suit the slow memory, and it fits in its own four bits",
        "https://corti.com/running-gpt-oss-120b-on-a-single-nvidia-dgx-spark-a-practical-guide/",
        "gpt-oss-120b", "dgx-spark", {"use": "code"},
    ),
    Question(
        "DGX Spark, for code: gpt-oss-120b or a 35B Qwen?",
        "Qwen3.6 35B-A3B: on own tasks it solved all, gpt-oss-120b 56 %",
        "https://sovgrid.org/blog/gpt-oss-120b-on-a-single-dgx-spark/",
        "qwen3.6-35b-a3b", "dgx-spark", {"use": "code"},
    ),
    Question(
        "DGX Spark, for agents: the most capable on one?",
        "Qwen3.5 122B-A10B in NVFP4: ten billion active weights, 51 tokens/s are enough for tools",
        "https://conselara.dev/notes/dgx-spark-model-comparison/",
        "qwen3.5-122b-a10b", "dgx-spark", {"use": "agent"},
    ),
    Question(
        "Raspberry Pi 5 with 8 GB?",
        "Up to 3B: Llama 3.2 3B, Qwen2.5 1.5B or Phi-3.5 Mini; 7B is painful",
        "https://specpicks.com/reviews/local-ai-raspberry-pi-2026-what-runs",
        "llama-3.2-3b", "raspberry-pi-5:8GB", {"min_speed": 4, "ttft": 60},
    ),
    Question(
        "16 GB card, for agents that call tools?",
        "Qwen3 14B: its tool calls are the most reliable within 16 GB",
        "https://github.com/davealtena/homelab/pull/1984",
        "qwen3-14b", "rtx-5060-ti-16gb", {"use": "agent"},
    ),
    Question(
        "RTX 3090, for a coding agent?",
        "Qwen3.8 27B with llama.cpp",
        "https://github.com/atomantic/PortOS/pull/5891",
        "qwen3.8-27b", "rtx-3090", {"use": "agent"},
    ),
    Question(
        "Mac mini M4 with 16 GB?",
        "Qwen3.5 9B: near the best in about 7 GB; up to 13B runs",
        "https://modelfit.io/blog/best-llm-mac-mini-m4-16gb/",
        "qwen3.5-9b", "apple-m4:16GB",
    ),
    Question(
        "Four H100 for many users' questions to their documents?",
        "gpt-oss-120b on all four: a Mixture-of-Experts model is fast, 15 to 20 users",
        "http://www.basebox.io/on-premise/llm-recommendations",
        "gpt-oss-120b", "4xh100-sxm", {"use": "rag", "users": 16},
    ),
    Question(
        "RTX 5090 and much RAM: a model of 100B and more?",
        "Yes, a Mixture-of-Experts model with its experts in RAM, such as Qwen3.5 122B-A10B",
        "https://www.joshua8.ai/200b-parameters-1000-ebay-hardware/",
        "qwen3.5-122b-a10b", "rtx-5090+ddr5-5600x2:128GB",
    ),
)  # fmt: skip
HEAD = """# Twenty questions that people ask

What people ask in public, the reasoned answer that they were given, and what [`breakeven choose`](choose.md)
{version} picks, made by `scripts/choose_questions.py` on {date}. Nothing of the right-hand side is typed in: the pick,
and where it is another model than theirs, what `--explain` says of theirs.

*agrees*: the pick is their model, or of their kind. *equal*: on what is known their model cannot be told from the pick:
measure both. *differs*: the reasons follow. Most answers name the models of their day; they are no truth to be hit, but
where we differ we must be able to say why. Speeds are predictions.

{counts}

| # | question | told there | `choose` | |
|---|---|---|---|---|
"""


def asked_here(question: Question) -> ModelChoice:
    """The choice, with their model explained."""
    explain = None if question.theirs == MOE else question.theirs
    return breakeven.choose(question.machine, **question.words, explain=explain)


def stands(question: Question, choice: ModelChoice) -> str:
    """Whether the pick is theirs."""
    if not choice.rows:
        return "differs"
    pick = choice.rows[0]
    if question.theirs == (MOE if pick.kind == "moe" else "") or pick.model == question.theirs:
        return "agrees"
    return "equal" if question.theirs in choice.equals else "differs"


def pick_text(choice: ModelChoice) -> str:
    """The pick as the table shows it."""
    if not choice.rows:
        return choice.sentence
    row = choice.rows[0]
    return f"{row.model}:{row.format}, {row.tokens_per_s.value:.3g} tokens/s"


def line_of(number: int, question: Question, choice: ModelChoice) -> str:
    """One question's line."""
    command = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in question.words.items())
    asked = f"{question.asked}<br>`--machine {question.machine}{' ' + command if command else ''}`"
    told = f"[{question.told}]({question.address})"
    return f"| {number} | {asked} | {told} | {pick_text(choice)} | {stands(question, choice)} |"


def reasons_of(number: int, question: Question, choice: ModelChoice) -> list[str]:
    """Why the pick is another one."""
    stand = stands(question, choice)
    if stand == "agrees":
        return []
    told = choice.explained
    if told is None:
        return [f"- **{number}**, {question.theirs}: {next(text for text in choice.because if MOE[2:] in text)}."]
    name = told.model if told.format == "any" else f"{told.model} in {told.format}"
    return [f"- **{number}**, {name}: {'; '.join(told.reasons)}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    choices = []
    for question in QUESTIONS:
        choices.append(asked_here(question))
        sys.stderr.write(f"{question.asked}: {stands(question, choices[-1])}\n")
    all_of = list(zip(range(1, len(QUESTIONS) + 1), QUESTIONS, choices, strict=True))
    stand = [stands(question, choice) for _, question, choice in all_of]
    said = {"agrees": "agree", "equal": "are equal", "differs": "differ"}
    counts = ", ".join(f"{stand.count(word)} {text}" for word, text in said.items()) + f", of {len(stand)}."
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [HEAD.format(version=__version__, date=date, counts=counts).rstrip()]
    lines += [line_of(*each) for each in all_of]
    lines += ["", "## Where it is another model", "", *(line for each in all_of for line in reasons_of(*each)), ""]
    asked.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
