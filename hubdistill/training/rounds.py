"""One round of training: the pairs in, the same adapter, optimiser and curriculum out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from hubdistill.errors import TrainingError
from hubdistill.files import write_atomically, write_json
from hubdistill.processes import ALONE, Processes
from hubdistill.training.reference import likelihoods_before
from hubdistill.training.telemetry import RoundBookkeeping
from hubdistill.training.trainer import ContrastiveTrainer, Distillation, PairCollator

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.pairs.join import Pair, Pairs
    from hubdistill.specs import TrainSpec

Arguments = TypeVar("Arguments", bound=TrainingArguments)
CURRICULUM, OPTIMIZER = "curriculum.json", "optimizer.pt"


@dataclass(frozen=True, kw_only=True)
class RoundFiles:
    """Where a round's files are; `previous` is the round before, None for the first.

    `inputs` is a digest of all that the round depends on: a checkpoint made from other inputs is not gone on from.
    """

    folder: Path
    previous: Path | None
    inputs: str = ""

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def training_arguments(output: Path, spec: TrainSpec, *, seed: int, accumulation: int, quiet: bool = True, **changes: Any) -> dict[str, Any]:
    """Arguments that warm-up and rounds share. Nothing here reaches the Hub, and no token is stored in it."""
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": spec.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": spec.learning_rate,
        "weight_decay": 0.0,
        "max_grad_norm": spec.max_grad_norm,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "steps",
        "save_steps": spec.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [] if spec.tracker == "none" else [spec.tracker],
        "seed": seed,
        "data_seed": seed,
        "remove_unused_columns": False,
        "use_cpu": spec.device == "cpu",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": quiet,
        "log_level": "passive",
        "push_to_hub": False,
        **changes,
    }


def on_one_device(arguments: Arguments) -> Arguments:
    """The arguments of a process that uses one device. By itself the Trainer spreads over all GPUs it sees
    (torch.nn.DataParallel), with micro-batches so many times as large; the second GPU may be the teacher's."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train_round(model: PeftModel, pairs: Pairs, distillation: Distillation, spec: TrainSpec, files: RoundFiles, *,
                accumulation: int, progress: Callable[[int], None] | None = None, processes: Processes = ALONE) -> dict[str, Any]:  # fmt: skip
    """Train one pass over the pairs, going on from this round's last checkpoint if there is one. All `processes` call this.

    Leaves adapter/, optimizer.pt, curriculum.json and metrics.jsonl in the round's folder; returns what the card needs.
    Raises TrainingError for a loss or an adapter that is not finite.
    """
    position, curriculum = distillation.position, distillation.curriculum
    checkpoints = files.folder / "checkpoints"
    last = processes.share(_last_checkpoint(checkpoints, files.inputs) if processes.first else None)
    _restore(distillation, files, last)
    distillation = held_against_before(distillation, model, pairs, spec.micro_batch)
    arguments = on_one_device(TrainingArguments(**training_arguments(
        checkpoints, spec, seed=spec.seed + 1000 * position.round, accumulation=accumulation, num_train_epochs=1, save_strategy="no",
        per_device_train_batch_size=spec.micro_batch * distillation.preset.prompts_per_pair)))  # fmt: skip
    trainer = ContrastiveTrainer(
        model, arguments, pairs, distillation,
        optimizer_state=torch.load(files.previous / OPTIMIZER, weights_only=True, map_location="cpu") if files.previous else None,
        callbacks=[RoundBookkeeping(curriculum, files.folder / "metrics.jsonl", position.round, progress)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    # The Trainer saves nothing of a model that is spread over processes, as it cannot save its optimiser. Ours is the
    # adapter's alone, whole in each process; so it is told once that has been checked.
    trainer.args.save_strategy = SaveStrategy.STEPS
    if trainer.accelerator.num_processes > 1:  # alone, the float64 sums stay on the CPU: MPS has no float64
        curriculum.reduce = lambda sums: trainer.accelerator.reduce(sums.to(trainer.args.device), reduction="sum")
    outcome = trainer.train(resume_from_checkpoint=last)
    curriculum.end_round()
    require_finite(model, f"round {position.round}", "train.learning_rate")
    processes.wait()  # the others may still write to the last checkpoint
    learnt = curriculum.state_dict()  # summed over the processes
    if processes.first:
        _save(model, trainer, files, learnt)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {"steps": trainer.state.global_step, "loss": outcome.training_loss, "tokens": pairs.tokens, **pairs.report.as_dict()}


def held_against_before(distillation: Distillation, model: PeftModel, pairs: Sequence[Pair], batch: int) -> Distillation:
    """The same with what the model makes of the pairs' responses now, where the loss wants to know it later."""
    if not distillation.preset.held_against_before:
        return distillation
    collate = PairCollator(distillation.reading, pairs, sides=distillation.preset.sides)
    return replace(distillation, reference=likelihoods_before(model, pairs, collate, distillation, batch))


def _last_checkpoint(folder: Path, inputs: str) -> str | None:
    """The last complete checkpoint with the same inputs; those of others are dropped."""
    stamp = folder / "inputs"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomically(stamp, inputs.encode())
    for path in folder.glob("checkpoint-*"):
        if not (path / CURRICULUM).is_file():  # written last; without it the checkpoint was cut off
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder))


def _restore(distillation: Distillation, files: RoundFiles, checkpoint: str | None) -> None:
    source = Path(checkpoint) if checkpoint else files.previous
    if source is not None:
        distillation.curriculum.load_state_dict(json.loads((source / CURRICULUM).read_text()))


def require_finite(model: PeftModel, what: str, rate: str) -> None:
    """Refuse an adapter with a NaN or an Inf; `what` made it, and `rate` names the learning rate that it had."""
    bad = [name for name, value in model.named_parameters() if value.requires_grad and not torch.isfinite(value).all()]
    if bad:
        raise TrainingError(f"{what} left {len(bad)} adapter weights that are not finite ({bad[0]}); lower {rate} and run again")


def _save(model: PeftModel, trainer: ContrastiveTrainer, files: RoundFiles, curriculum: dict[str, Any]) -> None:
    save_adapter(model, files.adapter)
    temporary = files.folder / f".{OPTIMIZER}"
    assert trainer.optimizer is not None, "training has made it"
    torch.save(trainer.optimizer.state_dict(), temporary)
    temporary.replace(files.folder / OPTIMIZER)
    write_json(files.folder / CURRICULUM, curriculum)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter (safetensors and config, no card) in one step."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    configs: list[Any] = list(model.peft_config.values())
    for config in configs:  # PEFT keeps a set, whose order changes from process to process, and with it the digest
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(str(temporary))
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's stub; ours is written from measurements
    _forget_place(temporary / "adapter_config.json")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _forget_place(config: Path) -> None:
    """Name a base that is a folder of this machine by its last part: on another machine the same adapter is the same files then.
    After PEFT has written it, who looks there for the base's vocabulary."""
    found = json.loads(config.read_text(encoding="utf-8"))
    if os.path.isabs(base := found.get("base_model_name_or_path") or ""):
        config.write_text(json.dumps(found | {"base_model_name_or_path": os.path.basename(base)}, indent=2, sort_keys=True), encoding="utf-8")
