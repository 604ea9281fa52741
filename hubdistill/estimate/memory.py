"""Memory of each stage of a run, from configs: what is held at its peak, part by part, in one process.

P prompt tokens and R response tokens at most, D hidden size, V common vocabulary, a weights of the adapter. Activations come
from `traces.py`; the loss from the budgets of its tiles; the rest is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubdistill.estimate.calls import Call, Trace
from hubdistill.estimate.machines import GIB, Machine
from hubdistill.estimate.traces import trace
from hubdistill.estimate.weights import BYTES, Counts, adapter_count, count, model_bytes, settings_of
from hubdistill.evaluation.budget import KEPT_BYTES, ROWS, TILE_BYTES
from hubdistill.losses.budget import CAST_BYTES, fitting, usual_budget, whole_budget
from hubdistill.models.quantized_config import stored

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts
    from hubdistill.plan import Plan

ADAM = 16  # bytes a weight of the adapter: itself, its gradient and AdamW's two moments in float32
LIBRARIES = {"cpu": int(0.61 * GIB), "cuda": int(0.6 * GIB)}  # Python with its libraries; a CUDA context with its work spaces
# Beside activations and caches on a CPU: glibc's malloc keeps freed blocks of up to 32 MiB and does not fill all of the holes.
# Measured as 0.4 to 0.9 over 20 shapes (docs/forecast.md). Where each block is given back at once (models/heap.py) training has none, and
# generating, of many small blocks, 0.2 to 0.4.
HOLES, SMALL_HOLES = 0.7, 0.3
FIXED = ("weights", "adapter", "student", "teacher", "mapped file")  # parts that are allocated once
SCORES = 5  # copies of a row of scores while a token is chosen (pairs/choice.py)
SFT_ROWS = 256  # tokens whose logits TRL's fused head holds at once
TOGETHER = "both models answer together"
GATHERED = 2  # blocks that FSDP2 holds whole: the one at work and the next


@dataclass(frozen=True)
class StageMemory:
    """One stage: bytes by what they are for, on the student's device; and the teacher's device, where that is another."""

    name: str
    parts: dict[str, int]
    other_device: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Sizes:
    """Models as they are loaded on a device."""

    plan: Plan
    kind: str  # of the device
    memory: int = 0  # of the device, bytes; where what is held depends on it

    def dtype(self, who: str) -> str:
        spec, facts = getattr(self.plan.recipe, who), self.facts(who)
        named = spec.dtype if spec.dtype != "auto" else ("float32" if self.kind == "cpu" else facts.saved_dtype or "float32")
        return str(named).removeprefix("torch.")

    def facts(self, who: str) -> ModelFacts:
        return self.plan.teacher if who == "teacher" else self.plan.student

    def counts(self, who: str) -> Counts:
        return count(self.facts(who))

    @property
    def packed(self) -> bool | None:
        """Whether scales of a 4-bit student are doubly quantised; None where it is not in 4 bit."""
        quantization = self.plan.quantization
        return None if quantization is None else bool(quantization["bnb_4bit_use_double_quant"])

    def weights(self, who: str) -> int:
        return model_bytes(self.counts(who), self.dtype(who), self.packed if who == "student" else None)

    def head(self, who: str) -> int:
        return self.counts(who).head * (4 if who == "student" and self.packed is not None else BYTES[self.dtype(who)])

    @property
    def adapter(self) -> int:
        return adapter_count(self.plan.student, self.plan.recipe.lora)

    @property
    def mapped(self) -> dict[str, int]:
        """On a CPU the file stays mapped of which a 4-bit student was made: the resident set counts its blocks, in float32."""
        made = self.kind == "cpu" and self.packed is not None and stored(self.facts("student")) is None
        return {"mapped file": self.counts("student").blocks * BYTES["float32"]} if made else {}

    def shared(self, who: str) -> bool:
        """Whether a model reads the prompt of a pair once."""
        return all(self.plan.preset.sides) and self.plan.sharing[who].shared

    def pairs(self, who: str, *, train: bool = False) -> Trace:
        """A micro-batch: pairs in one row where the model reads so, else a row for each response."""
        recipe = self.plan.recipe
        length = recipe.prompts.max_tokens + recipe.sampling.max_tokens
        if not self.shared(who):
            return self.trace(who, 2 * recipe.train.micro_batch, length, train=train)
        return self.trace(who, recipe.train.micro_batch, length, train=train, response=recipe.sampling.max_tokens)

    def trace(self, who: str, rows: int, length: int, *, response: int = 0, train: bool = False, cache: bool = False) -> Trace:
        facts, recipe = self.facts(who), self.plan.recipe
        packed = who == "student" and self.packed is not None
        return trace(Call(
            settings=settings_of(facts), dtype="float32" if packed else self.dtype(who), rows=rows, length=length, response=response, rank=recipe.lora.rank if train else 0,
            modules=recipe.lora.modules if train else None, packed=self._compute if packed else "", checkpointing=train and recipe.train.gradient_checkpointing,
            cache=cache, eager=bool(facts.text_config.get("attn_logit_softcapping")),
        ))  # fmt: skip

    @property
    def _compute(self) -> str:
        said = self.plan.recipe.student.dtype
        return said if said != "auto" else ("float32" if self.kind == "cpu" else "bfloat16")


def memory_of(plan: Plan, machine: Machine) -> list[StageMemory]:
    """The stages of a run on a device, in their order. Raises InputError for a config of which no model can be made."""
    sizes = Sizes(plan, machine.kind, machine.memory)
    found = [_sampling(sizes, machine, who) for who in ("teacher", "student")]
    if plan.recipe.warmup.kind != "none":
        found.insert(1, _warm_up(sizes))
    found += [_both_answer(sizes)] if plan.preset.interleaved else []
    found += _training(sizes)
    found += [_evaluation(sizes)] if plan.recipe.evaluate else []
    return [_with_the_rest(stage, sizes) for stage in found]


def _with_the_rest(stage: StageMemory, sizes: Sizes) -> StageMemory:
    """The stage with libraries, and on a CPU what the allocator wastes."""
    moving = sum(size for name, size in stage.parts.items() if name not in FIXED)
    given_back = sizes.plan.recipe.train.gradient_checkpointing  # the Workshop sees to it
    share = HOLES if not given_back else 0 if stage.name in ("warm-up", "training") else SMALL_HOLES
    holes = {"holes in the heap": int(moving * share)} if sizes.kind == "cpu" and share else {}
    return StageMemory(stage.name, {"libraries": LIBRARIES[sizes.kind], **stage.parts, **holes}, stage.other_device)


def _sampling(sizes: Sizes, machine: Machine, who: str) -> StageMemory:
    sampling = sizes.plan.recipe.sampling
    name = f"the {who} answers"
    if sampling.engine == "vllm":
        share = int(machine.memory * sampling.vllm.gpu_memory_utilization)
        weights = min(sizes.weights(who) // sampling.vllm.tensor_parallel_size, share)
        return StageMemory(name, {"weights": weights, "keys and values": share - weights - LIBRARIES[machine.kind]})
    mapped = sizes.mapped if who == "student" else {}
    return StageMemory(name, {"weights": sizes.weights(who)} | mapped | _generation(sizes, who, sampling.batch_size))


def _both_answer(sizes: Sizes) -> StageMemory:
    """Both models go through a batch side by side (pairs/interleaving.py)."""
    rows, apart = sizes.plan.recipe.sampling.batch_size, sizes.plan.recipe.teacher.device not in ("auto", sizes.plan.recipe.train.device)
    teacher = {"weights": sizes.weights("teacher")} | _generation(sizes, "teacher", rows)
    parts = {"weights": sizes.weights("student")} | sizes.mapped | _generation(sizes, "student", rows)
    if apart:
        return StageMemory(TOGETHER, parts, teacher)
    return StageMemory(TOGETHER, parts | {name: parts[name] + size for name, size in teacher.items()})


def _generation(sizes: Sizes, who: str, rows: int, more: int = 0) -> dict[str, int]:
    """What `generate` holds: the cache at its longest, and beside it the larger of reading the prompts and choosing a token. Answers may
    be `more` tokens longer than those of the rounds."""
    recipe, counts = sizes.plan.recipe, sizes.counts(who)
    prompt, longest = recipe.prompts.max_tokens, recipe.prompts.max_tokens + recipe.sampling.max_tokens + more
    read = sizes.trace(who, rows, prompt, cache=True)
    cache = read.kept * longest // prompt
    layer = cache // counts.layers  # a layer's cache is copied when it grows
    choosing = rows * counts.vocab * 4 * SCORES
    return {"keys and values": cache, "activations": max(read.forward - cache, layer + choosing)}


def _warm_up(sizes: Sizes) -> StageMemory:
    recipe, student = sizes.plan.recipe, sizes.counts("student")
    rows, length = recipe.train.micro_batch, recipe.prompts.max_tokens + recipe.sampling.max_tokens
    found = sizes.trace("student", rows, length, train=True)
    logits = SFT_ROWS * student.vocab * 4 * 3
    return StageMemory("warm-up", {"weights": _student(sizes), "adapter": sizes.adapter * ADAM, "activations": max(found.forward, found.backward),
                                   "loss": max(0, found.kept + logits - max(found.forward, found.backward))} | sizes.mapped)  # fmt: skip


def _student(sizes: Sizes) -> int:
    """The student's weights while it trains."""
    return _spread(sizes, "student") if sizes.packed is None else sizes.weights("student")


