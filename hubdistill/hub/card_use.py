"""What a published card says of how its adapter is loaded, as far as the snippets differ by it. It comes from outside, and
goes into code that people run: only known values are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.evaluation.acceptance import LONGEST
from hubdistill.hub.card_merge import split_card
from hubdistill.hub.failures import log
from hubdistill.hub.names import is_commit, is_hub_id
from hubdistill.hub.snippets import Drafts

QUANTIZATION: dict[str, tuple[bool | str, ...]] = {
    "load_in_4bit": (True,),
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_use_double_quant": (True, False),
    "bnb_4bit_compute_dtype": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class CardUse:
    """`quantization` is of the base, as `BitsAndBytesConfig` takes it, and `stored` where its files are in 4 bit."""

    pipeline_tag: str = "text-generation"
    quantization: Mapping[str, bool | str] | None = None
    drafts: Drafts | None = None


def card_use(card: Path) -> CardUse:
    """A card that is not there or cannot be read is no obstacle."""
    try:
        said = split_card(card.read_text(encoding="utf-8", errors="replace"))[0] if card.is_file() else {}
    except InputError as error:
        log.warning("%s", error)
        return CardUse()
    tag = "image-text-to-text" if said.get("pipeline_tag") == "image-text-to-text" else "text-generation"
    ours = said.get("hubdistill")
    return CardUse(tag, _quantization(ours), _drafts(ours))


def _drafts(ours: Any) -> Drafts | None:
    """Whose drafter it is, where the verifier can be loaded by its name."""
    if not isinstance(ours, Mapping) or type(tokens := ours.get("draft_tokens")) is not int or not 1 <= tokens <= LONGEST:
        return None
    verifier, commit = ours.get("teacher"), ours.get("teacher_revision")
    return Drafts(verifier=str(verifier), commit=str(commit), tokens=tokens) if is_hub_id(verifier) and is_commit(commit) else None


def _quantization(ours: Any) -> dict[str, bool | str] | None:
    found = ours.get("quantization") if isinstance(ours, Mapping) else None
    if not isinstance(found, Mapping) or found.keys() - {"stored"} != QUANTIZATION.keys():
        return None
    allowed = QUANTIZATION | {"stored": (True,)}
    known = all(any(type(said) is type(value) and said == value for value in allowed[key]) for key, said in found.items())
    return dict(found) if known else None
