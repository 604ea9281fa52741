"""The benchmarks that can be asked: where their questions are, what a question has, how many tokens an answer may take.

Hub data sets are pinned to a commit, so that the same command asks the same questions next year.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubdistill.errors import InputError
from hubdistill.evaluation.questions import OF_TYPE
from hubdistill.specs import BENCHMARKS, RUNS_PROGRAMS, EvaluationSpec, SourceSpec

ALLOW = "allow_code_execution: true"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark. `columns` maps what a question needs to the columns that may hold it, the first one there counts; those of `optional`
    may be missing."""

    name: str
    title: str
    hub: SourceSpec
    columns: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    harness: str = ""  # the name in lm-eval; without one the answer is a program
    shots: int = 0  # examples before each question, as lm-eval has them
    scores: tuple[str, ...] = ("pass@1",)  # what is measured, best known first

    @property
    def max_tokens(self) -> int:
        """Of an answer."""
        return BENCHMARKS[self.name]

    @property
    def runs_code(self) -> bool:
        return not self.harness


def _hub(dataset: str, revision: str, config: str | None = None, split: str = "test") -> SourceSpec:
    return SourceSpec(dataset=dataset, revision=revision, config=config, split=split)


TASKS = {
    task.name: task
    for task in (
        Task(name="gsm8k", title="GSM8K", hub=_hub("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee", "main"),
             columns={"question": ("question", "prompt"), "answer": ("reference", "answer")}, harness="gsm8k", shots=5, scores=("flexible-extract", "strict-match")),
        Task(name="math", title="MATH-500", hub=_hub("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
             columns={"problem": ("problem", "prompt"), "solution": ("solution", "reference")}, harness="minerva_math500", shots=4, scores=("math_verify", "exact_match")),
        Task(name="ifeval", title="IFEval", hub=_hub("google/IFEval", "966cd89545d6b6acfd7638bc708b98261ca58e84", split="train"),
             columns={"key": ("key", "id"), "prompt": ("prompt",), "instruction_id_list": ("instruction_id_list",), "kwargs": ("kwargs",)},
             harness="ifeval", scores=("prompt_level_strict_acc", "prompt_level_loose_acc")),
        Task(name="humaneval", title="HumanEval", hub=_hub("openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
             columns={"prompt": ("prompt",), "test": ("test",), "entry_point": ("entry_point",)}),
        Task(name="mbpp", title="MBPP", hub=_hub("google-research-datasets/mbpp", "4bb6404fdc6cacfda99d4ac4205087b89d32030c", "full"),
             columns={"prompt": ("prompt", "text"), "tests": ("test_list", "tests")},
             optional={"test": ("test",), "setup": ("test_setup_code", "test_imports", "setup"), "entry_point": ("entry_point",)}),
    )
}  # fmt: skip


def title_of(task: str, dataset: str | None) -> str:
    """What cards and tables call a benchmark."""
    return TASKS[task].title if dataset is None else f"{TASKS[task].title} ({Path(dataset).name})"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is asked: a task, its data (`dataset` None is the task's own on the Hub), how much of it."""

    task: Task
    dataset: str | None = None
    base_dir: Path | None = None  # what a local path is relative to
    limit: int | None = None  # questions, from the first on
    max_tokens: int
    key: str = "dataset"  # what a user has to change, in errors

    @property
    def title(self) -> str:
        """What cards and tables call it."""
        return title_of(self.task.name, self.dataset)

    @property
    def source(self) -> SourceSpec:
        """Where its questions come from."""
        return (self.task.hub if self.dataset is None else SourceSpec(dataset=self.dataset, split=self.task.hub.split)).under(self.key)

    @property
    def decoding(self) -> str:
        """How it is asked, in words."""
        shots = f"{self.task.shots} examples before each question, " if self.task.shots else ""
        return f"{shots}greedy, at most {self.max_tokens} tokens"

    def on(self, score: str) -> str:
        """What a score was measured on: the benchmark, and which of its scores it is."""
        return f"{self.title}{OF_TYPE}{score}"


def benchmark(name: str, *, dataset: str | None = None, base_dir: Path | None = None, limit: int | None = None, max_tokens: int | None = None, allow_code_execution: bool = False,
              key: str = "dataset", allow: str = ALLOW) -> Benchmark:  # fmt: skip
    """The benchmark of a recipe or a command. `key` and `allow` are what their errors name. Raises InputError."""
    if name not in TASKS:
        raise InputError(f"{name!r} is no benchmark that hubdistill knows; choose one of {', '.join(TASKS)}")
    task = TASKS[name]
    if task.runs_code and not allow_code_execution:
        raise InputError(
            f"{task.title} {RUNS_PROGRAMS}. Nothing is run unless you say so: {allow}"
        )
    return Benchmark(task=task, dataset=dataset, base_dir=base_dir, limit=limit, max_tokens=max_tokens or task.max_tokens, key=key)


def benchmarks(specs: Sequence[EvaluationSpec], base_dir: Path | None) -> list[Benchmark]:
    """Those of a recipe, in its order."""
    return [
        benchmark(str(one.task), dataset=one.dataset, base_dir=base_dir, limit=one.limit, max_tokens=one.max_tokens, allow_code_execution=bool(one.allow_code_execution), key=f"evaluate[{index}].dataset")
        for index, one in enumerate(specs)
        if one.kind == "benchmark"
    ]
