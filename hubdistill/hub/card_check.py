"""Checking a card offline, before anything is trained or uploaded. The Hub's own check has the last word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from hubdistill.errors import InputError
from hubdistill.hub.card_merge import END, START, split_card
from hubdistill.hub.names import is_hub_id

RELATIONS = ("adapter", "finetune", "quantized", "merge")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
# The Hub's list, as far as it is known here: it grows, so an unknown license is a warning.
LICENSES = frozenset(
    [
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "apple-amlr",
        "apple-ascl",
        "artistic-2.0",
        "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigscience-openrail-m",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "c-uda",
        "cc",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "creativeml-openrail-m",
        "deepfloyd-if-license",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "fair-noncommercial-research-license",
        "gemma",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "grok2-community",
        "h-research",
        "intel-research",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "lgpl-lr",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "lppl-1.3c",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "ofl-1.1",
        "openmdw-1.0",
        "openrail",
        "openrail++",
        "osl-3.0",
        "other",
        "pddl",
        "postgresql",
        "unknown",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)


def validate_card(text: str) -> tuple[str, ...]:
    """Raise InputError listing every problem of the card; return what is only worth a warning."""
    metadata, body = split_card(text)
    if not metadata:
        raise InputError("README.md: no metadata; a card begins with a block of YAML between two lines of ---.")
    problems = [*_ids(metadata), *_plain_fields(metadata), *_model_index(metadata.get("model-index")), *_body(body)]
    if problems:
        raise InputError("\n".join(f"README.md: {problem}" for problem in problems))
    return tuple(_warnings(metadata))


def _ids(metadata: dict[str, Any]) -> Iterator[str]:
    for key, where in (("base_model", "models"), ("datasets", "datasets")):
        for value in _items(metadata.get(key)):
            if not is_hub_id(value):
                kind = (
                    "a local path" if isinstance(value, str) and value.startswith(("/", ".", "~")) else "not a Hub id"
                )
                yield f"{key}: {value!r} is {kind}; use an id from https://hf.co/{where}, or leave the key out"


def _plain_fields(metadata: dict[str, Any]) -> Iterator[str]:
    if metadata.get("base_model_relation") not in (None, *RELATIONS):
        yield f"base_model_relation: {metadata['base_model_relation']!r} must be one of {', '.join(RELATIONS)}"
    for key in ("pipeline_tag", "library_name", "license_name", "license_link"):
        if key in metadata and not isinstance(metadata[key], str):
            yield f"{key}: {metadata[key]!r} must be text; leave the key out where it is unknown"
    if "license" in metadata and not all(isinstance(x, str) for x in _items(metadata["license"]) or [None]):
        yield "license: must be a license id such as apache-2.0; leave the key out where it is unknown"
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield "tags: must be a list of words; quote a tag that looks like a number or a date"


def _model_index(index: Any) -> Iterator[str]:
    if index is not None and not isinstance(index, list):
        yield "model-index: must be a list of models with `name` and `results`"
        return
    for i, model in enumerate(index or []):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f"{where}.name: is required"
            continue
        for j, result in enumerate(_items(model.get("results"))):
            yield from _result(f"{where}.results[{j}]", result)


def _result(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"{where}: must have task, dataset and metrics"
        return
    task, dataset = _mapping(result.get("task")), _mapping(result.get("dataset"))
    if not isinstance(task.get("type"), str):
        yield f"{where}.task.type: is required"
    for key in ("type", "name", "config", "split", "revision"):
        if (key in ("type", "name") or key in dataset) and not isinstance(dataset.get(key), str):
            yield f"{where}.dataset.{key}: must be text, not {dataset.get(key)!r}"
    for n, metric in enumerate(_items(result.get("metrics"))):
        values = _mapping(metric)
        if not isinstance(values.get("type"), str):
            yield f"{where}.metrics[{n}].type: is required"
        value = values.get("value")
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield f"{where}.metrics[{n}].value: must be a finite number, not {value!r}"


def _body(body: str) -> Iterator[str]:
    lines = [line.strip() for line in body.splitlines()]
    if lines.count(START) != lines.count(END) or lines.count(START) > 1:
        yield f"the lines {START} and {END} must be there once each, or not at all"
    if "[More Information Needed]" in body:
        yield "holds the placeholder [More Information Needed]; write the fact or remove the line"


def _warnings(metadata: dict[str, Any]) -> Iterator[str]:
    for value in _items(metadata.get("license")):
        if value not in LICENSES:
            yield f"license {value!r} is not among the Hub's licenses known to hubdistill; the Hub may refuse it"
    if metadata.get("license") == "other" and not (metadata.get("license_name") and metadata.get("license_link")):
        yield "license: other should come with license_name and license_link"
    for value in _items(metadata.get("language")):
        if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
            yield f"language {value!r} is not an ISO 639 code such as en"


def _items(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
