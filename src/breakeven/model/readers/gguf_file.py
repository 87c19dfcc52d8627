"""GGUF files as people have them: split into parts, under any name, and of kinds that are no language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import StoredTensor
from breakeven.model.layouts.classes import BY_DIFFUSION
from breakeven.model.readers.gguf_header import GgufHeader, read_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?i:gguf))?$")
_LABEL = re.compile(
    r"(?:^|(?<=[-._ ]))(?:UD-)?(?:I?Q\d(?:_\d|_K)?(?:_[A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32)$",
    re.IGNORECASE,
)
_BITS = re.compile(r"-(?P<bits>\d+\.\d\d)bpw$")
"""What `breakeven quantize` adds to a format's name where the file holds more bits a weight than it says."""
_FILE_TYPES = (
    "0 F32,1 F16,2 Q4_0,3 Q4_1,7 Q8_0,8 Q5_0,9 Q5_1,10 Q2_K,11 Q3_K_S,12 Q3_K_M,13 Q3_K_L,14 Q4_K_S,15 Q4_K_M,"
    "16 Q5_K_S,17 Q5_K_M,18 Q6_K,19 IQ2_XXS,20 IQ2_XS,21 Q2_K_S,22 IQ3_XS,23 IQ3_XXS,24 IQ1_S,25 IQ4_NL,26 IQ3_S,"
    "27 IQ3_M,28 IQ2_S,29 IQ2_M,30 IQ4_XS,31 IQ1_M,32 BF16,36 TQ1_0,37 TQ2_0,38 MXFP4,39 NVFP4,40 Q1_0,41 Q2_0"
)
FILE_TYPES = {int(code): name for code, name in (each.split() for each in _FILE_TYPES.split(","))}
"""What `general.file_type` stands for (llama.cpp's `llama_ftype`)."""

_GIVE = "give the language model's file"
_OTHER_KINDS: dict[str, str] = {
    "clip": f"this is a vision or audio projector (mmproj), not a language model; {_GIVE}",
    "controlvector": f"this is a control vector, not a model; {_GIVE}",
    "imatrix": f"this is an importance matrix for quantizing, not a model; {_GIVE}",
    **dict.fromkeys(("eagle3", "gemma4-assistant"), f"this is a draft head for speculative decoding; {_GIVE}"),
    "dflash": f"this is a draft model for speculative decoding; {_GIVE}",
    **dict.fromkeys(
        ("t5", "t5encoder"),
        "this is an encoder-decoder model (T5), which is not compared here; give a decoder-only one",
    ),
    **dict.fromkeys(
        ("flux", "sd1", "sd2", "sd3", "sdxl", "wan", "qwen_image", "ltxv", "hidream", "hyvid", "cosmos", "lumina2"),
        f"this model makes images or video, not text; {_GIVE}",
    ),
    **dict.fromkeys(
        ("whisper", "parakeet", "canary", "voxtral-encoder"), f"this model turns speech into text; {_GIVE}"
    ),
    **dict.fromkeys(
        (
            "wavtokenizer-dec",
            "kokoro",
            "outetts",
            "parler-tts",
            "dia",
            "orpheus",
            "snac",
            "csm",
            "qwen3tts",
            "pockettts",
        ),
        f"this is a part of a speech synthesiser, not a language model; {_GIVE}",
    ),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), f"{BY_DIFFUSION}; {_GIVE}"),
}
_EMBEDDERS = re.compile(r"(.*-)?bert(-.*)?$|eurobert$|gemma-embedding\d*$|llama-embed$|.*-bert-.*")


def first_part(path: Path) -> Path:
    """The part of a split file that engines are given; `path` itself when it is whole."""
    found = _PART.match(path.name)
    return path if found is None else _sibling(path, found, 1)


def _sibling(path: Path, found: re.Match[str], number: int) -> Path:
    return path.with_name(f"{found['stem']}-{number:05d}-of-{found['count']}{found['suffix'] or ''}")


