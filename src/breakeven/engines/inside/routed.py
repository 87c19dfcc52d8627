"""Which experts a text reaches, for as little CPU time as that can be told: `RoutingReader` and the process it starts.

The weights are mapped and used where they lie, so that they share memory with an engine that has the same file open.
One context serves text after text. Of a batch no more is computed than its last choice needs: the callback that read it
ends the graph there, and neither that layer's experts, nor layers behind it, nor the head are run. Later batches miss
nothing. A choice depends on the keys, values and states of its own and of earlier layers alone, and what is read of a
batch's own memory stands behind what writes it; only layers that no choice depends on are left without. Which choice
is the last is learned from one small batch.

llama.cpp's `ggml_backend_sched_compute_splits` (ggml/src/ggml-backend.cpp) ends the part of the graph that one device
computes when the callback says so, and still returns success; on the CPU alone that part is the whole graph. With more
parts (an accelerator's library) each later one is ended behind its first node.

Legend: L layers that route, E experts.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.family import die_with_parent
from breakeven.engines.inside.child import Answer, Doing, LoadedFile, Say, Unable, serve
from breakeven.engines.inside.client import ChildProcess, checked_gguf
from breakeven.engines.inside.library import Context, Library, Model, library_path
from breakeven.engines.inside.observe import read_ids, routed_layer
from breakeven.errors import BreakevenError, EngineError, NotSupportedError, UserError
from breakeven.hardware.reader import available_threads

MOST_THREADS = 4
"""Reading is in no hurry, and every thread more waits for the others at every node; 1 % of what 64 cores do is less
than one core's work."""
LARGEST_BATCH, SMALLEST_BATCH = 256, 32
MOST_LOGITS = 2**25
"""Of one batch: llama.cpp keeps room for the logits of every token whose last layer is to route, twice 128 MiB."""
LEAST_POSITIONS = 1024
"""Of a context, which grows with the texts that come: a long one takes gigabytes for its keys and values."""
NICEST = 19


@dataclass(frozen=True, slots=True)
class ReadRouting:
    """What one text chose: choices (L, E) by layer, of `tokens` tokens of the `whole_tokens` that it has.

    `cpu_s`: CPU seconds of the process that read it.
    """

    layers: tuple[int, ...]
    choices_LE: NDArray[np.int64]
    tokens: int
    whole_tokens: int
    cpu_s: float


