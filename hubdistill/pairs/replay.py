"""A student's responses drawn from those of all rounds so far: the off-policy buffer of DistiLLM (Ko et al. 2024, arXiv
2402.03898, section 3.2), with one response a prompt and round in it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from hubdistill.files import digest_of
from hubdistill.pairs.store import ResponseSet, seed_for


def replayed(sets: Sequence[ResponseSet], seed: int, round: int) -> ResponseSet:
    """For each prompt of the last set the response of one of the sets that have it, each with the same probability.

    Which one depends on `seed`, `round` and the prompt alone. A single set is given back as it is.
    """
    if len(sets) == 1:
        return sets[0]
    places = [{prompt: row for row, prompt in enumerate(one.table["prompt_id"].to_pylist())} for one in sets]
    parts = []
    for prompt in sets[-1].table["prompt_id"].to_pylist():
        having = [number for number, found in enumerate(places) if prompt in found]
        number = having[seed_for(seed, f"replay, round {round}", "student", prompt) % len(having)]
        parts.append(sets[number].table.slice(places[number][prompt], 1))
    stops = sorted({stop for one in sets for stop in one.manifest["stop_ids"]})
    digest = digest_of([[one.manifest["sha256"] for one in sets], seed, round])
    return ResponseSet(pa.concat_tables(parts).combine_chunks(), sets[-1].manifest | {"stop_ids": stops, "sha256": digest})
