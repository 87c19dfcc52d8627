"""Ways to store weights in fewer bits, by the names that people publish them under and those that formats have here.

A name is taken apart into the family of methods that lose alike, the method itself, its nominal bits a weight (scales
included, embedding and output head apart) and whether an importance matrix said which weights matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

EXACT = "exact"
"""The family of 16 and 32-bit floats: what everything else is compared with."""

_GGUF: dict[str, float] = {
    **{"IQ1_S": 1.5625, "IQ1_M": 1.75, "IQ1_KT": 1.75},
    **{"IQ2_XXS": 2.0625, "IQ2_KT": 2.125, "IQ2_KS": 2.1875, "IQ2_XS": 2.3125, "IQ2_K": 2.375, "IQ2_S": 2.5625},
    **{"Q2_K": 2.625, "IQ2_KL": 2.6875, "IQ2_M": 2.7, "Q2_K_S": 2.75, "Q2_K_L": 3.2},
    **{"IQ3_XXS": 3.0625, "IQ3_KT": 3.125, "IQ3_KS": 3.1875, "IQ3_XS": 3.3, "IQ3_K": 3.4375, "IQ3_S": 3.4375},
    **{"Q3_K": 3.4375, "Q3_K_S": 3.5, "IQ3_M": 3.66, "Q3_K_M": 3.9, "Q3_K_L": 4.25, "Q3_K_XL": 4.5},
    **{"IQ4_KSS": 4.0, "IQ4_KT": 4.0, "IQ4_KS": 4.25, "IQ4_XS": 4.25, "IQ4_NL": 4.5, "IQ4_K": 4.5},
    **{"Q4_0": 4.5, "Q4_K": 4.5, "Q4_K_S": 4.6, "Q4_K_M": 4.85, "Q4_1": 5.0, "Q4_K_L": 5.0},
    **{"IQ5_KS": 5.25, "IQ5_K": 5.5, "Q5_0": 5.5, "Q5_K": 5.5, "Q5_K_S": 5.55, "Q5_K_M": 5.7, "Q5_K_L": 5.9},
    **{"Q5_1": 6.0, "Q6_0": 6.5, "Q6_K": 6.5625, "IQ6_K": 6.625, "Q6_K_L": 6.75, "Q8_0": 8.5},
}
"""Nominal bits of llama.cpp's types and mixtures, and of ik_llama.cpp's types (IQ?_K, _KS, _KSS, _KL and _KT)."""
_DYNAMIC: dict[str, float] = {
    **{"IQ1_S": 1.8, "IQ1_M": 2.0, "IQ2_XXS": 2.35, "IQ2_M": 2.85, "Q2_K_XL": 3.1, "IQ3_XXS": 3.25, "Q3_K_XL": 4.15},
    **{"Q4_K_XL": 4.95, "Q5_K_XL": 5.75, "Q6_K": 6.6, "Q6_K_XL": 7.2, "Q8_K_XL": 10.0},
}
"""The same of Unsloth's mixtures, whose names begin with UD-."""
STATIC = ("mradermacher", "prithivmlmods", "lmstudio-community")
"""Publishers of GGUF files made without an importance matrix (the same perplexities as files that say so)."""

_GGUF_NAME = re.compile(
    r"(?<![a-z0-9])(ud-)?(iq\d|q\d)_"
    r"(k(?:ss|s|l|t)?(?:_(?:xl|[sml]))?|xxs|xs|s|m|nl|[01])(?![a-z0-9])"
)
_WITHOUT = re.compile(r"none(?! stated)")
_WEIGHED = re.compile(r"(?<![a-z0-9])(ud-|iq\d_)|unsloth")
_FLOATS = re.compile(r"(bf|f|fp|float|bfloat)(16|32)\b")
_BITS = re.compile(r"(\d+(?:\.\d+)?) ?(?:bpw|bit)|\bk(\d)\b")
_INTEGER = re.compile(r"(?:int|gptq|awq|mlx|nf|w|q)[ _-]?q?([2-8])")
_GROUP = re.compile(r"g(?:roup)?[ _-]?(\d+)")
_SYMMETRIC = 16
"""Bits of a scale without a zero point, shared by a group."""


