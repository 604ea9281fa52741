"""The model card of an adapter: facts in, README.md out. Pure, offline, and without torch.

Every value comes from outside (dataset names, licenses, recipes), so all of it is escaped; see markdown.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hubdistill
from hubdistill.errors import InputError
from hubdistill.evaluation.statistics import Measurement
from hubdistill.hub import markdown
from hubdistill.hub.card_merge import END, START, dump
from hubdistill.hub.lengths import lengths
from hubdistill.hub.methods import OURS, Method
from hubdistill.hub.names import check_base, is_hub_id, require_repo, require_revision
from hubdistill.hub.results import Source, eval_results, number, results
from hubdistill.hub.snippets import Drafts, Use, draft_snippet, load_snippet, merge_snippet, vllm_draft, vllm_snippet
from hubdistill.shipped import model_cards_root

if TYPE_CHECKING:
    from jinja2 import Environment

CITATION = """@inproceedings{ko2025distillm2,
  title     = {{DistiLLM-2}: A Contrastive Approach Boosts the Distillation of {LLM}s},
  author    = {Ko, Jongwoo and Chen, Tianyi and Kim, Sungnyun and Ding, Tianyu and Liang, Luming and Zharkov, Ilya and Yun, Se-Young},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2503.07067}
}"""
TAGS = ("lora", "peft", "distillation", "distillm-2", "hubdistill")  # of DistiLLM-2; `tags_of` has those of others
# Licenses that are known to say something about models trained on the outputs of the licensed one.
OUTPUT_TERMS = ("llama", "gemma", "qwen", "other", "unknown")


@dataclass(frozen=True, kw_only=True)
class License:
    """A license as a model's card states it: `license`, and `license_name`, `license_link` where it is `other`."""

    id: str | None = None
    name: str | None = None
    link: str | None = None

    @property
    def label(self) -> str:
        """The license in words."""
        if self.id is None:
            return "no license stated"
        return f"{self.name} ({self.id})" if self.name else self.id


UNSTATED = License()


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The student's base: a Hub id and the commit that the adapter was trained on."""

    id: str
    commit: str | None
    license: License = UNSTATED
    pushed_beside: bool = False  # pushed by hubdistill, because the student was pruned or local
    made_of: str = ""  # what a base that was not on the Hub was made from

    @property
    def on_hub(self) -> bool:
        """Whether `id` names a Hub repository and not a folder of this machine."""
        return is_hub_id(self.id)

    @property
    def label(self) -> str:
        """What to call it: its Hub id, else what it was made of."""
        return self.id if self.on_hub else self.made_of or self.id


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher, in words: it is named in the body and never in `base_model`."""

    name: str
    commit: str | None = None
    license: License = UNSTATED


@dataclass(frozen=True, kw_only=True)
class Data:
    """The prompts: a display name, and the Hub id and commit where they come from the Hub."""

    name: str
    hub_id: str | None = None
    commit: str | None = None
    languages: tuple[str, ...] = ()
    license: License = UNSTATED
    asked: str = ""  # of a set of questions: how many, and how

    @property
    def source(self) -> Source:
        """What the Hub's `model-index` says of it."""
        return Source(self.name, self.hub_id, self.commit)

    @property
    def label(self) -> str:
        """Its name, commit and license in words."""
        return f"{self.name}{f' at {self.commit}' if self.commit else ''} ({self.license.label})"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything a card says. Empty fields leave their row or section out; nothing is ever a placeholder."""

    name: str  # display name
    repo: str | None  # ORG/NAME on the Hub; None for a local directory
    base: BaseModel
    teacher: Teacher
    data: Data
    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    command: str  # what reproduces the run
    missing: tuple[str, ...] = ()  # files and models that the recipe names and that nobody else has
    method: Method = OURS
    pipeline_tag: str = "text-generation"
    revision: str | None = None  # tag that the snippets pin
    loss: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    questions: Mapping[str, Data] = field(default_factory=dict)  # name in the measurements -> where the set is from
    gate: str = ""  # what the gate says of the measurements, in a sentence without its end
    by_length: tuple[Mapping[str, Any], ...] = ()  # results by the length of the prompt (evaluation/lengths.py)
    notes: tuple[str, ...] = ()  # plain sentences, such as warnings of the run
    limitations: tuple[str, ...] = ()
    hardware: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall-clock seconds
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    merge_advice: str = ""
    quantization: Mapping[str, bool | str] | None = None  # of the base, as BitsAndBytesConfig takes it; `stored` where its files are in 4 bit
    drafts: Drafts | None = None  # whose drafter it is
    merged: str | None = None  # repository of the model with the adapter merged in
    chat_template_file: bool = False  # the repository carries chat_template.jinja
    vllm: bool = True  # False where vLLM would refuse the adapter (DoRA, modules_to_save)


def render_card(facts: CardFacts) -> str:
    """The whole README.md: metadata, then the body between hubdistill's markers. Raises InputError on facts that cannot be published."""
    _check(facts)
    template = _environment().get_template("adapter.md.jinja")
    use = _use(facts)
    body = template.render(
        f=facts,
        results=results(facts.measurements),
        lengths=lengths(facts.by_length),
        load=load_snippet(use),
        vllm=vllm_snippet(use) if facts.vllm else None,
        merge=merge_snippet(use),
        draft=draft_snippet(use),
        serve_draft=vllm_draft(facts.drafts, facts.merged or "./merged") if facts.drafts else None,
        training=_training_rows(facts),
        terms=_terms(facts),
        paper=f"https://arxiv.org/abs/{facts.method.arxiv}",
        citation=CITATION if facts.method == OURS else None,
    )
    return f"---\n{_metadata(facts)}---\n\n{START}\n{body.strip()}\n{END}\n"


