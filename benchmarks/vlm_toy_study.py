"""Does distillation help a small vision-language model? Three seeds, three losses, on real images of easy-VQA.

    pip install --no-deps easy-vqa
    python benchmarks/vlm_toy_study.py --teacher DIR --student DIR [--seeds 0 1 2] [--losses distillm2 gkd kl] [--output runs/vlm_toy_study]

`--teacher` and `--student` are LLaVA models that know easy-VQA (a strong and a weak one); without them a pair is trained
first, which takes more than 25 minutes on two cores that do nothing else. Every run sees the same number of pairs, of
the same prompts. Prints a Markdown table: right answers to colour and shape questions (yes/no questions can be guessed blind), and the same blind.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

COLOURS = {"red", "green", "blue", "black", "gray", "teal", "brown", "yellow"}
SHAPES = {"circle", "rectangle", "triangle"}
ROWS = (
    ("colour and shape", "exact_match", "test"),
    ("the same, no image", "exact_match", "test, no image"),
    ("colour", "exact_match", "test / colour"),
    ("shape", "exact_match", "test / shape"),
    ("kl to the teacher on its responses, nats/token", "kl", "teacher responses"),
    ("kl to the teacher on own responses, nats/token", "kl", "own responses"),
)


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    write_data(options.output)
    if not options.teacher or not options.student:
        from vlm_toy_pair import train_pair

        options.teacher, options.student = train_pair(options.output / "pair")
    runs = {(loss, seed): distil(options, loss, seed) for seed in options.seeds for loss in options.losses}
    print("\n".join(table(runs, options.losses)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["distillm2", "gkd", "kl"])
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/vlm_toy_study"))
    return parser.parse_args()


def write_data(folder: Path) -> None:
    """train.jsonl: colour and shape questions, asked for a word and for an explanation, and captions; test.jsonl: a word."""
    import easy_vqa

    root = Path(easy_vqa.__file__).parent / "data"
    for split in ("train", "test"):
        rows: list[dict[str, Any]] = []
        for question, answer, image in json.loads((root / split / "questions.json").read_text()):
            kind = "colour" if answer in COLOURS else "shape" if answer in SHAPES else None
            row = {"question": question, "answer": answer, "type": kind, "image": str(root / split / "images" / f"{image}.png")}
            if kind and split == "test":
                rows.append(row)
            elif kind:
                rows += [row, row | {"question": f"{question} explain."}, row | {"question": "describe the image."}]
        random.Random(0).shuffle(rows)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def distil(options: argparse.Namespace, loss: str, seed: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    """One run through the command line; its measurements by (metric, what on, subject)."""
    recipe = {
        "target": {"kind": "vlm"},
        "teacher": {"model": str(options.teacher.resolve())},
        "student": {"model": str(options.student.resolve())},
        "prompts": {"dataset": "train.jsonl", "column": "question", "image_column": "image", "response_column": "answer",
                    "count": options.pairs, "heldout": 128, "max_tokens": 64},
        "sampling": {"max_tokens": 28, "batch_size": 64},
        "warmup": {"kind": "none"},
        "loss": {"preset": loss},
        "lora": {"rank": 16, "alpha": 32, "vision_tower": True, "projector": True},
        "train": {"rounds": 2, "pairs_per_step": 32, "micro_batch": 32, "learning_rate": 2e-3, "seed": seed, "device": "cpu"},
        "evaluate": [{"kind": "divergence"}, {"kind": "vqa", "questions": {
            "dataset": "test.jsonl", "column": "question", "image_column": "image", "response_column": "answer", "type_column": "type",
            "count": 1000, "max_tokens": 64}}],
    }  # fmt: skip
    path = options.output / f"{loss}_{seed}.yaml"
    path.write_text("".join(f"{name}: {json.dumps(block)}\n" for name, block in recipe.items()))
    run = options.output / f"{loss}_{seed}"
    subprocess.run([sys.executable, "-c", "from hubdistill.cli import main; main()", "run", str(path), "-o", str(run), "--quiet"], check=True, stdout=sys.stderr)
    rows = json.loads((run / "measurements.json").read_text())
    return {(row["metric"], row["on"], row["subject"]): row for row in rows}


def table(runs: dict[tuple[str, int], dict[tuple[str, str, str], dict[str, Any]]], losses: list[str]) -> list[str]:
    """Before, after (mean over seeds, every seed in brackets, how often better or worse with an interval that excludes zero), teacher."""
    lines = [f"| measured | student before | {' | '.join(losses)} | teacher |", "| --- " * (len(losses) + 3) + "|"]
    for name, metric, on in ROWS:
        cells = [name, _seeds(runs, losses[0], (metric, on, "student"))]
        cells += [_seeds(runs, loss, (metric, on, "distilled")) + _verdicts(runs, loss, (metric, on, "distilled")) for loss in losses]
        lines.append(f"| {' | '.join([*cells, _seeds(runs, losses[0], (metric, on, 'teacher'))])} |")
    return lines


def _seeds(runs: Any, loss: str, key: tuple[str, str, str]) -> str:
    values = [found[key]["value"] for (name, _), found in runs.items() if name == loss and key in found]
    return f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})" if values else "–"


def _verdicts(runs: Any, loss: str, key: tuple[str, str, str]) -> str:
    rows = [found[key] for (name, _), found in runs.items() if name == loss]
    changes = [(row["better"], difference) for row in rows for difference in row["differences"] if difference["against"] == "student"]
    clear = [(difference["value"] > 0) == (better == "higher") for better, difference in changes if difference["low"] > 0 or difference["high"] < 0]
    return f"; clearly better {sum(clear)}, worse {len(clear) - sum(clear)} of {len(changes)}"


if __name__ == "__main__":
    main()
