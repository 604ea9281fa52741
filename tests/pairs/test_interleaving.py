"""Interleaved responses against a loop without cache, batch and `generate`, and against what either model says alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from hubdistill.pairs.interleaving import Acceptance, InterleavedSampler
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question, collect, seed_for
from hubdistill.specs import SamplingSpec
from tests import tiny
from tests.pairs.by_hand import drawn
from tests.training.helpers import HEADER

STOP, VOCAB, TOKENS = 3, 30, 12  # the models have four ids more, which are never sampled
QUESTIONS = [Question(f"p{i}", tuple(range(4, 6 + i % 5))) for i in range(7)]
SETTINGS = SamplingSpec(temperature=0.7, top_p=0.9, max_tokens=TOKENS, batch_size=4)


def seeds(who: str):
    return lambda prompt_id: seed_for(0, "round 1", who, prompt_id)


def sampler(student, teacher, rule: str, value: float, **changes) -> InterleavedSampler:
    acceptance = Acceptance(rule, int(value), value, value)
    return InterleavedSampler(**({"model": student, "stop_ids": (STOP,), "pad_id": 0, "vocab": VOCAB, "teacher": teacher, "acceptance": acceptance, "seeds_of": seeds} | changes))


def answers(engine, settings=SETTINGS, questions=QUESTIONS, who="student"):
    return {response.prompt_id: response for batch in engine.sample(questions, settings, seeds(who)) for response in batch}


def alone(model, who: str, settings=SETTINGS):
    return {key: one.response_ids for key, one in answers(TransformersSampler(model, (STOP,), 0, VOCAB), settings, who=who).items()}


def distribution(model, ids: list[int], temperature: float) -> list[float]:
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0, -1, :VOCAB].double() / temperature).softmax(-1).tolist()


def accepted(p: list[float], token: int, coin: float, rule: str, value: float) -> bool:
    """The rules as they are printed, in probabilities."""
    if rule == "mixed":
        return coin >= value
    if rule == "top_k":
        return token in sorted(range(len(p)), key=lambda i: -p[i])[: int(value)]
    entropy = -sum(one * math.log(one) for one in p if one)
    return p[token] > min(value**2, value * math.exp(-entropy))


def by_hand(student, teacher, question, rule: str, value: float, settings=SETTINGS) -> tuple[tuple[int, ...], int]:
    """Response ids, and how many of them are the student's: every token from nothing, one prompt at a time."""
    streams = [torch.rand(TOKENS, generator=torch.Generator().manual_seed(seeds(who)(question.prompt_id)), dtype=torch.float64).tolist() for who in ("student", "teacher", "acceptance")]
    ids, kept = list(question.prompt_ids), 0
    for own, other, coin in zip(*streams, strict=True):
        q, p = distribution(student, ids, settings.temperature), distribution(teacher, ids, settings.temperature)
        token = drawn(q, own, settings.top_p)
        keep = accepted(p, token, coin, rule, value)
        kept += keep
        ids.append(token if keep else drawn(p, other, settings.top_p))
        if ids[-1] == STOP:
            break
    return tuple(ids[len(question.prompt_ids) :]), kept


RULES = [("top_k", 2), ("top_k", 6), ("typical", 0.3), ("typical", 0.7), ("typical", 1.0), ("mixed", 0.4)]


@pytest.mark.parametrize(("rule", "value"), RULES)
def test_both_models_in_step_equal_a_loop_that_recomputes_everything(student, teacher, rule, value):
    engine = sampler(student, teacher, rule, value)
    found = answers(engine)
    wanted = {question.prompt_id: by_hand(student, teacher, question, rule, value) for question in QUESTIONS}
    assert {key: one.response_ids for key, one in found.items()} == {key: ids for key, (ids, _) in wanted.items()}
    assert (engine.said, engine.kept) == (sum(len(ids) for ids, _ in wanted.values()), sum(kept for _, kept in wanted.values()))
    assert 0 < engine.kept < engine.said, "the rule should keep some and replace some"
    for one in found.values():
        assert (one.response_ids[-1] == STOP) == (one.finish_reason == "stop")
        assert one.seed == seeds("student")(one.prompt_id)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("rule", "value", "who"), [("typical", 0.0, "student"), ("top_k", VOCAB, "student"), ("top_k", 0, "teacher"), ("mixed", 0.0, "student"), ("mixed", 1.0, "teacher")])
