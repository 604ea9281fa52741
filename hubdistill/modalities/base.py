"""What a modality is: how prompts become token ids, token ids become what a model takes, and how both models read a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hubdistill.errors import InputError

if TYPE_CHECKING:
    import torch

    from hubdistill.models.pair_attention import PairTree
    from hubdistill.pairs.join import Pair

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Row:
    """One response to train or measure on, under a prompt as each of the two models reads it."""

    prompt_ids: tuple[int, ...]  # as the teacher reads it
    response_ids: tuple[int, ...]
    from_student: bool = False
    student_prompt_ids: tuple[int, ...] | None = None  # None: as the teacher does
    images: tuple[str, ...] = ()  # names in the image store, in the order of the prompt

    @property
    def as_student(self) -> tuple[int, ...]:
        """The prompt as the student reads it."""
        return self.prompt_ids if self.student_prompt_ids is None else self.student_prompt_ids


def rows_of(pairs: Sequence[Pair], sides: tuple[bool, bool] = (True, True)) -> list[Row]:
    """Pairs as rows: all teacher responses, then all student responses; of the `sides` that are asked for."""
    found = []
    for from_student in (flag for flag, wanted in zip((False, True), sides, strict=True) if wanted):
        responses = [pair.student_ids if from_student else pair.teacher_ids for pair in pairs]
        found += [Row(pair.prompt_ids, ids, from_student, pair.student_prompt_ids, pair.images) for pair, ids in zip(pairs, responses, strict=True)]
    return found


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one row, as one model reads them, and the images that they speak of."""

    ids: tuple[int, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What one model takes for B rows. `tokens` have shape (B, L); `images` holds, once each, what the vision tower
    takes for the images of a prompt, and `image_of_row` says which rows they belong to (None: no image).

    With a `tree`, the tokens are one row of pairs, and `image_of_row` is by pair."""

    tokens: dict[str, torch.Tensor]
    images: tuple[dict[str, torch.Tensor], ...] = ()
    image_of_row: tuple[int | None, ...] = ()
    tree: PairTree | None = None

    @property
    def padding(self) -> tuple[int, int]:
        """Tokens that are padding, and all of them; a row of pairs has none."""
        mask = self.tokens.get("attention_mask")
        return (0, self.tokens["input_ids"].numel()) if mask is None else (mask.numel() - int(mask.sum()), mask.numel())

    def to(self, device: torch.device) -> Inputs:
        def moved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: value.to(device) for name, value in tensors.items()}

        return Inputs(moved(self.tokens), tuple(moved(image) for image in self.images), self.image_of_row, self.tree)


@dataclass(frozen=True)
class Batch:
    """Rows ready for both models.

    Legend: B rows, N response tokens of all rows together. Each model has inputs and positions of its own, since
    in a vision model the prompt may take another number of tokens; the labels are shared.
    """

    student: Inputs
    teacher: Inputs
    student_rows_N: torch.Tensor  # row and column of the hidden state that predicts each response token
    student_columns_N: torch.Tensor
    teacher_rows_N: torch.Tensor
    teacher_columns_N: torch.Tensor
    labels_N: torch.Tensor
    lengths_B: torch.Tensor  # response tokens of each row
    from_student_B: torch.Tensor  # bool


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Five functions; all else is shared by text and vision.

    A reader is what turns a prompt into what a model takes: a tokenizer, or a processor. `tokenizer_of` gives its
    tokenizer. `own_view` says that each model has a reader of its own; else both read through the teacher's.
    """

    name: str
    own_view: bool
    pipeline_tag: str  # the Hub's name of what such models do
    # (facts, the teacher's reader where it is the student's that is loaded) -> reader
    load_reader: Callable[..., Any]
    # (reader, chat messages, images) -> token ids of the rendered prompt; raises InputError
    encode_prompt: Callable[[Any, Sequence[Mapping[str, Any]], Sequence[Any]], list[int]]
    # (reader, sequences, pad id, side to pad, opener of images) -> Inputs
    inputs: Callable[[Any, Sequence[TokenRow], int, Side, Callable[[str], Any]], Inputs]
    # (model, Inputs on its device) -> keyword arguments of its forward
    arguments: Callable[[Any, Inputs], dict[str, Any]]
    # (model, Inputs of one row on its device) -> the same, as the model's authors would call it
    plain_arguments: Callable[[Any, Inputs], dict[str, Any]]


def tokenizer_of(reader: Any) -> Any:
    """The tokenizer of a processor; a tokenizer is its own."""
    return getattr(reader, "tokenizer", reader)


def media_ids(reader: Any) -> list[int]:
    """Ids that a processor puts for images, videos and sounds. A tokenizer's own are left alone: Gemma-3's names an image
    token for its text models too, which read it as any other."""
    if tokenizer_of(reader) is reader:
        return []
    return [i for kind in ("image", "video", "audio") for i in getattr(reader, f"{kind}_token_ids", ()) if i is not None]


def image_id(processor: Any) -> int:
    """The id that a processor puts for a part of an image."""
    return int(tokenizer_of(processor).convert_tokens_to_ids(processor.image_token))


def no_images(name: str) -> Any:
    """The opener of images where there are none."""
    raise KeyError(f"a row names the image {name}, and this run keeps no images")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the two models of a run read prompts."""

    modality: Modality
    teacher: Any = None  # readers; text rows need none, they are token ids already
    student: Any = None
    pad_id: int
    open_image: Callable[[str], Any] = field(default=no_images)

    def inputs(self, who: str, rows: Sequence[TokenRow], side: Side) -> Inputs:
        """`rows` as the model `who` takes them."""
        reader = self.teacher if who == "teacher" else self.student
        return self.modality.inputs(reader, rows, self.pad_id, side, self.open_image)

    def hidden(self, model: Any, inputs: Inputs, rows_N: torch.Tensor, columns_N: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, D) at those positions, before the head; `inputs` and positions go to the model's device.

        Inputs with a tree want the model inside `pair_attention`, others outside; RuntimeError otherwise."""
        from hubdistill.models.load import last_hidden
        from hubdistill.models.pair_attention import takes_pairs

        if takes_pairs(model) != (inputs.tree is not None):
            raise RuntimeError("rows of pairs and the attention that reads them go together")  # logits would be wrong without a sign
        device = next(model.parameters()).device
        arguments = self.modality.arguments(model, inputs.to(device))
        if inputs.tree is not None:
            arguments["pair_tree"] = inputs.tree
        return last_hidden(model, **arguments)[rows_N.to(device), columns_N.to(device)]

    def check(self, who: str, model: Any, rows: Sequence[TokenRow], name: str) -> None:
        """Refuse a model that reads `rows` in one batch otherwise than each alone, as its authors would call it: the loss
        would silently be of another model. Raises InputError."""
        import torch

        ends = torch.tensor([len(row.ids) - 1 for row in rows])
        with torch.no_grad():
            together = self.hidden(model, self.inputs(who, rows, "right"), torch.arange(len(rows)), ends).float()
            alone = torch.cat([self._plain_hidden(who, model, row) for row in rows]).float()
        error = float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max())
        if not error <= (0.01 if model.dtype == torch.float32 else 0.2):  # a NaN is refused too
            raise InputError(f"{name}: reads prompts with images in a batch otherwise than one by one (hidden states are off by {error:.0%}), so hubdistill cannot distil this architecture; choose another model")

    def _plain_hidden(self, who: str, model: Any, row: TokenRow) -> torch.Tensor:
        from hubdistill.models.load import last_hidden

        inputs = self.inputs(who, [row], "right").to(next(model.parameters()).device)
        return last_hidden(model, **self.modality.plain_arguments(model, inputs))[:, -1]

    def collate(self, rows: Sequence[Row], shared: Collection[str] = ()) -> Batch:
        """Rows [prompt | response], padded on the right; responses are the same tokens for both models.

        The models named in `shared` ("teacher", "student") read pairs in one row, their prompt once; `rows` hold the teacher
        responses of all pairs then, and after them the student responses.
        """
        import torch

        teacher = self._view("teacher", rows, "teacher" in shared)
        same = not self.modality.own_view and ("teacher" in shared) == ("student" in shared)
        student = teacher if same else self._view("student", rows, "student" in shared)
        return Batch(
            student=student.inputs,
            teacher=teacher.inputs,
            student_rows_N=student.rows_N,
            student_columns_N=student.columns_N,
            teacher_rows_N=teacher.rows_N,
            teacher_columns_N=teacher.columns_N,
            labels_N=torch.tensor([token for row in rows for token in row.response_ids]),
            lengths_B=torch.tensor([len(row.response_ids) for row in rows]),
            from_student_B=torch.tensor([row.from_student for row in rows]),
        )

    def _view(self, who: str, rows: Sequence[Row], shared: bool) -> View:
        """The rows as one model reads them."""
        prompts = [row.prompt_ids if who == "teacher" or not self.modality.own_view else row.as_student for row in rows]
        if shared:
            return self._pairs(who, rows, prompts)
        inputs = self.inputs(who, [TokenRow(prompt + row.response_ids, row.images) for prompt, row in zip(prompts, rows, strict=True)], "right")
        responses = [row.response_ids for row in rows]
        return View(inputs, _positions(responses), _columns(prompts, responses) - 1)

    def _pairs(self, who: str, rows: Sequence[Row], prompts: Sequence[tuple[int, ...]]) -> View:
        """All pairs in one row (models/pair_attention.py); without images, with what all prompts begin with once in front (images belong to their pair)."""
        import torch

        from hubdistill.models.pair_attention import PairTree, Span, common_of

        half = len(rows) // 2
        pairs = list(zip(prompts[:half], rows[:half], rows[half:], strict=True))
        if prompts[:half] != prompts[half:] or any(first.images != second.images for _, first, second in pairs):
            raise ValueError("the two responses of a pair follow the same prompt; give the teacher responses of all pairs, then the student responses")
        images = any(row.images for row in rows)
        common = 0 if images else common_of(prompts[:half], [len(row.response_ids) for row in rows[:half]])
        tree = PairTree(tuple(Span(len(prompt) - common, len(first.response_ids), len(second.response_ids)) for prompt, first, second in pairs), common)
        apart = self.inputs(who, [TokenRow(prompt + first.response_ids + second.response_ids, first.images) for prompt, first, second in pairs], "right")
        real = apart.tokens["attention_mask"].bool()
        real[1:, :common] = False
        tokens = {name: value[real][None] for name, value in apart.tokens.items() if name != "attention_mask"}
        columns_N = tree.columns()
        return View(Inputs({**tokens, "position_ids": tree.positions()}, apart.images, apart.image_of_row, tree), torch.zeros_like(columns_N), columns_N)


@dataclass(frozen=True)
class View:
    """Rows as one model reads them: its inputs, and row and column of the hidden state that predicts each of the N response tokens."""

    inputs: Inputs
    rows_N: torch.Tensor
    columns_N: torch.Tensor


def _positions(responses: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    return torch.cat([torch.full((len(ids),), i) for i, ids in enumerate(responses)])


def _columns(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> torch.Tensor:
    """Columns (N,) of the response tokens, where each row begins with its prompt."""
    import torch

    return torch.cat([torch.arange(len(prompt), len(prompt) + len(ids)) for prompt, ids in zip(prompts, responses, strict=True)])
