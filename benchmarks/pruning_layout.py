"""Which layers to leave out: how far a pruned copy is from the whole model, before any training.

    python benchmarks/pruning_layout.py runs/quickstart

Reads the teacher's answers to the held-out prompts of a finished run, and prints kl(teacher, pruned copy) on them in
nats a token for copies of equal depth: one block left out in the middle (what `student.layers: N` does), one left out
just before the last layer, the last layers left out, and layers left out at even distances.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from statistics import fmean

import torch

from hubdistill.evaluation.divergence import Scorer
from hubdistill.modalities.base import Reading
from hubdistill.modalities.text import TEXT
from hubdistill.models.layout import load_model
from hubdistill.models.pruned import kept_layers, shorten_config
from hubdistill.models.sources import find_model
from hubdistill.pairs.store import read_responses
from hubdistill.specs import TeacherSpec


def layouts(count: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Layer numbers kept by each layout."""
    return {
        "middle block": kept_layers(count, depth),
        "block before the last layer": (*range(count - 1), depth - 1),
        "last layers": tuple(range(count)),
        "even distances": tuple(round(i * (depth - 1) / (count - 1)) for i in range(count)),
    }


def pruned(model, kept: tuple[int, ...]):
    """A copy of the model with these layers; it shares no state that a forward pass changes."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList()
    small = copy.deepcopy(model)
    model.model.layers = layers
    small.model.layers = torch.nn.ModuleList(copy.deepcopy(layers[i]) for i in kept)
    for index, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = index
    shorten_config(small.config, kept)
    return small


def main(run: Path) -> None:
    recipe = json.loads((run / "plan.json").read_text())["recipe"]
    teacher = load_model(find_model(TeacherSpec(**recipe["teacher"]), run), "float32", torch.device("cpu"))
    responses = list(read_responses(run / "evaluation", "teacher").rows())
    scorer = Scorer(teacher, Reading(modality=TEXT, pad_id=0), teacher.config.vocab_size)
    depth = teacher.config.num_hidden_layers
    print(f"kl(teacher, pruned) on the teacher's answers to {len(responses)} held-out prompts, nats a token\n")
    names = list(layouts(2, depth))
    print(f"| layers | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for count in (27, 24, 20, 16):
        values = [fmean(scorer.score(pruned(teacher, kept), responses)["kl"].values()) for kept in layouts(count, depth).values()]
        print(f"| {count} of {depth} |", " | ".join(f"{value:.2f}" for value in values), "|")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
