"""The int4 target with a student that is quantised already: a tiny Llama saved in NF4, from the recipe to the Hub and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hubdistill.errors import InputError, RecipeError
from hubdistill.hub.card_use import card_use
from hubdistill.models.load import head_of
from hubdistill.models.quantized import load_4bit
from hubdistill.models.sources import find_model
from hubdistill.plan import Plan, make_plan
from hubdistill.recipe import load_recipe
from hubdistill.specs import ModelSpec
from hubdistill.targets import int4
from hubdistill.targets.int4 import Int4Options
from tests.command import as_a_user, here, pushed_and_pulled
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
SMOKE = (ROOT / "recipes" / "smoke" / "int4.yaml").read_text()
CPU = torch.device("cpu")


def save_in_4_bit(folder: Path, **settings: Any) -> Path:
    """The toy Llama as transformers and bitsandbytes save it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    toy = find_model(ModelSpec(model="toy:llama"), folder).location
    config = BitsAndBytesConfig(**{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"} | settings)
    AutoModelForCausalLM.from_pretrained(toy, quantization_config=config, device_map={"": "cpu"}).save_pretrained(folder / "stored")
    AutoTokenizer.from_pretrained(toy).save_pretrained(folder / "stored")
    return folder / "stored"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the stored student and a recipe that names it."""
    folder = tmp_path_factory.mktemp("stored")
    save_in_4_bit(folder)
    (folder / "a.yaml").write_text(SMOKE.replace('student:  {model: "toy:llama"}', "student:  {model: ./stored}"))
    return folder


@pytest.fixture(scope="module")
def finished(made: Path) -> Path:
    done = here("run", "a.yaml", "--output", "run", folder=made)
    assert done.code == 0, done.err
    return made / "run"


def test_its_card_names_the_stored_model_as_the_base_and_loads_it_as_it_is(finished: Path):
    card = (finished / "README.md").read_text()
    assert "The base is stored in 4 bit (nf4, bitsandbytes), and the adapter was trained on it as it is." in card
    assert "BitsAndBytesConfig" not in card
    assert f'base = AutoModelForCausalLM.from_pretrained("{finished.parent / "stored"}", dtype="auto"' in card
    assert "merge_and_unload" not in card
    assert "vllm serve" not in card
    assert "distilled from `toy:llama`" in card
    rows = {(row["metric"], row["on"], row["subject"]): row["value"] for row in json.loads((finished / "measurements.json").read_text())}
    assert rows["kl", "teacher responses", "distilled"] < rows["kl", "teacher responses", "student"]


USER = """
import bitsandbytes.nn.modules
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # as in test_int4.py
import json
code = open("snippet.py").read().replace(', device_map="auto"', "")
exec(code)
ids = tok.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
layer = base.model.layers[0].mlp.up_proj.base_layer
print(json.dumps({"answer": model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist(), "layer": type(layer).__name__, "dtype": str(layer.compute_dtype)}))
"""


def test_it_comes_back_from_the_hub_with_its_base_in_4_bit(finished: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoTokenizer

    env = {"HF_TOKEN": "hf_alice_write"}
    with HubServer() as server:
        env |= {"HF_ENDPOINT": server.url}
        pulled = pushed_and_pulled(finished, tmp_path, **env)
        assert "BitsAndBytesConfig" not in pulled
        assert 'from_pretrained("org/smoke-base"' in pulled
        (tmp_path / "snippet.py").write_text(pulled.split("# transformers and PEFT")[1])
        said = as_a_user(USER, tmp_path, **env)
    assert (said["layer"], said["dtype"]) == ("Linear4bit", "torch.float32")
    torch.set_num_threads(1)
    facts = find_model(ModelSpec(model="./stored"), finished.parent)
    by_hand = PeftModel.from_pretrained(load_4bit(facts, "auto", CPU, int4.quantization(Int4Options())), finished / "round_2" / "adapter")
    ids = AutoTokenizer.from_pretrained(facts.location).apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert said["answer"] == by_hand.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()


def test_it_computes_in_what_its_config_says(tmp_path: Path):
    save_in_4_bit(tmp_path, bnb_4bit_compute_dtype="bfloat16")
    model = load_4bit(find_model(ModelSpec(model="./stored"), tmp_path), "auto", CPU, int4.quantization(Int4Options()))
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    assert head_of(model).weight.dtype == torch.float32


def planned(made: Path, folder: Path, *overrides: str, quantization: Any = None, **config: Any) -> Plan:
    """The plan of the recipe, with another config of the stored model: `quantization` goes over its quantization_config."""
    shutil.copytree(made / "stored", folder / "stored")
    shutil.copy(made / "a.yaml", folder)
    file = folder / "stored" / "config.json"
    found = json.loads(file.read_text()) | config
    found["quantization_config"] = found["quantization_config"] | (quantization or {})
    file.write_text(json.dumps(found))
    return make_plan(load_recipe(folder / "a.yaml", overrides))


def test_the_plan_takes_it(made: Path, tmp_path: Path):
    plan = planned(made, tmp_path)
    assert (plan.student.reference, plan.teacher.reference, plan.vocab) == ("./stored", "toy:llama", 260)


@pytest.mark.parametrize(("overrides", "quantization", "config", "said"), [
    ((), {"bnb_4bit_quant_type": "fp4"}, {}, "target.quant_type: the recipe says nf4, and ./stored is stored with fp4 (its quantization_config); write `quant_type: fp4`"),
    ((), {"bnb_4bit_use_double_quant": False}, {}, "target.double_quant: the recipe says true, and ./stored is stored with false (its quantization_config); write `double_quant: false`"),
    (["student.dtype=bfloat16"], {}, {}, "student.dtype: bfloat16, and ./stored is stored in 4 bit to multiply in float32 (bnb_4bit_compute_dtype in its config); write `auto`"),
    ((), {"bnb_4bit_compute_dtype": "float16"}, {}, "student.model: ./stored is stored to multiply in float16 (bnb_4bit_compute_dtype in its config), and adapters are trained in bfloat16 or float32; name the unquantised model"),
    ((), {"bnb_4bit_quant_type": "int3"}, {}, "student.model: ./stored is stored in int3 (bnb_4bit_quant_type in its config), which is neither nf4 nor fp4; name the unquantised model"),
    ((), {"llm_int8_skip_modules": ["model.layers.0"]}, {}, "student.model: the output head of ./stored is quantised (llm_int8_skip_modules in its config leaves it out), and the loss needs it in floating point; name the unquantised model"),
    ((), {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True}, {}, "student.model: ./stored is stored in 8 bit (bitsandbytes), and this target recovers 4-bit models; name the unquantised model"),
    ((), {"quant_method": "gptq"}, {}, "student.model: ./stored is stored quantised by gptq, and adapters are trained on 4 bit of bitsandbytes alone"),
    ((), {"quant_method": "awq"}, {}, "is stored quantised by awq"),
    ((), {"quant_method": "compressed-tensors"}, {}, "is stored quantised by compressed-tensors"),
    ((), {"quant_method": "fp8"}, {}, "is stored quantised by fp8"),
    ((), {}, {"num_hidden_layers": 4}, "student.model: ./stored has num_hidden_layers 4 and the teacher toy:llama has 3, so it is no copy of it; name the model that it was quantised from as teacher"),
    ((), {}, {"vocab_size": 300}, "student.model: ./stored has vocab_size 300 and the teacher toy:llama has 260"),
    (["teacher.model=./stored"], {}, {}, "teacher.model: ./stored is quantised already (bitsandbytes), and what it lost cannot be learnt from it; name the unquantised model"),
    (["student.layers=2"], {}, {}, "student.layers: ./stored (layers 0, 2) is stored in 4 bit, and layers are left out of floating-point models only; remove student.layers"),
    (["target.kind=text"], {}, {}, "student.model: ./stored is quantised; this target trains floating-point students"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_the_plan(made: Path, tmp_path: Path, overrides, quantization, config, said: str):
    with pytest.raises(RecipeError) as caught:
        planned(made, tmp_path, *overrides, quantization=quantization, **config)
    assert said in str(caught.value)


@pytest.mark.parametrize("skipped", [["lm_head"], ["lm_head", "model.layers.1.mlp"], None])
def test_a_head_that_is_left_out_of_quantisation_is_no_problem(made: Path, tmp_path: Path, skipped):
    assert planned(made, tmp_path, quantization={"llm_int8_skip_modules": skipped}).resolved


def test_a_head_in_4_bit_is_refused_when_it_is_loaded_too(tmp_path: Path):
    save_in_4_bit(tmp_path, llm_int8_skip_modules=["model.layers.0"])
    model = load_4bit(find_model(ModelSpec(model="./stored"), tmp_path), "auto", CPU, int4.quantization(Int4Options()))
    with pytest.raises(InputError, match="no plain linear output head in floating point"):
        head_of(model)


def test_a_card_that_says_more_than_that_the_base_is_stored_is_not_believed(tmp_path: Path):
    known = "load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: float32"
    for more, taken in (("", True), (", stored: true", True), (", stored: 1", False), (', stored: "yes"', False), (", stored: true, more: true", False)):
        (tmp_path / "README.md").write_text(f"---\nhubdistill:\n  quantization: {{{known}{more}}}\n---\n")
        assert (card_use(tmp_path / "README.md").quantization is not None) == taken
