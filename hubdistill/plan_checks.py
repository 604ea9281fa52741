"""What `plan` checks once models are found: each gives problems, one `key: what; fix` a line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

from hubdistill.errors import HubdistillError
from hubdistill.evaluation.judge import judges
from hubdistill.models.quantized_config import stored
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts
from hubdistill.pairs.prompt_sources import SourceFacts
from hubdistill.pairs.server_client import key_of
from hubdistill.pairs.vllm_images import FAMILIES
from hubdistill.pairs.vllm_settings import BIASES, torchvision_installed, vllm_version
from hubdistill.processes import told, visible_gpus
from hubdistill.recipe import Recipe
from hubdistill.specs import EndpointSpec, ServerSpec
from hubdistill.targets.base import Target


def check_settings(recipe: Recipe, processes: int, *, elsewhere: bool = False) -> list[str]:
    """Settings that contradict each other, this version or this machine; `elsewhere` where another one will run the recipe."""
    problems = []
    if recipe.train.pairs_per_step % (recipe.train.micro_batch * processes):
        problems.append(
            f"train.pairs_per_step: {recipe.train.pairs_per_step} is not a multiple of micro_batch x processes = "
            f"{recipe.train.micro_batch} x {processes}; change one of them"
        )
    if recipe.sampling.engine == "vllm" and not elsewhere and vllm_version() is None:
        problems.append("sampling.engine: vllm is not installed; `pip install 'hubdistill[vllm]'`, or write `transformers`")
    problems += [] if elsewhere else check_engines(recipe)
    if recipe.preference and processes > 1:
        problems.append(f"preference: is tuned in one process, and {processes} are planned; write train.distributed: {{processes: 1}}, or remove it")
    for server, instead in servers(recipe):
        problems += check_key(server, instead, elsewhere=elsewhere)
    if recipe.student.dtype == "float16":
        problems.append("student.dtype: gradients vanish in float16; write bfloat16 or float32")
    problems += [
        f"{key}: the student trains on the first GPU that it sees; write `{device.split(':')[0]}` and choose the GPU with CUDA_VISIBLE_DEVICES"
        for key, device in (("train.device", recipe.train.device),)
        if ":" in device and not device.endswith(":0")
    ]
    tracker = recipe.train.tracker
    if tracker != "none" and not elsewhere and not importlib.util.find_spec(tracker):
        problems.append(f"train.tracker: {tracker} is not installed; `pip install {tracker}`, or write `none` (metrics.jsonl is always written)")
    return problems


def servers(recipe: Recipe) -> list[tuple[EndpointSpec, str]]:
    """The servers that a recipe names, each with what happens without it."""
    served: list[tuple[EndpointSpec, str]] = [(recipe.sampling.server, "sampling.engine answers")] if recipe.sampling.server else []
    return served + [(judge, "judge where the server is") for judge in judges(recipe.evaluate)]


def check_key(server: EndpointSpec, instead: str, *, elsewhere: bool) -> list[str]:
    """Whether the server's key is here; it goes to no other machine."""
    if elsewhere:
        return [f"{server.key}: another machine will run the recipe, and gets neither the server's key nor its address; remove it, and {instead}"]
    try:
        key_of(server)
    except HubdistillError as problem:
        return [str(problem)]
    return []


def check_server(recipe: Recipe) -> list[str]:
    """Whether the servers are there and have the teacher and the judges; asks them."""
    from hubdistill.pairs.server_client import ask_for_model

    server: ServerSpec | None = recipe.sampling.server
    problems = list[str]()
    asked: list[tuple[EndpointSpec, str, str]] = [(server, server.model or recipe.teacher.model, "the teacher")] if server else []
    for spec, model, role in [*asked, *((judge, judge.model, "the judge") for judge in judges(recipe.evaluate))]:
        try:
            ask_for_model(spec, model, role)
        except HubdistillError as problem:
            problems.append(str(problem))
    return problems


