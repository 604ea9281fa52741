"""Rounds of training over tiny models, for the tests beside this file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from hubdistill.losses.contrastive import resolve
from hubdistill.losses.schedules import AlphaCurriculum
from hubdistill.modalities.base import Reading
from hubdistill.models.lora import attach_adapter, load_adapter
from hubdistill.pairs.join import Pairs
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question, ResponseHeader, collect, seed_for
from hubdistill.specs import LoraSpec, SamplingSpec, TrainSpec
from hubdistill.targets.text import TARGET
from hubdistill.training.rounds import RoundFiles, train_round
from hubdistill.training.teachers import LoadedTeacher
from hubdistill.training.trainer import Distillation, Position
from tests import tiny

HEADER = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=34, adapter=None, template="t", sampling={},
                        stop_ids=(3,), engine="e", engine_version="1", seed=0)  # fmt: skip


def make_pairs(folder: Path, number: int = 10, seed: int = 0) -> Pairs:
    """Random prompts, answered by the tiny teacher and the tiny student: responses of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (number,), generator=generator).tolist()
    questions = [Question(f"{i:02d}", tuple(torch.randint(4, 30, (n,), generator=generator).tolist())) for i, n in enumerate(lengths)]
    settings = SamplingSpec(temperature=0.7, top_p=0.95, max_tokens=9)
    sets = []
    for who, model in (("teacher", tiny.make_model(1, layers=3)), ("student", tiny.make_model(2))):
        sampler = TransformersSampler(model, (3,), 0, 34)
        sample = lambda wanted, sampler=sampler, who=who: sampler.sample(wanted, settings, lambda key: seed_for(seed, "", who, key))  # noqa: E731
        sets.append(collect(folder, dataclasses.replace(HEADER, who=who), questions, sample))
    return Pairs(*sets)


def fresh_student():
    return attach_adapter(tiny.make_model(2), LoraSpec(rank=4, alpha=8.0), seed=0)


def train(folder: Path, pairs: Pairs, *, round: int = 1, rounds: int = 2, loss: dict | None = None, model=None, previous: Path | None = None, inputs: str = "",
          shared: tuple[str, ...] = ("teacher", "student"), **spec):  # fmt: skip
    """One round as hubdistill runs it; returns the model, the round's files and its report."""
    settings = TrainSpec(**({"pairs_per_step": 4, "micro_batch": 2, "learning_rate": 0.01, "device": "cpu", "rounds": rounds} | spec))
    preset = resolve(loss or {})
    if model is None:
        model = load_adapter(tiny.make_model(2), previous / "adapter", trainable=True) if previous else fresh_student()
    reading = Reading(modality=TARGET.modality, pad_id=0)
    teacher = LoadedTeacher(tiny.make_model(1, layers=3), reading, torch.device("cpu"))
    distillation = Distillation(teacher=teacher, reading=reading, vocab=34, preset=preset,
                                position=Position(round=round, rounds=rounds), shared=frozenset(shared), curriculum=AlphaCurriculum(preset, round=round))  # fmt: skip
    files = RoundFiles(folder=folder, previous=previous, inputs=inputs)
    report = train_round(model, pairs, distillation, settings, files, accumulation=settings.pairs_per_step // settings.micro_batch)
    return model, files, report


def adapter_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
