"""The vLLM engine against a process that speaks as vllm_worker.py does; vLLM itself is in test_vllm_engine.py."""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import pytest

from hubdistill.errors import SamplingError
from hubdistill.pairs import vllm_sampling
from hubdistill.pairs.store import Question, ResponseHeader, collect, seed_for
from hubdistill.pairs.vllm_sampling import VllmSampler
from hubdistill.pairs.vllm_settings import vllm_rank
from hubdistill.specs import SamplingSpec

FAKE = Path(__file__).with_name("fake_vllm.py")
QUESTIONS = [Question(f"{i:02d}", (1, 2, 4 + i)) for i in range(20)]
SETTINGS = SamplingSpec(engine="vllm", max_tokens=6)
HEADER = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=34, adapter=None, template="t",
                        sampling={}, stop_ids=(3,), engine="vllm", engine_version="0.32.0", seed=0)  # fmt: skip


@pytest.fixture
def engine(tmp_path):
    """How it behaves -> the engine."""

    def made(how="well", **changes):
        fields = {"settings": {"model": "m", "gpu_memory_utilization": 0.9}, "adapter": None, "stop_ids": (3,), "never": (34, 40), "device": "cpu",
                  "log": tmp_path / "teacher.vllm.log", "command": (sys.executable, str(FAKE), how, str(tmp_path / "started")), "version": "0.32.0"}  # fmt: skip
        return VllmSampler(**(fields | changes))

    return made


def seeds(prompt_id):
    return seed_for(0, "round 1", "teacher", prompt_id)


def sampled(folder, engine, header=HEADER):
    return collect(folder, header, QUESTIONS, lambda missing: engine.sample(missing, SETTINGS, seeds))


