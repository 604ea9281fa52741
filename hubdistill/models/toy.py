"""`toy:NAME` models: tiny, with random weights, made on this machine; for smoke recipes, which prove that everything runs.

They have learned nothing, and what is distilled from them says nothing about the method.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.files import publish_folder

VERSION = 1  # of what is built; another number is another folder in the cache
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Toy:
    """A Llama, or a LLaVA where it has a vision tower. A CLIP tower has a class token, which LLaVA leaves out; a SigLIP tower has none."""

    tower: str | None  # "clip" or "siglip"
    image: int  # pixels of a side; patches have 8
    hidden: int
    layers: int
    seed: int


TOYS = {"llama": Toy(None, 0, 64, 3, 3), "llava": Toy("clip", 32, 32, 3, 1), "tinyllava": Toy("siglip", 24, 24, 2, 2)}


def toy_named(name: str) -> Toy:
    """The toy of that name. Raises InputError listing the names."""
    if name not in TOYS:
        raise InputError(f"toy:{name}: there is no such toy model; choose from {', '.join(f'toy:{known}' for known in TOYS)}")
    return TOYS[name]


def digest(name: str) -> str:
    """What stands for a commit: of the sizes and of this file's version."""
    return hashlib.sha256(f"{VERSION}|{name}|{toy_named(name)}".encode()).hexdigest()[:40]


def built(name: str, folder: Path) -> Path:
    """The toy as a model folder (config, safetensors, processor), made at `folder` unless it is there."""
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".toy-"))
        try:
            toy = toy_named(name)
            _model(toy).save_pretrained(work)
            (processor(toy) if toy.tower else _tokenizer()).save_pretrained(work)
            publish_folder(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _model(toy: Toy) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = LlamaConfig(vocab_size=len(SPECIAL) + 256, hidden_size=toy.hidden, intermediate_size=2 * toy.hidden, num_hidden_layers=toy.layers,
                       num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                       initializer_range=0.2)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(toy.seed)
        return _llava(toy, text) if toy.tower else LlamaForCausalLM(text)


def _llava(toy: Toy, text: Any) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    tower = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[str(toy.tower)]
    more = {} if toy.tower == "clip" else {"vision_use_head": False}
    vision = tower(hidden_size=toy.hidden, intermediate_size=2 * toy.hidden, num_hidden_layers=2, num_attention_heads=2, image_size=toy.image, patch_size=8, **more)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=(toy.image // 8) ** 2,
                         vision_feature_layer=-2 if toy.tower == "clip" else -1,
                         vision_feature_select_strategy="default" if toy.tower == "clip" else "full")  # fmt: skip
    return LlavaForConditionalGeneration(config)


def processor(toy: Toy, patch: int = 8) -> Any:
    """The toy's LLaVA processor."""
    from transformers import LlavaProcessor

    clip = toy.tower == "clip"
    return LlavaProcessor(image_processor=image_processor(toy), tokenizer=_tokenizer(), patch_size=patch, num_additional_image_tokens=int(clip),
                          vision_feature_select_strategy="default" if clip else "full", chat_template=TEMPLATE)  # fmt: skip


def image_processor(toy: Toy) -> Any:
    """The image processor of the toy's tower, of the class that this installation has: with torchvision, or without."""
    from transformers import AutoImageProcessor

    side = {"height": toy.image, "width": toy.image}
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[str(toy.tower)]
    crop = {"crop_size": side, "size": {"shortest_edge": toy.image}} if toy.tower == "clip" else {"size": side}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(f'{{"image_processor_type": "{kind}"}}', encoding="utf-8")
        return AutoImageProcessor.from_pretrained(folder, **crop)


def _tokenizer() -> Any:
    """One token a byte, so that it reads any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   extra_special_tokens={"image_token": "<image>"}, padding_side="left", chat_template=TEMPLATE)  # fmt: skip