def judgements(recipe: Recipe, prompts: SourceFacts, questions: Sequence[SourceFacts]) -> list[dict[str, Any]]:
    """Of each judge: its key, what it holds answers against, whose it judges, and how many verdicts that takes at most (None where the data
    do not say)."""
    found, sets = [], iter(questions)
    everyone = ["teacher", "student", *(["warm-up"] if recipe.warmup.kind != "none" else []), *(["before preference"] if recipe.preference else []), "distilled"]
    for index, one in enumerate(recipe.evaluate):
        rows = next(sets).rows if one.questions else recipe.prompts.heldout
        if one.judge:
            asked = min((number for number in (rows, one.questions.count if one.questions else None) if number is not None), default=None)
            subjects = [name for name in everyone if name != one.judge.against]
            found.append({"key": f"evaluate[{index}].judge", "model": one.judge.model, "against": one.judge.against, "subjects": subjects,
                          "verdicts_at_most": None if asked is None else 2 * asked * len(subjects)})  # fmt: skip
    return found


def check_judges(recipe: Recipe, prompts: SourceFacts, questions: Sequence[SourceFacts]) -> list[str]:
    """Whether judges find what they hold answers against, and may be asked as often as it takes."""
    problems = []
    if prompts.responses is False and any(one.judge and one.judge.against == "reference" and not one.questions for one in recipe.evaluate):
        problems.append("prompts.response_column: the first prompts have no ground-truth response, and a judge holds answers against it; name their column, or write judge.against: teacher or student")
    for judge, found in zip(judges(recipe.evaluate), judgements(recipe, prompts, questions), strict=True):
        takes, most = found["verdicts_at_most"], judge.max_requests
        if most is not None and takes is not None and takes > most:
            problems.append(f"{judge.key}.max_requests: {most}, and judging takes up to {takes} (in both orders, for {', '.join(found['subjects'])}); raise it, or judge fewer prompts")
    return problems


def planned_processes(recipe: Recipe) -> int:
    """Processes that a run will have: those that are there (torchrun's), what the recipe says, or one for each GPU that is
    visible, as many as share the pairs of a step evenly."""
    if not (there := told()).alone:
        return there.size
    train = recipe.train
    if train.distributed.processes != "auto":
        return train.distributed.processes
    several = train.device in ("auto", "cuda") and recipe.teacher.device == "auto"
    gpus = visible_gpus() if several else 1
    return next((size for size in range(gpus, 1, -1) if train.pairs_per_step % (train.micro_batch * size) == 0), 1)


def check_distributed(recipe: Recipe, target: Target, models: dict[str, ModelFacts], processes: int) -> list[str]:
    """Whether the models can be trained as `train.distributed` and `teacher.placement` say."""
    problems, spread = [], processes > 1 and recipe.train.distributed.strategy == "fsdp2"
    device, placement = recipe.train.device, recipe.teacher.placement
    if device == "cuda" and told().alone and processes > (gpus := visible_gpus()) > 0:
        problems.append(f"train.distributed.processes: {processes}, and {gpus} GPUs are visible; write at most {gpus}, or `auto`")
    if processes > 1 and device == "mps":
        problems.append("train.distributed.processes: there is one device of type mps; write 1")
    if processes > 1 and recipe.teacher.device != "auto":
        problems.append(f"teacher.device: {recipe.teacher.device}, and {processes} processes train, each on its own device; write `auto`, with `teacher.placement: offload` or `cached` where both models do not fit")
    if spread and placement != "resident":
        problems.append(f"teacher.placement: {placement}, and fsdp2 spreads the teacher over the processes; write `resident`, or `train.distributed.strategy: ddp`")
    if spread and target.modality.own_view:
        problems.append(f"train.distributed.strategy: fsdp2 is for language models alone, and target {target.name} encodes images outside of the forward that gathers the weights; write `ddp`")
    for role, facts in models.items() if spread and not problems else ():
        whole = role == "student" and target.quantization(recipe.target.options)
        if facts.config and not facts.trust_remote_code and not whole and not _has_fsdp_plan(facts, role):
            problems.append(f"train.distributed.strategy: transformers does not say how the family of {facts.reference} is spread (base_model_fsdp_plan); write `ddp`")
    return problems


