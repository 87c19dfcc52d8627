"""Where the fit starts, and what no public measurement tells: judgements, each in one place."""

from __future__ import annotations

from breakeven.forecast.efficiencies import Efficiency, Entry

LOCAL_CLASSES: dict[str, dict[str, float | None]] = {
    # usable_memory: share of memory an engine may take before the tenth that every prediction spares. Apple lets a GPU
    # wire about three quarters of memory; 5.2 of a Jetson Orin Nano's 8 GB were usable; others keep the system's part.
    # flops_per_byte: 16-bit operations per byte of bandwidth of the chips of the class that publish both.
    "datacenter": {"decode_flops_share": 0.1, "flops_per_byte": 250, "usable_memory": 1.0, "host_bytes_per_s": 50e9},
    "workstation": {"decode_flops_share": 0.1, "flops_per_byte": 200, "usable_memory": 1.0, "host_bytes_per_s": 50e9},
    "consumer": {"decode_flops_share": 0.1, "flops_per_byte": 200, "usable_memory": 1.0, "host_bytes_per_s": 50e9},
    "apple": {"decode_flops_share": 0.2, "flops_per_byte": 34, "usable_memory": 0.83, "host_bytes_per_s": None},
    "unified": {"decode_flops_share": 0.1, "flops_per_byte": 200, "usable_memory": 0.95, "host_bytes_per_s": None},
    "jetson": {"decode_flops_share": 0.1, "flops_per_byte": 150, "usable_memory": 0.72, "host_bytes_per_s": None},
    "integrated": {"decode_flops_share": 0.1, "flops_per_byte": 60, "usable_memory": 0.8, "host_bytes_per_s": None},
    "sbc": {"decode_flops_share": 0.3, "flops_per_byte": 8, "usable_memory": 0.95, "host_bytes_per_s": None},
    "cpu": {"decode_flops_share": 0.25, "flops_per_byte": 15, "usable_memory": 0.95, "host_bytes_per_s": None},
}
STEP_S = 3e-4
"""llama.cpp's sampling and graph building in a step."""
SEQUENCE_S = 5e-5
VECTOR_ROWS = 8
"""Tokens of a step up to which llama.cpp multiplies one by one (MMVQ_MAX_BATCH_SIZE; mul_mat_vec_max_cols)."""
LOGIT_BYTES = 10.0
"""vLLM's greedy sampler: 2 bytes read, 4 written as float32, 4 read for the largest (vllm/v1/sample/sampler.py)."""
DISK_BYTES_PER_S = 3e9
"""A solid-state drive."""
LINK_BYTES_PER_S = 20e9
"""One direction of PCIe 4.0 x16, where the chip's data sheet gives no link."""


def judged(engine: str) -> dict[str, Entry]:
    """Entries by class, before any fit. Knobs of the fit overwrite what they name."""
    found = {}
    for chip_class, own in LOCAL_CLASSES.items():
        efficiency = Efficiency(
            weight_share=0.8,
            kv_share=0.65,
            decode_flops_share=own["decode_flops_share"] or 0.1,
            prefill_flops_share=0.3,
            flops_per_byte=own["flops_per_byte"] or 100.0,
            step_s=STEP_S,
            layer_s=5e-5,
            moe_layer_s=8e-5,
            sequence_s=SEQUENCE_S,
            vector_rows=VECTOR_ROWS if engine == "llama.cpp" else None,
            logit_bytes=LOGIT_BYTES if engine == "vllm" else 0.0,
            usable_memory=own["usable_memory"] or 1.0,
            host_bytes_per_s=own["host_bytes_per_s"],
            disk_bytes_per_s=DISK_BYTES_PER_S,
            link_bytes_per_s=LINK_BYTES_PER_S,
        )
        found[chip_class] = Entry(engine=engine, chip_class=chip_class, efficiency=efficiency, errors=[], basis="")
    return found
