"""The scorer against full logits, one sequence at a time, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from hubdistill.evaluation import divergence
from hubdistill.evaluation.divergence import Scorer
from hubdistill.modalities.base import Reading
from hubdistill.modalities.text import TEXT
from hubdistill.models.lora import attach_adapter
from hubdistill.pairs.store import Response
from hubdistill.specs import LoraSpec
from tests import tiny

READING = Reading(modality=TEXT, pad_id=0)
VOCAB, STOP = 34, 3
METRICS = {"kl", "skl", "srkl", "nll", "agreement", "acceptance"}


def responses(number: int = 5, seed: int = 0) -> list[Response]:
    """Random prompts and responses of all lengths; every third one was cut by the length limit."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    found = []
    for i in range(number):
        prompt, words = (tuple(draw(4, VOCAB) for _ in range(draw(low, 9))) for low in (1, 2))
        found.append(Response(f"{i:02d}", prompt, words if i % 3 == 0 else (*words, STOP), "length" if i % 3 == 0 else "stop", i))
    return found


@torch.no_grad()
def naive(teacher, student, response: Response, vocab: int = VOCAB) -> dict[str, float]:
    """Definitions of method.md on the response's tokens, alpha 0.1, as sums over the vocabulary."""
    ids = torch.tensor([[*response.prompt_ids, *response.response_ids]])
    p, q = (model(input_ids=ids).logits[0, len(response.prompt_ids) - 1 : -1, :vocab].double().softmax(-1) for model in (teacher, student))
    tokens = range(len(response.response_ids))
    per_token = {
        "kl": [(p[n] * (p[n] / q[n]).log()).sum() for n in tokens],
        "skl": [(p[n] * (p[n] / (0.1 * p[n] + 0.9 * q[n])).log()).sum() for n in tokens],
        "srkl": [(q[n] * (q[n] / (0.9 * p[n] + 0.1 * q[n])).log()).sum() for n in tokens],
        "nll": [-q[n, response.response_ids[n]].log() for n in tokens],
        "agreement": [float(p[n].argmax() == q[n].argmax()) for n in tokens],
        "acceptance": [float(torch.minimum(p[n], q[n]).sum()) for n in tokens],
    }
    return {metric: float(sum(values) / len(tokens)) for metric, values in per_token.items()}


def assert_equal(found, teacher, student, rows, vocab: int = VOCAB):
    assert found.keys() == METRICS
    for metric, values in found.items():
        expected = {row.prompt_id: naive(teacher, student, row, vocab)[metric] for row in rows}
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-5), metric


class Counted:
    """A reading that counts the rows each model reads."""

    def __init__(self):
        self.rows = {}

    def __getattr__(self, name):
        return getattr(READING, name)

    def hidden(self, model, inputs, rows, columns):
        self.rows[model] = self.rows.get(model, 0) + len(inputs.tokens["input_ids"])
        return READING.hidden(model, inputs, rows, columns)


@pytest.mark.parametrize(("kept", "read"), [(2**20, 11), (0, 44)])
def test_the_teacher_reads_what_comes_again_once_and_nothing_for_an_nll(monkeypatch, teacher, student, kept, read):
    monkeypatch.setattr(divergence, "KEPT_BYTES", kept)
    rows, reading = responses(11), Counted()
    scorer = Scorer(teacher, reading, VOCAB)
    assert scorer.nll(teacher, rows, again=True) == pytest.approx({row.prompt_id: naive(teacher, teacher, row)["nll"] for row in rows}, rel=1e-4)
    found = [scorer.score(student, rows, again=True) for _ in range(3)]
    assert found == [Scorer(teacher, READING, VOCAB).score(student, rows)] * 3
    assert reading.rows == {teacher: read, student: 33}
    assert scorer.nll(student, rows) == found[0]["nll"]
    assert reading.rows[teacher] == read
    other = [replace(row, response_ids=row.response_ids[::-1]) for row in rows]
    assert_equal(scorer.score(student, other, again=True), teacher, student, other)  # other responses to the same prompts are read anew


