"""What a training step on images costs: seconds for each part, peak memory by the number of images, bytes on disk.

    python benchmarks/vlm_step.py [--images 1 2 4] [--repeats 3]

Two LLaVA models with random weights, eight layers each: a teacher as wide as SmolLM2-360M under a CLIP tower with 336 pixels (576 image
tokens), a student as wide as SmolLM2-135M under a SigLIP tower with 224 pixels (256 image tokens). One pair of responses of 64
tokens, photos of 640 x 480 from noise (the worst case for a JPEG). Each number of images has a process of its own.
Parts: reading (JPEG files -> both models' inputs), teacher (vision tower and decoder), student (the same, and backward,
without the loss), loss. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

VOCAB, RESPONSE = 49152, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.repeats)))
        return
    import torch

    print(f"{datetime.date.today()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, medians of {options.repeats}\n")
    print("| images | tokens teacher, student | reading | teacher | student | loss | reading's share | peak memory over the models | on disk a pair | as pixels |")
    print("| --- " * 10 + "|")
    for images in options.images:
        done = subprocess.run([sys.executable, __file__, "--one", str(images), "--repeats", str(options.repeats)], capture_output=True, text=True, check=True)
        print(row(images, json.loads(done.stdout.splitlines()[-1])))


def row(images: int, found: dict[str, Any]) -> str:
    parts = [found["reading"], found["teacher"], found["student"] + found["backward"], found["loss"]]
    cells = [str(images), f"{found['tokens'][0]}, {found['tokens'][1]}", *(f"{part:.2f} s" for part in parts), f"{parts[0] / sum(parts):.1%}",
             f"{found['peak']:.0f} MiB", f"{found['disk'] / 1024:.0f} KiB", f"{found['pixels'] / 1024:.0f} KiB"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def llava(tower: str, side: int, patch: int, vision: int, hidden: int, layers: int, seed: int) -> tuple[Any, Any]:
    """A LLaVA and its processor; the tokenizer is that of the toy models."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    from hubdistill.models import toy

    clip = tower == "clip"
    shape = {"hidden_size": vision, "intermediate_size": 4 * vision, "num_hidden_layers": 12, "num_attention_heads": vision // 64, "image_size": side, "patch_size": patch}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape) if clip else SiglipVisionConfig(**shape, vision_use_head=False),
        text_config=LlamaConfig(vocab_size=VOCAB, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                                num_key_value_heads=hidden // 192, max_position_embeddings=4096, tie_word_embeddings=True),
        image_token_index=3, image_seq_length=(side // patch) ** 2, vision_feature_layer=-2 if clip else -1, vision_feature_select_strategy="default" if clip else "full",
    )  # fmt: skip
    processor = toy.processor(toy.Toy(tower, side, hidden, layers, seed), patch)
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config).eval(), processor


def photo(folder: Path, number: int) -> str:
    from PIL import Image
    from torch import Generator, randint, uint8

    small = Image.fromarray(randint(0, 256, (60, 80, 3), generator=Generator().manual_seed(number), dtype=uint8).numpy())
    out = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    (folder / f"{number}.jpg").write_bytes(out.getvalue())
    return f"{number}.jpg"


def measure(images: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each part, and the peak of the process beyond what the models take."""
    import torch

    from hubdistill.losses.chunked import Responses
    from hubdistill.modalities.base import Reading, Row
    from hubdistill.modalities.vision import VISION, encode_prompt
    from hubdistill.models.load import head_of
    from hubdistill.models.lora import attach_adapter
    from hubdistill.pairs.images import ImageStore
    from hubdistill.specs import LoraSpec

    (teacher, reads), (student, own) = llava("clip", 336, 14, 768, 960, 8, 1), llava("siglip", 224, 14, 384, 576, 8, 2)
    adapted = attach_adapter(student, LoraSpec(rank=16, alpha=16), 0).train()
    with tempfile.TemporaryDirectory() as name:
        store = ImageStore(Path(name), 10**6)
        names = tuple(photo(Path(name), number) for number in range(images))
        messages = [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": "what is in these pictures?"}]}]
        ids = [tuple(encode_prompt(reader, messages, [store.open(one) for one in names])) for reader in (reads, own)]
        rows = [Row(ids[0], tuple(range(10, 10 + RESPONSE)), side, ids[1], names) for side in (False, True)]
        reading = Reading(modality=VISION, teacher=reads, student=own, pad_id=0, open_image=store.open)
        before, seconds = _resident(), {part: [] for part in ("reading", "teacher", "student", "loss", "backward")}
        for _ in range(repeats + 1):
            batch = _timed(seconds["reading"], reading.collate, rows)
            with torch.no_grad():
                teacher_ND = _timed(seconds["teacher"], reading.hidden, teacher, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)
            student_ND = _timed(seconds["student"], reading.hidden, adapted, batch.student, batch.student_rows_N, batch.student_columns_N)
            leaf = student_ND.detach().requires_grad_()
            responses = Responses(leaf, teacher_ND, batch.labels_N, batch.lengths_B, batch.from_student_B)
            _timed(seconds["loss"], loss_and_gradient, responses, head_of(student), head_of(teacher))
            _timed(seconds["backward"], student_ND.backward, leaf.grad)
        disk = sum((Path(name) / one).stat().st_size for one in names) + 4 * (len(ids[0]) + len(ids[1]) + 2 * RESPONSE)
    pixels = sum(4 * image["pixel_values"].numel() for side in (batch.teacher, batch.student) for image in side.images)
    return {part: median(values[1:]) for part, values in seconds.items()} | {"peak": _peak() - before, "tokens": [len(one) for one in ids], "disk": disk, "pixels": pixels}


def loss_and_gradient(responses: Any, student: Any, teacher: Any) -> None:
    from hubdistill.losses.contrastive import PRESETS, contrastive_loss

    contrastive_loss(responses, student, teacher, PRESETS["distillm2"], beta=0.5, alpha=0.1, pairs=1)[0].backward()


def _timed(into: list[float], work: Callable[..., Any], *arguments: Any) -> Any:
    started = time.perf_counter()
    result = work(*arguments)
    into.append(time.perf_counter() - started)
    return result


def _resident() -> float:
    """MiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
