"""The contrastive objective of DistiLLM-2 (eq. 2): presets, weights of tokens, and what is worth logging.

Importing this file does not import torch: `plan` reads the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hubdistill.losses.schedules import SIDES, gaps

if TYPE_CHECKING:
    from torch import Tensor

    from hubdistill.losses.chunked import AlphaRule, Head, Responses, Tokens

BINS = 10  # of the histogram of alpha


INTERLEAVED = "interleaved"  # responses that student and teacher write together (pairs/interleaving.py), and who gave them


@dataclass(frozen=True, kw_only=True)
class LossPreset:
    """Every choice of the loss; field by field as specs.LossSpec describes them."""

    name: str
    alpha: float = 0.1
    alpha_low: float = 0.01
    alpha_high: float = 0.1
    anchor: Literal["off", "frozen", "batch", "ema"] = "frozen"
    nonpositive_gap: Literal["max", "min"] = "max"
    mix_grad: Literal["exact", "detached"] = "exact"
    beta: Literal["linear", "paper", "released", "constant", "off", "full"] = "linear"
    beta_end: float = 1.0
    reduction: Literal["sequence", "token"] = "sequence"
    kinds: tuple[str, str] = ("skl", "srkl")  # the divergence on teacher and on student responses
    fixed_responses: Literal["teacher", "data", "interleaved"] = "teacher"
    student_responses: Literal["round", "replay", "initial", "interleaved"] = "round"
    acceptance: Literal["top_k", "typical", "mixed"] = "top_k"  # which of the student's tokens the teacher keeps in interleaved responses
    top_k: int = 25  # K of SKD
    epsilon: float = 0.3  # of typical acceptance
    teacher_share: float = 0.2  # of the tokens in mixed responses
    preference: Literal["off", "teacher", "before"] = "off"  # in place of divergences (preference.py), and what it is held against
    strength: float = 0.1  # lambda of eq. 3 and 4
    policy_gradient: bool = False  # besides the divergence, what a token leads to (policy_gradient.py)

    @property
    def sides(self) -> tuple[bool, bool]:
        """Whether the teacher's (or the data set's) and the student's responses are trained on: where beta leaves one out, it is not even sampled."""
        return self.beta != "full", self.beta != "off"

    @property
    def interleaved(self) -> bool:
        """Whether responses are trained on that student and teacher write together."""
        return any(trained and whose == INTERLEAVED for trained, whose in zip(self.sides, (self.fixed_responses, self.student_responses), strict=True))

    @property
    def held_against_before(self) -> bool:
        """Whether the loss wants to know what the student made of the responses before the round."""
        return self.preference == "before" or self.policy_gradient

    @property
    def prompts_per_pair(self) -> int:
        """Prompts that take the place of a pair, so that a step holds as many responses with every preset."""
        return 2 // sum(self.sides)


