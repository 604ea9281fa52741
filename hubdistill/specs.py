"""The blocks of a recipe, as frozen pydantic models. An unknown key is an error; every field states its unit.

The JSON schema and docs/recipe.md are generated from this file: `python -m hubdistill.recipe_reference`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict, field_validator, model_validator

COMMIT = r"^[0-9a-f]{40}$"
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")]


class Spec(BaseModel):
    """Base of all recipe blocks: frozen, strict about types, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _key: str = PrivateAttr("")

    @property
    def key(self) -> str:
        """The block of the recipe that errors name, where code asks for it."""
        return self._key

    def under(self, key: str) -> Self:
        """The same, as the block `key` of the recipe."""
        found = self.model_copy()
        found._key = key
        return found


class ModelSpec(Spec):
    """A model: where it is and how it is loaded."""

    model: str = Field(min_length=1, description="Hub id, path relative to the recipe, `pypi:PACKAGE` for a GGUF model shipped in an installed Python package, or `toy:NAME` for a tiny random one that is made on the spot (smoke recipes).")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub; resolved to a commit once, when the run is planned.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Number format of the weights; `auto` keeps the checkpoint's own, and float32 on CPU.")
    trust_remote_code: bool = Field(False, description="Run Python code from the model repository. Needs `revision` to be a full 40-digit commit.")

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> ModelSpec:
        if self.trust_remote_code and not re.match(COMMIT, self.revision or ""):
            raise ValueError("trust_remote_code needs `revision` to be a full 40-digit commit, so that the code that runs is the code you read")
        return self


class TeacherSpec(ModelSpec):
    """The frozen teacher."""

    device: Device = Field("auto", description="Device of the teacher while training; `auto` is the student's.")
    placement: Literal["resident", "offload", "cached"] = Field("resident", description="Where the teacher is while training. resident: on its device. offload: its blocks in main memory, each brought to the device as it is used. cached: nowhere; what it says of each response is written to the run directory once, and only its head is loaded (same loss).")


class StudentSpec(ModelSpec):
    """The student that gets the adapter."""

    layers: int | Annotated[tuple[int, ...], Strict(False)] | None = Field(None, description="Prune the student's decoder: a number keeps that many layers and leaves out a block in the middle; a list names them (from 0).")

    @model_validator(mode="after")
    def _layers_make_sense(self) -> StudentSpec:
        named = self.layers
        if isinstance(named, int) and named < 1:
            raise ValueError("layers must be at least 1")
        if isinstance(named, tuple) and (not named or min(named) < 0 or len(set(named)) != len(named) or list(named) != sorted(named)):
            raise ValueError("layers must be a rising list of layer numbers from 0, for example [0, 2, 4]")
        return self


