"""What became of the rows of a data set, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 duplicate", "2,000 duplicates"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What became of the rows: read = empty + duplicates + damaged + too_long + not_drawn + kept_train + kept_heldout.

    All counts but `read` leave the order of the rows out of account. `lengths` are (least, median, most) tokens of
    the kept prompts, rendered by the template.
    """

    read: int
    empty: int  # no text in the prompt
    duplicates: int  # same messages as an earlier row
    too_long: int  # would have been drawn, but longer than max_tokens
    not_drawn: int  # beyond `count`; their lengths were not looked at
    kept_train: int
    kept_heldout: int
    without_response: int  # kept prompts that have no ground truth
    lengths: tuple[int, float, int]
    asked: int | None = None
    max_tokens: int = 0
    disagreeing: int = 0  # questions that are there more than once with different answers
    damaged: int = 0  # an image could not be read; among the rows that were looked at
    images: int = 0  # of the kept prompts; one that several prompts share counts once
    image_bytes: int = 0  # on disk

    def lines(self, one: str = "training prompt") -> list[str]:
        """The report for people, one fact a line; `one` is what a kept row is called."""
        short = f" (asked for {self.asked:,})" if self.asked and self.kept_train < self.asked else ""
        heldout = f", {self.kept_heldout:,} held out" if one == "training prompt" else ""
        least, middle, most = self.lengths
        lines = [f"{counted(self.kept_train, one)}{short}{heldout}, from {counted(self.read, 'row')}"]
        if dropped := self.left_out():
            lines.append(f"left out: {', '.join(dropped)}")
        if self.disagreeing:
            lines.append(f"{counted(self.disagreeing, 'question is', 'questions are')} there with different answers; the first in alphabetical order is kept")
        lines.append(f"prompt tokens: {least} to {most}, median {middle:g}")
        if self.images:
            each = self.image_bytes / (self.kept_train + self.kept_heldout) / 1024
            lines.append(f"{counted(self.images, 'image')}, {self.image_bytes / 2**20:,.1f} MiB on disk, {each:,.1f} KiB a prompt")
        if self.without_response:
            lines.append(f"{self.without_response:,} of them {'has' if self.without_response == 1 else 'have'} no ground-truth response")
        return lines

    def left_out(self) -> list[str]:
        """The reasons for which rows were left out, each with their number."""
        dropped = [
            (self.empty, f"{self.empty:,} empty"),
            (self.duplicates, counted(self.duplicates, "duplicate")),
            (self.too_long, f"{self.too_long:,} longer than {counted(self.max_tokens, 'token')}"),
            (self.damaged, f"{self.damaged:,} with a damaged image"),
        ]
        return [words for number, words in dropped if number]

    def as_dict(self) -> dict[str, int | float | list[float] | None]:
        """The report for JSON."""
        return {**asdict(self), "lengths": list(self.lengths)}
