"""Calls of a model whose memory is asked for, and what was found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """Bytes beside the weights, gradients of the adapter not counted."""

    kept: int  # after the forward pass: what backward needs, or the keys and values of the prompts
    forward: int  # at most during the forward pass
    backward: int  # at most during the backward pass


@dataclass(frozen=True)
class Call:
    """A call of a model's decoder; `settings` is its whole config as JSON, so that calls can be compared."""

    settings: str
    dtype: str  # of the weights
    rows: int  # or pairs
    length: int  # of a prompt with its response
    response: int = 0  # tokens of a response, of pairs in one row (models/pair_attention.py); 0 for rows
    rank: int = 0  # of the adapter; 0 for a pass without gradient
    modules: tuple[str, ...] | None = None  # adapted layers; all linear ones without
    packed: str = ""  # compute dtype of linear layers in 4 bit; "" where they are not
    checkpointing: bool = False
    cache: bool = False  # keeps keys and values, as sampling does
    eager: bool = False  # attention written out