class SourceSpec(Spec):
    """Rows of a data set, as prompts."""

    _key: str = PrivateAttr("prompts")

    dataset: str = Field(min_length=1, description="Hub dataset id; or a .jsonl, .json, .parquet or .csv file, path relative to the recipe; or `shipped:FILE` for one that comes with hubdistill.")
    config: str | None = Field(None, description="Configuration (subset) of the Hub dataset.")
    split: str = Field("train", min_length=1, description="Split of the Hub dataset.")
    revision: str | None = Field(None, description="Branch, tag or commit of the Hub dataset.")
    column: str = Field("prompt", min_length=1, description="Column with the prompt: text, or chat messages (everything up to the last user turn is the prompt).")
    response_column: str | None = Field(None, description="Column with the ground-truth response; for chat messages the turn after the prompt is taken without it.")
    image_column: str | None = Field(None, min_length=1, description="Column with the image or images of the prompt (target vlm): bytes, a data set's images, or paths relative to the data file.")
    image_pixels: int = Field(1_048_576, ge=1024, le=100_000_000, description="Largest image kept, in pixels (width x height); larger ones are scaled down, shape kept, when the prompts are read.")
    damaged_images: Literal["refuse", "skip"] = Field("refuse", description="What a row with an image that cannot be read does: stop the run, or be left out and counted.")
    count: int | None = Field(None, ge=1, description="Training prompts, or questions of a set, to draw, by a stable hash of their text; all of them without it.")
    max_tokens: int = Field(512, ge=1, description="Longest prompt, in tokens of the rendered template; longer ones are left out and counted.")
    streaming: bool = Field(False, description="Stream the Hub dataset instead of downloading it (data sets larger than the disk).")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the field that names each."""
        return {field: name for field in type(self).model_fields if field.endswith("column") and (name := getattr(self, field))}


class PromptsSpec(SourceSpec):
    """Where the prompts come from."""

    heldout: int = Field(200, ge=0, description="Prompts kept apart for evaluation, by a stable hash; never trained on.")


class QuestionsSpec(SourceSpec):
    """Questions, with known answers in `response_column`: a text, or a list with one answer for each annotator."""

    _key: str = PrivateAttr("questions")

    response_column: str | None = Field("answers", min_length=1, description="Column with the answers: a text, or a list (one for each annotator, as in OK-VQA and TextVQA; a judge is shown the first). null where there are none, for a judge that needs none.")
    type_column: str | None = Field(None, min_length=1, description="Column with the type of the question; results are also given by type.")
    instruction: str = Field("", max_length=1000, description="Text put after each question on a line of its own, such as how long the answer shall be.")


class PreferenceSpec(SourceSpec):
    """Preference tuning after the last round (section 6.1): DPO on the adapter, held against the distilled student. One pair a prompt; a row whose two responses are equal counts as empty."""

    _key: str = PrivateAttr("preference")

    response_column: str = Field("chosen", min_length=1, description="Column with the preferred response: a text, or chat messages whose last turn is the assistant's.")
    rejected_column: str = Field("rejected", min_length=1, description="Column with the other response, in the same form.")
    heldout: int = Field(50, ge=0, description="Pairs kept apart to measure how often the preferred response is the likelier one; never trained on.")
    beta: float = Field(0.1, gt=0, le=100, description="DPO's beta: how strongly the student is held to what it was before. (Not the loss's beta.)")
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the pairs.")
    learning_rate: float = Field(5e-6, gt=0, lt=1, description="Peak learning rate (cosine, 10 % warm-up); DPO wants one far below that of distillation.")


class VllmSpec(Spec):
    """What vLLM is given (`engine: vllm`); it samples the responses of the rounds."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of each device's memory that vLLM takes, for weights and the keys and values of the prompts in flight; of main memory on a CPU.")
    tensor_parallel_size: int = Field(1, ge=1, description="Devices that one model is spread over.")
    data_parallel_size: int = Field(1, ge=1, le=256, description="Engines that share the prompts, each a copy of the model on `tensor_parallel_size` devices of its own.")


