"""Turn preference samples into rows of tensors, in which each prompt stands once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logodata.contract import PreferenceSample
from logotrain.recipe.objectives import RowPart
from logotrain.recipe.settings import PositionSettings, TrainRecipe
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from logotrain.rows.positions import draw_mode, draw_positions

Draw = tuple[int, PreferenceSample]
"""An epoch and a sample, which takes that epoch's draw of positions."""

_PAD_TO = 512
"""Compiled runs pad rows to a multiple of this many tokens: layers are compiled anew for each length of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of N tokens: ``[prompt | chosen | rejected 1 | ... | rejected M]`` of each part of a sample, and padding.

    A sample has one part, or two with a prompt each. In ``layout`` each part is a sample of its own.

    Attributes:
        input_ids: int64 [1, N].
        position_ids: int64 [1, N]; each response continues from its prompt's last position.
        gather_index: int64 [T], indices into the row. The hidden state at ``gather_index[t]`` predicts ``targets[t]``.
        targets: int64 [T], ids of the tokens that are scored.
        num_targets: for each part, the number of targets in its prompt (0 unless prompts are scored) and in each
            response.
    """

    input_ids: Tensor
    position_ids: Tensor
    gather_index: Tensor
    targets: Tensor
    num_targets: tuple[tuple[int, ...], ...]
    layout: RowLayout

    def to(self, device: torch.device) -> Row:
        """Return a copy of the row with its tensors on ``device``."""
        tensors = {
            name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "gather_index", "targets")
        }
        return replace(self, **tensors)

    def separate(self) -> list[tuple[Tensor, Tensor]]:
        """Return a row of its own for each response, after its prompt, in the order of ``targets``.

        Returns:
            for each response, int64 [P + R], the indices of its tokens into this row; and int64 [t], the indices of the
            scored tokens' predecessors into those. The first response of a part has the scored tokens of the prompt.
        """
        device = self.input_ids.device
        found: list[tuple[Tensor, Tensor]] = []
        for start, sample, counts in zip(self.layout.sample_starts, self.layout.samples, self.num_targets, strict=True):
            prompt = torch.arange(start, start + sample.prompt_length, device=device)
            scored_before = counts[0]
            for first, length in zip(sample.response_starts, sample.response_lengths, strict=True):
                response = torch.arange(start + first, start + first + length, device=device)
                end = sample.prompt_length + length - 1
                found.append(
                    (torch.cat([prompt, response]), torch.arange(end - length - scored_before, end, device=device))
                )
                scored_before = 0
        return found


def row_responses(sample: PreferenceSample, *, rejected: bool) -> list[list[int]]:
    """Return the token ids of the preferred response and, if ``rejected``, of the dis-preferred ones after it."""
    return [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected if rejected)]


def short_prompt(sample: PreferenceSample) -> list[int]:
    """Return the token ids of the prompt without its chunks that are not critical.

    They are what :meth:`logodata.prompts.PromptFormat.encode` makes of the critical chunks alone.
    """
    ids: list[int] = []
    end = 0
    for chunk in sample.chunks:
        if not chunk.critical:
            ids += sample.prompt_ids[end : chunk.token_start]
            end = chunk.token_end
    return ids + sample.prompt_ids[end:]


def part_prompt(sample: PreferenceSample, part: RowPart) -> list[int]:
    """Return the token ids of a part's prompt."""
    return short_prompt(sample) if part.short else sample.prompt_ids


def row_length(sample: PreferenceSample, parts: Sequence[RowPart]) -> int:
    """Return the tokens that a sample brings to a row."""
    return sum(part_layout(sample, part).total_length for part in parts)


