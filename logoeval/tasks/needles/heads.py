"""The retrieval score of LOGO's Eq. 5: which needle tokens each attention head copies, and which heads count.

A head h copies at a decoding step if the input position that it attends to most lies inside needle k_i and holds the
token that the step generates. With g_h the set of copied tokens, its score on the needle is ``|g_h ∩ k_i| / |k_i|``.
Its score on a sample is the mean over the needles, and its mean score the mean over samples. Heads with a mean score
under 0.1 are dropped; the model's score is the mean over the ten best of the others.

The paper takes the formula from Retrieval Head (Wu et al. 2024, arXiv 2404.15574). Where the paper leaves something
open, this module follows that work and its script:

- The needle k_i is the part of the sentence that answers the question (the "real needle"), here the tokens of the
  value.
- The step that generates a token attends with the query of the token before it.
- The most attended position is taken over the whole row. A head that attends most to the first token or to the answer
  itself copies nothing.
- A token of k_i is a place in the needle, so a digit that occurs twice is two tokens. Unlike in the script, a place
  that is copied twice counts once, because g_h is a set; the script adds every copy and can exceed 1.

The table of seen and said values needs yes or no, not a degree: a value is seen if one of the heads copies its first
token. Later tokens tell little, because a head finds the 3 of "123" from the "12" before it. (Measured: if the right
answer is fed, the ten heads of SmolLM2-135M copy half of the tokens of every value, whether the model says it or not.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.common.records import Record
from logoeval.records import VersionedRecord
from logoeval.tasks.texts import text_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADS_FILE = "heads.json"
MIN_SCORE = 0.1
MOST_HEADS = 10

Copies = NDArray[np.bool_]
"""bool [layers, heads, tokens of all needles]: whether each head copied each needle token."""


@dataclass(frozen=True, slots=True)
class Needles:
    """The positions of the needles' values in one prompt.

    ``places`` maps a prompt position to the number of the needle token at it; if a value occurs several times, its
    tokens have the same numbers each time. ``token_ids`` has the id of each needle token, ``sizes`` the number of
    tokens of each needle.
    """

    places: Mapping[int, int]
    token_ids: tuple[int, ...]
    sizes: tuple[int, ...]


def find_needles(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], values: Sequence[str]) -> Needles:
    """Find values, strings of ASCII letters and digits, among the tokens of a prompt.

    A token that begins before the value, with a space, belongs to the value. Further occurrences of a value count if
    their tokens are the same. A part of a longer word or number is not an occurrence.

    Raises:
        UserError: a value does not occur in the prompt's tokens.
    """
    # Entries of byte-level and of sentencepiece vocabularies hold ASCII letters and digits unchanged.
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(prompt_ids))]
    ends = np.cumsum([len(piece) for piece in pieces])
    text = "".join(pieces)
    places: dict[int, int] = {}
    token_ids: list[int] = []
    sizes: list[int] = []
    for value in values:
        tokens: tuple[int, ...] | None = None
        for match in re.finditer(rf"(?<![0-9A-Za-z]){re.escape(value)}(?![0-9A-Za-z])", text):
            first, last = np.searchsorted(ends, (match.start(), match.end() - 1), side="right").tolist()
            here = tuple(prompt_ids[first : last + 1])
            if tokens is None:
                tokens = here
            if here == tokens:
                places |= {first + offset: len(token_ids) + offset for offset in range(len(here))}
        if tokens is None:
            raise UserError(
                f"the value {value!r} is not among the prompt's tokens",
                where=type(tokenizer).__name__,
                mend="the retrieval score needs a tokenizer whose entries show digits as they are",
            )
        token_ids += tokens
        sizes.append(len(tokens))
    return Needles(places, tuple(token_ids), tuple(sizes))


def copied_tokens(most_attended: NDArray[np.int64], answer_ids: Sequence[int], needles: Needles) -> Copies:
    """Return the needle tokens that each head copies into an answer, given the most attended positions, int64 [steps,
    layers, heads] (:func:`logoeval.tasks.needles.attention_trace.trace_answers`), and the token that each step
    generates."""
    steps, layers, heads = most_attended.shape
    if steps != len(answer_ids):
        raise ValueError(f"{steps} steps for {len(answer_ids)} tokens")
    copies = np.zeros((layers, heads, len(needles.token_ids)), dtype=np.bool_)
    for position, number in needles.places.items():
        generates = np.array([token == needles.token_ids[number] for token in answer_ids], dtype=np.bool_)
        copies[:, :, number] |= (most_attended[generates] == position).any(axis=0)
    return copies


def shares(copies: Copies, sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return ``|g_h ∩ k_i| / |k_i|`` of each needle, [..., needles], from copies [..., tokens of all needles]."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.add.reduceat(copies.astype(np.float64), starts, axis=-1) / np.asarray(sizes)


def encode_copies(copies: Copies, sizes: Sequence[int]) -> dict[str, str]:
    """Encode copies for a JSON record: ``{"layer.head": "1101 0000"}``, one digit per needle token. Heads that copied
    nothing are left out."""
    cuts = np.cumsum(sizes)[:-1]
    return {
        f"{layer}.{head}": " ".join("".join(map(str, part)) for part in np.split(copies[layer, head].astype(int), cuts))
        for layer, head in np.argwhere(copies.any(axis=-1)).tolist()
    }


def decode_copies(record: Mapping[str, str], grid: tuple[int, int], sizes: Sequence[int]) -> Copies:
    """Decode a record of :func:`encode_copies`. ``grid`` is (layers, heads)."""
    copies = np.zeros((*grid, sum(sizes)), dtype=np.bool_)
    for name, digits in record.items():
        layer, head = map(int, name.split("."))
        copies[layer, head] = [digit == "1" for digit in digits if digit != " "]
    return copies


class Head(Record):
    """An attention head and its mean score on the calibration samples. Layers and heads count from 0."""

    layer: int
    head: int
    score: float


class Heads(VersionedRecord):
    """The content of ``heads.json``: the retrieval heads of a model, found on samples that are not measured."""

    model: str
    model_fingerprint: str
    adapter_fingerprint: str | None
    calibration: dict[str, str]
    """The ids of the calibration samples, and the hashes of their prompts."""
    num_layers: int
    num_heads: int
    retrieval_heads: list[Head]
    """All heads with a score of 0.1 or more, the best first. The first ten make the retrieval score."""

    @property
    def best(self) -> list[Head]:
        """The heads that make the retrieval score, at most ten."""
        return self.retrieval_heads[:MOST_HEADS]

    @property
    def fingerprint(self) -> str:
        """A hash of the heads in :attr:`best`. Runs with equal fingerprints are measured on the same heads."""
        names = sorted((head.layer, head.head) for head in self.best)
        return text_fingerprint(repr((self.num_layers, self.num_heads, names)))

    @classmethod
    def read(cls, path: Path, grid: tuple[int, int] | None = None) -> Self:
        """Read the file and check that its model has ``grid`` (layers, heads), if that is given.

        Raises:
            UserError: the file does not exist, it is damaged, or its model has another number of layers or heads.
        """
        mend = f"give the {HEADS_FILE} of a run with --retrieval"
        heads = cls.from_json(read_json(path), where=str(path), mend=mend)
        if grid is not None and (heads.num_layers, heads.num_heads) != grid:
            raise UserError(
                f"heads of a model with {heads.num_layers} layers of {heads.num_heads}, this one has {grid[0]} of "
                f"{grid[1]}",
                where=str(path),
                mend="give the heads of this model's base",
            )
        return heads


def choose_heads(scores: NDArray[np.float64]) -> list[Head]:
    """Return the heads whose mean ``scores`` [layers, heads] are 0.1 or more, the best first, and equal ones in order
    of layer and head."""
    found = [
        Head(layer=layer, head=head, score=round(float(scores[layer, head]), 6))
        for layer, head in np.argwhere(scores >= MIN_SCORE).tolist()
    ]
    return sorted(found, key=lambda head: -head.score)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The mean score of some heads on one sample, and for each value whether one of the heads saw it."""

    score: float
    seen: tuple[bool, ...]


def score_sample(copies: Copies, sizes: Sequence[int], heads: Iterable[Head]) -> Retrieval:
    """Return the retrieval score of ``heads`` on one sample, 0 if there are no heads."""
    chosen = [copies[head.layer, head.head] for head in heads]
    if not chosen:
        return Retrieval(0.0, (False,) * len(sizes))
    stacked = np.stack(chosen)
    first_tokens = np.cumsum([0, *sizes[:-1]])
    seen = np.logical_or.reduce(stacked[:, first_tokens], axis=0)
    return Retrieval(float(shares(stacked, sizes).mean()), tuple(seen.tolist()))
