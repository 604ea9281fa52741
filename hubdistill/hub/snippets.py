"""Code that shows how to use one adapter, with every revision pinned that is known; the card and `hubdistill pull` print it.

A card cannot know the commit that brings it, so the merged model in its own card is what main holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from hubdistill.pairs.vllm_settings import vllm_rank

DRAFT_TOKENS = 4


ANSWER = [
    "",
    "from PIL import Image",
    'content = [{"type": "image", "image": Image.open("picture.png")}, {"type": "text", "text": "What is in the picture?"}]',
    'inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,',
    '                                       return_dict=True, return_tensors="pt").to(model.device)',
    "answer = model.generate(**inputs, max_new_tokens=64)[0, inputs[\"input_ids\"].shape[1]:]",
    "print(processor.decode(answer, skip_special_tokens=True))",
]


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """For whom an adapter's model drafts: a Hub id at a commit, or what a verifier that is not on the Hub is called."""

    verifier: str
    commit: str | None
    tokens: int = DRAFT_TOKENS  # drafted before each verification


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a snippet needs to know: the base, the adapter (Hub id, or a folder where `local`), what to pin."""

    base: str
    base_commit: str | None
    adapter: str
    revision: str | None  # tag or commit of the adapter
    rank: int
    name: str
    pipeline_tag: str = "text-generation"
    chat_template_file: bool = False  # the adapter brings chat_template.jinja, because the base's differs
    local: bool = False
    quantization: Mapping[str, bool | str] | None = None  # how the base is loaded, as BitsAndBytesConfig takes it; `stored` where its files say so themselves
    drafts: Drafts | None = None


def _pinned(repo: str, revision: str | None) -> str:
    return json.dumps(repo) + (f", revision={json.dumps(revision)}" if revision else "")


def load_snippet(use: Use) -> str:
    """Python that loads base and adapter with transformers and PEFT."""
    vision = use.pipeline_tag == "image-text-to-text"
    model, tok = (
        ("AutoModelForImageTextToText", "AutoProcessor") if vision else ("AutoModelForCausalLM", "AutoTokenizer")
    )
    name = "processor" if vision else "tok"
    # Of a base that is stored in 4 bit, transformers takes what its own config says, and warns of anything else.
    given = {} if (use.quantization or {}).get("stored") else use.quantization or {}
    settings = ", ".join(f"{key}={value!r}" for key, value in given.items())
    lines = [
        "from peft import PeftModel",
        f"from transformers import {model}, {tok}" + (", BitsAndBytesConfig" if settings else ""),
        "",
        *([f"quantization = BitsAndBytesConfig({settings})"] if settings else []),
        f"base = {model}.from_pretrained({_pinned(use.base, use.base_commit)}, "
        + ("quantization_config=quantization, " if settings else "")
        + 'dtype="auto", device_map="auto")',
        f"model = PeftModel.from_pretrained(base, {_pinned(use.adapter, None if use.local else use.revision)})",
        f"{name} = {tok}.from_pretrained({_pinned(use.base, use.base_commit)})",
    ]
    if use.chat_template_file:
        lines += _template_lines(use, name)
    return "\n".join(lines + (ANSWER if vision else []))


def _template_lines(use: Use, tok: str) -> list[str]:
    read = f'{tok}.chat_template = Path(path).read_text(encoding="utf-8")  # the template the adapter was trained with'
    if use.local:
        return ["", "from pathlib import Path", f"path = {json.dumps(use.adapter + '/chat_template.jinja')}", read]
    get = f'hf_hub_download({json.dumps(use.adapter)}, "chat_template.jinja"'
    get += f", revision={json.dumps(use.revision)})" if use.revision else ")"
    return ["", "from pathlib import Path", "from huggingface_hub import hf_hub_download", f"path = {get}", read]


def vllm_snippet(use: Use) -> str | None:
    """Shell commands that serve the adapter with vLLM; None for a rank it cannot hold, a base in 4 bit (not tried) and a drafter.

    `--lora-modules` takes no revision, so the pinned adapter is downloaded first and served from its folder.
    """
    allowed = vllm_rank(use.rank)
    if allowed is None or use.quantization or use.drafts:
        return None
    folder = use.adapter if use.local else f"./{use.name}"
    serve = f"vllm serve {shlex.quote(use.base)}" + (
        f" --revision {shlex.quote(use.base_commit)}" if use.base_commit else ""
    )
    serve += " --enable-lora" + (f" --max-lora-rank {allowed}" if use.rank > 16 else "")
    serve += f" --lora-modules {shlex.quote(f'{use.name}={folder}')}"
    if use.chat_template_file:
        serve += f" --chat-template {shlex.quote(folder + '/chat_template.jinja')}"
    if use.local:
        return serve
    pin = f" --revision {shlex.quote(use.revision)}" if use.revision else ""
    return f"hf download {shlex.quote(use.adapter)}{pin} --local-dir {shlex.quote(folder)}\n{serve}"


def merge_snippet(use: Use) -> str | None:
    """Python that merges the adapter into the base, after `load_snippet`; None for a base in 4 bit, where it would be rounded again."""
    if use.quantization:
        return None
    tok = "processor" if use.pipeline_tag == "image-text-to-text" else "tok"
    return (
        "merged = model.merge_and_unload(safe_merge=True)  # raises on NaN instead of merging it\n"
        'merged.save_pretrained("merged")\n'
        f'{tok}.save_pretrained("merged")'
    )


def draft_snippet(use: Use) -> str | None:
    """Python that decodes with the adapter's model as drafter, after `load_snippet`; None for what drafts for nobody."""
    if use.drafts is None:
        return None
    merge = "drafter = model.merge_and_unload()  # an adapter beside its base would slow every draft"
    return "\n".join([*_verifier(use.drafts), merge, *_drafting(use.drafts)])


def merged_draft_snippet(merged: str, drafts: Drafts) -> str:
    """The same for the repository that holds the adapter merged in; needs nothing before it."""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", *_verifier(drafts)]
    lines += [f'drafter = AutoModelForCausalLM.from_pretrained({json.dumps(merged)}, dtype="auto", device_map="auto")', f"tok = AutoTokenizer.from_pretrained({json.dumps(merged)})"]
    return "\n".join([*lines, *_drafting(drafts)])


def _verifier(drafts: Drafts) -> list[str]:
    if drafts.commit is None:
        return [f"# `verifier` is {json.dumps(drafts.verifier)}, which is not on the Hub: load it first, as you have it"]
    return [f'verifier = AutoModelForCausalLM.from_pretrained({_pinned(drafts.verifier, drafts.commit)}, dtype="auto", device_map="auto")']


def _drafting(drafts: Drafts) -> list[str]:
    return [
        f'drafter.generation_config.update(num_assistant_tokens={drafts.tokens}, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0)',
        'chat = [{"role": "user", "content": "What is speculative decoding?"}]',
        'inputs = tok.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(verifier.device)',
        'answer = verifier.generate(**inputs, assistant_model=drafter, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]',
        "print(tok.decode(answer, skip_special_tokens=True))",
    ]


def vllm_draft(drafts: Drafts, drafter: str) -> str | None:
    """A shell command that serves the verifier with `drafter`, a whole model: vLLM takes no adapter as one. None for a verifier
    that is not on the Hub."""
    if drafts.commit is None:
        return None
    settings = json.dumps({"method": "draft_model", "model": drafter, "num_speculative_tokens": drafts.tokens})
    return f"vllm serve {shlex.quote(drafts.verifier)} --revision {shlex.quote(drafts.commit)} --speculative-config {shlex.quote(settings)}"
