"""A pruned model is the original run with the kept layers alone, built once into the cache."""

from __future__ import annotations

import json
import multiprocessing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from hubdistill.errors import InputError
from hubdistill.models import pruned as module
from hubdistill.models.pruned import ORIGIN_FILE, build_pruned, kept_layers, pruned_facts, shorten_config
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts, find_model
from hubdistill.specs import ModelSpec
from tests import tiny

IDS = torch.tensor([[7, 9, 20, 4, 3, 31, 12, 18, 5, 27, 6, 30], [8, 33, 25, 31, 6, 6, 7, 29, 11, 13, 14, 28]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def gemma(layers: int) -> Gemma2ForCausalLM:
    """Its layers take turns: a window of 4 tokens, all tokens."""
    config = Gemma2Config(vocab_size=34, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=8, sliding_window=4, initializer_range=0.3, pad_token_id=0)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return Gemma2ForCausalLM(config).eval()


MAKE = {"llama": lambda: tiny.make_model(2, layers=4), "gemma2": lambda: gemma(4)}


def saved(folder: Path, name: str = "llama") -> ModelFacts:
    tiny.save(folder / name, MAKE[name](), tiny.make_tokenizer())
    return find_model(ModelSpec(model=f"./{name}"), folder)


@torch.no_grad()
def without(model, dropped: set[int]):
    """The whole model, where the dropped layers add nothing to the residual stream."""
    for number in dropped:
        layer = model.model.layers[number]
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.zero_()
    return model


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("layers", [(1, 2), (0, 3), (0, 2), 3, 1, 4])
@torch.no_grad()
def test_it_computes_what_the_kept_layers_compute(tmp_path, name, layers):
    facts = saved(tmp_path, name)
    pruned = pruned_facts(facts, layers)
    folder = build_pruned(facts, pruned, layers)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    kept = {3: (0, 1, 3), 1: (0,), 4: (0, 1, 2, 3)}[layers] if isinstance(layers, int) else layers
    expected = without(MAKE[name](), set(range(4)) - set(kept))(IDS).logits
    assert (model(IDS).logits - expected).abs().max() < 1e-5
    assert not any(loading.values())
    if len(kept) < 4:
        assert (expected - MAKE[name]()(IDS).logits).abs().max() > 0.1
    assert model.config.num_hidden_layers == pruned.config["num_hidden_layers"] == len(kept)
    if name == "gemma2":
        assert model.config.layer_types == [("sliding_attention", "full_attention")[number % 2] for number in kept]


def test_a_count_leaves_out_one_block_in_the_middle():
    assert kept_layers(24, 30) == (*range(13), *range(19, 30))
    for depth in (1, 2, 5, 12, 30):
        for count in range(1, depth + 1):
            kept = kept_layers(count, depth)
            gaps = [(a, b) for a, b in pairwise(kept) if b != a + 1]
            assert (len(kept), kept[0]) == (count, 0)
            assert len(gaps) == (1 if 1 < count < depth else 0)
            assert count == 1 or kept[-1] == depth - 1
    assert kept_layers((0, 4, 5), 6) == (0, 4, 5)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (7, "student.layers: 7 layers asked for, the model has 6; give a smaller number$"),
        ((0, 6), r"student.layers: there is no layer 6, the model has 6 \(0 to 5\); leave it out$"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, says):
    with pytest.raises(InputError, match=says):
        kept_layers(layers, 6)


def test_the_facts_name_the_layers_and_a_place_of_their_own(tmp_path, cache):
    facts = saved(tmp_path)
    found = [pruned_facts(facts, layers) for layers in (2, (0, 1), (0, 2))]
    assert found[0].reference == "./llama (layers 0, 3)"
    assert (found[0].kind, found[0].revision) == ("pruned", None)
    assert len({one.location for one in found}) == len({one.commit for one in found}) == 3
    assert {Path(one.location).parent for one in found} == {cache / "pruned"}
    assert pruned_facts(facts, (0, 3)) == found[0]
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}")
    assert pruned_facts(find_model(ModelSpec(model="./llama"), tmp_path), 2).location != found[0].location
    assert not cache.exists(), "nothing is built by asking"


def test_a_model_of_unknown_depth_cannot_be_pruned():
    facts = ModelFacts(reference="org/odd", kind="hub", location="org/odd", commit="1" * 40, config={"n_layer": 6}, license={})
    with pytest.raises(InputError, match=r"student\.layers: the config of org/odd has no num_hidden_layers.*; remove student.layers$"):
        pruned_facts(facts, 2)


def test_offline_an_unknown_model_stays_unresolved():
    facts = ModelFacts(reference="org/far", kind="hub", location="org/far", commit=NOT_RESOLVED, config={}, license={})
    found = pruned_facts(facts, 2)
    assert (found.commit, found.kind, found.reference) == (NOT_RESOLVED, "pruned", "org/far (pruned)")


def test_the_folder_holds_a_whole_model_and_says_where_it_comes_from(tmp_path, cache):
    facts = saved(tmp_path)
    folder = build_pruned(facts, pruned_facts(facts, (0, 2)), (0, 2))
    assert folder == Path(pruned_facts(facts, (0, 2)).location)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tiny.make_tokenizer().get_vocab()
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny.TEMPLATE
    assert json.loads((folder / ORIGIN_FILE).read_text()) == {"made_from": "./llama", "commit": facts.commit, "kept_layers": [0, 2]}
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert [path.name for path in (cache / "pruned").iterdir()] == [folder.name], "no work folder stays"


def test_it_is_built_once(tmp_path, monkeypatch):
    facts = saved(tmp_path)
    pruned = pruned_facts(facts, 2)
    folder = build_pruned(facts, pruned, 2)
    monkeypatch.setattr(module, "_prune", None)
    assert build_pruned(facts, pruned, 2) == folder


def test_a_build_that_fails_leaves_nothing(tmp_path, cache):
    facts = saved(tmp_path)
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"\./llama: transformers cannot load it"):
        build_pruned(facts, pruned_facts(facts, 2), 2)
    assert list((cache / "pruned").iterdir()) == []


