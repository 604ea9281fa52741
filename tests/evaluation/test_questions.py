"""Sets of questions: their names, and that none of them was trained on."""

from __future__ import annotations

from hubdistill.evaluation.questions import names_of, not_trained_on, set_of
from hubdistill.pairs.prompts import Prompt


def prompt(text: str, *images: str) -> Prompt:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}] if images else text
    return Prompt(id=text, messages=({"role": "user", "content": content},), images=images)


def test_a_set_is_named_after_its_file_or_hub_id_and_two_of_one_name_differ():
    names = ["org/OK-VQA", "a/test.jsonl", "shipped:smoke_vlm.jsonl", "b/test.parquet", "org/set.v2", "OK-VQA"]
    assert names_of(names) == ["OK-VQA", "test", "smoke_vlm", "test (4)", "set.v2", "OK-VQA (6)"]
    assert names_of(["held-out prompts.csv", "a, no image.json", "a.json"]) == ["held-out prompts (1)", "a", "a (3)"]  # names that results have of their own
    assert {set_of(on) for on in ("set", "set, no image", "set / type", "set, no image / type")} == {"set"}


def test_questions_that_are_training_prompts_are_left_out():
    trained = [prompt("What is it? ", "a.png"), prompt("How many?", "b.png", "c.png"), prompt("Why?")]
    asked = [prompt("what is it?\nOne word.", "a.png"), prompt("what is it?\nOne word.", "b.png"), prompt("how many?\nOne word.", "c.png", "b.png"),
             prompt("why?\nOne word."), prompt("why?\nOne word.", "a.png")]  # fmt: skip
    assert not_trained_on(asked, trained, "One word.") == [asked[1], asked[2], asked[4]]
    assert not_trained_on(asked, [], "One word.") == asked
