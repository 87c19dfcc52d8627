"""A Hugging Face directory as one of the models in lock-step: transformers, on the CPU, in single precision.

Imported only in the child process that scores. Nothing is fetched, and no code of a directory is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from breakeven.errors import EngineError, NotSupportedError, UserError
from breakeven.lab.bridge.directory_words import end_tokens, pieces_of, tokenizer_of
from breakeven.model.readers.hf import CONFIG, read_json

Floats = NDArray[np.float32]

EXPERTS = "grouped_mm"
"""How transformers runs experts: the other ways it has took forty times as long on a CPU."""


class TorchScorer:
    """One directory's model with room for one sequence."""

    engine = "transformers"

    def __init__(self, path: Path, threads: int, used: int | None = None) -> None:
        """Load it, every weight to F32. `used`: experts a token, None for the configuration's own number.

        Raises UserError where tensors are missing or left over, which transformers would fill with random numbers or
        pass over; NotSupportedError for a class that this transformers does not have.
        """
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._name = path.name
        self._model = load_model(path, used)
        self._cache: Any = None
        config = self._model.config
        self.n_vocab = int(self._model.get_output_embeddings().weight.shape[0])
        self.n_positions = int(getattr(config, "max_position_embeddings", 0) or 0)
        self._tokenizer = tokenizer_of(path)
        self._pieces = pieces_of(self._tokenizer)
        self._ends = end_tokens(path)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; `special`: with what the tokenizer itself adds at its ends. Special tokens in it are text."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def piece(self, token: int) -> bytes:
        """What one token adds to a text, as UTF-8; nothing for a special token."""
        return self._pieces.get(token, b"")

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self._ends

    def begin(self, positions: int) -> None:
        """Forget all; the next sequence has at most so many tokens."""
        self._cache = None

    def logits_TV(self, tokens: Sequence[int], position: int) -> Floats:
        """Logits after each of `tokens`, the first of which stands at `position`, those before being known."""
        ids = torch.tensor([list(tokens)], dtype=torch.long)
        places = torch.arange(position, position + len(tokens))[None]
        with torch.inference_mode():
            found = self._model(
                input_ids=ids, position_ids=places, past_key_values=self._cache, use_cache=True, logits_to_keep=0
            )
        self._cache = found.past_key_values
        logits: Floats = np.ascontiguousarray(found.logits[0].to(torch.float32).numpy())
        return logits

    def beside(self, batch: int) -> None:
        """None: products of single precision do not depend on the batch beyond their last bits."""
        return

    def close(self) -> None:
        """Free what it holds."""
        self._model = self._cache = None


def load_model(path: Path, used: int | None = None) -> Any:
    """A directory's model in F32, its experts run by `EXPERTS`, complete.

    Raises UserError where tensors are missing, of another shape or left over, or the directory cannot be read;
    NotSupportedError for a class that this transformers does not have and a model without experts where `used` is set.
    """
    read_json(path / CONFIG)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if used is not None:
            _set_used(config, used, path.name)
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise EngineError(f"{path.name}: no memory to load it in F32; free some or give a smaller model") from error
        reason = " ".join(str(error).split())[:300]
        raise NotSupportedError(f"transformers {transformers.__version__} cannot load {path.name}: {reason}") from error
    for what, kind in (("missing_keys", "is missing"), ("mismatched_keys", "has another shape than config.json says")):
        if wrong := sorted(str(each) for each in told.get(what) or ()):
            raise UserError(f"{path}: tensor {wrong[0]} {kind}; transformers would fill it with random numbers")
    if over := sorted(str(each) for each in told.get("unexpected_keys") or ()):
        raise UserError(f"{path}: transformers has no place for tensor {over[0]}; it would compute without it")
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)
    return model.eval()


def _set_used(config: Any, used: int, name: str) -> None:
    for key, count in (("num_experts_per_tok", "num_experts"), ("moe_k", "moe_num_experts")):
        if getattr(config, key, None) is None:
            continue
        total = int(getattr(config, count, None) or getattr(config, "num_local_experts", None) or used)
        if not 1 <= used <= total:
            raise UserError(f"{used} experts a token: {name} has {total}; give a number from 1 to {total}")
        setattr(config, key, used)
        return
    raise NotSupportedError(f"{name} has no experts, so it cannot use {used} of them")
