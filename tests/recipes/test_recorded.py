"""The recorded configs describe the published models, and the test Hub serves them the way the real one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.recorded.seed import DATASETS, LICENSES, config, language_of, model_ids, parameters, seed

# Numbers of weights as the Hub shows them for the safetensors files.
PUBLISHED = {
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen2-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2-Math-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Coder-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "h2oai/h2o-danube2-1.8b-base": 1_831_201_280,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
    "deepseek-ai/deepseek-coder-1.3b-base": 1_346_471_936,
    "deepseek-ai/deepseek-coder-6.7b-instruct": 6_740_512_768,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "bczhou/tiny-llava-v1-hf": 1_410_113_536,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
}

READ_BACK = """
import json, sys
from datasets import load_dataset
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoTokenizer
models, datasets = json.loads(sys.argv[1])
chat = [{"role": "user", "content": "hello"}]
out = {}
for name in models:
    tokenizer = AutoTokenizer.from_pretrained(name)
    files = {f.rfilename: f.size for f in HfApi().model_info(name, files_metadata=True).siblings}
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    out[name] = [AutoConfig.from_pretrained(name).get_text_config().vocab_size, tokenizer.decode(ids), files["model.safetensors"]]
for name, split in datasets:
    out[name] = load_dataset(name, split=split).column_names
print(json.dumps(out))
"""


def test_all_are_recorded() -> None:
    assert set(model_ids()) == set(PUBLISHED) == set(LICENSES["models"])
    assert set(DATASETS) == set(LICENSES["datasets"])


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_the_config_has_the_published_number_of_weights(model: str) -> None:
    assert parameters(config(model)) == PUBLISHED[model]


def test_a_client_reads_the_seeded_hub(tmp_path: Path) -> None:
    models = ["google/gemma-2-9b-it", "deepseek-ai/deepseek-coder-1.3b-base", "Qwen/Qwen2-1.5B"]
    models += ["llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-3B-Instruct"]
    datasets = [[name, split] for name, (split, _) in DATASETS.items()]
    with HubServer() as hub:
        seed(hub)
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-c", READ_BACK, json.dumps([models, datasets])]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    for name in models:
        bytes_each = 4 if config(name)["torch_dtype"] == "float32" else 2
        assert out[name] == [
            language_of(config(name))["vocab_size"],
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
            PUBLISHED[name] * bytes_each,
        ]
    assert "messages" in out["HuggingFaceH4/ultrachat_200k"]
    assert {"query", "response"} <= set(out["meta-math/MetaMathQA"])
    assert out["nickrosh/Evol-Instruct-Code-80k-v1"] == ["instruction", "output"]
    assert {"image", "question"} <= set(out["openbmb/RLAIF-V-Dataset"])
    assert {"image", "question", "answers"} <= set(out["lmms-lab/OK-VQA"]) & set(out["lmms-lab/textvqa"])