def part_layout(sample: PreferenceSample, part: RowPart) -> SharedPrefixLayout:
    """Return the lengths of a part's prompt and responses, in tokens."""
    responses = row_responses(sample, rejected=part.rejected)
    return SharedPrefixLayout(len(part_prompt(sample, part)), tuple(map(len, responses)))


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes rows from samples.

    Attributes:
        target_length: all positions are below this length, in tokens.
        parts: what each sample brings to a row, in this order.
        pad_to_multiple: rows are padded to a multiple of this many tokens.
        unspread: ids of samples that keep natural positions.
    """

    positions: PositionSettings
    target_length: int
    seed: int
    parts: tuple[RowPart, ...] = (RowPart(),)
    pad_to_multiple: int = 1
    unspread: frozenset[str] = frozenset()

    @staticmethod
    def of(recipe: TrainRecipe, target_length: int, unspread: frozenset[str] = frozenset()) -> Collator:
        """Return the collator of a training run with this recipe."""
        return Collator(
            recipe.positions,
            target_length,
            recipe.seed,
            parts=recipe.objective.parts,
            pad_to_multiple=_PAD_TO if recipe.compile else 1,
            unspread=unspread,
        )

    def split(self, parts: int) -> Collator:
        """Return a collator whose rows can be cut into ``parts`` slices, each as long as rows of this one can be."""
        return replace(self, pad_to_multiple=self.pad_to_multiple * parts)

    def layout(self, sample: PreferenceSample) -> RowLayout:
        """Return the layout of a row of this sample alone, without padding."""
        return RowLayout(tuple(part_layout(sample, part) for part in self.parts))

    def __call__(self, draws: Sequence[Draw]) -> Row:
        """Return the row of these draws, each with the positions that belong to this seed and its epoch.

        The positions of a sample depend on the seed, the epoch and the sample alone, not on the other samples of the
        row or the number of processes.

        Raises:
            UserError: the prompt and the longest response of a sample do not fit under ``target_length``.
        """
        layouts = tuple(layout for _, sample in draws for layout in self.layout(sample).samples)
        padding = -sum(layout.total_length for layout in layouts) % self.pad_to_multiple
        ids: list[int] = []
        positions: list[NDArray[np.int64]] = []
        index: list[NDArray[np.int64]] = []
        targets: list[int] = []
        num_targets: list[tuple[int, ...]] = []
        parts = ((epoch, sample, part) for epoch, sample in draws for part in self.parts)
        for (epoch, sample, part), layout in zip(parts, layouts, strict=True):
            start, prompt_length = len(ids), layout.prompt_length
            prompt = part_prompt(sample, part)
            prompt_positions = np.arange(prompt_length) if part.short else self._positions(sample, layout, epoch)
            following = int(prompt_positions[-1]) + 1
            ids += prompt
            positions.append(prompt_positions)
            if part.scores_prompt:
                index.append(np.arange(start, start + prompt_length - 1))
                targets += prompt[1:]
            for response in row_responses(sample, rejected=part.rejected):
                # The prompt's last token predicts the first token of the response.
                index.append(np.array([start + prompt_length - 1, *range(len(ids), len(ids) + len(response) - 1)]))
                positions.append(np.arange(following, following + len(response)))
                ids += response
                targets += response
            num_targets.append((prompt_length - 1 if part.scores_prompt else 0, *layout.response_lengths))
        return Row(
            input_ids=torch.tensor([ids + [0] * padding]),
            position_ids=torch.from_numpy(np.concatenate([*positions, np.arange(padding)]))[None],
            gather_index=torch.from_numpy(np.concatenate(index)),
            targets=torch.tensor(targets),
            num_targets=tuple(num_targets),
            layout=RowLayout(layouts, padding),
        )

    def _positions(self, sample: PreferenceSample, layout: SharedPrefixLayout, epoch: int) -> NDArray[np.int64]:
        identity = int.from_bytes(hashlib.sha256(sample.id.encode("utf-8")).digest()[:8], "big")
        rng = np.random.default_rng([self.seed, epoch, identity])
        settings = self.positions
        mode = draw_mode(settings.continuous_share, rng) if settings.mode == "mixed" else settings.mode
        if sample.id in self.unspread:
            mode = "natural"
        return draw_positions(
            layout.prompt_length,
            [(chunk.token_start, chunk.token_end) for chunk in sample.chunks],
            target_length=self.target_length,
            reserve=max(layout.response_lengths),
            mode=mode,
            rng=rng,
        )
