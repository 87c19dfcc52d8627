"""Which published names are of one model: release, way of answering, weights, series.

Leaderboards, hubs and people spell a model in many ways. Two scores are of one model when release and mode agree; they
help each other when weights (one pretraining) or series (one generation of a family) do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MODES = ("base", "plain", "thinking", "low", "medium", "high")
"""Ways of answering. base: not tuned to answer. low to high: efforts of a model that thinks by degrees."""
THOUGHT = {"base": 0.0, "plain": 0.0, "low": 0.35, "medium": 0.7, "high": 1.0, "thinking": 1.0}
"""How much a model thinks before it answers, as the fit's feature. A judgement; the fit says what it is worth."""

_OWNER = re.compile(r"^.*/")
_FORMAT = re.compile(r"-(fp8|bf16|nvfp4|mxfp4|int4|int8|awq|gptq|gguf|turbo|hf|tput|qat|q\d_\w+|\dk)(?=-|$)")
_PREFIX = re.compile(r"^(meta-(?=llama)|nvidia-(?=nemotron)|c4ai-|llama-3\.3-(?=nemotron)|ai21-)")
_MODE = {
    "thinking": re.compile(r"-(thinking|think|reasoner|reasoning)(?=-|$)"),
    "plain": re.compile(r"-(no-?thinking|no-?reasoning|instruct|inst|chat|it)(?=-|$)"),
    "base": re.compile(r"-(base|pt)(?=-|$)"),
    "low": re.compile(r"-low$"),
    "medium": re.compile(r"-med(ium)?$"),
    "high": re.compile(r"-high$"),
}
_DATE = re.compile(r"-(2[3-9](0[1-9]|1[0-2])|(0[1-9]|1[0-2])(\d\d|-202\d)|202\d-?\d*-?\d*)(?=-|$)")
_YEAR_MONTH = re.compile(r"-(2[3-9])(0[1-9]|1[0-2])(?=-|$)")
_BARE_BASE = re.compile(
    r"(llama-[23](\.\d)?-\d+b|gemma-\d|recurrentgemma|olmo|apertus|eurollm|mistral-7b|mixtral|qwen1\.5|qwen2|yi-"
    r"|falcon-(7b|40b|mamba)|smollm2?-\d|pythia|gpt2|minitron|flexolmo|moonlight|phi-[12]|tinyllama|internlm2-|jamba-v)"
)
"""Whose name without a word for its stage is that of the base model."""
_THINKS = re.compile(
    r"(qwen3(\.\d+)?-(?!next|coder|vl)|qwq|deepseek-r1|glm-4\.[5-9]|glm-5|minimax-m|kimi-k2\.[5-9]|kimi-k[3-9]"
    r"|magistral|nemotron-3|nemotron-nano|nemotron-cascade|smollm3|step-3|mimo|gpt-oss|hy3|laguna)"
)
"""Which think where nothing else is said."""
_SERIES = re.compile(r"[a-z.]+(-[a-z]+)*?-?v?\d+(\.\d+)?(?![.\dbmtx])")


@dataclass(frozen=True, slots=True)
class Kin:
    """`release`: name without owner, stage, mode and format. `weights`: without date, too. `told`: the name said how
    the model answers; else `mode` is what its family does."""

    release: str
    mode: str
    weights: str
    series: str
    told: bool
    year: float | None
    """Of release, from a year and month in the name."""

    @property
    def key(self) -> str:
        """The model that a score is of."""
        return f"{self.release}#{self.mode}"


@lru_cache(maxsize=4096)
def kin_of(name: str) -> Kin:
    """What `name` names: a hub id, a catalogue's short name, or `NAME#MODE` with a mode of `MODES` or `no-thinking`."""
    text, _, said = name.strip().lower().partition("#")
    text = re.sub(r"(?<=\d)_(?=\d)", ".", _OWNER.sub("", text)).replace(" ", "-").replace("_", "-")
    text = re.sub(r"(?<=\d)p(?=\d)", ".", re.sub(r"[()]", "", text))
    while (shorter := _FORMAT.sub("", _PREFIX.sub("", text))) != text:
        text = shorter
    mode = {"no-thinking": "plain", "med": "medium"}.get(said, said) or None
    for each, words in _MODE.items():
        if words.search(text):
            mode = mode or each
            text = words.sub("", text)
    told = mode is not None
    if mode is None:
        mode = "base" if _BARE_BASE.match(text) else "thinking" if _THINKS.match(text) else "plain"
    if text.startswith("gpt-oss") and mode in ("thinking", "plain"):
        mode = "medium"
    text = re.sub(r"(?<=scout|erick)-17b-\d+e$", "", text)
    weights = _DATE.sub("", text)
    dated = _YEAR_MONTH.search(text)
    year = None if dated is None else 2000 + int(dated[1]) + (int(dated[2]) - 0.5) / 12
    return Kin(text, mode if mode in MODES else "plain", weights, _series(weights), told, year)


def _series(weights: str) -> str:
    if "distill" in weights or weights.startswith("deepseek-r1-qwen"):
        return weights.partition("-distill")[0].removesuffix("-qwen3-8b") + "-distill"
    found = _SERIES.match(weights)
    return found[0] if found else re.split(r"-\d", weights)[0]
