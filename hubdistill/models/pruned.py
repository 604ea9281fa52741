"""`student.layers`: a shallower copy of a model, built once into the cache as plain safetensors."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.files import publish_folder
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts, cache_root

ORIGIN_FILE = "hubdistill_origin.json"


def kept_layers(layers: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The layer numbers to keep out of `depth`; a count leaves out one block in the middle.

    Neighbouring middle layers do similar work, and the first and last do not: 24 of SmolLM2's 30 layers are 1.0 nats a
    token from the whole model this way and 3.1 when spread evenly (docs/lab_notes.md; cf. ShortGPT, arXiv 2403.03853).
    Raises InputError when more layers are asked for than there are.
    """
    if isinstance(layers, int):
        if layers > depth:
            raise InputError(f"student.layers: {layers} layers asked for, the model has {depth}; give a smaller number")
        first = max(min(layers // 2 + 1, layers - 1), 1)
        return (*range(first), *range(depth - layers + first, depth))
    if layers[-1] >= depth:
        raise InputError(f"student.layers: there is no layer {layers[-1]}, the model has {depth} (0 to {depth - 1}); leave it out")
    return layers


def pruned_facts(facts: ModelFacts, layers: int | tuple[int, ...]) -> ModelFacts:
    """Facts of the pruned model: where it will be, and its config; nothing is built yet.

    Offline, the layers of a model that is not in the cache cannot be counted, and it stays unresolved.
    """
    if facts.commit == NOT_RESOLVED:
        return replace(facts, reference=f"{facts.reference} (pruned)", kind="pruned")
    depth = facts.text_config.get("num_hidden_layers")
    if not isinstance(depth, int):
        raise InputError(f"student.layers: the config of {facts.reference} has no num_hidden_layers, so it cannot be pruned; remove student.layers")
    kept = kept_layers(layers, depth)
    digest = hashlib.sha256(json.dumps([facts.location, facts.commit, kept]).encode()).hexdigest()[:40]
    folder = cache_root() / "pruned" / digest[:24]
    depth_of = {"num_hidden_layers": len(kept)}
    nested = {"text_config": facts.text_config | depth_of} if "text_config" in facts.config else depth_of
    return replace(facts, reference=f"{facts.reference} (layers {', '.join(map(str, kept))})", kind="pruned", location=str(folder),
                   commit=digest, config=facts.config | nested)  # fmt: skip


def build_pruned(source: ModelFacts, pruned: ModelFacts, layers: int | tuple[int, ...]) -> Path:
    """Write the pruned model (weights, tokenizer, configs, origin) to its place in the cache, unless it is there."""
    folder = Path(pruned.location)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".pruning-"))
    try:
        _prune(source, kept_layers(layers, source.text_config["num_hidden_layers"]), work)
        publish_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _prune(source: ModelFacts, kept: tuple[int, ...], target: Path) -> None:
    import torch

    from hubdistill.models.load import load_processor, load_tokenizer, read_weights
    from hubdistill.models.saving import save_model

    model: Any = read_weights(source, "auto")
    decoder = model.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise InputError(f"student.layers: {type(model).__name__} keeps its layers where hubdistill cannot find them; remove student.layers")
    decoder.layers = torch.nn.ModuleList(decoder.layers[i] for i in kept)
    shorten_config(model.config.get_text_config(), kept)
    save_model(model, target)
    (load_processor if source.has_vision else load_tokenizer)(source).save_pretrained(target)
    origin = {"made_from": source.reference, "commit": source.commit, "kept_layers": list(kept)}
    (target / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def shorten_config(config: Any, kept: tuple[int, ...]) -> None:
    """Make the config speak of the kept layers only: their number, and every list that has an entry a layer."""
    depth = config.num_hidden_layers
    for name in ("layer_types", "no_rope_layers", "mlp_layer_types"):
        per_layer = getattr(config, name, None)
        if isinstance(per_layer, list) and len(per_layer) == depth:
            setattr(config, name, [per_layer[i] for i in kept])
    config.num_hidden_layers = len(kept)
