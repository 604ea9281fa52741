"""Puts the models and data sets of the shipped recipes on a test Hub, so that `hubdistill plan` runs on them offline.

    with HubServer() as hub:
        seed(hub)

Real: config.json, generation_config.json, licences, the columns that the cards of data sets with images declare, and the
size of the weights as the Hub lists it. Stand-ins: the tokenizer (256 bytes and six special tokens, one chat template,
the same for every model) and the rows of the data sets (the real column names, our own text and picture). The weights
are listed and cannot be downloaded: a plan must not need them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.hub_server import Entry, HubServer, git_blob_sha, lfs_pointer

HERE = Path(__file__).parent
LICENSES: dict[str, dict[str, dict[str, str]]] = json.loads((HERE / "licenses.json").read_text())
SEED_TOKEN = "hf_seed"
ROWS = 40
PICTURE = HERE.parents[1] / "recipes" / "data" / "smoke_vlm" / "red_circle.png"
LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
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
    """Number of weights that a config describes: the language model, and vision tower and projector where it has them."""
    language = language_of(spec)
    own = _language_parameters(language)
    if spec["model_type"] == "llava":
        return own + _clip_parameters(spec["vision_config"]) + _llava_projector(spec["vision_config"], language)
    if spec["model_type"] == "qwen2_5_vl":
        return own + _qwen_vision_parameters(spec["vision_config"])
    return own


def language_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config; what a nested one leaves out has the value of Llama (7B) in transformers."""
    return LLAMA_DEFAULTS | spec["text_config"] if "text_config" in spec else spec


def _language_parameters(spec: dict[str, Any]) -> int:
    """Decoder layers with gated MLP and RMS norms, embedding, untied head."""
    hidden, layers = spec["hidden_size"], spec["num_hidden_layers"]
    head = spec.get("head_dim", hidden // spec["num_attention_heads"])
    query, key_value = spec["num_attention_heads"] * head, spec.get("num_key_value_heads", spec["num_attention_heads"]) * head
    attention = hidden * (query + 2 * key_value) + query * hidden
    biases = query + 2 * key_value if spec["model_type"] in ("qwen2", "qwen2_5_vl") else 0
    norms = hidden * (4 if spec["model_type"] == "gemma2" else 2)
    norms += 2 * head if spec["model_type"] == "qwen3" else 0  # of each query and key
    tied = spec.get("tie_word_embeddings", True)
    per_layer = attention + biases + norms + 3 * hidden * spec["intermediate_size"]
    return layers * per_layer + hidden + spec["vocab_size"] * hidden * (1 if tied else 2)


def _clip_parameters(vision: dict[str, Any]) -> int:
    """Patches (without bias), class token, positions; blocks with two layer norms; a norm before and after them."""
    hidden, patch, inner = vision["hidden_size"], vision["patch_size"], vision["intermediate_size"]
    embedding = 3 * patch**2 * hidden + hidden + ((vision["image_size"] // patch) ** 2 + 1) * hidden
    block = 4 * (hidden**2 + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    return embedding + vision["num_hidden_layers"] * block + 4 * hidden


def _llava_projector(vision: dict[str, Any], language: dict[str, Any]) -> int:
    """Two linear layers with bias."""
    width = language["hidden_size"]
    return vision["hidden_size"] * width + width + width**2 + width


def _qwen_vision_parameters(vision: dict[str, Any]) -> int:
    """Patches of two frames (without bias); blocks with RMS norms and a gated MLP with biases; the merger."""
    hidden, inner, merged = vision["hidden_size"], vision["intermediate_size"], vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    patches = vision["in_chans"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * hidden
    block = 4 * (hidden**2 + hidden) + 3 * hidden * inner + 2 * inner + hidden + 2 * hidden
    merger = hidden + merged**2 + merged + merged * vision["out_hidden_size"] + vision["out_hidden_size"]
    return patches + vision["depth"] * block + merger


def weight_bytes(model: str) -> int:
    """Size of the weights of `model` in its own number format."""
    spec = config(model)
    return parameters(spec) * BYTES_PER_VALUE[spec["torch_dtype"]]


def seed(hub: HubServer) -> None:
    """Create every recorded model repo and every data set repo on `hub`."""
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=hub.url, token=SEED_TOKEN)
    with mock.patch.object(constants, "HF_HUB_DISABLE_XET", True):  # its client has no deadline, and once waited for ever on a busy machine
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


def _preference(index: int) -> dict[str, Any]:
    names = {"ds_name": "RLAIF-V", "origin_dataset": "stand-in", "origin_split": "{}", "idx": str(index), "image_path": f"{index}.png"}
    answers = {"chosen": "The circle is red.", "rejected": "The circle is green."}
    return {**names, "image": _image(index), "question": f"What do you see in picture {index}?", **answers}


def _question(index: int) -> dict[str, Any]:
    kinds = {"question_type": "what color", "answer_type": "other"}
    return {"question_id": str(index), "image": _image(index), "question": f"What color is circle {index}?", "answers": ["red"] * 10, **kinds}


def _text_question(index: int) -> dict[str, Any]:
    asked = {"question_id": index, "question": f"What is written on sign {index}?", "question_tokens": ["what"]}
    image = {"image_id": f"{index:016x}", "image": _image(index), "image_width": 32, "image_height": 32, "image_classes": ["Sign"]}
    where = {"flickr_original_url": "", "flickr_300k_url": "", "set_name": "val"}
    return {**asked, **image, **where, "answers": [str(index)] * 10, "ocr_tokens": [str(index)]}


def _image(index: int) -> dict[str, Any]:
    return {"bytes": PICTURE.read_bytes(), "path": f"{index}.png"}


# data set -> (split, one row)
DATASETS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "HuggingFaceH4/ultrachat_200k": ("train_sft", _chat),
    "meta-math/MetaMathQA": ("train", _math),
    "nickrosh/Evol-Instruct-Code-80k-v1": ("train", _code),
    "openbmb/RLAIF-V-Dataset": ("train", _preference),
    "lmms-lab/OK-VQA": ("val2014", _question),
    "lmms-lab/textvqa": ("validation", _text_question),
}


def _dataset_files(dataset: str) -> dict[str, bytes]:
    split, row = DATASETS[dataset]
    rows = [row(index) for index in range(ROWS)]
    pictures = "image" in rows[0]
    name = f"data/{split}-00000-of-00001.parquet" if pictures else f"{split}.jsonl"
    facts: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": [{"split": split, "path": name}]}]}
    if pictures:  # their cards declare the columns, and a plan checks a recipe against them
        facts["dataset_info"] = {"features": [_feature(column, value) for column, value in rows[0].items()]}
    card = _card(LICENSES["datasets"][dataset] | facts)
    return {"README.md": card, name: _parquet(rows) if pictures else "".join(json.dumps(one) + "\n" for one in rows).encode()}


def _feature(column: str, value: Any) -> dict[str, str]:
    if isinstance(value, list):
        return {"name": column, "sequence": "string"}
    return {"name": column, "dtype": "image" if column == "image" else "int32" if isinstance(value, int) else "string"}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())