def _has_fsdp_plan(facts: ModelFacts, role: str) -> bool:
    from hubdistill.models.layers import empty_model

    try:
        return bool(empty_model(facts, role)._fsdp_plan)
    except HubdistillError:
        return True  # said by what loads it


def check_lengths(recipe: Recipe, models: dict[str, ModelFacts]) -> list[str]:
    """Whether both models read prompts and responses of the lengths that the recipe allows."""
    wanted = {"prompts.max_tokens + sampling.max_tokens": recipe.prompts.max_tokens + recipe.sampling.max_tokens}
    for index, one in enumerate(recipe.evaluate):
        asked = one.questions or recipe.prompts
        if one.kind in ("vqa", "judge"):
            wanted[f"evaluate[{index}]: {'questions' if one.questions else 'prompts'}.max_tokens + max_tokens"] = asked.max_tokens + one.max_tokens
    return [
        f"{role}.model: {names} = {tokens}, and {facts.reference} reads {limit} positions; lower one of them"
        for role, facts in models.items()
        for names, tokens in wanted.items()
        if isinstance(limit := facts.text_config.get("max_position_embeddings"), int) and limit < tokens
    ]


def check_vllm(recipe: Recipe, target: Target, teacher: ModelFacts, student: ModelFacts, *, elsewhere: bool = False) -> list[str]:
    """Whether vLLM can sample what the recipe asks for, from the configs; here, or `elsewhere`."""
    if recipe.sampling.engine != "vllm":
        return []
    instead = "write `sampling.engine: transformers`"
    if target.quantization(recipe.target.options):
        return [f"sampling.engine: vLLM has no bitsandbytes since 0.28, and the student of target {target.name} is in 4 bit; {instead}"]
    problems, devices = [], recipe.sampling.vllm.tensor_parallel_size
    if target.modality.own_view and not elsewhere and vllm_version() and not torchvision_installed():
        problems.append(f"sampling.engine: vLLM reads images with torchvision, which is not installed; install the build of it that goes with torch {importlib.metadata.version('torch')}, or {instead}")
    for facts in (teacher, student) if target.modality.own_view else ():
        if facts.config and (kind := facts.config.get("model_type")) not in FAMILIES:
            problems.append(f"sampling.engine: images of {facts.reference} ({kind}) were not tried with vLLM ({', '.join(FAMILIES)} were); {instead}")
    rows = [count for facts in (teacher, student) if isinstance(count := facts.text_config.get("vocab_size"), int)]
    if rows and (extra := max(rows) - min(rows)) > BIASES:
        problems.append(f"sampling.engine: one model has {extra} ids that the other lacks, and vLLM holds back {BIASES} at most; {instead}")
    for role, facts, spec in (("teacher", teacher, recipe.teacher), ("student", student, recipe.student))[bool(recipe.sampling.server) :]:
        heads = facts.text_config.get("num_attention_heads")
        if isinstance(heads, int) and heads % devices:
            problems.append(f"sampling.vllm.tensor_parallel_size: {facts.reference} has {heads} attention heads, which {devices} devices cannot share evenly; choose a number that divides {heads}")
        if facts.config and spec.dtype == "auto" and facts.saved_dtype is None:
            problems.append(f"{role}.dtype: the config of {facts.reference} names no number format, so vLLM would choose one of its own; write bfloat16 or float32")
    return problems


