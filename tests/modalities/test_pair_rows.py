"""Pairs in one row against each response alone after its prompt: the loss and the gradients of the adapter, family by family."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hubdistill.losses.chunked import Responses
from hubdistill.losses.contrastive import contrastive_loss, resolve
from hubdistill.modalities.base import Reading, Row
from hubdistill.modalities.text import TEXT
from hubdistill.models import pair_attention as attention
from hubdistill.models.load import head_of
from hubdistill.models.lora import attach_adapter
from hubdistill.models.pair_attention import PairTree, Settings, Span, common_of, pair_attention
from hubdistill.specs import LoraSpec
from tests import tiny, tiny_vlm
from tests.modalities.test_vision import PROMPTS, plain_hidden, rows_of
from tests.modalities.test_vision import reading as vision_reading

VOCAB = 64
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}  # fmt: skip
WINDOW = 7  # shorter than a prompt with its response
GEMMA = {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "qwen2": ("Qwen2", SIZES),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": ("Phi3", {**SIZES, "original_max_position_embeddings": 128}),
    "mistral with a window": ("Mistral", {**SIZES, "sliding_window": WINDOW}),
    "gpt2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1,
                      "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
}  # fmt: skip
LENGTHS = [(5, 4, 6), (9, 7, 2), (2, 1, 3), (1, 3, 1), (12, 2, 9)]  # of prompt and responses


def make_model(family: str, seed: int, **changes: Any) -> Any:
    import transformers

    name, settings = FAMILIES[family]
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    model_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    config = getattr(transformers, config_name)(**settings, **changes, attn_implementation="eager")
    return tiny_vlm.seeded(lambda: getattr(transformers, model_name)(config), seed)


def adapted(model: Any) -> Any:
    """With an adapter on all linear layers of the blocks, whose output is not zero."""
    inner = model.get_decoder().layers if hasattr(model.get_decoder(), "layers") else model.get_decoder().h
    prefix = next(name for name, module in model.named_modules() if module is inner)
    names = [f"{prefix}.{name}" for name, module in inner.named_modules() if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"]
    found = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names))
    with torch.no_grad():
        for i, (name, weight) in enumerate(found.named_parameters()):
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return found.train()


def text_rows(common: int = 0, lengths: list[tuple[int, int, int]] = LENGTHS) -> list[Row]:
    """`lengths` of what follows the common beginning."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCAB, (length,), generator=generator).tolist())

    beginning = ids(common)
    pairs = [(beginning + ids(prompt), ids(teacher), ids(student)) for prompt, teacher, student in lengths]
    return [Row(x, y_t) for x, y_t, _ in pairs] + [Row(x, y_s, True) for x, _, y_s in pairs]