def _check(facts: CardFacts) -> None:
    if facts.repo is not None:  # a local directory may name a base by its place on this machine
        check_base(facts.base.id, facts.base.commit)
    require_revision(facts.revision)
    if facts.repo is not None:
        require_repo(facts.repo)
    for m in facts.measurements:
        numbers = [m.value, m.low, m.high, *(x for d in m.differences for x in (d.value, d.low, d.high))]
        if not all(map(math.isfinite, numbers)):
            raise InputError(
                f"the measurement {m.metric} of {m.subject} on {m.on} is not finite; evaluate again before the card is written."
            )


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    data, base = facts.data, facts.base
    evaluated = eval_results(
        facts.measurements, task=facts.pipeline_tag, prompts=data.source, questions={name: one.source for name, one in facts.questions.items()}
    )
    card = ModelCardData(
        base_model=base.id if base.on_hub else None,
        base_model_relation="adapter" if base.on_hub else None,
        library_name="peft",
        pipeline_tag=facts.pipeline_tag,
        license=base.license.id,
        license_name=base.license.name if base.license.id else None,
        license_link=base.license.link if base.license.id else None,
        language=list(data.languages) or None,
        datasets=[data.hub_id] if data.hub_id and is_hub_id(data.hub_id) else None,
        tags=tags_of(facts.method),
        model_name=facts.name if evaluated else None,
        eval_results=evaluated or None,
        hubdistill={
            "teacher": facts.teacher.name,
            **({"teacher_revision": facts.teacher.commit} if facts.teacher.commit else {}),
            **({"base_revision": base.commit} if base.commit else {}),
            **({"draft_tokens": facts.drafts.tokens} if facts.drafts else {}),
            **({"quantization": dict(facts.quantization)} if facts.quantization else {}),
            "version": hubdistill.__version__,
        },
    )
    return dump(markdown.flat(card.to_dict()))


def tags_of(method: Method) -> list[str]:
    """TAGS as far as they are true of a method."""
    untrue = {"distillm-2": method != OURS, "distillation": not method.distils}
    return [tag for tag in TAGS if not untrue.get(tag)]


def _use(facts: CardFacts) -> Use:
    return Use(
        base=facts.base.id,
        base_commit=facts.base.commit,
        adapter=facts.repo or ".",
        revision=facts.revision,
        rank=facts.rank,
        name=(facts.repo or facts.name).rsplit("/", 1)[-1],
        pipeline_tag=facts.pipeline_tag,
        chat_template_file=facts.chat_template_file,
        local=facts.repo is None,
        quantization=facts.quantization,
        drafts=facts.drafts,
    )


def _training_rows(facts: CardFacts) -> dict[str, str]:
    rows = {**facts.loss, **facts.training}
    if facts.questions:
        rows["questions asked"] = "; ".join(dict.fromkeys(one.label for one in facts.questions.values()))
        rows |= {f"asked of {name}": one.asked for name, one in facts.questions.items() if one.asked}
    if facts.hardware:
        rows["hardware"] = facts.hardware
    if facts.seconds:
        rows["wall-clock time"] = ", ".join(f"{stage} {duration(s)}" for stage, s in facts.seconds.items())
    if facts.versions:
        rows["versions"] = ", ".join(f"{package} {version}" for package, version in facts.versions.items())
    return rows


def duration(seconds: float) -> str:
    """`seconds` in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _terms(facts: CardFacts) -> list[str]:
    lines = []
    if facts.base.license.id is None:
        lines.append(
            "The base model states no license, so this card states none; ask its authors before you use the adapter."
        )
    teacher = (facts.teacher.license.id or "unknown").lower()
    if teacher.startswith(OUTPUT_TERMS):
        lines.append(
            f"The teacher's license ({facts.teacher.license.label}) may set terms for models trained on its outputs "
            "(naming, attribution, use); read it before you use or share this adapter."
        )
    if any((x.license.id or "").startswith("llama") for x in (facts.base, facts.teacher)):
        lines.append("Built with Llama.")
    return lines


def _environment() -> Environment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    # `finalize` sees every printed value: what is not marked as Markdown is escaped, so no place can forget to.
    env = SandboxedEnvironment(
        loader=FileSystemLoader(model_cards_root()),
        undefined=StrictUndefined,
        finalize=markdown.text,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    env.filters.update(
        code=markdown.code,
        cell=markdown.cell,
        number=number,
        block=markdown.block,
        line=markdown.one_line,
        link=markdown.link,
    )
    return env
