"""One row of a dataset -> a prompt: a conversation that ends in a user turn, and its ground-truth response if any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubdistill.errors import InputError
from hubdistill.pairs.image_parts import MARK, parts_of, place, text_of, text_of_turn
from hubdistill.pairs.images import RawImage
from hubdistill.specs import QuestionsSpec

ANNOTATORS = 4  # answers of a question from which on they count as those of annotators, not as spellings of one
NO_IMAGE = "no image"  # how results call questions that are asked without their image; no type of question can be called so
MAX_TEXT = 2**20  # characters of one message; no prompt is a book, and a row this long is a file read wrongly
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}

Message = Mapping[str, Any]  # role, and content: a text, or parts where the turn has images


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends in a user turn. `id` is 32 hex digits of the SHA-256 of its messages and images."""

    id: str
    messages: tuple[Message, ...]
    response: str | None = None  # ground truth
    prompt_ids: tuple[int, ...] = ()  # rendered by the teacher's template; there once it was saved
    student_prompt_ids: tuple[int, ...] | None = None  # by the student's, where it reads prompts in its own way
    images: tuple[str, ...] = ()  # names in the image store, in the order of the messages
    raw_images: tuple[RawImage, ...] = ()  # what the row had; gone once they are in the store
    answers: tuple[str, ...] = ()  # of a question: what its annotators said; of a preference: the preferred response, and the other one
    group: str | None = None  # of a question: its type


@dataclass(frozen=True)
class Row:
    """A raw row: `where` is `file:row N`, `value` and `response` are the cells of the two columns."""

    where: str
    column: str
    value: Any
    response: Any = None
    response_column: str | None = None
    images: tuple[RawImage, ...] | None = None  # None: the source has no image column
    damaged: bool = False  # an image of it cannot be read, and such rows are skipped
    question: QuestionsSpec | None = None  # the row is a question with answers
    group: Any = None
    key: str = "prompts"  # the block of the recipe that names the source
    image_column: str | None = None
    rejected: Any = None
    rejected_column: str | None = None  # the row is a preference: `response` was preferred to `rejected`
    problem: InputError | None = None  # what is wrong with it, which `read_row` raises

    def error(self, what: str, fix: str, column: str | None = None) -> InputError:
        return InputError(f"{self.where} (column '{column or self.column}'): {what}; {fix}")

    def image_error(self, problem: str, index: int, of: int) -> InputError:
        which = f", image {index + 1} of {of}" if of > 1 else ""
        return InputError(f"{self.where} (column '{self.image_column}'{which}): {problem}; or skip such rows with `{self.key}.damaged_images: skip`")


def prompt_id(messages: Sequence[Message], images: Sequence[RawImage] = ()) -> str:
    """32 hex digits of the SHA-256 of the messages as canonical JSON, and of the images' digests if there are any."""
    turns: list[Any] = [[turn["role"], turn["content"]] for turn in messages]
    text = json.dumps([*turns, *([image.digest for image in images],) * bool(images)], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_row(row: Row) -> Prompt | None:
    """The conversation up to the last user turn, with its response; None where that turn has no text (or image and the
    user no text at all).

    Outer whitespace is stripped from every message. Raises InputError naming file, row and column for a row that is
    neither text nor a chat.
    """
    if row.problem:
        raise row.problem
    if row.question:
        return _read_question(row, row.question)
    if row.rejected_column:
        return _read_preference(row)
    chat = _as_chat(row)
    if chat is None:
        prompt, after = [{"role": "user", "content": _text(row, row.value)}], None
    else:
        prompt, after = _split(row, chat)
    images = row.images or ()
    if row.images is not None:
        try:
            prompt = place(prompt, len(images))
        except ValueError as problem:
            raise row.error(str(problem), f"write one {MARK} (or one image part) for each image, or none where they come first") from problem
    if not prompt[-1]["content"] or not any(text_of_turn(turn) for turn in prompt if turn["role"] == "user"):
        return None
    if blank := next((i for i, turn in enumerate(prompt) if not turn["content"] and turn["role"] != "system"), None):
        raise row.error(f"turn {blank + 1} is empty", "fill it, or remove the row")
    if row.response_column is not None:
        after = row.response
        if after is not None and not isinstance(after, str):
            raise row.error(f"holds {_kind(after)}", f"name a column of text in `{row.key}.response_column`", row.response_column)
    response = None if after is None else _text(row, after) or None
    return Prompt(prompt_id(prompt, images), tuple(prompt), response, raw_images=images)


def _read_question(row: Row, spec: QuestionsSpec) -> Prompt | None:
    answers, group = _answers(row, spec.response_column) if spec.response_column else (), _group(row)
    prompt = read_row(replace(row, question=None, response=None, response_column=None))
    if prompt is None and row.images:
        raise row.error("has an image and no question about it", "write the question, or remove the row")
    if prompt is None:
        return None
    turns = (*prompt.messages[:-1], _instructed(prompt.messages[-1], spec.instruction.strip()))
    return replace(prompt, id=prompt_id(turns, prompt.raw_images), messages=turns, response=None, answers=answers, group=group)


def _read_preference(row: Row) -> Prompt | None:
    """The prompt with its two responses; None where they are equal, which prefers neither."""
    assert row.response_column is not None, "the spec has both"
    assert row.rejected_column is not None
    prompt = read_row(replace(row, response=None, response_column=None, rejected_column=None))
    chosen, rejected = _said(row, row.response, row.response_column), _said(row, row.rejected, row.rejected_column)
    return None if prompt is None or chosen == rejected else replace(prompt, response=None, answers=(chosen, rejected))


def _said(row: Row, cell: Any, column: str) -> str:
    """A response: a text, or the last turn of a chat."""
    last = cell[-1] if isinstance(cell, list) and cell and isinstance(cell[-1], dict) else None
    text = cell if last is None else last.get("content") if last.get("role") == "assistant" else None
    if not isinstance(text, str) or not text.strip():
        what = "holds an empty text" if isinstance(text, str) else f"holds {_kind(cell)}" if last is None else "holds a chat that does not end in a turn of the assistant with text"
        raise row.error(what, "a response is a text, or chat messages that end in the assistant's: write it, or remove the row", column)
    return _text(row, text)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    """The answers of a question: one, or one of each annotator, who may be listed as {answer: ...}."""
    cells = row.response if isinstance(row.response, list) else [row.response]
    answers = [cell.get("answer") if isinstance(cell, dict) else cell for cell in cells]
    fix = "an answer is a text, or a list of texts: write it, or remove the row"
    if not answers:
        raise row.error("holds an empty list", fix, column)
    if wrong := [answer for answer in answers if not isinstance(answer, str)]:
        where = " in its list" if cells is row.response else ""
        raise row.error(f"holds {_kind(wrong[0])}{where}", fix, column)
    texts = tuple(_text(row, str(answer)) for answer in answers)
    # Of many annotators one may have said nothing. Among few, an empty text would make silence a right answer.
    if not any(texts) or (len(texts) < ANNOTATORS and not all(texts)):
        raise row.error("holds an empty answer", fix, column)
    return texts


def _group(row: Row) -> str | None:
    group = None if row.group is None else _text(row, str(row.group)) or None
    if row.question and group and group.casefold() == NO_IMAGE:
        fix = f"name it otherwise (such as 'text only'), or leave out `{row.key}.type_column`"
        raise row.error(f"the type '{group}' is what results call all questions asked without their image", fix, row.question.type_column)
    return group


def _instructed(turn: Message, instruction: str) -> Message:
    """The turn with an instruction on a line of its own after its text."""
    content = turn["content"]
    if not instruction:
        return turn
    if isinstance(content, str):
        return {**turn, "content": f"{content}\n{instruction}"}
    *before, last = content
    said = [{**last, "text": f"{last['text']}\n{instruction}"}] if last["type"] == "text" else [last, {"type": "text", "text": instruction}]
    return {**turn, "content": [*before, *said]}


def _as_chat(row: Row) -> list[Any] | None:
    """The turns of a chat, or None for plain text."""
    value = row.value
    if isinstance(value, list):
        return value
    if value is None:
        raise row.error("the prompt is null", "fill it, or remove the row")
    if not isinstance(value, str):
        raise row.error(f"holds {_kind(value)}", f"name a column of text or chat messages in `{row.key}.column`")
    if value.lstrip()[:1] != "[" or not ('"role"' in value or '"from"' in value or "'role'" in value):
        return None
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError) as problem:
        if value.lstrip()[1:].lstrip()[:1] != "{":
            return None  # text that opens with a bracket
        raise row.error("looks like chat messages, but is not JSON", "write the messages with json.dumps") from problem
    is_chat = (
        isinstance(turns, list)
        and turns
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    )
    return turns if is_chat else None