def plain_loss(student_logits: list[torch.Tensor], teacher_logits: list[torch.Tensor], rows: list[Row]) -> torch.Tensor:
    """Eq. 3 and 4 of the paper, one response at a time, alpha 0.1; their mean over tokens, halved, over pairs."""
    total = torch.zeros(())
    for q_logits, p_logits, row in zip(student_logits, teacher_logits, rows, strict=True):
        p, q = p_logits.softmax(-1), q_logits.softmax(-1)
        value = q * (q.log() - (0.9 * p + 0.1 * q).log()) if row.from_student else p * (p.log() - (0.1 * p + 0.9 * q).log())
        total = total + 0.25 * value.sum(-1).mean() / (len(rows) // 2)
    return total


def plain_logits(model: Any, row: Row) -> torch.Tensor:
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    return model(ids).logits[0, len(row.prompt_ids) - 1 : -1]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def shared_loss(student: Any, teacher: Any, read: Reading, rows: list[Row], shared: tuple[str, ...]) -> torch.Tensor:
    """As the trainer computes it; outside of `pair_attention` for a model that is not shared."""
    batch = read.collate(rows, shared)
    with torch.no_grad(), pair_attention(teacher) if "teacher" in shared else nullcontext():
        teacher_ND = read.hidden(teacher, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)
    with pair_attention(student) if "student" in shared else nullcontext():
        student_ND = read.hidden(student, batch.student, batch.student_rows_N, batch.student_columns_N)
    responses = Responses(student_ND, teacher_ND, batch.labels_N, batch.lengths_B, batch.from_student_B)
    heads = [head_of(getattr(model, "base_model", model).model if hasattr(model, "peft_config") else model) for model in (student, teacher)]
    return contrastive_loss(responses, *heads, resolve({}), beta=0.5, alpha=0.1, pairs=len(rows) // 2)[0]


def compare(found: tuple[torch.Tensor, dict[str, torch.Tensor]], expected: tuple[torch.Tensor, dict[str, torch.Tensor]], name: str) -> None:
    """The loss, and the gradients relative to the largest entry of each: at most and on the average."""
    loss = abs(float(found[0] - expected[0])) / float(expected[0])
    errors = torch.cat([((found[1][name] - value).abs() / value.abs().max()).flatten() for name, value in expected[1].items()])
    assert all(value.abs().max() > 0 for value in expected[1].values())
    print(f"\n| {name} | {loss:.1e} | {errors.max():.1e} | {errors.mean():.1e} |")
    assert loss < 1e-5
    assert errors.max() < 1e-3
    assert errors.mean() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_model_reads_pairs_as_it_reads_each_response_alone(family):
    student, teacher, rows = adapted(make_model(family, 0)), make_model(family, 1), text_rows()
    with torch.no_grad():
        teacher_logits = [plain_logits(teacher, row) for row in rows]
    expected = plain_loss([plain_logits(student, row) for row in rows], teacher_logits, rows)
    assert expected > 0.05
    expected = expected.detach(), gradients(student, expected)
    read = Reading(modality=TEXT, pad_id=0)
    for shared in ((), ("student",), ("teacher", "student")):
        found = shared_loss(student, teacher, read, rows, shared)
        compare((found.detach(), gradients(student, found)), expected, f"{family}, once by {' and '.join(shared) or 'nobody'}")


def test_gradient_checkpointing_runs_the_blocks_again_with_the_same_attention():
    student, teacher, rows = adapted(make_model("mistral with a window", 0)), make_model("llama", 1), text_rows()
    read, shared = Reading(modality=TEXT, pad_id=0), ("teacher", "student")
    plain = shared_loss(student, teacher, read, rows, shared)
    expected = plain.detach(), gradients(student, plain)
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.enable_input_require_grads()
    assert student.get_base_model().model.layers[0].gradient_checkpointing
    with pair_attention(student):
        found = shared_loss(student, teacher, read, rows, shared)
        compare((found.detach(), gradients(student, found)), expected, "gradient checkpointing")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("common", "lengths"), [(9, LENGTHS), (10, [(1, 4, 6), (1, 3, 1)]), (9, [(3, 4, 2)])], ids=["mixed", "nearly whole prompts", "one pair"])
def test_what_all_prompts_begin_with_is_read_once_and_equal(family, common, lengths):
    student, teacher, rows = adapted(make_model(family, 0)), make_model(family, 1), text_rows(common, lengths)
    read, shared = Reading(modality=TEXT, pad_id=0), ("teacher", "student")
    batch = read.collate(rows, shared).student
    assert batch.tree.common == (common if len(lengths) > 1 else 0)
    assert batch.tokens["input_ids"].numel() == common + sum(map(sum, lengths))
    with torch.no_grad():
        teacher_logits = [plain_logits(teacher, row) for row in rows]
    expected = plain_loss([plain_logits(student, row) for row in rows], teacher_logits, rows)
    expected = expected.detach(), gradients(student, expected)
    found = shared_loss(student, teacher, read, rows, shared)
    compare((found.detach(), gradients(student, found)), expected, f"{family}, {common} tokens in common, {len(lengths)} pairs")


def test_the_common_beginning_leaves_each_prompt_its_last_token_and_must_pay():
    assert common_of([(1, 2, 3), (1, 2, 3)], [1, 1]) == 2
    assert common_of([(1, 2, 3, 4), (1, 2), (1, 2, 5)], [1, 1, 1]) == 1
    assert common_of([(2, 1), (1, 1)], [1, 1]) == 0
    assert common_of([(1,) * 50], [1]) == 0  # one pair has nothing in common with another
    assert common_of([(1,) * 25 + (i,) * 575 for i in (2, 3, 4, 5)], [60] * 4) == 0  # the masks would cost more
    assert common_of([(1,) * 500 + (i,) * 100 for i in (2, 3, 4, 5)], [60] * 4) == 500


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("common", [0, 5])
def test_the_sequences_of_flash_attention_are_those_of_the_other_path(monkeypatch, common, window):
    """With a plain attention over sequences of several lengths in place of the GPU's."""
    tree = PairTree((Span(3, 4, 2), Span(1, 2, 5)), common)
    query, key, value = torch.randn(3, 1, 2, tree.total, 8, generator=torch.Generator().manual_seed(0))

    def varlen(q, k, v, query_ends, key_ends, longest_query, longest_key, *, scale, window_size, enable_gqa):
        assert not enable_gqa
        sizes = [ends.diff().tolist() for ends in (query_ends, key_ends)]
        assert [max(one) for one in sizes] == [longest_query, longest_key]
        parts = zip(*(states.split(size) for states, size in ((q, sizes[0]), (k, sizes[1]), (v, sizes[1]))), strict=True)
        outputs = []
        for queries, keys, values in parts:
            ahead = torch.arange(len(keys)) - torch.arange(len(keys) - len(queries), len(keys))[:, None]
            seen = (ahead <= window_size[1]) & (ahead >= -window_size[0] if window_size[0] >= 0 else True)
            scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
            outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
        return torch.cat(outputs)

    monkeypatch.setattr(attention, "_varlen", lambda: varlen)
    settings = Settings(8**-0.5, 0.0, window, None)
    found = attention._flash(query, key, value, tree, settings)
    expected, _ = attention.attend(None, query, key, value, None, pair_tree=tree, sliding_window=window)
    torch.testing.assert_close(found, expected)


def vision_logits(model: Any, processor: Any, number: int, row: Row) -> torch.Tensor:
    """By the family's own processor and one call of the model, without code of the modality."""
    head = model.get_output_embeddings()
    return head(plain_hidden(model, processor, list(PROMPTS)[number], row.response_ids))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "idefics3"])
