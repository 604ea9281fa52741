"""vLLM itself, where it is installed: the same tokens as transformers, the adapter, seeds over an interruption. A minute a test on a CPU."""

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hubdistill.errors import SamplingError
from hubdistill.files import file_sha256
from hubdistill.models.sources import find_model
from hubdistill.models.vllm_model import engine_settings
from hubdistill.pairs import vllm_sampling
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question, ResponseHeader, collect, seed_for
from hubdistill.pairs.vllm_sampling import VllmSampler
from hubdistill.pairs.vllm_settings import vllm_version
from hubdistill.specs import ModelSpec, SamplingSpec, VllmSpec
from tests import tiny

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed")]
STOP, VOCAB = 3, 34
QUESTIONS = [Question(f"p{i:02d}", tuple(4 + (i * j) % 30 for j in range(1, 4 + i % 7))) for i in range(24)]
GREEDY = SamplingSpec(engine="vllm", temperature=0, max_tokens=12, vllm=VllmSpec(gpu_memory_utilization=0.1))
DRAWN = GREEDY.model_copy(update={"temperature": 0.8, "top_p": 0.95})


@pytest.fixture(scope="module")
def model():
    return tiny.make_model(1, layers=3, hidden=128)  # vLLM's attention on a CPU takes heads of 32 and more


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"), model, tiny.make_tokenizer())


@pytest.fixture
def engine(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def made(settings=GREEDY, adapter=None, never=(), longest=16):
        facts = find_model(ModelSpec(model=str(folder)), folder)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        told = engine_settings(facts, "float32", device.type, settings, longest, 4 if adapter else None, trained=False)
        return VllmSampler(told, adapter, (STOP,), never, device.type, tmp_path / "vllm.log")

    return made


def seeds(prompt_id):
    return seed_for(0, "round 1", "teacher", prompt_id)


def tokens(sampler, settings=GREEDY, questions=QUESTIONS):
    return {answer.prompt_id: (answer.response_ids, answer.finish_reason) for batch in sampler.sample(questions, settings, seeds) for answer in batch}


def by_transformers(model):
    return tokens(TransformersSampler(model, (STOP,), 0, VOCAB))


def test_greedy_tokens_are_those_of_transformers(engine, model):
    found = tokens(engine())
    assert found == by_transformers(model)
    assert {reason for _, reason in found.values()} == {"stop", "length"}, "the test needs both"


def test_the_adapter_is_the_one_that_peft_merges(engine, folder, tmp_path):
    base = tiny.make_model(1, layers=3, hidden=128)
    without = by_transformers(base)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    found = tokens(engine(adapter=tmp_path / "adapter"))
    assert found == by_transformers(adapted.merge_and_unload().eval())
    assert found != without


def test_what_was_sampled_over_an_interruption_is_what_would_have_been_without(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 5)
    header = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=30, adapter=None, template="t",
                            sampling={}, stop_ids=(STOP,), engine="vllm", engine_version=vllm_version(), seed=0)  # fmt: skip
    never = (9, *range(30, VOCAB))
    collect(tmp_path / "whole", header, QUESTIONS, lambda missing: engine(DRAWN, never=never).sample(missing, DRAWN, seeds))

    def cut(missing):
        answers = engine(DRAWN, never=never).sample(missing, DRAWN, seeds)
        yield next(answers)
        yield next(answers)
        answers.close()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "cut", header, QUESTIONS, cut)
    asked = []
    found = collect(tmp_path / "cut", header, QUESTIONS, lambda missing: asked.extend(missing) or engine(DRAWN, never=never).sample(missing, DRAWN, seeds))
    assert len(asked) == 14
    assert file_sha256(tmp_path / "cut" / "teacher.parquet") == file_sha256(tmp_path / "whole" / "teacher.parquet")
    assert not {i for row in found.rows() for i in row.response_ids} & set(never)


def test_two_engines_say_what_one_says(engine):
    one = tokens(engine(DRAWN, never=(9,)), DRAWN)
    two = engine(DRAWN, never=(9,))
    two.workers = 2
    assert tokens(two, DRAWN) == one


def test_more_prompts_than_one_batch_holds_keep_their_seeds(engine):
    """Prompts that are read in parts are drawn for twice, and on a CPU vLLM cannot take a seed back."""
    many = [Question(f"q{i:03d}", tuple(4 + (i * j) % 30 for j in range(1, 61))) for i in range(200)]  # a batch of 4,096 tokens ends in the middle of one
    short = DRAWN.model_copy(update={"max_tokens": 4})
    found = tokens(engine(short, longest=64), short, many)
    assert len(found) == 200
    assert {key: found[key] for key in ("q034", "q068")} == tokens(engine(short, longest=64), short, [many[34], many[68]])


def test_too_little_memory_is_one_error_with_the_field_to_change(engine, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")  # it would overrule the recipe
    greedy = GREEDY.model_copy(update={"vllm": VllmSpec(gpu_memory_utilization=0.0001)})
    with pytest.raises(SamplingError, match=r"after 0 of 24 responses: .*raise sampling\.vllm\.gpu_memory_utilization \(now 0\.0001"):
        tokens(engine(greedy), greedy)


def test_a_context_that_memory_cannot_hold_is_one_error_with_the_fields_to_change(engine, monkeypatch):
    """There is 1 GiB for keys and values, at 1.5 KiB a token."""
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # the tiny model's config says 256
    with pytest.raises(SamplingError, match=r"after 0 of 24 responses: ValueError: To serve at least one request.*raise sampling\.vllm\.gpu_memory_utilization .*, or lower prompts\.max_tokens or sampling\.max_tokens"):
        tokens(engine(longest=10**6))


def test_a_worker_that_is_killed_in_the_middle_keeps_its_answers_and_the_rerun_asks_for_the_others(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 5)
    header = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=34, adapter=None, template="t",
                            sampling={}, stop_ids=(STOP,), engine="vllm", engine_version=vllm_version(), seed=0)  # fmt: skip
    many = [Question(f"q{i:03d}", tuple(4 + (i * j) % 30 for j in range(1, 9))) for i in range(600)]  # seconds of work
    long = DRAWN.model_copy(update={"max_tokens": 200})
    whole = collect(tmp_path / "whole", header, many, lambda missing: engine(long).sample(missing, long, seeds))

    def killed(missing):
        answers = engine(long).sample(missing, long, seeds)
        yield next(answers)
        for worker in psutil.Process().children():
            if any("vllm_worker" in word for word in worker.cmdline()):
                worker.kill()
        yield from answers

    with pytest.raises(SamplingError, match=r"of 600 responses, which are kept: its process ended without a word \(exit code -9\).*it was killed"):
        collect(tmp_path / "cut", header, many, killed)
    asked = []
    found = collect(tmp_path / "cut", header, many, lambda missing: asked.extend(missing) or engine(long).sample(missing, long, seeds))
    assert 0 < len(asked) <= 595
    assert found.manifest["sha256"] == whole.manifest["sha256"]
