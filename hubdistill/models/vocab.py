"""Do teacher and student mean the same token by the same id? The loss compares distributions id by id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubdistill.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def common_vocab(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, teacher_rows: int, student_rows: int) -> int:
    """The vocabulary size V both heads are sliced to: the smaller head's rows (Qwen2's 151936 and 152064 give 151936).

    Raises InputError naming the first ids below V whose tokens differ. An id that neither tokenizer names is padding
    of the head and is fine; one that only one of them names is a difference.
    """
    size = min(teacher_rows, student_rows)
    by_id = [{i: token for token, i in tokenizer.get_vocab().items() if i < size} for tokenizer in (teacher, student)]
    differing = [i for i in sorted(by_id[0].keys() | by_id[1].keys()) if by_id[0].get(i) != by_id[1].get(i)]
    if not differing:
        return size
    shown = "; ".join(f"id {i}: teacher {by_id[0].get(i)!r}, student {by_id[1].get(i)!r}" for i in differing[:3])
    raise InputError(
        f"teacher and student do not share a vocabulary: {len(differing)} of {size} ids differ ({shown}); "
        "choose a student of the teacher's family, with the same tokenizer"
    )