def test_a_vision_model_reads_pairs_as_it_reads_each_response_alone(family, monkeypatch):
    """Prompts with one image, two, none; the adapter also sits on the vision tower."""
    (base, processor), (teacher, _) = tiny_vlm.FAMILIES[family](0), tiny_vlm.FAMILIES[family](1)
    student = adapted_vlm(base)
    rows = vision_rows(processor)
    with torch.no_grad():
        teacher_logits = [vision_logits(teacher, processor, i % len(PROMPTS), row) for i, row in enumerate(rows)]
    expected = plain_loss([vision_logits(student.base_model.model, processor, i % len(PROMPTS), row) for i, row in enumerate(rows)], teacher_logits, rows)
    expected = expected.detach(), gradients(student, expected)
    encoded = []
    for model in (student.base_model.model, teacher):
        encode = model.get_image_features
        monkeypatch.setattr(model, "get_image_features", counted(encode, encoded))
    found = shared_loss(student, teacher, vision_reading(processor), rows, ("teacher", "student"))
    assert len(encoded) == 2 * sum(bool(images) for images, _ in PROMPTS.values())  # once per prompt and model
    compare((found.detach(), gradients(student, found)), expected, family)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_a_vision_model_reads_the_common_beginning_of_prompts_without_images_once(family):
    (base, processor), (teacher, _) = tiny_vlm.FAMILIES[family](0), tiny_vlm.FAMILIES[family](1)
    student, rows, read = adapted(base), text_rows(9), vision_reading(processor)
    rows = [replace(row, prompt_ids=tuple(7 + i % 20 for i in row.prompt_ids), response_ids=tuple(7 + i % 20 for i in row.response_ids)) for row in rows]  # no image's id
    assert read.collate(rows, ("teacher", "student")).student.tree.common == 9

    def logits(model: Any, row: Row) -> torch.Tensor:
        found = model(input_ids=torch.tensor([row.prompt_ids + row.response_ids])).logits[0]
        return found[len(row.prompt_ids) - 1 : -1]

    with torch.no_grad():
        teacher_logits = [logits(teacher, row) for row in rows]
    expected = plain_loss([logits(student, row) for row in rows], teacher_logits, rows)
    expected = expected.detach(), gradients(student, expected)
    found = shared_loss(student, teacher, read, rows, ("teacher", "student"))
    compare((found.detach(), gradients(student, found)), expected, f"{family}, 9 tokens in common")


