"""What evaluations and proofs say in words: what stands in a table's row, and what was lost in which language.

A loss counts only beyond the engine's own rounding, and a language loses more than another only where their intervals
say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from breakeven.pages import words
from breakeven.results.comparison import Comparison
from breakeven.results.lab import Evaluated, Evaluation, LabSpeed, Proof, Slice
from breakeven.stats.estimate import Estimate

LANGUAGES = {
    "ar": "Arabic", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "eu": "Basque", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""English names of what folders are called; any other name stands as it is."""
WHOLE = "all"
"""What language and domain are called where the text was one file."""
ROUNDING_FLOORS = 1.5
"""Up to so many of the model's own floors a KL is the engine's rounding."""
UNUSABLE_TOP1 = 0.1
"""A model that finds its source's likeliest token more rarely than this, in every language, is of no use."""
Z = 1.96
KL, DIFFERENCE, BITS = "kl", "difference", "bits_per_byte"
MEASURES = {KL: "KL, nats a token", DIFFERENCE: "bits a byte more than its source", BITS: "bits a byte"}
EMPTY = "-"


@dataclass(frozen=True, slots=True)
class LabModel:
    """One model of an evaluation or a proof. `source`: the one that others are compared with; it has no loss."""

    name: str
    source: bool
    bytes: int | None
    bits: float | None
    slices: Sequence[Slice]
    tokens_per_s: Estimate | None = None
    trained: bool = False
    """It need not be like its source: what it gained or lost is told in bits a byte."""

    def of(self, label: str) -> Slice | None:
        """The slice that tables call `label`."""
        return next((each for each in self.slices if label_of(each, self.slices) == label), None)


def subjects_of(
    result: Evaluation | Proof, others: Sequence[Proof] = (), compared: Comparison | None = None
) -> list[LabModel]:
    """Every model of `result`, the source first; `others`: proofs of the same source, whose artefacts stand beside.

    `compared`: a comparison whose models are found by their files' names, for how fast they answer.
    """
    if isinstance(result, Evaluation):
        models = sorted(result.models, key=lambda each: each.name != result.against)
        found = [(_evaluated(each, result.against), each.path) for each in models]
    else:
        found = [(_source(result), result.source.path)]
        found += [(artefact_of(each), each.artefact.path) for each in (result, *others)]
    speeds = _speeds(compared)
    return [
        subject if (speed := speeds.get(_stem(path))) is None else _with_speed(subject, speed)
        for subject, path in found
    ]


def _evaluated(model: Evaluated, against: str | None) -> LabModel:
    return LabModel(
        name=model.name,
        source=model.name == against,
        bytes=model.bytes,
        bits=model.bits_per_weight,
        slices=model.slices,
        tokens_per_s=model.tokens_per_s,
    )


def _source(proof: Proof) -> LabModel:
    origin = proof.source
    speed = _answer_speed(proof.speeds, "source")
    return LabModel(_stem(origin.path), True, origin.bytes, origin.bits_per_weight, (), speed)


def artefact_of(proof: Proof) -> LabModel:
    """What was made, as a row of a table."""
    made = proof.artefact
    speed = _answer_speed(proof.speeds, "artefact")
    trained = proof.training is not None
    return LabModel(artefact_name(proof), False, made.bytes, made.bits_per_weight, proof.slices, speed, trained)


def _answer_speed(speeds: Sequence[LabSpeed], of: str) -> Estimate | None:
    """Speed of answers; of prompts where answers were not timed."""
    for what in ("answer", "prompt"):
        if found := next((each for each in speeds if (each.of, each.what) == (of, what)), None):
            return found.tokens_per_s
    return None


def _speeds(compared: Comparison | None) -> dict[str, Estimate]:
    """Decode speed with the fewest streams, by the name of the model's file."""
    if compared is None:
        return {}
    stems = {model.name: _stem(model.source) for model in compared.models}
    points = sorted(compared.points, key=lambda point: -point.streams)
    return {
        stems.get(point.model, point.model): point.decode_tokens_per_s
        for point in points
        if point.decode_tokens_per_s is not None
    }


