"""GSM8K, MATH and IFEval, asked and scored by lm-eval (EleutherAI's harness) on a model that is loaded already.

Its own task definitions, with our rows as their data; the chat template applied, examples as turns of a conversation. Decoding is greedy
with the model's generation config put aside, as everywhere in hubdistill. The only file that imports lm_eval.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError, MissingPackageError
from hubdistill.files import write_problem
from hubdistill.tasks.candidate import Candidate, Scored
from hubdistill.tasks.catalog import Benchmark
from hubdistill.tasks.rows import Asked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSTALL = "pip install 'hubdistill[benchmarks]'"
FILES = {"gsm8k": "gsm8k/gsm8k.yaml", "minerva_math500": "minerva_math/minerva_math500.yaml", "ifeval": "ifeval/ifeval.yaml"}  # in lm-eval's tasks
SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")  # instructions of IFEval that NLTK's punkt_tab counts
NLTK_DATA = "python -m nltk.downloader punkt_tab"


def require_lm_eval(title: str) -> None:
    """Raises MissingPackageError with the command that installs what is missing."""
    if missing := [name for name in ("lm_eval", "langdetect", "immutabledict", "math_verify", "antlr4") if find_spec(name) is None]:
        raise MissingPackageError(f"{title} is asked by lm-eval, and the Python package {missing[0]} is not installed; run: {INSTALL}")


def ask(benchmark: Benchmark, asked: Asked, candidate: Candidate, model: PreTrainedModel, answers: Path) -> Scored:
    """Scores by lm-eval. Answers lie in `answers` (JSON lines) as they come, so that an interrupted benchmark goes on."""
    task, notes = benchmark.task, list[str]()
    if task.harness == "ifeval":
        asked, notes = _countable(asked)
    with _calm():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        found = simple_evaluate(
            model=_model(benchmark, candidate, model, answers), tasks=[_definition(benchmark, asked)], task_manager=TaskManager(include_defaults=False),  # its index takes a minute
            limit=asked.count, bootstrap_iters=0, apply_chat_template=candidate.chat, fewshot_as_multiturn=candidate.chat, gen_kwargs={"max_gen_toks": benchmark.max_tokens, "do_sample": False},
        )  # fmt: skip
    assert found is not None, "this is the only process"
    answers.unlink(missing_ok=True)
    return Scored(_values(found["samples"][task.harness], task.scores, asked.ids), tuple(notes))


def _values(samples: Sequence[Mapping[str, Any]], scores: Sequence[str], ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score -> question -> value. A score is a metric, or of exact match the filter that found the answer."""
    found = {score: dict[str, float]() for score in scores}
    for sample in samples:
        for score, values in found.items():
            if score in sample or sample["filter"] == score:
                values[ids[sample["doc_id"]]] = float(sample[score] if score in sample else sample["exact_match"])
    return found


def _definition(benchmark: Benchmark, asked: Asked) -> dict[str, Any]:
    """lm-eval's task with our rows; examples from the questions themselves (never a question's own) where there is no other split."""
    import datasets
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    task, split = benchmark.task, benchmark.task.hub.split
    own = dict(load_yaml(Path(str(lm_eval.__file__)).parent / "tasks" / FILES[task.harness], resolve_func=True))
    rows = {split: datasets.Dataset.from_list(list(asked.rows))}
    if asked.examples:
        rows["train"] = datasets.Dataset.from_list(list(asked.examples))
    elif task.harness == "gsm8k":
        own |= {"training_split": None, "fewshot_split": split}
    return own | {"custom_dataset": lambda **_: rows}


