"""What each stage does with models, given narrow inputs; `run.py` puts them in order and keeps their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hubdistill.errors import InputError
from hubdistill.files import folder_sha256
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.modalities.base import Reading, TokenRow, image_id, media_ids, tokenizer_of
from hubdistill.models.hardware import pick_device
from hubdistill.models.heap import return_freed, return_large_blocks
from hubdistill.models.layout import WHOLE, Layout
from hubdistill.models.load import end_of_turn, generation_stops, load_tokenizer, template_hash
from hubdistill.models.lora import attach_adapter, load_adapter
from hubdistill.models.pruned import build_pruned
from hubdistill.models.vllm_model import engine_settings
from hubdistill.models.vocab import common_vocab
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.interleaving import Acceptance, InterleavedSampler
from hubdistill.pairs.prompts import Encoded, Prompt
from hubdistill.pairs.sampling import Sampler, TransformersSampler, share_of
from hubdistill.pairs.server_answers import AnswerReader
from hubdistill.pairs.server_sampling import ServerSampler
from hubdistill.pairs.store import Question, ResponseHeader, ResponseSet, collect, seed_for
from hubdistill.pairs.vllm_images import Pictures
from hubdistill.pairs.vllm_sampling import VllmSampler
from hubdistill.plan import Plan
from hubdistill.processes import ALONE, Processes
from hubdistill.specs import SamplingSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from hubdistill.pairs.join import Pair


NOT_THE_TEXT = {"resample_teacher", "batch_size", "vllm", "server"}  # fields of `sampling` that decide no response, but for rounding
NOT_THE_RESULT = {"tracker", "save_every", "micro_batch", "gradient_checkpointing", "device", "distributed"}  # and fields of `train` that decide no adapter


class Reporter(Protocol):
    """Where progress goes; the CLI shows it, tests collect it."""

    def stage(self, name: str, what: str) -> None: ...
    def start(self, label: str, total: int, unit: str) -> None: ...
    def advance(self, done: int, tokens: int = 0) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Workshop:
    """Loads what the stages need. Models are loaded per stage and dropped after it; the tokenizer is kept."""

    plan: Plan
    reporter: Reporter
    folder: Path  # the run directory
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if self.plan.recipe.train.gradient_checkpointing and self.device.type == "cpu":  # asked for to save memory, so time is given for it
            return_large_blocks()  # before the first stage: blocks that it leaves free in the heap would be filled, and kept, by the next

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.plan.recipe.train.device)

    @cached_property
    def teacher_device(self) -> torch.device:
        named = self.plan.recipe.teacher.device
        return self.device if named == "auto" else pick_device(named)

    @cached_property
    def readers(self) -> dict[str, Any]:
        """What each model reads prompts with. Text models both read through the teacher's tokenizer, so that their
        responses answer the same text; vision models each through a processor of their own."""
        modality, plan = self.plan.target.modality, self.plan
        teacher = modality.load_reader(plan.teacher)
        return {"teacher": teacher, "student": modality.load_reader(plan.student_source, teacher) if modality.own_view else teacher}

    @property
    def tokenizer(self) -> Any:
        """The teacher's, which gives the text of responses."""
        return tokenizer_of(self.readers["teacher"])

    @cached_property
    def reading(self) -> Reading:
        return Reading(modality=self.plan.target.modality, **self.readers, pad_id=self.pad_id, open_image=self.images.open)

    @property
    def images(self) -> ImageStore:
        return self.store(self.plan.recipe.prompts.image_pixels)

    def store(self, pixels: int) -> ImageStore:
        """Where images are kept; new ones are scaled down to `pixels`."""
        return ImageStore(self.folder / "prompts" / "images", pixels)

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt, as each model reads it. Raises InputError."""
        modality, images = self.plan.target.modality, [self.images.open(name) for name in prompt.images]
        ids = {who: modality.encode_prompt(reader, prompt.messages, images) for who, reader in self.readers.items() if modality.own_view or who == "teacher"}
        return Encoded(**ids)

    def rendered(self, prompt: Prompt) -> Prompt:
        """The prompt with its token ids."""
        encoded = self.encode(prompt)
        return replace(prompt, prompt_ids=tuple(encoded.teacher), student_prompt_ids=None if encoded.student is None else tuple(encoded.student))

    @property
    def spread(self) -> Layout:
        """How the student lies over the processes while it trains."""
        return Layout(shards=self.processes.size if self.plan.recipe.train.distributed.strategy == "fsdp2" else 1)

    @property
    def teacher_layout(self) -> Layout:
        """And the teacher."""
        return replace(self.spread, offload=self.plan.recipe.teacher.placement == "offload")

    def load_teacher(self, layout: Layout = WHOLE) -> PreTrainedModel:
        return self.plan.target.load_teacher(self.plan.teacher, self.plan.recipe.teacher, self.teacher_device, layout)

    def build_student(self) -> None:
        """Write a pruned student to its place in the cache, unless it is there."""
        plan = self.plan
        if plan.recipe.student.layers:
            build_pruned(plan.student_source, plan.student, plan.recipe.student.layers)

    def load_student(self, layout: Layout = WHOLE) -> PreTrainedModel:
        """The student without adapter; a pruned one is built first."""
        plan = self.plan
        self.build_student()
        return plan.target.load_student(plan.student, plan.recipe.student, self.device, plan.recipe.target.options, layout)

    def load_adapted(self, adapter: Path | None, *, trainable: bool = False, layout: Layout = WHOLE) -> PeftModel:
        """The student with a saved adapter, or with a fresh one."""
        student = self.load_student(layout)
        if adapter is None:
            return attach_adapter(student, self.plan.recipe.lora, self.plan.recipe.train.seed)
        return load_adapter(student, adapter, trainable=trainable)

    def load_to_train(self, adapter: Path | None) -> PeftModel:
        """The student with an adapter to train, spread over the processes."""
        return self.load_adapted(adapter, trainable=True, layout=self.spread)

    @cached_property
    def vocab(self) -> int:
        """Common vocabulary size; compared here where the plan had no tokenizers at hand."""
        if self.plan.vocab is not None:
            return self.plan.vocab
        rows = [facts.text_config["vocab_size"] for facts in (self.plan.teacher, self.plan.student)]
        return common_vocab(self.tokenizer, load_tokenizer(self.plan.student_source), *rows)

    @cached_property
    def end_id(self) -> int:
        """Id that ends the assistant's turn in the teacher's template."""
        return end_of_turn(self.readers["teacher"])

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response of either model: the teacher's template decides, the student may know others."""
        found = {self.tokenizer.eos_token_id, self.end_id, end_of_turn(self.readers["student"])}
        for facts in (self.plan.teacher, self.plan.student_source):
            found.update(generation_stops(facts))
        return tuple(sorted(i for i in found if i is not None and i < self.vocab))

    @property
    def pad_id(self) -> int:
        # Padding is masked, but its id must exist in both embeddings.
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.vocab else self.stop_ids[0]

    @cached_property
    def media_ids(self) -> tuple[int, ...]:
        """Ids that stand for an image, a video or a sound in the prompt of either model; in a response they would ask for one."""
        return tuple(sorted({i for reader in self.readers.values() for i in media_ids(reader)}))

    def questions(self, prompts: Sequence[Prompt], who: str) -> list[Question]:
        """Saved prompts as the token ids that a model reads: rendered once, since a template may write the date. Raises InputError where the teacher's template uses a token that the student does not have."""
        if self.plan.target.modality.own_view:
            views = [prompt.prompt_ids if who == "teacher" else prompt.student_prompt_ids or () for prompt in prompts]
            return [Question(prompt.id, ids, prompt.images) for prompt, ids in zip(prompts, views, strict=True)]
        found = [Question(prompt.id, prompt.prompt_ids) for prompt in prompts]
        highest = max((i for question in found for i in question.prompt_ids), default=0)
        if highest >= self.vocab:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise InputError(f"the teacher's template writes {token!r} (id {highest}), and the student has {self.vocab} ids only; choose a student of the teacher's family")
        return found

    def who_shares(self, teacher: Any, student: Any, pair: Pair) -> frozenset[str]:
        """Which models read the prompt of a pair once while training (training/prefix.py); a note for each that does not. `teacher` may be
        one that has read everything before, and has no say then."""
        from hubdistill.training.prefix import who_shares

        if not all(self.plan.preset.sides):  # one response a prompt
            return frozenset()
        models = {"student": student} | ({"teacher": teacher.model} if hasattr(teacher, "model") else {})
        found = who_shares(self.plan.sharing, models, self.reading, pair, self.reporter.note)
        return found if "teacher" in models or not found else frozenset({"teacher", "student"})  # so that no second view of a batch is made

    @contextmanager
    def answering(self, who: str, adapter: Path | None) -> Iterator[PreTrainedModel | None]:
        """The model that answers a round's prompts; None where a server has it, or vLLM loads it, for which the device is left free."""
        if self.plan.served(who):
            yield None
            return
        if self.plan.recipe.sampling.engine == "vllm":
            self.build_student()
            release_memory()
            yield None
            return
        with borrowed(self.load_teacher if who == "teacher" else lambda: self.load_adapted(adapter)) as model:
            yield model

    @contextmanager
    def beside(self, who: str) -> Iterator[PreTrainedModel | None]:
        """The teacher, where it answers together with the student."""
        if who != INTERLEAVED:
            yield None
            return
        with borrowed(self.load_teacher) as teacher:
            yield teacher

    @property
    def together(self) -> dict[str, Any]:
        """What, besides the student, decides the responses that both write together."""
        plan = self.plan
        return {"acceptance": asdict(Acceptance.of(plan.preset)), "teacher": plan.teacher.commit, "teacher_dtype": plan.number_format("teacher")}

    def _seeds(self, purpose: str, who: str) -> Callable[[str], int]:
        return lambda prompt_id: seed_for(self.plan.recipe.train.seed, purpose, who, prompt_id)

    def _sampler(self, folder: Path, who: str, purpose: str, model: PreTrainedModel | None, adapter: Path | None, teacher: PreTrainedModel | None) -> Sampler:
        """The engine: transformers with a model that is loaded, or with both, a server or vLLM without one."""
        if model is not None and teacher is not None:
            return InterleavedSampler(model, self.stop_ids, self.pad_id, self.vocab, self.reporter.advance, self.media_ids,
                                      teacher=teacher, acceptance=Acceptance.of(self.plan.preset), seeds_of=partial(self._seeds, purpose))  # fmt: skip
        if model is not None:
            return TransformersSampler(model, self.stop_ids, self.pad_id, self.vocab, self.reporter.advance, self.media_ids, self._prepare(who))
        recipe, facts = self.plan.recipe, self.plan.teacher if who == "teacher" else self.plan.student
        never = (*(i for i in self.media_ids if i < self.vocab), *range(self.vocab, facts.text_config["vocab_size"]))
        if server := self.plan.served(who):
            end = self.end_id if self.end_id in self.stop_ids else self.stop_ids[0]
            return ServerSampler(server, self.plan.served_as, AnswerReader(self.tokenizer, self.stop_ids, end, self.vocab), never, self.reporter.advance)
        dtype = (recipe.teacher if who == "teacher" else recipe.student).dtype
        settings = engine_settings(facts, dtype, self.device.type, recipe.sampling, recipe.prompts.max_tokens, recipe.lora.rank if adapter else None, trained=who == "student")
        pictures = Pictures(self.images.folder, image_id(self.readers[who])) if self.plan.target.modality.own_view else None
        return VllmSampler(settings, adapter, self.stop_ids, never, self.device.type, folder / f"{who}.vllm.log", self.reporter.advance,
                           recipe.sampling.vllm.data_parallel_size, lambda seconds: self.reporter.note(f"vLLM is ready, after {seconds:.0f} s"), pictures)  # fmt: skip

    def sample(self, folder: Path, who: str, purpose: str, model: PreTrainedModel | None, questions: Sequence[Question], adapter: Path | None = None,
               settings: SamplingSpec | None = None, together: bool = False, teacher: PreTrainedModel | None = None) -> ResponseSet:  # fmt: skip
        """Sample one response a question into `folder`, resumable; see pairs/store.py. `settings` replace the recipe's; without a model, a server or vLLM samples,
        with a `teacher` beside it both do. The processes of a run share the questions where they are here `together`; vLLM, which has all devices, is the first's."""
        processes = self.processes if together else ALONE
        recipe, sampler = self.plan.recipe, self._sampler(folder, who, purpose, model, adapter, teacher)
        sampling = (settings or recipe.sampling).model_copy(update={"engine": sampler.engine})
        speaker = "teacher" if who == "teacher" else "student"  # who draws first
        facts = self.plan.teacher if speaker == "teacher" else self.plan.student
        said = sampling.model_dump(exclude=NOT_THE_TEXT) | ({"server": self.plan.served_as} if sampler.engine == "server" else self.together if teacher is not None else {})
        header = ResponseHeader(
            who=who, purpose=purpose, model=facts.reference, commit=facts.commit, dtype=self.plan.number_format(speaker), vocab=self.vocab, adapter=folder_sha256(adapter) if adapter else None,
            template=template_hash(self.readers[speaker]), sampling=said,
            stop_ids=self.stop_ids, engine=sampler.engine, engine_version=sampler.version, seed=recipe.train.seed,
            server=recipe.sampling.server.host if recipe.sampling.server and sampler.engine == "server" else None,
        )  # fmt: skip

        def missing(wanted: list[Question]) -> Iterator[list[Any]]:
            if model is not None:
                wanted = share_of(wanted, sampling.batch_size, processes)
            elif not processes.first:
                wanted = []
            if not wanted:  # a recipe may hold no prompt out, and ask a set of questions alone
                return iter(())
            if model is not None:
                self._check_batches(who, model, wanted, facts.reference)
            share = "" if processes.alone or model is None else f" (1 of {processes.size} processes)"
            speaks = "student and teacher answer" if teacher is not None else f"{who} answers"
            self.reporter.start(f"{speaks}, {purpose}{share}", len(wanted), "responses")
            return sampler.sample(wanted, sampling, self._seeds(purpose, speaker))

        found = collect(folder, header, questions, missing, processes)
        if lost := found.manifest.get("unusable"):
            self.reporter.note(f"{lost} of {len(found)} answers of {header.server} were not given as tokens of the teacher, and are left out")
        if isinstance(sampler, InterleavedSampler) and sampler.said:
            self.reporter.note(f"{sampler.kept / sampler.said:.1%} of the tokens are the student's; the teacher replaced the others")
        return found

    @cached_property
    def _checked(self) -> set[str]:
        return set()

    def _check_batches(self, who: str, model: PreTrainedModel, questions: Sequence[Question], name: str) -> None:
        """Once for each model of a vision recipe, on the prompts that differ most in length: families that nobody tried show here."""
        seen = sorted((question for question in questions if question.images), key=lambda question: len(question.prompt_ids))
        if seen and who not in self._checked:
            self._checked.add(who)
            self.reading.check(who, model, [TokenRow(question.prompt_ids, question.images) for question in (seen[0], seen[-1])], name)

    def _prepare(self, who: str) -> Any:
        """(model, questions) -> the arguments of `generate`."""

        def prepare(model: Any, questions: Sequence[Question]) -> dict[str, Any]:
            rows = [TokenRow(question.prompt_ids, question.images) for question in questions]
            return self.reading.modality.arguments(model, self.reading.inputs(who, rows, "left").to(model.device))

        return prepare


@contextmanager
def borrowed(load: Any) -> Iterator[Any]:
    """A model for the length of a block. Memory of models that were dropped before goes back to the device first."""
    release_memory()  # not only at the end: there, who borrowed a model may still hold its name
    model = load()
    try:
        yield model
    finally:
        del model
        release_memory()


def release_memory() -> None:
    """Give freed tensors back to the device, and to the system."""
    import gc

    gc.collect()
    return_freed()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
