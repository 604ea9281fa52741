"""What a server said -> a response, as token ids. Where the ids do not come, the teacher's tokenizer makes them of the text, and they must give the text back.

An answer that cannot be had as tokens (a character was lost, an id that the student does not have, an end that is none)
is left out and counted, not trained on; where that happens to most of them, the server serves another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubdistill.errors import SamplingError
from hubdistill.pairs.store import UNUSABLE, Question, Response

LOST = "\ufffd"  # what a decoder writes for bytes that are no character


@dataclass(frozen=True)
class AnswerReader:
    """`tokenizer` is the teacher's; `end_id` is what ends a response whose ids did not come; ids at or above `vocab` are the student's no more."""

    tokenizer: Any
    stop_ids: tuple[int, ...]
    end_id: int
    vocab: int

    def response(self, question: Question, seed: int, answer: Any, limit: int) -> Response:
        """The response of at most `limit` tokens. Raises SamplingError for an answer without text, and where the server read another prompt."""
        choice = self._choice(question, answer)
        self._check_prompt(question, answer, choice)
        text, reason, ids = choice["text"], choice.get("finish_reason"), choice.get("token_ids")
        found = self._given(question, text, ids) if isinstance(ids, list) else self.ids_of(question.prompt_ids, text)
        if found is None or reason not in ("stop", "length") or not self._allowed(found[0]):
            return Response(question.prompt_id, question.prompt_ids, (), UNUSABLE, seed)
        body, end = found
        if reason == "stop" and len(body) < limit:
            return Response(question.prompt_id, question.prompt_ids, (*body, self.end_id if end is None else end), "stop", seed)
        return Response(question.prompt_id, question.prompt_ids, tuple(body[:limit]), "length", seed)

    def prompt_text(self, ids: Sequence[int]) -> str | None:
        """The text that a server with the teacher's tokenizer reads as the prompt `ids`; None where there is none."""
        for shown in (ids, ids[1:]):  # a server adds the token that begins a text by itself
            text = self._text(shown)
            if list(self.tokenizer(text)["input_ids"]) == list(ids):
                return text
        return None

    def ids_of(self, prompt: Sequence[int], text: str) -> tuple[list[int], None] | None:
        """Ids that give `text` after the prompt, alone or, where a tokenizer marks words by what is before them, taken together; None where none do."""
        if LOST in text:
            return None
        alone = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        before = self._text(prompt)
        if self._text([*prompt, *alone]) == before + text:
            return alone, None
        whole = list(self.tokenizer(before + text, add_special_tokens=False)["input_ids"])
        if whole[: len(prompt)] == list(prompt) and self._text(whole) == before + text:
            return whole[len(prompt) :], None
        return (alone, None) if text == text.lstrip() and self._text(alone) == text else None

    def _given(self, question: Question, text: str, ids: Sequence[int]) -> tuple[list[int], int | None] | None:
        """The ids that came and the stop token at their end, where they mean the text that came with them."""
        body, end = (list(ids[:-1]), ids[-1]) if ids and ids[-1] in self.stop_ids else (list(ids), None)
        if not self._allowed(body):
            return None
        alone, before = self._text(body), self._text(question.prompt_ids)
        # Of bytes that are no character every decoder makes something else.
        same = LOST in alone or text == alone or before + text == self._text([*question.prompt_ids, *body])
        return (body, end) if same else None

    def _allowed(self, body: Sequence[int]) -> bool:
        return all(isinstance(i, int) and 0 <= i < self.vocab and i not in self.stop_ids for i in body)

    def _choice(self, question: Question, answer: Any) -> dict[str, Any]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict) and isinstance(choices[0].get("text"), str)):
            shown = " ".join(str(answer).split())[:200]
            raise SamplingError(f"the server's answer to prompt {question.prompt_id} holds no text: {shown}; correct sampling.server.url, it must be that of an OpenAI-compatible server")
        return choices[0]

    def _check_prompt(self, question: Question, answer: dict[str, Any], choice: dict[str, Any]) -> None:
        usage = answer.get("usage")
        read, wanted = usage.get("prompt_tokens") if isinstance(usage, dict) else None, len(question.prompt_ids)
        ids = choice.get("prompt_token_ids")
        if (isinstance(read, int) and read != wanted) or (isinstance(ids, list) and ids != list(question.prompt_ids)):
            raise SamplingError(f"the server reads prompt {question.prompt_id} as {read if isinstance(read, int) else 'other'} tokens, and the teacher as {wanted}: it serves another model, "
                                "or adds tokens of its own; correct sampling.server.model, or serve the teacher with vLLM, which takes token ids")  # fmt: skip

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
