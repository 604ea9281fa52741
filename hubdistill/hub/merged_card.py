"""The card of a repository that holds a student with its adapter merged in: what it is, and where its evidence stands."""

from __future__ import annotations

from dataclasses import dataclass

from hubdistill.hub import markdown
from hubdistill.hub.card import UNSTATED, License, tags_of
from hubdistill.hub.card_merge import END, START, dump
from hubdistill.hub.methods import OURS, Method
from hubdistill.hub.names import is_hub_id
from hubdistill.hub.snippets import Drafts, merged_draft_snippet, vllm_draft


@dataclass(frozen=True, kw_only=True)
class MergedFacts:
    """`adapter` and `base` are Hub ids at commits."""

    repo: str
    adapter: str
    adapter_commit: str
    base: str
    base_commit: str | None
    license: License = UNSTATED
    pipeline_tag: str = "text-generation"
    drafts: Drafts | None = None
    method: Method = OURS


def render_merged_card(facts: MergedFacts) -> str:
    """README.md of the merged model."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=facts.base if is_hub_id(facts.base) else None,
        base_model_relation="finetune" if is_hub_id(facts.base) else None,
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        license=facts.license.id,
        license_name=facts.license.name if facts.license.id else None,
        license_link=facts.license.link if facts.license.id else None,
        tags=[*(tag for tag in tags_of(facts.method) if tag not in ("lora", "peft")), *(["speculative-decoding"] if facts.drafts else [])],
    )
    at = f" at commit {markdown.code(facts.base_commit)}" if facts.base_commit else ""
    adapter = markdown.link(facts.adapter, f"https://huggingface.co/{facts.adapter}")
    lines = [
        f"# {markdown.text(facts.repo.rsplit('/', 1)[-1])}",
        f"{markdown.code(facts.base)}{at} with the LoRA adapter {adapter} (commit {markdown.code(facts.adapter_commit)}) merged in. "
        "What it learned from, how, and what was measured stands in the card of the adapter.",
        *(_use(facts.repo, facts.drafts) if facts.drafts else []),
        f"License: {markdown.link(facts.license.label, facts.license.link)}.",
    ]
    return f"---\n{dump(markdown.flat(data.to_dict()))}---\n\n{START}\n" + "\n\n".join(lines) + f"\n{END}\n"


def _use(repo: str, drafts: Drafts) -> list[str]:
    served = vllm_draft(drafts, repo)
    return [
        f"It drafts for {markdown.code(drafts.verifier)}{f' at {markdown.code(drafts.commit)}' if drafts.commit else ''}, whose text stays the same (greedy decoding). With transformers:",
        markdown.block(merged_draft_snippet(repo, drafts), "python"),
        *(["With vLLM:", markdown.block(served, "bash")] if served else []),
    ]
