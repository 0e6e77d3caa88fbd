"""Where prompts and responses lie in a row: lengths only, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class SharedPrefixLayout:
    """One sample, ``[prompt | response 0 | response 1 | ...]``, lengths in tokens."""

    prompt_length: int
    response_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt_length < 1 or not self.response_lengths or min(self.response_lengths) < 1:
            raise ValueError(f"a sample needs a prompt and non-empty responses, got {self}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the prompt and of each response."""
        return (self.prompt_length, *self.response_lengths)

    @property
    def response_starts(self) -> tuple[int, ...]:
        """Index of each response's first token in the sample."""
        return tuple(accumulate(self.lengths))[:-1]

    @property
    def total_length(self) -> int:
        """Tokens in the sample."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """One row of N tokens, ``[sample 0 | sample 1 | ... | padding]``.

    Samples do not attend each other. Padding tokens attend the padding up to themselves, so that they hold numbers;
    nothing attends them.
    """

    samples: tuple[SharedPrefixLayout, ...]
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.samples or self.padding < 0:
            raise ValueError(f"a row needs a sample and padding that is not negative, got {self}")

    @property
    def sample_starts(self) -> tuple[int, ...]:
        """Index of each sample's first token in the row."""
        return (0, *accumulate(sample.total_length for sample in self.samples))[:-1]

    @property
    def response_starts(self) -> tuple[tuple[int, ...], ...]:
        """For each sample, the index of each response's first token in the row."""
        return tuple(
            tuple(start + within for within in sample.response_starts)
            for start, sample in zip(self.sample_starts, self.samples, strict=True)
        )

    @property
    def response_lengths(self) -> tuple[int, ...]:
        """Tokens of all samples' responses, in the order of the row."""
        return tuple(length for sample in self.samples for length in sample.response_lengths)

    @property
    def pieces(self) -> tuple[int, ...]:
        """Lengths that cut the row: prompt and responses of each sample, then the padding if there is any; sum N."""
        lengths = tuple(length for sample in self.samples for length in sample.lengths)
        return (*lengths, self.padding) if self.padding else lengths

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """For each response, in the order of the row: which of ``pieces`` is its prompt, and which itself."""
        found: list[tuple[int, int]] = []
        piece = 0
        for sample in self.samples:
            found += ((piece, piece + 1 + response) for response in range(len(sample.response_lengths)))
            piece += len(sample.lengths)
        return tuple(found)

    @property
    def used_length(self) -> int:
        """Tokens of samples."""
        return sum(sample.total_length for sample in self.samples)

    @property
    def total_length(self) -> int:
        """Tokens in the row, padding included: N."""
        return self.used_length + self.padding
