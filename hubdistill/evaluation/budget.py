"""What measuring divergences holds at once; apart from divergence.py, which imports models, because `plan` asks it."""

from __future__ import annotations

ROWS = 8  # responses in one forward pass
KEPT_BYTES = 2**30  # of main memory, for what the teacher said of responses that every subject is measured on
TILE_BYTES = 64 * 2**20  # of log-probabilities of one model; a tile takes about eight times that in all
