"""Two small LLaVA models that know easy-VQA: a teacher (3.2M weights, CLIP tower, 64 pixels) and a student (0.7M, SigLIP, 48).

    python benchmarks/vlm_toy_pair.py --output DIR [--steps SEEING ANSWERING]

Each learns to see first (colour and shape from the tower's mean feature), then to answer: a word, an explanation, a
caption. Used by vlm_toy_study.py where it is given no models. With the steps below (the teacher's are 3,000 and 1,500)
both take more than 25 minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
BATCH = 64


@dataclass(frozen=True)
class Size:
    tower: str
    image: int
    vision: tuple[int, int]  # width, layers
    text: tuple[int, int]
    rate: float
    steps: tuple[int, int]  # seeing, answering


SIZES = {"teacher": Size("clip", 64, (128, 4), (192, 5), 1.5e-3, (3000, 1500)), "student": Size("siglip", 48, (80, 2), (112, 3), 3e-3, (1200, 1000))}


def train_pair(folder: Path, steps: tuple[int, int] | None = None) -> tuple[Path, Path]:
    """Train both, unless they are there; their folders. `steps` replace those of both."""
    words = None
    for role, size in SIZES.items():
        if not (folder / role / "config.json").is_file():
            words = words or _tokenizer()
            _train(size, words, folder / role, steps or size.steps)
    return folder / "teacher", folder / "student"


def _data() -> tuple[Path, list[tuple[str, str, int]], dict[int, tuple[str, str]]]:
    """Folder of the images; (question, answer, image) about colours and shapes; image -> its colour and shape."""
    import easy_vqa

    root = Path(easy_vqa.__file__).parent / "data" / "train"
    found = [row for row in json.loads((root / "questions.json").read_text()) if row[1] in COLOURS or row[1] in SHAPES]
    seen: dict[int, dict[str, str]] = {}
    for _, answer, image in found:
        seen.setdefault(image, {})["colour" if answer in COLOURS else "shape"] = answer
    facts = {image: (one["colour"], one["shape"]) for image, one in seen.items() if len(one) == 2}
    return root / "images", [(question, answer, image) for question, answer, image in found if image in facts], facts


def conversations() -> list[tuple[str, str, int]]:
    """(prompt, response, image): answers, explanations and captions."""
    _, rows, facts = _data()
    found = []
    for question, answer, image in rows:
        colour, shape = facts[image]
        seen = f"the image shows a {colour} {shape}"
        found += [(question, answer, image), (f"{question} explain.", f"{seen}, so the answer is {answer}.", image), ("describe the image.", f"{seen}.", image)]
    return found


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    inner.train_from_iterator([f"USER: {prompt} ASSISTANT: {response}" for prompt, response, _ in conversations()[::7]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   extra_special_tokens={"image_token": "<image>"}, padding_side="left")  # fmt: skip


def _model(size: Size, words: Any) -> tuple[Any, Any]:
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipVisionConfig,
    )

    from hubdistill.models.toy import TEMPLATE, Toy, image_processor

    clip, (width, layers), (hidden, depth) = size.tower == "clip", size.vision, size.text
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 4, "image_size": size.image, "patch_size": 16}
    vision = CLIPVisionConfig(**shape) if clip else SiglipVisionConfig(**shape, vision_use_head=False)
    text = LlamaConfig(vocab_size=len(words), hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=depth, num_attention_heads=4,
                       max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True)  # fmt: skip
    choice = "default" if clip else "full"
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=(size.image // 16) ** 2,
                                                      vision_feature_layer=-2 if clip else -1, vision_feature_select_strategy=choice))  # fmt: skip
    processor = LlavaProcessor(image_processor=image_processor(Toy(size.tower, size.image, hidden, depth, 0)), tokenizer=words, patch_size=16,
                               num_additional_image_tokens=int(clip), vision_feature_select_strategy=choice, chat_template=TEMPLATE)  # fmt: skip
    return model, processor


def _train(size: Size, words: Any, folder: Path, steps: tuple[int, int]) -> None:
    import torch

    model, processor = _model(size, words)
    pixels, images = _pixels(processor)
    _learn_to_see(model, pixels, images, steps[0])
    rows, tokens = conversations(), (size.image // 16) ** 2
    rendered = [(_ids(words, prompt, tokens), words(f" {response}", add_special_tokens=False)["input_ids"] + [2], image) for prompt, response, image in rows]
    optimiser, schedule = _optimiser(model.parameters(), size.rate, steps[1])
    draw = random.Random(0)
    for step in range(steps[1]):
        batch = sorted(draw.sample(rendered, BATCH), key=lambda row: len(row[0]) + len(row[1]))
        longest = len(batch[-1][0]) + len(batch[-1][1])
        ids = torch.tensor([[*prompt, *answer, *[0] * (longest - len(prompt) - len(answer))] for prompt, answer, _ in batch])
        labels = torch.tensor([[*[-100] * len(prompt), *answer, *[-100] * (longest - len(prompt) - len(answer))] for prompt, answer, _ in batch])
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels[[images[image] for *_, image in batch]], labels=labels).loss
        _step(loss, model, optimiser, schedule)
        if step % 100 == 99:
            print(f"{folder.name}: answering, step {step + 1}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _ids(words: Any, prompt: str, tokens: int) -> list[int]:
    return words(f"<s>USER: {'<image>' * tokens}\n{prompt} ASSISTANT:", add_special_tokens=False)["input_ids"]


def _pixels(processor: Any) -> tuple[Any, dict[int, int]]:
    """All images as one tensor, and where each one is in it."""
    from PIL import Image

    folder, _, facts = _data()
    names = sorted(facts)
    found = processor.image_processor([Image.open(folder / f"{name}.png").convert("RGB") for name in names], return_tensors="pt")
    return found["pixel_values"], {name: i for i, name in enumerate(names)}


def _learn_to_see(model: Any, pixels: Any, images: dict[int, int], steps: int) -> None:
    """Colour and shape from the mean of the image features that the language model will get."""
    import torch

    facts = _data()[2]
    labels = torch.tensor([[COLOURS.index(facts[name][0]), SHAPES.index(facts[name][1])] for name in images])
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(COLOURS) + len(SHAPES))
    weights = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters(), *head.parameters()]
    optimiser, schedule = _optimiser(weights, 1e-3, steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        features = torch.stack(model.get_image_features(pixel_values=pixels[rows], return_dict=True).pooler_output).mean(1)
        scores = head(features)
        loss = sum(torch.nn.functional.cross_entropy(part, labels[rows, i]) for i, part in enumerate(scores.split([len(COLOURS), len(SHAPES)], 1)))
        _step(loss, model, optimiser, schedule)
        if step % 200 == 199:
            print(f"seeing, step {step + 1}, loss {loss.item():.3f}", flush=True)


def _optimiser(weights: Any, rate: float, steps: int) -> tuple[Any, Any]:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimiser = torch.optim.AdamW(list(weights), lr=rate, weight_decay=0.01)
    return optimiser, get_cosine_schedule_with_warmup(optimiser, steps // 20, steps)


def _step(loss: Any, model: Any, optimiser: Any, schedule: Any) -> None:
    import torch

    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    schedule.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, help="for both models, for a quick try")
    options = parser.parse_args()
    print(*train_pair(options.output, options.steps and tuple(options.steps)))
