"""A benchmark asked of a model: its scores for each question, kept in a folder so that nobody is asked twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill import __version__
from hubdistill.files import digest_of, write_json
from hubdistill.models.sources import read_json
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question, Response, ResponseHeader, collect
from hubdistill.specs import SamplingSpec
from hubdistill.tasks import code, harness
from hubdistill.tasks.candidate import Candidate, Scored
from hubdistill.tasks.catalog import Benchmark
from hubdistill.tasks.rows import Asked
from hubdistill.tasks.sandbox import Outcome, Sandbox, counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULT = "scores.json"


def require(benchmark: Benchmark) -> None:
    """Raises MissingPackageError where the library that a benchmark needs is not installed."""
    if benchmark.task.runs_code:
        code.require_evalplus()
    else:
        harness.require_lm_eval(benchmark.task.title)


def ask(benchmark: Benchmark, asked: Asked, candidate: Candidate, folder: Path, sandbox: Sandbox | None = None) -> Scored:
    """The scores of `candidate`, read from `folder` where the same was asked before. Programs need a `sandbox`."""
    identity = digest_of([benchmark.task.name, benchmark.max_tokens, asked.digest, *candidate.identity, hashlib.sha256(str(candidate.tokenizer.chat_template).encode()).hexdigest(), _library(benchmark)])
    scored = digest_of([identity, __version__, asdict(sandbox) if sandbox else None, harness.has_sentences() if benchmark.task.harness == "ifeval" else None])
    path = folder / RESULT
    kept = read_json(path) if path.is_file() else {}
    if kept.get("of") == scored:
        return Scored(kept["values"], tuple(kept["notes"]))
    candidate.start(f"{candidate.name} answers, {benchmark.title}", asked.count, "responses")
    with candidate.load() as model:
        texts = _answers(benchmark, asked, candidate, model, folder, identity) if benchmark.task.runs_code else {}
        found = Scored({}) if benchmark.task.runs_code else harness.ask(benchmark, asked, candidate, model, folder / f"answers-{identity[:12]}.jsonl")
    if benchmark.task.runs_code:
        found = _programs(benchmark, asked, candidate, texts, folder, sandbox)
    write_json(path, {"of": scored, "benchmark": benchmark.title, "subject": candidate.name, "values": found.values, "notes": list(found.notes)})
    return found


def _library(benchmark: Benchmark) -> str:
    name = "evalplus" if benchmark.task.runs_code else "lm_eval"
    return f"{name} {version(name)}"


def _programs(benchmark: Benchmark, asked: Asked, candidate: Candidate, texts: Mapping[str, str], folder: Path, sandbox: Sandbox | None) -> Scored:
    """pass@1: one greedy answer a question, whose program is run with the question's tests."""
    assert sandbox is not None, "who lets programs be asked for opens a sandbox"
    task = benchmark.task.name
    outcomes, programs = dict[str, Outcome](), dict[str, str]()
    for name, row in asked.questions:
        programs[name] = code.program(task, row, code.solution(task, row, texts[name], candidate.chat))
        outcomes[name] = sandbox.run(programs[name])
    write_json(folder / "programs.json", {name: {"outcome": one.kind, "why": one.why, "program": programs[name]} for name, one in outcomes.items()})
    ends = ", ".join(f"{count} {kind}" for kind, count in counted(outcomes.values()).items())
    return Scored({"pass@1": {name: float(one.kind == "passed") for name, one in outcomes.items()}}, (f"{candidate.name}, {benchmark.title}: {ends}",))


def _answers(benchmark: Benchmark, asked: Asked, candidate: Candidate, model: PreTrainedModel, folder: Path, identity: str) -> Mapping[str, str]:
    """Greedy answers, by question; an interrupted set goes on where it stopped."""
    tokenizer = candidate.tokenizer
    vocab = candidate.vocab or model.config.get_text_config().vocab_size
    settings = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=benchmark.max_tokens, batch_size=candidate.batch_size)
    # A chat template has written the tokens that begin a text.
    texts = {name: code.prompt_text(benchmark.task.name, row, tokenizer) for name, row in asked.questions}
    questions = [Question(name, tuple(tokenizer(text, add_special_tokens=not candidate.chat)["input_ids"])) for name, text in texts.items()]
    sampler = TransformersSampler(model, candidate.stop_ids, tokenizer.pad_token_id, vocab, candidate.progress)
    header = ResponseHeader(who="answers", purpose=benchmark.title, model=candidate.name, commit=identity, dtype=str(model.dtype), vocab=vocab, adapter=None, template="",
                            sampling=settings.model_dump(mode="json", exclude={"batch_size"}), stop_ids=candidate.stop_ids, engine=sampler.engine, engine_version=sampler.version, seed=0)  # fmt: skip

    def missing(wanted: list[Question]) -> Iterator[list[Response]]:
        return sampler.sample(wanted, settings, lambda prompt_id: 0)

    return {row.prompt_id: str(tokenizer.decode(list(row.response_ids), skip_special_tokens=True)) for row in collect(folder, header, questions, missing).rows()}
