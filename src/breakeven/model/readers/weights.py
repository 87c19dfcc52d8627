"""Which files hold a model's weights, and the one digest of all of them, by which a result knows its model again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from breakeven.errors import UserError
from breakeven.model.readers.gguf_file import parts
from breakeven.model.readers.hf import INDEX, safetensors_files

_CHUNK_BYTES = 1 << 22
_OTHERS = ("*.bin", "*.pth", "*.onnx*", "*.tflite")
"""Of a directory without safetensors; the first pattern that finds any counts."""


def weight_files(path: Path) -> list[Path]:
    """The file, all parts of a split one, or a directory's weight files in order of their names.

    Raises UserError for what holds none, and for a part that is missing.
    """
    if not path.is_dir():
        return [header.path for header in parts(path)]
    found = _in_directory(path)
    if not found:
        raise UserError(
            f"{path}: holds no weights (*.safetensors); give a .gguf file or a whole Hugging Face directory"
        )
    absent = next((file for file in found if not file.is_file()), None)
    if absent is not None:
        raise UserError(f"{path}: {absent.name} is in {INDEX} and not here; fetch the missing part")
    return found


def holds_weights(directory: Path) -> bool:
    """Whether weights lie in a directory, and not only what describes them."""
    return any(file.is_file() for file in _in_directory(directory))


def digest_of(files: Sequence[Path]) -> str:
    """The sha256 of a file; of several that are one model, of all their bytes in order. Raises UserError."""
    digest = hashlib.sha256()
    for each in files:
        try:
            with each.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    digest.update(data)
        except OSError as error:
            raise UserError(f"{each}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _in_directory(directory: Path) -> list[Path]:
    others = (sorted(directory.glob(pattern)) for pattern in _OTHERS)
    return safetensors_files(directory) or next((files for files in others if files), [])
