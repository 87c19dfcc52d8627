"""Verbs on experts: what makes, prunes, sorts, adds and merges them, each with a proof of what it cost.

Each imports what it needs when it is called: nothing here needs torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from breakeven.api.lab import options_said, paged, steps_for
from breakeven.api.training import retrain
from breakeven.errors import UserError, expanded, word_of

if TYPE_CHECKING:
    from breakeven.gateway.experts.report import ExpertsSeen
    from breakeven.lab.surgery.experts import Surgery
    from breakeven.measure.progress import ProgressState
    from breakeven.results.lab import ExpertScores


class ExpertVerbs:
    """`breakeven experts`: its verbs; never made.

    `load` and `score` look at a model, `watch` at a gateway; `retrain` writes a directory. Each other writes a GGUF and
    its proof, `OUT.proof.json`, or nothing. `text`: a file, or a folder with one folder a language, of which the proof
    tells what was lost; None: only that the engine runs what was made, on a built-in sample. `encoding`: of the text,
    None for UTF-8. `budget_s`: for the proof. Each raises UserError for a file, numbers or a place that do not allow
    it, NotSupportedError for a model whose experts are kept in a way not known, and BreakevenError naming what did not
    hold.
    """

    retrain = staticmethod(retrain)

    @staticmethod
    @paged
    def split(
        model: Path | str,
        out: Path | str,
        experts: int = 8,
        used: int | None = None,
        seed: int = 0,
        *,
        by: str | None = None,
        down: str | None = None,
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Cut every feed-forward of a dense GGUF into experts, of which `used` (None: all) run per token.

        With all of them used the model computes what it did before. `by` "importance": neurons are sorted first, by
        what they do on a part of `text`, so that the last expert is the coldest; `down` is then encoded anew, in the
        format `down` (None: its own).
        """
        from breakeven.lab.surgery.experts import check_split, split
        from breakeven.lab.surgery.surgery import check_out, important, proven

        if by not in (None, "importance"):
            raise UserError(f"--by {by}: neurons are sorted by importance, or not at all")
        if down is not None and by is None:
            raise UserError("--down: without --by importance down keeps its bytes; leave it out")
        words = options_said(
            experts=experts,
            used=used,
            seed=seed or None,
            by=by,
            down=down,
            text=text,
            encoding=encoding,
            budget=budget_s,
        )
        on_step = steps_for(on_progress)
        path, given = Path(model), None if text is None else Path(text)
        if by is None:
            return proven(
                "split",
                words,
                path,
                Path(out),
                lambda made: split(path, made, experts, used, seed=seed),
                text=given,
                encoding=encoding,
                budget_s=budget_s,
                on_step=on_step,
            )
        # What will be refused is refused before minutes are spent on measuring.
        check_out(path, Path(out))
        check_split(path, experts, used, down)
        squares, judged, caveats = important(path, given, encoding, on_step)
        return proven(
            "split",
            words,
            path,
            Path(out),
            lambda made: split(path, made, experts, used, seed=seed, squares=squares, down=down),
            text=judged,
            caveats=caveats,
            budget_s=budget_s,
            on_step=on_step,
        )

    @staticmethod
    @paged
    def copy(
        model: Path | str,
        out: Path | str,
        experts: int = 8,
        used: int | None = None,
        seed: int = 0,
        *,
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Repeat every feed-forward as equal experts behind a random router, `used` (None: 2) per token.

        Same answers, more bytes.
        """
        from breakeven.lab.surgery.experts import copy
        from breakeven.lab.surgery.surgery import proven

        return proven(
            "copy",
            options_said(experts=experts, used=used, seed=seed or None, text=text, encoding=encoding, budget=budget_s),
            Path(model),
            Path(out),
            lambda made: copy(Path(model), made, experts, used, seed=seed),
            text=None if text is None else Path(text),
            encoding=encoding,
            budget_s=budget_s,
            on_step=steps_for(on_progress),
        )

    @staticmethod
    @paged
    def prune(
        model: Path | str,
        out: Path | str,
        keep: int,
        scores: Path | str | None = None,
        *,
        by: str = "score",
        first: bool = False,
        used: int | None = None,
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Keep the `keep` best experts of every layer by `scores`, a file of `experts score`; their bytes stay.

        `by` "load": the busiest. `first` instead of scores: the first ones. `used`: experts run per token; None: as
        many as before, or all that are kept where all ran.
        """
        from breakeven.lab.surgery.prune import prune
        from breakeven.lab.surgery.surgery import proven

        if (scores is None) != first:
            raise UserError(
                "give --scores FILE of `breakeven experts score`, or --first to keep the first experts of each layer"
            )
        said, ranked_by = None if scores is None else Path(scores), _by(by)
        return proven(
            "prune",
            options_said(
                keep=keep,
                scores=scores,
                by=None if by == "score" else by,
                first=first,
                used=used,
                text=text,
                encoding=encoding,
                budget=budget_s,
            ),
            Path(model),
            Path(out),
            lambda made: prune(Path(model), made, keep, said, used, by=ranked_by),
            text=None if text is None else Path(text),
            encoding=encoding,
            scores=said,
            budget_s=budget_s,
            on_step=steps_for(on_progress),
        )

    @staticmethod
    @paged
    def order(
        model: Path | str,
        out: Path | str,
        scores: Path | str,
        *,
        by: str = "score",
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Sort the experts of every layer, the best first, or with `by` "load" the busiest. Same function."""
        from breakeven.lab.surgery.prune import order
        from breakeven.lab.surgery.surgery import proven

        ranked_by = _by(by)
        return proven(
            "order",
            options_said(
                scores=scores, by=None if by == "score" else by, text=text, encoding=encoding, budget=budget_s
            ),
            Path(model),
            Path(out),
            lambda made: order(Path(model), made, Path(scores), by=ranked_by),
            text=None if text is None else Path(text),
            encoding=encoding,
            scores=Path(scores),
            budget_s=budget_s,
            on_step=steps_for(on_progress),
        )

    @staticmethod
    @paged
    def add(
        model: Path | str,
        out: Path | str,
        copies: Mapping[int, int],
        *,
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Put copies of experts behind the last one, `copies[expert]` of each, in every layer.

        Families with a bias for selection never choose them, so the function stays; elsewhere the proof tells what
        moved.
        """
        from breakeven.lab.surgery.prune import add
        from breakeven.lab.surgery.surgery import proven

        said = ",".join(f"{expert}:{count}" for expert, count in copies.items())
        return proven(
            "add",
            options_said(copies=said, text=text, encoding=encoding, budget=budget_s),
            Path(model),
            Path(out),
            lambda made: add(Path(model), made, copies),
            text=None if text is None else Path(text),
            encoding=encoding,
            budget_s=budget_s,
            on_step=steps_for(on_progress),
        )

    @staticmethod
    @paged
    def merge(
        model: Path | str,
        out: Path | str,
        pairs: Sequence[tuple[int, int]],
        scores: Path | str | None = None,
        *,
        used: int | None = None,
        text: Path | str | None = None,
        encoding: str | None = None,
        budget_s: float | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> Surgery:
        """Average the two experts of each pair in every layer, weighted by the tokens each saw in `scores`.

        Second choice: `prune` usually loses less. Weights are encoded anew.
        """
        from breakeven.lab.surgery.prune import merge
        from breakeven.lab.surgery.surgery import proven

        said = None if scores is None else Path(scores)
        return proven(
            "merge",
            options_said(
                pairs=",".join(f"{one}:{other}" for one, other in pairs),
                scores=scores,
                used=used,
                text=text,
                encoding=encoding,
                budget=budget_s,
            ),
            Path(model),
            Path(out),
            lambda made: merge(Path(model), made, pairs, said, used),
            text=None if text is None else Path(text),
            encoding=encoding,
            scores=said,
            budget_s=budget_s,
            on_step=steps_for(on_progress),
        )

    @staticmethod
    def load(
        model: Path | str,
        text: Path | str,
        *,
        encoding: str | None = None,
        threads: int | None = None,
        out: Path | str | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> ExpertScores:
        """How a text loads the experts of a GGUF or a Hugging Face directory, by layer and language; nothing is made.

        `out`: a file to write the result to.
        """
        from breakeven.lab.usage.watch import load

        words = options_said(text=text, encoding=encoding, threads=threads, out=out)
        return _kept(
            load(
                expanded(model),
                expanded(text),
                command=shlex.join(["breakeven", "experts", "load", word_of(model), *words]),
                encoding=encoding,
                threads=threads,
                on_step=steps_for(on_progress),
            ),
            out,
        )

    @staticmethod
    def score(
        model: Path | str,
        text: Path | str,
        *,
        budget_s: float | None = None,
        encoding: str | None = None,
        threads: int | None = None,
        out: Path | str | None = None,
        on_progress: Callable[[ProgressState], None] = lambda state: None,
    ) -> ExpertScores:
        """The same, with what each expert gives, and what is lost without it for as many as `budget_s` allows.

        `budget_s` None: two minutes; 0: none is switched off. `out` is what `prune` and `order` read.
        """
        from breakeven.lab.usage.watch import DEFAULT_BUDGET_S, score

        words = options_said(text=text, budget=budget_s, encoding=encoding, threads=threads, out=out)
        return _kept(
            score(
                expanded(model),
                expanded(text),
                command=shlex.join(["breakeven", "experts", "score", word_of(model), *words]),
                encoding=encoding,
                threads=threads,
                budget_s=DEFAULT_BUDGET_S if budget_s is None else budget_s,
                on_step=steps_for(on_progress),
            ),
            out,
        )

    @staticmethod
    def watch(url: str, *, backend: str | None = None, key_env: str = "BREAKEVEN_ADMIN_SECRET") -> ExpertsSeen:
        """What the gateway whose admin page is at `url` has seen of its experts while it serves.

        `backend`: of it alone. `key_env`: the variable that holds the admin secret; not set: none is sent.
        """
        from breakeven.gateway.experts.asked import seen_at

        return seen_at(url, key_env, backend)


def _kept(scores: ExpertScores, out: Path | str | None) -> ExpertScores:
    """The scores, written to `out` if that is asked."""
    from breakeven.results import store

    if out is not None:
        from breakeven.pages.lab_html import write_page

        write_page(scores, store.write(scores, expanded(out)))
    return scores


def _by(text: str) -> Literal["score", "load"]:
    if text not in ("score", "load"):
        raise UserError(f"--by {text}: experts are ranked by score or by load")
    return cast('Literal["score", "load"]', text)
