"""The facts behind model_cards/examples/text.md. Regenerate it: python -m tests.hub.example_card"""

from __future__ import annotations

from pathlib import Path

from hubdistill.evaluation.statistics import Difference, Measurement
from hubdistill.hub.card import BaseModel, CardFacts, Data, License, Teacher, render_card

GOLDEN = Path(__file__).parents[2] / "model_cards" / "examples" / "text.md"
DECODING = "temperature 0.8, top-p 0.95"


def _kl(subject: str, value: float, low: float, high: float, differences: tuple[Difference, ...] = ()) -> Measurement:
    return Measurement(
        metric="kl",
        subject=subject,
        on="teacher responses",
        value=value,
        low=low,
        high=high,
        n=200,
        unit="nats/token",
        better="lower",
        decoding=DECODING,
        differences=differences,
    )


def _part(shortest: int, longest: int, n: int, change: float) -> dict[str, object]:
    return {"shortest": shortest, "longest": longest, "n": n, "subjects": {"student": [0.81, 0.77, 0.85], "warm-up": [0.64, 0.6, 0.68], "distilled": [0.64 + change, 0.6 + change, 0.68 + change]},
            "difference": {"against": "warm-up", "value": change, "low": change - 0.02, "high": change + 0.02}}  # fmt: skip


FACTS = CardFacts(
    name="tiny-distilled-lora",
    repo="org/tiny-distilled-lora",
    base=BaseModel(id="org/tiny-base", commit="1" * 40, license=License(id="apache-2.0")),
    teacher=Teacher(name="org/tiny-teacher", commit="2" * 40, license=License(id="apache-2.0")),
    data=Data(name="org/prompts", hub_id="org/prompts", commit="3" * 40, languages=("en",), license=License(id="mit")),
    rank=32,
    lora_alpha=32.0,
    target_modules=("down_proj", "q_proj"),
    command="hubdistill run org/tiny-distilled-lora",
    revision="v0.1",
    loss={"preset": "distillm2", "alpha (skew)": "0.1, curriculum in [0.01, 0.1]", "beta": "0.5 to 1.0, linear"},
    training={"rounds": "3", "pairs per step": "128", "learning rate": "5e-05"},
    gate="not clearly worse than the warm-up in kl on teacher responses",
    by_length=({"metric": "kl", "on": "teacher responses", "unit": "nats/token", "better": "lower", "buckets": [_part(9, 30, 70, -0.25), _part(31, 60, 64, -0.21), _part(61, 412, 66, -0.16)]},),
    measurements=(
        _kl("student", 0.81, 0.78, 0.84),
        _kl("warm-up", 0.64, 0.61, 0.67),
        _kl(
            "distilled",
            0.4321,
            0.41,
            0.45,
            (
                Difference(against="student", value=-0.378, low=-0.4, high=-0.35),
                Difference(against="warm-up", value=-0.208, low=-0.22, high=-0.19),
            ),
        ),
        Measurement(
            metric="rouge_l",
            subject="distilled",
            on="own responses",
            value=0.312,
            low=0.29,
            high=0.33,
            n=200,
            unit="F1",
            better="higher",
            decoding=DECODING,
            differences=(Difference(against="warm-up", value=0.004, low=-0.01, high=0.02),),
        ),
    ),
    notes=("Teacher responses were sampled once and kept for all rounds.",),
    limitations=("Example numbers: this card shows the layout and describes no real model.",),
    hardware="1x A100-80GB",
    seconds={"sample": 4200.0, "train": 7300.0, "evaluate": 75.0},
    versions={"hubdistill": "0.1.0", "torch": "2.13.0"},
    merge_advice="Load the base in bfloat16 before merging.",
)

if __name__ == "__main__":
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(render_card(FACTS), encoding="utf-8")