def running(tmp_path):
    """Processes that the fake has been, and that are still there."""
    alive = []
    for pid in (json.loads(line)["pid"] for line in (tmp_path / "started").read_text().splitlines()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            alive.append(pid)
    return alive


def test_answers_come_in_batches_with_reasons_and_seeds(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 8)
    told, started = [], []
    batches = list(engine(progress=lambda done, tokens: told.append((done, tokens)), ready=started.append).sample(QUESTIONS, SETTINGS, seeds))
    assert len(started) == 1
    assert 0 < started[0] < 60
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert [done for done, _ in told] == [8, 8, 4]
    answers = [answer for batch in batches for answer in batch]
    assert {answer.prompt_id: (answer.prompt_ids, answer.seed) for answer in answers} == {q.prompt_id: (q.prompt_ids, seeds(q.prompt_id)) for q in QUESTIONS}
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert all((answer.response_ids[-1] == 3) == (answer.finish_reason == "stop") for answer in answers)
    assert sum(tokens for _, tokens in told) == sum(len(answer.response_ids) for answer in answers)
    assert running(tmp_path) == []


@pytest.mark.parametrize("how", ["dies-after-11", "killed-after-11", "kcut-after-11", "dies-after-0"])
def test_a_death_in_the_middle_keeps_what_was_sampled_and_the_rerun_ends_as_if_there_had_been_none(tmp_path, engine, how, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 4)
    sampled(tmp_path / "whole", engine())
    with pytest.raises(SamplingError, match=rf"after (0 of 20 responses|{how.split('-')[-1]} of 20 responses, which are kept): its process ended without a word \(exit code (7|-9)\)"):
        sampled(tmp_path / "cut", engine(how))
    assert not (tmp_path / "cut" / "teacher.parquet").exists()
    asked = []
    again = engine()
    collect(tmp_path / "cut", HEADER, QUESTIONS, lambda missing: asked.extend(missing) or again.sample(missing, SETTINGS, seeds))
    assert len(asked) == 20 - int(how.split("-")[-1])
    assert (tmp_path / "cut" / "teacher.parquet").read_bytes() == (tmp_path / "whole" / "teacher.parquet").read_bytes()
    assert (tmp_path / "cut" / "teacher.json").read_bytes() == (tmp_path / "whole" / "teacher.json").read_bytes()


def jobs(tmp_path):
    return sorted((json.loads(line) for line in (tmp_path / "started").read_text().splitlines()), key=lambda job: job["gpus"] or "")


def test_engines_that_share_the_questions_give_the_set_of_one(tmp_path, engine, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    one = sampled(tmp_path / "one", engine())
    (tmp_path / "started").unlink()
    started = []
    several = sampled(tmp_path / "several", engine(workers=3, ready=started.append))
    assert len(started) == 1
    assert [job["questions"] for job in jobs(tmp_path)] in ([7, 7, 6], [7, 6, 7], [6, 7, 7])
    assert {job["threads"] for job in jobs(tmp_path)} == {"2"}
    assert several.manifest["sha256"] == one.manifest["sha256"]
    assert sorted(file.name for file in tmp_path.glob("*.log")) == ["teacher.vllm.0.log", "teacher.vllm.1.log", "teacher.vllm.2.log", "teacher.vllm.log"]
    assert running(tmp_path) == []


def test_each_engine_has_gpus_of_its_own(tmp_path, engine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,GPU-8f,7")
    sampled(tmp_path, engine(workers=2, device="cuda", settings={"model": "m", "tensor_parallel_size": 2}))
    assert [job["gpus"] for job in jobs(tmp_path)] == ["3,1", "GPU-8f,7"]


def test_there_are_no_more_engines_than_questions(tmp_path, engine):
    found = list(engine(workers=4).sample(QUESTIONS[:2], SETTINGS, seeds))
    assert sum(map(len, found)) == len(jobs(tmp_path)) == 2


def test_one_engine_that_dies_ends_the_others_and_what_all_said_is_kept(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 2)
    whole = sampled(tmp_path / "whole", engine())
    (tmp_path / "started").unlink()
    with pytest.raises(SamplingError, match=r"which are kept: its process ended without a word \(exit code 7\)\. Its output is in .*teacher\.vllm\.[012]\.log"):
        sampled(tmp_path / "cut", engine("dies-after-3", workers=3))
    assert running(tmp_path) == []
    asked = []
    again = engine(workers=3)
    found = collect(tmp_path / "cut", HEADER, QUESTIONS, lambda missing: asked.extend(missing) or again.sample(missing, SETTINGS, seeds))
    assert 20 - 9 <= len(asked) <= 20 - 3
    assert found.manifest["sha256"] == whole.manifest["sha256"]


def test_another_engine_is_another_set(tmp_path, engine):
    first = sampled(tmp_path, engine())
    other = sampled(tmp_path, engine(), dataclasses.replace(HEADER, engine="transformers"))
    assert first.manifest["digest"] != other.manifest["digest"]


@pytest.mark.parametrize(("said", "fix"), [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "lower sampling.vllm.gpu_memory_utilization (now 0.9), or raise sampling.vllm.tensor_parallel_size"),
    ("ValueError: Free memory on device cuda:0 (10/80 GiB) on startup is less than desired GPU memory utilization (0.9, 72 GiB)", "lower sampling.vllm.gpu_memory_utilization (now 0.9), or end"),
    ("ValueError: To serve at least one request, 4 GiB KV cache is needed, which is larger than the available KV cache memory", "raise sampling.vllm.gpu_memory_utilization (now 0.9), or lower prompts.max_tokens"),
    ("ValueError: Available memory on node 0 on startup is less than desired CPU memory utilization (0.92, 15 GiB)", "(now 0.9; on a CPU it is a share of main memory)"),
    ("ValueError: Available memory on node 0 (9.43/17.46 GiB) on kv cache allocation is less than requested memory for kv (-0.61/0.0 GiB)", "raise sampling.vllm.gpu_memory_utilization (now 0.9;"),
    ("ValueError: Available memory on node 0 (19.25/21.59 GiB) on kv cache allocation is less than requested memory for kv (200.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE", "lower VLLM_CPU_KVCACHE_SPACE in the environment"),
    ("ValueError: To serve at least one request with the model's max seq len (8128), (0.35 GiB KV cache is needed, which is larger than the available KV cache memory (0.01 GiB)", "raise sampling.vllm.gpu_memory_utilization (now 0.9), or lower prompts.max_tokens or sampling.max_tokens"),
    ("RuntimeError: Unsupported CPU attention configuration", "run the same command again, or write `sampling.engine: transformers`"),
])  # fmt: skip
def test_what_failed_names_the_field_to_change(tmp_path, engine, said, fix):
    with pytest.raises(SamplingError) as caught:
        sampled(tmp_path, engine(f"raises-{said}"))
    text = str(caught.value)
    assert fix in text
    assert said in text
    assert str(tmp_path / "teacher.vllm.log") in text
    assert "a stack of many lines" in (tmp_path / "teacher.vllm.log").read_text()
    assert caught.value.exit_code == 1


def test_a_worker_that_is_killed_hints_at_memory(tmp_path, engine):
    with pytest.raises(SamplingError, match=r"the system does where main memory runs out: lower sampling\.vllm\.gpu_memory_utilization .*, and run the same command again$"):
        sampled(tmp_path, engine("killed-after-3"))


def test_an_id_that_may_not_be_sampled_is_refused(tmp_path, engine):
    with pytest.raises(SamplingError, match="is none that was asked for"):
        sampled(tmp_path, engine("wrong-id"))
    assert running(tmp_path) == []


def test_who_stops_listening_leaves_no_process(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 2)
    answers = engine().sample(QUESTIONS, SETTINGS, seeds)
    next(answers)
    answers.close()
    deadline = time.monotonic() + 5
    while running(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(tmp_path) == []


def test_a_program_that_is_not_there_or_not_ours_is_the_same_error(engine):
    with pytest.raises(SamplingError, match="its process ended without a word"):
        list(engine(command=(sys.executable, "-c", "raise SystemExit(1)")).sample(QUESTIONS, SETTINGS, seeds))


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (4, 8), (16, 16), (17, 32), (500, 512), (513, None)])
def test_ranks_are_rounded_up_to_what_vllm_takes(rank, allowed):
    assert vllm_rank(rank) == allowed
