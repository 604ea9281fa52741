"""Warm-up: supervised fine-tuning before the first round (appendix C.2), as LoRA in the same adapter, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback

from hubdistill.errors import TrainingError
from hubdistill.files import write_atomically
from hubdistill.training.rounds import on_one_device, require_finite, training_arguments
from hubdistill.training.telemetry import metrics_lines

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.modalities.base import Row
    from hubdistill.specs import TrainSpec, WarmupSpec


@dataclass(frozen=True)
class WarmupFiles:
    checkpoints: Path
    metrics: Path


class _Bookkeeping(TrainerCallback):
    def __init__(self, metrics: Path, progress: Callable[[int], None] | None):
        self.metrics, self.progress = metrics, progress

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress(1)

    def on_log(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        rows = [{"round": 0, **row} for row in state.log_history if "train_runtime" not in row]
        write_atomically(self.metrics, metrics_lines(rows))


def warm_up(model: PeftModel, tokenizer: Any, rows: Sequence[Row], spec: WarmupSpec, train: TrainSpec, files: WarmupFiles, *,
            pad_id: int, accumulation: int, progress: Callable[[int], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Fine-tune the adapter on the responses of `rows` (token ids, loss on the response only).

    Token ids go in as they are: rendering the text again could tokenise it differently. Raises TrainingError where
    there are no rows, or the adapter is not finite afterwards.
    """
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    if not rows:
        raise TrainingError("warm-up has nothing to train on: no prompt has a response; set warmup.kind: none, or warmup.responses: teacher")
    disable_progress_bars()  # TRL maps the rows once more, in no time
    dataset = Dataset.from_list([
        {"input_ids": [*row.prompt_ids, *row.response_ids],
         "completion_mask": [0] * len(row.prompt_ids) + [1] * len(row.response_ids)}
        for row in rows
    ])  # fmt: skip
    arguments = training_arguments(files.checkpoints, train, seed=train.seed, accumulation=accumulation, num_train_epochs=spec.epochs,
                                   learning_rate=spec.learning_rate or train.learning_rate, lr_scheduler_type="cosine",
                                   warmup_steps=0.1, save_strategy="no")  # fmt: skip
    config = on_one_device(SFTConfig(**arguments, completion_only_loss=True, max_length=None, packing=False, bf16=False,
                                     pad_token=tokenizer.convert_ids_to_tokens(pad_id)))  # fmt: skip
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[_Bookkeeping(files.metrics, progress)])
    trainer.remove_callback(PrinterCallback)
    outcome = trainer.train()
    require_finite(model, "the warm-up", "warmup.learning_rate")
    return {"steps": trainer.state.global_step, "loss": outcome.training_loss, "rows": len(rows)}