class EndpointSpec(Spec):
    """An OpenAI-compatible server."""

    url: str = Field(description="Address as OpenAI clients take it, for example `http://127.0.0.1:8000/v1`; https where others can read the network. No user name, password or key in it.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the server's key, for example OPENAI_API_KEY; none is sent without it.")
    concurrency: int = Field(16, ge=1, le=1024, description="Requests in flight at once.")
    timeout: float = Field(600.0, gt=0, description="Seconds that one answer may take.")

    @field_validator("url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0) and not re.search(r"\s", url)
        except ValueError:  # a port that is no number, a broken IPv6 address
            fine = False
        if not fine:
            raise ValueError("is no web address (not shown); write the server's, for example http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("holds a user name, a password or a query (not shown), and recipes are published; write the address alone, and name the variable that holds the key in api_key_env")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("is no name of an environment variable (not shown, it may be a key, and recipes are published); write the variable's name, for example OPENAI_API_KEY, and export the key in it")
        return name

    @property
    def host(self) -> str:
        """The address without scheme and path."""
        return urlsplit(self.url).netloc


class ServerSpec(EndpointSpec):
    """An OpenAI-compatible server that gives the teacher's responses of the rounds (vLLM, SGLang, transformers serve). The teacher's weights are needed here all the same: the loss is over its whole vocabulary."""

    _key: str = PrivateAttr("sampling.server")

    model: str | None = Field(None, min_length=1, description="Name that the server gives the teacher; `teacher.model` without it.")


class JudgeSpec(EndpointSpec):
    """The model that says which of two answers is better, asked in both orders (docs/evaluation.md)."""

    _key: str = PrivateAttr("judge")

    model: str = Field(min_length=1, description="Name that the server gives the judge.")
    against: Literal["reference", "teacher", "student"] = Field("reference", description="What an answer is held against: the data's own (`response_column`), the teacher's, or that of the student before training.")
    temperature: float | None = Field(0.7, ge=0, le=5, description="Sampling temperature of the judge (the paper's 0.7); null leaves it to the server, for models that refuse any.")
    max_tokens: int = Field(1024, ge=1, description="Longest verdict with its explanation, in tokens.")
    input_price: float | None = Field(None, ge=0, description="US dollars for a million tokens that the judge reads; what judging cost is told where both prices are given.")
    output_price: float | None = Field(None, ge=0, description="US dollars for a million tokens that the judge writes.")
    max_requests: int | None = Field(None, ge=1, description="Requests that this evaluation may take, those of verdicts that were kept from before included; it ends with an error before more are sent.")
    max_cost: float | None = Field(None, gt=0, description="US dollars that it may cost, counted likewise; needs both prices.")

    @model_validator(mode="after")
    def _prices_come_together(self) -> JudgeSpec:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price go together; write both (0 for what is free), or neither")
        if self.max_cost is not None and self.input_price is None:
            raise ValueError("max_cost needs input_price and output_price; write both, or remove it")
        return self


class SamplingSpec(Spec):
    """How teacher and student answer the prompts (section 3.2 of the paper; 0.8 and 0.95 are its values)."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="What samples the responses of the rounds; `vllm` needs `pip install 'hubdistill[vllm]'` (targets text, drafter, and of vlm the families in docs/sampling.md). Evaluations sample with transformers, in any case.")
    temperature: float = Field(0.8, ge=0, le=5, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus sampling mass.")
    max_tokens: int = Field(512, ge=1, description="Longest response, in tokens.")
    batch_size: int = Field(32, ge=1, description="Prompts answered at once by the transformers engine.")
    resample_teacher: bool = Field(False, description="Sample new teacher responses each round instead of keeping those of round 1.")
    vllm: VllmSpec = Field(VllmSpec(), description="Settings of the vllm engine; they decide no response.")
    server: ServerSpec | None = Field(None, description="A server that gives the teacher's responses of the rounds, in place of `engine` (targets text, int4 and drafter). The student is sampled by `engine`.")


class WarmupSpec(Spec):
    """Supervised fine-tuning before the first round (appendix C.2), as LoRA in the same adapter."""

    kind: Literal["sft", "none"] = Field("sft", description="`none` for a student that already follows instructions.")
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the training prompts.")
    learning_rate: float | None = Field(None, gt=0, lt=1, description="Peak learning rate; the value of `train` without it.")
    responses: Literal["ground_truth", "teacher"] = Field("ground_truth", description="What to fine-tune on: the data set's responses, or the teacher's.")


class LossSpec(Spec):
    """The contrastive loss. A preset fills every field that is left out; see docs/method.md."""

    preset: Literal["distillm2", "paper", "released", "cald", "cald_beta", "cald_alpha", "off_policy", "distillm", "gkd", "imitkd", "skd", "minillm", "kd", "seqkd", "sft", "dpo", "dpkd", "kl", "tvd"] = Field("distillm2", description="distillm2: alpha curriculum, linear beta ramp. paper: Algorithm 1 to the letter. released: what the authors' code ran. cald: eq. 5. The others are what to compare with: docs/baselines.md.")
    alpha: float | None = Field(None, gt=0, lt=1, description="Skew alpha_0: share of the other model in the mixture.")
    alpha_range: Annotated[tuple[float, float], Strict(False)] | None = Field(None, description="Lower and upper clip of the curriculum's alpha (0.01 and 0.1 in B.3).")
    anchor: Literal["off", "frozen", "batch", "ema"] | None = Field(None, description="Mean gap m that the curriculum aims at; `off` keeps alpha constant.")
    nonpositive_gap: Literal["max", "min"] | None = Field(None, description="Alpha where the gap is not positive: the upper or the lower clip.")
    mix_grad: Literal["exact", "detached"] | None = Field(None, description="Whether the gradient flows through the mixture.")
    beta: Literal["linear", "paper", "released", "constant", "off", "full"] | None = Field(None, description="Schedule of beta, the weight of the student-response term; `off` is 0 and `full` 1: the other response is not sampled.")
    beta_end: float | None = Field(None, ge=0, le=1, description="Last beta of the `linear` schedule.")
    reduction: Literal["sequence", "token"] | None = Field(None, description="Mean over a response's tokens, then over responses; or over all tokens.")
    fixed_responses: Literal["teacher", "data", "interleaved"] | None = Field(None, description="What stands beside the student's response: the teacher's; the data set's own; or one that both models write together before each round (interleaved).")
    student_responses: Literal["round", "replay", "initial", "interleaved"] | None = Field(None, description="Which of the student's responses a round trains on: those sampled before it; for each prompt one of any round so far (replay); those of round 1; or those in which the teacher replaces the tokens that it does not accept (interleaved).")
    acceptance: Literal["top_k", "typical", "mixed"] | None = Field(None, description="Interleaved responses: which of the student's tokens the teacher keeps, those among its `top_k` most likely (Speculative KD); those of a probability above min(epsilon^2, epsilon exp(-entropy)) (Medusa; Figure 2 of the paper); or all but a share that is drawn (mixed: MiniLLM).")
    top_k: int | None = Field(None, ge=1, description="Tokens among which `acceptance: top_k` keeps the student's.")
    epsilon: float | None = Field(None, ge=0, le=1, description="How strict `acceptance: typical` is; at 0 all of the student's tokens are kept.")
    teacher_share: float | None = Field(None, ge=0, lt=1, description="Share of the teacher's tokens with `acceptance: mixed`.")
    strength: float | None = Field(None, gt=0, le=100, description="Lambda of the presets dpo and dpkd: how strongly the responses of a pair are told apart.")

    @model_validator(mode="after")
    def _range_is_ordered(self) -> LossSpec:
        if self.alpha_range and not 0 < self.alpha_range[0] <= self.alpha_range[1] < 1:
            raise ValueError("alpha_range must be two numbers with 0 < low <= high < 1, for example [0.01, 0.1]")
        return self


class LoraSpec(Spec):
    """The adapter."""

    rank: int = Field(16, ge=1, le=512, description="Rank r of the adapter.")
    alpha: float = Field(gt=0, description="LoRA's alpha; the adapter is scaled by alpha / rank. (Not the loss's alpha.)")
    modules: Annotated[tuple[str, ...], Strict(False)] | None = Field(None, min_length=1, description="Names of linear layers to adapt in the language model; all of attention and MLP without it.")
    vision_tower: bool = Field(False, description="Adapt the linear layers of the vision tower as well (target vlm).")
    projector: bool = Field(False, description="Adapt the linear layers between vision tower and language model as well (target vlm).")


class DistributedSpec(Spec):
    """Training on several devices, a process for each (docs/devices.md). They decide no result."""

    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="Processes on this machine; `auto` is one for each NVIDIA GPU that is visible. Under torchrun or accelerate launch theirs count.")
    strategy: Literal["ddp", "fsdp2"] = Field("ddp", description="ddp: both models whole in each process. fsdp2: their frozen weights spread over the processes, the adapter whole in each.")


class TrainSpec(Spec):
    """Rounds and optimisation."""

    rounds: int = Field(3, ge=1, le=1000, description="Rounds: sample, then train one pass over the pairs.")
    prompts_per_round: int | None = Field(None, ge=1, description="Prompts of a round: the next ones each time, in an order of their own, from the start again after the last; all of them each time without it. As many as a step holds, and as many rounds as steps, is sampling anew at every step (on-policy).")
    pairs_per_step: int = Field(128, ge=1, description="Pairs in an optimiser step, over all devices; where a preset trains on one response of a pair alone, twice as many prompts.")
    micro_batch: int = Field(1, ge=1, description="Pairs in one forward pass on one device, where all are as long as the longest; of shorter ones it takes more, for the pairs of a step are cut up by length. Lower it when memory runs out, the result is the same.")
    tokens: int | None = Field(None, ge=1, description="Response tokens to train on in a round: the pairs are repeated or cut to hold so many. One pass over them without it.")
    learning_rate: float = Field(5e-5, gt=0, lt=1, description="Peak learning rate of AdamW (cosine over all rounds, 10 % warm-up).")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory in the student.")
    save_every: int = Field(100, ge=1, description="Optimiser steps between checkpoints.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    device: Device = Field("auto", description="Where to train and sample; `auto` takes the accelerator when there is one.")
    distributed: DistributedSpec = Field(DistributedSpec(), description="Training on several devices.")
    tracker: Literal["none", "trackio", "wandb", "tensorboard"] = Field("none", description="Where metrics go besides metrics.jsonl.")


class EvaluationSpec(Spec):
    """One evaluation, on the held-out prompts or on a set of questions."""

    kind: Literal["divergence", "overlap", "vqa", "acceptance", "judge", "benchmark"] = Field(description="divergence: kl, skl, srkl, NLL, top-1 agreement. overlap: ROUGE-L against the teacher's response. vqa: right answers, with the image and, as a control, without. acceptance: how often the teacher would accept a drafted token; with target drafter also decoding with drafts, timed. judge: how often another model prefers the answer. benchmark: docs/evaluation.md.")
    questions: QuestionsSpec | None = Field(None, description="vqa, judge: the set that is asked (its keys are below); without it, the held-out prompts, those that have a ground-truth response where it is needed.")
    max_tokens: int = Field(16, ge=1, description="vqa, judge, benchmark: longest answer, in tokens; without it 512 for judge (the paper's), and of a benchmark its own (512 to 1,280).")
    temperature: float = Field(0.0, ge=0, le=5, description="judge: sampling temperature of the answers, 0 is greedy; without it 0.8 (the paper's). vqa is answered greedily.")
    top_p: float = Field(1.0, gt=0, le=1, description="judge: nucleus sampling mass of the answers; without it 0.95 (the paper's).")
    draft_tokens: int = Field(4, ge=1, le=8, description="acceptance, target drafter: tokens drafted before each verification.")
    timed: int = Field(16, ge=1, description="acceptance, target drafter: held-out prompts that are decoded with and without the drafter.")
    task: Literal["gsm8k", "math", "ifeval", "humaneval", "mbpp"] | None = Field(None, description="benchmark: which one.")
    dataset: str | None = Field(None, min_length=1, description="benchmark: its questions, a .jsonl file (path relative to the recipe) or a Hub data set; without it the benchmark's own on the Hub, at a pinned commit.")
    limit: int | None = Field(None, ge=1, description="benchmark: questions to ask, the first ones; all of them without it.")
    allow_code_execution: bool | Literal["unconfined"] = Field(False, description="benchmark, humaneval and mbpp: run the programs that the models write, isolated; `unconfined` also where the kernel cannot isolate them.")
    judge: JudgeSpec | None = Field(None, description="judge: who judges, against what, and for how much at most.")

    @model_validator(mode="before")
    @classmethod
    def _decoding_of_its_kind(cls, given: Any) -> Any:
        kind = given.get("kind") if isinstance(given, dict) else None
        own = {"max_tokens": BENCHMARKS[given["task"]]} if kind == "benchmark" and given.get("task") in BENCHMARKS else {}
        return {**own, **DECODING.get(kind, {}), **given} if isinstance(kind, str) else given

    @model_validator(mode="after")
    def _belongs_to_its_kind(self) -> EvaluationSpec:
        for kinds, keys in BELONGS:
            if self.kind not in kinds and any(getattr(self, key) != type(self).model_fields[key].default for key in keys):
                raise ValueError(f"{' and '.join(keys)} belong to kind: {' or '.join(kinds)}; remove them from kind: {self.kind}")
        if self.kind == "judge" and self.judge is None:
            raise ValueError("kind: judge needs `judge`, who judges; write judge: {url: ..., model: ...}")
        if self.kind == "benchmark" and self.task is None:
            raise ValueError(f"kind: benchmark needs `task`, which one; write task: {' or '.join(BENCHMARKS)}")
        return self


# How the answers of an evaluation are sampled, where it does not say (appendix C.3 of the paper).
DECODING: dict[str, dict[str, Any]] = {"judge": {"max_tokens": 512, "temperature": 0.8, "top_p": 0.95}}
# Benchmarks, and the longest answer of each in tokens; those whose answers are programs, and what that means.
BENCHMARKS = {"gsm8k": 512, "math": 1024, "ifeval": 1280, "humaneval": 768, "mbpp": 768}
PROGRAMS = ("humaneval", "mbpp")
RUNS_PROGRAMS = ("runs programs that the models write, on this machine: each in a process of its own without network, without other processes and without files but Python's library "
                 "(Landlock and seccomp; docs/evaluation.md says what that holds and what it does not)")  # fmt: skip
# Keys of EvaluationSpec that some kinds alone have.
BELONGS = ((("vqa", "judge"), ("questions",)), (("vqa", "judge", "benchmark"), ("max_tokens",)), (("benchmark",), ("task", "dataset", "limit", "allow_code_execution")), (("acceptance",), ("draft_tokens", "timed")), (("judge",), ("judge", "temperature", "top_p")))


class GateSpec(Spec):
    """What a distilled student must not be worse in than what its training began with (the warm-up, or the student where there is none), to be published. Worse is a paired difference whose whole 95 % interval is on the wrong side; fewer than 20 prompts are not judged."""

    metric: str = Field("kl", min_length=1, description="Metric that the student was distilled for, by its name in measurements.json; of those on several kinds of responses, on the teacher's.")
    guards: Annotated[tuple[str, ...], Strict(False)] = Field(("kl", "agreement", "rouge_l", "acceptance", "vqa_accuracy", "exact_match", "win_rate", "score"), description="Metrics that must not become worse either, wherever they were measured; of benchmarks each score, of questions not by type, and not without images.")
    off: bool = Field(False, description="Publish whatever was measured.")


class PublishSpec(Spec):
    """Where the adapter goes."""

    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96, description="Hub repository of the adapter, ORG/NAME.")
    base_repo: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96, description="Hub repository for the student's base, where it is not on the Hub yet (a pruned or local student).")
    merged_repo: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96, description="Hub repository for the student with the adapter merged in, pushed after the adapter; engines take no adapter as drafter.")
    private: bool = Field(True, description="Visibility of repositories that are created.")
    tag: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*$", description="Tag to put on the commit.")
