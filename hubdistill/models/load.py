"""Loading models and tokenizers, and the head that turns hidden states into logits."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.utils import cached_file

from hubdistill.errors import InputError
from hubdistill.hub_errors import hub_problem
from hubdistill.losses.chunked import Head
from hubdistill.models.sources import ModelFacts, cached_config, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A damaged file, a config of no model, a weight of another shape, a package that the architecture needs.
LOAD_PROBLEMS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError)


def read_weights(facts: ModelFacts, dtype: torch.dtype | str, **settings: Any) -> PreTrainedModel:
    """A model from its safetensors files, on the CPU unless `settings` of `from_pretrained` say more. Raises InputError unless every weight is in them."""
    # Gemma-2 caps its attention scores; sdpa, the default, leaves the cap out and so computes another model.
    if facts.text_config.get("attn_logit_softcapping"):
        settings["attn_implementation"] = "eager"
    try:
        loaded: Any = auto_class(facts.config).from_pretrained(facts.location, revision=facts.revision, dtype=dtype, use_safetensors=True,
                                                           trust_remote_code=facts.trust_remote_code, output_loading_info=True, **settings)  # fmt: skip
    except LOAD_PROBLEMS as problem:
        raise InputError(f"{facts.reference}: transformers cannot load it as a {'vision-' if facts.has_vision else 'causal '}language model ({problem}); check the model and its revision") from problem
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers fills them with random numbers and goes on
        raise InputError(f"{facts.reference}: its files lack {len(missing)} of its weights ({missing[0]}); check that the model is complete")
    return model


def auto_class(config: dict[str, Any]) -> Any:
    """The class that loads a model with such a config.json: with a vision tower or without."""
    return AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM


def load_processor(facts: ModelFacts) -> ProcessorMixin:
    """Load the processor of a vision-language model: its tokenizer, chat template and image processor. Raises InputError."""
    try:
        processor = AutoProcessor.from_pretrained(facts.location, revision=facts.revision, trust_remote_code=facts.trust_remote_code)
    except Exception as problem:  # as `tokenizers` does, below
        raise InputError(f"{facts.reference}: its processor cannot be loaded ({problem}); check the model and its revision") from problem
    lacks = [name for name in ("image_processor", "image_token", "tokenizer") if getattr(processor, name, None) is None]
    if lacks:
        raise InputError(f"{facts.reference}: its {type(processor).__name__} has no {lacks[0]}, so it reads no images; choose a vision-language model with a processor of its own")
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if getattr(processor, "patch_size", 0) is None:
        _complete(processor, facts.config)
    return processor


def _complete(processor: Any, config: dict[str, Any]) -> None:
    """What a LLaVA repository from before transformers 4.46 leaves out of its processor, from the model's config: the
    processor needs it to know how many tokens an image takes."""
    tower = config["vision_config"]
    processor.patch_size = tower.get("patch_size")
    processor.vision_feature_select_strategy = config.get("vision_feature_select_strategy", "default")
    processor.num_additional_image_tokens = int(tower.get("model_type") == "clip_vision_model")  # the class token


def load_tokenizer(facts: ModelFacts, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer; a missing pad token becomes the end-of-sequence token (padding is always masked)."""
    config = cached_config(facts.location, facts.revision) if offline and facts.kind == "hub" else None
    location = str(config.parent) if config else facts.location  # a folder, so that nobody is asked
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=facts.revision, trust_remote_code=facts.trust_remote_code)
    except Exception as problem:  # `tokenizers` raises every kind, bare ones too
        raise InputError(f"{facts.reference}: its tokenizer cannot be loaded ({problem}); check the model and its revision") from problem
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_hash(reader: PreTrainedTokenizerBase | ProcessorMixin) -> str:
    """Digest of the chat template of a tokenizer or processor; responses are only comparable under the same one."""
    return hashlib.sha256(str(reader.chat_template).encode()).hexdigest()[:16]


def end_of_turn(reader: Any) -> int:
    """The id that ends an assistant's turn in the chat template. In Gemma it is `<end_of_turn>`, and eos is another."""
    from jinja2.exceptions import TemplateError

    said, tokenizer = "answer", getattr(reader, "tokenizer", reader)
    turns: list[dict[str, Any]] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    if tokenizer is not reader:  # templates of processors read parts
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    try:
        _, found, after = str(reader.apply_chat_template(turns, tokenize=False)).rpartition(said)
    except (TemplateError, ValueError):  # no template, or one that says what is wrong when a prompt is rendered
        return tokenizer.eos_token_id
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def generation_stops(facts: ModelFacts) -> list[int]:
    """Ids that the model's generation config stops at, or its config where there is none. Raises HubError."""
    try:
        # Not GenerationConfig.from_pretrained: it raises the same error for no such file and for no answer.
        path = cached_file(facts.location, "generation_config.json", revision=facts.revision, _raise_exceptions_for_missing_entries=False)
    except OSError as problem:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:  # offline, what is not in the cache is not there
            raise hub_problem(problem, f"model {facts.reference}", facts.revision) from problem
        path = None
    config = read_json(Path(path)) if path else {}
    named = config.get("eos_token_id", facts.text_config.get("eos_token_id"))
    return [named] if isinstance(named, int) else list(named or [])


def head_of(model: PreTrainedModel) -> Head:
    """The output head of a causal LM, with the scale and soft cap its family applies; gathered, where it is spread over
    processes, which all of them call then.

    Cohere multiplies logits by `logit_scale`, Granite divides by `logits_scaling`, Gemma-2 caps them.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():  # a layer in 4 bit is a Linear too
        raise InputError(f"{type(model).__name__} has no plain linear output head in floating point; its logits cannot be computed from hidden states; choose a model with an ordinary lm_head")
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    spread = getattr(model, "_is_fsdp_managed_module", False)
    weight, bias = (_gathered(value) if spread and value is not None else value for value in (head.weight, head.bias))
    return Head(weight=weight, bias=bias, scale=scale, soft_cap=getattr(config, "final_logit_softcapping", None))


def _gathered(value: Any) -> torch.Tensor:
    """A weight that is spread over processes, whole, and a copy: FSDP2 frees what it gathered itself."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value.detach().clone()


def base_of(model: Any) -> Any:
    """The transformers model inside wrappers: DDP's, and PEFT's."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def last_hidden(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """The hidden states (B, L, D) that the head sees, from a call of the whole model.

    The model itself is called, not its decoder, so that wrappers (DDP, FSDP) see the forward pass; a hook takes the
    decoder's output, and the head runs on one position only.
    """
    taken: list[torch.Tensor] = []
    hook = base_of(model).get_decoder().register_forward_hook(lambda _module, _args, output: taken.append(output[0]))
    try:
        model(**inputs, logits_to_keep=1, use_cache=False)
    finally:
        hook.remove()
    return taken[0]


def check_head(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose logits are not what `head_of` says: the loss would silently be of another model."""
    ids = torch.arange(3, 11, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        hidden, expected = last_hidden(model, input_ids=ids)[:, -1].float(), model(input_ids=ids).logits[:, -1].float()
        head = head_of(model)
        found = torch.nn.functional.linear(hidden, head.weight.float(), None if head.bias is None else head.bias.float()) * head.scale
        found = found if head.soft_cap is None else head.soft_cap * torch.tanh(found / head.soft_cap)
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    if not error <= (1e-3 if hidden.dtype == model.dtype else 0.05):  # a NaN is refused too
        raise InputError(f"{name}: its logits are not a linear head of its last hidden states (off by {error:.1%}); hubdistill cannot distil this architecture, choose another model")
