"""What a card calls the method that an adapter was trained with, by the preset of its loss; docs/baselines.md has the whole table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """Its name, its paper's number on arXiv, and whether the student learns from a teacher."""

    name: str
    arxiv: str | None
    distils: bool = True


OURS = Method("DistiLLM-2", "2503.07067")  # with its ablations and the authors' own settings
OTHERS = {
    "distillm": Method("DistiLLM", "2402.03898"),
    "gkd": Method("GKD", "2306.13649"),
    "imitkd": Method("ImitKD", "2009.07253"),
    "skd": Method("Speculative KD", "2410.11325"),
    "minillm": Method("MiniLLM", "2306.08543"),
    "kd": Method("word-level distillation", "1503.02531"),
    "seqkd": Method("SeqKD", "1606.07947"),
    "sft": Method("supervised fine-tuning", None, distils=False),
    "dpo": Method("DPO, the teacher's responses preferred", "2305.18290"),
    "dpkd": Method("DPKD", "2406.19774"),
    "kl": Method("forward KL", None),
    "tvd": Method("total variation (DistillSpec)", "2310.08461"),
}


def method_of(loss: Mapping[str, Any]) -> Method:
    """The method of a run by the loss that it recorded. `sft` on the teacher's responses is SeqKD."""
    name = "seqkd" if loss["name"] == "sft" and loss["fixed_responses"] == "teacher" else loss["name"]
    return OTHERS.get(name, OURS)