def has_sentences() -> bool:
    """Whether the data are here by which NLTK tells sentences apart."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _countable(asked: Asked) -> tuple[Asked, list[str]]:
    """The questions of IFEval that can be checked here: some need data that NLTK fetches apart."""
    if has_sentences():
        return asked, []
    kept = [at for at, row in enumerate(asked.rows[: asked.count]) if not set(SENTENCES) & set(row["instruction_id_list"])]
    if not kept:
        raise InputError(f"ifeval: every question needs NLTK's data punkt_tab, which is not here; run: {NLTK_DATA}")
    note = f"IFEval: {asked.count - len(kept)} of {asked.count} questions count sentences or words with NLTK's data punkt_tab, which is not here, and are left out; to ask them too: {NLTK_DATA}"
    return Asked(tuple(asked.ids[at] for at in kept), tuple(asked.rows[at] for at in kept), len(kept)), [note] if len(kept) < asked.count else []


def _model(benchmark: Benchmark, candidate: Candidate, model: PreTrainedModel, answers: Path) -> Any:
    """lm-eval's own wrapper of a transformers model, which remembers answers and tells of its progress."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    from hubdistill.models.load import base_of
    from hubdistill.pairs.sampling import neutral_generation

    inner = base_of(model)
    longest = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if longest and longest <= benchmark.max_tokens:
        raise InputError(f"max_tokens: {candidate.name} has room for {longest} tokens, question and answer together, and the answer alone may take {benchmark.max_tokens}; lower max_tokens")
    plain = transformers.GenerationConfig(eos_token_id=list(candidate.stop_ids), pad_token_id=candidate.tokenizer.pad_token_id, bos_token_id=inner.generation_config.bos_token_id)
    memory = _Memory(answers)

    class Remembering(HFLM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            todo = sorted((one for one in requests if one.args not in memory), key=lambda one: -len(one.args[0]))
            candidate.progress(len(requests) - len(todo), 0)
            for start in range(0, len(todo), candidate.batch_size):
                batch = todo[start : start + candidate.batch_size]
                with neutral_generation(inner, plain):
                    texts = super().generate_until(batch, disable_tqdm=True)
                memory.keep([one.args for one in batch], texts)
                candidate.progress(len(batch), sum(len(self.tok_encode(text, add_special_tokens=False)) for text in texts))
            return [memory[one.args] for one in requests]

    return Remembering(pretrained=inner, tokenizer=candidate.tokenizer, batch_size=candidate.batch_size)


class _Memory:
    """Answers by what was asked, in a file of JSON lines that grows; a last line that was cut off is asked again."""

    def __init__(self, path: Path):
        self.path, self.known = path, dict[str, str]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                name, text = json.loads(line)
            except ValueError:
                continue
            self.known[name] = text

    def __contains__(self, arguments: Any) -> bool:
        return self._name(arguments) in self.known

    def __getitem__(self, arguments: Any) -> str:
        return self.known[self._name(arguments)]

    def keep(self, asked: Sequence[Any], texts: Sequence[str]) -> None:
        """Raises RunDirectoryError where the disk is full."""
        new = {self._name(one): text for one, text in zip(asked, texts, strict=True)}
        self.known |= new
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{json.dumps([name, text])}" for name, text in new.items()))
        except OSError as problem:
            raise write_problem(problem, self.path) from problem

    def _name(self, arguments: Any) -> str:
        return hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _calm() -> Iterator[None]:
    """lm-eval tells of what it does on stdout, in its log and by bars; progress is told by us. What it gathers of the machine and of git, by
    programs that talk on stderr, nobody reads here."""
    import datasets
    import nltk
    from lm_eval import evaluator
    from lm_eval.api import task

    log = logging.getLogger("lm_eval")
    before = (log.level, task.tqdm, evaluator.get_git_commit_hash, evaluator.add_env_info, nltk.download)
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm, evaluator.get_git_commit_hash, evaluator.add_env_info = (lambda found, *_, **__: found), (lambda: None), (lambda found: None)
    nltk.download = lambda *_, **__: False  # IFEval would fetch data as it is imported; `_countable` has said what is missing
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        task.tqdm, evaluator.get_git_commit_hash, evaluator.add_env_info, nltk.download = before[1:]
        log.setLevel(before[0])