def parts(path: Path) -> list[GgufHeader]:
    """The headers of all parts of a model, the first one first; of the file itself when it is whole.

    Raises UserError for a part that is missing or not the one its name says.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [header]
    number = header.metadata.get("split.no", 0)
    found = _PART.match(path.name)
    if found is None or int(found["count"]) != count:
        raise UserError(
            f"{path}: part {number + 1 if isinstance(number, int) else '?'} of {count} of a split file; "
            f"give all parts names such as model-00001-of-{count:05d}.gguf, beside each other"
        )
    paths = [_sibling(path, found, i + 1) for i in range(count)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path}: one of {count} parts, but {missing[0]}{others} is missing; fetch it into the folder")
    headers = [header if part == path else read_header(part) for part in paths]
    for i, each in enumerate(headers):
        if each.metadata.get("split.no") != i or each.metadata.get("split.count") != count:
            raise UserError(
                f"{each.path}: is not part {i + 1} of {count} of this model, as its name says; fetch it again"
            )
    total, held = headers[0].metadata.get("split.tensors.count"), sum(len(each.tensors) for each in headers)
    if isinstance(total, int) and total != held:
        raise UserError(f"{path}: the parts hold {held:,} tensors, {total:,} were announced; fetch them again")
    return headers


def rows(header: GgufHeader) -> list[StoredTensor]:
    """The file's tensors; bytes of an unknown type are what lies between its offset and the next."""
    ends = {}
    if any(tensor.n_bytes is None for tensor in header.tensors):
        offsets = sorted({tensor.offset_bytes for tensor in header.tensors})
        ends = dict(pairwise([*offsets, header.file_bytes - header.data_offset_bytes]))
    return [
        StoredTensor(
            t.name, t.shape, t.type_name, ends[t.offset_bytes] - t.offset_bytes if t.n_bytes is None else t.n_bytes
        )
        for t in header.tensors
    ]


def _stem(path: Path) -> str:
    found = _PART.match(path.name)
    return found["stem"] if found else re.sub(r"(\.bin)?(\.gguf)?$", "", path.name, count=1, flags=re.IGNORECASE)


def model_name(header: GgufHeader) -> str:
    """What to call the model: the file's name without its suffix and part."""
    stem = _stem(header.path)
    said = header.metadata.get("general.name")
    # Ollama names a file by its digest.
    return str(said) if said and re.match(r"sha256[-:]", stem) else stem


def bare_name(header: GgufHeader) -> str:
    """`model_name` without the word for its mixture of types at the end."""
    stem = model_name(header)
    return _LABEL.sub("", _BITS.sub("", stem)).rstrip("-._ ") or stem


def label(header: GgufHeader, rows: Sequence[StoredTensor]) -> str:
    """The file's own word for its mixture of types: in its name, else in its header, else what most bytes are."""
    stem = _stem(header.path)
    made = _BITS.search(stem)
    if (said := _LABEL.search(_BITS.sub("", stem))) is not None:
        return said[0].upper() + (f" ({made['bits']})" if made else "")
    code = header.metadata.get("general.file_type")
    if isinstance(code, int) and code & 0x3FF in FILE_TYPES:
        return FILE_TYPES[code & 0x3FF]
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.type_name] = sizes.get(row.type_name, 0) + row.n_bytes
    return max(sizes, key=lambda kind: sizes[kind], default="none")


def refuse_others(header: GgufHeader) -> None:
    """Raise NotSupportedError for a GGUF file that is no language model, saying what it is."""
    kind, architecture = header.metadata.get("general.type"), header.metadata.get("general.architecture")
    told = _OTHER_KINDS.get(str(architecture)) or (_OTHER_KINDS["clip"] if kind == "mmproj" else None)
    if kind == "adapter" or "adapter.type" in header.metadata:
        told = "this is a LoRA adapter, not a model; give the file of the model it changes"
    elif kind == "imatrix" or "imatrix.chunk_count" in header.metadata:
        told = _OTHER_KINDS["imatrix"]
    elif isinstance(architecture, str) and _EMBEDDERS.match(architecture):
        told = f"this is an embedding model ({architecture}), which writes no text; give a language model's file"
    elif not header.tensors and "tokenizer.ggml.model" in header.metadata:
        told = f"this file holds a vocabulary and no weights; {_GIVE}"
    if told is not None:
        raise NotSupportedError(f"{header.path}: {told}")
