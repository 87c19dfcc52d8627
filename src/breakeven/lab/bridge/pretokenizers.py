"""How llama.cpp cuts a text into words before it merges, by the name in `tokenizer.ggml.pre`, and as tokenizer.json.

Each name stands for regular expressions applied one after the other: what they match and what lies between both become
words of their own. Here is what llama.cpp computes, not what the model's makers published: where the two differ (a
letter that is no ASCII counts as upper and lower case, digits are grouped behind the text before them) the tokens of
the file decide. Source: `llm_tokenizer_bpe` in llama.cpp's src/llama-vocab.cpp and the splitters in src/unicode.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breakeven.errors import NotSupportedError

Json = dict[str, Any]
"""What a JSON file holds, as it was read."""

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LINES = r"[^\n]+|[\n]+"
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS_AND_SPACE}"

# With case: llama.cpp tells it apart in ASCII only.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_UPPER_MARKED, _LOWER_MARKED = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_ANY = r"[\p{L}\p{M}]"

_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Published without the lookahead: the range from U+0800 holds wide spaces too, which llama.cpp reads as plain ones.
_CJK_WIDE_PUBLISHED = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_WIDE = rf"(?:(?!\s){_CJK_WIDE_PUBLISHED[:-1]})+"
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_SPARK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
    r"""|[\r\n]|\s+(?!\S)|\s+"""
)
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
# Published with the ideographic space among the signs, which llama.cpp takes for a space by then.
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
# Groups of three from the right. llama.cpp leaves what stands before a number in one word with its first group.
_GROUPED_DIGITS = r"(?:\A|(?<=\p{N}))\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_CJK}"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut. The first of `names` is the one written; `whole_words`: a word that is a token is not merged.

    `published`: other splits under which tokenizer.json files of these models mean this cut.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    whole_words: bool = False
    published: tuple[tuple[str, ...], ...] = ()


def _cut(names: str, *splits: str, whole_words: bool = False, published: tuple[tuple[str, ...], ...] = ()) -> Cut:
    return Cut(tuple(names.split()), splits, whole_words, published)


CUTS: tuple[Cut, ...] = (
    _cut(
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 "
        "mellum modern-bert exaone4",
        _GPT2,
    ),
    _cut("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGIT, _GPT2),
    _cut(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
        _LLAMA3,
        whole_words=True,
    ),
    _cut("dbrx smaug-bpe chatglm-bpe", _LLAMA3),
    _cut("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN2),
    _cut(
        "qwen35",
        rf"{_CONTRACTIONS}|{_LEAD}{_ANY}+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    _cut("ufakzeka", rf"{_WORD}|\p{{N}}|{_SIGNS_AND_SPACE}"),
    _cut("laguna", _LINES, _QWEN2),
    _cut("minicpm5", r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS_AND_SPACE}", whole_words=True),
    _cut(
        "seed-coder",
        rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    _cut(
        "bailingmoe bailingmoe2 llada-moe",
        rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    _cut(
        "exaone-moe",
        rf"{_CONTRACTIONS}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    _cut(
        "k2-horizon",
        r"(?:'[sS\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
        rf"|{_LEAD}(?:\p{{L}}|\p{{M}}|\u200c|\u200d)+|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACE}",
    ),
    _cut(
        "tekken",
        rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS_WITH_SLASH}",
        whole_words=True,
    ),
    _cut(
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_SIGNS_WITH_SLASH}",
    ),
    _cut(
        "granite-embed-multi-97m",
        rf"{_LEAD}{_UPPER_MARKED}*{_LOWER_MARKED}+{_CONTRACTIONS}?|{_LEAD}{_UPPER_MARKED}+{_LOWER_MARKED}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_SIGNS_WITH_SLASH}",
        whole_words=True,
    ),
    _cut(
        "tiny_aya cohere2moe",
        _GROUPED_DIGITS,
        rf"{_LEAD}{_ANY}*{_ANY}+{_CONTRACTIONS}?|{_LEAD}{_ANY}+{_ANY}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SIGNS_WITH_SLASH}",
    ),
    _cut(
        "youtu",
        _YOUTU_SCRIPTS,
        rf"{_LEAD}{_ANY}*{_ANY}+{_CONTRACTIONS}?|{_LEAD}{_ANY}+{_ANY}*{_CONTRACTIONS}?|\p{{N}}|{_SIGNS_WITH_SLASH}",
        whole_words=True,
    ),
    _cut("afmoe", _GROUPED_DIGITS, _AFMOE_SCRIPTS, _DEEPSEEK),
    _cut("deepseek-v3 hunyuan-dense joyai-llm hy_v4", r"\p{N}{1,3}", _CJK, _DEEPSEEK),
    _cut("spark2_5", r"\p{N}{1,3}", _CJK, _SPARK, _DIGIT),
    _cut(
        "deepseek-llm",
        r"[\r\n]",
        _DEEPSEEK_LETTERS,
        _DEEPSEEK_SIGNS,
        r"\s+$",
        _CJK_WIDE,
        r"\p{N}+",
        published=((r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _CJK_WIDE, _DIGIT),),
    ),
    _cut("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, _DIGIT),
    _cut("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    _cut("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    _cut(
        "jais-2",
        rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
        + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
        + r"\s{1,2}(?!\S)|\s{1}",
    ),
    _cut("bloom poro-chat gpt3-finnish", _BLOOM),
    _cut("viking", _BLOOM, _DIGIT),
    _cut(
        "chameleon",
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        _DIGIT,
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
)
_BY_NAME: Mapping[str, Cut] = {name: cut for cut in CUTS for name in cut.names}

# The same in other words: what tokenizer.json files write, and what llama.cpp makes of it.
_REWORDED = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS),
    ("'(?i:[sdmt]|ll|ve|re)", "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"),
    ("?+", "?"),
    ("++", "+"),
    (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", _UPPER),
    (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", _LOWER),
    (r"\p{N}{1}", r"\p{N}"),
    (r"\d{1,3}(?=(?:\d{3})*\b)", _GROUPED_DIGITS),
    ("\u3000-\u3002", "\u3001\u3002"),
    (_CJK_WIDE_PUBLISHED, _CJK_WIDE),
)


def cut_named(name: str, source: str) -> Cut:
    """The cut that `tokenizer.ggml.pre` names. Raises NotSupportedError, naming those known, for another name."""
    if name not in _BY_NAME:
        raise NotSupportedError(
            f"{source}: its pre-tokenizer {name!r} is not one of those known ({', '.join(sorted(_BY_NAME))}), and "
            "another would make other tokens; export from the directory the file was converted from"
        )
    return _BY_NAME[name]


def as_json(cut: Cut) -> Json:
    """The cut as tokenizer.json's `pre_tokenizer`, then bytes as letters."""
    parts: list[Json] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False} for split in cut.splits
    ]
    parts.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": parts}


