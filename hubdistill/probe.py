"""`plan --probe`: two real optimiser steps and a few sampled tokens at the worst shape of a recipe, in a folder that is thrown away.

Every prompt is as long as `prompts.max_tokens` allows and every response as `sampling.max_tokens`, so what is measured
here is what the run takes at most.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from hubdistill.estimate.meter import Peaks, measured
from hubdistill.losses.schedules import AlphaCurriculum
from hubdistill.pairs.images import RawImage
from hubdistill.pairs.join import Pair
from hubdistill.pairs.prompts import Prompt
from hubdistill.stages import Reporter, Workshop, borrowed, release_memory
from hubdistill.training.rounds import held_against_before, on_one_device, training_arguments
from hubdistill.training.teachers import CachedTeacher, LoadedTeacher, moved
from hubdistill.training.trainer import ContrastiveTrainer, Distillation, Position

if TYPE_CHECKING:
    from hubdistill.plan import Plan
    from hubdistill.training.teachers import Teacher

STEPS = 2  # the optimiser has its moments from the second one on
DECODED = 16  # tokens that are sampled to find what one takes


@dataclass(frozen=True)
class Probed:
    """What was measured: memory by stage, and seconds."""

    memory: dict[str, Peaks]  # stage -> peaks; of sampling without the tokens that were not sampled
    micro_batch: float  # seconds of a micro-batch of training, forward, backward and its share of the optimiser's step
    token: dict[str, float]  # who -> seconds of a token of a batch of `sampling.batch_size` prompts; empty where vLLM samples
    sampled: int  # tokens of a response that were sampled


def probe(plan: Plan, reporter: Reporter) -> Probed:
    """Load the models and measure. Raises what loading and training raise, lack of memory among it."""
    with tempfile.TemporaryDirectory(prefix="hubdistill-probe-") as folder:
        shop = Workshop(plan, reporter, Path(folder))
        memory, tokens = dict[str, Peaks](), dict[str, float]()
        trained = STEPS * plan.recipe.train.micro_batch * plan.preset.prompts_per_pair
        prompts = _prompts(shop, max(plan.recipe.sampling.batch_size, trained))
        if plan.recipe.sampling.engine == "transformers":
            for who in ("teacher", "student"):
                memory[f"the {who} answers"], tokens[who] = _sample(shop, who, prompts[: plan.recipe.sampling.batch_size])
        memory["training"], seconds = _train(shop, prompts[:trained])
        return Probed(memory, seconds, tokens, min(DECODED + 1, plan.recipe.sampling.max_tokens))


def _prompts(shop: Workshop, count: int) -> list[Prompt]:
    """Prompts of the longest kind: any ids, or with an image where the recipe's have one."""
    length = shop.plan.recipe.prompts.max_tokens
    ids = torch.randint(0, shop.vocab, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    avoided = {*shop.stop_ids, *shop.media_ids}
    if not shop.plan.target.modality.own_view:
        return [Prompt(f"probe-{n}", (), prompt_ids=tuple(0 if i in avoided else i for i in row)) for n, row in enumerate(ids)]
    longest = _with_image(shop, length)
    return [replace(longest, id=f"probe-{n}") for n in range(count)]


def _with_image(shop: Workshop, length: int) -> Prompt:
    """A prompt with one image, with as many words as make it `length` tokens long."""
    import io

    side = int(shop.plan.recipe.prompts.image_pixels ** 0.5)
    data = io.BytesIO()
    _image(side).save(data, "PNG")
    name = shop.images.put(RawImage.of(data.getvalue()))
    words = 1
    while True:
        content = ({"type": "image"}, {"type": "text", "text": "word " * words})
        found = shop.rendered(Prompt("probe", ({"role": "user", "content": content},), images=(name,)))
        over = max(len(found.prompt_ids), len(found.student_prompt_ids or ())) - length
        if over >= 0 or words > length:
            return found
        words += max(1, -over)


def _image(side: int) -> Any:
    """Grey."""
    from hubdistill.pairs.images import blank

    return blank(side)


def _sample(shop: Workshop, who: str, prompts: Sequence[Prompt]) -> tuple[Peaks, float]:
    """Peaks, and seconds of a decoded token of the batch."""
    settings, seconds = shop.plan.recipe.sampling, list[float]()
    with measured() as peaks, borrowed(shop.load_teacher if who == "teacher" else lambda: shop.load_adapted(None)) as model:
        for tokens in (1, min(DECODED + 1, settings.max_tokens)):
            began = time.monotonic()
            shop.sample(shop.folder / f"{tokens}", who, "probe", model, shop.questions(prompts, who), settings=settings.model_copy(update={"max_tokens": tokens}))
            seconds.append(time.monotonic() - began)
    return peaks, (seconds[-1] - seconds[0]) / max(1, min(DECODED, settings.max_tokens - 1))


class _Clock(TrainerCallback):
    """When each optimiser step ended."""

    def __init__(self) -> None:
        self.ends = list[float]()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.ends.append(time.monotonic())


def _train(shop: Workshop, prompts: Sequence[Prompt]) -> tuple[Peaks, float]:
    """Peaks, and seconds of the second step, which is one micro-batch."""
    plan, clock = shop.plan, _Clock()
    train, length = plan.recipe.train, plan.recipe.sampling.max_tokens
    pairs = [Pair(prompt.id, prompt.prompt_ids, (0,) * length, (0,) * length, prompt.student_prompt_ids, prompt.images) for prompt in prompts]
    release_memory()
    with measured() as peaks, _teacher(shop) as teacher, borrowed(lambda: shop.load_to_train(None)) as student:
        distillation = Distillation(teacher=teacher, reading=shop.reading, vocab=shop.vocab, preset=plan.preset, position=Position(round=1, rounds=train.rounds),
                                    curriculum=_curriculum(plan), shared=shop.who_shares(teacher, student, pairs[0]))  # fmt: skip
        distillation = held_against_before(distillation, student, pairs, train.micro_batch)
        arguments = on_one_device(TrainingArguments(**training_arguments(
            shop.folder / "training", train, seed=train.seed, accumulation=1, num_train_epochs=1, save_strategy="no", report_to=[],
            per_device_train_batch_size=train.micro_batch * plan.preset.prompts_per_pair)))  # fmt: skip
        trainer = ContrastiveTrainer(student, arguments, pairs, distillation, callbacks=[clock])  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        trainer.works_ahead = False  # the second step's images would be read in the first one's time
        trainer.train()
        del trainer
    return peaks, clock.ends[-1] - clock.ends[-2]


def _curriculum(plan: Plan) -> AlphaCurriculum:
    """As it is after round 1 where alpha is chosen for each response, whole ones: that takes more memory."""
    found = AlphaCurriculum(plan.preset, round=2)
    found.anchors = [1.0, 1.0]
    return found


@contextmanager
def _teacher(shop: Workshop) -> Iterator[Teacher]:
    """The teacher as `teacher.placement` says; a cached one has said nothing but zeros."""
    from hubdistill.models.load import head_of

    if shop.plan.recipe.teacher.placement != "cached":
        with borrowed(lambda: shop.load_teacher(layout=shop.teacher_layout)) as model:
            yield LoadedTeacher(model, shop.reading, shop.device)
        return
    with borrowed(shop.load_teacher) as model:
        head, width, dtype = moved(head_of(model), shop.device), model.config.get_text_config().hidden_size, model.dtype
        head = replace(head, weight=head.weight.clone())
    zeros = _Zeros(torch.zeros(shop.plan.recipe.sampling.max_tokens, width, dtype=dtype))
    yield CachedTeacher(head, zeros, zeros)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Zeros:
    value: torch.Tensor

    def of(self, prompt_id: str) -> torch.Tensor:
        return self.value
