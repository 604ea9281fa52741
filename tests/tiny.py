"""A tiny language model and tokenizer, made here: real classes, random weights, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "hill", "red", "blue", "fast", "slow", "and", "then", "it", "was", "very", ".", "?",
         "what", "who", "where", "tell", "me", "about"]  # fmt: skip
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def make_tokenizer(extra: tuple[str, ...] = ()):
    """A word-level tokenizer with a chat template; `extra` words get the next ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *extra])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
                                        additional_special_tokens=["<|im_start|>"])  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(seed: int, *, layers: int = 2, hidden: int = 32, vocab: int = len(SPECIAL) + len(WORDS), **config):
    """A random Llama with large enough weights that its distributions differ from token to token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, eos_token_id=3,
                               pad_token_id=0, bos_token_id=None, initializer_range=0.3, tie_word_embeddings=False, **config)  # fmt: skip
        return LlamaForCausalLM(settings).eval()


def save(folder: Path, model, tokenizer) -> Path:
    """Save both as a user's local model."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_recipe(folder: Path, **changes) -> Path:
    """A recipe over tiny local models in `folder`, with 12 prompts; `changes` replace whole blocks."""
    if not (folder / "teacher").exists():
        save(folder / "teacher", make_model(1, layers=3), make_tokenizer())
        save(folder / "student", make_model(2), make_tokenizer())
        rows = [{"prompt": f"tell me about the {a} {b} {c}", "answer": f"it was {a} and {c}"}
                for a in ("cat", "dog", "hill") for b in ("sat", "ran") for c in ("fast", "slow")]  # fmt: skip
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = {
        "target": {"kind": "text"},
        "teacher": {"model": "./teacher"},
        "student": {"model": "./student"},
        "prompts": {"dataset": "prompts.jsonl", "response_column": "answer", "heldout": 4, "max_tokens": 64},
        "sampling": {"max_tokens": 8, "batch_size": 4},
        "warmup": {"kind": "sft"},
        "loss": {"preset": "distillm2"},
        "lora": {"rank": 4, "alpha": 8},
        "train": {"rounds": 2, "pairs_per_step": 4, "micro_batch": 2, "learning_rate": 0.01, "device": "cpu"},
        "evaluate": [{"kind": "divergence"}, {"kind": "overlap"}],
    } | changes
    path = folder / "tiny.yaml"
    path.write_text("".join(f"{name}: {json.dumps(block)}\n" for name, block in blocks.items() if block is not None))
    return path