def cut_of(pre_tokenizer: object, whole_words: bool, source: str) -> Cut:
    """The cut that a tokenizer.json's `pre_tokenizer` makes, found by its parts.

    Raises NotSupportedError for parts that llama.cpp has no name for.
    """
    if "ByteLevel" not in _kinds(pre_tokenizer):
        raise NotSupportedError(
            f"{source}: its tokens are not bytes written as letters (ByteLevel); it cannot become a GGUF"
        )
    splits = tuple(_splits(pre_tokenizer, source))
    found = [cut for cut in CUTS if splits == tuple(map(_plain, cut.splits)) or splits in cut.published]
    if not found:
        shown = " then ".join(splits) or "nothing"
        raise NotSupportedError(
            f"{source}: llama.cpp has no pre-tokenizer that splits by {shown}; it cannot become a GGUF"
        )
    return next((cut for cut in found if cut.whole_words == whole_words), found[0])


def _kinds(part: object) -> list[object]:
    match part:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [kind for each in parts for kind in _kinds(each)]
        case {"type": kind}:
            return [kind]
    return []


def _plain(split: str) -> str:
    for written, meant in _REWORDED:
        split = split.replace(written, meant)
    return split


def _splits(part: object, source: str) -> list[str]:
    """The regular expressions of a pre-tokenizer, in order and in our words."""
    match part:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [split for each in parts for split in _splits(each, source)]
        case {"type": "Split", "pattern": {"Regex": str(split)}, "behavior": "Isolated", **rest} if not rest.get(
            "invert"
        ):
            return [_plain(split)]
        case {"type": "Split", "pattern": {"Regex": str(split)}, "behavior": "Removed", "invert": True}:
            return [_plain(split)]
        case {"type": "Digits", **rest}:
            return [_DIGIT if rest.get("individual_digits") else r"\p{N}+"]
        case {"type": "ByteLevel", **rest} if not rest.get("add_prefix_space", True):
            return [_GPT2] if rest.get("use_regex", True) else []
    kind = part.get("type") if isinstance(part, dict) else part
    raise NotSupportedError(f"{source}: llama.cpp has nothing like its pre-tokenizer {_said(kind, part)}")


def _said(kind: object, part: object) -> str:
    settings: Sequence[str] = ()
    if isinstance(part, dict):
        settings = [f"{key}={value!r}" for key, value in part.items() if key != "type" and not isinstance(value, list)]
    return f"{kind}({', '.join(settings)})"[:200]
