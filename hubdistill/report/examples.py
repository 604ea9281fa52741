"""What student and teacher said on held-out prompts, before and after, with the images of the prompts in the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubdistill.hub.results import SUBJECTS

TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
OPEN = 3  # examples that are shown at once; the others open when they are asked for


def with_images(run: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The examples that examination.py wrote, with their images as data and their subjects by the names of a card."""
    rows = [
        {**row, "images": [_inline(run / "prompts" / "images" / image) for image in row["images"]],
         "responses": {SUBJECTS.get(name, name): said for name, said in row["responses"].items()}, "open": number < OPEN}
        for number, row in enumerate(found["rows"])
    ]  # fmt: skip
    return {**found, "rows": rows}


def _inline(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