def _spread(sizes: Sizes, who: str) -> int:
    """Weights in one process: all, or its part and the blocks that are gathered."""
    weights, counts = sizes.weights(who), sizes.counts(who)
    if sizes.plan.recipe.train.distributed.strategy != "fsdp2" or sizes.plan.processes == 1:
        return weights
    block = counts.blocks // counts.layers * BYTES[sizes.dtype(who)]
    return weights // sizes.plan.processes + GATHERED * block + sizes.head(who)


def _training(sizes: Sizes) -> list[StageMemory]:
    recipe = sizes.plan.recipe
    placement, apart = recipe.teacher.placement, recipe.teacher.device not in ("auto", recipe.train.device)
    student, read = sizes.pairs("student", train=True), sizes.pairs("teacher")
    stages = []
    if placement == "cached":
        stages.append(StageMemory("the teacher reads", {"weights": sizes.weights("teacher"), "activations": read.forward}))
    teacher = {"resident": _spread(sizes, "teacher"), "offload": _offloaded(sizes), "cached": sizes.head("teacher")}[placement]
    reading = 0 if placement == "cached" or apart else read.forward
    loss = _loss(sizes, recipe.train.micro_batch)
    # The teacher reads, and the loss is formed, while what the student's backward pass needs is held.
    peak = max(student.forward, student.backward, student.kept + max(reading, loss))
    parts = {"student": _student(sizes), "teacher": sizes.head("teacher") if apart else teacher, "adapter": sizes.adapter * ADAM,
             "activations": student.kept, "loss, or the teacher's activations": peak - student.kept} | sizes.mapped  # fmt: skip
    other = {"teacher": teacher, "activations": read.forward} if apart and placement != "cached" else {}
    return [*stages, StageMemory("training", parts, other)]


