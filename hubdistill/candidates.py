"""Models to be measured without a run: a model, an adapter with its base, or a run directory, by what a person calls them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill.errors import HubError, InputError, MissingError
from hubdistill.files import folder_sha256
from hubdistill.finished import final_adapter, load_run, location
from hubdistill.hub.names import CONFIG, is_hub_id
from hubdistill.hub.pull import pull
from hubdistill.models.sources import ModelFacts, find_model
from hubdistill.rundir import MARKER
from hubdistill.specs import ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

OF_A_RUN = "An adapter inside a run is named by its run directory, which knows the base."
BASE = "base"  # names the base of an adapter


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reference stands for. `quantization` is how the base is loaded, as a card says it; `template` replaces the chat template."""

    name: str
    facts: ModelFacts
    adapter: Path | None = None
    quantization: Mapping[str, Any] | None = None
    template: str | None = None

    @property
    def base(self) -> Found:
        """The same without the adapter."""
        return Found(name=self.facts.reference, facts=self.facts, quantization=self.quantization, template=self.template)

    @property
    def identity(self) -> tuple[str, ...]:
        """What its answers depend on."""
        return (self.facts.location, self.facts.commit, folder_sha256(self.adapter) if self.adapter else "", json.dumps(self.quantization, sort_keys=True, default=str))

    def loaded(self, device: torch.device) -> PreTrainedModel:
        """On its device, in the checkpoint's number format (float32 on a CPU). Raises InputError."""
        from hubdistill.models.layout import load_model
        from hubdistill.models.lora import load_adapter
        from hubdistill.models.quantized import load_4bit

        settings = {key: value for key, value in (self.quantization or {}).items() if key not in ("stored", "bnb_4bit_compute_dtype")}
        model: Any = load_4bit(self.facts, "auto", device, settings) if self.quantization else load_model(self.facts, "auto", device)
        adapted: Any = load_adapter(model, self.adapter, trainable=False) if self.adapter else model
        return adapted


def find(reference: str) -> Found:
    """A run directory, an adapter (a folder or ORG/NAME), or a model as a recipe names it. Raises InputError, MissingError and HubError."""
    for folder in (Path(reference), Path("runs") / reference):
        if os.path.isfile(folder / MARKER):
            return _text(_run(reference, folder))
    if os.path.isfile(Path(reference) / CONFIG):
        return _text(_adapter(reference))
    try:
        return _text(Found(name=reference, facts=find_model(_spec(reference), Path())))
    except MissingError as problem:
        if not is_hub_id(reference) or "/" not in reference:
            raise
        try:  # a repository without a model may hold an adapter
            return _text(_adapter(reference))
        except (MissingError, InputError) as other:
            raise MissingError(f"{reference} is neither a model ({problem}) nor an adapter ({other})") from other


def against(reference: str, first: Found) -> Found:
    """What `first` is held against; `base` is the base of its adapter. Raises as `find` does."""
    if reference != BASE:
        return find(reference)
    if first.adapter is None:
        raise InputError(f"--against {BASE}: {first.name} is a model and no adapter, so it has no base here; name a model")
    return first.base


def _spec(model: str, revision: str | None = None) -> ModelSpec:
    """A folder may be named without `./` on a command line."""
    return ModelSpec(model=os.path.abspath(model) if os.path.isdir(model) else model, revision=revision)


def _adapter(reference: str) -> Found:
    try:
        pulled = pull(reference)
    except InputError as problem:
        raise (InputError(f"{problem}\n{OF_A_RUN}") if os.path.isdir(reference) else problem) from problem
    try:
        facts = find_model(_spec(pulled.base, pulled.base_revision), Path())
    except (MissingError, HubError) as problem:
        raise type(problem)(f"{reference} is an adapter for {pulled.base}, which cannot be had ({problem}). {OF_A_RUN}") from problem
    template = pulled.chat_template.read_text(encoding="utf-8") if pulled.chat_template else None
    return Found(name=reference, facts=facts, adapter=pulled.folder, quantization=pulled.use.quantization, template=template)


def _run(reference: str, folder: Path) -> Found:
    record, _ = load_run(folder)
    where = location(folder)
    facts = find_model(_spec(where.base, record["student"]["commit"] if where.on_hub else None), Path())
    return Found(name=reference, facts=facts, adapter=final_adapter(folder, record), quantization=record["quantization"], template=where.template)


def _text(found: Found) -> Found:
    if found.facts.has_vision:
        raise InputError(f"{found.name}: benchmarks ask text, and {found.facts.reference} is a vision-language model; name a text model")
    return found
