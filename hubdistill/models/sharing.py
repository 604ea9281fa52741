"""Whether training can have a model read the prompt of a pair once, for both responses; and why not, where it cannot.

One rule, from the config alone, for `plan`; `training/prefix.py` measures it on the loaded model before it is used. Lengths and
device do not enter: a pair in one row never takes more work than two rows (models/pair_attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts

ATTENTION = {"full_attention", "sliding_attention", "attention"}  # kinds of layers that look at tokens by their positions
BOTH_WAYS = {"gemma3", "gemma3n", "gemma4", "paligemma"}  # vision models in which tokens of an image see each other
OWN_ATTENTION = {"gpt_oss": "its attention has sinks", "llama4": "its attention is cut into chunks", "llama4_text": "its attention is cut into chunks"}
STATE_KEYS = ("mamba", "ssm", "conv_L_cache", "linear_conv_kernel", "time_mix", "lru_width", "linear_attn")  # begin the names of fields that a state needs
STATE_TYPES = ("mamba", "rwkv", "recurrent", "jamba", "bamba", "zamba", "lfm2", "nemotron_h")


@dataclass(frozen=True)
class Sharing:
    """Whether a model reads the prompt of a pair once. `reason` says why not."""

    shared: bool
    reason: str = ""


def sharing_of(facts: ModelFacts) -> Sharing:
    """By the config. The reasons are about the model's architecture, in words that follow its name and a colon."""
    config, text = facts.config, facts.text_config
    kinds = set(text.get("layer_types") or ()) - ATTENTION
    kind, inner = str(config.get("model_type")), str(text.get("model_type"))
    reasons = (
        (_has_state(text), "it has layers with a state that passes from token to token, which two responses cannot share in one row"),
        (kinds, f"it has layers of the kind {', '.join(sorted(map(str, kinds)))}"),
        (kind in BOTH_WAYS and facts.has_vision, "tokens of an image see each other both ways"),
        (text.get("use_bidirectional_attention"), "its tokens see each other both ways"),
        (inner in OWN_ATTENTION, OWN_ATTENTION.get(inner, "")),
        (facts.trust_remote_code and "auto_map" in config, "it brings code of its own, whose attention cannot be exchanged"),
    )
    return next((Sharing(False, reason) for found, reason in reasons if found), Sharing(True))


def _has_state(text: dict[str, Any]) -> bool:
    named = any(key.startswith(STATE_KEYS) for key, value in text.items() if value is not None)
    return named or any(name in str(text.get("model_type")) for name in STATE_TYPES)