def _offloaded(sizes: Sizes) -> int:
    """What of the teacher is on the device when its blocks are not, and one of them."""
    counts, size = sizes.counts("teacher"), BYTES[sizes.dtype("teacher")]
    return counts.others * size + counts.blocks // counts.layers * size


def _loss(sizes: Sizes, pairs: int) -> int:
    """Buffers of the chunked loss (losses/chunked.py) at N = 2 R tokens a pair, and hidden states with their gradients."""
    recipe, vocab = sizes.plan.recipe, sizes.plan.vocab or sizes.counts("student").vocab
    tokens, student, teacher = 2 * pairs * recipe.sampling.max_tokens, sizes.counts("student"), sizes.counts("teacher")
    row, whole = 2 * vocab * 4, whole_budget(sizes.kind, sizes.memory)
    longest = min(recipe.sampling.max_tokens, whole // row) if sizes.plan.preset.anchor != "off" else 0  # alpha needs it whole; a longer one is cut
    tile = min(tokens, fitting(usual_budget(sizes.kind), row, longest=longest, whole_bytes=whole))
    narrow = tile * vocab * 2 if sizes.kind == "cuda" and sizes.dtype("student") == "bfloat16" else 0  # the gradient's own buffer
    casts = sum(CAST_BYTES for who in ("teacher", "student") if sizes.kind == "cpu" and sizes.dtype(who) != "float32")
    return tile * row + narrow + casts + tokens * (student.hidden * 4 * 3 + teacher.hidden * 4)


def _evaluation(sizes: Sizes) -> StageMemory:
    """Both models are there: the teacher scores what the student said."""
    recipe = sizes.plan.recipe
    length = recipe.prompts.max_tokens + recipe.sampling.max_tokens
    tile = min(TILE_BYTES, ROWS * recipe.sampling.max_tokens * (sizes.plan.vocab or sizes.counts("student").vocab) * 4)
    scoring = max(sizes.trace(who, ROWS, length).forward for who in ("teacher", "student")) + 8 * tile  # token_metrics
    held = recipe.prompts.heldout * recipe.sampling.max_tokens * sizes.counts("teacher").hidden * BYTES[sizes.dtype("teacher")]
    judged = [(one.questions or recipe.prompts).max_tokens + one.max_tokens for one in recipe.evaluate if one.judge]
    saying = sum(_generation(sizes, "student", recipe.sampling.batch_size, max([length, *judged]) - length).values())
    apart = sizes.plan.recipe.teacher.device not in ("auto", recipe.train.device)
    return StageMemory("evaluation", {"student": sizes.weights("student") + sizes.adapter * 4, "teacher": 0 if apart else sizes.weights("teacher"),
                                      "activations, keys and values": max(scoring, saying), "what the teacher said": min(KEPT_BYTES, held) if sizes.kind == "cpu" else 0} | sizes.mapped)  # fmt: skip
