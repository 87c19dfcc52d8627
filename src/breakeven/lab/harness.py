"""Breakeven as a model of lm-evaluation-harness: a GGUF file or a directory, its logits read in the process.

    python -m breakeven.lab.harness --model_args model=q4.gguf --tasks arc_easy,hellaswag --limit 100

takes what `lm_eval` takes, with `--model breakeven`. In Python, importing this module registers the name:
`lm_eval.simple_evaluate(model="breakeven", model_args="model=q4.gguf", ...)`. lm-eval is no dependency of ours; it is
asked for when this is used. A server is not needed: llama.cpp's gives no log-probabilities of a prompt, and lm-eval's
client of it then reports chance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from breakeven.errors import BreakevenError, NotSupportedError, UserError, complain
from breakeven.lab.facts import batch_that_fits, facts_of
from breakeven.lab.lockstep import BATCH, Lockstep, Scored
from breakeven.lab.tasks import Local, Prompt

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    missing = f"lm-evaluation-harness is not installed whole ({error.name} is missing): `pip install lm-eval==0.4.13`"
    if __name__ == "__main__":
        complain(missing)
        sys.exit(NotSupportedError.exit_status)
    raise NotSupportedError(missing) from None

LONGEST = 2048
"""Positions of a window where nobody says; a context takes memory with every position."""
MOST_TOKENS = 256
"""Of an answer where a task does not say, as everywhere in lm-eval."""


@register_model("breakeven")
class HarnessModel(TemplateLM):
    """One model, loaded once in a child process of its own, which ends with this object or this process."""

    def __init__(
        self,
        model: str,
        *,
        used: int | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MOST_TOKENS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """`model`: a .gguf file or a Hugging Face directory. `used`: experts a token, if not its own number.

        `batch_size`, `max_batch_size` and `device` are lm-eval's own and mean nothing here. Raises UserError for what
        is no model.
        """
        super().__init__()
        path = Path(model)
        self._path = path
        batch = batch_that_fits([facts_of(path)], max_length or LONGEST, BATCH, small=False)
        self._lock = Lockstep([Scored(path, used)], threads, batch=batch)
        self._local = Local(self._lock, 0, path.stem)
        self._begin, self._end = _ends(path)
        own = self._lock.loaded[0].n_positions or LONGEST
        self.max_length = min(own, LONGEST) if max_length is None else max_length
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is read after: the token that begins one, else the one that ends one."""
        return self._end if self._begin is None else self._begin

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return str(self._path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; without special tokens only those of the text itself."""
        found = self._lock.tokens_of(0, string)
        return found.ids[found.lead :] if add_special_tokens is False else found.ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for texts, before, after in requests:
            if len(after) >= self.max_length:
                raise UserError(
                    f"a continuation of {len(after)} tokens is longer than the window of {self.max_length}; give "
                    f"max_length={2 * len(after)} among --model_args"
                )
            kept = before[-(self.max_length - len(after)) :]  # what comes first in a context is dropped first
            weight = self._local.weigh_ids(kept, after) if after else (0.0, True)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, weight)
            found.append(weight)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: every token once, in windows of `max_length`, with all context there is."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            total = sum(self._local.weigh_ids(*make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest answers. Raises UserError where a task asks for samples."""
        found = []
        for request in requests:
            context, asked = request.args
            if asked.get("do_sample") and asked.get("temperature", 1.0) > 0:
                raise UserError(
                    "this task samples its answers, and here the likeliest token is taken each time; give --gen_kwargs "
                    "do_sample=False"
                )
            until = asked.get("until") or []
            most = int(asked.get("max_gen_toks") or self.max_gen_toks)
            if most >= self.max_length:
                raise UserError(
                    f"answers of {most} tokens leave no room for a question in a window of {self.max_length}; give "
                    f"max_length={2 * most} or fewer max_gen_toks among --model_args"
                )
            prompt = Prompt(context, most, (until,) if isinstance(until, str) else tuple(until))
            tokens = self._local.ids(context)[-(self.max_length - most) :]
            said = self._local.answer_ids(tokens, prompt).text
            self.cache_hook.add_partial("generate_until", (context, asked), said)
            found.append(said)
        return found

    def close(self) -> None:
        """End the child."""
        self._lock.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self._lock.close()


def _ends(path: Path) -> tuple[int | None, int]:
    """The tokens that begin (None: none does) and end a text, as the file or the directory names them."""
    if path.is_dir():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        begin, end = config.get("bos_token_id"), config.get("eos_token_id")
    else:
        from breakeven.model.readers.gguf_header import read_header

        metadata = read_header(path).metadata
        begin, end = metadata.get("tokenizer.ggml.bos_token_id"), metadata.get("tokenizer.ggml.eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int):
        raise UserError(f"{path}: names no token that ends a text (eos_token_id), and lm-eval needs one")
    return (begin if isinstance(begin, int) else None), end


def main(arguments: Sequence[str]) -> int:
    """`lm_eval` with these arguments and this model; its exit status."""
    from lm_eval.__main__ import cli_evaluate

    asked = list(arguments)
    if (
        asked
        and asked[0] not in ("ls", "validate")
        and not any(each.split("=")[0] in ("--model", "-M") for each in asked)
    ):
        at = 1 if asked[0] == "run" else 0
        asked[at:at] = ["--model", "breakeven"]
    sys.argv = ["lm_eval", *asked]
    try:
        cli_evaluate()
    except BreakevenError as error:
        complain(str(error))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
