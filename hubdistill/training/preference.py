"""Preference tuning after the last round (section 6.1 of the paper): the adapter goes on with DPO, by TRL's DPOTrainer.

DPO: Rafailov et al. 2023, arXiv 2305.18290. The student as it was distilled is what it is held against: TRL keeps a frozen copy of the adapter for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback

from hubdistill.errors import TrainingError
from hubdistill.models.lora import in_fp32
from hubdistill.training.rounds import on_one_device, require_finite, training_arguments
from hubdistill.training.warmup import Bookkeeping

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.pairs.prompts import Prompt
    from hubdistill.specs import PreferenceSpec, TrainSpec

LAST_METRICS = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")  # of TRL, that tell whether it learnt


@dataclass(frozen=True)
class PreferencePair:
    """Token ids of a prompt, and of the preferred response and the other one to it."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def preference_pairs(prompts: Sequence[Prompt], tokenizer: Any, end_id: int, vocab: int, limit: int) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs as token ids, at most `limit` tokens of each response; with how many were left out, and how many responses were cut."""
    found, counts = [], {"cut": 0, "outside_vocabulary": 0, "equal_when_cut": 0}
    for prompt in prompts:
        whole = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end_id] for text in prompt.answers]
        chosen, rejected = (tuple(ids[:limit]) for ids in whole)  # a response that is cut gets no end: it did not end there
        outside, equal = max(*chosen, *rejected) >= vocab, chosen == rejected
        counts["outside_vocabulary"] += outside
        counts["equal_when_cut"] += equal
        if not outside and not equal:
            counts["cut"] += sum(len(ids) > limit for ids in whole)
            found.append(PreferencePair(prompt.id, prompt.prompt_ids, chosen, rejected))
    return found, counts


def steps_of(pairs: int, spec: PreferenceSpec, train: TrainSpec) -> int:
    """Optimiser steps."""
    return max(1, math.ceil(pairs / train.pairs_per_step * spec.epochs))


def prefer(model: PeftModel, tokenizer: Any, pairs: Sequence[PreferencePair], spec: PreferenceSpec, train: TrainSpec, folder: Path, *,
           pad_id: int, accumulation: int, progress: Callable[[int], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Tune the adapter on the pairs; metrics go to `folder`/metrics.jsonl.

    Raises TrainingError where there are no pairs, or the adapter is not finite afterwards.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Tuning(DPOTrainer):
        """TRL's, on token ids as they are: rendering the text again could tokenise it differently."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    if not pairs:
        raise TrainingError("preference has nothing to train on: no pair is left whose two responses differ; raise sampling.max_tokens, or name other data")
    arguments = training_arguments(folder / "checkpoints", train, seed=train.seed, accumulation=accumulation, num_train_epochs=spec.epochs,
                                   learning_rate=spec.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.1, save_strategy="no")  # fmt: skip
    config = on_one_device(DPOConfig(**arguments, beta=spec.beta, max_length=None, bf16=False))
    rows = [{"prompt_ids": list(one.prompt_ids), "chosen_ids": list(one.chosen_ids), "rejected_ids": list(one.rejected_ids)} for one in pairs]
    # A copy, since TRL gives it a padding token where it has none; and our padding, since the teacher's may lie beyond the student's ids.
    trainer = Tuning(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=copy(tokenizer), data_collator=DataCollatorForPreference(pad_token_id=pad_id),
                     callbacks=[Bookkeeping(folder / "metrics.jsonl", progress)])
    trainer.remove_callback(PrinterCallback)
    in_fp32(model)  # TRL makes the adapter of a 4-bit student bfloat16
    outcome = trainer.train()
    model.delete_adapter("ref")  # TRL's copy of the adapter as it was
    require_finite(model, "preference tuning", "preference.learning_rate")
    last = next((row for row in reversed(trainer.state.log_history) if LAST_METRICS[0] in row), {})
    return {"steps": trainer.state.global_step, "loss": outcome.training_loss, "pairs": len(pairs)} | {name: last[name] for name in LAST_METRICS if name in last}
