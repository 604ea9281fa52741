"""Publishing the base of an adapter where it is not on the Hub: a pruned student, or one from a local folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError, MissingError
from hubdistill.hub import markdown
from hubdistill.hub.adapter_check import PICKLES, read_header
from hubdistill.hub.card import UNSTATED, License
from hubdistill.hub.card_check import validate_card
from hubdistill.hub.card_merge import END, START, dump
from hubdistill.hub.failures import explained, hub_token
from hubdistill.hub.names import CARD, is_hub_id, require_repo
from hubdistill.hub.publish import Published, commit_files, unchanged_commit
from hubdistill.hub.secrets import readable, refuse_secrets

TEXTS = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TABLES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # their keys are tokens, and no file names
PATHS = ("_name_or_path", "name_or_path")  # where a model or tokenizer was loaded from
_MODEL_WEIGHTS = "model*.safetensors"


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What the small card of a published base says; `source` is the model it was made from, `how` a sentence."""

    repo: str
    source: str
    source_commit: str | None
    how: str
    license: License = UNSTATED
    pipeline_tag: str = "text-generation"


def render_base_card(facts: BaseFacts) -> str:
    """README.md of the published base."""
    from huggingface_hub import ModelCardData

    on_hub = is_hub_id(facts.source)
    data = ModelCardData(
        base_model=facts.source if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        license=facts.license.id,
        license_name=facts.license.name if facts.license.id else None,
        license_link=facts.license.link if facts.license.id else None,
        tags=["hubdistill"],
    )
    at = f" at commit {markdown.code(facts.source_commit)}" if facts.source_commit else ""
    lines = [
        f"# {markdown.text(facts.repo.rsplit('/', 1)[-1])}",
        f"The base model of LoRA adapters made with hubdistill. Made from {markdown.code(facts.source)}{at}: {markdown.text(facts.how)}",
        "It was not trained further; it is published so that the adapters can be loaded.",
        f"License: {markdown.link(facts.license.label, facts.license.link)}.",
    ]
    return f"---\n{dump(markdown.flat(data.to_dict()))}---\n\n{START}\n" + "\n\n".join(lines) + f"\n{END}\n"


def push_base(folder: Path, repo: str, *, private: bool = True, card: str, resume_command: str = "") -> Published:
    """Publish the model in `folder` (safetensors, configuration, tokenizer) to `repo` as one commit.

    Only the files of an allow-list go; the rest of the folder stays. Raises InputError for symlinks, pickled weights,
    code, secrets and paths of this machine, MissingError for what is lacking, HubError for the Hub.
    """
    contents = check_base_files(folder, repo, card)
    ending = f"The base model is kept in {folder}." + (f" To resume: {resume_command}" if resume_command else "")
    with explained(repo, f"publish the base model to {repo}", ending=ending):
        return commit_files(contents, card, repo, private=private)


def check_base_files(folder: Path, repo: str, card: str) -> dict[str, Path | bytes]:
    """What `push_base` would send besides the card; raises as it does, and needs no network."""
    require_repo(repo)
    validate_card(card)
    files = base_files(folder)
    refuse_secrets(
        {CARD: card} | {path.name: readable(path) for path in files if path.name not in TOKENIZERS}, token=hub_token()
    )
    return {path.name: _own_text(path) for path in files}


def published_base(folder: Path, repo: str, card: str) -> str | None:
    """The commit of `repo` that holds this base already; None where `push_base` would make a new one."""
    with explained(repo, f"publish the base model to {repo}"):
        return unchanged_commit(check_base_files(folder, repo, card), card, repo)


def base_files(folder: Path) -> tuple[Path, ...]:
    """The files of the model folder that may be published, sorted by name; raises as `push_base` does."""
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} has no config.json, so it is not a model. Check the path of the base model.")
    weights = sorted(folder.glob(_MODEL_WEIGHTS))
    if not weights:
        kind = "only pickled weights" if any(p.suffix in PICKLES for p in folder.iterdir()) else "no weights"
        raise MissingError(f"{folder} has {kind}. Save the model as safetensors: model.save_pretrained(folder).")
    texts = [
        folder / name for name in (*TEXTS, *TOKENIZERS) if (folder / name).exists() or (folder / name).is_symlink()
    ]
    for path in [*weights, *texts]:
        if path.is_symlink() or not path.is_file():
            raise InputError(
                f"{path} is a symlink, and following it could publish another file. Copy the model into a plain folder first."
            )
    for path in weights:
        read_header(path)
    problems = [problem for path in texts if path.suffix == ".json" for problem in _json_problems(path)]
    if problems:
        raise InputError(
            "\n".join(
                [*problems, "Load the model, save it with save_pretrained into a new folder, and publish that one."]
            )
        )
    return tuple(sorted([*weights, *texts]))


def _json_problems(path: Path) -> Iterator[str]:
    """Code to be run, and file names that point out of the folder: a tokenizer can be made to read any local file."""
    if path.name in TABLES:
        return
    content = _load(path)
    for key, value in content.items():
        if key == "auto_map":
            yield f"{path.name}: auto_map: asks for code from a repository"
        if key.endswith("_file") and isinstance(value, str) and (value.startswith(("/", "\\", "~")) or ".." in value):
            yield f"{path.name}: {key}: points outside the folder"


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON. Save the model again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object. Save the model again.")
    return content


def _own_text(path: Path) -> Path | bytes:
    """The file to send: JSON without what can be a path of this machine, everything else as it is."""
    if path.suffix != ".json" or path.name in TABLES:
        return path
    content = _load(path)
    own = _without_paths(content)
    if path.name == "config.json":  # always in one order, so that the same model is the same file
        return (json.dumps(own, indent=2, sort_keys=True) + "\n").encode()
    return path if own == content else (json.dumps(own, indent=2, ensure_ascii=False) + "\n").encode()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key not in PATHS}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value
