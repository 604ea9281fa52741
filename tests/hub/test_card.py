"""The card: golden render, accepted by the test Hub's own check, and nothing from outside can break out of its place."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from hubdistill.errors import InputError
from hubdistill.evaluation.statistics import Measurement
from hubdistill.hub.base_publish import BaseFacts, render_base_card
from hubdistill.hub.card import BaseModel, CardFacts, Data, License, Teacher, render_card
from hubdistill.hub.card_check import validate_card
from hubdistill.hub.card_merge import END, START, merge_card
from hubdistill.hub.methods import Method
from hubdistill.hub.results import results
from tests.hub.example_card import FACTS, GOLDEN
from tests.hub_server import validate_card as hub_check

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "`code` <b>bold</b> ``` \n```\n# Heading",
    "a | b | c",
    "x\\|<img src=x>",
    "line one\n\n# Heading\n\n---\nlicense: mit\n---\n",
    f"text\n{END}\n# after the end",
    "---\nlicense: mit",
    "{{ 7 * 7 }} {% for x in y %}",
    "\u202eevil\u202c \u200bzero \x00null",
    "1. list\n- item",
    "# Heading",
    "**bold** _it_ ~~gone~~ $x$",
    "<!-- comment",
    "'; rm -rf ~ #",
    "[ref]: https://evil.example",
]


def markdown(card: str) -> list:
    body = card.split("\n---\n", 1)[1]
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(body)


def shape(card: str) -> list[str]:
    """Block structure of a card: kinds of tokens, without their text."""
    return [token.type for token in markdown(card) if not token.type.endswith("_close")]


def inline(card: str) -> list:
    return [child for token in markdown(card) for child in token.children or []]


def poisoned(attack: str) -> CardFacts:
    """The example facts with `attack` everywhere that a value comes from outside."""
    return replace(
        FACTS,
        name=attack,
        base=replace(FACTS.base, license=License(id="other", name=attack, link="https://example.org/" + attack)),
        teacher=Teacher(name=attack, commit="2" * 40, license=License(id="other", name=attack, link=attack)),
        data=Data(name=attack, hub_id=None, license=License(id=attack)),
        target_modules=(attack, "q_proj"),
        command=attack,
        method=Method(attack, "2503.07067"),
        loss={attack: attack},
        training={"rounds": attack},
        measurements=tuple(
            replace(m, metric=attack, on=attack, unit=attack, decoding=attack) for m in FACTS.measurements
        ),
        notes=(attack,),
        limitations=(attack,),
        hardware=attack,
        versions={"torch": attack},
        merge_advice=attack,
    )


def test_golden_card():
    assert GOLDEN.read_text(encoding="utf-8") == render_card(FACTS), "run: python -m tests.hub.example_card"


@pytest.mark.parametrize("attack", ATTACKS)
def test_outside_text_stays_in_its_place(attack):
    card = render_card(poisoned(attack))
    harmless = render_card(poisoned("harmless"))
    assert shape(card) == shape(harmless)
    kinds = {token.type for token in inline(card)}
    assert not kinds & {"html_inline", "image", "s"}
    urls = [token.attrs["href"] for token in inline(card) if token.type == "link_open"]
    assert all(url.startswith(("https://arxiv.org/", "https://example.org/")) for url in urls)
    assert sum(token.type in ("em_open", "strong_open") for token in inline(card)) == sum(
        token.type in ("em_open", "strong_open") for token in inline(harmless)
    )
    assert [line for line in card.splitlines() if line in (START, END)] == [START, END]
    assert not re.search("[\u202a-\u202e\u200b\x00]", card)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "other"
    assert metadata["base_model"] == "org/tiny-base"
    assert hub_check(card)[0] == []
    assert merge_card(card, card) == card  # and the markers are still found


def test_metadata_and_model_index():
    card = render_card(FACTS)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert hub_check(card) == ([], [])
    assert validate_card(card) == ()
    assert "org/tiny-teacher" not in str(metadata["base_model"])
    assert metadata["datasets"] == ["org/prompts"]
    results = metadata["model-index"][0]["results"]
    assert [(m["type"], m["value"]) for r in results for m in r["metrics"]] == [("kl", 0.4321), ("rouge_l", 0.312)]


def test_what_is_unknown_is_left_out():
    bare = CardFacts(
        name="bare",
        repo=None,
        base=BaseModel(id="gpt2", commit=None),
        teacher=Teacher(name="a teacher"),
        data=Data(name="prompts.jsonl"),
        rank=16,
        lora_alpha=16,
        target_modules=(),
        command="hubdistill run a.yaml",
    )
    card = render_card(bare)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert not {"license", "datasets", "language", "model-index"} & metadata.keys()
    assert hub_check(card) == ([], [])
    assert "Not evaluated." in card
    assert "states no license" in card
    for absent in ("## Limitations", "None", "[]", "revision=", "--max-lora-rank", "More Information"):
        assert absent not in card
    assert 'PeftModel.from_pretrained(base, ".")' in card


@pytest.mark.parametrize(
    ("rank", "flag"),
    [(8, ""), (16, ""), (17, "--max-lora-rank 32 "), (64, "--max-lora-rank 64 "), (129, "--max-lora-rank 256 ")],
)
def test_vllm_command(rank, flag):
    served = next(line for line in render_card(replace(FACTS, rank=rank)).splitlines() if line.startswith("vllm serve"))
    assert (
        served
        == f"vllm serve org/tiny-base --revision {'1' * 40} --enable-lora {flag}--lora-modules tiny-distilled-lora=./tiny-distilled-lora"
    )


def test_vllm_is_left_out_where_it_would_refuse():
    assert "vllm" not in render_card(replace(FACTS, vllm=False))
    assert "vllm" not in render_card(replace(FACTS, rank=513))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"chat_template_file": True},
        {"pipeline_tag": "image-text-to-text"},
        {"repo": None, "chat_template_file": True},
    ],
)
def test_snippets_are_python(change):
    card = render_card(replace(FACTS, **change))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    assert ("chat_template.jinja" in blocks[0]) == ("chat_template_file" in change)
    assert ("AutoProcessor" in blocks[0]) == ("pipeline_tag" in change)


def test_license_terms_of_teacher_and_base():
    llama = replace(FACTS, teacher=replace(FACTS.teacher, license=License(id="llama3.1")))
    assert "may set terms for models trained on its outputs" in render_card(llama)
    assert "Built with Llama." in render_card(llama)
    assert "may set terms" not in render_card(FACTS)


@pytest.mark.parametrize("base", ["/models/tiny", "./tiny", "pypi:some-package", "../x", "a/b/c", "org/..x", ""])
def test_a_base_that_is_not_on_the_hub_is_refused(base):
    with pytest.raises(InputError, match="base_repo"):
        render_card(replace(FACTS, base=BaseModel(id=base, commit=None)))


def test_values_that_are_not_numbers_are_refused():
    nan = Measurement(
        metric="kl", subject="distilled", on="x", value=float("nan"), low=0, high=0, n=1, unit="u", better="lower"
    )
    with pytest.raises(InputError, match="not finite"):
        render_card(replace(FACTS, measurements=(nan,)))


def test_card_of_a_pushed_base():
    card = render_base_card(
        BaseFacts(
            repo="org/tiny-base",
            source="org/big",
            source_commit="4" * 40,
            how="layers 0, 2 and 4 kept <b>",
            license=License(id="mit"),
        )
    )
    assert hub_check(card) == ([], [])
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "org/big"
    assert "<b>" not in card


def test_rendering_imports_no_torch():
    code = "import sys; from tests.hub.example_card import FACTS, render_card; render_card(FACTS); sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- offline check -------------------------------------------------------------------------------------------------

BROKEN = {
    "base_model: /home/me/model": "base_model: '/home/me/model' is a local path",
    "base_model: [org/a, 3]": "base_model: 3 is not a Hub id",
    "datasets: my data": "datasets: 'my data' is not a Hub id",
    "base_model_relation: child": "base_model_relation: 'child' must be one of",
    "tags: [ok, 2024-01-01]": "tags: must be a list of words",
    "tags: word": "tags: must be a list of words",
    "pipeline_tag: [a]": "pipeline_tag:",
    "license: null": "license: must be",
    "model-index: {name: x}": "model-index: must be a list",
    "model-index: [{results: []}]": "model-index[0].name: is required",
    "model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: n, config: null}}]}]": "dataset.config: must be text, not None",
    "model-index: [{name: m, results: [{task: {}, dataset: {type: d, name: n}, metrics: [{type: kl, value: .nan}]}]}]": "metrics[0].value: must be a finite number",
}


@pytest.mark.parametrize("metadata", BROKEN)
def test_broken_metadata_is_found_offline(metadata):
    with pytest.raises(InputError) as caught:
        validate_card(f"---\n{metadata}\n---\n\nbody\n")
    assert BROKEN[metadata] in str(caught.value)


def test_all_problems_come_at_once():
    with pytest.raises(InputError) as caught:
        validate_card(f"---\nbase_model: ./x\ndatasets: y z\ntags: 1\n---\n{START}\n[More Information Needed]\n")
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize(
    "card", ["", "just text", "---\n- a\n---\n", "---\na: [\n---\n", "---\n\n---\n", "---\nx: 1\n" + "y" * (1 << 20)]
)
def test_cards_without_metadata_are_refused(card):
    with pytest.raises(InputError, match=r"metadata|larger"):
        validate_card(card)


def test_unknown_license_is_only_a_warning():
    assert "license 'brand-new' is not among" in validate_card("---\nlicense: brand-new\n---\n")[0]
    assert "license_name" in validate_card("---\nlicense: other\n---\n")[0]
    assert "language 'English'" in validate_card("---\nlanguage: English\n---\n")[0]


# --- merging with a card that is there already ----------------------------------------------------------------------


def test_merging_twice_changes_nothing():
    new = render_card(FACTS)
    assert merge_card("", new) == merge_card(new, new) == new
    once = merge_card("---\nlicense: mit\nlicense_name: x\n---\n# Mine\n", new)
    assert merge_card(once, new) == once


def test_text_around_the_markers_is_kept_and_ours_is_replaced():
    new = render_card(FACTS)
    edited = (
        new.replace(START, f"# Before\n\n{START}")
        .replace(f"{END}\n", f"{END}\n\n## After\n")
        .replace("rank 32", "rank 99")
    )
    merged = merge_card(edited.replace("\n", "\r\n"), new)
    assert "rank 99" not in merged
    assert "# Before" in merged
    assert "## After" in merged
    assert merged.count(START) == merged.count(END) == 1


def test_metadata_of_people_is_kept_and_that_of_the_run_wins():
    old = "---\nbase_model: org/older\nlicense: cc-by-4.0\nlanguage: [de]\nwidget: [{text: Hi}]\ntags: [mine, lora]\nmodel-index: [{name: other, results: []}, {name: tiny-distilled-lora, results: []}]\n---\nMy text.\n"
    metadata = yaml.safe_load(merge_card(old, render_card(FACTS)).split("---\n")[1])
    assert metadata["base_model"] == "org/tiny-base"
    assert (metadata["license"], metadata["language"], metadata["widget"]) == ("cc-by-4.0", ["de"], [{"text": "Hi"}])
    assert metadata["tags"] == ["mine", "lora", "peft", "distillation", "distillm-2", "hubdistill"]
    assert [(m["name"], bool(m["results"])) for m in metadata["model-index"]] == [
        ("other", False),
        ("tiny-distilled-lora", True),
    ]


def test_our_results_go_with_the_push_that_has_none():
    old = "---\nmodel-index: [{name: mine, results: []}, {name: theirs, results: []}]\n---\nMy text.\n"
    new = render_card(replace(FACTS, measurements=()))

    def index(name: str, card: str = old):
        return yaml.safe_load(merge_card(card, new, name=name).split("---\n")[1]).get("model-index")

    assert [entry["name"] for entry in index("mine")] == ["theirs"]
    assert len(index("")) == 2
    assert index("mine", old.replace(", {name: theirs, results: []}", "")) is None


@pytest.mark.parametrize("entry", ["{name: [1]}", "{name: {a: 1}}", "7", "{}"])
def test_a_malformed_index_of_people_is_kept_for_the_check_to_name(entry):
    merged = merge_card(f"---\nmodel-index:\n- {entry}\n---\nMy text.\n", render_card(FACTS), name="x")
    assert yaml.safe_load(merged.split("---\n")[1])["model-index"][0] == yaml.safe_load(entry)


def test_a_card_that_cannot_be_read_is_not_overwritten_silently():
    with pytest.raises(InputError, match="--overwrite-card"):
        merge_card("---\na: [1\nb: 2\n---\ntext", render_card(FACTS))


def test_no_verdict_from_fewer_prompts_than_an_interval_can_stand_on():
    def differences(n):
        return results([replace(row, n=n) for row in FACTS.measurements]).differences

    assert differences(19) == ("3 differences are not listed, for too few prompts to tell (fewer than 20)",)
    assert [line.rsplit(": ", 1)[1] for line in differences(20)] == ["better", "better", "no clear difference"]


def test_question_sets_are_named_with_their_commit_and_license():
    row = Measurement(metric="vqa_accuracy", subject="distilled", on="OK-VQA, no image", value=0.5, low=0.4, high=0.6, n=9, unit="share", better="higher", split="questions")
    asked = {"OK-VQA": Data(name="org/OK-VQA", hub_id="org/OK-VQA", commit="4" * 40, license=License(id="cc-by-4.0"))}
    text = render_card(replace(FACTS, measurements=(row,), questions=asked))
    assert f"| questions asked | org/OK-VQA at {'4' * 40} (cc-by-4.0) |" in text
    entry = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["dataset"]
    assert entry == {"type": "org/OK-VQA", "name": "org/OK-VQA", "split": "questions", "revision": "4" * 40}


def test_held_out_prompts_that_were_asked_are_of_the_prompts_data_set():
    row = Measurement(metric="exact_match", subject="distilled", on="held-out prompts", value=0.5, low=0.4, high=0.6, n=9, unit="share", better="higher", decoding="greedy, at most 8 tokens")
    rows = [replace(row, on=on) for on in ("held-out prompts", "held-out prompts, no image", "held-out prompts / colour", "held-out prompts, no image / colour")]
    text = render_card(replace(FACTS, measurements=tuple(rows)))
    for entry in yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]:
        assert entry["dataset"] == {"type": "org/prompts", "name": "org/prompts", "split": "held-out", "revision": "3" * 40}
    assert text.count("held-out prompts: questions with and without their images, decoding greedy, at most 8 tokens, seed 0") == 1
    assert "questions prompts" not in text


def test_what_was_asked_of_a_set_has_a_row_of_its_own():
    asked = {"OK-VQA": Data(name="org/OK-VQA", asked="9 questions (left out: 1 duplicate)")}
    text = render_card(replace(FACTS, questions=asked))
    assert "| asked of OK-VQA | 9 questions (left out: 1 duplicate) |" in text
