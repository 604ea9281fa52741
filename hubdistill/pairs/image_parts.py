"""Where the images of a row stand in its conversation: content as parts, `{"type": "image"}` and `{"type": "text"}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MARK = "<image>"  # how LLaVA's data sets mark an image inside a text
OWN_IMAGE = ("url", "image", "path", "base64", "image_url")  # keys under which transformers and OpenAI's format look for it

Part = dict[str, str]


def parts_of(content: Any) -> list[Part]:
    """A message's content as parts; ValueError says what is wrong with it. The images themselves come from the row's
    image column, so a part that names one of its own is refused: another would stand in its place."""
    found: list[Part] = []
    for part in [content] if isinstance(content, dict) else content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            found.append({"type": "text", "text": part["text"]})
        elif kind in ("image", "image_url"):
            if own := next((key for key in OWN_IMAGE if part.get(key)), None):
                raise ValueError(f"has an image part that names an image of its own (`{own}`)")
            found.append({"type": "image"})
        else:
            raise ValueError(f"has a part of type {kind!r}" if kind not in ("text", None) else "has a part that is neither text nor image")
    return found


def text_of(parts: Sequence[Part]) -> str:
    """The text of parts, without their images."""
    return "\n".join(part["text"].strip() for part in parts if part["type"] == "text").strip()


def text_of_turn(turn: Mapping[str, Any]) -> str:
    """A turn's text, whether it has images or not."""
    return turn["content"] if isinstance(turn["content"], str) else text_of(turn["content"])


def marked(text: str) -> list[Part]:
    """A text with `<image>` marks as parts."""
    pieces = [piece.strip() for piece in text.split(MARK)]
    found: list[Part] = []
    for number, piece in enumerate(pieces):
        found += ([{"type": "image"}] if number else []) + ([{"type": "text", "text": piece}] if piece else [])
    return found


def place(turns: Sequence[Mapping[str, Any]], images: int) -> list[dict[str, Any]]:
    """The conversation with every image in its place: where parts or `<image>` marks say, else before the text of the
    first user turn. Turns without an image keep their text. ValueError where marks and images do not match in number."""
    found = [_one(turn) for turn in turns]
    placed = sum(part["type"] == "image" for turn in found if not isinstance(turn["content"], str) for part in turn["content"])
    if images and not placed:
        first = next(turn for turn in found if turn["role"] == "user")
        text = text_of_turn(first)
        first["content"] = [{"type": "image"}] * images + ([{"type": "text", "text": text}] if text else [])
    elif placed != images:
        raise ValueError(f"has {placed} image placeholder{'s' * (placed != 1)} and {images} image{'s' * (images != 1)}")
    return found


def _one(turn: Mapping[str, Any]) -> dict[str, Any]:
    parts = marked(turn["content"]) if isinstance(turn["content"], str) and MARK in turn["content"] else turn["content"]
    if isinstance(parts, str):
        return dict(turn)
    if any(part["type"] == "image" for part in parts):
        return {**turn, "content": [part for part in parts if part["type"] == "image" or part["text"].strip()]}
    return {**turn, "content": text_of(parts)}
