"""The places of prompts and responses in a row, as lengths in tokens. This module has no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class SharedPrefixLayout:
    """The layout of one sample, ``[prompt | response 0 | response 1 | ...]``, as lengths in tokens.

    Raises:
        ValueError: the prompt is empty, a response is empty, or there is no response.
    """

    prompt_length: int
    response_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt_length < 1 or not self.response_lengths or min(self.response_lengths) < 1:
            raise ValueError(f"a sample needs a prompt and non-empty responses, got {self}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the prompt and of each response, in tokens."""
        return (self.prompt_length, *self.response_lengths)

    @property
    def places(self) -> tuple[range, ...]:
        """The indices of the tokens of the prompt, and of each response, in a sequence of the prompt and that response
        alone."""
        prompt = self.prompt_length
        return (range(prompt), *(range(prompt, prompt + length) for length in self.response_lengths))

    @property
    def response_starts(self) -> tuple[int, ...]:
        """The index of each response's first token in the sample."""
        return tuple(accumulate(self.lengths))[:-1]

    @property
    def total_length(self) -> int:
        """The number of tokens in the sample."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The layout of a row of N tokens, ``[sample 0 | sample 1 | ... | padding]``.

    A preference sample that brings two prompts is two samples here, which stand next to each other.
    Samples do not attend to each other, and no sample attends to the padding. A padding token attends to the padding up
    to itself, because a softmax over no keys would be NaN.

    Raises:
        ValueError: there is no sample, or ``padding`` is negative.
    """

    samples: tuple[SharedPrefixLayout, ...]
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.samples or self.padding < 0:
            raise ValueError(f"a row needs a sample and padding that is not negative, got {self}")

    @property
    def separate(self) -> RowLayout:
        """The layout of the row's responses when each stands after a prompt of its own, without padding."""
        alone = [(sample.prompt_length, length) for sample in self.samples for length in sample.response_lengths]
        return RowLayout(tuple(SharedPrefixLayout(prompt, (length,)) for prompt, length in alone))

    @property
    def sample_starts(self) -> tuple[int, ...]:
        """The index of each sample's first token in the row."""
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
        """The lengths of all responses of all samples, in the order of the row."""
        return tuple(length for sample in self.samples for length in sample.response_lengths)

    @property
    def pieces(self) -> tuple[int, ...]:
        """The lengths of each sample's prompt and responses, then of the padding if there is any. Their sum is N."""
        lengths = tuple(length for sample in self.samples for length in sample.lengths)
        return (*lengths, self.padding) if self.padding else lengths

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """For each response, in the order of the row, the indices in ``pieces`` of its prompt and of itself."""
        found: list[tuple[int, int]] = []
        piece = 0
        for sample in self.samples:
            found += ((piece, piece + 1 + response) for response in range(len(sample.response_lengths)))
            piece += len(sample.lengths)
        return tuple(found)

    @property
    def used_length(self) -> int:
        """The number of tokens in the row without padding."""
        return sum(sample.total_length for sample in self.samples)

    @property
    def total_length(self) -> int:
        """The number of tokens in the row with padding, N."""
        return self.used_length + self.padding
