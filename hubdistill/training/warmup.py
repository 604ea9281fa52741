"""Warm-up: supervised fine-tuning before the first round (appendix C.2), as LoRA in the same adapter, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback

from hubdistill.errors import TrainingError
from hubdistill.files import write_atomically
from hubdistill.modalities.base import Row, TokenRow
from hubdistill.models.lora import in_fp32
from hubdistill.training.order import WorksAhead, loader
from hubdistill.training.rounds import on_one_device, require_finite, training_arguments
from hubdistill.training.telemetry import metrics_lines

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.modalities.base import Reading
    from hubdistill.pairs.prompts import Prompt
    from hubdistill.specs import TrainSpec, WarmupSpec


@dataclass(frozen=True)
class WarmupFiles:
    checkpoints: Path
    metrics: Path


class Bookkeeping(TrainerCallback):
    """Writes the metrics of a TRL trainer, whole after each log."""

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


def ground_truth_rows(prompts: Sequence[Prompt], tokenizer: Any, end_id: int, vocab: int, limit: int, forbidden: Sequence[int] = ()) -> tuple[list[Row], dict[str, int]]:
    """The data set's own responses, at most `limit` tokens of each, and how many were left out or cut. A response with a
    `forbidden` id (it would ask for an image) counts as outside the vocabulary."""
    rows, counts = [], {"without_response": 0, "cut": 0, "outside_vocabulary": 0}
    for prompt in prompts:
        ids = [*tokenizer(prompt.response or "", add_special_tokens=False)["input_ids"], end_id]
        counts["without_response"] += len(ids) == 1
        outside = max(ids) >= vocab or not set(forbidden).isdisjoint(ids)
        counts["outside_vocabulary"] += outside
        if len(ids) > 1 and not outside:
            counts["cut"] += len(ids) > limit  # a response that is cut gets no end: it did not end there
            rows.append(Row(prompt.prompt_ids, tuple(ids[:limit]), False, prompt.student_prompt_ids, prompt.images))
    return rows, counts


@dataclass(frozen=True)
class RowCollator:
    """Numbers of rows -> what the student takes, and labels (B, L) on the response tokens alone; nobody's row has none.

    Token ids go in as they are: rendering the text again could tokenise it differently.
    """

    rows: Sequence[Row]
    reading: Reading

    def __call__(self, picked: Sequence[Mapping[str, int] | None]) -> dict[str, Any]:
        numbers = [one["row"] for one in picked if one is not None]
        rows = [self.rows[number] for number in numbers or [0]]
        inputs = self.reading.inputs("student", [TokenRow(row.as_student + row.response_ids, row.images) for row in rows], "right")
        labels = inputs.tokens["input_ids"].new_full(inputs.tokens["input_ids"].shape, -100)
        for i, row in enumerate(rows[: len(numbers)]):
            start, end = len(row.as_student), len(row.as_student) + len(row.response_ids)
            labels[i, start:end] = inputs.tokens["input_ids"][i, start:end]
        return {"inputs": inputs, "labels": labels}


def warm_up(model: PeftModel, tokenizer: Any, rows: Sequence[Row], spec: WarmupSpec, train: TrainSpec, files: WarmupFiles, *,
            reading: Reading, accumulation: int, progress: Callable[[int], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Fine-tune the adapter on the responses of `rows` (token ids, loss on the response only).

    Raises TrainingError where there are no rows, or the adapter is not finite afterwards.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Warmup(WorksAhead, SFTTrainer):  # type: ignore[misc]
        """TRL's, with the rows in our order, as the modality turns them into arguments: images are encoded here."""

        def get_train_dataloader(self):
            return loader(self.train_dataset, collator, self.args, [len(row.as_student) + len(row.response_ids) for row in rows])

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            taken = reading.modality.arguments(model, inputs["inputs"].to(self.args.device))
            return super().compute_loss(model, {**taken, "labels": inputs["labels"]}, return_outputs, num_items_in_batch)

    if not rows:
        raise TrainingError("warm-up has nothing to train on: no prompt has a response; set warmup.kind: none, or warmup.responses: teacher")
    arguments = training_arguments(files.checkpoints, train, seed=train.seed, accumulation=accumulation, num_train_epochs=spec.epochs,
                                   learning_rate=spec.learning_rate or train.learning_rate, lr_scheduler_type="cosine",
                                   warmup_steps=0.1, save_strategy="no")  # fmt: skip
    config = on_one_device(SFTConfig(**arguments, max_length=None, packing=False, bf16=False, dataset_kwargs={"skip_prepare_dataset": True},
                                     pad_token=tokenizer.convert_ids_to_tokens(reading.pad_id)))  # fmt: skip
    collator = RowCollator(rows, reading)
    trainer = Warmup(model=model, args=config, train_dataset=Dataset.from_dict({"row": range(len(rows))}), processing_class=tokenizer,
                     data_collator=collator, callbacks=[Bookkeeping(files.metrics, progress)])  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    in_fp32(model)  # TRL makes the adapter of a 4-bit student bfloat16
    outcome = trainer.train()
    require_finite(model, "the warm-up", "warmup.learning_rate")
    return {"steps": trainer.state.global_step, "loss": outcome.training_loss, "rows": len(rows)}