def _split(row: Row, chat: list[Any]) -> tuple[list[dict[str, Any]], str | None]:
    turns = [_role_and_content(row, i, turn) for i, turn in enumerate(chat)]
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if not users:
        raise row.error("the chat has no user turn", f"remove the row, or name another column in `{row.key}.column`")
    prompt = [
        {"role": role, "content": _content(row, i, content)} for i, (role, content) in enumerate(turns[: users[-1] + 1])
    ]
    follows = turns[users[-1] + 1 : users[-1] + 2]
    answered = follows and follows[0][0] == "assistant" and follows[0][1] is not None
    if not answered:
        return prompt, None
    after = _content(row, users[-1] + 1, follows[0][1])
    return prompt, after if isinstance(after, str) else text_of(after)


def _role_and_content(row: Row, i: int, turn: Any) -> tuple[str, Any]:
    if not isinstance(turn, dict):
        raise row.error(f"turn {i + 1} is {_kind(turn)}", "write each turn as {role, content}")
    role = turn["role"] if turn.get("role") is not None else turn.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise row.error(f"turn {i + 1} has role {_show(role)}", "use system, user and assistant (or human and gpt)")
    return ROLES[role], turn["content"] if turn.get("content") is not None else turn.get("value")


def _content(row: Row, i: int, content: Any) -> Any:
    if content is None:
        raise row.error(f"turn {i + 1} has no content", "fill it, or remove the row")
    if isinstance(content, list | dict):
        if row.images is None:
            raise row.error(
                f"turn {i + 1} is made of parts, such as images",
                "write its content as one text, or use `target: {kind: vlm}` and " + f"`{row.key}.image_column` for images",
            )
        try:
            return [{**part, "text": _text(row, part["text"])} if part["type"] == "text" else part for part in parts_of(content)]
        except ValueError as problem:
            raise row.error(f"turn {i + 1} {problem}", f"parts are {{type: text, text: ...}} and {{type: image}}, whose images stand in the column of `{row.key}.image_column`") from problem
    if not isinstance(content, str):
        raise row.error(f"the content of turn {i + 1} is {_kind(content)}", "write it as text")
    return _text(row, content)


def _text(row: Row, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise row.error(
            f"holds a text of {len(text):,} characters (at most {MAX_TEXT:,})", "shorten it, or remove the row"
        )
    if "\0" in text:
        raise row.error("holds a NUL character", "save the file as plain UTF-8 text without it")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise row.error("holds half a character (a lone surrogate)", "write the file again as UTF-8") from problem
    return text.strip()


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
        bytes: "bytes",
        str: "a text",
        type(None): "null",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