def test_the_ends_are_what_each_model_says_alone(student, teacher, temperature, rule, value, who):
    settings = SETTINGS.model_copy(update={"temperature": temperature})
    engine = sampler(student, teacher, rule, value)
    found = {key: one.response_ids for key, one in answers(engine, settings).items()}
    assert found == alone({"student": student, "teacher": teacher}[who], who, settings)
    assert engine.kept == (engine.said if who == "student" else 0)
    assert found != alone({"student": teacher, "teacher": student}[who], {"student": "teacher", "teacher": "student"}[who], settings)


def test_text_does_not_depend_on_batch_and_order(student, teacher):
    one = answers(sampler(student, teacher, "top_k", 3), SETTINGS.model_copy(update={"batch_size": 1}))
    many = answers(sampler(student, teacher, "top_k", 3), SETTINGS.model_copy(update={"batch_size": 7}), list(reversed(QUESTIONS)))
    assert one == many


def test_a_resumed_set_is_the_one_of_an_uninterrupted_run(tmp_path, student, teacher):
    header = dataclasses.replace(HEADER, who="interleaved")
    whole = collect(tmp_path / "whole", header, QUESTIONS, lambda missing: sampler(student, teacher, "top_k", 3).sample(missing, SETTINGS, seeds("student")))

    def cut(missing):
        yield next(sampler(student, teacher, "top_k", 3).sample(missing, SETTINGS, seeds("student")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "cut", header, QUESTIONS, cut)
    asked = []
    found = collect(tmp_path / "cut", header, QUESTIONS, lambda missing: asked.extend(missing) or sampler(student, teacher, "top_k", 3).sample(missing, SETTINGS, seeds("student")))
    assert len(asked) == 3
    assert found.table == whole.table
    assert found.manifest["sha256"] == whole.manifest["sha256"]


@pytest.mark.parametrize("config", [{"sliding_window": 4}, {}], ids=["mistral with a window", "gpt2"])
def test_other_architectures_keep_their_own_caches(student, config):
    """Absolute positions, and a cache that forgets: left padding and positions are the companion's to get right."""
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    if config:
        other = MistralForCausalLM(MistralConfig(vocab_size=34, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                                 initializer_range=0.3, bos_token_id=None, eos_token_id=3, pad_token_id=0, **config)).eval()  # fmt: skip
    else:
        other = GPT2LMHeadModel(GPT2Config(vocab_size=34, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, bos_token_id=None, eos_token_id=3)).eval()
    found = {key: one.response_ids for key, one in answers(sampler(student, other, "top_k", 3)).items()}
    assert found == {question.prompt_id: by_hand(student, other, question, "top_k", 3)[0] for question in QUESTIONS}


def test_forbidden_ids_come_from_neither(student, teacher):
    found = answers(sampler(student, teacher, "top_k", 2, forbidden=tuple(range(4, 20))), SETTINGS.model_copy(update={"temperature": 2.0}))
    assert not {i for one in found.values() for i in one.response_ids} & {*range(4, 20), *range(VOCAB, 34)}


@pytest.mark.parametrize(("rule", "value"), [("top_k", 4), ("mixed", 0.3)])
def test_a_replaced_token_follows_the_teacher_given_that_the_students_was_refused(rule, value):
    """4000 first tokens: were both drawn with one number, a refused proposal would say something of its replacement."""
    student, teacher = tiny.make_model(2), tiny.make_model(1, layers=3)
    questions, settings = [Question(f"q{i}", (4, 5, 6)) for i in range(4000)], SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=1, batch_size=500)
    counts = torch.zeros(VOCAB, dtype=torch.float64)
    for one in answers(sampler(student, teacher, rule, value), settings, questions).values():
        counts[one.response_ids[0]] += 1
    q, p = (torch.tensor(distribution(model, [4, 5, 6], 1.0), dtype=torch.float64) for model in (student, teacher))
    keep = torch.zeros(VOCAB, dtype=torch.bool)
    keep[p.topk(4).indices] = True
    wanted = q * keep + (q * ~keep).sum() * p if rule == "top_k" else 0.3 * p + 0.7 * q
    assert 0.5 * (counts / 4000 - wanted).abs().sum() < 0.04
