"""What a started engine gets to see of our environment: what it needs to run, and no key of anybody's."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SHELL"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
        *("CUDA_HOME", "CUDA_PATH", "CC", "CXX"),
    }
)
PREFIXES = (
    *("LC_", "XDG_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "GGML_", "LLAMA_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "ONEAPI_", "ZE_", "VLLM_", "TORCH_", "TRITON_"),
    *("HF_HOME", "HF_HUB_", "HUGGINGFACE_HUB_", "TRANSFORMERS_"),
)
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH")
"""Words that no name handed down may hold, whatever it begins with."""


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables an engine is given: those named here, without any whose name speaks of a secret."""
    return {
        name: value
        for name, value in environment.items()
        if (name in NAMES or name.startswith(PREFIXES)) and not any(word in name.upper() for word in SECRET)
    }
