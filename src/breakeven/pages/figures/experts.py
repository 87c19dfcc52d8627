"""Maps of experts by layer: as the source used them and as what was made of it does, by language, and their worth."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.pages.figures.figure import SERIES, Figure, Missing
from breakeven.pages.figures.model import CELLS_DRAWN_TWICE, heat
from breakeven.pages.lab_words import spelled
from breakeven.pages.words import percent_text
from breakeven.results.lab import ExpertLayer, Experts, ExpertScores, Proof, ScoredLayer

MOST_LANGUAGES = len(SERIES)


def before_and_after(proof: Proof) -> list[Figure | Missing]:
    """Where the source sent the text's tokens, and the artefact: measured, or as the source used its experts."""
    found = proof.experts
    if found is None or not found.layers:
        return []
    drawn = [_map("Before: experts of the source", "experts-before", found.layers, found.n_experts_per_token, 0)]
    if proof.experts_after is not None and proof.experts_after.layers:
        after = proof.experts_after
        drawn.append(
            _map("After: experts of what was made", "experts-after", after.layers, after.n_experts_per_token, 2)
        )
    elif found.kept is not None:
        kept = _kept(found, found.kept)
        title = "After: the experts that were kept, in their new places"
        drawn.append(
            _map(title, "experts-after", kept, found.n_experts_per_token, 2, " Shares are those of the source's run.")
        )
    return drawn


def _kept(found: Experts, kept: Sequence[Sequence[int]]) -> list[ExpertLayer]:
    """The source's layers with the experts in the artefact's order; a new expert saw nothing yet."""
    return [
        ExpertLayer(
            layer=layer.layer,
            tokens=[layer.tokens[expert] if 0 <= expert < len(layer.tokens) else 0 for expert in places],
        )
        for layer, places in zip(found.layers, kept, strict=False)
    ]


def scores_maps(scores: ExpertScores) -> list[Figure | Missing]:
    """Load of every expert over all text, then in each language, then what each is worth where that was asked."""
    used = scores.n_experts_per_token
    drawn = [_map("Load by layer", "load", scores.layers, used, 0)]
    for index, text in enumerate(scores.languages[:MOST_LANGUAGES] if len(scores.languages) > 1 else ()):
        shares = {layer.layer: layer.by_language.get(text.language, []) for layer in scores.layers}
        if any(shares.values()):
            title = f"Load in {spelled(text.language)}"
            drawn.append(_heat(title, f"load-{index + 1}", shares, used, index, " Shares of this language's tokens."))
    worth = {layer.layer: [score or 0.0 for score in layer.score] for layer in scores.layers if layer.score}
    if worth:
        drawn.append(_worth(worth))
    return drawn


def _map(
    title: str, name: str, layers: Sequence[ExpertLayer | ScoredLayer], used: int, colour: int, more: str = ""
) -> Figure | Missing:
    shares = {layer.layer: [count / (sum(layer.tokens) or 1) for count in layer.tokens] for layer in layers}
    return _heat(title, name, shares, used, colour, more)


def _heat(
    title: str, name: str, shares: dict[int, list[float]], used: int, colour: int, more: str = ""
) -> Figure | Missing:
    """Shares of choices by layer and expert, drawn as shares of tokens: `used` experts a token."""
    cells = [
        {"layer": layer, "expert": expert, "share": share * used}
        for layer, row in shares.items()
        for expert, share in enumerate(row)
    ]
    if not cells:
        return Missing(title, "No layer of this model routes tokens.")
    top, never = max(float(cell["share"]) for cell in cells), sum(cell["share"] == 0 for cell in cells)
    most = max(len(row) for row in shares.values())
    even = f"Even routing would give {percent_text(used / most)}; the darkest cell is {percent_text(top)}"
    return Figure(
        name=name,
        title=title,
        alt=f"{title}: {most} experts in {len(shares)} layers. {even}. {never} of {len(cells)} were never chosen.",
        caption=f"Share of tokens sent to each expert. {even}; blank was never chosen ({never} of {len(cells)}).{more}",
        wide=heat(cells, list(shares), most, top, SERIES[colour].sentinel, narrow=False),
        narrow=heat(cells, list(shares), most, top, SERIES[colour].sentinel, narrow=True)
        if len(cells) <= CELLS_DRAWN_TWICE
        else None,
    )


def _worth(worth: dict[int, list[float]]) -> Figure | Missing:
    cells = [
        # Norms grow with depth, so each layer is drawn against its own best expert.
        {"layer": layer, "expert": expert, "share": score / (max(row) or 1.0)}
        for layer, row in worth.items()
        for expert, score in enumerate(row)
    ]
    most = max(len(row) for row in worth.values())
    title = "What each expert is worth"
    return Figure(
        name="worth",
        title=title,
        alt=f"{title}: score of {most} experts in {len(worth)} layers, over the best of the layer.",
        caption="Mean of gate weight times the norm of the expert's output, over the best of its layer: pale ones are "
        "missed least.",
        wide=heat(cells, list(worth), most, 1.0, SERIES[3].sentinel, narrow=False),
        narrow=heat(cells, list(worth), most, 1.0, SERIES[3].sentinel, narrow=True)
        if len(cells) <= CELLS_DRAWN_TWICE
        else None,
    )
