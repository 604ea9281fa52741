"""Preference tuning after the last round, in whole runs over tiny models."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel

from hubdistill.errors import RecipeError
from hubdistill.pairs.prompts import read_prompts
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from tests import tiny
from tests.command import here

TUNED = {"dataset": "preferences.jsonl", "heldout": 4, "epochs": 2, "learning_rate": 0.01}


def write_preferences(folder, **changes):
    """A recipe with 16 pairs in which the preferred response is a sentence about a dog; half of them as chats."""
    rows = []
    for index, (a, b) in enumerate((a, b) for a in ("cat", "dog", "hill", "mat") for b in ("sat", "ran", "fast", "slow")):
        chosen, rejected = "the dog sat on the mat .", f"it was {a} and {b} and very very {b}"
        if index % 2:
            chosen, rejected = ([{"role": "user", "content": "x"}, {"role": "assistant", "content": text}] for text in (chosen, rejected))
        rows.append({"prompt": f"where was the {a} {b} ?", "chosen": chosen, "rejected": rejected})
    rows.append({"prompt": "who ran ?", "chosen": "the dog .", "rejected": "the dog ."})  # prefers neither
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.write_recipe(folder, preference=TUNED | changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    write_preferences(folder)
    done = here("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder, folder / "runs" / "tiny", done


def summed(folder, adapter, prompt, text) -> float:
    """log q(text | prompt) as transformers and PEFT compute it, without anything of ours but the tokenizer."""
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "student"), adapter).eval()
    tokenizer = tiny.make_tokenizer()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
    said = [*tokenizer(text)["input_ids"], 3][:8]  # sampling.max_tokens
    with torch.no_grad():
        logp = model(torch.tensor([[*ids, *said]])).logits[0].log_softmax(-1)
    return sum(logp[len(ids) + i - 1, token].item() for i, token in enumerate(said))


def test_it_goes_on_from_the_distilled_student_and_is_held_against_it(tuned):
    _, run, _ = tuned
    rows = [json.loads(line) for line in (run / "preference" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # student and reference are the same at the first step
    assert losses[-1] < losses[0] - 0.05
    assert len(losses) == 6  # 12 pairs in steps of 4, twice
    assert sorted(path.name for path in (run / "preference" / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_it_did_is_measured_on_pairs_that_it_did_not_see(tuned):
    folder, run, _ = tuned
    values = json.loads((run / "evaluation" / "values.json").read_text())["preference, held-out preferences"]
    assert set(values) == {"teacher", "student", "warm-up", "before preference", "distilled"}
    import pyarrow.parquet as pq

    held = pq.read_table(run / "prompts" / "preference_heldout.parquet").to_pylist()
    trained = pq.read_table(run / "prompts" / "preference.parquet").to_pylist()
    assert len(held) == 4
    assert not {row["prompt_id"] for row in held} & {row["prompt_id"] for row in trained}
    for subject, adapter in (("before preference", "round_2/adapter"), ("distilled", "preference/adapter")):
        for row in held:
            prompt = json.loads(row["messages"])[-1]["content"]
            chosen, rejected = (summed(folder, run / adapter, prompt, text) for text in row["answers"])
            assert values[subject][row["prompt_id"]] == float(chosen > rejected)
    margins = {adapter: [summed(folder, run / adapter, json.loads(row["messages"])[-1]["content"], row["answers"][0]) - summed(folder, run / adapter, json.loads(row["messages"])[-1]["content"], row["answers"][1])
                         for row in held] for adapter in ("round_2/adapter", "preference/adapter")}  # fmt: skip
    assert all(after > before for before, after in zip(margins["round_2/adapter"], margins["preference/adapter"], strict=True))
    measured = {(row["metric"], row["subject"]): row for row in json.loads((run / "measurements.json").read_text())}
    assert "before preference" in [one["against"] for one in measured["kl", "distilled"]["differences"]]


def test_the_tuned_adapter_is_what_is_published_and_the_card_says_how(tuned):
    _, run, _ = tuned
    weights = (run / "preference" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (run / "hub" / "adapter_model.safetensors").read_bytes() == weights != (run / "round_2" / "adapter" / "adapter_model.safetensors").read_bytes()
    card = (run / "README.md").read_text()
    assert "after distillation" in card
    assert "DPO held against the distilled student: beta 0.1, 12 pairs of preferences.jsonl" in card
    assert "preferred response likelier than the other" in card


def test_other_settings_of_it_keep_the_rounds(tuned):
    folder, run, _ = tuned
    before = (run / "round_2" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = here("run", "tiny.yaml", "preference.beta=0.5", folder=folder)
    assert again.code == 0, again.err
    assert (run / "round_2" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert "round_2-train kept from before" in again.err
    assert "preference kept from before" not in again.err


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ([{"prompt": "a", "chosen": "b"}], {}, "preference.rejected_column"),
        ([{"prompt": "a", "chosen": "b", "rejected": ""}], {}, "preferences.jsonl:row 1 (column 'rejected'): holds an empty text"),
        ([{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}], {}, "does not end in a turn of the assistant"),
        ([{"prompt": "a", "chosen": "b", "rejected": 3}], {}, "holds a number"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {"heldout": 4}, "preference.heldout: 4 of 1 rows leaves nothing to train on"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {"heldout": 0, "strength": 1}, "did you mean"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_plan(rows, changes, said, tmp_path):
    recipe = tiny.write_recipe(tmp_path, preference={"dataset": "preferences.jsonl", "heldout": 0} | changes)
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(recipe))
    assert said in str(caught.value)


def test_several_processes_are_refused(tmp_path):
    write_preferences(tmp_path)
    with pytest.raises(RecipeError, match="preference: is tuned in one process, and 2 are planned"):
        make_plan(load_recipe(tmp_path / "tiny.yaml", ["train.distributed={processes: 2}", "train.pairs_per_step=4"]))


def test_a_prompt_that_is_measured_on_is_not_tuned_on(tmp_path, notes):
    recipe = tiny.write_recipe(tmp_path, preference={"dataset": "preferences.jsonl", "heldout": 0})
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps({"prompt": one, "chosen": "the cat", "rejected": "a dog"}) + "\n" for one in prompts))
    plan = make_plan(load_recipe(recipe))
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        run = Run(plan, directory, notes)
        run.distil(until="prompts")
        held = {row.id for row in read_prompts(tmp_path / "run" / "prompts" / "heldout.parquet")}
        tuned = {row.id for row in run._preferred()}
    assert len(held) == 4
    assert len(tuned) == 8
    assert not held & tuned
    assert "preference: 4 pairs left out, whose prompts are held out or asked as questions" in notes.notes


def test_padding_lies_within_the_student_s_ids(tmp_path, notes):
    recipe = tiny.write_recipe(tmp_path, preference={"dataset": "preferences.jsonl", "heldout": 0})
    rows = [{"prompt": f"where was the {word} ?", "chosen": "the dog", "rejected": "it was very very fast"} for word in ("cat", "dog", "hill", "mat")]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny.make_tokenizer(("beyond",))
    tokenizer.pad_token = "beyond"  # an id that the student does not have
    tiny.save(tmp_path / "teacher", tiny.make_model(1, layers=3, vocab=len(tokenizer)), tokenizer)
    plan = make_plan(load_recipe(recipe))
    assert plan.vocab == len(tokenizer) - 1
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        Run(plan, directory, notes).distil()
    assert (tmp_path / "run" / "preference" / "adapter" / "adapter_model.safetensors").is_file()