DISTILLM2 = LossPreset(name="distillm2")
PLAIN = replace(DISTILLM2, anchor="off", beta="constant")  # no curriculum, no ramp
PRESETS = {
    preset.name: preset
    for preset in (
        DISTILLM2,
        replace(DISTILLM2, name="paper", beta="paper"),
        # what the authors' code ran: no curriculum, no ramp, no gradient through the mixture
        replace(PLAIN, name="released", mix_grad="detached"),
        # eq. 5, Table 5 row (1); its factor 2 over eq. 2 at beta 0.5 is left out, so that presets share one gradient scale
        replace(PLAIN, name="cald"),
        # Table 5 rows (1)+(2) and (1)+(3); all three are distillm2
        replace(PLAIN, name="cald_beta", beta="linear"),
        replace(PLAIN, name="cald_alpha", anchor="frozen"),
        # Table 12: the student's responses of the first round in every round
        replace(DISTILLM2, name="off_policy", student_responses="initial"),
        # DistiLLM (Ko et al. 2024, arXiv 2402.03898): skew reverse KL on fixed responses and on the student's, half each, the
        # latter drawn from a buffer of all rounds. Its fixed responses are the data set's; ours the teacher's, as those
        # of gkd and distillm2 are. Its share of student responses rises with the validation loss
        # from 0; ours is constant. Its loss on a pre-training corpus is left out, as in DistiLLM-2 (C.2).
        replace(PLAIN, name="distillm", kinds=("srkl", "srkl"), student_responses="replay"),
        # GKD (Agarwal et al. 2024, arXiv 2306.13649): JSD at its usual b = 0.5, half of the responses the student's; these
        # are sampled once a round and not at every step
        replace(PLAIN, name="gkd", kinds=("jsd", "jsd"), alpha=0.5),
        # ImitKD (Lin et al. 2020, arXiv 2009.07253): full-distribution imitation on the student's responses; sampled once a
        # round, and without the decaying share of data that it starts from
        replace(PLAIN, name="imitkd", beta="full", kinds=("kl", "kl")),
        # Speculative KD (Xu et al. 2024, arXiv 2410.11325): forward KL on what the student says, but for tokens that are not among
        # the teacher's 25 most likely: these are the teacher's. Sampled once a round and not at every step
        replace(PLAIN, name="skd", beta="full", kinds=("kl", "kl"), student_responses="interleaved"),
        # MiniLLM (Gu et al. 2024, arXiv 2306.08543): reverse KL by policy gradient on responses whose tokens are the teacher's with
        # probability 0.2. Sampled once a round; without its loss on a pre-training corpus
        replace(PLAIN, name="minillm", beta="full", kinds=("rkl", "rkl"), policy_gradient=True, student_responses="interleaved", acceptance="mixed"),
        # KD (Hinton et al. 2015, arXiv 1503.02531) at temperature 1 on the data set's responses, without a hard-label term
        replace(PLAIN, name="kd", beta="off", kinds=("kl", "kl"), fixed_responses="data"),
        # SeqKD (Kim & Rush 2016, arXiv 1606.07947): fine-tuning on what the teacher said, sampled in place of its beam search
        replace(PLAIN, name="seqkd", beta="off", kinds=("nll", "nll")),
        # fine-tuning on the data set's responses
        replace(PLAIN, name="sft", beta="off", kinds=("nll", "nll"), fixed_responses="data"),
        # DPO (Rafailov et al. 2023, arXiv 2305.18290), eq. 3: the teacher's response preferred to the student's; held against
        # the student as it was before the round, as batched DPO does (Rosset et al. 2024, arXiv 2404.03715)
        replace(PLAIN, name="dpo", kinds=("nll", "nll"), preference="before"),
        # DPKD (Li et al. 2024, arXiv 2406.19774), eq. 4: the same held against the teacher; summed over tokens as eq. 4 is,
        # without its authors' normalisation by length and their term on the teacher's responses
        replace(PLAIN, name="dpkd", kinds=("nll", "nll"), preference="teacher"),
        # plain forward KL on both responses
        replace(PLAIN, name="kl", kinds=("kl", "kl")),
        # how often a draft is rejected, as DistillSpec trains (Zhou et al. 2024, arXiv 2310.08461), on both responses
        replace(PLAIN, name="tvd", kinds=("tv", "tv")),
    )
}


