"""Speculative decoding: the formulas against counting, assisted generation against plain decoding, step by step."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from hubdistill.errors import TrainingError
from hubdistill.evaluation import assisted
from hubdistill.evaluation.acceptance import LONGEST, Costs, measure_costs, outlook, tokens_a_step
from hubdistill.evaluation.assisted import Decoded, Decoder, found_of
from tests import tiny

STOP = (3,)


def costs(draft: float, *verify: float) -> Costs:
    return Costs(draft, (verify + verify[-1:] * (LONGEST + 1))[: LONGEST + 1])


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("drafted", [1, 4, 8])
def test_tokens_of_a_verification_as_drafting_counts_them(acceptance, drafted):
    draw = random.Random(0)
    steps = []
    for _ in range(20_000):
        kept = 0
        while kept < drafted and draw.random() < acceptance:
            kept += 1
        steps.append(kept + 1)
    assert tokens_a_step(acceptance, drafted) == pytest.approx(sum(steps) / len(steps), rel=0.02)


def test_break_even_and_the_best_number_by_hand():
    free = costs(0.25, 1.0)  # verifying costs what a token costs
    assert free.ratio == 0.25
    assert free.speed_up(0.5, 1) == pytest.approx(1.5 / 1.25)
    assert free.speed_up(1.0, 8) == pytest.approx(9 / 3)
    lowest, drafted = free.break_even()
    assert (lowest, drafted) == (pytest.approx(0.25), 1)  # 1 + a = 1 + 0.25
    assert (free.best(0.1), free.best(0.99)) == (1, 8)
    dear = costs(0.3, 1.0, 1.6, 1.7)  # verifying two tokens costs much more than one, then little: one token never pays
    assert dear.speed_up(0.9, 1) == pytest.approx(1.9 / 1.9)
    lowest, drafted = dear.break_even()
    assert drafted > 1
    assert dear.speed_up(lowest, drafted) == pytest.approx(1, abs=1e-6)
    assert all(dear.speed_up(lowest - 0.001, k) < 1 for k in range(1, LONGEST + 1))
    assert costs(1.0, 1.0).break_even() is None
    assert "drafting cannot pay" in outlook(costs(1.0, 1.0), 0.9, 30)
    assert "drafting pays from an acceptance of 0.250 on (1 drafted); now it would be 0.84 times plain decoding at best (1 drafted)" in outlook(free, 0.05, 30)


@pytest.fixture(scope="module")
def models():
    """A verifier; a drafter that is often right, being the verifier with some noise; one that seldom is; one that always is."""
    verifier = tiny.make_model(1, layers=3)
    near = tiny.make_model(1, layers=3)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in near.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return verifier, near, tiny.make_model(2), tiny.make_model(1, layers=3)


PROMPTS = [[5, 10, 20, 7], [2, 4, 9, 30, 11, 12], [8]]


@pytest.mark.parametrize("drafted", [1, 3, 5])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_assisted_decoding_is_plain_decoding_with_fewer_passes(models, prompt, drafted):
    """Each count against a plain loop over the two models' own choices."""
    verifier, near, far, same = models
    decoder = Decoder(verifier, 24, STOP)
    alone = decoder.decode(prompt)
    assert alone.steps == (1,) * len(alone.ids)
    for drafter in (near, far, same):
        found = decoder.decode(prompt, drafter, drafted)
        assert found.ids == alone.ids == by_hand(verifier, prompt, 24)
        assert decoder.require_same(prompt, alone.ids, found.ids, "p")
        assert found.steps == steps_by_hand(verifier, drafter, prompt, 24, drafted)
        assert sum(found.steps) == len(found.ids)
    assert len(decoder.decode(prompt, same, drafted).steps) < len(alone.ids)


@torch.no_grad()
def choice(model, ids):
    return int(model(torch.tensor([ids])).logits[0, -1].argmax())


def by_hand(verifier, prompt, longest):
    ids = list(prompt)
    while len(ids) - len(prompt) < longest and (len(ids) == len(prompt) or ids[-1] not in STOP):
        ids.append(choice(verifier, ids))
    return tuple(ids[len(prompt) :])


def steps_by_hand(verifier, drafter, prompt, longest, drafted):
    text, at, steps = by_hand(verifier, prompt, longest), 0, []
    while at < len(text):
        context, kept = [*prompt, *text[:at]], 0
        while kept < min(drafted, longest - at - 1) and choice(drafter, [*context, *text[at : at + kept]]) == text[at + kept]:
            kept += 1
            if at + kept == len(text):  # the end of the text was drafted: no token of the verifier's own follows
                break
        steps.append(min(kept + 1, len(text) - at))
        at += steps[-1]
    return tuple(steps)


