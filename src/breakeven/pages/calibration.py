"""A calibration in the terminal and as JSON: the constants, what the data could not tell, and how far off it is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import msgspec

from breakeven.forecast.calibration.fit import LeftOut
from breakeven.forecast.constants import Constants, Error, ProfileOrigin
from breakeven.hardware.reader import read_machine
from breakeven.model.arithmetic import active_params, file_bytes, total_params
from breakeven.pages.words import seconds_text
from breakeven.runs.calibrate import Calibration
from breakeven.runs.probed import CalibrateOptions, plan

SCHEMA = "breakeven.calibrate/1"

RATES = {
    "weight_bytes_per_s": ("reads weights at", 1e9, "GB/s"),
    "kv_bytes_per_s": ("reads keys and values at", 1e9, "GB/s"),
    "decode_flops_per_s": ("multiplies at, decoding", 1e9, "GFLOP/s"),
    "prefill_flops_per_s": ("multiplies at, prompts", 1e9, "GFLOP/s"),
    "step_s": ("costs a step", 1e-6, "us"),
    "layer_s": ("costs a layer", 1e-6, "us"),
    "moe_layer_s": ("more for a layer that routes", 1e-6, "us"),
    "expert_s": ("costs an expert touched", 1e-6, "us"),
    "kv_row_s": ("costs a row of keys and values", 1e-9, "ns"),
    "sequence_s": ("costs a sequence", 1e-6, "us"),
    "prefill_token_s": ("costs a prompt token", 1e-6, "us"),
    "element_s": ("costs an element of a layer", 1e-9, "ns"),
}


def calibration_lines(found: Calibration) -> list[str]:
    """What `breakeven calibrate` prints."""
    profile, origin = found.profile, found.profile.origin
    models = len({x.seen.model for x in found.left_out})
    lines = [
        *([found.notice, ""] if found.notice else []),
        f"{profile.name}, {origin.engine} ({origin.engine_version or 'build not told'}), {origin.format}",
        f"{origin.points} steps of {models} {'models' if origin.sources else 'probes'}, measured in"
        f" {seconds_text(origin.seconds or 0.0)}" + _noise_words(found),
        "",
        *_constant_lines(profile.constants, origin),
        "",
        "Left out of the fit, one probe at a time, and predicted:"
        if models > 1
        else "Of one model nothing can be left out: what the fit leaves over of it, and a width that is judged:",
        f"  {'':<24}{'median error':>13}{'machine':>9}{'model':>7}{'90 % within':>13}{'covered':>9}{'probes':>8}",
        *(_error_line(error) for error in profile.errors),
        *_error_words(profile.errors),
    ]
    if origin.at_prior:
        lines += ["", f"The data could not tell, and stand at their prior: {', '.join(origin.at_prior)}."]
    if origin.unknown:
        lines += ["", "What was measured cannot tell:", *(f"  {words}" for words in origin.unknown)]
    return [
        *lines,
        "",
        f"profile  {found.path}",
        f"log      {found.log_path}",
        f"use it   breakeven predict MODEL --machine {'this' if profile.machine else found.path}",
    ]


def plan_lines(options: CalibrateOptions) -> list[str]:
    """What `breakeven calibrate --list` prints. Raises UserError as the run would."""
    chosen = plan(options, read_machine())
    lines = [chosen.notice] if chosen.notice else []
    lines += [
        f"{chosen.engine_name}, {chosen.format_name}: {len(chosen.probes)} probes, {len(chosen.loads)} loads each"
    ]
    formats = {subject.spec.name: subject.format_name for subject in chosen.subjects}
    for spec in chosen.probes:
        total, active = total_params(spec), active_params(spec)
        size = file_bytes(spec, formats[spec.name])
        lines.append(
            f"  {spec.name:<24}{total / 1e6:>7.0f} M parameters, {active / 1e6:.0f} M active, {size / 1e6:.0f} MB"
        )
    moved = [subject.name for subject in chosen.subjects if subject.name != subject.spec.name]
    if moved:
        lines.append(f"  with experts in host memory, too: {', '.join(moved)}")
    loads = ", ".join(f"{x.streams} x ({x.prompt_tokens} in, {x.output_tokens} out)" for x in chosen.loads)
    return [*lines, f"  loads: {loads}"]


def calibration_json(found: Calibration) -> bytes:
    """`breakeven calibrate --json`."""
    payload = {
        "schema": SCHEMA,
        "path": str(found.path),
        "log": str(found.log_path),
        "noise": found.fitted.noise,
        "noisy_blocks": found.noisy_blocks,
        "left_out": [_row(x) for x in found.left_out],
        "profile": msgspec.to_builtins(found.profile),
    }
    return json.dumps(payload, indent=2).encode()


HOST_RATES = {
    "host_bytes_per_s": ("reads weights in host memory at", 1e9, "GB/s"),
    "host_flops_per_s": ("multiplies by them at", 1e9, "GFLOP/s"),
    "stream_bytes_per_s": ("copies them to the device at", 1e9, "GB/s"),
    "handover_s": ("passing between both costs", 1e-6, "us"),
}
"""Of probes with experts in host memory, with how far each may be off."""


def _constant_lines(constants: Constants, origin: ProfileOrigin) -> list[str]:
    at_prior: Sequence[str] = origin.at_prior
    lines = []
    for field, (words, unit, name) in HOST_RATES.items():
        if (value := getattr(constants, field)) and (field in origin.spread or field in at_prior):
            off = f" (x/ {math.exp(origin.spread[field]):.2f})" if field in origin.spread else "  (prior)"
            lines.append(f"  {words:<32}{value / unit:>8.4g} {name}{off}")
    for field, (words, unit, name) in RATES.items():
        value = getattr(constants, field)
        mark = "  (prior)" if field in at_prior else ""
        lines.append(f"  {words:<30}{value / unit:>10.4g} {name}{mark}")
    for field, words in (("type_cost", "reading"), ("type_compute", "multiplying"), ("tile_cost", "in a full tile,")):
        for kind, value in getattr(constants, field).items():
            if f"{field}[{kind}]" not in at_prior:
                lines.append(f"  {f'{words} {kind} costs':<30}{value:>10.2f} times")
    if constants.expert_compute != 1.0 and "expert_compute" not in at_prior:
        lines.append(f"  {'multiplying in experts costs':<30}{constants.expert_compute:>10.2f} times")
    return lines


def error_words(error: Error) -> str:
    """Which sort of prediction an error is of."""
    return f"{error.phase}, {error.kind}" + (", host memory" if error.spilled else "")


def _error_line(error: Error) -> str:
    covered = "-" if error.coverage is None else f"{error.coverage:.0%}"
    within = f"x{math.exp(error.log_half_width):.2f}"
    machine, model = ("-" if part is None else f"{part:.1%}" for part in (error.repeat, error.of_model))
    row = f"{error.median:>13.1%}{machine:>9}{model:>7}{within:>13}{covered:>9}{error.n:>8}"
    return f"  {error_words(error):<24}{row}"


def _error_words(errors: Sequence[Error]) -> list[str]:
    """What the parts of the error are."""
    if all(error.repeat is None for error in errors):
        return [
            "  Nothing was measured twice, so the machine's part of the error is not known; give a longer --budget."
        ]
    return ["  machine: what the measurements themselves are off by, from repeating them; model: the rest."]


def _noise_words(found: Calibration) -> str:
    if found.noisy_blocks == 0:
        return "; the machine was quiet"
    blocks = "block" if found.noisy_blocks == 1 else "blocks"
    return f"; in {found.noisy_blocks} {blocks} the machine was not quiet: run again when it is idle for a better fit"


def _row(x: LeftOut) -> dict[str, object]:
    seen = x.seen
    return {
        "model": seen.model,
        "phase": seen.phase,
        "sequences": seen.sequences,
        "tokens": seen.tokens,
        "seconds": seen.seconds,
        "log_error": x.log_error,
    }
