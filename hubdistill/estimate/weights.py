"""What models and adapters weigh: counted in a model without memory, made from its config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hubdistill.models.kept import kept
from hubdistill.models.sources import NOT_RESOLVED

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts
    from hubdistill.specs import LoraSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PACKED = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}  # bytes a weight in 4 bit, scales of blocks of 64 doubly quantised or not


@dataclass(frozen=True)
class Counts:
    """Numbers of weights of a model."""

    blocks: int  # in linear layers of the language model's blocks
    others: int  # all else: embedding, head, norms, a vision tower
    head: int  # of `others`, the output head
    vocab: int
    hidden: int
    layers: int

    @property
    def all(self) -> int:
        return self.blocks + self.others


@lru_cache(maxsize=32)
def _empty(key: _ByCommit) -> Any:
    from hubdistill.models.layers import empty_model

    return empty_model(key.facts, "student")


@lru_cache(maxsize=32)
def _counted(key: _ByCommit) -> tuple[str, Counts]:
    """The whole config as JSON, and the counts."""
    settings, numbers = _kept(key, ["counts"], lambda: _found(_empty(key)))
    return settings, Counts(**numbers)


def _kept(key: _ByCommit, what: list[Any], find: Callable[[], Any]) -> Any:
    return find() if key.commit == NOT_RESOLVED else kept([*what, key.commit, key.layers], find)


def _found(model: Any) -> tuple[str, dict[str, int]]:
    blocks = model.get_decoder().layers
    linear = {id(module.weight): module.weight.numel() for module in blocks.modules() if hasattr(module, "in_features")}
    head = model.get_output_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    counts = Counts(sum(linear.values()), total - sum(linear.values()), head.numel(), head.shape[0], head.shape[1], len(blocks))
    return model.config.to_json_string(use_diff=False), asdict(counts)


@dataclass(frozen=True)
class _ByCommit:
    """Facts as a key: configs cannot be hashed."""

    commit: str
    layers: int
    facts: Any

    def __hash__(self) -> int:
        return hash((self.commit, self.layers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByCommit) and (self.commit, self.layers) == (other.commit, other.layers)


def _key(facts: ModelFacts) -> _ByCommit:
    return _ByCommit(facts.commit, int(facts.text_config.get("num_hidden_layers", 0)), facts)


def count(facts: ModelFacts) -> Counts:
    """Weights of a model. Raises InputError where its config makes none."""
    return _counted(_key(facts))[1]


def settings_of(facts: ModelFacts) -> str:
    """The whole config as JSON, with what config.json leaves to the defaults of the family."""
    return _counted(_key(facts))[0]


def adapter_count(facts: ModelFacts, spec: LoraSpec) -> int:
    """Weights of the adapter."""
    return _adapter_counted(_key(facts), spec)


@lru_cache(maxsize=32)
def _adapter_counted(key: _ByCommit, spec: LoraSpec) -> int:
    return int(_kept(key, ["adapter", spec.model_dump(mode="json")], lambda: _adapter_found(_empty(key), spec)))


def _adapter_found(model: Any, spec: LoraSpec) -> int:
    import re

    import torch

    from hubdistill.models.layers import target_modules

    wanted = target_modules(model, spec)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = [module for name, module in linear.items() if (re.fullmatch(wanted, name) if isinstance(wanted, str) else name.split(".")[-1] in wanted and ".layers." in name)]
    return sum(spec.rank * (module.in_features + module.out_features) for module in chosen)


def model_bytes(counts: Counts, dtype: str, packed: bool | None = None) -> int:
    """Bytes of the weights; with `packed` (doubly quantised or not) the blocks in 4 bit and all else in float32."""
    if packed is None:
        return counts.all * BYTES[dtype]
    return int(counts.blocks * PACKED[packed]) + counts.others * BYTES["float32"]