def test_another_text_is_an_error_unless_the_logits_tie(models):
    verifier = models[0]
    decoder = Decoder(verifier, 8, STOP)
    ids = list(decoder.decode(PROMPTS[0]).ids)
    other = [*ids[:2], (ids[2] + 1) % 30, *ids[3:]]
    with pytest.raises(TrainingError, match="gave another text than without it, on prompt p7"):
        decoder.require_same(PROMPTS[0], ids, other, "p7")
    with pytest.raises(TrainingError, match="another text"):
        decoder.require_same(PROMPTS[0], ids, ids[:-1], "p7")
    twin = tiny.make_model(1, layers=3)
    with torch.no_grad():
        twin.lm_head.weight[other[2]] = twin.lm_head.weight[ids[2]]  # two ids that are always equally likely
    assert not Decoder(twin, 8, STOP).require_same(PROMPTS[0], ids[:3], other[:3], "p7")


def test_what_is_counted_from_the_passes():
    alone, drafts = Decoded((1,) * 10, (1,) * 10, 4.0), Decoded((1,) * 10, (4, 1, 3, 2), 2.0)
    found = found_of(alone, drafts, 3)
    # the last pass had room for 2 tokens, and so for one draft of 3: it says nothing about positions
    assert found == {"speed_up": 2.0, "accepted_length": 2.5, "accepted_1": pytest.approx(2 / 3), "accepted_2": pytest.approx(2 / 3), "accepted_3": pytest.approx(1 / 3)}


def test_the_speed_up_is_of_a_token_where_texts_are_of_unequal_length():
    assert found_of(Decoded((1,) * 10, (1,) * 10, 1.0), Decoded((1,) * 40, (4,) * 10, 4.0), 3)["speed_up"] == 1.0


def test_every_subject_is_merged_and_drafts_for_the_same_prompts(models, monkeypatch):
    from contextlib import nullcontext

    verifier, near, far = models[:3]
    near = adapted(near)
    decode = Decoder.decode

    def watched(self, prompt, drafter=None, drafted=0):
        assert drafter is None or not any("lora" in name for name, _ in drafter.named_parameters())
        return decode(self, prompt, drafter, drafted)

    monkeypatch.setattr(Decoder, "decode", watched)
    rows = [SimpleNamespace(prompt_id=f"p{i}", prompt_ids=prompt) for i, prompt in enumerate(PROMPTS)]
    kept = {}
    heldout = SimpleNamespace(
        scorer=SimpleNamespace(teacher=verifier), longest=16, stop_ids=STOP, teacher_responses=SimpleNamespace(rows=lambda: iter(rows)),
        subjects=[SimpleNamespace(name=name, opened=lambda model=model: nullcontext(model)) for name, model in (("near", near), ("far", far))],
        keep=lambda subject, metric, on, values: kept.__setitem__((subject, metric), values),
    )  # fmt: skip
    assisted.draft(heldout, 3, 2)
    assert all(list(values) == ["p0", "p1"] for values in kept.values())
    assert {metric for _, metric in kept} == {"speed_up", "accepted_length", "accepted_1", "accepted_2", "accepted_3", "same_text"}
    assert sum(kept["near", "accepted_length"].values()) > sum(kept["far", "accepted_length"].values())


def adapted(model):
    """The same model, but for a LoRA adapter that changes it a little."""
    import copy

    from peft import LoraConfig, get_peft_model

    found = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora" in name:
                weight.mul_(1e-3)
    return found


def test_a_sliding_window_does_not_stop_the_timing():
    """The cache of such a layer keeps its window alone unless told, and a timed pass has to be taken back."""
    from transformers import MistralConfig, MistralForCausalLM

    def model(layers):
        return MistralForCausalLM(MistralConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2, sliding_window=4)).eval()

    found = measure_costs(model(2), model(1), [list(range(2, 14))])
    assert all(seconds > 0 for seconds in (found.draft, *found.verify))


def test_costs_are_of_passes_with_the_prompt_in_the_cache(models):
    """What the models are asked, and that a longer verification is not one of the whole prompt."""
    verifier, near = models[:2]
    seen = []
    hook = verifier.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).shape[1]), with_kwargs=True)
    found = measure_costs(verifier, near, PROMPTS[:2])
    hook.remove()
    assert len(found.verify) == LONGEST + 1
    assert all(seconds > 0 for seconds in (found.draft, *found.verify))
    assert set(seen) == {4, 6, *range(1, LONGEST + 2)}
