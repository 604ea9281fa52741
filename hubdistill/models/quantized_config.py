"""What a config.json says of weights that are stored quantised. `plan` reads it, so nothing here imports torch at the top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts

INSTEAD = "name the unquantised model, which is quantised as it loads, or a copy in 4 bit of bitsandbytes"


@dataclass(frozen=True)
class Stored:
    """`quantization_config` of a model whose files are quantised."""

    said: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.said.get("quant_method") or "unknown method")

    @property
    def in_4_bit(self) -> bool:
        """Whether it is the format that adapters are trained on here."""
        return self.method == "bitsandbytes" and bool(self.said.get("load_in_4bit", self.said.get("_load_in_4bit")))

    @property
    def quant_type(self) -> str:
        return str(self.said.get("bnb_4bit_quant_type", "fp4"))  # what bitsandbytes takes where a config does not say

    @property
    def double_quant(self) -> bool:
        return bool(self.said.get("bnb_4bit_use_double_quant"))

    @property
    def compute_dtype(self) -> str:
        """What its layers multiply in. transformers takes this and nothing that a caller says."""
        return str(self.said.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")

    def refused(self) -> str | None:
        """Why no adapter is trained on it; None where it can be."""
        if self.method == "bitsandbytes" and not self.in_4_bit:
            return "is stored in 8 bit (bitsandbytes), and this target recovers 4-bit models"
        if not self.in_4_bit:
            return f"is stored quantised by {self.method}, and adapters are trained on 4 bit of bitsandbytes alone: the layers of other formats need kernels of their own, on which this was not tried"
        if self.compute_dtype not in ("bfloat16", "float32"):  # in float16 gradients vanish
            return f"is stored to multiply in {self.compute_dtype} (bnb_4bit_compute_dtype in its config), and adapters are trained in bfloat16 or float32"
        return None if self.quant_type in ("nf4", "fp4") else f"is stored in {self.quant_type} (bnb_4bit_quant_type in its config), which is neither nf4 nor fp4"


def stored(facts: ModelFacts) -> Stored | None:
    """How a model's files are quantised; None where they are not."""
    said = facts.config.get("quantization_config")
    return Stored(said if isinstance(said, Mapping) else {}) if said is not None else None


def head_is_quantised(facts: ModelFacts, found: Stored) -> bool:
    """Whether the output head is among what was quantised, by the rules of transformers; imports it."""
    from hubdistill.models.layers import empty_model

    skipped = found.said.get("llm_int8_skip_modules")
    if skipped is None or facts.trust_remote_code:  # transformers then leaves the head as it is
        return False
    from transformers.quantizers.quantizers_utils import should_convert_module

    try:
        model = empty_model(facts, "student")
    except InputError:  # said by others
        return False
    head = model.get_output_embeddings()
    return any(module is head and should_convert_module(name, list(skipped)) for name, module in model.named_modules())


def library_problem() -> str | None:
    """Why bitsandbytes cannot be used here, and what to do; None where it can. It looks for its kernels as it is imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as problem:
        if problem.name != "bitsandbytes":
            return f"does not load ({problem}); `pip install {problem.name}`"
        return "is not installed; `pip install bitsandbytes`"
    except (ImportError, RuntimeError, OSError, AttributeError) as problem:
        return f"is installed and does not load ({str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__}); `python -m bitsandbytes` says more"
    return None
