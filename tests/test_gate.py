"""A student that training made worse is not pushed, by `run` as by `push`; both adapters stay, and --force pushes it with a card that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.command import hub_client, hubdistill
from tests.hub_server import HubServer


def worse_recipe(folder: Path) -> Path:
    """A student that is all but its teacher, and a learning rate that ruins it after a gentle warm-up; enough held-out prompts to tell."""
    tiny.write_recipe(folder)
    student = tiny.make_model(1, layers=3)
    student.lm_head.weight.data *= 1.01
    tiny.save(folder / "student", student, tiny.make_tokenizer())
    rows = [{"prompt": f"tell me about the {a} {b} {c} {d}", "answer": f"it was {a} and {c}"}
            for a in ("cat", "dog", "hill") for b in ("sat", "ran") for c in ("fast", "slow", "red", "blue") for d in ("on", "under")]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.write_recipe(
        folder,
        prompts={"dataset": "prompts.jsonl", "response_column": "answer", "heldout": 32, "max_tokens": 64},
        warmup={"kind": "sft", "learning_rate": 1e-6},
        train={"rounds": 1, "pairs_per_step": 4, "micro_batch": 4, "learning_rate": 0.3, "device": "cpu"},
        evaluate=[{"kind": "divergence"}],
        publish={"repo": "org/worse", "base_repo": "org/worse-base"},
    )


@pytest.mark.slow
def test_a_student_that_became_worse_is_not_pushed_unless_it_is_forced(tmp_path: Path):
    recipe, run = worse_recipe(tmp_path), str(tmp_path / "run")
    push = ["push", run, "--repo", "org/worse", "--base-repo", "org/worse-base"]
    with HubServer() as server:
        env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
        refused = hubdistill("run", recipe, "-o", run, folder=tmp_path, **env)
        push = ["push", run, "--repo", "org/worse", "--base-repo", "org/worse-base"]
        steps = [{"call": "command", "args": [*push, *more], "token": "hf_alice_write"} for more in ([], ["--dry-run"])]
        found, _ = hub_client(steps, tmp_path, tmp_path / "home", HF_ENDPOINT=server.url)
        pushed, shown = (one["ok"] for one in found)
        assert not [name for _, name in server.state.repos if "worse" in name]
        forced = hubdistill(*push, "--force", folder=tmp_path, **env)
        card = (tmp_path / "run" / "README.md").read_text()
        off = hubdistill("run", recipe, "gate.off=true", "publish.repo=org/off", "-o", run, folder=tmp_path, **env)
        names = {name for _, name in server.state.repos}
    assert refused.code == 1, refused.err
    assert "Held-out results on 32 prompts" in refused.out  # the results all the same
    assert "Gate      worse than the warm-up in kl and agreement on teacher responses" in refused.out
    assert pushed["code"] == 1
    for said in (refused.err, pushed["err"]):
        assert "nothing was pushed: the distilled student is worse than the warm-up in kl and agreement on teacher responses" in said
        assert f"The one to keep is the warm-up's adapter, {run}/warmup/adapter" in said
        assert f"the distilled one is kept too, in {run}/round_1/adapter" in said
        assert f"hubdistill push {run} --repo org/worse --base-repo org/worse-base --force" in said
    assert (tmp_path / "run" / "warmup" / "adapter" / "adapter_model.safetensors").is_file()
    assert (shown["code"], "the push is refused without --force" in shown["out"]) == (0, True)
    assert forced.code == 0, forced.err
    assert "Before publication: worse than the warm-up in kl and agreement on teacher responses" in card.replace("\\", "")
    assert off.code == 0, off.err
    assert {"org/worse", "org/worse-base", "org/off"} <= names
    assert "the gate is off; worse than the warm-up" in off.out
