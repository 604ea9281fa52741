"""A page of examples of a finished run, as one HTML file that needs nothing else: prompt, images, and who said what."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubdistill.files import write_atomically
from hubdistill.hub.results import SUBJECTS
from hubdistill.shipped import model_cards_root

EXAMPLES = "evaluation/examples.json"  # examination.py writes it
PAGE = "examples.html"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


def write_examples_page(run: Path, name: str) -> Path | None:
    """Write `examples.html` of a run directory; None where nothing was evaluated."""
    source = run / EXAMPLES
    if not source.is_file():
        (run / PAGE).unlink(missing_ok=True)
        return None
    found = json.loads(source.read_text(encoding="utf-8"))
    rows = [{**row, "images": [_inline(run / "prompts" / "images" / image) for image in row["images"]]} for row in found["rows"]]
    write_atomically(run / PAGE, render_examples(name, {**found, "rows": rows}).encode())
    return run / PAGE


def render_examples(name: str, found: Mapping[str, Any]) -> str:
    """The page; every text in it is data of others, and escaped."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    env = SandboxedEnvironment(loader=FileSystemLoader(model_cards_root()), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return env.get_template("examples.html.jinja").render(name=name, labels=SUBJECTS, **found)


def _inline(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
