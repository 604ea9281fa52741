"""Writing a model as a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a generation config, what only sampling reads.
OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """`save_pretrained`, without the place that the model was read from.

    Models are on the Hub whose generation config has a temperature and does not sample (Vicuna's). transformers reads them,
    ignores it, and refuses to save it; so it is left out, and the model generates as before.
    """
    model.config._name_or_path = ""
    config = model.generation_config
    if config is not None and not config.do_sample:
        for name in OF_SAMPLING:
            if hasattr(config, name):
                setattr(config, name, None)
    model.save_pretrained(folder)
