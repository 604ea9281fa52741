"""DPO and DPKD against TRL's DPO loss, and against plain logits and autograd in float64."""

from __future__ import annotations

import pytest
import torch

from hubdistill.losses.chunked import Head, Responses
from hubdistill.losses.preference import Preference, preference_loss
from tests import tiny
from tests.losses import plain

LENGTHS = [3, 7, 2, 5, 4, 6]


def logps(case, hidden, head):
    """Summed log-probabilities of each response, from stored logits."""
    rows = torch.log_softmax(hidden @ head.weight[: case.vocab].T, -1).gather(-1, case.responses.labels_N[:, None]).squeeze(-1)
    return torch.stack([part.sum() for part in rows.split(LENGTHS)])


@pytest.mark.parametrize("flags", [[0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]])
@pytest.mark.parametrize("reference", ["teacher", "given"])
def test_against_the_formula_with_stored_logits(flags, reference):
    case = plain.make_case(LENGTHS, flags, surplus=(3, 0))
    given = None if reference == "teacher" else torch.linspace(-9, -1, sum(LENGTHS), dtype=torch.float64)
    loss, tokens = preference_loss(case.responses, case.student, case.teacher, Preference(0.3, 3, case.vocab), given)
    student = logps(case, case.responses.student_ND, case.student)
    against = logps(case, case.responses.teacher_ND, case.teacher) if given is None else torch.stack([part.sum() for part in given.split(LENGTHS)])
    chosen, rejected = [i for i in range(6) if not flags[i]], [i for i in range(6) if flags[i]]
    margin = 0.3 * ((student - against)[chosen] - (student - against)[rejected])
    wanted = -torch.log(torch.sigmoid(margin)).mean()
    torch.testing.assert_close(loss, wanted)
    found, expected = (torch.autograd.grad(value, case.responses.student_ND)[0] for value in (loss, wanted))
    torch.testing.assert_close(found, expected)
    assert tokens.student_logp_N.sum() == pytest.approx(student.sum().item())


def test_trl_agrees(tmp_path, tokenizer):
    """TRL's DPOTrainer on tiny models, its own batch of prompts and responses of different lengths."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": "tell me about", "chosen": " the red cat", "rejected": " it was very slow and then a dog"},
            {"prompt": "who sat on the mat ?", "chosen": " a dog ran and sat under the hill .", "rejected": " fast"}]  # fmt: skip
    student, reference = tiny.make_model(2), tiny.make_model(1, layers=3)
    arguments = DPOConfig(output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=2, use_cpu=True, bf16=False, fp16=False, report_to=[], gradient_checkpointing=False)
    trainer = DPOTrainer(student, reference, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(trainer.model, dict(batch))
    wanted.backward()
    expected = {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None and "lm_head" not in name}
    student.zero_grad()
    mask = batch["completion_mask"].bool()
    places = mask[:, 1:].nonzero(as_tuple=True)
    hidden = [model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[places] for model in (student, reference)]
    lengths = mask[:, 1:].sum(1)
    responses = Responses(hidden[0], hidden[1].detach(), batch["input_ids"][:, 1:][places], lengths, torch.tensor([False, False, True, True]))
    loss, _ = preference_loss(responses, Head(student.lm_head.weight.detach()), Head(reference.lm_head.weight.detach()), Preference(0.3, 2))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert expected
    for name, value in student.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_micro_batches_add_up():
    case = plain.make_case(LENGTHS, [0, 1] * 3)
    whole, _ = preference_loss(case.responses, case.student, case.teacher, Preference(0.3, 3))
    old, parts = case.responses, []
    for start in (0, 2, 4):
        rows = slice(sum(LENGTHS[:start]), sum(LENGTHS[: start + 2]))
        one = type(old)(old.student_ND[rows], old.teacher_ND[rows], old.labels_N[rows], LENGTHS[start : start + 2], old.from_student_B[start : start + 2])
        parts.append(preference_loss(one, case.student, case.teacher, Preference(0.3, 3))[0])
    torch.testing.assert_close(sum(parts), whole)
    found, wanted = (torch.autograd.grad(value, old.student_ND)[0] for value in (sum(parts), whole))
    torch.testing.assert_close(found, wanted)


def test_responses_that_are_not_in_pairs_are_refused():
    case = plain.make_case(LENGTHS, [0, 1, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="2 student responses among 6"):
        preference_loss(case.responses, case.student, case.teacher, Preference(0.3, 3))