def check_engines(recipe: Recipe) -> list[str]:
    """Whether this machine has a device for each part of each of vLLM's engines."""
    spec, device = recipe.sampling.vllm, recipe.train.device
    if recipe.sampling.engine != "vllm" or spec.data_parallel_size == 1:
        return []
    if device not in ("auto", "cpu", "cuda"):
        return [f"sampling.vllm.data_parallel_size: {spec.data_parallel_size}, and only GPUs of NVIDIA and cores of a CPU are shared out; write 1 with train.device: {device}"]
    gpus, wanted = visible_gpus(), spec.data_parallel_size * spec.tensor_parallel_size
    if device != "cpu" and 0 < gpus < wanted:
        return [f"sampling.vllm.data_parallel_size: {spec.data_parallel_size} engines on {spec.tensor_parallel_size} devices each need {wanted} GPUs, and {gpus} are visible; lower one of them"]
    return []


def check_stored(recipe: Recipe, student: ModelFacts) -> list[str]:
    """A student whose files are in 4 bit multiplies in what its config says, whatever a caller wants."""
    found = stored(student)
    if found is None or not found.in_4_bit or recipe.student.dtype in ("auto", found.compute_dtype):
        return []
    return [f"student.dtype: {recipe.student.dtype}, and {student.reference} is stored in 4 bit to multiply in {found.compute_dtype} (bnb_4bit_compute_dtype in its config); write `auto`"]


def check_adapter(recipe: Recipe, student: ModelFacts) -> list[str]:
    """Whether the student has the layers to adapt, from its config; imports torch."""
    if not student.config or student.trust_remote_code:
        return []
    from hubdistill.models.layers import adapted_layers

    try:
        adapted_layers(student, recipe.lora)
    except HubdistillError as problem:
        return [str(problem)]
    return []


def check_publish(recipe: Recipe, student: ModelFacts) -> list[str]:
    """Whether others could load what would be published."""
    if recipe.publish and not recipe.publish.base_repo and student.kind != "hub":
        return [
            f"publish.repo: the adapter's base would be {student.reference}, which is not on the Hub, so nobody could load it; "
            f"add publish.base_repo: ORG/NAME to push that base too"
        ]
    return []


def check_readers(target: Target, models: dict[str, ModelFacts]) -> list[str]:
    """Whether models on this machine have the processor that a vision target needs; those of the Hub show when a run begins."""
    problems, teacher = [], None
    for role, facts in models.items() if target.modality.own_view else ():
        try:
            teacher = target.modality.load_reader(facts, teacher) if facts.kind != "hub" else None
        except HubdistillError as problem:
            problems.append(f"{role}.model: {problem}")
    return problems


def vocabulary_of(teacher: ModelFacts, student: ModelFacts, offline: bool, problems: list[str]) -> int | None:
    """Compare the tokenizers (no weights); None where they are not at hand offline."""
    if not teacher.config or not student.config:
        return None
    teacher_rows, student_rows = (facts.text_config.get("vocab_size") for facts in (teacher, student))
    if not (isinstance(teacher_rows, int) and isinstance(student_rows, int)):
        return None
    if (teacher.location, teacher.commit) == (student.location, student.commit):
        return min(teacher_rows, student_rows)
    from hubdistill.models.kept import kept

    def compared() -> int | None:
        return _compared_vocab(teacher, student, (teacher_rows, student_rows), offline, problems)

    known = NOT_RESOLVED not in (teacher.commit, student.commit)
    names = [[facts.location, facts.commit, facts.trust_remote_code] for facts in (teacher, student)]
    return kept(["common vocabulary", names, teacher_rows, student_rows], compared) if known else compared()


def _compared_vocab(teacher: ModelFacts, student: ModelFacts, sizes: tuple[int, int], offline: bool, problems: list[str]) -> int | None:
    from hubdistill.models.load import load_tokenizer
    from hubdistill.models.vocab import common_vocab

    tokenizers = []
    for role, facts in (("teacher", teacher), ("student", student)):
        try:
            tokenizers.append(load_tokenizer(facts, offline=offline))
        except HubdistillError as problem:
            problems += [] if offline and facts.kind == "hub" else [f"{role}.model: {problem}"]
    if len(tokenizers) < 2:
        return None
    try:
        return common_vocab(tokenizers[0], tokenizers[1], *sizes)
    except HubdistillError as problem:
        problems.append(f"student.model: {problem}")
        return None