def _with_speed(subject: LabModel, speed: Estimate) -> LabModel:
    return replace(subject, tokens_per_s=speed)


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".gguf") or path


def artefact_name(proof: Proof) -> str:
    """The file's name; with the bits a weight it really takes where some tensors could not have the type asked for."""
    name, bits = _stem(proof.artefact.path), f"{proof.artefact.bits_per_weight:.2f}"
    return f"{name} ({bits})" if proof.artefact.substituted and bits not in name else name


def label_of(one: Slice, among: Iterable[Slice]) -> str:
    """What a table calls a slice: its language, with the domain where the language has several."""
    several = len({each.domain for each in among if each.language == one.language}) > 1
    if several:
        return f"{one.language}/{one.domain}"
    return one.language if one.language != WHOLE or one.domain in (WHOLE, "") else one.domain


def labels_of(subjects: Sequence[LabModel]) -> list[str]:
    """Every slice of any of `subjects`, in order."""
    return list(dict.fromkeys(label_of(each, subject.slices) for subject in subjects for each in subject.slices))


def spelled(label: str) -> str:
    """A slice in a sentence: "German", "German/news", "the text"."""
    language, slash, domain = label.partition("/")
    if label == WHOLE:
        return "the text"
    return LANGUAGES.get(language, language) + slash + domain


def measure_of(subjects: Sequence[LabModel]) -> str:
    """What losses are told in: KL, else the difference of bits per byte, else bits per byte themselves.

    Where one was trained, the difference comes first: it is meant to be another model.
    """
    slices = [each for subject in subjects for each in subject.slices]
    for measure in (DIFFERENCE, KL) if any(each.trained for each in subjects) else (KL, DIFFERENCE):
        if any(getattr(each, measure) is not None for each in slices):
            return measure
    return BITS


def loss(one: Slice | None, measure: str) -> Estimate | None:
    """What `one` says in `measure`."""
    found: Estimate | None = None if one is None else getattr(one, measure)
    return found


def loss_text(value: float, measure: str) -> str:
    """Nats to three places, in powers of ten where that would show nothing; a difference with its sign."""
    if measure == DIFFERENCE:
        return f"{value:+.3f}"
    if measure == KL and 0 < abs(value) < 0.0005:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def loss_span(found: Estimate | None, measure: str) -> str:
    """A loss with its interval: "0.163 (0.151-0.176)"."""
    if found is None:
        return words.NOT_AVAILABLE
    value = loss_text(found.value, measure)
    interval = loss_interval(found, measure)
    return f"{value} ({interval})" if interval else f"{value} (no interval)"


def loss_interval(found: Estimate, measure: str, dash: str = "-") -> str:
    """The interval alone; empty where there is none. Ends that hold signs of their own have a word between them."""
    if found.low is None or found.high is None:
        return ""
    low, high = loss_text(found.low, measure), loss_text(found.high, measure)
    signed = any(sign in low + high for sign in "+-")
    return f"{low} to {high}" if signed else f"{low}{dash}{high}"


def is_rounding(one: Slice) -> bool:
    """Whether the KL is no more than the engine's own rounding makes."""
    return one.kl is not None and one.kl_floor is not None and one.kl.value <= ROUNDING_FLOORS * one.kl_floor.value


def is_unusable(subject: LabModel) -> bool:
    """Whether it finds its source's likeliest token hardly ever, in any language."""
    shares = [each.top1.value for each in subject.slices if each.top1 is not None and not subject.trained]
    return bool(shares) and max(shares) < UNUSABLE_TOP1


