"""What vLLM is told of a model, so that it samples from the same one as transformers would; see pairs/vllm_sampling.py."""

from __future__ import annotations

from typing import Any

from hubdistill.models.sources import ModelFacts
from hubdistill.pairs.vllm_settings import vllm_rank
from hubdistill.specs import SamplingSpec


def engine_settings(facts: ModelFacts, dtype: str, device: str, sampling: SamplingSpec, longest_prompt: int, rank: int | None, *, trained: bool) -> dict[str, Any]:
    """vLLM's EngineArgs for a model: the number format that transformers would take, and nothing of the model's own generation config."""
    if dtype == "auto":  # vLLM's own `auto` would read float32 as float16
        saved = facts.saved_dtype or "float32"
        dtype = "float32" if device == "cpu" else "bfloat16" if saved == "float16" and trained else saved
    share = sampling.vllm.data_parallel_size if device == "cpu" else 1  # main memory is one for all engines
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": vllm_rank(rank)} if rank else {}
    return {
        "model": facts.location, "revision": facts.revision, "trust_remote_code": facts.trust_remote_code, "load_format": "safetensors", "dtype": dtype,
        "max_model_len": longest_prompt + sampling.max_tokens, "generation_config": "vllm", "skip_tokenizer_init": True, "enable_prefix_caching": True, "seed": 0,
        "gpu_memory_utilization": sampling.vllm.gpu_memory_utilization / share, "tensor_parallel_size": sampling.vllm.tensor_parallel_size, **lora,
    }  # fmt: skip
