"""Tiny vision-language models of the real classes, each with a processor of its family: random weights, nothing downloaded."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

BASE = ["<pad>", "<bos>", "<eos>"]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.1}


def tokenizer(special: list[str], **named: str) -> Any:
    """A byte-level tokenizer; ids 0 to 2 are pad, bos and eos, then come `special` ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*BASE, *special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left",
                                    extra_special_tokens=named)  # fmt: skip
    found.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    return found


def template(image: str) -> str:
    return (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


@contextmanager
def without_video() -> Iterator[None]:
    """Some processors insist on a video processor, which needs torchvision; their images do without either."""
    from unittest import mock

    from transformers import ProcessorMixin

    check = ProcessorMixin.check_argument_for_proper_class
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", lambda self, name, argument: None if argument is None else check(self, name, argument)):
        yield


def image_processor(kind: str, **settings: Any) -> Any:
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
        return AutoImageProcessor.from_pretrained(folder, **settings)


def seeded(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def llava(seed: int = 0) -> tuple[Any, Any]:
    """LLaVA-1.5, as TinyLLaVA is."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = tokenizer(["<image>"], image_token="<image>")
    side = {"height": 32, "width": 32}
    images = image_processor("CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=side)
    processor = LlavaProcessor(images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template("<image>"))
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION, image_size=32, patch_size=8), text_config=LlamaConfig(**TEXT, vocab_size=len(words)),
                         image_token_index=3, image_seq_length=16)  # fmt: skip
    return seeded(lambda: LlavaForConditionalGeneration(config), seed), processor


def llava_next(seed: int = 0) -> tuple[Any, Any]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )

    words, grid = tokenizer(["<image>"], image_token="<image>"), [[32, 64], [64, 32], [64, 64]]
    images = image_processor("LlavaNextImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid)
    processor = LlavaNextProcessor(images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template("<image>"))
    config = LlavaNextConfig(vision_config=CLIPVisionConfig(**VISION, image_size=32, patch_size=8), text_config=LlamaConfig(**TEXT, vocab_size=len(words)),
                             image_token_index=3, image_grid_pinpoints=grid, image_seq_length=16)  # fmt: skip
    return seeded(lambda: LlavaNextForConditionalGeneration(config), seed), processor


def qwen2_vl(seed: int = 0) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    return _qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, seed,
                 {"depth": 2, "embed_dim": 32, "hidden_size": TEXT["hidden_size"], "num_heads": 2, "patch_size": 4, "mlp_ratio": 2})  # fmt: skip


def qwen2_5_vl(seed: int = 0) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    return _qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, seed,
                 {"depth": 2, "hidden_size": 32, "out_hidden_size": TEXT["hidden_size"], "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "window_size": 16,
                  "fullatt_block_indexes": [1]})  # fmt: skip


def _qwen(config_class: Any, model_class: Any, processor_class: Any, seed: int, vision: dict[str, Any]) -> tuple[Any, Any]:
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = tokenizer(names, image_token="<|image_pad|>", video_token="<|video_pad|>")
    images = image_processor("Qwen2VLImageProcessor", patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096})
    with without_video():
        processor = processor_class(images, words, _video_processor(), chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"))
    eighth = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 8
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [eighth, eighth, 2 * eighth]}
    config = config_class(vision_config=vision, text_config={**TEXT, "vocab_size": len(words), "rope_parameters": rope},
                          image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4)  # fmt: skip
    return seeded(lambda: model_class(config), seed), processor


def _video_processor() -> Any:
    """Where torchvision is there (vLLM asks for one), else None."""
    if not importlib.util.find_spec("torchvision"):
        return None
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor(patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096})


def idefics3(seed: int = 0) -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor

    return _idefics(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, "Idefics3ImageProcessor", seed)


def _idefics(config_class: Any, model_class: Any, processor_class: Any, images: str, seed: int) -> tuple[Any, Any]:
    from transformers import LlamaConfig

    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]
    words = tokenizer(names)
    pixels = image_processor(images, size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = processor_class(pixels, words, image_seq_len=4, chat_template=template("<image>"))
    text = LlamaConfig(**TEXT, vocab_size=len(words))
    config = config_class(vision_config={**VISION, "image_size": 32, "patch_size": 8}, text_config=text, image_token_id=3, scale_factor=2, pad_token_id=0)
    return seeded(lambda: model_class(config), seed), processor


def gemma3(seed: int = 0) -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor

    names = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    words = tokenizer(names, boi_token=names[0], eoi_token=names[1], image_token=names[2])
    images = image_processor("Gemma3ImageProcessor", size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, words, chat_template=template("<start_of_image>"), image_seq_length=4)
    text = {**TEXT, "vocab_size": len(words), "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
    config = Gemma3Config(vision_config={**VISION, "image_size": 32, "patch_size": 8}, text_config=text, mm_tokens_per_image=4,
                          boi_token_index=3, eoi_token_index=4, image_token_index=5)  # fmt: skip
    model = seeded(lambda: Gemma3ForConditionalGeneration(config), seed)
    with torch.no_grad():  # zeros where nothing was trained yet: every image would look alike
        weight = model.model.multi_modal_projector.mm_input_projection_weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return model, processor


FAMILIES = {"llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "idefics3": idefics3, "gemma3": gemma3}


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Noise, so that no two patches are alike."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


def save(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