def resolve(fields: Mapping[str, Any]) -> LossPreset:
    """The preset named by `fields["preset"]` (default distillm2) with every other field that is not None put over it.

    `fields` is `LossSpec.model_dump()`; its `alpha_range` becomes alpha_low and alpha_high. Raises ValueError for an
    unknown preset.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    name = given.pop("preset", DISTILLM2.name)
    if name not in PRESETS:
        raise ValueError(f"unknown loss preset {name!r}; choose from {', '.join(PRESETS)}")
    if "alpha_range" in given:
        given["alpha_low"], given["alpha_high"] = given.pop("alpha_range")
    return replace(PRESETS[name], **given)


def contrastive_loss(
    responses: Responses,
    student_head: Head,
    teacher_head: Head,
    preset: LossPreset,
    *,
    beta: float,
    alpha: float | AlphaRule,
    pairs: int,
    side_tokens: tuple[int, int] | None = None,
    vocab: int | None = None,
    budget_bytes: int | None = None,
    whole_bytes: int = 0,
    reference_logp_N: Tensor | None = None,
) -> tuple[Tensor, Tokens]:
    """Eq. 2: 1/2 [(1-beta) mean skl on teacher responses + beta mean srkl on student responses], in nats.

    (Or the other divergences that the preset names; or its preference, which takes no notice of beta, alpha and reduction;
    or its policy gradient. `reference_logp_N`: log-probabilities of the labels under the student before the round, where the
    preset is held against it.)

    Reduction `sequence`: mean over a response's tokens, then sum over responses / `pairs`. Pass the pairs of the
    whole optimiser step and add the micro-batches' losses, or those of this micro-batch and average. Reduction
    `token`: sum over a side's tokens / `side_tokens` (teacher, student); pass the totals of the whole optimiser step,
    over all ranks, and accumulation stays exact; default this micro-batch's own. Raises ValueError for an empty
    response, or for arguments that do not fit (see chunked_divergence).
    """
    from hubdistill.losses.chunked import chunked_divergence

    if preset.preference != "off":
        from hubdistill.losses.preference import Preference, preference_loss

        return preference_loss(responses, student_head, teacher_head, Preference(preset.strength, pairs, vocab, budget_bytes), reference_logp_N)
    weights_N = token_weights(responses, preset.reduction, beta=beta, pairs=pairs, side_tokens=side_tokens)
    if preset.policy_gradient:
        from hubdistill.losses.policy_gradient import policy_gradient_loss

        if reference_logp_N is None:
            raise ValueError("a policy gradient needs the log-probabilities of the labels under the student before the round")
        share = preset.teacher_share if preset.interleaved else 0.0
        return policy_gradient_loss(responses, student_head, teacher_head, weights_N, reference_logp_N, share, vocab=vocab, budget_bytes=budget_bytes)
    return chunked_divergence(
        responses, student_head, teacher_head, weights_N, alpha,
        kinds=preset.kinds, mix_grad=preset.mix_grad, vocab=vocab, budget_bytes=budget_bytes, whole_bytes=whole_bytes,
    )  # fmt: skip


def token_weights(
    responses: Responses, reduction: str, *, beta: float, pairs: int, side_tokens: tuple[int, int] | None = None
) -> Tensor:
    """Weight (N,) of each token's divergence in eq. 2, float32 (float64 for float64 hidden states)."""
    import torch

    from hubdistill.losses.head import compute_dtype

    device, dtype = responses.student_ND.device, compute_dtype(responses.student_ND)
    lengths, flags = _lengths(responses), responses.from_student_B.to(device)
    if int(lengths.min()) < 1:
        raise ValueError("a response has no tokens; leave out pairs with an empty response before the loss")
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; pass the number of pairs that the mean runs over")
    if reduction == "sequence":
        sizes = lengths.to(dtype) * pairs
    else:
        own = (int(lengths[~flags].sum()), int(lengths[flags].sum()))
        teacher, student = side_tokens or own
        sizes = torch.where(flags, student, teacher).to(dtype)
    side = torch.where(flags, beta, 1 - beta).to(dtype)
    return (0.5 * side / sizes).repeat_interleave(lengths)


def response_gaps(tokens: Tokens, responses: Responses) -> Tensor:
    """Gap (B,) of each response as the alpha curriculum sees it: what to hand to `AlphaCurriculum.observe`."""
    teacher, student = (_response_means(logp, responses) for logp in (tokens.teacher_logp_N, tokens.student_logp_N))
    return gaps(teacher, student, responses.from_student_B)


