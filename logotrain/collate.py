"""A preference sample becomes one shared-prefix row of tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from logodata.contract import PreferenceSample
from logodata.positions import draw_mode, draw_positions
from logotrain.recipe import PositionSettings
from logotrain.shared_prefix import SharedPrefixLayout


@dataclass(frozen=True, slots=True)
class SharedPrefixRow:
    """``[prompt | chosen | rejected 1 | ... | rejected M]``, N tokens; R_j is the length of response j.

    Attributes:
        sample_id: for messages.
        input_ids: int64 [1, N].
        position_ids: int64 [1, N]; each response continues from the prompt's last position.
        gather_index: int64 [sum R], indices into the row: the hidden state there predicts the token of ``targets``.
        targets: int64 [sum R], the response tokens.
        layout: where everything lies.
    """

    sample_id: str
    input_ids: Tensor
    position_ids: Tensor
    gather_index: Tensor
    targets: Tensor
    layout: SharedPrefixLayout

    def to(self, device: torch.device) -> SharedPrefixRow:
        """The same row on another device."""
        tensors = {
            name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "gather_index", "targets")
        }
        return replace(self, **tensors)


def collate(
    sample: PreferenceSample, *, settings: PositionSettings, target_length: int, seed: int, epoch: int
) -> SharedPrefixRow:
    """The row of ``sample``, with the position draw that belongs to this seed and epoch.

    The draw depends on nothing else: not on the order of samples, not on how many processes share them.

    Raises:
        UserError: prompt and longest response do not fit under ``target_length``.
    """
    prompt_length = len(sample.prompt_ids)
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    layout = SharedPrefixLayout(prompt_length, tuple(len(response) for response in responses))

    identity = int.from_bytes(hashlib.sha256(sample.id.encode("utf-8")).digest()[:8], "big")
    rng = np.random.default_rng([seed, epoch, identity])
    mode = draw_mode(settings.continuous_share, rng) if settings.mode == "mixed" else settings.mode
    prompt_positions = draw_positions(
        prompt_length,
        [(chunk.token_start, chunk.token_end) for chunk in sample.chunks],
        target_length=target_length,
        reserve=max(layout.response_lengths),
        mode=mode,
        rng=rng,
    )
    following = int(prompt_positions[-1]) + 1
    positions = [prompt_positions, *(np.arange(following, following + length) for length in layout.response_lengths)]

    # A response's first token is predicted by the prompt's last one, the others by the response token before them.
    index = [
        np.concatenate(([prompt_length - 1], np.arange(start, start + length - 1)))
        for start, length in zip(layout.response_starts, layout.response_lengths, strict=True)
    ]
    return SharedPrefixRow(
        sample_id=sample.id,
        input_ids=torch.tensor([[*sample.prompt_ids, *(token for response in responses for token in response)]]),
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        gather_index=torch.from_numpy(np.concatenate(index)),
        targets=torch.tensor([token for response in responses for token in response]),
        layout=layout,
    )