def test_the_number_format_of_the_checkpoint_is_kept(tmp_path):
    tiny.save(tmp_path / "half", tiny.make_model(2, layers=3).to(torch.bfloat16), tiny.make_tokenizer())
    facts = find_model(ModelSpec(model="./half"), tmp_path)
    folder = build_pruned(facts, pruned_facts(facts, 2), 2)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def race(meeting, outcomes, facts, pruned) -> None:
    publish = module.publish_folder

    def together(work, folder):
        meeting.wait(30)  # both have a finished copy before either moves it into place
        publish(work, folder)

    module.publish_folder = together
    outcomes.put(str(build_pruned(facts, pruned, 2)))


def test_two_processes_at_once_both_get_the_model(tmp_path, cache):
    facts = saved(tmp_path)
    pruned = pruned_facts(facts, 2)
    fork = multiprocessing.get_context("fork")
    meeting, outcomes = fork.Barrier(2), fork.SimpleQueue()
    racers = [fork.Process(target=race, args=(meeting, outcomes, facts, pruned)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        if racer.is_alive():
            racer.kill()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert [outcomes.get() for _ in racers] == [pruned.location] * 2
    assert [str(path) for path in (cache / "pruned").iterdir()] == [pruned.location]
    assert AutoModelForCausalLM.from_pretrained(pruned.location).config.num_hidden_layers == 2


def test_every_list_with_an_entry_a_layer_is_shortened_and_no_other():
    config = SimpleNamespace(num_hidden_layers=4, layer_types=list("abcd"), no_rope_layers=[1, 1, 1, 0], mlp_layer_types=["x"] * 3, eos_token_id=[1, 2, 3, 4])
    shorten_config(config, (0, 3))
    assert vars(config) == {"num_hidden_layers": 2, "layer_types": ["a", "d"], "no_rope_layers": [1, 0], "mlp_layer_types": ["x"] * 3, "eos_token_id": [1, 2, 3, 4]}


def test_a_generation_config_with_a_temperature_that_does_nothing_is_saved(tmp_path):
    """As Vicuna's: transformers reads it and refuses to write it."""
    from hubdistill.models.load import read_weights
    from hubdistill.models.saving import save_model

    made = tiny.save(tmp_path / "model", tiny.make_model(0), tiny.make_tokenizer())
    (made / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 3}')
    model = read_weights(find_model(ModelSpec(model=str(made)), tmp_path), torch.float32)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path / "refused")
    save_model(model, tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (kept["eos_token_id"], kept.get("temperature")) == (3, None)