def telemetry(tokens: Tokens, responses: Responses, preset: LossPreset) -> dict[str, Tensor]:
    """Sums and counts per side, to be added over micro-batches and ranks; `summarise` turns the totals into means.

    Keys are `teacher/...` and `student/...`, for whose responses: tokens, responses (counts); divergence,
    teacher_nll, student_nll, agreement (sums over tokens); gap, alpha, alpha_at_low, alpha_at_high (sums over
    responses), and where alpha is chosen alpha_in_0 to alpha_in_9, how many lie in each tenth of its range. 0-d
    float tensors on the loss's device; nothing waits for the device.
    """
    flags = responses.from_student_B.to(tokens.alpha_B.device)
    lengths, alpha = _lengths(responses), tokens.alpha_B
    per_token = {
        "divergence": tokens.divergence_N,
        "teacher_nll": -tokens.teacher_logp_N,
        "student_nll": -tokens.student_logp_N,
        "agreement": tokens.agree_N,
        "tokens": tokens.agree_N.new_ones(tokens.agree_N.shape),
    }
    per_response = {
        "gap": response_gaps(tokens, responses),
        "alpha": alpha,
        "alpha_at_low": alpha <= preset.alpha_low * (1 + 1e-5),
        "alpha_at_high": alpha >= preset.alpha_high * (1 - 1e-5),
        "responses": flags.new_ones(flags.shape),
    }
    flags_N = flags.repeat_interleave(lengths, output_size=len(tokens.agree_N))
    totals = {}
    for side, mask_N, mask_B in zip(SIDES, (~flags_N, flags_N), (~flags, flags), strict=True):
        for key, value in per_token.items():
            totals[f"{side}/{key}"] = (value.to(tokens.divergence_N.dtype) * mask_N).sum()
        for key, value in per_response.items():
            totals[f"{side}/{key}"] = (value.to(tokens.divergence_N.dtype) * mask_B).sum()
        if preset.anchor != "off":
            totals |= {f"{side}/alpha_in_{number}": count for number, count in enumerate((_tenths(alpha, preset).to(tokens.divergence_N.dtype) * mask_B[:, None]).sum(0))}
    return totals


def summarise(totals: Mapping[str, Any]) -> dict[str, float]:
    """Means of `telemetry`'s totals: nats per token for divergence and NLL, tokens for `length`; empty sides left out."""
    values = {key: float(value) for key, value in totals.items()}
    result = {}
    for side in SIDES:
        tokens, count = values[f"{side}/tokens"], values[f"{side}/responses"]
        if not count:
            continue
        for key in ("divergence", "teacher_nll", "student_nll", "agreement"):
            result[f"{side}/{key}"] = values[f"{side}/{key}"] / tokens
        for key in ("gap", "alpha", "alpha_at_low", "alpha_at_high", *(f"alpha_in_{number}" for number in range(BINS) if f"{side}/alpha_in_0" in values)):
            result[f"{side}/{key}"] = values[f"{side}/{key}"] / count
        result[f"{side}/length"] = tokens / count
    return result


def _tenths(alpha_B: Tensor, preset: LossPreset) -> Tensor:
    """In which tenth of [alpha_low, alpha_high] each alpha lies, (B, BINS) of zeros and a one."""
    import torch

    position = (alpha_B - preset.alpha_low) / max(preset.alpha_high - preset.alpha_low, 1e-12) * BINS
    return torch.nn.functional.one_hot((position + 1e-4).long().clamp(0, BINS - 1), BINS)


def _lengths(responses: Responses) -> Tensor:
    import torch

    return torch.as_tensor(responses.lengths_B, device=responses.student_ND.device)


def _response_means(values_N: Tensor, responses: Responses) -> Tensor:
    import torch

    # Not torch.segment_reduce: it exists on CPU and CUDA only (torch 2.13).
    parts = values_N.split(torch.as_tensor(responses.lengths_B).tolist())
    return torch.stack([part.mean() for part in parts])
