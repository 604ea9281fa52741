"""Puts the models and data sets of the shipped recipes on a test Hub, so that `hubdistill plan` runs on them offline.

    with HubServer() as hub:
        seed(hub)

Real: config.json, generation_config.json, licences, and the size of the weights as the Hub lists it. Stand-ins: the
tokenizer (256 bytes and six special tokens, one chat template, the same for every model) and the rows of the data
sets (the real column names, our own text). The weights are listed and cannot be downloaded: a plan must not need them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hub_server import Entry, HubServer, git_blob_sha, lfs_pointer

HERE = Path(__file__).parent
LICENSES: dict[str, dict[str, dict[str, str]]] = json.loads((HERE / "licenses.json").read_text())
SEED_TOKEN = "hf_seed"
ROWS = 40
BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|pad|>", "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>"]


def model_ids() -> tuple[str, ...]:
    """All recorded models."""
    return tuple(sorted(path.parent.relative_to(HERE).as_posix() for path in HERE.glob("*/*/config.json")))


def config(model: str) -> dict[str, Any]:
    """The recorded config.json of `model`."""
    found: dict[str, Any] = json.loads((HERE / model / "config.json").read_text())
    return found


def parameters(spec: dict[str, Any]) -> int:
    """Number of weights that a config describes: decoder layers with gated MLP and RMS norms, embedding, untied head."""
    hidden, layers = spec["hidden_size"], spec["num_hidden_layers"]
    head = spec.get("head_dim", hidden // spec["num_attention_heads"])
    query, key_value = spec["num_attention_heads"] * head, spec["num_key_value_heads"] * head
    attention = hidden * (query + 2 * key_value) + query * hidden
    biases = query + 2 * key_value if spec["model_type"] == "qwen2" else 0
    norms = hidden * (4 if spec["model_type"] == "gemma2" else 2)
    tied = spec.get("tie_word_embeddings", True)
    per_layer = attention + biases + norms + 3 * hidden * spec["intermediate_size"]
    return layers * per_layer + hidden + spec["vocab_size"] * hidden * (1 if tied else 2)


def weight_bytes(model: str) -> int:
    """Size of the weights of `model` in its own number format."""
    spec = config(model)
    return parameters(spec) * BYTES_PER_VALUE[spec["torch_dtype"]]


def seed(hub: HubServer) -> None:
    """Create every recorded model repo and every data set repo on `hub`."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token=SEED_TOKEN)
    for model in model_ids():
        _commit(api, model, "model", _model_files(model))
        _list_weights(hub, model)
    for dataset in DATASETS:
        _commit(api, dataset, "dataset", _dataset_files(dataset))


def _commit(api: Any, repo: str, kind: str, files: dict[str, bytes]) -> None:
    from huggingface_hub import CommitOperationAdd

    api.create_repo(repo, repo_type=kind)
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    api.create_commit(repo, operations, commit_message="Recorded", repo_type=kind)


def _model_files(model: str) -> dict[str, bytes]:
    files = {name: (HERE / model / name).read_bytes() for name in ("config.json", "generation_config.json")}
    return files | tokenizer_files() | {"README.md": _card(LICENSES["models"][model])}


def _card(facts: dict[str, Any]) -> bytes:
    import yaml

    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\nA stand-in for tests.\n".encode()


def tokenizer_files() -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json: byte level, ids 0-5 special, 6-261 the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIALS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|unk|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def _list_weights(hub: HubServer, model: str) -> None:
    """Add model.safetensors to the listing with its true size; nothing is stored (a real one has up to 18 GB)."""
    repo = hub.state.repos[("model", model)]
    tree = repo.commits[repo.refs["refs/heads/main"]].tree
    size = weight_bytes(model)
    sha = hashlib.sha256(f"{model} weights".encode()).hexdigest()
    tree["model.safetensors"] = Entry(size, git_blob_sha(lfs_pointer(sha, size)), sha256=sha)


def _chat(index: int) -> dict[str, Any]:
    prompt, response = f"Name a use of the number {index}.", f"One can count {index} apples with it."
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"prompt": prompt, "prompt_id": f"{index:064x}", "messages": messages}


def _math(index: int) -> dict[str, Any]:
    answer = f"{index} + {index} = {2 * index}. The answer is: {2 * index}"
    return {
        "type": "Rephrased",
        "query": f"What is {index} plus {index}?",
        "original_question": f"Add {index} to itself.",
        "response": answer,
    }


def _code(index: int) -> dict[str, Any]:
    return {
        "instruction": f"Write a Python function that adds {index}.",
        "output": f"def add(x):\n    return x + {index}",
    }


# data set -> (split, one row)
DATASETS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "HuggingFaceH4/ultrachat_200k": ("train_sft", _chat),
    "meta-math/MetaMathQA": ("train", _math),
    "nickrosh/Evol-Instruct-Code-80k-v1": ("train", _code),
}


def _dataset_files(dataset: str) -> dict[str, bytes]:
    split, row = DATASETS[dataset]
    lines: Iterator[str] = (json.dumps(row(index)) + "\n" for index in range(ROWS))
    where = [{"config_name": "default", "data_files": [{"split": split, "path": f"{split}.jsonl"}]}]
    card = _card(LICENSES["datasets"][dataset] | {"configs": where})
    return {"README.md": card, f"{split}.jsonl": "".join(lines).encode()}