def counted(function: Any, calls: list[None]) -> Any:
    @functools.wraps(function)
    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return function(*args, **kwargs)

    return spy


def adapted_vlm(model: Any) -> Any:
    found = attach_adapter(model, LoraSpec(rank=4, alpha=8, vision_tower=True), seed=0)
    with torch.no_grad():
        for i, (name, weight) in enumerate(found.named_parameters()):
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return found.train()


def vision_rows(processor: Any) -> list[Row]:
    """All teacher responses, then all student responses."""
    return sorted(rows_of(processor), key=lambda row: row.from_student)


def test_layers_in_4_bit_read_pairs_as_they_read_each_response_alone(tmp_path):
    from hubdistill.models.quantized import load_4bit
    from hubdistill.models.sources import find_model
    from hubdistill.specs import ModelSpec

    tiny.save(tmp_path / "model", tiny.make_model(1, layers=3, hidden=64), tiny.make_tokenizer())
    facts = find_model(ModelSpec(model=str(tmp_path / "model")), tmp_path)
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    student, teacher = adapted(load_4bit(facts, "float32", torch.device("cpu"), settings)), tiny.make_model(2)
    rows = [replace(row, prompt_ids=tuple(i % 30 for i in row.prompt_ids), response_ids=tuple(i % 30 for i in row.response_ids)) for row in text_rows()]
    with torch.no_grad():
        teacher_logits = [plain_logits(teacher, row) for row in rows]
    expected = plain_loss([plain_logits(student, row) for row in rows], teacher_logits, rows)
    expected = expected.detach(), gradients(student, expected)
    found = shared_loss(student, teacher, Reading(modality=TEXT, pad_id=0), rows, ("teacher", "student"))
    compare((found.detach(), gradients(student, found)), expected, "layers in 4 bit")


def test_rows_and_attention_go_together():
    """Positions that begin anew without the attention of pairs give other logits, silently; so it is refused."""
    model, rows, read = make_model("llama", 0), text_rows(), Reading(modality=TEXT, pad_id=0)
    paired, apart = (read.collate(rows, shared).student for shared in (("teacher", "student"), ()))
    place = torch.zeros(1, dtype=torch.long)
    with pytest.raises(RuntimeError, match="go together"):
        read.hidden(model, paired, place, place)
    with pair_attention(model), pytest.raises(RuntimeError, match="go together"):
        read.hidden(model, apart, place, place)
    with pair_attention(model), pytest.raises(ValueError, match="called with something else"):
        model(**apart.tokens)
    assert model.config._attn_implementation == "eager"  # as before
    with pytest.raises(ValueError, match="follow the same prompt"):
        read.collate(rows[:4], ("student",))
