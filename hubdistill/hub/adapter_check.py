"""Refusing adapters that are broken or hostile, from the files alone: no torch, no PEFT, nothing of theirs is run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from hubdistill.errors import InputError, MissingError
from hubdistill.hub.names import CONFIG, WEIGHTS, is_hub_id

LARGEST_CONFIG = 1 << 20  # bytes
LARGEST_HEADER = 100 << 20  # bytes; the limit of safetensors itself
LARGEST_RANK = 2048
KNOWN_INITS: tuple[Any, ...] = (
    True,
    False,
    "gaussian",
    "orthogonal",
)  # others change the base's weights when they load
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5")
# Fields that import code by name, or make the adapter more than a LoRA.
REFUSED = (
    "auto_mapping",
    "megatron_config",
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_LORA_KEY = re.compile(
    r"[\w.]+\.lora_(?:(?P<side>[AB])\.weight|embedding_[AB]|magnitude_vector(?:\.weight)?)", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What the files say: the base and its commit, rank, LoRA's alpha, adapted modules (names or a pattern)."""

    base: str
    base_revision: str | None
    rank: int
    alpha: float
    modules: tuple[str, ...]


def refuse_names(names: Iterable[str], where: str) -> None:
    """Raise InputError for file names that leave the folder, and for weights that are pickles only."""
    names = list(names)
    for name in names:
        windows = PureWindowsPath(name)
        if name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts or "\0" in name:
            raise InputError(
                f"{where} holds a file named {name!r}, which would be written outside the folder. Do not use this repository; report it."
            )
    if WEIGHTS in names:
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{where} has its weights only as {pickles[0]}, a format that can run code when it loads. Ask its author for {WEIGHTS}."
        )
    raise MissingError(f"{where} has no {WEIGHTS}, so it is not a LoRA adapter. Check the name and the revision.")


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json as a dict; InputError where it is too large or no JSON object."""
    if path.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"{path.name} is larger than 1 MiB and is no adapter configuration. Do not use this adapter.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not valid JSON. Publish the adapter again, or use another revision."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{path.name} must hold a JSON object. Publish the adapter again, or use another revision.")
    return config


def check_adapter(folder: Path, *, local: bool = False) -> AdapterFacts:
    """Check configuration and weights of the adapter in `folder`; raises InputError listing every problem.

    The base must be a Hub id; a `local` adapter, which is not published, may name a model folder of this machine.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingError(
                f"{folder} has no {name}, so it is not a LoRA adapter. Check the folder or the repository."
            )
    config = read_config(folder / CONFIG)
    problems = list(_config_problems(config, local))
    if not problems:
        problems = list(_weight_problems(folder / WEIGHTS, config))
    if problems:
        raise InputError(
            "\n".join(
                [*problems, "Do not use this adapter as it is; ask its author, or publish it again with hubdistill."]
            )
        )
    modules = config["target_modules"]
    return AdapterFacts(
        base=config["base_model_name_or_path"],
        base_revision=config.get("revision"),
        rank=config["r"],
        alpha=float(config.get("lora_alpha", 8)),
        modules=(modules,) if isinstance(modules, str) else tuple(sorted(modules)),
    )


def _config_problems(config: Mapping[str, Any], local: bool) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"{CONFIG}: peft_type: must be LORA, not {config.get('peft_type')!r}"
    base, revision, modules = (
        config.get("base_model_name_or_path"),
        config.get("revision"),
        config.get("target_modules"),
    )
    if not is_hub_id(base) and not (local and isinstance(base, str) and (Path(base) / "config.json").is_file()):
        yield f"{CONFIG}: base_model_name_or_path: {base!r} is not a model on the Hub"
    if revision is not None and not (
        isinstance(revision, str) and re.fullmatch(r"\w[\w./-]*", revision) and ".." not in revision
    ):
        yield f"{CONFIG}: revision: {revision!r} is not a revision"
    if not _is_rank(config.get("r")):
        yield f"{CONFIG}: r: must be a whole number from 1 to {LARGEST_RANK}, not {config.get('r')!r}"
    if not _is_number(config.get("lora_alpha", 8)):
        yield f"{CONFIG}: lora_alpha: must be a number, not {config.get('lora_alpha')!r}"
    names = [modules] if isinstance(modules, str) else modules
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and 0 < len(n) <= 2000 for n in names):
        yield f"{CONFIG}: target_modules: must be a name or a list of names"
    if config.get("init_lora_weights", True) not in KNOWN_INITS:
        yield f"{CONFIG}: init_lora_weights: {config['init_lora_weights']!r} changes the base model and is not supported"
    yield from _pattern_problems(config)
    yield from (f"{CONFIG}: {key}: is not allowed" for key in REFUSED if config.get(key))


def _pattern_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for key, good in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(good(value) for value in pattern.values()):
            yield f"{CONFIG}: {key}: must map module names to numbers"


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_RANK


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file (8 bytes length, then JSON); InputError where it is damaged."""
    size = path.stat().st_size
    damaged = InputError(
        f"{path.name} is damaged: its safetensors header cannot be read. Download or publish it again."
    )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise damaged
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(header, dict):
        raise damaged
    return header


def data_bytes(path: Path) -> int:
    """Bytes of a safetensors file after its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _weight_problems(path: Path, config: Mapping[str, Any]) -> Iterator[str]:
    header = read_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}
    data = data_bytes(path)
    if not tensors:
        yield f"{WEIGHTS}: holds no tensors"
    for name, entry in tensors.items():
        found = _LORA_KEY.fullmatch(name)
        if not found:
            yield f"{WEIGHTS}: {name[:120]!r} is not a LoRA weight"
            return
        shape = _shape(entry, data)
        if shape is None:
            yield f"{WEIGHTS}: {name[:120]}: its entry in the header is damaged"
            return
        rank = {"A": shape[0], "B": shape[1] if len(shape) > 1 else 0}.get(found["side"]) if shape else 0
        if rank is not None and rank not in ranks:
            yield f"{WEIGHTS}: {name[:120]}: has rank {rank}, and {CONFIG} says {config['r']}"
            return


def _shape(entry: Any, data: int) -> list[int] | None:
    """The shape of one tensor, None where dtype, shape and place in the file (`data` bytes) do not fit together."""
    if not isinstance(entry, dict):
        return None
    size = _DTYPE_BYTES.get(str(entry.get("dtype")))
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if size is None or shape is None or offsets is None or len(offsets) != 2:
        return None
    fits = offsets[0] <= offsets[1] <= data and offsets[1] - offsets[0] == math.prod(shape) * size
    return shape if fits else None


def _sizes(value: Any) -> list[int] | None:
    good = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    return value if good else None
