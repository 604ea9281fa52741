"""The drafter target from the recipe to the Hub and back: a tiny Llama drafts for a deeper one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hubdistill.errors import RecipeError
from hubdistill.models.layout import load_model
from hubdistill.models.sources import find_model
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.specs import ModelSpec
from tests import tiny
from tests.command import as_a_user, called, finished_run, hubdistill
from tests.hub_server import HubServer

ALICE = "hf_alice_write"
ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "recipes" / "smoke" / "drafter.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The smoke recipe's run, through the command line."""
    return finished_run(tmp_path_factory.mktemp("drafter"), "smoke/drafter", "speed_up on greedy decoding, 3 drafted, times plain decoding, higher is better: student")


def test_acceptance_and_speed_are_measured_before_and_after(finished: Path):
    rows = {(row["metric"], row["subject"]): row for row in json.loads((finished / "measurements.json").read_text()) if row["on"] != "own responses"}
    for subject in ("student", "distilled"):
        for metric in ("speed_up", "accepted_length", "accepted_1", "accepted_2", "accepted_3"):
            assert (rows[metric, subject]["n"], rows[metric, subject]["decoding"]) == (4, "greedy, at most 12 tokens")
        assert rows["same_text", subject]["value"] == 1
        assert 1 <= rows["accepted_length", subject]["value"] <= 4
        assert 1 >= rows["accepted_1", subject]["value"] >= rows["accepted_2", subject]["value"] >= rows["accepted_3", subject]["value"]
        assert (rows["acceptance", subject]["n"], 0 < rows["acceptance", subject]["value"] < 1) == (24, True)
    assert rows["acceptance", "distilled"]["value"] > rows["acceptance", "student"]["value"]
    before = json.loads((finished / "stages" / "before-training.json").read_text())["result"]["note"]
    assert "a step of the drafter takes 0." in before
    assert "expected acceptance is 0." in before
    card = (finished / "README.md").read_text()
    assert "| measured before training | a step of the drafter takes 0." in card
    assert "# \\`verifier\\` is" not in card
    assert "assistant_model=drafter" in card
    assert "vllm" not in card.split("## Training")[0].lower()  # its verifier is not on the Hub


def test_the_plan_says_what_will_not_be_measured(tmp_path: Path):
    asked = make_plan(load_recipe(str(SMOKE), []), offline=True)
    text = SMOKE.read_text()
    line = next(line for line in text.splitlines() if line.startswith("evaluate:"))
    recipe = tmp_path / "drafter.yaml"
    recipe.write_text(text.replace(line, "evaluate: [{kind: divergence}]"))
    missing = make_plan(load_recipe(str(recipe), []), offline=True)
    assert set(missing.warnings) - set(asked.warnings) == {
        "evaluate does not ask for acceptance: the run will not measure what a drafter is for; add `- {kind: acceptance}`"
    }


USER = """
import json
found = []
for name in ("adapter.py", "merged.py"):
    names = {}
    exec(open(name).read().replace(', device_map="auto"', ""), names)
    verifier, drafter, inputs, answer = (names[one] for one in ("verifier", "drafter", "inputs", "answer"))
    alone = verifier.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]
    found.append({"answer": answer.tolist(), "alone": alone.tolist(), "drafter": sum(p.numel() for p in drafter.parameters()),
                  "gate": drafter.model.layers[0].mlp.gate_proj.weight.double().sum().item()})
print(json.dumps(found))
"""