class LoadRouted(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """First message; `batch` 0: as large as `LARGEST_BATCH` and `MOST_LOGITS` allow. Answered by `RoutedLoaded`."""

    model: str
    threads: int
    parent_pid: int
    most_tokens: int
    batch: int
    early: bool


class RoutedLoaded(msgspec.Struct, tag="loaded", frozen=True, kw_only=True):
    """What the file says of itself; which layers route; the layer a batch ends at, None: it is computed whole."""

    file: LoadedFile
    layers: list[int]
    ends_at: int | None
    cpu_s: float


class ReadText(msgspec.Struct, tag="read", frozen=True, kw_only=True):
    """Answered by `TextRead`."""

    text: str


class TextRead(msgspec.Struct, tag="read", frozen=True, kw_only=True):
    """The fields of `ReadRouting`; no choices where the text has no tokens."""

    choices: list[list[int]]
    tokens: int
    whole_tokens: int
    cpu_s: float


class RoutingReader(ChildProcess):
    """A GGUF with experts, loaded in a process that yields to every other one and tells which of them texts reach.

    `loaded`: what the file says of itself; `layers`: those that route; `ends_at`: the one whose choice is the last
    thing computed, None where all is; `load_cpu_s`: CPU seconds that starting and loading took.
    """

    def __init__(
        self,
        model: Path,
        *,
        most_tokens: int = 4096,
        threads: int | None = None,
        batch: int | None = None,
        early: bool = True,
    ) -> None:
        """Start the process and load `model`; texts are cut at `most_tokens`.

        `threads`: a quarter of those there are, up to `MOST_THREADS`. `batch`: tokens computed at once. `early` false:
        all is computed, to check that nothing is missed. Raises UserError for a file that is not GGUF and numbers
        below 1, NotSupportedError for a dense model and an unknown build, EngineError when it cannot be loaded.
        """
        for what, number in {"most_tokens": most_tokens, "threads": threads, "batch": batch}.items():
            if number is not None and number < 1:
                raise UserError(f"{what} is {number}; give 1 or more")
        self.model = checked_gguf(model)
        super().__init__("breakeven.engines.inside.routed", model.name, RoutedLoaded | TextRead | Unable | Doing)
        request = LoadRouted(
            model=str(self.model),
            threads=threads or max(1, min(MOST_THREADS, available_threads() // 4)),
            parent_pid=os.getpid(),
            most_tokens=most_tokens,
            batch=batch or 0,
            early=early,
        )
        try:
            loaded = self.ask(request, RoutedLoaded)
        except BaseException:
            self.close()
            raise
        self.loaded = loaded.file
        self.layers = tuple(loaded.layers)
        self.ends_at = loaded.ends_at
        self.load_cpu_s = loaded.cpu_s

    def read(self, text: str) -> ReadRouting:
        """Run a text through the model from its beginning; special tokens written in it are such.

        The token that the model wants before every text is put there, once though a template may have written it.
        Blocks until it is read. Raises UserError for a text without tokens, EngineError when the process fails or
        dies, by `close` in another thread too.
        """
        if not text:
            raise UserError("the text is empty, so nothing of it is routed")
        try:
            # Whoever cuts or decodes a text may leave half a letter, which no encoding has.
            told = self.ask(ReadText(text=text.encode(errors="replace").decode()), TextRead)
        except (ValueError, OSError, msgspec.MsgspecError) as error:
            # Its pipes and its folder go at once, in whatever state this finds them.
            raise EngineError(f"the process for {self.model.name} was ended while it read a text: {error}") from None
        if not told.tokens:
            raise UserError("the text has no tokens, so nothing of it is routed")
        return ReadRouting(
            self.layers, np.array(told.choices, np.int64), told.tokens, told.whole_tokens, told.cpu_s
        )  # fmt: skip


# Below, the child process alone.


class ChoiceCounter:
    """Counts the choices of each layer, and ends a batch's graph behind the choice of `ends_at`; None: nowhere.

    A block that runs two sets of experts on one choice (GroveMoE) names it twice: the first of a batch counts.
    """

    def __init__(self, library: Library, n_experts: int) -> None:
        self._library, self._n_experts = library, n_experts
        self._seen: dict[int, int] = {}
        """Tokens by layer, of this batch."""
        self._ended = False
        self.last: int | None = None
        self.ends_at: int | None = None
        self.choices: dict[int, NDArray[np.int64]] = {}
        """Layer to how often each expert was chosen since `begin_text`."""

    def begin_text(self) -> None:
        """Count from nothing."""
        self.choices = {}

    def begin_batch(self) -> None:
        """Expect every layer's choice again."""
        self._seen.clear()
        self._ended = False

    def check(self, tokens: int) -> None:
        """Raises EngineError where a layer did not choose for every token of the batch."""
        if any(seen != tokens for seen in self._seen.values()):
            raise EngineError(f"layers chose experts for {set(self._seen.values())} of {tokens} tokens: unknown build")

    def __call__(self, node: int, ask: bool) -> bool:
        """Observe the choices alone; false behind that of `ends_at`, which ends the graph, part by part."""
        if self._ended:
            return ask
        layer = routed_layer(node)
        if layer is None or layer in self._seen:
            return not ask
        if ask:
            return True
        ids_TK = read_ids(self._library, node)
        self._seen[layer] = len(ids_TK)
        flat = ids_TK.ravel()
        if flat.min() < 0 or flat.max() >= self._n_experts:
            raise EngineError(f"expert {flat.max()} was chosen in a model of {self._n_experts} experts")
        counts_E = np.bincount(flat, minlength=self._n_experts)
        so_far_E = self.choices.get(layer)
        self.choices[layer] = counts_E if so_far_E is None else so_far_E + counts_E
        self.last = layer
        self._ended = layer == self.ends_at
        return not self._ended


class _Routed:
    """The loaded model, and the one context that texts are read in."""

    def __init__(self, load: LoadRouted, say: Say) -> None:
        library = Library(library_path())
        path = Path(load.model)
        self._model = Model(
            library,
            path,
            load.threads,
            gpu_layers=0,
            repack=False,
            on_share=lambda share: say("loading", share),
        )
        self._say, self._most_tokens = say, load.most_tokens
        self._told_s = 0.0
        n_experts = self._model.architecture_number("expert_count")
        architecture = self._model.meta("general.architecture") or "unknown"
        if n_experts == 0:
            raise NotSupportedError(
                f"{path.name} is a dense model ({architecture}, no experts), so nothing is routed; look at a "
                "Mixture-of-Experts model"
            )
        self.file = LoadedFile(
            architecture=architecture,
            n_vocab=self._model.n_vocab,
            n_experts=n_experts,
            n_experts_per_token=self._model.architecture_number("expert_used_count"),
            n_positions=self._model.n_positions,
        )
        fitting = max(SMALLEST_BATCH, min(LARGEST_BATCH, MOST_LOGITS // self._model.n_vocab))
        self._batch = load.batch or fitting
        self.counter = ChoiceCounter(library, n_experts)
        self._context: Context | None = None
        self._room = 0
        self.layers = self._learn(early=load.early)
        if not self.layers:
            raise NotSupportedError(
                f"no node of {path.name}'s graph ({architecture}) chooses experts, so nothing of it can be told"
            )

    def _learn(self, *, early: bool) -> list[int]:
        """Layers that route, from a batch of two tokens: some graphs are others where there is but one."""
        context = self._context_of(2)
        self.counter.begin_text()
        self.counter.begin_batch()
        context.decode([0, 0], 0, outputs=True)
        self.counter.ends_at = self.counter.last if early else None
        return sorted(self.counter.choices)

    def _context_of(self, positions: int) -> Context:
        """One with room for so many, cleared; a larger one replaces it where need be."""
        if self._context is None or positions > self._room:
            if self._context is not None:
                self._context.close()
            doubled = 1 << (positions - 1).bit_length()
            self._room = max(min(doubled, self._most_tokens), min(LEAST_POSITIONS, self._most_tokens), positions)
            self._context = Context(self._model, self._room, min(self._batch, self._room), self.counter)
        # What is kept of other texts is not overwritten: it is never looked at, and there are hundreds of megabytes.
        self._context.clear(wipe=False)
        return self._context

    def read(self, text: str) -> TextRead:
        """Count what it chooses, from its beginning."""
        whole = self._model.tokenize(text, parse_special=True)
        first, _ = self._model.added()
        if first is not None and whole[:2] == [first, first]:
            whole = whole[1:]
        tokens = whole[: self._most_tokens]
        choices: list[list[int]] = []
        if tokens:
            context = self._context_of(len(tokens))
            self.counter.begin_text()
            step = min(self._batch, self._room)
            for start in range(0, len(tokens), step):
                self.counter.begin_batch()
                # Outputs for every token: the last layer drops the tokens whose output nobody asked for.
                context.decode(tokens[start : start + step], start, outputs=True)
                self.counter.check(len(tokens[start : start + step]))
                self._say("routing", min(1.0, (start + step) / len(tokens)))
            if sorted(self.counter.choices) != self.layers:
                raise EngineError("other layers chose experts than when the model was loaded: unknown build")
            choices = [self.counter.choices[layer].tolist() for layer in self.layers]
        return TextRead(
            choices=choices,
            tokens=len(tokens),
            whole_tokens=len(whole),
            cpu_s=self.cpu_since_told(),
        )

    def cpu_since_told(self) -> float:
        """CPU seconds of this process since they were last told, so that all of them are."""
        now_s = time.process_time()
        taken_s, self._told_s = now_s - self._told_s, now_s
        return taken_s

    def answer(self, request: LoadRouted | ReadText) -> TextRead:
        """Do what is asked. Raises BreakevenError when it cannot be done."""
        if not isinstance(request, ReadText):
            raise BreakevenError("this process has its model already")
        return self.read(request.text)


def _begin(request: LoadRouted | ReadText, say: Say) -> tuple[msgspec.Struct, Answer]:
    if not isinstance(request, LoadRouted):
        raise BreakevenError("no model is loaded")
    die_with_parent(request.parent_pid)
    if hasattr(os, "nice"):
        os.nice(NICEST)
    routed = _Routed(request, say)
    loaded = RoutedLoaded(
        file=routed.file,
        layers=routed.layers,
        ends_at=routed.counter.ends_at,
        cpu_s=routed.cpu_since_told(),
    )
    return loaded, routed.answer


def main() -> None:
    """Read texts until standard input ends."""
    serve(LoadRouted | ReadText, _begin)


if __name__ == "__main__":
    main()
