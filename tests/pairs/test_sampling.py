"""The transformers engine: per-prompt seeds, padding, stop tokens, the distribution it samples."""

import pytest
import torch

from hubdistill.pairs.sampling import TransformersSampler, neutral_generation
from hubdistill.pairs.store import Question, seed_for
from hubdistill.specs import SamplingSpec
from tests.pairs.by_hand import drawn

VOCAB = 34
QUESTIONS = [Question(f"p{i}", tuple(range(4, 6 + i % 5))) for i in range(7)]


def sampler(model, **changes):
    return TransformersSampler(**({"model": model, "stop_ids": (3,), "pad_id": 0, "vocab": VOCAB} | changes))


def seeds(prompt_id: str) -> int:
    return seed_for(0, "round 1", "teacher", prompt_id)


def answers(model, settings, questions=QUESTIONS, **changes):
    found = [r for batch in sampler(model, **changes).sample(questions, settings, seeds) for r in batch]
    return {response.prompt_id: response for response in found}


def by_hand(model, question, settings, seed):
    """One prompt, no padding, no generate(): temperature, nucleus and choice written out, one id at a time."""
    numbers = torch.rand(settings.max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    ids = list(question.prompt_ids)
    for number in numbers:
        with torch.no_grad():
            probabilities = (model(torch.tensor([ids])).logits[0, -1].double() / settings.temperature).softmax(-1).tolist()
        ids.append(drawn(probabilities, number, settings.top_p))
        if ids[-1] == 3:
            break
    return tuple(ids[len(question.prompt_ids) :])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_batched_left_padded_sampling_equals_one_prompt_by_hand(teacher, temperature):
    settings = SamplingSpec(temperature=temperature, top_p=0.9, max_tokens=12, batch_size=4)
    found = answers(teacher, settings)
    for question in QUESTIONS:
        assert found[question.prompt_id].response_ids == by_hand(teacher, question, settings, seeds(question.prompt_id))


def test_text_does_not_depend_on_batch_size_or_order(teacher):
    one = answers(teacher, SamplingSpec(max_tokens=10, batch_size=1))
    many = answers(teacher, SamplingSpec(max_tokens=10, batch_size=7), list(reversed(QUESTIONS)))
    assert one == many
    assert len({r.response_ids for r in one.values()}) > 3, "different prompts should not all get the same answer"


def test_a_response_ends_with_the_stop_token_exactly_when_it_stopped(teacher):
    found = answers(teacher, SamplingSpec(max_tokens=12, batch_size=4, temperature=2.0, top_p=1.0))
    reasons = {r.finish_reason for r in found.values()}
    assert reasons == {"stop", "length"}, "the test needs both"
    for response in found.values():
        assert (response.response_ids[-1] == 3) == (response.finish_reason == "stop")
        assert 3 not in response.response_ids[:-1]
        assert response.finish_reason == "stop" or len(response.response_ids) == 12


def test_greedy_takes_the_most_likely_token(teacher):
    response = answers(teacher, SamplingSpec(temperature=0, max_tokens=1))["p0"]
    with torch.no_grad():
        assert response.response_ids[0] == int(teacher(torch.tensor([QUESTIONS[0].prompt_ids])).logits[0, -1].argmax())


def test_the_models_own_penalties_are_not_applied(teacher):
    settings = SamplingSpec(temperature=0, max_tokens=16)
    plain = answers(teacher, settings)
    own = teacher.generation_config
    try:
        teacher.generation_config = own.__class__(**{**own.to_dict(), "repetition_penalty": 50.0, "no_repeat_ngram_size": 1})
        assert answers(teacher, settings) == plain
        assert teacher.generation_config.repetition_penalty == 50.0, "the model's config is put back"
    finally:
        teacher.generation_config = own


def test_ids_that_only_one_model_has_are_never_sampled(teacher):
    found = answers(teacher, SamplingSpec(temperature=3.0, top_p=1.0, max_tokens=16), vocab=12)
    assert max(i for r in found.values() for i in r.response_ids) < 12


def test_samples_follow_the_distribution(teacher):
    """5000 first tokens against the softmax: total variation far below what a wrong temperature would give."""
    settings = SamplingSpec(temperature=0.8, top_p=1.0, max_tokens=1, batch_size=500)
    many = [Question(f"q{i}", (4, 5, 6)) for i in range(5000)]
    counts = torch.zeros(teacher.config.vocab_size)
    for response in answers(teacher, settings, many).values():
        counts[response.response_ids[0]] += 1
    with torch.no_grad():
        logits = teacher(torch.tensor([[4, 5, 6]])).logits[0, -1]
    distance = lambda t: 0.5 * (counts / 5000 - (logits / t).softmax(-1)).abs().sum().item()  # noqa: E731
    assert distance(0.8) < 0.04
    assert distance(1.0) > 2 * distance(0.8)


def test_neutral_generation_restores_after_an_error(teacher):
    own = teacher.generation_config
    with pytest.raises(RuntimeError, match="inside"), neutral_generation(teacher, own.__class__()):
        raise RuntimeError("inside")
    assert teacher.generation_config is own