def test_adapter_and_merged_drafter_come_back_from_the_hub_and_draft_for_their_verifier(tmp_path: Path):
    """With a verifier that is on the Hub: both cards' code runs as it is printed, and gives the verifier's own text."""
    from huggingface_hub import HfApi, hf_hub_download

    env = {"HF_TOKEN": ALICE}
    toy = find_model(ModelSpec(model="toy:llama"), tmp_path)
    with HubServer() as server:
        env |= {"HF_ENDPOINT": server.url}
        api = HfApi(endpoint=server.url, token="hf_seed")
        api.create_repo("org/verifier")
        api.upload_folder(repo_id="org/verifier", folder_path=toy.location)
        (tmp_path / "a.yaml").write_text(SMOKE.read_text().replace("toy:llama", "org/verifier") + "publish: {repo: org/lora, base_repo: org/base, merged_repo: org/merged}\n")
        done = hubdistill("run", "a.yaml", "--output", "run", folder=tmp_path, **env)
        assert done.code == 0, done.err
        assert "will publish to org/merged (private) as alice" in done.err
        assert not (tmp_path / "run" / "merged").exists()
        assert [f"Beside it {server.url}/org/{name}" in done.out for name in ("base", "merged")] == [True, True]
        pulled = hubdistill("pull", "org/lora", folder=tmp_path, **env)
        assert pulled.code == 0, pulled.err
        commit = api.model_info("org/verifier").sha
        served = 'vllm serve org/verifier --revision {} --speculative-config \'{{"method": "draft_model", "model": "{}", "num_speculative_tokens": 3}}\''
        assert served.format(commit, "./merged") in pulled.out
        parts = pulled.out.split("# transformers and PEFT")[1].split("# merged into the base")[0].split("# as the drafter of org/verifier")
        (tmp_path / "adapter.py").write_text("".join(parts))
        card = Path(hf_hub_download("org/merged", "README.md", endpoint=server.url, token=ALICE, cache_dir=tmp_path / "cache")).read_text()
        assert served.format(commit, "org/merged") in card
        head = api.model_info("org/lora", token=ALICE).sha
        assert f"LoRA adapter [org/lora](https://huggingface.co/org/lora) (commit `{head}`) merged in" in card
        adapter_card = Path(hf_hub_download("org/lora", "README.md", endpoint=server.url, token=ALICE, cache_dir=tmp_path / "cache")).read_text()
        assert "The model with this adapter merged in is `org/merged`." in adapter_card
        assert served.format(commit, "org/merged") in adapter_card
        (tmp_path / "merged.py").write_text(card.split("```python\n")[1].split("```")[0])
        adapted, whole = as_a_user(USER, tmp_path, **env)
    assert adapted["answer"] == adapted["alone"] == whole["answer"] == whole["alone"]
    assert adapted["drafter"] == whole["drafter"] < sum(p.numel() for p in load_model(toy, "float32", CPU).parameters())
    assert adapted["gate"] == pytest.approx(whole["gate"], rel=1e-6)
    base = load_model(find_model(ModelSpec(model=json.loads((tmp_path / "run" / "location.json").read_text())["base"]), tmp_path), "float32", CPU)
    assert abs(whole["gate"] - base.model.layers[0].mlp.gate_proj.weight.double().sum().item()) > 1e-6  # what was merged changed it


def planned(folder: Path, *overrides: str):
    (folder / "a.yaml").write_text(SMOKE.read_text())
    return make_plan(load_recipe(folder / "a.yaml", overrides))


