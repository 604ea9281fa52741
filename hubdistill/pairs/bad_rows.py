"""Several rows that cannot be used are told at once, so that a data file is corrected in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from hubdistill.errors import InputError
from hubdistill.pairs.prompt_rows import Row, read_row

TOLD = 5  # of the bad rows; a screen
AFTER = 200  # rows that are looked at after the first bad one: no more, since a stream may go on for hours


def use_rows(rows: Iterable[Row], use: Callable[[Row], object]) -> None:
    """Call `use` on every row. Raises InputError with what is wrong with the first bad row, and with some after it."""
    found = iter(rows)
    for row in found:
        try:
            use(row)
        except InputError as problem:
            more = list(_bad(islice(found, AFTER)))
            if not more:
                raise
            lines = [str(problem), *more][:TOLD]
            untold = 1 + len(more) - len(lines)
            lines += [f"... and {untold} more at least; correct these first"] if untold else []
            raise InputError("\n".join(lines)) from problem


def _bad(rows: Iterator[Row]) -> Iterator[str]:
    """What is wrong with each row as it stands, without its images and its tokens; and with the file, which ends there."""
    try:
        for row in rows:
            try:
                if not row.damaged:
                    read_row(row)
            except InputError as problem:
                yield str(problem)
    except InputError as problem:
        yield str(problem)