@dataclass(frozen=True, slots=True)
class Method:
    """How weights are stored.

    `family`: methods that lose alike. `kind`: the method. `bits`: nominal, None where the name does not say.
    `importance`: 1 with an importance matrix, 0 without, 0.5 where nobody says.
    """

    family: str
    kind: str
    bits: float | None
    importance: float = 0.5


@lru_cache(maxsize=4096)
def method_of(name: str, calibration: str = "") -> Method:
    """The method of this name, in any case, and of what was said of its calibration.

    A name that is none of those known is of the family `other`, and has the bits it mentions.
    """
    text = name.lower()
    importance = _importance(text, calibration.lower())
    plain = re.sub(r"\([^)]*\)", "", text).strip()
    if _FLOATS.match(plain):
        return Method(EXACT, "16", 16.0)
    if found := _GGUF_NAME.search(plain):
        dynamic, base, rest = found.groups()
        kind = f"{base}_{rest}".upper()
        if dynamic or (kind.endswith("_XL") and "unsloth" in text):
            return Method("ud", f"UD-{kind}", _DYNAMIC.get(kind) or _GGUF.get(kind), importance)
        return Method(_gguf_family(kind), kind, _GGUF.get(kind), importance)
    return _other(plain, calibration.lower())


def _gguf_family(kind: str) -> str:
    """K-quants, the older blocks of 32, tables of values, ik_llama.cpp's tables and its trellis."""
    rest = kind.partition("_")[2]
    if not kind.startswith("IQ"):
        return "k" if rest.startswith("K") else "q"
    return "kt" if rest == "KT" else "ik" if rest.startswith("K") else "iq"


def _importance(text: str, calibration: str) -> float:
    if any(publisher in text for publisher in STATIC) or _WITHOUT.match(calibration):
        return 0.0
    # Unsloth mixes with a matrix, and tables of values are hardly ever made without (llama.cpp refuses the smallest).
    return 1.0 if "imatrix" in calibration + text or _WEIGHED.search(text) else 0.5


def _other(plain: str, calibration: str) -> Method:
    """Formats of GPU engines, MLX and ExLlama."""
    said = _BITS.search(plain)
    bits = float(said[1] or said[2]) if said else None
    if "exl" in plain:
        return Method("exl", "EXL3" if "exl3" in plain else "EXL2", bits)
    if "aqlm" in plain:
        return Method("aqlm", "AQLM", bits or 2.0)
    if "nvfp4" in plain:
        return Method("fp4a4", "NVFP4 W4A4", 4.5) if "w4a4" in plain else Method("fp4", "NVFP4", 4.5)
    if "mxfp4" in plain:
        return Method("fp4", "MXFP4", 4.25)
    if "fp8" in plain:
        return Method("fp8", "MXFP8" if "mxfp8" in plain else "FP8", 8.25 if "mxfp8" in plain else 8.0)
    width = _INTEGER.search(plain)
    whole = float(width[1]) if width else 4.0 if "awq" in plain or "gptq" in plain else None
    if whole is None:
        return Method("other", "other", bits)
    group = _GROUP.search(plain)
    size = int(group[1]) if group else 64 if "mlx" in plain else 128
    if "mlx" in plain:
        return Method("int", "MLX", whole + 2 * _SYMMETRIC / size)
    kind = "AWQ" if "awq" in plain or "awq" in calibration else "GPTQ"
    if kind == "GPTQ" and ("rtn" in plain or "rtn" in calibration or plain.startswith("nf")):
        kind = "RTN"
    return Method("int", kind, whole + _SYMMETRIC / size)