@pytest.mark.parametrize(("overrides", "said"), [
    (["student.layers=null"], "student.model: student and teacher are the same model"),
    (["teacher.model=toy:llava"], "teacher.model: toy:llava is a vision-language model"),
    (["target.cannot_pay=go"], "target.cannot_pay: 'go' is not one of: stop, ignore"),
    (["target.cant_pay=ignore"], "target.cant_pay: unknown key; did you mean 'cannot_pay'?"),
    (["evaluate=[{kind: divergence, draft_tokens: 3}]"], "draft_tokens and timed belong to kind: acceptance; remove them from kind: divergence"),
    (["evaluate=[{kind: acceptance, draft_tokens: 9}]"], "evaluate[0].draft_tokens"),
    (["publish={repo: me/a, base_repo: me/b, merged_repo: ME/a}"], "publish.merged_repo: is the repo of the adapter or of its base"),
    (["publish={repo: me/a, base_repo: me/b, merged_repo: me/BIG}", "teacher.model=me/big"], "publish.merged_repo: is the teacher's own repository, and a push would write over it; name another one"),
    (["publish={repo: me/a, merged_repo: me/b}", f"student={{model: me/small, trust_remote_code: true, revision: {'a' * 40}}}"], "publish.merged_repo: the student's code is in its own repository"),
    (["target={kind: text}"], "evaluate[1].draft_tokens: has no effect: only the target 'drafter' decodes with drafts; remove it"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_the_plan(tmp_path: Path, overrides: list[str], said: str):
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *overrides)
    assert said in str(caught.value)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A verifier of three layers and a drafter of two, as folders, and their recipe."""
    tiny.write_recipe(tmp_path, target={"kind": "drafter"}, evaluate=[{"kind": "acceptance", "timed": 2}])
    return tmp_path


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(folder / "tiny.yaml", overrides))
    return str(caught.value)


def rewritten(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_drafter_of_another_vocabulary_is_refused_in_the_plan(pair: Path):
    assert make_plan(load_recipe(pair / "tiny.yaml")).vocab
    tokenizer = pair / "student" / "tokenizer.json"
    good = tokenizer.read_text()
    words = json.loads(good)["model"]["vocab"]
    for changed, count, said in (({"cat": words["dog"], "dog": words["cat"]}, 2, "student 'dog'"), ({"cat": None, "cow": words["cat"]}, 1, "student 'cow'")):
        model = json.loads(good)["model"]
        rewritten(tokenizer, model=model | {"vocab": {word: i for word, i in (words | changed).items() if i is not None}})
        assert f"{count} of {len(words)} ids differ (id {words['cat']}: teacher 'cat', {said}" in refused(pair)
    tokenizer.write_text(good)
    rewritten(pair / "student" / "config.json", vocab_size=len(words) + 8)
    assert f"./student has {len(words) + 8} ids and its verifier ./teacher has {len(words)}; engines draft over one vocabulary alone" in refused(pair)


def test_a_drafter_that_is_no_smaller_or_quantised_is_refused_in_the_plan(pair: Path):
    assert "a drafter must be smaller, or every draft costs more than the token itself" in refused(pair, "teacher.model=./student", "student.model=./teacher")
    rewritten(pair / "student" / "config.json", quantization_config={"quant_method": "gptq"})
    assert "is quantised; this target trains floating-point students" in refused(pair)


def test_a_model_that_cannot_forget_a_rejected_draft_is_refused_in_the_plan(pair: Path):
    vocab = json.loads((pair / "teacher" / "config.json").read_text())["vocab_size"]
    (pair / "student" / "config.json").write_text(json.dumps({"model_type": "mamba", "vocab_size": vocab, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}))
    assert "student.model: ./student (MambaForCausalLM) keeps a running state that cannot go back over rejected drafts" in refused(pair)


def test_a_run_stops_before_training_where_drafting_cannot_pay(pair: Path, monkeypatch, capsys):
    from hubdistill.evaluation import acceptance

    slow = acceptance.Costs(draft=1.0, verify=(1.0,) * (acceptance.LONGEST + 1))
    monkeypatch.setattr(acceptance, "measure_costs", lambda *given: slow)
    monkeypatch.setenv("HUBDISTILL_CACHE", str(pair / "cache"))
    arguments = ("sample", pair / "tiny.yaml", "--output", pair / "run", "--round", "1")
    code, _, said = called(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "drafting cannot pay: it would be slower than plain decoding even if every draft was accepted" in said
    assert "or write `cannot_pay: ignore` under `target`" in said
    assert not (pair / "run" / "round_1").exists()
    code, _, said = called(monkeypatch, capsys, *arguments, "target.cannot_pay=ignore")
    assert code == 0, said
    assert (pair / "run" / "round_1" / "student.parquet").is_file()
