"""Drawing prompts: the same ones in any order of rows, exact though lazy; held-out prompts never move."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubdistill.errors import InputError
from hubdistill.pairs.prompts import Encoded, Prompt, load_prompts, prompt_id, read_prompts, save_prompts
from hubdistill.specs import PromptsSpec


def words(prompt: Prompt) -> Encoded:
    """A stand-in tokenizer: one id a word."""
    return Encoded([len(word) for turn in prompt.messages for word in turn["content"].split()])


def write(path: Path, rows: Sequence[Any]) -> PromptsSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PromptsSpec(dataset=path.name, heldout=7, count=20, max_tokens=6)


def some_rows(seed: int = 0, count: int = 400) -> list[dict[str, str]]:
    """Prompts of 1 to 12 words, some of them twice, some blank."""
    rng = random.Random(seed)
    rows = [{"prompt": " ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(1, 12)))} for _ in range(count)]
    return rows + [{"prompt": f"  {row['prompt']}\n"} for row in rows[:50]] + [{"prompt": "  "}] * 5


def by_brute_force(
    rows: Sequence[dict[str, str]], spec: PromptsSpec, seed: int = 0
) -> tuple[list[str], list[str], int]:
    """The definition, without heaps or laziness: train texts, held-out texts, distinct prompts that are too long."""
    texts = {row["prompt"].strip() for row in rows} - {""}
    usable = [text for text in texts if len(text.split()) <= spec.max_tokens]

    def key(salt: str, text: str) -> str:
        canonical = json.dumps([["user", text]], separators=(",", ":"))
        name = hashlib.sha256(canonical.encode()).hexdigest()[:32]
        return hashlib.sha256(f"{seed}|{salt}|{name}".encode()).hexdigest()

    heldout = sorted(usable, key=lambda text: key("heldout", text))[: spec.heldout]
    rest = [text for text in usable if text not in heldout]
    return sorted(rest, key=lambda text: key("train", text))[: spec.count], heldout, len(texts) - len(usable)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts]


@pytest.mark.parametrize("count", [1, 20, 1000, None])
@pytest.mark.parametrize("heldout", [0, 7, 60])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_draw_is_the_definition(tmp_path: Path, count: int | None, heldout: int, seed: int) -> None:
    rows = some_rows()
    spec = write(tmp_path / "a.jsonl", rows).model_copy(update={"count": count, "heldout": heldout})
    train, held, report = load_prompts(spec, tmp_path, words, seed)
    want_train, want_held, long = by_brute_force(rows, spec, seed)
    assert texts(train) == want_train
    assert texts(held) == want_held
    assert (report.kept_train, report.kept_heldout) == (len(want_train), len(want_held))
    assert report.read == len(rows)
    assert report.empty == 5
    if count is None:
        assert (report.too_long, report.not_drawn) == (long, 0)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    rows = some_rows()
    first = load_prompts(write(tmp_path / "a.jsonl", rows), tmp_path, words)
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert load_prompts(write(tmp_path / "a.jsonl", rows), tmp_path, words) == first


def test_count_and_new_rows_leave_the_heldout_prompts_alone(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.jsonl", some_rows())
    held = [load_prompts(spec.model_copy(update={"count": n}), tmp_path, words)[1] for n in (1, 50, None)]
    assert held[0] == held[1] == held[2]
    more = load_prompts(spec.model_copy(update={"heldout": 9}), tmp_path, words)[1]
    assert more[:7] == held[0]


def test_train_and_heldout_share_no_prompt(tmp_path: Path) -> None:
    train, held, _ = load_prompts(
        write(tmp_path / "a.jsonl", some_rows()).model_copy(update={"count": None}), tmp_path, words
    )
    assert not {prompt.id for prompt in train} & {prompt.id for prompt in held}


def test_only_candidates_are_encoded(tmp_path: Path) -> None:
    calls = 0

    def counting(prompt: Prompt) -> Encoded:
        nonlocal calls
        calls += 1
        return words(prompt)

    rows = [{"prompt": f"question number {i}"} for i in range(5000)]
    load_prompts(write(tmp_path / "a.jsonl", rows), tmp_path, counting)
    # k * (1 + ln(n / k)) enter a heap of size k on average: 7 and 20 of 5000 make about 180
    assert 27 <= calls < 400


def test_the_counts_add_up(tmp_path: Path) -> None:
    rows = some_rows()
    _, _, report = load_prompts(write(tmp_path / "a.jsonl", rows), tmp_path, words)
    parts = (report.empty, report.duplicates, report.too_long, report.not_drawn, report.kept_train, report.kept_heldout)
    assert sum(parts) == report.read == len(rows)
    assert report.duplicates == len(rows) - 5 - len({row["prompt"].strip() for row in rows} - {""})
    assert json.loads(json.dumps(report.as_dict()))["read"] == report.read
    text = "\n".join(report.lines())
    assert f"20 training prompts, 7 held out, from {len(rows)} rows" in text
    assert f"{report.too_long} longer than 6 tokens" in text
    assert "27 of them have no ground-truth response" in text
    assert report.lengths[0] >= 1
    assert report.lengths[2] <= 6


def test_too_few_prompts_say_how_many_and_what_to_do(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.jsonl", [{"prompt": f"number {i}"} for i in range(7)] + [{"prompt": "a b c d e f g"}])
    with pytest.raises(
        InputError,
        match=r"8 rows give 7 usable prompts \(0 empty, 0 duplicates, 1 longer than 6 tokens\), and 7 are held out; lower `prompts.heldout`",
    ):
        load_prompts(spec, tmp_path, words)
    train, held, report = load_prompts(spec.model_copy(update={"heldout": 6}), tmp_path, words)
    assert (len(train), len(held)) == (1, 6)
    assert "(asked for 20)" in report.lines()[0]


def test_duplicates_keep_one_response_whatever_the_order(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "r": None},
        {"prompt": " p", "r": "b"},
        {"prompt": "p ", "r": "a"},
        {"prompt": "q", "r": ""},
    ]
    for _ in range(4):
        rows = rows[1:] + rows[:1]
        spec = write(tmp_path / "a.jsonl", rows).model_copy(update={"heldout": 0, "response_column": "r"})
        train, _, report = load_prompts(spec, tmp_path, words)
        assert {texts([prompt])[0]: prompt.response for prompt in train} == {"p": "a", "q": None}
        assert (report.duplicates, report.without_response) == (2, 1)


def test_a_chat_template_that_refuses_names_the_row(tmp_path: Path) -> None:
    import jinja2

    def encode(prompt: Prompt) -> Encoded:
        if prompt.messages[0]["content"] == "two":
            raise jinja2.exceptions.TemplateError("System role not supported")
        return words(prompt)

    spec = write(tmp_path / "a.jsonl", [{"prompt": "one"}, {"prompt": "two"}]).model_copy(update={"heldout": 0})
    with pytest.raises(InputError, match=r"a.jsonl:row 2 \(column 'prompt'\): .*System role not supported.*; remove"):
        load_prompts(spec, tmp_path, encode)


def test_ids_are_stable_and_tell_conversations_apart() -> None:
    one = [{"role": "user", "content": "Hi"}]
    assert prompt_id(one) == hashlib.sha256(b'[["user","Hi"]]').hexdigest()[:32]
    assert prompt_id(one) != prompt_id([{"role": "system", "content": "Hi"}])
    assert prompt_id([{"role": "user", "content": 'a","b'}]) != prompt_id(
        [{"role": "user", "content": "a"}, {"role": "b", "content": ""}]
    )


def test_saved_prompts_read_back_equal(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    chat = ({"role": "system", "content": ""}, {"role": "user", "content": 'né "日本"\n🙂'})
    prompts = [Prompt(prompt_id(chat), chat, None), Prompt("0" * 32, ({"role": "user", "content": "a b"},), "yes")]
    path = tmp_path / "prompts" / "train.parquet"
    save_prompts(path, prompts, words)
    assert read_prompts(path) == [replace(prompt, prompt_ids=tuple(words(prompt).teacher)) for prompt in prompts]
    table = pq.read_table(path)
    assert table["prompt_ids"].to_pylist() == [words(prompt).teacher for prompt in prompts]
    assert str(table.schema.field("prompt_ids").type) == "list<element: int32>"
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]
    before = path.read_bytes()
    save_prompts(path, prompts, words)
    assert path.read_bytes() == before


def test_no_prompts_are_saved_and_read_too(tmp_path: Path) -> None:
    save_prompts(tmp_path / "heldout.parquet", [], words)
    assert read_prompts(tmp_path / "heldout.parquet") == []


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense", None])
def test_a_damaged_file_of_prompts_says_so(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "train.parquet"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(InputError, match=r"train.parquet: .*delete it and run the command again"):
        read_prompts(path)
