"""A student with its adapter merged in, as a model folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hubdistill.files import publish_folder
from hubdistill.models.load import load_processor, load_tokenizer, read_weights
from hubdistill.models.lora import load_adapter
from hubdistill.models.saving import save_model
from hubdistill.models.sources import ModelFacts


def build_merged(base: ModelFacts, adapter: Path, template: str | None, folder: Path) -> Path:
    """Write weights (in the base's number format), configs and tokenizer to `folder`; `template` is the chat template that
    the adapter was trained with, where the base's differs."""
    shutil.rmtree(folder, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".merging-"))
    try:
        adapted: Any = load_adapter(read_weights(base, "auto"), adapter, trainable=False)
        model = adapted.merge_and_unload(safe_merge=True)  # raises on NaN instead of merging it
        save_model(model, work)
        reader: Any = (load_processor if base.has_vision else load_tokenizer)(base)
        if template is not None:
            reader.chat_template = template
        reader.save_pretrained(work)
        publish_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