def ratio_of(over: Estimate, under: Estimate) -> Estimate | None:
    """`over` by `under`, of two independent texts: half widths of logarithms add as squares. None for a loss of 0."""
    if over.value <= 0 or under.value <= 0:
        return None
    value = math.log(over.value / under.value)
    ends = [end for each in (over, under) for end in (each.low, each.high)]
    if any(end is None or end <= 0 for end in ends):
        return Estimate(math.exp(value), None, None, None, "measured")
    half = math.hypot(*(math.log(each.most / each.least) / 2 for each in (over, under)))
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half), None, "measured")


def compared_languages(subjects: Sequence[LabModel]) -> list[str]:
    """Sentences on which languages lose more than English (or than the first), and how many times as much.

    Told of models that lose more than rounding and are of use. More: every interval of the ratio lies above 1.
    """
    measure, labels = measure_of(subjects), labels_of(subjects)
    if measure == BITS or len(labels) < 2 or any(each.trained for each in subjects):
        return []
    base = "en" if "en" in labels else labels[0]
    losing = [
        subject
        for subject in subjects
        if not subject.source
        and not is_unusable(subject)
        and (one := subject.of(base)) is not None
        and not is_rounding(one)
    ]
    ratios = {
        label: [found for subject in losing if (found := _ratio_in(subject, label, base, measure)) is not None]
        for label in labels
        if label != base
    }
    more = [
        label for label, each in ratios.items() if each and all(one.low is not None and one.low > 1 for one in each)
    ]
    less = [
        label for label, each in ratios.items() if each and all(one.high is not None and one.high < 1 for one in each)
    ]
    rest = [label for label, each in ratios.items() if each and label not in more and label not in less]
    said = [_times(group, [one for label in group for one in ratios[label]], base) for group in (more, less) if group]
    if rest:
        verb = "does" if len(rest) == 1 else "do"
        said.append(f"{listed(rest)} {verb} not surely lose more or less than {spelled(base)}.")
    return said


def _ratio_in(subject: LabModel, label: str, base: str, measure: str) -> Estimate | None:
    over, under = loss(subject.of(label), measure), loss(subject.of(base), measure)
    return None if over is None or under is None else ratio_of(over, under)


def _times(labels: Sequence[str], ratios: Sequence[Estimate], base: str) -> str:
    """ "German and French lose 1.5 to 2.7 times as much as English." """
    lose = "loses" if len(labels) == 1 else "lose"
    low, high = (f"{extreme(one.value for one in ratios):.2g}" for extreme in (min, max))
    times = f"{low} to {high} times" if low != high else f"{low} times"
    if len(ratios) == 1:
        times = f"{low} times ({ratios[0].least:.2g} to {ratios[0].most:.2g})"
    return f"{listed(labels)} {lose} {times} as much as {spelled(base)}."


def listed(labels: Sequence[str]) -> str:
    """ "German", "German, French and Spanish"."""
    names = [spelled(label) for label in labels]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def losses_of(subject: LabModel, measure: str) -> str:
    """The least and the most of a subject's losses: "0.036 nats a token in English to 0.097 in German"."""
    known = [
        (found.value, label_of(one, subject.slices))
        for one in subject.slices
        if (found := loss(one, measure)) is not None
    ]
    (low, where_low), (high, where_high) = min(known), max(known)
    unit = {KL: " nats a token", DIFFERENCE: " bits a byte", BITS: " bits a byte"}[measure]
    said = f"{loss_text(low, measure)}{unit} in {spelled(where_low)}"
    return said if where_low == where_high else f"{said} to {loss_text(high, measure)} in {spelled(where_high)}"


def top1_text(found: Estimate | None) -> str:
    """A share of tokens as the tables show it: "98 %", "0.4 %"."""
    if found is None:
        return EMPTY
    return f"{found.value * 100:.0f} %" if found.value >= 0.1 else f"{found.value * 100:.1f} %"


def floor_of(subject: LabModel) -> float | None:
    """The largest of a model's floors."""
    return max((each.kl_floor.value for each in subject.slices if each.kl_floor is not None), default=None)