def test_every_metric_is_that_of_full_logits_one_sequence_at_a_time(teacher, student):
    rows = responses()
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    found = Scorer(teacher, READING, VOCAB).score(student, rows)
    assert_equal(found, teacher, student, rows)
    assert min(found["kl"].values()) > 0.1, "the models must differ for the comparison to mean something"
    assert 0 < sum(found["agreement"].values()) < len(rows)
    assert max(max(found[metric].values()) for metric in ("skl", "srkl")) <= -math.log(0.1)


@pytest.mark.parametrize(("teacher_vocab", "student_vocab"), [(34, 40), (41, 34), (38, 45)])
def test_unequal_vocabularies_are_sliced_to_the_common_size(teacher_vocab, student_vocab):
    teacher, student = tiny.make_model(1, vocab=teacher_vocab), tiny.make_model(2, vocab=student_vocab)
    rows = responses()
    found = Scorer(teacher, READING, VOCAB).score(student, rows)
    assert_equal(found, teacher, student, rows)


def test_a_recipe_s_smaller_vocabulary_counts_and_not_the_heads(teacher, student):
    rows = [Response("p", (5, 6), (7, 8, STOP), "stop", 0)]
    found = Scorer(teacher, READING, 20).score(student, rows)
    assert_equal(found, teacher, student, rows, vocab=20)
    assert found["nll"]["p"] < naive(teacher, student, rows[0])["nll"]


def test_the_teacher_is_at_no_distance_from_itself(teacher):
    rows = responses()
    found = Scorer(teacher, READING, VOCAB).score(teacher, rows)
    for metric in ("kl", "skl", "srkl"):
        assert list(found[metric].values()) == pytest.approx([0.0] * len(rows), abs=1e-6)
    assert set(found["agreement"].values()) == {1.0}
    assert found["nll"] == pytest.approx({row.prompt_id: naive(teacher, teacher, row)["nll"] for row in rows}, rel=1e-4)


def test_an_adapter_counts(teacher, student):
    rows = responses(3)
    bare = Scorer(teacher, READING, VOCAB).score(student, rows)
    adapted = attach_adapter(student, LoraSpec(rank=4, alpha=8.0), seed=0)
    scorer = Scorer(teacher, READING, VOCAB)
    fresh = scorer.score(adapted, rows)
    assert fresh["kl"] == pytest.approx(bare["kl"], abs=1e-6), "a fresh adapter changes nothing"
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    found = scorer.score(adapted, rows)
    assert_equal(found, teacher, adapted, rows)
    assert abs(found["kl"]["00"] - bare["kl"]["00"]) > 1e-3


def test_padding_and_company_do_not_matter(teacher, student):
    rows = responses(20, seed=3)
    scorer, told = Scorer(teacher, READING, VOCAB), []
    together = scorer.score(student, rows, told.append)
    assert sum(told) == len(rows)
    assert len(told) > 1, "more than one forward pass, or this test shows nothing"
    for row in rows:
        alone = scorer.score(student, [row])
        assert {metric: values[row.prompt_id] for metric, values in together.items()} == pytest.approx(
            {metric: values[row.prompt_id] for metric, values in alone.items()}, rel=1e-4, abs=1e-5
        )


def test_tiles_of_tokens_do_not_matter(teacher, student, monkeypatch):
    rows = responses(6)
    monkeypatch.setattr("hubdistill.evaluation.divergence.TILE_BYTES", 3 * 4 * VOCAB)
    assert_equal(Scorer(teacher, READING, VOCAB).score(student, rows), teacher, student, rows)


def test_a_response_without_tokens_is_left_out(teacher, student):
    rows = [Response("none", (5, 6), (), "length", 0), Response("only stop", (5, 6), (STOP,), "stop", 0)]
    found = Scorer(teacher, READING, VOCAB).score(student, rows)
    assert_equal(found, teacher, student, rows[1:])


def test_nothing_to_score_gives_every_metric_without_values(teacher, student):
    assert Scorer(teacher, READING, VOCAB).score(student, []) == {metric: {} for metric in METRICS}


def test_scoring_leaves_no_gradient_and_no_change(teacher, student):
    adapted = attach_adapter(student, LoraSpec(rank=4, alpha=8.0), seed=0)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    Scorer(teacher, READING, VOCAB).score(adapted, responses(2))
    assert all(weight.grad is None for weight in adapted.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
